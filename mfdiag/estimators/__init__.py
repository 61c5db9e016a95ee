"""The estimators: one file each, found by name. Importing this package does not import torch."""

from __future__ import annotations

import importlib
import pkgutil

from mfdiag.errors import InputError, did_you_mean
from mfdiag.estimators._base import Estimator

__all__ = ["Estimator", "estimators", "find_estimator"]


def estimators() -> dict[str, Estimator]:
    """Name -> estimator, one for each public file of this package."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    found = (importlib.import_module(f"{__name__}.{name}").ESTIMATOR for name in names)
    return {estimator.name: estimator for estimator in found}


def find_estimator(spec: str) -> Estimator:
    """The estimator named by `NAME` or `NAME:arguments`; InputError with 'did you mean' for unknown names."""
    name, _, arguments = spec.partition(":")
    known = estimators()
    if name not in known:
        raise did_you_mean("estimator", name, known)
    found = known[name]
    if found.parse is not None:
        return found.parse(arguments)
    if arguments:
        raise InputError(f"Estimator {name!r} takes no arguments; got {arguments!r}.")
    return found
