"""Format versions of what hardcase writes into a store; docs/reference/formats.md describes each format.

A format version is an integer. It grows only when a reader of the previous version would misread the record; a new key
alone does not change it. Readers accept every version up to their own and refuse a newer one by `NewerFormatError`.
"""

from typing import Final

from hardcase.errors import InputError

SNAPSHOT_FORMAT: Final = 2


class NewerFormatError(InputError):
    """A newer hardcase wrote the record, so this one cannot judge it; no damage is known."""


def check_format(written: object, newest: int, what: str) -> int:
    """Return the format version that a record of the name `what` states.

    A newer one is a `NewerFormatError`, one that is not a positive integer a ValueError.
    """
    if not isinstance(written, int) or isinstance(written, bool) or written < 1:
        raise ValueError(f"format {written!r} is not a version")
    if written > newest:
        raise NewerFormatError(
            f"{what}: written by a newer hardcase (format {written}, this one reads up to {newest}); upgrade hardcase"
        )
    return written


def check_type(uri: object, base: str, newest: int, what: str) -> int:
    """Return the format version in a type URI `<base>v<version>`, with the errors of `check_format`."""
    version = str(uri).removeprefix(f"{base}v")
    if uri != f"{base}v{version}" or not (version.isascii() and version.isdigit()):
        raise ValueError(f"type {uri!r} is not {base}v…")
    return check_format(int(version), newest, what)
