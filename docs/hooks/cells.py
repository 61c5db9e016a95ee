"""Mends code inside of tables."""

from __future__ import annotations

import re
from typing import Any

CELL = re.compile(r"<td>(.*?)</td>", re.DOTALL)
CODE = re.compile(r"<code>[^<]{40,}</code>")


def on_page_content(content: str, **_: Any) -> str:
    """Shows `\\|`, which GitHub needs inside of tables, as `|`, and gives long code a wider column."""

    def cell(match: re.Match[str]) -> str:
        text = match[1].replace("\\|", "|")
        return f'<td class="wide">{text}</td>' if CODE.fullmatch(text.strip()) else f"<td>{text}</td>"

    return CELL.sub(cell, content)
