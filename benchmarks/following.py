"""Does a training that follows `mfdiag.Monitor` end better than one with fixed settings, at equal cost?

    python benchmarks/following.py train    # docs/following.csv: two data sets, three seeds; a killed run resumes
    python benchmarks/following.py page     # the table of docs/monitor.md

After each measurement of the monitor one setting follows it: beta, the batch size, or the distribution of t. Cost is
counted in samples of training. The time that the monitor takes is charged: a training that it slows down by 10 % sees
10 % fewer samples.
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from question import numbers, quality_of, truth_of
from scipy.stats import t as student
from torch import Tensor, nn

import mfdiag
from mfdiag.coefficients.times import optimal_shares
from mfdiag.flow.data.datasets import load_data
from mfdiag.models.networks.registry import build_model

ROOT = Path(__file__).parents[1]
TABLE, PAGE = ROOT / "docs" / "following.csv", ROOT / "docs" / "monitor.md"
MARKERS = "<!-- benchmarks/following.py: begin -->", "<!-- benchmarks/following.py: end -->"
DATA, SEEDS = ("mixture:2,8", "mixture:2,32"), (0, 1, 2)
SAMPLES = 500_000  # of training, less what the time of the monitor is worth
BUDGET = 0.2  # of the time: these trainings take half a minute, so 2 % would allow no measurement
RATE, DECAY = 2e-3, 0.999
BATCHES = 64, 4096  # least and most that follow the monitor
BINS = np.linspace(0, 1, 11)  # of t, as the monitor has them
SHARES = np.diff(BINS**2)  # of the larger of two uniform times
FLOOR = 0.5  # weights are at most 2
WAYS = {  # settings at the start, and the one that follows
    "fixed: beta 0, batch 256, times uniform": (0.0, 256, ""),
    "fixed: beta 0.5": (0.5, 256, ""),
    "fixed: beta 1": (1.0, 256, ""),
    "fixed: batch 128": (0.0, 128, ""),
    "fixed: batch 1,024": (0.0, 1024, ""),
    "fixed: as many samples as those that follow": (0.0, 256, ""),
    "beta follows": (0.0, 256, "beta"),
    "batch follows": (0.0, 256, "batch"),
    "times follow": (0.0, 256, "times"),
}
FEWER = {"fixed: as many samples as those that follow": 430_000}  # what the time of the monitor leaves of SAMPLES
END = {"beta": "beta", "batch": "batch", "times": "late", "": "beta"}  # the column that says where a setting ended
METRICS = {"map_distance": "distance to the exact map", "sliced_wasserstein": "sliced Wasserstein"}


class Settings:
    """What a training may change on the way: beta, the batch size, and the shares of the bins of t."""

    def __init__(self, beta: float, batch: int, follows: str) -> None:
        self.beta, self.batch, self.follows, self.shares = beta, batch, follows, SHARES

    def follow(self, monitor: mfdiag.Monitor) -> None:
        """Take over what the monitor measured last, where it could be measured."""
        latest = monitor.frame[monitor.frame["step"] == monitor.frame["step"].max()]
        noise = monitor.value("noise_scale", estimator="meanflow")
        optimum = monitor.value("tangent_optimum")
        if self.follows == "batch":  # where noise hides the mean gradient, the largest
            self.batch = round(float(np.clip(noise if noise > 0 else math.inf, *BATCHES)))
            monitor.batch_size = self.batch
        elif self.follows == "beta" and math.isfinite(optimum):
            self.beta = float(np.clip(optimum, 0, 1))
        elif self.follows == "times":
            rows = latest[latest["quantity"].eq("moment_share") & latest["estimator"].eq("meanflow")]
            moments = np.full(10, np.nan)
            moments[(rows["t_low"] * 10).round().astype(int)] = rows["value"]
            moments /= SHARES
            self.shares = optimal_shares(SHARES, np.where(np.isfinite(moments), moments, np.nanmean(moments)), FLOOR)

    def times(self) -> tuple[Tensor, Tensor, Tensor]:
        """r, t and a weight for each sample; a quarter has r = t."""
        cells = torch.multinomial(torch.as_tensor(self.shares), self.batch, replacement=True)
        low, high = (torch.as_tensor(edges**2)[cells] for edges in (BINS[:-1], BINS[1:]))
        t = (low + (high - low) * torch.rand(self.batch)).sqrt().float()
        r = torch.where(torch.rand(self.batch) < 0.25, t, t * torch.rand(self.batch))
        return r, t, torch.as_tensor(SHARES / self.shares)[cells].float()


def train(data: str, seed: int, way: str, folder: str) -> dict[str, float]:
    """Train one network and measure its averaged weights."""
    torch.manual_seed(seed)
    network: nn.Module = build_model("mlp", {"dim": 2, "hidden": 64, "depth": 3})
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    points, settings, monitor = load_data(data), Settings(*WAYS[way]), None
    rows = np.random.default_rng(seed)
    if settings.follows:
        monitor = mfdiag.Monitor(
            network, data, out=folder, budget=BUDGET, ema=average, batch_sizes=[settings.batch], times="uniform"
        )
    seen, step, measured, most = 0, 0, 0, FEWER.get(way, SAMPLES)
    while seen < most * (1 - (monitor.share if monitor else 0)):
        x0 = torch.as_tensor(points.sample(rows.random((settings.batch, points.width)))[0]).float()
        x1 = torch.randn_like(x0)
        r, t, weight = settings.times()
        v, x = x1 - x0, torch.lerp(x0, x1, t[:, None])
        w = v + settings.beta * (average(x, t, t) - v) if settings.beta else v
        u, du = torch.func.jvp(network, (x, r, t), (w, torch.zeros_like(r), torch.ones_like(t)))
        residual = u - (v - (t - r)[:, None] * du).detach()
        optimizer.zero_grad()
        (weight * residual.square().sum(1)).mean().backward()
        optimizer.step()
        torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - DECAY)
        seen, step = seen + settings.batch, step + 1
        if monitor and monitor.step(step):
            measured += 1
            settings.follow(monitor)
    end = {"beta": settings.beta, "batch": settings.batch, "late": float(settings.shares[5:].sum())}
    own = {"map_distance": numbers(average, truth_of(data))["map_distance"]}
    own["sliced_wasserstein"] = quality_of(average, data, "sliced_wasserstein")
    share = monitor.share if monitor else 0.0
    return own | {"samples": seen, "steps": step, "measurements": measured, "share": share} | end


def train_all() -> None:
    """Train what the table lacks, one way after the other within each seed, so that the machine's load is shared."""
    rows = pd.read_csv(TABLE).to_dict("records") if TABLE.exists() else []
    done = {(row["data"], row["seed"], row["way"]) for row in rows}
    for data in DATA:
        for seed in SEEDS:
            for way in WAYS:
                if (data, seed, way) in done:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    own = train(data, seed, way, folder)
                rows.append({"data": data, "seed": seed, "way": way, **own})
                pd.DataFrame(rows).to_csv(TABLE, index=False, float_format="%.5g")
                print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)


