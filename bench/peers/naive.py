"""Each cell in NumPy, the way people write it, and with care.

All gates come from one product with x and one with h, where the equations let them; the weights are transposed and
laid out for it beforehand, biases that can be added up beforehand are, and everything is float32.

Importing this module needs NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from fusedrnn.architecture import Architecture
from fusedrnn.bench.peers.interface import Array, Setup, Weights, blas_threads

__all__ = ["LaidOut", "Naive", "lstm"]


class LaidOut:
    """The weights of one direction, laid out for the functions below."""

    def __init__(self, a: Architecture, weights: Weights, end: str) -> None:
        def transposed(rows: Array) -> Array:
            return np.ascontiguousarray(rows.T)

        W, R, units = weights[f"weight_ih{end}"], weights[f"weight_hh{end}"], a.hidden_size
        zeros = np.zeros(len(W), np.float32)
        self.W, self.R = transposed(W), transposed(R)
        self.b: Array = weights.get(f"bias_ih{end}", zeros)
        self.d: Array = weights.get(f"bias_hh{end}", zeros).copy()
        if f"bias_hn{end}" in weights:
            self.d[2 * units :] = weights[f"bias_hn{end}"]
        if a.table.form != "after":
            self.b = self.b + self.d
        if a.table.form == "before":
            self.R, self.R_n = transposed(R[: 2 * units]), transposed(R[2 * units :])
        peepholes = weights.get(f"weight_peephole{end}", zeros[:0])
        self.p = dict(zip(str(a.peephole), peepholes.reshape(-1, units), strict=True))
        self.P = transposed(weights[f"weight_hr{end}"]) if a.proj_size else None
        self.periods = np.repeat(np.array(a.periods or (1,)), units // len(a.periods or (1,)))


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x), as everybody writes it."""
    return 1 / (1 + np.exp(-x))


def rnn(x: Array, state: tuple[Any, ...], w: LaidOut) -> tuple[Any, ...]:
    """A step of an RNN."""
    (h,) = state
    return (np.tanh(x @ w.W + h @ w.R + w.b),)


def lstm(x: Array, state: tuple[Any, ...], w: LaidOut) -> tuple[Any, ...]:
    """A step of an LSTM, with peepholes and a projection if there are any."""
    h, c = state
    i, f, g, o = np.split(x @ w.W + h @ w.R + w.b, 4, axis=1)
    if w.p:
        i, f = i + w.p["i"] * c, f + w.p["f"] * c
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    if w.p:
        o = o + w.p["o"] * c
    h = sigmoid(o) * np.tanh(c)
    return h if w.P is None else h @ w.P, c


def coupled_lstm(x: Array, state: tuple[Any, ...], w: LaidOut) -> tuple[Any, ...]:
    """A step of an LSTM whose input gate is what its forget gate leaves."""
    h, c = state
    f, g, o = np.split(x @ w.W + h @ w.R + w.b, 3, axis=1)
    f = sigmoid(f)
    c = f * c + (1 - f) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru_after(x: Array, state: tuple[Any, ...], w: LaidOut) -> tuple[Any, ...]:
    """A step of a GRU that resets after the product: two biases, and two products that stay apart."""
    (h,) = state
    x_r, x_z, x_n = np.split(x @ w.W + w.b, 3, axis=1)
    h_r, h_z, h_n = np.split(h @ w.R + w.d, 3, axis=1)
    z = sigmoid(x_z + h_z)
    n = np.tanh(x_n + sigmoid(x_r + h_r) * h_n)
    return ((1 - z) * n + z * h,)


def gru_before(x: Array, state: tuple[Any, ...], w: LaidOut) -> tuple[Any, ...]:
    """A step of a GRU that resets before the product, which for n must wait for r."""
    (h,) = state
    x_r, x_z, x_n = np.split(x @ w.W + w.b, 3, axis=1)
    h_r, h_z = np.split(h @ w.R, 2, axis=1)
    z = sigmoid(x_z + h_z)
    n = np.tanh(x_n + (sigmoid(x_r + h_r) * h) @ w.R_n)
    return ((1 - z) * n + z * h,)


def clockwork(x: Array, state: tuple[Any, ...], w: LaidOut) -> tuple[Any, ...]:
    """A step of a Clockwork RNN as a dense one, with zeros in its matrix, and a mask of what is due."""
    h, t = state
    return np.where(t % w.periods == 0, np.tanh(x @ w.W + h @ w.R + w.b), h), t + 1


#: By the name and form of a cell.
NAIVE: dict[tuple[str, str], Callable[[Array, tuple[Any, ...], LaidOut], tuple[Any, ...]]] = {
    ("rnn", ""): rnn,
    ("lstm", ""): lstm,
    ("lstm", "coupled"): coupled_lstm,
    ("gru", "after"): gru_after,
    ("gru", "before"): gru_before,
    ("clockwork", ""): clockwork,
}


class Naive:
    """A layer in NumPy: one of the functions above in a loop over time, in one direction or two.

    Where sequences have lengths, all steps of all of them are computed, and masked.
    """

    name = "naive"
    variant = ""

    def __init__(self, setup: Setup) -> None:
        a, case = setup.architecture, setup.case
        self._cell = NAIVE[a.cell, a.table.form]
        self._directions = [LaidOut(a, setup.weights, end) for end in setup.ends]
        self._zeros: tuple[Any, ...] = tuple(
            np.zeros(shape[1:], np.float32) if len(shape) == 3 else 0
            for shape in (a.state_shape(state, case.batch) for state in a.table.states)
        )
        self._shape = (case.batch, a.fed_back)
        self._lengths: Any = None if case.lengths is None else np.array(case.lengths)[:, None]
        self._threads = setup.threads
        self.reset()

    def ready(self) -> AbstractContextManager[Any]:
        """See :class:`~fusedrnn.bench.peers.interface.Peer`."""
        return blas_threads(self._threads)

    def reset(self) -> None:
        """See :class:`~fusedrnn.bench.peers.interface.Peer`."""
        self._state = self._zeros

    def step(self, x: Array) -> Array:
        """See :class:`~fusedrnn.bench.peers.interface.Peer`."""
        self._state = self._cell(x, self._state, self._directions[0])
        h: Array = self._state[0]
        return h

    def run(self, x: Array) -> Array:
        """See :class:`~fusedrnn.bench.peers.interface.Peer`."""
        if self._lengths is not None:
            return self._joined(x, self._masked)
        if len(self._directions) == 2:
            return self._joined(x, self._whole)
        y = np.empty((len(x), *self._shape), np.float32)
        for t in range(len(x)):
            y[t] = self.step(x[t])
        return y

    def _joined(self, x: Array, run: Callable[[Array, range, LaidOut], Array]) -> Array:
        """The directions side by side, each in its own order of steps, from zero."""
        orders = range(len(x)), range(len(x) - 1, -1, -1)
        parts = [run(x, order, w) for order, w in zip(orders, self._directions)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)

    def _whole(self, x: Array, order: range, w: LaidOut) -> Array:
        y = np.empty((len(x), *self._shape), np.float32)
        state = self._zeros
        for t in order:
            state = self._cell(x[t], state, w)
            y[t] = state[0]
        return y

    def _masked(self, x: Array, order: range, w: LaidOut) -> Array:
        """Where a sequence has not begun or is over, its state stays and its output is 0."""
        y = np.empty((len(x), *self._shape), np.float32)
        state = self._zeros
        for t in order:
            going = t < self._lengths
            new = self._cell(x[t], state, w)
            state = tuple(np.where(going, *pair) for pair in zip(new, state, strict=True))
            y[t] = np.where(going, state[0], 0)
        return y
