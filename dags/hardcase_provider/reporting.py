"""The drift report: one page and the same for programs."""

import json
import os
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from hardcase_provider.operators import REPOSITORY

STYLE = "body{font:16px system-ui;margin:2rem;max-width:50rem}td,th{padding:.3rem 1rem .3rem 0;text-align:left}"


def write_drift_report(run_id: str, found: Mapping[str, Any]) -> Path:
    """Write `report.json` and `report.html`; returns the page."""
    home = Path(os.environ.get("HARDCASE_HOME") or REPOSITORY / ".hardcase")
    folder = home / "drift" / re.sub(r"[^A-Za-z0-9._-]", "_", run_id)
    folder.mkdir(parents=True, exist_ok=True)
    rows = "".join(
        f"<tr><td>{escape(test['name'])}<td>{test['before']:.4g}<td>{test['now']:.4g}<td>{test['p_value']:.3g}</tr>"
        for test in found["tests"]
    )
    verdict = "The model has worsened" if found["drifted"] else "No drift"
    page = (
        f"<!doctype html><meta charset=utf-8><title>Drift watch</title><style>{STYLE}</style><h1>{verdict}</h1>"
        f"<p>{escape(found['model'])} on {found['samples']} samples of snapshot {escape(found['snapshot'])}, "
        f"compared with {escape(found['baseline'])}; level {found['level']}.</p>"
        f"<table><tr><th>Score<th>Before<th>Now<th>p</tr>{rows}</table>"
    )
    for name, content in (("report.json", json.dumps(dict(found), indent=2) + "\n"), ("report.html", page)):
        draft = folder / f".{name}.draft"
        draft.write_text(content, encoding="utf-8")
        draft.replace(folder / name)
    return folder / "report.html"
