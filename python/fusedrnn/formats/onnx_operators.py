"""The operators that constants of an ONNX model come through, worked out with NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.errors import UnsupportedError
from fusedrnn.formats.onnx_tensors import tensor_dtype
from fusedrnn.formats.values import FLOATS, as_float32

__all__ = ["FILLED", "OPERATORS", "Operands", "Operator", "blank"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Operands:
    """What an operator is given.

    Attributes
    ----------
    inputs
        Arrays; None for an input that is left out.
    said
        Its attributes.
    real
        Whether the numbers are wanted, or only the shapes: then arrays hold one number in all places.
    limit
        Largest number of elements of a result.
    """

    inputs: list[Any]
    said: dict[str, Any]
    real: bool
    limit: int

    def ints(self, place: int, name: str) -> list[int] | None:
        """The ints of an input or, in older models, an attribute; None for neither."""
        if place < len(self.inputs) and self.inputs[place] is not None:
            array = self.inputs[place]
            if array.dtype.kind not in "iu" or array.ndim > 1 or array.size > 100:
                raise ValueError(f"{name} must be ints, got {array.dtype} of shape {array.shape}")
            return [int(each) for each in array.ravel()]
        value = self.said.get(name)
        return None if value is None else [int(each) for each in value]

    def check_size(self, shape: Sequence[int]) -> None:
        """That a result is not out of all proportion to the model."""
        if prod(shape) > self.limit:
            raise ValueError(f"shape {tuple(shape)} has far more numbers than the model stores")

    def axis(self, default: int) -> int:
        axis = int(self.said.get("axis", default))
        return axis + self.inputs[0].ndim if axis < 0 else axis


@dataclass(frozen=True)
class Operator:
    """An operator that constants go through.

    Attributes
    ----------
    run
        What it does.
    data
        How many of its first inputs are numbers, and not sizes; None for all.
    """

    run: Callable[[Operands], list[Array]]
    data: int | None = 1


def blank(shape: tuple[int, ...]) -> Array:
    """An array of a shape that takes no memory."""
    return np.broadcast_to(np.float32(0), shape)


def _unsqueeze(given: Operands) -> list[Array]:
    axes = given.ints(1, "axes")
    if axes is None:
        raise ValueError("axes are missing")
    return [np.expand_dims(given.inputs[0], tuple(axes))]


def _squeeze(given: Operands) -> list[Array]:
    axes = given.ints(1, "axes")
    return [np.squeeze(given.inputs[0], None if axes is None else tuple(axes))]


def _reshape(given: Operands) -> list[Array]:
    array = given.inputs[0]
    shape = given.ints(1, "shape")
    if shape is None:
        raise ValueError("shape is missing")
    if not given.said.get("allowzero"):
        shape = [array.shape[place] if n == 0 else n for place, n in enumerate(shape)]
    return [array.reshape(shape)]


def _flatten(given: Operands) -> list[Array]:
    array, axis = given.inputs[0], given.axis(1)
    return [array.reshape(prod(array.shape[:axis]), prod(array.shape[axis:]))]


def _transpose(given: Operands) -> list[Array]:
    return [given.inputs[0].transpose(given.said.get("perm"))]


def _slice(given: Operands) -> list[Array]:
    array = given.inputs[0]
    starts, ends = given.ints(1, "starts"), given.ints(2, "ends")
    if starts is None or ends is None:
        raise ValueError("starts or ends are missing")
    axes = given.ints(3, "axes") or list(range(len(starts)))
    steps = given.ints(4, "steps") or [1] * len(starts)
    whole = [slice(None)] * array.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        length = array.shape[axis]
        if step < 0 and end < -length:  # the end before the first element
            whole[axis] = slice(start, None, step)
        else:
            whole[axis] = slice(start, end, step)
    return [array[tuple(whole)]]


def _split(given: Operands) -> list[Array]:
    array, axis = given.inputs[0], given.axis(0)
    parts = given.ints(1, "split")
    if parts is None:
        raise UnsupportedError("Split without sizes is not worked out here")
    if sum(parts) != array.shape[axis] or min(parts) < 0:
        raise ValueError(f"parts of {parts} of an axis of {array.shape[axis]}")
    ends = np.cumsum(parts)[:-1]
    return list(np.split(array, ends, axis))


def _concat(given: Operands) -> list[Array]:
    axis = given.axis(0)
    first = list(given.inputs[0].shape)
    for other in given.inputs[1:]:
        if len(other.shape) != len(first) or any(
            n != m for place, (n, m) in enumerate(zip(first, other.shape)) if place != axis
        ):
            raise ValueError(f"shapes {tuple(first)} and {other.shape} on axis {axis}")
    first[axis] = sum(each.shape[axis] for each in given.inputs)
    given.check_size(first)
    return [np.concatenate(given.inputs, axis) if given.real else blank(tuple(first))]


def _cast(given: Operands) -> list[Array]:
    if not given.real:
        return [given.inputs[0]]
    wanted = tensor_dtype(int(given.said.get("to", 0)))
    if wanted not in (*FLOATS, "int32", "int64"):
        raise UnsupportedError(f"a cast to {wanted} is not worked out here")
    array: Array = given.inputs[0]
    if wanted == "bfloat16":
        if array.dtype != np.float32:
            raise UnsupportedError(f"a cast of {array.dtype} to bfloat16 is not worked out here")
        return [_as_bfloat16(array)]
    if wanted == "float32" and array.dtype == np.float64:
        return [as_float32(array, "what is cast to float32")]
    return [array.astype(wanted)]


def _as_bfloat16(array: Array) -> Array:
    """float32 rounded to bfloat16, to even, and widened again."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(array), array, rounded.astype(np.uint32).view(np.float32))


