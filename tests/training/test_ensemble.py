"""Models trained together become what each would become alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from specs import spec_of
from torch.utils import _pytree as pytree

from mfdiag.flow.data.datasets import load_data
from mfdiag.training import ensemble
from mfdiag.training.draws import BatchFeed
from mfdiag.training.ensemble import Ensemble, TrainState, ensemble_key, initial_state, stack_rates, train_step
from mfdiag.training.loss import TrainBatch
from mfdiag.training.spec import TrainSpec
from mfdiag.training.trainer import initial_module

ANCHOR = {"lambda": 0.5, "delta_max": 0.01}
SPECS = [
    spec_of(),
    spec_of(seed=4, data="two_moons", loss={"beta": 0, "anchor": ANCHOR}),
    spec_of(loss={"beta": 1, "gamma": 0.3, "anchor": {"lambda": 2, "delta_min": 0.1, "delta_max": 0.2}}),
    spec_of(learning_rate=0.1, ema_decay=0.5, times="uniform"),
]


@pytest.fixture(autouse=True)
def _double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def trained(specs: list[TrainSpec], steps: int, *, compiled: bool = False) -> list[TrainState]:
    feed = BatchFeed(specs, [load_data(spec.data) for spec in specs], "cpu")
    modules = [initial_module(spec) for spec in specs]
    models = Ensemble(
        modules[0], specs, [initial_state(m) for m in modules], feed, device="cpu", compiled=compiled, say=pytest.fail
    )
    models.advance(steps)
    assert models.steps_done == steps
    feed.close()
    return models.states()


def assert_same(actual: TrainState, expected: TrainState) -> None:
    for one, other in zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": {"name": "adamw", "weight_decay": 0.1, "clip": 0.5}, "schedule": {"name": "cosine", "warmup": 3}},
        {"optimizer": "sgd", "schedule": "linear"},
    ],
    ids=["adam", "adamw", "sgd"],
)
def test_together_as_alone(changes: dict[str, Any]) -> None:
    specs = [TrainSpec.model_validate(spec.model_dump(by_alias=True) | changes) for spec in SPECS]
    assert len({ensemble_key(spec) for spec in specs}) == 1
    for state, spec in zip(trained(specs, 6), specs, strict=True):
        assert_same(state, trained([spec], 6)[0])


def test_vectorised_as_a_plain_loop() -> None:
    """One model at a time, without vmap: the function that vmap maps, in a loop over steps."""
    for state, spec in zip(trained(SPECS, 5), SPECS, strict=True):
        module = initial_module(spec)
        single, feed = initial_state(module), BatchFeed([spec], [load_data(spec.data)], "cpu")
        for step in range(5):
            batch = TrainBatch._make(None if values is None else values[0] for values in feed.batch(step))
            rates = pytree.tree_map(lambda value: None if value is None else value[0], stack_rates([spec], "cpu"))
            single = train_step(module, spec, single, batch, rates)
        assert_same(state, single)
        feed.close()


def test_compiled_as_uncompiled() -> None:
    specs = [spec_of(loss={"beta": beta}, optimizer="sgd") for beta in (0, 0.5)]
    for one, other in zip(trained(specs, 3, compiled=True), trained(specs, 3), strict=True):
        assert_same(one, other)


def test_where_compilation_fails_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        def step(*_: Any) -> Any:
            raise RuntimeError("no compiler here\nmore")

        return step

    monkeypatch.setattr(ensemble, "compile_step", failing)
    said: list[str] = []
    spec = SPECS[0]
    feed = BatchFeed([spec], [load_data(spec.data)], "cpu")
    module = initial_module(spec)
    models = Ensemble(module, [spec], [initial_state(module)], feed, device="cpu", compiled=True, say=said.append)
    models.advance(2)
    models.advance(1)
    feed.close()
    assert said == ["Compilation failed (no compiler here); training runs uncompiled, which is slower."]
    assert_same(models.states()[0], trained([spec], 3)[0])


def test_recorded_steps_and_single_ones_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    """What CUDA graphs do, without CUDA: a recording works on the tensors it was made with, whatever came since."""

    def record(self: Ensemble) -> Any:
        recorded, buffer = self.state, self._buffer
        assert buffer is not None

        def replay() -> None:
            state = recorded
            for number in range(ensemble._GRAPH_STEPS):
                state = self._step(state, TrainBatch._make(None if v is None else v[number] for v in buffer))
            ensemble._copy(recorded, state)

        return SimpleNamespace(replay=replay)

    monkeypatch.setattr(ensemble, "_GRAPH_STEPS", 2)
    monkeypatch.setattr(Ensemble, "_record", record)
    spec = SPECS[0]
    feed = BatchFeed([spec], [load_data(spec.data)], "cpu")
    module = initial_module(spec)
    models = Ensemble(module, [spec], [initial_state(module)], feed, device="cpu", compiled=False, say=pytest.fail)
    models._graph = True
    for steps in (3, 1, 4, 1):
        models.advance(steps)
    feed.close()
    assert_same(models.states()[0], trained([spec], 9)[0])


def test_a_model_that_diverges_leaves_the_others_alone() -> None:
    wild = spec_of(learning_rate=1e200)
    states = trained([SPECS[0], wild], 4)
    assert not all(p.isfinite().all() for p in states[1].params.values())
    assert_same(states[0], trained([SPECS[0]], 4)[0])


@pytest.mark.parametrize(
    "changes", [{"batch_size": 8}, {"loss": {}}, {"loss": {"weighting": "adaptive:1,1"}}, {"steps": 9}], ids=str
)
def test_what_cannot_train_together(changes: dict[str, Any]) -> None:
    assert ensemble_key(spec_of(**changes)) != ensemble_key(spec_of())
