"""Data on disk: every layout gives the same draws as the array in memory; what is damaged or odd gives one sentence."""

from __future__ import annotations

import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from latent_layouts import LAYOUTS, Y, Z, edm, folder, listed, npy, npz, packed, pt, tar, webdataset
from scipy import stats

from mfdiag import measure_quality
from mfdiag.errors import InputError
from mfdiag.flow.couplings import Marginals, parse_coupling
from mfdiag.flow.data.datasets import FiniteData, MomentsData, load_data
from mfdiag.flow.data.stored_data import SPEC_KEYS
from mfdiag.flow.draw import Draws, posterior_of
from mfdiag.flow.moments_posterior import MomentsPosterior
from mfdiag.flow.posterior import FinitePosterior, MixturePosterior
from mfdiag.flow.seeds import uniforms
from mfdiag.flow.sources import GaussianSource, parse_source
from mfdiag.flow.times import parse_times
from mfdiag.inputs import recording

each_layout = pytest.mark.parametrize("layout", LAYOUTS)
ALL = (np.arange(12)[:, None] + 0.5) / 12  # uniform numbers that draw each of the 12 samples once


def finite(spec: object, **given: object) -> FiniteData:
    data = load_data(str(spec), **given)  # type: ignore[arg-type]
    assert isinstance(data, FiniteData)
    return data


def fails(spec: object, message: str, **given: object) -> None:
    with pytest.raises(InputError, match=message) as caught:
        data = load_data(str(spec), **given)  # type: ignore[arg-type]
        data.sample(np.tile(ALL, (1, data.width)))
    assert "\n" not in str(caught.value)


# -- layouts --------------------------------------------------------------------------------------------------------


@each_layout
def test_a_layout_draws_what_the_array_draws(tmp_path: Path, layout: str) -> None:
    order = np.argsort(Y, kind="stable") if layout == "class folders" else np.arange(12)
    place = LAYOUTS[layout](tmp_path / "d", Z, Y)
    data, twin = finite(place), FiniteData("array", Z[order], Y[order])
    assert (data.name, data.shape, data.num_classes, len(data.points)) == (str(place), (4, 2, 3), 3, 12)
    u = uniforms(0, "data", np.arange(50), 1)
    for drawn, expected in zip(data.sample(u), twin.sample(u), strict=True):
        assert drawn is not None and drawn.dtype == expected.dtype
        np.testing.assert_array_equal(drawn, expected)


@each_layout
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_rows_are_those_of_an_array(tmp_path_factory: pytest.TempPathFactory, layout: str, data: st.DataObject) -> None:
    root = tmp_path_factory.getbasetemp() / f"rows of {layout}"
    if not root.exists():
        root.mkdir()
        LAYOUTS[layout](root / "d", Z, np.zeros(12, int))
    points = finite(next(iter(root.glob("d*/list.json")), next(iter(root.glob("d*"))))).points
    rows = data.draw(
        st.one_of(
            st.lists(st.integers(0, 11), max_size=20).map(lambda index: np.array(index, dtype=np.int64)),
            st.lists(st.booleans(), min_size=12, max_size=12).map(np.array),
            st.slices(12),
        )
    )
    np.testing.assert_array_equal(points[rows], Z[rows])


def test_labels_can_be_left_out_or_named(tmp_path: Path) -> None:
    place = LAYOUTS["tar"](tmp_path / "d", Z, Y)
    assert finite(f"{place}:labels=none").labels is None
    np.save(tmp_path / "mine.npy", 11 - np.arange(12))
    (tmp_path / "mine.json").write_text(json.dumps(list(range(11, -1, -1))))
    for name in ("mine.npy", "mine.json"):
        np.testing.assert_array_equal(finite(f"{place}:labels={tmp_path / name}").labels, 11 - np.arange(12))
    bare = folder(tmp_path / "bare", [(f"{i}.npy", npy(z)) for i, z in enumerate(Z)])
    assert finite(bare).labels is None and finite(bare).points.shape == (12, 4, 2, 3)


def test_several_archives_are_no_classes(tmp_path: Path) -> None:
    for k, part in enumerate(np.split(Z, 2)):
        tar(tmp_path / f"{k}.tar", [(f"part{k}/{i}.npy", npy(z)) for i, z in enumerate(part)])
    assert finite(f"{tmp_path}:labels=none").num_classes == 0
    for k, part in enumerate(np.split(Z, 2)):
        tar(tmp_path / f"{k}.tar", [(f"latents/{i}.npy", npy(z)) for i, z in enumerate(part)])
    assert finite(tmp_path).num_classes == 0 and len(finite(tmp_path).points) == 12


