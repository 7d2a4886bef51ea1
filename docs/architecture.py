"""Draw docs/pictures/architecture.svg: what starts a run, the one pipeline, the store, and what uses the store.

640 units wide with text of 17 to 21 units, so that it is readable on a phone of 390 pixels as on a wide screen.
"""

from collections.abc import Sequence
from html import escape

WIDTH, MARGIN, GAP = 640, 20, 16
INK, SOFT = "#1c2733", "#51606e"
STEPS = (
    ("configure", "ingest", "validate"),
    ("sft", "rollout", "mine"),
    ("grpo", "answer", "evaluate"),
    ("drift", "register", "conclude"),
)
NOTES = {
    "configure": "profile",
    "ingest": "snapshot",
    "validate": "expectations",
    "sft": "fine-tuning",
    "rollout": "k answers each",
    "mine": "hard cases",
    "grpo": "HCM-GRPO",
    "answer": "untouched split",
    "evaluate": "scores",
    "drift": "against champion",
    "register": "gate",
    "conclude": "report, always",
}


class Drawing:
    """A list of SVG elements, from top to bottom."""

    def __init__(self) -> None:
        self.elements: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, fill: str, stroke: str = SOFT) -> None:
        """Add a rectangle with round corners."""
        self.elements.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8" fill="{fill}" stroke="{stroke}"/>'
        )

    def text(self, x: float, y: float, words: str, size: int = 20, *, bold: bool = False, soft: bool = False) -> None:
        """Add a line of text, centred."""
        look = f'font-size="{size}" fill="{SOFT if soft else INK}"' + (' font-weight="600"' if bold else "")
        self.elements.append(f'<text x="{x:g}" y="{y:g}" {look}>{escape(words)}</text>')

    def arrow(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """Add an arrow."""
        look = f'stroke="{SOFT}" stroke-width="2" marker-end="url(#tip)"'
        self.elements.append(f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" {look}/>')

    def boxes(self, y: float, height: float, fill: str, labels: Sequence[tuple[str, ...]]) -> list[float]:
        """Add a row of boxes of equal width with a title and lines each; return the middle of each."""
        width = (WIDTH - 2 * MARGIN - GAP * (len(labels) - 1)) / len(labels)
        middles = []
        for number, (title, *lines) in enumerate(labels):
            x = MARGIN + number * (width + GAP)
            self.box(x, y, width, height, fill)
            self.text(x + width / 2, y + 29, title, bold=True)
            for row, line in enumerate(lines):
                self.text(x + width / 2, y + 54 + 22 * row, line, 17, soft=True)
            middles.append(x + width / 2)
        return middles


def pipeline(drawing: Drawing, top: float) -> float:
    """Add the pipeline with its steps in the order in which they run; return its lower edge."""
    width, height = 180, 58
    drawing.box(MARGIN, top, WIDTH - 2 * MARGIN, 68 + len(STEPS) * (height + GAP) + 34, "#eef3fb")
    drawing.text(WIDTH / 2, top + 29, "One pipeline: retraining.yaml", 21, bold=True)
    drawing.text(WIDTH / 2, top + 52, "on this machine, in containers or on Kubeflow", 17, soft=True)
    left = [MARGIN + GAP + number * (width + 14) for number in range(3)]
    y = top + 68
    for row, names in enumerate(STEPS):
        columns = left if row % 2 == 0 else left[::-1]  # the chain turns at the end of each row
        for column, (x, name) in enumerate(zip(columns, names, strict=True)):
            drawing.box(x, y, width, height, "#fff6e5" if name in {"sft", "grpo"} else "#ffffff")
            drawing.text(x + width / 2, y + 25, name, bold=True)
            drawing.text(x + width / 2, y + 47, NOTES[name], 17, soft=True)
            if column and row % 2 == 0:
                drawing.arrow(x - 14, y + height / 2, x - 2, y + height / 2)
            elif column:
                drawing.arrow(x + width + 14, y + height / 2, x + width + 2, y + height / 2)
            elif row:
                drawing.arrow(x + width / 2, y - GAP, x + width / 2, y - 2)
        y += height + GAP
    drawing.text(WIDTH / 2, y + 14, "each step signs what it read and what it wrote", 17, soft=True)
    return y + 34


def draw() -> str:
    """Return the drawing."""
    drawing = Drawing()
    starts = [
        ("hardcase run", "one machine"),
        ("Airflow", "time, data, drift"),
        ("Kubeflow", "form or launch"),
    ]
    middles = drawing.boxes(MARGIN, 70, "#e9f5ec", starts)
    for x in middles:
        drawing.arrow(x, MARGIN + 70, x, MARGIN + 102)
    bottom = pipeline(drawing, MARGIN + 104)
    drawing.arrow(WIDTH / 2, bottom, WIDTH / 2, bottom + 32)
    store = bottom + 34
    drawing.box(MARGIN, store, WIDTH - 2 * MARGIN, 84, "#f3ecfa")
    drawing.text(WIDTH / 2, store + 29, "Content-addressed store: folder or S3", 21, bold=True)
    drawing.text(WIDTH / 2, store + 54, "snapshots · artifacts · models", 17, soft=True)
    drawing.text(WIDTH / 2, store + 75, "signed attestations · append-only ledger", 17, soft=True)
    uses = [
        ("audit", "rehash, verify,", "replay, compare"),
        ("screen", "flaws by aspect,", "in new images"),
        ("report, MLflow", "scores, drift,", "champion"),
    ]
    for x in drawing.boxes(store + 118, 92, "#e9f5ec", uses):
        drawing.arrow(x, store + 84, x, store + 116)
    height = store + 118 + 92 + MARGIN
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:g}" viewBox="0 0 {WIDTH} {height:g}" '
        'font-family="Helvetica, Arial, sans-serif" text-anchor="middle" role="img">\n'
        "<title>Architecture of hardcase</title>\n"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="5" markerHeight="5" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{SOFT}"/></marker></defs>\n'
        f'<rect width="{WIDTH}" height="{height:g}" fill="#ffffff"/>\n'
    )
    return head + "\n".join(drawing.elements) + "\n</svg>\n"
