"""Measuring on other paths, sources, couplings and predictions: closed forms, and slow twins sample by sample."""

from __future__ import annotations

from itertools import product
from pathlib import Path as File

import numpy as np
import pytest
import torch
from helpers import loss_gradient, randomised, row, rows, samples_of
from torch import Tensor, nn

from mfdiag import measure
from mfdiag.errors import InputError
from mfdiag.flow.couplings import parse_coupling
from mfdiag.flow.data.datasets import load_data
from mfdiag.flow.draw import Draws
from mfdiag.flow.paths import TRIGONOMETRIC, parse_path
from mfdiag.flow.sources import GaussianSource, parse_source
from mfdiag.flow.times import parse_times
from mfdiag.models.checkpoint import save_checkpoint
from mfdiag.models.description import Architecture, Description
from mfdiag.models.networks.mlp import MLP
from mfdiag.models.prediction import as_average_velocity

DIM, MEAN, STD = 2, 0.7, 2.0
BETAS, GAMMAS = (0.0, 0.4, 1.3), (0.0, 0.5)


class Trigonometric(nn.Module):
    """The exact average velocity of N(mean, std^2 I) on the trigonometric path, r < t: (x_t - x_r) / (t - r)."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.full((DIM,), MEAN, dtype=torch.float64))

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        (a_r, s_r), (a_t, s_t) = (((h := torch.pi / 2 * time)[:, None].cos(), h[:, None].sin()) for time in (r, t))
        scale_r, scale_t = ((a**2 * STD**2 + s**2).sqrt() for a, s in ((a_r, s_r), (a_t, s_t)))
        x_r = a_r * self.mean + scale_r / scale_t * (x - a_t * self.mean)
        return (x - x_r) / (t - r)[:, None]


def truth(r: float, t: float) -> tuple[float, float]:
    """rho = s_r / s_t and tr Sigma = d (pi/2)^2 std^2 / s_t^2, by regression of v_c on x_t."""
    a, s = np.cos(np.pi / 2 * np.array([r, t])), np.sin(np.pi / 2 * np.array([r, t]))
    scale2 = a**2 * STD**2 + s**2
    covariance = np.pi / 2 * (1 - STD**2) * a[1] * s[1]
    velocity2 = (np.pi / 2) ** 2 * (s[1] ** 2 * STD**2 + a[1] ** 2)
    return float(np.sqrt(scale2[0] / scale2[1])), float(DIM * (velocity2 - covariance**2 / scale2[1]))


@pytest.mark.parametrize(("r", "t"), [(0.0, 0.5), (0.2, 0.9), (0.0, 1.0)])
def test_gaussian_data_on_the_trigonometric_path_have_closed_forms(r: float, t: float) -> None:
    """J = -rho I as on the linear path; the residual of the exact model is its conditional noise alone."""
    found = measure(
        Trigonometric(),
        f"gaussian:{DIM},{MEAN},{STD}",
        tables=("sweep", "coefficient"),
        path="trigonometric",
        times=f"point:{r},{t}",
        proxy="exact",
        beta=BETAS,
        gamma=GAMMAS,
        samples=512,
        by_layer=False,
        dtype=torch.float64,
    )
    rho, sigma2d = truth(r, t)
    for beta, gamma in product(BETAS, GAMMAS):
        at = {"space": "output", "beta": beta, "gamma": gamma}
        noise = ((1 - beta) * (1 - rho) - (1 - gamma)) ** 2 * sigma2d
        for quantity in ("variance", "conditional_variance"):
            one = row(found["sweep"], quantity=quantity, **at)
            assert abs(one["value"] - noise) <= 4 * one["std_error"] + 1e-9 and one["std_error"] < 0.05 * noise + 1e-9
        assert row(found["sweep"], quantity="bias2", **at)["value"] == pytest.approx(0, abs=1e-20)
    isotropic = rows(found["coefficient"], form="isotropic")
    assert row(isotropic, quantity="sigma2d")["value"] == pytest.approx(sigma2d, rel=1e-6)
    assert row(isotropic, quantity="kappa", kappa_kind="signed")["value"] == pytest.approx(-rho, rel=1e-6)


def network(classes: int = 0) -> nn.Module:
    torch.manual_seed(0)
    return randomised(MLP(2, hidden=4, depth=1, num_classes=classes)).double()


AXES = [
    {"path": "trigonometric"},
    {"source": "mixture:3,0.5", "path": "trigonometric", "prediction": "x"},
    {"source": "mixed"},
    {"coupling": "minibatch_ot:8", "prediction": "v", "path": "trigonometric"},
    {"coupling": "gibbs:4"},
    {"source": "norm_aligned", "prediction": "eps"},
]


@pytest.mark.parametrize("axes", AXES, ids=lambda axes: ",".join(axes.values()))
def test_variance_equals_a_loop_over_samples(axes: dict[str, str]) -> None:
    """Gradients of single samples' losses, at the samples as the axes draw them, with their weights."""
    data, count = load_data("mixture:2,3"), 64
    frames = measure(
        network(),
        data,
        tables=("variance",),
        times="uniform",
        estimators=["meanflow", "plane:0.5,0.5"],
        samples=count,
        by_layer=False,
        dtype=torch.float64,
        **axes,  # type: ignore[arg-type]
    )
    source = parse_source(axes.get("source", "gaussian"), data)
    coupling = parse_coupling(axes.get("coupling", "independent"), data, source, lambda _: pytest.fail("no teacher"))
    path = parse_path(axes.get("path", "linear"))
    draws = Draws(data, parse_times("uniform"), 0, source=source, coupling=coupling, path=path)
    model = as_average_velocity(network(), axes.get("prediction", "u"), path).requires_grad_(True)
    weight = draws.batch(np.arange(count)).weight
    scale = torch.ones(count, dtype=torch.float64) if weight is None else weight
    for estimator, point in (("meanflow", (0.0, 0.0)), ("plane:0.5,0.5", (0.5, 0.5))):
        gradients = torch.stack([loss_gradient(model, s, *point) for s in samples_of(draws, count, model)])
        gradients = scale[:, None] * gradients
        found = row(frames["variance"], estimator=estimator, layer="all", quantity="variance", r_low=None, t_low=None)
        assert found["value"] == pytest.approx(float(gradients.var(0).sum()), rel=1e-8)


