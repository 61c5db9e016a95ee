"""A gradient that cannot be computed leaves the doctor what forward passes say, unless a network mixes its samples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor, nn

from mfdiag import InputError
from mfdiag.diagnosis import examination
from mfdiag.diagnosis.candidate import load_candidate
from mfdiag.diagnosis.diagnosis import diagnose
from mfdiag.diagnosis.examination import ExaminationOptions, examine
from mfdiag.measures.run.subject import SubjectOptions
from mfdiag.models.checkpoint import bundled

OPTIONS = ExaminationOptions(budget=1.0, samples=64, effects=False)


class Mixing(nn.Module):
    """A network whose outputs are centered within the batch."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        u: Tensor = self.inner(x, r, t, y)
        return u - u.mean(0)


def refuse(*_: Any) -> None:
    raise InputError("The gradients of single samples do not sum to the batch gradient: the model mixes.\nDetails.")


def test_without_gradients_forward_passes_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "probe_gradient", refuse)
    candidate, notes = load_candidate(bundled(), SubjectOptions(), say=lambda note: None), list[str]()
    evidence = examine(candidate, OPTIONS, say=notes.append)
    assert evidence.get("variance") is None and evidence.of_weights("velocity_error") is not None
    (note,) = (note for note in notes if note.startswith("no gradient was measured"))
    assert "The gradients of single samples" in note and "mixes" not in note
    reasons = diagnose(evidence).not_checked
    assert "single samples" in reasons["heavy_tail"] and "single samples" not in reasons["labels_ignored"]
    subject = replace(candidate.subject, module=Mixing(candidate.subject.module), networks={})
    mixing = replace(candidate, subject=subject)
    with pytest.raises(InputError, match="single samples"):
        examine(mixing, OPTIONS, say=notes.append)
