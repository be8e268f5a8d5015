"""What fusedrnn is measured against, and fusedrnn itself, behind one small interface.

Importing this module needs NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["ENGINES", "FusedLSTM", "NaiveLSTM", "Peer", "make", "one_thread"]

Array = npt.NDArray[np.floating[Any]]

#: What each engine of the benchmark is, for people. The first is what the others are compared with.
ENGINES = {
    "naive": "NumPy, written the way people write it",
    "numba": "fusedrnn, Numba kernels",
    "c": "fusedrnn, C kernels",
}


class Peer(Protocol):
    """An LSTM layer with a state of its own, which starts at zero."""

    name: str

    def step(self, x: Array) -> Array:
        """From x (B, X) to h (B, H), which the next step may overwrite."""
        ...

    def run(self, x: Array) -> Array:
        """From x (T, B, X) to y (T, B, H), the state going on from where it is."""
        ...

    def reset(self) -> None:
        """Set the state to zero."""
        ...


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x), as everybody writes it."""
    return 1 / (1 + np.exp(-x))


class NaiveLSTM:
    """An LSTM in NumPy, the way people write it, and with care.

    All gates come from one product with x and one with h; the weights are transposed and laid out for
    it beforehand, the two biases are added up beforehand, and everything is float32.

    Parameters
    ----------
    weights
        The canonical arrays of one layer in one direction; see :mod:`fusedrnn.weights`.
    batch_size
        B: how many sequences advance together.
    """

    name = "naive"

    def __init__(self, weights: Mapping[str, Array], batch_size: int = 1) -> None:
        self._W = np.ascontiguousarray(weights["weight_ih_l0"].T)
        self._R = np.ascontiguousarray(weights["weight_hh_l0"].T)
        self._b: Array = np.zeros(self._W.shape[1], np.float32)
        for bias in ("bias_ih_l0", "bias_hh_l0"):
            if bias in weights:
                self._b += weights[bias]
        self._shape = (batch_size, len(self._R))
        self.reset()

    def reset(self) -> None:
        """See :class:`Peer`."""
        self._h: Array = np.zeros(self._shape, np.float32)
        self._c: Array = np.zeros(self._shape, np.float32)

    def step(self, x: Array) -> Array:
        """See :class:`Peer`."""
        gates = x @ self._W + self._h @ self._R + self._b
        i, f, g, o = np.split(gates, 4, axis=1)
        self._c = sigmoid(f) * self._c + sigmoid(i) * np.tanh(g)
        self._h = sigmoid(o) * np.tanh(self._c)
        return self._h

    def run(self, x: Array) -> Array:
        """See :class:`Peer`."""
        y = np.empty((len(x), *self._shape), np.float32)
        for t in range(len(x)):
            y[t] = self.step(x[t])
        return y


class FusedLSTM:
    """A stream of :class:`fusedrnn.LSTM` as a peer: its methods are the stream's own.

    Parameters
    ----------
    weights
        The canonical arrays of one layer in one direction.
    backend
        "c" or "numba".
    batch_size
        B: how many sequences advance together.
    """

    def __init__(self, weights: Mapping[str, Array], backend: str, batch_size: int = 1) -> None:
        import fusedrnn as fr

        self.name = backend
        self._layer = fr.LSTM.from_weights(weights, backend=backend)
        self.stream = self._layer.stream(batch_size)
        self.step = self.stream.step
        self.run = self.stream.run
        self.reset = self.stream.reset

    @property
    def isa(self) -> str | None:
        """The instruction set of its kernel."""
        return self._layer.isa

    def run_steps(self, repeats: int) -> None:
        """So many steps from the bound input buffer, looped in C, each finished before the next."""
        from fusedrnn._native import lib

        lib.fr_time_steps(self.stream._handle, repeats)


def make(engine: str, weights: Mapping[str, Array], batch_size: int = 1) -> NaiveLSTM | FusedLSTM:
    """The peer of that name, one of :data:`ENGINES`."""
    if engine == NaiveLSTM.name:
        return NaiveLSTM(weights, batch_size)
    return FusedLSTM(weights, engine, batch_size)


def one_thread() -> AbstractContextManager[Any]:
    """A context in which BLAS uses one thread, as fusedrnn does."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(1, user_api="blas")
    return limits
