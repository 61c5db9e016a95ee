"""The one description of every table: columns, quantities and statuses. Checks, Arrow schemas and docs come from it."""

from __future__ import annotations

from mfdiag.errors import did_you_mean
from mfdiag.tables.fields import Column, Quantity, Status, Table

__all__ = ["COMMON", "MEASURED", "STATUSES", "TABLES", "table"]

COMMON = (
    Column("run", "string", "Name of the run the checkpoint comes from."),
    Column("checkpoint", "string", "Name or path of the checkpoint, as given."),
    Column("checkpoint_sha256", "string", "SHA-256 of the checkpoint file, in hexadecimal.", nullable=True),
    Column(
        "step", "int64", "Optimiser steps taken when the checkpoint was saved; null if it does not say.", nullable=True
    ),
    Column("dataset", "string", "Name or path of the data the samples are drawn from."),
    Column(
        "estimator",
        "string",
        "Method that is measured, plane for every (beta, gamma); null where the quantity belongs to the model.",
        nullable=True,
    ),
    Column(
        "proxy",
        "string",
        "Source of the proxy velocity vhat (self, ema, exact, teacher=PATH); null where none is used.",
        nullable=True,
    ),
    Column("weighting", "string", "Per-sample weight w (none, adaptive:p,eps); null where none enters.", nullable=True),
    Column(
        "times",
        "string",
        "Sampler of (r, t) with its arguments, such as uniform:0; null where none enters.",
        nullable=True,
    ),
    Column("seed", "int64", "Seed of the samples: sample i depends on (seed, i) alone."),
)

MEASURED = (
    Column("quantity", "string", "Which quantity the row holds; each table lists its own."),
    Column("value", "float64", "The estimate, in the unit of its quantity.", nullable=True),
    Column("std_error", "float64", "Standard error of value, in the same unit; null where none exists.", nullable=True),
    Column("ci_low", "float64", "Lower end of the two-sided 95 % interval, in the unit of value.", nullable=True),
    Column("ci_high", "float64", "Upper end of the two-sided 95 % interval, in the unit of value.", nullable=True),
    Column("n_samples", "int64", "Number of samples behind the value: (x_0, x_1, r, t), in quality of the model."),
    Column("status", "string", "ok, or why the value should not be trusted."),
)

STATUSES = {
    status.name: status
    for status in (
        Status("ok", "The estimate passed every check.", "None needed."),
        Status(
            "too_few_samples",
            "The cell holds fewer samples than its interval needs (64).",
            "Raise --samples, or ask for fewer --bins.",
        ),
        Status(
            "negative_estimate",
            "An unbiased estimate of something that cannot be negative came out below zero: the truth is smaller than "
            "the noise of the estimate. The value is kept, not clamped.",
            "Take it as zero to within variance / n_samples; raise --samples, or measure on data with a known "
            "posterior, where the mean is estimated with far less noise.",
        ),
        Status(
            "degenerate_control",
            "The control variate hardly varies (as A does at r = t, or where vhat equals v_c), so that the "
            "coefficient's denominator is zero within its noise.",
            "There is nothing to tune here: keep r = t out of --times, ask for fewer --bins, or take another --proxy.",
        ),
        Status(
            "outside_unit_interval",
            "The optimal coefficient lies outside [0, 1]. This can be real; the isotropic form also has a pole at "
            "kappa = -1.",
            "Compare the matrix and gradient forms before acting on it; values are never clipped.",
        ),
        Status(
            "nonfinite",
            "The value, or a number it is made of, is NaN or infinite.",
            "Inspect the checkpoint, use --dtype float64, or raise eps of an adaptive weighting.",
        ),
    )
}

_LAYER = Column("layer", "string", "Name of the layer whose parameters are counted; all for the whole network.")
_BINS = tuple(
    Column(f"{time}_{end}", "float64", f"{word} edge of the bin of {time}, in [0, 1]; null over all {time}.", True)
    for time in ("r", "t")
    for end, word in (("low", "Lower"), ("high", "Upper"))
)

_GRADIENT2 = "(loss/parameter)²"
_MOMENT = f"{_GRADIENT2}; velocity² in space=output"


