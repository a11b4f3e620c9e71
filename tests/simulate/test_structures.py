"""Densities found by name, and made from atoms."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cryoscale.errors import ConfigurationError, CryoscaleError, FormatError
from cryoscale.formats.mrc import MrcVolume, write_mrc
from cryoscale.geometry import Box
from cryoscale.simulate.densities import Density, density_from_map
from cryoscale.simulate.finding import DensitySource, find_density
from cryoscale.simulate.shapes import density
from cryoscale.simulate.structures import density_from_atoms, load_densities, load_density, read_atoms

DATA = Path(os.environ.get("CRYOSCALE_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no test data at {DATA} (CRYOSCALE_TEST_DATA)")

Points = npt.NDArray[np.float64]


def read_map(path: Path) -> tuple[npt.NDArray[Any], float]:
    with MrcVolume(path) as volume:
        assert volume.header.voxel_size_angstrom is not None
        return volume.read(Box.whole(volume.shape)), volume.header.voxel_size_angstrom


def molecule(seed: int = 0, count: int = 2000) -> Points:
    """Atoms, x, y, z, at random in two balls of different size."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-1, 1, (6 * count, 3))
    points = points[(points**2).sum(axis=1) < 1][:count]
    points[: count // 3] = points[: count // 3] * 18 + (45, 10, -5)
    points[count // 3 :] *= 26
    return points + np.array([100, 40, 10])


def atom_line(number: int, xyz: Points, element: str = "C", residue: str = "ALA", chain: str = "A") -> str:
    x, y, z = xyz
    record = "HETATM" if residue == "HOH" else "ATOM  "
    return (
        f"{record}{number % 100000:5d}  {element:<3s} {residue} {chain}{number % 9999 + 1:4d}    "
        f"{x:8.3f}{y:8.3f}{z:8.3f}  1.00 20.00          {element:>2s}\n"
    )


def pdb(points: Points, extra: str = "", remarks: str = "") -> str:
    return remarks + "".join(atom_line(n, p) for n, p in enumerate(points)) + extra + "END\n"


TWOFOLD = """REMARK 350 BIOMOLECULE: 1
REMARK 350 APPLY THE FOLLOWING TO CHAINS: A
REMARK 350   BIOMT1   1  1.000000  0.000000  0.000000        0.00000
REMARK 350   BIOMT2   1  0.000000  1.000000  0.000000        0.00000
REMARK 350   BIOMT3   1  0.000000  0.000000  1.000000        0.00000
REMARK 350   BIOMT1   2 -1.000000  0.000000  0.000000       20.00000
REMARK 350   BIOMT2   2  0.000000 -1.000000  0.000000        0.00000
REMARK 350   BIOMT3   2  0.000000  0.000000  1.000000       -5.00000
"""


def cif(points: Points, assembly: str = "") -> str:
    columns = (
        "group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_entity_id "
        "label_seq_id Cartn_x Cartn_y Cartn_z occupancy B_iso_or_equiv auth_asym_id pdbx_PDB_model_num"
    )
    head = "data_TEST\nloop_\n" + "".join(f"_atom_site.{c}\n" for c in columns.split())
    rows = "".join(
        f"ATOM {n} C CA . ALA A 1 {n} {x:.3f} {y:.3f} {z:.3f} 1.0 20.0 A 1\n"
        for n, (x, y, z) in enumerate(points, 1)
    )
    return head + rows + "#\n" + assembly


def make(tmp_path: Path, text: str, name: str = "mol.pdb") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def write_shape(path: Path, kind: str = "barrel", voxel: float = 10.0) -> Path:
    return Path(write_mrc(path, density(kind, voxel), voxel) or path)


def load(name: str, *folders: Path, **options: Any) -> Density:
    return load_density(
        name, folders, voxel_size_angstrom=10.0, resolution_angstrom=40.0, read_map=read_map, **options
    )


def test_atoms_become_a_sum_of_gaussians(tmp_path: Path) -> None:
    points = molecule(count=300)
    made = density_from_atoms(make(tmp_path, pdb(points)), voxel_size_angstrom=8.0, resolution_angstrom=36.0)
    side = made.volume_ZYX.shape[0]
    centre = np.array(made.centre_zyx_angstrom)
    line = (np.arange(side) - side // 2) * 8.0
    width = 36.0 / (np.pi * np.sqrt(2))
    rounded = np.round(points, 3)[:, ::-1]
    gauss = [np.exp(-((line + centre[a] - rounded[:, a, None]) ** 2) / (2 * width**2)) for a in range(3)]
    wanted = np.einsum("nz,ny,nx->zyx", *gauss)
    inside = made.volume_ZYX > 0.02 * made.volume_ZYX.max()
    ratio = made.volume_ZYX[inside] / wanted[inside]
    np.testing.assert_allclose(made.volume_ZYX[inside], np.median(ratio) * wanted[inside], atol=0.01)
    assert made.name == "mol"
    assert "300 atoms" in made.source
    assert made.sha256 == hashlib.sha256((tmp_path / "mol.pdb").read_bytes()).hexdigest()


def test_the_sphere_of_atoms_is_where_they_are(tmp_path: Path) -> None:
    made = density_from_atoms(make(tmp_path, pdb(molecule())), voxel_size_angstrom=5.0)
    # Along x from 26 before the first centre to 18 beyond the second one, 45 Å away.
    np.testing.assert_allclose(made.centre_zyx_angstrom[2], 100 + (45 + 18 - 26) / 2, atol=3)
    assert 40 < made.radius_angstrom < 52


def test_mmcif_pdb_and_gzip_are_one(tmp_path: Path) -> None:
    points = molecule()
    plain = make(tmp_path, pdb(points))
    paths = [make(tmp_path, cif(points), "a.cif"), make(tmp_path, cif(points), "b.mmcif"),
             make(tmp_path, pdb(points), "c.ent")]  # fmt: skip
    for path in list(paths):
        packed = path.with_name(path.name + ".gz")
        packed.write_bytes(gzip.compress(path.read_bytes()))
        paths.append(packed)
    wanted = density_from_atoms(plain, voxel_size_angstrom=10.0)
    for path in paths:
        made = density_from_atoms(path, voxel_size_angstrom=10.0)
        np.testing.assert_allclose(made.volume_ZYX, wanted.volume_ZYX, atol=1e-5)
        assert made.name == path.name.split(".")[0]


def test_hydrogen_and_water_do_not_count_and_heavy_atoms_count_more(tmp_path: Path) -> None:
    points = molecule(count=200)
    rng = np.random.default_rng(1)
    extra = "".join(atom_line(n, p, "H") for n, p in enumerate(rng.uniform(-50, 50, (100, 3)), 300))
    extra += "".join(
        atom_line(n, p, "O", "HOH", "W") for n, p in enumerate(rng.uniform(-50, 50, (100, 3)), 500)
    )
    positions, weights, _ = read_atoms(make(tmp_path, pdb(points, extra)))
    np.testing.assert_allclose(positions, points, atol=1e-3)
    assert set(weights.tolist()) == {6.0}
    _, weights, _ = read_atoms(make(tmp_path, pdb(points, atom_line(900, points[0], "P"))))
    assert weights.max() == 15


def test_the_assembly_is_built_where_the_file_declares_one(tmp_path: Path) -> None:
    points = molecule(count=300)
    path = make(tmp_path, pdb(points, remarks=TWOFOLD))
    positions, weights, note = read_atoms(path)
    assert len(positions) == len(weights) == 600
    assert "assembly 1" in note
    turned = np.round(points, 3) * (-1, -1, 1) + (20, 0, -5)
    np.testing.assert_allclose(positions[300:], turned, atol=2e-3)
    assert len(read_atoms(path, assembly="")[0]) == 300
    with pytest.raises(ConfigurationError, match=r"no assembly '2'.*It has 1"):
        read_atoms(path, assembly="2")
    assert len(read_atoms(make(tmp_path, pdb(points), "plain.pdb"))[0]) == 300


def test_the_assembly_of_an_mmcif_file_goes_by_its_parts(tmp_path: Path) -> None:
    import gemmi

    points = molecule(count=100)
    structure = gemmi.read_structure(str(make(tmp_path, pdb(points, remarks=TWOFOLD))))
    structure.setup_entities()
    structure.make_mmcif_document().write_file(str(tmp_path / "two.cif"))
    positions, _, note = read_atoms(tmp_path / "two.cif")
    assert len(positions) == 200, note
    wanted, _, _ = read_atoms(tmp_path / "mol.pdb")
    np.testing.assert_allclose(np.sort(positions, axis=0), np.sort(wanted, axis=0), atol=2e-3)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.pdb", b"hello\n"),
        ("x.cif", b"<html>no</html>"),
        ("x.cif", b"data_x\n_cell.length_a 1\n"),
        ("x.cif", b""),
        ("x.cif.gz", b"<html>no</html>"),
        ("x.cif.gz", gzip.compress(cif(molecule(count=500)).encode())[:3000]),
        ("x.cif.gz", gzip.compress(cif(molecule(count=500)).encode())[:3000] + bytes(3000)),
    ],
)
def test_files_without_atoms_are_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError, match=name):
        density_from_atoms(tmp_path / name, voxel_size_angstrom=10.0)


