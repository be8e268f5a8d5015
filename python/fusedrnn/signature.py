"""What arrays a layer takes and gives: shapes and dtypes of x, y and the states, checked in this one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fusedrnn.architecture import Architecture
from fusedrnn.arrays import Array, check_array, check_is_array, check_lengths, check_size
from fusedrnn.cells import State
from fusedrnn.engines.base import Call, Resets
from fusedrnn.errors import UnsupportedError

__all__ = ["Sequences", "Signature", "Zeros"]

#: Below this batch size the size check of a state cannot fail: that of its weights would have failed before.
MANY_ROWS = 2**16

#: A counter of steps goes on counting: neither from below zero, nor up to where it would wrap.
MAX_COUNT = 2**62


class Zeros(NamedTuple):
    """A state for a batch of 1: its name, shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def for_batch(self, batch: int) -> tuple[int, ...]:
        """The shape for another batch size."""
        return (self.shape[0], batch, *self.shape[2:])


class Sequences(NamedTuple):
    """Checked sequences, and the new or given outputs for them.

    Attributes
    ----------
    x, y
        As engines take them: (T, B, X) and (T, B, D * R), private views.
    result
        y as the caller gets it.
    shape
        The shape of x as the caller gave it.
    batched
        False if x is one sequence without a batch axis.
    """

    x: Array
    y: Array
    result: Array
    shape: tuple[int, ...]
    batched: bool


