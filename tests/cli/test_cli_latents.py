"""Another project's checkpoint, its card, and the latents it was trained on: from files to conditional variances."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from latent_layouts import SHAPE, Y, Z, edm, folder, tar, webdataset

from mfdiag.flow.data.datasets import load_data
from mfdiag.tables import read_table

Run = Callable[..., Any]
NETWORK = f"""
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear({np.prod(SHAPE)}, {np.prod(SHAPE)})
        self.label = torch.nn.Embedding(4, {np.prod(SHAPE)})

    def forward(self, x, r, t, y):
        out = self.layer(x.flatten(1)) + self.label(y) * (t - r)[:, None]
        return out.view(x.shape)
"""
CARD = f"""
network: {{factory: net.py:Net}}
weights: {{raw: model}}
call: {{arguments: [x, r, t, y]}}
conditioning: {{kind: index, classes: 3, "null": 3}}
data: {{shape: {list(SHAPE)}, scale: 0.2}}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "card.yaml").write_text(CARD)
    scope: dict[str, Any] = {}
    exec(NETWORK, scope)
    torch.save({"model": scope["Net"]().state_dict()}, tmp_path / "model.pt")
    return tmp_path


def test_latents_are_scaled_as_the_card_says(cli: Run, project: Path) -> None:
    tar(project / "d.tar", webdataset(Z, Y))
    common = ("model.pt", "--model", "card.yaml", "--times", "uniform", "--samples", 64, "--by", "none")
    result = cli("variance", *common, "--data", "d.tar", "--out", "streamed")
    assert result.code == 0, result.err
    assert "standard deviation" not in result.err
    np.savez(project / "twin.npz", x=0.2 * Z.astype(np.float64), y=Y)
    assert cli("variance", *common, "--data", "twin.npz:scale=1", "--out", "twin").code == 0
    streamed, twin = (read_table("variance", Path(out)) for out in ("streamed", "twin"))
    assert streamed["quantity"].eq("conditional_variance").any() and set(streamed["dataset"]) == {"d.tar"}
    np.testing.assert_allclose(streamed["value"], twin["value"], rtol=1e-5, equal_nan=True)


def test_a_scale_that_does_not_fit_is_told(cli: Run, project: Path) -> None:
    folder(project / "d", edm(Z, Y))
    common = ("model.pt", "--model", "card.yaml", "--samples", 64, "--by", "none", "--format", "csv")
    result = cli("variance", *common, "--data", "d:scale=1", "--out", "a")
    assert result.code == 0 and result.err.count("standard deviation 5.") == 1, result.err
    assert "With scale=0.18215, the factor of Stable Diffusion 1 and 2," in result.err


def test_moments_are_drawn_and_their_posterior_is_known(cli: Run, project: Path) -> None:
    folder(project / "d", edm(np.concatenate([Z, np.full_like(Z, 0.5)], axis=1), Y))
    result = cli("variance", "model.pt", "--model", "card.yaml", "--data", "d", "--out", "a")
    assert result.code == 2 and "add moments=logvar or moments=std" in result.err
    common = ("model.pt", "--model", "card.yaml", "--samples", 64, "--by", "none")
    result = cli("variance", *common, "--data", "d:moments=std", "--out", "a")
    assert result.code == 0, result.err
    table = read_table("variance", project / "a").query("quantity in ('variance', 'conditional_variance')")
    value = table.query("estimator == 'meanflow'").set_index("quantity")["value"]
    assert 0 < value["conditional_variance"] < value["variance"]
    assert load_data("d:moments=std").shape == SHAPE


@pytest.mark.parametrize("command", ["variance", "sweep", "coefficient", "compare", "quality"])
def test_images_as_they_lie_are_refused_where_the_card_states_a_scale(cli: Run, project: Path, command: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (64, *SHAPE)).astype(np.uint8)
    np.savez(project / "images.npz", x=images, y=np.arange(64) % 3)
    common = ("model.pt", "--model", "card.yaml", "--samples", 64, "--out", "a")
    result = cli(command, *common, "--data", "images.npz:scale=1")
    assert result.code == 2 and "whole numbers up to 255" in result.err and "Traceback" not in result.err
    assert "the scale that card.yaml states (scale: 0.2)" in result.err
