"""A step with the environment of its image where only volumes can be written to, as a user by number.

No image is built for this: namespaces stand for the container, the environment is the Dockerfile's (strict_pod.py). The
images themselves are started by `make e2e-images`.
"""

import json
import pwd
import re
import subprocess
import sys

import pytest

from tests.support.dockerfile import DOCKERFILE, environment
from tests.support.strict_pod import USER

ROOT = DOCKERFILE.parents[2]
PYTHON = "/opt/venv"  # of the images
FOLDERS = {
    "home": "/cache",
    "XDG": "/cache",
    "matplotlib's cache": "/cache/matplotlib",
    "matplotlib's settings": "/cache/matplotlib",
    "Hugging Face Hub": "/cache/huggingface/hub",
    "Xet": "/cache/huggingface/xet",
    "hardcase": "/cache/hardcase",
    "datasets": "/cache/huggingface/datasets",
    "modules of models": "/cache/huggingface/modules",
    "torch.hub": "/cache/torch/hub",
    "kernels of DeepSpeed": "/cache/torch_extensions",
    "kernels of torch": "/cache/inductor",
    "kernels of Triton": "/cache/triton",
    "kernels of numba": "/cache/numba",
}
TRAIN = """
python -c 'from hardcase.cli.main import main; main()' run --profile smoke || test $? -eq 3
cat $HARDCASE_HOME/latest/logs/*
echo
cat $HARDCASE_HOME/latest/summary.json | tr -d '\\n'
"""


def start(root, *command):
    """Run a command in a pod of the training image, built in an empty folder; what it prints goes to `stdout`."""
    variables = environment("train") | {"HARDCASE_HOME": "/tmp/home", "PYTHONPATH": str(ROOT)}
    variables["PATH"] = variables["PATH"].replace(PYTHON, sys.prefix)
    pod = [sys.executable, ROOT / "tests" / "support" / "strict_pod.py", root, *command]
    return subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", *pod],
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def test_the_pod_is_as_strict_as_it_says(tmp_path):
    places = [f"{place}/written" for place in (ROOT, "", "/var/tmp", "/etc", "/home")]
    done = start(tmp_path, "touch", *places)
    assert done.stdout.count("Read-only file system") == len(places), done.stdout
    done = start(tmp_path, "sh", "-c", "id -u; grep CapEff /proc/self/status; touch /cache/x /tmp/x /dev/shm/x")
    assert done.stdout.split() == [str(USER), "CapEff:", "0000000000000000"]
    with pytest.raises(KeyError):
        pwd.getpwuid(USER)


def test_libraries_write_to_the_volume_and_the_user_has_a_name(tmp_path):
    done = start(tmp_path, "python", ROOT / "infra" / "images" / "places.py", "all")
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout.splitlines()[-1]) == {"user": "hardcase", "folders": FOLDERS}


def test_a_run_trains_and_no_library_misses_a_folder(tmp_path):
    done = start(tmp_path, "sh", "-ec", TRAIN)
    assert done.returncode == 0, done.stdout
    summary = json.loads(done.stdout.splitlines()[-1])
    assert {summary["steps"][step]["status"] for step in ("sft", "grpo", "register")} == {"succeeded"}
    complaints = r"(?i).*(?:read-only file system|not writable|permission denied|temporary cache).*"
    assert not re.findall(complaints, done.stdout)
