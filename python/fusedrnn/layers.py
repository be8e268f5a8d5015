"""Layers: a cell with weights, run over time, in one direction or two, stacked ``num_layers`` high."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar, cast

import numpy as np

from fusedrnn.backends import choose
from fusedrnn.cells import Architecture, Bias
from fusedrnn.errors import UnsupportedError
from fusedrnn.gate import FLOAT32, Array, gate, size_gate
from fusedrnn.stream import Stream
from fusedrnn.weights import Weights, checked, infer, initialise

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LSTM", "LSTMState", "Layer", "lstm_step"]


class LSTMState(NamedTuple):
    """The state of an LSTM: each (L * D, B, H), layer by layer, the forward direction first."""

    h: Array
    c: Array


StateT = TypeVar("StateT", bound=tuple[Array, ...])


class Layer(Generic[StateT]):
    """What every recurrent layer is; see :class:`LSTM` for the parameters.

    A layer is immutable: its weights are private, read-only copies, and its state goes in and comes out.
    One layer may be called from several threads at once.
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
        proj_size: int = 0,
        peephole: bool = False,
        coupled: bool = False,
        batch_first: bool = False,
        bias: bool | Bias = True,
        weights: str = "float32",
        backend: str = "auto",
        threads: int = 1,
        seed: int | None = None,
        dtype: str = "float32",
    ) -> None:
        if isinstance(bias, bool):
            bias = "single" if bias else "none"
        for option, value in (("peephole", peephole), ("coupled", coupled)):
            if value is not False:
                raise UnsupportedError(f"{option} is not supported yet, got {value!r}")
        architecture = Architecture(
            self.cell, input_size, hidden_size, num_layers, bidirectional, proj_size, bias
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
        threads: int = 1,
        dtype: str = "float32",
    ) -> Self:
        """A layer from canonical weights: PyTorch's names and shapes, from which the sizes follow.

        Parameters
        ----------
        arrays
            ``{"weight_ih_l0": (G H, X), "weight_hh_l0": (G H, H), "bias_ih_l0": (G H,), ...}``; gates in
            PyTorch's order (i f g o). One bias, two (they add up) or none.

        Raises
        ------
        ValueError, TypeError
            For missing, left-over, misshapen or non-float32 arrays; the message names them.
        """
        layer = cls.__new__(cls)
        kind = _dtype(dtype)
        architecture = infer(cls.cell, arrays)
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

    def _build(
        self,
        architecture: Architecture,
        arrays: Weights,
        *,
        batch_first: bool,
        weights: str,
        backend: str,
        threads: int,
        dtype: np.dtype[Any],
    ) -> None:
        if architecture.proj_size:
            raise UnsupportedError(
                f"proj_size is not supported in layers yet, got {architecture.proj_size}"
            )
        if not isinstance(weights, str) or weights != "float32":
            raise UnsupportedError(f"weights must be 'float32' in this version, got {weights!r}")
        if type(threads) is not int or threads != 1:
            raise UnsupportedError(f"threads must be 1 in this version, got {threads!r}")
        if not isinstance(batch_first, bool):
            raise TypeError(f"batch_first must be True or False, not {type(batch_first).__name__}")
        self._architecture = architecture
        self._weights = arrays
        self._batch_first = batch_first
        self._backend = backend
        self._dtype = dtype
        self._engine = choose(backend, architecture, arrays, dtype)

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
    def isa(self) -> str | None:
        """The instruction set it was packed for; None for NumPy."""
        return self._engine.isa

    def __repr__(self) -> str:
        a = self._architecture
        said = [str(a.input_size), str(a.hidden_size)]
        if a.num_layers != 1:
            said.append(f"num_layers={a.num_layers}")
        said += [
            f"{name}=True"
            for name in ("bidirectional", "batch_first")
            if getattr(self, name, False)
        ]
        if a.bias != "single":
            said.append(f"bias={a.bias!r}")
        if self._dtype != FLOAT32:
            said.append(f"dtype={str(self._dtype)!r}")
        said.append(f"backend={self.backend!r}")
        text = f"{type(self).__name__}({', '.join(said)})"
        return f"<{text} on {self.isa}>" if self.isa else f"<{text}>"

    @property
    def bidirectional(self) -> bool:
        """Whether it runs in both directions."""
        return self._architecture.bidirectional

    def __getstate__(self) -> dict[str, Any]:
        return {
            "weights": dict(self._weights),
            "architecture": self._architecture,
            "batch_first": self._batch_first,
            "backend": self._backend,
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
            threads=1,
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
            Not supported in this version.
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
        if lengths is not None:
            raise UnsupportedError("lengths is not supported in this version")
        x, y, result = self._sequences(x, out, "batch")
        values = [np.array(array) for array in self._given_state(state, x.shape[1])]
        self._engine.run(x, y, values)
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
        width = self._architecture.output_size
        axes = (batch, "steps") if self._batch_first else ("steps", batch)
        x = gate("x", x, (*axes, self._architecture.input_size), self._dtype)
        shape = (*x.shape[:2], width)
        if out is None:
            size_gate("y", shape, self._dtype)
            out = np.empty(shape, self._dtype)
        else:
            out = gate("out", out, shape, self._dtype, written=True)
            if np.may_share_memory(out, x):
                raise ValueError("out must not overlap x in memory; leave it out, or copy x")
        if self._batch_first:
            return x.transpose(1, 0, 2), out.transpose(1, 0, 2), out
        return x, out, out

    def _zero_state(self, batch: int) -> list[Array]:
        a = self._architecture
        rows = a.num_layers * a.directions
        for state in a.table.states:
            size_gate(f"state.{state.name}", (rows, batch, a.state_width(state)), self._dtype)
        return [
            np.zeros((rows, batch, a.state_width(state)), self._dtype) for state in a.table.states
        ]

    def _given_state(self, state: Sequence[Array] | None, batch: int) -> list[Array]:
        if state is None:
            return self._zero_state(batch)
        a = self._architecture
        names = [each.name for each in a.table.states]
        if not isinstance(state, (tuple, list)) or len(state) != len(names):
            given = (
                f"{len(state)} of them"
                if isinstance(state, (tuple, list))
                else type(state).__name__
            )
            raise TypeError(f"state must be a tuple ({', '.join(names)}) of arrays, got {given}")
        rows = a.num_layers * a.directions
        return [
            gate(f"state.{each.name}", value, (rows, batch, a.state_width(each)), self._dtype)
            for each, value in zip(a.table.states, state, strict=True)
        ]


def _dtype(name: Any) -> np.dtype[Any]:
    if not isinstance(name, str) or name not in ("float32", "float64"):
        raise ValueError(f"dtype must be 'float32' or 'float64', got {name!r}")
    kind: np.dtype[Any] = np.dtype(name)
    return kind


class LSTM(Layer[LSTMState]):
    """Long short-term memory.

    Parameters
    ----------
    input_size, hidden_size, num_layers
        X, H and L: floats in an input row, units, and height of the stack.
    bidirectional
        Run each layer in both directions; outputs are (T, B, 2 H).
    proj_size, peephole, coupled
        Not supported in this version: an error if set.
    batch_first
        Sequences are (B, T, ·) instead of (T, B, ·); states are not affected.
    bias
        True: one bias vector for each gate block; False: none; "double": PyTorch's two.
    weights
        What weights are stored as in panels; "float32" in this version.
    backend
        "c", "numba", "numpy", or "auto": the fastest there is for the dtype.
    threads
        1 in this version.
    seed
        For reproducible initial weights, uniform on ±1/sqrt(H); None draws anew.
    dtype
        "float32", or "float64" with the numpy backend, for references.

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


def lstm_step(
    x: Array, h: Array, c: Array, weights: LSTM | Mapping[str, Array]
) -> tuple[Array, Array]:
    """One fused LSTM step, as a function.

    Parameters
    ----------
    x
        (B, X), float32.
    h, c
        (B, H): the state before the step. Not written to.
    weights
        An :class:`LSTM` of one layer and one direction, or the canonical arrays of one. Arrays are checked
        and packed anew at every call, which costs more than the step: for more than a few steps make the
        layer once, and for many, a stream of it.

    Returns
    -------
    h, c : numpy.ndarray
        (B, H): the state after the step, new arrays.
    """
    layer = weights if isinstance(weights, LSTM) else LSTM.from_weights(weights)
    a = layer.architecture
    if a.num_layers != 1 or a.bidirectional:
        raise ValueError(f"weights must be of one layer and one direction, got {layer!r}")
    x = gate("x", x, ("batch", a.input_size), layer.dtype)
    h, c = (
        gate(name, value, (len(x), a.hidden_size), layer.dtype)
        for name, value in (("h", h), ("c", c))
    )
    sequence = x[:, None] if layer.batch_first else x[None]
    _, state = layer(sequence, (h[None], c[None]))
    return state.h[0], state.c[0]
