"""The KFP face of drift."""

from typing import Any

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Output

from components.running import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def drift(
    evaluation: Input[Dataset],
    store: str,
    scratch: str,
    code: str,
    reference: str,
    config: dict[str, Any],
    result: Output[Artifact],
    html: Output[HTML],
    metrics: Output[Metrics],
) -> None:
    """Compare this evaluation with the reference's, fetched from the store by its sha256."""
    import json
    from pathlib import Path

    from components.drift.step import run
    from components.running import running
    from components.showing import show_numbers
    from hardcase.config import DriftConfig
    from hardcase.data.store import open_store

    settings = DriftConfig.model_validate(config)
    with running(
        "drift",
        scratch,
        {"evaluation": evaluation},
        {"result": result, "html": html},
        code=code,
        reference=reference,
        config=config,
    ) as private:
        before = None
        if reference:
            before = private / "reference.parquet"
            before.write_bytes(open_store(store).get_object(reference))
        run(Path(evaluation.path), before, settings, Path(result.path), Path(html.path))
        found = json.loads(Path(result.path).read_text(encoding="utf-8"))
        show_numbers(metrics, {"drifted": found["drifted"], "tests": len(found["tests"])})
