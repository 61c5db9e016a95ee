"""Runs that something happens to: kills, two at once, a full disk, no memory, no files, folders that vanish.

    python benchmarks/interruptions.py kills pairs faults limits --out interruptions

Each trial is a line of OUT/NAME.jsonl; a repeated call goes on where it stopped. A trial is a real process, forked from
one that has loaded the program, so that it takes a second or two. `--count` sets the number of kills and of pairs.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

SPEC = """\
axes: {loss.beta: [0, 1], seed: [0, 1]}
data: DATA
model: {name: mlp, arguments: {dim: 2, hidden: 16, depth: 1}}
times: uniform
batch_size: 32
steps: 120
log_every: 10
save_every: 10
measure_every: 60
measure_samples: 128
"""
MEASURE = ["--data", "x.npy", "--times", "uniform", "--chunk", "16", "--quiet"]
COMMANDS: dict[str, list[str]] = {
    "sweep": [*MEASURE, "--samples", "256", "--bins", "none", "--beta", "0,0.5,1"],
    "variance": [*MEASURE, "--samples", "256", "--bins", "1,2", "--by", "layer"],
    "compare": [*MEASURE, "--samples", "128", "--bins", "none", "--estimator", "meanflow", "--estimator", "plane:1,0"],
    "coefficient": [*MEASURE, "--samples", "256", "--bins", "none"],
    "times": [*MEASURE, "--samples", "256", "--bins", "2,2"],
    "quality": [
        "--data",
        "x.npy",
        "--quiet",
        "--samples",
        "256",
        "--subsample",
        "16",
        "--weights",
        "raw,ema",
        "--nfe",
        "1",
    ],
    "train": ["--compile", "off", "--quiet"],
    "report": [],
}


@dataclass
class Trial:
    """One process: what it is asked, how it ended, and what it said."""

    arguments: list[str]
    folder: Path
    code: int | None = None
    said: str = ""
    process: int = 0
    prepare: Callable[[], None] = field(default=lambda: None)

    def start(self) -> Trial:
        """Fork and run the command."""
        self._log = self.folder / f"said.{time.monotonic_ns()}"
        self.process = os.fork()
        if not self.process:
            self._run()
        return self

    def _run(self) -> None:
        code = 70
        try:
            os.chdir(self.folder)
            log = os.open(self._log, os.O_CREAT | os.O_WRONLY)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            sys.argv = ["mfdiag", *self.arguments]
            import mfdiag.figures
            from mfdiag.cli.app import app
            from mfdiag.gradients import pass_checkpoint

            pass_checkpoint._SECONDS_BETWEEN_SAVES = 0.05
            if self.arguments[0] != "report":  # its trials draw figures, which take longer than all else
                mfdiag.figures.save_figures = lambda tables, out: []
            self.prepare()
            app(prog_name="mfdiag")
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
            os._exit(code)

    def wait(self) -> Trial:
        """Wait for the end."""
        _, status = os.waitpid(self.process, 0)
        self.code = os.waitstatus_to_exitcode(status)
        self.said = self._log.read_text(errors="replace") if self._log.exists() else ""
        self._log.unlink(missing_ok=True)
        return self

    def run(self) -> Trial:
        """Start and wait."""
        return self.start().wait()

    @property
    def clear(self) -> bool:
        """Whether it is done, or said why not in one sentence."""
        last = self.said.strip().splitlines()[-1:] or [""]
        told_why = self.code in (2, 3) and last[0].startswith("mfdiag: ") and "Unexpected" not in last[0]
        return "Traceback" not in self.said and (self.code == 0 or told_why)


def load_program() -> None:
    """Import everything that commands use, so that forked processes need not."""
    import matplotlib as mpl
    import torch

    mpl.use("Agg")
    torch.set_num_threads(1)
    import mfdiag.cli.app
    import mfdiag.cli.measuring
    import mfdiag.measures.quality
    import mfdiag.measures.run.quality_api
    import mfdiag.reporting.folder
    import mfdiag.training.trainer  # noqa: F401
    from mfdiag.estimators import estimators
    from mfdiag.figures import figures
    from mfdiag.quality.metrics import metrics

    estimators(), figures(), metrics()


def prepare_folder(folder: Path) -> None:
    """Write what the commands read: data, two checkpoints, two grids."""
    import torch

    from mfdiag.models.checkpoint import save_checkpoint
    from mfdiag.models.description import Architecture, Description
    from mfdiag.models.networks.mlp import MLP

    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(512, 2)).astype(np.float32))
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        model = MLP(2, hidden=16, depth=1)
        arguments = {"dim": 2, "hidden": 16, "depth": 1}
        about = Description(
            architecture=Architecture(name="mlp", arguments=arguments),
            times="uniform",
            data="gaussian:2,0,1",
            step=100 + seed,
            seed=seed,
        )
        ema = {key: value * 0.9 for key, value in model.state_dict().items()}
        save_checkpoint(folder / f"{name}.safetensors", model, ema, about)
        spec = SPEC.replace("DATA", "x.npy").replace("seed: [0, 1]", f"seed: [{seed}, {seed + 2}]")
        (folder / f"{name}.yaml").write_text(spec)


def arguments_of(command: str, names: str, out: str, *more: str) -> list[str]:
    """The arguments of a command over the checkpoints or grids `names`."""
    if command == "report":
        return ["report", out]
    files = [f"{name}.{'yaml' if command == 'train' else 'safetensors'}" for name in names]
    return [command, *files[: 1 if command == "train" else None], *COMMANDS[command], "--out", out, *more]


def resumed(command: str) -> list[str]:
    """The option with which a command resumes."""
    return [] if command in ("train", "report") else ["--resume"]


def tables_of(folder: Path) -> dict[str, pd.DataFrame]:
    """Every table below a folder. Fails for one that is torn."""
    return {path.name: pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))}


def require_whole(folder: Path) -> None:
    """Fail where a file that has its final name is torn."""
    tables_of(folder)
    for path in folder.glob("*.json"):
        json.loads(path.read_text())
    for path in folder.rglob("*.svg"):
        assert path.read_text().rstrip().endswith("</svg>"), path
    from safetensors import safe_open

    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "np"):
            pass


def differences(folder: Path, reference: Path) -> list[str]:
    """Tables, pages and leftovers in which a folder differs from one of an undisturbed run."""
    one, other = tables_of(folder), tables_of(reference)
    wrong = [name for name in one.keys() | other.keys() if not _equal(one.get(name), other.get(name))]
    own, expected = ({str(p.relative_to(f)) for p in f.rglob("*") if p.is_file()} for f in (folder, reference))
    return wrong + sorted(own ^ expected)


def _equal(one: pd.DataFrame | None, other: pd.DataFrame | None) -> bool:
    """Whether two tables have the same rows, in whatever order; `run` is the name of the folder."""
    if one is None or other is None or list(one.columns) != list(other.columns):
        return False
    frames = [frame.drop(columns="run").astype(str) for frame in (one, other)]
    frames = [frame.sort_values(list(frame.columns)).reset_index(drop=True) for frame in frames]
    return frames[0].equals(frames[1])


class References:
    """Undisturbed runs by command and checkpoints, with the time each took."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seconds = folder, {}

    def of(self, command: str, names: str = "ab") -> Path:
        """The folder of an undisturbed run."""
        out = self.folder / f"reference-{command}-{names}"
        if (command, names) not in self.seconds:
            self.start(command, out.name)
            start = time.monotonic()
            trial = Trial(arguments_of(command, names, out.name), self.folder).run()
            assert trial.code == 0, trial.said
            self.seconds[command, names] = time.monotonic() - start
        return out

    def start(self, command: str, out: str) -> None:
        """Make the folder in which a run starts: empty, but for a report."""
        shutil.rmtree(self.folder / out, ignore_errors=True)
        if command == "report":
            shutil.copytree(
                self.of("sweep"), self.folder / out, ignore=shutil.ignore_patterns("report.html", "figures")
            )


