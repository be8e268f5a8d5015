"""The NumPy specification as an engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fusedrnn.architecture import Architecture
from fusedrnn.arrays import Array
from fusedrnn.engines.base import (
    Call,
    Engine,
    Lengths,
    Recording,
    Resets,
    by_direction,
    by_name,
    refuse_clockwork_sums,
)
from fusedrnn.kernels.integers import INTEGER_MATRICES
from fusedrnn.kernels.reference import (
    BACKWARD_STEPS,
    STEPS,
    Function,
    Parameters,
    by_kind,
    parameters,
)
from fusedrnn.narrowing import Stored, matrices, weight_dtype_of, widened

__all__ = ["Reference"]


@dataclass(frozen=True)
class _Step:
    """A step of one layer and direction, as it was computed.

    Attributes
    ----------
    at, rows
        Indices of the time step, or of each row's, and of the rows that were computed.
    x
        (rows, X), what the layer read.
    before, after
        The state before the step, after resets; and the state after it.
    """

    at: Any
    rows: Any
    x: Array
    before: tuple[Array, ...]
    after: tuple[Array, ...]


class Reference(Engine):
    """The NumPy specification, run layer by layer, direction by direction, step by step.

    It has the numbers that narrow weights stand for; a product with int8 is one of integers, as in kernels.
    """

    backend = "numpy"
    isa = None

    def __init__(self, architecture: Architecture, weights: Stored, dtype: np.dtype[Any]) -> None:
        self._architecture = architecture
        self._dtype = dtype
        self._step = STEPS[architecture.cell, architecture.table.form]
        arrays = widened(weights, dtype)
        kind = INTEGER_MATRICES.get(weight_dtype_of(weights))
        if kind is not None:
            for name in matrices(architecture):
                arrays[name] = arrays[name].view(kind)
        self._parameters = [
            parameters(architecture, group) for group in by_direction(architecture, arrays)
        ]

    def with_weights(self, weights: Stored) -> Reference:
        """See :class:`Engine`."""
        return Reference(self._architecture, weights, self._dtype)

    def run(self, call: Call) -> None:
        """See :class:`Engine`."""
        self._run(call, None)

    def record(self, call: Call, segments: bool) -> Recording:
        """See :class:`Engine`. Segments are for kernels: every step's inputs and states are remembered either way."""
        steps: list[list[_Step]] = [[] for _ in self._parameters]
        self._run(call, steps)
        return _Recorded(self._architecture, self._parameters, steps, call)

    def _run(self, call: Call, recorded: list[list[_Step]] | None) -> None:
        # Infinities make NaN and small numbers vanish: that is what they mean, and no news.
        with np.errstate(invalid="ignore", under="ignore"):
            after = self._layers(call, recorded)
        for array, values in zip(call.state, zip(*after, strict=True), strict=True):
            array[...] = values

    def _layers(self, call: Call, recorded: list[list[_Step]] | None) -> list[tuple[Array, ...]]:
        after = []
        a, x, y = self._architecture, call.x, call.y
        for layer in range(a.num_layers):
            out = y if layer == a.num_layers - 1 else np.zeros(y.shape, y.dtype)
            for direction in range(a.directions):
                index = layer * a.directions + direction
                columns = _columns(a, direction)
                now = tuple(array[index].copy() for array in call.state)
                for at, rows in _order(a, direction, len(x), call.lengths):
                    before = tuple(array[rows] for array in now)
                    if call.resets is not None:
                        before = _replaced(before, call.resets[at, rows], [0] * len(before))
                    new = self._step(x[at, rows], before, self._parameters[index])
                    if recorded is not None:
                        recorded[index].append(_Step(at, rows, x[at, rows], before, new))
                    now = _replaced(now, rows, new)
                    out[at, rows, columns] = new[0]
                after.append(now)
            x = out
        return after


