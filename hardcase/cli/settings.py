"""Settings that the command line gives as `--set section.key=value`."""

import json
from collections.abc import Sequence
from typing import Any

import yaml

from hardcase.errors import InputError


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Return the settings by key; a value is YAML."""
    values = dict[str, Any]()
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise InputError(f"--set {setting}: not of the form section.key=value")
        try:
            parsed = yaml.safe_load(value)
            json.dumps(parsed)  # a date, say, is none of a pipeline's values
        except (yaml.YAMLError, TypeError, RecursionError) as error:
            raise InputError(f"--set {setting}: the value is not YAML of plain values; quote it") from error
        values[key] = "null" if parsed is None else _drop_nulls(parsed)  # KFP's structures have no null
    return values


def _drop_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _drop_nulls(item) for key, item in value.items() if item is not None}
    return [_drop_nulls(item) for item in value] if isinstance(value, list) else value
