"""The bias from its conditional mean: the same number as the plain estimate, with far less noise."""

from __future__ import annotations

import numpy as np

from mfdiag.coefficients.plane import ColumnLayout, gradient_quadratic
from mfdiag.flow.draw import Draws
from mfdiag.gradients.accumulate import sum_layers
from mfdiag.gradients.intervals import jackknife
from mfdiag.gradients.sample_pass import PassSettings, SupportNetworks, run_pass
from mfdiag.measures.parts.plane_plans import PlanePlan
from mfdiag.measures.run.subject import load_subject
from mfdiag.models.checkpoint import bundled


def test_bundled_checkpoint() -> None:
    subject = load_subject(bundled(), say=lambda text: None)
    plan = PlanePlan(posterior_known=True)
    measured = run_pass(
        plan,
        subject.module,
        Draws(subject.data, subject.times, 0, subject.conditional),
        PassSettings(samples=2048),
        support=SupportNetworks(subject.proxy, subject.proxy_module),
    )
    moments = sum_layers(measured.gradient.moments[0]).replicates()
    value = plan.layout.value  # e_0, e_b, e_g as they are: what is left where the posterior is not known
    plain_layout = ColumnLayout(value, value * [[0], [1], [1]], None)
    for k in (1, 2):
        forms = [gradient_quadratic(moments, layout).B for layout in (plan.layout, plain_layout)]
        known, plain = (jackknife(form[:, k, k], moments.count) for form in forms if form is not None)
        ratio = float(plain.std_error / known.std_error)
        print(f"standard error {known.std_error:.2g} instead of {plain.std_error:.2g}: {ratio:.0f} times smaller")
        assert ratio >= 20
        assert abs(known.value - plain.value) <= 4 * np.hypot(known.std_error, plain.std_error)


def test_plain_layout_is_that_of_an_unknown_posterior() -> None:
    """What the comparison above calls plain is what a run without a posterior reports."""
    value, unknown = ColumnLayout.of_plane(True).value, ColumnLayout.of_plane(False)
    assert not value[:, 3:].any()
    np.testing.assert_array_equal(value[:, :3], unknown.value)
    np.testing.assert_array_equal(value[:, :3] * [[0], [1], [1]], unknown.bias)
