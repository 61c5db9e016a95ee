"""Checkpoints: round trips, other projects' conventions, and one clear sentence for every bad input."""

from __future__ import annotations

import argparse
import pickle
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refused_files import Planted
from safetensors.torch import save_file
from torch import Tensor, nn

from mfdiag.errors import InputError
from mfdiag.models.checkpoint import load_model, save_checkpoint
from mfdiag.models.description import Architecture, Description
from mfdiag.models.networks.mlp import MLP

FACTORY = """
from mfdiag.models.networks.mlp import MLP

def small():
    return MLP(2, hidden=4, depth=1)

def broken():
    raise ValueError("no such width")

number = 3
def not_a_network():
    return number
"""


def describe(**changes: Any) -> Description:
    small = Architecture(name="mlp", arguments={"dim": 2, "hidden": 4, "depth": 1})
    values = {"architecture": small, "times": "uniform", "data": "eight_gaussians", "step": 7, "seed": 1}
    return Description(**(values | changes))


@pytest.fixture
def model() -> MLP:
    torch.manual_seed(0)
    return MLP(2, hidden=4, depth=1)


@pytest.fixture
def ema(model: MLP) -> dict[str, Tensor]:
    return {name: value / 2 for name, value in model.state_dict().items()}


@pytest.fixture
def saved(tmp_path: Path, model: MLP, ema: dict[str, Tensor]) -> Path:
    save_checkpoint(tmp_path / "model.safetensors", model, ema, describe())
    return tmp_path / "model.safetensors"


@pytest.fixture
def factory(tmp_path: Path) -> str:
    (tmp_path / "user_networks.py").write_text(FACTORY)
    return f"{tmp_path / 'user_networks.py'}:small"


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_model(path, **options)
    sentence, *code = str(caught.value).split("\n    ")  # two lines of code after the sentence, or none
    assert "\n" not in sentence and sentence.endswith(".") and len(code) in (0, 2), sentence
    return sentence


def same(module: nn.Module, state: dict[str, Tensor]) -> bool:
    own = module.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)


def test_round_trip(saved: Path, model: MLP, ema: dict[str, Tensor]) -> None:
    loaded = load_model(saved)
    assert same(loaded.module, model.state_dict()) and same(loaded.with_weights("ema"), ema)
    assert same(loaded.module, model.state_dict()), "with_weights leaves the first module alone"
    assert same(load_model(saved, weights="ema").module, ema)
    assert (loaded.description, loaded.step, loaded.path, set(loaded.state)) == (describe(), 7, saved, {"raw", "ema"})
    assert not loaded.module.training and not any(p.requires_grad for p in loaded.module.parameters())
    assert loaded.has_weights("ema") and not loaded.has_weights("teacher")


def test_same_content_gives_the_same_bytes_and_no_leftovers(saved: Path, model: MLP, ema: dict[str, Tensor]) -> None:
    again = saved.with_name("again.safetensors")
    save_checkpoint(again, model, ema, describe())
    assert again.read_bytes() == saved.read_bytes()
    assert load_model(again).sha256 == load_model(saved).sha256
    assert sorted(file.name for file in saved.parent.iterdir()) == ["again.safetensors", "model.safetensors"]


def test_unwritable_folder(saved: Path, model: MLP) -> None:
    with pytest.raises(InputError, match="choose another folder"):
        save_checkpoint(saved / "below a file" / "model.safetensors", model, None, describe())


def test_failed_save_keeps_the_old_file(saved: Path, model: MLP) -> None:
    before = saved.read_bytes()
    with pytest.raises(AttributeError):
        save_checkpoint(saved, model, {"w": 3}, describe())  # type: ignore[dict-item]
    assert saved.read_bytes() == before and len(list(saved.parent.iterdir())) == 1


