"""The KFP face of register."""

from typing import Any

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Markdown, Model, Output

from components.running import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def register(
    snapshot: Input[Dataset],
    quarantine: Input[Dataset],
    validation: Input[Artifact],
    sft_model: Input[Model],
    sft_log: Input[Artifact],
    rollouts: Input[list[Dataset]],
    mined: Input[Dataset],
    model: Input[Model],
    grpo_log: Input[Artifact],
    sft_answers: Input[list[Dataset]],
    answers: Input[list[Dataset]],
    evaluation: Input[Dataset],
    baseline: Input[Dataset],
    scores: Input[Artifact],
    drift: Input[Artifact],
    drift_report: Input[HTML],
    champion: str,
    store: str,
    tracking_uri: str,
    scratch: str,
    code: str,
    seed: int,
    fingerprint: str,
    config: dict[str, Any],
    result: Output[Artifact],
    verdict: Output[Markdown],
) -> None:
    """Register the model with the record of what it was made of, and make it the champion if it passes the gate."""
    import json
    from pathlib import Path

    from components.register.account import Launch
    from components.register.step import run
    from components.running import circumstances, keyring, numbered, running
    from hardcase.config import RegisterConfig

    settings = RegisterConfig.model_validate(config)
    inputs = {
        "snapshot": snapshot,
        "quarantine": quarantine,
        "validation": validation,
        "sft_model": sft_model,
        "sft_log": sft_log,
        **numbered("rollouts", rollouts),
        "mined": mined,
        "model": model,
        "grpo_log": grpo_log,
        **numbered("sft_answers", sft_answers),
        **numbered("answers", answers),
        "evaluation": evaluation,
        "baseline": baseline,
        "scores": scores,
        "drift": drift,
        "drift_report": drift_report,
    }
    with running(
        "register",
        scratch,
        inputs,
        {"result": result},
        code=code,
        seed=seed,
        champion=champion,
        fingerprint=fingerprint,
        config=config,
    ):
        paths = {name: Path(artifact.path) for name, artifact in inputs.items()}
        links = [str(artifact.metadata["link"]) for artifact in inputs.values()]
        launch = Launch(circumstances(), champion, fingerprint, code, seed)
        run(paths, links, launch, keyring(), store, tracking_uri, settings, Path(result.path))
        found = json.loads(Path(result.path).read_text(encoding="utf-8"))
        reasons = [f"- {reason}" for reason in found["reasons"]]
        title = f"# {found['name']}:{found['version']} was {found['verdict']}"
        lines = [title, "", *reasons, "", f"`{found['digest']}`", ""]
        Path(verdict.path).write_text("\n".join(lines), encoding="utf-8")
