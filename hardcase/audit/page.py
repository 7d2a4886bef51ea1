"""Render an audit as one self-contained page: the chain as a graph, the tree below it."""

import io
from pathlib import Path
from typing import Any

import jinja2

from hardcase.audit.examine import Audit
from hardcase.provenance.statement import Provenance

GOOD, BAD, PALE, DARK = "#1b7f4b", "#c22f2f", "#eef3f8", "#46607a"


def render_page(audit: Audit) -> str:
    """Return the page of an audit, in HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("page.html.j2").render(audit=audit, graph=_draw(audit))


def _draw(audit: Audit) -> str:
    """Return the graph as SVG: inputs, steps and what they wrote, damage in red."""
    if audit.provenance is None or not audit.links:
        return ""
    import matplotlib as mpl
    import networkx as nx
    from matplotlib.figure import Figure

    graph = _graph(audit, audit.provenance)
    positions = {
        node: (column, row)
        for column, nodes in enumerate(nx.topological_generations(graph))
        for node, row in zip(_steps_last(nodes), _rows(nodes), strict=True)
    }
    with mpl.rc_context({"svg.hashsalt": "hardcase", "svg.fonttype": "none", "font.size": 7}):
        figure = Figure(figsize=(16, 5), layout="constrained")
        axes = figure.subplots()
        axes.set_axis_off()
        arrows = {"edge_color": "#9aa7b4", "arrowsize": 9, "node_size": 1500, "connectionstyle": "arc3,rad=0.05"}
        nx.draw_networkx_edges(graph, positions, ax=axes, **arrows)
        for node, (x, y) in positions.items():
            box = {"boxstyle": "round,pad=0.4", "linewidth": 1.3, **graph.nodes[node]}
            axes.text(x, y, box.pop("label"), ha="center", va="center", bbox=box)
        axes.margins(0.04, 0.15)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def _steps_last(nodes: list[str]) -> list[str]:
    """Sort nodes independently of how the graph was built; steps and the gate come last."""
    return sorted(nodes, key=lambda node: (node.startswith("step ") or node == "gate", node))


def _rows(nodes: list[str]) -> list[float]:
    """Return rows: a step on the middle line, artifacts and other shards of the step alternately above and below."""
    artifacts = [node for node in nodes if not node.startswith("step ") and node != "gate"]
    beside = max(len(nodes) - 1, len(artifacts))
    rows = [float((1 + number // 2) * (1 if number % 2 == 0 else -1)) for number in range(beside)]
    return rows if len(artifacts) == len(nodes) else [*rows, 0.0]


def _graph(audit: Audit, provenance: Provenance) -> Any:
    import networkx as nx

    broken = {finding.what for finding in audit.tree.parts if finding.broken}
    graph = nx.DiGraph()
    resources = provenance.resources

    def add_artifact(name: str, digest: str) -> str:
        names = [resource.name for resource in resources if resource.digest == digest]
        label = name if name in names or not names else names[0]
        colour = BAD if label in broken else GOOD
        graph.add_node(label, label=f"{label}\n{digest[:12]}", facecolor="white", edgecolor=colour)
        return label

    for step, link in audit.links.items():
        graph.add_node(f"step {step}", label=step, facecolor=PALE, edgecolor=DARK)
        for name, digest in link.materials.items():
            graph.add_edge(add_artifact(name, digest), f"step {step}")
        for name, digest in link.products.items():
            if any(resource.digest == digest for resource in resources):
                graph.add_edge(f"step {step}", add_artifact(name, digest))
    source = provenance.parameters["source"]
    short = source if len(source) <= 22 else source[:21] + "…"
    graph.add_node("source", label=f"source\n{short}", facecolor="white", edgecolor=DARK)
    makers = {name: f"step {step}" for step, link in audit.links.items() for name in link.products}
    for name, product in (("source", "snapshot"), ("code", "model"), ("reference evaluation", "drift")):
        if product in makers and (name in graph or name in provenance.dependencies):
            node = name if name in graph else add_artifact(name, provenance.dependencies[name].digest)
            graph.add_edge(node, makers[product])
    if champion := provenance.dependencies.get("champion"):
        add_artifact("champion", champion.digest)
    verdict = audit.version.verdict if audit.version else ""
    label = f"gate: {verdict}\n{provenance.byproducts['gate'].digest[:12]}"
    graph.add_node("gate", label=label, facecolor=PALE, edgecolor=BAD if "gate" in broken else GOOD)
    for name in ("model", "evaluation", "scores", "drift", "champion"):
        if name in graph:
            graph.add_edge(name, "gate")
    return graph