def test_numbered_class_folders_keep_their_numbers(tmp_path: Path) -> None:
    folder(tmp_path / "d", [(f"{c}/{i:02d}.npy", npy(z)) for i, (z, c) in enumerate(zip(Z, 7 * Y, strict=True))])
    labels = finite(tmp_path / "d").labels
    assert labels is not None and sorted(labels) == sorted(7 * Y)


def test_whether_files_are_samples_or_shards_can_be_said(tmp_path: Path) -> None:
    videos = folder(tmp_path / "v", [(f"{i}.npy", npy(np.stack([z, z], 1))) for i, z in enumerate(Z)])
    assert finite(f"{videos}:files=samples").points.shape == (12, 4, 2, 2, 3)
    rows = folder(tmp_path / "r", [("a.npy", npy(Z[:5, :, 0])), ("b.npy", npy(Z[5:, :, 0]))])  # [n, 4, 3]
    assert finite(f"{rows}:files=shards").points.shape == (12, 4, 3)
    fails(rows, r"b.npy has \[7, 4, 3\] and .*a.npy has \[5, 4, 3\]")


def test_a_large_array_file_is_read_as_it_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "d.npy", Z.astype(np.float16))
    np.save(tmp_path / "d_labels.npy", Y)
    whole = finite(tmp_path / "d.npy")
    monkeypatch.setattr("mfdiag.flow.data.stored_data.STREAMED_BYTES", 0)
    part = finite(tmp_path / "d.npy")
    assert isinstance(whole.points, np.ndarray) and not isinstance(part.points, np.ndarray)
    for one, other in zip(whole.sample(ALL), part.sample(ALL), strict=True):
        np.testing.assert_array_equal(one, other)


def test_listed_pairs_stay_together(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).normal(size=Z.shape).astype(np.float32)
    place = listed(tmp_path, Z, Y, noise)
    data = load_data(str(place))
    coupling = parse_coupling(f"pairs:{place}", data, GaussianSource(data.shape), lambda _: None)  # type: ignore[arg-type, return-value]
    drawn = coupling.pairs(Marginals(data, GaussianSource(data.shape), 0), np.arange(40))
    rows = (drawn.x0[:, None] == Z[None]).all((2, 3, 4)).argmax(1)
    np.testing.assert_array_equal(drawn.x0, Z[rows])
    np.testing.assert_array_equal(drawn.x1, noise[rows])
    np.testing.assert_array_equal(drawn.labels, Y[rows])


def test_the_page_on_data_has_every_word() -> None:
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    keys = page.partition("## Keys")[2].partition("## ")[0]
    assert all(f"`{key}`" in keys for key in SPEC_KEYS)


# -- scale ----------------------------------------------------------------------------------------------------------

