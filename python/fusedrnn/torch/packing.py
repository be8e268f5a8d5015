"""Fused layers with the weights that a module has now."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_
from typing import Any

from torch import Tensor

from fusedrnn.engines.threads import Threads
from fusedrnn.layer import Layer
from fusedrnn.layers import LAYERS

__all__ = ["Packed", "State", "array_of", "pack"]

#: How many numbers of each weight are compared at each call.
SAMPLES = 16


class Packed:
    """A fused layer, and what its weights were when it was packed."""

    __slots__ = ("_addresses", "_counted", "_samples", "_values", "_versions", "layer", "weights")

    def __init__(self, layer: Layer[Any], weights: Sequence[Tensor]) -> None:
        self.layer = layer
        self.weights = list(weights)
        # Inference tensors have no version counter.
        self._counted = not any(each.is_inference() for each in weights)
        self._versions = [each._version for each in weights] if self._counted else []
        self._addresses = [each.data_ptr() for each in weights]
        flat = [each.detach().numpy().reshape(-1) for each in weights]
        self._samples = [each[:: max(each.size // SAMPLES, 1)] for each in flat]
        self._values = [each.tobytes() for each in self._samples]

    def fits(self, weights: Sequence[Tensor]) -> bool:
        """Whether these are still the weights that were packed. Comprehensions: this is part of every call."""
        if len(weights) != len(self.weights) or not all(map(is_, weights, self.weights)):
            return False
        if self._counted and [each._version for each in weights] != self._versions:
            return False
        return [each.data_ptr() for each in weights] == self._addresses and [
            each.tobytes() for each in self._samples
        ] == self._values


def pack(
    names: Sequence[str],
    weights: Sequence[Tensor],
    cell: str,
    activation: str,
    batch_first: bool,
    threads: Threads,
    backend: str,
) -> Packed:
    arrays = {name: weight.detach().numpy() for name, weight in zip(names, weights, strict=True)}
    options: dict[str, Any] = {"activation": activation} if activation else {}
    layer = LAYERS[cell].from_weights(
        arrays, batch_first=batch_first, threads=threads, backend=backend, **options
    )
    return Packed(layer, weights)


class State:
    """What a converted module has beside its own attributes. Copies and pickles leave the packed weights out."""

    __slots__ = ("backend", "packed", "threads")

    def __init__(self, threads: Threads = 1, backend: str = "auto") -> None:
        self.threads, self.backend = threads, backend
        self.packed: Packed | None = None

    def __reduce__(self) -> tuple[type[State], tuple[Threads, str]]:
        return State, (self.threads, self.backend)


def array_of(tensor: Tensor) -> Any:
    """The same memory as an array."""
    return tensor.detach().numpy() if tensor.requires_grad else tensor.numpy()
