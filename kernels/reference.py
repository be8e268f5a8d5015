"""The cells in NumPy, forward and backward: the executable specification that every kernel is tested against.

Written to be read beside the equations, one line for one line, in the names of the cell table. Any
float dtype; float64 is the oracle of the tests. No step is fused and nothing is in place: this is
what the numbers mean, not how to get them fast.

Shapes: X inputs, H units, R fed back (H, or the projection's width), B rows. ``x`` is (B, X), ``h`` is
(B, R), ``c`` is (B, H), ``W`` is (G H, X), ``R`` is (G H, R) and ``b`` is (G H,), with G gate blocks
stacked in the order of the table.

A backward step takes the arguments of its forward step and the gradient of the new state. ``dv`` is the
gradient of ``v``; for a gate, ``df`` is the gradient of its sum ``s_f``, which W, R and b are added up in.
Derivatives are factors, also those that are 0: a NaN goes through them, as it goes through the cells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fusedrnn.architecture import Architecture

__all__ = [
    "BACKWARD_STEPS",
    "DERIVATIVES",
    "FUNCTIONS",
    "STEPS",
    "Array",
    "BackwardStep",
    "ParameterGradients",
    "Parameters",
    "Step",
    "by_kind",
    "parameters",
    "sigmoid",
    "tanh",
]

Array = npt.NDArray[np.floating[Any]]

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


def sigmoid_derivative(x: Array) -> Array:
    """s(x) (1 - s(x)), where 1 - s(x) is s(-x): no digits are lost for large x."""
    return sigmoid(x) * sigmoid(-x)


def tanh_derivative(x: Array) -> Array:
    """1 - tanh(x)^2 = 4 s(2x) s(-2x): no digits are lost for large x."""
    return 4 * sigmoid_derivative(2 * x)


#: The derivatives of :data:`FUNCTIONS`; at a kink that of the side below, as in PyTorch; 0 at the edges of hard_sigmoid.
DERIVATIVES: dict[str, Callable[..., Array]] = {
    "sigmoid": lambda x: sigmoid_derivative(x),
    "tanh": lambda x: tanh_derivative(x),
    "relu": lambda x: where(x > 0, 1, 0, x),
    "identity": lambda x: np.ones_like(x),
    "hard_sigmoid": lambda x, alpha, beta: where(
        (alpha * x + beta > 0) & (alpha * x + beta < 1), alpha, 0, x
    ),
    "affine": lambda x, alpha, beta: np.full_like(x, alpha),
    "leaky_relu": lambda x, alpha: where(x > 0, 1, alpha, x),
    "thresholded_relu": lambda x, alpha: where(x > alpha, 1, 0, x),
    "scaled_tanh": lambda x, alpha, beta: alpha * beta * tanh_derivative(beta * x),
    "elu": lambda x, alpha: np.where(x > 0, 1, alpha * np.exp(np.minimum(x, 0))).astype(x.dtype),
    "softsign": lambda x: 1 / (1 + np.abs(x)) ** 2,
    "softplus": lambda x: sigmoid(x),
}


def where(condition: npt.NDArray[np.bool_], a: float, b: float, like: Array) -> Array:
    """One number or the other, in the dtype of ``like``."""
    return np.where(condition, a, b).astype(like.dtype)


@dataclass(frozen=True)
class Function:
    """An elementwise function, and its derivative at the same place."""

    value: Callable[[Array], Array]
    derivative: Callable[[Array], Array]

    def __call__(self, x: Array) -> Array:
        return self.value(x)


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


class Operands(NamedTuple):
    """The arrays of :class:`Parameters`."""

    W: Array
    R: Array
    b: Array
    d: Mapping[str, Array]
    p: Mapping[str, Array]
    P: Array | None


def operands(architecture: Architecture, arrays: Mapping[str, list[Array]]) -> Operands:
    """The arrays that a step reads, from the canonical ones of one layer and direction, listed by kind."""
    table, units = architecture.table, architecture.hidden_size
    (W,), (R,) = arrays["input"], arrays["recurrent"]
    zeros = np.zeros(len(W), W.dtype)
    b, second = (arrays["bias"] + [zeros, zeros])[:2] if arrays["bias"] else (zeros, zeros)
    d = {}
    if table.own_recurrent_bias:
        gates = [gate.name for gate in table.gates]
        (own,) = table.own_recurrent_bias
        at = slice(gates.index(own) * units, (gates.index(own) + 1) * units)
        if len(second) == len(b):  # all gates have a second bias: the other ones are added up
            d[own] = second[at].copy()
            second = second.copy()
            second[at] = 0
        else:
            d[own], second = second, zeros
    letters = architecture.peephole_gates
    p = dict(zip(letters, np.split(arrays["peephole"][0], len(letters)))) if letters else {}
    P = arrays["projection"][0] if arrays["projection"] else None
    return Operands(W, R, b + second, d, p, P)


def parameters(architecture: Architecture, arrays: Mapping[str, list[Array]]) -> Parameters:
    """What a step needs, from the canonical arrays of one layer and direction, listed by kind."""

    def function(role: str) -> Function:
        activation = architecture.activation_of(role)
        return Function(
            lambda x: FUNCTIONS[activation.name](x, *activation.parameters),
            lambda x: DERIVATIVES[activation.name](x, *activation.parameters),
        )

    def limit(most: float | None) -> Function:
        if most is None:
            return Function(lambda x: x, np.ones_like)
        return Function(
            lambda x: np.clip(x, -most, most), lambda x: where(np.abs(x) < most, 1, 0, x)
        )

    return Parameters(
        *operands(architecture, arrays),
        gate=function("gate"),
        state=function("state"),
        output=function("output"),
        clip=limit(architecture.clip),
        cell_clip=limit(architecture.cell_clip),
        architecture=architecture,
    )


@dataclass(frozen=True)
class ParameterGradients:
    """The gradients of the arrays of :class:`Parameters`, in the same shapes and by the same names."""

    dW: Array
    dR: Array
    db: Array
    dd: Mapping[str, Array]
    dp: Mapping[str, Array]
    dP: Array | None


def by_kind(architecture: Architecture, gradients: ParameterGradients) -> dict[str, list[Array]]:
    """The gradients of the canonical arrays of one layer and direction: what :func:`parameters` takes, back.

    Biases that are added up have the same gradient.
    """
    table, units = architecture.table, architecture.hidden_size
    second = gradients.db.copy()
    for own in table.own_recurrent_bias:
        at = [gate.name for gate in table.gates].index(own) * units
        second[at : at + units] = gradients.dd[own]
    biases = {
        "none": [],
        "single": [gradients.db, *(gradients.dd[own] for own in table.own_recurrent_bias)],
        "double": [gradients.db, second],
    }
    peepholes = [gradients.dp[letter] for letter in architecture.peephole_gates]
    return {
        "input": [gradients.dW],
        "recurrent": [gradients.dR],
        "bias": biases[architecture.bias],
        "projection": [] if gradients.dP is None else [gradients.dP],
        "peephole": [np.concatenate(peepholes)] if peepholes else [],
    }


#: (x, state, parameters) -> new state, h first
Step = Callable[[Array, tuple[Array, ...], Parameters], tuple[Array, ...]]

#: (x, state, parameters, gradient of the new state) -> gradients of x, of the state and of the parameters; the
#: gradient of a counter is None
BackwardStep = Callable[
    [Array, tuple[Array, ...], Parameters, tuple[Any, ...]],
    tuple[Array, tuple[Any, ...], ParameterGradients],
]


def slope(activation: Function, s: Array, w: Parameters) -> Array:
    """The derivative of ``activation(clip(s))`` at a gate's sum."""
    return activation.derivative(w.clip(s)) * w.clip.derivative(s)


