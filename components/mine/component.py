"""The KFP face of mine."""

from typing import Any

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Output

from components.running import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def mine(
    snapshot: Input[Dataset],
    rollouts: Input[list[Dataset]],
    store: str,
    scratch: str,
    code: str,
    config: dict[str, Any],
    mined: Output[Dataset],
    metrics: Output[Metrics],
) -> None:
    """Find the training samples that the SFT model gets wrong."""
    from pathlib import Path

    from components.mine.step import run
    from components.running import numbered, running
    from components.showing import show_numbers
    from hardcase.config import MineConfig
    from hardcase.data.cases import read_cases

    settings = MineConfig.model_validate(config)
    inputs, outputs = {"snapshot": snapshot, **numbered("rollouts", rollouts)}, {"mined": mined}
    with running("mine", scratch, inputs, outputs, code=code, config=config):
        run(Path(snapshot.path), store, [Path(shard.path) for shard in rollouts], settings, Path(mined.path))
        cases = read_cases(Path(mined.path))
        show_numbers(
            metrics,
            {
                "training samples": len(cases),
                "always solved": sum(case.exact_rate == 1 for case in cases),
                "hard": sum(case.hard for case in cases),
                "never solved": sum(case.suspect for case in cases),
            },
        )
