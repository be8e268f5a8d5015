"""A layer of fusedrnn, as an engine of the benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from fusedrnn.architecture import Architecture
from fusedrnn.bench.peers.interface import Array, Weights
from fusedrnn.cells import CELLS
from fusedrnn.weights import infer

__all__ = ["Fused", "layer"]


def layer(architecture: Architecture, weights: Weights, **options: Any) -> Any:
    """The layer of fusedrnn with that architecture and these weights."""
    import fusedrnn as fr

    kinds = {kind.cell: kind for kind in (fr.RNN, fr.LSTM, fr.GRU, fr.ClockworkRNN)}
    # The width of a projection follows from the weights.
    names = CELLS[architecture.cell][0].options - {"proj_size"}
    chosen = {name: getattr(architecture, name) for name in names}
    return kinds[architecture.cell].from_weights(weights, **chosen, **options)


class Fused:
    """A layer of fusedrnn as a peer: its methods are those of its stream where it has one.

    Parameters
    ----------
    weights, batch_size, architecture, lengths, threads
        As in :class:`~fusedrnn.bench.peers.naive.Naive`.
    backend
        "c" or "numba".
    """

    way = ""

    def __init__(
        self,
        weights: Weights,
        backend: str,
        batch_size: int = 1,
        architecture: Architecture | None = None,
        lengths: Sequence[int] | None = None,
        threads: int = 1,
    ) -> None:
        a = infer("lstm", weights, {}) if architecture is None else architecture
        self.name = backend
        self._layer = layer(a, weights, backend=backend, threads=threads)
        if a.bidirectional or lengths is not None:
            of_each = None if lengths is None else np.array(lengths)
            self.run: Callable[[Array], Array] = lambda x: self._layer(x, None, of_each)[0]
            self.reset = lambda: None
            return
        self.stream = self._layer.stream(batch_size)
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
        """So many steps from the bound input buffer, looped in C, each finished before the next."""
        from fusedrnn._native import lib

        lib.fr_time_steps(self.stream._handle, repeats)
