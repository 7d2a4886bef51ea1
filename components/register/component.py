"""The KFP component of register."""

from typing import Any

from kfp import dsl

from components.running import LIGHT_IMAGE


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
    from components.materials import keyring
    from components.register.account import Launch
    from components.register.step import run
    from components.running import circumstances, running
    from hardcase.config import RegisterConfig

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
