"""What is declared about the package agrees with what it is."""

from __future__ import annotations

import ast
import re
import sys
import tomllib

import yaml
from syntax import ROOT, modules

import mfdiag

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DISTRIBUTIONS = {"sklearn": "scikit-learn", "yaml": "pyyaml"}  # where it is not called as its module
REPOSITORIES = {"ldit", "models"}  # packages of the repositories that model cards adapt; whoever has one supplies it


EXTRAS = ("hf", "jax", "lightning", "ray", "tensorboard", "wandb")


def imported() -> set[str]:
    """The packages, outside of the standard library, that mfdiag imports anywhere."""
    names: set[str] = set()
    for tree in modules().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                names.add(node.module.partition(".")[0])
    return names - {"mfdiag"} - REPOSITORIES - sys.stdlib_module_names


def test_dependencies_are_what_is_imported() -> None:
    required = [
        *PROJECT["dependencies"],
        *(r for name in EXTRAS for r in PROJECT["optional-dependencies"][name]),
    ]
    declared = {re.split(r"[<>=\[ ]", requirement)[0] for requirement in required}
    assert declared == {DISTRIBUTIONS.get(name, name) for name in imported()}


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == mfdiag.__version__
    assert citation["license"] == PROJECT["license"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]


def test_the_readme_names_the_versions_that_are_tested() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["ci"]["steps"]
    (python,) = [step["with"]["python-version"] for step in steps if "python-version" in step.get("with", {})]
    torch = re.search(r"^torch==(\d+\.\d+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert torch is not None
    assert f"tests Python {python} with PyTorch {torch[1]}" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert steps[-1]["run"] == ".ci/run"
    assert (ROOT / "mfdiag/py.typed").exists()
