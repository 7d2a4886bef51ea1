"""Write a README.md of the inputs and outputs of each module, or list with --check which are out of date.

Terraform prints no types of variables, so they are read from the files as `terraform fmt` lays them out: a block begins
in the first column, and its arguments are indented by two.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
BLOCK = re.compile(r'^(variable|output) "(\w+)" \{\n(.*?)^\}', re.MULTILINE | re.DOTALL)
ARGUMENT = re.compile(r"^  (\w+) += (.*?)(?=^  \w|\Z)", re.MULTILINE | re.DOTALL)


def read_blocks(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield name and arguments of each variable or output of a file, as they are written."""
    for _, name, body in BLOCK.findall(path.read_text(encoding="utf-8") if path.exists() else ""):
        yield name, {key: value.strip() for key, value in ARGUMENT.findall(body)}


def format_cell(text: str) -> str:
    """Return an argument's value on one line of a table."""
    plain = text.removeprefix("<<-EOT").strip('"').replace(r"\"", '"')
    return re.sub(r"\s+", " ", plain).strip().replace("|", r"\|")


def render(folder: Path) -> str:
    """Return the page of a module."""
    opening = re.match(r"(?:# .*\n)+", (folder / "main.tf").read_text(encoding="utf-8"))
    about = " ".join(line.removeprefix("# ") for line in opening[0].splitlines()) if opening else ""
    lines = [f"# {folder.name}", "", about, ""]
    inputs = list(read_blocks(folder / "variables.tf"))
    if inputs:
        lines += ["| input | what | type | default |", "|---|---|---|---|"]
    for name, has in inputs:
        default = f"`{format_cell(has['default'])}`" if "default" in has else "required"
        lines.append(f"| `{name}` | {format_cell(has['description'])} | `{format_cell(has['type'])}` | {default} |")
    lines += ["", "| output | what |", "|---|---|"]
    lines += [f"| `{name}` | {format_cell(has['description'])} |" for name, has in read_blocks(folder / "outputs.tf")]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write all pages, or compare them."""
    old = []
    for folder in sorted([*HERE.glob("modules/*"), *HERE.glob("envs/*")]):
        page, text = folder / "README.md", render(folder)
        if "--check" not in sys.argv:
            page.write_text(text, encoding="utf-8")
        elif not page.exists() or page.read_text(encoding="utf-8") != text:
            old.append(str(page.relative_to(HERE)))
    if old:
        sys.exit(f"{', '.join(old)}: differ from the files; run python infra/terraform/describe.py")


if __name__ == "__main__":
    main()
