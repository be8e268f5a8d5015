"""What runs a layer: the interface of every engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from fusedrnn.architecture import Architecture, Kind
from fusedrnn.arrays import Array
from fusedrnn.weights import Weights

__all__ = ["Call", "Engine", "Lengths", "by_direction"]

Lengths = npt.NDArray[np.int64]


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
    """

    x: Array
    y: Array
    state: Sequence[Array]
    lengths: Lengths | None = None


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
    def with_weights(self, weights: Weights) -> Engine:
        """An engine like this one over other checked weights of its architecture; it shares whatever does not depend on them."""

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


def by_direction(architecture: Architecture, weights: Weights) -> list[dict[str, list[Array]]]:
    """The weights of each layer and direction, in the order of the state, grouped by kind."""
    groups: list[dict[str, list[Array]]] = [
        {kind: [] for kind in get_args(Kind)}
        for _ in range(architecture.num_layers * architecture.directions)
    ]
    for weight in architecture.weights():
        index = weight.layer * architecture.directions + weight.direction
        groups[index][weight.kind].append(weights[weight.name])
    return groups
