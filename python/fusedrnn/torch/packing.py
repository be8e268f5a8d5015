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
    """

    cell: str
    options: str
    batch_first: bool
    threads: Threads
    backend: str

    def text(self) -> str:
        """For a compiled graph, whose operators have no tuples of this kind."""
        return f"{self.cell} {self.batch_first:d} {self.threads} {self.backend} {self.options}"

    @classmethod
    def of(cls, text: str) -> Choices:
        """From its text."""
        cell, batch_first, threads, backend, options = text.split(" ", 4)
        number: Threads = "auto" if threads == "auto" else int(threads)
        return cls(cell, options, batch_first == "1", number, backend)


class Packed:
    """A fused layer, and what its weights were when it was packed."""

    __slots__ = ("_addresses", "_counted", "_samples", "_values", "_versions", "layer", "weights")

    def __init__(self, layer: Layer[Any], weights: Mapping[str, Tensor]) -> None:
        self.layer = layer
        self.weights = dict(weights)
        values = weights.values()
        # Inference tensors have no version counter.
        self._counted = not any(each.is_inference() for each in values)
        self._versions = [each._version for each in values] if self._counted else []
        self._addresses = [each.data_ptr() for each in values]
        flat = [each.detach().numpy().reshape(-1) for each in values]
        self._samples = [each[:: max(each.size // SAMPLES, 1)] for each in flat]
        self._values = [each.tobytes() for each in self._samples]

    def fits(self, weights: Mapping[str, Tensor]) -> bool:
        """Whether these are still the weights that were packed. Comprehensions: this is part of every call."""
        values = weights.values()
        if len(weights) != len(self.weights) or not all(map(is_, values, self.weights.values())):
            return False
        if self._counted and [each._version for each in values] != self._versions:
            return False
        return [each.data_ptr() for each in values] == self._addresses and [
            each.tobytes() for each in self._samples
        ] == self._values


def pack(choices: Choices, weights: Mapping[str, Tensor], before: Packed | None = None) -> Packed:
    """A fused layer with these weights: that of ``before`` with other ones, where their shapes are the same."""
    arrays = {name: weight.detach().numpy() for name, weight in weights.items()}
    if before is not None and all(
        name in before.weights and before.weights[name].shape == weight.shape
        for name, weight in weights.items()
    ):
        return Packed(before.layer.with_weights(arrays), weights)
    layer = LAYERS[choices.cell].from_weights(
        arrays,
        batch_first=choices.batch_first,
        threads=choices.threads,
        backend=choices.backend,
        dtype=str(next(iter(arrays.values())).dtype),
        **json.loads(choices.options),
    )
    return Packed(layer, weights)


class State:
    """What a module has beside its own attributes. Copies and pickles leave the packed weights out.

    Attributes
    ----------
    packed
        The fused layer of the last call.
    layers
        That of each layer of the stack, once these have been run one by one.
    """

    __slots__ = ("backend", "layers", "packed", "threads")

    def __init__(self, threads: Threads = 1, backend: str = "auto") -> None:
        self.threads, self.backend = threads, backend
        self.packed: Packed | None = None
        self.layers: dict[int, State] = {}

    def __reduce__(self) -> tuple[type[State], tuple[Threads, str]]:
        return State, (self.threads, self.backend)

    def of_layer(self, number: int) -> State:
        """The state of one layer of the stack."""
        return self.layers.setdefault(number, State(self.threads, self.backend))

    def current(self, choices: Choices, weights: Mapping[str, Tensor]) -> Layer[Any]:
        """The fused layer with the weights as they are now."""
        packed = self.packed
        if packed is None or packed.layer.batch_first != choices.batch_first:
            packed = self.packed = pack(choices, weights)
        elif not packed.fits(weights):
            packed = self.packed = pack(choices, weights, packed)
        return packed.layer


def array_of(tensor: Tensor) -> Any:
    """The same memory as an array."""
    return tensor.detach().numpy() if tensor.requires_grad else tensor.numpy()
