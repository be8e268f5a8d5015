"""What runs a layer: the interface of every engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import get_args

import numpy as np
import numpy.typing as npt

from fusedrnn.architecture import Architecture, Kind
from fusedrnn.arrays import Array
from fusedrnn.weights import Weights

__all__ = ["Engine", "Lengths", "by_direction"]

Lengths = npt.NDArray[np.int64]


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
    def run(
        self, x: Array, y: Array, state: Sequence[Array], lengths: Lengths | None = None
    ) -> None:
        """From x (T, B, X) and state, each (L * D, B, ·), to y (T, B, D * R) and the state after it.

        ``state`` is written in place; ``x`` and ``y`` do not overlap. With lengths (B,), y is not written
        past a sequence's end, and its state is that of its own last step.
        """


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
