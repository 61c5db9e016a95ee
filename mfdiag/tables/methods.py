"""Tables that hold methods against one another: estimators, and densities of (r, t)."""

from __future__ import annotations

from mfdiag.tables.columns import BINS, CONDITIONAL_VARIANCE, GRADIENT2, LAYER, VARIANCE, gradient_table
from mfdiag.tables.fields import Column, Quantity

__all__ = ["METHODS"]

METHODS = (
    gradient_table(
        "compare",
        "compare",
        "Every estimator on the same samples, each held against MeanFlow, and their best linear mixture (estimator "
        "mixture). Rows of single layers are over all times, rows of time bins over the whole network.",
        (
            Column("batch_size", "int64", "Batch n of mse and of the mixture; null where n does not enter.", True),
            LAYER,
            *BINS,
        ),
        VARIANCE,
        CONDITIONAL_VARIANCE,
        Quantity("variance_ratio", "variance / variance of MeanFlow", "1", "Below 1 is less noisy than MeanFlow."),
        Quantity(
            "conditional_variance_ratio",
            "conditional_variance / conditional_variance of MeanFlow",
            "1",
            "The same for the noise given (x_t, r, t); needs a posterior over the data.",
        ),
        Quantity(
            "bias2",
            "|E G - E G_MeanFlow|^2",
            GRADIENT2,
            "Squared distance of the mean gradient to MeanFlow's, which is unbiased for the regression on the "
            "marginal velocity: an unbiased estimate, which may be negative. For losses of another scale it tells "
            "of that too.",
        ),
        Quantity(
            "cosine",
            "<E G, E G_MeanFlow> / (|E G| |E G_MeanFlow|)",
            "1",
            "Cosine of the mean gradient to MeanFlow's, from unbiased products; may leave [-1, 1] by their noise.",
        ),
        Quantity("mse", "variance/n + bias2", GRADIENT2, "Mean squared error of a batch of n = batch_size."),
        Quantity("mse_ratio", "mse / mse of MeanFlow", "1", "Below 1 a batch of n is nearer to the truth."),
        Quantity(
            "cost",
            "evaluations + derivatives + 2 per backward pass",
            "forward passes",
            "What a training step costs per sample; follows from the method, so it has no interval.",
        ),
        Quantity(
            "mixture_weight",
            "argmin_w w (S/n + M) w, sum of w = 1",
            "1",
            "Weight of the estimator in the mixture of least mse at n, or of least variance where n is null.",
        ),
        Quantity(
            "mixture_gain",
            "mse of MeanFlow / mse of the mixture",
            "1",
            "The mixture fitted on every second block of samples and tried on the others; above 1 is better. "
            "Variances instead of errors where n is null.",
        ),
    ),
    gradient_table(
        "times",
        "times",
        "The density of (r, t) of least gradient variance beside the trained one, cell by cell, and what it gains. "
        "Fitted on the samples of seed, tried on those of seed + 1. The column times names the trained sampler.",
        (
            Column(
                "pairs",
                "string",
                "Which pairs of the cell are meant: all, those with r < t, or those with r = t.",
                choices=("all", "apart", "diagonal"),
            ),
            *BINS,
        ),
        Quantity(
            "trained_share",
            "p_c",
            "1",
            "Share of the cell under the trained sampler, by 2^20 quasi-random pairs, good to about 1e-5.",
        ),
        Quantity(
            "drawn_share",
            "q_c = floor p_c + (1 - floor) p_c m_c^1/2 / sum_c p_c m_c^1/2",
            "1",
            "Share of the cell under the new density, m_c being the cell's second_moment, or the mean one where there "
            "are too few samples. The weight of its samples is p_c / q_c.",
        ),
        Quantity("second_moment", "E[|G|^2 | cell]", GRADIENT2, "Mean squared norm of the unweighted gradient."),
        Quantity(
            "predicted_gain",
            "(sum_c p_c m_c - |E G|^2) / (sum_c p_c^2 m_c / q_c - |E G|^2)",
            "1",
            "Factor by which the new density divides the variance, by the samples it was fitted on.",
        ),
        Quantity(
            "unbounded_gain",
            "the same with floor = 0",
            "1",
            "The gain without a floor, at which weights have no bound.",
        ),
        Quantity("variance", "tr Cov G under p", GRADIENT2, "Under the trained sampler, on the samples of seed + 1."),
        Quantity(
            "weighted_variance",
            "tr Cov (p/q) G under q",
            GRADIENT2,
            "Of the weighted gradient under the new density, on the samples of seed + 1.",
        ),
        Quantity(
            "measured_gain",
            "variance / weighted_variance",
            "1",
            "Factor by which the new density divides the variance, on samples it was not fitted on.",
        ),
    ),
)
