"""Weights are found in files as training tools write them, and the proposed card loads the file it was made from."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoint_folders as folders
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mfdiag.errors import InputError
from mfdiag.models.checkpoint import LoadedModel, load_model
from mfdiag.models.inspection import inspect_checkpoint

State = dict[str, Tensor]
Content = Callable[[State, State], Any]

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.position = nn.Parameter(torch.zeros(2), requires_grad=False)

    def forward(self, x, r, t, y=None):
        return self.net(torch.cat([x, r[:, None], t[:, None]], 1)) + self.position

def build():
    return Net()

class Compiled(nn.Module):
    def __init__(self):
        super().__init__()
        self._orig_mod = Net()

    def forward(self, x, r, t, y=None):
        return self._orig_mod(x, r, t, y)
"""
WITH_BUFFER = """
import torch
from torch import nn

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("scale", torch.ones(2))

    def forward(self, x, r, t):
        return self.layer(torch.cat([x, r[:, None], t[:, None]], 1)) * self.scale

def build():
    return Plain()
"""
BUFFERS = ("net.1.running_mean", "net.1.running_var", "net.1.num_batches_tracked")
ORDER = ("position", "net.0.weight", "net.0.bias", "net.1.weight", "net.1.bias", "net.2.weight", "net.2.bias")
TRAINED = ORDER[1:]


def copies() -> tuple[State, State]:
    """State dicts of raw weights and of their average; buffers are the same in both, as averages of parameters do."""
    shapes = {
        "position": (2,),
        "net.0.weight": (4, 4),
        "net.0.bias": (4,),
        "net.1.weight": (4,),
        "net.1.bias": (4,),
        "net.1.running_mean": (4,),
        "net.1.running_var": (4,),
        "net.2.weight": (2, 4),
        "net.2.bias": (2,),
    }
    generator = torch.Generator().manual_seed(0)
    raw = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    raw["net.1.num_batches_tracked"] = torch.tensor(7)
    return raw, {name: value if name in (*BUFFERS, "position") else value + 1 for name, value in raw.items()}


def below(prefix: str, state: State) -> State:
    return {f"{prefix}.{name}": value for name, value in state.items()}


def infixed(state: State, word: str) -> State:
    return {name.replace("net.", f"net.{word}.", 1): value for name, value in state.items()}


def ema_pytorch(raw: State, ema: State) -> State:
    return {
        "initted": torch.tensor(True),
        "step": torch.tensor(3),
        **below("online_model", raw),
        **below("ema_model", ema),
    }


def shadow(ema: State, names: tuple[str, ...]) -> dict[str, Any]:
    return {"decay": 0.99, "num_updates": 3, "shadow_params": [ema[name] for name in names], "collected_params": None}


