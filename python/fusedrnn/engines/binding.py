"""How a call in C is pointed to the arrays of a caller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn._native import ffi
from fusedrnn.arrays import FLOAT32, Array
from fusedrnn.engines.base import Lengths, Resets
from fusedrnn.engines.native import address, arrays, pointer, reads_arrays, strided

__all__ = ["bind", "bind_unequal"]


def bind(q: Any, x: Array, y: Array, state: Sequence[Array], second: str) -> None:
    """Point a call to its arrays: checked ones, x and y with rows of any strides, states without any."""
    # One call: eight from Python would take as long as a hundred steps of a small layer.
    if reads_arrays():
        last = state[1] if second else None
        arrays.bind(address(q), x, y, state[0], last, second == "counter")
        return
    item = FLOAT32.itemsize
    q.x, q.x_step, q.x_row = strided(x), x.strides[0] // item, x.strides[1] // item
    q.y, q.y_step, q.y_row = strided(y), y.strides[0] // item, y.strides[1] // item
    q.h = pointer(state[0])
    if second == "counter":
        q.t = ffi.from_buffer("int64_t *", state[1])
    elif second:
        q.c = pointer(state[1])


def bind_unequal(
    q: Any, lengths: Lengths | None, resets: Resets | None
) -> list[npt.NDArray[np.int64]]:
    """Point a bound call to what its lengths and resets are in C: arrays that live as long as the call is run."""
    q.order = q.lengths = q.active = q.since = ffi.NULL
    held: list[npt.NDArray[np.int64]] = []
    if lengths is None and resets is None:
        return held
    steps = np.arange(q.steps)
    if lengths is not None:
        order = np.argsort(-lengths, kind="stable")
        ordered = lengths[order]
        active = np.searchsorted(-ordered, -steps)  # how many are longer than t
        held = [np.ascontiguousarray(array, np.int64) for array in (order, ordered, active)]
        q.order, q.lengths, q.active = (ffi.from_buffer("int64_t *", array) for array in held)
    if resets is not None:
        last = np.maximum.accumulate(np.where(resets, steps[:, None], -1), axis=0)
        since = np.ascontiguousarray(np.where(last < 0, -1, steps[:, None] - last), np.int64)
        held.append(since)
        q.since = ffi.from_buffer("int64_t *", since)
    return held
