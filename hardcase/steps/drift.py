"""drift: the model's evaluation against the reference's. `hardcase.stats.drift` decides, Evidently draws the page.

The tests are handed to Evidently as methods of its own, so that its page and our JSON agree.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any, Final

import pandas as pd

from hardcase.config import DriftConfig
from hardcase.data.evaluations import read_flat_evaluation
from hardcase.provenance.products import fetch_product
from hardcase.provenance.statement import FILE
from hardcase.runtime.running import running
from hardcase.stats.drift import DriftTest, decide
from hardcase.store.digest import path_digest

COLUMNS: Final = {
    "partial credit": "dpa",
    "exact match": "exact",
    "invalid answers": "invalid",
    "answer size": "answer_size",
    "answer letters": "answer",
    "aspect mix": "aspect",
}
UUID: Final = re.compile("[0-9a-f]{8}-?[0-9a-f]{4}(-?[0-9a-f]{4}){2}-?[0-9a-f]{12}")
NOTHING: Final = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Drift</title></head>
<body style="font:16px system-ui,sans-serif;margin:2rem"><h1>Drift</h1>
<p>There is no earlier evaluation to compare with: this is the first model of its name.</p></body></html>
"""


def execute(plan: Mapping[str, Any], evaluation: str) -> str:
    """Compare an evaluation with the plan's reference, and return the sha256 of the step's attestation."""
    with running("drift", plan, {"evaluation": evaluation}) as work:
        reference = plan["parameters"]["reference"]
        before = fetch_product(work.store, reference, FILE, work.folder / "reference") if reference else None
        config = DriftConfig.model_validate(work.config)
        run(work.input("evaluation"), before, config, work.outputs / "drift", work.outputs / "drift_report")
    return work.attestation


def run(evaluation: Path, reference: Path | None, config: DriftConfig, result: Path, html: Path) -> None:
    """Compare an evaluation with the champion's, or the previous run's; None where there is no reference.

    `result` is JSON: `drifted`, `reference` (sha256 of its table), `tests`. `html` is Evidently's page, self-contained.
    """
    current = read_flat_evaluation(evaluation, "evaluation")
    verdicts: list[DriftTest] = []
    page = NOTHING
    if reference is not None:
        before = read_flat_evaluation(reference, "reference")
        verdicts = decide(before, current, config)
        page = _page(before, current, verdicts)
    content = {
        "drifted": any(verdict.drifted for verdict in verdicts),
        "reference": path_digest(reference) if reference else None,
        "tests": [asdict(verdict) for verdict in verdicts],
    }
    html.write_text(page, encoding="utf-8")
    result.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _page(before: pd.DataFrame, current: pd.DataFrame, verdicts: Sequence[DriftTest]) -> str:
    os.environ["DO_NOT_TRACK"] = "1"
    # Imported here: the package is large, and a first model needs none of it.
    from evidently import Report
    from evidently.metrics import ValueDrift

    columns = [COLUMNS[verdict.name] for verdict in verdicts]
    metrics = [
        ValueDrift(column=column, method=_method(verdict), threshold=verdict.threshold)
        for column, verdict in zip(columns, verdicts, strict=True)
    ]
    snapshot = Report(metrics).run(current[columns], before[columns])
    # The ids of its widgets come from clock and chance.
    numbers, known = count(), dict[str, str]()
    page = snapshot.get_html_str(as_iframe=False)
    return UUID.sub(lambda id: known.setdefault(id[0], f"{next(numbers):032x}"), page)


def _method(verdict: DriftTest) -> str:
    """Register a verdict with Evidently as a statistical test, and return the test's name."""
    from evidently.legacy.calculations.stattests.registry import StatTest, register_stattest
    from evidently.legacy.core import ColumnType

    name = f"hardcase {verdict.name}"
    kinds = [ColumnType.Numerical, ColumnType.Categorical, ColumnType.Text]
    test = StatTest(name, f"{verdict.name}: p-value, errors clustered by group", kinds)
    register_stattest(test, lambda *_: (verdict.p_value, verdict.drifted))
    return name
