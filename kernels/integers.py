"""The product with int8 weights in NumPy: the specification of ``csrc/weights/i8.h``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["INTEGER_MATRICES", "as_integers"]

Array = npt.NDArray[Any]

#: The largest integer that a row of x or h is made of, before it is rounded: 15 bits, or 7.
LARGEST_INTEGER = {"int8": 16382.0, "w8a7": 63.99}
#: A row of smaller numbers is taken for zeros.
SMALLEST_ROW = 2.0**-100


def as_integers(rows: Array, weight_dtype: str) -> tuple[Array, npt.NDArray[np.float32]]:
    """Rows of numbers as integers, and the step of each row: what they are multiplied with. In float32, as kernels do it.

    NaN is the step of a row with NaN or an infinity.
    """
    with np.errstate(over="ignore"):  # beyond float32 is infinite, as in kernels
        v = rows.astype(np.float32)
    most = np.float32(LARGEST_INTEGER[weight_dtype])
    largest = np.abs(v).max(axis=-1, keepdims=True)
    counts = (largest >= SMALLEST_ROW) & (largest < np.inf)
    divisor = np.where(counts, largest, np.float32(1))
    step = np.where(counts, largest / most, np.float32(0))
    step = np.where(np.isfinite(largest), step, np.float32(np.nan))
    per_step = np.where(counts, most / divisor, np.float32(0))
    return np.rint(v * per_step), step


class Transposed(np.ndarray):
    """A transposed matrix of int8: a product with it is one of integers, of rows made integers, too."""

    weight_dtype = "int8"

    def __rmatmul__(self, rows: Any) -> Any:
        q, step = as_integers(rows, self.weight_dtype)
        return (q.astype(self.dtype) * step) @ self.view(np.ndarray)


class TransposedW8A7(Transposed):
    """The same for integers of 7 bits."""

    weight_dtype = "w8a7"


class Int8Matrix(np.ndarray):
    """The numbers that a matrix of int8 stands for. Only products with its transpose, the forward ones, make integers."""

    transposed: type[Transposed] = Transposed

    @property
    def T(self) -> Any:
        return self.view(np.ndarray).T.view(self.transposed)


class W8A7Matrix(Int8Matrix):
    """The same for integers of 7 bits."""

    transposed = TransposedW8A7


#: By weight_dtype.
INTEGER_MATRICES = {each.transposed.weight_dtype: each for each in (Int8Matrix, W8A7Matrix)}