@pytest.mark.parametrize(
    ("arrange", "weights"),
    [
        (lambda raw, ema: raw, {"raw": "raw"}),
        (
            lambda raw, ema: {"model": raw, "model_ema": ema, "step": 5},
            {"raw": "raw", "ema": "ema", "model_ema": "ema"},
        ),
        (
            lambda raw, ema: {"net": raw, "ema": {"decay": 0.9, "shadow": ema}},
            {"raw": "raw", "ema": "ema", "ema.shadow": "ema"},
        ),
        (
            lambda raw, ema: {"model": {f"net.{k}": v for k, v in raw.items()} | {f"net_ema.{k}": ema[k] for k in ema}},
            {"net": "raw", "model.net": "raw", "ema": "ema", "model.net_ema": "ema"},
        ),
        (lambda raw, ema: {"state_dict": {f"module.{k}": v for k, v in raw.items()}}, {"raw": "raw"}),
        (lambda raw, ema: {"model": {f"_orig_mod.module.{k}": v for k, v in raw.items()}}, {"raw": "raw"}),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_conventions_of_other_projects(
    tmp_path: Path,
    factory: str,
    model: MLP,
    ema: dict[str, Tensor],
    arrange: Callable[..., dict[str, Any]],
    weights: dict[str, str],
    zipped: bool,
) -> None:
    path = tmp_path / "foreign.pt"
    torch.save(arrange(model.state_dict(), ema), path, _use_new_zipfile_serialization=zipped)
    expected = {"raw": model.state_dict(), "ema": ema}
    for key, which in weights.items():
        assert same(load_model(path, model=factory, weights=key).module, expected[which]), key
    assert load_model(path, model=factory, weights=next(iter(weights))).description is None


def test_plain_values_of_training_scripts_are_read(tmp_path: Path, factory: str, model: MLP) -> None:
    args = argparse.Namespace(lr=1e-3, out=Path("runs"))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2), torch.ones(1), torch.ones(1)).sum().backward()
    optimizer.step()
    extra = {"best": np.float64(0.5), "rng": np.arange(3, dtype=np.uint32), "optimizer": optimizer.state_dict()}
    path = tmp_path / "script.pth"
    torch.save({"model": model.state_dict(), "args": args, "train_steps": 12, **extra}, path)
    loaded = load_model(path, model=factory)
    assert loaded.step == 12 and set(loaded.state) == {"model"}


def test_factory_overrides_a_description_and_module_factories_work(
    saved: Path, tmp_path: Path, factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_model(saved, model=factory).description is not None
    monkeypatch.chdir(tmp_path)
    assert isinstance(load_model(saved, model="user_networks:small").module, MLP)


def test_half_precision_weights_take_the_networks_dtype(tmp_path: Path, factory: str, model: MLP) -> None:
    path = tmp_path / "half.safetensors"
    save_file({name: value.bfloat16() for name, value in model.state_dict().items()}, path)
    assert {p.dtype for p in load_model(path, model=factory).module.parameters()} == {torch.float32}


def test_bad_files(tmp_path: Path, saved: Path, model: MLP) -> None:
    bad = tmp_path / "bad.pt"
    assert "does not exist" in refusal(tmp_path / "none.pt")
    (tmp_path / "folder").mkdir()
    assert "is a folder with none" in refusal(tmp_path / "folder")
    bad.touch()
    assert "is empty" in refusal(bad)
    bad.write_text("step,loss\n1,2\n")
    assert "begins with b'step,loss'" in refusal(bad)
    whole = saved.read_bytes()
    for stop in (9, 40, len(whole) - 1):
        bad.write_bytes(whole[:stop])
        assert "truncated or damaged" in refusal(bad)
    bad.write_bytes(struct.pack("<Q", 10) + b"{not json}" + whole)
    assert "truncated or damaged" in refusal(bad)
    for zipped in (True, False):
        torch.save({"model": model.state_dict()}, bad, _use_new_zipfile_serialization=zipped)
        whole_torch = bad.read_bytes()
        bad.write_bytes(whole_torch[: len(whole_torch) - 5])
        assert "truncated or damaged" in refusal(bad)
    torch.save(torch.ones(3), bad)
    assert "holds one Tensor" in refusal(bad)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damaged_bytes_load_or_are_refused(tmp_path: Path, saved: Path, factory: str, model: MLP, kind: str) -> None:
    bad, rng = tmp_path / "bad.pt", np.random.default_rng(0)
    torch.save({"model": model.state_dict()}, bad, _use_new_zipfile_serialization=kind == "zip")
    whole = np.frombuffer((saved if kind == "safetensors" else bad).read_bytes(), np.uint8)
    for _ in range(100):
        damaged = whole.copy()
        damaged[rng.integers(0, len(whole), 3)] = rng.integers(0, 256, 3)
        bad.write_bytes(damaged[: rng.integers(1, 2 * len(whole))].tobytes())
        with suppress(InputError):
            load_model(bad, model=factory)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, factory: str, model: MLP) -> None:
    bad, planted = tmp_path / "bad.pt", tmp_path / "planted"
    torch.save({"model": model.state_dict(), "x": Planted(planted)}, bad)
    assert "runs no code" in refusal(bad, model=factory)
    with bad.open("wb") as file:
        pickle.dump({"x": Planted(planted)}, file)
    assert "runs no code" in refusal(bad, model=factory)
    assert not planted.exists()
    torch.save(model, bad)
    assert "pickled Python objects (mfdiag.models.networks.mlp.MLP)" in refusal(bad)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:'torch.load' received a zip file")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "script.pt")
    assert "TorchScript code" in refusal(tmp_path / "script.pt")


