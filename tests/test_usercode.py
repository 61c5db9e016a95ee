"""What of a specification is the user's own code."""

from __future__ import annotations

from pathlib import Path

import pytest

from mfdiag.errors import InputError
from mfdiag.inputs import recording
from mfdiag.usercode import call_user_factory, is_user_code, load_user_object


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("paths.py:squared", True),
        ("/some/where/paths.py:squared", True),
        ("package.module:make", True),
        ("mixture:3,0.5", False),
        ("mixed:low=0", False),
        ("reflow:teacher.pt,3", False),
        ("linear", False),
    ],
)
def test_user_code_has_a_file_or_a_module_and_a_name(spec: str, expected: bool) -> None:
    assert is_user_code(spec) == expected


def test_what_the_callable_returns(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("number = 3")
    (tmp_path / "own.py").write_text("from beside import number\ndef make():\n    return number\n")
    assert call_user_factory(f"{tmp_path / 'own.py'}:make", "--path") == 3


def test_the_code_of_mfdiag_is_no_code_of_the_user(tmp_path: Path) -> None:
    with recording() as inputs:
        assert load_user_object("mfdiag.numbers:percent", "--features")(0.5).startswith("50")
    assert not inputs.entries()
    (tmp_path / "neighbor.py").write_text("number = 3")
    (tmp_path / "own.py").write_text("from neighbor import number\nfrom mfdiag import numbers\n")
    with recording() as inputs:
        load_user_object(f"{tmp_path / 'own.py'}:number", "--features")
    assert {Path(entry["path"]).name for entry in inputs.entries()} == {"own.py", "neighbor.py"}


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("def make(): pass", "maek", "to define 'maek', but it defines make"),
        ("def make(): raise ValueError('no')", "make", "build a value for --path .* raised ValueError: no"),
        ("import absent.part", "make", "for --path needs, but there is no module absent. Install it, or put the"),
        ("def make():\n    from absent import x", "make", "for --path needs, but there is no module absent. Install"),
        ("def make(:", "make", "for --path failed with SyntaxError"),
    ],
)
def test_what_goes_wrong_is_said_with_the_option(tmp_path: Path, text: str, name: str, message: str) -> None:
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(InputError, match=message):
        call_user_factory(f"{tmp_path / 'own.py'}:{name}", "--path")
