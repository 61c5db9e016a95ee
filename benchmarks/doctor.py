"""Is `mfdiag doctor` right? Trains models with planted faults and healthy ones, and holds the doctor against them.

    python benchmarks/doctor.py train DIR      # all models of tests/faults/, on one core; a killed run resumes
    python benchmarks/doctor.py measure DIR    # what the doctor measures of each; a killed run resumes
    python benchmarks/doctor.py healthy DIR    # mfdiag/data/healthy.csv: what healthy models have
    python benchmarks/doctor.py judge DIR      # the findings of each, and the tables of docs/doctor.md

The models are those of tests/faults/planted.py and tests/faults/healthy.py, trained by the plain loop of
tests/faults/training_loop.py; `DIR/index.json` lists them. Thresholds and rules come from the data sets of the tuning
half alone. `judge --held-out` applies them to the other half.
"""

from __future__ import annotations

import argparse
import json
import pickle
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest

from mfdiag.diagnosis.candidate import load_candidate
from mfdiag.diagnosis.diagnosis import diagnose
from mfdiag.diagnosis.evidence import Evidence, Facts, time_words
from mfdiag.diagnosis.examination import ExaminationOptions, examine
from mfdiag.diagnosis.training_log import read_log
from mfdiag.errors import InputError
from mfdiag.measures.run.subject import SubjectOptions
from mfdiag.models.weights import NonfiniteWeightsError
from mfdiag.tables.doctor import DOCTOR

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "faults"))

from cases import NETWORKS, Case, networks_of, place_of, train_case  # noqa: E402
from healthy import HEALTHY  # noqa: E402
from planted import FAULTS  # noqa: E402

Entry = dict[str, Any]
CASES = {(case.name, network): case for case in FAULTS + HEALTHY for network in networks_of(case)}
PAGE = ROOT / "docs" / "doctor.md"
TABLE = ROOT / "mfdiag" / "data" / "healthy.csv"
SAMPLES = 512
LEARNED = 0.25  # velocity error below which u(x_t, t, t) stands for v, so that identities of targets tell
# what grows with training: bounds come from finished ones alone
LEARNING = ["velocity_error", "skill", "learned_share"]
# what guided models have otherwise: their velocity is that with the null label, which few samples train
GUIDED = [*LEARNING, "derivative_coefficient", "derivative_share"]
BUDGET = 1000.0  # seconds: more than it takes, so that the load of the machine decides nothing
KEYS = ["quantity", "target"]
BY_TIME = ("velocity_error",)
BY_LAYER = ("variance_share", "layer_weight_scale")  # of the largest layer
MARKERS = "<!-- benchmarks/doctor.py: begin -->", "<!-- benchmarks/doctor.py: end -->"
NAMES = {
    "mlp": "MLP",
    "dit": "DiT",
    "images": "DiT on digits",
    "pixels": "MLP on digits",
    "deep": "MLP of 5 layers on digits",
}
SPLITS = ("tuning", "held_out")
HALVES = {"tuning": "tuned on", "seen": "held out, seen before", "clean": "held out, clean"}
# network and repeat of held-out models that were judged before a rule changed
SEEN = {("mlp", 0), ("mlp", 1), ("dit", 0), ("dit", 1)}


def train(folder: Path, repeat: int, only: str) -> None:
    """Train what is missing, the small network first, mild faults last."""
    faults = sorted(FAULTS, key=lambda case: case.severity == "mild")
    plan = [("mlp", faults), ("mlp", HEALTHY), ("dit", HEALTHY), ("dit", faults), ("images", HEALTHY)]
    for network, cases in (*plan, *((name, faults + HEALTHY) for name in NETWORKS if NETWORKS[name].like)):
        for case in cases:
            datasets = NETWORKS[network].datasets
            places = [folder / place_of(case, network, data, repeat) for data in datasets]
            wanted = network in networks_of(case) and any(only in place.name for place in places)
            if not wanted or all((place / "entry.json").exists() for place in places):
                continue
            start = time.process_time()
            train_case(case, network, datasets, folder, repeat)
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


def entries_of(folder: Path, split: str) -> list[Entry]:
    """The models of one half, those of the small network first; healthy ones also at earlier stages of training."""
    entries = [entry for entry in json.loads((folder / "index.json").read_text()) if entry["split"] == split]
    entries = [entry for entry in entries if entry["data"] in NETWORKS[entry["network"]].datasets]
    entries += [stage for entry in entries if entry["healthy"] for stage in stages(entry)]
    return sorted(entries, key=lambda entry: (entry["network"] != "mlp", entry["data"], not entry["healthy"]))


def stages(entry: Entry) -> Iterator[Entry]:
    """The earlier checkpoints of a model as models of their own, without a log."""
    for path in entry["series"]:
        yield {**entry, "id": f"{entry['id']}-{Path(path).stem}", "path": path, "log": None}


