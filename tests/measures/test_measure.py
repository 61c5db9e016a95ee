"""measure(): what changes its numbers and what must not, and one sentence for everything it cannot measure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import Unknown, randomised, rows
from torch import Tensor, nn

import mfdiag
from mfdiag import InputError, load_data, measure
from mfdiag.flow.data.datasets import FiniteData
from mfdiag.models.networks.mlp import MLP

LABELLED = FiniteData("labelled", np.random.default_rng(0).normal(size=(40, 2)), np.arange(40) % 3)


def network(seed: int = 0, dim: int = 2, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return randomised(MLP(dim, hidden=6, depth=2, num_classes=classes))


def tables_of(**changed: Any) -> dict[str, pd.DataFrame]:
    options: dict[str, Any] = {
        "model": network(),
        "data": LABELLED,
        "times": "uniform:r_ne_t=0.7",
        "proxy": "ema",
        "proxy_model": network(1),
        "beta": (0.0, 0.7),
        "samples": 200,
        "bins": (2, 2),
        "dtype": torch.float64,
    }
    return measure(**(options | changed))


def assert_same(found: dict[str, pd.DataFrame], expected: dict[str, pd.DataFrame], tolerance: float) -> None:
    for name, frame in expected.items():
        numbers = ["value", "std_error", "ci_low", "ci_high"]
        pd.testing.assert_frame_equal(found[name].drop(columns=numbers), frame.drop(columns=numbers))
        for column in numbers:
            np.testing.assert_allclose(found[name][column], frame[column], rtol=tolerance, atol=1e-9, err_msg=column)


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    return tables_of()


def test_sparse_gradients_of_embeddings_are_the_dense_ones(tables: dict[str, pd.DataFrame]) -> None:
    model = network()
    embeddings = [layer for layer in model.modules() if isinstance(layer, nn.Embedding)]
    assert embeddings
    for layer in embeddings:
        layer.sparse = True
    assert_same(tables_of(model=model), tables, 1e-12)
    assert all(layer.sparse for layer in embeddings)  # the user's network is left as it was


def test_the_same_seed_gives_the_same_frames(tables: dict[str, pd.DataFrame]) -> None:
    again = tables_of()
    for name, frame in tables.items():
        pd.testing.assert_frame_equal(again[name], frame, check_exact=True)


@pytest.mark.parametrize("chunk", [7, 64, 200])
def test_the_chunk_changes_nothing(tables: dict[str, pd.DataFrame], chunk: int) -> None:
    assert_same(tables_of(chunk=chunk), tables, 1e-6)


def test_one_sample_at_a_time_changes_nothing(tables: dict[str, pd.DataFrame]) -> None:
    assert_same(tables_of(chunk=1, tables=("sweep",)), {"sweep": tables["sweep"]}, 1e-6)


def test_the_engine_changes_nothing(tables: dict[str, pd.DataFrame]) -> None:
    assert_same(tables_of(engine="reference"), tables, 1e-6)


def test_single_precision_is_close(tables: dict[str, pd.DataFrame]) -> None:
    keys = {"quantity": "variance", "space": "gradient", "layer": "all"}
    single, double = (rows(one["sweep"], **keys)["value"] for one in (tables_of(dtype=torch.float32), tables))
    np.testing.assert_allclose(single, double, rtol=1e-4)


@pytest.mark.parametrize("changed", [{"seed": 1}, {"proxy": "self"}, {"times": "uniform"}, {"samples": 199}])
def test_what_should_change_the_numbers_does(tables: dict[str, pd.DataFrame], changed: dict[str, Any]) -> None:
    values = [one["sweep"].query("layer == 'all' and t_low.isna()")["value"] for one in (tables_of(**changed), tables)]
    assert not np.isclose(*values, rtol=1e-8, atol=0).all()


def test_more_samples_begin_with_the_same_ones(tables: dict[str, pd.DataFrame]) -> None:
    keys = ["estimator", "quantity", "index"]
    long, short = (
        one["samples"].query("index < 120").sort_values(keys).reset_index(drop=True)
        for one in (tables_of(samples=260), tables_of(samples=120))
    )
    pd.testing.assert_frame_equal(long[[*keys, "r", "t", "label"]], short[[*keys, "r", "t", "label"]])
    np.testing.assert_allclose(long["value"], short["value"], rtol=1e-9)
    assert short["label"].isin([0, 1, 2]).all()


def test_the_model_is_left_as_it_was() -> None:
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tables_of(model=model)
    assert model.training and all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_weight_that_is_stored_once_has_its_gradient() -> None:
    class Cached(MLP):
        folded: Tensor | None = None

        def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            if self.folded is None:
                self.folded = 2 * self.layers[0].weight
            return super().forward(x @ self.folded[:2, :2], r, t, y)

    class Plain(MLP):
        def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            return super().forward(x @ (2 * self.layers[0].weight)[:2, :2], r, t, y)

    values = []
    for kind in (Cached, Plain):
        torch.manual_seed(0)
        model = kind(2, hidden=6)
        frame = measure(model, "two_moons", tables=["variance"], estimators=["meanflow"], samples=32)["variance"]
        values.append(frame["value"].to_numpy())
        assert getattr(model, "folded", None) is None
    np.testing.assert_allclose(*values, rtol=1e-5)


def test_frozen_parameters_are_not_measured() -> None:
    part, whole = network(), network()
    part.layers[0].requires_grad_(False)  # type: ignore[index]
    frozen, trained = (tables_of(model=model, tables=["variance"])["variance"] for model in (part, whole))
    layers = set(trained["layer"]) - set(frozen["layer"])
    assert layers and not any(p.requires_grad for p in part.layers[0].parameters())  # type: ignore[index]
    both = trained[trained["layer"].isin(set(frozen["layer"]) - {"all"})]
    same = frozen[frozen["layer"] != "all"]
    np.testing.assert_allclose(same["value"].to_numpy(), both["value"].to_numpy(), rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_time_in_low_precision_is_a_note_and_no_error(dtype: torch.dtype) -> None:
    class Half(MLP):
        def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            return super().forward(x, r, t.half().to(x.dtype), y)

    torch.manual_seed(0)
    notes: list[str] = []
    measure(Half(2, hidden=6), "two_moons", tables=["variance"], samples=32, dtype=dtype, say=notes.append)
    assert any("casts t to float16" in note for note in notes)


def test_labels_reach_models_that_take_them() -> None:
    blind = tables_of(model=network(classes=0), proxy="self", proxy_model=None, tables=("sweep",))["sweep"]
    bare = FiniteData("labelled", LABELLED.points)
    same = tables_of(model=network(classes=0), proxy="self", proxy_model=None, tables=("sweep",), data=bare)["sweep"]
    pd.testing.assert_frame_equal(blind, same)
    sighted, unsighted = (
        tables_of(proxy="self", proxy_model=None, tables=("sweep",), data=data)["sweep"] for data in (LABELLED, bare)
    )
    assert not np.allclose(sighted["value"], unsighted["value"])


def test_arrays_names_and_data_are_the_same_data() -> None:
    frames = [
        tables_of(data=data, model=network(classes=0), proxy="self", proxy_model=None, tables=("sweep",))["sweep"]
        for data in (LABELLED.points, FiniteData("array", LABELLED.points))
    ]
    pd.testing.assert_frame_equal(*frames)


@pytest.mark.parametrize("bins", [(3, 3), (1, 3), None])
def test_a_stratified_grid_reports_its_own_cells_alone(bins: tuple[int, int] | None) -> None:
    """Its cells weigh alike, whatever their area: no mean over several of them belongs to the model's times."""
    found = tables_of(times="grid:3,3", bins=bins, samples=600)
    for name in ("sweep", "variance", "coefficient"):
        edges = found[name][["r_low", "r_high", "t_low", "t_high"]].drop_duplicates()
        assert edges.notna().all(axis=None), f"{name} mixes cells:\n{edges}"
        assert len(edges) == 6
    assert not found["variance"]["quantity"].isin(["top1_share", "tail_index"]).any()


