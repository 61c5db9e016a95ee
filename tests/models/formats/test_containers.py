"""Containers: every format of one network gives the same weights, and files of code are refused without running it."""

from __future__ import annotations

import argparse
import io
import json
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refused_files import Planted, refusal
from safetensors.torch import save_file
from torch import Tensor, nn

from mfdiag.errors import InputError
from mfdiag.models.checkpoint import load_model
from mfdiag.models.formats.containers import is_tensor, read_container, training_step, weight_sets
from mfdiag.models.formats.pickles import PickleContent, Record, TensorHeader, read_pickle
from mfdiag.models.networks.mlp import MLP
from mfdiag.storage import sha256_of

INDEX = "model.safetensors.index.json"


@pytest.fixture
def model() -> MLP:
    torch.manual_seed(0)
    return MLP(2, hidden=4, depth=1)


@pytest.fixture
def factory(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(
        "from mfdiag.models.networks.mlp import MLP\n\ndef build(): return MLP(2, hidden=4, depth=1)\n"
    )
    return f"{tmp_path / 'net.py'}:build"


def save_sharded(folder: Path, state: dict[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    places = {name: f"model-{i % 2 + 1:05d}-of-00002.safetensors" for i, name in enumerate(state)}
    for file in set(places.values()):
        save_file({name: state[name].contiguous() for name in places if places[name] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return folder / INDEX


def write(kind: str, path: Path, state: dict[str, Tensor]) -> Path:
    match kind:
        case "safetensors":
            save_file(state, path)
        case "sharded safetensors":
            return save_sharded(path, state)
        case "torch zip" | "torch legacy":
            torch.save(OrderedDict(state), path, _use_new_zipfile_serialization=kind == "torch zip")
    return path


@pytest.mark.parametrize("kind", ["safetensors", "sharded safetensors", "torch zip", "torch legacy"])
def test_each_container_gives_the_same_weights(tmp_path: Path, model: MLP, factory: str, kind: str) -> None:
    path = write(kind, tmp_path / "file", model.state_dict())
    headers, tensors = (read_container(path, load=load) for load in (False, True))
    assert headers.kind == tensors.kind == kind and headers.files == tensors.files
    assert {n: (h.shape, h.dtype) for n, h in headers.tree.items()} == {
        name: (tuple(value.shape), "float32") for name, value in model.state_dict().items()
    }
    loaded = load_model(path, model=factory)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.module.state_dict().items())
    assert loaded.sha256 == sha256_of(*headers.files)


def test_folder_with_an_index_is_a_checkpoint(tmp_path: Path, model: MLP) -> None:
    index = save_sharded(tmp_path / "model", model.state_dict())
    assert read_container(tmp_path / "model", load=False).files[0] == index
    whole = b"".join(file.read_bytes() for file in read_container(index, load=False).files)
    (tmp_path / "whole").write_bytes(whole)
    assert sha256_of(*read_container(index, load=False).files) == sha256_of(tmp_path / "whole")


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/passwd", "..", "a/b.safetensors", "a\\b", "", 3, None]
)
def test_shards_outside_the_folder_are_refused(tmp_path: Path, model: MLP, name: Any) -> None:
    index = save_sharded(tmp_path / "model", model.state_dict())
    save_file(model.state_dict(), tmp_path / "outside.safetensors")
    index.write_text(json.dumps({"weight_map": {"layers.0.weight": name}}))
    assert "nothing outside its folder" in refusal(index)


def test_wrong_indices_are_refused(tmp_path: Path, model: MLP) -> None:
    index = save_sharded(tmp_path / "model", model.state_dict())
    places = json.loads(index.read_text())["weight_map"]
    for content, expected in [
        ({"weight_map": places | {"more": places["layers.0.weight"]}}, "Expected the tensor more in"),
        ({"weight_map": {"w": "none.safetensors"}}, "it is missing"),
        ({"weight_map": ["w"]}, "is not one"),
        ([], "is not one"),
    ]:
        index.write_text(json.dumps(content))
        assert expected in refusal(index)
    index.write_text("[" * 100_000)
    assert "begins with" in refusal(index) or "is not one" in refusal(index)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=4)
    | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3) | st.tuples(inner)
    ),
    max_leaves=8,
)


