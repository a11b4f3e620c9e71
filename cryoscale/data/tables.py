"""Tables as parquet: named columns of equal length, in memory a dict of numpy arrays."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cryoscale.data.folder import Folder
from cryoscale.errors import StateError

Table = dict[str, npt.NDArray[Any]]


def write_table(
    folder: Folder, name: str, columns: Mapping[str, Any], *, notes: Mapping[str, str] | None = None
) -> None:
    """Write columns as one parquet object; the same columns give the same bytes.

    Parameters
    ----------
    columns : mapping of str to (N,) array
        Equal lengths. Strings are kept as strings.
    notes : mapping of str to str
        Kept in the file's metadata.
    """
    arrays = {key: pa.array(np.asarray(value)) for key, value in columns.items()}
    table = pa.table(arrays).replace_schema_metadata(dict(sorted((notes or {}).items())) or None)
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd", write_statistics=True)
    folder.write_bytes(name, stream.getvalue())


def read_table(folder: Folder, name: str) -> Table:
    """Read all columns of a parquet object.

    Raises
    ------
    StateError
        The object is missing, or is not parquet.
    """
    try:
        table = pq.read_table(pa.BufferReader(folder.read_bytes(name)))
    except FileNotFoundError as error:
        raise StateError(f"{folder.path(name)} does not exist.") from error
    except pa.ArrowInvalid as error:
        raise StateError(f"{folder.path(name)} is not a readable parquet file: {error}.") from error
    return {key: table[key].to_numpy(zero_copy_only=False) for key in table.column_names}


def count_rows(folder: Folder, name: str) -> int:
    """Return the number of rows without reading the columns; raises `StateError` as `read_table` does."""
    try:
        with folder.open_read(name) as stream:
            return int(pq.read_metadata(stream).num_rows)
    except FileNotFoundError as error:
        raise StateError(f"{folder.path(name)} does not exist.") from error
    except pa.ArrowInvalid as error:
        raise StateError(f"{folder.path(name)} is not a readable parquet file: {error}.") from error


def read_notes(folder: Folder, name: str) -> dict[str, str]:
    """Return the notes that a table was written with, without reading its columns; raises `StateError`."""
    try:
        with folder.open_read(name) as stream:
            notes = pq.read_schema(stream).metadata or {}
    except FileNotFoundError as error:
        raise StateError(f"{folder.path(name)} does not exist.") from error
    except pa.ArrowInvalid as error:
        raise StateError(f"{folder.path(name)} is not a readable parquet file: {error}.") from error
    return {key.decode(): value.decode() for key, value in notes.items()}


def concatenate(tables: list[Table]) -> Table:
    """Join tables of the same columns, in the order given; an empty list gives an empty table."""
    if not tables:
        return {}
    return {key: np.concatenate([table[key] for table in tables]) for key in tables[0]}
