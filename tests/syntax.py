"""The package's files as syntax trees, for tests that hold the source to rules."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]


@cache
def modules() -> dict[str, ast.Module]:
    """Name of each module of the package -> its syntax tree."""
    files = {path.relative_to(ROOT).with_suffix(""): path for path in sorted((ROOT / "mfdiag").rglob("*.py"))}
    return {
        ".".join(name.parts).removesuffix(".__init__"): ast.parse(path.read_text(encoding="utf-8"))
        for name, path in files.items()
    }


def exported(tree: ast.Module) -> list[str]:
    """The names of `__all__`, or none."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return names
    return []