MEAN, STD = np.array([0.9, -0.3, 0.2, 0.4]), np.array([4.9, 5.3, 3.9, 4.0])
SCALED = (Z - MEAN[:, None, None]) / STD[:, None, None]
STATISTICS = {
    "s.json": json.dumps({"mean": MEAN.tolist(), "std": STD.tolist()}).encode(),
    "s.npz": npz(latent_mean=MEAN, latent_std=STD),
    "s.pt": pt({"mean": torch.tensor(MEAN)[None, :, None, None], "var": torch.tensor(STD)[None, :, None, None] ** 2}),
    "full.npz": npz(
        mean=np.broadcast_to(MEAN[:, None, None], (4, 2, 3)), std=np.broadcast_to(STD[:, None, None], (4, 2, 3))
    ),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_of_a_file(tmp_path: Path, name: str) -> None:
    folder(tmp_path, [("d.npy", npy(Z)), (name, STATISTICS[name])])
    data = finite(f"{tmp_path / 'd.npy'}:statistics={tmp_path / name},scale=0.5")
    np.testing.assert_allclose(data.points[:], 0.5 * SCALED, rtol=1e-12)


def test_a_card_scales_what_the_specification_does_not(tmp_path: Path) -> None:
    place = LAYOUTS["npy shards"](tmp_path / "d", Z, Y)
    card = {"scale": 0.5, "mean": MEAN.tolist(), "std": STD.tolist()}
    np.testing.assert_allclose(finite(place, **card).points[:], 0.5 * SCALED, rtol=1e-12)
    np.testing.assert_allclose(finite(f"{place}:scale=0.1", **card).points[:], 0.1 * Z.astype(float), rtol=1e-12)
    np.testing.assert_allclose(finite(f"{place}:mean=1/2/3/4,std=2").points[:][:, 3], (Z[:, 3].astype(float) - 4) / 2)
    assert load_data("gaussian:2,0,1", **card).name == "gaussian:2,0,1"  # type: ignore[arg-type]


def test_channels_last(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.moveaxis(Z, 1, -1))
    data = finite(f"{tmp_path / 'd.npy'}:layout=nhwc", mean=MEAN, std=STD)
    assert data.shape == (4, 2, 3)
    np.testing.assert_allclose(data.points[:], SCALED, rtol=1e-12)


# -- moments --------------------------------------------------------------------------------------------------------

SPREAD = np.exp(np.random.default_rng(2).normal(size=Z.shape)).astype(np.float32)


@pytest.mark.parametrize(("word", "second"), [("std", SPREAD), ("logvar", 2 * np.log(SPREAD))])
def test_moments_are_sampled(tmp_path: Path, word: str, second: np.ndarray) -> None:
    place = folder(tmp_path / "d", edm(np.concatenate([Z, second], axis=1), Y))
    data = load_data(f"{place}:moments={word},mean=1/2/3/4,std=2,scale=0.5")
    assert isinstance(data, MomentsData) and (data.shape, data.num_classes, data.width) == ((4, 2, 3), 3, 25)
    count = 12_000
    x, labels = data.sample(uniforms(0, "data", np.arange(count), data.width))
    rows = np.minimum((12 * uniforms(0, "data", np.arange(count), data.width)[:, 0]).astype(int), 11)
    np.testing.assert_array_equal(labels, Y[rows])
    mean = 0.5 * (Z.astype(float) - np.arange(1, 5)[:, None, None]) / 2
    noise = (x - mean[rows]) / (0.25 * SPREAD[rows])
    assert stats.kstest(noise.reshape(count, -1)[:, 5], "norm").pvalue > 1e-3
    assert abs(np.corrcoef(noise.reshape(count, -1), rowvar=False) - np.eye(24)).max() < 0.05
    alone = data.sample(uniforms(0, "data", np.array([7]), data.width))[0][0]
    np.testing.assert_array_equal(alone, x[7])


def test_moments_of_no_spread_are_points(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.concatenate([Z, np.zeros_like(Z)], axis=1))
    data = load_data(f"{tmp_path / 'd.npy'}:moments=std")
    np.testing.assert_array_equal(data.sample(np.concatenate([ALL, np.full((12, 24), 0.3)], axis=1))[0], Z)


# -- what uses the points -------------------------------------------------------------------------------------------


@each_layout
def test_the_exact_posterior_streams(tmp_path: Path, layout: str) -> None:
    place = LAYOUTS[layout](tmp_path / "d", Z, Y)
    data = finite(place, scale=0.2)
    assert data.labels is not None
    twin = FinitePosterior(torch.as_tensor(data.points[:]), torch.as_tensor(data.labels))
    draws = Draws(data, parse_times("uniform"), 0)
    batch = draws.batch(np.arange(30))
    velocity = draws.velocity_posterior(batch)
    assert velocity is not None and batch.labels is not None
    u = torch.as_tensor(draws.uniforms("posterior", batch.index, 1))
    for one, other in zip(velocity, twin(batch.x_t, batch.t, u, batch.labels), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_small_tiles_and_sources_fitted_to_stored_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = finite(LAYOUTS["tars"](tmp_path / "d", Z, Y))
    whole = FiniteData("array", Z, Y)
    base = posterior_of(whole)
    x, t, u = torch.as_tensor(Z[:5]).double(), torch.linspace(0.1, 0.9, 5), torch.linspace(0.1, 0.9, 5)[:, None]
    assert base is not None
    for one, other in zip(FinitePosterior(data.points, tile=5)(x, t, u), base(x, t, u), strict=True):
        torch.testing.assert_close(one, other)
    expected = parse_source("mixed", whole)
    monkeypatch.setattr("mfdiag.flow.data.disk_arrays.tiles.__defaults__", (3,))
    source = parse_source("mixed", data)
    np.testing.assert_allclose(source.means, expected.means, rtol=1e-12)  # type: ignore[attr-defined]
    for label in range(3):
        np.testing.assert_allclose(
            source.variances[label], np.mean((Z[label == Y] - source.means[label]) ** 2), rtol=1e-6
        )  # type: ignore[attr-defined]


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("tile", [None, 5])
def test_the_posterior_over_moments_is_that_of_a_mixture(tmp_path: Path, tile: int | None, labelled: bool) -> None:
    np.save(tmp_path / "d.npy", np.concatenate([Z, SPREAD], axis=1))
    np.save(tmp_path / "d_labels.npy", Y)
    data = load_data(f"{tmp_path / 'd.npy'}:moments=std,scale=0.2")
    assert isinstance(data, MomentsData) and data.labels is not None
    draws = Draws(data, parse_times("uniform"), 0, conditional=labelled)
    batch = draws.batch(np.arange(40))
    u = torch.as_tensor(uniforms(0, "posterior", batch.index, data.width))
    velocity = MomentsPosterior(data.moments, torch.as_tensor(data.labels), tile=tile)(
        batch.x_t, batch.t, u, batch.labels
    )
    auto = draws.velocity_posterior(batch)
    means, stds = (torch.as_tensor(part.reshape(12, -1)) for part in data.moments[:])
    for label in range(3) if labelled else [None]:
        rows = slice(None) if batch.labels is None else torch.nonzero(batch.labels == label)[:, 0]
        own = np.flatnonzero(label == Y) if labelled else np.arange(12)
        weights = torch.full((len(own),), 1 / len(own))
        twin = MixturePosterior.of_covariances(weights, means[own], torch.diag_embed(stds[own].square()))
        expected = twin(batch.x_t[rows], batch.t[rows], u[rows])
        for one, other in zip(velocity[:2], expected[:2], strict=True):
            torch.testing.assert_close(one[rows], other, rtol=1e-8, atol=1e-10)
        # eigenvectors of the twin are in another order, and so is its noise: draws agree in law, see below
        gap = velocity.log_density[rows] - expected.log_density
        torch.testing.assert_close(gap, gap[:1].expand(len(gap)))
    assert auto is not None
    torch.testing.assert_close(auto.mean, velocity.mean)


def test_draws_over_moments_have_their_law(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.concatenate([Z, SPREAD], axis=1)[:, :, :1, :1])
    data = load_data(f"{tmp_path / 'd.npy'}:moments=logvar,scale=0.2")
    posterior, count, t = posterior_of(data), 8_000, 0.7
    assert posterior is not None and isinstance(data, MomentsData)
    x = torch.as_tensor(data.moments[:1][0]).expand(count, 4, 1, 1)
    u = torch.as_tensor(uniforms(0, "draw", np.arange(count), posterior.width))
    velocity = posterior(x, torch.full((count,), t), u)
    error = (velocity.variance[0] / count).sqrt()
    assert ((velocity.draw.mean(0) - velocity.mean[0]).abs() < 4 * error).all()
    torch.testing.assert_close(velocity.draw.var(0), velocity.variance[0], rtol=0.08, atol=0)


def test_the_posterior_over_moments_without_spread_is_that_over_points(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.concatenate([Z, np.zeros_like(Z)], axis=1))
    data = load_data(f"{tmp_path / 'd.npy'}:moments=std,scale=0.2")
    batch = Draws(data, parse_times("uniform"), 0).batch(np.arange(40))
    u = torch.as_tensor(uniforms(0, "u", batch.index, data.width))
    smooth, sharp = posterior_of(data), FinitePosterior(0.2 * torch.as_tensor(Z).double())
    assert smooth is not None
    velocity, expected = smooth(batch.x_t, batch.t, u), sharp(batch.x_t, batch.t, u[:, :1])
    for one, other in zip(velocity[:3], expected[:3], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_sample_quality_against_stored_points(tmp_path: Path) -> None:
    data = load_data(str(LAYOUTS["tars"](tmp_path / "d", Z, Y)))
    tables = [
        measure_quality(
            torch.nn.Identity().forward,
            of,
            metrics=["frechet_distance", "energy_distance"],
            samples=64,
            subsample=8,
            dtype=torch.float64,
        )
        for of in (data, Z)
    ]
    assert np.isfinite(tables[0]["value"]).all()
    np.testing.assert_allclose(tables[0]["value"], tables[1]["value"], rtol=1e-6)


# -- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("scal=2", "Did you mean 'scale'"),
        ("scale=2,scale=3", "scale appears twice"),
        ("scale=", "scale must be a number, got ''"),
        ("scale=two", "scale must be a number, got 'two'"),
        ("scale=0", "scale must not be 0"),
        ("std=-1", "std must be above 0"),
        ("mean=nan", "mean must be finite"),
        ("mean=1/2/3", r"for each of 4 channels .* mean has shape \[3\]"),
        ("moments=var", "moments must be logvar or std"),
        ("moments=std,layout=nhwc", "expects an even number of channels, .* have 3 channels"),
        ("layout=chw", "layout must be nchw or nhwc"),
        ("nhwc", "Unknown key of a data specification 'nhwc'"),
        ("statistics=s.json,std=3", "statistics= already sets mean and std"),
        ("statistics=nowhere.npz", "No file at nowhere.npz"),
        ("labels=nowhere.npy", "No file at nowhere.npy"),
    ],
)
def test_bad_words(tmp_path: Path, words: str, message: str) -> None:
    np.save(tmp_path / "d.npy", Z)
    fails(f"{tmp_path / 'd.npy'}:{words}", message)


def test_statistics_without_std(tmp_path: Path) -> None:
    folder(tmp_path, [("d.npy", npy(Z)), ("s.npz", npz(mean=MEAN)), ("t.json", b"[1]"), ("u.npy", npy(MEAN))])
    fails(f"{tmp_path / 'd.npy'}:statistics={tmp_path / 's.npz'}", "expected mean and std .*, but the file has mean")
    fails(f"{tmp_path / 'd.npy'}:statistics={tmp_path / 't.json'}", "Cannot read .*t.json")
    fails(f"{tmp_path / 'd.npy'}:statistics={tmp_path / 'u.npy'}", "but the file has an array without a name")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "but it holds nothing"),
        ([("a.png", b"x"), ("b.png", b"x")], r"expected .npy, .* files, but it holds .png \(2\)"),
        ([("data.mdb", b"x"), ("lock.mdb", b"")], "is an LMDB"),
        ([("a.npy", npy(Z[0])), ("b.pt", pt(torch.zeros(2)))], r"holds .npy \(1\), .pt \(1\) files"),
        ([("a.npy", npy(Z[0])), ("b.npy", npy(Z[0, :2]))], r"b.npy has \[2, 2, 3\] and .*a.npy has \[4, 2, 3\]"),
        ([("a.npy", npy(Z[0])), ("b.npy", npy(Z[0])[:-4])], "Cannot read .*b.npy .* truncated"),
        ([("a.npy", npy(Z[0])), ("b.npy", b"")], "b.npy is empty"),
        ([("a.npy", npy(Z[0])), ("b.npy", npy(Z[0] * np.nan))], "b.npy holds NaN or infinite values"),
        ([("a.npy", npy(Z[0])), ("b.npy", npy(Z[0] * 1j))], "Expected real numbers"),
        (
            [("a.npy", npy(Z[0])), ("a.cls", b"1"), ("b.npy", npy(Z[0]))],
            r"no label for b in .cls. Add a label for every sample",
        ),
        ([("a.npy", npy(Z[0])), ("a.cls", b"cat")], "Cannot read .*a.cls"),
        ([("a.npy", npy(Z[0])), ("a.cls", b"-1")], "smallest label is -1"),
        ([("a.npy", npy(Z[0])), ("dataset.json", b'{"labels": []}')], "no label for a.npy in dataset.json"),
        (
            [("a.npy", npy(Z[0])), ("dataset.json", b'{"labels": [["a.npy", [0, 1]]]}')],
            r"one label for each of 1 samples, got shape \(1, 2\)",
        ),
        ([("a.npy", npy(Z[0])), ("dataset.json", b"{}")], "Cannot read .*dataset.json"),
        ([("a.npy", npy(Z)), ("b.npy", npy(Z[:, :2]))], r"b.npy has \[2, 2, 3\] and .*a.npy has"),
        ([("a.npy", npy(Z)), ("b.npy", npy(Z)[:-9])], "Cannot read .*b.npy .* truncated"),
        ([("a.npy", npy(Z)), ("b.npy", npy(Z)), ("a_labels.npy", npy(Y))], "b.npy has no labels and .*a.npy has"),
        ([("a.npy", npy(Z)), ("a_labels.npy", npy(Y[:3]))], "expected one label for each of 12 samples"),
        ([("a.npy", npy(Z)), ("b.npy", npy(np.full_like(Z, np.inf)))], "b.npy, sample 1 holds NaN or infinite"),
    ],
)
def test_bad_folders(tmp_path: Path, files: list[tuple[str, bytes]], message: str) -> None:
    (tmp_path / "d").mkdir()
    fails(folder(tmp_path / "d", files), message)


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code from a file ran')",)