AVERAGED = {"n_averaged": torch.tensor(5)}
PLAIN: dict[str, Content] = {  # files without an average
    "bare": lambda raw, ema: raw,
    "step": lambda raw, ema: {"model": raw, "step": 3},
    "one set of another name": lambda raw, ema: {"generator": raw},
    "lightning": lambda raw, ema: {
        "state_dict": below("model", raw),
        "global_step": 3,
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}],
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(1.0)}},
    },
    "lightning, another prefix": lambda raw, ema: {"state_dict": below("student.backbone", raw)},
    "lightning, other modules": lambda raw, ema: {
        "state_dict": below("model", raw) | {"vae.weight": torch.ones(3), "loss.scale": torch.ones(())}
    },
    "ddp in lightning": lambda raw, ema: {"state_dict": below("module", raw)},
    "compiled": lambda raw, ema: {"model": below("_orig_mod", raw)},
    "compiled inside": lambda raw, ema: {"model": infixed(raw, "_orig_mod")},
    "checkpointed inside": lambda raw, ema: {"model": infixed(raw, "_checkpoint_wrapped_module")},
    "fsdp": lambda raw, ema: below("_fsdp_wrapped_module", infixed(raw, "_fsdp_wrapped_module")),
    "ddp and compiled": lambda raw, ema: {"model": below("module._orig_mod", infixed(raw, "_orig_mod"))},
}
BOTH: dict[str, Content] = {  # files with an average
    "model, ema": lambda raw, ema: {"model": raw, "ema": ema, "step": 3},
    "ema-pytorch": lambda raw, ema: {"model": raw, "ema": ema_pytorch(raw, ema)},
    "ema-pytorch alone": ema_pytorch,
    "ema-pytorch without the online model": lambda raw, ema: {
        "model": raw,
        "ema": {"initted": torch.tensor(True), "step": torch.tensor(3), **below("ema_model", ema)},
    },
    "ema-pytorch in lightning": lambda raw, ema: {
        "state_dict": below("model", raw) | below("ema", ema_pytorch(raw, ema))
    },
    "AveragedModel": lambda raw, ema: {"model": raw, "ema": AVERAGED | below("module", ema)},
    "AveragedModel of another name": lambda raw, ema: {"model": raw, "smooth": AVERAGED | below("module", ema)},
    "AveragedModel in lightning": lambda raw, ema: {
        "state_dict": below("net", raw) | below("ema_model.module", ema) | {"ema_model.n_averaged": torch.tensor(5)}
    },
    "WeightAveraging of lightning": lambda raw, ema: {
        "state_dict": below("model", ema),
        "current_model_state": below("model", raw),
        "averaging_state": AVERAGED,
    },
    "lightning, ema beside": lambda raw, ema: {"state_dict": below("model", raw), "ema": below("model", ema)},
    "lightning, ema in a prefix": lambda raw, ema: {"state_dict": below("model", raw) | below("model_ema", ema)},
    "lightning, ema in callbacks": lambda raw, ema: {
        "state_dict": below("net", raw),
        "callbacks": {"EMACallback{'decay': 0.99}": {"state": {"weights": below("net", ema)}}},
    },
    "lightning, ema list in callbacks": lambda raw, ema: {
        "state_dict": below("net", raw),
        "callbacks": {"EMA": {"ema_weights": [ema[name] for name in ORDER]}},
    },
    "latent diffusion": lambda raw, ema: {
        "state_dict": below("model", raw)
        | {f"model_ema.{name.replace('.', '')}": ema[name] for name in TRAINED}
        | {"model_ema.decay": torch.tensor(0.99), "model_ema.num_updates": torch.tensor(3)}
    },
    "list of all parameters": lambda raw, ema: {"model": raw, "ema": shadow(ema, ORDER)},
    "list of trained parameters": lambda raw, ema: {"model": raw, "ema": shadow(ema, TRAINED)},
    "compiled average": lambda raw, ema: {"model": below("_orig_mod", raw), "ema": infixed(ema, "_orig_mod")},
    "prefixes": lambda raw, ema: {"model": below("net_ema", ema) | below("net", raw)},
}


@pytest.fixture
def factory(tmp_path: Path) -> str:
    (tmp_path / "network.py").write_text(NETWORK)
    return f"{tmp_path / 'network.py'}:build"


def same(loaded: LoadedModel, state: State) -> bool:
    own = {name.removeprefix("network."): value for name, value in loaded.module.state_dict().items()}
    if loaded.card is not None:  # frozen parameters are buffers of the adapter, under the same names
        own = loaded.module.get_submodule("network").state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)


def proposed_card(path: Path, folder: Path) -> str:
    proposal = inspect_checkpoint(path).proposal
    assert proposal is not None
    (folder / "my.yaml").write_text(proposal.text)
    return str(folder / "my.yaml")


