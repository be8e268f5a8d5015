"""From checked weights to something that runs: the backends.

A layer owns an :class:`Engine`. There are two: the NumPy specification, and compiled kernels (C or Numba:
one calling convention, so one engine).
"""

from __future__ import annotations

import atexit
import os
import platform
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache, lru_cache
from math import inf, prod
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from fusedrnn._native import ffi, lib
from fusedrnn.cells import COMPILED_ACTIVATIONS, Architecture, Kind
from fusedrnn.errors import UnsupportedError
from fusedrnn.gate import FLOAT32, Array
from fusedrnn.kernels.reference import STEPS, Parameters, parameters
from fusedrnn.weights import Weights

__all__ = ["BACKENDS", "Compiled", "Engine", "Reference", "choose", "info", "isas"]

BACKENDS = ("c", "numba", "numpy")
#: Which gates have peepholes, as bits: enum fr_peephole of csrc/api.h.
PEEPHOLES = {"i": 1, "f": 2, "o": 4}

Lengths = npt.NDArray[np.int64]

# Threads that wait for work would be cut off in the middle of it.
atexit.register(lib.fr_team_stop)

# ---- instruction sets and backends ---------------------------------------------------------------


@lru_cache(maxsize=1)
def isas() -> dict[str, int]:
    """The instruction sets that this build has and this CPU runs, best first: name -> index in C."""
    found = {}
    index = 0
    while (name := lib.fr_isa_name(index)) != ffi.NULL:
        if lib.fr_isa_runs_here(index):
            found[ffi.string(name).decode()] = index
        index += 1
    return found


def active_isa() -> str:
    """The instruction set for new layers: the best there is, or the one ``FUSEDRNN_ISA`` names.

    Raises
    ------
    UnsupportedError
        If ``FUSEDRNN_ISA`` names one that this build or this CPU does not have.
    """
    asked = os.environ.get("FUSEDRNN_ISA", "")
    if not asked:
        return next(iter(isas()))
    if asked not in isas():
        raise UnsupportedError(
            f"FUSEDRNN_ISA must be one of {', '.join(isas())} on this machine, got {asked!r}"
        )
    return asked


Threads = int | Literal["auto"]


def checked_threads(threads: Any) -> Threads:
    """How many threads may compute, if it is such a number.

    Raises
    ------
    TypeError, ValueError
        If it is not.
    """
    if isinstance(threads, str):
        if threads != "auto":
            raise ValueError(f"threads must be a number or 'auto', got {threads!r}")
        return "auto"
    if isinstance(threads, bool) or not isinstance(threads, (int, np.integer)):
        raise TypeError(f"threads must be an int or 'auto', not {type(threads).__name__}")
    if not 1 <= threads <= lib.FR_MOST_THREADS:
        raise ValueError(f"threads must be from 1 to {lib.FR_MOST_THREADS}, got {threads}")
    return int(threads)