def kill(references: References, number: int) -> dict[str, Any]:
    """Kill a run at a random moment, some of them again when they resume, and compare the end."""
    command = list(COMMANDS)[number % len(COMMANDS)]
    chance, folder, out = random.Random(number), references.folder, f"kill-{number}"
    reference = references.of(command)
    references.start(command, out)
    kills, more = 0, []
    while True:
        trial = Trial(arguments_of(command, "ab", out, *more), folder).start()
        time.sleep(chance.uniform(0.02, 1.05) * references.seconds[command, "ab"])
        os.kill(trial.process, signal.SIGKILL)
        kills += trial.wait().code == -signal.SIGKILL
        require_whole(folder / out)
        more = resumed(command)
        if chance.random() < 0.7:
            break
    main_table = tables_of(folder / out).get(f"{command}.parquet", pd.DataFrame({"checkpoint": []}))
    finished = main_table["checkpoint"].nunique()
    last = Trial([a for a in arguments_of(command, "ab", out, *more) if a != "--quiet"], folder).run()
    kept = last.said.count("is measured already") if command not in ("train", "report", "times") else finished
    wrong = differences(folder / out, reference)
    lost = finished - kept if command not in ("train", "report", "quality", "times") else 0
    shutil.rmtree(folder / out)
    return {
        "command": command,
        "kills": kills,
        "code": last.code,
        "wrong": wrong,
        "lost": lost,
        "said": last.said[-300:],
    }


