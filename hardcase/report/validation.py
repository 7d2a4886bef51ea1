"""Data Docs as one page that needs no network and contains no time.

Sections are rendered by the templates of Great Expectations. The frame around them is ours: GX's frame loads styles,
scripts and images from the network, links to pages of a whole site, and carries the time and random ids.
"""

from copy import deepcopy
from html import escape
from typing import Any, Final

FRAME: Final = """<!DOCTYPE html>
<html lang="en"><head><meta charset="UTF-8"><meta name="viewport" content="width=device-width, initial-scale=1.0">
<link rel="icon" href="data:,"><title>Data Docs of snapshot {{ snapshot[:12] | e }}</title><style>
*{box-sizing:border-box}
body{margin:0;font:15px/1.5 system-ui,sans-serif;color:#1c1e21;background:#f4f5f7}
main{max-width:1080px;margin:0 auto;padding:24px 16px}
h1{margin:0 0 8px;font-size:24px} h5,h6{margin:0;font-size:16px} i{font-style:normal}
code,.badge,li{overflow-wrap:anywhere}
.lead,.ge-section{background:#fff;border:1px solid #dcdfe4;border-radius:6px;padding:16px;margin:0 0 12px}
.lead{border-left:6px solid #1a7f37} .lead.failed{border-left-color:#c62828}
.alert{margin-bottom:8px} .show-scrollbars{overflow:auto} [hidden]{display:none}
table{width:100%;border-collapse:collapse;table-layout:fixed}
td,th{text-align:left;vertical-align:top;padding:6px 8px;border-top:1px solid #e6e8eb}
.ge-section tr>:first-child{width:15%} .ge-section tr>:nth-child(3){width:28%}
#section-1 tr>:first-child{width:auto}
.badge{background:#e9ebee;border-radius:4px;padding:1px 5px;font-size:13px}
.text-success{color:#1a7f37} .text-danger,.text-warning{color:#c62828}
.fa-check-circle:before{content:"\\2714  met"} .fa-times:before{content:"\\2718  not met"}
.fa-exclamation-triangle:before{content:"\\26A0  broken"}
@media (prefers-color-scheme:dark){
body{color:#e6e6e6;background:#16181b} .badge{background:#343a40} td,th{border-color:#34383d}
.lead,.ge-section{background:#1f2226;border-color:#3a3f45}
.lead{border-left-color:#4cc26b} .lead.failed{border-left-color:#ff7b72}
.text-success{color:#4cc26b} .text-danger,.text-warning{color:#ff7b72}}
</style></head><body><main>
<div class="lead{{ " failed" if failures }}">
<h1>The snapshot's data {{ "failed" if failures else "passed" }}</h1>
<p>Data Docs of <code>{{ snapshot | e }}</code>, {{ rows }} rows.</p>
{% if failures %}<ul>{% for failure in failures %}<li>{{ failure | e }}</li>{% endfor %}</ul>{% endif %}</div>
{% for section in sections %}{% set section_loop = loop %}{% include "section.j2" %}{% endfor %}
</main></body></html>
"""
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
    view: Any = DefaultJinjaPageView()
    view.env.loader = ChoiceLoader([DictLoader({"page.j2": FRAME, "collapse.j2": COLLAPSE}), view.env.loader])
    return str(view.render(document, snapshot=snapshot, rows=rows, failures=failures))


def _escape(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escape(item) for item in value]
    return escape(value) if isinstance(value, str) else value
