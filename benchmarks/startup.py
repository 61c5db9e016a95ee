"""How long a short command takes in all, against another checkout of mfdiag: `python benchmarks/startup.py CHECKOUT`.

Runs `mfdiag sweep --samples 64` of both trees in turn, as whole processes, and prints medians and the median of the
ratios pair by pair. Both trees use the environment that runs this script.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

_PAIRS = 9


def seconds(tree: Path, out: str) -> float:
    """Wall time of one command, in seconds."""
    command = [sys.executable, "-m", "mfdiag", "sweep", "--samples", "64", "--out", out, "--overwrite", "--quiet"]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=out, env=os.environ | {"PYTHONPATH": str(tree)})
    return time.perf_counter() - started


def main() -> None:
    here, other = Path(__file__).parents[1], Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as out:
        for tree in (here, other):
            seconds(tree, out)  # once each, so that files are cached
        pairs = [(seconds(here, out), seconds(other, out)) for _ in range(_PAIRS)]
    ratio = median(a / b for a, b in pairs)
    own, others = (median(column) for column in zip(*pairs, strict=True))
    print(f"here {own:.2f} s, {other.name} {others:.2f} s, ratio {ratio:.2f} (median of {_PAIRS} pairs)")


if __name__ == "__main__":
    main()
