"""The audit as one self-contained page: the chain as a picture, the tree below it."""

import io
from pathlib import Path
from typing import Any

import jinja2

from hardcase.audit.examine import Audit

STEPS = ("ingest", "validate", "sft", "mine", "grpo", "evaluate", "drift")
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
    for column, nodes in enumerate(nx.topological_generations(graph)):
        for node in nodes:
            graph.nodes[node]["column"] = column
    places = nx.multipartite_layout(graph, subset_key="column")
    with mpl.rc_context({"svg.hashsalt": "hardcase", "svg.fonttype": "none", "font.size": 7}):
        figure = Figure(figsize=(13, 5.5), layout="constrained")
        axes = figure.subplots()
        axes.set_axis_off()
        nx.draw_networkx_edges(
            graph, places, ax=axes, edge_color="#9aa7b4", arrowsize=9, node_size=2600, connectionstyle="arc3,rad=0.05"
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
        axes.margins(0.08, 0.1)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


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

    for step in STEPS:
        if (link := audit.links.get(step)) is None:
            continue
        graph.add_node(f"step {step}", label=step, fill=PALE, edge="#46607a")
        for name, digest in link.materials.items():
            graph.add_edge(thing(name, digest), f"step {step}")
        for name, digest in link.products.items():
            if any(resource.digest == digest for resource in resources):
                graph.add_edge(f"step {step}", thing(name, digest))
    source = audit.provenance.parameters["source"]
    graph.add_node("source", label=_short(f"source\n{source}"), fill="white", edge="#46607a")
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
    return text if len(text) <= 48 else text[:47] + "…"
