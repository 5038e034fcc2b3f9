"""Converts columns of numbers from pyarrow to NumPy and back. pyarrow's own conversions import pandas if installed."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


def to_numpy(column: "pa.Array", null: int | None = None) -> np.ndarray:
    """Returns a column as a writable array, with nulls replaced by `null`. Without `null`, it must have no nulls.

    The array shares the column's memory if that is writable; kernels are compiled for writable arrays.
    """
    if null is not None and column.null_count:
        column = column.fill_null(to_arrow(np.array([null], column.type.to_pandas_dtype()))[0])
    type_, values = np.dtype(column.type.to_pandas_dtype()), column.buffers()[1]
    if values is None or not values.is_mutable:
        return np.from_dlpack(column).copy()
    return np.frombuffer(values, type_, len(column), column.offset * type_.itemsize)


def to_arrow(array: np.ndarray, missing: np.ndarray | None = None) -> "pa.Array":
    """Returns a column that shares the array's memory, with nulls where `missing` is true."""
    import pyarrow as pa

    validity = None if missing is None else pa.py_buffer(np.packbits(~missing, bitorder="little"))
    values = pa.py_buffer(np.ascontiguousarray(array))
    return pa.Array.from_buffers(pa.from_numpy_dtype(array.dtype), array.shape[0], [validity, values])
