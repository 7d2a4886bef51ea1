"""The KFP component of record."""

from kfp import dsl

from hardcase.runtime.running import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def record(
    evaluation: str,
    drift: str,
    place: dict[str, str],
    launch: dict[str, str],
    source: str,
) -> str:
    """Keep what a registered version scored, and tell MLflow."""
    import os

    from hardcase.runtime.running import running
    from hardcase.steps.record import run

    inputs = {"snapshot": evaluation, "evaluation": evaluation, "scores": evaluation, "drift": drift}
    with running("record", place, inputs, version=launch["version"]) as work:
        run(
            work.input("snapshot"),
            work.input("evaluation"),
            work.input("scores"),
            work.input("drift"),
            place["store"],
            launch["tracking_uri"],
            launch["version"],
            source,
            os.environ["HARDCASE_RUN"],
            work.output("evaluated"),
        )
    return work.attestation