def case_of(entry: Entry) -> Case:
    """How a model was trained."""
    return CASES[f"{entry['kind']}-{entry['severity']}", entry["network"]]


def interval(right: int, count: int) -> str:
    """A share in percent with its 95 % interval (Wilson)."""
    if not count:
        return "-"
    low, high = binomtest(right, count).proportion_ci(method="wilson")
    return f"{right} of {count}: {right / count:.0%} [{low:.0%}, {high:.0%}]"


def judged(entry: Entry, findings: Sequence[tuple[str, str]]) -> Entry:
    """An entry with its findings (code, severity), the first first."""
    codes = [code for code, _ in findings]
    right = bool(set(codes[:2]) & set(case_of(entry).expected))
    critical = any(severity == "critical" for _, severity in findings)
    return {**entry, "half": half(entry), "codes": codes, "right": right, "critical": critical}


def half(entry: Entry) -> str:
    """Whether rules were tuned on a model, its judgment was seen before they were final, or neither."""
    if entry["split"] == "tuning":
        return "tuning"
    return "seen" if (entry["network"], entry.get("repeat", 0)) in SEEN else "clean"


def tables(rows: Sequence[Entry]) -> Iterator[str]:
    """Markdown of docs/doctor.md: totals, faults by kind, healthy models."""
    yield "| models | right code among the first two findings | healthy without a critical finding |"
    yield "| --- | --- | --- |"
    for part, words in HALVES.items():
        for network, name in NAMES.items():
            own = [row for row in rows if row["half"] == part and row["network"] == network]
            faulty, sound = ([row for row in own if row["healthy"] == healthy] for healthy in (0, 1))
            right, silent = sum(r["right"] for r in faulty), sum(not r["critical"] for r in sound)
            if own:
                yield f"| {words}, {name} | {interval(right, len(faulty))} | {interval(silent, len(sound))} |"
    yield from ("", f"| fault | right codes | {' | '.join(HALVES.values())} | first two findings, with counts |")
    yield "| --- " * 6 + "|"
    faulty = [row for row in rows if not row["healthy"]]
    for name in dict.fromkeys((r["kind"], r["severity"]) for r in faulty):
        own = [r for r in faulty if (r["kind"], r["severity"]) == name]
        expected = dict.fromkeys(code for r in own for code in case_of(r).expected)
        yield f"| {label(*name)} | {', '.join(expected)} | {shares(own, 'right')} | {leading(own)} |"
    yield from ("", f"| healthy models | {' | '.join(HALVES.values())} | critical findings |", "| --- " * 5 + "|")
    sound = [{**row, "silent": not row["critical"]} for row in rows if row["healthy"]]
    for name in dict.fromkeys((r["kind"], r["severity"]) for r in sound):
        own = [r for r in sound if (r["kind"], r["severity"]) == name]
        yield f"| {label(*name)} | {shares(own, 'silent')} | {leading([r for r in own if r['critical']])} |"


def label(kind: str, severity: str) -> str:
    """Kind and severity in words."""
    return kind.replace("_", " ") + ("" if severity == "plain" else f", {severity}")


def shares(rows: Sequence[Entry], key: str) -> str:
    """Three cells: how many of the models that rules were tuned on, of those seen before, and of the others."""
    parts = [[row[key] for row in rows if row["half"] == part] for part in HALVES]
    return " | ".join(f"{sum(part)}/{len(part)}" if part else "" for part in parts)


def leading(rows: Sequence[Entry]) -> str:
    """The first two findings of all, the most frequent first."""
    counts = Counter(code for row in rows for code in (row["codes"][:2] or ["none"]))
    return ", ".join(f"{code} {count}" for code, count in counts.most_common(4))


