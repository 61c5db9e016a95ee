"""The measuring script of reports/question against a model that is exact, and on a grid of toy size."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from mfdiag.training.grid import load_grid
from mfdiag.training.trainer import train

ROOT = Path(__file__).parents[2]
GRID = """
axes: {loss.beta: [0, 1]}
data: "mixture:2,2"
model: {name: mlp, arguments: {dim: 2, hidden: 4, depth: 1}}
times: logit_normal:-0.4,1,r_ne_t=0.75
batch_size: 512
steps: 8
keep_every: 3
"""


@pytest.fixture(scope="module")
def scripts() -> Iterator[Any]:
    """`question` and the pages of benchmarks/, with few samples."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import question
        import question_page

        question._SAMPLES, question._QUALITY, question._SUBSAMPLE, question._GRADIENTS = 256, 256, 16, 256
        yield question, question_page
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


class ExactGaussian(nn.Module):
    """u(x, r, t) of N(0.5, 0.3^2 I): points keep their quantile."""

    def forward(self, x: Tensor, r: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        def std(time: Tensor) -> Tensor:
            return ((1 - time) ** 2 * 0.09 + time**2).sqrt()

        t, r = t.double(), torch.minimum(r.double(), t.double() - 1e-4)  # at r = t over a short interval
        end = (1 - r)[:, None] * 0.5 + (std(r) / std(t))[:, None] * (x.double() - (1 - t)[:, None] * 0.5)
        return ((x.double() - end) / (t - r)[:, None]).float()


def test_an_exact_model_has_no_error(scripts: Any) -> None:
    question, _ = scripts
    values = question.numbers(ExactGaussian(), question.truth_of("gaussian:2,0.5,0.3"))
    assert values["map_distance"] < 1e-4 and all(0 <= value < 1e-3 for value in values.values()), values


def test_tables_of_a_toy_grid(scripts: Any, tmp_path: Path) -> None:
    question, page = scripts
    (tmp_path / "grid.yaml").write_text(GRID)
    grid = tmp_path / "grid"
    train(load_grid(tmp_path / "grid.yaml"), grid, say=pytest.fail)
    out = {name: tmp_path / f"{name}.parquet" for name in ("models", "optimum", "bias")}
    for _ in range(2):  # the second finds everything done
        question.measure(grid, out["models"], final=False)
        question.optimum(grid, out["optimum"])
        question.bias(grid, out["bias"])
    frames = {name: pd.read_parquet(path) for name, path in out.items()}
    models = frames["models"]
    assert len(models) == 6 and models.groupby("step")["weights"].nunique().tolist() == [1, 2]
    assert np.isfinite(models["map_distance"]).all() and models["sliced_wasserstein"].notna().sum() == 2
    assert frames["optimum"]["step"].tolist() == [8, 3] and set(frames["bias"]["seed"]) == {0}
    assert models.apply(page.method_of, axis=1).tolist() == ["meanflow"] * 3 + ["ema_tangent"] * 3


def test_predictions_of_a_toy_grid(scripts: Any, tmp_path: Path) -> None:
    question, _ = scripts
    (tmp_path / "grid.yaml").write_text(
        GRID.replace("mixture:2,2", "two_moons").replace("keep_every: 3", "keep_every: 1")
    )
    grid, out = tmp_path / "grid", tmp_path / "predicted.parquet"
    train(load_grid(tmp_path / "grid.yaml"), grid, say=pytest.fail)
    question.predict(grid, out)
    frame = pd.read_parquet(out)
    methods = set(frame["estimator"].dropna())
    assert {"meanflow", "ema_tangent", "soflow", "terminal_velocity"} <= methods and "teacher" not in methods
    assert set(frame["step"]) == {1} and set(frame["batch_size"].dropna()) == set(question.BATCHES)
    question.measure(grid, tmp_path / "models.parquet", final=True)
    models = pd.read_parquet(tmp_path / "models.parquet")
    assert len(models) == 4 and np.isfinite(models.query("weights == 'ema'")["energy_distance"]).all()


def test_best_beta_and_intervals(scripts: Any) -> None:
    _, page = scripts
    betas = np.linspace(0, 1, 5)
    logs = np.stack([(betas - 0.4) ** 2 + noise for noise in (0, 0.1, 0.2)])
    assert page.best_beta(logs, betas) == pytest.approx(0.4)
    assert page.horizon(512, 0.99, "ema") == pytest.approx(51_200) and page.horizon(512, 0.99, "raw") == 5120
    optima = pd.DataFrame({"optimum": [1.0, 3.0], "critical_batch": [100.0, 100.0]})
    np.testing.assert_allclose(page.predicted_beta(optima, 100), [0.5, 1])
    interval = page.student([1.0, 2.0, 3.0])
    assert interval.text() == "2.00 [-0.48, 4.48]" and interval.excludes(5) and not interval.excludes(0)


def test_the_page_of_the_transformer_says_what_its_tables_say(scripts: Any) -> None:
    import transformer_page

    written = ROOT / "reports" / "transformer" / "README.md"
    assert transformer_page.transformer_text() == written.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="expected reports/transformer"):
        transformer_page.write(ROOT)


