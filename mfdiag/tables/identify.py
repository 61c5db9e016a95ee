"""The table that `mfdiag identify` writes: how well each reading explains a file."""

from __future__ import annotations

from mfdiag.tables.columns import table_of
from mfdiag.tables.fields import Column, Quantity

__all__ = ["IDENTIFY"]

IDENTIFY = table_of(
    "identify",
    "identify",
    "How well each convention explains a checkpoint, on the same samples, the best first. The declared convention is "
    "always listed. docs/theory.md#conventions derives the quantities.",
    (
        Column(
            "rank", "int64", "1 for the convention of least misfit; 0 for one in which the network explains nothing."
        ),
        Column("reading", "string", "What differs from the declared convention, as fields of a card."),
        Column("verdict", "string", "What the misfits say.", choices=("best", "tied", "worse", "declared")),
        Column("call", "string", "What is passed for r and t, such as r,t; t,r; h,t (h = t - r)."),
        Column("direction", "string", "D0: data at time 0. D1: data at time 1.", choices=("D0", "D1")),
        Column("sign", "int64", "1, or -1 where the network predicts the negative."),
        Column("time_scale", "float64", "Factor on every time that is passed."),
        Column("prediction", "string", "What the network predicts, as --prediction."),
        Column("data_factor", "float64", "Factor on the declared data."),
        Column("data_shift", "float64", "Added to the declared data after that."),
        Column("weights", "string", "Set of weights."),
        Column("labels", "string", "declared, dropped, or the offset that is added to class numbers."),
    ),
    Quantity(
        "misfit",
        "E[q_v / (1 + q_v)] + E[q_s / (1 + q_s)]",
        "1",
        "What the convention leaves unexplained, from 0 to 2; comparable across scales of the data.",
        kind="nonnegative",
    ),
    Quantity(
        "misfit_difference",
        "misfit - misfit of the best",
        "1",
        "Paired, on the same samples; null for the best.",
    ),
    Quantity(
        "skill",
        "1 - E[q_v / (1 + q_v)] / E[q_v / (1 + q_v)] at u = 0",
        "1",
        "What the network's output explains; near 0 before training in every convention.",
    ),
    Quantity(
        "velocity_error",
        "D_v = E|u(x_t,t,t) - v|^2 / E|v|^2",
        "1",
        "1 for a network that is zero. v_c stands for v where the posterior is not computed.",
        kind="nonnegative",
    ),
    Quantity(
        "median_velocity_error",
        "median |u(x_t,t,t) - v|^2 / median |v|^2",
        "1",
        "Small in a healthy network even where a weighting with p = 1 leaves the mean large.",
        kind="nonnegative",
    ),
    Quantity(
        "interval_defect",
        "D_s = E|(t-r) u(x_t,r,t) - (t-s) u(x_t,s,t) - (s-r) u(x_s,r,s)|^2 / E|(t-s) u(x_t,s,t) + (s-r) u(x_s,r,s)|^2",
        "1",
        "Whether averages over [r, s] and [s, t] make that over [r, t]; null where every pair has r = t.",
        kind="nonnegative",
    ),
)
