"""What every engine looks like to the benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "Peer", "Weights", "blas_threads"]

Array = npt.NDArray[np.floating[Any]]
Weights = Mapping[str, Array]


class Peer(Protocol):
    """A layer with a state of its own, which starts at zero.

    One that is bidirectional, or whose sequences have lengths, has no steps, and starts every run at zero.

    Attributes
    ----------
    name
        Of the engine.
    way
        How the library is called, where it can be called in several ways; else "".
    """

    name: str
    way: str

    def step(self, x: Array) -> Array:
        """From x (B, X) to h (B, R), which the next step may overwrite."""
        ...

    def run(self, x: Array) -> Array:
        """From x (T, B, X) to y (T, B, D * R), the state going on from where it is.

        The next run may overwrite y; and what one array holds does not change from run to run, so that an engine may
        look at it once.
        """
        ...

    def reset(self) -> None:
        """Set the state to zero."""
        ...

    def ready(self) -> AbstractContextManager[Any]:
        """What must be set while it runs: threads, and the like, that are the process's."""
        ...


@cache
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def blas_threads(number: int) -> AbstractContextManager[Any]:
    """A context in which NumPy's BLAS uses so many threads."""
    limited: AbstractContextManager[Any] = _controller().limit(limits=number, user_api="blas")
    return limited