class Signature:
    """What arrays a layer takes and gives.

    Parameters
    ----------
    architecture
        The cell, its sizes and its options.
    dtype
        dtype of inputs, outputs and states.
    batch_first
        Sequences are (B, T, ·) instead of (T, B, ·).
    initial
        The state of one sequence before step 0, each (L * D, ·); None for zeros.

    Attributes
    ----------
    initial
        Read-only copies of it, or None.
    states
        Name, shape and dtype of each state, for a batch of 1.
    """

    def __init__(
        self,
        architecture: Architecture,
        dtype: np.dtype[Any],
        *,
        batch_first: bool,
        initial: Sequence[Array] | None = None,
    ) -> None:
        self.input_size = architecture.input_size
        self.output_size = architecture.output_size
        self.dtype = dtype
        self.batch_first = batch_first
        self._runs_backward = architecture.bidirectional or architecture.reverse
        self.states = tuple(
            Zeros(each.name, architecture.state_shape(each, 1), self.state_dtype(each))
            for each in architecture.table.states
        )
        self.initial: tuple[Array, ...] | None = None
        if initial is not None:
            values = self.check_state(initial, 1, batched=False, name="initial_state")
            for array in values:
                array.flags.writeable = False
            self.initial = tuple(array[:, 0] for array in values)

    def state_dtype(self, state: State) -> np.dtype[Any]:
        """The dtype of a state: int64 for a counter."""
        return np.dtype(np.int64) if state.kind == "counter" else self.dtype

    def call(
        self, x: Any, state: Any, lengths: Any, out: Any, resets: Any = None
    ) -> tuple[Call, Sequences]:
        """Check all arguments of a layer's call, before anything is computed or written."""
        sequences = self.sequences(x, out)
        steps, batch, _ = sequences.x.shape
        given = None
        if lengths is not None:
            if not sequences.batched:
                raise ValueError(
                    "lengths must be None for one sequence without a batch axis: leave out its last steps instead"
                )
            given = check_lengths(lengths, steps, batch)
        where = None if resets is None else self.check_resets(resets, sequences)
        values = self.check_state(state, batch, batched=sequences.batched)
        if lengths is not None:
            sequences.y[...] = 0
        return Call(sequences.x, sequences.y, values, given, where), sequences

    def check_resets(self, resets: Any, sequences: Sequences) -> Resets:
        """A private copy of the mask of resets, (T, B)."""
        if self._runs_backward:
            raise UnsupportedError(
                "resets must be None for a bidirectional or a reverse layer: a direction that runs backward has no "
                "state before a step"
            )
        mask: Any = check_array("resets", resets, sequences.shape[:-1], np.dtype(np.bool_))
        return np.array(self.time_major(mask, sequences.batched), order="C")

    def check_output_gradient(self, dy: Any, shape: tuple[int, ...], batched: bool) -> Array:
        """The gradient of y as engines take it, of a call whose x had that shape: a view of it, or zeros for None."""
        wanted = (*shape[:-1], self.output_size)
        dy = (
            np.zeros(wanted, self.dtype)
            if dy is None
            else check_array("dy", dy, wanted, self.dtype)
        )
        view: Array = self.time_major(dy, batched)
        return view

    def check_state_gradient(self, dstate: Any, batch: int, *, batched: bool) -> list[Array | None]:
        """Private copies of the gradient of a state, or zeros for None; always None in the place of a counter."""
        given = [None] * len(self.states) if dstate is None else self.fields("dstate", dstate)
        checked: list[Array | None] = []
        for each, value in zip(self.states, given, strict=True):
            shape = each.for_batch(batch)
            if each.dtype.kind == "i":
                if value is not None:
                    raise TypeError(
                        f"dstate.{each.name} must be None, not {type(value).__name__}: a counter has no gradient"
                    )
                checked.append(None)
            elif value is None:
                checked.append(np.zeros(shape, each.dtype))
            else:
                checked.append(self._copied(f"dstate.{each.name}", value, each, batch, batched))
        return checked

    def time_major(self, array: Any, batched: bool) -> Any:
        """A view (T, B, ·) of a sequence as callers have it."""
        if not batched:
            return array[:, None]
        return array.swapaxes(0, 1) if self.batch_first else array

    def sequences(
        self, x: Any, out: Any = None, batch: int | str = "batch", *, unbatched: bool = True
    ) -> Sequences:
        """Check x and out, or make a new array for y."""
        x = check_is_array("x", x, self.dtype)
        batched = not (unbatched and x.ndim == 2)
        axes = ["steps", batch][: 1 + batched]
        if batched and self.batch_first:
            axes.reverse()
        x = check_array("x", x, (*axes, self.input_size), self.dtype)
        given = x.shape
        shape = (*given[:-1], self.output_size)
        if out is None:
            check_size("y", shape, self.dtype)
            result = np.empty(shape, self.dtype)
            y = result.view()
        else:
            y, result = check_array("out", out, shape, self.dtype, written=True), out
            if np.may_share_memory(y, x):
                raise ValueError("out must not overlap x in memory; leave it out, or copy x")
        x, y = self.time_major(x, batched), self.time_major(y, batched)
        return Sequences(x, y, result, given, batched)

    def start_state(self, batch: int) -> list[Array]:
        """The state before step 0 where none is given, each (L * D, B, ·): zeros, or the initial state in every row."""
        if batch > MANY_ROWS:
            for each in self.states:
                check_size(f"state.{each.name}", each.for_batch(batch), each.dtype)
        if self.initial is None:
            return [np.zeros(each.for_batch(batch), each.dtype) for each in self.states]
        return [np.repeat(array[:, None], batch, axis=1) for array in self.initial]

    def check_state(
        self,
        state: Sequence[Array] | None,
        batch: int,
        *,
        batched: bool = True,
        name: str = "state",
    ) -> list[Array]:
        """Private copies of a state that a user gave, or that before step 0: each (L * D, B, ·), without gaps.

        Without a batch axis each must be (L * D, ·), and is given one.
        """
        if state is None:
            return self.start_state(batch)
        checked = []
        for each, value in zip(self.states, self.fields(name, state), strict=True):
            array = self._copied(f"{name}.{each.name}", value, each, batch, batched)
            if each.dtype.kind == "i" and array.size:
                low, high = array.min(), array.max()
                if not 0 <= low <= high < MAX_COUNT:
                    raise ValueError(
                        f"{name}.{each.name} must be from 0 to 2**62 - 1, got {low} to {high}"
                    )
            checked.append(array)
        return checked

    def fields(self, name: str, state: Any) -> tuple[Any, ...]:
        """The values of a tuple with one for each state."""
        names = [each.name for each in self.states]
        values = tuple(state) if isinstance(state, (tuple, list)) else None
        if values is None or len(values) != len(names):
            given = type(state).__name__ if values is None else f"{len(values)} of them"
            wanted = ", ".join(names) + ("," if len(names) == 1 else "")
            raise TypeError(f"{name} must be a tuple ({wanted}) of arrays, got {given}")
        return values

    @staticmethod
    def _copied(name: str, value: Any, state: Zeros, batch: int, batched: bool) -> Array:
        """A private copy (L * D, B, ·), without gaps, of an array for a state."""
        shape = state.for_batch(batch)
        wanted = shape if batched else (shape[0], *shape[2:])
        return np.array(check_array(name, value, wanted, state.dtype), order="C").reshape(shape)