class Mixing(nn.Module):
    """Subtracts the batch's mean, as batch normalisation does in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.layer(x)
        return torch.tanh(h - 0.5 * h.mean(0)) * (1 + t[:, None])


class Output(nn.Module):
    """An MLP whose output goes through a function."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.body, self.change = network(classes=0), change

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Any:
        return self.change(self.body(x, r, t))


class NoTimes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def with_nan() -> nn.Module:
    model = network()
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if name == "layers.2.weight")[1, 2] = torch.nan
    return model


class SometimesNan(nn.Module):
    """Breaks on the rare sample far out, which the first few do not show."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network(classes=0)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.body(x, r, t) * torch.where(x[:, :1] > 2.0, torch.nan, 1.0)


UNLABELLED = {"proxy": "self", "proxy_model": None}


@pytest.mark.parametrize("engine", ["fast", "reference"])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": with_nan()}, "NaN or infinit.*check.* weights"),
        ({"model": SometimesNan(), **UNLABELLED}, "NaN or infinit.* first at sample"),
        ({"model": Mixing(), **UNLABELLED}, "mixes the samples of a batch"),
        ({"model": network(dim=3, classes=0), **UNLABELLED}, "cannot be evaluated"),
        ({"model": Output(lambda u: u[:, :1]), **UNLABELLED}, "shape"),
        ({"model": Output(lambda u: torch.cat([u, u], 1)), **UNLABELLED}, "shape"),
        ({"model": Output(lambda u: (u, u)), **UNLABELLED}, "."),
        (
            {"model": Output(lambda u: u.half()), **UNLABELLED},
            "must return float.., as its input is, but it returned float16",
        ),
        ({"model": Output(lambda u: torch.complex(u, u)), **UNLABELLED}, "but it returned complex"),
        (
            {"model": network(classes=0).to("meta"), **UNLABELLED},
            "without values, on the device meta .*: load its weights",
        ),
        ({"model": lambda x, r, t: x, **UNLABELLED}, "Expected a torch.nn.Module, .* but got a function"),
        ({"model": NoTimes(), **UNLABELLED}, "which are x, r and t"),
        ({"proxy_model": Output(lambda u: u[:, :1])}, "shape"),
        ({"proxy_model": network(dim=3, classes=0)}, "cannot be evaluated"),
        ({"proxy_model": with_nan()}, "NaN or infinit"),
    ],
    ids=lambda value: None,
)
def test_models_that_cannot_be_measured(engine: str, changed: dict[str, Any], message: str) -> None:
    refused(message, engine=engine, **changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weighting": "adaptive:1,0.001", "tables": ("coefficient",)}, "closed forms hold for --weighting none"),
        ({"weighting": "adaptive:1,0.001"}, "closed forms hold for --weighting none"),
        ({"weighting": "adaptive:-1"}, "p must be in"),
        ({"times": "unifrm"}, "Did you mean 'uniform'"),
        ({"data": np.full((9, 2), np.nan)}, "array: 18 values are NaN or infinite"),
        ({"data": np.array([["a", "b"]])}, "array"),
        ({"data": "eight_gausians"}, "Did you mean 'eight_gaussians'"),
        ({"estimators": ["meanflw"]}, "Did you mean 'meanflow'"),
        ({"tables": ("sweeps",)}, "Did you mean 'sweep'"),
        ({"proxy": "ema", "proxy_model": None}, "needs proxy_model"),
        ({"proxy": "exact", "data": Unknown(LABELLED)}, "marginal velocity is known"),
        ({"proxy": "exactly"}, "proxy"),
        ({"proxy": "teacher", "coupling": "reversed"}, "a teacher's velocity has data there"),
        ({"engine": "quick"}, "engine"),
        ({"samples": 1}, "at least 2"),
        ({"samples": 0}, "at least 2"),
        ({"chunk": 0}, "chunk"),
        ({"bins": (0, 2)}, "bins"),
        ({"beta": ()}, "at least one finite number"),
        ({"beta": (np.nan,)}, "at least one finite number"),
        ({"batch_sizes": (0,)}, "at least 1"),
        ({"data": np.zeros((0, 2))}, "."),
        ({"data": np.full((5, 2), np.nan)}, "."),
        ({"seed": -1}, "seed"),
        ({"samples": "many"}, "samples='many' cannot be used. It should be a whole number"),
        ({"samples": "64"}, "whole number"),
        ({"samples": 2.5}, "whole number"),
        ({"posterior": "yes"}, "posterior='yes' cannot be used. It should be 'auto', 'exact' or 'none'"),
        ({"beta": 0.5}, "a list"),
        ({"estimators": "meanflow"}, "a list"),
        ({"batch_sizes": 64}, "a list"),
        ({"bins": 5}, "a list"),
        ({"by_layer": "layers"}, "True or False"),
        ({"times": 5}, "string"),
        ({"proxy_model": "ema"}, "torch.nn.Module"),
        ({"dtype": "float64"}, "torch.dtype"),
        ({"dtype": torch.int32}, "float32 or float64"),
        ({"device": "quantum"}, "torch knows no such device"),
    ],
    ids=lambda value: None,
)
def test_impossible_requests(changed: dict[str, Any], message: str) -> None:
    refused(message, **changed)


def test_arrays_and_numbers_of_numpy_and_torch_are_lists_and_numbers() -> None:
    plain = tables_of(beta=[0.0, 0.5], batch_sizes=[64], samples=64, tables=["sweep"])
    beta, batch_sizes, samples = torch.tensor([0.0, 0.5]), np.array([64]), np.int64(64)
    other = tables_of(beta=beta, batch_sizes=batch_sizes, samples=samples, bins=[2, 2], tables="sweep")
    pd.testing.assert_frame_equal(plain["sweep"], other["sweep"])


def refused(message: str, **changed: Any) -> None:
    with pytest.raises(InputError, match=message) as caught:
        tables_of(**changed)
    text = str(caught.value)
    assert "\n" not in text and text.endswith("."), text


def test_evaluation_mode_is_no_mixing() -> None:
    """Batch normalisation and dropout in eval mode treat samples one by one, and are measured."""

    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5), nn.SiLU(), nn.Dropout(0.5), nn.Linear(5, 2))

        def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            return self.body(x * (1 + t[:, None]) + r[:, None])

    torch.manual_seed(0)
    found = tables_of(model=Normalised().train(), tables=("sweep",), **UNLABELLED)["sweep"]
    assert {"body.0", "body.1", "body.4"} < set(found["layer"])


def test_without_the_posterior_known_data_are_unknown_data() -> None:
    changed = {"model": network(classes=0), "proxy": "self", "proxy_model": None, "posterior": "none"}
    known, unknown = (
        tables_of(data=data, **changed)["coefficient"].drop(columns="dataset") for data in (LABELLED, Unknown(LABELLED))
    )
    pd.testing.assert_frame_equal(known, unknown)
    assert set(known["form"]) == {"gradient"}


def test_progress_counts_to_the_end_and_nothing_is_said_for_nothing() -> None:
    seen: list[tuple[str, int, int]] = []
    said: list[str] = []
    tables_of(progress=lambda *step: seen.append(step), say=said.append, chunk=50, bins=None, tables=("sweep",))
    assert [done for _, done, _ in seen] == [50, 100, 150, 200] and {total for *_, total in seen} == {200}
    note = "128 samples cannot tell whether the model was trained in the convention that it is read in: as declared, "
    assert [text.startswith(note) for text in said] == [True]  # the network is untrained


def test_the_caller_is_told_where_samples_neither_confirm_nor_refute_the_convention() -> None:
    said: list[str] = []

    class Flow(nn.Module):
        """The exact velocity of a Gaussian, or nothing."""

        def __init__(self, share: float) -> None:
            super().__init__()
            self.share = nn.Parameter(torch.tensor(share))

        def forward(self, x: torch.Tensor, r: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            at = [((1 - s) ** 2 + s**2).sqrt() for s in (r, t)]  # of N(0, I) to N(0, I): x_r = x_t sigma_r / sigma_t
            length = (t - r).clamp_min(1e-4)
            slope = torch.where(t > r, (1 - at[0] / at[1]) / length, (2 * t - 1) / at[1] ** 2)
            return self.share * slope[:, None] * x

    for share, notes in ((1.0, 0), (0.0, 1)):
        said.clear()
        measure(Flow(share), "gaussian:2,0,1", tables=("sweep",), samples=64, times="uniform", say=said.append)
        told = [text for text in said if "cannot tell whether the model was trained in the convention" in text]
        assert len(told) == notes, said
        assert all("explains too little of the velocity" in text and text.endswith(", from a file.") for text in told)


def test_named_data_and_its_own_points_agree() -> None:
    data = load_data("two_moons")
    frames = [
        measure(network(classes=0), source, tables=("sweep",), samples=64, beta=(0.0, 1.0), by_layer=False)["sweep"]
        for source in ("two_moons", data)
    ]
    pd.testing.assert_frame_equal(*frames)


def test_groups_and_keywords_ask_for_the_same() -> None:
    torch.manual_seed(0)
    model = MLP(2, hidden=6, depth=1)
    keywords = measure(model, "two_moons", tables=["sweep"], times="uniform", beta=[0, 1], samples=64, seed=3)
    groups = measure(
        model,
        "two_moons",
        tables=["sweep"],
        objective=mfdiag.Objective(times="uniform"),
        request=mfdiag.Request(betas=[0, 1], seed=3, settings=mfdiag.PassSettings(samples=64)),
    )
    pd.testing.assert_frame_equal(keywords["sweep"], groups["sweep"])
    same = mfdiag.Objective(times="uniform:r_ne_t=0")
    both = measure(model, "two_moons", tables=["sweep"], objective=same, times="uniform")
    assert set(both["sweep"]["times"]) == {"uniform"}  # a keyword overrides its group


def test_an_unknown_keyword_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'sample'"):
        measure(MLP(2), "two_moons", sample=64)  # type: ignore[call-arg]