def _dequantize(given: Operands) -> list[Array]:
    if given.said.get("block_size"):
        raise UnsupportedError("DequantizeLinear in blocks is not worked out here")
    if not given.real:
        return [given.inputs[0]]
    array, scale = given.inputs[:2]
    zero = np.asarray(
        given.inputs[2] if len(given.inputs) > 2 and given.inputs[2] is not None else 0
    )
    if array.dtype.kind not in "iu" or scale.dtype.kind != "f":
        raise ValueError(f"of {array.dtype} with a scale of {scale.dtype}")
    if np.ndim(scale) and np.size(scale) > 1:
        shape = [1] * array.ndim
        shape[given.axis(1)] = -1
        scale = scale.reshape(shape)
        zero = zero.reshape(shape) if zero.size > 1 else zero
    whole = array.astype(np.int64) - zero.astype(np.int64)
    return [(whole.astype(scale.dtype) * scale).reshape(array.shape)]


def _expand(given: Operands) -> list[Array]:
    array = given.inputs[0]
    shape = given.ints(1, "shape")
    if shape is None:
        raise ValueError("shape is missing")
    shape = list(np.broadcast_shapes(array.shape, tuple(shape)))
    given.check_size(shape)
    return [np.broadcast_to(array, shape)]


def _tile(given: Operands) -> list[Array]:
    array = given.inputs[0]
    repeats = given.ints(1, "repeats")
    if repeats is None or len(repeats) != array.ndim or min(repeats, default=1) < 1:
        raise ValueError(f"repeats {repeats} of {array.ndim} axes")
    shape = tuple(n * m for n, m in zip(array.shape, repeats, strict=True))
    given.check_size(shape)
    return [np.tile(array, repeats) if given.real else blank(shape)]


#: What constants may come through.
OPERATORS = {
    "Identity": Operator(lambda given: given.inputs[:1]),
    "Unsqueeze": Operator(_unsqueeze),
    "Squeeze": Operator(_squeeze),
    "Reshape": Operator(_reshape),
    "Flatten": Operator(_flatten),
    "Transpose": Operator(_transpose),
    "Slice": Operator(_slice),
    "Split": Operator(_split),
    "Concat": Operator(_concat, None),
    "Cast": Operator(_cast),
    "DequantizeLinear": Operator(_dequantize, None),
    "Expand": Operator(_expand),
    "Tile": Operator(_tile),
}
#: What leaves all elements the same number, if those of its first input are.
FILLED = frozenset(OPERATORS) - {"Concat", "DequantizeLinear"}
