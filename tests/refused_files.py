"""Files that must be refused without running their code, and what the refusal says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mfdiag.errors import InputError
from mfdiag.models.formats.containers import read_container

__all__ = ["Planted", "refusal"]


class Planted:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def refusal(path: Path) -> str:
    """What is said of a file or folder that is no container."""
    texts = []
    for load in (False, True):
        with pytest.raises(InputError) as caught:
            read_container(path, load=load)
        texts.append(str(caught.value))
    assert texts[0] == texts[1], "inspecting and loading refuse the same files"
    return texts[0]
