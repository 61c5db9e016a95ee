"""Findings: each is judged by intervals against healthy models, and one that explains others hides them."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mfdiag.diagnosis.diagnosis import diagnose
from mfdiag.diagnosis.evidence import Evidence, Facts, healthy
from mfdiag.diagnosis.finding import all_findings
from mfdiag.diagnosis.remedies import ranked, remedy
from mfdiag.tables.check import conform
from mfdiag.tables.schema import TABLES

# quantity and key -> findings that apply where its interval is far above, or far below, healthy models
ABOVE = {
    ("velocity_error", ""): {"underfit"},
    ("interval_defect", ""): {"intervals_not_learned"},
    ("derivative_size", ""): {"exploding_derivative"},
    ("null_label_error", ""): {"label_dropout_missing"},
    ("data_outlier", ""): {"outliers_in_data"},
    ("average_gain", ""): {"step_size_too_large"},
    ("top1_share", ""): {"few_samples_dominate"},
    ("interval_moment", ""): {"derivative_noise"},
}
BELOW = {
    ("weight_distance", ""): {"short_ema"},
    ("tail_index", ""): {"heavy_tail"},
}


def evidence(*rows: dict[str, Any], **facts: Any) -> Evidence:
    defaults = {
        "run": "run",
        "checkpoint": "model",
        "dataset": "data",
        "seed": 0,
        "layer": "all",
        "n_samples": 4096,
        "status": "ok",
    }
    names = [column.name for column in TABLES["doctor"].columns]
    entries = [{**defaults, **row} for row in rows or [{"quantity": "variance", "value": 1.0}]]
    frame = pd.DataFrame([{name: entry.get(name) for name in names} for entry in entries])
    return Evidence(Facts("model", **facts), conform("doctor", frame))


def measured(quantity: str, value: float, width: float = 0.01, **keys: Any) -> dict[str, Any]:
    needs_weights = quantity in (
        "velocity_error", "interval_defect", "interval_effect", "derivative_size", "null_label_error", "learned_share",
        "skill", "target_defect", "target_defect_ratio", "target_preference", "jacobian_size", "label_effect",
        "label_explained",
        "guidance_scale", "data_coefficient", "noise_coefficient", "unexplained_output", "derivative_coefficient",
        "swapped_defect", "derivative_share", "target_coefficient",
    )  # fmt: skip
    half = abs(value) * width
    estimator = {"estimator": "meanflow"} if quantity in ("top1_share", "tail_index", "interval_moment") else {}
    return {
        "quantity": quantity,
        "value": value,
        "ci_low": value - half,
        "ci_high": value + half,
        **({"weights": "raw"} if needs_weights else {}),
        **estimator,
        **keys,
    }


def untrained(share: float = 0.1, skill: float = -0.1) -> list[dict[str, Any]]:
    """What says that a network is untrained: worse than a linear map, of which it has learned little."""
    return [measured("learned_share", share), measured("skill", skill)]


def codes(of: Evidence) -> list[str]:
    return [entry.finding.code for entry in diagnose(of).findings]


def far(quantity: str, target: str, above: bool) -> float:
    usual = healthy(quantity, target)
    span = usual.high - usual.low
    if quantity == "average_gain":
        return 1 - (1 - usual.high) / 10
    if above:
        return 10 * usual.high
    return usual.low / 10 if quantity in ("tail_index", "weight_distance") else usual.low - span


@pytest.mark.parametrize("key", ABOVE, ids=str)
def test_far_above_healthy_models(key: tuple[str, str]) -> None:
    assert set(codes(evidence(measured(key[0], far(*key, True))))) == ABOVE[key]


@pytest.mark.parametrize("key", BELOW, ids=str)
def test_far_below_healthy_models(key: tuple[str, str]) -> None:
    assert set(codes(evidence(measured(key[0], far(*key, False))))) == BELOW[key]


@pytest.mark.parametrize("key", [*ABOVE, *BELOW], ids=str)
def test_neither_the_median_nor_a_wide_interval_is_a_finding(key: tuple[str, str]) -> None:
    assert codes(evidence(measured(key[0], healthy(*key).median or 1e-3))) == []
    if key[0] != "data_outlier" and key[0] != "weight_distance":  # computed, without an error
        wide = measured(key[0], far(*key, key in ABOVE)) | {"ci_low": -1e9, "ci_high": 1e9}
        assert codes(evidence(wide)) == []


@pytest.mark.parametrize("key", [key for key in ABOVE if key[0] != "top1_share"], ids=str)
def test_a_number_that_cannot_be_trusted_is_no_finding(key: tuple[str, str]) -> None:
    row = measured(key[0], far(*key, True)) | {"status": "too_few_samples"}
    diagnosis = diagnose(evidence(row))
    assert diagnosis.findings == []
    assert any("4,096 samples (too_few_samples)" in reason for reason in diagnosis.not_checked.values())


def test_a_wrong_tangent_hides_what_follows_from_it() -> None:
    rows = [
        measured("target_defect", 10 * healthy("target_defect", "meanflow").high, target="meanflow"),
        measured("target_defect_ratio", 0.02, target="tangents_swapped"),
        measured("target_preference", 0.95, target="tangents_swapped"),
        measured("target_defect_ratio", 2.0, target="velocity_left_out"),
        measured("target_preference", -0.3, target="velocity_left_out"),
        measured("velocity_error", healthy("velocity_error").median),
        measured("interval_defect", far("interval_defect", "", True)),
    ]
    assert codes(evidence(*rows)) == ["wrong_tangent"]
    assert "tangents of r and t are swapped" in diagnose(evidence(*rows)).verdict


def test_a_network_that_satisfies_another_target_is_not_read_with_swapped_times() -> None:
    def rows(preference: float) -> list[dict[str, Any]]:
        return [
            measured("target_defect", 2.0, target="meanflow"),
            measured("target_defect_ratio", 0.02, target="velocity_reversed"),
            measured("target_preference", preference, target="velocity_reversed"),
            measured("velocity_error", healthy("velocity_error").low),
        ]

    assert codes(evidence(*rows(0.8))) == ["wrong_tangent"]
    assert codes(evidence(*rows(-0.8))) == []  # a few samples alone


def wrong_target(name: str, ratio: float, **defects: float) -> list[dict[str, Any]]:
    return [
        measured("target_defect_ratio", ratio, target=name),
        measured("target_preference", 0.95, target=name),
        measured("velocity_error", healthy("velocity_error").low),
        *(measured("target_defect", value, target=target) for target, value in defects.items()),
    ]


def test_half_of_the_derivative_is_no_other_target() -> None:
    # |a - c b|^2 with <a, b> = c* |b|^2 is least at c*: these are the defects at c = 0, 1, -1 of c* = 1/2 and c* = 0
    half = wrong_target("derivative_left_out", 0.3, derivative_left_out=0.6, meanflow=2.0, sign_reversed=3.2)
    assert codes(evidence(*half)) == ["wrong_tangent"]  # the defect at 1/2 is 0.8: more than 0.6
    half = wrong_target("derivative_left_out", 0.3, derivative_left_out=0.6, meanflow=2.0, sign_reversed=7.2)
    assert codes(evidence(*half)) == []  # it is 0.3


def test_targets_of_networks_that_hardly_depend_on_r_count_once_the_velocity_is_learned() -> None:
    rows = wrong_target("derivative_left_out", 0.02, meanflow=2.0)
    assert codes(evidence(*rows)) == ["wrong_tangent"]
    assert "no pair with r < t was trained" in diagnose(evidence(*rows)).verdict
    early = [row for row in rows if row["quantity"] != "velocity_error"] + [measured("velocity_error", 0.4)]
    assert "wrong_tangent" not in codes(evidence(*early))


def test_a_derivative_in_the_velocity_at_equal_times_lacks_its_factor() -> None:
    rows = [
        measured("derivative_coefficient", -0.7),
        measured("velocity_error", 1.2),
        measured("noise_coefficient", 0.8),
        measured("data_coefficient", 0.9),
    ]
    assert codes(evidence(*rows)) == ["interval_factor_missing"]
    assert "interval_factor_missing" not in codes(evidence(*rows[:2]))  # before training
    assert codes(evidence(*rows[:2], measured("derivative_share", 0.5))) == ["interval_factor_missing"]
    assert "interval_factor_missing" not in codes(evidence(*rows[1:], measured("derivative_coefficient", -5.0)))
    assert "interval_factor_missing" not in codes(evidence(*rows[1:], measured("derivative_coefficient", 0.1)))


def test_weights_that_large_steps_have_grown() -> None:
    usual, error = healthy("weight_scale").high, measured("velocity_error", 0.9 * healthy("velocity_error").high)
    assert codes(evidence(measured("weight_scale", 2 * usual), error)) == ["step_size_too_large"]
    assert codes(evidence(measured("weight_scale", 1.2 * usual), error)) == []


def test_a_layer_of_far_larger_weights() -> None:
    usual = healthy("layer_weight_scale").high
    rows = [measured("layer_weight_scale", value, layer=f"layers.{k}") for k, value in enumerate((0.9, 4 * usual))]
    assert codes(evidence(*rows)) == ["layer_too_large"]
    assert diagnose(evidence(*rows)).findings[0].detection.where == "layer layers.1"
    assert codes(evidence(rows[0])) == []


def test_a_network_is_untrained_where_it_is_worse_than_a_linear_map_and_has_learned_little_of_it() -> None:
    assert codes(evidence(*untrained())) == ["untrained"]
    assert codes(evidence(*untrained(share=0.85))) == []  # the best denoiser of these data is nearly linear
    assert codes(evidence(*untrained(skill=0.1))) == []  # the data have outliers, which no linear map explains
    assert codes(evidence(measured("learned_share", 0.1))) == []


def test_a_network_that_does_not_use_r() -> None:
    rows = [measured("interval_effect", 0.0), measured("interval_defect", far("interval_defect", "", True))]
    assert codes(evidence(*rows)) == ["interval_ignored"]  # the defect of its intervals follows
    assert codes(evidence(measured("interval_effect", 1e-4))) == []
    assert codes(evidence(*untrained(), *rows)) == ["untrained"]  # a zero embedding is how trainings begin


def test_a_small_jacobian_and_a_failing_identity_mean_a_missing_stop_gradient() -> None:
    rows = [
        measured("jacobian_size", 0.7 * healthy("jacobian_size").low),
        measured("target_defect", 3 * healthy("target_defect", "meanflow").high, target="meanflow"),
        measured("velocity_error", healthy("velocity_error").median),
    ]
    assert codes(evidence(*rows)) == ["missing_stop_gradient"]
    assert codes(evidence(*rows[:1])) == []
    reversed_ = coefficients(3 * healthy("target_coefficient", "position").low, 0.2)
    assert codes(evidence(*rows, *reversed_)) == ["reversed_derivative"]
    assert codes(evidence(*rows[1:2], *reversed_, *untrained())) == ["untrained"]


def coefficients(position: float, time: float) -> list[dict[str, Any]]:
    values = {"position": position, "time": time}
    return [measured("target_coefficient", value, target=target) for target, value in values.items()]


def test_a_negative_part_by_time_means_a_missing_stop_gradient_unless_another_target_explains_it() -> None:
    rows = [
        measured("jacobian_size", healthy("jacobian_size").median),
        measured("target_defect", 0.7, target="meanflow"),
        measured("velocity_error", healthy("velocity_error").median),
    ]
    assert codes(evidence(*rows, *coefficients(1.2, -0.8))) == ["missing_stop_gradient"]
    assert codes(evidence(*rows, *coefficients(1.2, 0.3))) == []
    assert codes(evidence(*rows, *coefficients(-0.8, -0.8))) == ["reversed_derivative"]  # as a whole
    swapped = wrong_target("tangents_swapped", 0.02)[:2]
    assert codes(evidence(*rows, *swapped, *coefficients(1.2, -0.8))) == ["wrong_tangent"]


def test_a_target_counts_only_if_the_parts_of_its_derivative_are_those_that_enter() -> None:
    rows = wrong_target("tangents_swapped", 0.02, meanflow=1.0)
    assert codes(evidence(*rows, *coefficients(1.0, -0.3))) == ["wrong_tangent"]
    assert codes(evidence(*rows, *coefficients(0.4, 0.3))) == []  # a network that hardly depends on r yet


def test_an_untrained_network_says_nothing_about_targets_and_labels() -> None:
    """Also where the data have no exact posterior, and so no velocity error."""
    rows = [
        *wrong_target("derivative_left_out", 0.01, meanflow=2.0),
        measured("guidance_scale", 0.1),
        measured("label_effect", 0.001),
        measured("jacobian_size", 0.7 * healthy("jacobian_size").low),
    ]
    rows = [row for row in rows if row["quantity"] != "velocity_error"]
    assert codes(evidence(*rows, *untrained())) == ["untrained"]
    assert set(codes(evidence(*rows))) >= {"wrong_tangent", "guidance_mismatch", "labels_ignored"}


def test_labels() -> None:
    guided = {"guidance": "meanflow:2", "guidance_scale": 2.0}
    scale = measured("guidance_scale", 2.0)
    assert codes(evidence(scale, **guided)) == []
    assert codes(evidence(scale)) == ["guidance_mismatch"]
    assert codes(evidence(measured("label_effect", 0.02))) == ["labels_ignored"]
    rows = [
        measured("null_label_error", healthy("null_label_error").median),
        *untrained(),
        measured("label_explained", healthy("label_explained").median),
    ]
    assert codes(evidence(*rows, **guided)) == ["label_dropout_missing"]
    assert codes(evidence(*rows)) == ["untrained"]  # then what is learned is that with labels


def test_what_the_network_returns_at_equal_times() -> None:
    def rows(data: float, noise: float, left: float) -> list[dict[str, Any]]:
        values = {"data_coefficient": data, "noise_coefficient": noise, "unexplained_output": left}
        return [measured(name, value) for name, value in values.items()]

    assert codes(evidence(*rows(1.0, 0.01, 0.03))) == ["wrong_target"]
    assert codes(evidence(*rows(0.9, 0.8, 0.1))) == []
    assert codes(evidence(*rows(0.2, 0.2, 0.1))) == []  # has only begun to learn
    assert codes(evidence(*rows(1.0, 0.01, 0.6))) == []


def test_weights_that_are_too_large_or_too_coarse() -> None:
    large = measured("weight_scale", 5 * healthy("weight_scale").high)
    assert codes(evidence(*untrained(), large)) == ["diverged"]
    assert codes(evidence(large)) == []
    assert codes(evidence(precision="bfloat16")) == ["reduced_precision"]
    assert diagnose(evidence(precision="bfloat16")).healthy  # nothing says that it is a training's checkpoint


def test_times_that_were_left_out() -> None:
    errors = [0.05, 0.05, 0.06, 0.05, 0.07, 0.1, 0.1, 1.0, 1.2, 1.4]
    rows = [
        measured("velocity_error", value, t_low=k / 10, t_high=(k + 1) / 10, n_samples=100)
        for k, value in enumerate(errors)
    ]
    (finding,) = diagnose(evidence(*rows)).findings
    assert finding.finding.code == "times_not_covered"
    assert "t in [0.9, 1]" in finding.detection.where and "0.5" not in finding.detection.where
    assert codes(evidence(*rows[:7])) == []
    assert codes(evidence(*rows, weighting_power=1.0)) == ["uninformative_loss"]  # hard samples count little


def test_a_small_batch_matters_where_the_velocity_is_wrong() -> None:
    rows = [
        measured("noise_scale", 100.0, estimator="meanflow"),
        measured("velocity_error", far("velocity_error", "", True)),
    ]
    assert codes(evidence(*rows, batch_size=4, batch_size_known=True)) == ["noise_dominates_batch"]
    assert codes(evidence(*rows, batch_size=256, batch_size_known=True)) == ["underfit"]


def test_averaged_weights_that_lag_are_critical_only_where_the_training_was_long_enough() -> None:
    rows = [measured("velocity_error", 0.05, weights="raw"), measured("velocity_error", 0.99, weights="ema")]
    severities = [
        diagnose(evidence(*rows, step=step, ema_decay=0.999)).findings[0].detection.severity for step in (1000, 100000)
    ]
    assert severities == ["warning", "critical"]


def test_nonfinite_weights_and_a_pinned_loss() -> None:
    assert codes(evidence(nonfinite=["layer.weight"])) == ["nonfinite"]
    assert codes(evidence(weighting_power=1.0)) == ["uninformative_loss"]
    pinned = diagnose(evidence(weighting_power=1.0))
    assert pinned.healthy
    assert pinned.verdict.startswith("Nothing is wrong, but note: the loss does not show progress. With p = 1,")


def test_every_finding_is_complete_and_short() -> None:
    assert len(all_findings()) >= 24
    for code, finding in all_findings().items():
        path = Path(inspect.getfile(finding.rule))
        if not path.name.startswith("_"):
            assert path.stem == code and len(path.read_text(encoding="utf-8").splitlines()) <= 60, code
        assert set(finding.needs) <= set(TABLES["doctor"].quantities), code
        assert set(finding.explains) <= set(all_findings()), code
        assert finding.remedies, code
        for name in finding.remedies:
            record = remedy(name, evidence()).record()
            assert record["action"] and json.dumps(record)


def test_what_mends_the_cause_comes_before_what_is_measured_to_help() -> None:
    helps = evidence(measured("clipped_moment", 0.9, 0.01), measured("weight_moment", 0.3, 0.01, target="p0.5"))
    steps = ranked(("smaller_step", "earlier_checkpoint", "clip"), helps)
    assert [step.action for step in steps] == [
        remedy(name, helps).action for name in ("smaller_step", "clip", "earlier_checkpoint")
    ]
    noise = ranked(("clip", "smaller_step", "weight_half"), helps)
    assert [step.left for step in noise] == [0.3, 0.9, 1.0]


def test_the_record_of_a_diagnosis_has_the_fields_of_the_contract() -> None:
    record = diagnose(evidence(measured("velocity_error", far("velocity_error", "", True))), 1.0).record()
    assert {"verdict", "healthy", "checkpoint", "seconds", "findings", "not_checked"} <= record.keys()
    (finding,) = record["findings"]
    assert {"code", "severity", "title", "evidence", "why", "remedies"} <= finding.keys()
    assert {"quantity", "value", "ci_low", "ci_high", "expected", "where"} == finding["evidence"][0].keys()
    assert {"action", "option", "effect", "cost"} == finding["remedies"][0].keys()
