"""What fusedrnn is measured against, and fusedrnn itself, behind one small interface.

Importing this module needs NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fusedrnn.cells import CELLS, Architecture
from fusedrnn.weights import infer

__all__ = ["ENGINES", "Fused", "Naive", "NaiveLSTM", "Peer", "layer", "make", "one_thread"]

Array = npt.NDArray[np.floating[Any]]
Weights = Mapping[str, Array]

#: What each engine of the benchmark is, for people. The first is what the others are compared with.
ENGINES = {
    "naive": "NumPy, written the way people write it",
    "numba": "fusedrnn, Numba kernels",
    "c": "fusedrnn, C kernels",
}


class Peer(Protocol):
    """A layer with a state of its own, which starts at zero.

    One that is bidirectional, or whose sequences have lengths, has no steps, and starts every run at zero.
    """

    name: str

    def step(self, x: Array) -> Array:
        """From x (B, X) to h (B, R), which the next step may overwrite."""
        ...

    def run(self, x: Array) -> Array:
        """From x (T, B, X) to y (T, B, D * R), the state going on from where it is."""
        ...

    def reset(self) -> None:
        """Set the state to zero."""
        ...


# ---- naive NumPy ---------------------------------------------------------------------------------
#
# Each cell in NumPy, the way people write it, and with care: all gates come from one product with x and one
# with h, where the equations let them; the weights are transposed and laid out for it beforehand, biases that
# can be added up beforehand are, and everything is float32.


class _Laid:
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


def rnn(x: Array, state: tuple[Any, ...], w: _Laid) -> tuple[Any, ...]:
    """A step of an RNN."""
    (h,) = state
    return (np.tanh(x @ w.W + h @ w.R + w.b),)


def lstm(x: Array, state: tuple[Any, ...], w: _Laid) -> tuple[Any, ...]:
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


def coupled_lstm(x: Array, state: tuple[Any, ...], w: _Laid) -> tuple[Any, ...]:
    """A step of an LSTM whose input gate is what its forget gate leaves."""
    h, c = state
    f, g, o = np.split(x @ w.W + h @ w.R + w.b, 3, axis=1)
    f = sigmoid(f)
    c = f * c + (1 - f) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru_after(x: Array, state: tuple[Any, ...], w: _Laid) -> tuple[Any, ...]:
    """A step of a GRU that resets after the product: two biases, and two products that stay apart."""
    (h,) = state
    x_r, x_z, x_n = np.split(x @ w.W + w.b, 3, axis=1)
    h_r, h_z, h_n = np.split(h @ w.R + w.d, 3, axis=1)
    z = sigmoid(x_z + h_z)
    n = np.tanh(x_n + sigmoid(x_r + h_r) * h_n)
    return ((1 - z) * n + z * h,)


def gru_before(x: Array, state: tuple[Any, ...], w: _Laid) -> tuple[Any, ...]:
    """A step of a GRU that resets before the product, which for n must wait for r."""
    (h,) = state
    x_r, x_z, x_n = np.split(x @ w.W + w.b, 3, axis=1)
    h_r, h_z = np.split(h @ w.R, 2, axis=1)
    z = sigmoid(x_z + h_z)
    n = np.tanh(x_n + (sigmoid(x_r + h_r) * h) @ w.R_n)
    return ((1 - z) * n + z * h,)


def clockwork(x: Array, state: tuple[Any, ...], w: _Laid) -> tuple[Any, ...]:
    """A step of a Clockwork RNN as a dense one, with zeros in its matrix, and a mask of what is due."""
    h, t = state
    return np.where(t % w.periods == 0, np.tanh(x @ w.W + h @ w.R + w.b), h), t + 1


#: By the name and form of a cell.
NAIVE: dict[tuple[str, str], Callable[[Array, tuple[Any, ...], _Laid], tuple[Any, ...]]] = {
    ("rnn", ""): rnn,
    ("lstm", ""): lstm,
    ("lstm", "coupled"): coupled_lstm,
    ("gru", "after"): gru_after,
    ("gru", "before"): gru_before,
    ("clockwork", ""): clockwork,
}


class Naive:
    """A layer in NumPy: one of the functions above in a loop over time, in one direction or two.

    Parameters
    ----------
    weights
        The canonical arrays of one layer; see :mod:`fusedrnn.weights`.
    batch_size
        B: how many sequences advance together.
    architecture
        What they are the weights of; None for an LSTM.
    lengths
        Of the sequences, where they differ: all steps of all sequences are computed, and masked.
    """

    name = "naive"

    def __init__(
        self,
        weights: Weights,
        batch_size: int = 1,
        architecture: Architecture | None = None,
        lengths: Sequence[int] | None = None,
    ) -> None:
        a = infer("lstm", weights, {}) if architecture is None else architecture
        self._cell = NAIVE[a.cell, a.table.form]
        self._directions = [
            _Laid(a, weights, end) for end in ("_l0", "_l0_reverse")[: a.directions]
        ]
        widths = {"fed back": a.fed_back, "inside": a.hidden_size}
        self._zeros: tuple[Any, ...] = tuple(
            0 if state.kind == "count" else np.zeros((batch_size, widths[state.kind]), np.float32)
            for state in a.table.states
        )
        self._shape = (batch_size, a.fed_back)
        self._lengths: Any = None if lengths is None else np.array(lengths)[:, None]
        self.reset()

    def reset(self) -> None:
        """See :class:`Peer`."""
        self._state = self._zeros

    def step(self, x: Array) -> Array:
        """See :class:`Peer`."""
        self._state = self._cell(x, self._state, self._directions[0])
        h: Array = self._state[0]
        return h

    def run(self, x: Array) -> Array:
        """See :class:`Peer`."""
        if self._lengths is not None:
            return self._joined(x, self._masked)
        if len(self._directions) == 2:
            return self._joined(x, self._whole)
        y = np.empty((len(x), *self._shape), np.float32)
        for t in range(len(x)):
            y[t] = self.step(x[t])
        return y

    def _joined(self, x: Array, run: Callable[[Array, range, _Laid], Array]) -> Array:
        """The directions side by side, each in its own order of steps, from zero."""
        orders = range(len(x)), range(len(x) - 1, -1, -1)
        parts = [run(x, order, w) for order, w in zip(orders, self._directions)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)

    def _whole(self, x: Array, order: range, w: _Laid) -> Array:
        y = np.empty((len(x), *self._shape), np.float32)
        state = self._zeros
        for t in order:
            state = self._cell(x[t], state, w)
            y[t] = state[0]
        return y

    def _masked(self, x: Array, order: range, w: _Laid) -> Array:
        """Where a sequence has not begun or is over, its state stays and its output is 0."""
        y = np.empty((len(x), *self._shape), np.float32)
        state = self._zeros
        for t in order:
            going = t < self._lengths
            new = self._cell(x[t], state, w)
            state = tuple(np.where(going, *pair) for pair in zip(new, state, strict=True))
            y[t] = np.where(going, state[0], 0)
        return y


#: As ``fusedrnn demo`` knows it: without an architecture it is an LSTM.
NaiveLSTM = Naive


# ---- fusedrnn ------------------------------------------------------------------------------------


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
    weights, batch_size, architecture, lengths
        As in :class:`Naive`.
    backend
        "c" or "numba".
    """

    def __init__(
        self,
        weights: Weights,
        backend: str,
        batch_size: int = 1,
        architecture: Architecture | None = None,
        lengths: Sequence[int] | None = None,
    ) -> None:
        a = infer("lstm", weights, {}) if architecture is None else architecture
        self.name = backend
        self._layer = layer(a, weights, backend=backend)
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

    def run_steps(self, repeats: int) -> None:
        """So many steps from the bound input buffer, looped in C, each finished before the next."""
        from fusedrnn._native import lib

        lib.fr_time_steps(self.stream._handle, repeats)


def make(
    engine: str,
    weights: Weights,
    batch_size: int = 1,
    architecture: Architecture | None = None,
    lengths: Sequence[int] | None = None,
) -> Naive | Fused:
    """The peer of that name, one of :data:`ENGINES`; the rest as in :class:`Naive`."""
    if engine == Naive.name:
        return Naive(weights, batch_size, architecture, lengths)
    return Fused(weights, engine, batch_size, architecture, lengths)


def one_thread() -> AbstractContextManager[Any]:
    """A context in which BLAS uses one thread, as fusedrnn does."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(1, user_api="blas")
    return limits
