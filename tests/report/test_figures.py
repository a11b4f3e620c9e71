from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread
from scipy.ndimage import gaussian_filter

from cryoscale.data.run import Run
from cryoscale.data.tomogram import LabelVolume, Tomogram
from cryoscale.report import slices
from cryoscale.report.figures import (
    Markers,
    View,
    contrast_limits,
    label_overlay,
    near_slice,
    ortho_figure,
    png_bytes,
    round_length,
    training_curves,
)
from cryoscale.report.html import human_bytes, human_count, human_seconds, human_whole
from cryoscale.report.slices import slab_of_interest, slicer_for
from cryoscale.report.tiles import GAP, gray_png, scaled, slices_of, strip
from tests.report.synthetic import SHAPE, VOXEL, add_labels, add_tomogram, new_run


def view(axes="yx", at=5.0):
    image = np.random.default_rng(0).normal(size=(20, 30)).astype(np.float32)
    return View(axes, image, 2.0, 1.0, at)


@pytest.mark.parametrize(("axes", "normal"), [("yx", 0), ("zx", 1), ("yz", 2)])
def test_only_picks_within_a_radius_of_the_slice_are_near(axes, normal):
    positions = np.full((3, 3), 100.0)
    positions[:, normal] = [5.0, 8.0, 8.1]
    markers = Markers(positions, 3.0, np.zeros((3, 3)))
    assert near_slice(view(axes), markers).tolist() == [True, True, False]


def test_circles_have_the_radius_and_place_of_the_picks():
    positions = np.array([[5.0, 20.0, 40.0]])
    views = {"yx": view(), "zx": view("zx"), "yz": view("yz")}
    figure = ortho_figure(views, markers=Markers(positions, 6.0, np.ones((1, 3))))
    circles = figure.axes[0].collections[-1]
    assert circles.get_offsets().tolist() == [[40.0, 20.0]]  # x across, y upwards
    plain = _pixels(ortho_figure(views))
    changed = np.abs(_pixels(figure) - plain).sum(axis=-1) > 0
    left, bottom = figure.axes[0].transData.transform((34.0, 14.0))
    right, top = figure.axes[0].transData.transform((46.0, 26.0))
    rows, columns = np.nonzero(changed[: len(changed) - int(bottom) + 4, : int(figure.axes[0].bbox.x1)])
    height = len(changed)
    assert [columns.min(), columns.max()] == pytest.approx([left, right], abs=3)  # the line is 2 pixels wide
    assert [height - rows.max(), height - rows.min()] == pytest.approx([bottom, top], abs=4)


def _pixels(figure):
    return imread(io.BytesIO(png_bytes(figure)))


def test_extent_puts_the_centre_of_the_first_pixel_at_the_origin():
    assert view().extent == (0.0, 60.0, 0.0, 40.0)


def test_pictures_are_the_same_bytes_whatever_the_persons_settings():
    import matplotlib

    def picture():
        return png_bytes(ortho_figure({"yx": view(), "zx": view("zx"), "yz": view("yz")}))

    first = picture()
    with matplotlib.rc_context({"font.size": 20, "savefig.dpi": 50, "image.cmap": "jet"}):
        assert picture() == first


def test_contrast_ignores_a_gold_bead():
    image = np.random.default_rng(0).normal(size=(100, 100)).astype(np.float32)
    limits = contrast_limits(image)
    image[:3, :3] = -1000
    assert contrast_limits(image) == pytest.approx(limits, abs=0.3)
    low, high = contrast_limits(np.zeros((4, 4), np.float32))
    assert low < high


def test_overlay_is_clear_on_background_and_coloured_on_labels():
    labels = np.zeros((5, 5), np.int32)
    labels[1:4, 1:4] = 2
    overlay = label_overlay(labels, np.array([[1.0, 0, 0], [0, 1.0, 0]]))
    assert overlay[0, 0, 3] == 0
    assert overlay[2, 2].tolist() == [0, 1, 0, 0.4]
    assert overlay[1, 1, 3] == 0.9


@pytest.mark.parametrize(("length", "bar"), [(53.8, 50), (19, 10), (20, 20), (0.7, 0.5), (1000, 1000)])
def test_scale_bars_have_round_lengths(length, bar):
    assert round_length(length) == pytest.approx(bar)


def test_curves_show_what_has_train_and_validation():
    history = {
        key: np.ones(3) for key in ("epoch", "train_loss", "validation_loss", "train_only", "improved")
    }
    figure, names = training_curves(history, 2)
    assert names == ("loss",)
    assert len(figure.axes) == 1


