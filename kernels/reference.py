"""The cells in NumPy: the executable specification that every kernel is tested against.

Written to be read beside the equations, one line for one line, in the names of the cell table. Any
float dtype; float64 is the oracle of the tests. No step is fused and nothing is in place: this is
what the numbers mean, not how to get them fast.

Shapes: X inputs, H units, R fed back (H, or the projection's width), B rows. ``x`` is (B, X), ``h`` is
(B, R), ``c`` is (B, H), ``W`` is (G H, X), ``R`` is (G H, R) and ``b`` is (G H,), with G gate blocks
stacked in the order of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.architecture import Architecture

__all__ = ["FUNCTIONS", "STEPS", "Array", "Parameters", "Step", "parameters", "sigmoid", "tanh"]

Array = npt.NDArray[np.floating[Any]]
Function = Callable[[Array], Array]

# ---- activations ---------------------------------------------------------------------------------


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x), by e^-|x|: exact to rounding on both sides, and never an overflow."""
    e = np.exp(-np.abs(x))
    y: Array = np.where(x >= 0, 1, e) / (1 + e)
    return y


def tanh(x: Array) -> Array:
    """The hyperbolic tangent."""
    return np.tanh(x)


def softplus(x: Array) -> Array:
    """log(1 + e^x), by e^-|x|: never an overflow."""
    y: Array = np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
    return y


#: By the names of the table, as functions of x and its parameters.
FUNCTIONS: dict[str, Callable[..., Array]] = {
    "sigmoid": lambda x: sigmoid(x),
    "tanh": lambda x: tanh(x),
    "relu": lambda x: np.maximum(x, 0),
    "identity": lambda x: x,
    "hard_sigmoid": lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1),
    "affine": lambda x, alpha, beta: alpha * x + beta,
    "leaky_relu": lambda x, alpha: np.where(x >= 0, x, alpha * x),
    "thresholded_relu": lambda x, alpha: np.where(x > alpha, x, 0 * x),
    "scaled_tanh": lambda x, alpha, beta: alpha * tanh(beta * x),
    "elu": lambda x, alpha: np.where(x >= 0, x, alpha * np.expm1(np.minimum(x, 0))),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "softplus": lambda x: softplus(x),
}


# ---- what a cell is given ------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameters:
    """The weights of one layer and direction, and the functions that its options choose.

    Attributes
    ----------
    W, R, b
        Stacked gate blocks: over x, over h, and the bias, both biases added up where there are two.
    d
        The recurrent biases that must stay apart, by gate; empty for most cells.
    p
        Peepholes by gate, each (H,); a gate without one is missing.
    P
        The projection (R, H), or None.
    gate, state, output
        The activations of gates, of what is written, and of c.
    clip, cell_clip
        Limit sums before their activation, and the new c.
    periods
        Of a Clockwork RNN.
    """

    W: Array
    R: Array
    b: Array
    d: Mapping[str, Array]
    p: Mapping[str, Array]
    P: Array | None
    gate: Function
    state: Function
    output: Function
    clip: Function
    cell_clip: Function
    architecture: Architecture


def parameters(architecture: Architecture, arrays: Mapping[str, list[Array]]) -> Parameters:
    """What a step needs, from the canonical arrays of one layer and direction, listed by kind."""
    table, units = architecture.table, architecture.hidden_size
    (W,), (R,) = arrays["input"], arrays["recurrent"]
    gates = [gate.name for gate in table.gates]
    zeros = np.zeros(len(W), W.dtype)
    b, second = (arrays["bias"] + [zeros, zeros])[:2] if arrays["bias"] else (zeros, zeros)
    d = {}
    if table.own_recurrent_bias:
        (own,) = table.own_recurrent_bias
        at = slice(gates.index(own) * units, (gates.index(own) + 1) * units)
        if len(second) == len(b):  # all gates have a second bias: the other ones are added up
            d[own] = second[at].copy()
            second = second.copy()
            second[at] = 0
        else:
            d[own], second = second, zeros
    letters = architecture.peephole_gates
    peepholes = dict(zip(letters, np.split(arrays["peephole"][0], len(letters)))) if letters else {}

    def function(role: str) -> Function:
        activation = architecture.activation_of(role)
        return lambda x: FUNCTIONS[activation.name](x, *activation.parameters)

    def limit(most: float | None) -> Function:
        return (lambda x: x) if most is None else (lambda x: np.clip(x, -most, most))

    return Parameters(
        W=W,
        R=R,
        b=b + second,
        d=d,
        p=peepholes,
        P=arrays["projection"][0] if arrays["projection"] else None,
        gate=function("gate"),
        state=function("state"),
        output=function("output"),
        clip=limit(architecture.clip),
        cell_clip=limit(architecture.cell_clip),
        architecture=architecture,
    )


#: (x, state, parameters) -> new state, h first
Step = Callable[[Array, tuple[Array, ...], Parameters], tuple[Array, ...]]

# ---- the cells -----------------------------------------------------------------------------------


def rnn(x: Array, state: tuple[Array, ...], w: Parameters) -> tuple[Array, ...]:
    """One step of the vanilla RNN of Elman 1990."""
    (h,) = state
    h = w.state(w.clip(x @ w.W.T + h @ w.R.T + w.b))
    return (h,)


