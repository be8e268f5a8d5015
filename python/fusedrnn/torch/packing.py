"""Fused layers with the weights that a module has now."""

from __future__ import annotations

import json
from collections.abc import Mapping
from operator import is_
from typing import Any, NamedTuple

from torch import Tensor

from fusedrnn.engines.threads import Threads
from fusedrnn.layer import Layer
from fusedrnn.layers import LAYERS
from fusedrnn.training.tape import TapeKind, checked_tape

__all__ = ["Choices", "Packed", "State", "array_of", "pack"]

#: How many numbers of each weight are compared at each call.
SAMPLES = 16


class Choices(NamedTuple):
    """What the weights of a module do not tell of its layer.

    Attributes
    ----------
    cell
        A key of the cell table.
    options
        Those of the cell, a JSON object: nothing that needs Python to run may be done to them in a compiled graph.
    batch_first
        Whether sequences are (B, T, ·).
    threads, backend
        As in :class:`fusedrnn.Layer`.
    tape
        As in :meth:`fusedrnn.Layer.record`.
    """

    cell: str
    options: str
    batch_first: bool
    threads: Threads
    backend: str
    tape: TapeKind

    def text(self) -> str:
        """For a compiled graph, whose operators have no tuples of this kind."""
        return f"{self.cell} {self.batch_first:d} {self.threads} {self.backend} {self.tape} {self.options}"

    @classmethod
    def of(cls, text: str) -> Choices:
        """From its text."""
        cell, batch_first, threads, backend, tape, options = text.split(" ", 5)
        number: Threads = "auto" if threads == "auto" else int(threads)
        return cls(cell, options, batch_first == "1", number, backend, checked_tape(tape))


class Watched:
    """The weights of a module, and their memory.

    Attributes
    ----------
    tensors
        By canonical name.
    arrays
        The same memory.
    """

    __slots__ = ("_addresses", "_counted", "_samples", "arrays", "tensors")

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.tensors = dict(weights)
        values = weights.values()
        # Inference tensors have no version counter.
        self._counted = not any(each.is_inference() for each in values)
        self._addresses = [each.data_ptr() for each in values]
        self.arrays = {name: weight.detach().numpy() for name, weight in weights.items()}
        flat = [each.reshape(-1) for each in self.arrays.values()]
        self._samples = [each[:: max(each.size // SAMPLES, 1)] for each in flat]

    def same(self, weights: Mapping[str, Tensor]) -> bool:
        """Whether these are the same tensors, in the same memory. Comprehensions: this is part of every call."""
        values = weights.values()
        return (
            len(weights) == len(self.tensors)
            and all(map(is_, values, self.tensors.values()))
            and [each.data_ptr() for each in values] == self._addresses
        )

    def seen(self) -> tuple[list[int], list[bytes]]:
        """What is another one if a weight has changed: version counters and samples."""
        versions = [each._version for each in self.tensors.values()] if self._counted else []
        return versions, [each.tobytes() for each in self._samples]


class Packed(NamedTuple):
    """A fused layer, and what its weights were when it was packed."""

    layer: Layer[Any]
    watched: Watched
    seen: tuple[list[int], list[bytes]]


def pack(choices: Choices, weights: Mapping[str, Tensor], before: Packed | None = None) -> Packed:
    """A fused layer with these weights as they are now.

    Parameters
    ----------
    choices, weights
        Of the module.
    before
        What was packed with the same choices: it is returned if its weights have not changed.
    """
    kept = before is not None and before.watched.same(weights)
    watched = before.watched if before is not None and kept else Watched(weights)
    seen = watched.seen()  # first: a change meanwhile is then noticed by the next call
    if before is not None:
        if kept and seen == before.seen:
            return before
        if kept or _shapes(watched) == _shapes(before.watched):
            return Packed(before.layer.with_weights(watched.arrays), watched, seen)
    layer = LAYERS[choices.cell].from_weights(
        watched.arrays,
        batch_first=choices.batch_first,
        threads=choices.threads,
        backend=choices.backend,
        dtype=str(next(iter(watched.arrays.values())).dtype),
        **json.loads(choices.options),
    )
    return Packed(layer, watched, seen)


def _shapes(watched: Watched) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in watched.arrays.items()}


class State:
    """What a module has beside its own attributes. Copies and pickles leave the packed weights out.

    Attributes
    ----------
    packed
        The fused layer of the last call.
    layers
        That of each layer of the stack, once these have been run one by one.
    """

    __slots__ = ("backend", "layers", "packed", "tape", "threads")

    def __init__(
        self, threads: Threads = 1, backend: str = "auto", tape: TapeKind = "full"
    ) -> None:
        self.threads, self.backend, self.tape = threads, backend, checked_tape(tape)
        self.packed: Packed | None = None
        self.layers: dict[int, State] = {}

    def __reduce__(self) -> tuple[type[State], tuple[Threads, str, TapeKind]]:
        return State, (self.threads, self.backend, self.tape)

    def of_layer(self, number: int) -> State:
        """The state of one layer of the stack."""
        return self.layers.setdefault(number, State(self.threads, self.backend, self.tape))

    def current(self, choices: Choices, weights: Mapping[str, Tensor]) -> Layer[Any]:
        """The fused layer with the weights as they are now."""
        packed = self.packed
        if packed is not None and packed.layer.batch_first != choices.batch_first:
            packed = None
        packed = self.packed = pack(choices, weights, packed)
        return packed.layer


def array_of(tensor: Tensor) -> Any:
    """The same memory as an array."""
    return tensor.detach().numpy() if tensor.requires_grad else tensor.numpy()
