"""Narrow weights: what is stored of a matrix in 16 or 8 bits, how it is rounded, and what it stands for.

Only matrices are narrowed: ``weight_ih``, ``weight_hh`` and ``weight_hr``. Biases and peepholes are as short as a row of
h, and stay float32. This module needs NumPy alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.architecture import INTEGERS, NARROW, Architecture
from fusedrnn.arrays import FLOAT32, Array, check_array, frozen

__all__ = [
    "INTEGERS",
    "WEIGHT_DTYPES",
    "Narrow",
    "Stored",
    "checked_narrow",
    "checked_weight_dtype",
    "matrices",
    "narrowed",
    "restored",
    "saved",
    "stored",
    "weight_dtype_of",
    "widened",
]

#: The types of stored weights.
WEIGHT_DTYPES = ("float32", *NARROW)

#: The elements of ``Narrow.values``: 16 bits are kept as bit patterns, because NumPy has no bfloat16.
ELEMENTS: dict[str, np.dtype[Any]] = {
    "float16": np.dtype(np.uint16),
    "bfloat16": np.dtype(np.uint16),
    **dict.fromkeys(INTEGERS, np.dtype(np.int8)),
}

#: The bits of the smallest float16 that is not subnormal.
FLOAT16_NORMAL = 0x0400
#: The largest integer of a row that is rounded to int8: -128 is not used, so that a weight and its negative are equally
#: exact. In the files of others it may stand.
INT8_MAX = 127
#: The smallest float32 that is not subnormal: a scale below it would be flushed to zero.
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
#: The largest scale: 128 times it is a float32.
LARGEST_SCALE = float(np.finfo(np.float32).max) / 128
#: The largest magnitudes that are not refused: the largest float16; what is still rounded to the largest bfloat16, not to
#: Inf; and what has the largest scale.
LARGEST = {
    "float16": 65504.0,
    "bfloat16": float(np.uint32(0x7F7F7FFF).view(np.float32)),
    **dict.fromkeys(INTEGERS, INT8_MAX * LARGEST_SCALE),
}
#: The bits of a scale: 17 significant ones, so that its product with 7 bits of an integer is exact in float32.
SCALE_BITS = np.uint32(0xFFFFFF80)


@dataclass(frozen=True, eq=False)
class Narrow:
    """A matrix of weights in a narrow type. :meth:`Layer.from_weights` takes it for a matrix, and keeps it to the bit.

    Attributes
    ----------
    weight_dtype
        "float16", "bfloat16", "int8" or "w8a7".
    values
        (rows, columns), of the canonical shape: uint16, the bits of float16 or bfloat16; or int8.
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
        """The numbers that are stored, as a new array: exact in float64, and in float32 where scales have 17 bits.

        To narrow them again, to the same type, gives the same values and scales, if they are from :func:`narrowed`.
        """
        wide: Array
        if self.weight_dtype == "float16":
            wide = self.values.view(np.float16)
        elif self.weight_dtype == "bfloat16":
            wide = (self.values.astype(np.uint32) << 16).view(np.float32)
        else:
            assert self.scales is not None
            wide = self.values.astype(dtype) * self.scales.astype(dtype)[:, None]
        return wide.astype(dtype, copy=False)

    def frozen(self) -> Narrow:
        """A copy that nobody can change."""
        scales = None if self.scales is None else frozen(self.scales)
        return replace(self, values=frozen(self.values), scales=scales)

    def rows(self, order: npt.NDArray[np.intp]) -> Narrow:
        """The matrix of these rows of it."""
        scales = None if self.scales is None else self.scales[order]
        return replace(self, values=self.values[order], scales=scales)


#: What a layer keeps of its canonical weights, by name.
Stored = Mapping[str, Array | Narrow]


def checked_weight_dtype(weight_dtype: object) -> str:
    """A type of stored weights, or the error that says which there are."""
    if not isinstance(weight_dtype, str) or weight_dtype not in WEIGHT_DTYPES:
        raise ValueError(
            f"weight_dtype must be one of {', '.join(map(repr, WEIGHT_DTYPES))}, got {weight_dtype!r}"
        )
    return str(weight_dtype)  # of NumPy's strings, too


