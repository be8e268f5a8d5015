"""A layer with its own state, fed one step, or one chunk, at a time; and several of them, fed together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy import ndarray

from fusedrnn._native import ffi, lib
from fusedrnn.arrays import Array, check_array, check_size
from fusedrnn.engines.base import Engine
from fusedrnn.engines.compiled import Compiled
from fusedrnn.engines.native import reads_arrays
from fusedrnn.errors import StreamBusyError

if TYPE_CHECKING:
    from fusedrnn.layers import Layer

__all__ = ["Stream", "StreamGroup"]

# Bound here because an attribute of the C extension costs more than a global name.
FR_OK: int = lib.FR_OK
FR_BUSY: int = lib.FR_BUSY
FR_OTHER_ARRAY: int = lib.FR_OTHER_ARRAY


class _Stepped:
    """What has a bound input, an output, and a step from the one to the other."""

    __slots__ = ("_entry", "_handle", "_input", "_layer", "_output", "_step", "_step_array")

    _busy: ClassVar[str]

    def __init__(
        self, layer: Layer[Any], rows: int, entry: Callable[[Array, Array], _Compiled | _Python]
    ) -> None:
        self._layer = layer
        size = layer.architecture
        check_size(f"{type(self).__name__}.input", (rows, size.input_size), layer.dtype)
        check_size(f"{type(self).__name__}.output", (rows, size.output_size), layer.dtype)
        self._input: Array = np.zeros((rows, size.input_size), layer.dtype)
        y = np.zeros((1, rows, size.output_size), layer.dtype)
        # Over a read-only view, so that nobody can make it writable.
        read_only = np.frombuffer(y.data.toreadonly(), layer.dtype)
        self._output: Array = read_only.reshape(y.shape[1:])
        self._entry = entry(self._input[None], y)
        # Bound here because an attribute of an attribute costs as much as a check.
        self._handle: Any = self._entry.handle
        self._step: Callable[[Any], int] = self._entry.step
        self._step_array: Callable[[Any, int], int] = self._entry.step_array

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
            (B, X), float32 (or the layer's dtype), C-contiguous. None reads the bound buffer, ``input``.

        Returns
        -------
        numpy.ndarray
            ``output``: (B, R), read-only, overwritten by the next step. Copy it to keep it.

        Raises
        ------
        TypeError, ValueError
            If x is not such an array. The state is as it was.
        StreamBusyError
            If another thread is inside. Nothing is done; the state is as that thread leaves it.
        """
        if x is None:
            if self._step(self._handle):
                raise StreamBusyError(self._busy)
        elif type(x) is not ndarray:
            self._step_otherwise(x)
        elif status := self._step_array(self._handle, id(x)):
            if status == FR_BUSY:
                raise StreamBusyError(self._busy)
            self._step_otherwise(x)
        return self._output

    def _step_otherwise(self, x: Any) -> None:
        """A step whose array the fast check did not take: an error, or an array worth a copy."""
        array = check_array("x", x, self._input.shape, self._layer.dtype)
        if not x.flags.c_contiguous:
            raise ValueError(
                f"x must be C-contiguous, got strides {x.strides}; use numpy.ascontiguousarray(x)"
            )
        # A subclass, a misaligned array, or one that shares memory with the output (y = step(y)).
        if self._entry.step_from(np.array(array)) != FR_OK:
            raise StreamBusyError(self._busy)

    def __reduce__(self) -> Any:
        raise TypeError(
            f"a {type(self).__name__} cannot be copied or pickled: make another; a stream of the same layer"
            " can be reset to this state"
        )


