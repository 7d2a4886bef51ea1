"""A small house with a real store and a real registry, SQLite or a server; MLflow's slow migration runs once."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from hardcase.audit.examine import examine
from hardcase.config import RegisterConfig
from hardcase.data.cases import MinedCase, write_cases
from hardcase.provenance.attestations import Attestation
from hardcase.provenance.code import code_digest
from hardcase.provenance.products import keep_product
from hardcase.provenance.signing import Keyring, make_key, open_keyring
from hardcase.provenance.statement import FOLDER, SNAPSHOT
from hardcase.registry.account import gather_account
from hardcase.registry.ledger import Ledger, read_ledger
from hardcase.registry.mirror import ENVIRONMENT, Mirror
from hardcase.steps.register import run
from hardcase.store.digest import path_digest
from hardcase.store.store import Store, open_store
from tests.support.evaluations import SCORES

CONFIG = RegisterConfig(resamples=400)
NAME = CONFIG.name
DRIFT = {"drifted": False, "reference": None, "tests": []}


@dataclass
class House:
    """Where a run's files, the store and the registry lie; `launch` does what the launcher does around register."""

    root: Path
    server: str = ""
    runs: int = 0

    @property
    def tracking_uri(self) -> str:
        return self.server or f"sqlite:///{self.root / 'mlflow.db'}"

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
        damage: Callable[[dict[str, Path]], None] = lambda artifacts: None,
        spoil: Callable[[dict[str, Attestation]], None] = lambda links: None,
    ) -> dict[str, Any]:
        """Pin and register; the same fingerprint has the same model.

        `damage` may change artifacts before they are kept, `spoil` links before they are signed.
        """
        self.runs += 1
        folder = self.root / f"run{self.runs}"
        artifacts = _artifacts(folder, fingerprint, table, scores or SCORES, drift or DRIFT)
        if snapshot is not None:
            artifacts["snapshot"] = snapshot
        champion, reference = pin or self.ledger.pin(fingerprint)
        code = code_digest()
        damage(artifacts)
        links = _links(artifacts, reference, code, f"run{self.runs}")
        spoil(links)
        for path in artifacts.values():
            keep_product(self.store, path)
        attested = _attested(links, self.store, self.keys)
        last = [attested[step] for step in ("grpo", "evaluate", "drift") if step in attested]
        plan = {"code": code, "seed": 0, "champion": champion, "fingerprint": fingerprint, "cluster": {}}
        plan["config"] = config.model_dump(mode="json")
        made = gather_account(last, plan, {"run": f"run{self.runs}", "who": "tester"}, self.keys, self.store)
        run(made, self.keys, self.tracking_uri, config, folder / "register.json")
        found: dict[str, Any] = json.loads((folder / "register.json").read_text())
        return found

    def written(self) -> bytes:
        """The newest `register.json`."""
        return (self.root / f"run{self.runs}" / "register.json").read_bytes()

    def state(self) -> tuple[dict[str, int], dict[int, dict[str, str]]]:
        """Aliases, and every version's tags, as MLflow tells them; the same as the ledger's."""
        if not self.server and not (self.root / "mlflow.db").is_file():
            return {}, {}
        assert self.mirror.find_differences(self.ledger) == []
        shown = self.mirror._look(NAME)
        return dict(shown.aliases), {number: tags for number, (_, tags) in shown.versions.items()}

    def audited(self, version: int | str = "") -> list[str]:
        """What is wrong with a version, by default the champion."""
        spec = f"{NAME}:{version}" if version else NAME
        found = examine(self.store, spec, self.keys, self.mirror.find_differences)
        return [finding.problem for finding in found.tree.broken]


