"""A pass that was interrupted: what it had gathered, on disk, so that the next run goes on from there."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mfdiag.storage import atomic_write

__all__ = ["PassCheckpoint"]

_SECONDS = 30.0


@dataclass
class PassCheckpoint:
    """State of one pass at `path`, valid for the request that `key` stands for; written every half minute."""

    path: Path
    key: str
    written: float = field(default_factory=time.monotonic)

    def load(self) -> dict[str, Any] | None:
        """The state an earlier run of the same request left; None if there is none, or it cannot be read."""
        try:
            kept = torch.load(self.path, weights_only=True)
        except Exception:  # a damaged state costs its samples again, nothing else
            return None
        return kept["state"] if isinstance(kept, dict) and kept.get("key") == self.key else None

    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self.written > _SECONDS

    def save(self, state: dict[str, Any]) -> None:
        """Writes the state, atomically."""
        with atomic_write(self.path) as temporary:
            torch.save({"key": self.key, "state": state}, temporary)
        self.written = time.monotonic()

    def clear(self) -> None:
        """Removes the state and, when empty, its folder."""
        self.path.unlink(missing_ok=True)
        if self.path.parent.is_dir() and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()