class Stream(_Stepped):
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

    __slots__ = ("_state",)

    _busy = (
        "this stream is in use by another thread: give each thread a stream of its own, or a lock"
    )

    def __init__(self, layer: Layer[Any], batch_size: int) -> None:
        self._state: list[Array] = layer._zero_state(batch_size)
        engine = layer._engine

        def entry(x: Array, y: Array) -> _Compiled | _Python:
            if isinstance(engine, Compiled):
                return _Compiled(engine, x, y, self._state)
            return _Python(engine, x, y, self._state)

        super().__init__(layer, batch_size, entry)

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
        if self._entry.take() != FR_OK:
            raise StreamBusyError(self._busy)
        try:
            self._layer._engine.run(x, y, self._state)
        finally:
            self._entry.release()
        return result

    def reset(self, state: Sequence[Array] | None = None) -> None:
        """Set the state: to zeros, or to a state tuple such as a layer returns or :attr:`state` gives."""
        values = self._layer._given_state(state, self.batch_size)
        if self._entry.take() != FR_OK:
            raise StreamBusyError(self._busy)
        try:
            for array, value in zip(self._state, values, strict=True):
                array[...] = value
        finally:
            self._entry.release()

    @property
    def state(self) -> Any:
        """A copy of the state: the layer's named tuple, each (L * D, B, ·)."""
        if self._entry.take() != FR_OK:
            raise StreamBusyError(self._busy)
        try:
            return self._layer.state_type(*(array.copy() for array in self._state))
        finally:
            self._entry.release()

    def __repr__(self) -> str:
        return f"<Stream of {self._layer!r}, batch_size={self.batch_size}>"


