from __future__ import annotations

import json

import pandas as pd
import pyarrow as pa
import pytest

from mfdiag.errors import InputError
from mfdiag.tables.check import arrow_schema, to_arrow
from mfdiag.tables.schema import COMMON, MEASURED, STATUSES, TABLES, table


def test_columns_are_common_then_keys_then_measured() -> None:
    for entry in TABLES.values():
        names = [column.name for column in entry.columns]
        assert names[:10] == [c.name for c in COMMON] and names[-7:] == [c.name for c in MEASURED]
        assert len(set(names)) == len(names)


def test_contract_of_names() -> None:
    assert set(TABLES) == (
        {
            "sweep",
            "variance",
            "coefficient",
            "compare",
            "times",
            "training",
            "quality",
            "grid",
            "samples",
            "identify",
            "doctor",
        }
    )
    assert [c.name for c in COMMON] == (
        [
            "run",
            "checkpoint",
            "checkpoint_sha256",
            "step",
            "dataset",
            "estimator",
            "proxy",
            "weighting",
            "times",
            "seed",
        ]
    )
    assert [c.name for c in MEASURED] == ["quantity", "value", "std_error", "ci_low", "ci_high", "n_samples", "status"]
    assert [c.name for c in TABLES["coefficient"].keys] == (
        ["form", "role", "batch_size", "layer", "r_low", "r_high", "t_low", "t_high", "kappa_kind", "derivative"]
    )
    assert set(TABLES["sweep"].quantities) == (
        {"variance", "conditional_variance", "bias2", "mse", "optimum_beta", "optimum_gamma"}
    )
    assert set(STATUSES) == {
        "ok",
        "heavy_tail",
        "too_few_samples",
        "negative_estimate",
        "degenerate_control",
        "outside_unit_interval",
        "nonfinite",
    }


@pytest.mark.parametrize("name", TABLES)
def test_everything_is_documented_in_one_sentence_or_more(name: str) -> None:
    for column in table(name).columns:
        assert column.doc.endswith("."), column.name
    for quantity in table(name).quantities.values():
        assert quantity.doc.endswith(".") and quantity.formula and quantity.unit, quantity.name
    for status in STATUSES.values():
        assert status.cause.endswith(".") and status.remedy.endswith("."), status.name


@pytest.mark.parametrize("name", TABLES)
def test_arrow_schema_carries_the_docs(name: str) -> None:
    schema = arrow_schema(name)
    for column in table(name).columns:
        field = schema.field(column.name)
        assert field.type == getattr(pa, column.dtype)() and field.nullable == column.nullable
        assert field.metadata[b"doc"].decode() == column.doc
    assert set(json.loads(schema.metadata[b"mfdiag.quantities"])) == set(table(name).quantities)


def test_unknown_table_suggests_the_near_one() -> None:
    with pytest.raises(InputError, match="Did you mean 'sweep'"):
        table("sweeps")


def test_arrow_table_is_in_stored_order_whatever_the_frame_order(variance: pd.DataFrame) -> None:
    stored = to_arrow("variance", variance[variance.columns[::-1]])
    assert stored.schema.names == [column.name for column in TABLES["variance"].columns]


def test_an_empty_frame_is_a_valid_table(variance: pd.DataFrame) -> None:
    assert to_arrow("variance", variance.iloc[:0]).num_rows == 0


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("quantity", "varience", "'quantity' holds .*varience.* expected variance"),
        ("status", "fine", "'status' holds"),
        ("run", None, "'run' must not be null, but is in 3 rows"),
        ("n_samples", 1.5, "'n_samples' should be int64"),
        ("value", "much", "'value' should be float64"),
        ("value", float("nan"), "status ok but no finite value"),
        ("value", float("inf"), "status ok but no finite value"),
    ],
)
def test_invalid_values_are_named(variance: pd.DataFrame, column: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_arrow("variance", variance.assign(**{column: value}))


def test_missing_and_unknown_columns_are_named(variance: pd.DataFrame) -> None:
    with pytest.raises(InputError, match=r"missing columns \['layer'\], unknown columns \['layers'\]"):
        to_arrow("variance", variance.rename(columns={"layer": "layers"}))


def test_a_repeated_row_is_refused(variance: pd.DataFrame) -> None:
    with pytest.raises(InputError, match="1 rows repeat the keys"):
        to_arrow("variance", pd.concat([variance, variance.iloc[1:2].assign(value=3.0)]))


def test_a_key_outside_its_choices_is_refused(variance: pd.DataFrame) -> None:
    frame = variance.assign(form="matrix", role="tangent", batch_size=None, kappa_kind="both", quantity="optimum")
    with pytest.raises(InputError, match=r"'kappa_kind' holds .*both.* expected signed, magnitude"):
        to_arrow("coefficient", frame)
    assert to_arrow("coefficient", frame.assign(kappa_kind=None)).column("kappa_kind").null_count == 3


def test_a_value_that_is_not_finite_needs_its_status(variance: pd.DataFrame) -> None:
    frame = variance.assign(value=float("nan"), status="nonfinite")
    assert to_arrow("variance", frame).column("value").null_count == 3
