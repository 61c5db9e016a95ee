"""Mutated files and names: no traceback, no code run, no hang, bounded memory, nothing printed that a terminal obeys.

    python benchmarks/hostile.py --count 10000 --out hostile.jsonl [--kinds yaml,data] [--seed 0]

Trials run in forked processes that have loaded the program, 20 in each. A repeated call goes on where it stopped. What
is wrong is printed, and the file that caused it is saved beside `--out`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from interruptions import load_program, prepare_folder

SECONDS = 10  # of the processor's time
WAITING = 600  # seconds by the clock after which a trial waits for something that does not come
EXTRA_BYTES = 2**30
TOGETHER = 20
VALUES: list[Any] = [
    *(0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**30, 1e308, float("nan"), float("inf"), True, None),
    *("", "x" * 100_000, "\x1b[31mred", "\x9b2J", "=cmd|' /C calc'!A0", "../../escape", "/etc/passwd", "a\0b", "a\nb"),
    *("<script>alert(1)</script>", "\u202egnp", "\ud800", "nan", "1e999", "9" * 5000, "code.py:run", "{x}", "%s%n"),
    *([], {}, [[]], [1] * 1000, {"a": {"b": {}}}, [0, [1, [2]]]),
]
QUICK = "--samples 64 --bins none --beta 0,1 --times uniform --quiet --overwrite --out out"
DIAGNOSED = "--samples 32 --quiet --overwrite --out out"
CODE = "import pathlib\npathlib.Path('canary').touch()\ndef run(*a, **k):\n    pathlib.Path('canary').touch()\n"


class Planted:
    """Unpickling this writes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("canary"),)


def mutated_tree(tree: Any, chance: random.Random) -> Any:
    """A tree of mappings, lists and values with one of its parts replaced, removed, repeated or nested."""
    if isinstance(tree, dict) and tree and chance.random() < 0.8:
        key = chance.choice(list(tree))
        copied, action = dict(tree), chance.random()
        if action < 0.15:
            del copied[key]
        elif action < 0.3:
            name = chance.choice([v for v in VALUES if isinstance(v, str)])
            copied[name if chance.random() < 0.5 else str(key) + "x"] = copied.pop(key)
        else:
            copied[key] = mutated_tree(tree[key], chance)
        return copied
    if isinstance(tree, list) and tree and chance.random() < 0.7:
        index = chance.randrange(len(tree))
        return [*tree[:index], mutated_tree(tree[index], chance), *tree[index + (chance.random() < 0.8) :]]
    if chance.random() < 0.05:
        for _ in range(chance.choice([5, 60, 3000])):
            tree = [tree] if chance.random() < 0.5 else {"a": tree}
        return tree
    return chance.choice(VALUES)


def mutated_bytes(raw: bytes, chance: random.Random) -> bytes:
    """Bytes that are flipped, cut, inserted, repeated, or replaced by large numbers."""
    data = bytearray(raw)
    for _ in range(chance.choice([1, 1, 2, 5, 50])):
        if not data:
            break
        at = chance.randrange(min(len(data), chance.choice([64, 1024, len(data)])) or 1)
        action = chance.randrange(7)
        if action == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif action == 1:
            del data[at:]
        elif action == 2:
            data[at:at] = chance.randbytes(chance.choice([1, 8, 100]))
        elif action == 3:
            data[at : at + 8] = struct.pack("<Q", chance.choice([2**31, 2**40, 2**63, 2**64 - 1, 10**6]))
        elif action == 4:
            data[at : at + chance.randrange(1, 64)] = b""
        elif action == 5:
            data += data[at : at + chance.randrange(1, 4096)]
        else:
            data[at] = chance.randrange(256)
    return bytes(data)


def dumped(tree: Any) -> str:
    """JSON, also of text that no encoding has."""
    with contextlib.suppress(RecursionError):
        return json.dumps(tree)
    return "[" * 100_000


