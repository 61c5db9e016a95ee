"""The estimators: one file each, looked up by name. Importing this package does not import torch.

Other packages add their own by an entry point of the group `mfdiag.estimators` that names an `Estimator`. An estimator
in a file is passed as FILE.py:name.
"""

from __future__ import annotations

import sys
from types import ModuleType

from mfdiag.errors import InputError, did_you_mean
from mfdiag.estimators._base import Estimator, Needs
from mfdiag.plugins import files_of, installed
from mfdiag.usercode import load_user_object

__all__ = ["DEFAULT_ESTIMATORS", "GROUP", "Estimator", "Needs", "estimators", "find_estimator"]

GROUP = "mfdiag.estimators"
"""Group of the entry points by which other packages add estimators."""


DEFAULT_ESTIMATORS = ("meanflow", "ema_tangent")
"""Names of the estimators that are measured if none are requested: before and after the paper's remedy."""


def estimators() -> dict[str, Estimator]:
    """Name -> estimator: one for each public file of this package, then those of other packages.

    Raises:
        InputError: An entry point cannot be loaded, is not an estimator, or has a name that is already in use.
    """
    built_in = {estimator.name: estimator for estimator in files_of(__name__, "ESTIMATOR")}
    return built_in | {e.name: e for e in installed(GROUP, Estimator, frozenset(built_in))}


def find_estimator(spec: str) -> Estimator:
    """Look up `NAME`, `NAME:arguments`, `FILE.py:name` or `FILE.py:name:arguments`; the code of a file is executed.

    Raises:
        InputError: The name is unknown ('did you mean'), the file does not define the estimator, or the arguments are
            not accepted.
    """
    file, is_file, rest = spec.partition(".py:")
    if is_file:
        attribute, _, arguments = rest.partition(":")
        estimator = load_user_object(f"{file}.py:{attribute}", "--estimator")
        if not isinstance(estimator, Estimator):
            kind = type(estimator).__name__
            raise InputError(f"Expected {attribute!r} in {file}.py to be an mfdiag Estimator, but its type is {kind}.")
    else:
        name, _, arguments = spec.partition(":")
        known = estimators()
        if name not in known:
            raise did_you_mean("estimator", name, known)
        estimator = known[name]
    if estimator.parse is not None and (arguments or estimator.template):
        return estimator.parse(arguments)
    if arguments:
        raise InputError(f"Estimator {estimator.name!r} takes no arguments; got {arguments!r}.")
    return estimator


class _CallablePackage(ModuleType):
    """`mfdiag.estimators` is a public function and this package: importing the package must not take the call away."""

    def __call__(self) -> dict[str, Estimator]:
        return estimators()


sys.modules[__name__].__class__ = _CallablePackage
