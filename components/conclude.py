"""The KFP component of conclude, the exit handler."""

from typing import Any

from kfp import dsl
from kfp.dsl import HTML, Markdown, Output, PipelineTaskFinalStatus

from hardcase.runtime.running import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def conclude(
    pipeline: str,
    profile: str,
    source: str,
    seed: int,
    settings: dict[str, Any],
    status: PipelineTaskFinalStatus,
    report: Output[HTML],
    summary: Output[Markdown],
) -> None:
    """Write the report and the record of the run however it ended, and notify people of a run that failed."""
    from pathlib import Path

    from hardcase.steps.conclude import execute

    asked = {"pipeline": pipeline, "profile": profile, "source": source, "seed": int(seed), "settings": settings}
    execute(asked, status.state, Path(report.path), Path(summary.path))
