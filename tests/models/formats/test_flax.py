"""Parameters of JAX: what flax and Orbax wrote, as weights of a torch network with the same outputs."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mfdiag.errors import InputError
from mfdiag.models.checkpoint import load_model
from mfdiag.models.formats.containers import read_container
from mfdiag.models.inspection import inspect_checkpoint

HERE = Path(__file__).parent / "flax"
BLOCK = {"from": "blocks_*_norm.*", "to": "blocks.*.norm.*"}
SPLIT: list[dict[str, Any]] = [BLOCK, {"from": "blocks_*_attention.*.*", "to": "blocks.*.attention.*.*"}]
FUSED: list[dict[str, Any]] = [
    BLOCK,
    *(
        {"from": f"blocks_*_attention.{word}.{leaf}", "to": f"blocks.*.attention.in_proj_{end}", **axes, "part": [k, 3]}
        for k, word in enumerate(("query", "key", "value"))
        for leaf, end, axes in (("kernel", "weight", {"axes": [1, 2, 0]}), ("bias", "bias", {}))
    ),
    {"from": "blocks_*_attention.out.*", "to": "blocks.*.attention.out_proj.*"},
]
NETWORKS = {"Port": FUSED, "SplitPort": SPLIT}
FILES = ("network.msgpack", "orbax/700", "orbax", "zarr", "orbax_0_4/700")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flax")
    shutil.unpack_archive(HERE / "orbax.zip", folder)
    shutil.copy(HERE / "network.msgpack", folder)
    return folder


def card(folder: Path, network: str = "Port", rules: list[dict[str, Any]] | None = None, **weights: Any) -> str:
    section = {"raw": "params", "ema": "ema_params", "layout": "flax", "rules": NETWORKS[network], **weights}
    if rules is not None:
        section["rules"] = rules
    fields = {
        "network": {"factory": f"{HERE / 'port.py'}:{network}"},
        "weights": section,
        "call": {"arguments": ["x", "r", "t", "y"]},
        "conditioning": {"kind": "index", "classes": 3, "null": 3},
    }
    path = folder / f"{network}.yaml"
    path.write_text(yaml.safe_dump(fields))
    return str(path)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_model(path, **options)
    return str(caught.value)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_outputs_are_those_of_flax(files: Path, tmp_path: Path, file: str, network: str, weights: str) -> None:
    loaded = load_model(files / file, model=card(tmp_path, network), weights=weights)
    expected = np.load(HERE / "outputs.npz")
    x, r, t, y = (torch.as_tensor(expected[name]) for name in ("x", "r", "t", "y"))
    torch.testing.assert_close(loaded.module(x, r, t, y), torch.as_tensor(expected[weights]), rtol=1e-5, atol=2e-6)
    assert loaded.step == 700 and loaded.has_weights("ema")


@pytest.mark.parametrize("file", FILES)
def test_headers_are_those_of_the_arrays(files: Path, file: str) -> None:
    sets = [read_container(files / file, load=load).tree["params"] for load in (False, True)]
    assert sets[0].keys() == sets[1].keys() and len(sets[0]) == 23
    for name, header in sets[0].items():
        assert header.shape == tuple(sets[1][name].shape) and f"torch.{header.dtype}" == str(sets[1][name].dtype)
    inspection = inspect_checkpoint(files / file)
    assert inspection.step in (700, None) and [entry.key for entry in inspection.weights][:2] != []
    assert {entry.key for entry in inspection.weights} == {"params", "ema_params"}


def test_inspect_imports_no_torch(files: Path) -> None:
    code = "import sys; from mfdiag.cli import main; sys.argv = ['mfdiag', 'inspect', sys.argv[1]]\n"
    code += "try: main()\nexcept SystemExit as end: assert not end.code\nassert 'torch' not in sys.modules"
    for file in ("network.msgpack", "orbax"):
        done = subprocess.run([sys.executable, "-c", code, str(files / file)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "--weights ema selects ema_params" in done.stdout


def test_the_proposed_card_loads_the_file(tmp_path: Path) -> None:
    factory = """
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.label, self.norm = nn.Conv2d(3, 4, 2), nn.Embedding(11, 4), nn.LayerNorm(4)

        def forward(self, x, r, t, y): ...

    build = Net
    """
    (tmp_path / "network.py").write_text(textwrap.dedent(factory))
    params = {
        "enter": {"kernel": array((2, 2, 3, 4), data=bytes(192)), "bias": array((4,), data=bytes(16))},
        "label": {"embedding": array((11, 4), data=bytes(176))},
        "norm": {"scale": array((4,), data=bytes(16)), "bias": array((4,), data=bytes(16))},
    }
    path = tmp_path / "checkpoint_9"
    path.write_bytes(msgpack.packb({"params": params, "ema_params": params, "step": 9}))
    proposal = inspect_checkpoint(path).proposal
    assert proposal is not None
    fields = yaml.safe_load(proposal.text)
    assert fields["weights"] == {"raw": "params", "ema": "ema_params", "layout": "flax"}
    assert fields["conditioning"] == {"kind": "index", "classes": 10, "null": 10}
    (tmp_path / "card.yaml").write_text(proposal.text)
    for weights in ("raw", "ema"):
        assert load_model(path, model=str(tmp_path / "card.yaml"), weights=weights).step == 9


WRONG = [
    ("forgotten", SPLIT[:1], {}, "missing: blocks.0.attention.query.weight"),
    (
        "idle",
        [*SPLIT, {"from": "blocks.*", "to": "layers.*"}],
        {},
        "the first that fits some tensor, but blocks.*",
    ),
    ("twice", [*SPLIT, {"from": "down.*", "to": "up.*"}], {}, "Expected one tensor for up."),
    ("unused", [*SPLIT, {"from": "down.bias", "to": "spare"}], {}, "1 missing: down.bias; 1 unexpected: spare"),
    ("named", [*SPLIT, {"from": "down.bias", "to": "spare"}], {"unused": ["spare"], "absent": ["down.bias"]}, None),
    ("axes", [*SPLIT, {"from": "down.kernel", "to": "down.weight", "axes": [1, 0]}], {}, "the 4 axes of down.kernel"),
    ("order", [*SPLIT, {"from": "enter.kernel", "to": "enter.weight", "axes": [2, 3, 0, 1]}], {}, "of another shape"),
    ("numbers", [*SPLIT, {"from": "down.kernel", "to": "down.weight", "reshape": [7, -1]}], {}, "Expected reshape"),
    ("layout", SPLIT, {"layout": "torch"}, "unexpected: blocks.0.attention.key.kernel"),
    (
        "torch layout",
        [*SPLIT, {"from": "*.kernel", "to": "*.weight"}, {"from": "*.scale", "to": "*.weight"}],
        {"layout": "torch"},
        "set weights.layout: flax, or add axes",
    ),
]


@pytest.mark.parametrize(("rules", "weights", "message"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_rules_are_strict(
    files: Path, tmp_path: Path, rules: list[dict[str, Any]], weights: dict[str, Any], message: str | None
) -> None:
    model = card(tmp_path, "SplitPort", rules, **weights)
    if message is None:
        load_model(files / "network.msgpack", model=model)
    else:
        assert message in refusal(files / "network.msgpack", model=model)


def test_parts_are_complete_and_once(files: Path, tmp_path: Path) -> None:
    without = [rule for rule in FUSED if rule["from"] != "blocks_*_attention.key.kernel"]
    assert "Expected 3 parts of blocks.0.attention.in_proj_weight" in refusal(
        files / "network.msgpack", model=card(tmp_path, rules=without)
    )
    again = [rule | ({"part": [0, 3]} if "key.kernel" in rule["from"] else {}) for rule in FUSED]
    assert "both blocks_0_attention." in refusal(files / "network.msgpack", model=card(tmp_path, rules=again))
    heads = [{k: v for k, v in rule.items() if k != "axes"} for rule in FUSED]
    assert "[1, 2, 0] for [in, heads, head]" in refusal(files / "network.msgpack", model=card(tmp_path, rules=heads))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"from": "a", "to": "*"}, "`to` has more * than `from`"),
        ({"from": "a", "to": "b", "part": [2, 2]}, "part must be"),
        ({"from": "a", "to": "b", "reshape": [-1, -1]}, "reshape must have sizes"),
        ({"from": "a", "to": "b", "axis": [0]}, "Unknown field 'axis'. Did you mean 'axes'"),
        ({"to": "b"}, "this field is required"),
    ],
)
def test_bad_rules_name_file_and_line(files: Path, tmp_path: Path, rule: dict[str, Any], message: str) -> None:
    text = refusal(files / "network.msgpack", model=card(tmp_path, rules=[rule]))
    assert "Port.yaml, line" in text and message in text


def test_the_card_of_meanflow_in_jax(tmp_path: Path) -> None:
    """A small network of the repository's own class: the same outputs, a fixed position embedding, the same layers."""
    changes = {"num_classes": 3, "input_size": 16, "depth": 2, "width": 8, "heads": 2, "patch": 4}
    fields = {
        "extends": "meanflow-jax.yaml",
        "network": {"arguments": changes},
        "conditioning": {"classes": 3, "null": 3},
        "data": {"shape": [4, 16, 16]},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(fields))
    loaded = load_model(HERE / "meanflow.msgpack", model=str(tmp_path / "small.yaml"))
    expected = {name: torch.as_tensor(value) for name, value in np.load(HERE / "meanflow_outputs.npz").items()}
    u = loaded.module(*(expected[name] for name in ("x", "r", "t", "y")))
    torch.testing.assert_close(u, expected["u"], rtol=1e-5, atol=1e-5)
    assert "network.pos_embed" in dict(loaded.module.named_buffers()) and loaded.has_weights("ema")
    proposal = inspect_checkpoint(HERE / "meanflow.msgpack").proposal
    assert proposal is not None and proposal.recognised == "meanflow-jax.yaml"


