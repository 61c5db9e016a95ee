from __future__ import annotations

import re
from pathlib import Path

from mfdiag.tables.docs import PAGE, markdown
from mfdiag.tables.schema import STATUSES, TABLES

ROOT = Path(__file__).parents[2]


def test_the_committed_page_is_the_generated_one() -> None:
    committed = (ROOT / PAGE).read_text(encoding="utf-8")
    assert committed == markdown(), "run `python -m mfdiag.tables.docs`"


def test_every_name_is_on_the_page_and_rows_have_as_many_cells_as_their_head() -> None:
    page = markdown()
    for entry in TABLES.values():
        assert f"## {entry.name}\n" in page
        assert all(f"`{name}`" in page for name in (*entry.quantities, *(c.name for c in entry.columns), *STATUSES))
    width = 0
    for line in page.splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line))
        width = (width or cells) if line.startswith("|") else 0
        assert not line.startswith("|") or cells == width, line