# ---- the cells -----------------------------------------------------------------------------------


def rnn(x: Array, state: tuple[Array, ...], w: Parameters) -> tuple[Array, ...]:
    """One step of the vanilla RNN of Elman 1990."""
    (h,) = state
    h = w.state(w.clip(x @ w.W.T + h @ w.R.T + w.b))
    return (h,)


def rnn_backward(
    x: Array, state: tuple[Array, ...], w: Parameters, dstate: tuple[Any, ...]
) -> tuple[Array, tuple[Any, ...], ParameterGradients]:
    """The gradients of :func:`rnn`."""
    (h,) = state
    (dh,) = dstate
    s = x @ w.W.T + h @ w.R.T + w.b

    ds = dh * slope(w.state, s, w)

    gradients = ParameterGradients(ds.T @ x, ds.T @ h, ds.sum(0), {}, {}, None)
    return ds @ w.W, (ds @ w.R,), gradients


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


def lstm_backward(
    x: Array, state: tuple[Array, ...], w: Parameters, dstate: tuple[Any, ...]
) -> tuple[Array, tuple[Any, ...], ParameterGradients]:
    """The gradients of :func:`lstm`."""
    h, c = state
    dh, dc = dstate
    W_i, W_f, W_g, W_o = np.split(w.W, 4)
    R_i, R_f, R_g, R_o = np.split(w.R, 4)
    b_i, b_f, b_g, b_o = np.split(w.b, 4)

    i = w.gate(w.clip(s_i := peephole(x @ W_i.T + h @ R_i.T + b_i, w.p.get("i"), c)))
    f = w.gate(w.clip(s_f := peephole(x @ W_f.T + h @ R_f.T + b_f, w.p.get("f"), c)))
    g = w.state(w.clip(s_g := x @ W_g.T + h @ R_g.T + b_g))
    raw = f * c + i * g
    c_new = w.cell_clip(raw)
    o = w.gate(w.clip(s_o := peephole(x @ W_o.T + h @ R_o.T + b_o, w.p.get("o"), c_new)))
    m = o * w.output(c_new)

    dm = dh if w.P is None else dh @ w.P
    do = dm * w.output(c_new) * slope(w.gate, s_o, w)
    dc = peephole(dc + dm * o * w.output.derivative(c_new), w.p.get("o"), do)
    dc = dc * w.cell_clip.derivative(raw)
    di = dc * g * slope(w.gate, s_i, w)
    df = dc * c * slope(w.gate, s_f, w)
    dg = dc * i * slope(w.state, s_g, w)
    dc = peephole(peephole(dc * f, w.p.get("i"), di), w.p.get("f"), df)

    ds = np.concatenate([di, df, dg, do], axis=1)
    dp = {"i": (di * c).sum(0), "f": (df * c).sum(0), "o": (do * c_new).sum(0)}
    dP = None if w.P is None else dh.T @ m
    gradients = ParameterGradients(ds.T @ x, ds.T @ h, ds.sum(0), {}, dp, dP)
    return ds @ w.W, (ds @ w.R, dc), gradients


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


