"""A reader's test: the commands on README and pages exist, with their options."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from hardcase.cli.main import app
from tests.support.pages import lines_of_shell

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*/*.md"))]
TARGETS = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


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
