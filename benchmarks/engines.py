"""Speed and memory of the fast engine against what one would write without it, as ratios measured in one run.

python benchmarks/engines.py [mlp] [grid] [dit] [memory] [cotangents]
"""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from plain import Sample, forward_backward, variance_by_loop
from rich.console import Console
from rich.table import Table

import mfdiag
from mfdiag.fields.builder import FieldNeeds
from mfdiag.fields.fields import Fields
from mfdiag.flow.draw import Draws
from mfdiag.flow.times import parse_times
from mfdiag.gradients.sample_pass import PassSettings, run_pass
from mfdiag.models.checkpoint import bundled
from mfdiag.models.networks.dit import DiT

SAMPLES = 4096
IMAGES = 128


class Unknown:
    """A data set whose posterior mfdiag does not know, as a user's latents are: draws only."""

    def __init__(self, data: mfdiag.flow.data.datasets.Data) -> None:  # type: ignore[name-defined]
        self.data, self.name, self.shape, self.num_classes, self.width = data, data.name, data.shape, 0, data.width
        self.sample = data.sample


def seconds(run: Callable[[], object], repeats: int) -> list[float]:
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return found


def drawn(module: torch.nn.Module, data: object, n: int) -> Sample:
    batch = Draws(data, parse_times("uniform"), 0).batch(np.arange(n))  # type: ignore[arg-type]
    x, r, t, v_c = (a.float() for a in (batch.x_t, batch.r, batch.t, batch.velocity))
    with torch.no_grad():
        return x, r, t, v_c, module(x, t, t)


def toy() -> tuple[torch.nn.Module, Unknown]:
    return mfdiag.load_model(bundled()).module, Unknown(mfdiag.load_data("eight_gaussians"))


def images() -> tuple[torch.nn.Module, Unknown]:
    torch.manual_seed(0)
    module = DiT()
    latents = torch.randn(512, 4, 8, 8).numpy()
    return module, Unknown(mfdiag.flow.data.datasets.FiniteData("latents", latents))  # type: ignore[attr-defined]


def sweep(module: torch.nn.Module, data: object, n: int, betas: int, **more: object) -> object:
    grid = tuple(np.linspace(0, 1, betas))
    return mfdiag.measure(
        module,
        data,
        tables=["sweep"],
        times="uniform",
        samples=n,
        beta=grid,
        by_layer=False,
        **more,  # type: ignore
    )


def mlp(rows: list[tuple[str, ...]]) -> None:
    module, data = toy()
    samples = drawn(module, data, SAMPLES)
    betas = np.linspace(0, 1, 21)
    sweep(module, data, SAMPLES, 21)
    slow, fast = [], []
    for beta in betas[::3]:  # in turn, so that the machine's drift meets both
        slow += seconds(lambda: variance_by_loop(module, samples, beta, 512), 1)  # noqa: B023
        fast += seconds(lambda: sweep(module, data, SAMPLES, 21), 1)
    got = sweep(module, data, SAMPLES, 21)["sweep"]  # type: ignore[index]
    got = got[(got.space == "gradient") & (got.quantity == "variance") & (got.beta == 1)].value.iloc[0]
    want = variance_by_loop(module, samples, 1.0, 512)
    assert abs(got / want - 1) < 1e-4, (got, want)
    ratio = 21 * statistics.median(a / b for a, b in zip(slow, fast, strict=True))
    rows.append(("MLP, 4096 samples, 21 beta: vmap(grad) loop / mfdiag sweep", f"{ratio:.0f}", "at least 100"))


def grid(rows: list[tuple[str, ...]]) -> None:
    module, data = toy()
    sweep(module, data, SAMPLES, 201)
    few, many = [], []
    for _ in range(9):  # in turn, so that the machine's drift meets both
        few += seconds(lambda: sweep(module, data, SAMPLES, 3), 1)
        many += seconds(lambda: sweep(module, data, SAMPLES, 201), 1)
    ratio = statistics.median(b / a for a, b in zip(few, many, strict=True))
    rows.append(("MLP: 201 values of beta / 3 values", f"{ratio:.2f}", "at most 1.1"))


