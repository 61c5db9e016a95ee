"""report.html: whole, self-contained, and of the same numbers as the tables."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from mfdiag import measure
from mfdiag.figures import save_figures
from mfdiag.models.networks.mlp import MLP
from mfdiag.numbers import significant
from mfdiag.reporting import write_page


class Page(HTMLParser):
    """Collects identifiers, references and the text of table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.outside: list[str] = []
        self.cells: list[str] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if found.get("id"):
            self.ids.append(str(found["id"]))
        source = found.get("src") or found.get("href") or found.get("xlink:href") or "#"
        if not source.startswith(("#", "data:")):
            self.outside.append(source)
        self._in_cell = tag == "td"
        if self._in_cell:
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.cells[-1] += data


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    return measure(MLP(2), "gaussian:2,0,1", samples=300, bins=(2, 2), beta=(0.0, 1.0))


def test_page_holds_everything(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    figures = save_figures(tables, tmp_path)
    page = Page(write_page(tables, figures, tmp_path).read_text(encoding="utf-8"))
    assert page.outside == []
    assert len(set(page.ids)) == len(page.ids)  # drawings do not share names
    assert {path.stem for path in figures} <= set(page.ids)
    variance = tables["variance"]
    chosen = variance[(variance["layer"] == "all") & variance["t_low"].isna() & (variance["quantity"] == "variance")]
    assert len(chosen) == 2
    for value in chosen["value"]:
        assert significant(value) in page.cells


def test_names_from_outside_are_escaped(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    hostile = {name: frame.assign(checkpoint="<script>alert(1)</script>") for name, frame in tables.items()}
    text = write_page(hostile, [], tmp_path).read_text(encoding="utf-8")
    assert "<script>" not in text and "&lt;script&gt;" in text
