"""The share of pairs with r != t in a specification of times: its name, and how older versions wrote it.

Up to version 0.2 the share of `uniform` and `mean_audio` was r_eq_t, the fraction of pairs with r = t. In all samplers
it is now r_ne_t, the fraction with r != t. Names of samplers and files that are written spell it `r_ne_t=`, so a share
without a name in a stored specification is of an older version.
"""

from __future__ import annotations

from decimal import Decimal

__all__ = ["SHARE", "current_spelling", "share_note"]

SHARE = "r_ne_t"
"""Name of the argument of samplers that is the fraction of pairs with r != t."""

_BEFORE = "r_eq_t"
_ARGUMENTS = {  # samplers whose share was r_eq_t
    "uniform": (_BEFORE, "shift"),
    "mean_audio": ("progress", "switch", _BEFORE, "mu", "sigma"),
}


def current_spelling(spec: str, *, stored: bool = False) -> str:
    """A specification of times with its share spelled `r_ne_t=`, where older versions had r_eq_t.

    Args:
        spec: The specification, as for --times. What is no sampler of this kind comes back as it is.
        stored: Whether it comes from a file that mfdiag wrote, in which a share without a name is r_eq_t.

    Returns:
        The specification, with the share and what follows it spelled by name.
    """
    kind, _, text = spec.partition(":")
    names, pieces = _ARGUMENTS.get(kind, ()), text.split(",")
    if not text or len(pieces) > len(names):
        return spec
    spelled = []
    for name, piece in zip(names, map(str.strip, pieces), strict=False):
        key, is_named, value = map(str.strip, piece.partition("="))
        if not is_named:
            key, value = (name, piece) if names.index(name) >= names.index(_BEFORE) else ("", piece)
        if key == _BEFORE:
            key, value = SHARE, _complement(value) if is_named or stored else value
        spelled.append(f"{key}={value}" if key else value)
    return f"{kind}:{','.join(spelled)}"


def share_note(spec: str) -> str | None:
    """What to say of a specification by the user whose share an older version read otherwise; None for any other."""
    spelled = current_spelling(spec)
    if _BEFORE in spec and spelled != spec:
        return f"--times {spec} has the old spelling of a share and is read as {spelled}: r_ne_t = 1 - r_eq_t."
    if spelled == current_spelling(spec, stored=True):
        return None
    return (
        f"--times {spec} is read as {spelled}: r_ne_t is the fraction of pairs with r != t. Up to version 0.2 this "
        "argument was the fraction with r = t. Spell it by name to avoid this note."
    )


def _complement(value: str) -> str:
    """1 - value in decimal digits, exact; other text as it is, for the parser to refuse."""
    try:
        return str(1 - Decimal(value))
    except ArithmeticError:
        return value
