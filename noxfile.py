"""Tests with the versions of Python and torch that CI does not test, for whoever has them: `nox -l` lists the sessions.

pip's own settings choose the build of torch: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu avoids the CUDA
libraries that PyPI's torch for Linux brings.
"""

from __future__ import annotations

from pathlib import Path

import nox

ROOT = Path(__file__).parent
OLDER_TORCH = ["2.6.0", "2.7.1", "2.8.0", "2.9.1", "2.10.0", "2.11.0", "2.12.1"]  # CI tests what constraints.txt pins

nox.options.sessions = ["lint", "docs", "tests"]


def run_tests(session: nox.Session, constraints: Path) -> None:
    """Installs mfdiag under the constraints and runs its tests; arguments after `--` go to pytest."""
    session.install("-c", str(constraints), "-e", ".[dev]")
    session.run("python", "-m", "pytest", *(session.posargs or ["-n", "2"]))


@nox.session(python=["3.11", "3.12", "3.13"])
def tests(session: nox.Session) -> None:
    """All tests, with the torch that CI tests."""
    run_tests(session, ROOT / "constraints.txt")


@nox.session(name="torch", python="3.11")
@nox.parametrize("version", OLDER_TORCH, ids=OLDER_TORCH)
def older_torch(session: nox.Session, version: str) -> None:
    """All tests, with an older torch."""
    constraints = Path(session.create_tmp()) / "constraints.txt"
    constraints.write_text(f"torch=={version}\n", encoding="utf-8")
    run_tests(session, constraints)


@nox.session(python="3.11")
def mutants(session: nox.Session) -> None:
    """Changes of single operators in the estimators; some test must notice each: `nox -s mutants -- "*.moments*"`."""
    session.install("-c", str(ROOT / "constraints.txt"), "-e", ".[dev]", "mutmut==3.8.1")
    session.run("mutmut", "run", *session.posargs, env={"OMP_NUM_THREADS": "1"})
    session.run("mutmut", "results")


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """What `make lint` checks, in the .venv that make sets up."""
    session.run("make", "lint", external=True)


@nox.session(venv_backend="none")
def docs(session: nox.Session) -> None:
    """The site, built by `make site` in the .venv that make sets up."""
    session.run("make", "site", external=True)
