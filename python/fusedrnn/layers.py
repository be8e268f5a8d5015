"""The layers, one class for each cell, and their states."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array
from fusedrnn.layer import Layer

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "ClockworkRNN",
    "ClockworkState",
    "GRUState",
    "LSTMState",
    "Layer",
    "RNNState",
]


class LSTMState(NamedTuple):
    """The state of an LSTM, layer by layer, the forward direction first: (L * D, B, R) and (L * D, B, H)."""

    h: Array
    c: Array


class GRUState(NamedTuple):
    """The state of a GRU: (L * D, B, H), layer by layer, the forward direction first."""

    h: Array


class RNNState(NamedTuple):
    """The state of an RNN: (L * D, B, H), layer by layer, the forward direction first."""

    h: Array


class ClockworkState(NamedTuple):
    """The state of a Clockwork RNN: h (L * D, B, H), and the int64 steps that each row has made, (L * D, B)."""

    h: Array
    t: npt.NDArray[np.int64]


class RNN(Layer[RNNState]):
    """The vanilla RNN of Elman 1990; :class:`Layer` has the parameters that all layers share.

    Parameters
    ----------
    activation
        "tanh", "relu", "identity", or another of ONNX's list with the numpy backend.
    clip
        Limits sums to ±clip before the activation.

    Notes
    -----
    ::

        h' = tanh(W_h x + R_h h + b_h)
    """

    cell = "rnn"
    state_type = RNNState


class LSTM(Layer[LSTMState]):
    """Long short-term memory; :class:`Layer` has the parameters that all layers share.

    Parameters
    ----------
    proj_size
        Width of a projection of h, which is then the output and what the next step reads; 0 for none.
    peephole
        Gates that look at the cell: True for all, or some of "ifo"; i and f see the old c, o the new one.
    coupled
        i = 1 - f: forget only as much as is added. Three gate blocks, f g o.
    gate_activation
        "sigmoid", or "hard_sigmoid(alpha, beta)": max(0, min(1, alpha x + beta)).
    activation, output_activation
        Of the candidate g, and of c before the output gate: "tanh", "relu", "identity".
    clip
        Limits the sums of gates to ±clip before their activation, as ONNX's ``clip``.
    cell_clip
        Limits c to ±cell_clip.

    Notes
    -----
    ::

        i = sigmoid(W_i x + R_i h + b_i)
        f = sigmoid(W_f x + R_f h + b_f)
        g = tanh(W_g x + R_g h + b_g)
        o = sigmoid(W_o x + R_o h + b_o)
        c' = f * c + i * g
        h' = o * tanh(c')

    Hochreiter and Schmidhuber 1997, with the forget gate of Gers, Schmidhuber and Cummins 2000; the same
    arithmetic as PyTorch's ``nn.LSTM``.

    Examples
    --------
    >>> import numpy as np, fusedrnn as fr
    >>> lstm = fr.LSTM(3, 5, seed=0)
    >>> y, (h, c) = lstm(np.ones((7, 2, 3), "float32"))
    >>> y.shape, h.shape
    ((7, 2, 5), (1, 2, 5))
    """

    cell = "lstm"
    state_type = LSTMState


class GRU(Layer[GRUState]):
    """Gated recurrent unit; :class:`Layer` has the parameters that all layers share.

    Parameters
    ----------
    reset
        "after" the recurrent product, as PyTorch, cuDNN and Keras do, or "before" it, as Cho et al. 2014 and
        ONNX by default.
    gate_activation, activation, clip
        As in :class:`LSTM`; ``activation`` is that of n.

    Notes
    -----
    ::

        r = sigmoid(W_r x + R_r h + b_r)
        z = sigmoid(W_z x + R_z h + b_z)
        n = tanh(W_n x + b_n + r * (R_n h + d_n))     reset after
        n = tanh(W_n x + R_n (r * h) + b_n)           reset before
        h' = (1 - z) * n + z * h
    """

    cell = "gru"
    state_type = GRUState


class ClockworkRNN(Layer[ClockworkState]):
    """The Clockwork RNN of Koutnik et al. 2014; :class:`Layer` has the parameters that all layers share.

    Parameters
    ----------
    periods
        One for each module, ascending: as many modules of equal size. A module is computed only at steps
        that its period divides; it reads itself and modules of the same or longer periods.
    activation, clip
        As in :class:`RNN`.

    Notes
    -----
    ::

        h'_m = tanh(W_m x + (sum over modules j with p_j >= p_m of R_mj h_j) + b_m)    where p_m divides t
        h'_m = h_m                                                                     elsewhere

    t counts each sequence's and direction's steps from 0 and is part of the state.
    """

    cell = "clockwork"
    state_type = ClockworkState


#: The layer of each cell of the table.
LAYERS: dict[str, type[Layer[Any]]] = {each.cell: each for each in (RNN, LSTM, GRU, ClockworkRNN)}
