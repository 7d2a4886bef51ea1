"""The KFP component of ingest."""

from typing import Any

from kfp import dsl

from hardcase.runtime.running import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def ingest(source: str, source_digest: str, place: dict[str, str], config: dict[str, Any]) -> str:
    """Read a source of samples into a content-addressed snapshot; bad rows go to quarantine."""
    from hardcase.config import IngestConfig
    from hardcase.runtime.running import running
    from hardcase.steps.ingest import run

    with running("ingest", place, {}, config=config, source=[source, source_digest]) as work:
        settings = IngestConfig.model_validate(config)
        run(source, place["store"], settings, work.output("snapshot"), work.output("quarantine"), work.folder)
    return work.attestation