def _artifacts(folder: Path, fingerprint: str, table: pa.Table, scores: Any, drift: Any) -> dict[str, Path]:
    """What the steps before leave, as small as it gets."""
    names = ("snapshot", "quarantine", "validation", "sft_log", "mined", "grpo_log", "evaluation", "baseline", "scores")
    names += ("drift", "drift_report", "rollouts", "answers")
    paths = {name: folder / name for name in names}
    paths |= {"model": model_of(fingerprint, folder / "model"), "sft_model": model_of("sft", folder / "sft")}
    contents = {
        "snapshot": {"schema": 1, "rows": 0, "splits": {"train": 0, "eval": 0}, "shards": [], "unknown_keys": []},
        "scores": scores,
        "drift": drift,
        "grpo_log": {"phase": "grpo", "step": 1, "weights_changed": False},
    }
    for name in names:  # those that are read are written below
        paths[name].write_text(name)
    for name, content in contents.items():
        paths[name].write_text(json.dumps(content))
    for name in ("evaluation", "baseline"):
        pq.write_table(table, paths[name])
    cases = [MinedCase("a", ["A"], 0.0, 0.0, hard=False, suspect=True), MinedCase("b", ["B"], 1.0, 1.0, False, False)]
    write_cases(cases, paths["mined"])
    return paths


def _links(artifacts: dict[str, Path], reference: str, code: str, run: str) -> dict[str, Attestation]:
    """The records of the steps, as `running` makes them."""
    digests = {name: path_digest(path) for name, path in artifacts.items()}

    def link(step: str, reads: str, writes: str, **parameters: Any) -> Attestation:
        materials, products = ({name: digests[name] for name in names.split()} for names in (reads, writes))
        kinds = {name: kind for name, kind in KINDS.items() if name in {*materials, *products}}
        known = {"code": code, "config": {}, **parameters}
        return Attestation(step, materials, products, known, {"run": run, "clean": "yes"}, kinds)

    links = [
        link("ingest", "", "snapshot quarantine", source=["procedural://", ""]),
        link("validate", "snapshot", "validation"),
        link("sft", "snapshot validation", "sft_model sft_log", seed=0, model={"tiny": {}}),
        link("rollout", "snapshot sft_model", "rollouts", seed=0),
        link("mine", "snapshot rollouts", "mined"),
        link("grpo", "snapshot sft_model mined", "model grpo_log", seed=0),
        link("answer", "snapshot model sft_model", "answers", seed=0),
        link("evaluate", "snapshot answers", "evaluation baseline scores", seed=0),
        link("drift", "evaluation", "drift drift_report", reference=reference),
    ]
    return {each.step: each for each in links}


KINDS = {"snapshot": SNAPSHOT, "sft_model": FOLDER, "model": FOLDER}


def _attested(links: dict[str, Attestation], store: Store, keys: Keyring) -> dict[str, str]:
    """Sign the links, each naming the attestations of what it read; the sha256 of each by step."""
    attested = dict[str, str]()
    for step, link in links.items():
        makers = {name: maker for maker, each in links.items() for name in each.products if maker in attested}
        attested_by = {name: attested[makers[name]] for name in link.materials if name in makers}
        attested[step] = store.put_object(replace(link, attested_by=attested_by).sign(keys))
    return attested


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


@dataclass
class Server:
    """`mlflow server` on loopback, SQLite behind; in a process group of its own, as it has children."""

    folder: Path
    port: int = 0
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def __post_init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        arguments = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        places = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--artifacts-destination", self.folder]
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *arguments, *places],
                env={**os.environ, **ENVIRONMENT},
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        until = time.monotonic() + 300
        while True:
            with suppress(urllib.error.URLError), urllib.request.urlopen(f"{self.uri}/health"):
                return
            assert process.poll() is None and time.monotonic() < until, (self.folder / "log").read_text()
            time.sleep(0.2)

    def stop(self) -> None:
        while self.processes:
            process = self.processes.pop()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def empty(self) -> None:
        client = Mirror(self.uri)._client
        for model in client.search_registered_models():
            client.delete_registered_model(model.name)


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("mlflow")
    shutil.copyfile(empty_database, folder / "mlflow.db")
    server = Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def server(started: Server) -> Server:
    """Running, with nothing in it."""
    if not started.processes:
        started.start()
    started.empty()
    return started
