"""Columns that tables share, the statuses, and how a table is described."""

from __future__ import annotations

from mfdiag.tables.fields import Column, Quantity, Status, Table

__all__ = [
    "BINS",
    "COMMON",
    "CONDITIONAL_VARIANCE",
    "GRADIENT2",
    "LAYER",
    "MEASURED",
    "STATUSES",
    "VARIANCE",
    "gradient_table",
    "table_of",
]

COMMON = (
    Column("run", "string", "Name of the run the checkpoint comes from."),
    Column("checkpoint", "string", "Name or path of the checkpoint, as typed."),
    Column("checkpoint_sha256", "string", "SHA-256 of the checkpoint file, in hexadecimal.", nullable=True),
    Column(
        "step",
        "int64",
        "Optimizer steps taken when the checkpoint was saved; null if the file does not say.",
        nullable=True,
    ),
    Column("dataset", "string", "Name or path of the data the samples are drawn from."),
    Column(
        "estimator",
        "string",
        "Measured method; plane for every (beta, gamma); null if the quantity belongs to the model.",
        nullable=True,
    ),
    Column(
        "proxy",
        "string",
        "Source of the proxy velocity vhat (self, ema, exact, teacher=PATH); null if none is used.",
        nullable=True,
    ),
    Column("weighting", "string", "Loss weight per sample (none, adaptive:p,eps); null if none enters.", nullable=True),
    Column(
        "times",
        "string",
        "Sampler of (r, t) with its arguments, such as uniform:r_ne_t=0.25; null if none enters.",
        nullable=True,
    ),
    Column("seed", "int64", "Seed of the samples: sample i depends on (seed, i) alone."),
)

_DERIVATIVE = Column(
    "derivative",
    "string",
    "How du/dx v + du/dt was computed: jvp, exactly, or difference:h, by central differences of step h in time; null "
    "in tables of earlier versions, where it is jvp.",
    nullable=True,
    later=True,
)

MEASURED = (
    Column("quantity", "string", "Which quantity the row holds; each table lists its own."),
    Column("value", "float64", "The estimate, in the unit of its quantity.", nullable=True),
    Column("std_error", "float64", "Standard error of value, in the same unit; null if there is none.", nullable=True),
    Column("ci_low", "float64", "Lower end of the two-sided 95 % interval, in the unit of value.", nullable=True),
    Column("ci_high", "float64", "Upper end of the two-sided 95 % interval, in the unit of value.", nullable=True),
    Column(
        "n_samples", "int64", "Number of samples behind the value: of (x_0, x_1, r, t); in table quality, of the model."
    ),
    Column("status", "string", "ok, or why the value should not be trusted."),
)

STATUSES = {
    status.name: status
    for status in (
        Status("ok", "The estimate passed every check.", "None needed."),
        Status(
            "too_few_samples",
            "There are fewer samples than the interval needs: 64 in the cell; 500 in all for a variance, a loss "
            "variance and what is computed from them, because fewer do not show the tail; 2,000 in all for top1_share; "
            "200 with r < t in the cell for bias2 and critical_batch where others have r = t, and so no bias. In table "
            "quality, the bias of a metric of all samples exceeds its noise.",
            "Raise --samples, or use fewer --bins.",
        ),
        Status(
            "heavy_tail",
            "A few samples carry so much of the gradient, or of the loss, that its variance may not exist: the "
            "interval of the tail index reaches below 1.3, below 1 for a mean, or below 2 for the residual's variance. "
            "Where it reaches below 4, the tail of the data decides. The value grows with the number of samples, and "
            "its interval covers less than it claims.",
            "Read tail_index, top1_share and the largest rows of table samples. Do not act on this number; more "
            "samples alone may not help.",
        ),
        Status(
            "negative_estimate",
            "The whole interval of something that cannot be negative is below zero, or a number computed from a "
            "negative estimate, such as a cosine or a reciprocal, has no value or interval. A negative value whose "
            "interval reaches above zero is ok: the truth is smaller than the noise of the estimate. Values are kept, "
            "not clamped.",
            "Read it as zero to within variance / n_samples. Raise --samples, or use data with a known posterior, "
            "where the mean is estimated with far less noise.",
        ),
        Status(
            "degenerate_control",
            "The control variate hardly varies (as A does at r = t, or where vhat equals v_c), so that the "
            "coefficient's denominator is zero within its noise.",
            "There is nothing to tune here: leave r = t out of --times, use fewer --bins, or another --proxy.",
        ),
        Status(
            "outside_unit_interval",
            "The whole interval of the optimal coefficient lies outside [0, 1]. This can be real; the isotropic form "
            "also has a pole at kappa = -1.",
            "Compare the matrix and gradient forms before acting on it; values are never clipped.",
        ),
        Status(
            "nonfinite",
            "The value, or a number it is made of, is NaN or infinite.",
            "Inspect the checkpoint, use --dtype float64, or raise eps of an adaptive weighting.",
        ),
    )
}

LAYER = Column("layer", "string", "Layer whose parameters are counted; all for the whole network.")
BINS = tuple(
    Column(f"{time}_{end}", "float64", f"{word} edge of the bin of {time}, in [0, 1]; null over all {time}.", True)
    for time in ("r", "t")
    for end, word in (("low", "Lower"), ("high", "Upper"))
)

GRADIENT2 = "(loss/parameter)²"


def table_of(name: str, command: str, doc: str, keys: tuple[Column, ...], *quantities: Quantity) -> Table:
    """Describe a table: the common columns, its keys, the measured columns.

    Args:
        name: Name of the table and of its file.
        command: The command that writes it.
        doc: What its rows are, in one or two sentences.
        keys: Columns that identify its rows, besides the common ones.
        *quantities: The values of its column `quantity`.

    Returns:
        The description.
    """
    return Table(name, command, doc, (*COMMON, *keys, *MEASURED), keys, {entry.name: entry for entry in quantities})


VARIANCE = Quantity(
    "variance",
    "tr Cov G",
    GRADIENT2,
    "Trace of the covariance of the per-sample gradient G over x_0, x_1, r and t.",
    kind="nonnegative",
)
CONDITIONAL_VARIANCE = Quantity(
    "conditional_variance",
    "E[tr Cov(G | x_t, r, t)]",
    GRADIENT2,
    "The part of variance left once (x_t, r, t) is given; needs a posterior over the data.",
    kind="nonnegative",
)


def gradient_table(name: str, command: str, doc: str, keys: tuple[Column, ...], *quantities: Quantity) -> Table:
    """Describe a table about a model's gradients: `table_of` with a column for how the network was differentiated.

    Args:
        name: Name of the table and of its file.
        command: The command that writes it.
        doc: What its rows are, in one or two sentences.
        keys: Columns that identify its rows, besides the common ones.
        *quantities: The values of its column `quantity`.

    Returns:
        The description.
    """
    return table_of(name, command, doc, (*keys, _DERIVATIVE), *quantities)