def coupled_lstm_backward(
    x: Array, state: tuple[Array, ...], w: Parameters, dstate: tuple[Any, ...]
) -> tuple[Array, tuple[Any, ...], ParameterGradients]:
    """The gradients of :func:`coupled_lstm`."""
    h, c = state
    dh, dc = dstate
    W_f, W_g, W_o = np.split(w.W, 3)
    R_f, R_g, R_o = np.split(w.R, 3)
    b_f, b_g, b_o = np.split(w.b, 3)

    f = w.gate(w.clip(s_f := peephole(x @ W_f.T + h @ R_f.T + b_f, w.p.get("f"), c)))
    i = 1 - f
    g = w.state(w.clip(s_g := x @ W_g.T + h @ R_g.T + b_g))
    raw = f * c + i * g
    c_new = w.cell_clip(raw)
    o = w.gate(w.clip(s_o := peephole(x @ W_o.T + h @ R_o.T + b_o, w.p.get("o"), c_new)))
    m = o * w.output(c_new)

    dm = dh if w.P is None else dh @ w.P
    do = dm * w.output(c_new) * slope(w.gate, s_o, w)
    dc = peephole(dc + dm * o * w.output.derivative(c_new), w.p.get("o"), do)
    dc = dc * w.cell_clip.derivative(raw)
    df = dc * (c - g) * slope(w.gate, s_f, w)
    dg = dc * i * slope(w.state, s_g, w)
    dc = peephole(dc * f, w.p.get("f"), df)

    ds = np.concatenate([df, dg, do], axis=1)
    dp = {"f": (df * c).sum(0), "o": (do * c_new).sum(0)}
    dP = None if w.P is None else dh.T @ m
    gradients = ParameterGradients(ds.T @ x, ds.T @ h, ds.sum(0), {}, dp, dP)
    return ds @ w.W, (ds @ w.R, dc), gradients


def peephole(total: Array, p: Array | None, c: Array) -> Array:
    """A gate's sum and what its peephole sees of the cell, if it has one; backward, a cell's gradient and the gate's."""
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