def test_beta_matters_where_n0_is_smallest_or_averages_are_longest(scripts: Any) -> None:
    """A sentence of reports/question about the cells whose distance changes by more than 4 %."""
    _, page = scripts
    optima = pd.concat([page.read("question", name) for name in page.AVERAGING["mixture:2,8"][1]])
    n0 = np.log(optima[optima["step"] == optima["steps"]].set_index(page.SETTING)["critical_batch"])
    smallest = n0.groupby(level=page.SETTING).mean().nsmallest(4).index
    for cell in page.averaging_cells("map_distance"):
        batch, decay, rate, _ = cell.key
        if abs((cell.logs[1] - cell.logs[0]).mean()) > np.log(1.04):
            assert (batch, rate, decay) in smallest or decay == 0.9999


def test_words_about_the_recipe(scripts: Any) -> None:
    """Sentences of reports/question about what beats beta = 0 in equal steps and in equal time."""
    import transformer_page

    _, page = scripts
    for place in (page.DEEP, page.AGAIN):
        assert page.against("map_distance", page.ANNEALED, page.ZERO, place).high < 1
    assert page.ANNEALED in page.winners(page.AGAIN).split("; ") and page.winners(page.PLANE) == "none"
    assert not any(name in page.winners(place) for name in page.CELLS for place in (page.PLANE, page.DEEP))
    for quality in page.QUALITIES:
        assert not page.in_equal_time(quality).excludes(1)
        assert not page.against(quality, page.ANNEALED, page.ZERO).excludes(1)
        assert page.against(quality, page.RISING, page.ZERO, page.AGAIN).low > 1
        for base in (page.ZERO, page.ONE):
            assert page.against(quality, page.ANNEALED, base, page.LARGE).high < 1
    assert page.in_equal_time("sliced_wasserstein", page.LARGE).high < 1
    digits = transformer_page.annealed().values()
    assert len(digits) == 8 and not any(all(ratio.high < 1 for ratio in ratios) for ratios in digits)
    density = page.with_density(page.ZERO)
    assert density in page.winners(page.DEEP).split("; ") and density not in page.winners(page.AGAIN).split("; ")


def test_words_about_the_interval_defect(scripts: Any) -> None:
    """It orders ways of training as quality does in 16 dimensions, rises with beta on digits, and falls on MNIST."""
    _, page = scripts
    import transformer_page

    for place in (page.DEEP, page.AGAIN):
        velocity, defect = (page.ways_correlation(name, "map_distance", place) for name in page.DIAGNOSTICS)
        assert velocity.high < defect.low
    changes = {}
    for data in ("digits", "mnist"):
        rows = transformer_page.defects(data)
        for weights, part in rows[rows["step"] == rows["step"].max()].groupby("weights"):
            last = part.pivot(index="model", columns="beta", values="value")
            changes[data, weights] = page.student(last[1.0] - last[0.0])
    assert changes["digits", "ema"].low > 0 and changes["digits", "raw"].low > 0
    assert changes["mnist", "ema"].high < 0 and not changes["mnist", "raw"].excludes(0)
    one_step = [order for order in transformer_page.orders() if order.name.endswith(", 1")]
    assert len(one_step) == 4 and not any(order.last[1.0].excludes(1) for order in one_step)


def test_words_about_the_samples_seen(scripts: Any) -> None:
    _, page = scripts
    for names, _ in page.AVERAGING.values():
        models = pd.concat([page.read("question", name) for name in names])
        [seen] = (models["batch_size"] * models["steps"]).unique()
        assert seen == {2: 2_097_152, 16: 786_432}[int(models["data"].iloc[0].split(":")[1].split(",")[0])]
    [longer] = page.read("question", "dimensions_time")["steps"].unique()
    [steps] = page.read("question", "dimensions_confirm")["steps"].unique()
    assert longer / steps == 5 / 4


