"""Text of a user reaches a terminal without obeying it."""

import io
import logging

import pytest
from rich.table import Table

from hardcase.cli.console import PrintableConsole
from hardcase.text import PrintableFormatter, make_printable

HOSTILE = "\x1b]0;title\x07 \x1b[2J\x9b1A\rgone \u202egnp.exe \udcff"
SHOWN = r"\x1b]0;title\x07 \x1b[2J\x9b1A\rgone \u202egnp.exe \udcff"


@pytest.mark.parametrize("text", ["", "two\nlines\tand a tab", "日本 🫖 ü e\u0301", "C:\\o.png"])
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert make_printable(text) == text


def test_control_characters_are_shown_not_sent() -> None:
    assert make_printable(HOSTILE) == SHOWN


def test_a_log_record_with_escapes_of_a_terminal_is_plain_text() -> None:
    record = logging.LogRecord("hardcase", logging.WARNING, "", 0, "keys ignored: %s", (HOSTILE,), None)
    assert PrintableFormatter("%(message)s").format(record) == f"keys ignored: {SHOWN}"


@pytest.mark.parametrize("color", [True, False])
def test_what_a_console_prints_has_no_escapes_of_the_text(color: bool) -> None:
    file = io.StringIO()
    console = PrintableConsole(file=file, force_terminal=color, highlight=False, markup=False, width=99)
    table = Table("id")
    table.add_row("\x1b]0;title")
    console.print("error:", "\x1b[2J", "\u202e")
    console.print(table)
    printed = file.getvalue()
    assert r"error: \x1b[2J \u202e" in printed
    assert r"\x1b]0" in printed
    assert "\x1b[2J" not in printed
    assert "\x1b]0" not in printed
    assert ("\x1b[" in printed) == color  # the table's own style
