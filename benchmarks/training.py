"""Models trained together against a plain loop over models, as ratios measured in one run.

python benchmarks/training.py [repeats]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call, jvp

from mfdiag.flow.data.datasets import load_data
from mfdiag.training.draws import BatchFeed
from mfdiag.training.ensemble import Ensemble, initial_state
from mfdiag.training.loss import TrainBatch
from mfdiag.training.spec import TrainSpec
from mfdiag.training.trainer import initial_module

MODELS, BATCH, STEPS, REPEATS = 11, 512, 20, 7
DATA = "eight_gaussians"


def specs() -> list[TrainSpec]:
    common = {
        "data": DATA,
        "model": {"name": "mlp", "arguments": {"dim": 2, "hidden": 128, "depth": 3}},
        "times": "logit_normal:-0.4,1,0.75",
        "batch_size": BATCH,
        "steps": 10**6,
    }
    return [TrainSpec.model_validate(common | {"loss": {"beta": i / (MODELS - 1)}}) for i in range(MODELS)]


class Plain:
    """One model as one would write its training: a module, torch's own optimiser, and a copy for the average."""

    def __init__(self, spec: TrainSpec) -> None:
        self.spec, self.module, self.ema = spec, initial_module(spec), initial_module(spec)
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=spec.learning_rate)

    def step(self, batch: TrainBatch) -> None:
        x_t, v_c, r, t = batch[:4]
        with torch.no_grad():
            vhat = self.ema(x_t, t, t)
        tangent = v_c + self.spec.loss.beta * (vhat - v_c)
        params: dict[str, Tensor] = dict(self.module.named_parameters())

        def network(x: Tensor, time: Tensor) -> Tensor:
            return functional_call(self.module, params, (x, r, time))

        u, derivative = jvp(network, (x_t, t), (tangent, torch.ones_like(t)))[:2]
        loss = (u + (t - r)[:, None] * derivative.detach() - v_c).square().sum(1).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for average, p in zip(self.ema.parameters(), self.module.parameters(), strict=True):
                average.lerp_(p, 1 - self.spec.ema_decay)


def seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def peak() -> float:
    """Multiplications and additions per second of a large matrix product."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    a @ b
    return 2 * 2048**3 / min(seconds(lambda: a @ b) for _ in range(3))


def products(module: nn.Module) -> int:
    """Multiplications and additions of all matrix products in one step of one model.

    Of each weight: the proxy's forward pass, the primal and the tangent one, and two products of the backward pass,
    of which the first layer needs one and has a tangent of its inputs too.
    """
    weights = [layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear)]
    return 2 * BATCH * (5 * sum(weights) - weights[0])


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else REPEATS
    given = specs()
    data = [load_data(DATA)] * MODELS
    feed = BatchFeed(given, data, "cpu")
    modules = [initial_module(spec) for spec in given]

    def ensemble(compiled: bool) -> Ensemble:
        return Ensemble(
            modules[0], given, [initial_state(m) for m in modules], feed, device="cpu", compiled=compiled, say=sys.exit
        )

    plain, vectorised, compiled = [Plain(spec) for spec in given], ensemble(False), ensemble(True)
    batches = [feed.batch(step) for step in range(STEPS)]

    def loop() -> None:
        for number, model in enumerate(plain):
            for batch in batches:
                model.step(TrainBatch(*(values[number] for values in batch[:4])))

    runs = {
        "plain loop over models": loop,
        "vectorized": lambda: vectorised.advance(STEPS),
        "vectorized and compiled": lambda: compiled.advance(STEPS),
    }
    for run in runs.values():
        run()  # compiles, allocates
    found: dict[str, list[float]] = {name: [] for name in runs}
    peaks = []
    for _ in range(repeats):  # interleaved, so that what else the machine does meets all of them
        peaks.append(peak())
        for name, run in runs.items():
            found[name].append(seconds(run))
    feed.close()

    table = Table("", "model-steps per second", "against the loop", "of the matrix-product peak")
    rate = {name: [MODELS * STEPS / s for s in times] for name, times in found.items()}
    for name, values in rate.items():
        ratio = statistics.median(v / base for v, base in zip(values, rate["plain loop over models"], strict=True))
        share = statistics.median(v * products(modules[0]) / p for v, p in zip(values, peaks, strict=True))
        table.add_row(name, f"{statistics.median(values):,.0f}", f"{ratio:.2f}", f"{100 * share:.0f} %")
    console = Console(width=120)
    console.print(table)
    console.print(
        f"{MODELS} models, batch {BATCH}, {torch.get_num_threads()} threads, medians of {repeats} interleaved runs; "
        f"peak {statistics.median(peaks) / 1e9:.0f} GFLOP/s (2048 x 2048 product)"
    )


if __name__ == "__main__":
    main()