@pytest.mark.parametrize("name", [*PLAIN, *BOTH])
def test_each_file_loads_by_factory_and_by_its_proposed_card(name: str, factory: str, tmp_path: Path) -> None:
    raw, ema = copies()
    path = tmp_path / "file.ckpt"
    torch.save((PLAIN | BOTH)[name](raw, ema), path)
    for model in (factory, proposed_card(path, tmp_path)):
        loaded = load_model(path, model=model)
        assert same(loaded, raw), "raw"
        assert loaded.has_weights("ema") == (name in BOTH)
        if name in BOTH:
            assert same(load_model(path, model=model, weights="ema"), ema), "ema"
            averaged = loaded.with_weights("ema")
            network = averaged.get_submodule("network") if loaded.card else averaged
            assert all(torch.equal(value, ema[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("kind", ["safetensors", "sharded", "folder", "diffusers", "accelerate", "legacy"])
def test_containers_load_by_their_proposed_card(kind: str, factory: str, tmp_path: Path) -> None:
    raw, _ = copies()
    path = tmp_path / "checkpoint"
    path.mkdir()
    if kind == "sharded":
        for part, names in enumerate((list(raw)[::2], list(raw)[1::2])):
            save_file({name: raw[name] for name in names}, path / f"{part}.safetensors")
        places = {name: f"{part}.safetensors" for part in (0, 1) for name in list(raw)[part::2]}
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    elif kind in ("folder", "diffusers", "accelerate"):
        name = {
            "folder": "last.pt",
            "diffusers": "diffusion_pytorch_model.safetensors",
            "accelerate": "model.safetensors",
        }
        (path / "config.json").write_text("{}")
        if kind == "folder":
            torch.save(raw, path / name[kind])
        else:
            save_file(raw, path / name[kind])
        for other in ("optimizer.bin", "scheduler.bin", "scaler.pt", "random_states_0.pkl"):
            (path / other).write_bytes(b"not weights")
    else:
        path = path / "file"
        torch.save({"model": raw}, path, _use_new_zipfile_serialization=False) if kind == "legacy" else save_file(
            raw, path
        )
    for model in (factory, proposed_card(path, tmp_path)):
        assert same(load_model(path, model=model), raw)


def test_a_folder_with_several_files_is_refused(factory: str, tmp_path: Path) -> None:
    raw, ema = copies()
    (tmp_path / "run" / "unet").mkdir(parents=True)
    save_file(raw, tmp_path / "run" / "unet" / "model.safetensors")
    with pytest.raises(InputError, match=r"folder with none; it has unet/model\.safetensors; pass a file"):
        load_model(tmp_path / "run", model=factory)
    for name, state in (("model", raw), ("ema", ema)):
        save_file(state, tmp_path / "run" / f"{name}.safetensors")
    with pytest.raises(InputError, match=r"folder with 2; it has ema\.safetensors, model\.safetensors"):
        load_model(tmp_path / "run", model=factory)


def test_real_averaged_models_of_torch(factory: str, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    code = "from torch import nn\n\nclass Small(nn.Sequential):\n    def forward(self, x, r, t): return x"
    averaged = AveragedModel(network)
    averaged.update_parameters(network)
    nn.init.ones_(network[0].weight)
    averaged.update_parameters(network)
    (tmp_path / "small.py").write_text(f"{code}\n\ndef build(): return Small(nn.Linear(2, 2), nn.Linear(2, 2))\n")
    path, model = tmp_path / "swa.pt", f"{tmp_path / 'small.py'}:build"
    torch.save(averaged.state_dict(), path)
    assert same(load_model(path, model=model, weights="ema"), averaged.module.state_dict())
    with pytest.raises(InputError, match=r"Expected weights 'raw' .* 'ema' \(averaged weights\)"):
        load_model(path, model=model)


def test_a_compiled_network_takes_plain_names(factory: str, tmp_path: Path) -> None:
    raw, _ = copies()
    torch.save(raw, tmp_path / "file.pt")
    loaded = load_model(tmp_path / "file.pt", model=factory.replace(":build", ":Compiled"))
    assert same(loaded, raw)  # `torch.compile` does nothing while the code builds the network


def test_two_copies_without_an_average_are_named(factory: str, tmp_path: Path) -> None:
    raw, ema = copies()
    path = tmp_path / "file.pt"
    torch.save({"state_dict": below("student", raw) | below("teacher", ema)}, path)
    with pytest.raises(InputError, match=r"one copy of Net .* holds 2: student, teacher; pass one"):
        load_model(path, model=factory)
    assert same(load_model(path, model=factory, weights="state_dict.teacher"), ema)


def test_what_is_left_out_is_said(factory: str, tmp_path: Path) -> None:
    raw, _ = copies()
    path = tmp_path / "file.pt"
    torch.save({"state_dict": below("model", raw) | {"vae.weight": torch.ones(3)}}, path)
    (note,) = load_model(path, model=factory).notes
    assert "also holds weights of vae" in note and "not used" in note
    torch.save({"state_dict": below("model", raw) | {"model.head": torch.ones(3)}}, path)
    with pytest.raises(InputError, match="1 unexpected: head"):
        load_model(path, model=factory)


def test_averages_of_which_none_is_known_to_belong_to_the_weights_are_said(factory: str, tmp_path: Path) -> None:
    raw, ema = copies()
    path = tmp_path / "file.pt"
    torch.save({"unet": raw, "ema_0.999": ema, "ema_0.9999": raw}, path)
    loaded = load_model(path, model=factory)
    assert same(loaded, raw) and not loaded.has_weights("ema")
    (note,) = loaded.notes
    assert "holds 2 averages, ema_0.999, ema_0.9999, and no name says which one" in note
    assert same(load_model(path, model=factory, weights="ema_0.999"), ema)
    torch.save({"unet": raw, "ema_0.999": ema}, path)
    assert load_model(path, model=factory).has_weights("ema")


def test_weights_far_inside_a_file_are_loaded(factory: str, tmp_path: Path) -> None:
    raw, ema = copies()
    path = tmp_path / "file.pt"
    torch.save({"state": {"model": {"weights": raw, "ema_weights": {"decay_0.9999": ema}}}, "iteration": 12}, path)
    loaded = load_model(path, model=factory)
    assert same(loaded, raw)
    assert loaded.has_weights("ema")


def test_the_form_of_the_call_does_not_change_what_is_loaded(factory: str, tmp_path: Path) -> None:
    raw, ema = copies()
    half = {name: value.half() if value.is_floating_point() else value for name, value in raw.items()}
    code = tmp_path / "swapped.py"
    code.write_text(NETWORK.replace("def forward(self, x, r, t", "def forward(self, x, t, r"))
    path, swapped = tmp_path / "file.pt", f"{code}:build"
    assert code.read_text() != NETWORK
    for state in (
        {"state_dict": below("model", half) | {"vae.weight": torch.ones(3)}},
        {"model": raw, "ema": shadow(ema, list(ORDER))},
    ):
        torch.save(state, path)
        documented, loaded = load_model(path, model=factory), load_model(path, model=swapped)
        assert type(loaded.module.get_submodule("network")).__name__ == "Net"
        assert (loaded.notes, loaded.unusable) == (documented.notes, documented.unusable)


def test_a_list_of_the_whole_state_dict_is_matched_in_its_order(tmp_path: Path) -> None:
    """As a callback writes list(model.state_dict().values())."""
    (tmp_path / "plain.py").write_text(WITH_BUFFER)
    path, factory = tmp_path / "file.pt", f"{tmp_path / 'plain.py'}:build"
    weights = torch.randn(2, 2, 4)
    raw, ema = ({"scale": torch.ones(2), "layer.weight": w, "layer.bias": w[0, :2].clone()} for w in weights)
    torch.save({"state_dict": raw, "callbacks": {"EMA": {"ema_weights": list(ema.values())}}}, path)
    assert same(load_model(path, model=factory, weights="ema"), ema)
    torch.save({name: raw[name] for name in ("layer.weight", "layer.bias")}, path)
    with pytest.raises(InputError, match=r"1 missing: scale\).*sets these buffers itself, a card with `weights: \{ab"):
        load_model(path, model=factory)
    card = tmp_path / "own.yaml"
    card.write_text(f"network: {{factory: '{factory}'}}\nweights: {{absent: [scale]}}")
    assert same(load_model(path, model=str(card)), raw)


def test_wrong_lists_are_refused(factory: str, tmp_path: Path) -> None:
    raw, ema = copies()
    path = tmp_path / "file.pt"
    for names in (TRAINED[:-1], TRAINED[::-1]):
        torch.save({"model": raw, "ema": shadow(ema, names)}, path)
        with pytest.raises(InputError, match="each of the 6 trained parameters of Net"):
            load_model(path, model=factory, weights="ema")
        loaded = load_model(path, model=factory)
        assert not loaded.has_weights("ema") and "without the averaged weights" in loaded.notes[0]


def test_copies_that_were_not_asked_for_do_not_matter(factory: str, tmp_path: Path) -> None:
    raw, ema = copies()
    path = tmp_path / "file.pt"
    broken = ema | {"net.0.weight": torch.full((4, 4), torch.nan)}
    torch.save({"model": raw, "ema": broken}, path)
    loaded = load_model(path, model=factory)
    assert same(loaded, raw) and not loaded.has_weights("ema") and "NaN" in loaded.notes[0]
    with pytest.raises(InputError, match="Expected finite weights"):
        load_model(path, model=factory, weights="ema")
    torch.save({"model": broken, "ema": ema}, path)
    assert same(load_model(path, model=factory, weights="ema"), ema)


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float64]
)
def test_other_dtypes_are_cast_and_said(dtype: torch.dtype, factory: str, tmp_path: Path) -> None:
    raw, _ = copies()
    stored = {name: value.to(dtype) if value.is_floating_point() else value for name, value in raw.items()}
    torch.save({"model": stored}, tmp_path / "file.pt")
    loaded = load_model(tmp_path / "file.pt", model=factory)
    assert same(loaded, {name: value.to(raw[name].dtype) for name, value in stored.items()})
    (note,) = loaded.notes
    assert f"stores 9 of 10 tensors as {str(dtype).removeprefix('torch.')}; they are cast to float32" in note


def test_casts_that_change_the_meaning_are_refused(factory: str, tmp_path: Path) -> None:
    raw, _ = copies()
    for dtype in (torch.int8, torch.complex64):
        torch.save(raw | {"net.0.weight": raw["net.0.weight"].to(dtype)}, tmp_path / "file.pt")
        with pytest.raises(InputError, match=r"1 of another kind of number: net\.0\.weight \w+ instead of float32"):
            load_model(tmp_path / "file.pt", model=factory)


def test_a_layer_named_ema_is_no_average(tmp_path: Path) -> None:
    (tmp_path / "mega.py").write_text(
        "from torch import nn\n\n"
        "def block(): return nn.ModuleDict({name: nn.Linear(2, 2) for name in ('ema', 'a', 'b', 'c', 'd')})\n\n"
        "def build(): return nn.ModuleDict({f'block{i}': block() for i in range(2)})\n"
    )
    state = nn.ModuleDict(
        {f"block{i}": nn.ModuleDict({k: nn.Linear(2, 2) for k in ("ema", "a", "b", "c", "d")}) for i in range(2)}
    ).state_dict()
    torch.save({"model": copy.deepcopy(state)}, tmp_path / "file.pt")
    loaded = load_model(tmp_path / "file.pt", model=f"{tmp_path / 'mega.py'}:build")
    assert same(loaded, state) and not loaded.has_weights("ema")


def exported(folder: Path, raw: State, *, dynamic: bool = True) -> None:
    """A `.pt2` file of the network with the weights `raw`; with a fixed batch, it needs a card."""
    scope: dict[str, Any] = {}
    exec(NETWORK, scope)
    network = scope["build"]()
    network.load_state_dict(raw)
    batch = torch.export.Dim("batch", min=1, max=4096)
    inputs = (torch.randn(3, 2), torch.rand(3), torch.rand(3))
    shapes = ({0: batch}, {0: batch}, {0: batch}) if dynamic else None
    folder.mkdir()
    torch.export.save(torch.export.export(network.eval(), inputs, dynamic_shapes=shapes), folder / "net.pt2")


def accelerate(folder: Path, raw: State, ema: State, custom: Any, name: str = "model.safetensors") -> None:
    folder.mkdir()
    torch.save(raw, folder / name) if name.endswith("bin") else save_file(raw, folder / name)
    folders.write_leftovers(folder)
    torch.save(custom, folder / "custom_checkpoint_0.pkl")


def variants(folder: Path, raw: State, ema: State) -> None:
    """The raw weights as safetensors and as .bin, in full and in half precision; only the first are exact."""
    folder.mkdir()
    save_file(raw, folder / "diffusion_pytorch_model.safetensors")
    half = {key: value.half() + 1 for key, value in raw.items()}
    save_file(half, folder / "diffusion_pytorch_model.fp16.safetensors")
    torch.save(half, folder / "diffusion_pytorch_model.bin")
    folders.write_index(folder, "diffusion_pytorch_model", half, variant=".fp16")


def non_ema(folder: Path, raw: State, ema: State) -> None:
    (folder / "unet").mkdir(parents=True)
    save_file(ema, folder / "unet" / "diffusion_pytorch_model.safetensors")
    save_file(raw, folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors")


def index_in(folder: Path, state: State, name: str, **options: Any) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"_class_name": "UNet2DModel", "sample_size": 32}')
    folders.write_index(folder, name, state, **options)


def lightning_fsdp(folder: Path, raw: State, ema: State) -> None:
    folders.write_dcp(folder, {"model": raw, "optimizer_0": {"state": {"net.0.weight": {"exp_avg": torch.ones(2)}}}})
    torch.save({"global_step": 3, "callbacks": {"EMA": {"ema_weights": [ema[n] for n in ORDER]}}}, folder / "meta.pt")


def accelerate_fsdp(folder: Path, raw: State, ema: State) -> None:
    folder.mkdir()
    folders.write_dcp(folder / "pytorch_model_fsdp_0", {"model": raw})
    folders.write_dcp(folder / "optimizer_0", {"optimizer": {"state": {"net.0.weight": {"exp_avg": torch.ones(2)}}}})
    torch.save(shadow(ema, ORDER), folder / "custom_checkpoint_0.pkl")


def accelerate_deepspeed(folder: Path, raw: State, ema: State) -> None:
    folders.write_zero(folder, raw, stage=3, frozen=("position",))
    torch.save(shadow(ema, ORDER), folder / "custom_checkpoint_0.pkl")
    folders.write_leftovers(folder)


FOLDERS: dict[str, Callable[[Path, State, State], None]] = {
    "exported": lambda folder, raw, ema: exported(folder, raw),
    "exported with a fixed batch": lambda folder, raw, ema: exported(folder, raw, dynamic=False),
    "save_pretrained, sharded": lambda folder, raw, ema: index_in(folder, raw, "model"),
    "save_pretrained, sharded .bin": lambda folder, raw, ema: index_in(folder, raw, "pytorch_model", torch_files=True),
    "diffusers, sharded variant": lambda folder, raw, ema: index_in(
        folder, raw, "diffusion_pytorch_model", variant=".fp16"
    ),
    "diffusers, several variants": variants,
    "diffusers pipeline": lambda folder, raw, ema: folders.write_pipeline(folder, raw),
    "diffusers pipeline of a transformer": lambda folder, raw, ema: folders.write_pipeline(folder, raw, "transformer"),
    "accelerate with a scheduler": lambda folder, raw, ema: accelerate(folder, raw, ema, {"last_epoch": 3}),
    "accelerate with an object": lambda folder, raw, ema: accelerate(folder, raw, ema, {"object": Path}),
    "DCP of a bare state dict": lambda folder, raw, ema: folders.write_dcp(folder, raw),
    "DCP with an optimizer": lambda folder, raw, ema: folders.write_dcp(
        folder, {"model": raw, "optim": {"state": {"net.0.weight": {"exp_avg": torch.ones(4)}}}, "step": 3}
    ),
    "files of three processes": lambda folder, raw, ema: folders.write_ranks(folder, {"model": raw}),
    "DCP of three processes": lambda folder, raw, ema: folders.write_dcp_of_processes(folder, {"app": raw}),
    **{
        f"ZeRO {stage}, {processes} processes": lambda folder, raw, ema, stage=stage, processes=processes: (
            folders.write_zero(folder, raw, stage=stage, processes=processes, frozen=("position",))
        )
        for stage in (1, 2, 3)
        for processes in (1, 3)
    },
}
FOLDERS_WITH_AVERAGE: dict[str, Callable[[Path, State, State], None]] = {
    "diffusers training script": folders.write_training_script,
    "diffusers, non_ema": non_ema,
    "accelerate with EMAModel": lambda folder, raw, ema: accelerate(folder, raw, ema, shadow(ema, ORDER)),
    "accelerate with ema-pytorch": lambda folder, raw, ema: accelerate(
        folder, raw, ema, ema_pytorch(raw, ema), "pytorch_model.bin"
    ),
    "accelerate with AveragedModel": lambda folder, raw, ema: accelerate(
        folder, raw, ema, AVERAGED | below("module", ema)
    ),
    "accelerate with fsdp": accelerate_fsdp,
    "DCP": lambda folder, raw, ema: folders.write_dcp(folder, {"model": raw, "ema": ema, "step": 3}),
    "DCP of three processes, with an average": lambda folder, raw, ema: folders.write_dcp_of_processes(
        folder, {"model": raw, "ema": ema}
    ),
    "lightning with fsdp": lightning_fsdp,
    "files of processes, with an average": lambda folder, raw, ema: folders.write_ranks(
        folder, {"model": raw, "ema": ema}, 2
    ),
    "accelerate with deepspeed": accelerate_deepspeed,
    "lightning with deepspeed": lambda folder, raw, ema: folders.write_zero(
        folder,
        below("model", raw),
        stage=2,
        client={"callbacks": {"EMA": {"state": {"weights": below("model", ema)}}}, "global_step": 3},
    ),
    "ZeRO 3 with an average beside": lambda folder, raw, ema: folders.write_zero(
        folder, raw, stage=3, frozen=("position",), client={"ema": ema}
    ),
    "ZeRO 3 with a frozen average inside": lambda folder, raw, ema: folders.write_zero(
        folder,
        below("net", raw) | below("net_ema", ema),
        stage=3,
        frozen=(*tuple(f"net_ema.{name}" for name in ORDER), "net.position"),
    ),
}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("name", [*FOLDERS, *FOLDERS_WITH_AVERAGE])
def test_folders_load_by_factory_and_by_their_proposed_card(name: str, factory: str, tmp_path: Path) -> None:
    raw, ema = copies()
    path = tmp_path / "checkpoint"
    (FOLDERS | FOLDERS_WITH_AVERAGE)[name](path, raw, ema)
    inspection = inspect_checkpoint(path)
    assert (inspection.proposal is None) == (name == "exported")
    for model in (factory, None if inspection.proposal is None else proposed_card(path, tmp_path)):
        loaded = load_model(path, model=model)
        assert same(loaded, raw), "raw"
        assert loaded.has_weights("ema") == (name in FOLDERS_WITH_AVERAGE)
        if name in FOLDERS_WITH_AVERAGE:
            assert same(load_model(path, model=model, weights="ema"), ema), "ema"