def test_unknown_posteriors_say_why() -> None:
    said: list[str] = []
    found = measure(
        network(), "mixture:2,3", tables=("sweep",), coupling="gibbs:4", samples=128, beta=(0.0,), say=said.append
    )["sweep"]
    assert "conditional_variance" not in set(found["quantity"])
    assert any("coupling gibbs:4 makes x_0 and x_1 dependent" in note for note in said)
    with pytest.raises(InputError, match="marginal velocity is known"):
        measure(network(), "mixture:2,3", tables=("sweep",), coupling="gibbs:4", samples=128, proxy="exact")


def description(**changes: str) -> Description:
    architecture = Architecture(name="mlp", arguments={"dim": 2, "hidden": 4, "depth": 1})
    return Description(architecture=architecture, times="uniform", data="mixture:2,3", step=5, seed=0, **changes)  # type: ignore[arg-type]


def test_a_teacher_of_another_path_gives_the_velocity_of_the_students(tmp_path: File) -> None:
    from mfdiag.measures.run.subject import SubjectOptions, load_subject

    files = {}
    for path in ("linear", "trigonometric"):
        files[path] = tmp_path / f"{path}.safetensors"
        save_checkpoint(files[path], network().float(), None, description(path=path))
    teacher = f"teacher={files['trigonometric']}"
    notes: list[str] = []
    subject = load_subject(files["linear"], SubjectOptions(proxy=teacher), say=notes.append)
    (note,) = [note for note in notes if "trained on the path trigonometric" in note]
    assert "changed to that path" in note and "covers" not in note
    # tan(pi tau / 2) = t / (1 - t); the point is scaled by cos(pi tau / 2) + sin(pi tau / 2), whose rate changes v
    x, t = torch.randn(8, 2), torch.rand(8)
    time = torch.atan2(t, 1 - t)
    scale = (time.cos() + time.sin())[:, None]
    theirs = network().float()(scale * x, time * 2 / torch.pi, time * 2 / torch.pi)
    rate = (1 / (t**2 + (1 - t) ** 2))[:, None]  # d time / dt
    expected = (theirs * 2 / torch.pi - (time.cos() - time.sin())[:, None] * x) * rate / scale
    torch.testing.assert_close(subject.networks["teacher"](x, t, t), expected, rtol=1e-4, atol=1e-5)
    subject = load_subject(files["linear"], SubjectOptions(proxy=teacher, path="trigonometric"), say=notes.append)
    assert subject.path is TRIGONOMETRIC and len([note for note in notes if "was trained on the path" in note]) == 1


def test_reflow_takes_any_teacher(tmp_path: File) -> None:
    """The pairs of a teacher that predicts v on another path: its ODE solved here with its velocity written out."""
    from scipy.integrate import solve_ivp

    teacher = network().float()
    save_checkpoint(tmp_path / "teacher.safetensors", teacher, None, description(prediction="v", path="trigonometric"))
    found = measure(
        network(),
        "mixture:2,3",
        tables=("sweep",),
        coupling=f"reflow:{tmp_path / 'teacher.safetensors'},32",
        samples=64,
        beta=(0.0,),
        dtype=torch.float64,
    )["sweep"]
    assert np.isfinite(found["value"]).all()

    from mfdiag.models.teacher import teacher_velocity

    data, source = load_data("mixture:2,3"), GaussianSource((2,))
    coupling = parse_coupling(f"reflow:{tmp_path / 'teacher.safetensors'},64", data, source, teacher_velocity)
    drawn = coupling.pairs(Draws(data, parse_times("uniform"), 0).marginals, np.arange(3))
    velocity = as_average_velocity(teacher.double(), "v", TRIGONOMETRIC)

    def rate(t: float, x: np.ndarray) -> np.ndarray:
        time = torch.full((1,), t, dtype=torch.float64)
        return velocity(torch.as_tensor(x)[None], time, time)[0].detach().numpy()

    for x0, x1 in zip(drawn.x0, drawn.x1, strict=True):
        np.testing.assert_allclose(x0, solve_ivp(rate, (1, 0), x1, rtol=1e-9, atol=1e-9).y[:, -1], rtol=1e-5, atol=1e-6)
