"""What residuals and losses are computed from; public, for authors of estimators.

`Fields` is what an estimator gets for a batch, and `DifferentiableNetwork` is the network that a loss differentiates.
`FieldBuilder` makes fields from drawn samples. Importing this package imports torch, so files of estimators import it
under `typing.TYPE_CHECKING`.
"""

from mfdiag.fields.builder import FieldBuilder, FieldNeeds, Proxy
from mfdiag.fields.context import EvaluationContext
from mfdiag.fields.differentiable_network import DifferentiableNetwork, Loss
from mfdiag.fields.fields import Fields, Jacobian, PosteriorFields, Velocities, compute_fields
from mfdiag.fields.guided_velocity import GuidedVelocity
from mfdiag.fields.inputs import DerivativesAtPoint, Differentiate, Inputs, VelocityFunction

__all__ = [
    "DerivativesAtPoint",
    "DifferentiableNetwork",
    "Differentiate",
    "EvaluationContext",
    "FieldBuilder",
    "FieldNeeds",
    "Fields",
    "GuidedVelocity",
    "Inputs",
    "Jacobian",
    "Loss",
    "PosteriorFields",
    "Proxy",
    "Velocities",
    "VelocityFunction",
    "compute_fields",
]
