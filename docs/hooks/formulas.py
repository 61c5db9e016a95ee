"""Turns formulas into MathML when the site is built, so that a page needs no script to show them."""

from __future__ import annotations

import html
import re
from typing import Any

from math_core import LatexError, LatexToMathML
from mkdocs.exceptions import PluginError

CONVERTER = LatexToMathML(fancy_error=False)
FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)  # as pymdownx.arithmatex marks them
TITLE = re.compile(r"\\\((.*?)\\\)", re.DOTALL)  # in the table of contents, where the marks are lost
PRIME = re.compile(r"<msup>(<mi>[^<]*</mi>)<mo>([′″‴])</mo></msup>")


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Replaces the formulas of one page, in its headings too."""
    items = list(page.toc)
    while items:
        item = items.pop()
        item.title = TITLE.sub(lambda match: mathml(match[1], page), item.title)
        items += item.children
    return FORMULA.sub(lambda match: mathml(match[2].strip()[2:-2], page, match[1] == "div"), content)


def mathml(latex: str, page: Any, block: bool = False) -> str:
    """MathML of one formula. Raises PluginError where it is not LaTeX, or holds an unknown command."""
    latex = html.unescape(latex).strip()
    try:
        shown = CONVERTER.convert_with_local_state(latex, displaystyle=block)
    except LatexError as error:
        raise PluginError(f"{page.file.src_uri}: expected LaTeX, got {latex!r}: {error}") from error
    shown = PRIME.sub(r'<mrow>\1<mo lspace="0" rspace="0">\2</mo></mrow>', shown)  # the glyph is raised already
    return f'<div class="formula">{shown}</div>' if block else shown
