"""The KFP face of report."""

from typing import Any

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Markdown, Output, PipelineTaskFinalStatus

from components.running import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def report(
    snapshot: Input[Dataset],
    quarantine: Input[Dataset],
    validation: Input[Artifact],
    sft_log: Input[Artifact],
    mined: Input[Dataset],
    grpo_log: Input[Artifact],
    evaluation: Input[Dataset],
    baseline: Input[Dataset],
    scores: Input[Artifact],
    drift: Input[Artifact],
    register: Input[Artifact],
    store: str,
    scratch: str,
    code: str,
    facts: dict[str, Any],
    html: Output[HTML],
) -> None:
    """Tell the run on one self-contained page."""
    from pathlib import Path

    from components.report.step import run
    from components.running import running

    inputs = {
        "snapshot": snapshot,
        "quarantine": quarantine,
        "validation": validation,
        "sft_log": sft_log,
        "mined": mined,
        "grpo_log": grpo_log,
        "evaluation": evaluation,
        "baseline": baseline,
        "scores": scores,
        "drift": drift,
        "register": register,
    }
    with running("report", scratch, inputs, {"html": html}, code=code, facts=facts):
        run({name: Path(artifact.path) for name, artifact in inputs.items()}, facts, store, Path(html.path))


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def conclude(
    profile: str,
    source: str,
    seed: int,
    status: PipelineTaskFinalStatus,
    html: Output[HTML],
    summary: Output[Markdown],
) -> None:
    """Write the report however the run ended, and tell people of a run that failed."""
    import os
    from pathlib import Path

    from components.report.conclusion import conclude as concluded
    from components.report.notify import notify
    from components.running import noted, place_of
    from hardcase.data.store import open_store

    with noted("conclude"):
        run, ui = os.environ["HARDCASE_RUN"], os.environ.get("HARDCASE_UI", "").rstrip("/")
        ended = concluded(
            open_store(place_of()[0]),
            run,
            status.state,
            status.error_message or "",
            {"profile": profile, "source": source, "seed": str(int(seed))},
            f"{ui}/#/runs/details/{run}" if ui else "",
            Path(html.path),
            Path(summary.path),
        )
        if ended.state == "FAILED":
            notify(ended, os.environ)