def test_curves_of_many_heads_are_laid_out_in_rows():
    parts = ("loss", "cls_loss", "cls_accuracy", "seg_loss", "seg_accuracy", "rec_error")
    history = {f"{part}_{name}": np.ones(3) for name in parts for part in ("train", "validation")}
    figure, names = training_curves({"epoch": np.arange(1, 4), **history}, 2)
    assert names == parts
    shown = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert shown[:3] == ["loss", "class: loss", "class: accuracy"]
    assert len(shown) == 6
    width, height = figure.get_size_inches()
    assert width < 17
    assert height > 6


def test_strips_hold_all_slices_on_one_scale_with_y_upwards():
    volume = np.arange(4 * 8 * 8, dtype=np.float32).reshape(4, 8, 8)
    tiles = slices_of(volume)
    assert tiles[0].min() == 0
    assert tiles[-1].max() == 255
    picture = strip(tiles, side=16)
    assert picture.shape == (16, 4 * 16 + 3 * GAP)
    assert picture[-1, 0] == tiles[0][0, 0]
    assert len(slices_of(np.zeros((40, 2, 2)), most=12)) == 12
    assert scaled(np.ones((2, 2))).tolist() == [[128, 128], [128, 128]]
    decoded = imread(io.BytesIO(gray_png(picture)))
    np.testing.assert_allclose(decoded[..., 0] * 255, picture, atol=1)


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Run:
    run = new_run(tmp_path_factory.mktemp("slices") / "run", ["one"])
    add_tomogram(run, "one", z_range=(4, 20))
    add_labels(run, "one")
    return run


@pytest.mark.parametrize(("axis", "axes"), [(0, "yx"), (1, "zx"), (2, "yz")])
def test_slices_equal_the_mean_of_the_slab_of_the_whole_volume(stored, axis, axes):
    tomogram = Tomogram(stored.tomogram("one"))
    slicer = slicer_for(tomogram, LabelVolume(stored.tomogram("one"), "classes"), radius_nm=6.0)
    assert (slicer.level, slicer.half) == (0, 1)
    cut = slicer.view(axis, 10 * VOXEL / 10)
    whole = (tomogram.pyramid.array(0)[:] - 5.0) / 2.0
    slab = np.take(whole, [9, 10, 11], axis=axis).mean(axis=axis)
    expected = gaussian_filter(slab.T if axis == 2 else slab, 1.0)
    np.testing.assert_allclose(cut.image_UV, expected, atol=1e-5)
    assert (cut.axes, cut.at_nm) == (axes, 20.0)
    assert cut.labels_UV.shape == cut.image_UV.shape
    assert slab_of_interest(tomogram.facts) == (8.0, 38.0)


def test_a_picture_of_a_huge_level_is_reduced_and_labels_with_it(stored, monkeypatch):
    monkeypatch.setattr(slices, "PIXELS", 20)
    tomogram = Tomogram(stored.tomogram("one"))
    slicer = slicer_for(tomogram, LabelVolume(stored.tomogram("one"), "classes"), radius_nm=6.0)
    assert (slicer.level, slicer.stride, slicer.half) == (1, 2, 0)
    cut = slicer.view(0, 20.0)
    half = [-(-n // 2) for n in SHAPE]
    assert cut.image_UV.shape == (half[1] // 2, half[2] // 2)
    assert cut.labels_UV.shape == cut.image_UV.shape
    assert cut.pixel_nm == 2 * 2 * VOXEL / 10
    plane = (tomogram.pyramid.array(1)[5] - 5.0) / 2.0
    means = plane.reshape(half[1] // 2, 2, half[2] // 2, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(cut.image_UV, gaussian_filter(means, 1.0), atol=1e-5)
    assert replace(cut, pixel_nm=1.0).size_nm == cut.image_UV.shape


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (human_bytes(999), "999 B"), (human_bytes(1_500_000), "1.5 MB"), (human_bytes(2.5e13), "25 TB"),
        (human_seconds(0.02), "0.02 s"), (human_seconds(99.4), "99.4 s"), (human_seconds(125), "2 min 05 s"),
        (human_seconds(7260), "2 h 01 min"), (human_count(None), ""), (human_count(41.1e6), "41.1 M"),
        (human_count(3e12), "3e+03 G"), (human_whole(3534), "3\u202f534"),
    ],
)  # fmt: skip
def test_numbers_for_people(written, expected):
    assert written == expected
