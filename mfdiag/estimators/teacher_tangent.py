"""Teacher tangent: the velocity of a flow-matching teacher as tangent, (1, 0); bias A b."""

from mfdiag.estimators.plane import plane_point

__all__ = ["ESTIMATOR"]

# docs/theory.md#plane with vhat = u_teacher(x_t,t,t). MF-RAE uses its teacher in both roles; here it is the tangent
# alone.
ESTIMATOR = plane_point(
    "teacher_tangent",
    "a teacher's velocity as tangent, conditional target",
    "after MF-RAE",
    1.0,
    0.0,
    proxy="teacher",
    formula="u + (t-r) [du/dx v_teacher + du/dt] - v_c",
)
