from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfdiag.flow.seeds import uniforms
from mfdiag.flow.time_sampler import logit_normal_pairs
from mfdiag.flow.time_shares import current_spelling, share_note
from mfdiag.flow.times import parse_times

NUMBERS = np.arange(4000)
SHARES = st.decimals(0, 1, places=4)


def pairs(spec: str) -> tuple[np.ndarray, np.ndarray]:
    return parse_times(spec).sample(uniforms(3, "times", NUMBERS, 3), NUMBERS)


@given(share=SHARES)
def test_a_stored_share_draws_what_version_0_2_drew(share: object) -> None:
    """Against what the samplers computed from their old argument, bit for bit."""
    u = uniforms(3, "times", NUMBERS, 3)
    low, high = np.sort(u[:, :2], axis=1).T
    expected = np.where(u[:, 2] < float(str(share)), high, low)
    for spelled in (current_spelling(f"uniform:{share}", stored=True), f"uniform:r_eq_t={share}"):
        np.testing.assert_array_equal(pairs(spelled), (expected, high))
    low, high = logit_normal_pairs(u[:, :2], -0.4, 1.0)
    stored = current_spelling(f"mean_audio:0.9,0.5,{share}", stored=True)
    np.testing.assert_array_equal(pairs(stored), (np.where(u[:, 2] < 1 - float(str(share)), low, high), high))


@given(share=SHARES)
def test_one_meaning_everywhere(share: object) -> None:
    """The same fraction with r != t, however the sampler and the argument are spelled."""
    expected = float(str(share))
    for head in ("uniform:", "uniform:r_ne_t=", "mean_audio:1,0.5,", "logit_normal:0,1,"):
        r, t = pairs(f"{head}{share}")
        assert np.mean(r < t) == pytest.approx(expected, abs=0.04)


@given(share=SHARES, shift=st.sampled_from([None, "2", "6.9282"]), named=st.booleans())
def test_the_current_spelling_is_final(share: object, shift: str | None, named: bool) -> None:
    """What is written to files means the same when it is read as a stored specification."""
    spec = f"uniform:{'r_ne_t=' if named else ''}{share}{'' if shift is None else f',shift={shift}'}"
    spelled = current_spelling(spec)
    assert current_spelling(spelled, stored=True) == spelled == current_spelling(spelled)
    name = parse_times(spec).name
    assert current_spelling(name, stored=True) == name and share_note(name) is None
    assert parse_times(spelled) == parse_times(spec)


@pytest.mark.parametrize(
    ("spec", "stored", "spelled"),
    [
        ("uniform", True, "uniform"),
        ("uniform:0.7", True, "uniform:r_ne_t=0.3"),
        ("uniform:0.7", False, "uniform:r_ne_t=0.7"),
        ("uniform: 0.75, 6.9282", True, "uniform:r_ne_t=0.25,shift=6.9282"),
        ("uniform:shift=3", True, "uniform:shift=3"),
        ("mean_audio:0.7", True, "mean_audio:0.7"),
        ("mean_audio:0.7,0.5,0.6,0", True, "mean_audio:0.7,0.5,r_ne_t=0.4,mu=0"),
        ("mean_audio:0.7,r_eq_t=0.6", False, "mean_audio:0.7,r_ne_t=0.4"),
        ("logit_normal:-0.4,1,0.75", True, "logit_normal:-0.4,1,0.75"),
        ("density:r_eq_t.yaml", True, "density:r_eq_t.yaml"),
        ("uniform:1,2,3", True, "uniform:1,2,3"),
        ("grid:4,4", True, "grid:4,4"),
    ],
)
def test_spellings(spec: str, stored: bool, spelled: str) -> None:
    assert current_spelling(spec, stored=stored) == spelled


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("uniform:0.75", "fraction of pairs with r != t. Up to version 0.2"),
        ("uniform:0", "uniform:r_ne_t=0"),
        ("mean_audio:1,0.5,0.75", "Up to version 0.2"),
        ("uniform:r_eq_t=0.75", "old spelling of a share and is read as uniform:r_ne_t=0.25"),
        *((spec, None) for spec in ("uniform", "uniform:r_ne_t=0.75", "uniform:shift=2", "logit_normal:0,1,0.5")),
        *((spec, None) for spec in ("mean_audio:1", "mean_audio:1,0.5", "point:0,1", "density:r_eq_t.yaml")),
    ],
)
def test_a_share_that_older_versions_read_otherwise_is_said(spec: str, said: str | None) -> None:
    note = share_note(spec)
    assert note is None if said is None else note is not None and said in note and f"--times {spec} " in note
