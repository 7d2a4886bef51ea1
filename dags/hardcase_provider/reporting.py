"""The drift report: one page and the same for programs, in `$HARDCASE_REPORTS` (a folder or on S3)."""

import json
import os
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from hardcase_provider import bucket
from hardcase_provider.operators import REPOSITORY

STYLE = "body{font:16px system-ui;margin:2rem;max-width:50rem}td,th{padding:.3rem 1rem .3rem 0;text-align:left}"


def write_drift_report(run_id: str, found: Mapping[str, Any]) -> str:
    """Write `report.json` and `report.html`; the URI of the page."""
    home = os.environ.get("HARDCASE_HOME") or REPOSITORY / ".hardcase"
    place = os.environ.get("HARDCASE_REPORTS") or str(Path(home, "drift"))
    folder = f"{place.rstrip('/')}/{re.sub(r'[^A-Za-z0-9._-]', '_', run_id)}"
    for name, content in (("report.json", json.dumps(dict(found), indent=2) + "\n"), ("report.html", page(found))):
        _write(f"{folder}/{name}", content)
    return f"{folder}/report.html" if "://" in folder else Path(folder, "report.html").absolute().as_uri()


def page(found: Mapping[str, Any]) -> str:
    """For people."""
    verdict = f"Drift, by {' and '.join(found['alarmed_by'])}" if found["drifted"] else "No drift"
    parts = [
        f"<!doctype html><meta charset=utf-8><title>Drift watch</title><style>{STYLE}</style><h1>{escape(verdict)}</h1>"
        f"<p>{escape(found['model'])} on {found['samples']} samples of snapshot {escape(found['snapshot'])}.</p>"
        f"<h2>The scores</h2><p>Compared with {escape(found['baseline'])}; level {found['level']}.</p>",
        _table([(test["name"], test["before"], test["now"], test["p_value"]) for test in found["tests"]]),
    ]
    if (pipeline := found["pipeline"]) is not None:
        reference = f"evaluation {pipeline['reference'][:12]}" if pipeline["reference"] else "nothing"
        parts += [
            "<h2>The pipeline's drift step</h2><p>Compared with the one by which the version was registered, "
            f"{escape(reference)}; <a href='{escape(found['run'])}'>the run</a>.</p>",
            _table([(each["name"], *_ends(each), each["p_value"], each["drifted"]) for each in pipeline["tests"]]),
        ]
    return "".join(parts)


def changes(found: Mapping[str, Any]) -> str:
    """What changed, in one line."""
    tests = [(test["name"], test["before"], test["now"]) for test in found["tests"]]
    tests += [(each["name"], *_ends(each)) for each in (found["pipeline"] or {}).get("tests", []) if each["drifted"]]
    return "; ".join(f"{name} {_short(before)} → {_short(now)}" for name, before, now in tests)


def _ends(test: Mapping[str, Any]) -> tuple[Any, Any]:
    return test["reference"], test["current"]


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "drifted" if value else ""
    return f"{value:.3g}" if isinstance(value, int | float) else str(value)


def _table(rows: list[tuple[Any, ...]]) -> str:
    cells = "".join("<tr>" + "".join(f"<td>{escape(_short(each))}" for each in row) + "</tr>" for row in rows)
    return f"<table><tr><th>Score<th>Before<th>Now<th>p</tr>{cells}</table>"


def _write(uri: str, content: str) -> None:
    if uri.startswith("s3://"):
        bucket.write(uri, content)
        return
    path = Path(uri.removeprefix("file://"))
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(content, encoding="utf-8")
    draft.replace(path)
