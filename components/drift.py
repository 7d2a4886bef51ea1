"""The KFP component of drift."""

from typing import Any

from kfp import dsl

from hardcase.runtime.running import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def drift(
    evaluation: str,
    place: dict[str, str],
    reference: str,
    config: dict[str, Any],
) -> str:
    """Compare this evaluation with the reference's, fetched from the store by its sha256."""
    from hardcase.config import DriftConfig
    from hardcase.provenance.products import fetch_product
    from hardcase.provenance.statement import FILE
    from hardcase.runtime.running import running
    from hardcase.steps.drift import run

    inputs = {"evaluation": evaluation}
    with running("drift", place, inputs, reference=reference, config=config) as work:
        before = fetch_product(work.store, reference, FILE, work.folder / "reference") if reference else None
        settings = DriftConfig.model_validate(config)
        run(work.input("evaluation"), before, settings, work.output("drift"), work.output("drift_report"))
    return work.attestation