def choose(
    backend: str,
    architecture: Architecture,
    weights: Weights,
    dtype: np.dtype[Any],
    threads: Threads = 1,
) -> Engine:
    """The engine for a backend's name; "auto" is C, or NumPy for float64."""
    if isinstance(backend, str) and backend == "auto":
        backend = "c" if dtype == FLOAT32 else "numpy"
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise ValueError(f"backend must be 'auto' or one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "numpy":
        if threads not in (1, "auto"):
            raise UnsupportedError(
                f"threads must be 1 or 'auto' for backend 'numpy', got {threads}; NumPy's BLAS has threads of its own"
            )
        return Reference(architecture, weights)
    if dtype != FLOAT32:
        raise UnsupportedError(
            f"dtype must be float32 for backend {backend!r}, got {dtype}; float64 needs backend='numpy'"
        )
    return Compiled(architecture, weights, backend, threads)


class Engine(ABC):
    """What runs a layer.

    Attributes
    ----------
    backend
        One of :data:`BACKENDS`.
    isa
        The instruction set it was packed for; None for NumPy.
    """

    backend: str
    isa: str | None

    @abstractmethod
    def run(
        self, x: Array, y: Array, state: Sequence[Array], lengths: Lengths | None = None
    ) -> None:
        """From x (T, B, X) and state, each (L * D, B, ·), to y (T, B, D * R) and the state after it.

        ``state`` is written in place; ``x`` and ``y`` do not overlap. With lengths (B,), y is not written
        past a sequence's end, and its state is that of its own last step.
        """


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

    def run(
        self, x: Array, y: Array, state: Sequence[Array], lengths: Lengths | None = None
    ) -> None:
        """See :class:`Engine`."""
        # Infinities make NaN and small numbers vanish: that is what they mean, and no news.
        with np.errstate(invalid="ignore", under="ignore"):
            after = self._run(x, y, state, lengths)
        # Only now, so that an interrupted run leaves the state as it was.
        for array, values in zip(state, zip(*after, strict=True), strict=True):
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
                columns = slice(direction * width, (direction + 1) * width)
                now = tuple(array[index] for array in state)
                w = self._parameters[index]
                if lengths is None:
                    for t in range(len(x)) if direction == 0 else reversed(range(len(x))):
                        now = self._step(x[t], now, w)
                        out[t, :, columns] = now[0]
                else:
                    now = tuple(array.copy() for array in now)
                    for k in range(len(x)):
                        rows = np.flatnonzero(lengths > k)
                        at = lengths[rows] - 1 - k if direction else np.full(len(rows), k)
                        new = self._step(x[at, rows], tuple(array[rows] for array in now), w)
                        for array, values in zip(now, new, strict=True):
                            array[rows] = values
                        out[at, rows, columns] = new[0]
                after.append(now)
            x = out
        return after


def by_direction(architecture: Architecture, weights: Weights) -> list[dict[str, list[Array]]]:
    """The weights of each layer and direction, in the order of the state, grouped by kind."""
    groups: list[dict[str, list[Array]]] = [
        {kind: [] for kind in get_args(Kind)}
        for _ in range(architecture.num_layers * architecture.directions)
    ]
    for weight in architecture.weights():
        index = weight.layer * architecture.directions + weight.direction
        groups[index][weight.kind].append(weights[weight.name])
    return groups


# ---- compiled kernels ----------------------------------------------------------------------------


def aligned(shape: Sequence[int]) -> Array:
    """Zeros of float32 that begin on a cache line."""
    floats = prod(shape)
    store = np.zeros(floats + 16, FLOAT32)
    start = -store.ctypes.data // FLOAT32.itemsize % 16
    return store[start : start + floats].reshape(shape)


def packed(matrix: Array, gates: int, lanes: int) -> Array:
    """Panels [N][K][G][L] of a matrix (G H, K): a unit block's weights in the order they are read.

    Lanes past H are zero: their sums are computed and thrown away.
    """
    depth = matrix.shape[1]
    hidden = matrix.shape[0] // gates
    blocks = -(-hidden // lanes)
    padded = np.zeros((gates, blocks * lanes, depth), FLOAT32)
    padded[:, :hidden] = matrix.reshape(gates, hidden, depth)
    panels = aligned((blocks, depth, gates, lanes))
    panels[...] = padded.reshape(gates, blocks, lanes, depth).transpose(1, 3, 0, 2)
    panels.setflags(write=False)
    return panels


#: How much of a stack's sequence is run through all its layers at a time.
PIECE_FLOATS = 2**18


class Compiled(Engine):
    """C or Numba kernels behind the C API: weights packed once into a plan, bound for good."""

    def __init__(
        self, architecture: Architecture, weights: Weights, backend: str, threads: Threads = 1
    ) -> None:
        architecture.check_compiled(backend)
        self.backend = backend
        self.isa = isa = active_isa()
        self._architecture = architecture
        self._lanes = lib.fr_isa_lanes(isas()[isa])
        kernel = _kernel(backend, architecture.cell, isa)

        groups = by_direction(architecture, weights)
        panels = ffi.new("fr_panels[]", len(groups))
        # The structs hold bare pointers: what they point to lives as long as this engine.
        self._alive: list[Any] = [panels]
        for panel, group in zip(panels, groups, strict=True):
            panel.kernel = kernel
            self._fill_options(panel)
            self._fill_panels(panel, parameters(architecture, group))
        self.plan = ffi.new("fr_plan *")
        self.plan.layers = architecture.num_layers
        self.plan.directions = architecture.directions
        self.plan.hidden = architecture.hidden_size
        self.plan.outputs = architecture.fed_back
        self.plan.panels = panels
        self._threads = threads
        self._models: dict[int, _Model] = {}
        self._idle: list[_Call] = []
        self._second = "".join(each.kind for each in architecture.table.states[1:])
        # What goes from layer to layer is as long as the sequence: pieces bound it, and keep the bits.
        self._in_pieces = architecture.num_layers > 1 and not architecture.bidirectional

    def _fill_options(self, panel: Any) -> None:
        a = self._architecture
        gate = a.activation_of("gate")
        limits = (a.clip, a.cell_clip)
        panel.peephole = sum(bit for letter, bit in PEEPHOLES.items() if letter in a.peephole_gates)
        panel.form = a.table.form in ("coupled", "before")
        panel.projects = lib.FR_NEVER if a.periods else lib.FR_AHEAD
        if a.table.waits:  # what waits needs its x-part after the first product
            panel.projects = lib.FR_ALWAYS
        panel.gate_activation = COMPILED_ACTIVATIONS["gate"].index(gate.name)
        panel.state_activation, panel.output_activation = (
            COMPILED_ACTIVATIONS["state"].index(a.activation_of(role).name)
            for role in ("state", "output")
        )
        panel.alpha, panel.beta = gate.parameters or (0, 0)
        panel.clip, panel.cell_clip = (inf if limit is None else limit for limit in limits)
        usual = ("sigmoid", "tanh", "tanh")
        asked = (a.gate_activation, a.activation, a.output_activation)
        panel.plain = (
            asked == usual and limits == (None, None) and not a.peephole and not a.proj_size
        )

    def _fill_panels(self, panel: Any, w: Parameters) -> None:
        a = self._architecture
        gates, units = len(a.table.gates), a.hidden_size
        panel.inputs = w.W.shape[1]
        panel.hidden = units
        panel.outputs = a.fed_back
        panel.block_floats = gates * self._lanes
        if a.periods:
            self._fill_modules(panel, w)
            return
        panel.x_panels = self._packed(w.W, gates)
        panel.bias = self._packed(w.b[:, None], gates)
        panel.blocks = -(-units // self._lanes)
        waiting = len(a.table.waits)
        first = (gates - waiting) * units
        panel.h_panels = self._packed(w.R[:first], gates - waiting)
        if waiting:
            panel.second_panels = self._packed(w.R[first:], waiting)
        if w.P is not None:
            panel.second_panels = self._packed(w.P, 1)
        if w.d:
            (own,) = w.d.values()
            panel.own_bias = self._packed(own[:, None], 1)
        if w.p:
            zero = np.zeros(units, FLOAT32)
            stacked = np.concatenate([w.p.get(letter, zero) for letter in PEEPHOLES])
            panel.peepholes = self._packed(stacked[:, None], len(PEEPHOLES))

    def _fill_modules(self, panel: Any, w: Parameters) -> None:
        """Panels of a Clockwork RNN: of each module, as deep as what it reads."""
        a = self._architecture
        modules = ffi.new("fr_module[]", len(a.periods))
        self._alive.append(modules)
        x_parts: list[Array] = []
        h_parts: list[Array] = []
        biases: list[Array] = []
        for number, (module, period) in enumerate(zip(modules, a.periods, strict=True)):
            units = slice(number * a.module_size, (number + 1) * a.module_size)
            reads = a.module_reads(number)
            module.period, module.first, module.units = period, units.start, a.module_size
            module.reads = reads
            module.x_start = sum(part.size for part in x_parts)
            module.h_start = sum(part.size for part in h_parts)
            module.block = sum(len(part) for part in biases)
            x_parts.append(packed(w.W[units], 1, self._lanes))
            h_parts.append(packed(w.R[units, reads:], 1, self._lanes))
            biases.append(packed(w.b[units, None], 1, self._lanes))
        panel.modules, panel.module_count = modules, len(modules)
        panel.blocks = sum(len(part) for part in biases)
        for field, parts in (("x_panels", x_parts), ("h_panels", h_parts), ("bias", biases)):
            joined = aligned((sum(part.size for part in parts),))
            np.concatenate([part.ravel() for part in parts], out=joined)
            setattr(panel, field, self._held(joined))

    def _packed(self, matrix: Array, gates: int) -> Any:
        return self._held(packed(matrix, gates, self._lanes))

    def _held(self, array: Array) -> Any:
        self._alive.append(array)
        return _pointer(array)

    def threads(self, batch: int) -> int:
        """How many threads compute a batch of that size; for "auto" it is measured the first time."""
        return self._model(batch).threads if self._threads == "auto" else self._threads

    def _model(self, batch: int) -> _Model:
        model = self._models.get(batch) or self._measured(batch)
        if model is None:  # the team is at work for somebody else: measured another time
            return _Model(1, 0.0)
        self._models[batch] = model
        return model

    def _measured(self, batch: int) -> _Model | None:
        """The number of threads for which a model says the least: the work of a step is shared, its meetings are not."""
        cores = len(os.sched_getaffinity(0))
        if cores == 1 or batch == 0:
            return _Model(1, 0.0)
        plan, a = self.plan, self._architecture
        work = self._step_seconds(batch)
        # Directions side by side need no meetings.
        meetings = 0 if a.bidirectional else a.num_layers * (2 if plan.panels.second_panels else 1)
        seconds = {1: work / SHARED_GAIN}
        share = 1.0
        for threads in range(2, min(cores, lib.FR_MOST_THREADS) + 1):
            parts = threads // a.directions if a.bidirectional else threads
            largest = -(-plan.panels.blocks // parts) / plan.panels.blocks / a.directions
            if largest >= share:  # no less work for anybody than with fewer threads
                continue
            share = largest
            meeting = meeting_seconds(threads)
            if meeting is None:
                return None
            seconds[threads] = work * largest + meetings * meeting
        return _Model(min(seconds, key=seconds.__getitem__), work)

    def _step_seconds(self, batch: int) -> float:
        """What a step takes one thread, of a short sequence of zeros."""
        a, steps = self._architecture, 2
        x = np.zeros((steps, batch, a.input_size), FLOAT32)
        y = np.zeros((steps, batch, a.output_size), FLOAT32)
        state = [
            np.zeros(a.state_shape(each, batch), np.int64 if each.kind == "count" else FLOAT32)
            for each in a.table.states
        ]
        call = self._bound(x, y, state, None, 1)
        seconds = []
        for _ in range(3):  # the first one fills the caches
            start = perf_counter()
            lib.fr_run(self.plan, call.q)
            seconds.append((perf_counter() - start) / steps)
            if seconds[-1] > LONG_STEP_SECONDS:
                break
        return min(seconds)

    def bound(
        self, x: Array, y: Array, state: Sequence[Array], lengths: Lengths | None = None
    ) -> _Call:
        """A call over these arrays, to be run as often as wanted, while they live."""
        return self._bound(x, y, state, lengths, self.threads(x.shape[1]))

    def _bound(
        self, x: Array, y: Array, state: Sequence[Array], lengths: Lengths | None, threads: int
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
            q.wakes = not auto or steps * self._model(batch).step_seconds > WAKING_SECONDS
            floats = lib.fr_workspace_floats(self.plan, steps, batch, threads)
            if call.workspace.size < floats:
                call.workspace = np.empty(floats, FLOAT32)
                q.workspace = _pointer(call.workspace)
        _bind(q, x, y, state, self._second)
        if lengths is None:
            if call.ragged:
                q.order = q.lengths = q.active = ffi.NULL
                call.ragged = []
            return call
        order = np.argsort(-lengths, kind="stable")
        ordered = lengths[order]
        active = np.searchsorted(-ordered, -np.arange(steps))  # how many are longer than t
        call.ragged = [np.ascontiguousarray(array, np.int64) for array in (order, ordered, active)]
        q.order, q.lengths, q.active = (
            ffi.from_buffer("int64_t *", array) for array in call.ragged
        )
        return call

    def run(
        self, x: Array, y: Array, state: Sequence[Array], lengths: Lengths | None = None
    ) -> None:
        """See :class:`Engine`. The GIL is released inside."""
        length = len(x)
        steps = length
        if self._in_pieces and lengths is None:
            steps = max(PIECE_FLOATS // max(y[:1].size, 1), 64)
        if length <= steps:
            self._run(x, y, state, lengths)
            return
        before = [array.copy() for array in state]
        try:
            for start in range(0, length, steps):
                piece = slice(start, start + steps)
                self._run(x[piece], y[piece], state, None)
        except BaseException:  # an interrupt between two pieces leaves a stream's state as it was
            for array, values in zip(state, before, strict=True):
                array[...] = values
            raise

    def _run(self, x: Array, y: Array, state: Sequence[Array], lengths: Lengths | None) -> None:
        call = self.bound(x, y, state, lengths)
        lib.fr_run(self.plan, call.q)
        if call.workspace.size <= MOST_IDLE_FLOATS and len(self._idle) < MOST_IDLE:
            self._idle.append(call)


#: Steps so long are timed once: beside them meetings do not count, whatever the caches hold.
LONG_STEP_SECONDS = 1e-3

#: A team must be so much faster than one thread before it is asked: what is shared costs caches and power besides.
SHARED_GAIN = 1.25


#: What it takes to wake threads that sleep, and to have them at work: 30 to 130 microseconds.
WAKING_SECONDS = 200e-6


class _Model(NamedTuple):
    """What ``threads="auto"`` knows of a batch size: how many are fastest, and what a step takes one of them."""

    threads: int
    step_seconds: float


_meetings: dict[int, float] = {}


def meeting_seconds(threads: int) -> float | None:
    """What a meeting of so many threads takes on this machine; None if it cannot be had now."""
    if threads not in _meetings:
        measured = [lib.fr_time_meetings(threads, 500) for _ in range(7)]
        if min(measured) < 0:
            return None
        _meetings[threads] = median(measured)
    return _meetings[threads]


#: Calls are kept for the next ones, of so many threads of the program: to make one anew takes as long as a small layer.
MOST_IDLE = 4
MOST_IDLE_FLOATS = 2**20


class _Call:
    """An ``fr_sequence`` and what it points to besides the arrays of its caller. Used by one thread at a time."""

    __slots__ = ("batch", "q", "ragged", "steps", "threads", "workspace")

    def __init__(self) -> None:
        self.q: Any = ffi.new("fr_sequence *")
        self.steps = self.batch = self.threads = -1
        self.workspace: Array = np.empty(0, FLOAT32)
        self.ragged: list[npt.NDArray[np.int64]] = []


def _bind(q: Any, x: Array, y: Array, state: Sequence[Array], second: str) -> None:
    """Point a call to its arrays: checked ones, x and y with rows of any strides, states without any."""
    if (
        reads_arrays()
    ):  # one call: eight from Python would take as long as a hundred steps of a small layer
        last = id(state[1]) if second else 0
        lib.fr_bind_arrays(q, id(x), id(y), id(state[0]), last, second == "count")
        return
    item = FLOAT32.itemsize
    q.x, q.x_step, q.x_row = _strided(x), x.strides[0] // item, x.strides[1] // item
    q.y, q.y_step, q.y_row = _strided(y), y.strides[0] // item, y.strides[1] // item
    q.h = _pointer(state[0])
    if second == "count":
        q.t = ffi.from_buffer("int64_t *", state[1])
    elif second:
        q.c = _pointer(state[1])


@cache
def reads_arrays() -> bool:
    """Whether C reads this interpreter's and this NumPy's arrays rightly: see ``csrc/native.csrc.c``."""
    array = np.zeros((2, 3), FLOAT32)
    others = (
        array.astype(FLOAT32.newbyteorder()),
        array.astype(np.int32),
        array.astype(np.float64),
        array.T,
        np.zeros((2, 6), FLOAT32)[:, ::2],
        array[0],
    )
    data = ffi.from_buffer(array)
    return bool(lib.fr_reads_array(id(array), data, 2, 3)) and not any(
        lib.fr_reads_array(id(other), ffi.cast("void *", other.ctypes.data), 2, 3)
        for other in others
    )


def _pointer(array: Array) -> Any:
    return ffi.from_buffer("float *", array)  # an error unless it is C-contiguous


def _strided(array: Array) -> Any:
    # ndarray.ctypes costs seven times as much as a buffer, which strided arrays do not give.
    return _pointer(array) if array.flags.c_contiguous else ffi.cast("float *", array.ctypes.data)


def _kernel(backend: str, cell: str, isa: str) -> Any:
    if backend == "c":
        return lib.fr_find_kernel(isas()[isa], cell.encode())
    from fusedrnn.kernels.compiled import build

    return ffi.cast("fr_kernel", build(cell, isa).address)


# ---- what is here --------------------------------------------------------------------------------


def info() -> dict[str, Any]:
    """What this installation is and what this machine offers: JSON-able, for bug reports and logs.

    Returns
    -------
    dict
        version, python, numpy, numba (None if absent), cpu, isa (active and available), backends, build
        (compiler and flags), caches (bytes by level, of one core), threads (of a layer unless it is
        asked for more), cores (that this process may use).
    """
    from fusedrnn import __version__

    numba_version = _version("numba")
    return {
        "version": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "numpy": np.__version__,
        "numba": numba_version,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "isa": active_isa(),
        "isas": list(isas()),
        "backends": [name for name in BACKENDS if name != "numba" or numba_version],
        "build": " ".join(ffi.string(lib.fr_build()).decode().split()),
        "caches": _caches(),
        "threads": 1,
        "cores": len(os.sched_getaffinity(0)),
    }


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _caches() -> dict[str, int]:
    """Data and unified caches of CPU 0 in bytes, as Linux describes them."""
    sizes = {}
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            kind, level, size = (
                (folder / name).read_text(encoding="ascii").strip()
                for name in ("type", "level", "size")
            )
        except OSError:
            continue
        if kind != "Instruction":
            sizes[f"L{level}"] = int(size[:-1]) * units[size[-1]]
    return sizes
