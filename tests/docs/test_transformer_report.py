"""The numbers of reports/transformer/README.md are those of its tables, and its sentences hold in them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "reports" / "transformer"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("transformer_tables", FOLDER / "tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def numbers(line: str) -> list[list[float]]:
    """[value, low, high] of each cell that has an interval."""
    return [list(map(float, cell)) for cell in re.findall(r"([\d.]+) \[([\d.]+), ([\d.]+)\]", line)]


def test_every_line_of_the_tables_stands_on_the_page(tables: ModuleType) -> None:
    text = (FOLDER / "README.md").read_text()
    for title, lines in tables.page().items():
        assert "\n".join(lines) in text, title


def test_the_sentences_hold(tables: ModuleType) -> None:
    page = tables.page()
    ratios = [cell for line in page["ratios"] for cell in numbers(line)]
    assert len(ratios) == 12 and not any(low > 1 for _, low, _ in ratios), "no ratio is significantly above 1"
    assert [high < 1 for _, _, high in ratios] == [False, True, *[False] * 10], "one is below"
    one_step = {
        line.split(" | ")[0].strip("| "): [v for v, _, _ in numbers(line)] for line in page["quality, ema, NFE 1"]
    }
    for metric in ("precision", "density"):
        assert one_step[metric] == sorted(one_step[metric], reverse=True), "falls with beta"
    assert min(one_step["coverage"]) == one_step["coverage"][-1]
    assert one_step["recall"] == sorted(one_step["recall"])
    shares = [cell for title, lines in page.items() if "quality" in title for cell in numbers(lines[-1])]
    assert all(high < 0.5 for _, _, high in shares), "memorization is below 1/2"
    by_time = [numbers(line)[0] for line in page["loss variance by t"]]
    assert max(value for value, _, _ in by_time[:3]) < 1.3 and max(by_time)[0] == by_time[-1][0]
