"""MRC against the real mrcfile, over modes, byte orders, axis orders, random boxes and broken headers."""

from __future__ import annotations

import os
import struct
import tracemalloc
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoscale.errors import ConfigurationError, DataError, FormatError, LayoutError, SurroundingsError
from cryoscale.formats import mrc
from cryoscale.formats.mrc import MrcVolume, MrcWriter, read_header, write_mrc
from cryoscale.geometry import Box, Zyx

DATA = Path(os.environ.get("CRYOSCALE_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no test data at {DATA} (CRYOSCALE_TEST_DATA)")

DTYPES = {0: np.int8, 1: np.int16, 2: np.float32, 6: np.uint16, 12: np.float16}


def volume(mode: int, shape: tuple[int, int, int] = (5, 7, 9)) -> np.ndarray:
    values = np.random.default_rng(mode).normal(0, 30, shape)
    return np.abs(values).astype(DTYPES[mode]) if mode == 6 else values.clip(-120, 120).astype(DTYPES[mode])


def write_reference(path: Path, values: np.ndarray, voxel: float = 13.5, **fields: int) -> None:
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(values)
        file.voxel_size = voxel
        file.set_volume()
        for name, value in fields.items():
            file.header[name] = value


def big_endian(source: Path, target: Path, itemsize: int) -> None:
    """Swap every number of a little-endian file without an extended header; text keeps its order."""
    raw = source.read_bytes()
    head, data = raw[:1024], raw[1024:]
    words = np.frombuffer(head, "<u4").astype(">u4").tobytes()
    head = words[:208] + b"MAP " + bytes((0x11, 0x11, 0, 0)) + words[216:224] + head[224:]
    target.write_bytes(head + np.frombuffer(data, f"<u{itemsize}").astype(f">u{itemsize}").tobytes())


@pytest.mark.parametrize("mode", DTYPES)
@pytest.mark.parametrize("order", ["<", ">"])
def test_reads_what_mrcfile_wrote(tmp_path: Path, mode: int, order: str) -> None:
    values = volume(mode)
    path = tmp_path / "a.mrc"
    write_reference(path, values)
    if order == ">":
        big_endian(path, tmp_path / "b.mrc", values.itemsize)
        path = tmp_path / "b.mrc"
        with mrcfile.open(path) as file:  # the reference agrees that this is the same volume
            np.testing.assert_array_equal(file.data, values)
    with MrcVolume(path) as found:
        assert found.header.byteorder == order
        assert found.header.mode == mode
        assert found.header.voxel_size_angstrom == 13.5
        assert found.header.warnings == ()
        assert found.shape == Zyx(5, 7, 9)
        read = found.read(Box.whole(found.shape))
    assert read.dtype == values.dtype
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, values)