def gru_after_backward(
    x: Array, state: tuple[Array, ...], w: Parameters, dstate: tuple[Any, ...]
) -> tuple[Array, tuple[Any, ...], ParameterGradients]:
    """The gradients of :func:`gru_after`."""
    (h,) = state
    (dh,) = dstate
    W_r, W_z, W_n = np.split(w.W, 3)
    R_r, R_z, R_n = np.split(w.R, 3)
    b_r, b_z, b_n = np.split(w.b, 3)

    r = w.gate(w.clip(s_r := x @ W_r.T + h @ R_r.T + b_r))
    z = w.gate(w.clip(s_z := x @ W_z.T + h @ R_z.T + b_z))
    q = h @ R_n.T + w.d["n"]
    n = w.state(w.clip(s_n := x @ W_n.T + b_n + r * q))

    dz = dh * (h - n) * slope(w.gate, s_z, w)
    dn = dh * (1 - z) * slope(w.state, s_n, w)
    dr = dn * q * slope(w.gate, s_r, w)
    dq = dn * r

    of_x = np.concatenate([dr, dz, dn], axis=1)
    of_h = np.concatenate([dr, dz, dq], axis=1)
    dd = {"n": dq.sum(0)}
    gradients = ParameterGradients(of_x.T @ x, of_h.T @ h, of_x.sum(0), dd, {}, None)
    return of_x @ w.W, (dh * z + of_h @ w.R,), gradients


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


def gru_before_backward(
    x: Array, state: tuple[Array, ...], w: Parameters, dstate: tuple[Any, ...]
) -> tuple[Array, tuple[Any, ...], ParameterGradients]:
    """The gradients of :func:`gru_before`."""
    (h,) = state
    (dh,) = dstate
    W_r, W_z, W_n = np.split(w.W, 3)
    R_r, R_z, R_n = np.split(w.R, 3)
    b_r, b_z, b_n = np.split(w.b, 3)

    r = w.gate(w.clip(s_r := x @ W_r.T + h @ R_r.T + b_r))
    z = w.gate(w.clip(s_z := x @ W_z.T + h @ R_z.T + b_z))
    q = r * h
    n = w.state(w.clip(s_n := x @ W_n.T + q @ R_n.T + b_n))

    dz = dh * (h - n) * slope(w.gate, s_z, w)
    dn = dh * (1 - z) * slope(w.state, s_n, w)
    dq = dn @ R_n
    dr = dq * h * slope(w.gate, s_r, w)

    ds = np.concatenate([dr, dz, dn], axis=1)
    dR = np.concatenate([dr.T @ h, dz.T @ h, dn.T @ q])
    gradients = ParameterGradients(ds.T @ x, dR, ds.sum(0), {}, {}, None)
    return ds @ w.W, (dh * z + dq * r + dr @ R_r + dz @ R_z,), gradients


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


def clockwork_backward(
    x: Array, state: tuple[Array, ...], w: Parameters, dstate: tuple[Any, ...]
) -> tuple[Array, tuple[Any, ...], ParameterGradients]:
    """The gradients of :func:`clockwork`: where a module idles, its units pass the gradient of h on."""
    h, t = state
    dnew, _ = dstate
    a = w.architecture
    dx, dh = np.zeros_like(x), np.zeros_like(h)
    dW, dR, db = np.zeros_like(w.W), np.zeros_like(w.R), np.zeros_like(w.b)
    for m, period in enumerate(a.periods):
        units = slice(m * a.module_size, (m + 1) * a.module_size)
        slower = slice(a.module_reads(m), None)
        rows = np.flatnonzero(t % period == 0)
        idle = np.flatnonzero(t % period != 0)
        total = x[rows] @ w.W[units].T + h[rows, slower] @ w.R[units, slower].T + w.b[units]

        ds = dnew[rows, units] * slope(w.state, total, w)
        dh[idle, units] += dnew[idle, units]

        dx[rows] += ds @ w.W[units]
        dh[rows, slower] += ds @ w.R[units, slower]
        dW[units] = ds.T @ x[rows]
        dR[units, slower] = ds.T @ h[rows, slower]
        db[units] = ds.sum(0)
    return dx, (dh, None), ParameterGradients(dW, dR, db, {}, {}, None)


#: By the name and form of a cell.
STEPS: dict[tuple[str, str], Step] = {
    ("rnn", ""): rnn,
    ("lstm", ""): lstm,
    ("lstm", "coupled"): coupled_lstm,
    ("gru", "after"): gru_after,
    ("gru", "before"): gru_before,
    ("clockwork", ""): clockwork,
}

#: By the name and form of a cell, as :data:`STEPS`.
BACKWARD_STEPS: dict[tuple[str, str], BackwardStep] = {
    ("rnn", ""): rnn_backward,
    ("lstm", ""): lstm_backward,
    ("lstm", "coupled"): coupled_lstm_backward,
    ("gru", "after"): gru_after_backward,
    ("gru", "before"): gru_before_backward,
    ("clockwork", ""): clockwork_backward,
}
