"""What keeps the source readable: short functions, few parameters, names that say what a value is."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from syntax import modules

MOST_LINES = 60
MOST_PARAMETERS = 8

# function -> why it may be longer
LONG: dict[str, str] = {}
# function -> why it may have more parameters
WIDE = {
    "mfdiag.measures.run.quality_api.prepare_quality": "public; each argument is an option of `mfdiag quality`",
    "mfdiag.models.networks.decoupled.DecoupledDiT.__init__": "checkpoints store each argument by its name",
    "mfdiag.models.networks.dit.DiT.__init__": "checkpoints store each argument by its name",
}
VAGUE = {"found", "kept", "told", "given", "there"}  # they hide what a value is


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """(dotted name, function) for every function and method, nested ones too."""

    def below(prefix: str, node: ast.AST) -> Iterator[tuple[str, ast.FunctionDef]]:
        for child in ast.iter_child_nodes(node):
            name = f"{prefix}.{child.name}" if isinstance(child, ast.FunctionDef | ast.ClassDef) else prefix
            if isinstance(child, ast.FunctionDef):
                yield name, child
            yield from below(name, child)

    for module, tree in modules().items():
        yield from below(module, tree)


def lines(function: ast.FunctionDef) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def parameters(function: ast.FunctionDef) -> int:
    arguments = function.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def test_functions_are_short() -> None:
    assert {name for name, function in functions() if lines(function) > MOST_LINES} == set(LONG)


def test_functions_have_few_parameters() -> None:
    assert {name for name, function in functions() if parameters(function) > MOST_PARAMETERS} == set(WIDE)


def test_names_say_what_a_value_is() -> None:
    vague = {
        f"{module}: {name}, line {getattr(node, 'lineno', '?')}"
        for module, tree in modules().items()
        for node in ast.walk(tree)
        for name in names_in(node)
        if name in VAGUE
    }
    assert vague == set()


def names_in(node: ast.AST) -> list[str]:
    """The identifiers that a node of the syntax tree holds: variables, attributes, parameters, definitions, imports."""
    fields = (getattr(node, field, None) for field in ("id", "attr", "arg", "name", "asname"))
    return [value for value in fields if isinstance(value, str)]