HOSTILE = np.array([_Code()], dtype=object)


@pytest.mark.parametrize("name", ["a.npy", "a.pt", "a.npz"])
def test_pickled_members_are_refused(tmp_path: Path, name: str) -> None:
    np.save(tmp_path / "hostile.npy", HOSTILE, allow_pickle=True)
    content = {"a.npy": (tmp_path / "hostile.npy").read_bytes(), "a.pt": pickle.dumps(_Code()), "a.npz": npz(x=HOSTILE)}
    fails(tar(tmp_path / "d.tar", [(name, content[name])]), "pickled Python objects")
    fails(folder(tmp_path / "d", [(name, content[name])]), "pickled Python objects")


def test_names_of_members_lead_nowhere(tmp_path: Path) -> None:
    secret = tmp_path / "secret.npy"
    np.save(secret, np.full((4, 2, 3), 9.0, np.float32))
    with tarfile.open(tmp_path / "d.tar", "w") as archive:
        link = tarfile.TarInfo("link.npy")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(link)
        for name in ("../../up.npy", f"{secret}"):
            (tmp_path / "z.npy").write_bytes(npy(Z[0]))
            archive.add(tmp_path / "z.npy", arcname=name)
    data = finite(tmp_path / "d.tar")
    assert len(data.points) == 2 and (data.points[:] == Z[0]).all()
    for name in ("../secret.npy", str(secret)):
        (tmp_path / "l.json").write_text(json.dumps({"root": ".", "file_list": [name], "label_list": [0]}))
        fails(tmp_path / "l.json", "which is not below its root")


