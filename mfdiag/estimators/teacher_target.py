"""Teacher target: the velocity of a flow-matching teacher as target, (0, 1); bias -b."""

from mfdiag.estimators.plane import plane_point

__all__ = ["ESTIMATOR"]

# docs/theory.md#plane with vhat = u_teacher(x_t,t,t). MF-RAE uses its teacher in both roles; here it is the target
# alone.
ESTIMATOR = plane_point(
    "teacher_target",
    "conditional tangent, a teacher's velocity as target",
    "after MF-RAE",
    0.0,
    1.0,
    proxy="teacher",
    formula="u + (t-r) [du/dx v_c + du/dt] - v_teacher",
)
