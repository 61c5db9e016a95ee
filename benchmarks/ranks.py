"""The time of a measurement in two processes of one thread each over that in one, and the largest difference of tables.

Clock times are distorted by other work on the machine. Half of the ratio of CPU times is what the clock would show on
idle cores, if the processes never waited for each other.

python benchmarks/ranks.py [SAMPLES [TURNS [PROCESSES]]]
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from mfdiag.models.checkpoint import save_checkpoint
from mfdiag.models.description import Architecture, Description
from mfdiag.models.networks.dit import DiT
from mfdiag.tables import read_table

NUMBERS = ["value", "std_error", "ci_low", "ci_high"]


def write_checkpoint(folder: Path) -> list[str]:
    """A DiT of 4.3M parameters and latents; returns the arguments that measure it."""
    torch.manual_seed(0)
    module = DiT()
    np.save(folder / "latents.npy", torch.randn(512, 4, 8, 8).numpy())
    description = Description(
        architecture=Architecture(name="dit"), times="uniform", data=str(folder / "latents.npy"), step=0, seed=0
    )
    save_checkpoint(folder / "model.safetensors", module, module.state_dict(), description)
    return [str(folder / "model.safetensors"), "--posterior", "none", "--quiet"]


def run(processes: int, arguments: list[str], out: Path) -> tuple[float, float, float]:
    """Seconds of the whole command, of the measurement without imports, and of CPU time over all processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *launcher, "-m", "mfdiag", "sweep", *arguments, "--overwrite", "--out", str(out)]
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    whole = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return whole, json.loads((out / "manifest.json").read_text())["sweep"]["seconds"], cpu


def largest_difference(one: Path, other: Path) -> float:
    """Of two tables, relative to the larger number."""
    first, second = (read_table("sweep", out)[NUMBERS].to_numpy(float) for out in (one, other))
    with np.errstate(invalid="ignore"):
        return float(np.nanmax(np.abs(first - second) / np.maximum(np.abs(first), np.abs(second))))


def main() -> None:
    samples, turns, processes = [int(text) for text in (*sys.argv[1:], *("256", "3", "2")[len(sys.argv) - 1 :])]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = [*write_checkpoint(folder), "--samples", str(samples)]
        seconds: dict[int, list[tuple[float, float, float]]] = {1: [], processes: []}
        for _ in range(turns):
            for count, times in seconds.items():
                times.append(run(count, arguments, folder / str(count)))
        fastest = {count: np.min(times, 0) for count, times in seconds.items()}
        print(f"DiT of 4.3M parameters, {samples} samples, one thread a process, the fastest of {turns} turns")
        print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        for k, part in enumerate(("command", "measurement", "CPU time")):
            one, several = fastest[1][k], fastest[processes][k]
            print(f"{part}: {one:.1f} s in one process, {several:.1f} s in {processes}: {several / one:.2f} of it")
        print(f"largest relative difference: {largest_difference(folder / '1', folder / str(processes)):.1e}")


if __name__ == "__main__":
    main()