def safetensors_file(raw: bytes, chance: random.Random) -> bytes:
    """A safetensors file with another header or other bytes."""
    if chance.random() < 0.4:
        return mutated_bytes(raw, chance)
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    described = header.get("__metadata__", {})
    if "mfdiag" in described and chance.random() < 0.6:
        described["mfdiag"] = dumped(mutated_tree(json.loads(described["mfdiag"]), chance))
    else:
        header = mutated_tree(header, chance)
    text = dumped(header).encode()
    return struct.pack("<Q", len(text)) + text + raw[8 + length :]


def torch_file(raw: bytes, chance: random.Random) -> bytes:
    """A file of torch.save with other bytes, other records, or objects that no reader may build."""
    import torch

    action = chance.random()
    if action < 0.35:
        return mutated_bytes(raw, chance)
    buffer = io.BytesIO()
    if action < 0.65 and raw[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(raw)) as source, zipfile.ZipFile(buffer, "w") as target:
            for info in source.infolist():
                content = source.read(info)
                if chance.random() < 0.5:
                    content = mutated_bytes(content, chance)
                if chance.random() < 0.1:
                    content = bytes(chance.choice([0, 10**6, 10**7]))
                name = info.filename if chance.random() < 0.95 else "../escape"
                kind = chance.choice([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
                target.writestr(name, content, kind)
        return buffer.getvalue()
    hostile = [
        Planted(),
        torch.ones(1).expand(chance.choice([10**3, 10**9, 10**12])),
        bytearray(10**6),
        {"x": torch.ones(3), "step": chance.choice([v for v in VALUES if not isinstance(v, list)])},
        {chance.choice([v for v in VALUES if isinstance(v, str | int)]): torch.ones(2, 2)},
        torch.empty(0, 5),
        torch.ones(2, 2, dtype=torch.complex64),
        torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.long), torch.ones(1), (10**12,)),
    ]
    content = chance.choice(hostile)
    if chance.random() < 0.5:
        content = {"model": {"w": content}}
    torch.save(content, buffer, _use_new_zipfile_serialization=chance.random() < 0.7)
    return buffer.getvalue() if chance.random() < 0.8 else pickle.dumps(content)


def yaml_file(raw: bytes, chance: random.Random) -> bytes:
    """A YAML file with other values, tags, aliases, depth or bytes."""
    import yaml

    action = chance.random()
    if action < 0.3:
        return mutated_bytes(raw, chance)
    text = raw.decode()
    if action < 0.55:
        tags = [
            "!!int abc",
            "!!float abc",
            "!!timestamp x",
            "2001-99-99",
            "!!bool x",
            "!!python/object/apply:os.system [x]",
        ]
        tags += [
            "0x" + "f" * 5000,
            "1:" * 2000 + "1",
            "&a [*a]",
            "!!binary ////",
            "!!set {a, b}",
            "!!omap [a: 1]",
            "? [a]",
            ".inf",
        ]
        lines = text.splitlines()
        at = chance.randrange(len(lines))
        lines[at] = re.sub(r":.*", lambda _: ": " + chance.choice(tags), lines[at], count=1)
        return "\n".join(lines).encode()
    if action < 0.65:
        depth = chance.choice([3, 9, 30])
        laughs = "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9) if k else 'x'}]\n" for k in range(depth))
        return (laughs + text).encode() if chance.random() < 0.5 else ("[" * chance.choice([10, 500, 50_000])).encode()
    with contextlib.suppress(Exception):
        return yaml.safe_dump(mutated_tree(yaml.safe_load(text), chance), allow_unicode=True).encode("utf-8", "replace")
    return mutated_bytes(raw, chance)


def json_file(raw: bytes, chance: random.Random) -> bytes:
    """A JSON file with other values or bytes."""
    if chance.random() < 0.3:
        return mutated_bytes(raw, chance)
    return dumped(mutated_tree(json.loads(raw), chance)).encode()


