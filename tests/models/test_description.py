"""Descriptions: what an earlier version wrote reads, and what is as it took for granted it can read."""

from __future__ import annotations

import json

import pytest

from mfdiag.models.description import Description, parse_description

EARLIER = {
    "format": 1,
    "architecture": {"name": "mlp", "arguments": {"dim": 2}},
    "path": "linear",
    "times": "uniform",
    "data": "two_moons",
    "step": 3,
    "ema_decay": None,
    "seed": 0,
    "specification": {},
}


def test_files_of_version_0_1_mean_what_they_meant_and_stay_the_same() -> None:
    description = parse_description(json.dumps(EARLIER), "file")
    assert (description.source, description.coupling, description.path, description.prediction) == (
        "gaussian",
        "independent",
        "linear",
        "u",
    )
    assert json.loads(description.model_dump_json()) == EARLIER


@pytest.mark.parametrize(
    ("field", "value"),
    [("source", "mixed:0,1"), ("coupling", "gibbs:2"), ("path", "trigonometric"), ("prediction", "x")],
)
def test_other_draws_come_back(field: str, value: str) -> None:
    description = parse_description(json.dumps(EARLIER | {field: value}), "file")
    assert getattr(description, field) == value
    assert Description.model_validate_json(description.model_dump_json()) == description


def test_a_share_of_version_0_2_means_what_it_meant() -> None:
    """Without a name it was the fraction with r = t; written again, it has the name of the fraction with r != t."""
    description = parse_description(json.dumps(EARLIER | {"times": "uniform:0.7"}), "file")
    assert description.times == "uniform:r_ne_t=0.3"
    assert parse_description(description.model_dump_json(), "file") == description
    assert Description.model_validate(EARLIER | {"times": "uniform:0.7"}).times == "uniform:r_ne_t=0.7"
