"""Check a cron expression as Kubeflow reads it: by robfig/cron (v1, parser.go), whose first field is the second."""

from calendar import monthrange
from itertools import product
from typing import Final, NamedTuple

from hardcase.errors import InputError


class Field(NamedTuple):
    """A field of an expression: its bounds, and names that stand for numbers from the lower one."""

    name: str
    low: int
    high: int
    names: str = ""


FIELDS: Final = (
    Field("second", 0, 59),
    Field("minute", 0, 59),
    Field("hour", 0, 23),
    Field("day", 1, 31),
    Field("month", 1, 12, "jan feb mar apr may jun jul aug sep oct nov dec"),
    Field("weekday", 0, 6, "sun mon tue wed thu fri sat"),
)
LEAP: Final = 2024  # a year with every date
FORM: Final = "say minute hour day month weekday, such as '0 3 * * 1'"


def parse_cron(text: str) -> str:
    """Return six fields for Kubeflow; of five, the second is 0.

    Raises:
        InputError: Kubeflow would refuse the expression, or it names no date that exists.
    """
    parts = text.split()
    if len(parts) not in (5, 6):
        raise InputError(f"--schedule {text!r}: not cron; {FORM}")
    parts = [*["0"][: 6 - len(parts)], *parts]
    *_, days, months, weekdays = (_read(part, field, text) for part, field in zip(parts, FIELDS, strict=True))
    every_weekday = len(weekdays) == FIELDS[-1].high + 1
    if every_weekday and not any(day <= monthrange(LEAP, month)[1] for day, month in product(days, months)):
        raise InputError(f"--schedule {text!r}: no such date exists; change the day or the month")
    return " ".join(parts)


def _read(part: str, field: Field, text: str) -> set[int]:
    """Return the values that a field stands for."""
    values = set[int]()
    for item in part.split(","):
        span, slash, step = item.partition("/")
        first, hyphen, last = span.partition("-")
        if span in ("*", "?"):
            low, high = field.low, field.high
        else:
            low = _read_value(first, field)
            high = _read_value(last, field) if hyphen else field.high if slash else low
        every = int(step) if step.isdecimal() else 1 - len(slash)
        if not (field.low <= low <= high <= field.high and every > 0):
            raise InputError(
                f"--schedule {text!r}: {item!r} is no {field.name} from {field.low} to {field.high}; {FORM}"
            )
        values.update(range(low, high + 1, every))
    return values


def _read_value(value: str, field: Field) -> int:
    """Return a number or the number of a name; -1 if it is neither."""
    if value.isascii() and value.isdecimal():
        return int(value[:9])
    names = field.names.split()
    return field.low + names.index(value.lower()) if value.lower() in names else -1
