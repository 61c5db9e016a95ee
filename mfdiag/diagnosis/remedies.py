"""What to do, with its measured effect, its cost and the line to change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mfdiag.diagnosis.alternatives import TRANSPORT
from mfdiag.diagnosis.evidence import Evidence, Value
from mfdiag.estimators import find_estimator
from mfdiag.numbers import plain

__all__ = ["Remedy", "ranked", "remedy"]


@dataclass(frozen=True)
class Remedy:
    """Something to change.

    Attributes:
        action: What to do, in words.
        option: The option or line of code, by code base.
        effect: What it does to a measured quantity; None where that was not measured.
        meaning: What the effect's value says, in words.
        cost: What it costs per step.
        measurable: Whether it has an effect that one checkpoint can show; mending a mistake has none.
    """

    action: str
    option: Mapping[str, str]
    effect: Value | None = None
    meaning: str = ""
    cost: str = "none"
    measurable: bool = True

    @property
    def left(self) -> float:
        """What it leaves of the noise; 1 where that was not measured, or the interval holds 1."""
        effect = self.effect
        return effect.value if effect is not None and effect.below(1.0) else 1.0

    def record(self) -> dict[str, Any]:
        """As doctor.json holds it."""
        effect = None
        if self.effect is not None:
            value = self.effect
            effect = {"quantity": value.quantity, "value": value.value, "ci_low": value.low, "ci_high": value.high}
        option = "; ".join(f"{name}: {line}" for name, line in self.option.items())
        return {"action": self.action, "option": option, "effect": effect, "cost": self.cost}


def ranked(names: Sequence[str], evidence: Evidence) -> list[Remedy]:
    """Remedies by what they leave of the noise, those without a measured effect last and in their own order.

    What mends the cause stays first where a finding lists it first: clipping may be measured to help a little, but a
    step size that is too large stays too large.

    Args:
        names: Keys of this file's table.
        evidence: What was measured.

    Returns:
        The remedies. What would raise the noise beyond doubt is left out.
    """
    remedies = [remedy(name, evidence) for name in names]
    useful = [entry for entry in remedies if not (entry.effect is not None and entry.effect.above(1.0))]
    shown = useful or remedies
    causes = shown[:1] if shown and not shown[0].measurable else []
    return causes + sorted(shown[len(causes) :], key=lambda entry: entry.left)


def remedy(name: str, evidence: Evidence) -> Remedy:
    """A remedy by name.

    Args:
        name: A key of this file's table.
        evidence: What was measured.

    Returns:
        The remedy with its effect on this checkpoint.

    Raises:
        KeyError: There is no such remedy.
    """
    return _REMEDIES[name](evidence)


def _tangent(evidence: Evidence) -> Remedy:
    facts = evidence.facts
    best = evidence.get("tangent_optimum")
    value = min(max(best.value, 0.0), 1.0) if best is not None and best.trusted else 1.0
    network = "averaged weights" if facts.tangent == "ema_tangent" else "the network itself"
    return Remedy(
        f"Mix the tangent: {plain(value, 2)} of the velocity by {network}, the rest v_c",
        {
            "mfdiag": f"loss: {{beta: {plain(value, 2)}}}",
            "py-meanflow": f"v_tangent = (1 - {plain(value, 2)}) * v + {plain(value, 2)} * net_ema(z, t, t).detach()",
            "zhuyu-cs": f"the same for v_t before jvp in loss.py, beta = {plain(value, 2)}",
        },
        evidence.get("mse_ratio", estimator="plane"),
        f"error of a batch of {facts.batch_size:,}, relative to now",
        "1 more forward pass",
    )


def _batch(evidence: Evidence) -> Remedy:
    size = evidence.facts.batch_size
    return Remedy(
        f"Raise the batch from {size:,} to {4 * size:,}: it divides the variance by 4",
        {"mfdiag": f"batch_size: {4 * size}", "py-meanflow": "--batch_size", "zhuyu-cs": "--batch-size"},
        cost="4 times the work per step",
    )


def _estimator(name: str, title: str, cost: str) -> Callable[[Evidence], Remedy]:
    def remedy(evidence: Evidence) -> Remedy:
        return Remedy(
            f"Train with {title}",
            {"mfdiag": f"loss: {{estimator: '{name}'}}"},
            evidence.get("mse_ratio", estimator=find_estimator(name).name),
            f"error of a batch of {evidence.facts.batch_size:,} against MeanFlow's mean, relative to now",
            cost,
        )

    return remedy


def _target(evidence: Evidence) -> Remedy:
    return Remedy(
        "Mix the target: half of the network's own velocity, half v_c",
        {
            "mfdiag": "loss: {gamma: 0.5}",
            "py-meanflow": "v in u_tgt becomes 0.5 * v + 0.5 * net_ema(z, t, t)",
            "zhuyu-cs": "the same for v_t in u_target",
        },
        evidence.get("mse_ratio", estimator=find_estimator("plane:0,0.5").name),
        f"error of a batch of {evidence.facts.batch_size:,}, relative to now",
        "1 more forward pass",
    )


def _measured(
    action: str, quantity: str, meaning: str, cost: str = "none", **options: Any
) -> Callable[[Evidence], Remedy]:
    """A remedy whose effect is a row of table `doctor`; `target` is the key of that row, the others are options."""
    keys = {"target": options.pop("target")} if "target" in options else {}
    lines = {name.replace("_", "-"): line for name, line in options.items()}
    return lambda evidence: Remedy(action, lines, evidence.get(quantity, **keys), meaning, cost)


def _power(p: float) -> Callable[[Evidence], Remedy]:
    return _measured(
        f"Weight samples adaptively with p = {p:g}",
        "weight_moment",
        "second moment of the gradient, relative to no weight",
        target=f"p{p:g}",
        mfdiag=f"loss: {{weighting: 'adaptive:{p:g},0.001'}}",
        py_meanflow=f"--norm_p {p:g}",
        zhuyu_cs=f"--weighting adaptive --adaptive-p {p:g}",
    )


def _plain(action: str, cost: str = "none", **option: str) -> Callable[[Evidence], Remedy]:
    """A remedy without a measured effect."""
    lines = {name.replace("_", "-"): line for name, line in option.items()}
    return lambda evidence: Remedy(action, lines, cost=cost, measurable=False)


_REMEDIES: Mapping[str, Callable[[Evidence], Remedy]] = {
    "mix_tangent": _tangent,
    "weight_half": _power(0.5),
    "weight_one": _power(1.0),
    "optimal_times": _measured(
        "Draw (r, t) from the density of least gradient variance, and divide each loss by its relative density",
        "times_moment",
        "second moment of the gradient, relative to now, by t alone",
        mfdiag="run `mfdiag times`, then pass --times FILE",
        py_meanflow="sample t in time_sampler.py from the written density, and weight the loss",
        zhuyu_cs="the same in sample_time_steps of loss.py",
    ),
    "equal_times": _measured(
        "Halve the fraction of pairs with r < t",
        "equal_times_moment",
        "second moment of the gradient, relative to now",
        mfdiag="times: the same sampler with r_ne_t halved",
        py_meanflow="--ratio",
        zhuyu_cs="--ratio-r-not-equal-t",
    ),
    "mix_target": _target,
    "transport": _measured(
        "Pair noise and data by optimal transport within groups of 64",
        "variance_ratio",
        "variance of the gradient, relative to now",
        "one assignment problem per batch",
        target=TRANSPORT,
        mfdiag=f"coupling: {TRANSPORT}",
        py_meanflow="permute e within the batch",
        zhuyu_cs="permute noises",
    ),
    "alpha_flow": _estimator("alpha_flow:0.5", "alpha-Flow at alpha = 0.5", "no derivative"),
    "shorter_intervals": _estimator("restricted_meanflow:0.5", "intervals of at most 0.5", "none"),
    "finite_difference": _estimator(
        "finite_difference", "a finite difference instead of the derivative", "1 more forward pass"
    ),
    "split": _estimator(
        "split_meanflow", "two parts of the interval as target", "2 forward passes instead of a derivative"
    ),
    "clip": _measured(
        "Clip the gradient norm at its 99 % quantile; this biases the gradient by what it cuts",
        "clipped_moment",
        "second moment left if each sample's gradient is clipped there",
        mfdiag="optimizer: {clip: NORM}",
        py_meanflow="torch.nn.utils.clip_grad_norm_(net.parameters(), NORM) before optimizer.step()",
        zhuyu_cs="--max-grad-norm NORM",
    ),
    "larger_batch": _batch,
    "convention": _plain(
        "Read the file in the convention it was trained in: `mfdiag identify` writes a card",
        mfdiag="mfdiag identify CHECKPOINT, then --model CARD.yaml",
    ),
    "tangent_code": _plain(
        "Correct the derivative: tangents (v, 0, 1) for (z, r, t), and u_tgt = v - (t - r) * dudt",
        mfdiag="estimator meanflow",
        py_meanflow="u, dudt = jvp(u_fn, (z, t, r), (v, ones, zeros))",
        zhuyu_cs="tangents = (v_t, torch.zeros_like(r), torch.ones_like(t)) for primals (z_t, r, t)",
    ),
    "stop_gradient": _plain(
        "Detach the target before the loss",
        py_meanflow="loss = (u - u_tgt.detach()) ** 2",
        zhuyu_cs="error = u - u_target.detach()",
    ),
    "update_average": _plain(
        "Update the averaged weights after every optimizer step, and lower the decay until 1 / (1 - decay) is at most "
        "a tenth of the training",
        mfdiag="ema_decay: 0.999",
        py_meanflow="--ema_decay 0.9999",
        zhuyu_cs="update_ema(ema, model) after optimizer.step()",
    ),
    "longer_average": _plain(
        "Raise the decay: an average over few steps removes little noise",
        mfdiag="ema_decay: 0.9999",
        py_meanflow="--ema_decay 0.9999",
        zhuyu_cs="update_ema(ema, model, decay=0.9999)",
    ),
    "smaller_step": _plain(
        "Divide the learning rate by 3 to 10, or decay it towards the end",
        mfdiag="learning_rate, schedule: {name: cosine}",
        py_meanflow="--lr",
        zhuyu_cs="--learning-rate",
    ),
    "label_dropout": _plain(
        "Replace the label by the null label in 10 % of the samples",
        mfdiag="--guidance, which drops labels",
        zhuyu_cs="--cfg-prob 0.1",
    ),
    "train_longer": _plain("Train longer, or check that the optimizer receives the network's parameters"),
    "smoother_times": _plain(
        "Lower the frequencies of the time embedding: do not multiply t by 1000 before it; or warm the derivative up",
    ),
    "check_data": _plain("Look at the largest samples of the data, and clip or remove what is wrong"),
    "full_precision": _plain(
        "Keep the weights, their average and the optimizer's state in float32, and use autocast for the forward pass",
        py_meanflow="net.float()",
        zhuyu_cs="--mixed-precision bf16, which keeps weights in float32",
    ),
    "pass_interval": _plain("Embed r or t - r beside t, and check that the embedding receives it"),
    "cover_times": _plain(
        "Check that the training draws these times: scaling, clamping and rounding of t. If it does, train longer, or "
        "with a larger network"
    ),
    "target_code": _plain(
        "Use the same data and noise in x_t and in v: x_t = (1 - t) x + t e, v = e - x",
        py_meanflow="z = (1 - t) * x + t * e; v = e - x",
        zhuyu_cs="d_alpha_t, d_sigma_t = -1, 1",
    ),
    "declare_guidance": _plain("Declare the guidance of the training", mfdiag="--guidance meanflow:OMEGA"),
    "check_labels": _plain("Check that each label belongs to its sample, and that it reaches the network"),
    "initialize_layer": _plain(
        "Initialize this layer like the others, or check the factor on its weights where it is loaded"
    ),
    "unfreeze": _plain("Check that these parameters require gradients and reach the output"),
    "watch_unweighted": _plain(
        "Log the unweighted residual E|u - u_tgt|^2 beside the loss, or compare checkpoints of the run",
        mfdiag="mfdiag doctor EARLY.pt LATE.pt",
    ),
    "earlier_checkpoint": _plain("Go back to the last checkpoint without them, and lower the learning rate"),
    "more_samples": _plain("Measure more samples", mfdiag="--samples N or --budget SECONDS"),
}
