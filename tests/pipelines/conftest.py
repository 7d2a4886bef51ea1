"""A home of its own for each test file, and the command line as a user runs it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.kubeflow_server import Kubeflow, kubeflow_server

# Of a shell's background job SIGINT would be ignored, and a test of Ctrl-C wait for ever.
COMMAND = ("env", "--default-signal=INT", sys.executable, "-c", "from hardcase.cli.main import main; main()")


@dataclass(frozen=True)
class Machine:
    """A home folder and the command line that works in it."""

    home: Path

    @property
    def environment(self) -> dict[str, str]:
        own = {"HARDCASE_HOME": str(self.home), "HARDCASE_CACHE": str(self.home.parent / "cache")}
        others = {key: value for key, value in os.environ.items() if not key.startswith("HARDCASE_")}
        return {**others, **own, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*COMMAND, *arguments],
            env=self.environment,
            cwd=self.home.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def call(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        process = self.start(*arguments)
        try:
            out, err = process.communicate()
        except BaseException:  # the test's time limit, say
            process.kill()
            raise
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def run(self, *arguments: str) -> dict[str, Any]:
        done = self.call("run", "--profile", "smoke", "--json", *arguments)
        assert done.returncode in (0, 3), done.stderr
        summary: dict[str, Any] = json.loads(done.stdout)
        return summary

    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads((self.home / "latest" / "summary.json").read_text())
        return summary


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    yield Machine(tmp_path_factory.mktemp("machine") / "home")


@pytest.fixture
def kubeflow() -> Iterator[Kubeflow]:
    with kubeflow_server() as known:
        known.multi_user = True
        yield known


@pytest.fixture(scope="session")
def little(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of two steps in two images, compiled by KFP, with a parameter of each type."""
    import yaml
    from kfp import compiler, dsl

    @dsl.component(base_image="hardcase/python-light:0.1.0")
    def ingest(profile: str, seed: int) -> int:
        return seed

    @dsl.component(base_image="hardcase/python-train:0.1.0")
    def sft(read: int, share: float, extra: bool, shards: list, settings: dict):
        print(read)

    @dsl.pipeline(name="hardcase-little")
    def pipeline(
        profile: str = "tiny",
        source: str = "procedural://",
        seed: int = 0,
        share: float = 0.5,
        extra: bool = False,
        shards: list = [0],  # noqa: B006  KFP's own form
        settings: dict = {},  # noqa: B006
    ):
        read = ingest(profile=profile, seed=seed).output
        sft(read=read, share=share, extra=extra, shards=shards, settings=settings).set_env_variable("LEFT", "alone")

    path = tmp_path_factory.mktemp("pipeline") / "little.yaml"
    compiler.Compiler().compile(pipeline, str(path))
    spec = yaml.safe_load(path.read_text())
    spec["root"]["inputDefinitions"]["parameters"]["profile"]["literals"] = ["tiny", "smoke"]
    path.write_text(yaml.safe_dump(spec))
    return path
