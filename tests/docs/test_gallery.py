"""The examples of the gallery run as they stand, and the figures that the site shows are theirs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

GALLERY = Path(__file__).parents[2] / "docs" / "gallery"
EXAMPLES = sorted(GALLERY.glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_writes_the_figure_that_is_shown(example: Path, tmp_path: Path) -> None:
    figure = tmp_path / "figure.png"
    environment = os.environ | {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(example), str(figure)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pixels, shown = (matplotlib.image.imread(path)[..., :3] for path in (figure, example.with_suffix(".png")))
    assert pixels.shape == shown.shape
    assert (pixels < 0.9).any(axis=-1).mean() > 0.005  # not blank
    # numbers of a few hundred samples differ in their last digits between machines, which moves lines by pixels
    assert np.abs(pixels - shown).mean() < 0.015


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_and_says_what_it_does(example: Path) -> None:
    source = example.read_text(encoding="utf-8")
    assert source.count("\n") <= 55
    title, _, text = (ast.get_docstring(ast.parse(source)) or "").partition("\n")
    assert title.endswith(".") and len(text.split()) > 20
    assert example.with_suffix(".png").stat().st_size < 60_000


def test_the_gallery_page_lists_every_example() -> None:
    page = (GALLERY / "index.md").read_text(encoding="utf-8")
    assert len(EXAMPLES) >= 6
    for example in EXAMPLES:
        assert f"]({example.name})" in page
