"""Layers: a cell with weights, run over time, in one direction or two, stacked ``num_layers`` high."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt

from fusedrnn.architecture import Architecture, Bias
from fusedrnn.arrays import FLOAT32, Array, check_array, check_lengths, check_size
from fusedrnn.cells import CELLS, State
from fusedrnn.engines import choose
from fusedrnn.engines.threads import Threads, checked_threads
from fusedrnn.errors import UnsupportedError
from fusedrnn.stream import Stream
from fusedrnn.weights import Weights, checked, infer, initialise

if TYPE_CHECKING:
    from typing_extensions import Self

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
    "clockwork_step",
    "gru_step",
    "lstm_step",
    "rnn_step",
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


#: From so many rows on, a state might be too large: below, its weights would have been.
_MANY = 2**16

StateT = TypeVar("StateT", bound=tuple[Any, ...])


class Layer(Generic[StateT]):
    """What every recurrent layer is.

    A layer is immutable: its weights are private, read-only copies, and its state goes in and comes out.
    One layer may be called from several threads at once.

    Parameters
    ----------
    input_size, hidden_size, num_layers
        X, H and L: floats in an input row, units, and height of the stack.
    bidirectional
        Run each layer in both directions; outputs are joined.
    batch_first
        Sequences are (B, T, ·) instead of (T, B, ·); states are not affected.
    bias
        True: as many bias vectors as count; False: none; "double": PyTorch's two of each.
    weights
        What weights are stored as in panels; "float32" in this version.
    backend
        "c", "numba", "numpy", or "auto": the fastest there is for the dtype.
    threads
        How many may compute a call side by side, the caller's among them: the bits are the same for any
        number. "auto": as many as a measured model of this machine says are fastest. One team of threads
        serves the process: a call that finds it at work computes alone.
    seed
        For reproducible initial weights, uniform on ±1/sqrt(H); None draws anew.
    dtype
        "float32", or "float64" with the numpy backend, for references.
    **options
        Those of the cell: see each class.

    Raises
    ------
    TypeError, ValueError
        For a size or option that is not one, or that the cell does not have.
    UnsupportedError
        For what the backend does not have.
    """

    cell: ClassVar[str]
    state_type: ClassVar[type[Any]]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bidirectional: bool = False,
        batch_first: bool = False,
        bias: bool | Bias = True,
        weights: str = "float32",
        backend: str = "auto",
        threads: Threads = 1,
        seed: int | None = None,
        dtype: str = "float32",
        **options: Any,
    ) -> None:
        if isinstance(bias, bool):
            bias = "single" if bias else "none"
        architecture = Architecture(
            self.cell,
            input_size,
            hidden_size,
            num_layers,
            bidirectional=bidirectional,
            bias=bias,
            **self._options(options),
        )
        kind = _dtype(dtype)
        self._build(
            architecture,
            initialise(architecture, seed, kind),
            batch_first=batch_first,
            weights=weights,
            backend=backend,
            threads=threads,
            dtype=kind,
        )

    @classmethod
    def from_weights(
        cls,
        arrays: Weights,
        *,
        batch_first: bool = False,
        weights: str = "float32",
        backend: str = "auto",
        threads: Threads = 1,
        dtype: str = "float32",
        **options: Any,
    ) -> Self:
        """A layer from canonical weights: PyTorch's names and shapes, from which the sizes follow.

        Parameters
        ----------
        arrays
            ``{"weight_ih_l0": (G H, X), "weight_hh_l0": (G H, R), "bias_ih_l0": (G H,), ...}``; gates in
            PyTorch's order (i f g o; r z n). One bias, two or none; ``weight_hr_l0`` for a projection;
            ``weight_peephole_l0``, of each gate that has one, in the order i f o.
        **options
            Those of the cell, where shapes do not tell them.

        Raises
        ------
        ValueError, TypeError
            For missing, left-over, misshapen or non-float32 arrays; the message names them.
        """
        layer = cls.__new__(cls)
        kind = _dtype(dtype)
        architecture = infer(cls.cell, arrays, cls._options(options))
        layer._build(
            architecture,
            checked(architecture, arrays, kind),
            batch_first=batch_first,
            weights=weights,
            backend=backend,
            threads=threads,
            dtype=kind,
        )
        return layer

    @classmethod
    def _options(cls, given: dict[str, Any]) -> dict[str, Any]:
        has = CELLS[cls.cell][0].options
        for name in given:
            if name not in has:
                close = difflib.get_close_matches(name, has, 1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                raise TypeError(
                    f"{cls.__name__} has no option {name!r}; {hint}it has {', '.join(sorted(has))}"
                )
        return given

    def _build(
        self,
        architecture: Architecture,
        arrays: Weights,
        *,
        batch_first: bool,
        weights: str,
        backend: str,
        threads: Threads,
        dtype: np.dtype[Any],
    ) -> None:
        if not isinstance(weights, str) or weights != "float32":
            raise UnsupportedError(f"weights must be 'float32' in this version, got {weights!r}")
        threads = checked_threads(threads)
        if not isinstance(batch_first, bool):
            raise TypeError(f"batch_first must be True or False, not {type(batch_first).__name__}")
        self._architecture = architecture
        self._weights = arrays
        self._batch_first = batch_first
        self._backend = backend
        self._dtype = dtype
        self._threads = threads
        # Looked up here, once: a small layer would notice it in every call.
        self._output_size = architecture.output_size
        self._states = tuple(
            (each.name, architecture.state_shape(each, 1), self._state_dtype(each))
            for each in architecture.table.states
        )
        self._engine = choose(backend, architecture, arrays, dtype, threads)

    # ---- what it is ------------------------------------------------------------------------------

    @property
    def architecture(self) -> Architecture:
        """The cell and its sizes."""
        return self._architecture

    @property
    def weights(self) -> Weights:
        """The canonical weights, by name: read-only arrays."""
        return self._weights

    @property
    def batch_first(self) -> bool:
        """Whether sequences are (B, T, ·) instead of (T, B, ·)."""
        return self._batch_first

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of inputs, outputs and states."""
        return self._dtype

    @property
    def backend(self) -> str:
        """What runs it: "c", "numba" or "numpy"."""
        return self._engine.backend

    @property
    def threads(self) -> Threads:
        """How many threads may compute a call."""
        return self._threads

    @property
    def isa(self) -> str | None:
        """The instruction set it was packed for; None for NumPy."""
        return self._engine.isa

    def __repr__(self) -> str:
        a = self._architecture
        said = [str(a.input_size), str(a.hidden_size)]
        said += [
            f"{field.name}={getattr(a, field.name)!r}"
            for field in fields(a)[3:]
            if getattr(a, field.name) != field.default
        ]
        if self._batch_first:
            said.append("batch_first=True")
        if self._dtype != FLOAT32:
            said.append(f"dtype={str(self._dtype)!r}")
        if self._threads != 1:
            said.append(f"threads={self._threads!r}")
        said.append(f"backend={self.backend!r}")
        text = f"{type(self).__name__}({', '.join(said)})"
        return f"<{text} on {self.isa}>" if self.isa else f"<{text}>"

    def __getstate__(self) -> dict[str, Any]:
        return {
            "weights": dict(self._weights),
            "architecture": self._architecture,
            "batch_first": self._batch_first,
            "backend": self._backend,
            "threads": self._threads,
            "dtype": str(self._dtype),
        }

    def __setstate__(self, saved: dict[str, Any]) -> None:
        dtype = _dtype(saved["dtype"])
        self._build(
            saved["architecture"],
            checked(saved["architecture"], saved["weights"], dtype),
            batch_first=saved["batch_first"],
            weights="float32",
            backend=saved["backend"],
            threads=saved["threads"],
            dtype=dtype,
        )

    # ---- running it ------------------------------------------------------------------------------

    def __call__(
        self,
        x: Array,
        state: Sequence[Array] | None = None,
        lengths: Sequence[int] | None = None,
        *,
        out: Array | None = None,
    ) -> tuple[Array, StateT]:
        """Run over whole sequences.

        Parameters
        ----------
        x
            (T, B, X), or (B, T, X) if ``batch_first``; any strides, float32 (or the layer's dtype).
            T = 0 and B = 0 are allowed.
        state
            The state before step 0, as a tuple in the cell's order, each (L * D, B, ·); None for zeros.
            It is not written to.
        lengths
            (B,) ints from 0 to T: how long each sequence is; None: all are T long. Steps past a sequence's
            end cost nothing; its outputs there are 0, and its state is that of its own last step. The
            reverse direction starts from there.
        out
            Where to write y: C-contiguous, not overlapping x; None for a new array.

        Returns
        -------
        y : numpy.ndarray
            (T, B, D * R), or (B, T, D * R): the h of every step, the reverse direction behind the forward.
        state : tuple
            The named tuple of the state after the last step of each direction.

        Raises
        ------
        TypeError, ValueError
            If an argument is not as described; nothing has been computed or written.
        """
        x, y, result = self._sequences(x, out, "batch")
        steps, batch, _ = x.shape
        values = self._given_state(state, batch)
        if state is not None:
            values = [np.array(array, order="C") for array in values]
        each = None if lengths is None else check_lengths(lengths, steps, batch)
        if each is not None:
            y[...] = 0
        self._engine.run(x, y, values, each)
        return result, cast(StateT, self.state_type(*values))

    def stream(self, batch_size: int = 1) -> Stream:
        """This layer with a state of its own, to be fed step by step; see :class:`Stream`.

        Raises
        ------
        UnsupportedError
            For a bidirectional layer: its reverse direction begins at the end of a sequence, which a stream
            does not have.
        """
        if self._architecture.bidirectional:
            raise UnsupportedError(
                "a bidirectional layer has no stream: its reverse direction starts from the last step, "
                "and a stream never knows which one that is; run whole sequences instead"
            )
        if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)):
            raise TypeError(f"batch_size must be an int, not {type(batch_size).__name__}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        return Stream(self, int(batch_size))

    def _sequences(self, x: Any, out: Any, batch: int | str) -> tuple[Array, Array, Array]:
        """x and y as the engine sees them, (T, B, ·), and y as the caller does."""
        axes = (batch, "steps") if self._batch_first else ("steps", batch)
        x = check_array("x", x, (*axes, self._architecture.input_size), self._dtype)
        shape = (*x.shape[:2], self._output_size)
        if out is None:
            check_size("y", shape, self._dtype)
            out = np.empty(shape, self._dtype)
        else:
            out = check_array("out", out, shape, self._dtype, written=True)
            if np.may_share_memory(out, x):
                raise ValueError("out must not overlap x in memory; leave it out, or copy x")
        if self._batch_first:
            return x.transpose(1, 0, 2), out.transpose(1, 0, 2), out
        return x, out, out

    def _zero_state(self, batch: int) -> list[Array]:
        if batch > _MANY:
            for name, (rows, _, *width), dtype in self._states:
                check_size(f"state.{name}", (rows, batch, *width), dtype)
        return [np.zeros((shape[0], batch, *shape[2:]), dtype) for _, shape, dtype in self._states]

    def _state_dtype(self, state: State) -> np.dtype[Any]:
        return np.dtype(np.int64) if state.kind == "counter" else self._dtype

    def _given_state(self, state: Sequence[Array] | None, batch: int) -> list[Array]:
        if state is None:
            return self._zero_state(batch)
        names = [name for name, _, _ in self._states]
        if not isinstance(state, (tuple, list)) or len(state) != len(names):
            given = (
                f"{len(state)} of them"
                if isinstance(state, (tuple, list))
                else type(state).__name__
            )
            wanted = ", ".join(names) + ("," if len(names) == 1 else "")
            raise TypeError(f"state must be a tuple ({wanted}) of arrays, got {given}")
        checked = [
            check_array(f"state.{name}", value, (rows, batch, *width), dtype)
            for (name, (rows, _, *width), dtype), value in zip(self._states, state, strict=True)
        ]
        for (name, _, dtype), array in zip(self._states, checked, strict=True):
            # A counter goes on counting: not from below zero, nor up to where it would wrap.
            if dtype.kind == "i" and array.size and not 0 <= array.min() <= array.max() < 2**62:
                raise ValueError(
                    f"state.{name} must be from 0 to 2**62 - 1, got {array.min()} to {array.max()}"
                )
        return checked


def _dtype(name: Any) -> np.dtype[Any]:
    if not isinstance(name, str) or name not in ("float32", "float64"):
        raise ValueError(f"dtype must be 'float32' or 'float64', got {name!r}")
    kind: np.dtype[Any] = np.dtype(name)
    return kind


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
        Width of a projection of h, which is then what is shown and fed back; 0 for none.
    peephole
        Gates that look at the cell: True for all, or some of "ifo"; i and f see the old c, o the new one.
    coupled
        i = 1 - f: forget only when something new is written. Three gate blocks, f g o.
    gate_activation
        "sigmoid", or "hard_sigmoid(alpha, beta)": max(0, min(1, alpha x + beta)).
    activation, output_activation
        Of g, and of c before it is shown: "tanh", "relu", "identity".
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


def rnn_step(x: Array, h: Array, weights: RNN | Weights) -> Array:
    """One fused RNN step, as a function; see :func:`lstm_step`.

    Parameters
    ----------
    x
        (B, X), float32.
    h
        (B, H): the state before the step. Not written to.
    weights
        An :class:`RNN` of one layer and direction, or the canonical arrays of one.

    Returns
    -------
    h : numpy.ndarray
        (B, H): the state after the step, a new array.
    """
    (h,) = _step(RNN, x, (h,), weights)
    return h


def lstm_step(x: Array, h: Array, c: Array, weights: LSTM | Weights) -> tuple[Array, Array]:
    """One fused LSTM step, as a function.

    Parameters
    ----------
    x
        (B, X), float32.
    h, c
        (B, R) and (B, H): the state before the step. Not written to.
    weights
        An :class:`LSTM` of one layer and one direction, or the canonical arrays of one. Arrays are checked
        and packed anew at every call, which costs more than the step: for more than a few steps make the
        layer once, and for many, a stream of it.

    Returns
    -------
    h, c : numpy.ndarray
        (B, R) and (B, H): the state after the step, new arrays.
    """
    h, c = _step(LSTM, x, (h, c), weights)
    return h, c


def gru_step(x: Array, h: Array, weights: GRU | Weights) -> Array:
    """One fused GRU step, as a function: parameters as for :func:`rnn_step`, reset after for arrays."""
    (h,) = _step(GRU, x, (h,), weights)
    return h


def clockwork_step(
    x: Array, h: Array, t: npt.NDArray[np.int64], weights: ClockworkRNN
) -> tuple[Array, npt.NDArray[np.int64]]:
    """One fused Clockwork step, as a function: h (B, H) and t (B,), the steps each row has made."""
    h, t = _step(ClockworkRNN, x, (h, t), weights)
    return h, t


def _step(
    kind: type[Layer[Any]], x: Any, state: tuple[Any, ...], weights: Layer[Any] | Weights
) -> list[Any]:
    layer = weights if isinstance(weights, Layer) else kind.from_weights(weights)
    a = layer.architecture
    if not isinstance(layer, kind) or a.num_layers != 1 or a.bidirectional:
        raise ValueError(
            f"weights must be of one {kind.__name__} layer in one direction, got {layer!r}"
        )
    x = check_array("x", x, ("batch", a.input_size), layer.dtype)
    before = [
        check_array(each.name, value, a.state_shape(each, len(x))[1:], layer._state_dtype(each))[
            None
        ]
        for each, value in zip(a.table.states, state, strict=True)
    ]
    _, after = layer(x[:, None] if layer.batch_first else x[None], before)
    return [array[0] for array in after]
