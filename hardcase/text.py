"""Print text that users give: keys, ids and paths of a manifest, names of files."""

import logging


def escape_controls(text: str) -> str:
    """Return text with its control and format characters escaped as in Python, apart from line ends and tabs.

    A terminal would obey them: a key of a manifest could rename its window, or overwrite the lines above.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in "\n\t" else repr(letter)[1:-1] for letter in text)


class PrintableFormatter(logging.Formatter):
    """Formats log records without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as printable text."""
        return escape_controls(super().format(record))
