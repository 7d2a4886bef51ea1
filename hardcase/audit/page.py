"""Render an audit as one self-contained page: what the version was made of as a graph, the tree of findings beside it.

The graph has a row for each object and step, in the order in which they were written. A line beside the rows leads from
an object to the steps that read it, and from a step to what it wrote, so no line crosses a box and text stays as large
on a phone as on a desk.
"""

from collections import defaultdict
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

import jinja2

from hardcase.audit.examine import Audit
from hardcase.provenance.statement import Provenance

ROW, BOX, LANE, WIDTH = 34, 26, 9, 258  # pixels: from row to row, height of a box, from line to line, width of a box
COLOURS: Final = ("#2f6fb5", "#b3611a", "#7a4fa3", "#26806b", "#a33b6a", "#5d6873")
JUDGED: Final = ("model", "evaluation", "scores", "drift", "champion")  # what the gate reads


@dataclass
class Row:
    """A box of the graph: a `step`, an `object`, or the `source`, which is not in the store."""

    label: str
    kind: str = "object"
    digest: str = ""
    broken: bool = False


def render_page(audit: Audit) -> str:
    """Return the page of an audit, in HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["words"] = _in_words
    return environment.get_template("page.html.j2").render(audit=audit, graph=_draw(_Graph(audit)))


def _in_words(name: str) -> str:
    """Return the name of an artifact for people; names of files stay."""
    return name if "." in name else name.replace("_", " ")


class _Graph:
    """The rows of the graph, and by number of a row those that its line leads to."""

    def __init__(self, audit: Audit) -> None:
        self.rows: list[Row] = []
        self.lines = defaultdict[int, list[int]](list)
        self._parts = {part.what: part for part in audit.tree.parts}
        if audit.provenance:
            self._add_chain(audit, audit.provenance)
        # What is outside the chain is shown too, and all where the chain cannot be read.
        for what, part in list(self._parts.items()):
            self._add(what, digest=part.place.rpartition("/")[2] if part.place.startswith("objects/") else "")

    def _add_chain(self, audit: Audit, provenance: Provenance) -> None:
        source = self._add(f"source {provenance.parameters['source']}", "source")
        written = {product for link in audit.links.values() for product in link.products.items()}
        for name, resource in provenance.dependencies.items():
            if resource.digest and (name, resource.digest) not in written:
                self._add(name, digest=resource.digest)
        for step, link in audit.links.items():
            at = self._add(step, "step", what=f"record of {step}")
            given = {"code": link.parameters.get("code"), "reference evaluation": link.parameters.get("reference")}
            for name, digest in {**given, **link.materials}.items():
                self._lead(name, digest, at)
            if not link.materials:
                self.lines[source].append(at)
            self.lines[at] += [self._add(name, digest=digest) for name, digest in link.products.items()]
        resources = {resource.name: resource.digest for resource in provenance.resources}
        gate = self._add(f"gate: {audit.version.verdict if audit.version else ''}", "step", resources["gate"], "gate")
        for name in JUDGED:
            self._lead(name, resources.get(name), gate)

    def _add(self, label: str, kind: str = "object", digest: str = "", what: str = "") -> int:
        part = self._parts.pop(what or label, None)
        self.rows.append(Row(label, kind, digest, bool(part and part.broken)))
        return len(self.rows) - 1

    def _lead(self, name: str, digest: str | None, reader: int) -> None:
        """Lead a line to a reader from the row of that name and content, or else of that content."""
        held = [number for number, row in enumerate(self.rows) if digest and row.digest == digest]
        named = [number for number in held if self.rows[number].label == name]
        if held:
            self.lines[(named or held)[-1]].append(reader)


def _draw(graph: _Graph) -> dict[str, Any]:
    """Lay the graph out: the boxes from top to bottom, and each row's line in a lane of its own at their left."""
    lines = {row: reached for row, reached in graph.lines.items() if reached}
    lanes, taken = dict[int, int](), defaultdict[int, list[tuple[int, int]]](list)
    for row in sorted(lines, key=lambda row: (max(lines[row]) - row, row)):  # short lines near the boxes
        end = max(lines[row])
        lanes[row] = next(lane for lane in count() if all(end < first or row > last for first, last in taken[lane]))
        taken[lanes[row]].append((row, end))
    left = LANE * (2 + max(lanes.values(), default=0))
    ends: list[list[int]] = [[] for _ in graph.rows]  # of each row those whose lines end there, and itself
    for row, reached in lines.items():
        for end in (*reached, row):
            ends[end].append(row)

    def height(row: int, line: int) -> float:
        order = sorted(ends[row], key=lambda other: (other == row, -lanes[other]))  # what leaves a box leaves below
        return row * ROW + BOX * (order.index(line) + 1) / (len(order) + 1)

    paths = [
        {"x": left - LANE * (lanes[row] + 1), "start": height(row, row), "end": height(end, row)}
        | {"colour": COLOURS[lanes[row] % len(COLOURS)]}
        for row, reached in lines.items()
        for end in reached
    ]
    boxes = [{**vars(row), "y": at * ROW, "label": _in_words(row.label)} for at, row in enumerate(graph.rows)]
    return {"boxes": boxes, "paths": paths, "left": left, "width": left + WIDTH, "height": len(boxes) * ROW}