def dit(rows: list[tuple[str, ...]]) -> None:
    module, data = images()
    samples = drawn(module, data, IMAGES)
    sweep(module, data, IMAGES, 21)
    forward_backward(module, samples)
    plain, fast = [], []
    for _ in range(5):
        plain += seconds(lambda: forward_backward(module, samples), 1)
        fast += seconds(lambda: sweep(module, data, IMAGES, 21), 1)
    one = seconds(lambda: variance_by_loop(module, samples, 0.5, 16), 1)[0]
    slow = 21 * one
    ratio = statistics.median(b / a for a, b in zip(plain, fast, strict=True))
    size = sum(p.numel() for p in module.parameters()) / 1e6
    name = f"DiT {size:.1f}M, {IMAGES} samples of 16 tokens"
    rows.append((f"{name}, 21 beta: vmap(grad) loop / mfdiag", f"{slow / statistics.median(fast):.0f}", "at least 15"))
    rows.append((f"{name}: mfdiag / one forward and backward", f"{ratio:.1f}", "at most 4.5"))


@dataclass(frozen=True)
class Several:
    """`size` coefficients beta as one group of cotangents, as a comparison of that many estimators takes them."""

    size: int
    groups = 1
    needs = FieldNeeds(posterior=False)
    losses = ()

    def cotangents(self, fields: Fields) -> torch.Tensor:
        e_0, e_b, _ = fields.plane
        return torch.stack([e_0 + beta * e_b for beta in np.linspace(0, 1, self.size)])

    def outputs(self, fields: Fields) -> None:
        """No output moments."""

    def scalars(self, fields: Fields) -> dict[str, torch.Tensor]:
        return {}


def cotangents(rows: list[tuple[str, ...]]) -> None:
    cases = (("MLP, 4096 samples", toy(), SAMPLES, 5), ("DiT, 128 samples", images(), IMAGES, 3))
    for name, (module, data), n, repeats in cases:
        draws = Draws(data, parse_times("uniform"), 0)  # type: ignore[arg-type]

        def once(size: int) -> None:
            run_pass(Several(size), module, draws, PassSettings(samples=n))  # noqa: B023

        once(2)
        found: dict[int, list[float]] = {2: [], 8: [], 16: []}
        for _ in range(repeats):  # in turn, so that the machine's drift meets all
            for size, times in found.items():
                times += seconds(lambda: once(size), 1)  # noqa: B023
        for size in (8, 16):
            ratio = statistics.median(b / a for a, b in zip(found[2], found[size], strict=True))
            rows.append((f"{name}: a pass of {size} cotangents / of 2", f"{ratio:.1f}", "none"))


def peak(what: str) -> None:
    """Prints the memory (MB) of a process that holds model and imports, and its peak while it does one thing."""
    module, data = images()
    samples = drawn(module, data, IMAGES)
    if what == "plain":
        forward_backward(module, tuple(a[:1] for a in samples))  # type: ignore[arg-type]
    else:
        sweep(module, data, 2, 3)  # imports
    module.zero_grad(set_to_none=True)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the kernel's high-water mark
    before = _high_water()
    if what == "plain":
        forward_backward(module, samples)
    else:
        sweep(module, data, IMAGES, 21)
    print(before, _high_water())


def _high_water() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def memory(rows: list[tuple[str, ...]]) -> None:
    found = {}
    for what in ("plain", "fast"):
        command = [sys.executable, __file__, "peak", what]
        line = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[what] = [float(x) for x in line.split()]
    own = {what: after - before for what, (before, after) in found.items()}
    for name, a, b in (
        ("the process", found["fast"][1], found["plain"][1]),
        ("beyond model and imports", own["fast"], own["plain"]),
    ):
        text = f"DiT, peak memory of {name}: mfdiag / one forward and backward ({a:.0f} / {b:.0f} MB)"
        rows.append((text, f"{a / b:.2f}", "at most 1.5"))


def show(rows: list[tuple[str, ...]], aim: str) -> None:
    """Prints comparisons, their ratios and what they are held to, a column called `aim`."""
    table = Table(title=f"{torch.get_num_threads()} threads, torch {torch.__version__}", title_justify="left")
    for column in ("comparison", "ratio", aim):
        table.add_column(column, justify="left" if column == "comparison" else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=110).print(table)


def main() -> None:
    known = {"mlp": mlp, "grid": grid, "dit": dit, "memory": memory, "cotangents": cotangents}
    chosen = sys.argv[1:] or list(known)
    if chosen[0] == "peak":
        peak(chosen[1])
        return
    rows: list[tuple[str, ...]] = []
    for name in chosen:
        known[name](rows)
    show(rows, "target")


if __name__ == "__main__":
    main()
