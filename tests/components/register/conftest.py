"""A small house with a real store and a real SQLite registry; MLflow's slow migration runs once."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from components.register.account import Launch
from components.register.mirror import Mirror
from components.register.step import run
from hardcase.audit.code import code_digest
from hardcase.audit.examine import examine
from hardcase.audit.ledger import Ledger, read_ledger
from hardcase.audit.links import Link
from hardcase.audit.signing import Keyring, make_key, open_keyring
from hardcase.config import RegisterConfig
from hardcase.data.digest import path_digest
from hardcase.data.store import Store, open_store
from hardcase.task.sample import ASPECTS

CONFIG = RegisterConfig(resamples=400)
NAME = CONFIG.name
SCORES = {"grpo": {"overall": 70.0, "exact_match": 0.7}}
DRIFT = {"drifted": False, "reference": None, "tests": []}


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
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.root / 'mlflow.db'}"

    @property
    def store(self) -> Store:
        return open_store((self.root / "store").as_uri())

    @property
    def keys(self) -> Keyring:
        make_key(self.root / "keys")
        return open_keyring(str(self.root / "keys" / "signing.pem"), [])

    @property
    def ledger(self) -> Ledger:
        return read_ledger(self.store, NAME, self.keys)

    @property
    def mirror(self) -> Mirror:
        return Mirror(self.tracking_uri)

    def launch(
        self,
        fingerprint: str,
        table: pa.Table,
        *,
        scores: dict[str, Any] | None = None,
        drift: dict[str, Any] | None = None,
        pin: tuple[str, str] | None = None,
        config: RegisterConfig = CONFIG,
        snapshot: Path | None = None,
        spoil: Callable[[dict[str, Path], dict[str, Link]], None] = lambda artifacts, links: None,
    ) -> dict[str, Any]:
        """Pin and register; the same fingerprint has the same model.

        `spoil` may change artifacts and links before they are signed.
        """
        self.runs += 1
        folder = self.root / f"run{self.runs}"
        artifacts = _artifacts(folder, fingerprint, table, scores or SCORES, drift or DRIFT)
        if snapshot is not None:
            artifacts["snapshot"] = snapshot
        champion, reference = pin or self.ledger.pin(fingerprint)
        code = code_digest()
        links = _links(artifacts, reference, code, f"run{self.runs}")
        spoil(artifacts, links)
        run(
            artifacts,
            [link.signed(self.keys).decode() for link in links.values()],
            Launch({"run": f"run{self.runs}", "who": "tester"}, champion, fingerprint, code, 0),
            self.keys,
            self.store.uri,
            self.tracking_uri,
            config,
            folder / "register.json",
        )
        found: dict[str, Any] = json.loads((folder / "register.json").read_text())
        return found

    def written(self) -> bytes:
        """The newest `register.json`."""
        return (self.root / f"run{self.runs}" / "register.json").read_bytes()

    def state(self) -> tuple[dict[str, int], dict[int, dict[str, str]]]:
        """Aliases, and every version's tags, as MLflow tells them; the same as the ledger's."""
        if not self.mirror.database.is_file():
            return {}, {}
        assert self.mirror.differences(self.ledger) == []
        client = self.mirror._client
        aliases = {k: int(v) for model in client.search_registered_models() for k, v in model.aliases.items()}
        return aliases, {int(v.version): dict(v.tags) for v in client.search_model_versions(f"name='{NAME}'")}

    def audited(self, version: int | str = "") -> list[str]:
        """What is wrong with a version, by default the champion."""
        spec = f"{NAME}:{version}" if version else NAME
        found = examine(self.store, spec, self.keys, self.mirror.differences)
        return [finding.problem for finding in found.tree.broken]


def _artifacts(folder: Path, fingerprint: str, table: pa.Table, scores: Any, drift: Any) -> dict[str, Path]:
    """What the steps before leave, as small as it gets."""
    names = ("snapshot", "quarantine", "validation", "sft_log", "mined", "grpo_log", "evaluation", "baseline", "scores")
    names += ("drift", "drift_report", "rollouts", "sft_answers", "answers")
    paths = {name: folder / name for name in names}
    paths |= {"model": model_of(fingerprint, folder / "model"), "sft_model": model_of("sft", folder / "sft")}
    contents = {
        "snapshot": {"schema": 1, "rows": 0, "splits": {"train": 0, "eval": 0}, "shards": [], "unknown_keys": []},
        "scores": scores,
        "drift": drift,
    }
    for name in names:  # those that are read are written below
        paths[name].write_text(name)
    for name, content in contents.items():
        paths[name].write_text(json.dumps(content))
    for name in ("evaluation", "baseline"):
        pq.write_table(table, paths[name])
    pq.write_table(
        pa.table({"exact_rate": [0.0, 1.0], "hard": [True, False], "suspect": [True, False]}), paths["mined"]
    )
    return paths


def _links(artifacts: dict[str, Path], reference: str, code: str, run: str) -> dict[str, Link]:
    """The records of the steps, as `running` makes them."""
    digests = {name: path_digest(path) for name, path in artifacts.items()}

    def link(step: str, reads: str, products: dict[str, str], **parameters: Any) -> Link:
        materials = {name: digests[name] for name in reads.split()}
        made = {name: digests[artifact] for name, artifact in products.items()}
        return Link(step, materials, made, {"code": code, "config": {}, **parameters}, {"run": run, "clean": "yes"})

    trained = {"trained": "sft_model", "log": "sft_log"}
    judged = {name: name for name in ("evaluation", "baseline", "scores")}
    links = [
        link("ingest", "", {"snapshot": "snapshot", "quarantine": "quarantine"}, source=["procedural://", ""]),
        link("validate", "snapshot", {"result": "validation"}),
        link("sft", "snapshot validation", trained, seed=0, model={"tiny": {}}),
        link("rollout", "snapshot sft_model", {"rollouts": "rollouts"}, seed=0),
        link("mine", "snapshot rollouts", {"mined": "mined"}),
        link("grpo", "snapshot sft_model mined", {"trained": "model", "log": "grpo_log"}, seed=0),
        link("answer-sft", "snapshot sft_model", {"answers": "sft_answers"}, seed=0),
        link("answer-final", "snapshot model", {"answers": "answers"}, seed=0),
        link("evaluate", "snapshot sft_answers answers", judged, seed=0),
        link("drift", "evaluation", {"result": "drift", "html": "drift_report"}, reference=reference),
    ]
    return {each.step: each for each in links}


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
    Mirror(f"sqlite:///{path}")._make_database()
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