def ratio(values: pd.Series, base: pd.Series) -> tuple[float, float, float]:
    """Geometric mean of values over those of the base with the same seed, and its 95 % interval over seeds."""
    logs = np.log(values.to_numpy() / base.to_numpy())
    half = student.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    middle, low, high = np.exp(logs.mean() + half * np.array([0, -1, 1]))
    return float(middle), float(low), float(high)


def lines(frame: pd.DataFrame) -> list[str]:
    """Markdown of docs/monitor.md: for each data set, every way against the first one."""
    names = list(METRICS.values())
    out = [f"| data | training | {names[0]} | {names[1]} | samples | setting at the end | time of the monitor |"]
    out.append("| --- " * 7 + "|")
    for data, own in frame.groupby("data", sort=False):
        ways = {way: rows.sort_values("seed") for way, rows in own.groupby("way")}
        base = ways[next(iter(WAYS))]
        for way, (_, _, follows) in WAYS.items():
            rows = ways[way]
            last = ", ".join(f"{value:,.0f}" if value > 9 else f"{value:.2g}" for value in rows[END[follows]])
            share = f"{100 * rows['share'].mean():.0f} %, {rows['measurements'].mean():.0f} measurements"
            ratios = [ratio(rows[metric], base[metric]) for metric in METRICS]
            cells = [f"{middle:.3f} [{low:.3f}, {high:.3f}]" for middle, low, high in ratios]
            if way == next(iter(WAYS)):
                cells = [f"1 ({base[metric].mean():.3g})" for metric in METRICS]
            cells += [f"{rows['samples'].mean() / 1e6:.2f} M", *((last, share) if follows else ("", ""))]
            out.append(f"| {data} | {way} | {' | '.join(cells)} |")
    return [compared(frame, next(iter(WAYS))), "", compared(frame, next(iter(FEWER))), "", *out]


def compared(frame: pd.DataFrame, fixed: str) -> str:
    """Which trainings that follow the monitor differ from a fixed one beyond the noise of the seeds."""
    differ: dict[str, list[str]] = {"better": [], "worse": []}
    for data, own in frame.groupby("data", sort=False):
        ways = {way: rows.sort_values("seed")["map_distance"] for way, rows in own.groupby("way")}
        for way in (way for way, (_, _, follows) in WAYS.items() if follows):
            _, low, high = ratio(ways[way], ways[fixed])
            for word in ["better"] * (high < 1) + ["worse"] * (low > 1):
                differ[word].append(f"{way} ({data})")
    better, worse = (", ".join(entries) or "none" for entries in differ.values())
    return f'Against "{fixed}", by the distance to the exact map: better {better}; worse {worse}.'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "page"])
    torch.set_num_threads(1)
    if parser.parse_args().command == "train":
        train_all()
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKERS[0])
    text = "\n".join([MARKERS[0], *lines(pd.read_csv(TABLE)), MARKERS[1]])
    PAGE.write_text(before + text + rest.partition(MARKERS[1])[2], encoding="utf-8")


if __name__ == "__main__":
    main()
