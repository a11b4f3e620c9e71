"""From the voxels of a chunk to bytes and back: the codecs that we read and write without zarr-python."""

from __future__ import annotations

import struct
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numcodecs.blosc  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
from numcodecs.blosc import Blosc
from numcodecs.zstd import Zstd  # type: ignore[import-untyped]

# Chunks are encoded on our own few threads; blosc's pool beside them would only get in the way.
numcodecs.blosc.use_threads = False

_SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
_BLOSC_HEADER = struct.Struct("<BBBBIII")  # versions, flags, typesize; decoded bytes, block, encoded bytes

Bytes = npt.NDArray[np.uint8]


class ChunkCodec(ABC):
    """Encodes a contiguous chunk in native byte order, and decodes into a buffer of the chunk's length."""

    @abstractmethod
    def encode(self, chunk: npt.NDArray[Any]) -> bytes:
        """Return the encoded bytes."""

    @abstractmethod
    def decode(self, encoded: Bytes, out: Bytes) -> None:
        """Decode into `out`; raises `ValueError` or `RuntimeError` when the bytes are damaged."""


class RawCodec(ChunkCodec):
    """Bytes as they are."""

    def encode(self, chunk: npt.NDArray[Any]) -> bytes:  # noqa: D102
        return chunk.tobytes()

    def decode(self, encoded: Bytes, out: Bytes) -> None:  # noqa: D102
        if len(encoded) != len(out):
            raise ValueError(f"{len(encoded)} bytes in place of {len(out)}")
        out[:] = encoded


class BloscChunkCodec(ChunkCodec):
    """Blosc, with shuffling by the size of a voxel."""

    def __init__(self, configuration: Mapping[str, Any]) -> None:
        self.typesize = int(configuration["typesize"])
        self.codec = Blosc(
            cname=configuration["cname"],
            clevel=configuration["clevel"],
            shuffle=_SHUFFLES[configuration["shuffle"]],
            blocksize=configuration.get("blocksize", 0),
        )

    def encode(self, chunk: npt.NDArray[Any]) -> bytes:  # noqa: D102
        # the size of an element is taken from the array's type
        return bytes(self.codec.encode(chunk.reshape(-1).view(f"u{self.typesize}")))

    def decode(self, encoded: Bytes, out: Bytes) -> None:  # noqa: D102
        if len(encoded) < _BLOSC_HEADER.size:
            raise ValueError(f"{len(encoded)} bytes are no chunk")
        *_, decoded, _, length = _BLOSC_HEADER.unpack_from(encoded.data)
        if decoded != len(out) or length != len(encoded):
            raise ValueError(
                f"its header says {length} bytes for {decoded}, not {len(encoded)} for {len(out)}"
            )
        self.codec.decode(encoded, out)


class ZstdChunkCodec(ChunkCodec):
    """Zstandard."""

    def __init__(self, configuration: Mapping[str, Any]) -> None:
        self.codec = Zstd(level=configuration["level"], checksum=bool(configuration.get("checksum", False)))

    def encode(self, chunk: npt.NDArray[Any]) -> bytes:  # noqa: D102
        return bytes(self.codec.encode(chunk))

    def decode(self, encoded: Bytes, out: Bytes) -> None:  # noqa: D102
        # A frame that is shorter would leave what the buffer held before: the decoder does not mind.
        found = np.frombuffer(self.codec.decode(encoded), np.uint8)
        if len(found) != len(out):
            raise ValueError(f"{len(found)} decoded bytes in place of {len(out)}")
        out[:] = found


def chunk_codec(chain: Sequence[Mapping[str, Any]], dtype: np.dtype[Any]) -> ChunkCodec | None:
    """Return the codec of a chain as it stands in an array's metadata, or None for one that we do not know.

    Known are voxels in little-endian order, plain, or packed once by blosc or zstd.
    """
    first, *rest = chain
    if first["name"] != "bytes" or len(rest) > 1:
        return None
    endian = first.get("configuration", {}).get("endian", "little" if dtype.itemsize == 1 else None)
    if endian != "little" or sys.byteorder != "little":
        return None
    if not rest:
        return RawCodec()
    name, configuration = rest[0]["name"], rest[0]["configuration"]
    if name == "zstd":
        return ZstdChunkCodec(configuration)
    if (
        name == "blosc"
        and configuration["typesize"] in (1, 2, 4, 8)
        and (dtype.itemsize % configuration["typesize"] == 0)
    ):
        return BloscChunkCodec(configuration)
    return None
