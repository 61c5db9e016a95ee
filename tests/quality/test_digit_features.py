"""The features of digits that ship: they tell digits apart, at any size, and the command line takes them by name."""

from __future__ import annotations

import torch

from mfdiag.flow.data.datasets import FiniteData, load_data
from mfdiag.quality.digit_features import digit_features
from mfdiag.quality.features import load_features


def test_the_classes_are_apart() -> None:
    data = load_data("digits")
    assert isinstance(data, FiniteData) and data.labels is not None
    features = load_features("mfdiag.quality.digit_features:digit_features", "cpu", torch.float32)
    rows = torch.arange(0, len(data.points), 5)  # the digits that its training leaves out
    x = torch.as_tensor(data.points[rows.numpy()], dtype=torch.float32)
    with torch.no_grad():
        embedded = features(x)
        logits = digit_features().classifier.classes(torch.nn.functional.gelu(embedded))
    assert embedded.shape == (len(rows), 48)
    assert (logits.argmax(1) == torch.as_tensor(data.labels[rows.numpy()])).double().mean() > 0.9
