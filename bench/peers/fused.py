"""A layer of fusedrnn, as an engine of the benchmark."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from fusedrnn.architecture import Architecture
from fusedrnn.bench.peers.interface import Array, Setup, Weights
from fusedrnn.cells import CELLS

__all__ = ["Fused", "layer", "layer_class"]


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
