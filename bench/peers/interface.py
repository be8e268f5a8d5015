"""What every engine looks like to the benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fusedrnn.architecture import Architecture
from fusedrnn.bench.cases import Case
from fusedrnn.formats.layouts import Layout, find, suffix, to_layout

__all__ = ["Array", "Loss", "Peer", "Setup", "Trainer", "Weights", "blas_threads"]

Array = npt.NDArray[np.floating[Any]]
Weights = Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Loss:
    """A scalar to train by, as the gradients that come in.

    Attributes
    ----------
    dy
        (T, B, D * R), the gradient of y: 0 past a sequence's end.
    dstate
        The gradient of each array of the last state, (D, B, ·), None for a counter; None where the last state is not
        in the loss.
    """

    dy: Array
    dstate: tuple[Array | None, ...] | None

    @classmethod
    def of(cls, case: Case, dtype: npt.DTypeLike = np.float32) -> Loss:
        """That of a case: standard normal numbers of float32, always the same."""
        a, random = case.architecture, np.random.default_rng(2)

        def drawn(*shape: int) -> Array:
            numbers: Array = random.standard_normal(shape, np.float32).astype(dtype)
            return numbers

        dy = drawn(case.steps, case.batch, a.output_size)
        if case.lengths is not None:
            dy[np.arange(case.steps)[:, None] >= np.array(case.lengths)] = 0
        if case.group == "outputs training":
            return cls(dy, None)
        shapes = (a.state_shape(state, case.batch) for state in a.table.states)
        return cls(dy, tuple(drawn(*shape) if len(shape) == 3 else None for shape in shapes))


@dataclass(frozen=True, eq=False)
class Setup:
    """What an engine is made for.

    Attributes
    ----------
    case
        The cell and the shape.
    weights
        The canonical arrays of one layer, see :mod:`fusedrnn.weights`.
    threads
        How many threads may compute.
    """

    case: Case
    weights: Weights
    threads: int = 1

    @property
    def architecture(self) -> Architecture:
        """The architecture of the layer."""
        return self.case.architecture

    @property
    def ends(self) -> tuple[str, ...]:
        """The ends of the canonical names, one for each direction."""
        return tuple(suffix(0, direction) for direction in range(self.architecture.directions))

    @property
    def keeps_state(self) -> bool:
        """Whether one call goes on from where the last one ended: not in two directions, nor with lengths."""
        return not self.architecture.bidirectional and self.case.lengths is None

    @property
    def states(self) -> tuple[str, ...]:
        """The names of the states that are kept."""
        if not self.keeps_state:
            return ()
        return tuple(state.name for state in self.architecture.table.states)

    def layout(self, framework: str) -> Layout:
        """How a framework lays out the weights."""
        found = find(framework, self.architecture)
        assert found is not None  # it offers the cell
        return found

    def arrays(self, framework: str) -> list[dict[str, Array]]:
        """The weights as a framework lays them out, for each direction."""
        layout, gates = self.layout(framework), self.architecture.peephole_gates
        return [to_layout(layout, self.weights, end, gates) for end in self.ends]


class Peer(Protocol):
    """A layer with a state of its own, which starts at zero.

    One that is bidirectional, or whose sequences have lengths, has no steps, and starts every run at zero.

    Attributes
    ----------
    name
        The name of the engine.
    variant
        How the library is called, where it can be called in several ways; else "".
    """

    name: str
    variant: str

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


class Trainer(Protocol):
    """A layer that gives gradients: of x, of the state before step 0, which is zero, and of every weight.

    Attributes
    ----------
    name, variant
        As of a :class:`Peer`.
    """

    name: str
    variant: str

    def run(self, x: Array) -> dict[str, Array]:
        """The gradients of the case's loss at x (T, B, X), by name: "x", "h", "c", and the names of the weights."""
        ...

    def forward(self, x: Array) -> object:
        """The forward pass alone, as without training."""
        ...

    def laid_out(self, gradients: Mapping[str, Array]) -> Mapping[str, Array]:
        """Gradients by canonical names as :meth:`run` should give them."""
        ...

    def ready(self) -> AbstractContextManager[Any]:
        """As of a :class:`Peer`."""
        ...


@cache
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def blas_threads(number: int) -> AbstractContextManager[Any]:
    """A context in which NumPy's BLAS uses `number` threads."""
    limited: AbstractContextManager[Any] = _controller().limit(limits=number, user_api="blas")
    return limited