def matrices(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights that are narrowed, by name."""
    kinds = ("input", "recurrent", "projection")
    return {each.name: each.shape for each in architecture.weights() if each.kind in kinds}


def narrowed(weights: Stored, architecture: Architecture, weight_dtype: str) -> dict[str, Narrow]:
    """The matrices of a layer in a narrow type.

    Parameters
    ----------
    weights
        Canonical weights, by name. float64 is rounded to float32 first: a layer that computes in float64 has the weights
        of one that computes in float32. A matrix of the type, or of the same integers, stays as it is; one of another narrow type is widened.
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
    weight_dtype = checked_weight_dtype(weight_dtype)
    if weight_dtype == "float32":
        raise ValueError("weight_dtype 'float32' is not a narrow type")
    return {name: _narrow(name, weights[name], weight_dtype) for name in matrices(architecture)}


def stored(
    weights: Stored,
    architecture: Architecture,
    weight_dtype: str | None,
    dtype: npt.DTypeLike = FLOAT32,
) -> Stored:
    """What a layer keeps of checked weights: as they are, widened to its dtype, or with :func:`narrowed` matrices.

    Parameters
    ----------
    weight_dtype
        The type of all matrices; None for the one that they have.

    Raises
    ------
    ValueError
        As :func:`narrowed`; or if the type is None, and matrices differ in theirs.
    """
    if weight_dtype is None:
        types = {name: _type(weights[name]) for name in matrices(architecture)}
        weight_dtype = next(iter(types.values()))
        if set(types.values()) != {weight_dtype}:
            given = ", ".join(f"{name} is {each}" for name, each in types.items())
            raise ValueError(
                f"weights: matrices must be of one type, or weight_dtype must say which: {given}"
            )
    if checked_weight_dtype(weight_dtype) != "float32":
        return MappingProxyType({**weights, **narrowed(weights, architecture, weight_dtype)})
    return MappingProxyType(
        {
            name: frozen(each.widened(dtype)) if isinstance(each, Narrow) else each
            for name, each in weights.items()
        }
    )


def widened(weights: Stored, dtype: npt.DTypeLike = FLOAT32) -> dict[str, Array]:
    """Stored weights as arrays: narrow ones widened to a dtype, the others as they are."""
    return {
        name: each.widened(dtype) if isinstance(each, Narrow) else each
        for name, each in weights.items()
    }


def weight_dtype_of(weights: Stored) -> str:
    """The type of stored matrices."""
    return next(
        (each.weight_dtype for each in weights.values() if isinstance(each, Narrow)), "float32"
    )


def _type(weight: Array | Narrow) -> str:
    return weight.weight_dtype if isinstance(weight, Narrow) else "float32"


def saved(weights: Stored) -> dict[str, Any]:
    """Stored weights for a pickle: arrays, and (values, scales) of narrow ones."""
    return {
        name: (each.values, each.scales) if isinstance(each, Narrow) else each
        for name, each in weights.items()
    }


def restored(weights: Mapping[str, Any], weight_dtype: str) -> dict[str, Any]:
    """Stored weights from what :func:`saved` has given, of which nothing is trusted: to be checked like any others.

    Raises
    ------
    TypeError
        If it is no mapping.
    """
    if not isinstance(weights, Mapping):
        raise TypeError(
            f"weights must be a mapping from names to arrays, not {type(weights).__name__}"
        )
    return {
        name: Narrow(weight_dtype, *each)
        if weight_dtype != "float32" and type(each) is tuple and len(each) == 2
        else each
        for name, each in weights.items()
    }


def checked_narrow(name: str, matrix: Narrow) -> Narrow:
    """A matrix that somebody else has made, of private views, after everything in it has been checked.

    Raises
    ------
    ValueError, TypeError
        If it is not as :class:`Narrow` says: dtypes, shapes, scales; or a number is one that kernels do not read alike:
        NaN, Inf, a subnormal float16. The message has the name.
    """
    what, weight_dtype = f"weights: {name!r}", matrix.weight_dtype
    if not isinstance(weight_dtype, str) or weight_dtype not in ELEMENTS:
        known = ", ".join(map(repr, ELEMENTS))
        raise ValueError(f"{what}: the type of a Narrow must be {known}, got {weight_dtype!r}")
    values = check_array(what, matrix.values, ("rows", "columns"), ELEMENTS[weight_dtype])
    if weight_dtype in INTEGERS:
        scales = check_array(f"{what}: its scales", matrix.scales, values.shape[:1])
        for row in np.flatnonzero(~((scales >= SMALLEST_SCALE) & (scales <= LARGEST_SCALE)))[:1]:
            raise ValueError(
                f"{what}: its scale of row {row} must be from {SMALLEST_SCALE:.3g} to {LARGEST_SCALE:.3g}, got {scales[row]}"
            )
        return Narrow(weight_dtype, values, scales)
    if matrix.scales is not None:
        raise ValueError(f"{what}: {weight_dtype} has no scales")
    found = Narrow(weight_dtype, values)
    wide = found.widened()
    _refuse(name, wide, ~np.isfinite(wide), f"must be finite to be {weight_dtype}")
    if weight_dtype == "float16":
        magnitudes = values.view(np.uint16) & 0x7FFF
        subnormal = (magnitudes > 0) & (magnitudes < FLOAT16_NORMAL)
        _refuse(name, wide, subnormal, "is a subnormal float16, which must be 0 here")
    return found


def _narrow(name: str, matrix: Array | Narrow, weight_dtype: str) -> Narrow:
    if isinstance(matrix, Narrow):
        if matrix.weight_dtype == weight_dtype or {matrix.weight_dtype, weight_dtype} == {
            *INTEGERS
        }:
            return replace(matrix, weight_dtype=weight_dtype)
        matrix = matrix.widened(np.float64)
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
    with np.errstate(under="ignore"):
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