def lstm(x: Array, state: tuple[Array, ...], w: Parameters) -> tuple[Array, ...]:
    """One LSTM step, with its options.

    Hochreiter and Schmidhuber 1997; forget gate: Gers, Schmidhuber and Cummins 2000; peepholes: Gers,
    Schraudolph and Schmidhuber 2002 (i and f see the old c, o the new one); coupled gates: Greff et al.
    2017; projection: Sak, Senior and Beaufays 2014. Without options the same as PyTorch's nn.LSTM.
    """
    h, c = state
    W_i, W_f, W_g, W_o = np.split(w.W, 4)
    R_i, R_f, R_g, R_o = np.split(w.R, 4)
    b_i, b_f, b_g, b_o = np.split(w.b, 4)

    i = w.gate(w.clip(peephole(x @ W_i.T + h @ R_i.T + b_i, w.p.get("i"), c)))
    f = w.gate(w.clip(peephole(x @ W_f.T + h @ R_f.T + b_f, w.p.get("f"), c)))
    g = w.state(w.clip(x @ W_g.T + h @ R_g.T + b_g))
    c = w.cell_clip(f * c + i * g)
    o = w.gate(w.clip(peephole(x @ W_o.T + h @ R_o.T + b_o, w.p.get("o"), c)))
    h = project(o * w.output(c), w.P)
    return h, c


def coupled_lstm(x: Array, state: tuple[Array, ...], w: Parameters) -> tuple[Array, ...]:
    """One step of the LSTM that forgets only when something new is written: i = 1 - f."""
    h, c = state
    W_f, W_g, W_o = np.split(w.W, 3)
    R_f, R_g, R_o = np.split(w.R, 3)
    b_f, b_g, b_o = np.split(w.b, 3)

    f = w.gate(w.clip(peephole(x @ W_f.T + h @ R_f.T + b_f, w.p.get("f"), c)))
    i = 1 - f
    g = w.state(w.clip(x @ W_g.T + h @ R_g.T + b_g))
    c = w.cell_clip(f * c + i * g)
    o = w.gate(w.clip(peephole(x @ W_o.T + h @ R_o.T + b_o, w.p.get("o"), c)))
    h = project(o * w.output(c), w.P)
    return h, c


def peephole(total: Array, p: Array | None, c: Array) -> Array:
    """A gate's sum and what its peephole sees of the cell, if it has one."""
    return total if p is None else total + p * c


def project(m: Array, P: Array | None) -> Array:
    """What is fed back and shown: all of m, or fewer mixtures of it."""
    return m if P is None else m @ P.T


def gru_after(x: Array, state: tuple[Array, ...], w: Parameters) -> tuple[Array, ...]:
    """One GRU step that resets after the recurrent product: PyTorch, cuDNN, Keras's default."""
    (h,) = state
    W_r, W_z, W_n = np.split(w.W, 3)
    R_r, R_z, R_n = np.split(w.R, 3)
    b_r, b_z, b_n = np.split(w.b, 3)
    d_n = w.d["n"]

    r = w.gate(w.clip(x @ W_r.T + h @ R_r.T + b_r))
    z = w.gate(w.clip(x @ W_z.T + h @ R_z.T + b_z))
    n = w.state(w.clip(x @ W_n.T + b_n + r * (h @ R_n.T + d_n)))
    h = (1 - z) * n + z * h
    return (h,)


def gru_before(x: Array, state: tuple[Array, ...], w: Parameters) -> tuple[Array, ...]:
    """One GRU step that resets h before the recurrent product: Cho et al. 2014, ONNX's default."""
    (h,) = state
    W_r, W_z, W_n = np.split(w.W, 3)
    R_r, R_z, R_n = np.split(w.R, 3)
    b_r, b_z, b_n = np.split(w.b, 3)

    r = w.gate(w.clip(x @ W_r.T + h @ R_r.T + b_r))
    z = w.gate(w.clip(x @ W_z.T + h @ R_z.T + b_z))
    n = w.state(w.clip(x @ W_n.T + (r * h) @ R_n.T + b_n))
    h = (1 - z) * n + z * h
    return (h,)


def clockwork(x: Array, state: tuple[Array, ...], w: Parameters) -> tuple[Array, ...]:
    """One step of the Clockwork RNN of Koutnik et al. 2014.

    ``t`` (B,) counts each row's steps from 0. A module is computed in the rows whose t its period divides,
    from its own units and those of slower modules; everywhere else it holds its h. Only the products
    that count are made: the matrix is sliced, not masked.
    """
    h, t = state
    a = w.architecture
    new = h.copy()
    for m, period in enumerate(a.periods):
        units = slice(m * a.module_size, (m + 1) * a.module_size)
        slower = slice(a.module_reads(m), None)
        rows = np.flatnonzero(t % period == 0)
        total = x[rows] @ w.W[units].T + h[rows, slower] @ w.R[units, slower].T + w.b[units]
        new[rows, units] = w.state(w.clip(total))
    return new, t + 1


#: By the name and form of a cell.
STEPS: dict[tuple[str, str], Step] = {
    ("rnn", ""): rnn,
    ("lstm", ""): lstm,
    ("lstm", "coupled"): coupled_lstm,
    ("gru", "after"): gru_after,
    ("gru", "before"): gru_before,
    ("clockwork", ""): clockwork,
}
