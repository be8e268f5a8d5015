"""Panels: weights in the order in which kernels read them, packed by ``csrc/pack.c``."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from fusedrnn._native import lib
from fusedrnn.arrays import FLOAT32, Array
from fusedrnn.engines.native import address, pointer, strided

__all__ = ["LINE", "Packing", "aligned"]

#: Floats in a cache line.
LINE = lib.FR_LINE_FLOATS


def aligned(shape: Sequence[int]) -> Array:
    """Float32 of any values that begin on a cache line."""
    floats = prod(shape)
    store = np.empty(floats + LINE, FLOAT32)
    start = -address(pointer(store)) // FLOAT32.itemsize % LINE
    return store[start : start + floats].reshape(shape)


class Packing:
    """Panels of several matrices in one block of memory, each of which begins on a cache line.

    Parameters
    ----------
    lanes
        L, of the instruction set.
    """

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes
        self._floats = 0
        self._fields: list[tuple[Any, str, int]] = []
        self._matrices: list[tuple[Array, int, int, int, int]] = []

    def add(self, struct: Any, field: str, *matrices: Array, gates: int = 1) -> None:
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
        self._floats += -self._floats % LINE
        self._fields.append((struct, field, self._floats))

    def _add(self, matrix: Array, units: int, depth: int, gates: int) -> None:
        self._matrices.append((matrix, self._floats, units, depth, gates))
        self._floats += (units + -units % self._lanes) * depth * (gates or 1)

    def packed(self) -> Array:
        """Pack, and point the fields to the panels; they live as long as the array that is returned."""
        memory = aligned((self._floats,))
        panels, lanes = pointer(memory), self._lanes
        for matrix, start, units, depth, gates in self._matrices:
            rows, stride = strided(matrix), matrix.strides[0] // FLOAT32.itemsize
            if gates:
                lib.fr_pack(rows, stride, units, depth, gates, lanes, panels + start)
            else:
                lib.fr_pack_transposed(rows, stride, depth, units, lanes, panels + start)
        for struct, field, start in self._fields:
            setattr(struct, field, panels + start)
        return memory
