"""Step functions: one step of a layer of one direction, from a state to the next, as a function."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array, check_array
from fusedrnn.layers import GRU, LSTM, RNN, ClockworkRNN, Layer

__all__ = ["clockwork_step", "gru_step", "lstm_step", "rnn_step"]


def rnn_step(x: Array, h: Array, layer: RNN) -> Array:
    """One fused RNN step, as a function; see :func:`lstm_step`.

    Parameters
    ----------
    x
        (B, X), float32.
    h
        (B, H): the state before the step. Not written to.
    layer
        An :class:`RNN` of one layer and one direction.

    Returns
    -------
    h : numpy.ndarray
        (B, H): the state after the step, a new array.
    """
    (h,) = _step(RNN, x, (h,), layer)
    return h


def lstm_step(x: Array, h: Array, c: Array, layer: LSTM) -> tuple[Array, Array]:
    """One fused LSTM step, as a function. For many steps of the same sequences, make a stream of the layer.

    Parameters
    ----------
    x
        (B, X), float32.
    h, c
        (B, R) and (B, H): the state before the step. Not written to.
    layer
        An :class:`LSTM` of one layer and one direction.

    Returns
    -------
    h, c : numpy.ndarray
        (B, R) and (B, H): the state after the step, new arrays.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.
    """
    h, c = _step(LSTM, x, (h, c), layer)
    return h, c


def gru_step(x: Array, h: Array, layer: GRU) -> Array:
    """One fused GRU step, as a function: parameters as for :func:`rnn_step`."""
    (h,) = _step(GRU, x, (h,), layer)
    return h


def clockwork_step(
    x: Array, h: Array, t: npt.NDArray[np.int64], layer: ClockworkRNN
) -> tuple[Array, npt.NDArray[np.int64]]:
    """One fused Clockwork step, as a function: h (B, H) and t (B,), the steps each row has made."""
    h, t = _step(ClockworkRNN, x, (h, t), layer)
    return h, t


def _step(kind: type[Layer[Any]], x: Any, state: tuple[Any, ...], layer: Layer[Any]) -> list[Any]:
    if not isinstance(layer, kind):
        raise TypeError(
            f"layer must be of type {kind.__name__}, not {type(layer).__name__}; of weights, make a layer once: "
            f"{kind.__name__}.from_weights(weights)"
        )
    a, states = layer.architecture, layer._signature.states
    if a.num_layers != 1 or a.bidirectional:
        raise ValueError(f"layer must be one {kind.__name__} layer in one direction, got {layer!r}")
    x = check_array("x", x, ("batch", a.input_size), layer.dtype)
    before = [
        check_array(each.name, value, each.for_batch(len(x))[1:], each.dtype)[None]
        for each, value in zip(states, state, strict=True)
    ]
    _, after = layer(x[:, None] if layer.batch_first else x[None], before)
    return [array[0] for array in after]
