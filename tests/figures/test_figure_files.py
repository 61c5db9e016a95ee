from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest

from mfdiag.errors import InputError
from mfdiag.figures import drawable, figures, save_figures
from mfdiag.figures._select import select

COURSES = {"variance_course", "coefficient_course"}  # of three steps or more
Make = Callable[..., pd.DataFrame]


def test_every_figure_with_data_is_saved_as_svg_pdf_and_png(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    steps = (1000, 3000, 12_000)
    tables = {name: request.getfixturevalue(name)(steps) for name in {figure.table for figure in figures().values()}}
    before = dict(mpl.rcParams)
    written = save_figures(tables, tmp_path)
    assert written == [tmp_path / "figures" / f"{name}.{kind}" for name in figures() for kind in ("svg", "pdf", "png")]
    assert sorted((tmp_path / "figures").iterdir()) == sorted(written)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written if path.suffix == ".png")
    assert all(path.read_bytes().startswith(b"%PDF") for path in written if path.suffix == ".pdf")
    assert dict(mpl.rcParams) == before


def test_figures_without_data_are_left_out(coefficient: Make, tmp_path: Path) -> None:
    frame = coefficient()
    written = save_figures({"coefficient": frame[frame["t_low"].isna()]}, tmp_path)
    assert {path.stem for path in written} == {"batch_optimum"}
    assert save_figures({}, tmp_path) == []


def test_svg_is_deterministic_and_its_text_is_text(sweep: Make, tmp_path: Path) -> None:
    first, second = (save_figures({"sweep": sweep()}, tmp_path / name)[0] for name in ("a", "b"))
    text = first.read_text(encoding="utf-8")
    assert text == second.read_text(encoding="utf-8")
    assert first.with_suffix(".pdf").read_bytes() == second.with_suffix(".pdf").read_bytes()
    assert "Gradient variance, bias and mean squared error against β" in text and "<dc:date>" not in text


@pytest.mark.parametrize("steps", [(3000, 12_000), (1000, 3000, 12_000)])
def test_nothing_overlaps_and_nothing_is_cut(request: pytest.FixtureRequest, steps: tuple[int, ...]) -> None:
    tables = {name: request.getfixturevalue(name)(steps) for name in {figure.table for figure in figures().values()}}
    drawn = {spec.name: spec for spec in drawable(tables)}
    assert {name for name in figures() if name not in drawn} == (COURSES if len(steps) < 3 else set())
    for name, spec in drawn.items():
        figure = spec.draw(tables[spec.table])
        figure.draw_without_rendering()
        boxes = [axes.get_tightbbox() for axes in figure.axes if axes.get_visible()]
        page = figure.bbox
        for i, box in enumerate(boxes):
            assert box is not None and page.x0 <= box.x0 and box.x1 <= page.x1 and box.y1 <= page.y1, name
            assert not any(other is not None and box.shrunk(0.99, 0.99).overlaps(other) for other in boxes[i + 1 :]), (
                name
            )


def test_select_keeps_the_last_checkpoint_of_each_setting(sweep: Make) -> None:
    grid = pd.concat([sweep((1, 2, 3)).assign(seed=seed) for seed in (0, 1)])
    chosen = select(grid)
    assert [label for label, _ in chosen.items] == ["seed 0", "seed 1"]
    assert "step 3" in chosen.context and chosen.note == "Showing the last 2 of 6 models and settings"


def test_select_labels_by_what_differs(sweep: Make) -> None:
    frame = pd.concat([sweep().assign(dataset=name, checkpoint=name) for name in ("moons", "rings")])
    chosen = select(frame)
    assert [label for label, _ in chosen.items] == ["moons", "rings"] and chosen.note == ""
    assert chosen.context == "step 12,000, meanflow, proxy ema, weighting none, seed 0"
    with pytest.raises(InputError, match="no rows to draw"):
        select(frame.iloc[:0])


def test_asking_what_can_be_drawn_imports_no_heavy_library(sweep: Make, tmp_path: Path) -> None:
    path = tmp_path / "sweep.parquet"
    sweep().to_parquet(path)
    code = (
        "import sys, pandas; from mfdiag.figures import drawable\n"
        f"print([figure.name for figure in drawable({{'sweep': pandas.read_parquet({str(path)!r})}})])\n"
        "print(sorted({'matplotlib', 'scipy', 'torch'} & sys.modules.keys()))"
    )
    lines = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.splitlines()
    assert lines == ["['bias_variance', 'plane']", "[]"]


def test_figures_are_named_after_their_files_and_the_docs_list_them() -> None:
    for name, figure in figures().items():
        assert importlib.import_module(f"mfdiag.figures.{name}").FIGURE is figure
    root = Path(__file__).parents[2]
    pages = [path.read_text(encoding="utf-8") for path in (*root.glob("*.md"), *(root / "docs").rglob("*.md"))]
    documented = {line for page in pages for line in page.splitlines()}
    assert {f"| `{name}` | {figure.says} |" for name, figure in figures().items()} <= documented
    assert drawable({}) == []
