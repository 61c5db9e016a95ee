"""What each figure shows, read back from its artists."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.contour import ContourSet
from matplotlib.lines import Line2D
from matplotlib.text import Annotation

from mfdiag.errors import InputError
from mfdiag.figures import (
    batch_optimum,
    beta_map,
    bias_variance,
    coefficient_course,
    compare,
    concentration,
    figures,
    grid_optimum,
    grid_quality,
    grid_variance,
    layers,
    loss_by_time,
    plane,
    quality,
    time_density,
    training_course,
    velocity_field,
)
from mfdiag.figures._cells import corners

Make = Callable[..., pd.DataFrame]


def legend(axes: Axes) -> list[str]:
    found = axes.get_legend()
    return [] if found is None else [text.get_text() for text in found.get_texts()]


def title(axes: Axes) -> str:
    found = axes.get_legend()
    return axes.get_title(loc="left") or ("" if found is None else found.get_title().get_text())


def line(axes: Axes, label: str) -> Line2D:
    return next(found for found in axes.lines if str(found.get_label()).startswith(label))


def xy(found: Line2D) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(found.get_xdata(), dtype=float), np.asarray(found.get_ydata(), dtype=float)


def stars(axes: Axes) -> list[tuple[float, float]]:
    return [(xy(found)[0][0], xy(found)[1][0]) for found in axes.lines if found.get_marker() == "*"]


def caption(figure: object) -> str:
    return figure.get_supxlabel().replace("\n", " ")  # type: ignore[attr-defined]


def test_bias_variance_draws_the_rows_and_marks_each_minimum(sweep: Make) -> None:
    left, middle, right = bias_variance.draw(sweep()).axes
    beta, value = xy(line(left, "total"))
    np.testing.assert_allclose(value, 700 - 2 * 309 * beta + 300 * beta**2)
    assert legend(left) == ["total (lowest at β = 1)", "given xₜ, r, t (lowest at β = 1)"]
    np.testing.assert_allclose(xy(line(middle, "bias²"))[1], 0.0018 * beta**2)
    assert legend(right) == [
        "n = 256 (lowest at β = 1)",
        "n = 4,096 (lowest at β = 1)",
        "n = 1,000,000 (lowest at β = 0.15)",
    ]
    assert [round(x, 2) for x, _ in stars(right)] == [1.0, 1.0, 0.15]
    np.testing.assert_allclose(xy(line(right, "n = 1,000,000"))[1], value + 1800 * beta**2)
    assert "β" in left.get_xlabel() and "(loss/parameter)²" in left.get_ylabel() and "MSE" in right.get_ylabel()


def test_bias_variance_bands_are_the_intervals(sweep: Make) -> None:
    left = bias_variance.draw(sweep()).axes[0]
    (path, *_), *_ = (band.get_paths() for band in left.collections)
    assert path.vertices[:, 1].max() == pytest.approx(700 * 1.06) and path.vertices[:, 1].min() == pytest.approx(
        382 * 0.94
    )


def test_bias_variance_shows_a_negative_bias_where_it_is_and_no_minimum(sweep: Make) -> None:
    figure = bias_variance.draw(sweep(noise=-0.004))
    _, middle, right = figure.axes
    assert xy(line(middle, "bias²"))[1].min() == pytest.approx(-0.0022)
    assert "n = 1,000,000 (minimum not measurable)" in legend(right)
    assert len(stars(right)) == 2 and right.get_yscale() == "linear"


def test_bias_variance_takes_a_log_axis_for_a_wide_range(sweep: Make) -> None:
    assert bias_variance.draw(sweep(sizes=(1, 10**8))).axes[2].get_yscale() == "log"


def test_bias_variance_does_with_the_quantities_there_are(sweep: Make) -> None:
    frame = sweep()
    left, middle, right = bias_variance.draw(frame[frame["quantity"] == "variance"]).axes
    assert legend(left) == ["total (lowest at β = 1)"] and legend(right) == []
    assert not any(len(xy(found)[0]) > 2 for found in (*middle.lines, *right.lines))


def test_several_checkpoints_have_a_row_each_and_too_many_leave_the_last(sweep: Make) -> None:
    two = bias_variance.draw(sweep(steps=(12_000, 3000)))
    assert [title(axes) for axes in two.axes[::3]] == ["step 3,000", "step 12,000"]
    many = bias_variance.draw(sweep(steps=(1, 2, 3, 4, 5)))
    assert len(many.axes) == 3
    assert "step 5" in caption(many) and "Showing the last of 5 models and settings" in caption(many)
    assert len(bias_variance.draw(sweep(steps=(None,))).axes) == 3


def quadratic(frame: pd.DataFrame, quantity: str, n: int = 1) -> Callable[..., np.ndarray]:
    """The parabola through the rows of a quantity, by least squares."""
    rows = frame[(frame["quantity"] == quantity) & (frame["batch_size"] == n) & (frame["space"] == "gradient")]

    def powers(beta: np.ndarray, gamma: np.ndarray) -> np.ndarray:
        return np.stack([beta**0, beta, gamma, beta**2, beta * gamma, gamma**2], -1)

    found = np.linalg.lstsq(powers(*rows[["beta", "gamma"]].to_numpy(float).T), rows["value"], rcond=None)[0]
    return lambda beta, gamma: powers(beta, gamma) @ found


def test_plane_contours_lie_where_the_quantity_has_their_value(sweep: Make) -> None:
    frame = sweep()
    panels = plane.draw(frame).axes
    assert [title(panel) for panel in panels] == ["n MSEₙ for n = 256", "bias²", "n MSEₙ for n = 1,000,000"]
    for panel, name, n, factor in zip(panels, ("mse", "bias2", "mse"), (256, 1, 10**6), (256, 1, 10**6), strict=True):
        value = quadratic(frame, name, n)
        (lines,) = [found for found in panel.collections if isinstance(found, ContourSet) and not found.filled]
        assert len(lines.levels) >= 4
        for level, path in zip(lines.levels, lines.get_paths(), strict=True):
            np.testing.assert_allclose(factor * value(*path.vertices.T), level, rtol=0.02)
        shades = [found for found in panel.collections if isinstance(found, ContourSet) and found.filled]
        luminance = shades[0].get_facecolor()[:, :3].mean(1)
        assert (np.diff(luminance) < 0).all() and luminance[-1] > 0.6, "darker is more, and labels stay legible"


def test_plane_marks_the_least_and_names_the_corners(sweep: Make) -> None:
    frame = sweep()
    left, _, right = plane.draw(frame).axes
    grid = np.linspace(-0.5, 1.5, 801)
    beta, gamma = (axis.ravel() for axis in np.meshgrid(grid, grid))
    for panel, n in ((left, 256), (right, 10**6)):
        values = quadratic(frame, "mse", n)(beta, gamma)
        ((x, y),) = stars(panel)
        assert (x, y) == pytest.approx((beta[values.argmin()], gamma[values.argmin()]), abs=0.01)
        assert legend(panel) == [f"lowest at β = {x:.2f}, γ = {y:.2f}"]
        assert {text.get_text(): text.xy for text in panel.texts if isinstance(text, Annotation)} == {
            name: corner for corner, name in plane.CORNERS.items()
        }


def test_plane_draws_the_path_of_the_optimum_with_its_intervals(sweep: Make) -> None:
    frame = sweep()
    middle = plane.draw(frame).axes[1]
    optima = frame[frame["batch_size"].isin([10**k for k in range(7)])]
    beta, gamma = (optima[optima["quantity"] == name]["value"] for name in ("optimum_beta", "optimum_gamma"))
    (bars,) = middle.containers
    np.testing.assert_allclose(xy(bars.lines[0]), (beta, gamma))
    across, along = (np.array(lines.get_segments()) for lines in bars.lines[2])
    np.testing.assert_allclose(np.ptp(across[:, :, 0], axis=1), 0.1)
    np.testing.assert_allclose(np.ptp(along[:, :, 1], axis=1), 0.1)
    assert legend(middle) == ["optimum (β, γ) for n = 1 to 1,000,000"]
    named = {text.get_text(): text.xy for text in middle.texts if isinstance(text, Annotation)}
    assert named["1,000,000"] == pytest.approx((beta.iloc[-1], gamma.iloc[-1])) and "10" not in named
    doubted = frame.assign(status=frame["status"].where(frame["batch_size"] != 10**6, "negative_estimate"))
    assert "1,000,000" not in {text.get_text() for text in plane.draw(doubted).axes[1].texts}


def test_plane_without_closed_form_takes_the_lowest_point_of_the_grid(sweep: Make) -> None:
    frame = sweep()
    figure = plane.draw(frame[frame["beta"].notna()])
    assert stars(figure.axes[0]) == [(1.0, 1.0)] and "Stars: lowest point of the grid" in caption(figure)
    assert legend(figure.axes[1]) == [] and not figure.axes[1].containers


def test_plane_hatches_what_is_below_zero_and_marks_no_minimum_there(sweep: Make) -> None:
    frame = sweep(noise=-0.02)
    figure = plane.draw(frame[frame["beta"].notna()])
    _, middle, right = figure.axes
    assert "Hatched" in caption(figure) and "Hatched" not in caption(plane.draw(sweep()))
    assert stars(right) == [] and legend(right) == ["minimum not measurable"]
    hatched = [found for found in middle.collections if isinstance(found, ContourSet) and any(found.hatches)]
    value = quadratic(frame, "bias2")
    assert len(hatched) == 1 and (value(*np.concatenate([p.vertices for p in hatched[0].get_paths()]).T) < 1e-5).all()


def test_plane_of_one_batch_size_has_one_panel_of_its_error(sweep: Make) -> None:
    titles = [title(panel) for panel in plane.draw(sweep(steps=(1, 2), sizes=(64,))).axes]
    assert titles == ["step 1\nn MSEₙ for n = 64", "bias²", "step 2\nn MSEₙ for n = 64", "bias²"]


def test_plane_needs_three_values_of_both_on_a_full_grid(sweep: Make) -> None:
    frame = sweep()
    assert not plane.rows(frame).empty
    for less in (
        frame[frame["gamma"] != 0.5],
        frame[~frame["beta"].between(0.04, 0.99)],
        frame.drop(frame.index[(frame["quantity"] == "mse") & (frame["gamma"] == 0.5)][0]),
        frame[frame["quantity"] != "mse"],
    ):
        assert plane.rows(less).empty


def test_beta_map_prints_every_cell_in_its_triangle(coefficient: Make) -> None:
    panel = beta_map.draw(coefficient()).axes[0]
    printed = {(round(x, 2), round(y, 2)): text.get_text() for text in panel.texts for x, y in [text.get_position()]}
    assert len(printed) == 15
    assert printed[(0.1, 0.9)] == "1.25" and printed[(0.5, 0.9)] == "0.73"
    assert all(x < y for x, y in printed)
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("r", "t")


def cell_shades(frame: pd.DataFrame) -> list[float]:
    """Luminance of the cells of `beta_map`, in the order of their values."""
    cells = beta_map.rows(frame).reset_index(drop=True)
    filled = [patch for patch in beta_map.draw(frame).axes[0].patches if not patch.get_hatch()]
    luminance = [float(to_rgb(patch.get_facecolor()) @ np.array([0.2126, 0.7152, 0.0722])) for patch in filled]
    return [luminance[k] for k in cells["value"].round(9).drop_duplicates().sort_values().index]


@pytest.mark.parametrize("stretch", [1.0, 1e3, 1e6])
def test_beta_map_tells_values_apart_inside_and_far_outside_the_unit_interval(
    coefficient: Make, stretch: float
) -> None:
    frame = coefficient()
    outside = ~frame["value"].between(0, 1) & frame["t_low"].notna()
    frame.loc[outside, "value"] *= stretch
    shades = cell_shades(frame)
    assert shades == sorted(shades) and min(np.diff(shades)) > 0.003
    bar = beta_map.draw(frame).axes[-1]
    labels = {tick.get_text() for tick in bar.get_yticklabels()}
    assert {"0.00", "0.50", "1.00"} <= labels and len(labels) >= 4, "the ends of the scale are labeled"


def test_beta_map_hatches_the_uncertain_and_never_clips(coefficient: Make) -> None:
    panel = beta_map.draw(coefficient()).axes[0]
    hatched = [patch for patch in panel.patches if patch.get_hatch()]
    assert len(hatched) == 5 and all(len(patch.get_path().vertices) == 4 for patch in hatched)  # triangles, closed
    shades = cell_shades(coefficient())
    assert len(set(shades)) == len(shades) == 5 and shades == sorted(shades), "a color of its own for each value"
    frame = coefficient()
    wide = frame.assign(ci_high=frame["value"] + beta_map.WIDE, ci_low=frame["value"] - 0.01)
    assert sum(bool(patch.get_hatch()) for patch in beta_map.draw(wide).axes[0].patches) == 15


def test_beta_map_prefers_the_matrix_form_and_falls_back_to_the_gradient_form(coefficient: Make) -> None:
    both = pd.concat([coefficient(form="gradient", cells=3), coefficient(cells=4)])
    assert len(beta_map.rows(both)) == 10 and set(beta_map.rows(both)["form"]) == {"matrix"}
    assert "Gradient form" in caption(beta_map.draw(coefficient(form="gradient")))


@pytest.mark.parametrize(
    ("r", "t", "count"),
    [((0.0, 0.5), (0.5, 1.0), 4), ((0.0, 0.5), (0.0, 0.5), 3), ((0.5, 1.0), (0.0, 0.5), 1), ((0, 0.5), (0.25, 1), 5)],
)
def test_cells_are_clipped_to_r_below_t(r: tuple[float, float], t: tuple[float, float], count: int) -> None:
    found = corners(r, t)
    assert len(found) == count and (found[:, 0] <= found[:, 1]).all()


def test_time_density_prints_the_shares_of_both_densities(times: Make) -> None:
    figure = time_density.draw(times())
    trained, new, _ = figure.axes
    assert (title(trained), title(new)) == ("trained", "lowest variance")
    assert len(trained.texts) == len(new.texts) == len(trained.patches) == 9
    assert {text.get_text() for text in trained.texts} == {"11.1"}
    assert [text.get_text() for text in new.texts] == ["22.2"] + ["9.7"] * 8
    below = [patch for patch in new.patches if (np.diff(patch.get_path().vertices[:4], axis=1)[2:] < 0).all()]
    assert len(below) == 3, "the pairs with r = t lie in a band of their own"
    luminance = [to_rgb(patch.get_facecolor()) @ np.array([0.2126, 0.7152, 0.0722]) for patch in new.patches]
    assert luminance[0] < min(luminance[1:]) - 0.2, "distinct in gray"
    gain = "trained over new density: predicted 1.30 [1.20, 1.40], measured 1.25 [1.15, 1.35] on new samples"
    assert gain in caption(figure)
    assert time_density.rows(times().query("pairs == 'all'")).empty


def test_batch_optimum_marks_the_critical_batch_at_half_height(coefficient: Make) -> None:
    panel = batch_optimum.draw(coefficient()).axes[0]
    n, value = xy(line(panel, "n₀"))
    assert panel.get_xscale() == "log" and n.tolist() == [1, 256, 4096, 65_536, 262_144, 1_000_000]
    diamond = next(found for found in panel.lines if found.get_marker() == "D" and len(xy(found)[0]) == 1)
    assert xy(diamond)[0][0] == pytest.approx(300 / 0.0018) and xy(diamond)[1][0] == pytest.approx(value[0] / 2)
    assert legend(panel) == ["n₀ = 167,000 [91,700, 242,000]"]


def test_batch_optimum_has_a_line_per_checkpoint(coefficient: Make) -> None:
    labels = legend(batch_optimum.draw(coefficient(steps=(3000, 12_000))).axes[0])
    assert [label.split(":")[0] for label in labels] == ["step 3,000", "step 12,000"]


@pytest.mark.parametrize(
    ("change", "label", "marks"),
    [
        ({"value": -5.0, "status": "negative_estimate"}, "n₀ not measurable", ""),
        ({"ci_high": np.inf, "ci_low": -1e3}, "n₀ = 167,000 [−1,000, ∞]", "<>"),
        ({"status": "too_few_samples"}, "n₀ = 167,000 [91,700, 242,000], too_few_samples", "||"),
    ],
)
def test_batch_optimum_says_what_is_wrong_with_n0(
    coefficient: Make, change: dict[str, object], label: str, marks: str
) -> None:
    frame = coefficient()
    frame.loc[frame["quantity"] == "critical_batch", list(change)] = list(change.values())
    panel = batch_optimum.draw(frame).axes[0]
    assert legend(panel) == [label]
    assert "".join(str(found.get_marker()) for found in panel.lines if found.get_marker() in ("<", ">", "|")) == marks


def test_layers_are_in_network_order_with_shares_of_the_sum(variance: Make) -> None:
    panel = layers.draw(variance()).axes[0]
    assert [tick.get_text() for tick in panel.get_yticklabels()] == [
        *("time.0", "time.2", "net.0", "net.2", "net.4", "net.6")
    ]
    assert panel.get_ylim()[0] > panel.get_ylim()[1]  # the first layer is on top
    shares = [float(text.get_text().removesuffix(" %")) for text in panel.texts]
    assert shares == sorted(shares) and sum(shares) == pytest.approx(100, abs=0.3)
    assert [bar.get_width() for bar in panel.patches][-1] == pytest.approx(700 * shares[-1] / 100, rel=0.01)


def test_many_layers_keep_the_largest_and_sum_the_rest(variance: Make) -> None:
    names = tuple(f"block.{i}" for i in range(50))
    figure = layers.draw(variance(steps=(1, 2), layers=names))
    panel = figure.axes[0]
    ticks = [tick.get_text() for tick in panel.get_yticklabels()]
    assert (
        len(ticks) == layers.MOST_LAYERS and ticks[-1] == "21 smaller layers" and ticks[:2] == ["block.21", "block.22"]
    )
    assert sum(bar.get_width() for bar in panel.patches) == pytest.approx(700)
    assert [title(axes) for axes in figure.axes] == ["step 1", "step 2"]


def test_layers_of_several_checkpoints_share_one_scale(variance: Make) -> None:
    frame = variance(steps=(1, 2))
    frame.loc[frame["step"] == 2, ["value", "ci_low", "ci_high"]] *= 10
    first, second = layers.draw(frame).axes
    assert first.get_xlim() == second.get_xlim() and first.get_xlim()[1] > 2900


def test_velocity_field_draws_divergence_above_rotation(variance: Make) -> None:
    figure = velocity_field.draw(variance((1000, 2000)))
    assert [title(panel) for panel in figure.axes] == ["step 1,000", "step 2,000", "", ""]
    for panel in figure.axes[:2]:
        t, value = xy(line(panel, "divergence"))
        np.testing.assert_allclose(t, np.arange(10) / 10 + 0.05)
        np.testing.assert_allclose(value, 2 - 0.5 * np.arange(10))
    share = figure.axes[2]
    np.testing.assert_allclose(xy(line(share, "antisymmetric"))[1], 0.01 + 0.002 * np.arange(10))
    band = share.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(0.009) and band[:, 1].max() == pytest.approx(0.029)
    assert figure.axes[0].get_ylabel().startswith("divergence") and share.get_xlabel() == "t"
    assert share.get_ylim()[0] == 0 and "does not rotate" in caption(figure)


def test_loss_by_time_draws_both_tangents_at_bin_centers(variance: Make) -> None:
    panel = loss_by_time.draw(variance()).axes[0]
    t, conditional = xy(line(panel, "conditional"))
    np.testing.assert_allclose(t, np.arange(0.05, 1, 0.1))
    np.testing.assert_allclose(conditional / xy(line(panel, "deterministic"))[1], np.exp(0.5 * np.arange(10)))
    assert panel.get_yscale() == "log"
    assert legend(panel) == [
        "conditional (meanflow)",
        "deterministic (ema_tangent, proxy ema)",
        "largest ratio 90× at t in [0.9, 1]",
    ]


def test_loss_by_time_needs_only_one_tangent(variance: Make) -> None:
    frame = variance()
    panel = loss_by_time.draw(frame[frame["estimator"] == "meanflow"]).axes[0]
    assert legend(panel) == ["conditional (meanflow)"]


def test_lorenz_curve_of_known_values() -> None:
    x, y = concentration.lorenz(np.array([3.0, 1.0]))
    assert x.tolist() == [0, 0.5, 1] and y.tolist() == [0, 0.25, 1]


def test_concentration_annotates_the_top_share(samples: Make) -> None:
    frame = samples()
    panel = concentration.draw(frame).axes[0]
    norms = np.sort(frame.loc[frame["estimator"] == "meanflow", "value"])
    share = norms[-10:].sum() / norms.sum()
    assert legend(panel)[0] == f"meanflow: top 1 % carry {100 * share:.1f} %"
    assert legend(panel)[-1] == "equal norms" and len(legend(panel)) == 4
    x, y = xy(line(panel, "meanflow"))
    assert (np.diff(y) >= 0).all() and (y <= x + 1e-9).all() and np.interp(0.99, x, y) == pytest.approx(1 - share)


def test_lines_differ_in_color_dashes_and_marker(coefficient: Make) -> None:
    drawn = [
        found
        for found in batch_optimum.draw(coefficient(steps=(1, 2, 3, 4))).axes[0].lines
        if str(found.get_label()).startswith("step")
    ]
    for trait in (Line2D.get_color, Line2D.get_linestyle, Line2D.get_marker):
        assert len({trait(found) for found in drawn}) == 4


def test_compare_orders_estimators_and_drops_what_is_below_zero(request: pytest.FixtureRequest) -> None:
    frame = request.getfixturevalue("compare")()
    left, right = compare.draw(frame).axes
    names = ["meanflow", "alpha_flow", "stable_velocity", "teacher"]
    assert [label.get_text() for label in left.get_yticklabels()] == names
    np.testing.assert_allclose(xy(line(left, "total"))[0], [1, 0.8, 0.2, 0.01])
    assert legend(right) == ["n = 1", "n = 4,096", "n = 1,000,000"]
    largest = xy(line(right, "n = 1,000,000"))[0]
    np.testing.assert_allclose(largest, [1, 0.8 + 100 / 700, np.nan, 0.01 + 20_000 / 700])
    assert left.get_xscale() == right.get_xscale() == "log"


def test_quality_draws_a_line_for_each_set_of_weights(request: pytest.FixtureRequest) -> None:
    figure = quality.draw(request.getfixturevalue("quality")())
    panel = figure.axes[0]
    assert [title(found) for found in figure.axes] == ["sliced wasserstein", "coverage", "wasserstein 2"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["raw", "ema"]
    drawn = [found for found in panel.lines if found.get_linestyle() != "None"]
    np.testing.assert_allclose(xy(drawn[0])[1], 0.112 * np.array([1, 0.9, 0.8]))
    np.testing.assert_allclose(xy(drawn[1])[1], 0.6 * 0.112 * np.array([1, 0.9, 0.8]))
    assert [label.get_text() for label in panel.get_xticklabels()] == ["1", "2", "4"]
    low, high = panel.collections[0].get_segments()[0][:, 1]
    assert (low, high) == (pytest.approx(0.112 - 0.004), pytest.approx(0.112 + 0.004))


def test_quality_of_many_models_has_a_row_for_each_and_means_come_first(request: pytest.FixtureRequest) -> None:
    make = request.getfixturevalue("quality")
    left = quality.draw(make(steps=(1000, 2000, 3000))).axes[0]
    labels = [label.get_text() for label in left.get_yticklabels()]
    assert labels == [f"step {step},000, {weights}" for step in (1, 2, 3) for weights in ("raw", "ema")]
    means = quality.draw(make(seeds=3))
    drawn = [found for found in means.axes[0].lines if found.get_linestyle() != "None"]
    np.testing.assert_allclose(xy(drawn[0])[1], 1.1 * 0.112 * np.array([1, 0.9, 0.8]))
    assert "over seeds" in caption(means)


def test_long_names_of_models_leave_room_for_their_quality(request: pytest.FixtureRequest) -> None:
    frame = request.getfixturevalue("quality")(steps=(1000, 2000, 3000))
    names = "data=mixture_64_8,hidden=128,beta=0.2,seed=" + frame["step"].astype(str) + "/model.safetensors"
    frame = frame[frame["metric"] == "coverage"].assign(step=1000, checkpoint=names)
    figure = quality.draw(frame)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a layout without room
        figure.draw_without_rendering()
    panel = figure.axes[0]
    assert max(len(label.get_text()) for label in panel.get_yticklabels()) > 45
    assert panel.get_position().width * figure.get_figwidth() > 1.5, "inches"


def test_training_course_shows_the_first_data_set_with_means_over_seeds(training: Make) -> None:
    panels = training_course.draw(training(steps=(1000, 2000, 3000))).axes
    assert [panel.get_ylabel() for panel in panels] == ["loss", "gradient norm"]
    step, value = xy(line(panels[0], "β = 0.5"))
    np.testing.assert_allclose(value, 5.5 - step / 1e4 + 0.05)
    many = training_course.draw(training(betas=tuple(np.linspace(0, 1, 11))))
    assert [found.get_label() for found in many.axes[0].lines] == ["β = 0", "β = 0.3", "β = 0.7", "β = 1"]
    assert "Showing 8 of 44 models" in caption(many)


def kept(frame: pd.DataFrame, model: str) -> pd.DataFrame:
    """Rows as those of a model whose earlier checkpoints were kept."""
    names = f"grid/{model}/step=" + frame["step"].astype(str) + "/model.safetensors"
    return frame.assign(run=model, checkpoint=names)


def test_figures_tell_models_apart_at_their_kept_checkpoints(request: pytest.FixtureRequest) -> None:
    models = ["beta=0,seed=0", "beta=0,seed=1", "beta=1,seed=0"]
    rows = request.getfixturevalue("coefficient")(steps=(1000, 2000, 3000))
    figure = coefficient_course.draw(pd.concat([kept(rows, model) for model in models]))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == models
    figure.draw_without_rendering()
    assert figure._suptitle is not None
    assert not figure._suptitle.get_window_extent().overlaps(legend.get_window_extent())
    rows = request.getfixturevalue("quality")(steps=(1000, 2000))
    figure = quality.draw(pd.concat([kept(rows, model) for model in models]))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(set(labels)) == len(labels) == 12 and "step 1,000, beta=0,seed=1, raw" in labels


def test_grid_figures_have_a_panel_for_each_data_set(grid: Make) -> None:
    frame = grid()
    variance = grid_variance.draw(frame)
    assert [title(panel) for panel in variance.axes] == ["two_moons", "pinwheel"]
    np.testing.assert_allclose(xy(line(variance.axes[0], "trained and measured"))[1], [180, 135, 90])
    np.testing.assert_allclose(xy(line(variance.axes[0], "trained at β = 0"))[1], [200, 150, 100])
    quality_figure = grid_quality.draw(frame)
    np.testing.assert_allclose(xy(line(quality_figure.axes[1], "ema"))[1], [0.03, 0.035, 0.04])


def test_grid_optimum_marks_predictions_and_the_best(grid: Make) -> None:
    panel = grid_optimum.draw(grid()).axes[0]
    assert [text.get_text() for text in panel.get_yticklabels()] == ["two_moons", "pinwheel"]
    np.testing.assert_allclose(xy(line(panel, "predicted, n = 1"))[0], 1.3, rtol=1e-5)
    np.testing.assert_allclose(xy(line(panel, "predicted, n = 512,000"))[0], 1.3 / 2.024)
    np.testing.assert_allclose(xy(line(panel, "best samples, ema"))[0], 0.5)


@pytest.mark.parametrize("name", figures())
def test_a_table_without_the_rows_is_refused(name: str, request: pytest.FixtureRequest) -> None:
    figure = figures()[name]
    frame = request.getfixturevalue(figure.table)()
    with pytest.raises(InputError, match="no rows to draw"):
        figure.draw(frame.iloc[:0])
