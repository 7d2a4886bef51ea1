"""Settings that the command line gives as `--set section.key=value`."""

from collections.abc import Sequence
from typing import Any

import yaml

from hardcase.errors import InputError


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Return the settings by key; a value is YAML.

    Raises:
        InputError: one is not of the form `section.key=value`.
    """
    values = dict[str, Any]()
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise InputError(f"--set {setting}: not of the form section.key=value")
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"--set {setting}: the value is not YAML; quote it") from error
    return values