@given(values, st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_plain_pickles_read_as_pickle_reads_them(value: Any, protocol: int) -> None:
    assert read_pickle(io.BytesIO(pickle.dumps(value, protocol))).tree == value


def test_tensors_read_as_headers(tmp_path: Path) -> None:
    base = torch.arange(24.0)
    tensors = {
        "view": base.reshape(4, 6)[1:, ::2].t(),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 2),
        "expanded": torch.ones(1).expand(1000, 1000),
        "parameter": nn.Parameter(torch.ones(2)),
        **{
            str(dtype): torch.ones(2).to(dtype)
            for dtype in (torch.bfloat16, torch.float64, torch.bool, torch.complex64)
        },
        **{str(dtype): torch.ones(2).to(dtype) for dtype in (torch.uint16, torch.float8_e4m3fn)},
    }
    for zipped in (True, False):
        torch.save(tensors, tmp_path / "t.pt", _use_new_zipfile_serialization=zipped)
        headers = read_container(tmp_path / "t.pt", load=False).tree
        assert headers == {name: TensorHeader(tuple(t.shape), str(t.dtype)[6:]) for name, t in tensors.items()}


def test_values_of_training_scripts_read_the_same_either_way(tmp_path: Path) -> None:
    counts: defaultdict[str, int] = defaultdict(int)
    args = argparse.Namespace(lr=0.1, out=Path("runs"), dtype=torch.bfloat16, device=torch.device("cuda", 1))
    content = {"args": args, "best": np.float64(0.5), "count": np.int32(7), "kinds": {1, 2}, "counts": counts}
    content |= {"rng": np.arange(3, dtype=np.uint32), "inner": types.SimpleNamespace(a=1), "w": torch.ones(2)}
    torch.save(content, tmp_path / "s.pt")
    for load in (False, True):
        tree = read_container(tmp_path / "s.pt", load=load).tree
        assert type(tree["args"]).__name__ == "Namespace" and tree["args"].lr == 0.1 and str(tree["args"].out) == "runs"
        assert (tree["best"], tree["count"], tree["kinds"], tree["inner"].a) == (0.5, 7, {1, 2}, 1)
        assert type(tree["rng"]).__name__ == "ndarray" and is_tensor(tree["w"]) and not is_tensor(tree["args"])


def module_of(name: str, **attributes: Any) -> Iterator[types.ModuleType]:
    """A module of that name which can be imported while this runs."""
    module = types.ModuleType(name)
    for key, value in attributes.items():
        value.__module__ = name
        setattr(module, key, value)
    sys.modules[name] = module
    yield module
    del sys.modules[name]


@pytest.fixture
def omegaconf() -> Iterator[types.SimpleNamespace]:
    """Stands for OmegaConf: nodes with their content in `_content` and `_val`."""

    class DictConfig:
        pass

    class AnyNode:
        pass

    DictConfig.__qualname__, AnyNode.__qualname__ = "DictConfig", "AnyNode"
    for _ in module_of("omegaconf", **{}):
        for _ in module_of("omegaconf.dictconfig", DictConfig=DictConfig):
            for _ in module_of("omegaconf.nodes", AnyNode=AnyNode):
                yield types.SimpleNamespace(DictConfig=DictConfig, AnyNode=AnyNode)


