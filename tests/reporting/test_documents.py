"""Reports as Markdown and LaTeX, the counterparts of the paper's tables, and results in a notebook."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from figure_tables import TABLES
from matplotlib.figure import Figure

import mfdiag
from mfdiag import InputError
from mfdiag.figures import save_figures
from mfdiag.models.networks.mlp import MLP
from mfdiag.reporting.documents import as_booktabs, as_markdown, escape_tex, write_document
from mfdiag.reporting.paper import paper_tables, write_paper
from mfdiag.reporting.rows import TextTable
from mfdiag.tables.store import read_table

REPORTS = Path(__file__).parents[2] / "reports" / "synthetic"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, pd.DataFrame], list[Path]]:
    """A folder with two tables and their figures in every format."""
    out = tmp_path_factory.mktemp("documents")
    tables = {name: TABLES[name]() for name in ("variance", "times")}
    return out, tables, save_figures(tables, out)


@pytest.mark.parametrize("kind", ["md", "tex"])
def test_a_document_has_what_the_page_has(folder: tuple[Path, dict[str, pd.DataFrame], list[Path]], kind: str) -> None:
    out, tables, figures = folder
    text = write_document(tables, figures, out, kind).read_text(encoding="utf-8")
    for part in ("Is it noisy?", "Where?", "700 [660, 740]", "Gradient variance by layer"):
        assert part in text
    suffix = "svg" if kind == "md" else "pdf"
    linked = re.findall(rf"figures/\w+\.{suffix}", text)
    assert len(linked) == len(figures) // 3 and all((out / file).exists() for file in linked)
    if kind == "tex":
        assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 3
        assert text.count("{") == text.count("}") and not re.search(
            r"(?<!\\)[#$~^]", text.partition(r"\begin{document}")[2]
        )
        for begun in set(re.findall(r"\\begin\{(\w+)\}", text)):
            assert text.count(rf"\begin{{{begun}}}") == text.count(rf"\end{{{begun}}}"), begun
    else:
        tables_of = [block for block in text.split("\n\n") if block.startswith("|")]
        assert all(len({line.count(" |") for line in block.splitlines()}) == 1 for block in tables_of)


def test_cells_cannot_break_a_table() -> None:
    table = TextTable("a", "a", "", ["key", "value"], [["x|y_z & 50 %", "1"]] * 61, 1)
    assert r"x\|y_z" in as_markdown(table) and "1 more rows: see the table." in as_markdown(table)
    assert r"x|y\_z \& 50 \% & 1 \\" in as_booktabs(table)
    assert escape_tex("a\\b{c}^~#$") == r"a\textbackslash{}b\{c\}\textasciicircum{}\textasciitilde{}\#\$"


def test_the_papers_tables_have_the_numbers_of_the_committed_page(tmp_path: Path) -> None:
    for name in ("anchor", "plain"):
        (tmp_path / name).mkdir()
        shutil.copy(REPORTS / name / "grid.parquet", tmp_path / name)
    written = write_paper([tmp_path / "anchor", tmp_path / "plain"], tmp_path)
    assert written == [tmp_path / "paper.md", tmp_path / "paper.tex"]
    text = written[0].read_text(encoding="utf-8")
    committed = (REPORTS / "README.md").read_text(encoding="utf-8")
    for value in ("1.67 [1.26, 2.21]", "2.55 [1.71, 3.79]", "1.73 [1.29, 2.32]", ".0193 to .0186"):
        assert value in committed and value.replace(".0193 to .0186", "0.0193 to 0.0186") in text
    tables = paper_tables({"anchor": read_table("grid", REPORTS / "anchor")})
    assert [table.columns for table in tables[:2]] == [["data set", "anchor"]] * 2
    assert tables[0].rows[-1][0] == "all" and len(tables[0].rows) == 7
    with pytest.raises(InputError, match="expects grids of models"):
        write_paper([], tmp_path)


def test_results_show_themselves_in_a_notebook() -> None:
    results = mfdiag.measure(MLP(2, 4, 1), "gaussian:2,0,1", samples=128, bins=(1, 2), beta=(0, 1), tables=["variance"])
    shown = results._repr_html_()
    assert shown.count("<table>") == 1 and "The largest 1 % of samples carry" in shown and "<script" not in shown
    assert results.figures and all(isinstance(results.figure(name), Figure) for name in results.figures)
    with pytest.raises(InputError, match="layers"):
        results.figure("layer")