def test_atoms_too_far_apart_are_refused(tmp_path: Path) -> None:
    points = np.array([[0.0, 0.0, 0.0], [9000.0, 9000.0, 9000.0]])
    with pytest.raises(ConfigurationError, match=r"mol\.pdb.*9000"):
        density_from_atoms(make(tmp_path, pdb(points)), voxel_size_angstrom=10.0)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("1kp8.mrc", "1KP8"), ("1KP8.MRC", "1kp8"), ("1kp8.map", "1kp8"), ("1kp8.cif.gz", "1KP8"),
        ("1kp8.cif", "pdb_00001kp8"), ("my.big.one.mrc", "my.big.one"), ("1kp8.mrc", "1kp8.mrc"),
        ("a_30S.ent.gz", "a_30s"), ("x.mmcif", "x"), ("x.pdb", "X"), ("x.map.bz2", "x"),
    ],
)  # fmt: skip
def test_names_find_files_whatever_the_case(tmp_path: Path, file: str, name: str) -> None:
    (tmp_path / "empty").mkdir()
    for other in (file, "other.mrc", "1kp8_small.mrc", "1kp8.txt", "1kp8.cif.gz.sha256"):
        (tmp_path / other).touch()
    found = find_density(name, [tmp_path / "empty", tmp_path, str(tmp_path)])
    assert found.path == tmp_path / file
    assert found.form == ("map" if ".m" in file.lower() and "mmcif" not in file else "atoms")


