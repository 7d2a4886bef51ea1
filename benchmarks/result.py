"""Write the result of a benchmark: one JSON file a name in benchmarks/results/, all of one form."""

import json
import os
import platform
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def write_result(
    name: str,
    *,
    value: float,
    baseline: float,
    unit: str,
    command: str,
    on: str = "",
    ratio: float | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Write and return a result.

    Args:
        name: name of the file.
        value: what was measured.
        baseline: what it is compared with.
        unit: unit of both, and what the baseline is.
        command: arguments that repeat the measurement, after `python benchmarks/`.
        on: more about the machine.
        ratio: `value / baseline`, unless the unit says otherwise.
        more: further keys.
    """
    result = {
        "name": name,
        "value": value,
        "unit": unit,
        "baseline": baseline,
        "ratio": value / baseline if ratio is None else ratio,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores{on}",
        "command": f"python benchmarks/{command}",
        **more,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result
