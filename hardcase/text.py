"""Print text that users give: keys, ids and paths of a manifest, names of files, addresses."""

import logging
import re
from typing import Final

PASSWORD: Final = re.compile(r"(?<=://)([^\s@/:]*:\S*|[^\s@/]*)@")  # SQLAlchemy takes any character in a password


def hide_passwords(text: str) -> str:
    """Return text without the user and password of the URLs in it."""
    return PASSWORD.sub("***@", text) if "://" in text else text


def make_printable(text: str) -> str:
    """Return text without passwords, and with control and format characters escaped as in Python, not line ends, tabs.

    A terminal would obey them: a key of a manifest could rename its window, or overwrite the lines above.
    """
    text = hide_passwords(text)
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in "\n\t" else repr(letter)[1:-1] for letter in text)


class PrintableFormatter(logging.Formatter):
    """Format log records without control characters and passwords."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as printable text."""
        return make_printable(super().format(record))
