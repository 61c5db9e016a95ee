"""Sentences are made of the tables' own numbers, and say so where those are in doubt."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

import mfdiag
from mfdiag.figures.style import number, share
from mfdiag.models.networks.mlp import MLP
from mfdiag.reporting import findings

Tables = dict[str, pd.DataFrame]


@pytest.fixture(scope="module")
def tables() -> Tables:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MLP(2, hidden=8, depth=1)
    return mfdiag.measure(model, "gaussian:2,0,1", samples=640, bins=(1, 2), beta=(0, 0.5, 1), batch_sizes=(4, 256))


def with_interval(row: pd.Series) -> str:
    return f"{number(row['value'])} [{number(row['ci_low'])}, {number(row['ci_high'])}]"


def changed(frame: pd.DataFrame, quantity: str, **values: object) -> pd.DataFrame:
    frame = frame.copy()
    frame.loc[frame["quantity"] == quantity, list(values)] = list(values.values())
    return frame


def test_a_sentence_for_each_table(tables: Tables) -> None:
    ((subject, sentences),) = findings(tables)
    assert subject == "model" and len(sentences) == 3
    assert all(sentence[0].isupper() and sentence.endswith(".") for sentence in sentences)
    for name in tables:
        assert len(findings({name: tables[name]})) == (name != "samples")


def test_numbers_are_those_of_the_tables(tables: Tables) -> None:
    sweep, variance, coefficient = findings(tables)[0].sentences
    rows = tables["sweep"].query("space == 'gradient' and layer == 'all' and t_low.isna() and quantity == 'variance'")
    for beta in (0, 1):
        assert f"{with_interval(rows[rows['beta'] == beta].iloc[0])} at beta = {beta}" in sweep
    assert "least of 3 values of beta" in sweep and "for a batch of 4" in sweep and "for a batch of 256" in sweep

    rows = tables["variance"].query("estimator == 'meanflow'")
    top = rows[rows["quantity"] == "top1_share"].iloc[0]
    assert f"{share(top['value'])} [{share(top['ci_low'])}, {share(top['ci_high'])}] (meanflow)" in variance
    layers = rows.query("quantity == 'variance' and layer != 'all' and t_low.isna()").set_index("layer")["value"]
    assert f"layer {layers.idxmax()} has {share(layers.max() / layers.sum())} of the variance" in variance

    rows = tables["coefficient"].query("form == 'gradient' and role == 'tangent' and layer == 'all' and t_low.isna()")
    best = rows[(rows["quantity"] == "optimum") & rows["batch_size"].isna()].iloc[0]
    assert f"beta* = {with_interval(best)}" in coefficient


def test_the_gain_of_a_density_is_that_of_fresh_samples() -> None:
    table = mfdiag.measure(MLP(2, hidden=8, depth=1), "gaussian:2,0,1", tables=["times"], samples=640, bins=(1, 1))
    gains = table["times"].set_index("quantity")
    ((_, (sentence,)),) = findings(table)
    assert f"variance by {with_interval(gains.loc['measured_gain'])} on fresh samples" in sentence
    assert sentence.endswith(f"predicted was {with_interval(gains.loc['predicted_gain'])}.")


def test_doubt_is_told(tables: Tables) -> None:
    negative = changed(tables["coefficient"], "critical_batch", value=-5.0, status="negative_estimate")
    assert "(negative_estimate)" in findings({"coefficient": negative})[0].sentences[0]
    negative = changed(tables["sweep"], "mse", value=-1.0)
    assert "not resolved" in findings({"sweep": negative})[0].sentences[0]
    few = changed(tables["variance"], "top1_share", status="too_few_samples")
    assert "(too_few_samples)" in findings({"variance": few})[0].sentences[0]


def test_each_model_and_setting_has_its_own(tables: Tables) -> None:
    one = tables["sweep"].assign(checkpoint="a", step=pd.array([10_000] * len(tables["sweep"]), dtype="Int64"))
    two = one.assign(step=one["step"] * 2)
    other = one.assign(proxy="exact")
    subjects = [subject for subject, _ in findings({"sweep": pd.concat([one, two, other])})]
    assert subjects == ["a, step 10,000, proxy self", "a, step 20,000, proxy self", "a, step 10,000, proxy exact"]


def test_tables_may_lack_what_a_sentence_needs(tables: Tables) -> None:
    cells = {name: frame[frame["t_low"].notna()] for name, frame in tables.items() if name != "samples"}
    assert findings(cells) == []
    single = tables["sweep"].query("beta == 0.5 and quantity == 'variance'")
    assert "at beta = 0.5." in findings({"sweep": single})[0].sentences[0]
    plain = tables["sweep"].query("quantity == 'variance'")
    assert "squared bias" not in findings({"sweep": plain})[0].sentences[0]


def test_sample_quality_joins_the_model_it_belongs_to() -> None:
    """Quality has no proxy and no times; its sentence stands with those of the same checkpoint."""
    chosen = {"metrics": ["sliced_wasserstein"], "samples": 128}
    prepared = mfdiag.prepare_quality("gaussian:2,0,1", **chosen)
    model = MLP(2, hidden=8, depth=1)
    quality = pd.concat([prepared.measure(model, nfe=[1, 2, 4], weights=key) for key in ("raw", "ema")])
    sweep = mfdiag.measure(model, "gaussian:2,0,1", tables=["sweep"], samples=64, beta=[0])["sweep"]
    ((subject, (_, sentence)),) = findings({"sweep": sweep, "quality": quality})
    first, last = quality.iloc[0], quality.iloc[2]
    assert subject == "model" and sentence.startswith("The sliced Wasserstein distance of the samples to the data is ")
    assert f"{with_interval(first)} at NFE 1 and {with_interval(last)} at NFE 4 with raw weights; " in sentence
    assert sentence.endswith(" with ema weights.")
    ((alone, (same,)),) = findings({"quality": quality})
    assert alone == "model" and same == sentence


def test_compare_names_the_quietest_and_the_nearest() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MLP(2, hidden=8, depth=1)
    names = ["meanflow", "self_tangent", "flow_matching"]
    frame = mfdiag.measure(
        model,
        "gaussian:2,0,1",
        tables=["compare"],
        samples=256,
        estimators=names,
        batch_sizes=(1, 10**6),
        by_layer=False,
    )["compare"]
    ((_, (sentence,)),) = findings({"compare": frame})
    ratios = frame[(frame["quantity"] == "variance_ratio") & (frame["estimator"] != "meanflow")]
    least = ratios.loc[ratios["value"].idxmin()]
    assert f"Of 2 estimators, {least['estimator']} has the least gradient variance, {with_interval(least)}" in sentence
    errors = frame[(frame["quantity"] == "mse_ratio") & (frame["batch_size"] == 10**6)]
    nearest = errors[errors["estimator"] != "meanflow"].sort_values("value").iloc[0]
    assert f"for a batch of 1,000,000 the mean squared error is least with {nearest['estimator']}" in sentence
    assert not findings({"compare": frame[frame["estimator"] == "meanflow"]})
