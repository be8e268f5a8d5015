"""Calls of C and Numba kernels that are remembered for their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from fusedrnn._native import ffi, lib
from fusedrnn.architecture import Architecture
from fusedrnn.arrays import FLOAT32, Array
from fusedrnn.engines.base import Call, Recording
from fusedrnn.engines.binding import bind, bind_unequal
from fusedrnn.engines.native import pointer, strided

__all__ = ["Recorder"]

#: The number of recordings whose memory a plan keeps for the next ones, and the largest size of each.
MAX_IDLE = 4
MAX_IDLE_FLOATS = 2**26

LINE = 16  # FR_LINE_FLOATS


def lines(floats: int) -> int:
    """A number of floats, rounded up to whole cache lines."""
    return -(-floats // LINE) * LINE


@dataclass(frozen=True, slots=True)
class _Part:
    """One array among the gradients: where it begins, and its rows, which begin on cache lines."""

    start: int
    rows: int
    columns: int

    @property
    def width(self) -> int:
        return lines(self.columns)

    @property
    def stop(self) -> int:
        return self.start + self.rows * self.width

    def of(self, memory: Array) -> Array:
        """The (rows, columns) of it, without gaps."""
        array = memory[self.start : self.stop].reshape(self.rows, self.width)
        return (
            array if self.columns == self.width else np.ascontiguousarray(array[:, : self.columns])
        )


class _GradientLayout:
    """Where a backward pass adds the gradients of an architecture's weights: parts of one array.

    Attributes
    ----------
    floats
        The size of that array.
    """

    def __init__(self, architecture: Architecture) -> None:
        a = architecture
        self._architecture = a
        self._weights = tuple(a.weights())
        self.floats = 0
        self._parts: list[dict[str, _Part]] = []
        gates, units, fed_back = len(a.table.gates), a.hidden_size, a.fed_back
        for index in range(a.num_layers * a.directions):
            inputs = a.input_size if index < a.directions else a.directions * fed_back
            shapes = {"dW": (gates * units, inputs), "dR": (gates * units, fed_back)}
            if a.proj_size:
                shapes["dP"] = (fed_back, units)
            shapes["db"] = (1, gates * units)
            if a.table.own_recurrent_bias:
                shapes["dd"] = (1, units)
            if a.peephole_gates:
                shapes["dp"] = (1, 3 * units)
            parts = {}
            for field, (rows, columns) in shapes.items():
                parts[field] = _Part(self.floats, rows, columns)
                self.floats = parts[field].stop
            self._parts.append(parts)

    def structs(self, memory: Array) -> Any:
        """``fr_weight_gradients`` of each layer and direction, pointing into memory, which must live as long."""
        structs = ffi.new("fr_weight_gradients[]", len(self._parts))
        start = ffi.cast("float *", memory.ctypes.data)
        for struct, parts in zip(structs, self._parts, strict=True):
            for field, part in parts.items():
                setattr(struct, field, start + part.start)
            for field in ("dW", "dR", "dP"):
                if field in parts:
                    setattr(struct, f"{field}_row", parts[field].width)
        return structs

    def by_name(self, memory: Array) -> dict[str, Array]:
        """The gradient of each weight, by its canonical name: views of memory where rows have no gaps."""
        a = self._architecture
        gradients: dict[str, Array] = {}
        biased = -1
        for weight in self._weights:
            index = weight.layer * a.directions + weight.direction
            parts = self._parts[index]
            if weight.kind == "input":
                gradient = parts["dW"].of(memory)
            elif weight.kind == "recurrent":
                gradient = parts["dR"].of(memory)
                for module in range(len(a.periods)):  # what no module reads
                    units = slice(module * a.module_size, (module + 1) * a.module_size)
                    gradient[units, : a.module_reads(module)] = 0
            elif weight.kind == "projection":
                gradient = parts["dP"].of(memory)
            elif weight.kind == "peephole":
                of_gates = dict(zip("ifo", np.split(parts["dp"].of(memory)[0], 3), strict=True))
                gradient = np.concatenate([of_gates[letter] for letter in a.peephole_gates])
            elif biased != index:
                biased = index
                gradient = parts["db"].of(memory)[0]
            else:
                gradient = self._second_bias(parts, weight.shape, memory)
            gradients[weight.name] = gradient
        return gradients

    def _second_bias(self, parts: dict[str, _Part], shape: tuple[int, ...], memory: Array) -> Array:
        """Of the recurrent bias: that of the other one, but where a gate has a recurrent bias of its own."""
        a = self._architecture
        both: Array = parts["db"].of(memory)[0].copy()
        if "dd" not in parts:
            return both
        own: Array = parts["dd"].of(memory)[0]
        if shape[0] == a.hidden_size:
            return own
        (gate,) = a.table.own_recurrent_bias
        first = [each.name for each in a.table.gates].index(gate) * a.hidden_size
        both[first : first + a.hidden_size] = own
        return both


def _aligned(floats: int) -> Array:
    store = np.empty(floats + LINE, FLOAT32)
    start = -store.ctypes.data // FLOAT32.itemsize % LINE
    aligned: Array = store[start : start + floats]
    return aligned


class _Memory:
    """What recordings of one shape need: a bound call, a bound backward pass, and their memory."""

    __slots__ = ("backward", "key", "q", "scratch", "tape", "workspace", "zeros")

    def __init__(self, plan: Any, key: tuple[int, ...], widest: int) -> None:
        steps, batch, rows, threads = self.key = key
        self.q: Any = ffi.new("fr_sequence *")
        q = self.q
        q.steps, q.batch, q.threads, q.wakes = steps, batch, threads, 1
        q.tape_floats = lib.fr_tape_floats(plan, rows)
        self.tape = _aligned(q.tape_floats * plan.layers * plan.directions)
        q.tape = pointer(self.tape)
        self.workspace = np.empty(lib.fr_bind_shape(plan, q), FLOAT32)
        q.workspace = pointer(self.workspace)
        self.zeros = np.zeros(widest, FLOAT32)
        q.zeros = pointer(self.zeros)
        self.backward: Any = ffi.new("fr_backward *")
        self.backward.forward = q
        self.scratch = np.empty(lib.fr_bind_backward(plan, self.backward), FLOAT32)
        self.backward.workspace = pointer(self.scratch)

    @property
    def floats(self) -> int:
        return int(self.tape.size + self.workspace.size + self.scratch.size)


class Recorder:
    """Records calls of a plan whose backward kernels and panels are filled.

    A recording has its memory until its backward pass is over; the next one of the same shape then takes it. New memory
    would cost as much as a short pass, in pages that the system has to clear.
    """

    def __init__(self, plan: Any, architecture: Architecture) -> None:
        states = architecture.table.states
        self.plan = plan
        self.gradients = _GradientLayout(architecture)
        self.second = "".join(each.kind for each in states[1:])
        self._widest = max(architecture.hidden_size, architecture.fed_back)
        self._idle: list[_Memory] = []

    def record(self, call: Call, threads: int) -> Recording:
        """Run a call, and remember it. The GIL is released inside."""
        steps, batch, _ = call.x.shape
        rows = steps * batch if call.lengths is None else int(call.lengths.sum())
        return _CompiledRecording(self, call, self._memory((steps, batch, rows, threads)))

    def _memory(self, key: tuple[int, ...]) -> _Memory:
        for memory in list(self._idle):
            if memory.key == key:
                try:
                    self._idle.remove(memory)
                    return memory
                except ValueError:  # another thread has just taken it
                    pass
        return _Memory(self.plan, key, self._widest)

    def take_back(self, memory: _Memory) -> None:
        """Keep the memory of a recording whose backward pass is over for the next one."""
        if memory.floats <= MAX_IDLE_FLOATS and len(self._idle) < MAX_IDLE:
            self._idle.append(memory)


class _CompiledRecording(Recording):
    """A call of kernels, and the tape that they wrote."""

    def __init__(self, recorder: Recorder, call: Call, memory: _Memory) -> None:
        self._recorder = recorder
        self._call = call
        self._before = [array.copy() for array in call.state]
        self._memory: _Memory | None = memory
        bind(memory.q, call.x, call.y, call.state, recorder.second)
        self._unequal = bind_unequal(memory.q, call.lengths, call.resets)
        lib.fr_run(recorder.plan, memory.q)

    def backward(
        self, dy: Array, dstate: Sequence[Array | None], dx: Array | None, *, keep: bool
    ) -> dict[str, Array]:
        """See :class:`Recording`. The GIL is released inside."""
        memory, recorder = self._memory, self._recorder
        assert memory is not None
        b, item = memory.backward, FLOAT32.itemsize
        b.h, b.dh = pointer(self._before[0]), pointer(cast(Array, dstate[0]))
        if recorder.second == "cell":
            b.c, b.dc = pointer(self._before[1]), pointer(cast(Array, dstate[1]))
        b.dy, b.dy_step, b.dy_row = strided(dy), dy.strides[0] // item, dy.strides[1] // item
        b.dx = ffi.NULL
        if dx is not None:
            b.dx, b.dx_step, b.dx_row = strided(dx), dx.strides[0] // item, dx.strides[1] // item
        sums = _aligned(recorder.gradients.floats)
        sums[...] = 0
        structs = b.gradients = recorder.gradients.structs(sums)
        lib.fr_run_backward(recorder.plan, b)
        del structs
        if not keep:
            self._memory = None
            recorder.take_back(memory)
        return recorder.gradients.by_name(sums)
