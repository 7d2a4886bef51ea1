"""A Kubeflow on loopback, and a small pipeline to launch on it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kubeflow_server import Kubeflow, kubeflow_server


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
