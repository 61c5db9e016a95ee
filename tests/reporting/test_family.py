"""The pages of the estimators: those that are committed are those the registry and the numbers give."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mfdiag.estimators import estimators
from mfdiag.reporting.family import FOLDER, pages

ROOT = Path(__file__).parents[2]


def test_the_committed_pages_are_the_generated_ones() -> None:
    found = pages(ROOT / FOLDER)
    committed = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / FOLDER).glob("*.md")}
    assert committed == found, "run `python -m mfdiag.reporting.family`"
    assert found.keys() == {f"{name}.md" for name in [*estimators(), "index"]}


def test_every_page_says_what_the_registry_says() -> None:
    index = pages(ROOT / FOLDER)["index.md"]
    for name, estimator in estimators().items():
        page = pages(ROOT / FOLDER)[f"{name}.md"]
        assert estimator.formula in page and estimator.paper in page and f"| {estimator.needs.cost} |" in page
        assert f"[`{name}`]({name}.md)" in index


def test_numbers_are_those_of_the_table() -> None:
    measured = pd.read_csv(ROOT / FOLDER / "measured.csv")
    page = pages(ROOT / FOLDER)["alpha_flow.md"]
    for row in measured[
        (measured["estimator"] == "alpha_flow") & (measured["quantity"] == "variance_ratio")
    ].itertuples():
        assert f"{row.value:.3g} [{row.ci_low:.3g}, {row.ci_high:.3g}]" in page
    lacking = {e.name for e in estimators().values() if e.template or "head" in e.needs.networks}
    assert set(measured["estimator"]) == set(estimators()) - lacking | {"mixture"}