class StreamGroup(_Stepped):
    """Several streams of one layer, stepped by one call.

    A weight that is read serves several streams, so together they take less time than one after another: the
    larger the layer, the less. The outputs and states are those of stepping each alone, to the bit (backends ``c``
    and ``numba``).

    It is an object and not a function ``step_many(streams, x)``, because a step allocates nothing and takes no
    lock, here too: where the outputs go, and where each row finds its state, is settled when the group is made.
    Streams may be in several groups, and may be stepped alone in between; make groups for those whose inputs
    come together.

    Parameters
    ----------
    streams
        Of the very same layer, no stream twice. Of any batch size.

    Attributes
    ----------
    input
        The bound input buffer, (B, X): the rows of all streams, one stream after another; B is the sum of their
        batch sizes.
    output
        What ``step`` returns: a read-only view (B, R), likewise. The ``output`` of each stream is that of its
        own last step alone.

    Raises
    ------
    TypeError, ValueError
        If streams are not as described.

    Examples
    --------
    >>> import numpy as np, fusedrnn as fr
    >>> lstm = fr.LSTM(3, 5, seed=0)
    >>> callers = [lstm.stream() for _ in range(3)]
    >>> group = fr.StreamGroup(callers)
    >>> y = group.step(np.ones((3, 3), "float32"))
    >>> y.shape, bool((y[2] == callers[2].state.h[0, 0]).all())
    ((3, 5), True)
    """

    __slots__ = ("_streams",)

    _busy = "a stream of this group is in use by another thread: give each thread streams of its own, or a lock"

    def __init__(self, streams: Sequence[Stream]) -> None:
        self._streams = streams = _checked(streams)
        layer = streams[0]._layer
        entries = [stream._entry for stream in streams]
        engine = layer._engine

        def entry(x: Array, y: Array) -> _Compiled | _Python:
            if isinstance(engine, Compiled):
                return _Compiled(engine, x, y, streams[0]._state, entries)
            return _PythonGroup(engine, x, y, entries)

        super().__init__(layer, sum(stream.batch_size for stream in streams), entry)

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The streams, in the order of their rows."""
        return self._streams

    def __repr__(self) -> str:
        return f"<StreamGroup of {len(self._streams)} streams of {self._layer!r}, batch_size={self.batch_size}>"


def _checked(streams: Any) -> tuple[Stream, ...]:
    if not isinstance(streams, (tuple, list)):
        raise TypeError(f"streams must be a list or tuple of streams, not {type(streams).__name__}")
    if not streams:
        raise ValueError("streams must be at least one, got none")
    for number, stream in enumerate(streams):
        if not isinstance(stream, Stream):
            raise TypeError(f"streams[{number}] must be a Stream, not {type(stream).__name__}")
        if stream._layer is not streams[0]._layer:
            raise ValueError(
                f"streams must be of one layer, the very same object: streams[{number}] is of another than"
                " streams[0]"
            )
        if any(stream is other for other in streams[:number]):
            raise ValueError(f"streams must differ: streams[{number}] is there twice")
    return tuple(streams)


class _Compiled:
    """The way into a compiled engine: functions of the C API and the struct they take.

    Steps and ``take`` return an ``enum fr_status`` of ``csrc/api.h``.
    """

    def __init__(
        self,
        engine: Compiled,
        x: Array,
        y: Array,
        state: list[Array],
        entries: Sequence[Any] = (),
    ) -> None:
        call = engine.bound(x, y, state)
        self.handle = ffi.new("fr_stream *")
        self.handle.plan = engine.plan
        self.handle.io = call.q[0]
        self.handle.inputs = x.shape[2]
        spans = ffi.new("fr_span[]", (1 + call.threads) * engine.plan.layers)
        self.handle.spans = spans
        streams = ffi.new("fr_stream *[]", [entry.handle for entry in entries])
        if entries:  # each row has the state of its stream
            self.handle.streams, self.handle.stream_count = streams, len(entries)
            self.handle.io.h = self.handle.io.c = self.handle.io.t = ffi.NULL
        lib.fr_stream_bind(self.handle)
        self._alive = (engine, x, y, call, spans, streams, entries)
        self.step: Callable[[Any], int] = lib.fr_step
        self.step_array: Callable[[Any, int], int] = (
            lib.fr_step_array if reads_arrays() else lambda handle, array: FR_OTHER_ARRAY
        )

    def step_from(self, x: Array) -> int:
        return int(lib.fr_step_from(self.handle, ffi.from_buffer("float[]", x)))

    def take(self) -> int:
        return int(lib.fr_stream_take(self.handle))

    def release(self) -> None:
        lib.fr_stream_release(self.handle)


class _Python:
    """The same way into any other engine."""

    def __init__(self, engine: Engine, x: Array, y: Array, state: list[Array]) -> None:
        self.handle = None
        self._engine, self._x, self._y, self._state = engine, x, y, state
        self._lock = threading.Lock()

    def step(self, handle: None) -> int:
        return self.step_from(self._x[0])

    def step_array(self, handle: None, array: int) -> int:
        return FR_OTHER_ARRAY

    def step_from(self, x: Array) -> int:
        if self.take() != FR_OK:
            return FR_BUSY
        try:
            self._engine.run(x[None], self._y, self._state)
        finally:
            self.release()
        return FR_OK

    def take(self) -> int:
        return FR_OK if self._lock.acquire(blocking=False) else FR_BUSY

    def release(self) -> None:
        self._lock.release()


class _PythonGroup(_Python):
    """Likewise, for streams that have states of their own: gathered before a step, scattered after it."""

    def __init__(self, engine: Engine, x: Array, y: Array, entries: Sequence[Any]) -> None:
        super().__init__(engine, x, y, [])
        self._entries = entries

    def step_from(self, x: Array) -> int:
        if self.take() != FR_OK:
            return FR_BUSY
        try:
            parts = zip(*(entry._state for entry in self._entries), strict=True)
            state = [np.concatenate(arrays, axis=1) for arrays in parts]
            self._engine.run(x[None], self._y, state)
            first = 0
            for entry in self._entries:
                rows = slice(first, first + entry._y.shape[1])
                for array, values in zip(entry._state, state, strict=True):
                    array[...] = values[:, rows]
                first = rows.stop
        finally:
            self.release()
        return FR_OK

    def take(self) -> int:
        if super().take() != FR_OK:
            return FR_BUSY
        for number, entry in enumerate(self._entries):
            if entry.take() != FR_OK:
                self._release(number)
                return FR_BUSY
        return FR_OK

    def release(self) -> None:
        self._release(len(self._entries))

    def _release(self, entries: int) -> None:
        for entry in self._entries[:entries]:
            entry.release()
        super().release()