def test_bad_weights(tmp_path: Path, saved: Path, factory: str, model: MLP, ema: dict[str, Tensor]) -> None:
    assert "Expected weights 'teacher'" in refusal(saved, weights="teacher")
    path = tmp_path / "bad.pt"
    state = model.state_dict()
    torch.save({"model": state}, path)
    assert "but it has 'model'; pass one of these" in refusal(path, model=factory, weights="ema")
    assert "layers.0.weight [4, 4]" in refusal(path) and "--model" in refusal(path)
    torch.save({"step": 3}, path)
    assert "no state dict" in refusal(path, model=factory)

    name = "layers.0.weight"
    poisoned = state | {name: torch.where(torch.arange(16).reshape(4, 4) < 2, torch.nan, state[name])}
    torch.save(poisoned, path)
    assert f"1 of 4 tensors: {name} (2 of 16)" in refusal(path, model=factory)
    torch.save({k: v for k, v in state.items() if k != name} | {"extra": torch.ones(1)}, path)
    assert f"1 missing: {name}; 1 unexpected: extra" in refusal(path, model=factory)
    torch.save(state | {name: torch.ones(4, 5)}, path)
    assert f"1 of another shape: {name} [4, 5] instead of [4, 4]" in refusal(path, model=factory)


def test_bad_descriptions(tmp_path: Path, model: MLP) -> None:
    path = tmp_path / "bad.safetensors"
    unknown = describe(architecture=Architecture(name="mpl"))
    save_checkpoint(path, model, None, unknown)
    with pytest.raises(InputError, match=r"Unknown architecture 'mpl'\. Did you mean 'mlp'"):
        load_model(path)
    for text, expected in [
        ("{", "the whole entry is wrong"),
        (describe().model_dump_json().replace('"format":1', '"format":9'), "format is wrong"),
        (describe().model_dump_json().replace('"step":7', '"step":-7'), "step is wrong"),
    ]:
        save_file({f"raw.{k}": v for k, v in model.state_dict().items()}, path, metadata={"mfdiag": text})
        assert expected in refusal(path)


def test_bad_factories(tmp_path: Path, saved: Path, factory: str) -> None:
    file = factory.rpartition(":")[0]
    (tmp_path / "syntax.py").write_text("def (")
    for factory_name, expected in [
        ("user_networks", "FILE.py:factory or pkg.module:factory"),
        (f"{tmp_path}/none.py:small", "does not exist"),
        (f"{file}:large", "to define 'large'"),
        (f"{file}:broken", "raised ValueError: no such width"),
        (f"{file}:not_a_network", "returned int"),
        (f"{file}:number", "raised TypeError"),
        ("no_such_package.models:make", "but there is no module no_such_package. Install it"),
        (f"{tmp_path}/syntax.py:make", "failed with SyntaxError"),
    ]:
        assert expected in refusal(saved, model=factory_name)
