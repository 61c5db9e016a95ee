"""The planted faults: each changes one line of the plain loop, as somebody got it wrong in a public thread or here.

`expected` lists the codes of findings (docs/doctor.md) that name the fault. Most are one code; where two findings are
true statements of the same mistake, both count.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from cases import Case
from torch import Tensor
from training_loop import Params, Step, sorted_pairs


def _scale_layer(factor: float, params: Params) -> None:
    """One hidden layer starts `factor` times too large: a layer added to a pretrained network, say."""
    names = [name for name in params if name.endswith("weight") and params[name].ndim == 3]
    params[names[len(names) // 2]].mul_(factor)


def _round_to_bf16(params: Params, progress: float) -> None:
    for value in params.values():
        value.copy_(value.bfloat16())


def _store_bf16(raw: Params, ema: Params) -> None:
    for weights in (raw, ema):
        weights.update({name: value.bfloat16() for name, value in weights.items()})


def _spoil(value: float, average: bool, raw: Params, ema: Params) -> None:
    weights = ema if average else raw
    weights[list(weights)[len(weights) // 2]].view(-1)[0] = value


def _early_times(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    r, t = sorted_pairs(n, generator)
    return r / 2, t / 2


def _difference(step: float, s: Step) -> Tensor:
    """The derivative by a one-sided difference along the path, in float32."""
    column = (-1, *[1] * (s.x.ndim - 1))
    h = torch.full_like(s.t, step)
    du = (s.u_of(s.x + h.view(column) * s.v, s.r, s.t + h) - s.u) / step
    return s.u - (s.v - s.gap * du).detach()


def _outliers(share: float, factor: float, points: np.ndarray) -> np.ndarray:
    every = round(1 / share)
    rows = (np.arange(len(points)) % every == 0)[:, None]
    return np.where(rows, factor * points, points)


def _student(freedom: float, points: np.ndarray) -> np.ndarray:
    """The points, each times the radius of a Student t distribution: heavy tails, and the same directions."""
    chi2 = np.random.default_rng(0).chisquare(freedom, len(points))
    return points / np.sqrt(chi2 / freedom)[:, None]


def guided(omega: float, net: object, x: Tensor, t: Tensor, y: Tensor, null: int, v: Tensor) -> Tensor:
    """omega v + (1 - omega) u(x_t, t, t, null), as MeanFlow guides; samples without a label keep v."""
    free = net(x, t, t, torch.full_like(y, null)).detach()  # type: ignore[operator]
    keep = (y == null).view(-1, *[1] * (x.ndim - 1))
    return torch.where(keep, v, omega * v + (1 - omega) * free)


_GUIDANCE = {"guidance": "meanflow:2,drop=0.1"}
_STEPS = ("step_size_too_large", "diverged")
_TAILS = ("outliers_in_data", "heavy_tail", "few_samples_dominate")

_SMALL = {"severity": "mild", "networks": ("mlp",)}  # a second degree, on the network that trains fastest

FAULTS = [
    # how the file is read
    Case("times_swapped", {"call": lambda net, x, r, t, y: net(x, t, r, y)}, ("times_swapped",),
         "The network takes (x, t, r); it is read as (x, r, t)."),
    Case("interval_for_r", {"call": lambda net, x, r, t, y: net(x, t - r, t, y)}, ("interval_for_r",),
         "The network takes t - r where it is read as taking r."),
    Case("reversed_time", {"point": lambda x0, x1, t: (1 - t) * x1 + t * x0, "velocity": lambda x0, x1: x0 - x1},
         ("reversed_time",), "Trained with data at t = 1; read with data at t = 0 (splitmeanflow #2)."),
    Case("times_1000", {"call": lambda net, x, r, t, y: net(x, 1000 * r, 1000 * t, y)},
         ("wrong_time_scale", "exploding_derivative"),
         "Trained on times up to 1000, as diffusion models are; read with times up to 1.", networks=("mlp",)),
    Case("times_1000", {"call": lambda net, x, r, t, y: net(x, 1000 * r, 1000 * t, y),
                        "architecture": {"time_scale": 1e-3}},
         ("wrong_time_scale",), "The network divides times by 1000 itself; it is read with times up to 1.",
         networks=("dit",)),
    Case("data_scale", {"data": lambda x0: 5.5 * x0}, ("wrong_data_scale",),
         "Trained on latents divided by 0.18; read with scaled ones.", "severe"),
    Case("data_scale", {"data": lambda x0: 2 * x0}, ("wrong_data_scale",),
         "Trained on data twice as large as those it is read with.", **_SMALL),
    Case("data_shift", {"data": lambda x0: 0.5 * x0 + 0.5}, ("wrong_data_scale",),
         "Trained on pixels in [0, 1]; read with pixels in [-1, 1]."),
    Case("velocity_negated", {"velocity": lambda x0, x1: x0 - x1}, ("wrong_sign",),
         "v = data - noise, although data are at t = 0."),
    # the target
    Case("derivative_added", {"residual": lambda s: s.u - (s.v + s.gap * s.du).detach()},
         ("wrong_sign", "wrong_tangent", "exploding_derivative"),
         "u_tgt = v + (t - r) du/dt: the derivative feeds itself, and grows."),
    Case("tangents_swapped", {"tangents": lambda v, t: (v, 0 * t + 1, 0 * t)}, ("wrong_tangent",),
         "jvp(u, (x, r, t), (v, 1, 0)): the tangents of r and t are exchanged."),
    Case("velocity_left_out", {"tangents": lambda v, t: (0 * v, 0 * t, 0 * t + 1)}, ("wrong_tangent",),
         "jvp(u, (x, r, t), (0, 0, 1)): a partial derivative instead of the total one."),
    Case("tangent_negated", {"tangents": lambda v, t: (-v, 0 * t, 0 * t + 1)}, ("wrong_tangent", "wrong_sign"),
         "jvp(u, (x, r, t), (-v, 0, 1))."),
    Case("both_times_moved", {"tangents": lambda v, t: (v, 0 * t + 1, 0 * t + 1)}, ("wrong_tangent",),
         "jvp(u, (x, r, t), (v, 1, 1)): right for a network that takes t - r, wrong for one that takes r."),
    Case("gap_left_out", {"residual": lambda s: s.u - (s.v - s.du).detach()},
         ("interval_factor_missing", "wrong_tangent"),
         "u_tgt = v - du/dt, without t - r."),
    Case("difference_too_coarse", {"residual": partial(_difference, 0.3)},
         ("wrong_tangent", "intervals_not_learned", "exploding_derivative"),
         "du/dt by a one-sided difference of step 0.3 (rcm #30)."),
    Case("stop_gradient_missing", {"residual": lambda s: s.u - (s.v - s.gap * s.du)}, ("missing_stop_gradient",),
         "The target is not detached."),
    Case("fresh_noise", {"velocity": lambda x0, x1: x1.roll(1, 0) - x0}, ("wrong_target",),
         "The target draws new noise instead of the noise in x_t."),
    Case("never_apart", {"times": partial(sorted_pairs, share=0.0)}, ("intervals_not_learned", "wrong_tangent"),
         "The mask of pairs with r = t is always true (owl-vaes #41)."),
    Case("times_too_early", {"times": _early_times}, ("times_not_covered",),
         "Times are divided by two before training, so t > 0.5 is never seen."),
    Case("weight_not_detached", {"power": 1.0, "weight_detached": False},
         ("missing_stop_gradient", "uninformative_loss"),
         "The adaptive weight is not detached, so the loss is L / (L + c) and its gradient vanishes (zhuyu #1)."),
    Case("loss_pinned", {"power": 1.0}, ("uninformative_loss",),
         "p = 1: the logged loss is 1 at every step (zhuyu #1, #38; py-meanflow #1).",
         options={"weighting": "adaptive:1,0.001"}),
    # averages
    Case("ema_never_updated", {"ema_decay": None}, ("stale_ema",),
         "The update of the average is never called (diffusers #5783; ai-toolkit #524)."),
    Case("ema_too_slow", {"ema_decay": 0.9999}, ("stale_ema",),
         "A decay of 0.9999 in a run of 1,000 steps, without warm-up.", ema_decay=0.9999),
    Case("ema_too_fast", {"ema_decay": 0.0}, ("short_ema",), "The average is a copy: decay 0 (diffusers #1864).",
         "severe", ema_decay=0.999),
    Case("ema_too_fast", {"ema_decay": 0.5}, ("short_ema",), "The decay ends at 0.5 by a bug (diffusers #1864).",
         ema_decay=0.999, **_SMALL),
    # labels
    Case("labels_never_dropped", {"guided": partial(guided, 2.0), "dropout": 0.0}, ("label_dropout_missing",),
         "Guidance uses the null label, but no label is ever dropped.", options=_GUIDANCE, labeled=True),
    Case("dropped_to_class_0", {"guided": partial(guided, 2.0), "dropout": 0.1, "null": 0},
         ("label_dropout_missing",), "Dropped labels become class 0, not the null label.",
         options=_GUIDANCE, labeled=True),
    Case("labels_shuffled", {"labels": lambda y: y.roll(1, 0), "dropout": 0.1}, ("labels_ignored", "wrong_labels"),
         "The labels belong to other samples.", labeled=True, options={"guidance": "meanflow:1,drop=0.1"}),
    Case("guidance_undeclared", {"guided": partial(guided, 3.0), "dropout": 0.1}, ("guidance_mismatch",),
         "Trained with guidance 3; read without.", labeled=True, options={"guidance": "meanflow:1,drop=0.1"}),
    # the optimizer
    Case("never_trained", {"steps": 0}, ("untrained",), "The initial weights were saved.", "severe"),
    Case("never_trained", {"steps": 20}, ("untrained",), "Twenty steps.", **_SMALL),
    Case("rate_too_small", {"rate": 1e-6}, ("untrained",), "A learning rate of 1e-6."),
    Case("rate_too_large", {"rate": 1.0}, _STEPS, "A learning rate of 1.", "severe",
         save_at=(0.25, 0.5)),
    Case("rate_too_large", {"rate": 0.06}, _STEPS, "A learning rate of 0.06.",
         save_at=(0.25, 0.5), **_SMALL),
    Case("rate_raised", {"schedule": lambda progress: 1.0 if progress < 0.7 else 25.0}, _STEPS,
         "The schedule multiplies the learning rate by 25 after 70 % of the run.", save_at=(0.3, 0.6, 0.8)),
    Case("small_batch", {"batch": 4}, ("noise_dominates_batch", "step_size_too_large"), "Batches of 4 samples.",
         options={"batch_size": 4}),
    Case("layer_frozen", {"frozen": ("layers.2.", "blocks.0.mlp")}, ("layer_not_trained",),
         "One layer is missing from the optimizer's parameters (Sana #318)."),
    Case("layer_exploded", {"initial": partial(_scale_layer, 30.0)},
         ("layer_too_large", "one_layer_dominates", "exploding_derivative"),
         "One layer starts 30 times too large."),
    Case("bf16_weights", {"after_step": _round_to_bf16, "saved": _store_bf16}, ("reduced_precision",),
         "Weights are kept in bfloat16, so most updates are rounded away (meanflow #4)."),
    Case("nan_weights", {"saved": partial(_spoil, math.nan, False)}, ("nonfinite",), "One weight is NaN.", "raw"),
    Case("nan_weights", {"saved": partial(_spoil, math.nan, True)}, ("nonfinite",), "One averaged weight is NaN.",
         "ema"),
    Case("diverged", {"optimizer": torch.optim.SGD, "rate": 30.0}, ("nonfinite", "loss_nonfinite"),
         "Plain gradient descent at a rate of 30: NaN after a few steps (haidog #17)."),
    # what makes it noisy
    Case("high_frequency_times", {"architecture": {"time_scale": 1000.0}}, ("exploding_derivative", "derivative_noise"),
         "Times are multiplied by 1000 before the sinusoidal embedding (haidog #7, Sana #318).", "severe", ("dit",),
         save_at=(0.25, 0.5)),
    Case("high_frequency_times", {"architecture": {"time_scale": 100.0}}, ("exploding_derivative", "derivative_noise"),
         "The same by 100.", "mild", ("dit",)),
    Case("outliers", {}, _TAILS, "0.2 % of the samples are 100 times too large.",
         "severe", data=partial(_outliers, 0.002, 100.0)),
    Case("outliers", {}, _TAILS, "1 % of the samples are 10 times too large.",
         data=partial(_outliers, 0.01, 10.0), **_SMALL),
    Case("heavy_tailed_data", {}, _TAILS,
         "Data with the tails of a Student t of 1.5 degrees of freedom.", data=partial(_student, 1.5)),
]  # fmt: skip