def test_cells_of_the_sweeps_are_those_measured(scripts: Any) -> None:
    _, page = scripts
    for name in ("cells", "16d_tangent"):
        specs = [cell.spec for cell in load_grid(ROOT / "sweeps" / f"question_{name}.yaml")]
        rules = {json.dumps({"cells": spec.loss.beta_by.cells}) for spec in specs if spec.loss.beta_by}
        rules = {rule for rule in rules if "null" not in rule}
        assert rules and rules <= set(page.cell_rules(specs[0].data, specs[0].batch_size))


def test_orders_of_a_distance(scripts: Any) -> None:
    """Steps at which the mean over models rises, or falls, with each beta; ratios are paired."""
    import transformer_page as page

    columns = pd.MultiIndex.from_product([page.BETAS, [0.0, 1.0, 2.0]], names=["beta", "model"])
    noise = np.tile([1.0, 2.0, 3.0], 4)
    rising, falling = np.repeat([1.0, 1.1, 1.2, 1.3], 3) * noise, np.repeat([1.3, 1.2, 1.1, 1.0], 3) * noise
    frame = pd.DataFrame([rising, falling, np.ones(12)], index=[10, 20, 30], columns=columns)
    order = page.Order("pixels, raw, 1", frame)
    assert order.steps() == [10] and order.steps(-1) == [20] and page.listed(order.steps()) == "10"
    assert page.ratio_at(frame.loc[10], 1.0) == pytest.approx((1.3, 1.3, 1.3))
    assert page.verdict([order]) == "not recovered, not even in the means"
    last_rises = page.Order("pixels, raw, 1", frame.iloc[:1])
    assert (
        page.verdict([last_rises, order])
        == "recovered, beyond the noise at beta = 1, in 1 of 2 (space, weights, NFE): pixels, raw, 1"
    )


def test_findings_of_the_readme_stand_on_the_pages() -> None:
    """Every interval of the three findings."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = text[text.index("Three findings of trainings") :]
    for finding in text[: text.index("\n\n", text.index("\n\n") + 2)].split("\n- ")[1:]:
        page = (ROOT / re.findall(r"\((reports/\w+/README.md)\)", finding)[0]).read_text(encoding="utf-8")
        intervals = re.findall(r"-?\d+\.\d+ \[[^]]+\]", finding)
        assert intervals and all(interval in page for interval in intervals), finding


@pytest.mark.parametrize("report", ["question", "family"])
def test_pages_say_what_their_tables_say(scripts: Any, report: str) -> None:
    _, page = scripts
    assert page.PAGES[report]() == (ROOT / "reports" / report / "README.md").read_text(encoding="utf-8")


def test_report_rebuilds_a_page(scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, page = scripts
    folder = tmp_path / "family"
    folder.mkdir()
    with pytest.raises(ValueError, match="expected reports/question"):
        page.write(folder)
    monkeypatch.setattr(page, "REPORTS", tmp_path)
    page.read.cache_clear()
    for source in (ROOT / "reports" / "family").glob("*.parquet"):
        shutil.copy(source, folder)
    page.write(folder)
    page.read.cache_clear()
    assert (folder / "README.md").read_text() == (ROOT / "reports" / "family" / "README.md").read_text()
    assert (folder / "ranking.png").stat().st_size > 10_000


def test_words_about_64_dimensions(scripts: Any) -> None:
    """Which beta is ahead at which batch, and where the loss rises most."""
    _, page = scripts
    cells = page.large_cells()
    for cell in cells:
        steps = cell.logs.diff(axis=1).iloc[:, 1:].mean()
        if cell.quality == "map_distance" and cell.batch_size == 256:
            assert (steps > 0).all()
        elif cell.quality == "map_distance":
            assert 0.99 < cell.ratio(0.4, 0.0).value < 1 < cell.ratio(1.0, 0.4).value
        elif cell.batch_size == 1024:
            assert cell.ratio(1.0, 0.0).high < 1 and cell.ratio(1.0, 0.4).high < 1
    assert {cell.batch_size for cell in cells} == {256, 1024}
    losses = page.large_losses()
    growth = np.log(losses[4] / losses[1]).groupby(level=["batch_size", "learning_rate", "beta"]).mean()
    assert (growth > 0).all()
    assert all(beta == 1 for *_, beta in growth.groupby(level=[0, 1]).idxmax())
