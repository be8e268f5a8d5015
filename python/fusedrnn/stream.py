"""A layer with its own state, fed one step, or one chunk, at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from fusedrnn._native import ffi, lib
from fusedrnn.backends import Compiled, Engine, reads_arrays
from fusedrnn.errors import StreamBusyError
from fusedrnn.gate import Array, gate, size_gate

if TYPE_CHECKING:
    from fusedrnn.layers import Layer

__all__ = ["Stream"]


class Stream:
    """A layer that remembers: made by ``layer.stream(batch_size)``.

    A step allocates nothing and takes no lock. Two threads inside one stream at once are an error and not a
    race: the second call raises and does nothing.

    Attributes
    ----------
    input
        The bound input buffer, (B, X), to be written before a ``step()`` without an argument.
    output
        What ``step`` returns: a read-only view (B, R) that the next step overwrites.
    """

    __slots__ = (
        "_entry",
        "_handle",
        "_input",
        "_layer",
        "_output",
        "_state",
        "_step",
        "_step_array",
    )

    def __init__(self, layer: Layer[Any], batch_size: int) -> None:
        architecture = layer.architecture
        self._layer = layer
        self._state: list[Array] = layer._zero_state(batch_size)
        size_gate("stream.input", (batch_size, architecture.input_size), layer.dtype)
        size_gate("stream.output", (batch_size, architecture.output_size), layer.dtype)
        self._input: Array = np.zeros((batch_size, architecture.input_size), layer.dtype)
        y = np.zeros((1, batch_size, architecture.output_size), layer.dtype)
        # Over a read-only view, so that nobody can make it writable.
        read_only = np.frombuffer(y.data.toreadonly(), layer.dtype)
        self._output: Array = read_only.reshape(y.shape[1:])
        engine = layer._engine
        self._entry: _Compiled | _Python = (
            _Compiled(engine, self._input[None], y, self._state)
            if isinstance(engine, Compiled)
            else _Python(engine, self._input[None], y, self._state)
        )
        # Bound here because an attribute of an attribute costs as much as a check.
        self._handle: Any = self._entry.handle
        self._step: Callable[[Any], bool] = self._entry.step
        self._step_array: Callable[[Any, int], bool] = self._entry.step_array

    @property
    def batch_size(self) -> int:
        """B: how many independent sequences advance together."""
        return len(self._input)

    @property
    def input(self) -> Array:
        """The bound input buffer: write to it, ``stream.input[...] = x``, before ``step()``."""
        return self._input

    @property
    def output(self) -> Array:
        """The last output: read-only, overwritten by the next step."""
        return self._output

    def step(self, x: Array | None = None) -> Array:
        """Advance by one step.

        Parameters
        ----------
        x
            (B, X), float32 (or the layer's dtype), C-contiguous. None reads the bound buffer ``stream.input``.

        Returns
        -------
        numpy.ndarray
            ``stream.output``: (B, R), read-only, overwritten by the next step. Copy it to keep it.

        Raises
        ------
        TypeError, ValueError
            If x is not such an array. The state is as it was.
        StreamBusyError
            If another thread is inside this stream. The state is as that thread leaves it.
        """
        if x is None:
            if self._step(self._handle):
                raise _busy()
        elif type(x) is not ndarray or self._step_array(self._handle, id(x)):
            self._step_otherwise(x)
        return self._output

    def _step_otherwise(self, x: Any) -> None:
        """A step whose array the fast check did not take: an error, or an array worth a copy."""
        array = gate("x", x, self._input.shape, self._layer.dtype)
        if not x.flags.c_contiguous:
            raise ValueError(
                f"x must be C-contiguous, got strides {x.strides}; use numpy.ascontiguousarray(x)"
            )
        # A subclass, a misaligned array, or one that shares memory with the output (y = step(y)).
        if self._entry.step_from(np.array(array)):
            raise _busy()

    def run(self, x: Array) -> Array:
        """Advance over a chunk of steps, in one call.

        Parameters
        ----------
        x
            (T, B, X), or (B, T, X) for a ``batch_first`` layer. T may be anything, 0 included.

        Returns
        -------
        numpy.ndarray
            y, shaped like x but R wide: a new array, the same bits as T calls of :meth:`step`.
        """
        x, y, result = self._layer._sequences(x, None, self.batch_size)
        if self._entry.take():
            raise _busy()
        try:
            self._layer._engine.run(x, y, self._state)
        finally:
            self._entry.release()
        return result

    def reset(self, state: Sequence[Array] | None = None) -> None:
        """Set the state: to zeros, or to a state tuple such as a layer returns or :attr:`state` gives."""
        values = self._layer._given_state(state, self.batch_size)
        if self._entry.take():
            raise _busy()
        try:
            for array, value in zip(self._state, values, strict=True):
                array[...] = value
        finally:
            self._entry.release()

    @property
    def state(self) -> Any:
        """A copy of the state: the layer's named tuple, each (L * D, B, ·)."""
        if self._entry.take():
            raise _busy()
        try:
            return self._layer.state_type(*(array.copy() for array in self._state))
        finally:
            self._entry.release()

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Stream cannot be copied or pickled: make another of the layer, and reset it to this state"
        )

    def __repr__(self) -> str:
        return f"<Stream of {self._layer!r}, batch_size={self.batch_size}>"


def _busy() -> StreamBusyError:
    return StreamBusyError(
        "this stream is in use by another thread: give each thread a stream of its own, or a lock"
    )


class _Compiled:
    """The way into a compiled engine: functions of the C API and the struct they take.

    What returns a bool returns True if it did nothing: another thread is inside.
    """

    def __init__(self, engine: Compiled, x: Array, y: Array, state: list[Array]) -> None:
        call = engine.bound(x, y, state)
        self.handle = ffi.new("fr_stream *")
        self.handle.plan = engine.plan
        self.handle.io = call.q[0]
        self.handle.inputs = x.shape[2]
        spans = ffi.new("fr_span[]", (1 + call.threads) * engine.plan.layers)
        self.handle.spans = spans
        lib.fr_stream_bind(self.handle)
        self._alive = (engine, x, y, call, spans)
        self.step: Callable[[Any], bool] = lib.fr_step
        self.step_array: Callable[[Any, int], bool] = (
            lib.fr_step_array if reads_arrays() else lambda handle, array: True
        )

    def step_from(self, x: Array) -> bool:
        return bool(lib.fr_step_from(self.handle, ffi.from_buffer("float[]", x)))

    def take(self) -> bool:
        return bool(lib.fr_stream_take(self.handle))

    def release(self) -> None:
        lib.fr_stream_release(self.handle)


class _Python:
    """The same way into any other engine."""

    def __init__(self, engine: Engine, x: Array, y: Array, state: list[Array]) -> None:
        self.handle = None
        self._engine, self._x, self._y, self._state = engine, x, y, state
        self._lock = threading.Lock()

    def step(self, handle: None) -> bool:
        return self.step_from(self._x[0])

    def step_array(self, handle: None, array: int) -> bool:
        return True

    def step_from(self, x: Array) -> bool:
        if self.take():
            return True
        try:
            self._engine.run(x[None], self._y, self._state)
        finally:
            self.release()
        return False

    def take(self) -> bool:
        return not self._lock.acquire(blocking=False)

    def release(self) -> None:
        self._lock.release()
