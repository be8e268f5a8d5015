"""What every layer is: a cell with weights, run over time, in one direction or two, stacked ``num_layers`` high."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

import numpy as np
import numpy.typing as npt
from numpy import empty, ndarray, zeros

from fusedrnn.architecture import Architecture, Bias, checked_bool, is_bool
from fusedrnn.arrays import FLOAT32, Array
from fusedrnn.cells import CELLS
from fusedrnn.engines import choose
from fusedrnn.engines.base import Call, Engine
from fusedrnn.engines.threads import Threads, checked_threads
from fusedrnn.errors import ArchitectureError, UnsupportedError
from fusedrnn.init import Initialiser
from fusedrnn.narrowing import Narrow, Stored, checked_weight_dtype, restored, stored, widened
from fusedrnn.narrowing import saved as saved_weights
from fusedrnn.narrowing import weight_dtype_of as kept_dtype
from fusedrnn.signature import Sequences, Signature
from fusedrnn.stream import Stream
from fusedrnn.training.tape import Tape, TapeKind, checked_tape
from fusedrnn.weights import Weights, checked, in_canonical_order, infer, initialise, under

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Layer", "StateT"]

#: The largest number of shapes whose prepared calls are kept.
MAX_SHAPES = 8

StateT = TypeVar("StateT", bound=tuple[Any, ...])

# Bound here: a small layer would notice the look-up.
new_tuple = tuple.__new__


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
    reverse
        Run from the last step to the first, in this one direction; not for a bidirectional layer, which has both.
    batch_first
        Sequences are (B, T, ·) instead of (T, B, ·); states are not affected.
    bias
        True: as many bias vectors as count; False: none; "double": PyTorch's two of each.
    weight_dtype
        dtype of the matrices in memory: "float32", or "float16", "bfloat16", "int8" or "w8a7", to which they are
        rounded here, once (:meth:`narrow`). Biases, peepholes and finished sums are float32.
    backend
        "c", "numba", "numpy", or "auto": the fastest there is for the dtype.
    threads
        Number of threads that may compute a call side by side, the caller's among them: the bits are the same
        for any number. "auto": the number that a measured model of this machine says is fastest. One thread pool
        serves the process: a call that finds the pool at work computes alone.
    initial_state
        The state of a sequence before step 0 (of the reverse direction: before its last step), for calls and streams
        that are given none: a tuple in the cell's order, each (L * D, ·). None for zeros.
    seed
        For reproducible initial weights, uniform on ±1/sqrt(H); None draws anew.
    init
        What replaces some of them: one of :mod:`fusedrnn.init`, or a list, in that order; None for nothing.
    dtype
        "float32", or "float64" with the numpy backend, for references.
    **options
        Those of the cell: see each class.

    Raises
    ------
    TypeError, ArchitectureError
        For a size or option that is not one, or that the cell does not have.
    UnsupportedError
        For what the backend does not have.
    """

    cell: ClassVar[str]
    state_type: ClassVar[type[Any]]
    _engine: Engine
    _weights: Stored
    _signature: Signature

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bidirectional: bool = False,
        reverse: bool = False,
        batch_first: bool = False,
        bias: bool | Bias = True,
        weight_dtype: str = "float32",
        backend: str = "auto",
        threads: Threads = 1,
        initial_state: Sequence[Array] | None = None,
        seed: int | None = None,
        init: Initialiser | Sequence[Initialiser] | None = None,
        dtype: str = "float32",
        **options: Any,
    ) -> None:
        if is_bool(bias):
            bias = "single" if bias else "none"
        architecture = Architecture(
            self.cell,
            input_size,
            hidden_size,
            num_layers,
            bidirectional=bidirectional,
            reverse=reverse,
            bias=cast(Bias, bias),
            **self._options(options),
        )
        kind = _dtype(dtype)
        self._build(
            architecture,
            initialise(architecture, seed, kind, init),
            batch_first=batch_first,
            weight_dtype=checked_weight_dtype(weight_dtype),
            backend=backend,
            threads=threads,
            initial_state=initial_state,
            dtype=kind,
        )

    @classmethod
    def from_weights(
        cls,
        arrays: Stored,
        *,
        prefix: str = "",
        gate_order: str | None = None,
        reverse: bool = False,
        batch_first: bool = False,
        weight_dtype: str | None = None,
        backend: str = "auto",
        threads: Threads = 1,
        initial_state: Sequence[Array] | None = None,
        dtype: str = "float32",
        **options: Any,
    ) -> Self:
        """A layer from canonical weights: PyTorch's names and shapes, from which the sizes follow.

        Parameters
        ----------
        arrays
            ``{"weight_ih_l0": (G H, X), "weight_hh_l0": (G H, R), "bias_ih_l0": (G H,), ...}``; gates in
            PyTorch's order (i f g o; r z n). One bias, two or none; ``weight_hr_l0`` for a projection;
            ``weight_peephole_l0``, of each gate that has one, in the order i f o. A matrix may be a
            :class:`fusedrnn.Narrow`.
        prefix
            What names begin with, as in ``"encoder.lstm."``: it is cut off, and arrays without it are ignored. All
            arrays with it must be weights of this layer.
        gate_order
            The order of the gate blocks in all arrays of gates, in the letters of the cell: "iofg", "zrn"; None for
            PyTorch's order. Peepholes are in the order i f o in any case.
        weight_dtype
            As in the constructor; None: the type of the matrices. Narrow ones of another type are widened, and rounded.
        **options
            Those of the cell, where shapes do not tell them.

        Raises
        ------
        ValueError, TypeError
            For missing, left-over, misshapen or non-float32 arrays, and for NaN, Inf or numbers out of range in matrices
            that are narrowed; the message names them.
        """
        layer = cls.__new__(cls)
        kind = _dtype(dtype)
        arrays = under(prefix, arrays)
        architecture = infer(cls.cell, arrays, cls._options(options) | {"reverse": reverse})
        if gate_order is not None:
            arrays = in_canonical_order(architecture, arrays, gate_order)
        layer._build(
            architecture,
            checked(architecture, arrays, kind),
            batch_first=batch_first,
            weight_dtype=weight_dtype,
            backend=backend,
            threads=threads,
            initial_state=initial_state,
            dtype=kind,
        )
        return layer

    def with_weights(self, weights: Stored) -> Self:
        """A layer of the same architecture and options with other weights: as after a step of training.

        Parameters
        ----------
        weights
            All weights of the layer, by the names and of the shapes of :attr:`weights`; a narrow layer narrows them, and
            keeps a :class:`fusedrnn.Narrow` of its type.

        Raises
        ------
        ValueError, TypeError
            For missing, left-over, misshapen or non-float32 arrays; the message names them.
        """
        layer = type(self).__new__(type(self))
        layer.__dict__.update(self.__dict__)
        arrays = checked(self._architecture, weights, self.dtype)
        layer._weights = stored(arrays, self._architecture, kept_dtype(self._weights), self.dtype)
        layer._engine = self._engine.with_weights(layer._weights)
        layer._plain, layer._last_shape = {}, ()
        return layer

    def narrow(self, weight_dtype: str = "float16") -> Self:
        """This layer with its matrices rounded to 16 or 8 bits: it reads a half or a quarter of the bytes.

        Parameters
        ----------
        weight_dtype
            "float16", rounded to 11 significant bits; "bfloat16", to 8; "int8", to integers from -127 to 127 with a
            scale for each row; or "w8a7", the same weights, with 7 instead of 15 bits of x and h in their products.

        Returns
        -------
        Layer
            A layer with the same options. It has no copy of the weights that it was made of.

        Raises
        ------
        ValueError
            For an unknown type; or if a matrix has NaN or Inf, or a number that the type cannot hold.
        """
        if checked_weight_dtype(weight_dtype) == "float32":
            raise ValueError("narrow: weight_dtype must be 'float16', 'bfloat16', 'int8' or 'w8a7'")
        layer = type(self).__new__(type(self))
        layer._build(
            self._architecture,
            self._weights,
            batch_first=self.batch_first,
            weight_dtype=weight_dtype,
            backend=self._backend,
            threads=self._threads,
            initial_state=self.initial_state,
            dtype=self.dtype,
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
        arrays: Stored,
        *,
        batch_first: bool,
        weight_dtype: str | None,
        backend: str,
        threads: Threads,
        initial_state: Sequence[Array] | None,
        dtype: np.dtype[Any],
    ) -> None:
        threads = checked_threads(threads)
        self._architecture = architecture
        self._weights = stored(arrays, architecture, weight_dtype, dtype)
        self._backend = backend
        self._threads = threads
        self._signature = Signature(
            architecture,
            dtype,
            batch_first=checked_bool("batch_first", batch_first),
            initial=initial_state,
        )
        self._from_zeros = self._signature.initial is None
        self._engine = choose(backend, architecture, self._weights, dtype, threads)
        # Calls whose arrays C checks itself, by the shape of x: prepared when a shape comes twice in a row.
        self._plain: dict[tuple[int, ...], list[Any]] = {}
        self._last_shape: tuple[int, ...] = ()

    # ---- what it is ------------------------------------------------------------------------------

    @property
    def architecture(self) -> Architecture:
        """The cell and its sizes."""
        return self._architecture

    @property
    def weights(self) -> Weights:
        """The canonical weights, by name: read-only arrays. What is done to their shapes has no effect on the layer.

        Of a narrow layer they are the numbers that it computes with, widened to ``dtype`` at each access: new arrays, which
        the layer does not keep; in float32 rounded, if its scales are another program's, of more than 17 bits.
        """
        arrays = widened(self._weights, self.dtype)
        for array in arrays.values():
            array.flags.writeable = False
        return MappingProxyType({name: array.view() for name, array in arrays.items()})

    @property
    def stored_weights(self) -> Stored:
        """The weights, with narrow matrices as :class:`Narrow`: ``from_weights`` and ``with_weights`` keep them to the bit."""
        arrays = {name: each for name, each in self._weights.items() if isinstance(each, Narrow)}
        return MappingProxyType({**self.weights, **arrays})

    @property
    def batch_first(self) -> bool:
        """Whether sequences are (B, T, ·) instead of (T, B, ·)."""
        return self._signature.batch_first

    @property
    def initial_state(self) -> StateT | None:
        """The state before step 0 of calls and streams that are given none: each (L * D, ·); None for zeros."""
        values = self._signature.initial
        if values is None:
            return None
        return cast(StateT, self.state_type(*(array.view() for array in values)))

    @property
    def dtype(self) -> np.dtype[Any]:
        """dtype of inputs, outputs and states."""
        return self._signature.dtype

    @property
    def weight_dtype(self) -> str:
        """dtype of the matrices in memory."""
        kept = kept_dtype(self._weights)
        return str(self.dtype) if kept == "float32" else kept

    @property
    def backend(self) -> str:
        """What runs the layer: "c", "numba" or "numpy"."""
        return self._engine.backend

    @property
    def threads(self) -> Threads:
        """How many threads may compute a call."""
        return self._threads

    @property
    def isa(self) -> str | None:
        """The instruction set that the weights are packed for; None for NumPy."""
        return self._engine.isa

    def __repr__(self) -> str:
        a = self._architecture
        said = [str(a.input_size), str(a.hidden_size)]
        said += [f"{name}={value!r}" for name, value in a.chosen().items()]
        if self.batch_first:
            said.append("batch_first=True")
        if self.initial_state is not None:
            said.append("initial_state=...")
        if self.weight_dtype != str(self.dtype):
            said.append(f"weight_dtype={self.weight_dtype!r}")
        if self.dtype != FLOAT32:
            said.append(f"dtype={str(self.dtype)!r}")
        if self._threads != 1:
            said.append(f"threads={self._threads!r}")
        said.append(f"backend={self.backend!r}")
        text = f"{type(self).__name__}({', '.join(said)})"
        return f"<{text} on {self.isa}>" if self.isa else f"<{text}>"

    def __getstate__(self) -> dict[str, Any]:
        return {
            "weights": saved_weights(self._weights),
            "weight_dtype": kept_dtype(self._weights),
            "architecture": self._architecture,
            "batch_first": self.batch_first,
            "backend": self._backend,
            "threads": self._threads,
            "initial_state": self.initial_state and tuple(self.initial_state),
            "dtype": str(self.dtype),
        }

    def __setstate__(self, saved: dict[str, Any]) -> None:
        """From a pickle, of which nothing is trusted: everything is checked as in a new layer."""
        architecture = saved["architecture"]
        if type(architecture) is not Architecture:
            kind = type(architecture).__name__
            raise TypeError(f"architecture must be an Architecture, not {kind}")
        architecture = replace(architecture)
        if architecture.cell != self.cell:
            raise ArchitectureError(
                "cell",
                f"must be {self.cell!r} for {type(self).__name__}, got {architecture.cell!r}",
            )
        dtype = _dtype(saved["dtype"])
        weight_dtype = checked_weight_dtype(saved.get("weight_dtype", "float32"))
        weights = restored(saved["weights"], weight_dtype)
        self._build(
            architecture,
            checked(architecture, weights, dtype),
            batch_first=saved["batch_first"],
            weight_dtype=weight_dtype,
            backend=saved["backend"],
            threads=saved["threads"],
            initial_state=saved["initial_state"],
            dtype=dtype,
        )

    # ---- running it ------------------------------------------------------------------------------

    def __call__(
        self,
        x: Array,
        state: Sequence[Array] | None = None,
        lengths: Sequence[int] | None = None,
        *,
        resets: npt.NDArray[np.bool_] | None = None,
        out: Array | None = None,
    ) -> tuple[Array, StateT]:
        """Run over whole sequences.

        Parameters
        ----------
        x
            (T, B, X), or (B, T, X) if ``batch_first``; or (T, X): one sequence without a batch axis, which y and
            the states then do not have either. Any strides, float32 (or the layer's dtype). T = 0 and B = 0 are
            allowed. What another thread does to its shape during the call has no effect.
        state
            The state before step 0, as a tuple in the cell's order, each (L * D, B, ·); None for the layer's
            ``initial_state``: zeros, unless it has another. It is not written to.
        lengths
            (B,) ints from 0 to T: how long each sequence is; None: all are T long. Steps past a sequence's
            end cost nothing; its outputs there are 0, and its state is that of its own last step. The
            reverse direction starts from there.
        resets
            (T, B) bools, or (B, T) if ``batch_first``, or (T,) without a batch axis: where one is True, a new
            sequence begins, so that row's state is zero before that step (in every layer; of a Clockwork RNN, its
            counter, too). None: nowhere. Not for a bidirectional or a reverse layer.
        out
            Where to write y: C-contiguous, not overlapping x; None for a new array.

        Returns
        -------
        y : numpy.ndarray
            (T, B, D * R), or (B, T, D * R), or (T, D * R): the h of every step, the reverse direction behind the
            forward.
        state : tuple
            The named tuple of the state after the last step of each direction.

        Raises
        ------
        TypeError, ValueError
            If an argument is not as described; nothing has been computed or written.
        UnsupportedError
            For resets where a direction runs backward.
        """
        plainly = lengths is None and resets is None
        if plainly and type(x) is ndarray and (state is not None or self._from_zeros):
            pool = self._plain.get(x.shape)
            if pool:
                plain = self._run_plain(pool, x, state, out)
                if plain is not None:
                    return plain
        call, sequences = self._signature.call(x, state, lengths, out, resets)
        self._engine.run(call)
        if plainly:
            if sequences.shape == self._last_shape and sequences.shape not in self._plain:
                self._prepare(call, sequences)
            self._last_shape = sequences.shape
        return sequences.result, self._state(call, sequences)

    def _state(self, call: Call, sequences: Sequences) -> StateT:
        """The state after a call, as the caller gets it."""
        values = call.state
        if not sequences.batched:
            values = [array[:, 0] for array in values]
        return cast(StateT, self.state_type(*values))

    def record(
        self,
        x: Array,
        state: Sequence[Array] | None = None,
        lengths: Sequence[int] | None = None,
        *,
        resets: npt.NDArray[np.bool_] | None = None,
        tape: TapeKind = "full",
    ) -> tuple[Array, StateT, Tape]:
        """Run over whole sequences, and remember what the gradients need.

        Parameters
        ----------
        x, state, lengths, resets
            As for a call of the layer. The tape keeps a copy of x.
        tape
            "full": all sums of gates are remembered; "segments": they are computed again, a segment of the sequence
            at a time, with the same bits: less memory, and the work of about one more forward pass.

        Returns
        -------
        y : numpy.ndarray
            The bits of a call. Read-only, because the tape reads it, too: copy it to write to it.
        state : tuple
            As of a call: plain arrays, so that gradients end at the first step of the next call that is given them
            (truncated backpropagation through time).
        tape : Tape
            ``tape.backward(dy, dstate)`` gives the gradients of x, of the state before, and of every weight. Those of a
            narrow layer are at its widened weights; that integers are made of x and h counts as the identity.

        Raises
        ------
        TypeError, ValueError, UnsupportedError
            As for a call of the layer.
        """
        segments = checked_tape(tape) == "segments"
        call, sequences = self._signature.call(x, state, lengths, None, resets)
        call.x = np.array(call.x, order="C")
        recording = self._engine.record(call, segments)
        sequences.result.flags.writeable = False
        shown = Tape(recording, self._signature, sequences, self.state_type)
        return sequences.result, self._state(call, sequences), shown

    def _run_plain(
        self, pool: list[Any], x: Array, state: Sequence[Array] | None, out: Array | None
    ) -> tuple[Array, StateT] | None:
        """Run over arrays that C checks; None, and nothing computed, unless they are C-contiguous and of the right kind."""
        try:
            call = pool.pop()
        except IndexError:  # another thread has just taken it
            return None
        try:
            make = zeros if state is None else empty
            y = empty(*call.y) if out is None else out
            h = make(*call.h)
            values: tuple[Array, ...]
            if call.last is None:
                values = (h,)
                done = call.run(x, state, y, h)
            else:
                last = make(*call.last)
                values = (h, last)
                done = call.run(x, state, y, h, last)
        finally:  # an interrupt, too, leaves it to the next call
            pool.append(call)
        # A named tuple's own constructor takes twice as long.
        return (y, cast(StateT, new_tuple(self.state_type, values))) if done else None

    def _prepare(self, call: Call, sequences: Sequences) -> None:
        """Prepare for other calls of the shape of this one, which is over."""
        as_given = sequences.x if sequences.batched else sequences.x[:, 0]
        if sequences.batched and self.batch_first:
            as_given = as_given.transpose(1, 0, 2)
        if (
            not as_given.flags.c_contiguous
        ):  # the strides of this call would be those of all later ones
            return
        y = (*sequences.shape[:-1], self._signature.output_size)
        state = [array if sequences.batched else array[:, 0] for array in call.state]
        plain = self._engine.plain(call, self.state_type, sequences.shape, y, state)
        if plain is None:
            return
        if len(self._plain) >= MAX_SHAPES:
            self._plain.clear()
        self._plain[sequences.shape] = [plain]

    def stream(self, batch_size: int = 1) -> Stream:
        """This layer with a state of its own, to be fed step by step; see :class:`Stream`.

        Raises
        ------
        UnsupportedError
            For a bidirectional or a reverse layer: the reverse direction begins at the end of a sequence, which a
            stream does not have.
        """
        a = self._architecture
        if a.bidirectional or a.reverse:
            raise UnsupportedError(
                f"a {'bidirectional' if a.bidirectional else 'reverse'} layer has no stream: its reverse direction "
                "starts from the last step, and a stream never knows which one that is; run whole sequences instead"
            )
        if is_bool(batch_size) or not isinstance(batch_size, (int, np.integer)):
            raise TypeError(f"batch_size must be an int, not {type(batch_size).__name__}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        return Stream(self, int(batch_size))


def _dtype(name: Any) -> np.dtype[Any]:
    if not isinstance(name, str) or name not in ("float32", "float64"):
        raise ValueError(f"dtype must be 'float32' or 'float64', got {name!r}")
    kind: np.dtype[Any] = np.dtype(name)
    return kind
