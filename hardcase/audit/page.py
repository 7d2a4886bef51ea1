"""The audit as one self-contained page: the chain as a picture, the tree below it."""

import io
from pathlib import Path
from typing import Any

import jinja2

from hardcase.audit.examine import Audit

GOOD, BAD, PALE = "#1b7f4b", "#c22f2f", "#eef3f8"


def page(audit: Audit) -> str:
    """HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("page.html.j2").render(audit=audit, picture=_picture(audit))


def _picture(audit: Audit) -> str:
    """The graph as SVG: what came from outside, the steps, what they made; what is broken in red."""
    if audit.provenance is None or not audit.links:
        return ""
    import matplotlib as mpl
    import networkx as nx
    from matplotlib.figure import Figure

    graph = _graph(audit)
    places = {
        node: (column, row)
        for column, nodes in enumerate(nx.topological_generations(graph))
        for node, row in zip(_steps_last(nodes), _rows(nodes), strict=True)
    }
    with mpl.rc_context({"svg.hashsalt": "hardcase", "svg.fonttype": "none", "font.size": 7}):
        figure = Figure(figsize=(16, 5), layout="constrained")
        axes = figure.subplots()
        axes.set_axis_off()
        nx.draw_networkx_edges(
            graph, places, ax=axes, edge_color="#9aa7b4", arrowsize=9, node_size=1500, connectionstyle="arc3,rad=0.05"
        )
        for node, (x, y) in places.items():
            facts = graph.nodes[node]
            box = {
                "boxstyle": "round,pad=0.4",
                "facecolor": facts["fill"],
                "edgecolor": facts["edge"],
                "linewidth": 1.3,
            }
            axes.text(x, y, facts["label"], ha="center", va="center", bbox=box)
        axes.margins(0.04, 0.15)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def _steps_last(nodes: list[str]) -> list[str]:
    """In an order that does not depend on how the graph was built; a step, and the gate, comes last."""
    return sorted(nodes, key=lambda node: (node.startswith("step ") or node == "gate", node))


def _rows(nodes: list[str]) -> list[float]:
    """A step lies on the middle line, things, and other shards of the step, above and below it by turns."""
    things = [node for node in nodes if not node.startswith("step ") and node != "gate"]
    beside = max(len(nodes) - 1, len(things))
    rows = [float((1 + place // 2) * (1 if place % 2 == 0 else -1)) for place in range(beside)]
    return rows if len(things) == len(nodes) else [*rows, 0.0]


def _graph(audit: Audit) -> Any:
    import networkx as nx

    assert audit.provenance is not None
    broken = {finding.what for finding in audit.tree.parts if finding.broken}
    graph = nx.DiGraph()
    resources = audit.provenance.resources

    def thing(name: str, digest: str) -> str:
        names = [resource.name for resource in resources if resource.digest == digest]
        label = name if name in names or not names else names[0]
        edge = BAD if label in broken else GOOD
        graph.add_node(label, label=f"{label}\n{digest[:12]}", fill="white", edge=edge)
        return label

    for step, link in audit.links.items():
        graph.add_node(f"step {step}", label=step, fill=PALE, edge="#46607a")
        for name, digest in link.materials.items():
            graph.add_edge(thing(name, digest), f"step {step}")
        for name, digest in link.products.items():
            if any(resource.digest == digest for resource in resources):
                graph.add_edge(f"step {step}", thing(name, digest))
    source = audit.provenance.parameters["source"]
    graph.add_node("source", label=f"source\n{_short(source)}", fill="white", edge="#46607a")
    graph.add_edge("source", "step ingest")
    for name in ("code", "champion", "reference evaluation"):
        if (resource := audit.provenance.dependencies.get(name)) is not None:
            graph.add_edge(
                thing(name, resource.digest), {"code": "step sft", "champion": "gate"}.get(name, "step drift")
            )
    gate = audit.provenance.byproducts["gate"]
    verdict = audit.version.verdict if audit.version else ""
    graph.add_node(
        "gate", label=f"gate: {verdict}\n{gate.digest[:12]}", fill=PALE, edge=BAD if "gate" in broken else GOOD
    )
    for name in ("model", "evaluation", "scores", "drift"):
        if name in graph:
            graph.add_edge(name, "gate")
    return graph


def _short(text: str) -> str:
    return text if len(text) <= 22 else text[:21] + "…"
