"""The NumPy specification as an engine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fusedrnn.architecture import Architecture
from fusedrnn.arrays import Array
from fusedrnn.engines.base import Call, Engine, Lengths, by_direction
from fusedrnn.kernels.reference import STEPS, parameters
from fusedrnn.weights import Weights

__all__ = ["Reference"]


class Reference(Engine):
    """The NumPy specification, run layer by layer, direction by direction, step by step."""

    backend = "numpy"
    isa = None

    def __init__(self, architecture: Architecture, weights: Weights) -> None:
        self._step = STEPS[architecture.cell, architecture.table.form]
        self._architecture = architecture
        self._parameters = [
            parameters(architecture, arrays) for arrays in by_direction(architecture, weights)
        ]

    def with_weights(self, weights: Weights) -> Reference:
        """See :class:`Engine`."""
        return Reference(self._architecture, weights)

    def run(self, call: Call) -> None:
        """See :class:`Engine`."""
        # Infinities make NaN and small numbers vanish: that is what they mean, and no news.
        with np.errstate(invalid="ignore", under="ignore"):
            after = self._run(call.x, call.y, call.state, call.lengths)
        for array, values in zip(call.state, zip(*after, strict=True), strict=True):
            array[...] = values

    def _run(
        self, x: Array, y: Array, state: Sequence[Array], lengths: Lengths | None
    ) -> list[tuple[Array, ...]]:
        after = []
        directions, width = self._architecture.directions, self._architecture.fed_back
        for layer in range(self._architecture.num_layers):
            last = layer == self._architecture.num_layers - 1
            out = y if last else np.zeros(y.shape, y.dtype)
            for direction in range(directions):
                index = layer * directions + direction
                reverse = direction == 1 or self._architecture.reverse
                columns = slice(direction * width, (direction + 1) * width)
                now = tuple(array[index] for array in state)
                w = self._parameters[index]
                if lengths is None:
                    for t in reversed(range(len(x))) if reverse else range(len(x)):
                        now = self._step(x[t], now, w)
                        out[t, :, columns] = now[0]
                else:
                    now = tuple(array.copy() for array in now)
                    for k in range(len(x)):
                        rows = np.flatnonzero(lengths > k)
                        at = lengths[rows] - 1 - k if reverse else np.full(len(rows), k)
                        new = self._step(x[at, rows], tuple(array[rows] for array in now), w)
                        for array, values in zip(now, new, strict=True):
                            array[rows] = values
                        out[at, rows, columns] = new[0]
                after.append(now)
            x = out
        return after
