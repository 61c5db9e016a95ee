"""NAME:1,2 and NAME:a=1, grids of numbers, and one sentence for what is neither."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mfdiag.errors import InputError
from mfdiag.flow.specs import format_spec, parse_arguments, parse_grid

PARAMETERS = {"a": None, "b": 2.0, "n": 3}
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("x:1", (1, 2, 3)),
        ("x:1,0.5,7", (1, 0.5, 7)),
        ("x:1,n=7", (1, 2, 7)),
        ("x:b=-1e3,a=.5", (0.5, -1000, 3)),
        ("x: 1 , 2 ", (1, 2, 3)),
    ],
)
def test_positions_then_keywords(spec: str, expected: tuple[float, ...]) -> None:
    values = parse_arguments(spec, PARAMETERS, integers={"n"})
    assert tuple(values.values()) == expected and list(values) == ["a", "b", "n"] and type(values["n"]) is int


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("x", r"no value for a; expected x:a,\[b=2.0\],\[n=3\]"),
        ("x:1,2,3,4", "expected x:a"),
        ("x:b=1,2", "expected x:a"),
        ("x:1,a=2", "repeated argument 'a'"),
        ("x:1,c=2", "unknown argument 'c'"),
        ("x:1,b=", "b must be a finite number, got ''"),
        ("x:inf", "a must be a finite number"),
        ("x:1e999", "a must be a finite number"),
        ("x:1,n=0", "n must be a whole number"),
        ("x:1,n=1.5", "n must be a whole number"),
        ("x:,", "a must be a finite number, got ''"),
    ],
)
def test_bad_arguments(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_arguments(spec, PARAMETERS, integers={"n"})


def test_a_name_without_arguments() -> None:
    assert parse_arguments("x", {}) == {}
    with pytest.raises(InputError, match="x takes no arguments"):
        parse_arguments("x:1", {})


@given(values=st.lists(NUMBERS, max_size=4))
def test_formatted_numbers_read_back(values: list[float]) -> None:
    spec = format_spec("x", *values)
    parameters = {f"p{k}": None for k in range(len(values))}
    assert list(parse_arguments(spec, parameters).values()) == values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5", (0.5,)),
        ("1,0,-2.5", (1, 0, -2.5)),
        ("0:1:0.25", (0, 0.25, 0.5, 0.75, 1)),
        ("1:-1:-1", (1, 0, -1)),
        ("3:3:1", (3,)),
        ("0:0.3:0.1", (0, 0.1, 0.2, 0.3)),
    ],
)
def test_grids(text: str, expected: tuple[float, ...]) -> None:
    assert parse_grid("--beta", text) == expected


@given(start=st.integers(-50, 50), step=st.integers(1, 40), count=st.integers(1, 60), places=st.integers(0, 3))
def test_grids_end_where_they_say(start: int, step: int, count: int, places: int) -> None:
    scale = 10**places
    first, last = start / scale, (start + count * step) / scale
    values = parse_grid("--beta", f"{first}:{last}:{step / scale}")
    assert values[0] == first and values[-1] == last and len(values) == count + 1
    assert values == pytest.approx([(start + k * step) / scale for k in range(count + 1)], abs=1e-11)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "finite number, got ''"),
        ("a", "finite number, got 'a'"),
        ("0:1", "start:stop:step or a comma list"),
        ("0:1:0.1:2", "start:stop:step or a comma list"),
        ("0:1:0", "a step of 0 does not lead from 0 to 1"),
        ("0:1:-0.1", "a step of -0.1 does not lead from 0 to 1"),
        ("0:1:0.3", "does not divide"),
        ("0:1:2", "does not divide"),
        ("0:1:1e-9", "at most 10,001"),
        ("nan:1:0.1", "finite number"),
    ],
)
def test_bad_grids(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_grid("--beta", text)
    assert "--beta" in str(caught.value)


@example(numbers=(0.0, 1e308, 1e-308))
@example(numbers=(-1e308, 1e308, 1.0))
@given(numbers=st.tuples(NUMBERS, NUMBERS, NUMBERS))
def test_any_three_numbers_make_a_grid_or_one_sentence(numbers: tuple[float, float, float]) -> None:
    with suppress(InputError):
        values = parse_grid("--beta", ":".join(map(repr, numbers)))
        assert 1 <= len(values) <= 10_001 and values[-1] == numbers[1]
        assert values[0] == pytest.approx(numbers[0], rel=1e-9, abs=1e-12)
