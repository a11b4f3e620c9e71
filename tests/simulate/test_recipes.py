"""Recipes: settings that hold, and the table of stand-ins on the page about simulation."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from cryoscale.errors import ConfigurationError
from cryoscale.formats.mrc import MrcVolume
from cryoscale.geometry import Box
from cryoscale.simulate.densities import density_from_map
from cryoscale.simulate.recipes import PEI, RECIPES, STAND_INS, recipe

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "simulation.md").read_text()
ROW = re.compile(r"^\| (\w{4}) \| (\w{4}) \| ([\d.]+)( \*)? \| (.+) \|$", flags=re.M)
MAPS = Path(os.environ.get("CRYOSCALE_TEST_DATA", ROOT.parent / "shared" / "data")) / "densities"


def test_the_page_lists_every_stand_in_and_no_other() -> None:
    assert [(paper, (stand_in, why)) for paper, stand_in, _, _, why in ROW.findall(PAGE)] == list(
        STAND_INS.items()
    )


def test_the_page_has_every_recipe() -> None:
    table = re.search(r"^\| recipe \|.*?\n\n", PAGE, flags=re.M | re.S)
    assert table
    assert re.findall(r"`([a-z0-9-]+)`", table[0]) == list(RECIPES)


@pytest.mark.skipif(not MAPS.is_dir(), reason=f"no maps at {MAPS} (CRYOSCALE_TEST_DATA)")
@pytest.mark.parametrize("name", ["1s3x", "3gl1", "6pxm"])
def test_radii_on_the_page_are_those_of_the_maps(name: str) -> None:
    said = {stand_in: float(radius) for _, stand_in, radius, _, _ in ROW.findall(PAGE)}
    with MrcVolume(MAPS / f"{name}.mrc") as volume:
        header = volume.header
        map_ZYX = volume.read(Box.whole(header.shape))
    size = header.voxel_size_angstrom
    assert size is not None
    made = density_from_map(map_ZYX, size, name=name, voxel_size_angstrom=10.0, resolution_angstrom=40.0)
    assert made.radius_angstrom == pytest.approx(said[name], abs=0.06)


@pytest.mark.parametrize("structures", ["stand-in", "paper"])
def test_the_papers_sets_have_their_classes_and_copies(structures: str) -> None:
    pei = recipe("pei-2016", seed=0, structures=structures)  # type: ignore[arg-type]
    assert len(pei.scene.particle_classes) == len(PEI) == 21
    assert [v.copies for v in pei.variants] == [2000, 5000, 8000]
    for name, snr in (("dsm-net-a", 0.06), ("dsm-net-b", 0.01)):
        dsm = recipe(name, seed=0, structures=structures)  # type: ignore[arg-type]
        assert len(dsm.scene.particle_classes) == len(STAND_INS) == 22
        assert dsm.imaging.snr == snr
        assert [v.copies for v in dsm.variants] == [10_000]
    neuron = recipe("dsm-net-c", seed=0, structures=structures)  # type: ignore[arg-type]
    assert [p.copies for p in neuron.scene.particles] == [400, 386]


@pytest.mark.parametrize("name", RECIPES)
def test_the_seed_and_the_name_are_kept(name: str) -> None:
    made = recipe(name, seed=7)
    assert (made.recipe, made.seed) == (name, 7)


def test_an_unknown_recipe_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"no recipe 'cel'") as caught:
        recipe("cel", seed=0)
    assert "cell-demo" in str(caught.value)
