"""Data Docs as one page that needs no network and contains no time.

Sections are rendered by the templates of Great Expectations. The frame around them is ours: GX's frame loads styles,
scripts and images from the network, links to pages of a whole site, and carries the time and random ids.
"""

from copy import deepcopy
from html import escape
from pathlib import Path
from typing import Any, Final

COLLAPSE: Final = "{% for block in content_block.collapse %}{{ block | render_content_block }}{% endfor %}"


def page(checked: Any, snapshot: str, rows: int, failures: list[str]) -> str:
    """Return the page as HTML: `checked` is GX's result of the suite, `failures` a sentence for each failure."""
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view.view import DefaultJinjaPageView
    from jinja2 import ChoiceLoader, DictLoader

    checked = deepcopy(checked)
    for result in checked.results:
        # GX 1.24 writes unexpected values into the page without escaping, and ids and groups are the user's text.
        result.result = _escape(result.result)
    document = ValidationResultsPageRenderer().render(checked)
    # Only the statistics of the overview stay: the rest is links to other pages, the clock and batch ids.
    overview = document.sections[0]
    overview.content_blocks = overview.content_blocks[1:2]
    frame = Path(__file__).with_name("validation.html.j2").read_text(encoding="utf-8")
    view: Any = DefaultJinjaPageView()
    view.env.loader = ChoiceLoader([DictLoader({"page.j2": frame, "collapse.j2": COLLAPSE}), view.env.loader])
    return str(view.render(document, snapshot=snapshot, rows=rows, failures=failures))


def _escape(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escape(item) for item in value]
    return escape(value) if isinstance(value, str) else value
