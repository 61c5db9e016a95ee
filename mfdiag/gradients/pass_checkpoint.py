"""The state of an interrupted pass on disk, from which the next run resumes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mfdiag.storage import save_torch

__all__ = ["PassCheckpoint"]

_SECONDS_BETWEEN_SAVES = 30.0


@dataclass
class PassCheckpoint:
    """State of one pass at `path`, valid for the request that `key` identifies; saved every half minute."""

    path: Path
    key: str
    written: float = field(default_factory=time.monotonic)

    def load(self) -> dict[str, Any] | None:
        """The state that an earlier run of the same request saved; None without one, or if it cannot be read."""
        try:
            saved = torch.load(self.path, weights_only=True)
        except Exception:  # a damaged file costs its samples again, nothing else
            return None
        return saved["state"] if isinstance(saved, dict) and saved.get("key") == self.key else None

    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self.written > _SECONDS_BETWEEN_SAVES

    def save(self, state: dict[str, Any]) -> None:
        """Write the state atomically."""
        save_torch({"key": self.key, "state": state}, self.path)
        self.written = time.monotonic()

    def clear(self) -> None:
        """Remove the state and, when empty, its folder."""
        self.path.unlink(missing_ok=True)
        if self.path.parent.is_dir() and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()
