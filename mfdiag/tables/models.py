"""Tables of training, of sample quality, and of grids of models."""

from __future__ import annotations

from mfdiag.tables.columns import GRADIENT2, table_of
from mfdiag.tables.fields import Column, Quantity

__all__ = ["TABLES"]

TABLES = (
    table_of(
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
            GRADIENT2,
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
    table_of(
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
    table_of(
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
    ),
)
