"""Drawings as parts of a page: they take its font and colors, light or dark, and leave titles to it."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup, escape

from mfdiag.figures import CAPTION, GRAY, LEGEND, LINES, TITLE

__all__ = ["Drawing", "read_drawing"]

_COLORS = {
    "#ffffff": "--paper",
    "#e4e4e4": "--line",
    "#8fa9c8": "--bar",
    GRAY.lower(): "--muted",
    "#000000": "--ink",
    **{line.color.lower(): f"--series-{k}" for k, line in enumerate(LINES[:-1])},  # the last one is black
}


class Drawing(NamedTuple):
    """A drawing for a page, with the title and the caption that it had."""

    svg: Markup
    title: str
    caption: str


def read_drawing(path: Path, alternative: str) -> Drawing:
    """Reads an SVG file of `mfdiag.figures` for a page.

    Args:
        path: The file; its stem makes identifiers unique within the page.
        alternative: What the drawing shows, in words, for those who do not see it.

    Returns:
        The drawing cut to its panels, with colors as variables of the page's style.
    """
    text = path.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    head, body = text[: text.index(">") + 1], text[text.index(">") + 1 :]
    title, caption, crop = (_attribute(head, name) for name in ("data-title", "data-caption", "data-crop"))
    body = re.sub(r"<metadata>.*?</metadata>", "", body, count=1, flags=re.DOTALL)
    for name in (TITLE, CAPTION):
        body = re.sub(rf'<g id="{name}">.*?</g>', "", body, count=1, flags=re.DOTALL)
    if legend := _attribute(head, "data-legend"):
        to_the_left = float(crop.split()[0]) - float(legend)
        body = body.replace(f'<g id="{LEGEND}">', f'<g id="{LEGEND}" transform="translate({to_the_left:.1f})">')
    for prefix in ('id="', 'href="#', "url(#"):
        body = body.replace(prefix, f"{prefix}{path.stem}-")
    body = re.sub(r"font-family: [^;\"]*|(?<=px )'DejaVu Sans'[^;\"]*", "", body)
    body = re.sub(r"#[0-9a-f]{6}\b", lambda match: _themed(match[0]), body)
    body = re.sub(r"\n\s*", "\n", body)
    return Drawing(Markup(_head(crop, alternative) + body), title, caption)  # numbers, and text that is escaped


def _head(crop: str, alternative: str) -> str:
    """The opening tag: a picture as large as it was drawn."""
    width, height = crop.split()[2:]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{crop}" '
        f'width="{width}pt" height="{height}pt" role="img" aria-label="{escape(alternative)}">'
    )


def _themed(color: str) -> str:
    return f"var({_COLORS[color]})" if color in _COLORS else color


def _attribute(head: str, name: str) -> str:
    match = re.search(rf' {name}="([^"]*)"', head)
    return unescape(match[1]) if match else ""
