"""Write the tables of costs in docs/how-to/provision-aws.md from prices.yaml, or compare them with --check."""

import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "how-to" / "provision-aws.md"
BEGIN, END = "<!-- cost.py writes from here -->", "<!-- to here -->"
Book = dict[str, Any]


def monthly_costs(book: Book, env: str) -> dict[str, float]:
    """Return the dollars a month of each thing that an environment has."""
    used = book["months"][env]["counted"] | book["months"][env]["assumed"]
    return {thing: round(amount * monthly_price(book, thing), 2) for thing, amount in used.items()}


def monthly_price(book: Book, thing: str) -> float:
    """Return the dollars a month of a thing; prices without a unit in their name are by the hour."""
    by_hour = not any(unit in thing for unit in ("month", "a GB", "samples"))
    return float(book["prices"][thing]) * (book["hours"] if by_hour else 1)


def step_hours(training: Book, node: Book) -> dict[str, float]:
    """Return the hours of each step of a retraining on a node of that kind, margin included."""
    return {
        name: training["margin"] * step["work"] * 1e15 / (step["gpus"] * node["peak"] * 1e12 * step["share"]) / 3600
        for name, step in training["steps"].items()
    }


def render(book: Book) -> str:
    """Return both tables, in Markdown."""
    lines = [f"List prices of {book['region']}, {book['date']}, dollars a month of {book['hours']} hours:", ""]
    months = {env: monthly_costs(book, env) for env in book["months"]}
    lines += ["| | " + " | ".join(f"{env}, idle" for env in months) + " |", "|---|" + "---:|" * len(months)]
    for thing in book["prices"]:
        cells = [f"{costs[thing]:,.0f}" if thing in costs else "" for costs in months.values()]
        if any(cells):
            lines.append(f"| {thing} | " + " | ".join(cells) + " |")
    lines.append(
        "| **together** | " + " | ".join(f"**{sum(costs.values()):,.0f}**" for costs in months.values()) + " |"
    )
    training = book["training"]
    names = list(training["steps"])
    lines += ["", "One retraining by the profile `internvl3-2b` on one node, hours estimated, dollars on demand:", ""]
    lines += [
        "| node | GPUs | vCPUs of quota | " + " | ".join(names) + " | all | $ an hour | $ | profile |",
        "|---|---|---:|" + "---:|" * (len(names) + 3) + "---|",
    ]
    for kind, node in training["nodes"].items():
        took = step_hours(training, node)
        total = sum(took.values()) + training["overhead"]
        cells = [f"{took[name]:.1f}" for name in names]
        lines.append(
            f"| {kind} | {node['gpus']} | {node['vcpus']} | {' | '.join(cells)} | {total:.0f} | {node['price']:.2f} | "
            f"**{round(total * node['price'], -1):,.0f}** | {node['profile']} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Write the page, or compare it."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    book = yaml.safe_load((HERE / "prices.yaml").read_text(encoding="utf-8"))
    new = f"{before}{BEGIN}\n\n{render(book)}\n\n{END}{after}"
    if "--check" in sys.argv and new != text:
        sys.exit(f"{PAGE.name}: differs from prices.yaml; run python infra/terraform/cost.py")
    PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
