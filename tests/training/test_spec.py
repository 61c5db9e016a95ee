"""Specifications: the shipped ones load, and each error names file, line, field and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from mfdiag.errors import InputError
from mfdiag.models.checkpoint import bundled, load_model
from mfdiag.training.grid import load_grid
from mfdiag.training.spec import AnchorSpec, LossSpec, TrainSpec

BUNDLED = Path(__file__).parents[2] / "sweeps" / "bundled.yaml"
VALID = """\
data: eight_gaussians
model:
  name: mlp
  arguments: {dim: 2}
times: uniform
steps: 10
loss:
  beta: 1
  anchor: {lambda: 0.5, delta_max: 1.0e-2}
"""


def written(folder: Path, old: str = "", new: str = "") -> Path:
    path = folder / "spec.yaml"
    assert old in VALID
    path.write_text(VALID.replace(old, new) if old else VALID)
    return path


def load_spec(path: Path) -> TrainSpec:
    (cell,) = load_grid(path)
    assert cell.name == ""
    return cell.spec


def test_valid(tmp_path: Path) -> None:
    spec = load_spec(written(tmp_path))
    assert spec.loss == LossSpec(beta=1.0, anchor=AnchorSpec.model_validate({"lambda": 0.5, "delta_max": 0.01}))
    assert (spec.steps, spec.batch_size, spec.seed) == (10, 1024, 0)
    assert TrainSpec.model_validate(spec.model_dump(mode="json", by_alias=True)) == spec
    assert load_spec(written(tmp_path, "{lambda: 0.5, delta_max: 1.0e-2}", "none")).loss.anchor is None


def test_bundled_checkpoint_comes_from_the_shipped_specification() -> None:
    description = load_model(bundled(), weights="ema").description
    assert description is not None
    assert TrainSpec.model_validate(description.specification) == load_spec(BUNDLED)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  beta: 1", "  btea: 1", "line 8, loss.btea: Unknown field 'btea'. Did you mean 'beta'"),
        (
            "delta_max",
            "delta",
            "line 9, loss.anchor.delta (first of 2 errors): Unknown field 'delta'. Did you mean 'delta_min'",
        ),
        (
            "lambda: 0.5",
            "lambda: -1",
            "line 9, loss.anchor.lambda: It should be greater than or equal to 0, but got -1",
        ),
        ("name: mlp", "name: mpl", "line 2, model: Unknown architecture 'mpl'. Did you mean 'mlp'"),
        ("times: uniform", "times: unifrm", "line 5, times: Unknown time sampler 'unifrm'. Did you mean 'uniform'"),
        ("steps: 10", "steps: many", "line 6, steps: It should be a whole number, but got 'many'."),
        ("steps: 10", "steps: 0", "line 6, steps: It should be greater than or equal to 1, but got 0"),
        (
            "steps: 10\n",
            "",
            "line 1, steps: this field is required, but it is missing. The fields are data, model, times, source",
        ),
        (
            "steps: 10",
            "steps: 10\noptimizer: sdg",
            "line 7, optimizer.name: It should be 'adam', 'adamw' or 'sgd', but got 'sdg'",
        ),
        ("steps: 10", "steps: 10\noptimizer: {betas: [0.9, 1]}", "line 7, optimizer.betas: betas must lie in [0, 1)"),
        ("steps: 10", "steps: 10\noptimizer: {weight_decay: 1}", "line 7, optimizer.weight_decay: weight_decay needs"),
        ("steps: 10", "steps: 10\nschedule: cosin", "line 7, schedule.name: It should be 'constant', 'cosine' or"),
        ("1.0e-2}", "1.0e-3, delta_min: 0.1}", "line 9, loss.anchor.delta_max: delta_max must not be below delta_min"),
        (
            "  beta: 1",
            "  weighting: adaptiv",
            "line 8, loss.weighting: Unknown weighting 'adaptiv'. Did you mean 'adaptive'",
        ),
        (
            "steps: 10",
            "steps: 10\nema_decay: 1\nseed: -1",
            "line 7, ema_decay (first of 2 errors): It should be less than 1, but got 1.",
        ),
        ("  beta: 1", "  beta: .nan", "line 8, loss.beta: It should be a finite number"),
        ("  beta: 1", "  estimator: soflw", "line 8, loss.estimator: Unknown estimator 'soflw'. Did you mean 'soflow'"),
        ("  beta: 1", "  estimator: soflow", "line 8, loss.estimator: estimator excludes beta, gamma and anchor"),
        ("  beta: 1", "  estimator: mine.py:MINE", "line 8, loss.estimator: mine.py:MINE is code in a file"),
        ("data: eight_gaussians", "data: [", "expected YAML, but"),
    ],
)
def test_errors_name_line_and_field(tmp_path: Path, old: str, new: str, expected: str) -> None:
    path = written(tmp_path, old, new)
    with pytest.raises(InputError) as caught:
        load_spec(path)
    text = str(caught.value)
    assert str(path) in text and expected in text and "\n" not in text, text


def test_files_that_are_no_specification(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        load_spec(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="no regular file"):
        load_spec(tmp_path)
    for content in (b"", b"- 1\n", b"\xff\xfe\x00"):
        (tmp_path / "odd.yaml").write_bytes(content)
        with pytest.raises(InputError, match=r"expected (a mapping|YAML)"):
            load_spec(tmp_path / "odd.yaml")


@pytest.mark.parametrize("path", sorted(BUNDLED.parent.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_specification_loads(path: Path) -> None:
    cells = load_grid(path)
    assert cells and len({cell.name for cell in cells}) == len(cells)


def test_axes_expand_to_cells(tmp_path: Path) -> None:
    axes = 'axes:\n  loss.beta: [0, 0.5]\n  "data, seed": [["mixture:2,3", 7], [two_moons, 8]]\n'
    cells = load_grid(written(tmp_path, "data: eight_gaussians\n", axes))
    assert [cell.name for cell in cells] == [
        "beta=0,data=mixture_2_3,seed=7",
        "beta=0,data=two_moons,seed=8",
        "beta=0.5,data=mixture_2_3,seed=7",
        "beta=0.5,data=two_moons,seed=8",
    ]
    assert [(cell.spec.loss.beta, cell.spec.data, cell.spec.seed) for cell in cells] == [
        (0.0, "mixture:2,3", 7),
        (0.0, "two_moons", 8),
        (0.5, "mixture:2,3", 7),
        (0.5, "two_moons", 8),
    ]
    assert cells[0].spec.loss.anchor == AnchorSpec.model_validate({"lambda": 0.5, "delta_max": 0.01}), (
        "the rest of a section stays"
    )


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ("axes: [1]", "line 7, axes: expected a mapping from fields to lists"),
        ("axes: {seed: 1}", "line 7, axes.seed: expected a list of values"),
        ("axes: {seed: []}", "line 7, axes.seed: expected a list of values"),
        ("axes: {seed: [1, 1]}", "line 7, axes.seed: a value appears twice"),
        ("axes:\n  seed: [0, 1]\n  loss.btea: [0]", "line 9, axes.loss.btea: Unknown field 'btea'. Did you mean"),
        ("axes:\n  batch_size: [1, 0]", "line 8, axes.batch_size: It should be greater than or equal to 1"),
        ('axes: {"data, seed": [[two_moons]]}', "expected a list of lists of 2 values"),
        ("axes: {data: ['mixture:2,3', 'mixture:2:3']}", "two cells would both be called 'data=mixture_2_3'"),
        (f"axes: {{seed: [0, 1], batch_size: {list(range(1, 6000))}}}", "the axes make 11,998"),
    ],
)
def test_bad_axes(tmp_path: Path, axes: str, expected: str) -> None:
    path = written(tmp_path, "steps: 10\n", f"steps: 10\n{axes}\n")
    with pytest.raises(InputError) as caught:
        load_grid(path)
    assert expected in str(caught.value), str(caught.value)


def test_specifications_are_strict_in_python_too() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        LossSpec.model_validate({"alpha": 1})
