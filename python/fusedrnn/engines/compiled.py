"""C and Numba kernels behind the C API: one calling convention, so one engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, prod
from threading import Lock
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn._native import ffi, lib
from fusedrnn.architecture import Architecture
from fusedrnn.arrays import FLOAT32, Array
from fusedrnn.cells import COMPILED_ACTIVATIONS
from fusedrnn.engines.base import Call, Engine, Lengths, Recording, Resets, by_direction
from fusedrnn.engines.binding import bind, bind_unequal
from fusedrnn.engines.native import (
    active_isa,
    address,
    arrays,
    find_kernel,
    isas,
    pointer,
    reads_arrays,
)
from fusedrnn.engines.packing import Packing
from fusedrnn.engines.recording import Recorder
from fusedrnn.engines.threads import WAKING_SECONDS, Threads, choose_threads, usable_cores
from fusedrnn.kernels.reference import Operands, operands
from fusedrnn.narrowing import Narrow, Stored, matrices, weight_dtype_of, widened

__all__ = ["Compiled", "PlainCall"]

#: Which gates have peepholes, as bits: enum fr_peephole of csrc/api.h.
PEEPHOLES = {"i": 1, "f": 2, "o": 4}

#: enum fr_weight_type of csrc/api.h.
WEIGHT_TYPES = {
    "float32": lib.FR_F32,
    "float16": lib.FR_F16,
    "bfloat16": lib.FR_BF16,
    "int8": lib.FR_I8,
    "w8a7": lib.FR_W8A7,
}

#: How much of a stack's sequence is run through all its layers at a time.
PIECE_FLOATS = 2**18

#: How much work is done before an interrupt is heard: a tenth of a second or two, up to a second where weights come
#: from memory.
PIECE_MULTIPLY_ADDS = 2**31

#: Steps so long are timed once: beside them barriers do not count, whatever the caches hold.
LONG_STEP_SECONDS = 1e-3

#: The numbers of shapes for which "auto" remembers its choice.
MAX_CHOSEN = 256


def _values(group: Mapping[str, list[Array | Narrow]]) -> dict[str, list[Array]]:
    """Arrays, and the values of narrow weights."""
    return {
        kind: [each.values if isinstance(each, Narrow) else each for each in weights]
        for kind, weights in group.items()
    }


def _scales(group: Mapping[str, list[Array | Narrow]]) -> list[Array]:
    """The scales of the rows of W, R and P, if there are any."""
    return [
        each.scales
        for kind in ("input", "recurrent", "projection")
        for each in group[kind]
        if isinstance(each, Narrow) and each.scales is not None
    ]


class Compiled(Engine):
    """C or Numba kernels behind the C API: weights packed once into a plan, bound for good."""

    isa: str

    def __init__(
        self, architecture: Architecture, weights: Stored, backend: str, threads: Threads = 1
    ) -> None:
        architecture.check_compiled(backend)
        self.backend = backend
        self.isa = isa = active_isa()
        self._architecture = architecture
        self._lanes = lib.fr_isa_lanes(isas()[isa])
        weight_dtype = weight_dtype_of(weights)
        self._weight_type = WEIGHT_TYPES[weight_dtype]
        kernel = find_kernel(backend, architecture.table.kernel, isa, weight_dtype=weight_dtype)

        panels = ffi.new("fr_panels[]", architecture.num_layers * architecture.directions)
        self._modules: list[Any] = []
        for index, panel in enumerate(panels):
            panel.kernel = kernel
            self._fill_options(panel)
            self._fill_sizes(panel, architecture.layer_input(index // architecture.directions))
        self.plan = ffi.new("fr_plan *")
        self.plan.layers = architecture.num_layers
        self.plan.directions = architecture.directions
        self.plan.reverse = architecture.reverse
        self.plan.lanes = self._lanes
        self.plan.hidden = architecture.hidden_size
        self.plan.outputs = architecture.fed_back
        self._fill_panels(panels, weights)
        self._multiply_adds = sum(map(prod, matrices(architecture).values()))
        self._threads = threads
        self._step_time: dict[int, float] = {}
        self._chosen: dict[tuple[int, int], int] = {}
        self._idle: list[_Call] = []
        self._second = "".join(each.kind for each in architecture.table.states[1:])
        # A long sequence is run in pieces, with the same bits: what goes from layer to layer is then no longer than
        # a piece, and an interrupt is heard between two of them. The reverse direction cannot be cut.
        self._in_pieces = not (architecture.bidirectional or architecture.reverse)
        self._zeros = np.zeros(max(architecture.hidden_size, architecture.fed_back), FLOAT32)
        self._training = Lock()
        self._recorder = Recorder(architecture)

    def _fill_options(self, panel: Any) -> None:
        a = self._architecture
        gate = a.activation_of("gate")
        limits = (a.clip, a.cell_clip)
        panel.peephole = sum(bit for letter, bit in PEEPHOLES.items() if letter in a.peephole_gates)
        panel.input_product = lib.FR_NEVER if a.periods else lib.FR_AHEAD
        if a.table.after_first_product:  # they need their input product after the first product
            panel.input_product = lib.FR_ALWAYS
        panel.gate_activation = COMPILED_ACTIVATIONS["gate"].index(gate.name)
        panel.state_activation, panel.output_activation = (
            COMPILED_ACTIVATIONS["state"].index(a.activation_of(role).name)
            for role in ("state", "output")
        )
        panel.alpha, panel.beta = gate.parameters or (0, 0)
        panel.clip, panel.cell_clip = (inf if limit is None else limit for limit in limits)
        usual = ("sigmoid", "tanh", "tanh")
        asked = (a.gate_activation, a.activation, a.output_activation)
        panel.default_activations = (
            asked == usual and limits == (None, None) and not a.peephole and not a.proj_size
        )

    def _fill_sizes(self, panel: Any, inputs: int) -> None:
        a = self._architecture
        panel.inputs = inputs
        panel.hidden = a.hidden_size
        panel.outputs = a.fed_back
        panel.block_floats = len(a.table.gates) * self._lanes
        panel.recorded = len(a.table.recorded)
        panel.blocks = -(-a.hidden_size // self._lanes)
        if a.periods:
            self._fill_modules(panel)

    def _fill_modules(self, panel: Any) -> None:
        """Modules of a Clockwork RNN: the panels of each, as deep as what it reads, lie behind those of the one before."""
        a = self._architecture
        modules = ffi.new("fr_module[]", len(a.periods))
        self._modules.append(modules)
        blocks = -(-a.module_size // self._lanes)
        h_start = 0
        for number, (module, period) in enumerate(zip(modules, a.periods, strict=True)):
            module.period, module.units = period, a.module_size
            module.first = number * a.module_size
            module.reads = a.module_reads(number)
            module.block = number * blocks
            module.x_start = module.block * self._lanes * self._held(panel.inputs)
            module.h_start = h_start
            h_start += blocks * self._lanes * self._held(a.hidden_size - module.reads)
        panel.modules, panel.module_count = modules, len(modules)
        panel.blocks = len(modules) * blocks

    def _held(self, depth: int) -> int:
        """How many weights of a unit panels hold."""
        held: int = lib.fr_panel_weights(self._weight_type, depth)
        return held

    def _fill_panels(self, panels: Any, weights: Stored) -> None:
        """Pack weights, and point panels that have their options and sizes to what is packed."""
        packing, a = Packing(self._lanes), self._architecture
        self._weights = weights
        for panel, group in zip(panels, by_direction(a, weights), strict=True):
            panel.weight_type = self._weight_type
            self._add_panels(packing, panel, operands(a, _values(group)), _scales(group))
        self._alive = [panels, packing.packed()]
        self.plan.panels = panels

    def _add_panels(
        self, packing: Packing, panel: Any, w: Operands, scales: Sequence[Array]
    ) -> None:
        a = self._architecture
        self._add_matrices(packing, panel, "panels", w.W, w.R, w.P)
        if scales:
            self._add_matrices(packing, panel, "scales", *scales)
        # Where a layer has no biases, these are zeros of the elements of W.
        bias = w.b.astype(FLOAT32, copy=False)
        if a.periods:
            packing.add(panel, "bias", *(bias[units] for units in self._units_of(panel)))
            return
        packing.add(panel, "bias", bias, gates=len(a.table.gates))
        if w.d:
            (own,) = w.d.values()
            packing.add(panel, "recurrent_bias", own.astype(FLOAT32, copy=False))
        if w.p:
            zero = np.zeros(a.hidden_size, FLOAT32)
            stacked = np.concatenate([w.p.get(letter, zero) for letter in PEEPHOLES])
            packing.add(panel, "peepholes", stacked, gates=len(PEEPHOLES))

    def _add_matrices(
        self,
        packing: Packing,
        panel: Any,
        what: str,
        W: npt.NDArray[Any],
        R: npt.NDArray[Any],
        P: npt.NDArray[Any] | None = None,
    ) -> None:
        """Point the fields of "panels" to matrices, or those of "scales" to the scales of their rows."""
        a = self._architecture
        if a.periods:
            units_of = self._units_of(panel)
            read = [slice(m.reads, None) for m in panel.modules[0 : panel.module_count]]
            parts = zip(units_of, read, strict=True)
            packing.add(panel, f"x_{what}", *(W[units] for units in units_of))
            packing.add(
                panel, f"h_{what}", *(R[each] if R.ndim == 2 else R[each[0]] for each in parts)
            )
            return
        gates, waiting = len(a.table.gates), len(a.table.after_first_product)
        first = (gates - waiting) * a.hidden_size
        packing.add(panel, f"x_{what}", W, gates=gates)
        packing.add(panel, f"h_{what}", R[:first], gates=gates - waiting)
        if waiting:
            packing.add(panel, f"dependent_{what}", R[first:], gates=waiting)
        if P is not None:
            packing.add(panel, f"dependent_{what}", P)

    def _units_of(self, panel: Any) -> list[slice]:
        """The units of each module of a Clockwork RNN."""
        modules = panel.modules[0 : panel.module_count]
        return [slice(each.first, each.first + each.units) for each in modules]

    def with_weights(self, weights: Stored) -> Compiled:
        """See :class:`Engine`. Choices of threads and idle memory are shared: they are the same for all weights."""
        engine = Compiled.__new__(Compiled)
        engine.__dict__.update(self.__dict__)
        engine.plan = ffi.new("fr_plan *", self.plan[0])
        count = self.plan.layers * self.plan.directions
        panels = ffi.new("fr_panels[]", count)
        ffi.memmove(panels, self.plan.panels, ffi.sizeof(panels))
        for panel in panels:
            panel.back_kernel = ffi.NULL  # its panels are those of the other weights
        engine._fill_panels(panels, weights)
        return engine

    def record(self, call: Call, segments: bool) -> Recording:
        """See :class:`Engine`. The GIL is released inside."""
        with self._training:
            if self.plan.panels.back_kernel == ffi.NULL:
                self._fill_back_panels()
        return self._recorder.record(
            self.plan, self._alive, call, self.threads(*call.x.shape[:2]), segments
        )

    def _fill_back_panels(self) -> None:
        """Pack the transposed matrices, which the backward pass reads: in float32, also those of narrow layers."""
        a = self._architecture
        packing = Packing(self._lanes)
        late, waiting = len(a.table.own_recurrent_bias), len(a.table.after_first_product)
        groups = by_direction(a, widened(self._weights))
        panels = self.plan.panels[0 : len(groups)]
        for panel, group in zip(panels, groups, strict=True):
            w = operands(a, group)
            first = len(w.W) - late * a.hidden_size
            packing.add_transposed(panel, "back_x_panels", w.W[:first])
            if late:
                packing.add_transposed(panel, "back_late_panels", w.W[first:])
            first = len(w.R) - waiting * a.hidden_size
            packing.add_transposed(panel, "back_h_panels", w.R[:first])
            if waiting:
                packing.add_transposed(panel, "back_dependent_panels", w.R[first:])
            if w.P is not None:
                packing.add_transposed(panel, "back_dependent_panels", w.P)
        self._alive.append(packing.packed())
        kernel = find_kernel(self.backend, a.table.kernel, self.isa, "backward")
        for panel in panels:
            panel.back_kernel = kernel

    def threads(self, steps: int, batch: int) -> int:
        """How many threads compute a call of that shape; for "auto" it is measured the first time."""
        if self._threads != "auto":
            return self._threads if self._threads == 1 else min(self._threads, usable_cores())
        if steps == 0 or batch == 0 or usable_cores() == 1:
            return 1
        chosen = self._chosen.get((steps, batch))
        if chosen is None:
            chosen = choose_threads(self.plan, steps, batch, self._step_seconds(batch))
            if chosen is None:  # the pool is at work for somebody else: measured another time
                return 1
            if len(self._chosen) >= MAX_CHOSEN:
                self._chosen.clear()
            self._chosen[steps, batch] = chosen
        return min(chosen, usable_cores())

    def _step_seconds(self, batch: int) -> float:
        """What a step takes one thread; measured the first time."""
        seconds = self._step_time.get(batch)
        if seconds is None:
            if len(self._step_time) >= MAX_CHOSEN:
                self._step_time.clear()
            seconds = self._step_time[batch] = self._measured_step(batch)
        return seconds

    def _measured_step(self, batch: int) -> float:
        """What a step takes one thread, of a short sequence of zeros."""
        a, steps = self._architecture, 2
        x = np.zeros((steps, batch, a.input_size), FLOAT32)
        y = np.zeros((steps, batch, a.output_size), FLOAT32)
        state = [
            np.zeros(a.state_shape(each, batch), np.int64 if each.kind == "counter" else FLOAT32)
            for each in a.table.states
        ]
        call = self._bound(x, y, state, None, None, 1)
        seconds = []
        for _ in range(3):  # the first one fills the caches
            start = perf_counter()
            lib.fr_run(self.plan, call.q)
            seconds.append((perf_counter() - start) / steps)
            if seconds[-1] > LONG_STEP_SECONDS:
                break
        return min(seconds)

    def bound(
        self,
        x: Array,
        y: Array,
        state: Sequence[Array],
        lengths: Lengths | None = None,
        resets: Resets | None = None,
    ) -> _Call:
        """A call over these arrays, to be run as often as wanted, while they live."""
        return self._bound(x, y, state, lengths, resets, self.threads(*x.shape[:2]))

    def _bound(
        self,
        x: Array,
        y: Array,
        state: Sequence[Array],
        lengths: Lengths | None,
        resets: Resets | None,
        threads: int,
    ) -> _Call:
        steps, batch, _ = x.shape
        try:
            call = self._idle.pop()
        except IndexError:
            call = _Call()
        q = call.q
        if (call.steps, call.batch, call.threads) != (steps, batch, threads):
            call.steps, call.batch, call.threads = steps, batch, threads
            q.steps, q.batch, q.threads = steps, batch, threads
            # Threads that were asked for are used; those of a model only where it is faster.
            auto = threads > 1 and self._threads == "auto"
            q.wakes = not auto or steps * self._step_seconds(batch) > WAKING_SECONDS
            floats = lib.fr_bind_shape(self.plan, q)
            if call.workspace.size < floats:
                call.workspace = np.empty(floats, FLOAT32)
                q.workspace = pointer(call.workspace)
        bind(q, x, y, state, self._second)
        if lengths is not None or resets is not None or call.unequal:
            call.unequal = bind_unequal(q, lengths, resets)
            if resets is not None:
                q.zeros = pointer(self._zeros)
        return call

    def _steps_at_once(self, call: Call) -> int:
        """How many steps of a call are run without a look at interrupts."""
        if not self._in_pieces or call.lengths is not None:
            return len(call.x)
        return self._piece_steps(call.x.shape[1], call.y.shape[2])

    def run(self, call: Call) -> None:
        """See :class:`Engine`. The GIL is released inside."""
        x, y, state, resets = call.x, call.y, call.state, call.resets
        length = len(x)
        steps = self._steps_at_once(call)
        if length <= steps:
            self._run(x, y, state, call.lengths, resets)
            return
        for start in range(0, length, steps):
            piece = slice(start, start + steps)
            self._run(x[piece], y[piece], state, None, None if resets is None else resets[piece])

    def plain(
        self,
        call: Call,
        state_type: type[Any],
        x: tuple[int, ...],
        y: tuple[int, ...],
        state: Sequence[Array],
    ) -> PlainCall | None:
        """See :class:`Engine`. None for a call that is not run at once: an interrupt may end it between two pieces."""
        steps, batch, _ = call.x.shape
        if not reads_arrays() or not steps or not batch or self._steps_at_once(call) < steps:
            return None
        bound = self.bound(call.x, call.y, call.state)
        if bound.workspace.size > MAX_IDLE_FLOATS:
            return None
        if self._threads == "auto" and usable_cores() > 1 and (steps, batch) not in self._chosen:
            return None  # the thread pool was at work: the number of threads is chosen another time
        return PlainCall(self.plan, bound, state_type, x, y, state)

    def _piece_steps(self, batch: int, outputs: int) -> int:
        """How many steps a piece of a long sequence has."""
        steps = max(PIECE_MULTIPLY_ADDS // max(batch * self._multiply_adds, 1), 1)
        if self.plan.layers > 1:
            steps = min(steps, max(PIECE_FLOATS // max(batch * outputs, 1), 64))
        return steps

    def _run(
        self,
        x: Array,
        y: Array,
        state: Sequence[Array],
        lengths: Lengths | None,
        resets: Resets | None,
    ) -> None:
        call = self.bound(x, y, state, lengths, resets)
        lib.fr_run(self.plan, call.q)
        if call.workspace.size <= MAX_IDLE_FLOATS and len(self._idle) < MAX_IDLE:
            self._idle.append(call)


#: Number of calls kept for the next ones, one for each thread of the program: to make one anew takes as long as a small layer.
MAX_IDLE = 4
MAX_IDLE_FLOATS = 2**20


class _Call:
    """An ``fr_sequence`` and what it points to besides the arrays of its caller. Used by one thread at a time."""

    __slots__ = ("batch", "q", "steps", "threads", "unequal", "workspace")

    def __init__(self) -> None:
        self.q: Any = ffi.new("fr_sequence *")
        self.steps = self.batch = self.threads = -1
        self.workspace: Array = np.empty(0, FLOAT32)
        self.unequal: list[npt.NDArray[np.int64]] = []


class PlainCall:
    """A call of one shape whose arrays C checks itself: the cheapest way into a kernel.

    Attributes
    ----------
    run
        ``run(x, state, y, h)``, or ``run(x, state, y, h, last)`` for a cell with two states: ``csrc/arrays.c``. Used
        by one thread at a time.
    y, h, last
        Shapes and dtypes of the arrays that ``run`` writes, in the layout of ``numpy.empty``; last is None for a
        cell with one state.
    """

    __slots__ = ("_bound", "_plan", "h", "last", "run", "y")

    def __init__(
        self,
        plan: Any,
        bound: _Call,
        state_type: type[Any],
        x: tuple[int, ...],
        y: tuple[int, ...],
        state: Sequence[Array],
    ) -> None:
        self._plan, self._bound = plan, bound
        self.y = (y, FLOAT32)
        self.h, last = ((array.shape, array.dtype) for array in (*state, *state)[:2])
        self.last = last if len(state) > 1 else None
        self.run = arrays.plain_call(
            address(plan),
            address(bound.q),
            state_type,
            x,
            y,
            self.h[0],
            last[0] if self.last else (),
            last[1].kind == "i",
        )
