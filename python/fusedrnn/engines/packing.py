"""Panels: weights in the order in which kernels read them, packed by ``csrc/pack.c``."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn._native import ffi, lib
from fusedrnn.arrays import FLOAT32, Array
from fusedrnn.engines.native import address, pointer

__all__ = ["LINE", "Packing", "aligned"]

#: Floats in a cache line.
LINE = lib.FR_LINE_FLOATS

#: For the elements of a matrix: a pointer to them, the function that packs them, and the fr_weight_type of its panels.
PACK = {
    "float32": ("float *", lib.fr_pack, lib.FR_F32),
    "uint16": ("uint16_t *", lib.fr_pack_16, lib.FR_F16),
    "int8": ("int8_t *", lib.fr_pack_8, lib.FR_I8),
}


def aligned(shape: Sequence[int]) -> Array:
    """Float32 of any values that begin on a cache line."""
    floats = prod(shape)
    store = np.empty(floats + LINE, FLOAT32)
    start = -address(pointer(store)) // FLOAT32.itemsize % LINE
    return store[start : start + floats].reshape(shape)


class Packing:
    """Panels of several matrices in one block of memory, each of which begins on a cache line.

    The elements of a matrix are float32, or those of narrow weights: uint16 or int8.

    Parameters
    ----------
    lanes
        L, of the instruction set.
    """

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes
        self._bytes = 0
        self._fields: list[tuple[Any, str, int]] = []
        self._matrices: list[tuple[npt.NDArray[Any], int, int, int, int]] = []

    def add(self, struct: Any, field: str, *matrices: npt.NDArray[Any], gates: int = 1) -> None:
        """Point a field to panels [N][K][G][L] of a matrix (G H, K), or of several, one behind the other.

        A vector (G H,) is a matrix of one column. Rows of a matrix have no gaps; there may be some between rows.
        """
        self._begin(struct, field)
        for matrix in matrices:
            rows, depth = (*matrix.shape, 1)[:2]
            self._add(matrix, rows // gates, depth, gates)

    def add_transposed(self, struct: Any, field: str, matrix: Array) -> None:
        """Point a field to panels [ceil(C / L)][K][L] of the transpose of a matrix (K, C)."""
        self._begin(struct, field)
        depth, columns = matrix.shape
        self._add(matrix, columns, depth, 0)

    def _begin(self, struct: Any, field: str) -> None:
        self._bytes += -self._bytes % lib.FR_LINE_BYTES
        self._fields.append((struct, field, self._bytes))

    def _add(self, matrix: npt.NDArray[Any], units: int, depth: int, gates: int) -> None:
        self._matrices.append((matrix, self._bytes, units, depth, gates))
        held = lib.fr_panel_weights(PACK[matrix.dtype.name][2], depth)
        weights = (units + -units % self._lanes) * held * (gates or 1)
        self._bytes += weights * matrix.itemsize

    def packed(self) -> Array:
        """Pack, and point the fields to the panels; they live as long as the array that is returned."""
        memory = aligned((-(-self._bytes // FLOAT32.itemsize),))
        start_of_all, lanes = ffi.cast("char *", pointer(memory)), self._lanes
        for matrix, start, units, depth, gates in self._matrices:
            kind, pack, _ = PACK[matrix.dtype.name]
            rows, panels = ffi.cast(kind, matrix.ctypes.data), ffi.cast(kind, start_of_all + start)
            stride = matrix.strides[0] // matrix.itemsize
            if gates:
                pack(rows, stride, units, depth, gates, lanes, panels)
            else:
                lib.fr_pack_transposed(rows, stride, depth, units, lanes, panels)
        for struct, field, start in self._fields:
            setattr(struct, field, ffi.cast("float *", start_of_all + start))
        return memory
