"""A layer of fusedrnn, as an engine of the benchmark."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from fusedrnn.architecture import Architecture
from fusedrnn.bench.peers.interface import Array, Loss, Setup, Weights, blas_threads
from fusedrnn.cells import CELLS

__all__ = ["Fused", "Trained", "gradients_of", "layer", "layer_class"]


def layer_class(cell: str) -> Any:
    """The class of fusedrnn's layers of that cell."""
    import fusedrnn as fr

    return {kind.cell: kind for kind in (fr.RNN, fr.LSTM, fr.GRU, fr.ClockworkRNN)}[cell]


def layer(architecture: Architecture, weights: Weights, **options: Any) -> Any:
    """The layer of fusedrnn with that architecture and these weights."""
    # The width of a projection follows from the weights.
    names = CELLS[architecture.cell][0].options - {"proj_size"}
    chosen = {name: getattr(architecture, name) for name in names}
    return layer_class(architecture.cell).from_weights(weights, **chosen, **options)


def gradients_of(tape: Any, loss: Loss) -> dict[str, Array]:
    """What the tape of a call gives, by name: "x", the names of the states, and those of the weights."""
    x, state, weights = tape.backward(loss.dy, loss.dstate)
    states = dict(zip(state._fields, state, strict=True))
    return {"x": x, **{name: dh for name, dh in states.items() if dh is not None}, **weights}


class Fused:
    """A layer of fusedrnn as a peer: called, or by its stream, or by a group of streams, as the case says.

    Parameters
    ----------
    setup
        The case, the weights and the threads.
    backend
        "c" or "numba".
    """

    variant = ""

    def __init__(self, setup: Setup, backend: str) -> None:
        self.name = backend
        case = setup.case
        self._layer = layer(
            setup.architecture, setup.weights, backend=backend, threads=setup.threads
        )
        if not setup.keeps_state or case.group == "call":
            self._lengths = None if case.lengths is None else np.array(case.lengths)
            self._keeps = setup.keeps_state
            self._state: Any = None
            self.step, self.run, self.reset = self._step, self._call, self._forget
            return
        self.stream: Any = (
            _Streams(self._layer, case.batch)
            if case.group == "streams"
            else self._layer.stream(case.batch)
        )
        self.step = self.stream.step
        self.run = self.stream.run
        self.reset = self.stream.reset

    @property
    def isa(self) -> str | None:
        """The instruction set of its kernel."""
        isa: str | None = self._layer.isa
        return isa

    def ready(self) -> AbstractContextManager[Any]:
        """See :class:`~fusedrnn.bench.peers.interface.Peer`: a layer has threads of its own."""
        return nullcontext()

    def run_steps(self, repeats: int) -> None:
        """Make `repeats` steps from the bound input buffer, looped in C, each finished before the next."""
        from fusedrnn._native import lib

        lib.fr_time_steps(self.stream._handle, repeats)

    def _step(self, x: Array) -> Array:
        h: Array = self._call(x[None])[0]
        return h

    def _call(self, x: Array) -> Array:
        y: Array
        y, state = self._layer(x, self._state, self._lengths)
        if self._keeps:
            self._state = state
        return y

    def _forget(self) -> None:
        self._state = None


class Trained:
    """A layer of fusedrnn that records, and its tape: also as naive NumPy, which is the float32 specification.

    Parameters
    ----------
    setup
        The case, the weights and the threads.
    engine
        "c" or "numba"; "naive" for the numpy backend.
    """

    variant = ""

    def __init__(self, setup: Setup, engine: str) -> None:
        self.name = engine
        naive = engine == "naive"
        # NumPy's threads are those of its BLAS.
        options = {"backend": "numpy"} if naive else {"backend": engine, "threads": setup.threads}
        self._layer = layer(setup.architecture, setup.weights, **options)
        case = setup.case
        self._lengths = None if case.lengths is None else np.array(case.lengths)
        self._loss = Loss.of(case)
        self._blas_threads = setup.threads if naive else None

    @property
    def isa(self) -> str | None:
        """The instruction set of its kernels."""
        isa: str | None = self._layer.isa
        return isa

    def ready(self) -> AbstractContextManager[Any]:
        """See :class:`~fusedrnn.bench.peers.interface.Trainer`."""
        return nullcontext() if self._blas_threads is None else blas_threads(self._blas_threads)

    def run(self, x: Array) -> dict[str, Array]:
        """See :class:`~fusedrnn.bench.peers.interface.Trainer`."""
        _, _, tape = self._layer.record(x, None, self._lengths)
        return gradients_of(tape, self._loss)

    def forward(self, x: Array) -> object:
        """See :class:`~fusedrnn.bench.peers.interface.Trainer`."""
        return self._layer(x, None, self._lengths)

    def laid_out(self, gradients: Weights) -> Weights:
        """See :class:`~fusedrnn.bench.peers.interface.Trainer`."""
        return gradients


class _Streams:
    """A group of streams of one layer, with a stream's methods."""

    def __init__(self, layer: Any, number: int) -> None:
        import fusedrnn as fr

        self._streams = [layer.stream() for _ in range(number)]
        self.step = fr.StreamGroup(self._streams).step

    def run(self, x: Array) -> Array:
        return np.stack([self.step(row).copy() for row in x])

    def reset(self) -> None:
        for stream in self._streams:
            stream.reset()