def pair(references: References, number: int) -> dict[str, Any]:
    """Run one command twice at the same time with other checkpoints into one folder, and compare with both alone."""
    measuring = [command for command in COMMANDS if command != "report"]
    command = measuring[number % len(measuring)]
    chance, folder, out = random.Random(10_000 + number), references.folder, f"pair-{number}"
    both = [references.of(command, name) for name in "ab"]
    mode = [] if command == "train" else [[], ["--resume"], ["--overwrite"]][number // len(measuring) % 3]
    order = chance.choice(["ab", "ba"])
    first = Trial(arguments_of(command, order[0], out, *mode), folder).start()
    time.sleep(chance.uniform(0, 0.9) * references.seconds[command, order[0]])
    over = (folder / out / f"{'training' if command == 'train' else command}.parquet").exists()
    second = Trial(arguments_of(command, order[1], out, *mode), folder).start()
    trials = [first.wait(), second.wait()]
    wrong = []
    alone = [tables_of(reference) for reference in both]
    for name, table in tables_of(folder / out).items():
        expected = pd.concat([tables[name] for tables in alone])
        if not _equal(table, expected):
            wrong.append(name)
    if over and mode != ["--resume"]:  # results of the first were there: refused, or replaced, as documented
        wrong = []
    leftovers = [p.name for p in (folder / out).rglob("*") if p.name.endswith((".tmp", ".lock"))]
    shutil.rmtree(folder / out)
    return {
        "command": command,
        "mode": " ".join(mode) or "new",
        "codes": [t.code for t in trials],
        "first had written": over,
        "wrong": wrong + leftovers,
        "said": "".join(t.said for t in trials)[-300:] if wrong else "",
    }


def injected(point: int, action: Callable[[], None], names: list[str]) -> Callable[[], None]:
    """What makes the `point`-th call among these functions of the file system fail; `action` comes before it."""

    def prepare() -> None:
        calls = itertools.count()
        for name in names:
            owner: Any = Path if hasattr(Path, name) else os
            original = getattr(owner, name)

            def wrapped(*a: Any, original: Any = original, **k: Any) -> Any:
                if next(calls) == point:
                    action()
                return original(*a, **k)

            setattr(owner, name, wrapped)

    return prepare


def full_disk() -> None:
    """What a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def faults(references: References) -> Iterator[dict[str, Any]]:
    """A full disk at every write of every command, and a folder that vanishes at every write."""
    folder, names = references.folder, ["fsync", "replace"]
    for command in COMMANDS:
        reference = references.of(command)
        sizes = sorted({p.stat().st_size for p in reference.rglob("*") if p.is_file()})
        for kind, points in (("no space", itertools.count()), ("vanished", itertools.count()), ("file limit", sizes)):
            for point in points:
                out = f"fault-{command}"
                references.start(command, out)
                if kind == "file limit":
                    limit = max(0, int(point) - 1)
                    prepare: Callable[[], None] = lambda limit=limit: resource.setrlimit(  # noqa: E731
                        resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY)
                    )
                elif kind == "no space":
                    prepare = injected(int(point), full_disk, names)
                else:
                    prepare = injected(int(point), lambda: shutil.rmtree(out, ignore_errors=True), names)  # noqa: B023
                trial = Trial(arguments_of(command, "ab", out), folder, prepare=prepare).run()
                reached = trial.code != 0
                wrong = [] if trial.clear else [f"code {trial.code}"]
                if kind != "vanished":
                    (folder / out).mkdir(exist_ok=True)
                    require_whole(folder / out)
                    again = Trial(arguments_of(command, "ab", out, *resumed(command)), folder).run()
                    wrong += [] if again.code == 0 else [f"then {again.code}"]
                    wrong += differences(folder / out, reference)
                yield {
                    "command": command,
                    "fault": kind,
                    "point": int(point),
                    "wrong": wrong,
                    "said": trial.said[-200:],
                }
                if not reached and kind == "no space":
                    break
                if kind == "vanished" and point >= 12:
                    break


def limits(references: References) -> Iterator[dict[str, Any]]:
    """Too little memory, and too few open files, for every command; and folders that nothing can be written to."""
    folder = references.folder
    for command in COMMANDS:
        references.of(command)
        for kind, values in (
            ("memory, MiB", [1, 3, 10, 20, 40, 80, 160, 320]),
            ("open files", [4, 5, 6, 7, 8, 10, 12, 16]),
        ):
            for value in values:
                out = f"limit-{command}"
                references.start(command, out)

                def prepare(kind: str = kind, value: int = value) -> None:
                    if kind == "open files":
                        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
                        resource.setrlimit(resource.RLIMIT_NOFILE, (value, most))
                        return
                    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                    resource.setrlimit(resource.RLIMIT_AS, (used + value * 2**20, resource.RLIM_INFINITY))

                trial = Trial(arguments_of(command, "ab", out), folder, prepare=prepare).run()
                wrong = [] if trial.clear else [f"code {trial.code}"]
                yield {"command": command, "fault": kind, "point": value, "wrong": wrong, "said": trial.said[-200:]}
        for out in ("/proc/none", "/dev/null/x", "a.safetensors/x", "x" * 300):
            trial = Trial(arguments_of(command, "ab", out), folder).run()
            wrong = [] if trial.clear and trial.code == 2 else [f"code {trial.code}"]
            yield {"command": command, "fault": "folder", "point": out[:20], "wrong": wrong, "said": trial.said[-200:]}


def numbered(trial: Callable[[References, int], dict[str, Any]], count: int) -> Callable[..., Iterator[dict[str, Any]]]:
    """Trials 0 to count - 1."""
    return lambda references, start: (trial(references, number) for number in range(start, count))


def main() -> None:
    """Run experiments and print what they showed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiments", nargs="+", choices=["kills", "pairs", "faults", "limits"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--commands", help="of these alone, separated by commas")
    options = parser.parse_args()
    for name in list(COMMANDS):
        if options.commands and name not in options.commands.split(","):
            del COMMANDS[name]
    load_program()
    options.out.mkdir(parents=True, exist_ok=True)
    trials: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
        "kills": numbered(kill, options.count),
        "pairs": numbered(pair, options.count),
        "faults": lambda references, start: itertools.islice(faults(references), start, None),
        "limits": lambda references, start: itertools.islice(limits(references), start, None),
    }
    for name in options.experiments:
        path = options.out / f"{name}.jsonl"
        done = len(path.read_text().splitlines()) if path.exists() else 0
        with tempfile.TemporaryDirectory() as folder, path.open("a") as file:
            prepare_folder(Path(folder))
            for result in trials[name](References(Path(folder)), done):
                file.write(json.dumps(result) + "\n")
                file.flush()
        results = [json.loads(line) for line in path.read_text().splitlines()]
        wrong = [r for r in results if r["wrong"] or r.get("lost") or r.get("code")]
        print(name, len(results), "trials, wrong:", len(wrong), dict(Counter(r["command"] for r in results)))
        for result in wrong[:20]:
            print("  ", json.dumps(result))


if __name__ == "__main__":
    main()
