"""A layer with its own state, fed one step, or one chunk, at a time; and several of them, fed together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from fusedrnn._native import ffi, lib
from fusedrnn.arrays import Array, check_array, check_is_array, check_size
from fusedrnn.engines.base import Call, Engine
from fusedrnn.engines.compiled import Compiled
from fusedrnn.engines.native import address, arrays, reads_arrays
from fusedrnn.errors import StreamBusyError
from fusedrnn.signature import Signature

__all__ = ["Stream", "StreamGroup"]

# Bound here because an attribute of the C extension costs more than a global name.
FR_OK: int = lib.FR_OK
FR_BUSY: int = lib.FR_BUSY
FR_OTHER_ARRAY: int = lib.FR_OTHER_ARRAY


class Streamed(Protocol):
    """What a stream needs of its layer."""

    _engine: Engine
    _signature: Signature
    state_type: ClassVar[type[Any]]


class _Stepped:
    """What has a bound input, an output, and a step from the one to the other.

    The memory of both belongs to bytearrays, which nobody can resize while arrays look at it, and C has its address: what
    somebody does to the shape of an array that was handed out has no effect here.
    """

    __slots__ = (
        "_batch_size",
        "_entry",
        "_handle",
        "_input",
        "_layer",
        "_output",
        "_output_shape",
        "_read_only",
        "_step",
    )

    _busy: ClassVar[str]

    def __init__(
        self, layer: Streamed, rows: int, entry: Callable[[Array, Array], _Compiled | _Python]
    ) -> None:
        self._layer = layer
        self._batch_size = rows
        size, dtype = layer._signature, layer._signature.dtype
        check_size(f"{type(self).__name__}.input", (rows, size.input_size), dtype)
        check_size(f"{type(self).__name__}.output", (rows, size.output_size), dtype)
        self._input = _zeros(rows, size.input_size, dtype)
        y = _zeros(rows, size.output_size, dtype)
        self._output_shape = y.shape
        self._read_only = y.data.toreadonly()
        self._entry = entry(self._input[None], y[None])
        self._handle: Any = self._entry.handle
        self._renew_output()

    def _renew_output(self) -> None:
        """A new array for ``output``: over a read-only view, so that nobody can make it writable."""
        dtype = self._layer._signature.dtype
        self._output: Array = np.frombuffer(self._read_only, dtype).reshape(self._output_shape)
        self._step: Callable[[Any], int] = self._entry.stepper(self._output)

    def _keep_output(self) -> None:
        """A new array for ``output`` if somebody has given the one there is another shape or dtype."""
        y = self._output
        as_made = y.shape == self._output_shape and y.dtype == self._layer._signature.dtype
        if not as_made or not y.flags.c_contiguous:
            self._renew_output()

    @property
    def batch_size(self) -> int:
        """B: how many independent sequences advance together."""
        return self._batch_size

    @property
    def input(self) -> Array:
        """A view of the bound input buffer: write to it, ``stream.input[...] = x``, before ``step()``."""
        return self._input.view()

    @property
    def output(self) -> Array:
        """The last output: read-only, overwritten by the next step."""
        self._keep_output()
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
        if status := self._step(x):
            self._step_otherwise(status, x)
        return self._output

    def _step_otherwise(self, status: int, x: Any) -> None:
        """What the fast step did not do: an error, an array worth a copy, or a new ``output``."""
        if status == FR_OTHER_ARRAY:
            signature = self._layer._signature
            view = check_is_array("x", x, signature.dtype)
            shape = (self._batch_size, signature.input_size)
            array = check_array("x", view, shape, signature.dtype)
            if not view.flags.c_contiguous:
                raise ValueError(
                    f"x must be C-contiguous, got strides {view.strides}; use numpy.ascontiguousarray(x)"
                )
            # A subclass, a misaligned array, or one that shares memory with the output (y = step(y)).
            status = self._entry.step_from(np.array(array))
        if status == FR_BUSY:
            raise StreamBusyError(self._busy)
        self._keep_output()

    def _hold(self, function: Callable[[], Any]) -> Any:
        """What a function returns that is called while this stream, or all streams of this group, are taken."""
        return arrays.hold(self._entry.address, self._busy, function)

    def __reduce__(self) -> Any:
        raise TypeError(
            f"a {type(self).__name__} cannot be copied or pickled: make another; a stream of the same layer"
            " can be reset to this state"
        )


def _assign(state: Sequence[Array], values: Sequence[Array], rows: Any = slice(None)) -> None:
    for array, value in zip(state, values, strict=True):
        array[:, rows] = value[:, rows]


def _whole_or_not(state: Sequence[Array], change: Callable[[], None]) -> None:
    """Change a state; after an exception, an interrupt among them, it is as it was before."""
    before = [array.copy() for array in state]
    try:
        change()
    except BaseException:
        _assign(state, before)
        raise


def _zeros(rows: int, columns: int, dtype: np.dtype[Any]) -> Array:
    memory = bytearray(rows * columns * dtype.itemsize)
    return np.frombuffer(memory, dtype).reshape(rows, columns)


class Stream(_Stepped):
    """A layer that remembers: made by ``layer.stream(batch_size)``.

    A step allocates nothing and takes no lock. Two threads inside one stream at once are an error and not a
    race: the second call raises and does nothing. A call that an interrupt (Ctrl-C) ends leaves the state as it was,
    or has done all of its work.

    The header of ``x`` (its shape, its strides) is read while the GIL is held, so another thread may change it during a
    step. The memory of ``x`` must stay: NumPy frees it only for those who ask it not to look for other users.

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

    def __init__(self, layer: Streamed, batch_size: int) -> None:
        self._state: list[Array] = layer._signature.start_state(batch_size)
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
            (T, B, X), or (B, T, X) for a ``batch_first`` layer. T may be anything, 0 included. A stream has a batch
            axis always.

        Returns
        -------
        numpy.ndarray
            y, shaped like x but R wide: a new array, the same bits as T calls of :meth:`step`.
        """
        given = self._layer._signature.sequences(x, batch=self._batch_size, unbatched=False)
        call = Call(given.x, given.y, self._state)
        self._hold(lambda: _whole_or_not(self._state, lambda: self._layer._engine.run(call)))
        return given.result

    def reset(
        self,
        state: Sequence[Array] | None = None,
        *,
        rows: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Set the state, of all rows or of some.

        Parameters
        ----------
        state
            A state tuple such as a layer returns or :attr:`state` gives, of all rows; None for that before step 0.
        rows
            (B,) bools: the rows whose state is set, as where some sequences have ended and others begin. None: all.

        Raises
        ------
        TypeError, ValueError
            If an argument is not as described. The state is as it was.
        StreamBusyError
            If another thread is inside.
        """
        values = self._layer._signature.check_state(state, self._batch_size)
        where: Any = slice(None)
        if rows is not None:
            where = check_array("rows", rows, (self._batch_size,), np.dtype(np.bool_)).copy()

        self._hold(lambda: _whole_or_not(self._state, lambda: _assign(self._state, values, where)))

    @property
    def state(self) -> Any:
        """A copy of the state: the layer's named tuple, each (L * D, B, ·)."""
        copies = self._hold(lambda: [array.copy() for array in self._state])
        return self._layer.state_type(*copies)

    def __repr__(self) -> str:
        return f"<Stream of {self._layer!r}, batch_size={self._batch_size}>"


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
        What ``step`` returns: a read-only view (B, R), the rows of all streams in the same order. The ``output`` of
        each stream is that of its own last step alone.

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
            return _PythonGroup(engine, x, y, streams)

        super().__init__(layer, sum(stream.batch_size for stream in streams), entry)

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The streams, in the order of their rows."""
        return self._streams

    def __repr__(self) -> str:
        return f"<StreamGroup of {len(self._streams)} streams of {self._layer!r}, batch_size={self._batch_size}>"


def _checked(streams: Any) -> tuple[Stream, ...]:
    if not isinstance(streams, (tuple, list)):
        raise TypeError(f"streams must be a list or tuple of streams, not {type(streams).__name__}")
    listed: tuple[Any, ...] = tuple(streams)
    if not listed:
        raise ValueError("streams must be at least one, got none")
    seen: set[int] = set()
    for number, stream in enumerate(listed):
        if not isinstance(stream, Stream):
            raise TypeError(f"streams[{number}] must be a Stream, not {type(stream).__name__}")
        if stream._layer is not listed[0]._layer:
            raise ValueError(
                f"streams must be of one layer, the very same object: streams[{number}] is of another than"
                " streams[0]"
            )
        if id(stream) in seen:
            raise ValueError(f"streams must differ: streams[{number}] is there twice")
        seen.add(id(stream))
    return listed


class _Entry:
    """The way into an engine. Its ``fr_stream`` says who is inside; steps return an ``enum fr_status``."""

    def __init__(self, entries: Sequence[_Entry]) -> None:
        self.handle = ffi.new("fr_stream *")
        self.address = address(self.handle)
        self._streams = ffi.new("fr_stream *[]", [entry.handle for entry in entries])
        self._entries = entries
        if entries:
            self.handle.streams, self.handle.stream_count = self._streams, len(entries)


class _Compiled(_Entry):
    """The way into a compiled engine: functions of the C API and the struct they take."""

    def __init__(
        self,
        engine: Compiled,
        x: Array,
        y: Array,
        state: list[Array],
        entries: Sequence[_Entry] = (),
    ) -> None:
        super().__init__(entries)
        call = engine.bound(x, y, state)
        self.handle.plan = engine.plan
        self.handle.io = call.q[0]
        self.handle.inputs = x.shape[2]
        spans = ffi.new("fr_span[]", (1 + call.threads) * engine.plan.layers)
        self.handle.spans = spans
        if entries:  # each row has the state of its stream
            self.handle.io.h = self.handle.io.c = self.handle.io.t = ffi.NULL
        lib.fr_stream_bind(self.handle)
        self._shapes = x.shape[1:], y.shape[1:]
        self._alive = (engine, x, y, state, call, spans)

    def stepper(self, output: Array) -> Callable[[Any], int]:
        """The step from an array, or from the bound buffer for None, that is checked in C."""
        if reads_arrays():
            step: Callable[[Any], int] = arrays.stepper(self.address, output, *self._shapes)
            return step
        return lambda x: lib.fr_step(self.handle) if x is None else FR_OTHER_ARRAY

    def step_from(self, x: Array) -> int:
        return int(lib.fr_step_from(self.handle, ffi.from_buffer("float[]", x)))


class _Python(_Entry):
    """The same way into any other engine."""

    def __init__(
        self,
        engine: Engine,
        x: Array,
        y: Array,
        state: list[Array],
        entries: Sequence[_Entry] = (),
    ) -> None:
        super().__init__(entries)
        self._engine, self._x, self._y, self._state = engine, x, y, state

    def stepper(self, output: Array) -> Callable[[Any], int]:
        """See :class:`_Compiled`: nothing is checked in C."""
        return lambda x: self.step_from(self._x[0]) if x is None else FR_OTHER_ARRAY

    def step_from(self, x: Array) -> int:
        try:
            arrays.hold(self.address, "", lambda: self._run(x))
        except StreamBusyError:
            return FR_BUSY
        return FR_OK

    def _run(self, x: Array) -> None:
        call = Call(x[None], self._y, self._state)
        _whole_or_not(self._state, lambda: self._engine.run(call))


class _PythonGroup(_Python):
    """The way into any other engine for streams with states of their own: gathered before a step, scattered after it."""

    def __init__(self, engine: Engine, x: Array, y: Array, streams: Sequence[Stream]) -> None:
        super().__init__(engine, x, y, [], [stream._entry for stream in streams])
        self._members = streams

    def _run(self, x: Array) -> None:
        parts = zip(*(stream._state for stream in self._members), strict=True)
        state = [np.concatenate(each, axis=1) for each in parts]
        self._engine.run(Call(x[None], self._y, state))
        every = [array for stream in self._members for array in stream._state]
        _whole_or_not(every, lambda: self._scatter(state))

    def _scatter(self, state: Sequence[Array]) -> None:
        first = 0
        for stream in self._members:
            rows = slice(first, first + stream.batch_size)
            _assign(stream._state, [values[:, rows] for values in state])
            first = rows.stop