class _Recorded(Recording):
    """The inputs and states of all steps; backward computes each step again, from there."""

    def __init__(
        self,
        architecture: Architecture,
        parameters: Sequence[Parameters],
        steps: Sequence[Sequence[_Step]],
        call: Call,
    ) -> None:
        self._architecture = architecture
        self._parameters = parameters
        self._steps = steps
        self._resets: Resets | None = call.resets
        self._shape = call.x.shape[:2]

    def backward(
        self, dy: Array, dstate: Sequence[Array | None], dx: Array | None, *, keep: bool
    ) -> dict[str, Array]:
        """See :class:`Recording`."""
        a = self._architecture
        sums = self._zeros()
        with np.errstate(invalid="ignore", under="ignore"):
            for layer in reversed(range(a.num_layers)):
                shape = (*dy.shape[:2], a.layer_input(layer))
                below = dx if layer == 0 and dx is not None else np.zeros(shape, dy.dtype)
                for direction in range(a.directions):
                    index = layer * a.directions + direction
                    after = tuple(None if each is None else each[index] for each in dstate)
                    before = self._direction(
                        index, dy[:, :, _columns(a, direction)], after, below, sums[index]
                    )
                    for array, values in zip(dstate, before, strict=True):
                        if array is not None:
                            array[index] = values
                dy = below
        return by_name(a, sums)

    def _direction(
        self, index: int, dy: Array, now: tuple[Any, ...], dx: Array, sums: dict[str, list[Array]]
    ) -> tuple[Any, ...]:
        """Run one layer and direction backward: add to dx and to the sums of its weights' gradients."""
        a, w = self._architecture, self._parameters[index]
        backward = BACKWARD_STEPS[a.cell, a.table.form]
        for step in reversed(self._steps[index]):
            at, rows = step.at, step.rows
            dh, *others = (None if array is None else array[rows] for array in now)
            dx_t, before, gradients = backward(step.x, step.before, w, (dh + dy[at, rows], *others))
            if self._resets is not None:
                before = _replaced(before, self._resets[at, rows], [0] * len(before))
            now = _replaced(now, rows, before)
            dx[at, rows] += dx_t
            for kind, arrays in by_kind(a, gradients).items():
                for total, part in zip(sums[kind], arrays, strict=True):
                    total += part
        return now

    def sums(self) -> list[Array]:
        """See :class:`Recording`. They are computed again, as backward does."""
        a = self._architecture
        refuse_clockwork_sums(a)
        found = []
        for steps, w in zip(self._steps, self._parameters, strict=True):
            sums = self._unwritten(len(a.table.gates), a.hidden_size)
            for step in steps:
                sums[step.at, step.rows] = np.stack(_gate_sums(a, step, w), axis=1)
            found.append(sums)
        return found

    def states(self) -> list[tuple[Array, ...]]:
        """See :class:`Recording`."""
        a = self._architecture
        found = []
        for steps in self._steps:
            states = tuple(
                self._unwritten(a.fed_back if each.kind == "hidden" else a.hidden_size)
                for each in a.table.states
                if each.kind != "counter"
            )
            for step in steps:
                for array, values in zip(states, step.after):
                    array[step.at, step.rows] = values
            found.append(states)
        return found

    def _unwritten(self, *shape: int) -> Array:
        return np.full((*self._shape, *shape), np.nan, self._parameters[0].W.dtype)

    def _zeros(self) -> list[dict[str, list[Array]]]:
        dtype = self._parameters[0].W.dtype
        a = self._architecture
        return by_direction(a, {each.name: np.zeros(each.shape, dtype) for each in a.weights()})


def _gate_sums(architecture: Architecture, step: _Step, w: Parameters) -> list[Array]:
    """The sums of a step's gates: what its limit is given, if there are no peepholes. No other gate's sum has c in it."""
    seen: list[Array] = []

    def limited(x: Array) -> Array:
        seen.append(x)
        return w.clip(x)

    run = STEPS[architecture.cell, architecture.table.form]
    with np.errstate(invalid="ignore", under="ignore"):
        run(step.x, step.before, replace(w, p={}, clip=Function(limited, w.clip.derivative)))
    return seen


def _columns(architecture: Architecture, direction: int) -> slice:
    """Where a direction's h is in an output row."""
    width = architecture.fed_back
    return slice(direction * width, (direction + 1) * width)


def _order(
    architecture: Architecture, direction: int, steps: int, lengths: Lengths | None
) -> Iterator[tuple[Any, Any]]:
    """The steps of a direction in the order of computation: indices of time, and of the rows that are computed."""
    reverse = direction == 1 or architecture.reverse
    for k in range(steps):
        if lengths is None:
            yield steps - 1 - k if reverse else k, slice(None)
        else:
            rows = np.flatnonzero(lengths > k)
            yield lengths[rows] - 1 - k if reverse else np.full(len(rows), k), rows


def _replaced(arrays: Sequence[Any], rows: Any, values: Sequence[Any]) -> tuple[Any, ...]:
    """Copies of arrays, with other values in some rows; None for None."""
    copies = tuple(None if array is None else array.copy() for array in arrays)
    for array, value in zip(copies, values, strict=True):
        if array is not None:
            array[rows] = value
    return copies
