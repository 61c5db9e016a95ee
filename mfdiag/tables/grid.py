"""The table that `mfdiag report` derives from those of a grid of models."""

from __future__ import annotations

from mfdiag.tables.columns import GRADIENT2, table_of
from mfdiag.tables.fields import Column, Quantity

__all__ = ["GRID"]

GRID = table_of(
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
    Quantity("variance", "tr Cov G at beta", GRADIENT2, "Of models trained at beta, measured at this beta."),
    Quantity(
        "variance_ratio",
        "variance at 0 / variance at beta",
        "1",
        "Factor by which training at beta lowers the gradient variance, paired by seed.",
    ),
    Quantity("variance_at_0", "tr Cov G at beta", GRADIENT2, "Of models trained at 0, measured at beta."),
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
        "With the optimum moved into the range of betas that were trained; dataset all is the mean over data sets.",
    ),
)
