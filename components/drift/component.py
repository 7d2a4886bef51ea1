"""The KFP component of drift."""

from typing import Any

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Output

from components.running import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def drift(
    evaluation: Input[Dataset],
    place: dict[str, str],
    reference: str,
    config: dict[str, Any],
    drift: Output[Artifact],
) -> None:
    """Compare this evaluation with the reference's, fetched from the store by its sha256."""
    from components.drift.step import run
    from components.running import running
    from hardcase.audit.products import fetch_product
    from hardcase.audit.provenance import FILE
    from hardcase.config import DriftConfig

    inputs = {"evaluation": evaluation}
    with running("drift", place, inputs, drift, reference=reference, config=config) as work:
        before = fetch_product(work.store, reference, FILE, work.folder / "reference") if reference else None
        settings = DriftConfig.model_validate(config)
        run(work.input("evaluation"), before, settings, work.output("drift"), work.output("drift_report"))
