"""Curricula of (r, t): their ends are laws known by other names, and alpha-Flow's coefficient is its schedule."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfdiag.flow.curricula import alpha_at
from mfdiag.flow.seeds import uniforms
from mfdiag.flow.times import parse_times


def draw(spec: str, count: int = 5_000) -> np.ndarray:
    sampler, index = parse_times(spec), np.arange(count)
    return np.stack(sampler.sample(uniforms(0, "times", index, sampler.width), index))


@pytest.mark.parametrize(
    ("spec", "same"),
    [
        ("alpha_flow:1,0.5", "logit_normal:-0.4,1,0.5"),
        ("alpha_flow:0.9,0.25,25,0.005,0,2", "logit_normal:0,2,0.25"),
        ("mean_audio:1", "logit_normal:-0.4,1,0.25"),
        ("mean_audio:0.5,0.5,0.4", "logit_normal:-0.4,1,0.4"),
        ("mean_audio:0.49", "logit_normal:-0.4,1,0"),
    ],
)
def test_ends_are_laws_known_by_other_names(spec: str, same: str) -> None:
    np.testing.assert_array_equal(draw(spec), draw(same))


def test_alpha_flow_begins_at_r_equal_t() -> None:
    r, s = draw("alpha_flow:0")
    np.testing.assert_array_equal(r, s)


@pytest.mark.parametrize("progress", [0.4, 0.5, 0.6])
def test_alpha_flow_asks_the_model_below_the_split(progress: float) -> None:
    """s = alpha r + (1 - alpha) t of MeanFlow's pair."""
    (r, s), (r_pair, t_pair) = draw(f"alpha_flow:{progress}"), draw("logit_normal:-0.4,1,0.5")
    alpha = 1 - 1 / (1 + np.exp(-25 * (progress - 0.5)))
    np.testing.assert_array_equal(r, r_pair)
    np.testing.assert_allclose(s, alpha * r + (1 - alpha) * t_pair, rtol=1e-12)


@given(st.floats(0, 1), st.floats(0, 1))
def test_alpha_falls_from_one_to_zero(one: float, other: float) -> None:
    assert alpha_at(min(one, other)) >= alpha_at(max(one, other))
    assert alpha_at(0.0) == 1 and alpha_at(1.0) == 0
    assert alpha_at(one) in (0.0, 1.0) or 0.005 <= alpha_at(one) <= 0.995
    assert alpha_at(0.5) == 0.5
