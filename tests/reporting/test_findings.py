"""Sentences are made of the tables' own numbers, and say so where those are in doubt."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

import mfdiag
from mfdiag import numbers
from mfdiag.models.networks.mlp import MLP
from mfdiag.numbers import percent
from mfdiag.reporting import findings

Tables = dict[str, pd.DataFrame]


@pytest.fixture(scope="module")
def tables() -> Tables:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MLP(2, hidden=8, depth=1)
    return mfdiag.measure(model, "gaussian:2,0,1", samples=640, bins=(1, 2), beta=(0, 0.5, 1), batch_sizes=(4, 256))


def with_interval(row: pd.Series) -> str:
    return numbers.with_interval(row["value"], row["ci_low"], row["ci_high"])


def lowered(row: pd.Series) -> str:
    """A gain of at least 1 as the share by which it lowers the variance."""
    return numbers.with_interval(*(1 - 1 / row[name] for name in ("value", "ci_low", "ci_high")), percent)


def changed(frame: pd.DataFrame, quantity: str, **values: object) -> pd.DataFrame:
    frame = frame.copy()
    frame.loc[frame["quantity"] == quantity, list(values)] = list(values.values())
    return frame


def estimated(frame: pd.DataFrame, quantity: str, value: float, low: float, high: float) -> pd.DataFrame:
    return changed(frame, quantity, value=value, ci_low=low, ci_high=high, status="ok")


@pytest.fixture
def coefficient(tables: Tables) -> pd.DataFrame:
    """The table as of a model where each effect is clear."""
    frame = estimated(tables["coefficient"], "optimum", 0.8, 0.7, 0.9)
    return estimated(estimated(frame, "variance_reduction", 1.6, 1.3, 2.0), "critical_batch", 5000, 3000, 9000)


def test_a_sentence_for_each_table(tables: Tables) -> None:
    ((subject, sentences),) = findings(tables)
    assert subject == "model" and len(sentences) == 3
    assert all(sentence[0].isupper() and sentence.endswith(".") for sentence in sentences)
    for name in tables:
        assert len(findings({name: tables[name]})) == (name != "samples")


def test_numbers_are_those_of_the_tables(tables: Tables) -> None:
    sweep, variance, _ = findings(tables)[0].sentences
    rows = tables["sweep"].query("space == 'gradient' and layer == 'all' and t_low.isna() and quantity == 'variance'")
    for beta in (0, 1):
        one = rows[rows["beta"] == beta].iloc[0]
        doubt = "" if one["status"] == "ok" else f" ({one['status']})"
        assert f"{with_interval(one)}{doubt} at beta = {beta}" in sweep
    assert "of 3 values of beta, it is lowest at" in sweep
    assert ("for a batch of 4" in sweep and "for a batch of 256" in sweep) or "for batches of 4 and 256" in sweep

    rows = tables["variance"].query("estimator == 'meanflow'")
    top = rows[rows["quantity"] == "top1_share"].iloc[0]
    text = f"{percent(top['value'])} [{percent(top['ci_low'])}, {percent(top['ci_high'])}]"
    assert top["status"] == "too_few_samples"  # 640 samples
    assert f"carry {text} (too_few_samples) of the squared gradient norm with meanflow and" in variance
    layers = rows.query("quantity == 'variance' and layer != 'all' and t_low.isna()").set_index("layer")["value"]
    assert f"layer {layers.idxmax()} has {percent(layers.max() / layers.sum())} of the variance" in variance


def test_the_optimum_and_what_it_changes(tables: Tables, coefficient: pd.DataFrame) -> None:
    assert findings({"coefficient": coefficient})[0].sentences == [
        "For a small batch, the gradient variance is lowest at beta* = 0.800 [0.700, 0.900]. Using beta* lowers the "
        "variance by 37.5 % [23.1 %, 50.0 %] on held-out samples. Above 5,000 [3,000, 9,000] samples per batch, use "
        "half this beta."
    ]
    rows = tables["coefficient"].query("form == 'gradient' and role == 'tangent' and layer == 'all' and t_low.isna()")
    best = rows[(rows["quantity"] == "optimum") & rows["batch_size"].isna()].iloc[0]
    assert best["ci_low"] < 0 < best["ci_high"], "of this network, which is not trained"
    assert findings(tables)[0].sentences[2] == (
        f"The beta of the lowest gradient variance is not measurable with {best['n_samples']} samples (heavy_tail)."
    )


def test_the_gain_of_a_density_is_that_of_fresh_samples() -> None:
    torch.manual_seed(0)
    table = mfdiag.measure(MLP(2, hidden=8, depth=1), "gaussian:2,0,1", tables=["times"], samples=640, bins=(1, 1))
    gains = table["times"].set_index("quantity")
    count = int(gains.loc["measured_gain", "n_samples"])
    assert gains.loc["measured_gain", "ci_low"] < 1 < gains.loc["measured_gain", "ci_high"]
    ((_, (sentence,)),) = findings(table)
    assert f"an effect on the gradient variance that is not measurable with {count:,} samples" in sentence
    assert sentence.endswith(f"(predicted: lowers it by {lowered(gains.loc['predicted_gain'])}).")
    clear = estimated(table["times"], "measured_gain", 1.25, 1.0526, 2.0)
    ((_, (sentence,)),) = findings({"times": clear})
    assert "lowers the gradient variance by 20.0 % [5.0 %, 50.0 %] on new samples" in sentence


def test_doubt_is_reported(tables: Tables, coefficient: pd.DataFrame) -> None:
    negative = changed(coefficient, "critical_batch", value=-5.0, status="negative_estimate")
    (sentence,) = findings({"coefficient": negative})[0].sentences
    assert "bias halves beta* is not measurable with 640 samples (negative_estimate)" in sentence
    assert "−5" not in sentence
    negative = changed(tables["sweep"], "mse", value=-1.0)
    assert "at a beta not measurable with 640 samples" in findings({"sweep": negative})[0].sentences[0]
    few = changed(tables["variance"], "top1_share", status="too_few_samples")
    assert "(too_few_samples)" in findings({"variance": few})[0].sentences[0]


@pytest.mark.parametrize(
    ("quantity", "interval", "text"),
    [
        ("optimum", (-0.2, 1.8), "The beta of the lowest gradient variance is not measurable with 640 samples."),
        ("variance_reduction", (0.9, 2.3), "The effect of beta* on the variance is not measurable with"),
        ("critical_batch", (3000, float("inf")), "The batch size from which bias halves beta* is not measurable with"),
        ("critical_batch", (100, 10_000), "The batch size from which bias halves beta* is not measurable with"),
    ],
)
def test_an_interval_that_says_nothing_is_no_headline(
    coefficient: pd.DataFrame, quantity: str, interval: tuple[float, float], text: str
) -> None:
    frame = changed(coefficient, quantity, ci_low=interval[0], ci_high=interval[1])
    assert text in findings({"coefficient": frame})[0].sentences[0]


def test_the_direction_of_an_effect_is_in_the_verb(tables: Tables, coefficient: pd.DataFrame) -> None:
    frame = estimated(coefficient, "variance_reduction", 0.967, 0.95, 0.98)
    assert "Using beta* raises the variance by 3.4 % [2.0 %, 5.3 %]" in findings({"coefficient": frame})[0].sentences[0]
    flat = changed(tables["sweep"], "bias2", ci_low=-0.1, ci_high=0.1)
    assert "bias at beta = 1 is not measurable with 640 samples" in findings({"sweep": flat})[0].sentences[0]


def test_a_bias_of_zero_is_measured(tables: Tables) -> None:
    model = MLP(2, hidden=8, depth=1)
    swept = mfdiag.measure(
        model, "gaussian:2,0,1", tables=["sweep"], samples=64, beta=(0, 0.5, 1), times="point:0.5,0.5"
    )
    (sentence,) = findings(swept)[0].sentences
    assert sentence.count("beta") == 3 and "at all 3 values of beta. At every beta, the squared bias is 0" in sentence
    assert sentence.endswith("the tangent, which vanishes where r = t.")
    negative = tables["sweep"].assign(beta=0 - tables["sweep"]["beta"])
    assert "bias at beta = 0 is 0 by definition." in findings({"sweep": negative})[0].sentences[0]


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
    assert "bias" not in findings({"sweep": plain})[0].sentences[0]


def test_sample_quality_joins_the_model_it_belongs_to() -> None:
    """Quality has no proxy and no times; its sentence stands with those of the same checkpoint."""
    chosen = {"metrics": ["sliced_wasserstein"], "samples": 128}
    prepared = mfdiag.prepare_quality("gaussian:2,0,1", **chosen)
    model = MLP(2, hidden=8, depth=1)
    quality = pd.concat([prepared.measure(model, nfe=[1, 2, 4], weights=key) for key in ("raw", "ema")])
    sweep = mfdiag.measure(model, "gaussian:2,0,1", tables=["sweep"], samples=64, beta=[0])["sweep"]
    ((subject, (_, sentence)),) = findings({"sweep": sweep, "quality": quality})
    first, last = quality.iloc[0], quality.iloc[2]
    assert subject == "model" and sentence.startswith("The sliced Wasserstein distance between samples and data is ")
    assert f"{with_interval(first)} at NFE 1 and {with_interval(last)} at NFE 4 with raw weights; " in sentence
    assert sentence.endswith(" with ema weights.")
    ((alone, (same,)),) = findings({"quality": quality})
    assert alone == "model" and same == sentence


def test_compare_names_the_lowest_variance_and_error() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MLP(2, hidden=8, depth=1)
    names = ["meanflow", "self_tangent", "flow_matching"]
    frame = mfdiag.measure(
        model,
        "gaussian:2,0,1",
        tables=["compare"],
        samples=512,
        estimators=names,
        batch_sizes=(1, 10**6),
        by_layer=False,
    )["compare"]
    ((_, (sentence,)),) = findings({"compare": frame})
    assert "has the lowest gradient variance, but its difference from MeanFlow's is not measurable with 512" in sentence
    frame.loc[frame["estimator"] == "flow_matching", ["value", "ci_low", "ci_high", "status"]] = [0.8, 0.7, 0.9, "ok"]
    ((_, (sentence,)),) = findings({"compare": frame})
    assert sentence == (
        "Of 2 other estimators, flow_matching has the lowest gradient variance, 0.800 [0.700, 0.900] times MeanFlow's. "
        "For a batch of 1,000,000, flow_matching has the lowest mean squared error, 0.800 [0.700, 0.900] times "
        "MeanFlow's."
    )
    assert not findings({"compare": frame[frame["estimator"] == "meanflow"]})
