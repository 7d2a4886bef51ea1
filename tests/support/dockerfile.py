"""What the Dockerfile says of an image, its parents included."""

import re
import shlex
from functools import cache
from pathlib import Path
from string import Template

DOCKERFILE = Path(__file__).parents[2] / "infra" / "images" / "Dockerfile"
INSTRUCTION = re.compile(r"^(FROM|ENV|USER) (.+)$", re.MULTILINE)


@cache
def stages() -> dict[str, dict[str, str]]:
    """Return the environment of each stage; its key `USER:` is the user that it runs as."""
    text = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", "")
    found: dict[str, dict[str, str]] = {}
    for instruction, rest in INSTRUCTION.findall(text):
        if instruction == "FROM":
            parent, _, name = rest.split()
            here = found[name] = dict(found.get(parent, {"PATH": "/usr/local/bin:/usr/bin:/bin"}))
        elif instruction == "USER":
            here["USER:"] = rest
        else:
            here |= {
                key: Template(value).safe_substitute(here)
                for key, _, value in (assignment.partition("=") for assignment in shlex.split(rest))
            }
    return found


def environment(image: str) -> dict[str, str]:
    """Return the variables that a container of an image starts with."""
    return {name: value for name, value in stages()[image].items() if name.isidentifier()}
