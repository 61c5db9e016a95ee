"""Numbers as text, for sentences, figures and tables that people read."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["percent", "plain", "significant", "with_error", "with_interval"]

_DIGITS = 3
_MOST_DIGITS = 6  # of a value with a very narrow interval; more are not read
_EXPONENT_FROM = 1e9


def significant(value: float, digits: int = _DIGITS) -> str:
    """Significant digits with separated thousands: 0.015, 1.71, 167,000, 2.5e+09; ∞ and −∞; ? for NaN."""
    if not math.isfinite(value):
        return "?" if math.isnan(value) else "∞" if value > 0 else "−∞"
    rounded = float(f"{value:.{digits}g}")
    whole = 10 ** (digits - 1) <= abs(rounded) < _EXPONENT_FROM
    return (f"{rounded:,.0f}" if whole else f"{rounded:,.{digits}g}").replace("-", "−")


def percent(share: float) -> str:
    """A share as a percentage with one decimal: 0.196 -> 19.6 %."""
    return f"{100 * share:.1f} %".replace("-", "−")


def with_interval(value: float, low: float, high: float, write: Callable[[float], str] | None = None) -> str:
    """A value and its 95 % interval: 654 [565, 758].

    All three have as many significant digits as it takes to show two digits of the interval's width, at least three.

    Args:
        value: The estimate.
        low: Lower end of the interval; NaN without one.
        high: Upper end of the interval; NaN without one.
        write: Writes each of the three instead, such as `percent`.

    Returns:
        The value alone where there is no interval, or one of width zero.
    """
    if write is None:
        digits = _digits_for_width(value, high - low)

        def write(x: float) -> str:
            return _padded(x, digits)

        alone = significant(value)
    else:
        alone = write(value)
    if low == high or not (math.isfinite(low) or math.isfinite(high)):
        return alone
    return f"{write(value)} [{write(low)}, {write(high)}]"


def _digits_for_width(value: float, width: float) -> int:
    """Significant digits of a value whose last digit is the second digit of `width`."""
    if value == 0 or not width > 0 or not math.isfinite(width) or not math.isfinite(value):
        return _DIGITS
    exponent, width_exponent = (math.floor(math.log10(abs(x))) for x in (value, width))
    return min(max(exponent - width_exponent + 2, _DIGITS), _MOST_DIGITS)


def _padded(value: float, digits: int) -> str:
    """`significant` with trailing zeros: 1.60."""
    if value == 0 or not math.isfinite(value) or abs(value) >= 10 ** (digits - 1):
        return significant(value, digits)
    return f"{value:#,.{digits}g}".rstrip(".").replace("-", "−")


def plain(value: float, digits: int = 4) -> str:
    """Significant digits that a program can read, without an exponent up to a million: 9086, 767, 0.000324."""
    return f"{float(f'{value:.{digits}g}'):g}"


def with_error(value: float, std_error: float, digits: int = 4) -> str:
    """A value and its standard error.

    Args:
        value: The estimate.
        std_error: Its standard error; NaN without one.
        digits: Significant digits of the value; the error has two.

    Returns:
        654.3 ± 48, or the value alone where there is no error.
    """
    return plain(value, digits) if math.isnan(std_error) else f"{plain(value, digits)} ± {plain(std_error, 2)}"
