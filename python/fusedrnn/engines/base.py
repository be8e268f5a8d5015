"""What runs a layer: the interface of every engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from fusedrnn.architecture import Architecture, Kind
from fusedrnn.arrays import Array
from fusedrnn.errors import UnsupportedError
from fusedrnn.narrowing import Narrow, Stored

__all__ = [
    "Call",
    "Engine",
    "Lengths",
    "Recording",
    "Resets",
    "by_direction",
    "by_name",
    "refuse_clockwork_sums",
]

#: Of weights.
KINDS: tuple[Kind, ...] = get_args(Kind)

#: An array, or what is stored of it.
StoredT = TypeVar("StoredT", Array, Array | Narrow)

Lengths = npt.NDArray[np.int64]
Resets = npt.NDArray[np.bool_]


@dataclass(slots=True)
class Call:
    """What a layer asks of an engine: checked arrays, of headers that nobody else can reach.

    Attributes
    ----------
    x
        (T, B, X), of any strides but in the last axis.
    y
        (T, B, D * R), without gaps in the last axis; the engine writes it. It does not overlap x.
    state
        Each (L * D, B, ·), without gaps: the state before the call, and after it.
    lengths
        (B,), if sequences have lengths of their own: y is not written past a sequence's end, and its state is that
        of its own last step.
    resets
        (T, B), C-contiguous and private, or None: where it is True, all states of that row are zero before that step.
        Only for layers whose every direction runs forward.
    """

    x: Array
    y: Array
    state: Sequence[Array]
    lengths: Lengths | None = None
    resets: Resets | None = None


class Recording(ABC):
    """What an engine remembers of a call, for its gradients. It refers to no layer."""

    @abstractmethod
    def backward(
        self, dy: Array, dstate: Sequence[Array | None], dx: Array | None, *, keep: bool
    ) -> dict[str, Array]:
        """Compute the gradients of the recorded call.

        Parameters
        ----------
        dy
            (T, B, D * R), without gaps in the last axis: the gradient of y. It is not read past a sequence's end.
        dstate
            Each (L * D, B, ·), without gaps, and private: the gradient of the state after the call, and after this
            one that of the state before the call. None in the place of a counter.
        dx
            (T, B, X), zeros, without gaps in the last axis: the engine writes the gradient of x, not past a
            sequence's end. None if that is not wanted.
        keep
            Whether there will be another backward pass; otherwise the recording may be used up.

        Returns
        -------
        dict
            The gradient of each weight by its canonical name, of its shape, in the order of
            :meth:`Architecture.weights`. New arrays.
        """

    @abstractmethod
    def sums(self) -> list[Array]:
        """The sums of all gates, before their limit and activation and without peepholes, of each layer and direction.

        Returns
        -------
        list of numpy.ndarray
            (T, B, G, H), gates in the order of the cell table, steps in the order of x; NaN past a sequence's end.

        Raises
        ------
        UnsupportedError
            If the recording has none: of a Clockwork RNN, or of segments.
        """

    @abstractmethod
    def states(self) -> list[tuple[Array, ...]]:
        """The states after every step, without counters, of each layer and direction.

        Returns
        -------
        list of tuple
            h (T, B, R) and, for a cell that has it, c (T, B, H), steps in the order of x; NaN past a sequence's end.

        Raises
        ------
        UnsupportedError
            If the recording does not have c: of segments.
        """


class Engine(ABC):
    """What runs a layer.

    Attributes
    ----------
    backend
        One of :data:`BACKENDS`.
    isa
        The instruction set it was packed for; None for NumPy.
    """

    backend: str
    isa: str | None

    @abstractmethod
    def run(self, call: Call) -> None:
        """Compute a call: from its x and state to its y and the state after it.

        After an exception, an interrupt among them, y and the state hold nothing of use.
        """

    @abstractmethod
    def with_weights(self, weights: Stored) -> Engine:
        """An engine like this one over other checked weights of its architecture; it shares whatever does not depend on them."""

    @abstractmethod
    def record(self, call: Call, segments: bool) -> Recording:
        """As :meth:`run`, with the same bits, and remember what a backward pass needs.

        Parameters
        ----------
        call
            Its x is C-contiguous and nobody else's, its y is not written by anybody else from now on: the recording may keep both. Its
            state is the caller's afterwards.
        segments
            Whether to remember less, and to compute the rest again when it is needed.
        """

    def plain(
        self,
        call: Call,
        state_type: type[Any],
        x: tuple[int, ...],
        y: tuple[int, ...],
        state: Sequence[Array],
    ) -> Any:
        """A faster way to run calls like this one, if the engine has one now: see :class:`compiled.PlainCall`.

        Parameters
        ----------
        call
            A call that is over, without lengths, whose sequences the caller had without gaps: later ones are taken to
            lie as these do.
        state_type
            The layer's named tuple.
        x, y
            Shapes of its sequences, as the caller has them.
        state
            Its state, in the shapes that the caller has.
        """
        return None


def refuse_clockwork_sums(architecture: Architecture) -> None:
    """Raise the error of :meth:`Recording.sums` for a cell whose tape has no sums."""
    if architecture.periods:
        raise UnsupportedError(
            "a Clockwork RNN has no sums on its tape: its modules are computed at some steps only"
        )


def by_direction(
    architecture: Architecture, weights: Mapping[str, StoredT]
) -> list[dict[str, list[StoredT]]]:
    """The weights of each layer and direction, in the order of the state, grouped by kind."""
    groups: list[dict[str, list[StoredT]]] = [
        {kind: [] for kind in KINDS}
        for _ in range(architecture.num_layers * architecture.directions)
    ]
    for weight in architecture.weights():
        index = weight.layer * architecture.directions + weight.direction
        groups[index][weight.kind].append(weights[weight.name])
    return groups


def by_name(
    architecture: Architecture, groups: Sequence[Mapping[str, list[Array]]]
) -> dict[str, Array]:
    """Arrays by canonical name, in canonical order, from groups as :func:`by_direction` makes them."""
    left = [{kind: iter(arrays) for kind, arrays in group.items()} for group in groups]
    return {
        weight.name: next(
            left[weight.layer * architecture.directions + weight.direction][weight.kind]
        )
        for weight in architecture.weights()
    }