def _table(name: str, command: str, doc: str, keys: tuple[Column, ...], *quantities: Quantity) -> Table:
    return Table(name, command, doc, (*COMMON, *keys, *MEASURED), keys, {entry.name: entry for entry in quantities})


_VARIANCE = Quantity(
    "variance",
    "tr Cov G",
    _GRADIENT2,
    "Trace of the covariance of the per-sample gradient G over x_0, x_1, r and t.",
)
_CONDITIONAL = Quantity(
    "conditional_variance",
    "E[tr Cov(G | x_t, r, t)]",
    _GRADIENT2,
    "The part of variance left once (x_t, r, t) is given; needs a posterior over the data.",
)

TABLES = {
    entry.name: entry
    for entry in (
        _table(
            "sweep",
            "sweep",
            "Variance, bias and mean squared error at each point of the plane (beta, gamma).",
            (
                Column(
                    "space",
                    "string",
                    "What is measured: the per-sample gradient, or the residual e in output space.",
                    choices=("gradient", "output"),
                ),
                Column("beta", "float64", "Coefficient of the tangent: 0 is v_c, 1 is vhat."),
                Column("gamma", "float64", "Coefficient of the target: 0 is v_c, 1 is vhat."),
                Column("batch_size", "int64", "The n of mse, in samples; 1 for the other quantities, per sample."),
                _LAYER,
                *_BINS,
            ),
            Quantity(
                "variance",
                "(1,c) S (1,c)^T; tr Cov e in space=output",
                _MOMENT,
                "Trace of the covariance of the per-sample gradient (space=gradient) or of the residual e "
                "(space=output).",
            ),
            Quantity(
                "conditional_variance",
                "E[tr Cov(G | x_t, r, t)]; E[tr Cov(e | x_t, r, t)] in space=output",
                _MOMENT,
                "The part of variance left once (x_t, r, t) is given; needs a posterior over the data.",
            ),
            Quantity(
                "bias2",
                "c M_cc c^T; E|(beta A - gamma I) b|^2 in space=output",
                _MOMENT,
                "Squared norm of the mean gradient's difference to the unbiased corner (0, 0): an unbiased estimate, "
                "which may be negative (space=gradient); or mean squared bias of the residual (space=output).",
            ),
            Quantity(
                "mse",
                "variance/n + bias2; conditional_variance/n + bias2 in space=output",
                _MOMENT,
                "Mean squared error of a batch of n = batch_size samples against the unbiased mean.",
            ),
        ),
        _table(
            "variance",
            "variance",
            "Gradient statistics of each estimator, and Jacobian statistics of the model.",
            (_LAYER, *_BINS),
            _VARIANCE,
            _CONDITIONAL,
            Quantity(
                "mean_norm2",
                "|E G|^2 = (|sum_i G_i|^2 - sum_i |G_i|^2) / (N (N-1))",
                _GRADIENT2,
                "Squared norm of the mean gradient, estimated without bias: may be negative.",
            ),
            Quantity(
                "noise_scale",
                "variance / mean_norm2",
                "samples",
                "Batch size at which noise and signal are equal (simple noise scale, arXiv 1812.06162).",
            ),
            Quantity(
                "snr",
                "mean_norm2 / variance",
                "1",
                "Signal-to-noise ratio, in power, of one sample's gradient: the inverse of noise_scale, finite where "
                "the mean vanishes.",
            ),
            Quantity(
                "top1_share",
                "sum of the largest 1 % of |G_i|^2 / sum_i |G_i|^2",
                "1",
                "Share of the squared gradient norm that one sample in a hundred carries; 0.01 if all were equal.",
            ),
            Quantity(
                "tail_index",
                "Hill's alpha in P(|G|^2 > x) ~ x^-alpha",
                "1",
                "Weight of the upper tail of |G|^2: at 2 or below the variance's own interval is unreliable, at 1 or "
                "below there is no finite variance.",
            ),
            Quantity("jacobi_fro2", "E|J|_F^2", "1", "Mean squared Frobenius norm of the Jacobi factor J = A - I."),
            Quantity("jacobi_spectral", "E|J|_2", "1", "Mean largest singular value of the Jacobi factor."),
            Quantity("kappa_signed", "E[tr(J)] / d", "1", "Signed kappa: mean diagonal entry of the Jacobi factor."),
            Quantity("kappa_magnitude", "sqrt(E|J|_F^2 / d)", "1", "Magnitude kappa: root mean square gain of J."),
            Quantity("loss_variance", "Var(w |e|^2)", "loss²", "Variance of the per-sample loss."),
        ),
        _table(
            "coefficient",
            "coefficient",
            "Closed-form optimal coefficients, and what they are made of.",
            (
                Column(
                    "form",
                    "string",
                    "isotropic: kappa/(kappa+1) sigma2d/(sigma2d + bias2); diagonal: the one beta that is best over "
                    "all coordinates, each with its own J_ii, Sigma_ii, b_i; "
                    "matrix: tr(A Sigma J^T) / (tr(A Sigma A^T) + |A b|^2); plane: beta and gamma together, from "
                    "the residual; gradient: from the moments S and M of the gradients.",
                    choices=("isotropic", "diagonal", "matrix", "plane", "gradient"),
                ),
                Column(
                    "role",
                    "string",
                    "Which coefficient: beta (tangent) or gamma (target).",
                    choices=("tangent", "target"),
                ),
                Column(
                    "batch_size",
                    "int64",
                    "Batch n the optimum is for, in samples; null for n -> 0 or where n does not enter.",
                    True,
                ),
                _LAYER,
                *_BINS,
                Column(
                    "kappa_kind",
                    "string",
                    "Kappa an isotropic row uses: signed, tr(J)/d, or magnitude, |J|_F/sqrt(d); null otherwise.",
                    nullable=True,
                    choices=("signed", "magnitude"),
                ),
            ),
            Quantity(
                "optimum",
                "argmin_c MSE_n(c); gradient form: -(S_cc + n M_cc)^(-1) S_c0",
                "1",
                "Optimal coefficient, by total gradient variance and bias (gradient form), or by the conditional noise "
                "and bias of the residual (the others); may lie outside [0, 1].",
            ),
            Quantity(
                "conditional_optimum",
                "the same from conditional S",
                "1",
                "Gradient form if only the noise given (x_t, r, t) counts; needs a posterior.",
            ),
            Quantity(
                "critical_batch",
                "n0 = S_bb / M_bb",
                "samples",
                "Batch size at which the optimal coefficient has fallen to half its value at n -> 0.",
            ),
            Quantity(
                "variance_reduction",
                "Var(0,0) / Var(optimum)",
                "1",
                "Factor by which the optimum cuts the gradient variance, on held-out samples; above 1 is better.",
            ),
            Quantity("kappa", "tr(J)/d or |J|_F/sqrt(d)", "1", "Kappa of the isotropic form; kappa_kind says which."),
            Quantity("sigma2d", "tr Sigma", "velocity²", "Conditional variance of the conditional velocity, summed."),
            Quantity("bias2", "|b|^2", "velocity²", "Mean squared norm of the proxy's bias b = vhat - v."),
        ),
        _table(
            "compare",
            "compare",
            "Every estimator on the same samples, each held against MeanFlow, and their best linear mixture (estimator "
            "mixture). Rows of single layers are over all times, rows of time bins over the whole network.",
            (
                Column("batch_size", "int64", "Batch n of mse and of the mixture; null where n does not enter.", True),
                _LAYER,
                *_BINS,
            ),
            _VARIANCE,
            _CONDITIONAL,
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
                _GRADIENT2,
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
            Quantity("mse", "variance/n + bias2", _GRADIENT2, "Mean squared error of a batch of n = batch_size."),
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
        _table(
            "training",
            "train",
            "The course of training of each model of a grid; beta and gamma are those it is trained with, the "
            "checkpoint and its hash are the model it became.",
            (
                Column("cell", "string", "Name of the model in the grid, which is its folder."),
                Column("beta", "float64", "Coefficient of the tangent in the training loss."),
                Column("gamma", "float64", "Coefficient of the target in the training loss."),
                Column("anchor", "float64", "Coefficient lambda of the flow-matching anchor; 0 without."),
            ),
            Quantity("loss", "mean of the loss", "loss", "Mean over the steps since the row before, anchor included."),
            Quantity(
                "grad_norm",
                "mean of |mean_i G_i|",
                "loss/parameter",
                "Norm of the batch gradient, mean over the steps since the row before.",
            ),
            Quantity(
                "variance",
                "tr Cov G at (beta, gamma)",
                _GRADIENT2,
                "Variance of the per-sample gradient of the model as it is at this step, at its own coefficients.",
            ),
            Quantity(
                "optimum",
                "-S_0b / S_bb",
                "1",
                "The tangent coefficient of least gradient variance for the model as it is at this step.",
            ),
            Quantity("steps", "steps", "steps", "Optimiser steps done; one row for each model, at its last step."),
        ),
        _table(
            "quality",
            "quality",
            "Distances between a model's samples and the data. Values of metrics of pairs depend on --subsample, those "
            "on features on the map: compare like with like.",
            (
                Column("metric", "string", "Name of the metric; see mfdiag list metrics."),
                Column(
                    "nfe",
                    "int64",
                    "Steps of the sampler, on an equal grid from t = 1 to 0: network evaluations per sample; null for "
                    "a sampling function.",
                    nullable=True,
                ),
                Column("weights", "string", "Set of weights (raw, ema or a key); null for a model in memory.", True),
                Column("features", "string", "Map the metric is taken under; null for the samples themselves.", True),
            ),
            Quantity("value", "as `mfdiag list metrics` says", "the metric's", "The metric of one model."),
            Quantity(
                "mean_over_seeds",
                "mean of value",
                "the metric's",
                "Mean over models that differ in the training seed alone, which stand in braces in checkpoint.",
            ),
        ),
        _table(
            "grid",
            "report",
            "A grid of models held against the coefficient it was trained with, from the other tables of its folder: "
            "means over training seeds with Student's t intervals. n_samples counts models, or data sets where dataset "
            "is all.",
            (
                Column("beta", "float64", "Coefficient of the tangent; null where the row is about all of them.", True),
                Column("metric", "string", "Metric of sample quality; null where none is meant.", nullable=True),
                Column("nfe", "int64", "Number of steps from noise to sample; null where none is meant.", True),
                Column("weights", "string", "Weights that were sampled from; null where none are meant.", True),
                Column("batch_size", "int64", "The n of the optimum, in samples; null where n does not enter.", True),
            ),
            Quantity("variance", "tr Cov G at beta", _GRADIENT2, "Of models trained at beta, measured at this beta."),
            Quantity(
                "variance_ratio",
                "variance at 0 / variance at beta",
                "1",
                "Factor by which training at beta lowers the gradient variance, paired by seed.",
            ),
            Quantity("variance_at_0", "tr Cov G at beta", _GRADIENT2, "Of models trained at 0, measured at beta."),
            Quantity("quality", "metric", "that of the metric", "Sample quality of models trained at beta."),
            Quantity("quality_ratio", "metric at beta / metric at 0", "1", "Paired by seed."),
            Quantity(
                "best_beta",
                "argmin over beta of quality",
                "1",
                "Trained beta of least distance; the interval spans those a paired t test does not tell from it.",
            ),
            Quantity("optimum", "beta*_n", "1", "Batch-aware optimum of the models trained at beta = 0."),
            Quantity(
                "prediction_error",
                "|optimum - best_beta|",
                "1",
                "With the optimum moved into the range of betas that were trained; dataset all is the mean over data "
                "sets.",
            ),
        ),
        _table(
            "samples",
            "variance",
            "Raw per-sample numbers, one row per sample and quantity; std_error and interval are null.",
            (
                Column("index", "int64", "Sample number i, from 0."),
                Column("r", "float64", "Start of the sample's time interval, in [0, 1]."),
                Column("t", "float64", "End of the sample's time interval, in [0, 1]."),
                Column("label", "int64", "Class label of the sample; null without labels.", nullable=True),
            ),
            Quantity("grad_norm2", "|G_i|^2", _GRADIENT2, "Squared norm of the per-sample gradient."),
            Quantity("loss", "w_i |e_i|^2", "loss", "Per-sample loss."),
        ),
    )
}


def table(name: str) -> Table:
    """The table called `name`. Raises InputError, with near names, for an unknown one."""
    if name not in TABLES:
        raise did_you_mean("table", name, TABLES)
    return TABLES[name]
