"""Narrow weights: what is stored of a matrix in 16 or 8 bits, how it is rounded, and what it stands for.

Only matrices are narrowed: ``weight_ih``, ``weight_hh`` and ``weight_hr``. Biases and peepholes are as short as a row of
h, and stay float32. This module needs NumPy alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.architecture import NARROW, Architecture
from fusedrnn.arrays import FLOAT32, Array, check_array

__all__ = [
    "INTEGERS",
    "WEIGHT_DTYPES",
    "Narrow",
    "Stored",
    "checked_weight_dtype",
    "matrices",
    "narrowed",
    "restored",
    "saved",
    "stored",
    "weight_dtype_of",
    "widened",
    "widened_from",
]

#: The types of stored weights.
WEIGHT_DTYPES = ("float32", *NARROW)

#: Those of int8 with a scale for each row. With "w8a7", x and h are made integers of 7 bits; with "int8", of 15.
INTEGERS = ("int8", "w8a7")

#: The elements of ``Narrow.values``: 16 bits are kept as bit patterns, because NumPy has no bfloat16.
ELEMENTS: dict[str, np.dtype[Any]] = {
    "float16": np.dtype(np.uint16),
    "bfloat16": np.dtype(np.uint16),
    **dict.fromkeys(INTEGERS, np.dtype(np.int8)),
}

#: The largest magnitudes that are not refused: the largest float16; what is still rounded to the largest bfloat16, not to
#: Inf; and the largest float32.
LARGEST = {
    "float16": 65504.0,
    "bfloat16": float(np.uint32(0x7F7F7FFF).view(np.float32)),
    **dict.fromkeys(INTEGERS, float(np.finfo(np.float32).max)),
}
#: The bits of the smallest float16 that is not subnormal.
FLOAT16_NORMAL = 0x0400
#: The largest integer of a row of int8: -128 is not used, so that a weight and its negative are equally exact.
INT8_MAX = 127
#: The smallest float32 that is not subnormal: a scale below it would be flushed to zero.
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
#: The bits of a scale: 17 significant ones, so that its product with 7 bits of an integer is exact in float32.
SCALE_BITS = np.uint32(0xFFFFFF80)


@dataclass(frozen=True, eq=False)
class Narrow:
    """A matrix of weights in a narrow type.

    Attributes
    ----------
    weight_dtype
        "float16", "bfloat16", "int8" or "w8a7".
    values
        (rows, columns), of the canonical shape: uint16, the bits of float16 or bfloat16; or int8, from -127 to 127.
    scales
        (rows,), float32, above 0: what the integers of a row are multiplied with. None for float16 and bfloat16.
    """

    weight_dtype: str
    values: npt.NDArray[Any]
    scales: npt.NDArray[np.float32] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Its canonical shape."""
        return self.values.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the values, and of the scales."""
        return self.values.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def widened(self, dtype: npt.DTypeLike = FLOAT32) -> Array:
        """The numbers that are stored, as a new array: exact in float32, and so in float64.

        To narrow them again, to the same type, gives the same values and scales.
        """
        wide: Array
        if self.weight_dtype == "float16":
            wide = self.values.view(np.float16)
        elif self.weight_dtype == "bfloat16":
            wide = (self.values.astype(np.uint32) << 16).view(np.float32)
        else:
            assert self.scales is not None
            wide = self.values * self.scales[:, None]
        return wide.astype(dtype)


#: What a layer keeps of its canonical weights, by name.
Stored = Mapping[str, Array | Narrow]


def checked_weight_dtype(weight_dtype: object) -> str:
    """A type of stored weights, or the error that says which there are."""
    if not isinstance(weight_dtype, str) or weight_dtype not in WEIGHT_DTYPES:
        raise ValueError(
            f"weight_dtype must be one of {', '.join(map(repr, WEIGHT_DTYPES))}, got {weight_dtype!r}"
        )
    return weight_dtype


def matrices(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights that are narrowed, by name."""
    kinds = ("input", "recurrent", "projection")
    return {each.name: each.shape for each in architecture.weights() if each.kind in kinds}


def narrowed(
    weights: Mapping[str, Array], architecture: Architecture, weight_dtype: str
) -> dict[str, Narrow]:
    """The matrices of a layer in a narrow type.

    Parameters
    ----------
    weights
        Canonical weights, by name. float64 is rounded to float32 first: a layer that computes in float64 has the weights
        of one that computes in float32.
    weight_dtype
        "float16": rounded to the nearest, ties to even; what is smaller than the smallest normal number, 6.1e-5, becomes
        0 of its sign. "bfloat16": rounded to the nearest, ties to even. "int8": a row is divided by its scale
        and rounded to the nearest integer, ties to even; "w8a7": the same. The scale is max|row| / 127, cut to 17 significant bits; that
        of a row of zeros, or of one whose scale would be subnormal, is 1.

    Returns
    -------
    dict
        A :class:`Narrow` for each matrix; biases and peepholes have none.

    Raises
    ------
    ValueError
        If a matrix has NaN or Inf, or a number that the type cannot hold; the message names the
        matrix and the first place. For an unknown type.
    """
    checked_weight_dtype(weight_dtype)
    if weight_dtype == "float32":
        raise ValueError("weight_dtype 'float32' is not a narrow type")
    return {name: _narrow(name, weights[name], weight_dtype) for name in matrices(architecture)}


