"""Numbers as text."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from mfdiag.numbers import percent, plain, significant, with_error, with_interval


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01512, "0.0151"), (166_667.0, "167,000"), (-1234.0, "−1,230"), (2.5e9, "2.5e+09"), (0.0, "0"), (1.6, "1.6")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert significant(value) == text


def test_numbers_that_are_none_have_a_sign_of_their_own() -> None:
    assert [significant(x) for x in (math.inf, -math.inf, math.nan)] == ["∞", "−∞", "?"]


def test_digits_can_be_asked_for() -> None:
    assert [significant(x, 4) for x in (411.24, 9086.4, 0.0516001)] == ["411.2", "9,086", "0.0516"]


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (653.7, 565.2, 757.9, "654 [565, 758]"),
        (1.6, 1.27, 1.93, "1.60 [1.27, 1.93]"),
        (0.000337, 0.000213, 0.00046, "0.000337 [0.000213, 0.000460]"),
        (553_111, 367_222, 1_130_333, "553,000 [367,000, 1,130,000]"),
        (0.051604, 0.051389, 0.051818, "0.05160 [0.05139, 0.05182]"),  # three digits would hide the interval
        (411.24, 410.91, 411.57, "411.24 [410.91, 411.57]"),
        (-84.0, -163.0, -5.02, "−84.0 [−163, −5.02]"),
        (1.0, 1 - 1e-12, 1 + 1e-12, "1.00000 [1.00000, 1.00000]"),
        (3.0, 2.0, math.inf, "3.00 [2.00, ∞]"),
        (0.0, -0.5, 0.5, "0 [−0.500, 0.500]"),
        (3.0, 3.0, 3.0, "3"),
        (3.0, math.nan, math.nan, "3"),
    ],
)
def test_digits_show_the_interval(value: float, low: float, high: float, text: str) -> None:
    assert with_interval(value, low, high) == text


def test_shares_are_percentages() -> None:
    assert percent(0.1961) == "19.6 %" and percent(-0.02) == "−2.0 %"
    assert with_interval(0.288, 0.208, 0.368, percent) == "28.8 % [20.8 %, 36.8 %]"


def test_plain_numbers_can_be_read_by_a_program() -> None:
    assert [plain(x) for x in (9086.2, 0.00032412, 1.5, math.inf)] == ["9086", "0.0003241", "1.5", "inf"]
    assert with_error(653.72, 48.21) == "653.7 ± 48" and with_error(653.72, math.nan) == "653.7"


def test_the_module_is_light() -> None:
    code = "import sys, mfdiag.numbers; sys.exit(bool({'numpy', 'pandas', 'torch'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
