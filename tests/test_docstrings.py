"""Public functions say what goes in, what comes out and what can go wrong."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mfdiag"
ALWAYS = ("fields", "derivatives", "estimators")  # rooms that extension authors import from
FEW = 2  # elsewhere, up to so many parameters fit in one sentence


def public_functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Functions of the module's `__all__`, and the public methods of its classes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    exported: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__":
            exported = set(ast.literal_eval(node.value))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in exported and not _is_command(path, node):
            yield node.name, node
        elif isinstance(node, ast.ClassDef) and node.name in exported:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    yield f"{node.name}.{method.name}", method


def _is_command(path: Path, function: ast.FunctionDef) -> bool:
    """Whether the docstring is what `mfdiag COMMAND --help` prints, where options have texts of their own."""
    return path.parent.name == "cli" and function.name == "command"


def parameters(function: ast.FunctionDef) -> list[str]:
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


def problems(path: Path) -> list[str]:
    """What the docstrings of a file lack."""
    always = any(room in path.relative_to(PACKAGE).parts for room in ALWAYS)
    found = []
    for name, function in public_functions(path):
        text = ast.get_docstring(function)
        if text is None:
            if not any(isinstance(d, ast.Name) and d.id == "property" for d in function.decorator_list) and not (
                "." in name and function.name in _inherited(path)
            ):
                found.append(f"{name}: no docstring")
            continue
        names = parameters(function)
        if len(names) <= (1 if always else FEW):
            continue
        section = re.search(r"^Args:\n((?:    .*\n|\n)*)", text + "\n", re.MULTILINE)
        documented = set(re.findall(r"^    (\w+)", section[1], re.MULTILINE)) if section else set()
        if missing := [n for n in names if n not in documented]:
            found.append(f"{name}: Args lacks {', '.join(missing)}")
        returns = function.returns is not None and ast.unparse(function.returns) not in ("None", "NoReturn")
        if returns and not re.search(r"^(Returns|Yields):", text, re.MULTILINE):
            found.append(f"{name}: no Returns")
        raised = {
            ast.unparse(n.exc.func)
            for n in ast.walk(function)
            if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call)
        }
        if any(error.endswith("Error") for error in raised) and not re.search(r"^Raises:", text, re.MULTILINE):
            found.append(f"{name}: no Raises")
    return found


def _inherited(path: Path) -> set[str]:
    """Methods that a class may take over without saying again what its protocol or base says."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bases = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return {method.name for node in bases if node.bases for method in node.body if isinstance(method, ast.FunctionDef)}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_public_functions_are_documented(path: Path) -> None:
    assert problems(path) == []