@pytest.mark.parametrize("mode", DTYPES)
def test_mrcfile_reads_what_we_write(tmp_path: Path, mode: int) -> None:
    values = volume(mode)
    path = tmp_path / "a.mrc"
    write_mrc(path, values, 7.25)
    assert mode == 12 or mrcfile.validate(path)  # its own check of float16 overflows
    with mrcfile.open(path) as file:
        assert file.is_volume()
        assert file.header.mode == mode
        assert int(file.header.ispg) == 1
        assert (int(file.header.mx), int(file.header.my), int(file.header.mz)) == (9, 7, 5)
        np.testing.assert_array_equal(file.data, values)
        np.testing.assert_allclose([file.voxel_size[a] for a in "xyz"], 7.25)
        assert file.header.dmin == values.min()
        assert file.header.dmax == values.max()
        np.testing.assert_allclose(float(file.header.dmean), values.astype(float).mean(), rtol=1e-5)
        np.testing.assert_allclose(float(file.header.rms), values.astype(float).std(), rtol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mrc"]


def test_labels_are_stored_as_integers(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 5, (4, 5, 6)).astype(np.uint8)
    for mode in (None, 0, 1, 6):
        write_mrc(tmp_path / "l.mrc", labels, 10.0, mode=mode)
        with mrcfile.open(tmp_path / "l.mrc") as file:
            assert file.data.dtype.kind in "iu"
            np.testing.assert_array_equal(file.data, labels)


@pytest.mark.parametrize(
    ("values", "mode", "word"),
    [
        (np.full((2, 2, 2), 200, np.uint8), 0, "-128 to 127"),
        (np.full((2, 2, 2), -1, np.int32), 6, "0 to 65535"),
        (np.zeros((2, 2, 2), np.float32), 1, "without loss"),
        (np.zeros((2, 2, 2), np.int64), None, "no mode for int64"),
        (np.zeros((2, 2, 2), np.float32), 101, "mode 101"),
        (np.zeros((2, 0, 2), np.float32), None, "no voxel"),
    ],
)
def test_refuses_what_does_not_fit(tmp_path: Path, values: np.ndarray, mode: int | None, word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        write_mrc(tmp_path / "a.mrc", values, 10.0, mode=mode)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("voxel", [0.0, -1.0, float("nan")])
def test_refuses_impossible_voxel_sizes(tmp_path: Path, voxel: float) -> None:
    with pytest.raises(ConfigurationError, match="voxel size"):
        write_mrc(tmp_path / "a.mrc", np.zeros((2, 2, 2), np.float32), voxel)


def test_an_unfinished_file_never_appears(tmp_path: Path) -> None:
    path = tmp_path / "a.mrc"
    path.write_bytes(b"old")
    with (
        pytest.raises(LayoutError, match="1 of 3 sections"),
        MrcWriter(path, (3, 4, 5), np.int8, 10.0) as writer,
    ):
        writer.write(np.zeros((1, 4, 5), np.int8))
    with (
        pytest.raises(LayoutError, match="does not fit"),
        MrcWriter(path, (3, 4, 5), np.int8, 10.0) as writer,
    ):
        writer.write(np.zeros((1, 4, 6), np.int8))
    with pytest.raises(AttributeError), MrcWriter(path, (1, 4, 5), np.int8, 10.0) as writer:
        writer.write(np.zeros((1, 4, 5), np.int8)).fails()
    assert [p.name for p in tmp_path.iterdir()] == ["a.mrc"]
    assert path.read_bytes() == b"old"


def test_the_file_appears_by_renaming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the whole file ever has the name, and a failed rename leaves the old one."""

    def refuse(source: Path, target: Path) -> None:
        assert source.parent == target.parent
        assert source.stat().st_size == 1024 + 8
        raise OSError(28, "No space left on device")

    path = tmp_path / "a.mrc"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(SurroundingsError, match=r"a\.mrc cannot be written: No space left.*Free some space"):
        write_mrc(path, np.zeros((2, 2, 2), np.int8), 10.0)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mrc"]
    assert path.read_bytes() == b"old"


def test_a_missing_folder_is_the_surroundings(tmp_path: Path) -> None:
    with pytest.raises(SurroundingsError, match="nowhere"):
        write_mrc(tmp_path / "nowhere" / "a.mrc", np.zeros((2, 2, 2), np.int8), 10.0)


def test_slabs_equal_the_whole(tmp_path: Path) -> None:
    values = volume(2, (11, 6, 7))
    write_mrc(tmp_path / "a.mrc", values, 10.0)
    with MrcWriter(tmp_path / "b.mrc", values.shape, values.dtype, 10.0) as writer:
        for z in range(0, 11, 4):
            writer.write(values[z : z + 4])
    assert (tmp_path / "a.mrc").read_bytes() == (tmp_path / "b.mrc").read_bytes()


@pytest.fixture(scope="module")
def permuted(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int, int], tuple[Path, np.ndarray]]:
    """One file per axis order, each with the volume that it means."""
    folder = tmp_path_factory.mktemp("axes")
    files = {}
    for n, order in enumerate([(1, 2, 3), (1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1)]):
        meant_ZYX = np.random.default_rng(n).normal(size=(6, 9, 40)).astype(np.float32)
        # MAPC says which axis runs fastest: the last axis of the stored array is 3 - MAPC of (z, y, x).
        stored = meant_ZYX.transpose([3 - order[2], 3 - order[1], 3 - order[0]])
        path = folder / f"{n}.mrc"
        write_reference(path, np.ascontiguousarray(stored), mapc=order[0], mapr=order[1], maps=order[2])
        with mrcfile.open(path, mode="r+") as file:
            file.header.mx, file.header.my, file.header.mz = 40, 9, 6
            file.header.cella = (40 * 8.0, 9 * 8.0, 6 * 8.0)
        files[order] = path, meant_ZYX
    return files


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_box_in_any_axis_order(
    permuted: dict[tuple[int, int, int], tuple[Path, np.ndarray]], data: st.DataObject
) -> None:
    path, meant_ZYX = permuted[data.draw(st.sampled_from(sorted(permuted)))]
    start = [data.draw(st.integers(0, n - 1)) for n in meant_ZYX.shape]
    stop = [data.draw(st.integers(a + 1, n)) for a, n in zip(start, meant_ZYX.shape, strict=True)]
    box = Box.of(start, stop)
    with MrcVolume(path) as found:
        assert tuple(found.shape) == meant_ZYX.shape
        assert found.header.voxel_size_angstrom == 8.0
        read = found.read(box)
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read, meant_ZYX[box.slices])


def test_a_small_buffer_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = volume(1, (3, 20, 16))
    write_reference(tmp_path / "a.mrc", values)
    monkeypatch.setattr(mrc, "BUFFER_BYTES", 16 * 2 * 3)
    with MrcVolume(tmp_path / "a.mrc") as found:
        np.testing.assert_array_equal(found.read(Box.of((1, 2, 3), (3, 19, 15))), values[1:3, 2:19, 3:15])


def test_memory_is_that_of_the_box(tmp_path: Path) -> None:
    path = tmp_path / "big.mrc"
    write_mrc(path, np.zeros((1, 512, 512), np.float32), 10.0)
    raw = bytearray(path.read_bytes()[:1024])
    struct.pack_into("<i", raw, 8, 512)
    with path.open("r+b") as stream:  # a sparse file of 512 MiB
        stream.write(raw)
        stream.truncate(1024 + 512**3 * 4)
    tracemalloc.start()
    with MrcVolume(path) as found:
        found.read(Box.of((100, 100, 100), (164, 164, 164)))
        found.read(Box.of((100, 0, 0), (102, 512, 512)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize(
    "box", [Box.of((0, 0, 0), (6, 7, 9)), Box.of((-1, 0, 0), (2, 2, 2)), Box.of((1, 1, 1), (1, 2, 2))]
)
def test_a_box_outside_is_a_bug(tmp_path: Path, box: Box) -> None:
    write_reference(tmp_path / "a.mrc", volume(2))
    with MrcVolume(tmp_path / "a.mrc") as found, pytest.raises(LayoutError):
        found.read(box)


def test_a_file_that_shrinks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.mrc"
    write_reference(path, volume(2))
    with MrcVolume(path) as found:
        os.truncate(path, 1500)
        with pytest.raises(FormatError, match=r"a\.mrc ends at byte 1500"):
            found.read(Box.whole(found.shape))


def patched(tmp_path: Path, *changes: tuple[str, int, object]) -> Path:
    path = tmp_path / "broken.mrc"
    write_reference(path, volume(2))
    raw = bytearray(path.read_bytes())
    for form, offset, value in changes:
        struct.pack_into(f"<{form}", raw, offset, value)
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ([("i", 0, 0)], "must be at least 1"),
        ([("i", 8, -4)], "must be at least 1"),
        ([("i", 4, 1 << 30)], "more than 131072"),
        ([("i", 12, 99)], "mode 99: unknown"),
        ([("i", 12, 101)], "4-bit data"),
        ([("i", 12, 4)], "Fourier"),
        ([("i", 8, 6)], r"promises 2536 bytes .* the file has 2284"),
        ([("i", 92, -1)], "cannot be negative"),
        ([("i", 92, 4096)], "truncated"),
        ([("i", 64, 2)], "MAPC"),
        ([("f", 40, 200.0)], "not cubes"),
        ([("i", 88, 401), ("i", 36, 1)], "stack of 5 volumes"),
    ],
)
def test_broken_headers_are_refused_before_reading(tmp_path: Path, changes: list, word: str) -> None:
    path = patched(tmp_path, *changes)
    with pytest.raises(FormatError, match=word) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


def test_a_huge_promise_is_refused_in_no_memory(tmp_path: Path) -> None:
    path = patched(tmp_path, ("i", 0, 60000), ("i", 4, 60000), ("i", 8, 1000))
    with pytest.raises(FormatError, match="truncated"):
        read_header(path)


@pytest.mark.parametrize("content", [b"", b"MAP ", bytes(1023), bytes(2000), b"\x89PNG" * 600])
def test_what_is_no_mrc_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.mrc"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"a\.mrc"):
        read_header(path)


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=1024, max_size=1100), st.booleans())
def test_garbage_never_escapes_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes, mapped: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage.mrc"
    path.write_bytes(raw[:208] + b"MAP DD\0\0" + raw[216:] if mapped else raw)
    try:
        header = read_header(path)
    except DataError:
        return
    assert header.data_offset + header.data_bytes <= len(raw)


@pytest.mark.parametrize(("cell", "why"), [(0.0, "unset"), (None, "exactly 1"), (float("nan"), "unset")])
def test_an_unset_voxel_size_is_none_with_a_reason(tmp_path: Path, cell: float | None, why: str) -> None:
    sides = [cell] * 3 if cell is not None else [9.0, 7.0, 5.0]
    path = patched(tmp_path, *(("f", 40 + 4 * n, side) for n, side in enumerate(sides)))
    header = read_header(path)
    assert header.voxel_size_angstrom is None
    assert why in header.voxel_size_note


def test_a_small_anisotropy_is_rounding(tmp_path: Path) -> None:
    path = patched(tmp_path, ("f", 40, 9 * 13.5 * 1.005))
    assert read_header(path).voxel_size_angstrom == pytest.approx(13.5, rel=0.005)
    path = patched(tmp_path, ("f", 40, 9 * 13.5 * 1.05))
    assert read_header(path, ignore_voxel_size=True).voxel_size_angstrom is None


def test_odd_but_accepted_headers_say_so(tmp_path: Path) -> None:
    stack = read_header(patched(tmp_path, ("i", 88, 0), ("i", 36, 1), ("f", 48, 13.5)))
    assert "ISPG 0 with MZ=1" in stack.warnings[0]
    assert stack.shape == Zyx(5, 7, 9)
    long = patched(tmp_path)
    long.write_bytes(long.read_bytes() + b"12345")
    assert "5 bytes longer" in read_header(long).warnings[0]
    unset = read_header(patched(tmp_path, ("i", 64, 0), ("i", 68, 0), ("i", 72, 0)))
    assert unset.axis_order == (1, 2, 3)
    wrong = read_header(patched(tmp_path, ("I", 212, 0x1111)))
    assert wrong.byteorder == "<"
    assert "contradicts" in wrong.warnings[0]


@pytest.mark.parametrize(
    ("stamp", "flags", "low", "high", "expected"),
    [
        (0, 0, -100.0, 100.0, np.int8),
        (0, 0, 3.0, 250.0, np.uint8),
        (0, 0, 3.0, 100.0, np.int8),
        (1146047817, 1, 3.0, 250.0, np.int8),
        (1146047817, 0, -5.0, 100.0, np.uint8),
    ],
)
def test_signed_or_unsigned_bytes(
    tmp_path: Path, stamp: int, flags: int, low: float, high: float, expected: type
) -> None:
    path = tmp_path / "bytes.mrc"
    write_reference(path, volume(0))
    raw = bytearray(path.read_bytes())
    struct.pack_into("<2i", raw, 152, stamp, flags)
    struct.pack_into("<2f", raw, 76, low, high)
    path.write_bytes(raw)
    assert read_header(path).dtype == expected


@pytest.mark.parametrize("voxel", [31.36, 10.012, 13.48, 7.84])
def test_the_voxel_size_is_the_decimal_that_was_meant(tmp_path: Path, voxel: float) -> None:
    write_mrc(tmp_path / "a.mrc", np.zeros((3, 7, 630), np.int8), voxel)
    assert read_header(tmp_path / "a.mrc").voxel_size_angstrom == pytest.approx(voxel, rel=2e-7)
    write_reference(tmp_path / "b.mrc", np.zeros((128, 2, 2), np.int8), 31.36)
    assert read_header(tmp_path / "b.mrc").voxel_size_angstrom == 31.36


def test_an_extended_header_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.mrc"
    values = volume(1)
    with mrcfile.new(path) as file:
        file.set_data(values)
        file.voxel_size = 9.0
        file.set_extended_header(np.arange(160, dtype=np.uint8))
    with MrcVolume(path) as found:
        assert found.header.data_offset == 1024 + 160
        np.testing.assert_array_equal(found.read(Box.whole(found.shape)), values)


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no file"):
        read_header(tmp_path / "none.mrc")
    with pytest.raises(ConfigurationError, match="folder"):
        read_header(tmp_path)


def test_labels_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mrc"
    write_mrc(path, volume(0), 10.0)
    assert read_header(path).labels == ("written by cryoscale",)


@needs_data
@pytest.mark.parametrize(
    "name", ["EMD-3197.map", "../tomograms/microtubule_13pf.mrc", "../tomograms/tomo171.mrc"]
)
def test_real_files_equal_mrcfile(name: str) -> None:
    path = DATA / "formats" / name
    with MrcVolume(path) as found, mrcfile.mmap(path) as reference:
        shape = found.shape
        assert tuple(shape) == reference.data.shape
        assert found.header.voxel_size_angstrom == pytest.approx(float(reference.voxel_size.x), rel=1e-6)
        box = Box.of([n // 3 for n in shape], [n // 3 + min(9, n // 3) for n in shape])
        np.testing.assert_array_equal(found.read(box), reference.data[box.slices])


@needs_data
def test_real_transposed_crystal() -> None:
    path = DATA / "formats" / "EMD-3001.map"
    with pytest.raises(FormatError, match="not cubes"):
        read_header(path)
    with MrcVolume(path, ignore_voxel_size=True) as found, mrcfile.open(path) as reference:
        assert found.header.axis_order == (3, 1, 2)
        # columns are z, rows x, sections y: the stored array is (y, x, z)
        np.testing.assert_array_equal(found.read(Box.whole(found.shape)), reference.data.transpose(2, 0, 1))


@needs_data
def test_real_old_imod_bytes_are_unsigned() -> None:
    with MrcVolume(DATA / "formats" / "rec3D.rec") as found:
        values = found.read(Box.whole(found.shape))
    assert values.dtype == np.uint8
    assert abs(float(values.astype(float).mean()) - 152) < 20  # as signed bytes the mean would be about -100


@needs_data
def test_real_unset_voxel_size() -> None:
    header = read_header(DATA / "tomograms" / "simulated_vesicles.mrc")
    assert header.voxel_size_angstrom is None


@needs_data
@pytest.mark.parametrize("name", ["EMD-3001.map.bz2", "emd_3001.map.gz"])
def test_real_compressed_files_are_refused(name: str) -> None:
    with pytest.raises(FormatError, match="Decompress it first"):
        read_header(DATA / "formats" / name)