def stored(weights: Mapping[str, Array], architecture: Architecture, weight_dtype: str) -> Stored:
    """What a layer keeps of checked weights: themselves, or with :func:`narrowed` matrices."""
    if checked_weight_dtype(weight_dtype) == "float32":
        return weights
    return MappingProxyType({**weights, **narrowed(weights, architecture, weight_dtype)})


def widened(weights: Stored, dtype: npt.DTypeLike = FLOAT32) -> dict[str, Array]:
    """Stored weights as arrays: narrow ones widened to a dtype, the others as they are."""
    return {
        name: each.widened(dtype) if isinstance(each, Narrow) else each
        for name, each in weights.items()
    }


def weight_dtype_of(weights: Stored) -> str:
    """The type of stored matrices."""
    narrow = (each.weight_dtype for each in weights.values() if isinstance(each, Narrow))
    return next(narrow, "float32")


def saved(weights: Stored) -> dict[str, Any]:
    """Stored weights for a pickle: arrays, and (values, scales) of narrow ones."""
    return {
        name: (each.values, each.scales) if isinstance(each, Narrow) else each
        for name, each in weights.items()
    }


def restored(weights: Mapping[str, Any], weight_dtype: str) -> dict[str, Any]:
    """Arrays from what :func:`saved` has given, of which nothing is trusted: to be checked and narrowed like any others.

    Raises
    ------
    ValueError, TypeError
        If values and scales are not those of a matrix of that type.
    """
    if not isinstance(weights, Mapping):
        raise TypeError(
            f"weights must be a mapping from names to arrays, not {type(weights).__name__}"
        )
    return {
        name: widened_from(f"weights: {name!r}", weight_dtype, *each)
        if weight_dtype != "float32" and type(each) is tuple and len(each) == 2
        else each
        for name, each in weights.items()
    }


def widened_from(what: str, weight_dtype: str, values: object, scales: object) -> Array:
    """The numbers of a matrix whose values, and scales, somebody else has stored, in float32.

    Raises
    ------
    ValueError, TypeError
        If they are not of the dtypes and shapes of a :class:`Narrow`; ``what`` begins the message.
    """
    matrix = check_array(what, values, ("rows", "columns"), ELEMENTS[weight_dtype])
    if weight_dtype in INTEGERS:
        each = check_array(f"{what}: its scales", scales, matrix.shape[:1])
        with np.errstate(invalid="ignore", over="ignore"):  # found when it is narrowed again
            return Narrow(weight_dtype, matrix, each.astype(np.float32)).widened()
    return Narrow(weight_dtype, matrix).widened()


def _narrow(name: str, matrix: Array, weight_dtype: str) -> Narrow:
    reason = f"must be finite to be narrowed to {weight_dtype}"
    _refuse(name, matrix, ~np.isfinite(matrix), reason)
    with np.errstate(over="ignore", under="ignore"):
        weights = matrix.astype(np.float32)
    reason = f"is beyond {weight_dtype}, at most {LARGEST[weight_dtype]:g}"
    _refuse(name, matrix, np.abs(weights) > LARGEST[weight_dtype], reason)
    if weight_dtype == "float16":
        with np.errstate(under="ignore"):
            bits = weights.astype(np.float16).view(np.uint16)
        return Narrow("float16", np.where(bits & 0x7FFF < FLOAT16_NORMAL, bits & 0x8000, bits))
    if weight_dtype == "bfloat16":
        word = weights.view(np.uint32)
        return Narrow("bfloat16", ((word + 0x7FFF + (word >> 16 & 1)) >> 16).astype(np.uint16))
    scales = np.abs(weights).max(axis=1, initial=0) / np.float32(INT8_MAX)
    scales = (scales.view(np.uint32) & SCALE_BITS).view(np.float32)
    empty = scales < SMALLEST_SCALE
    scales[empty] = 1
    integers = np.rint(weights.astype(np.float64) / scales[:, None].astype(np.float64))
    integers[empty] = 0
    return Narrow(weight_dtype, integers.astype(np.int8), scales)


def _refuse(name: str, matrix: Array, wrong: npt.NDArray[np.bool_], reason: str) -> None:
    if wrong.any():
        place = tuple(int(each) for each in np.argwhere(wrong)[0])
        raise ValueError(
            f"weights: {name}[{', '.join(map(str, place))}] = {matrix[place]} {reason}"
        )
