"""A small house with a real store and a real SQLite registry; MLflow's slow migration runs once."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from components.register.registry import Pin, Registry
from components.register.step import run
from hardcase.config import RegisterConfig
from hardcase.task.sample import ASPECTS

CONFIG = RegisterConfig(resamples=400)
NAME = CONFIG.name


def evaluated(
    exact: float | Mapping[str, float] = 0.7, rows: int = 400, draw: int = 0, prefix: str = "s", luck: float = 0.0
) -> pa.Table:
    """An evaluation: four rows a group, one an aspect; the same `draw` finds the same samples hard.

    Args:
        exact: share of right answers, of each aspect or of all.
        rows: how many.
        draw: which samples are hard.
        prefix: of ids and groups.
        luck: share of samples answered afresh, as another seed of training does.
    """
    share = dict.fromkeys(ASPECTS, exact) if isinstance(exact, float) else exact
    hardness = np.random.default_rng(draw).random(rows)
    anew = np.random.default_rng([draw, 1]).random((2, rows))
    hardness = np.where(anew[0] < luck, anew[1], hardness)
    aspects = [ASPECTS[row % 4] for row in range(rows)]
    right = [bool(hard < share[aspect]) for hard, aspect in zip(hardness, aspects, strict=True)]
    return pa.table(
        {
            "id": [f"{prefix}{row}" for row in range(rows)],
            "aspect": aspects,
            "group": [f"{prefix}g{row // 4}" for row in range(rows)],
            "truth": pa.array([["A"]] * rows, pa.list_(pa.string())),
            "answer": pa.array([["A"] if is_right else [] for is_right in right], pa.list_(pa.string())),
            "text": [""] * rows,
            "dpa": [float(is_right) for is_right in right],
            "exact": right,
        }
    )


@dataclass
class House:
    """Where a run's files, the store and the registry lie; `launch` does what the launcher does around register."""

    root: Path
    runs: int = 0

    @property
    def uris(self) -> tuple[str, str]:
        return f"sqlite:///{self.root / 'mlflow.db'}", (self.root / "store").as_uri()

    @property
    def registry(self) -> Registry:
        return Registry(*self.uris)

    def launch(
        self,
        fingerprint: str,
        table: pa.Table,
        *,
        scores: dict[str, Any] | None = None,
        drift: dict[str, Any] | None = None,
        pin: Pin | None = None,
        config: RegisterConfig = CONFIG,
    ) -> dict[str, Any]:
        """Pin and register; the same fingerprint has the same model."""
        self.runs += 1
        folder = self.root / f"run{self.runs}"
        model, evaluation = model_of(fingerprint, folder / "model"), folder / "evaluation.parquet"
        pq.write_table(table, evaluation)
        (folder / "scores.json").write_text(json.dumps(scores or {"grpo": {"overall": 70.0, "exact_match": 0.7}}))
        (folder / "drift.json").write_text(json.dumps(drift or {"drifted": False, "reference": None, "tests": []}))
        run(
            model,
            evaluation,
            folder / "scores.json",
            folder / "drift.json",
            (pin or self.registry.pin(config.name, fingerprint)).champion,
            self.uris[1],
            self.uris[0],
            config,
            fingerprint,
            0,
            folder / "register.json",
        )
        found: dict[str, Any] = json.loads((folder / "register.json").read_text())
        return found

    def written(self) -> bytes:
        """The newest `register.json`."""
        return (self.root / f"run{self.runs}" / "register.json").read_bytes()

    def state(self) -> tuple[dict[str, int], dict[int, dict[str, str]]]:
        """Aliases, and every version's tags, as MLflow tells them."""
        client = self.registry._client
        aliases = {k: int(v) for model in client.search_registered_models() for k, v in model.aliases.items()}
        return aliases, {int(v.version): dict(v.tags) for v in client.search_model_versions(f"name='{NAME}'")}


def model_of(fingerprint: str, folder: Path) -> Path:
    """A model's folder, as small as they get."""
    folder.mkdir(parents=True)
    save_file({"weight": np.frombuffer(fingerprint.encode(), np.uint8)}, folder / "model.safetensors")
    (folder / "processor").mkdir()
    (folder / "processor" / "config.json").write_text("{}")
    return folder


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("registry") / "mlflow.db"
    Registry(f"sqlite:///{path}", (path.parent / "store").as_uri())._make_database()
    return path


@pytest.fixture
def house(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    return House(tmp_path)


@pytest.fixture(name="evaluated")
def _evaluated() -> Any:
    return evaluated
