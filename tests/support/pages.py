"""Code blocks of Markdown pages, and what their commands are expected to print.

Of a block, the info string decides: `console` has commands after `$ ` and the output of each; `bash` is executed as it
is; `sh` needs a cluster, a GPU or minutes: its commands are checked against the program and not executed.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    kind: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command and its expected output; without one, any output will do."""

    line: str
    output: str | None = None


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page in their order."""
    return [Block(*match) for match in FENCE.findall(page.read_text(encoding="utf-8"))]


def commands(block: Block) -> Iterator[Command]:
    """Yield what a block executes."""
    if block.kind == "bash":
        yield Command(block.text)
    elif block.kind == "console":
        for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            line, _, output = part.replace("\\\n", " ").partition("\n")
            yield Command(line, output)


def lines_of_shell(page: Path) -> list[str]:
    """Return every line of shell on a page, also of indented blocks; a line may continue in the next."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    fenced = [block for kind, block in FENCE.findall(text) if kind in {"sh", "bash", "console"}]
    indented = re.findall(r"^ {4}(\S.*)$", FENCE.sub("", text), re.MULTILINE)
    lines = [*"\n".join(fenced).splitlines(), *indented]
    return [line.strip().removeprefix("$ ").removesuffix("&") for line in lines]


def matches(expected: str, output: str) -> bool:
    """Return whether the output has the expected lines: `…` stands for any text, alone on its line for any lines."""
    parts = []
    for line in expected.rstrip("\n").split("\n"):
        pattern = ".*".join(re.escape(part) for part in line.rstrip().split("…"))
        parts.append(r"(?:.*\n)*" if line.strip() == "…" else pattern + r"[ \t]*\n")
    return re.fullmatch("".join(parts), output.rstrip("\n") + "\n") is not None
