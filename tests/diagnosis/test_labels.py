"""Labels that a network was trained with in another way than the data have them: shifted by one, or dropped."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mfdiag.diagnosis.conventions import identify
from mfdiag.flow.data.datasets import FiniteData
from mfdiag.flow.times import parse_times
from mfdiag.measures.run.convention_check import check_convention
from mfdiag.measures.run.subject import Subject
from mfdiag.models.cards.readings import declared_reading
from mfdiag.models.networks.gaussian import GaussianAverageVelocity

CLASSES, STD = 4, 0.5
CENTERS = torch.tensor([[3.0, 0.0], [0.0, 3.0], [-3.0, 0.0], [0.0, -3.0]])
ORDERS = {"declared": [0, 1, 2, 3], "plus 1": [3, 0, 1, 2], "plus -1": [1, 2, 3, 0]}


class ByClass(nn.Module):
    """The exact average velocity of a Gaussian for each class number, and one for no label."""

    num_classes = CLASSES

    def __init__(self, centers: Tensor) -> None:
        super().__init__()
        self.centers = nn.Parameter(centers)
        self.exact = GaussianAverageVelocity(0.0, STD, (2,))

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        labels = torch.full(x.shape[:1], CLASSES) if y is None else y
        center = self.centers[labels]
        return self.exact(x - (1 - t)[:, None] * center, r, t) - center  # data moved by their center


def subject_of(network: nn.Module, centers: Tensor) -> Subject:
    rng = np.random.default_rng(0)
    labels = np.arange(2000) % CLASSES
    points = centers.numpy()[labels] + STD * rng.standard_normal((2000, 2))
    return Subject(
        network.eval(),
        FiniteData("classes", points, labels),
        parse_times("logit_normal:-0.4,1,0.75"),
        conditional=True,
    )


def sentence_of(subject: Subject) -> list[str]:
    declared = declared_reading(subject.module, subject.path)
    return identify(subject, declared, {"raw": declared.network}, 128).sentences()


def shifted(order: list[int]) -> nn.Module:
    """A network whose class numbers are those of the data in this order."""
    return ByClass(torch.cat([CENTERS[order], torch.zeros(1, 2)]))


@pytest.mark.parametrize("name", ["plus 1", "plus -1"])
def test_shifted_labels_are_named(name: str) -> None:
    subject = subject_of(shifted(ORDERS[name]), CENTERS)
    doubt = check_convention(subject, 4096)
    assert doubt is not None
    assert doubt.record["reading"] == f"class numbers {name}"
    assert f"is refuted: with class numbers {name}" in sentence_of(subject)[0]


def test_labels_as_declared_raise_no_doubt() -> None:
    subject = subject_of(shifted(ORDERS["declared"]), CENTERS)
    assert check_convention(subject, 4096) is None
    assert "The declared convention fits" in sentence_of(subject)[0]


def test_a_network_that_never_saw_labels_is_named() -> None:
    # all classes have the same distribution; the embeddings of the labels stayed as they were initialized
    one = CENTERS[:1].expand(CLASSES, 2)
    subject = subject_of(ByClass(torch.cat([-2 * CENTERS, one[:1]])), one)
    doubt = check_convention(subject, 4096)
    assert doubt is not None
    assert doubt.record["reading"] == "no labels"
    assert "is refuted: with no labels" in sentence_of(subject)[0]


def test_labels_that_do_not_matter_raise_no_doubt() -> None:
    one = CENTERS[:1].expand(CLASSES, 2)
    subject = subject_of(ByClass(one[:1].expand(CLASSES + 1, 2).clone()), one)
    assert check_convention(subject, 4096) is None
    assert "The declared convention fits" in sentence_of(subject)[0]