@pytest.fixture
def project() -> Iterator[types.ModuleType]:
    """Another project: a network, a dictionary's subclass, and a function that rebuilds a network."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = MLP(2, hidden=4, depth=1).layers

    class Config(dict[str, Any]):
        pass

    Network.__qualname__, Config.__qualname__ = "Network", "Config"
    yield from module_of("project", Network=Network, Config=Config)


@pytest.fixture
def dill() -> Iterator[types.ModuleType]:
    """Stands for dill: what it writes are pickles that name its own functions."""

    def _create_type(*_: Any) -> type:
        return dict

    _create_type.__qualname__ = "_create_type"
    for module in module_of("dill", _create_type=_create_type):
        module.__version__ = "0.4.0"  # type: ignore[attr-defined]
        vars(module).update({k: getattr(pickle, k) for k in ("load", "loads", "dumps", "Pickler", "Unpickler")})
        yield module


def test_configuration_objects_are_read_as_values(tmp_path: Path, omegaconf: types.SimpleNamespace) -> None:
    depth, cfg = omegaconf.AnyNode(), omegaconf.DictConfig()
    vars(depth).update(_val=4, _metadata=None)
    vars(cfg).update(_content={"depth": depth, "none": None}, _parent=None, _metadata=None)
    torch.save({"cfg": cfg, "w": torch.ones(2)}, tmp_path / "c.pt")
    for load in (False, True):
        assert read_container(tmp_path / "c.pt", load=load).tree["cfg"].depth == 4


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("written_by", ["torch.save", "legacy torch.save", "pickle", "dill", "torch.save with dill"])
@pytest.mark.parametrize(
    "arrange",
    [
        lambda project, net: net,
        lambda project, net: {"model": net, "step": 3},
        lambda project, net: {"model": net.state_dict(), "cfg": project.Config(width=4)},
        lambda project, net: {"cfg": project.Config(width=4), "state_dicts": {"model": net.state_dict(), "n": {}}},
        lambda project, net: {**net.state_dict(), "cfg": project.Config(width=4)},
        lambda project, net: project.Config(model=net),
    ],
)
def test_refusals_name_two_lines_that_convert_the_file(
    tmp_path: Path,
    factory: str,
    project: types.ModuleType,
    dill: types.ModuleType,
    written_by: str,
    arrange: Callable[..., Any],
) -> None:
    network = project.Network()
    content, path = arrange(project, network), tmp_path / "it's.ckpt"
    if "dill" in written_by:
        content = {"payload": content, "made by": dill._create_type}
    if "torch.save" in written_by:
        torch.save(content, path, _use_new_zipfile_serialization="legacy" not in written_by)
    else:
        path.write_bytes(pickle.dumps(content))
    text = refusal(path)
    sentence, *lines = text.split("\n    ")
    assert "runs no code" in sentence and sentence.endswith("it's_weights.pt.") and len(lines) == 2
    exec("\n".join(lines), {})  # as the owner would
    sets = weight_sets(read_container(tmp_path / "it's_weights.pt", load=True).tree, described=False)
    (weights,) = sets.values()
    assert weights.keys() == network.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())


def test_module_rebuilt_by_a_function_is_converted_too(tmp_path: Path, project: types.ModuleType) -> None:
    made = project.Network()

    class Persistent(nn.Module):
        """As networks of EDM are pickled: a function of their source and their state."""

        def __reduce__(self) -> tuple[Any, ...]:
            return rebuilt, ({"module_src": "...", "state": made.__dict__},)

    def rebuilt(meta: dict[str, Any]) -> nn.Module:
        return made

    rebuilt.__qualname__, rebuilt.__module__ = "rebuilt", "project"
    project.rebuilt = rebuilt  # type: ignore[attr-defined]
    (tmp_path / "edm.pkl").write_bytes(pickle.dumps({"ema": Persistent()}))
    lines = refusal(tmp_path / "edm.pkl").split("\n    ")[1:]
    exec("\n".join(lines), {})
    tree = read_container(tmp_path / "edm_weights.pt", load=True).tree
    assert tree["ema"].keys() == made.state_dict().keys()


def hostile(path: Path, dill: types.ModuleType) -> Iterator[bytes]:
    """Pickles that would make `path`, by every opcode that calls something."""
    yield pickle.dumps(Planted(path))
    yield pickle.dumps({"made by": dill._create_type, "x": Planted(path)})
    open_it = f"(S'{path}'\nS'w'\n"
    yield f"cbuiltins\nopen\n{open_it}tR.".encode()
    yield f"{open_it}ibuiltins\nopen\n.".encode()
    yield f"(cbuiltins\nopen\nS'{path}'\nS'w'\no.".encode()
    yield b"\x80\x04\x8c\x08builtins\x8c\x04open\x93" + f"{open_it}t\x81.".encode()
    # what the state sets on a class must not reach the class itself
    yield b"\x80\x02cargparse\nNamespace\n(N}X\x08\x00\x00\x00__init__cbuiltins\nopen\nstb."
    yield b"\x80\x02ccollections\nOrderedDict\n(N}X\x04\x00\x00\x00keyscbuiltins\nopen\nstb."
    yield b"\x80\x02cbuiltins\ngetattr\n(cbuiltins\ndict\nX\x08\x00\x00\x00__class__tR."


@pytest.mark.parametrize("wrapped", ["zip", "plain"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_hostile_pickles_do_not_run(tmp_path: Path, dill: types.ModuleType, wrapped: str) -> None:
    planted, path = tmp_path / "planted", tmp_path / "bad.pt"
    before = (argparse.Namespace.__init__, OrderedDict.keys)
    for raw in hostile(planted, dill):
        if wrapped == "zip":
            torch.save({}, path)
            rewrite(path, {"data.pkl": raw})
        else:
            path.write_bytes(b"\x80\x04" + raw.removeprefix(b"\x80\x04"))
        refusal(path)
    assert not planted.exists() and (argparse.Namespace.__init__, OrderedDict.keys) == before


def test_stand_ins_keep_nothing_from_file_to_file() -> None:
    set_attribute = b"\x80\x02cargparse\nNamespace\n(N}X\x04\x00\x00\x00evilK\x01stb."
    assert read_pickle(io.BytesIO(set_attribute)).tree.evil == 1
    assert not hasattr(read_pickle(io.BytesIO(b"\x80\x02cargparse\nNamespace\n.")).tree, "evil")


def rewrite(path: Path, changed: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """The archive again, with other content of some records."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, changed.get(name.partition("/")[2], content))


