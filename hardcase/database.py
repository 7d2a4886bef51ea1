"""URIs of SQLite databases, as MLflow takes them, for paths with any printable characters."""

import re
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

URI: Final = re.compile(r"sqlite(?:\+pysqlite)?:///(/[^?]*)")


def database_uri(path: Path) -> str:
    """Return the URI of a database in a file.

    SQLAlchemy decodes the path (2.1.9, engine/url.py:_parse_url). MLflow does not before it creates the folder that a
    URI beginning with `sqlite:///` names (3.17.2, store/db/utils.py:313). It creates none where the driver is named.
    """
    encoded = re.sub("[%?#]", lambda odd: quote(odd[0]), str(path))
    return f"sqlite{'' if encoded == str(path) else '+pysqlite'}:///{encoded}"


def database_path(uri: str) -> Path | None:
    """Return the file of a database, or None where the URI names no absolute path of one."""
    match = URI.fullmatch(uri)
    return Path(unquote(match[1])) if match else None
