"""Weights rounded to a narrow type, and widened again: what float16, bfloat16 and int8 make of a matrix."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fusedrnn.architecture import NARROW
from fusedrnn.arrays import FLOAT32

__all__ = ["MAX_FLOAT16", "int8_scales", "rounded"]

#: The largest float16.
MAX_FLOAT16 = 65504.0
#: The smallest float16 that is not subnormal. Smaller ones become 0, as the kernels have them.
MIN_FLOAT16 = 2.0**-14

Float32 = npt.NDArray[np.float32]


def rounded(name: str, weights: Float32, weight_dtype: str) -> Float32:
    """A matrix as it is in a narrow type, in float32.

    Parameters
    ----------
    name
        What the matrix is called, for messages.
    weights
        (rows, columns), float32: of gates, stacked.
    weight_dtype
        "float16": to the nearest, ties to even, subnormal numbers become 0. "bfloat16": likewise, the upper half of a
        float32. "int8": a row's numbers are multiples of :func:`int8_scales`, from -127 to 127 of them.

    Returns
    -------
    numpy.ndarray
        A new array; already narrow numbers do not change.

    Raises
    ------
    ValueError
        For an unknown type; for NaN, infinity, and numbers beyond the type's range: the message names the matrix and
        the first place.
    """
    if weight_dtype not in NARROW:
        raise ValueError(f"weight_dtype must be one of {', '.join(NARROW)}, got {weight_dtype!r}")
    _refuse(name, weights, ~np.isfinite(weights), "must be finite to be narrowed")
    if weight_dtype == "float16":
        _refuse(name, weights, np.abs(weights) > MAX_FLOAT16, "is beyond float16, at most 65,504")
        with np.errstate(under="ignore"):
            half = weights.astype(np.float16).astype(FLOAT32)
        return np.where(np.abs(half) < MIN_FLOAT16, FLOAT32.type(0), half)
    if weight_dtype == "bfloat16":
        bits = np.ascontiguousarray(weights, FLOAT32).view(np.uint32)
        nearest = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
        wide: Float32 = (nearest & np.uint32(0xFFFF0000)).view(np.float32)
        _refuse(name, weights, ~np.isfinite(wide), "is beyond bfloat16")
        return wide
    scales = int8_scales(weights)[:, None]
    return np.asarray(np.clip(np.rint(weights / scales), -127, 127) * scales, FLOAT32)


def int8_scales(weights: Float32) -> Float32:
    """The scale of each row in int8: the largest of a row over 127; 1 for a row of zeros.

    A row whose largest number is so small that the scale would not be a normal float32 has the smallest that is.
    """
    largest = np.abs(weights).max(axis=1, initial=0)
    scales = np.maximum(largest / FLOAT32.type(127), np.finfo(FLOAT32).tiny)
    return np.where(largest > 0, scales, FLOAT32.type(1)).astype(FLOAT32)


def _refuse(name: str, weights: Float32, wrong: npt.NDArray[np.bool_], reason: str) -> None:
    if wrong.any():
        place = tuple(int(each) for each in np.argwhere(wrong)[0])
        raise ValueError(
            f"weights: {name}[{', '.join(map(str, place))}] = {weights[place]} {reason}"
        )
