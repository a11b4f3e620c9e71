"""Multi-level volumes as sharded OME-Zarr 0.5: tomograms and label volumes share this ground.

Only metadata published last (by `publish`) makes a pyramid readable for others; until then the arrays
stand there without it. A write covers whole shards and puts each in place of the old one in a single step: a
shard that is missing for a moment would be background to whoever reads it then.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
import zarr.codecs
import zarr.storage

from cryoscale.data.folder import Folder
from cryoscale.data.shards import DamagedShardError, ShardLayout, Take
from cryoscale.errors import FormatError, LayoutError, StateError
from cryoscale.geometry import Box, Zyx, check_aligned, round_up

zarr.config.set({"async.concurrency": 4, "threading.max_workers": 2})  # workers are many already

OUR_KEY = "cryoscale"


@dataclass(frozen=True)
class Level:
    """One resolution of a pyramid: extent (z, y, x) in voxels, voxel size in Å, and where voxel 0 lies.

    Voxel i of the level is centred at `origin_angstrom + i * voxel_size_angstrom` along each axis.
    """

    shape: Zyx
    voxel_size_angstrom: float
    origin_angstrom: float = 0.0

    def to_voxels(self, positions_N3: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Round positions in Å to voxels of this level."""
        place = (np.asarray(positions_N3, np.float64) - self.origin_angstrom) / self.voxel_size_angstrom
        return np.rint(place).astype(np.int64)

    def to_angstrom(self, voxels_N3: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return the centres of voxels of this level in Å."""
        return np.asarray(voxels_N3, np.float64) * self.voxel_size_angstrom + self.origin_angstrom


def pyramid_levels(
    shape: Sequence[int], voxel_size_angstrom: float, *, count: int | None = None
) -> list[Level]:
    """List the levels of a pyramid made by halving.

    Parameters
    ----------
    shape : (3,) int
        Extent of level 0, voxels.
    count : int, optional
        Number of levels; by default until the largest side is at most 64 voxels, and never so many that a
        side would fall below 1.
    """
    levels = [Level(Zyx.of(shape), voxel_size_angstrom)]
    while (len(levels) < count) if count else (max(levels[-1].shape) > 64):
        below = levels[-1]
        if max(below.shape) == 1:
            break
        size = 2 * below.voxel_size_angstrom
        half = Zyx(*(-(-n // 2) for n in below.shape))
        levels.append(Level(half, size, (size - voxel_size_angstrom) / 2))
    return levels


def open_store(folder: Folder, *, read_only: bool) -> Any:
    """Open a folder as a zarr store."""
    if not read_only:
        folder.guard()
    if folder.is_local:
        return zarr.storage.LocalStore(folder.url, read_only=read_only)
    return zarr.storage.FsspecStore.from_url(folder.url, read_only=read_only)


class Pyramid:
    """A group of arrays `0, 1, 2…` on one grid, in one folder.

    Parameters
    ----------
    folder : Folder
        The OME-Zarr group.
    writable : bool
        Whether blocks may be written.
    """

    def __init__(self, folder: Folder, *, writable: bool = False) -> None:
        self.folder = folder
        self.writable = writable
        self._arrays: dict[int, zarr.Array[Any]] = {}
        self._layouts: dict[int, ShardLayout | None] = {}
        self._indexes: dict[str, bytes] = {}

    def create(
        self, levels: Sequence[Level], dtype: npt.DTypeLike, *, chunk: int, shard: int, image: bool
    ) -> None:
        """Make the empty arrays in place of those that stood there.

        `image` chooses the codec: blosc with bit shuffling for densities, plain zstd for labels. Label
        volumes below a tomogram are artifacts of their own, with keys of their own, and stay.
        """
        for name in self.folder.names():
            if name != "labels":
                self.folder.delete(name)
        store = open_store(self.folder, read_only=False)
        zarr.create_group(store)  # not `overwrite`: that would take the label volumes along
        compressor: Any = zarr.codecs.ZstdCodec(level=3)
        if image:
            compressor = zarr.codecs.BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle")
        for number, level in enumerate(levels):
            chunks = tuple(min(chunk, n) for n in level.shape)
            shards = tuple(min(shard, round_up(n, c)) for n, c in zip(level.shape, chunks, strict=True))
            zarr.create_array(
                store,
                name=str(number),
                shape=tuple(level.shape),
                dtype=np.dtype(dtype),
                chunks=chunks,
                shards=tuple(round_up(s, c) for s, c in zip(shards, chunks, strict=True)),
                compressors=compressor,
                fill_value=0,
                dimension_names=("z", "y", "x"),
            )

    def publish(self, ome: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
        """Write the group's metadata; from here on others can read the pyramid."""
        group = zarr.open_group(open_store(self.folder, read_only=False), mode="r+")
        group.attrs.put({"ome": dict(ome), OUR_KEY: dict(ours)})

    @property
    def attributes(self) -> dict[str, Any]:
        """What cryoscale recorded; raises `StateError` for a pyramid that was not published."""
        try:
            group = zarr.open_group(open_store(self.folder, read_only=True), mode="r")
        except (FileNotFoundError, ValueError) as error:
            raise StateError(f"{self.folder.url} does not exist or is no OME-Zarr group.") from error
        ours = group.attrs.get(OUR_KEY)
        if not isinstance(ours, Mapping):
            raise StateError(f"{self.folder.url} is unfinished: run the stage that writes it.")
        return dict(ours)

    def array(self, level: int) -> zarr.Array[Any]:
        """Open the array of one level."""
        if level not in self._arrays:
            try:
                array = zarr.open_array(
                    open_store(self.folder, read_only=not self.writable),
                    path=str(level),
                    mode="r+" if self.writable else "r",
                )
            except (FileNotFoundError, ValueError) as error:
                raise StateError(f"{self.folder.url} has no level {level}.") from error
            self._arrays[level] = array
        return self._arrays[level]

    def shape(self, level: int) -> Zyx:
        """Extent (z, y, x) of one level, voxels."""
        return Zyx.of(self.array(level).shape)

    def write_unit(self, level: int) -> Zyx:
        """Extent of a shard of one level, voxels: what a block must be a union of."""
        array = self.array(level)
        return Zyx.of(array.shards or array.chunks)

    def layout(self, level: int) -> ShardLayout | None:
        """Return how the shards of a level lie on storage, or None where zarr-python must read and write."""
        if level not in self._layouts:
            self._layouts[level] = ShardLayout.of(self.array(level).metadata.to_dict())
        return self._layouts[level]

    def read(self, level: int, box: Box, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Read a box that lies inside the volume, in the stored dtype.

        Parameters
        ----------
        level : int
        box : Box
            Half open; it may not leave the volume.
        out : array, optional
            Of the box's shape and the stored dtype, written in place and returned. Reading many boxes into
            one array saves asking the system for memory each time.

        Raises
        ------
        FormatError
            A chunk or shard is damaged; the message names the array and the box.
        LayoutError
            The box leaves the volume.
        """
        if out is None:
            out = np.empty(box.shape, self.array(level).dtype)
        elif out.shape != tuple(box.shape):
            raise LayoutError(f"{box} does not fit into an array of shape {out.shape}")
        self.read_pieces(level, box, out.__setitem__)
        return out

    def read_pieces(self, level: int, box: Box, take: Take) -> None:
        """Read a box piece by piece, so that what is made of the voxels is made while they are in cache.

        Parameters
        ----------
        level, box
            As in `read`.
        take : callable
            `take(slices, stored)`: the slices say where in the box the voxels lie. Pieces cover the box once.
            They are cut at multiples of the chunk, or there is one, the whole box, where zarr-python reads.
            Called on several threads. `stored` is only valid during the call, and of shape () for voxels
            that are not stored.
        """
        array = self.array(level)
        if not Box.whole(array.shape).contains(box):
            raise LayoutError(f"{self.folder.url}, level {level}: {box} leaves the shape {array.shape}")
        if box.empty:
            return
        layout = self.layout(level)
        if layout is not None:
            known = None if self.writable else self._indexes  # who may write may read what changes
            try:
                layout.read(self.folder, str(level), box.start, box.stop, take, known)
            except DamagedShardError as error:
                raise self._damaged(level, box, error) from error
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # zarr warns of codecs that are not yet in its specification
                stored = np.asarray(array[box.slices])
        except (ValueError, RuntimeError, OSError) as error:
            # What the system or a connection says is nobody's damage.
            if (
                isinstance(error, (TimeoutError, ConnectionError))
                or getattr(error, "errno", None) is not None
            ):
                raise
            raise self._damaged(level, box, error) from error
        take(Box.whole(box.shape).slices, stored)

    def _damaged(self, level: int, box: Box, error: Exception) -> FormatError:
        return FormatError(
            f"{self.folder.url}, level {level}, {box}: damaged data ({error}).",
            remedy="Check the disk; copy the volume again, or ingest its source into a fresh run.",
        )

    def write(self, level: int, core: Box, data_ZYX: npt.NDArray[Any]) -> None:
        """Write one block: whole shards that nobody else writes.

        Raises
        ------
        LayoutError
            `core` is not aligned to the shards, or the data is not of its shape.
        """
        data_ZYX = np.asarray(data_ZYX)
        if data_ZYX.shape != tuple(core.shape):
            raise LayoutError(f"data of shape {data_ZYX.shape} does not fill {core}")
        self.write_layers(level, core, lambda box: data_ZYX[box.relative_to(core.start).slices])

    def write_layers(self, level: int, core: Box, give: Callable[[Box], npt.NDArray[Any]]) -> None:
        """Write one block whose voxels are made as they are asked for, so that it is never held whole.

        Parameters
        ----------
        level : int
        core : Box
            Whole shards that nobody else writes.
        give : callable
            Returns the voxels of a box. It is asked for boxes that cover `core` once: layers of a shard as
            deep as a chunk, or `core` itself where zarr-python writes.

        Raises
        ------
        LayoutError
            `core` is not aligned to the shards.
        """
        array = self.array(level)
        check_aligned(core, self.write_unit(level), array.shape)
        layout = self.layout(level)
        if layout is None:
            self.delete_shards(level, core)  # zarr-python would read a torn one, to change a part of it
            array[core.slices] = np.asarray(give(core), dtype=array.dtype)
            return
        layout.write(
            self.folder, str(level), core.start, core.stop, lambda start, stop: give(Box.of(start, stop))
        )

    def delete_shards(self, level: int, core: Box) -> None:
        """Delete the keys of all shards of a block, torn or whole."""
        unit = self.write_unit(level)
        ranges = [range(a // u, -(-b // u)) for a, b, u in zip(core.start, core.stop, unit, strict=True)]
        for z in ranges[0]:
            for y in ranges[1]:
                for x in ranges[2]:
                    self.folder.delete(f"{level}/c/{z}/{y}/{x}")


def multiscales(name: str, levels: Sequence[Level], *, image: bool) -> dict[str, Any]:
    """Build the OME-Zarr 0.5 `ome` attribute for a pyramid made by halving.

    Levels above 0 are means of 2x2x2 voxels, so their first voxel's centre lies half a voxel of the level
    below further on; labels downsample in the same cells and carry the same translation.
    """
    datasets = []
    for number, level in enumerate(levels):
        scale = level.voxel_size_angstrom
        transforms: list[dict[str, Any]] = [{"type": "scale", "scale": [scale] * 3}]
        if number:
            transforms.append({"type": "translation", "translation": [level.origin_angstrom] * 3})
        datasets.append({"path": str(number), "coordinateTransformations": transforms})
    axes = [{"name": axis, "type": "space", "unit": "angstrom"} for axis in "zyx"]
    method = "mean of 2x2x2 voxels" if image else "most frequent of 2x2x2 voxels, the smaller value on a tie"
    return {
        "version": "0.5",
        "multiscales": [
            {
                "name": name,
                "axes": axes,
                "datasets": datasets,
                "type": "mean" if image else "mode",
                "metadata": {"description": method},
            }
        ],
    }
