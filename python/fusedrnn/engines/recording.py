"""Calls of C and Numba kernels that are remembered for their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from fusedrnn._native import ffi, lib
from fusedrnn.architecture import Architecture
from fusedrnn.arrays import FLOAT32, Array
from fusedrnn.engines.base import Call, Recording, refuse_clockwork_sums
from fusedrnn.engines.binding import bind, bind_unequal
from fusedrnn.engines.native import pointer, strided
from fusedrnn.engines.packing import LINE, aligned
from fusedrnn.errors import UnsupportedError

__all__ = ["Recorder"]

#: The number of recordings whose memory a plan keeps for the next ones, and the largest size of each.
MAX_IDLE = 4
MAX_IDLE_FLOATS = 2**26


def lines(floats: int) -> int:
    """A number of floats, rounded up to whole cache lines."""
    return int(-(-floats // LINE) * LINE)


class _GradientLayout:
    """Where a backward pass adds the gradients of an architecture's weights: in one array.

    Attributes
    ----------
    floats
        The size of that array.
    structs
        ``fr_gradient_layout`` of each layer and direction.
    """

    def __init__(self, architecture: Architecture) -> None:
        a = self._architecture = architecture
        gates, units, fed_back = len(a.table.gates), a.hidden_size, a.fed_back
        self.structs: Any = ffi.new("fr_gradient_layout[]", a.num_layers * a.directions)
        self.floats = 0
        for index, struct in enumerate(self.structs):
            sizes = {
                "dW": gates * units * lines(a.layer_input(index // a.directions)),
                "dR": gates * units * lines(fed_back),
                "dP": fed_back * lines(units) if a.proj_size else 0,
                "db": lines(gates * units),
                "dd": lines(units) if a.table.own_recurrent_bias else 0,
                "dp": lines(3 * units) if a.peephole_gates else 0,
            }
            for field, floats in sizes.items():
                if floats:
                    setattr(struct, field, self.floats)
                    self.floats += floats
        self._weights = [
            (weight, weight.layer * a.directions + weight.direction) for weight in a.weights()
        ]

    def by_name(self, gradients: Array) -> dict[str, Array]:
        """The gradient of each weight by its canonical name, without gaps: a view wherever it has none."""
        a, found = self._architecture, {}
        biased = -1
        for weight, index in self._weights:
            at, shape = self.structs[index], weight.shape
            if weight.kind == "input":
                gradient = _matrix(gradients, at.dW, shape)
            elif weight.kind == "recurrent":
                gradient = _matrix(gradients, at.dR, shape)
                for module in range(len(a.periods)):  # what no module reads
                    units = slice(module * a.module_size, (module + 1) * a.module_size)
                    gradient[units, : a.module_reads(module)] = 0
            elif weight.kind == "projection":
                gradient = _matrix(gradients, at.dP, shape)
            elif weight.kind == "peephole":
                each = dict(
                    zip("ifo", _matrix(gradients, at.dp, (3, a.hidden_size), 1), strict=True)
                )
                gradient = np.concatenate([each[letter] for letter in a.peephole_gates])
            elif biased != index:
                biased = index
                gradient = gradients[at.db : at.db + shape[0]]
            else:
                gradient = self._second_bias(gradients, at, shape[0])
            found[weight.name] = gradient
        return found

    def _second_bias(self, gradients: Array, at: Any, size: int) -> Array:
        """Of the recurrent bias: that of the other one, but where a gate has a recurrent bias of its own."""
        table, units = self._architecture.table, self._architecture.hidden_size
        own = gradients[at.dd : at.dd + units]
        if table.own_recurrent_bias and size == units:
            return own
        both = gradients[at.db : at.db + size].copy()
        for gate in table.own_recurrent_bias:
            first = [each.name for each in table.gates].index(gate) * units
            both[first : first + units] = own
        return both


def _matrix(gradients: Array, start: int, shape: tuple[int, ...], line: int = LINE) -> Array:
    rows, columns = shape
    width = -(-columns // line) * line
    matrix = gradients[start : start + rows * width].reshape(rows, width)
    return matrix if width == columns else np.ascontiguousarray(matrix[:, :columns])


class _Memory:
    """What recordings of one shape need: a bound call, a bound backward pass, and their memory."""

    __slots__ = ("backward", "key", "q", "scratch", "tape", "workspace", "zeros")

    def __init__(self, plan: Any, key: tuple[int, ...], widest: int, *, has_cell: bool) -> None:
        steps, batch, rows, threads, segments = self.key = key
        self.q: Any = ffi.new("fr_sequence *")
        q = self.q
        q.steps, q.batch, q.threads, q.wakes, q.records = steps, batch, threads, 1, 1
        layers = plan.layers * plan.directions
        if segments:
            q.segment = lib.fr_segment_steps(steps, batch)
            count = -(-steps // q.segment)
            self.tape = aligned((count * layers * batch * plan.hidden if has_cell else 0,))
            q.checkpoints = pointer(self.tape) if has_cell else ffi.NULL
        else:
            q.tape_floats = lib.fr_tape_floats(plan, rows)
            self.tape = aligned((q.tape_floats * layers,))
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
    """Records calls of the plans of one architecture.

    A recording has its memory until its backward pass is over; the next one of the same shape then takes it. New memory
    would cost as much as a short pass, in pages that the system has to clear.
    """

    def __init__(self, architecture: Architecture) -> None:
        states = architecture.table.states
        self.architecture = architecture
        self.gradients = _GradientLayout(architecture)
        self.second = "".join(each.kind for each in states[1:])
        self._widest = max(architecture.hidden_size, architecture.fed_back)
        self._idle: list[_Memory] = []

    def record(self, plan: Any, alive: Any, call: Call, threads: int, segments: bool) -> Recording:
        """Run a call, and remember it. The GIL is released inside.

        The plan's backward kernels and panels are filled; it lives as long as ``alive``.
        """
        steps, batch, _ = call.x.shape
        rows = steps * batch if call.lengths is None else int(call.lengths.sum())
        key = (steps, batch, rows, threads, segments)
        return _CompiledRecording(self, plan, alive, call, self._memory(plan, key))

    def _memory(self, plan: Any, key: tuple[int, ...]) -> _Memory:
        for memory in list(self._idle):
            if memory.key == key:
                try:
                    self._idle.remove(memory)
                    return memory
                except ValueError:  # another thread has just taken it
                    pass
        return _Memory(plan, key, self._widest, has_cell=self.second == "cell")

    def take_back(self, memory: _Memory) -> None:
        """Keep the memory of a recording whose backward pass is over for the next one."""
        if memory.floats <= MAX_IDLE_FLOATS and len(self._idle) < MAX_IDLE:
            self._idle.append(memory)


class _CompiledRecording(Recording):
    """A call of kernels, and the tape that they wrote."""

    def __init__(
        self, recorder: Recorder, plan: Any, alive: Any, call: Call, memory: _Memory
    ) -> None:
        self._recorder, self._plan, self._alive = recorder, plan, alive
        self._architecture = recorder.architecture
        self._call = call
        self._before = [array.copy() for array in call.state]
        self._memory: _Memory | None = memory
        bind(memory.q, call.x, call.y, call.state, recorder.second)
        self._unequal = bind_unequal(memory.q, call.lengths, call.resets)
        lib.fr_run(self._plan, memory.q)

    def __del__(self) -> None:
        memory = getattr(self, "_memory", None)  # what was not made whole has none
        if memory is not None:  # there was no backward pass
            self._recorder.take_back(memory)

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
        elif recorder.second == "counter":
            b.t = ffi.from_buffer("int64_t *", self._before[1])
        b.dy, b.dy_step, b.dy_row = strided(dy), dy.strides[0] // item, dy.strides[1] // item
        b.dx = ffi.NULL
        if dx is not None:
            b.dx, b.dx_step, b.dx_row = strided(dx), dx.strides[0] // item, dx.strides[1] // item
        gradients = aligned((recorder.gradients.floats,))
        gradients.fill(0)
        b.gradients, b.layouts = pointer(gradients), recorder.gradients.structs
        lib.fr_run_backward(self._plan, b)
        if not keep:
            self._memory = None
            recorder.take_back(memory)
        return recorder.gradients.by_name(gradients)

    def sums(self) -> list[Array]:
        """See :class:`Recording`."""
        refuse_clockwork_sums(self._architecture)
        gates = len(self._architecture.table.gates)
        return [self._recorded(index, slice(gates)) for index in range(self._count)]

    def states(self) -> list[tuple[Array, ...]]:
        """See :class:`Recording`."""
        states: list[tuple[Array, ...]] = []
        for index in range(self._count):
            h = self._in_order(index, self._outputs(index)[self._places(index)])
            if self._recorder.second == "cell":
                c = self._architecture.table.recorded.index("c'")
                states.append((h, self._recorded(index, slice(c, c + 1))[:, :, 0]))
            else:
                states.append((h,))
        return states

    @property
    def _count(self) -> int:
        return int(self._plan.layers * self._plan.directions)

    def _recorded(self, index: int, which: slice) -> Array:
        """Some of the values that the tape has of each unit: (T, B, values, H). The layout is that of fr_span.tape."""
        memory, plan = self._memory, self._plan
        assert memory is not None
        if memory.q.tape == ffi.NULL:
            raise UnsupportedError(
                "segments keep no sums of gates: record with tape='full', its default"
            )
        panel = plan.panels[index]
        rows = memory.key[2]
        shape = (rows, panel.blocks, panel.recorded, plan.lanes)
        start = index * memory.q.tape_floats
        tape = memory.tape[start : start + rows * panel.blocks * panel.recorded * plan.lanes]
        values = tape.reshape(shape)[:, :, which].swapaxes(1, 2)
        units = values.reshape(*values.shape[:2], panel.blocks * plan.lanes)[:, :, : plan.hidden]
        return self._in_order(index, units)

    def _outputs(self, index: int) -> Array:
        """h of one layer and direction, (T, B, R): y, or the layer's buffer in the workspace."""
        memory, plan, y = self._memory, self._plan, self._call.y
        assert memory is not None
        layer, direction = divmod(index, plan.directions)
        if layer < plan.layers - 1 and y.size:
            layout = memory.q.layout
            line = LINE * FLOAT32.itemsize
            first = -memory.workspace.ctypes.data % line // FLOAT32.itemsize
            first += layer * layout.layer_buffer
            y = memory.workspace[first : first + y.size].reshape(y.shape)
        return y[:, :, direction * plan.outputs : (direction + 1) * plan.outputs]

    def _places(self, index: int) -> tuple[Any, Any]:
        """The steps and the rows of x whose records follow each other on the tape of a layer and direction."""
        steps, batch, _ = self._call.x.shape
        lengths = self._call.lengths
        if lengths is None:
            lengths = np.full(batch, steps)
        order = np.argsort(-lengths, kind="stable")
        step, place = np.nonzero(lengths[order] > np.arange(steps)[:, None])
        rows = order[place]
        reverse = self._plan.reverse or index % self._plan.directions
        return (lengths[rows] - 1 - step if reverse else step), rows

    def _in_order(self, index: int, values: Array) -> Array:
        """Values in the order of the tape, as (T, B, ...); NaN past a sequence's end."""
        full = np.full((*self._call.x.shape[:2], *values.shape[1:]), np.nan, values.dtype)
        full[self._places(index)] = values
        return full
