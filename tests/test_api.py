"""What `import mfdiag` offers, and what it costs."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import mfdiag


def test_the_public_names_are_sorted_and_there() -> None:
    assert mfdiag.__all__ == sorted(mfdiag.__all__)
    assert dir(mfdiag) == mfdiag.__all__
    for name in mfdiag.__all__:
        assert getattr(mfdiag, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mfdiag.nothing


@pytest.mark.parametrize("name", [name for name in mfdiag.__all__ if not name.startswith("__")])
def test_every_public_name_is_documented(name: str) -> None:
    text = inspect.getdoc(getattr(mfdiag, name)) or ""
    assert text.split("\n")[0].rstrip().endswith((".", ":")), text


def test_importing_imports_neither_torch_nor_pandas() -> None:
    code = "import sys, mfdiag; sys.exit(any(name in sys.modules for name in ('torch', 'pandas', 'scipy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("table", ["sweep", "coefficient"])
def test_measuring_imports_neither_sympy_nor_all_of_scipy(table: str) -> None:
    """They take seconds and a hundred megabytes; torch and scipy bring them in at the slightest touch."""
    code = (
        "import sys, mfdiag\n"
        "from mfdiag.models.checkpoint import bundled\n"
        "model = mfdiag.load_model(bundled())\n"
        f"mfdiag.measure(model.module, 'eight_gaussians', tables=['{table}'], samples=64)\n"
        "sys.exit(', '.join({'sympy', 'scipy.stats', 'matplotlib'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert not done.stderr, done.stderr


def test_every_module_says_what_it_is_and_what_it_offers() -> None:
    for found in pkgutil.walk_packages(mfdiag.__path__, "mfdiag."):
        if found.name == "mfdiag.__main__":  # runs the command line
            continue
        module = importlib.import_module(found.name)
        public = getattr(module, "__all__", [])
        assert all(hasattr(module, name) for name in public), found.name
        assert module.__doc__ or found.ispkg or found.name == "mfdiag._version", found.name


def test_bad_input_is_one_root() -> None:
    assert issubclass(mfdiag.InputError, mfdiag.MfdiagError) and issubclass(mfdiag.MfdiagError, Exception)
