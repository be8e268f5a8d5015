"""Operators of ONNX that only move numbers, done with NumPy: between two recurrent layers they are mostly views.

ONNX Runtime would take a call of several microseconds for each group of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["DATA_INPUTS", "VIEWS", "Move", "move"]

Array = npt.NDArray[Any]
#: What one of these operators does with its data inputs.
Move = Callable[..., Array]

#: No array has more axes.
MAX_AXES = 64
#: Operators, and how many of their first inputs are data; None for all. The inputs behind these must be constant.
DATA_INPUTS: dict[str, int | None] = {
    "Concat": None,
    "Dropout": 1,
    "Flatten": 1,
    "Gather": 2,
    "Identity": 1,
    "Reshape": 1,
    "Slice": 1,
    "Squeeze": 1,
    "Transpose": 1,
    "Unsqueeze": 1,
}
#: Those whose result may share memory with the first input.
VIEWS = frozenset(DATA_INPUTS) - {"Concat", "Gather"}


def move(operator: str, said: Mapping[str, Any], sizes: Sequence[Sequence[int] | None]) -> Move:
    """The function of a node.

    Parameters
    ----------
    operator
        One of :data:`DATA_INPUTS`.
    said
        The attributes of the node.
    sizes
        The numbers of the inputs behind the data; None for one that is left out.

    Raises
    ------
    ValueError
        If the node lacks a size or an axis that it must have.
    """

    def ints(place: int, name: str) -> list[int] | None:
        """An input behind the data or, in older models, an attribute."""
        value = sizes[place] if place < len(sizes) and sizes[place] is not None else said.get(name)
        return None if value is None else [int(each) for each in value]

    def needed(place: int, name: str) -> list[int]:
        value = ints(place, name)
        if value is None:
            raise ValueError(f"{operator}: {name} is missing")
        return value

    match operator:
        case "Identity" | "Dropout":
            return lambda x: x
        case "Transpose":
            perm = said.get("perm")
            return lambda x: x.transpose(perm)
        case "Squeeze":
            axes = ints(0, "axes")
            gone = None if axes is None else tuple(axes)
            return lambda x: x.squeeze(gone)
        case "Unsqueeze":
            new = tuple(needed(0, "axes"))
            return lambda x: np.expand_dims(x, new)
        case "Reshape":
            return _reshape(needed(0, "shape"), copies=not said.get("allowzero"))
        case "Flatten":
            return _flatten(int(said.get("axis", 1)))
        case "Slice":
            starts = needed(0, "starts")
            axes = ints(2, "axes") or list(range(len(starts)))
            return _slice(starts, needed(1, "ends"), axes, ints(3, "steps") or [1] * len(starts))
        case "Gather":
            at = int(said.get("axis", 0))
            return lambda x, places: x.take(places, at)
        case "Concat":
            joined = int(said["axis"])
            return lambda *arrays: np.concatenate(arrays, joined)
    raise AssertionError(operator)


def _reshape(shape: Sequence[int], *, copies: bool) -> Move:
    """Reshape, with 0 for an axis that stays as it is, and -1 for what is left.

    NumPy cannot tell what -1 is where another axis is 0: without the axes that stay, it is mostly known.
    """
    kept = [place for place, length in enumerate(shape) if length == 0 and copies]
    if not kept:
        plain = tuple(shape)
        return lambda x: x.reshape(plain)
    known = prod(length for length in shape if length > 0)

    def run(x: Array) -> Array:
        wanted = list(shape)
        for place in kept:
            wanted[place] = x.shape[place]
        if -1 in wanted and not x.size:
            rest = prod(length for place, length in enumerate(x.shape) if place not in kept)
            wanted[wanted.index(-1)] = rest // known
        return x.reshape(wanted)

    return run


def _flatten(axis: int) -> Move:
    def run(x: Array) -> Array:
        first = axis + x.ndim if axis < 0 else axis
        return x.reshape(prod(x.shape[:first]), prod(x.shape[first:]))

    return run


def _slice(
    starts: Sequence[int], ends: Sequence[int], axes: Sequence[int], steps: Sequence[int]
) -> Move:
    if not all(-MAX_AXES <= axis < MAX_AXES for axis in axes):
        raise ValueError(f"Slice: there are no axes {axes}"[:300])
    if min(axes, default=0) >= 0:
        whole = [slice(None)] * (max(axes, default=-1) + 1)
        for axis, *one in zip(axes, starts, ends, steps, strict=True):
            whole[axis] = slice(*one)
        key = tuple(whole)
        return lambda x: x[key]

    def run(x: Array) -> Array:
        whole = [slice(None)] * x.ndim
        for axis, *one in zip(axes, starts, ends, steps, strict=True):
            whole[axis] = slice(*one)
        return x[tuple(whole)]

    return run
