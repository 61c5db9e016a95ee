"""Which methods of the family training takes; does not import torch."""

from __future__ import annotations

from mfdiag.errors import InputError
from mfdiag.estimators import Estimator, find_estimator
from mfdiag.usercode import is_user_code

__all__ = ["is_trainable", "trainable_estimator"]


def trainable_estimator(spec: str) -> Estimator:
    """The estimator of a specification's `loss.estimator`; code in a file is not run.

    Raises:
        InputError: It is unknown, in a file, a point of the plane, or needs something that training does not have.
    """
    if ".py:" in spec or is_user_code(spec):
        raise InputError(
            f"{spec} is code in a file, which training does not take; pass a name of `mfdiag list estimators`."
        )
    estimator = find_estimator(spec)
    if estimator.coefficients is not None:
        beta, gamma = estimator.coefficients
        raise InputError(
            f"{spec} is a point of the plane: set loss.beta to {beta:g} and loss.gamma to {gamma:g} instead."
        )
    if lacking := [name for name in estimator.needs.networks if name != "ema"]:
        raise InputError(f"{spec} needs a {lacking[0]}, which training does not have; choose another estimator.")
    if estimator.needs.others:
        raise InputError(
            f"{spec} draws other samples for each sample, which training does not; choose another estimator."
        )
    return estimator


def is_trainable(spec: str) -> bool:
    """Whether `trainable_estimator` accepts the specification."""
    try:
        trainable_estimator(spec)
    except InputError:
        return False
    return True