def write_page(rows: Sequence[Entry]) -> None:
    """Write the tables between the markers of docs/doctor.md."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKERS[0])
    after = rest.partition(MARKERS[1])[2]
    text = "\n".join(tables(rows))
    PAGE.write_text(f"{before}{MARKERS[0]}\n{text}\n{MARKERS[1]}{after}", encoding="utf-8")


def measure(folder: Path, split: str, only: str) -> None:
    """Store what the doctor measures of each model, as `DIR/evidence/NAME.pkl`."""
    (folder / "evidence").mkdir(exist_ok=True)
    for entry in entries_of(folder, split):
        if only not in entry["id"]:
            continue
        path = folder / "evidence" / f"{entry['id']}.pkl"
        if path.exists():
            continue
        start = time.process_time()
        temporary = path.with_suffix(".new")
        temporary.write_bytes(pickle.dumps(evidence_of(folder, entry)))
        temporary.replace(path)
        print(f"{entry['id']}: {time.process_time() - start:.1f} s of one core", flush=True)


def evidence_of(folder: Path, entry: Entry) -> Evidence | None:
    """What `mfdiag doctor CHECKPOINT --log LOG` measures, on fewer samples than in a minute; None for an error."""
    path, own = folder / entry["path"], entry["options"]
    log = folder / entry["log"] if entry["log"] else None
    options = ExaminationOptions(
        budget=BUDGET,
        samples=SAMPLES,
        batch_size=own.get("batch_size"),
        weighting=own.get("weighting"),
        effects=False,
        log=read_log(log) if log is not None and len(log.read_text().splitlines()) > 1 else None,
    )
    try:
        candidate = load_candidate(path, SubjectOptions(guidance=own.get("guidance")), say=lambda note: None)
    except NonfiniteWeightsError as error:
        nothing = pd.DataFrame(columns=[column.name for column in DOCTOR.columns])
        return Evidence(Facts(str(path), nonfinite=error.names), nothing, log=options.log)
    try:
        return examine(candidate, options, say=lambda note: None)
    except InputError as error:
        print(f"{entry['id']}: {error}", flush=True)
        return None


def judge(folder: Path, splits: Sequence[str]) -> None:
    """Judge the stored evidence, print who was wrong, and write the tables of docs/doctor.md."""
    rows = []
    for split in splits:
        for entry in entries_of(folder, split):
            path = folder / "evidence" / f"{entry['id']}.pkl"
            if not path.exists():
                continue
            evidence = pickle.loads(path.read_bytes())
            findings = [("error", "critical")]  # which is wrong of a healthy model too
            if evidence is not None:
                diagnosed = diagnose(evidence).findings
                findings = [(each.finding.code, each.detection.severity) for each in diagnosed]
            rows.append(judged(entry, findings))
            wrong = rows[-1]["critical"] if entry["healthy"] else not rows[-1]["right"]
            if wrong and split == "tuning":
                print(f"{entry['id']}: expected {entry['expected'] or 'nothing critical'}, got {findings}")
    print("\n".join(tables(rows)))
    if set(splits) == set(SPLITS):
        write_page(rows)


def healthy(folder: Path) -> None:
    """Write the bundled table: quantiles of each quantity over the healthy models of the tuning half."""
    models = []
    for entry in entries_of(folder, "tuning"):
        path = folder / "evidence" / f"{entry['id']}.pkl"
        if entry["healthy"] and path.exists():
            evidence = pickle.loads(path.read_bytes())
            values = values_of(evidence.frame)
            if values["velocity_error", ""] > LEARNED:
                values = values.drop("target_defect_ratio", level=0)
            if entry["log"] is None:
                values = values.drop(LEARNING, level=0, errors="ignore")
            models.append(grouped(values, evidence))
    values = pd.concat(models).groupby(level=[0, 1])
    table = values.quantile([0.01, 0.5, 0.99]).unstack().set_axis(["low", "median", "high"], axis=1)
    table.insert(0, "models", values.size())
    table.rename_axis(KEYS).to_csv(TABLE, float_format="%.4g", lineterminator="\n")
    print(TABLE.read_text(encoding="utf-8"))


def grouped(values: pd.Series, evidence: Evidence) -> pd.Series:
    """Values with the group of models that they set bounds for: see `Evidence.usual`."""
    if evidence.normalized:
        return values.rename(lambda name: f"{name}/p1", level=1)
    if evidence.facts.guidance is None:
        return values
    index = [(quantity, f"{target}/guided" if quantity in GUIDED else target) for quantity, target in values.index]
    return pd.Series(values.to_numpy(), pd.MultiIndex.from_tuples(index, names=values.index.names))


def values_of(frame: pd.DataFrame) -> pd.Series:
    """One value of each quantity and target: of the current weights, of the largest layer; of some also by time."""
    frame = frame[np.isfinite(frame["value"]) & frame["estimator"].isin([None, "meanflow"])]
    frame = frame[(frame["weights"] != "ema") | (frame["quantity"] == "average_gain")]
    frame = frame[(frame["layer"] == "all") | frame["quantity"].isin(BY_LAYER)]
    frame = frame[frame["t_low"].isna() | frame["quantity"].isin(BY_TIME)]
    times = [time_words(*bounds) for bounds in zip(frame["t_low"], frame["t_high"], strict=True)]
    return frame.assign(target=frame["target"].fillna(pd.Series(times, frame.index))).groupby(KEYS)["value"].max()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "measure", "healthy", "judge"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--held-out", action="store_true", help="measure or judge the held-out half too")
    parser.add_argument("--repeat", type=int, default=0, help="train models of other seeds: 1, 2, ...")
    parser.add_argument("--only", default="", help="train or measure models whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    splits = SPLITS if options.held_out else SPLITS[:1]
    if options.command == "train":
        train(options.folder, options.repeat, options.only)
    elif options.command == "measure":
        for split in splits:
            measure(options.folder, split, options.only)
    elif options.command == "healthy":
        healthy(options.folder)
    else:
        judge(options.folder, splits)


if __name__ == "__main__":
    main()
