"""What a further sample costs on networks as repositories write them, as ratios measured in one run.

Up to 64 samples each one is a jackknife block of its own, and the check of the convention takes more of them up to 128.
So what a further sample costs is measured both from 32 to 64 samples, and beyond these numbers.

python benchmarks/real_networks.py NETWORK [FOLDER]

NETWORK is mp1, mean_audio, rectified_flow or sit. FOLDER is a clone of its repository; without one, a network of the
same structure is built from `stand_in_networks.py`.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engines import Unknown, drawn, show
from stand_in_networks import STAND_INS
from torch import Tensor, nn

import mfdiag
from mfdiag.flow.data.datasets import FiniteData

BATCH = 32  # of the plain forward and backward
FEW = 32
SAMPLES = {"mp1": 2048, "mean_audio": 256, "rectified_flow": 128, "sit": 128}  # the least for a second of difference
REPEATS = 3
AIMS = {"sweep": 5, "variance": 12}


class Called(nn.Module):
    """A repository's network, called as u(x, r, t, labels)."""

    def __init__(self, network: nn.Module, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.inner, self.call = network, call

    def forward(self, x: Tensor, r: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.call(self.inner, x, r, t)


def mp1(folder: Path) -> nn.Module:
    """The action network of LogSSim/MP1, narrower than its configuration's 512, 1024, 2048."""
    sys.path.insert(0, str(folder / "MP1"))
    from mp1.model.mean.conditional_unet1d_meanflow_dis import ConditionalUnet1D  # type: ignore[import-not-found]

    network = ConditionalUnet1D(26, global_cond_dim=128, diffusion_step_embed_dim=128, down_dims=[64, 128, 256])

    def call(network: Any, x: Tensor, r: Tensor, t: Tensor) -> Tensor:
        observed = torch.linspace(-1, 1, 128).to(x).expand(len(x), -1)
        return network(x, t, global_cond=observed, r=r, training=False)

    return Called(network, call)


def mean_audio(folder: Path) -> nn.Module:
    """The flow of xiquan-li/MeanAudio, smaller than its smallest configuration."""
    sys.path.insert(0, str(folder))
    from meanaudio.model.networks import MeanAudio  # type: ignore[import-not-found]

    mean = torch.zeros(20)
    network = MeanAudio(
        latent_dim=20, text_dim=64, text_c_dim=32, hidden_dim=128, depth=4, fused_depth=2, num_heads=4,
        latent_seq_len=24, text_seq_len=8, latent_mean=mean, latent_std=mean + 1, use_rope=True,
    )  # fmt: skip

    def call(network: Any, x: Tensor, r: Tensor, t: Tensor) -> Tensor:
        text, pooled = (torch.linspace(-1, 1, size).to(x) for size in (64, 32))
        return network(x, text.expand(len(x), 8, -1), pooled.expand(len(x), -1), r, t)

    return Called(network, call)


def rectified_flow(folder: Path) -> nn.Module:
    """The U-Net of lucidrains/rectified-flow-pytorch as MeanFlow calls it, with times t and t - r."""
    sys.path.insert(0, str(folder))
    from rectified_flow_pytorch.rectified_flow import Unet  # type: ignore[import-not-found]

    network = Unet(dim=32, dim_mults=(1, 2, 4), accept_dest_time=True)
    return Called(network, lambda network, x, r, t: network(x, t, t - r))


def sit(folder: Path) -> nn.Module:
    """willisma/SiT, which has one time and labels."""
    sys.path.insert(0, str(folder))
    from models import SiT  # type: ignore[import-not-found]

    network = SiT(input_size=16, hidden_size=192, depth=6, num_heads=3, num_classes=10, learn_sigma=False)

    def call(network: Any, x: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return network(x, t, torch.zeros(len(x), dtype=torch.long, device=x.device)) * (1 + r.view(-1, 1, 1, 1))

    return Called(network, call)


SHAPES = {"mp1": (4, 26), "mean_audio": (24, 20), "rectified_flow": (3, 16, 16), "sit": (4, 16, 16)}
CLONES = {"mp1": mp1, "mean_audio": mean_audio, "rectified_flow": rectified_flow, "sit": sit}


def trained(module: nn.Module) -> nn.Module:
    """The network with small random numbers in place of zeros, so that no layer is without a gradient."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            if not p.any():
                p.copy_(0.05 * torch.randn(p.shape, generator=generator))
    return module.eval()


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def measured(module: nn.Module, data: Unknown, table: str, n: int) -> None:
    chosen = {"estimators": ["meanflow", "ema_tangent"]} if table == "variance" else {}
    mfdiag.measure(module, data, tables=[table], times="uniform", samples=n, **chosen)  # type: ignore[arg-type]


def forward_backward(module: nn.Module, x: Tensor, r: Tensor, t: Tensor, v_c: Tensor) -> None:
    module.zero_grad(set_to_none=True)
    (module(x, r, t) - v_c).square().sum().backward()


def main() -> None:
    torch.set_num_threads(1)  # process time counts every thread
    name, *folder = sys.argv[1:]
    torch.manual_seed(0)
    module = trained(CLONES[name](Path(folder[0])) if folder else STAND_INS[name]())
    points = np.random.default_rng(0).standard_normal((512, *SHAPES[name])).astype(np.float32)
    data = Unknown(FiniteData("latents", points))  # type: ignore[arg-type]
    module.requires_grad_(True)
    samples = drawn(module, data, BATCH)[:4]
    size = sum(p.numel() for p in module.parameters()) / 1e6
    rows: list[tuple[str, ...]] = []
    for table, n in itertools.product(AIMS, (FEW, SAMPLES[name])):
        measured(module, data, table, 8)  # imports
        ratios = []
        for _ in range(REPEATS):  # in turn, so that the machine's drift meets all
            plain = min(cpu_seconds(lambda: forward_backward(module, *samples)) for _ in range(5)) / BATCH
            few, many = (cpu_seconds(lambda: measured(module, data, table, k)) for k in (n, 2 * n))  # noqa: B023
            ratios.append((many - few) / n / plain)
        text = f"{name} {size:.1f}M, {table}, {n} to {2 * n}: a further sample / its forward and backward"
        spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        rows.append((text, spread, f"at most {AIMS[table]}"))
    show(rows, "target")


if __name__ == "__main__":
    main()
