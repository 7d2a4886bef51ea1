"""Measure the Argo Workflow of the retraining pipeline: before it was flattened, and as it is committed.

`tests/support/` models what Kubeflow Pipelines 2.17.0 and Argo Workflows v4.0.5 do with the compiled YAML; recorded
runs hold the model true (`test_workflow.py`). Nothing is installed or started. Kubernetes stores at most 1,048,576
bytes: above it Argo compresses the nodes, and where that is too large as well the run ends (`fits`). Before: profile
smoke, as recorded. After: profile internvl3-2b.

    python benchmarks/workflow_size.py
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from result import write_result
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.samples import BEFORE, PIPELINES, values_before, values_now  # noqa: E402
from tests.support.workflow import LIMIT, describe, seal_digests, seal_links, workflow_size  # noqa: E402

SHARDS = (1, 8, 32)


def measure(*, now: bool) -> dict[str, Any]:
    """Return counts and sizes of the committed pipeline, or of the one before."""
    path = PIPELINES / "retraining.yaml" if now else BEFORE
    values, seal = (values_now, seal_digests) if now else (values_before, seal_links)
    figures: dict[str, Any] = asdict(describe(path, values()))
    for shards in SHARDS:
        size = workflow_size(path, values(shards=shards), seal)
        figures |= {
            f"bytes, shards: {shards}": size.plain,
            f"compressed, shards: {shards}": size.spec + size.compressed,
        }
        figures[f"fits, shards: {shards}"] = size.stored <= LIMIT
    return figures


def main() -> None:
    """Print the table and write the result."""
    before, after = measure(now=False), measure(now=True)
    table = Table("", "before", "after")
    for name, value in before.items():
        table.add_row(name.replace("_", " "), *(f"{v:,}" if type(v) is int else str(v) for v in (value, after[name])))
    Console().print(table)
    size = f"compressed, shards: {SHARDS[-1]}"
    write_result(
        "workflow_size",
        value=after[size],
        baseline=before[size],
        unit="bytes of the Workflow at 32 shards, nodes compressed; baseline: as it was with loops and links in it",
        command="workflow_size.py",
        before=before,
        after=after,
    )


if __name__ == "__main__":
    main()
