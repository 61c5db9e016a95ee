"""What `import mfdiag` offers, and what it costs."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest
from syntax import exported, modules

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


def test_a_name_that_another_module_uses_is_public() -> None:
    trees = modules()
    missing = {
        f"{user} uses {module}.{name}"
        for user, tree in trees.items()
        for module, name in names_used(tree)
        if module in trees and f"{module}.{name}" not in trees and name not in (*exported(trees[module]), "__version__")
    }
    assert missing == set()


def names_used(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(module, name) for `from module import name`, and for `module.name` of a module of the package."""
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None and not node.level
            for alias in node.names:
                yield node.module, alias.name
                imported[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            imported |= {alias.asname: alias.name for alias in node.names if alias.asname}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imported:
            yield imported[node.value.id], node.attr


def test_public_names_are_listed_once_and_defined() -> None:
    for module, tree in modules().items():
        names = exported(tree)
        assert len(set(names)) == len(names) and set(names) <= set(names_defined(tree.body)), module


def names_defined(statements: list[ast.stmt]) -> Iterator[str]:
    """The names that definitions, assignments and imports at the top of a module bind."""
    for statement in statements:
        match statement:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                yield from (alias.asname or alias.name for alias in names)
            case ast.Assign() | ast.AnnAssign():
                yield from (
                    node.id
                    for node in ast.walk(statement)
                    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
                )
            case ast.If(body=body):  # under TYPE_CHECKING
                yield from names_defined(body)


def test_a_class_name_has_one_meaning() -> None:
    counts = Counter(
        node.name for tree in modules().values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in counts.items() if count > 1] == []
