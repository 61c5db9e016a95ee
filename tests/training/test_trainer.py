"""Training a grid: killed runs go on and end the same, finished cells stay, changed ones are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from specs import spec_of

from mfdiag.errors import InputError
from mfdiag.flow.draw import Draws
from mfdiag.models.checkpoint import load_model
from mfdiag.training import trainer
from mfdiag.training.ensemble import Ensemble
from mfdiag.training.grid import GridCell
from mfdiag.training.saved import CHECKPOINT, STATE, LogEntry, kept_checkpoint
from mfdiag.training.spec import TrainSpec
from mfdiag.training.trainer import TrainedCell, TrainOptions, estimate_seconds, initial_module, train


def grid(**changes: Any) -> list[GridCell]:
    """Three cells of one shape and one of another."""
    cells = [GridCell(f"seed={seed}", spec_of(seed=seed, **changes)) for seed in (3, 4, 5)]
    return [*cells, GridCell("wide", spec_of(model={"name": "mlp", "arguments": {"dim": 2, "hidden": 12}}, **changes))]


def run(cells: list[GridCell], out: Path, **changes: Any) -> list[TrainedCell]:
    return train(cells, out, TrainOptions(**changes), say=pytest.fail)


class Killed(Exception):
    pass


@pytest.mark.parametrize(("stop", "kind"), [(7, Killed), (7, KeyboardInterrupt), (14, Killed), (2, Killed)])
def test_resumed_equals_uninterrupted(
    tmp_path: Path, stop: int, kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(grid(), tmp_path / "whole")
    original, out = Ensemble._eager, tmp_path / "parts"
    done: list[int] = []

    def dying(self: Ensemble, *arguments: Any) -> Any:
        if len(done) == stop:
            raise kind
        done.append(1)
        return original(self, *arguments)

    monkeypatch.setattr(Ensemble, "_eager", dying)
    with pytest.raises(kind):
        run(grid(), out)
    assert not (out / "wide" / CHECKPOINT).exists()
    monkeypatch.setattr(Ensemble, "_eager", original)
    for one, other in zip(run(grid(), out), whole, strict=True):
        assert str(one.log) == str(other.log), "as text, because NaN differs from itself"
        assert [entry.step for entry in one.log if entry.quantity == "loss"] == [5, 10, 12]
        assert one.checkpoint is not None and other.checkpoint is not None
        assert one.checkpoint.read_bytes() == other.checkpoint.read_bytes()


def test_finished_cells_are_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = grid()
    first = run(cells[:2], tmp_path)
    trained: list[int] = []
    original = Ensemble.advance

    def counting(self: Ensemble, steps: int) -> None:
        trained.append(len(self.specs))
        original(self, steps)

    monkeypatch.setattr(Ensemble, "advance", counting)
    second = run(cells, tmp_path)
    assert set(trained) == {1}, "the two finished cells are not among those trained"
    assert [str(item.log) for item in second[:2]] == [str(item.log) for item in first]
    trained.clear()
    run(cells, tmp_path)
    assert not trained
    (tmp_path / "wide" / STATE).unlink()
    assert run(cells, tmp_path)[-1].log == [] and not trained, "a finished checkpoint needs no state"
    run(cells, tmp_path, resume=False)
    assert set(trained) == {3, 1}


def test_a_changed_specification_names_what_it_invalidates(tmp_path: Path) -> None:
    run(grid(), tmp_path)
    changed = grid()
    changed[1] = GridCell("seed=4", spec_of(seed=4, learning_rate=0.5, steps=13))
    before = (tmp_path / "seed=4" / CHECKPOINT).read_bytes()
    with pytest.raises(InputError, match=r"1 of 4 models.*seed=4 \(steps: 12 -> 13, learning_rate: 0.01 -> 0.5\)"):
        run(changed, tmp_path)
    assert (tmp_path / "seed=4" / CHECKPOINT).read_bytes() == before
    run(changed, tmp_path, resume=False)
    assert load_model(tmp_path / "seed=4" / CHECKPOINT).step == 13


def test_more_steps_go_on_from_the_state(tmp_path: Path) -> None:
    for steps in (7, 10, 12):
        longer = run(grid(steps=steps), tmp_path / "parts")
    for one, other in zip(longer, run(grid(), tmp_path / "whole"), strict=True):
        assert one.checkpoint is not None and other.checkpoint is not None
        assert one.checkpoint.read_bytes() == other.checkpoint.read_bytes()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"steps": 12}, {"steps": 7}),
        ({"steps": 7, "schedule": "cosine"}, {"steps": 12, "schedule": "cosine"}),
        ({"steps": 7}, {"steps": 12, "batch_size": 9}),
    ],
)
def test_other_changes_of_the_steps_invalidate(tmp_path: Path, before: dict[str, Any], after: dict[str, Any]) -> None:
    run([GridCell("", spec_of(**before))], tmp_path)
    with pytest.raises(InputError, match=f"steps: {before['steps']} -> {after['steps']}"):
        run([GridCell("", spec_of(**after))], tmp_path)


def test_without_a_state_nothing_goes_on(tmp_path: Path) -> None:
    run([GridCell("", spec_of(steps=7))], tmp_path)
    (tmp_path / STATE).unlink()
    with pytest.raises(InputError, match="steps: 7 -> 12"):
        run([GridCell("", spec_of(steps=12))], tmp_path)


def test_checkpoint_describes_the_run(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    (result,) = train([GridCell("", spec_of())], tmp_path, progress=lambda *now: seen.append(now), say=pytest.fail)
    assert seen == [("training", step, 12) for step in (4, 5, 8, 10, 12)]
    assert result.checkpoint == tmp_path / CHECKPOINT
    loaded = load_model(result.checkpoint)
    assert loaded.description is not None and loaded.step == 12
    assert TrainSpec.model_validate(loaded.description.specification) == spec_of()
    assert not torch.equal(loaded.state["raw"]["layers.0.weight"], loaded.state["ema"]["layers.0.weight"])


def test_log_holds_means_over_the_steps_between(tmp_path: Path) -> None:
    def losses(every: int, save: int) -> list[float]:
        spec = spec_of(log_every=every, save_every=save)
        (result,) = run([GridCell("", spec)], tmp_path / f"{every}-{save}")
        return [entry.value for entry in result.log if entry.quantity == "loss"]

    each = losses(1, 100)
    expected = [sum(each[:5]) / 5, sum(each[5:10]) / 5, sum(each[10:]) / 2]
    assert losses(5, 100) == pytest.approx(expected, rel=1e-5)
    assert losses(5, 3) == pytest.approx(expected, rel=1e-5)


def test_measuring_on_the_way(tmp_path: Path) -> None:
    def measure(spec: TrainSpec, draws: Draws, module: Any, ema: Any) -> list[LogEntry]:
        assert draws.data.name == spec.data
        weights = (module.layers[0].weight[0, 0].item(), ema.layers[0].weight[0, 0].item())
        assert weights[0] != weights[1] and not module.training
        return [LogEntry(0, "variance", weights[0], 0, 0, 0, 1, "ok")]

    spec = spec_of(measure_every=8)
    (result,) = train([GridCell("", spec)], tmp_path, measure=measure, say=pytest.fail)
    entries = [entry for entry in result.log if entry.quantity == "variance"]
    assert [entry.step for entry in entries] == [8, 12]
    assert result.checkpoint is not None
    assert entries[-1].value == load_model(result.checkpoint).state["raw"]["layers.0.weight"][0, 0]


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    (result,) = run([GridCell("", spec_of(loss={}, steps=300, log_every=30, batch_size=128))], tmp_path)
    losses = [entry.value for entry in result.log if entry.quantity == "loss"]
    assert losses[-1] < 0.8 * losses[0]


def test_diverged_cells_end_without_a_checkpoint(tmp_path: Path) -> None:
    cells = [GridCell("good", spec_of()), GridCell("wild", spec_of(learning_rate=1e38))]
    for _ in range(2):  # the second time nothing is left to do
        good, wild = run(cells, tmp_path)
        assert good.checkpoint is not None and wild.checkpoint is None
        assert {entry.status for entry in good.log} == {"ok"}
        assert wild.log[-1].status == "nonfinite"


def test_initial_weights_depend_on_the_seed_alone() -> None:
    before = torch.random.get_rng_state()
    one, again, other = (initial_module(spec_of(seed=seed)).state_dict()["layers.0.weight"] for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_images_with_labels_train(tmp_path: Path) -> None:
    arguments = {"channels": 1, "size": 8, "width": 16, "depth": 1, "heads": 2, "num_classes": 10}
    spec = spec_of(data="digits", model={"name": "dit", "arguments": arguments}, steps=3)
    (result,) = run([GridCell("", spec)], tmp_path)
    assert result.checkpoint is not None
    assert load_model(result.checkpoint, weights="ema").module.label is not None


def test_large_grids_are_cut_into_programs_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(grid(), tmp_path / "whole")
    monkeypatch.setattr(trainer, "_MODELS_TOGETHER", {"cpu": 2})
    for one, other in zip(run(grid(), tmp_path / "parts"), whole, strict=True):
        assert one.checkpoint is not None and other.checkpoint is not None
        raw, expected = (load_model(path).state["raw"] for path in (one.checkpoint, other.checkpoint))
        for name, value in raw.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_estimate_trains_nothing(tmp_path: Path) -> None:
    assert estimate_seconds(grid(), tmp_path / "none", TrainOptions(), say=pytest.fail) > 0
    assert not (tmp_path / "none").exists()
    run(grid(), tmp_path)
    assert estimate_seconds(grid(), tmp_path, TrainOptions(), say=pytest.fail) == 0


def test_refusals(tmp_path: Path) -> None:
    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(InputError, match=match):
            run([GridCell("", spec_of(**changes))], tmp_path)

    refused(r"shape \[2\], to the same shape, but it fails: mat1", model={"name": "mlp", "arguments": {"dim": 3}})
    labelled = {"name": "mlp", "arguments": {"dim": 2, "num_classes": 3}}
    refused("num_classes to be 0, because 'gaussian:2,0.5,0.3' has no labels", model=labelled)
    (tmp_path / STATE).write_bytes(b"PK")
    refused(r"state\.pt")
    torch.save({"specification": {}, "state": {}}, tmp_path / STATE)
    refused("training state of this version")


def test_kept_checkpoints_are_those_of_shorter_runs(tmp_path: Path) -> None:
    [cell] = train([GridCell("kept", spec_of(keep_every=5))], tmp_path, say=pytest.fail)
    assert cell.checkpoint is not None
    assert sorted(path.name for path in cell.checkpoint.parent.glob("step=*")) == ["step=10", "step=5"]
    [short] = train([GridCell("short", spec_of(steps=10))], tmp_path, say=pytest.fail)
    assert short.checkpoint is not None
    kept, whole = load_model(cell.checkpoint.parent / kept_checkpoint(10)), load_model(short.checkpoint)
    assert kept.description is not None and kept.description.step == 10
    for key in ("raw", "ema"):
        assert all(torch.equal(values, kept.state[key][name]) for name, values in whole.state[key].items())
