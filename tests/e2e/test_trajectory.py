"""Loss and reward of every training step are pinned in trajectory.json, so that no change of numbers goes unseen.

`python -m tests.e2e.test_trajectory` writes the file. The smoke profile is the chain that all tests run. Its model is
too small for a right answer, so every reward of its GRPO is 0. The second training learns enough to earn rewards.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from hardcase.config import load_profile
from hardcase.steps import grpo, ingest, mine, rollout, sft

PINNED = Path(__file__).with_name("trajectory.json")
KEYS = ("phase", "step", "loss", "reward", "entropy")
SETTINGS: dict[str, dict[str, Any]] = {
    "smoke": {},
    "rewarded": {
        "source": "procedural://?samples=30&seed=3",
        "model.tiny.text_layers": 2,
        "sft.warm_up": None,
        "sft.reading": None,
        "sft.steps": 150,
        "sft.batch_size": 8,
        "sft.learning_rate": 0.005,
        "sft.save_steps": 150,
        "mine.max_new_tokens": 40,
        "grpo.max_new_tokens": 40,
        "grpo.learning_rate": 0.002,
    },
}


def train(settings: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Run the steps up to grpo on the smoke profile, and return what SFT and GRPO logged."""
    profile, store, seed = load_profile("smoke", settings), (folder / "store").as_uri(), 0
    snapshot, model, rollouts, mined = (folder / name for name in ("snapshot", "sft_model", "rollouts", "mined"))
    (folder / "scratch").mkdir()
    ingest.run(profile.source, store, profile.ingest, snapshot, folder / "quarantine", folder / "scratch")
    sft.run(snapshot, store, profile.model, profile.sft, seed, folder / "s", model, folder / "sft_log")
    rollout.run(snapshot, store, model, profile.mine, seed, "1/1", folder / "r", rollouts)
    mine.run(snapshot, store, rollouts, profile.mine, mined)
    grpo.run(snapshot, store, model, mined, profile.grpo, seed, folder / "g", folder / "model", folder / "grpo_log")
    entries = [
        json.loads(line) for name in ("sft_log", "grpo_log") for line in (folder / name).read_text().splitlines()
    ]
    return [{key: entry[key] for key in KEYS if key in entry} for entry in entries]


@pytest.mark.parametrize("name", SETTINGS)
def test_training_takes_the_steps_that_it_took(name: str, tmp_path: Path) -> None:
    """Compare within a thousandth.

    On one processor the bytes are equal. Kernels for SSE4.1, AVX2 and AVX-512 differ by 2e-7 of a smoke value, and
    after 150 steps by 1e-4 of a loss. A learning rate that is 1% higher moves the smoke losses by 2e-3.
    """
    pinned = json.loads(PINNED.read_text(encoding="utf-8"))[name]
    steps = train(SETTINGS[name], tmp_path)
    assert len(steps) == len(pinned)
    for step, before in zip(steps, pinned, strict=True):
        assert step.pop("phase") == before.pop("phase")
        assert step == pytest.approx(before, rel=1e-3, abs=1e-6)


if __name__ == "__main__":
    trajectories = {}
    for name, settings in SETTINGS.items():
        with tempfile.TemporaryDirectory() as folder:
            trajectories[name] = train(settings, Path(folder))
    lines = (
        f' "{name}": [\n  ' + ",\n  ".join(map(json.dumps, steps)) + "\n ]" for name, steps in trajectories.items()
    )
    PINNED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