NAMES = st.text("abc_0", min_size=1, max_size=5)


@given(
    tree=st.recursive(
        st.tuples(st.sampled_from(["float32", "bfloat16", "int8", "float64"]), st.lists(st.integers(0, 3), max_size=3)),
        lambda inner: st.dictionaries(NAMES, inner, min_size=1, max_size=4),
        max_leaves=12,
    )
)
def test_any_tree_comes_back(tree: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Against a plain walk: every array of `params` under its dotted name, with its shape, dtype and bytes."""
    leaves: dict[str, tuple[str, list[int], bytes]] = {}

    def packed(value: Any, place: str) -> Any:
        if isinstance(value, dict):
            return {name: packed(inner, f"{place}.{name}" if place else name) for name, inner in value.items()}
        dtype, shape = value
        size = {"float32": 4, "bfloat16": 2, "int8": 1, "float64": 8}[dtype]
        data = bytes(i % 7 for i in range(int(np.prod(shape)) * size))
        leaves[place] = dtype, shape, data
        return msgpack.ExtType(1, msgpack.packb((shape, dtype, data)))

    root = tree if isinstance(tree, dict) else {"w": tree}
    path = tmp_path_factory.mktemp("tree") / "checkpoint_3"
    path.write_bytes(msgpack.packb({"params": packed(root, ""), "step": 3}))
    read = read_container(path, load=True)
    assert read.kind == "flax msgpack" and read.tree["step"] == 3
    parameters = read.tree["params"]
    assert parameters.keys() == leaves.keys()
    for name, (dtype, shape, data) in leaves.items():
        tensor = parameters[name]
        assert list(tensor.shape) == shape and str(tensor.dtype) == f"torch.{dtype}"
        assert bytes(tensor.reshape(-1).view(torch.uint8).tolist()) == data


def array(shape: Any = (2,), dtype: Any = "float32", data: bytes = bytes(8)) -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, data)))


def test_trees_without_a_name_and_with_variables(tmp_path: Path) -> None:
    path = tmp_path / "a.msgpack"

    def tree(content: Any) -> Any:
        path.write_bytes(msgpack.packb(content))
        return read_container(path, load=False).tree

    assert list(tree({"dense": {"kernel": array()}, "out": {"bias": array()}})) == ["dense.kernel", "out.bias"]
    nested = tree({"model": {"params": {"a": {"w": array()}}}, "ema": {"params": {"a": {"w": array()}}}})
    assert list(nested["ema"]["params"]) == ["a.w"]
    assert list(tree({"params": {"a": {"kernel": {"value": array()}}}})["params"]) == ["a.kernel"]
    chunked = {"__msgpack_chunked_array__": True, "shape": {"0": 2, "1": 2}, "chunks": {"0": array(), "1": array()}}
    assert tree({"params": {"w": chunked}})["params"]["w"].shape == (2, 2)
    assert read_container(path, load=True).tree["params"]["w"].shape == (2, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": array(dtype="object")}, "has the dtype 'object'"),
        ({"a": array(dtype="V8")}, "has the dtype 'V8'"),
        ({"a": array(shape=(3,))}, "an array of shape [3] has 8 bytes"),
        ({"a": array(shape=(-2,))}, "has the shape"),
        ({"a": array(shape=(2**62, 2**62))}, "bytes"),
        ({"a": array(shape="ab")}, "damaged"),
        ({"a": msgpack.ExtType(9, b"x")}, "an extension of type 9"),
        ({"a": msgpack.ExtType(1, b"\x93")}, "damaged"),
        ({"a": msgpack.ExtType(1, msgpack.packb([1]))}, "damaged"),
        ({"w": {"__msgpack_chunked_array__": True, "shape": {"0": 4}, "chunks": {"0": array()}}}, "an array in parts"),
        ({"w": {"__msgpack_chunked_array__": True, "shape": 4}}, "an array in parts"),
    ],
)
def test_damaged_files_are_one_sentence(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "a.msgpack"
    path.write_bytes(msgpack.packb(content))
    for load in (False, True):
        with pytest.raises(InputError) as caught:
            read_container(path, load=load)
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_truncated_and_deep_files(tmp_path: Path, files: Path) -> None:
    path = tmp_path / "a.msgpack"
    endless = b"\xdf" + struct.pack(">I", 2**31) + b"\xa1a"
    for content in (b"\x81\xa1a" * 5000 + b"\xc0", b"\x81\xa1a" * 300 + b"\xc0", endless):
        path.write_bytes(content)
        assert "a.msgpack" in refusal(path, model="zhuyu-meanflow.yaml")
    path.write_bytes((files / "network.msgpack").read_bytes()[:-100])
    assert "truncated or damaged" in refusal(path, model="zhuyu-meanflow.yaml")


def test_damaged_folders_are_one_sentence(tmp_path: Path, files: Path) -> None:
    folder = tmp_path / "a"
    shutil.copytree(files / "orbax" / "700", folder)
    metadata = json.loads((folder / "_METADATA").read_text())
    entry = next(iter(metadata["tree_metadata"].values()))
    for key, message in (("../../secret", "outside its folder"), ("absent", "truncated or damaged")):
        entry["key_metadata"][0]["key"] = key
        (folder / "_METADATA").write_text(json.dumps(metadata))
        with pytest.raises(InputError, match=message):
            read_container(folder, load=True)
    (folder / "_METADATA").write_text("{")
    with pytest.raises(InputError, match="no tree of names"):
        read_container(folder, load=False)
    for step in ("100", "200"):
        shutil.copytree(files / "orbax" / "700", tmp_path / "steps" / step)
    with pytest.raises(InputError, match="has 2: 100, 200; pass one of them"):
        read_container(tmp_path / "steps", load=False)


@pytest.mark.parametrize(("package", "file"), [("msgpack", "network.msgpack"), ("tensorstore", "orbax")])
def test_a_missing_extra_is_one_sentence(files: Path, monkeypatch: pytest.MonkeyPatch, package: str, file: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"is missing: pip install 'mfdiag\[jax\]'\.") as caught:
        read_container(files / file, load=True)
    assert "\n" not in str(caught.value)
