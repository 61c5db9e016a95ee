from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest

from mfdiag.errors import InputError
from mfdiag.figures import FIGURES, save_figures
from mfdiag.figures.select import select
from mfdiag.figures.style import number

Make = Callable[..., pd.DataFrame]


def test_every_figure_with_data_is_saved_as_svg_and_png(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    tables = {name: request.getfixturevalue(name)() for name in {kind.table for kind in FIGURES.values()}}
    before = dict(mpl.rcParams)
    written = save_figures(tables, tmp_path)
    assert written == [tmp_path / "figures" / f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png")]
    assert sorted((tmp_path / "figures").iterdir()) == sorted(written)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written if path.suffix == ".png")
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
    assert "Gradient variance, bias and mean squared error against β" in text and "<dc:date>" not in text


def test_nothing_overlaps_and_nothing_is_cut(request: pytest.FixtureRequest) -> None:
    steps = (3000, 12_000)
    tables = {name: request.getfixturevalue(name)(steps) for name in {kind.table for kind in FIGURES.values()}}
    for name, kind in FIGURES.items():
        figure = kind.draw(tables[kind.table])
        figure.draw_without_rendering()
        boxes = [axes.get_tightbbox() for axes in figure.axes]
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


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01512, "0.0151"), (166_667.0, "167,000"), (-1234.0, "−1,230"), (2.5e9, "2.5e+09"), (float("inf"), "∞")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text
