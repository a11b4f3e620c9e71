"""Supervised networks applied: every way against plain torch and numpy; blocks change no byte."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from cryoscale.data.access import Access
from cryoscale.data.rows import Picks
from cryoscale.data.tomogram import LabelVolume
from cryoscale.data.volumes import ImageVolume, image_volumes
from cryoscale.errors import ConfigurationError, DataError, StateError
from cryoscale.geometry import Box, Zyx
from cryoscale.ops.blend import Windows, weight_window
from cryoscale.ops.tiles import reflected
from cryoscale.stages import applying, applying_bytes, labelling, particle_boxes, predicting
from cryoscale.stages.apply import ApplyStage
from cryoscale.stages.applying import EACH_BOX, applied, in_tiles, tiles_of
from cryoscale.stages.networks import CACHE
from cryoscale.testing.phantoms import small_run
from tests.pipeline.driving import drive
from tests.stages.applied import (
    access_of,
    answers,
    apply,
    check_labels,
    density_of,
    install,
    network,
    shares_of,
    sure,
    whole,
)  # fmt: skip

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from cryoscale.data.run import Run

PARTICLES = ("big one", "small", "rod")


@pytest.fixture(scope="module")
def picked_run(tmp_path_factory: pytest.TempPathFactory, small_sources: list[Path]) -> Run:
    run = small_run(tmp_path_factory.mktemp("apply") / "run", small_sources, "segment.volumes=merged")
    assert not drive(run, until="pick").failures
    return run


@pytest.fixture(autouse=True)
def no_networks_kept() -> Iterator[None]:
    yield
    CACHE.close()


@pytest.mark.parametrize(
    "architecture",
    [
        {"name": "ssn3d-ed", "n_classes": 3, "channels": 2, "batch_norm": True},
        {"name": "edss3d", "n_classes": 3, "channels": 2},
        {"name": "dsm-net", "heads": ["seg", "rec"], "channels": 2, "n_labels": 2, "n_classes": 2},
        {"name": "dsm-net", "channels": 2, "n_labels": 3, "n_classes": 3},
        {"name": "unet3d", "n_classes": 2, "channels": 2},
    ],
    ids=lambda a: f"{a['name']}-{len(a)}",
)
def test_tiles_are_the_whole_volume_at_once(
    picked_run: Run, monkeypatch: pytest.MonkeyPatch, architecture: dict[str, Any]
) -> None:
    monkeypatch.setattr(applying, "TILE", 32)
    monkeypatch.setattr(applying, "SHARD", 32)
    module = network(**architecture)
    install(picked_run, module)
    access = access_of(picked_run, 'segment.windows="tiles"')
    model = applied(access)
    assert in_tiles(access, model)
    shape = Zyx(40, 64, 64)
    labels = apply(access)
    padded = Zyx(*(-(-n // model.facts.alignment) * model.facts.alignment for n in shape))
    shares = answers(module, density_of(access, padded)[None, None])["seg"][0][:, :40]
    assert tiles_of(model, shape).size.voxels <= padded.voxels
    check_labels(labels, shares)
    voted = access_of(picked_run, 'segment.windows="tiles"', "segment.probabilities=true")
    np.testing.assert_array_equal(apply(voted)[sure(shares)], labels[sure(shares)])
    np.testing.assert_allclose(shares_of(voted), shares, atol=2e-3)


def blended(
    access: Access, module: nn.Module, density: np.ndarray, shape: Zyx, size: Any, overlap: Any
) -> np.ndarray:
    """Blend windows by hand: shares of all classes."""
    windows = Windows.of(shape, size, overlap)
    total, weights = 0.0, np.zeros(shape)
    for start in windows.starts_for(Box.whole(shape)):
        box = windows.window(start)
        item = reflected(density, Box.whole(shape), box, shape)
        found = answers(module, item[None, None])
        seg = found["seg"][0]
        if "cls" in found:
            seg = np.concatenate([seg[:1], (1 - seg[:1]) * found["cls"][0][:, None, None, None]])
        inside = box.intersect(Box.whole(shape))
        part = inside.relative_to(box.start).slices
        if isinstance(total, float):
            total = np.zeros((len(seg), *shape))
        weight = weight_window(windows.size)[part]
        total[(slice(None), *inside.slices)] += seg[(slice(None), *part)] * weight
        weights[inside.slices] += weight
    return np.asarray(total / weights)


@pytest.mark.parametrize(
    ("architecture", "box", "tiles"),
    [
        ({"name": "ssn3d-ed", "n_classes": 3}, 32, True),
        ({"name": "ssn3d-ed", "n_classes": 3}, 28, False),  # hardly a voxel far from the faces
        ({"name": "edss3d", "n_classes": 3}, 40, True),
        ({"name": "unet3d", "n_classes": 3}, 40, False),  # 8 GB for a tile
        ({"name": "dsm-net", "n_classes": 3}, 40, False),  # looks at the whole box
        ({"name": "unet2d", "n_classes": 3, "channels": 2}, 40, False),
    ],
)
def test_the_network_decides_how_it_is_applied(
    picked_run: Run, architecture: dict[str, Any], box: int, tiles: bool
) -> None:
    module = network(**architecture | {"channels": 2})
    install(picked_run, module, box=box, particles={"names": list(PARTICLES)})
    access = access_of(picked_run)
    model = applied(access)
    wide = {"channels": 32} | architecture
    model = replace(model, card={**model.card, "architecture": {**model.card["architecture"], **wide}})
    assert in_tiles(access, model) == tiles
    plan = ApplyStage().plan(access)
    assert plan.bytes_per_worker > 256 * 2**20
    assert plan.disk_bytes >= 40 * 64 * 64


def test_densities_are_recovered_tile_by_tile(picked_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applying, "TILE", 32)
    monkeypatch.setattr(applying, "SHARD", 32)
    module = network(name="dsm-net", heads=["seg", "rec"], channels=2, n_classes=2)
    install(picked_run, module)
    access = access_of(picked_run, 'segment.windows="tiles"', "segment.densities=true")
    labels = apply(access)
    found = answers(module, density_of(access)[None, None])
    image = ImageVolume(access.run.tomogram("alpha"), "densities", "classes")
    np.testing.assert_allclose(whole(image.pyramid), found["rec"][0, 0], atol=1e-4)
    check_labels(labels, found["seg"][0])


def test_windows_of_the_box_are_blended(picked_run: Run) -> None:
    module = network(name="ssn3d-ed", n_classes=3, channels=2)
    install(picked_run, module, box=20, sigma=0)
    access = access_of(picked_run, "segment.probabilities=true", "segment.overlap_voxels=6")
    labels = apply(access)
    shares = blended(access, module, density_of(access), Zyx(40, 64, 64), 20, 6)
    check_labels(labels, shares)
    np.testing.assert_allclose(shares_of(access), shares, atol=2e-3)


def test_a_particle_network_is_applied_everywhere(picked_run: Run) -> None:
    module = network(name="dsm-net", n_classes=3, channels=2, features=8)
    install(picked_run, module, box=16, particles={"names": list(PARTICLES)}, classes={})
    access = access_of(
        picked_run, "segment.probabilities=true", "segment.overlap_voxels=4", "segment.densities=true"
    )
    labels = apply(access)
    shares = blended(access, module, density_of(access), Zyx(40, 64, 64), 16, 4)
    np.testing.assert_allclose(shares_of(access), shares, atol=2e-3)
    clear = np.abs(shares[0] - 0.5) > 2e-3
    np.testing.assert_array_equal((labels > 0)[clear], (shares[0] < 0.5)[clear])
    certain = clear & (shares[0] < 0.5) & sure(shares[1:])
    np.testing.assert_array_equal(labels[certain], 1 + shares[1:].argmax(axis=0)[certain])
    assert access.label_volume().facts.class_names == PARTICLES


def test_boxes_of_picks_are_embedded(picked_run: Run) -> None:
    module = network(name="dsm-net", n_classes=3, channels=2, features=8)
    install(picked_run, module, box=8, particles={"names": list(PARTICLES)}, classes={})
    access = access_of(
        picked_run, "segment.mode=picks", "segment.densities=true", "segment.probabilities=true"
    )
    labels = apply(access)
    reader = applied(access).reader(access)
    centres = reader.voxels(access.picks().positions_N3)
    assert len(centres) > 3
    found = answers(module, reader.gather(centres)[:, None])
    shape, weight = Zyx(40, 64, 64), weight_window(8)
    votes, recovered = np.zeros((4, *shape)), np.zeros(shape)
    for row, centre in enumerate(centres):
        box = Box.of(centre - 4, centre + 4)
        inside = box.intersect(Box.whole(shape))
        part = inside.relative_to(box.start).slices
        objects = (1 - found["seg"][row, 0])[part] * weight[part]
        votes[(0, *inside.slices)] += weight[part] - objects
        votes[(1 + found["cls"][row].argmax(), *inside.slices)] += objects
        recovered[inside.slices] += (found["rec"][row, 0] * weight)[part]
    total = votes.sum(axis=0)
    seen = total > 0
    assert 0 < seen.mean() < 1
    image = ImageVolume(access.run.tomogram("alpha"), "densities", "classes")
    expected = np.divide(recovered, total, out=np.zeros(shape), where=seen)
    np.testing.assert_allclose(whole(image.pyramid), expected, atol=1e-4)
    assert not labels[~seen].any()
    certain = np.abs(votes[0] - total / 2) > 1e-3 * total
    np.testing.assert_array_equal((labels > 0)[certain & seen], (votes[0] < total / 2)[certain & seen])
    shares = np.divide(votes, total, out=np.zeros_like(votes), where=seen)
    np.testing.assert_allclose(shares_of(access)[1:], shares[1:], atol=2e-3)
    assert image.notes["voxel_size_angstrom"] == 10.0


def test_boxes_are_scaled_as_those_of_a_table_were(picked_run: Run) -> None:
    module = network(name="dsm-net", n_classes=3, channels=2, features=8)
    words = ["segment.probabilities=true", "segment.overlap_voxels=0"]
    install(picked_run, module, particles={"names": list(PARTICLES)}, preprocessing={"density": EACH_BOX})
    access = access_of(picked_run, *words)
    apply(access)

    class Scaled:
        heads = module.heads

        def __call__(self, items: Any) -> Any:
            axes = (1, 2, 3, 4)
            return module((items - items.mean(axes, True)) / items.std(axes, correction=0, keepdim=True))

    shares = blended(access, Scaled(), density_of(access), Zyx(40, 64, 64), 8, 0)  # type: ignore[arg-type]
    np.testing.assert_allclose(shares_of(access), shares, atol=2e-3)
    install(picked_run, module, particles={"names": list(PARTICLES)})
    plain = access_of(picked_run, *words)
    apply(plain)
    assert np.abs(shares_of(plain) - shares).max() > 0.01
    assert EACH_BOX in inspect.getsource(particle_boxes), "what cards of such networks say"


def test_a_segmenter_on_picks_says_the_class_itself(picked_run: Run) -> None:
    module = network(name="edss3d", n_classes=3, channels=2)
    install(picked_run, module)
    access = access_of(picked_run, "segment.mode=picks")
    labels = apply(access)
    reader = applied(access).reader(access)
    centres = reader.voxels(access.picks().positions_N3)
    votes = np.zeros((3, 40, 64, 64))
    for row, seg in enumerate(answers(module, reader.gather(centres)[:, None])["seg"]):
        box = Box.of(centres[row] - 4, centres[row] + 4)
        inside = box.intersect(Box.whole(Zyx(40, 64, 64)))
        part = (slice(None), *inside.relative_to(box.start).slices)
        votes[(slice(None), *inside.slices)] += seg[part] * weight_window(8)[part[1:]]
    np.testing.assert_array_equal(labels[sure(votes)], votes.argmax(axis=0)[sure(votes)])
    assert not labels[votes.sum(axis=0) == 0].any()


WAYS = {
    "tiles": ({"name": "ssn3d-ed", "n_classes": 3, "channels": 2}, ['segment.windows="tiles"']),
    "windows": ({"name": "edss3d", "n_classes": 3, "channels": 2}, ["segment.overlap_voxels=3"]),
    "picks": ({"name": "edss3d", "n_classes": 3, "channels": 2}, ["segment.mode=picks"]),
    "slices": ({"name": "unet2d", "n_classes": 3, "channels": 2, "slices": 3}, []),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_blocks_change_no_byte(picked_run: Run, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(applying, "TILE", 16)
    monkeypatch.setattr(applying, "SHARD", 32)
    for module in (labelling, applying_bytes):
        monkeypatch.setattr(module, "SHARD", 32)
    monkeypatch.setattr("cryoscale.stages.apply.SHARD", 32)
    monkeypatch.setattr("cryoscale.stages.apply.CHUNK", 16)
    monkeypatch.setattr(applying_bytes, "CHUNK", 16)
    monkeypatch.setattr(labelling, "CHUNK", 16)
    monkeypatch.setattr(applying_bytes, "SLICE_EDGE_WITH_VOTES", 32)
    monkeypatch.setattr(predicting, "PLANES", 8)
    monkeypatch.setattr(predicting, "PICK_PLANES", 16)
    architecture, settings = WAYS[way]
    extra = {"slices": {"axis": "y", "tile": 32, "neighbours": 1}} if way == "slices" else {}
    install(picked_run, network(**architecture), box=8, **extra)
    found = []
    for edge in (32, 64):
        words = [
            *settings,
            "segment.probabilities=true",
            "segment.volumes=both",
            f"execution.block_voxels={edge}",
        ]
        access = access_of(picked_run, *words)
        assert len(ApplyStage().plan(access).phases[0]) == (8 if edge == 32 else 1)
        apply(access)
        root = access.run.tomogram("alpha")
        found.append({name: data for kind in ("labels", "probabilities")
                      for name, data in tree(root.child(kind).path()).items()})  # fmt: skip
    assert sum("/c/" in name for name in found[0]) > 20
    assert found[0] == found[1]


def tree(path: str) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(Path(path).rglob("*")) if p.is_file()}


def test_levels_follow_the_level_at_work(picked_run: Run) -> None:
    install(picked_run, network(name="edss3d", n_classes=3, channels=2))
    access = access_of(picked_run, "run.working_voxel_size_angstrom=20", "segment.probabilities=true",
                       tomogram="beta")  # fmt: skip
    install(picked_run, network(name="edss3d", n_classes=3, channels=2), voxel_size_angstrom=20.0)
    apply(access)
    volume = access.label_volume()
    assert volume.facts.working_level == 1
    coarse, fine = whole(volume.pyramid, 1), whole(volume.pyramid, 0)
    np.testing.assert_array_equal(fine, np.kron(coarse, np.ones((2, 2, 2), np.uint8)))
    image = image_volumes(picked_run.tomogram("beta"), "probabilities", "classes")[0]
    assert image.notes["voxel_size_angstrom"] == 20
    ome = image.pyramid.folder.read_json("zarr.json")["attributes"]["ome"]
    (dataset,) = ome["multiscales"][0]["datasets"]
    assert dataset["coordinateTransformations"] == [
        {"type": "scale", "scale": [20.0] * 3}, {"type": "translation", "translation": [5.0] * 3},
    ]  # fmt: skip
    assert image.pyramid.shape(0) == coarse.shape
    assert image.pyramid.array(0).dtype == np.float16


def test_one_volume_per_class(picked_run: Run) -> None:
    install(picked_run, network(name="edss3d", n_classes=3, channels=2),
            classes={"names": ["double membrane", "ribosome"], "colors": [[1, 2, 3], [4, 5, 6]]})  # fmt: skip
    tomogram = picked_run.tomogram("alpha")
    merged = apply(access_of(picked_run, "segment.volumes=both", "segment.probabilities=true"))
    assert set(np.unique(merged)) == {0, 1, 2}
    for value, name in enumerate(["classes-double-membrane", "classes-ribosome"], start=1):
        volume = LabelVolume(tomogram, name)
        np.testing.assert_array_equal(whole(volume.pyramid), merged == value)
        assert len(volume.facts.class_names) == 1
    listed = tomogram.child("labels").read_json("zarr.json")["attributes"]["ome"]["labels"]
    assert listed == ["classes", "classes-double-membrane", "classes-ribosome"]
    assert [i.notes["class_name"] for i in image_volumes(tomogram, "probabilities", "classes")] == [
        "double membrane", "ribosome",
    ]  # fmt: skip
    apply(access_of(picked_run, "segment.volumes=features"))
    np.testing.assert_array_equal(whole(LabelVolume(tomogram, "classes-ribosome").pyramid), merged == 2)
    with pytest.raises(StateError):
        LabelVolume(tomogram, "classes").facts  # noqa: B018
    assert not image_volumes(tomogram, "probabilities", "classes")
    apply(access_of(picked_run))
    listed = tomogram.child("labels").read_json("zarr.json")["attributes"]["ome"]["labels"]
    assert listed == ["classes"]


def test_what_another_label_volume_has_beside_it_stays(picked_run: Run) -> None:
    install(picked_run, network(name="edss3d", n_classes=2, channels=2))
    tomogram = picked_run.tomogram("alpha")
    apply(access_of(picked_run, "segment.labels=classes-of-mine", "segment.volumes=both"))
    apply(access_of(picked_run))
    listed = tomogram.child("labels").read_json("zarr.json")["attributes"]["ome"]["labels"]
    assert listed == ["classes", "classes-of-mine", "classes-of-mine-class-0"]
    for name in listed[1:]:
        tomogram.child("labels").delete(name)


def test_written_volumes_are_read_by_zarr_alone(picked_run: Run) -> None:
    import zarr

    install(picked_run, network(name="edss3d", n_classes=2, channels=2))
    access = access_of(picked_run, "segment.probabilities=true")
    apply(access)
    root = zarr.open_group(picked_run.tomogram("alpha").path(), mode="r")
    image: Any = root["probabilities/classes/class-0/0"]
    np.testing.assert_array_equal(np.asarray(image[...]).astype(np.float32), shares_of(access)[1])


def test_nothing_found_is_an_empty_volume(picked_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    module = network(name="edss3d", n_classes=2, channels=2)
    module.classify.bias[0] = 1000.0  # type: ignore[index, union-attr, operator]
    install(picked_run, module)
    access = access_of(picked_run, "segment.probabilities=true")
    assert not apply(access).any()
    assert not access.label_volume().pyramid.folder.exists("0/c")
    monkeypatch.setattr(Access, "picks", lambda *_: Picks(np.empty((0, 3)), np.empty(0, np.float32)))
    assert not apply(access_of(picked_run, "segment.mode=picks")).any()


def test_a_network_that_gives_no_numbers_is_met(picked_run: Run) -> None:
    module = network(name="edss3d", n_classes=2, channels=2)
    module.classify.bias[1] = np.nan  # type: ignore[index, union-attr, operator]
    install(picked_run, module)
    for words in (["segment.mode=picks"], ['segment.windows="tiles"'], ["segment.probabilities=true"]):
        with pytest.raises(DataError, match="not finite"):
            apply(access_of(picked_run, *words))


@pytest.mark.parametrize(
    ("architecture", "words", "message"),
    [
        ({"name": "dsm-net", "n_classes": 3, "channels": 2}, ['segment.windows="tiles"'], "windows = "),
        ({"name": "unet2d", "n_classes": 3, "channels": 2}, ["segment.mode=picks"], "mode = 'picks'"),
        ({"name": "dsrf3d-v2", "n_classes": 3, "channels": 2, "box": [8, 8, 8]}, [], "single voxels"),
        ({"name": "edss3d", "n_classes": 3, "channels": 2}, ["patch.size_voxels=4", "segment.mode=picks"],
         "boxes of 8"),
    ],
)  # fmt: skip
def test_what_a_network_cannot_do_is_refused(
    picked_run: Run, architecture: dict[str, Any], words: list[str], message: str
) -> None:
    install(picked_run, network(**architecture), particles={"names": list(PARTICLES)})
    with pytest.raises(ConfigurationError, match=message):
        ApplyStage().plan(access_of(picked_run, *words))


def test_another_voxel_size_and_nameless_classes_are_refused(picked_run: Run) -> None:
    module = network(name="edss3d", n_classes=3, channels=2)
    install(picked_run, module, voxel_size_angstrom=13.0)
    with pytest.raises(ConfigurationError, match="13 Å per voxel"):
        ApplyStage().plan(access_of(picked_run))
    install(picked_run, module, classes={})
    with pytest.raises(StateError, match="names 0 classes, it has 2"):
        ApplyStage().plan(access_of(picked_run))
