"""Python files in a data folder are data: no process of ours imports them, wherever it is started."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hardcase.compiled import read_pipeline
from hardcase.config import TinyModelConfig
from hardcase.data.scenes import write_source
from hardcase.errors import InputError
from hardcase.model.internvl import build_tiny, load_model, save_model
from tests.support.dockerfile import environment
from tests.support.hostile import HostileFolder

SMALL = TinyModelConfig(image_size=32, vision_hidden=32, vision_layers=1, text_hidden=32, text_layers=2, heads=2)
SCRIPT = str(Path(sys.executable).with_name("hardcase"))


@pytest.fixture
def hostile(tmp_path: Path) -> HostileFolder:
    write_source(tmp_path / "data", samples=4, seed=0)
    return HostileFolder(tmp_path / "data")


def without(hostile: HostileFolder, *names: str) -> None:
    for name in names:
        (hostile.folder / f"{name}.py").unlink()
        (hostile.folder / name / "__init__.py").unlink()
        (hostile.folder / name).rmdir()


@pytest.mark.parametrize(
    ("command", "path", "missing"),
    [
        ([SCRIPT], None, ()),
        ([sys.executable, "-P", "-m", "hardcase"], None, ()),
        # Python looks for the package itself in the working directory, before any code of ours runs.
        ([sys.executable, "-m", "hardcase"], None, ("hardcase",)),
        # Python imports these from every folder of PYTHONPATH as it starts.
        ([SCRIPT], ":/nowhere:.", ("hardcase", "sitecustomize", "usercustomize")),
    ],
    ids=["script", "isolated-module", "module", "empty-pythonpath"],
)
def test_ingest_in_its_source_executes_none_of_its_files(
    hostile: HostileFolder, command: list[str], path: str | None, missing: tuple[str, ...]
) -> None:
    without(hostile, *missing)
    own = {"HARDCASE_HOME": str(hostile.folder / ".hardcase")} | ({} if path is None else {"PYTHONPATH": path})
    others = {name: value for name, value in os.environ.items() if not name.startswith(("HARDCASE_", "PYTHON"))}
    ingest = [*command, "ingest", "--source", ".", "--json"]
    done = subprocess.run(ingest, cwd=hostile.folder, env=others | own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["accepted"] == 4
    assert hostile.imported == []


@pytest.mark.parametrize("image", ["light", "train"])
def test_a_pods_command_executes_no_file_of_its_working_directory(hostile: HostileFolder, image: str) -> None:
    executors = read_pipeline("retraining")["deploymentSpec"]["executors"]
    command = next(
        [*container["command"], *container["args"]]
        for container in (executor["container"] for executor in executors.values())
        if f"/python-{image}:" in container["image"]
    )
    python = f"{Path(sys.executable).parent}:/usr/bin:/bin"  # what the image would be: this environment
    variables = {
        **environment(image),
        "PATH": python,
        "HOME": str(hostile.folder),
        "TMPDIR": str(hostile.folder.parent),
    }
    done = subprocess.run(command, cwd=hostile.folder, env=variables, capture_output=True, text=True, check=False)
    assert "KFP Executor" in done.stdout
    assert hostile.imported == []


@pytest.mark.parametrize("image", ["airflow", "mlflow"])
def test_servers_import_nothing_from_their_working_directory(image: str) -> None:
    assert environment(image)["PYTHONSAFEPATH"] == "1"


def test_code_in_a_model_folder_is_not_executed(hostile: HostileFolder) -> None:
    save_model(*build_tiny(SMALL, ["a word"], 0), hostile.folder)
    for path in hostile.folder.glob("*config.json"):
        kinds = ("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor", "AutoTokenizer", "AutoImageProcessor")
        content = {**json.loads(path.read_text()), "auto_map": dict.fromkeys(kinds, "random.Random")}
        path.write_text(json.dumps(content))
    (hostile.folder / "custom_generate").mkdir()
    (hostile.folder / "custom_generate" / "generate.py").write_bytes((hostile.folder / "random.py").read_bytes())
    load_model(hostile.folder)
    assert hostile.imported == []
    config = hostile.folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "unheard_of"}))
    with pytest.raises(InputError, match="contains custom code"):
        load_model(hostile.folder)
    assert hostile.imported == []
