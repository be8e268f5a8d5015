"""The tape that :meth:`Layer.record` gives, and the gradients that the tape gives."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np

from fusedrnn.architecture import checked_bool
from fusedrnn.arrays import Array
from fusedrnn.engines.base import Recording
from fusedrnn.signature import Sequences, Signature

__all__ = ["Gradients", "Tape", "TapeKind", "checked_tape"]

#: What a tape remembers: all sums of gates, or what they are computed again from.
TapeKind = Literal["full", "segments"]


def checked_tape(tape: Any) -> TapeKind:
    """A kind of tape."""
    if not isinstance(tape, str) or tape not in get_args(TapeKind):
        raise ValueError(f"tape must be 'full' or 'segments', got {tape!r}")
    return cast(TapeKind, tape)


class Gradients(NamedTuple):
    """The gradients of a scalar, of which the gradients of y and of the last state were given.

    Attributes
    ----------
    x
        Of x, in its shape; 0 past a sequence's end; None if it was not wanted.
    state
        Of the state before step 0: the layer's named tuple, each (L * D, B, ·), or (L * D, ·) without a batch axis.
        None in the place of a counter. Where a layer's own ``initial_state`` was that state, its gradient is the
        sum over the rows.
    weights
        Of every weight, by the names and in the shapes of ``layer.weights``.
    """

    x: Array | None
    state: Any
    weights: dict[str, Array]


class Tape:
    """What a forward pass remembers: made by :meth:`Layer.record`, to be run backward once.

    A tape holds all that it needs: its layer may be gone. It begins at the first step of its call, and gradients
    end there. It may be used by any thread; two at once wait for each other.
    """

    __slots__ = (
        "__weakref__",
        "_batched",
        "_lock",
        "_recording",
        "_shape",
        "_signature",
        "_state_type",
    )

    def __init__(
        self,
        recording: Recording,
        signature: Signature,
        sequences: Sequences,
        state_type: type[Any],
    ) -> None:
        self._recording: Recording | None = recording
        self._signature = signature
        self._shape, self._batched = sequences.shape, sequences.batched
        self._state_type = state_type
        self._lock = Lock()

    def backward(
        self,
        dy: Array | None,
        dstate: Sequence[Array | None] | None = None,
        *,
        want_x: bool = True,
        keep: bool = False,
    ) -> Gradients:
        """The gradients of x, of the state before step 0, and of every weight.

        Parameters
        ----------
        dy
            The gradient of y, in its shape and dtype, of any strides; None for zeros. Past a sequence's end it is
            not read.
        dstate
            The gradient of the state after the call: a tuple such as the layer returns, with None for zeros, and
            always None in the place of a counter; None for zeros.
        want_x
            Whether to compute the gradient of x.
        keep
            Whether the tape can be used again. Otherwise its memory is given back.

        Returns
        -------
        Gradients
            ``x``, ``state`` and ``weights``: new arrays. NaN and infinity in dy go through.

        Raises
        ------
        TypeError, ValueError
            If an argument is not as described, and the tape can still be used; or if it has been used up.
        """
        want_x, keep = checked_bool("want_x", want_x), checked_bool("keep", keep)
        signature, shape, batched = self._signature, self._shape, self._batched
        dy = signature.check_output_gradient(dy, shape, batched)
        before = signature.check_state_gradient(dstate, dy.shape[1], batched=batched)
        result = np.zeros(shape, signature.dtype) if want_x else None
        dx = None if result is None else signature.time_major(result, batched)
        with self._lock:
            recording = self._open()
            if not keep:
                self._recording = None
            weights = recording.backward(dy, before, dx, keep=keep)
        if not batched:
            before = [None if array is None else array[:, 0] for array in before]
        return Gradients(result, self._state_type(*before), weights)

    def sums(self) -> list[Array]:
        """The sums of all gates, before their limit and activation and without peepholes.

        Returns
        -------
        list of numpy.ndarray
            Of each layer and direction, in the order of the state: (T, B, G, H) whatever the layout of x, gates in the
            order of the weights' blocks; NaN past a sequence's end. New arrays.

        Raises
        ------
        ValueError
            If the tape has been used up.
        UnsupportedError
            For a Clockwork RNN, and with ``tape="segments"``.
        """
        with self._lock:
            return self._open().sums()

    def states(self) -> list[tuple[Array, ...]]:
        """The states after every step.

        Returns
        -------
        list of tuple
            Of each layer and direction, in the order of the state: h (T, B, R) and, for an LSTM, c (T, B, H), whatever
            the layout of x; NaN past a sequence's end. New arrays.

        Raises
        ------
        ValueError, UnsupportedError
            As :meth:`sums`; a Clockwork RNN has states.
        """
        with self._lock:
            return self._open().states()

    def _open(self) -> Recording:
        if self._recording is None:
            raise ValueError(
                "this tape has been used: say backward(..., keep=True) to use it again, or record anew"
            )
        return self._recording
