"""Golden tables: every command on small inputs, to prove that a rebuild changes no number.

    python benchmarks/golden.py make DIR [FOLDER ...]  # with the code before, then with the code after
    python benchmarks/golden.py compare DIR DIR   # bit for bit: column names, row order, values, statuses

`make` runs `python -m mfdiag` with one thread: the bundled checkpoint, stand-ins for two model cards, a guided,
a weighted, a resumed and a grid run, in float64, and the default precision once. The script writes all inputs and
specifications itself, so that the two runs differ in the code of mfdiag alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

_BUNDLED = "--samples 384 --dtype float64 --seed 1"
_CARD = "--data data.npz --samples 96 --dtype float64"
_OWN = "--model own_net.py:build --data labelled.npz --times logit_normal:-0.4,1,0.5 --samples 192 --dtype float64"
COMMANDS = {
    "bundled/sweep": f"sweep {_BUNDLED} --beta 0:1:0.25 --gamma 0,0.5,1 --by layer --bins 3,3",
    "bundled/variance": f"variance {_BUNDLED} --extra semi_gradient_gap --bins 3,3",
    "bundled/coefficient": f"coefficient {_BUNDLED} --bins 3,3",
    "bundled/compare": f"compare {_BUNDLED} --proxy self",
    "bundled/times": f"times {_BUNDLED} --samples 2048 --bins 3,3",
    "bundled/quality": "quality --samples 1024 --subsample 64 --weights raw,ema --nfe 1,2 --dtype float64",
    "reference/variance": f"variance {_BUNDLED} --engine reference --samples 96",
    "difference/variance": f"variance {_BUNDLED} --derivative difference:0.005 --samples 128",
    "float32/sweep": "sweep --samples 2048",
    "float32/variance": "variance --samples 1024",
    "float32/compare": "compare --samples 256",
    **{
        f"{name}/{command}": f"{command} {name}.pt --model own-{name}.yaml {_CARD}"
        for name in ("zhuyu-meanflow", "haidog-meanflow")
        for command in ("sweep", "variance", "coefficient", "compare")
    },
    "guided/sweep": f"sweep own.pt {_OWN} --guidance meanflow:2,0.5",
    "guided/variance": f"variance own.pt {_OWN} --guidance meanflow:2,0.5",
    "guided/compare": f"compare own.pt {_OWN} --guidance meanflow:2,0.5",
    "weighted/sweep": f"sweep own.pt {_OWN} --weighting adaptive:0.75,0.001 --beta 0,0.5,1 --bins 2,2",
    "weighted/variance": f"variance own.pt {_OWN} --weighting adaptive:1,0.01,mean",
    "weighted/gibbs": "sweep --coupling gibbs:1 --samples 192 --dtype float64 --beta 0,1 --times uniform",
    "dit/sweep": "sweep dit/model.safetensors --samples 64 --beta 0,0.5,1",
    "dit/compare": "compare dit/model.safetensors --samples 32",
    "resumed/sweep": "sweep own.pt own2.pt {_OWN} --resume",
    "grid/train": "train grid.yaml",
    "grid/quality": "quality {cells} --metric sliced_wasserstein --nfe 1,2 --weights raw,ema --samples 512",
    "grid/sweep": "sweep {cells} --beta 0,1 --by none --samples 128 --dtype float64",
    "grid/coefficient": "coefficient {cells} --by none --samples 128 --dtype float64",
    "grid/report": "report {out}",
}

_NETWORK = '''
import torch
from torch import nn


class Net(nn.Module):
    """Labels, a bare parameter, a convolution, norms and attention."""

    num_classes = 3

    def __init__(self):
        super().__init__()
        self.enter = nn.Conv1d(2, 8, 3, padding=1)
        self.times = nn.Linear(2, 8)
        self.labels = nn.Embedding(4, 8)
        self.place = nn.Parameter(torch.randn(1, 3, 8) / 3)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.leave = nn.Linear(8, 2)

    def forward(self, x, r, t, y=None):
        y = torch.full(x.shape[:1], 3, device=x.device) if y is None else y
        h = self.enter(x).transpose(1, 2) + self.place
        h = h + (self.times(torch.stack([t, t - r], 1)) + self.labels(y))[:, None]
        n = self.norm(h)
        h = h + self.attention(n, n, n, need_weights=False)[0]
        return self.leave(nn.functional.silu(h)).transpose(1, 2)


def build():
    return Net()
'''


def _inputs(out: Path) -> None:
    import stand_ins
    from stand_ins import CLASSES, SHAPE, STAND_INS

    rng = np.random.default_rng(0)
    np.savez(out / "data.npz", x=rng.standard_normal((40, *SHAPE)), y=np.arange(40) % CLASSES)
    np.savez(out / "labelled.npz", x=rng.standard_normal((60, 2, 3)), y=np.arange(60) % 3)
    for name in ("zhuyu-meanflow", "haidog-meanflow"):
        stand_in = STAND_INS[name]
        torch.manual_seed(3)
        network = stand_in.network()
        torch.save(stand_in.saved(network.state_dict()), out / f"{name}.pt")
        own = {
            "extends": f"{name}.yaml",
            "network": {"factory": f"{stand_ins.__file__}:{stand_in.network.__name__}"},
            "data": {"shape": list(SHAPE), **stand_in.statistics},
            "conditioning": {"classes": CLASSES, "null": CLASSES},
        }
        (out / f"own-{name}.yaml").write_text(yaml.safe_dump(own))
    (out / "own_net.py").write_text(_NETWORK)
    scope: dict = {}
    exec(_NETWORK, scope)
    for seed, name in enumerate(("own", "own2")):
        torch.manual_seed(seed)
        torch.save(scope["build"]().state_dict(), out / f"{name}.pt")
    tiny = {"log_every": 20, "ema_decay": 0.9, "learning_rate": 1e-3, "times": "logit_normal:-0.4,1,0.75"}
    grid = tiny | {
        "axes": {"data": ["two_moons", "pinwheel"], "loss.beta": [0, 1], "seed": [0, 1]},
        "model": {"name": "mlp", "arguments": {"dim": 2, "hidden": 16, "depth": 2}},
        "loss": {"anchor": {"lambda": 0.5, "delta_min": 1e-4, "delta_max": 1e-2}},
        "batch_size": 32,
        "steps": 60,
        "measure_every": 30,
        "measure_samples": 128,
    }
    (out / "grid.yaml").write_text(yaml.safe_dump(grid))
    dit = {"name": "dit", "arguments": {"size": 8, "channels": 1, "patch": 2, "width": 16, "depth": 2, "heads": 2}}
    spec = tiny | {"model": dit, "data": "digits", "batch_size": 16, "steps": 20}
    (out / "dit.yaml").write_text(yaml.safe_dump(spec))


def make(out: Path, only: list[str]) -> None:
    """Every command of COMMANDS into its own folder below `out`; those of the folders in `only`, if there are any."""
    out.mkdir(parents=True)
    _inputs(out)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}

    def mfdiag(*arguments: str) -> None:
        run = subprocess.run(
            [sys.executable, "-m", "mfdiag", *arguments], cwd=out, env=environment, capture_output=True, text=True
        )
        if run.returncode:
            raise SystemExit(f"mfdiag {' '.join(arguments)}: {run.returncode}\n{run.stderr}")

    mfdiag("train", "dit.yaml", "--out", "dit", "--quiet")
    first = COMMANDS["resumed/sweep"].format(_OWN=_OWN).replace(" own2.pt", "").replace(" --resume", "")
    mfdiag(*first.split(), "--out", "resumed", "--quiet")
    for name, command in COMMANDS.items():
        folder = name.partition("/")[0]
        if only and folder not in only:
            continue
        cells = " ".join(sorted(str(p.relative_to(out)) for p in (out / "grid").glob("*/model.safetensors")))
        arguments = command.format(_OWN=_OWN, cells=cells, out=folder).split()
        where = [] if arguments[0] == "report" else ["--out", name if name in _ALONE else folder, "--quiet"]
        mfdiag(*arguments, *where)
        print(name, flush=True)


_ALONE = ("weighted/gibbs",)  # a second sweep of its folder


def compare(before: Path, after: Path) -> int:
    """Prints every table that differs; the number of them."""
    names = sorted({str(p.relative_to(root)) for root in (before, after) for p in root.rglob("*.parquet")})
    different = 0
    for name in names:
        problem = _difference(before / name, after / name)
        different += problem is not None
        print(f"{name}: {problem or 'equal'}")
    print(f"{len(names)} tables, {different} different")
    return different


def _difference(before: Path, after: Path) -> str | None:
    if not (before.exists() and after.exists()):
        return f"only in {'the first' if before.exists() else 'the second'}"
    old, new = pd.read_parquet(before), pd.read_parquet(after)
    if list(old) != list(new):
        return f"columns {list(old)} became {list(new)}"
    if len(old) != len(new):
        return f"{len(old)} rows became {len(new)}"
    changed = [name for name in old if not old[name].equals(new[name])]
    if not changed:
        return None
    if "value" in changed:
        off = ~((old["value"] == new["value"]) | (old["value"].isna() & new["value"].isna()))
        relative = ((new["value"] - old["value"]).abs() / old["value"].abs()).max()
        return f"columns {changed}: {int(off.sum())} of {len(old)} values, by at most {relative:.1e} relative"
    return f"columns {changed}"


if __name__ == "__main__":
    action, *folders = sys.argv[1:]
    if action == "make":
        make(Path(folders[0]).resolve(), folders[1:])
    else:
        raise SystemExit(min(1, compare(*map(Path, folders))))
