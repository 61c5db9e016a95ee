"""Features of handwritten digits: the last layer but one of a small classifier that ships with mfdiag.

`--features mfdiag.quality.digit_features:digit_features` computes metrics in them. `python sweeps/digit_classifier.py`
trained the classifier.
"""

from __future__ import annotations

from importlib.resources import files

import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor, nn

__all__ = ["DigitClassifier", "digit_features"]

_SIZE = 16  # pixels on each side, to which images are scaled


class DigitClassifier(nn.Module):
    """Logits of the ten classes for images [n, 1, size, size] in [-1, 1], of any size; 12,600 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.GELU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(128, 48),
        )
        self.classes = nn.Linear(48, 10)

    def features(self, x: Tensor) -> Tensor:
        """Features [n, 48] of images [n, 1, size, size]."""
        return self.convolutions(F.interpolate(x, size=(_SIZE, _SIZE), mode="bilinear", antialias=True))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, 10] of images [n, 1, size, size]."""
        return self.classes(F.gelu(self.features(x)))


class _Features(nn.Module):
    def __init__(self, classifier: DigitClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier.features(x)


def digit_features() -> nn.Module:
    """The map from images [n, 1, size, size] in [-1, 1] to features [n, 48]."""
    classifier = DigitClassifier()
    classifier.load_state_dict(load((files("mfdiag") / "data" / "digit_classifier.safetensors").read_bytes()))
    return _Features(classifier.eval().requires_grad_(False))
