"""Reward functions of the user, named `path/file.py:function` or `module:function`.

`configure` puts their files into the store, so the step `grpo` runs what was there at the launch, and an audit finds it
by sha256. Each file is executed by itself: it may import what is installed where GRPO runs, but no file beside it.
"""

import math
import symtable
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from hardcase.config.training import split_reward
from hardcase.errors import HardcaseError, InputError

Reward = Callable[..., list[float | None]]


def read_reward_files(names: Iterable[str]) -> dict[str, bytes]:
    """Return the files of reward functions by file name, without executing them.

    Raises:
        InputError: a file is missing, is not Python, does not define its function, or is called as another one.
    """
    files = dict[str, bytes]()
    for name in names:
        file, function = split_reward(name)
        path = _find_file(name)
        try:
            content = path.read_bytes()
            symbols = symtable.symtable(content.decode(), str(path), "exec")
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"grpo.rewards {name}: {path} is no readable Python file: {error}; correct it") from error
        if function not in symbols.get_identifiers() or not symbols.lookup(function).is_local():
            raise InputError(f"grpo.rewards {name}: {path} defines no {function}; correct the name")
        if files.setdefault(file, content) != content:
            raise InputError(f"grpo.rewards {name}: another file is called {file} too; rename one")
    return files


def _find_file(name: str) -> Path:
    place = name.rpartition(":")[0]
    if place.endswith(".py"):
        return Path(place)
    try:
        spec = find_spec(place)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.has_location or not spec.origin:
        raise InputError(
            f"grpo.rewards {name}: no module {place} is installed; name a file of the working directory as {place}.py"
        )
    return Path(spec.origin)


def load_reward_functions(names: Iterable[str], folder: Path) -> list[Reward]:
    """Return reward functions for TRL from the folder of their files; each reports its own faults in one line."""
    return [_load(name, folder) for name in names]


def _load(name: str, folder: Path) -> Reward:
    file, attribute = split_reward(name)
    spec = spec_from_file_location(f"hardcase_rewards_{Path(file).stem}", folder / file)
    if spec is None or spec.loader is None:
        raise InputError(f"grpo.rewards {name}: {file} is no Python file; rename it")
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        function = getattr(module, attribute)
    except Exception as error:
        raise InputError(f"grpo.rewards {name}: cannot be imported: {_describe(error)}; correct the file") from error
    if not callable(function):
        raise InputError(f"grpo.rewards {name}: is not a function; name one")

    def reward(completions: Sequence[Any], **columns: Any) -> list[float | None]:
        try:
            values = [None if value is None else float(value) for value in function(completions=completions, **columns)]
        except Exception as error:
            raise HardcaseError(f"grpo.rewards {name}: {_describe(error)}; correct the function") from error
        if len(values) != len(completions):
            raise HardcaseError(
                f"grpo.rewards {name}: {len(values)} rewards for {len(completions)} completions; return one for each"
            )
        if odd := [value for value in values if value is not None and not math.isfinite(value)]:
            raise HardcaseError(f"grpo.rewards {name}: {odd[0]} is no finite reward; return numbers or None")
        return values

    reward.__name__ = attribute  # under which TRL logs it
    return reward


def _describe(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