@pytest.mark.parametrize("name", ["a\0b.npy", "a\0b", "\ud800.npy", "x" * 300 + ".npy", "", "."])
@pytest.mark.parametrize("entry", ["root", "file_list"])
def test_names_that_no_file_can_have_are_refused(name: str, entry: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", Z[0])
    listed = {"root": ".", "file_list": ["a.npy"], "label_list": [0]}
    (tmp_path / "l.json").write_text(json.dumps(listed | {entry: [name] if entry == "file_list" else name}))
    if entry == "file_list" or name not in ("", "."):
        with recording():
            fails(tmp_path / "l.json", "No file at|unknown extension")
    with recording(), pytest.raises(InputError):
        parse_coupling(f"pairs:{tmp_path / 'l.json'}", finite(tmp_path / "a.npy"), GaussianSource((3,)), lambda _: None)


def test_archives_that_cannot_be_read(tmp_path: Path) -> None:
    whole = tar(tmp_path / "d.tar", webdataset(Z, Y))
    whole.write_bytes(whole.read_bytes()[: 8 * 512 + 100])
    fails(whole, "Cannot read .*d.tar .*unexpected end of data.*complete")
    with tarfile.open(tmp_path / "z.tar", "w:gz") as archive:
        archive.add(whole, "a.npy")
    fails(tmp_path / "z.tar", "expected a complete, uncompressed .tar archive")
    fails(packed(tmp_path / "z.zip", edm(Z, Y), zipfile.ZIP_DEFLATED), "is compressed; pack with zip -0")
    fails(tar(tmp_path / "empty.tar", []), "holds no files")
    fails(f"{tar(tmp_path / 'w.tar', webdataset(Z, Y))}:files=shards", "Unpack them to use files=shards")
    fails(tmp_path / "nowhere.tar", "No file or folder at")
    fails(tmp_path / "nowhere.json", "No file or folder at")
    fails(tmp_path / "nowhere", "No file or folder at")
    (tmp_path / "l.json").write_text("[]")
    fails(tmp_path / "l.json", "expected a mapping with root, file_list and label_list")
