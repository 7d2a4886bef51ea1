"""The KFP face of record."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Markdown, Output

from components.running import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def record(
    snapshot: Input[Dataset],
    evaluation: Input[Dataset],
    scores: Input[Artifact],
    drift: Input[Artifact],
    store: str,
    tracking_uri: str,
    scratch: str,
    code: str,
    version: str,
    source: str,
    result: Output[Artifact],
    summary: Output[Markdown],
) -> None:
    """Keep what a registered version scored, and tell MLflow."""
    import json
    import os
    from pathlib import Path

    from components.record.step import run
    from components.running import running

    inputs = {"snapshot": snapshot, "evaluation": evaluation, "scores": scores, "drift": drift}
    with running("record", scratch, inputs, {"result": result}, code=code, version=version):
        run(
            Path(snapshot.path),
            Path(evaluation.path),
            Path(scores.path),
            Path(drift.path),
            store,
            tracking_uri,
            version,
            source,
            os.environ["HARDCASE_RUN"],
            Path(result.path),
        )
        found = json.loads(Path(result.path).read_text(encoding="utf-8"))
        model, word = found["scores"]["model"], "drifted" if found["drift"]["drifted"] else "no drift"
        text = f"## {version}: {model['overall']:.1f} overall, {model['exact_match']:.3f} exact, {word}\n\n"
        Path(summary.path).write_text(text + f"On {found['samples']} samples of `{source}`.\n", encoding="utf-8")
