"""The KFP face of ingest."""

from typing import Any

from kfp import dsl
from kfp.dsl import Dataset, Metrics, Output

from components.running import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def ingest(
    source: str,
    source_digest: str,
    store: str,
    scratch: str,
    code: str,
    config: dict[str, Any],
    snapshot: Output[Dataset],
    quarantine: Output[Dataset],
    metrics: Output[Metrics],
) -> None:
    """Read a source of samples into a content-addressed snapshot; bad rows go to quarantine."""
    from pathlib import Path

    from components.ingest.step import run
    from components.running import running
    from components.showing import show_numbers
    from hardcase.config import IngestConfig

    settings = IngestConfig.model_validate(config)
    outputs = {"snapshot": snapshot, "quarantine": quarantine}
    with running("ingest", scratch, {}, outputs, code=code, config=config, source=[source, source_digest]) as private:
        done = run(source, store, settings, Path(snapshot.path), Path(quarantine.path), private)
        show_numbers(metrics, {"accepted": done.accepted, **dict(done.quarantined)})
