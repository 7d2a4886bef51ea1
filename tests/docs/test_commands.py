"""A reader's test: what README and tutorials tell to type works, and prints what they show.

One home for all pages, as a reader has, and the pages in the order in which they are read.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from hardcase.cli.main import app
from tests.support.pages import blocks, commands, lines_of_shell, matches

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = ROOT / "docs" / "tutorials"
EXECUTED = [ROOT / "README.md", TUTORIALS / "ten-minutes-on-your-own-photographs.md", TUTORIALS / "audit-a-model.md"]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*/*.md"))]
TARGETS = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
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


@pytest.mark.timeout(900)
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


def typed_on_pages(program: str) -> list[tuple[str, str]]:
    """Return page and line of every command of a program, in any block of any page."""
    return [
        (str(page.relative_to(ROOT)), line)
        for page in PAGES
        for line in lines_of_shell(page)
        if line.startswith(f"{program} ")
    ]


@pytest.mark.parametrize(("page", "line"), typed_on_pages("hardcase"))
def test_hardcase_takes_the_command_of_a_page(page: str, line: str) -> None:
    words = shlex.split(re.split(r"[;|>]", line)[0].replace("…", "TEXT"), comments=True)[1:]
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word.partition("=")[0] for word in words if word.startswith("-")} <= known, page
    command.make_parser(command.context_class(command)).parse_args(words)


@pytest.mark.parametrize(("page", "line"), typed_on_pages("make"))
def test_make_has_the_target_of_a_page(page: str, line: str) -> None:
    assert {word for word in shlex.split(line, comments=True)[1:] if "=" not in word} <= TARGETS, page
