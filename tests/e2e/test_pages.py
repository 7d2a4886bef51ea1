"""A reader's test: what README and tutorials tell to type works, and prints what they show.

One home for all pages, as a reader has, and the pages in the order in which they are read.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import blocks, commands, matches

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = ROOT / "docs" / "tutorials"
EXECUTED = [ROOT / "README.md", TUTORIALS / "ten-minutes-on-your-own-photographs.md", TUTORIALS / "audit-a-model.md"]
# Printed where standard error is no terminal, which shows a moving line instead.
STARTED = re.compile(r"^\w+: started\n", re.MULTILINE)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Return a reader's working folder and environment."""
    folder = tmp_path_factory.mktemp("reader")
    own = {"HARDCASE_HOME": str(folder / ".hardcase"), "HARDCASE_CACHE": str(folder / "cache"), "COLUMNS": "120"}
    others = {key: value for key, value in os.environ.items() if not key.startswith("HARDCASE_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), others["PATH"]])
    return folder, {**others, **own, "PATH": path, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("page", EXECUTED, ids=lambda page: page.stem)
def test_commands_of_a_page_print_what_it_shows(page: Path, reader: tuple[Path, dict[str, str]]) -> None:
    folder, environment = reader
    typed = [command for block in blocks(page) for command in commands(block)]
    assert typed, "no command was read"
    for command in typed:
        done = subprocess.run(
            ["bash", *(["-e"] if command.output is None else []), "-c", command.line],
            cwd=ROOT if command.line.startswith("make") else folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command.line}\n{done.stdout}"
        printed = STARTED.sub("", done.stdout)
        if command.output is not None:
            assert matches(command.output, printed), f"{command.line}\nshown:\n{command.output}\n{printed}"