def npy_file(raw: bytes, chance: random.Random) -> bytes:
    """A .npy file with another header or other bytes."""
    if chance.random() < 0.4:
        return mutated_bytes(raw, chance)
    shapes = [
        "(512, 2)",
        "(10**9, 2)",
        "(99999999999, 2)",
        "(-1, 2)",
        "(512,)",
        "()",
        "(0, 2)",
        "(512, 1000000)",
        "[1]",
        "x",
    ]
    types = ["'<f4'", "'|O'", "'<f8'", "'<U9'", "'<M8[s]'", "'|V0'", "[('a', '<f4')]", "'" + "f" * 1000 + "'", "'<c8'"]
    header = f"{{'descr': {chance.choice(types)}, 'fortran_order': {chance.choice(['True', 'False', '1'])}, "
    header += f"'shape': {chance.choice(shapes)}, }}" + " " * chance.choice([0, 50, 20_000])
    version = chance.choice([b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09"])
    length = struct.pack("<H" if version[0] == 1 else "<I", min(len(header), 65535))
    return b"\x93NUMPY" + version + length + header.encode() + raw[128:]


def npz_file(raw: bytes, chance: random.Random) -> bytes:
    """An archive of mutated arrays."""
    buffer, one = io.BytesIO(), io.BytesIO()
    np.save(one, np.ones((512, 2), np.float32))
    if chance.random() < 0.3:
        return mutated_bytes(raw, chance)
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for name in chance.sample(["x.npy", "y.npy", "../escape.npy", "x", "\x1b[31m.npy", "arr_0.npy"], 2):
            content = npy_file(one.getvalue(), chance)
            if chance.random() < 0.1:
                content += bytes(10**8)
            target.writestr(name, content)
    return buffer.getvalue()


def parquet_file(raw: bytes, chance: random.Random) -> bytes:
    """A table with other columns, types or bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if chance.random() < 0.5:
        return mutated_bytes(raw, chance)
    table = pq.read_table(io.BytesIO(raw))
    for _ in range(chance.choice([1, 1, 3])):
        if not table.num_columns:
            break
        k = chance.randrange(table.num_columns)
        name, value = table.column_names[k], chance.choice([v for v in VALUES if not isinstance(v, list | dict)])
        action = chance.random()
        with contextlib.suppress(Exception):
            if action < 0.15:
                table = table.remove_column(k)
            elif action < 0.3:
                table = table.rename_columns([str(value) if n == name else n for n in table.column_names])
            elif action < 0.4:
                table = table.set_column(k, name, pa.array([[value]] * len(table)))
            else:
                values = table.column(k).to_pylist()
                values[chance.randrange(len(values))] = value
                values = values if chance.random() < 0.5 else [value] * len(values)
                table = table.set_column(k, name, pa.array(values))
    with contextlib.suppress(Exception):
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        return buffer.getvalue()
    return mutated_bytes(raw, chance)


def name(chance: random.Random) -> str:
    """A name that no file has, that no file can have, or that a shell, a terminal or a parser may take for more."""
    parts = ["a.safetensors", "x.npy", "..", "/", "a" * 300, ":", ",", "=", "\x1b[31m", "\x9b", "%s", "$(touch canary)"]
    parts += [
        ";touch canary",
        "|",
        "*",
        "?",
        "~",
        "-",
        "--debug",
        "\n",
        "\t",
        " ",
        "code.py:run",
        "teacher=",
        "1e999",
        "nan",
    ]
    parts += [
        "9" * 400,
        "\u202e",
        "logit_normal:",
        "gaussian:",
        "2,0,1",
        "density:",
        "pairs:",
        "reflow:",
        "@",
        "'",
        '"',
        "=1+1",
    ]
    return "".join(chance.choices(parts, k=chance.choice([1, 2, 3, 5]))) or "x"


Write = Callable[[bytes, random.Random], bytes]
FILES: dict[str, list[tuple[str, Write, str]]] = {
    "safetensors": [
        ("a.safetensors", safetensors_file, "inspect F"),
        ("a.safetensors", safetensors_file, "sweep F " + QUICK),
    ],
    "torch": [
        ("w.pt", torch_file, "inspect F"),
        ("old.pt", torch_file, "inspect F"),
        ("w.pt", torch_file, f"sweep F --model net.py:build --data x.npy {QUICK}"),
    ],
    "yaml": [
        ("a.yaml", yaml_file, "train F --dry-run"),
        ("card.yaml", yaml_file, f"sweep w.pt --model F --data x.npy {QUICK}"),
    ],
    "data": [
        (name, write, f"sweep a.safetensors --data F {QUICK}")
        for name, write in (
            ("x.npy", npy_file),
            ("x.npz", npz_file),
            ("x.parquet", parquet_file),
            ("x.pt", torch_file),
            ("x.safetensors", safetensors_file),
            ("x.tar", mutated_bytes),
            ("x.zip", mutated_bytes),
            ("list.json", json_file),
        )
    ],
    "tables": [
        ("results/sweep.parquet", parquet_file, "report results"),
        ("results/manifest.json", json_file, "report results"),
        ("results/manifest.json", json_file, f"sweep a.safetensors {QUICK} --out results --resume"),
        ("results/sweep.parquet", parquet_file, f"sweep a.safetensors {QUICK} --out results --resume"),
        ("results/sweep.parquet", parquet_file, f"sweep a.safetensors {QUICK} --out results --resume --format csv"),
    ],
    "names": [],
    "diagnosed": [
        ("a.safetensors", safetensors_file, f"doctor F {DIAGNOSED}"),
        ("a.safetensors", safetensors_file, f"identify F {DIAGNOSED}"),
        ("log.csv", mutated_bytes, f"doctor a.safetensors --log F {DIAGNOSED}"),
        ("log.jsonl", mutated_bytes, f"doctor a.safetensors --log F {DIAGNOSED}"),
        ("trainer_state.json", json_file, f"doctor a.safetensors --log F {DIAGNOSED}"),
        ("run.wandb", mutated_bytes, f"doctor a.safetensors --log F {DIAGNOSED}"),
        ("events.out.tfevents.1", mutated_bytes, f"doctor a.safetensors --log F {DIAGNOSED}"),
    ],
}
WEIGHTS = {"safetensors": 3, "torch": 3, "yaml": 4, "data": 5, "tables": 2, "names": 2, "diagnosed": 1}


def prepare(folder: Path) -> None:
    """Write the files that are mutated."""
    import tarfile

    import pandas as pd
    import torch
    from safetensors.torch import save_file

    prepare_folder(folder)
    os.chdir(folder)
    Path("code.py").write_text(CODE)
    Path("net.py").write_text(
        "from mfdiag.models.networks.mlp import MLP\ndef build():\n    return MLP(2, hidden=16, depth=1)\n"
    )
    from mfdiag.models.networks.mlp import MLP

    state = MLP(2, hidden=16, depth=1).state_dict()
    torch.save(state, "w.pt")
    torch.save({"model": state, "step": 3}, "old.pt", _use_new_zipfile_serialization=False)
    Path("card.yaml").write_text(
        'network: {factory: "net.py:build"}\ncall: {arguments: [x, r, t]}\nobjective:\n  times: uniform\n'
    )
    x = np.load("x.npy")
    np.savez("x.npz", x=x, y=np.arange(512) % 3)
    pd.DataFrame(x, columns=["a", "b"]).to_parquet("x.parquet")
    torch.save({"x": torch.tensor(x)}, "x.pt")
    save_file({"x": torch.tensor(x)}, "x.safetensors")
    log = pd.DataFrame({"step": range(0, 400, 10), "loss": np.geomspace(2, 0.5, 40), "grad_norm": 1.0})
    log.to_csv("log.csv", index=False)
    log.to_json("log.jsonl", orient="records", lines=True)
    Path("trainer_state.json").write_text(json.dumps({"log_history": log.to_dict("records")}))
    Path("run.wandb").write_bytes(b":W&B\xc0\xad\0" + struct.pack("<IHB", 0, 9, 1) + b"\n\7history")
    Path("events.out.tfevents.1").write_bytes(struct.pack("<QI", 6, 0) + b"\x18\1*\2\n\0" + struct.pack("<I", 0))
    Path("samples").mkdir()
    for k in range(8):
        np.save(f"samples/{k}.npy", x[k])
    with tarfile.open("x.tar", "w") as tar, zipfile.ZipFile("x.zip", "w") as archive:
        for k in range(8):
            tar.add(f"samples/{k}.npy", f"{k}.npy")
            archive.write(f"samples/{k}.npy", f"{k}.npy")
    listed = {"root": "samples", "file_list": [f"{k}.npy" for k in range(8)], "label_list": [0] * 8}
    Path("list.json").write_text(json.dumps(listed))


def trial(kind: str, number: int, seed: int) -> list[str]:
    """Write the mutated file of a trial, and return the arguments."""
    chance = random.Random(f"{seed} {kind} {number}")
    if kind == "names":
        words = [name(chance).replace("\0", "") for _ in range(2)]
        form = chance.choice(
            [
                "inspect A",
                f"sweep A {QUICK}",
                f"sweep a.safetensors --data A {QUICK}",
                f"sweep w.pt --model A --data x.npy {QUICK}",
                f"sweep a.safetensors {QUICK} --out A",
                f"sweep a.safetensors {QUICK} --times A",
                f"sweep a.safetensors {QUICK} --coupling A --source B",
                f"variance a.safetensors --estimator A {QUICK} --guidance B",
                f"sweep a.safetensors {QUICK} --proxy A --path B",
                f"quality a.safetensors --metric A --features B {QUICK}",
                "train A --dry-run",
                "report A B",
            ]
        )
        form = form.replace("--beta 0,1", "") if "quality" in form else form
        return [{"A": words[0], "B": words[1]}.get(word, word) for word in form.split()]
    file, write, form = chance.choice(FILES[kind])
    source = Path(file)
    named = "results" in file or kind == "diagnosed"
    target = Path("trial") / (source.name if named else f"{number}{source.suffix}")
    shutil.rmtree("trial", ignore_errors=True)
    Path("trial").mkdir()
    if "results" in file:
        shutil.rmtree("out", ignore_errors=True)
        shutil.copytree("results", "out")
        target = Path("out") / source.name
    target.write_bytes(write(source.read_bytes(), chance))
    form = form.replace("--overwrite --out out --out results", "--out out").replace("report results", "report out")
    return [str(target) if word == "F" else word for word in form.split()]


def run_one(arguments: list[str]) -> tuple[int, str, float, int]:
    """Exit code, what was printed, CPU seconds and the growth of the process's peak memory in bytes."""
    from mfdiag.cli.app import app

    before = resource.getrusage(resource.RUSAGE_SELF)
    out = io.StringIO()
    sys.argv = ["mfdiag", *arguments]
    code = 0
    real = sys.stdout, sys.stderr
    sys.stdout = sys.stderr = out
    try:
        app(prog_name="mfdiag")
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException as error:
        code = 99
        out.write(f"Traceback {type(error).__name__}: {error}")
    finally:
        sys.stdout, sys.stderr = real
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return code, out.getvalue(), seconds, (after.ru_maxrss - before.ru_maxrss) * 1024


def judged(code: int, said: str, seconds: float, grown: int) -> list[str]:
    """What is wrong with a trial."""
    wrong = []
    if code not in (0, 2) or "Traceback" in said or "mfdiag: Unexpected" in said:
        wrong.append(f"code {code}")
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", said):
        wrong.append("control characters")
    if seconds > SECONDS:
        wrong.append(f"{seconds:.0f} s")
    if grown > EXTRA_BYTES:
        wrong.append(f"{grown / 2**20:.0f} MiB")
    if Path("canary").exists():
        wrong.append("code was run")
        Path("canary").unlink()
    return wrong


def limit(processor: float, clock: float) -> None:
    """End this process after so many seconds of processor time, or by the clock; 0 lifts a limit.

    A busy machine makes a trial of three seconds last minutes, so that the clock alone says nothing.
    """
    for timer, ends, seconds in (
        (signal.ITIMER_PROF, signal.SIGPROF, processor),
        (signal.ITIMER_REAL, signal.SIGALRM, clock),
    ):
        signal.signal(ends, lambda *_: os._exit(9))
        signal.setitimer(timer, seconds)


def batch(kind: str, numbers: list[int], seed: int, log: Path) -> None:
    """Run trials in one forked process, which writes a line before and after each."""
    process = os.fork()
    if process:
        deadline = time.monotonic() + WAITING * len(numbers)
        while os.waitpid(process, os.WNOHANG)[0] == 0:
            time.sleep(0.05)
            if time.monotonic() > deadline:
                os.kill(process, signal.SIGKILL)
                deadline = float("inf")
        return
    with log.open("a") as file:
        for number in numbers:
            arguments = trial(kind, number, seed)
            file.write(json.dumps({"kind": kind, "number": number, "starts": arguments}) + "\n")
            file.flush()
            limit(3 * SECONDS, WAITING)
            code, said, seconds, grown = run_one(arguments)
            limit(0, 0)
            wrong = judged(code, said, seconds, grown)
            line = {"kind": kind, "number": number, "code": code, "wrong": wrong, "seconds": round(seconds, 2)}
            file.write(json.dumps(line | ({"said": said[-400:]} if wrong else {})) + "\n")
            file.flush()
    os._exit(0)


def entries(folder: Path) -> set[str]:
    """The names around a folder."""
    return {str(path) for outer in (folder.parent, folder.parent.parent) for path in outer.iterdir()}


def main() -> None:
    """Run trials and print what they showed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kinds", default=",".join(FILES))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    log, kinds = options.out.resolve(), options.kinds.split(",")
    done = Counter()
    if log.exists():
        done.update(json.loads(line)["kind"] for line in log.read_text().splitlines() if "starts" in line)
    load_program()
    total = sum(WEIGHTS[kind] for kind in kinds)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "inside" / "folder"
        prepare(folder)
        code, said, *_ = run_one(f"sweep a.safetensors {QUICK.replace('--out out', '--out results')}".split())
        assert code == 0, said
        names = entries(folder)
        for kind in kinds:
            count = options.count * WEIGHTS[kind] // total
            while done[kind] < count:
                numbers = list(range(done[kind], min(done[kind] + TOGETHER, count)))
                batch(kind, numbers, options.seed, log)
                done[kind] = Counter(json.loads(x)["kind"] for x in log.read_text().splitlines() if "starts" in x)[kind]
                assert names == entries(folder), "something was written outside"
    report(log)


def report(log: Path) -> None:
    """Print how many trials were right, and those that were not."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    ended = {(line["kind"], line["number"]): line for line in lines if "code" in line}
    started = {(line["kind"], line["number"]): line["starts"] for line in lines if "starts" in line}
    wrong = {key: ended[key]["wrong"] if key in ended else ["ended"] for key in started}
    for kind in dict.fromkeys(kind for kind, _ in started):
        own = {key: value for key, value in wrong.items() if key[0] == kind}
        codes = Counter(ended[key]["code"] for key in own if key in ended)
        slowest = max(ended[key]["seconds"] for key in own if key in ended)
        print(
            f"{kind}: {len(own)} trials, {sum(map(bool, own.values()))} wrong, codes {dict(codes)}, at most {slowest} s"
        )
    for key in [key for key, value in wrong.items() if value][:40]:
        print("  ", key, wrong[key], " ".join(started[key])[:120].encode("ascii", "backslashreplace").decode())
        print("      ", repr(ended.get(key, {}).get("said", ""))[-250:])


if __name__ == "__main__":
    main()
