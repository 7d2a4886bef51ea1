"""The KFP component of drift."""

from typing import Any

from kfp import dsl

from components.running import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def drift(
    evaluation: str,
    place: dict[str, str],
    reference: str,
    config: dict[str, Any],
) -> str:
    """Compare this evaluation with the reference's, fetched from the store by its sha256."""
    from components.drift.step import run
    from components.running import running
    from hardcase.audit.products import fetch_product
    from hardcase.audit.provenance import FILE
    from hardcase.config import DriftConfig

    inputs = {"evaluation": evaluation}
    with running("drift", place, inputs, reference=reference, config=config) as work:
        before = fetch_product(work.store, reference, FILE, work.folder / "reference") if reference else None
        settings = DriftConfig.model_validate(config)
        run(work.input("evaluation"), before, settings, work.output("drift"), work.output("drift_report"))
    return work.attestation
