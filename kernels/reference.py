"""The cells in NumPy: the executable specification that every kernel is tested against.

Written to be read beside the equations, one line for one line, in the names of the cell table. Any
float dtype; float64 is the oracle of the tests. No step is fused and nothing is in place: this is
what the numbers mean, not how to get them fast.

Shapes: X inputs, H units, B rows. ``x`` is (B, X), ``h`` and ``c`` are (B, H), ``W`` is (G H, X),
``R`` is (G H, H) and ``b`` is (G H,), with G gate blocks stacked in the order of the table.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["STEPS", "Array", "Step", "lstm", "sigmoid", "tanh"]

Array = npt.NDArray[np.floating]
#: (x, state, W, R, b) -> new state, h first
Step = Callable[[Array, tuple[Array, ...], Array, Array, Array], tuple[Array, ...]]


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x), by e^-|x|: exact to rounding on both sides, and never an overflow."""
    e = np.exp(-np.abs(x))
    y: Array = np.where(x >= 0, 1, e) / (1 + e)
    return y


def tanh(x: Array) -> Array:
    """The hyperbolic tangent."""
    return np.tanh(x)


def lstm(x: Array, state: tuple[Array, ...], W: Array, R: Array, b: Array) -> tuple[Array, ...]:
    """One LSTM step.

    Forget gate f, input gate i and output gate o of Hochreiter and Schmidhuber 1997 with Gers 2000,
    no peepholes; PyTorch's nn.LSTM computes the same.
    """
    h, c = state
    W_i, W_f, W_g, W_o = np.split(W, 4)
    R_i, R_f, R_g, R_o = np.split(R, 4)
    b_i, b_f, b_g, b_o = np.split(b, 4)

    i = sigmoid(x @ W_i.T + h @ R_i.T + b_i)
    f = sigmoid(x @ W_f.T + h @ R_f.T + b_f)
    g = tanh(x @ W_g.T + h @ R_g.T + b_g)
    o = sigmoid(x @ W_o.T + h @ R_o.T + b_o)
    c = f * c + i * g
    h = o * tanh(c)
    return h, c


STEPS: dict[str, Step] = {"lstm": lstm}
