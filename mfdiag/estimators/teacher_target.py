"""Teacher target: the velocity of a flow-matching teacher as target alone, (0, 1); bias -b."""

from mfdiag.estimators.plane import point

__all__ = ["ESTIMATOR"]

# theory, section 2, with vhat = u_teacher(x_t, t, t); the teacher of MF-RAE's first stage stands in both roles
ESTIMATOR = point(
    "teacher_target",
    "conditional tangent, a teacher's velocity as target",
    "MF-RAE; theory, section 2",
    0.0,
    1.0,
    proxy="teacher",
    formula="u + (t-r) [du/dx v_c + du/dt] - v_teacher",
)
