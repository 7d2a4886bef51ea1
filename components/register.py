"""The KFP component of register."""

from typing import Any

from kfp import dsl

from hardcase.runtime.running import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def register(
    model: str,
    evaluation: str,
    drift: str,
    place: dict[str, str],
    seed: int,
    launch: dict[str, str],
    config: dict[str, Any],
) -> str:
    """Register the model with the record of what it was made of, and make it the champion if it passes the gate."""
    from hardcase.config import RegisterConfig
    from hardcase.registry.account import Launch
    from hardcase.runtime.materials import keyring
    from hardcase.runtime.running import circumstances, running
    from hardcase.steps.register import run

    inputs = {"model": model, "evaluation": evaluation, "drift": drift}
    champion, fingerprint = launch["champion"], launch["fingerprint"]
    parameters: dict[str, Any] = {"champion": champion, "fingerprint": fingerprint, "seed": seed, "config": config}
    with running("register", place, inputs, **parameters) as work:
        run(
            sorted({material.made_by for material in work.materials.values()}),
            Launch(circumstances(), champion, fingerprint, place["code"], seed),
            keyring(),
            place["store"],
            launch["tracking_uri"],
            RegisterConfig.model_validate(config),
            work.output("registration"),
        )
    return work.attestation
