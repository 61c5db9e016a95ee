"""A checkpoint as `mfdiag identify` reads it: as declared, with every set of weights that fits its network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from mfdiag.measures.run.subject import Subject, SubjectOptions, subject_of
from mfdiag.models.cards.card_files import is_card, load_card
from mfdiag.models.cards.readings import Declared, declared_reading
from mfdiag.models.checkpoint import LoadedModel, load_model
from mfdiag.models.wrapper import unwrapped

__all__ = ["IDENTITY", "Candidate", "load_candidate"]

IDENTITY = ("checkpoint", "checkpoint_sha256", "dataset", "times")
"""Columns that identify a candidate."""


@dataclass(frozen=True)
class Candidate:
    """A checkpoint to identify.

    Attributes:
        subject: The network as declared, and the distribution of its samples.
        declared: The declared convention.
        networks: The networks by key of their weights, the declared one first.
        loaded: The file.
        model: The value of --model.
    """

    subject: Subject
    declared: Declared
    networks: Mapping[str, nn.Module]
    loaded: LoadedModel
    model: str | None

    @property
    def identity(self) -> tuple[str, ...]:
        """The values of `IDENTITY`, as strings."""
        subject = self.subject
        return tuple(map(str, (subject.checkpoint, subject.sha256, subject.data.name, subject.times.name)))


def load_candidate(checkpoint: Path, options: SubjectOptions, say: Callable[[str], None]) -> Candidate:
    """Load a checkpoint with every set of weights that fits its network.

    Args:
        checkpoint: File or folder of weights.
        options: How it is read; what is None comes from the card or the file.
        say: Receives notes.

    Returns:
        The checkpoint.

    Raises:
        InputError: As `load_subject`.
    """
    if is_card(options.model):
        card = load_card(str(options.model))
        options = replace(
            options, times=options.times or card.objective.times, guidance=options.guidance or card.guidance
        )
    loaded = load_model(checkpoint, model=options.model, weights=options.weights)
    subject = subject_of(loaded, checkpoint, replace(options, proxy="self"), say=say)
    declared = declared_reading(subject.module, subject.path, options.weights)
    networks = {options.weights: declared.network}
    for key in ("raw", "ema"):
        if key != options.weights and loaded.has_weights(key):
            networks[key] = unwrapped(loaded.with_weights(key))
    return Candidate(subject, declared, networks, loaded, options.model)
