"""Panels: weights in the order in which kernels read them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from fusedrnn.arrays import FLOAT32, Array

__all__ = ["aligned", "packed"]


def aligned(shape: Sequence[int]) -> Array:
    """Zeros of float32 that begin on a cache line."""
    floats = prod(shape)
    store = np.zeros(floats + 16, FLOAT32)
    start = -store.ctypes.data // FLOAT32.itemsize % 16
    return store[start : start + floats].reshape(shape)


def packed(matrix: Array, gates: int, lanes: int) -> Array:
    """Panels [N][K][G][L] of a matrix (G H, K): a unit block's weights in the order they are read.

    Lanes past H are zero: their sums are computed and thrown away.
    """
    depth = matrix.shape[1]
    hidden = matrix.shape[0] // gates
    blocks = -(-hidden // lanes)
    padded = np.zeros((gates, blocks * lanes, depth), FLOAT32)
    padded[:, :hidden] = matrix.reshape(gates, hidden, depth)
    panels = aligned((blocks, depth, gates, lanes))
    panels[...] = padded.reshape(gates, blocks, lanes, depth).transpose(1, 3, 0, 2)
    panels.setflags(write=False)
    return panels