def test_absurd_sizes_are_refused(tmp_path: Path, model: MLP) -> None:
    path = tmp_path / "bomb.pt"
    torch.save(model.state_dict(), path)
    rewrite(path, {"data/0": bytes(10**7)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10**6 and "compressed" in refusal(path)

    torch.save(model.state_dict(), path)
    rewrite(path, {"data/0": b""})  # a storage that is not there
    assert "storage 0 should have 64 bytes" in refusal(path)

    torch.save(torch.ones(2), path)
    with zipfile.ZipFile(path) as archive:
        raw = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    rewrite(path, {"data.pkl": raw.replace(b"K\x02\x85", b"J\xff\xff\xff\x7f\x85")})  # shape [2] -> [2^31 - 1]
    assert "not inside its storage" in refusal(path)

    for tail in (b"r\xff\xff\xff\x7f.", b"K\x01\x96\xff\xff\xff\xff\xff\xff\xff\x00."):  # memo index, byte array
        torch.save({}, path)
        rewrite(path, {"data.pkl": b"\x80\x05N" + tail})
        with pytest.raises(InputError):
            read_container(path, load=False)

    header = struct.pack("<Q", 2**40) + b"{"
    (tmp_path / "bomb.safetensors").write_bytes(header + bytes(100))
    assert "truncated or damaged" in refusal(tmp_path / "bomb.safetensors")


def test_archives_with_doubled_or_foreign_records_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.pt"
    torch.save({"w": torch.ones(2)}, path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.namelist()[0], b"")
    assert "each once" in refusal(path)
    torch.save({"w": torch.ones(2)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../outside/data.pkl", b"")
    assert "in one folder" in refusal(path) and not (tmp_path.parent / "outside").exists()


def test_names_known_so_far_survive_a_broken_pickle() -> None:
    pickled = PickleContent()
    with pytest.raises(pickle.UnpicklingError):
        read_pickle(io.BytesIO(b"\x80\x02cos\nsystem\n\x82\x01."), pickled)
    assert pickled.unknown == ["os.system"]


def test_what_dill_calls_into_being_keeps_its_items() -> None:
    raw = b"\x80\x02cdill._dill\n_load_type\nX\x0b\x00\x00\x00OrderedDict\x85R)R(X\x01\x00\x00\x00wK\x01u."
    pickled = read_pickle(io.BytesIO(raw))
    assert pickled.tree.dict_items == {"w": 1} and pickled.unknown == ["dill._dill._load_type"]


@pytest.mark.parametrize("zipped", [True, False])
def test_whole_distributed_tensors_are_read_and_parts_are_refused(tmp_path: Path, zipped: bool) -> None:
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    mesh = torch.distributed.device_mesh.DeviceMesh
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        local, path = torch.arange(6.0).reshape(3, 2), tmp_path / "d.pt"
        cpu = mesh("cpu", torch.arange(1))
        for rows, placement in ((3, Replicate()), (3, Shard(0)), (6, Shard(0))):
            size = torch.Size((rows, 2))
            spec = DTensorSpec(cpu, (placement,), TensorMeta(size, (2, 1), torch.float32))
            value = DTensor(local, spec, requires_grad=False)
            torch.save({"model": {"w": value}, "step": 3}, path, _use_new_zipfile_serialization=zipped)
            if rows == 3:
                assert read_container(path, load=False).tree["model"]["w"] == TensorHeader((3, 2), "float32")
                weights = read_container(path, load=True).tree["model"]["w"]
                assert type(weights) is Tensor and torch.equal(weights, local)
            else:
                text = refusal(path)
                assert "[3, 2] of [6, 2]" in text and "get_model_state_dict" in text and "full_state_dict=True" in text
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1, 2**63, 1e300])
def test_a_number_that_counts_no_steps_is_no_step(value: float) -> None:
    assert training_step({"step": value}) is None
    assert training_step({"step": value, "global_step": torch.tensor(7.0)}) == 7


def test_an_enumeration_pickled_by_name_is_no_code() -> None:
    """Some versions of Python pickle a member as getattr(class, name): nothing is read, whatever the class."""

    def member(owner: bytes, name: bytes = b"SOME") -> PickleContent:
        records = frozenset({"own.Kind"})
        text = b"\x80\x02cbuiltins\ngetattr\n(" + owner + b"X" + len(name).to_bytes(4, "little") + name + b"tR."
        return read_pickle(io.BytesIO(text), PickleContent(records=records))

    known = member(b"cown\nKind\n")
    assert isinstance(known.tree, Record) and known.tree.args == ("SOME",) and not known.unknown
    assert member(b"cother\nKind\n").unknown == ["other.Kind"]
    assert "builtins.getattr" in member(b"cbuiltins\ndict\n", b"__class__").unknown
    assert "builtins.getattr" in member(b"}", b"__class__").unknown  # of a dictionary
