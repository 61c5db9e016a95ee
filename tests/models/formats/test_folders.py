"""Checkpoint folders: the same answer from headers and tensors, and one sentence for what is missing or hostile."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import checkpoint_folders as folders
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from refused_files import Planted, refusal
from torch import Tensor

from mfdiag.errors import InputError
from mfdiag.models.formats.containers import is_tensor, read_container, weight_sets
from mfdiag.models.inspection import inspect_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def state() -> dict[str, Tensor]:
    weights = {"a.weight": torch.arange(15.0).reshape(5, 3), "a.bias": torch.arange(5.0), "b": torch.arange(7.0)}
    return weights | {"c": torch.arange(3.0), "n": torch.tensor(7)}


def headers(tree: Mapping[Any, Any]) -> Any:
    return {
        key: headers(value)
        if isinstance(value, Mapping)
        else (tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for key, value in tree.items()
        if isinstance(value, Mapping) or is_tensor(value)
    }


@pytest.mark.parametrize("kind", ["dcp", "dcp of processes", "zero 1", "zero 2", "zero 3", "pipeline", "script"])
def test_headers_are_those_of_the_tensors(tmp_path: Path, kind: str) -> None:
    write = {
        "dcp": lambda path: folders.write_dcp(path, {"model": state(), "optim": {"lr": [0.1]}, "step": 3}),
        "dcp of processes": lambda path: folders.write_dcp_of_processes(path, {"model": state()}, 4),
        "pipeline": lambda path: folders.write_pipeline(path, state()),
        "script": lambda path: folders.write_training_script(path, state(), state()),
    }.get(kind, lambda path: folders.write_zero(path, state(), stage=int(kind[-1]), frozen=("c",)))
    write(tmp_path / "folder")
    without, loaded = (read_container(tmp_path / "folder", load=load) for load in (False, True))
    assert headers(without.tree) == headers(loaded.tree) and without.files == loaded.files
    sets = weight_sets(loaded.tree, described=False)
    assert all(torch.equal(weights[name], value) for weights in sets.values() for name, value in state().items())


def test_every_part_of_a_dcp_folder_must_be_there(tmp_path: Path) -> None:
    folders.write_dcp_of_processes(tmp_path / "whole", {"model": state()})
    for change in ("missing", "shorter", "empty"):
        path = tmp_path / change
        shutil.copytree(tmp_path / "whole", path)
        part = path / "__1_0.distcp"
        if change == "missing":
            part.unlink()
            assert "Expected the shard '__1_0.distcp' beside" in refusal(path)
        else:
            part.write_bytes(part.read_bytes()[: -1 if change == "shorter" else 0])
            assert "truncated or damaged" in refusal(path)


def test_dcp_metadata_names_no_file_outside_its_folder(tmp_path: Path) -> None:
    folders.write_dcp(tmp_path / "dcp", {"model": state()})
    shutil.copy(tmp_path / "dcp" / "__0_0.distcp", tmp_path / "out_0.distcp")
    index = tmp_path / "dcp" / ".metadata"
    for name in (b"../_0.distcp", b"/a/b/c/d/e/f", b"__0_0\0distcp", b"x_0_0.distcp"):
        changed = index.read_bytes().replace(b"__0_0.distcp", name.ljust(12, b"x")[:12])
        (tmp_path / "dcp" / ".metadata").write_bytes(changed)
        text = refusal(tmp_path / "dcp")
        assert "reads nothing outside its folder" in text or "is missing" in text
        index.write_bytes(changed.replace(name.ljust(12, b"x")[:12], b"__0_0.distcp"))


def test_no_code_in_a_folder_is_run(tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    dcp = tmp_path / "dcp"
    dcp.mkdir()
    (dcp / ".metadata").write_bytes(pickle.dumps(Planted(planted)))
    assert "mfdiag runs no code" in refusal(dcp)
    folders.write_zero(tmp_path / "zero", state(), stage=2, client={"object": Planted(planted)})
    assert "mfdiag runs no code" in refusal(tmp_path / "zero")
    (tmp_path / "accelerate").mkdir()
    torch.save(state(), tmp_path / "accelerate" / "pytorch_model.bin")
    torch.save({"object": Planted(planted)}, tmp_path / "accelerate" / "custom_checkpoint_0.pkl")
    assert "custom_checkpoint_0.pkl is not read" in read_container(tmp_path / "accelerate", load=True).notes[0]
    folders.write_dcp(tmp_path / "values", {"model": state(), "object": Planted(planted), "step": 3})
    planted.unlink(missing_ok=True)
    for load in (False, True):
        tree = read_container(tmp_path / "values", load=load).tree
        assert tree["step"] == 3 and tree["model"].keys() == state().keys()
    assert not planted.exists()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_missing_processes_of_zero_are_named(tmp_path: Path, stage: int) -> None:
    folders.write_zero(tmp_path, state(), stage=stage, processes=4)
    for rank in (1, 3):
        (tmp_path / "global_step3" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").unlink()
    text = refusal(tmp_path)
    assert "Expected the files of 4 processes" in text and "2 are missing: zero_pp_rank_1_mp_rank_00_optim" in text


def test_zero_without_its_optimizer_files(tmp_path: Path) -> None:
    for stage in (2, 3):
        folders.write_zero(tmp_path / str(stage), state(), stage=stage)
        for file in (tmp_path / str(stage) / "global_step3").glob("*_optim_states.pt"):
            file.unlink()
    assert "ZeRO 3 stores the weights there" in refusal(tmp_path / "3")
    container = read_container(tmp_path / "2", load=True)
    assert container.tree["module"]["a.weight"].dtype == torch.bfloat16 and "bfloat16" in container.notes[0]


def test_zero_that_other_parallelism_divides_is_refused(tmp_path: Path) -> None:
    folders.write_zero(tmp_path / "a", state(), stage=2)
    tag = tmp_path / "a" / "global_step3"
    shutil.copy(tag / "mp_rank_00_model_states.pt", tag / "mp_rank_01_model_states.pt")
    assert "divides them by tensor parallelism" in refusal(tmp_path / "a")
    (tag / "mp_rank_01_model_states.pt").rename(tag / "layer_0_expert_0_mp_rank_00_model_states.pt")
    assert "divides them by experts" in refusal(tmp_path / "a")


def test_the_newest_zero_checkpoint_is_the_one_that_latest_names(tmp_path: Path) -> None:
    folders.write_zero(tmp_path, state(), stage=2)
    shutil.copytree(tmp_path / "global_step3", tmp_path / "global_step4")
    assert "global_step3" in str(read_container(tmp_path, load=False).files[0])
    for tag in ("../global_step4", "global_step5", "x" * 9000, "\0"):
        (tmp_path / "latest").write_text(tag)
        assert "Expected the folder that" in refusal(tmp_path) and len(refusal(tmp_path)) < 500
    (tmp_path / "latest").unlink()
    assert "2: global_step3, global_step4; pass one" in refusal(tmp_path)


def test_a_vector_that_is_too_short_is_damage(tmp_path: Path) -> None:
    for stage in (2, 3):
        folders.write_zero(tmp_path / str(stage), state(), stage=stage)
        tag = tmp_path / str(stage) / "global_step3"
        file = next(tag.glob("mp_*") if stage == 2 else tag.glob("*rank_0_*model*"))
        content = torch.load(file, weights_only=True)
        content["param_shapes"][1]["more"] = torch.Size([9])
        torch.save(content, file)
        assert "more should end at number" in refusal(tmp_path / str(stage))


def test_other_networks_of_a_pipeline_are_named(tmp_path: Path) -> None:
    folders.write_pipeline(tmp_path / "pipeline", state())
    inspection = inspect_checkpoint(tmp_path / "pipeline")
    assert [weights.key for weights in inspection.weights] == ["unet"]
    assert any("vae is another network" in note for note in inspection.notes)
    assert {entry.name: entry.values.get("sample_size") for entry in inspection.entries} == {"unet": 32}


def test_missing_files_of_processes_are_told(tmp_path: Path) -> None:
    folders.write_ranks(tmp_path, {"model": state()}, 4)
    (tmp_path / "model_rank2.pt").unlink()
    text = refusal(tmp_path)
    assert "has the files of 3 of 4 processes, with 4 of 5 rows of axis 0 of model.a.weight" in text
    assert "put the files of all processes into a folder" in refusal(tmp_path / "model_rank0.pt")
    torch.save({"model": state()}, tmp_path / "model_rank2.pt")
    assert "model_rank2.pt has none of the same tensor" in refusal(tmp_path)


def test_parts_on_a_mesh_of_two_axes_are_joined(tmp_path: Path) -> None:
    from torch.distributed.tensor import DTensor, Replicate, Shard, init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    whole = torch.arange(77.0).reshape(11, 7)
    ways = {"rows": (Shard(0), Shard(0)), "both": (Shard(0), Shard(1)), "columns": (Replicate(), Shard(1))}
    for rank in range(4):
        torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=4)
        mesh = init_device_mesh("cpu", (2, 2))
        parts = {}
        for name, placements in ways.items():
            local = whole
            for placement, number in zip(placements, (rank // 2, rank % 2), strict=True):
                local = local if isinstance(placement, Replicate) else local.chunk(2, placement.dim)[number]
            parts[name] = DTensor.from_local(
                local.clone(), mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
            )
        torch.distributed.destroy_process_group()
        torch.save(parts, tmp_path / f"pytorch_model_fsdp_0_rank{rank}.bin")
    tree = read_container(tmp_path, load=True).tree
    assert all(torch.equal(tree[name], whole) for name in ways)


@given(st.integers(0, 10**6), st.integers(0, 255))
def test_damaged_metadata_are_one_sentence(tmp_path_factory: pytest.TempPathFactory, place: int, value: int) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged"
    if not path.exists():
        folders.write_dcp(path, {"model": state(), "step": 3})
        (path / "original").write_bytes((path / ".metadata").read_bytes())
    raw = bytearray((path / "original").read_bytes())
    raw[place % len(raw)] = value
    (path / ".metadata").write_bytes(raw)
    for load in (False, True):
        with suppress(InputError):
            read_container(path, load=load)
