"""Positions from and to other programs' files, by way of the real starfile."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import starfile
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoscale.errors import ConfigurationError, FormatError, SurroundingsError
from cryoscale.formats.points import (
    TomogramGeometry,
    read_positions,
    read_tomograms_star,
    write_csv,
    write_import_list,
    write_star,
)
from cryoscale.geometry import Zyx

DATA = Path(os.environ.get("CRYOSCALE_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no test data at {DATA} (CRYOSCALE_TEST_DATA)")

SHAPE, VOXEL = (60, 100, 140), 10.0
TOMOGRAM: dict[str, Any] = {"shape": SHAPE, "voxel_size_angstrom": VOXEL}
ZYX = np.array([[100.0, 200.0, 300.0], [0.0, 990.0, 1390.0], [595.0, 5.0, 15.0]])


def write_table(path: Path, columns: dict[str, Any], **others: pd.DataFrame) -> Path:
    starfile.write({**others, "particles": pd.DataFrame(columns)}, path)
    return path


@pytest.mark.parametrize(
    ("header", "scale", "convention"),
    [
        ("x_angstrom,y_angstrom,z_angstrom", 1.0, "angstrom"),
        ("x_A,y_A,z_A", 1.0, "angstrom"),
        ("x,y,z", 10.0, "voxels"),
        ("x_vox,y_vox,z_vox", 10.0, "voxels"),
        (" X_Voxel , Y_Voxel , Z_Voxel ", 10.0, "voxels"),
    ],
)
def test_csv_columns(tmp_path: Path, header: str, scale: float, convention: str) -> None:
    path = tmp_path / "p.csv"
    lines = [header, *(",".join(str(v / scale) for v in row[::-1]) for row in ZYX), ""]
    path.write_text("\ufeff" + "\r\n".join(lines))
    found = read_positions(path, **TOMOGRAM)
    np.testing.assert_allclose(found.positions_N3, ZYX)
    assert found.convention.startswith(convention)
    assert found.score_N is None
    assert found.class_N is None


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 595), st.floats(0, 995), st.floats(0, 1395)), max_size=20))
def test_what_we_write_comes_back(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    positions = np.array(rows).reshape(-1, 3)
    folder = tmp_path_factory.getbasetemp()
    scores = np.arange(len(rows)) / 7
    write_csv(folder / "p.csv", positions, voxel_size_angstrom=VOXEL, tomogram="t", score_N=scores)
    found = read_positions(folder / "p.csv", **TOMOGRAM)
    np.testing.assert_allclose(found.positions_N3, positions, atol=1e-4)
    np.testing.assert_array_equal(found.score_N, scores)
    write_star(folder / "p.star", positions, tomogram="t", score_N=scores, **TOMOGRAM)
    if rows:  # an empty table is written, but starfile does not read one back
        found = read_positions(folder / "p.star", tomogram="t", **TOMOGRAM)
        np.testing.assert_allclose(found.positions_N3, positions, atol=1e-3)
        np.testing.assert_allclose(found.score_N, scores, atol=1e-3)


def test_relion5_file_as_starfile_sees_it(tmp_path: Path) -> None:
    path = tmp_path / "p.star"
    write_star(path, ZYX, tomogram="TS_1", class_number_N=[1, 2, 2], **TOMOGRAM)
    table = starfile.read(path)
    assert list(table.columns) == [
        "rlnTomoName",
        "rlnCenteredCoordinateXAngst",
        "rlnCenteredCoordinateYAngst",
        "rlnCenteredCoordinateZAngst",
        "rlnClassNumber",
    ]
    assert table["rlnTomoName"].tolist() == ["TS_1"] * 3
    # the centre is size / 2: 700, 500, 300 Å along x, y, z
    np.testing.assert_allclose(table["rlnCenteredCoordinateXAngst"], [-400, 690, -685])
    np.testing.assert_allclose(table["rlnCenteredCoordinateYAngst"], [-300, 490, -495])
    np.testing.assert_allclose(table["rlnCenteredCoordinateZAngst"], [-200, -300, 295])
    found = read_positions(path, **TOMOGRAM)
    assert found.class_N.tolist() == ["1", "2", "2"]
    assert "centre at z, y, x = 300, 500, 700" in found.convention
    first = path.read_bytes()
    write_star(path, ZYX, tomogram="TS_1", class_number_N=[1, 2, 2], **TOMOGRAM)
    assert path.read_bytes() == first


def test_relion5_centre_from_tomograms_star(tmp_path: Path) -> None:
    """A size that does not divide by the binning moves the centre by a fraction of a voxel."""
    table = {
        "rlnTomoName": ["001"],
        "rlnTomoSizeX": [563],
        "rlnTomoSizeY": [402],
        "rlnTomoSizeZ": [241],
        "rlnTomoTiltSeriesPixelSize": [2.5],
    }
    starfile.write({"global": pd.DataFrame(table)}, tmp_path / "tomograms.star")
    geometry = read_tomograms_star(tmp_path / "tomograms.star")["001"]
    assert geometry == TomogramGeometry(Zyx(241, 402, 563), 2.5)
    write_star(tmp_path / "p.star", ZYX, tomogram="001", unbinned=geometry, **TOMOGRAM)
    table = starfile.read(tmp_path / "p.star", parse_as_string=["rlnTomoName"])
    np.testing.assert_allclose(table["rlnCenteredCoordinateXAngst"], ZYX[:, 2] - 563 * 2.5 / 2, atol=1e-3)
    found = read_positions(tmp_path / "p.star", tomogram="001", unbinned=geometry, **TOMOGRAM)
    np.testing.assert_allclose(found.positions_N3, ZYX, atol=1e-3)
    with pytest.raises(FormatError, match="rlnTomoSizeX"):
        read_tomograms_star(tmp_path / "p.star")


def relion4(tmp_path: Path, pixel: float, **optics: Any) -> Path:
    columns = {f"rlnCoordinate{a}": ZYX[:, n] / pixel for n, a in enumerate("ZYX")} | {"rlnTomoName": "t"}
    return write_table(tmp_path / "p.star", columns, **optics)


def test_relion4_pixels_with_and_without_optics(tmp_path: Path) -> None:
    optics = pd.DataFrame({"rlnOpticsGroup": [1, 2], "rlnTomoTiltSeriesPixelSize": [2.5, 2.5]})
    found = read_positions(relion4(tmp_path, 2.5, optics=optics), **TOMOGRAM)
    np.testing.assert_allclose(found.positions_N3, ZYX, atol=1e-4)
    assert "2.5 Å pixels" in found.convention
    path = relion4(tmp_path, 2.5)
    with pytest.raises(ConfigurationError, match="nothing says"):
        read_positions(path, **TOMOGRAM)
    with pytest.raises(ConfigurationError, match="pixel_size_angstrom"):
        read_positions(path, convention="relion4", **TOMOGRAM)
    np.testing.assert_allclose(
        read_positions(path, pixel_size_angstrom=2.5, **TOMOGRAM).positions_N3, ZYX, atol=1e-4
    )
    path = relion4(tmp_path, 10.0)
    np.testing.assert_allclose(
        read_positions(path, convention="voxels", **TOMOGRAM).positions_N3, ZYX, atol=1e-4
    )


def test_warp_counts_tomogram_voxels(tmp_path: Path) -> None:
    columns = {f"rlnCoordinate{a}": ZYX[:, n] / VOXEL for n, a in enumerate("ZYX")}
    columns |= {"rlnMicrographName": ["TS_3.tomostar"] * 3, "rlnAutopickFigureOfMerit": [3.0, 2.0, 1.0]}
    path = write_table(tmp_path / "p.star", columns)
    found = read_positions(path, tomogram="TS_3", **TOMOGRAM)
    np.testing.assert_allclose(found.positions_N3, ZYX, atol=1e-4)
    assert found.score_N.tolist() == [3, 2, 1]
    assert found.convention.startswith("warp")


def test_one_tomogram_of_several(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("tomogram,x,y,z\n" + "\n".join(f"{n},{v},1,1" for n, v in (("a", 1), ("b", 2), ("a", 3))))
    assert read_positions(path, tomogram="a", **TOMOGRAM).positions_N3[:, 2].tolist() == [10, 30]
    with pytest.raises(ConfigurationError, match=r"2 tomograms \(a, b\); no tomogram was named"):
        read_positions(path, **TOMOGRAM)
    with pytest.raises(ConfigurationError, match="no rows for 'c'"):
        read_positions(path, tomogram="c", **TOMOGRAM)


def test_numbers_as_tomogram_names_stay_text(tmp_path: Path) -> None:
    write_star(tmp_path / "p.star", ZYX, tomogram="007", **TOMOGRAM)
    assert len(read_positions(tmp_path / "p.star", tomogram="007", **TOMOGRAM)) == 3


def test_copick(tmp_path: Path) -> None:
    points = [
        {"location": {"x": x, "y": y, "z": z}, "instance_id": 0, "score": n}
        for n, (z, y, x) in enumerate(ZYX)
    ]
    document = {"pickable_object_name": "ribosome", "unit": "angstrom", "points": points}
    path = tmp_path / "p.json"
    path.write_text(json.dumps(document))
    found = read_positions(path, **TOMOGRAM)
    np.testing.assert_array_equal(found.positions_N3, ZYX)
    assert found.score_N.tolist() == [0, 1, 2]
    assert found.class_N.tolist() == ["ribosome"] * 3
    for broken, word in (
        (document | {"unit": "nm"}, "nm"),
        ({"a": 1}, "points"),
        (document | {"points": [{}]}, "location"),
    ):
        path.write_text(json.dumps(broken))
        with pytest.raises(FormatError, match=word):
            read_positions(path, **TOMOGRAM)
    path.write_text("{")
    with pytest.raises(FormatError, match="not JSON"):
        read_positions(path, **TOMOGRAM)


def test_portal_annotations_are_voxels(tmp_path: Path) -> None:
    lines = [json.dumps({"type": "point", "location": {"x": x, "y": y, "z": z}}) for z, y, x in ZYX / VOXEL]
    (tmp_path / "p.ndjson").write_text("\n".join(lines) + "\n")
    np.testing.assert_allclose(read_positions(tmp_path / "p.ndjson", **TOMOGRAM).positions_N3, ZYX)


def test_positions_outside(tmp_path: Path) -> None:
    many = np.vstack([np.repeat(ZYX, 5, axis=0), [[700.0, 1.0, 1.0]]])
    write_csv(tmp_path / "p.csv", many, voxel_size_angstrom=VOXEL, class_N=["a"] * 15 + ["b"])
    found = read_positions(tmp_path / "p.csv", **TOMOGRAM)
    assert (len(found), found.outside) == (15, 1)
    assert set(found.class_N) == {"a"}
    write_csv(tmp_path / "p.csv", many * 4, voxel_size_angstrom=VOXEL)
    with pytest.raises(FormatError, match=r"of 16 positions lie outside the tomogram of \(60, 100, 140\)"):
        read_positions(tmp_path / "p.csv", **TOMOGRAM)


@pytest.mark.parametrize(
    ("name", "text", "error", "word"),
    [
        ("p.csv", "", FormatError, "empty"),
        ("p.csv", "a,b,c\n1,2,3\n", FormatError, "it has a, b, c"),
        ("p.csv", "1,2,3\n4,5,6\n", FormatError, "header line"),
        ("p.csv", "x,y,z\n1,2\n", FormatError, "3 fields"),
        ("p.csv", "x,y,z\n1,2,q\n", FormatError, "no number"),
        ("p.csv", "x,y,z\n1,2,nan\n", FormatError, "not finite"),
        ("p.star", "hello", FormatError, "p.star"),
        ("p.star", "data_\n\nloop_\n_rlnA #1\n1\n2\n", FormatError, "rlnCoordinateX"),
        ("p.tbl", "1 2 3", ConfigurationError, "cannot be read from"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, text: str, error: type[Exception], word: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(error, match=word) as caught:
        read_positions(tmp_path / name, **TOMOGRAM)
    assert name in str(caught.value)


@pytest.mark.parametrize("suffix", ["csv", "star", "json", "ndjson"])
def test_a_missing_file(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(ConfigurationError, match="there is no file"):
        read_positions(tmp_path / f"none.{suffix}", **TOMOGRAM)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="white space"):
        write_star(tmp_path / "p.star", ZYX, tomogram="a b", **TOMOGRAM)
    with pytest.raises(ConfigurationError, match="3 positions"):
        write_star(tmp_path / "p.star", ZYX, tomogram="a", score_N=[1.0], **TOMOGRAM)
    with pytest.raises(SurroundingsError, match="cannot be written"):
        write_csv(tmp_path / "none" / "p.csv", ZYX, voxel_size_angstrom=VOXEL)
    assert list(tmp_path.iterdir()) == []


def test_import_list(tmp_path: Path) -> None:
    write_import_list(tmp_path / "list.star", {"a": "a.star", "b": "b.star"})
    table = starfile.read(tmp_path / "list.star")
    assert table["rlnTomoName"].tolist() == ["a", "b"]
    assert table["rlnTomoImportParticleFile"].tolist() == ["a.star", "b.star"]


def test_csv_is_plain_csv(tmp_path: Path) -> None:
    write_csv(tmp_path / "p.csv", ZYX, voxel_size_angstrom=VOXEL, class_N=["a", "b, c", 'd"e'])
    with (tmp_path / "p.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["class"] for row in rows] == ["a", "b, c", 'd"e']
    assert float(rows[0]["x_voxel"]) == 30
    assert float(rows[0]["z_angstrom"]) == 100


@needs_data
def test_real_positions_by_csv_and_star() -> None:
    tomogram: dict[str, Any] = {"shape": (128, 256, 256), "voxel_size_angstrom": 31.36}
    by_csv = read_positions(DATA / "tomograms" / "tomo171_ribosomes.csv", **tomogram)
    by_star = read_positions(
        DATA / "tomograms" / "tomo171_ribosomes.star", convention="voxels", tomogram="tomo171", **tomogram
    )
    assert len(by_csv) == len(by_star) == 267
    np.testing.assert_allclose(by_csv.positions_N3, by_star.positions_N3, atol=0.05)
    np.testing.assert_allclose(by_csv.positions_N3[0], [1609.187, 2942.986, 6849.643])
    assert set(by_csv.class_N) == {"ribosome80S"}
    with pytest.raises(ConfigurationError, match="nothing says"):
        read_positions(DATA / "tomograms" / "tomo171_ribosomes.star", **tomogram)


@needs_data
def test_real_copick_and_large_star() -> None:
    found = read_positions(
        DATA / "picks" / "ribosome.json", shape=(184, 630, 630), voxel_size_angstrom=10.012
    )
    assert found.class_N[0] == "ribosome"
    np.testing.assert_allclose(found.positions_N3[0], [600.934, 601.066, 4601.271])
    clathrin = read_positions(
        DATA / "picks" / "clathrin.star",
        shape=(512, 1024, 1024),
        voxel_size_angstrom=7.84,
        tomogram="tomo_0404",
        pixel_size_angstrom=1.96,
    )
    assert len(clathrin) > 10
    np.testing.assert_allclose(clathrin.positions_N3[0] / 1.96, [1400.001, 3336.0, 1491.999])
