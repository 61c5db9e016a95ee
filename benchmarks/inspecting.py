"""What `mfdiag inspect` costs on large checkpoints: seconds and peak memory of the process.

python benchmarks/inspecting.py [megabytes=500]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

REPEATS = 5
CHILD = """
import atexit, sys
atexit.register(lambda: sys.stderr.write(open("/proc/self/status").read()))
from mfdiag.cli import main
main()
"""  # the process itself says its peak: what its parent would be told is at least the parent's own


def files(folder: Path, megabytes: int) -> dict[str, Path]:
    """One file of each format, of tensors of 4 MB."""
    state = {f"blocks.{i}.weight": torch.randn(1000, 1000) for i in range(megabytes // 4)}
    content = {"model": state, "args": argparse.Namespace(lr=1e-4), "steps": 1000}
    paths = {name: folder / name for name in ("safetensors", "torch zip", "torch legacy")}
    save_file(state, paths["safetensors"])
    torch.save(content, paths["torch zip"])
    torch.save(content, paths["torch legacy"], _use_new_zipfile_serialization=False)
    return paths


def cost(path: Path) -> tuple[float, float]:
    """Least seconds of some runs, and the largest peak of resident memory in MB."""
    seconds, memory = [], []
    for _ in range(REPEATS):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", CHILD, "inspect", str(path)], check=True, capture_output=True, text=True
        )
        seconds.append(time.perf_counter() - start)
        memory.append(int(re.findall(r"VmHWM:\s+(\d+) kB", done.stderr)[0]) * 1024 / 1e6)
    return min(seconds), max(memory)


def main() -> None:
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    table = Table("format", "seconds (aim 2)", "peak memory in MB (aim 200)", title=f"mfdiag inspect, {megabytes} MB")
    with tempfile.TemporaryDirectory() as folder:
        for name, path in files(Path(folder), megabytes).items():
            seconds, memory = cost(path)
            table.add_row(name, f"{seconds:.2f}", f"{memory:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
