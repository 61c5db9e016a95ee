"""The public room says what each of its names is: every attribute is documented."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

import mfdiag.estimators
import mfdiag.fields

CLASSES = [
    value
    for package in (mfdiag.fields, mfdiag.estimators)
    for value in (getattr(package, name) for name in package.__all__)
    if dataclasses.is_dataclass(value)
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_attribute_is_documented(cls: type) -> None:
    documented = inspect.getdoc(cls) or ""
    assert "Attributes:" in documented
    for field in dataclasses.fields(cls):
        assert f"    {field.name}: " in documented, field.name
