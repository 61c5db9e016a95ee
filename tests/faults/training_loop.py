"""A plain MeanFlow training loop in PyTorch, as somebody writes it without mfdiag, with each of its lines replaceable.

`Recipe` holds the lines; its defaults are MeanFlow (arXiv 2505.13447). A planted fault replaces one of them. The loop
trains one model per data set at once: `torch.vmap` maps the loss over stacked weights, so that no model sees another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

Params = dict[str, Tensor]
LOGGED = 20  # steps between lines of the log
RECORDED = 100  # steps from which on the operations of one step are recorded and replayed, in half the time


class Batch(NamedTuple):
    """Samples of one step: data and noise [n, *shape], times r <= t [n], labels [n]."""

    x0: Tensor
    x1: Tensor
    r: Tensor
    t: Tensor
    y: Tensor


@dataclass
class Step:
    """What a loss is made of at one batch: points x_t, conditional velocity v, u and du = d/dt u along the path.

    `gap` is t - r, shaped to multiply u. `u_of(x, r, t, y)` calls the network, `ema_of` its average. `null` is the
    label that stands for none.
    """

    x: Tensor
    v: Tensor
    r: Tensor
    t: Tensor
    y: Tensor
    u: Tensor
    du: Tensor
    gap: Tensor
    u_of: Callable[..., Tensor]
    ema_of: Callable[..., Tensor]


def sorted_pairs(n: int, generator: torch.Generator, mu: float = -0.4, share: float = 0.5) -> tuple[Tensor, Tensor]:
    """r <= t [n], each the sigmoid of a normal number; all but a share have r = t."""
    both = torch.sigmoid(mu + torch.randn(2, n, generator=generator))
    r, t = both.min(0).values, both.max(0).values
    return torch.where(torch.rand(n, generator=generator) < share, r, t), t


@dataclass(frozen=True)
class Recipe:
    """The lines of a training script."""

    steps: int = 900
    rate: float = 2e-3
    batch: int = 256
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam
    schedule: Callable[[float], float] = lambda progress: 1.0
    clip: float = math.inf
    ema_decay: float | None = 0.99  # None: never updated
    power: float = 0.0  # p of the adaptive weight
    weight_detached: bool = True
    dropout: float = 0.0  # fraction of the labels that become null
    null: int | None = None  # the null label; None: the last one
    architecture: Mapping[str, Any] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    data: Callable[[Tensor], Tensor] = lambda x0: x0
    labels: Callable[[Tensor], Tensor] = lambda y: y
    noise: Callable[[Tensor], Tensor] = lambda x1: x1
    times: Callable[[int, torch.Generator], tuple[Tensor, Tensor]] = sorted_pairs
    point: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda x0, x1, t: (1 - t) * x0 + t * x1
    velocity: Callable[[Tensor, Tensor], Tensor] = lambda x0, x1: x1 - x0
    call: Callable[..., Tensor] = lambda net, x, r, t, y: net(x, r, t, y)
    guided: Callable[..., Tensor] = lambda net, x, t, y, null, v: v
    tangent: Callable[[Step], Tensor] | None = None  # None: v
    tangents: Callable[[Tensor, Tensor], tuple[Tensor, ...]] = lambda v, t: (v, 0 * t, 0 * t + 1)  # of x, r, t
    residual: Callable[[Step], Tensor] = lambda s: s.u - (s.v - s.gap * s.du).detach()
    initial: Callable[[Params], None] = lambda params: None
    after_step: Callable[[Params, float], None] = lambda params, progress: None
    saved: Callable[[Params, Params], None] = lambda params, ema: None


class Run(NamedTuple):
    """One trained model: weights and their average by step, and rows (step, loss, grad_norm, mse) of the log."""

    checkpoints: dict[int, tuple[Params, Params]]
    log: list[tuple[int, float, float, float]]


def loss(recipe: Recipe, network: nn.Module, params: Params, ema: Params, batch: Batch) -> tuple[Tensor, Tensor]:
    """The loss of one model at one batch, and the unweighted squared error that a careful user logs beside it."""

    def evaluate(weights: Params, x: Tensor, r: Tensor, t: Tensor, y: Tensor = batch.y) -> Tensor:
        return recipe.call(lambda *inputs: functional_call(network, weights, inputs), x, r, t, y)

    column = (-1, *[1] * (batch.x0.ndim - 1))
    r, t, y = batch.r, batch.t, batch.y
    x0, x1 = recipe.data(batch.x0), recipe.noise(batch.x1)
    x = recipe.point(x0, x1, t.view(column))
    u_of, ema_of = partial(evaluate, params), partial(evaluate, ema)
    v = recipe.guided(u_of, x, t, y, _null(recipe, network), recipe.velocity(x0, x1))
    step = Step(x, v, r, t, y, x, x, (t - r).view(column), u_of, ema_of)
    tangent = v if recipe.tangent is None else recipe.tangent(step)
    step.u, step.du = jvp(lambda x, r, t: u_of(x, r, t), (x, r, t), recipe.tangents(tangent, t))
    squared = recipe.residual(step).flatten(1).square().sum(1)
    weight = (squared.detach() if recipe.weight_detached else squared).add(1e-3) ** -recipe.power
    return (weight * squared).mean(), squared.detach().mean()


def _null(recipe: Recipe, network: nn.Module) -> int:
    return network.num_classes if recipe.null is None else recipe.null


def draw(recipe: Recipe, network: nn.Module, points: Tensor, labels: Tensor, generator: torch.Generator) -> Batch:
    """One batch of a data set."""
    rows = torch.randint(len(points), (recipe.batch,), generator=generator)
    x0 = points[rows]
    x1 = torch.randn(x0.shape, generator=generator)
    r, t = recipe.times(recipe.batch, generator)
    y = recipe.labels(labels[rows])
    dropped = torch.rand(recipe.batch, generator=generator) < recipe.dropout
    return Batch(x0, x1, r, t, torch.where(dropped, _null(recipe, network), y))


def train(
    recipe: Recipe,
    networks: Sequence[nn.Module],
    data: Sequence[tuple[Tensor, Tensor]],
    seeds: Sequence[int],
    save_at: Sequence[int] = (),
) -> list[Run]:
    """Train one model per data set (points [N, *shape], labels [N]); checkpoints after `save_at` steps and the last."""
    params = {name: value.detach().clone() for name, value in stack_module_state(list(networks))[0].items()}
    recipe.initial(params)
    ema = {name: value.clone() for name, value in params.items()}
    trained = [value.requires_grad_() for name, value in params.items() if not name.startswith(recipe.frozen or ("-",))]
    optimizer = recipe.optimizer(trained, lr=recipe.rate)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    runs = [Run({}, []) for _ in networks]
    gradient = _gradient(recipe, networks[0])
    for step in range(recipe.steps + 1):
        if step == recipe.steps or step in save_at:
            _save(recipe, runs, params, ema, step)
        if step == recipe.steps:
            break
        batches = [draw(recipe, networks[0], *own, generator) for own, generator in zip(data, generators, strict=True)]
        batch = Batch(*(torch.stack(parts) for parts in zip(*batches, strict=True)))
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward-mode derivative
            if step == 0 and recipe.steps >= RECORDED:
                gradient = _recorded(gradient, params, ema, batch)
            grads, (value, mse) = gradient(params, ema, batch)
        for name, p in params.items():
            p.grad = grads[name] if p.requires_grad else None
        norm = sum(p.grad.flatten(1).square().sum(1) for p in trained if p.grad is not None).sqrt()
        for p in trained:
            if p.grad is not None and recipe.clip < math.inf:
                p.grad *= (recipe.clip / norm).clamp(max=1).view(-1, *[1] * (p.ndim - 1))
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * recipe.schedule(step / recipe.steps)
        optimizer.step()
        with torch.no_grad():
            recipe.after_step(params, (step + 1) / recipe.steps)
            if recipe.ema_decay is not None:
                torch._foreach_lerp_(list(ema.values()), [p.detach() for p in params.values()], 1 - recipe.ema_decay)
        if step % LOGGED == 0:
            for run, *numbers in zip(runs, value.tolist(), norm.tolist(), mse.tolist(), strict=True):
                run.log.append((step, *numbers))
    return runs


def _gradient(recipe: Recipe, network: nn.Module) -> Callable[..., Any]:
    """The function of stacked (params, ema, batch) that gives gradients, and each model's loss and squared error."""
    losses = vmap(partial(loss, recipe, network), in_dims=(0, 0, 0))

    def total(params: Params, ema: Params, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        value, mse = losses(params, ema, batch)
        return value.sum(), (value, mse)

    return grad(total, has_aux=True)


def _recorded(gradient: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """The same operations as a flat list, without those whose result nobody uses."""
    recorded = make_fx(gradient)(*arguments)
    recorded.graph.eliminate_dead_code()
    recorded.recompile()
    return recorded


def _save(recipe: Recipe, runs: Sequence[Run], params: Params, ema: Params, step: int) -> None:
    for number, run in enumerate(runs):
        own, average = ({k: v[number].detach().clone() for k, v in weights.items()} for weights in (params, ema))
        recipe.saved(own, average)
        run.checkpoints[step] = own, average
