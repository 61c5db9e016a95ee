"""Is `mfdiag doctor` right? Trains models with planted faults and healthy ones, and holds the doctor against them.

    python benchmarks/doctor.py train DIR      # all models of tests/faults/, on one core; a killed run resumes

The models are those of tests/faults/planted.py and tests/faults/healthy.py, trained by the plain loop of
tests/faults/training_loop.py. `DIR/index.json` lists them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "faults"))

from cases import HELD_OUT, TUNING, train_case  # noqa: E402
from healthy import HEALTHY  # noqa: E402
from planted import FAULTS  # noqa: E402

Entry = dict[str, Any]


def train(folder: Path) -> None:
    """Train what is missing, the small networks first."""
    for network, cases in (("mlp", FAULTS), ("mlp", HEALTHY), ("dit", HEALTHY), ("dit", FAULTS)):
        for case in cases:
            places = [folder / "models" / f"{case.name}-{network}-{data}" for data in TUNING + HELD_OUT]
            if network not in case.networks or all((place / "entry.json").exists() for place in places):
                continue
            start = time.process_time()
            train_case(case, network, TUNING + HELD_OUT, folder)
            write_index(folder)
            print(f"{case.name} {network}: {time.process_time() - start:.0f} s of one core", flush=True)
    print(f"{time.process_time():.0f} s of one core in all", flush=True)


def write_index(folder: Path) -> list[Entry]:
    """Collect the entries of all models into `index.json`."""
    entries = [json.loads(path.read_text()) for path in sorted(folder.glob("models/*/entry.json"))]
    temporary = folder / "index.json.new"
    temporary.write_text(json.dumps(entries, indent=1))
    temporary.replace(folder / "index.json")
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train"])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    {"train": train}[options.command](options.folder)


if __name__ == "__main__":
    main()
