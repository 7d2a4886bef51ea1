"""MkDocs hooks: links to files outside `docs/`, and a check that a page loads nothing from another host."""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page

DOCS = Path(__file__).parent.resolve()
LINK = re.compile(r"\[([^\]]*)\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")
LOADED = re.compile(
    r'<(?:script|img|iframe|source)\b[^>]*\bsrc="https?://|<link\b[^>]*rel="stylesheet"[^>]*href="https?://'
)


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Point links that leave `docs/` at the repository, which HARDCASE_REPOSITORY names, or keep their text alone."""
    repository = os.environ.get("HARDCASE_REPOSITORY", "").rstrip("/")
    folder = Path(page.file.abs_src_path or "").parent

    def replace(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        if target.is_relative_to(DOCS):
            return link[0]
        if not target.exists():
            raise PluginError(f"{page.file.src_uri}: {link[2]} does not exist")
        path = target.relative_to(DOCS.parent).as_posix()
        return f"[{link[1]}]({repository}/blob/main/{path}{link[3] or ''})" if repository else link[1]

    return LINK.sub(replace, markdown)


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Refuse a page that loads a script, a style or an image from another host."""
    if loaded := LOADED.search(output):
        raise PluginError(f"{page.file.src_uri}: loads {loaded[0]}…; the site works without a network")
    return output