def test_kinds_and_paths_are_found(tmp_path: Path) -> None:
    assert find_density("barrel", [tmp_path]) == DensitySource("barrel", "shape")
    path = tmp_path / "deep" / "barrel.mrc"
    path.parent.mkdir()
    path.touch()
    assert find_density(str(path)).path == path
    with pytest.raises(ConfigurationError, match=r"nowhere\.mrc.*no such file"):
        find_density(str(tmp_path / "nowhere.mrc"))
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigurationError, match=r"notes\.txt.*neither"):
        find_density(str(tmp_path / "notes.txt"))


def test_what_is_missing_is_named_with_places_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        find_density("1KP8", [tmp_path], cache=tmp_path / "cache")
    for words in ("'1KP8'", str(tmp_path), str(tmp_path / "cache"), "cryoscale simulate structures 1KP8"):
        assert words in str(caught.value)
    with pytest.raises(ConfigurationError, match=r"'virus'.*ribosome, barrel") as caught:
        find_density("virus")
    assert "simulate structures" not in str(caught.value)
    with pytest.raises(ConfigurationError, match=f"no folder of densities {tmp_path}/none"):
        find_density("1KP8", [tmp_path / "none"])


def test_what_is_ambiguous_is_listed(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
    (first / "1kp8.mrc").touch()
    (second / "1KP8.cif").touch()
    with pytest.raises(ConfigurationError, match=f"{first}/1kp8.mrc and {second}/1KP8.cif"):
        find_density("1kp8", [first, second])
    assert find_density("1kp8", [first], cache=second).path == first / "1kp8.mrc"  # nearer counts
    assert find_density("1kp8", [], cache=second).path == second / "1KP8.cif"
    (first / "ring.mrc").touch()
    with pytest.raises(ConfigurationError, match=f"kind 'ring' and {first}/ring.mrc"):
        find_density("ring", [first])
    assert find_density("ring.mrc", [first]).path == first / "ring.mrc"


def test_maps_are_loaded_plain_and_packed(tmp_path: Path) -> None:
    plain = tmp_path / "thing.mrc"
    write_shape(plain)
    for opener, ending in ((gzip.compress, "gz"), (bz2.compress, "bz2")):
        (tmp_path / ending).mkdir()
        (tmp_path / ending / f"thing.mrc.{ending}").write_bytes(opener(plain.read_bytes()))
    wanted = load("thing", tmp_path)
    assert (wanted.name, wanted.source) == ("thing", "map thing.mrc")
    assert wanted.sha256 == hashlib.sha256(plain.read_bytes()).hexdigest()
    for folder in ("gz", "bz2"):
        made = load("THING", tmp_path / folder)
        assert made.name == "THING"
        np.testing.assert_array_equal(made.volume_ZYX, wanted.volume_ZYX)
    assert load("barrel", tmp_path).source == "procedural kind 'barrel'"


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    write_shape(tmp_path / "thing.mrc")
    data = gzip.compress((tmp_path / "thing.mrc").read_bytes())
    (tmp_path / "cut.mrc.gz").write_bytes(data[: len(data) // 2])
    (tmp_path / "none.mrc.gz").write_bytes(b"not gzip")
    (tmp_path / "junk.mrc.gz").write_bytes(gzip.compress(b"junk"))
    (tmp_path / "torn.mrc.gz").write_bytes(data[: len(data) // 2] + bytes(len(data) // 2))
    for name in ("cut", "none", "junk", "torn"):
        with pytest.raises(CryoscaleError, match=f"{tmp_path}/{name}.mrc.gz"):
            load(name, tmp_path)


def test_a_recorded_checksum_is_compared(tmp_path: Path) -> None:
    path = tmp_path / "thing.mrc"
    write_shape(path)
    record = tmp_path / "thing.mrc.sha256"
    record.write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  thing.mrc\n")
    assert load("thing", tmp_path).sha256
    record.write_text(f"{'0' * 64}  thing.mrc\n")
    with pytest.raises(FormatError, match=r"thing\.mrc is not the file that was stored.*Delete both"):
        load("thing", tmp_path)


def test_many_are_loaded_once_each_and_a_missing_one_is_found_first(tmp_path: Path) -> None:
    write_shape(tmp_path / "thing.mrc")
    reads: list[Path] = []

    def counted(path: Path) -> tuple[npt.NDArray[Any], float]:
        reads.append(path)
        return read_map(path)

    options: dict[str, Any] = {"voxel_size_angstrom": 10.0, "read_map": counted}
    loaded = load_densities(["thing", "ball", "thing"], [tmp_path], **options)
    assert list(loaded) == ["thing", "ball"]
    assert len(reads) == 1
    with pytest.raises(ConfigurationError, match="9ZZZ"):
        load_densities(["thing", "9ZZZ"], [tmp_path], **options)
    assert len(reads) == 1


@needs_data
@pytest.mark.parametrize("name", ["1bxn", "1s3x", "2cg9", "3cf3", "3gl1", "3h84"])
def test_atoms_give_the_map_of_the_same_molecule(name: str) -> None:
    volume, voxel = read_map(DATA / "densities" / f"{name}.mrc")
    wanted = {"name": name, "voxel_size_angstrom": 10.0, "resolution_angstrom": 40.0}
    of_map = density_from_map(volume, voxel, **wanted)
    of_atoms = density_from_atoms(DATA / "structures" / f"{name}.pdb", assembly="", **wanted)
    side = max(of_map.volume_ZYX.shape[0], of_atoms.volume_ZYX.shape[0])
    both = [np.pad(d.volume_ZYX, (side - d.volume_ZYX.shape[0]) // 2).ravel() for d in (of_map, of_atoms)]
    assert np.corrcoef(*both)[0, 1] > 0.985
    assert of_atoms.radius_angstrom == pytest.approx(of_map.radius_angstrom, abs=2)
    assert of_atoms.volume_ZYX.max() == pytest.approx(of_map.volume_ZYX.max(), rel=0.12)


@needs_data
def test_a_folder_with_both_a_map_and_atoms_is_ambiguous(tmp_path: Path) -> None:
    for path in (DATA / "densities" / "1s3x.mrc", DATA / "structures" / "1s3x.pdb"):
        shutil.copy(path, tmp_path)
    with pytest.raises(ConfigurationError, match="ambiguous"):
        load("1S3X", tmp_path)
    assert load("1s3x.pdb", tmp_path).source.startswith("atoms 1s3x.pdb, assembly 1")
