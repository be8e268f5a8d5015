"""What arrays are accepted: none that a user gave reaches a kernel but through this check.

NumPy lets anyone change the shape, strides or dtype of an array in place, at any time: from another thread, or from
code of the user's that runs in the middle of a check. So the checks look at a view of their own, which nobody else can
reach, and it is this view that is used from then on. The memory is still the user's: whoever frees it during a call
(``x.resize(..., refcheck=False)``) breaks a promise made to NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "FLOAT32",
    "Array",
    "check_array",
    "check_is_array",
    "check_lengths",
    "check_size",
    "frozen",
]

Array = npt.NDArray[np.floating[Any]]

FLOAT32 = np.dtype(np.float32)

#: The address space of today's CPUs: below it, every offset inside a kernel fits an int64 by far.
MAX_BYTES = 2**47


def check_is_array(name: str, value: object, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """A private view of an array; what is not an array is refused, and an array whose mask would be lost."""
    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name} must be a numpy.ndarray of {dtype}, not {type(value).__name__}; "
            f"convert it with numpy.asarray(..., dtype='{dtype}')"
        )
    return np.ndarray.view(value, np.ndarray)


def check_array(
    name: str,
    value: object,
    shape: Sequence[int | str],
    dtype: np.dtype[Any] = FLOAT32,
    *,
    written: bool = False,
) -> Array:
    """Check an array that a user gave, before any kernel sees it.

    Parameters
    ----------
    name
        What the argument is called, for the message.
    value
        What was given.
    shape
        Wanted lengths of the axes; a string stands for any length and names it.
    dtype
        The only dtype accepted: nothing is converted silently.
    written
        The array will be written to: it must be writable and C-contiguous.

    Returns
    -------
    numpy.ndarray
        A private view of ``value``, or a copy where a kernel could not walk it: kernels need the last axis without
        gaps, and every element aligned.

    Raises
    ------
    TypeError
        Not an array, or another dtype or byte order.
    ValueError
        Another shape, or not writable as it must be.
    """
    array: Array = check_is_array(name, value, dtype)
    if array.dtype != dtype:
        other_order = array.dtype.kind == dtype.kind and array.dtype.itemsize == dtype.itemsize
        found = (
            f"{array.dtype.str!r} (not this machine's byte order)" if other_order else array.dtype
        )
        raise TypeError(
            f"{name} must be {dtype}, got {found}; convert it with {name}.astype('{dtype}')"
        )
    given = array.shape
    matches = len(given) == len(shape)
    for want, got in zip(shape, given):
        matches = matches and (want == got or isinstance(want, str))
    if not matches:
        wanted = "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
        raise ValueError(f"{name} must have shape {wanted}, got {given}")
    flags = array.flags
    if written:
        if not flags.writeable:
            raise ValueError(f"{name} must be writable, got a read-only array")
        if not flags.c_contiguous or not flags.aligned:
            raise ValueError(
                f"{name} must be C-contiguous and aligned, got strides {array.strides}; "
                f"write to numpy.empty({array.shape}, '{dtype}') and copy"
            )
        return array
    if flags.c_contiguous and flags.aligned:
        return array
    item = dtype.itemsize
    walkable = (
        flags.aligned
        and array.ndim > 0
        and array.strides[-1] == item
        and all(stride % item == 0 for stride in array.strides)
    )
    return array if walkable else np.array(array, order="C")


def check_size(name: str, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
    """Refuse an array of more bytes than offsets can hold."""
    size = dtype.itemsize
    for length in shape:
        size *= int(length) or 1
    if size >= MAX_BYTES:
        raise ValueError(f"{name} is too large: shape {tuple(shape)} is {size:,} bytes")


def check_lengths(lengths: object, steps: int, batch: int) -> npt.NDArray[np.int64]:
    """Lengths of sequences as an int64 array of its own, (batch,), each from 0 to steps."""
    if isinstance(lengths, np.ma.MaskedArray):
        raise TypeError("lengths must be ints, got a MaskedArray: its mask would be lost")
    try:
        array = np.array(lengths)
    except ValueError:  # lists of unequal lengths
        raise ValueError(f"lengths must have shape ({batch},), got lists inside it") from None
    if array.dtype.kind not in "iu" and (array.size or array.dtype.kind != "f"):
        raise TypeError(f"lengths must be ints, got {array.dtype}")
    if array.shape != (batch,):
        raise ValueError(f"lengths must have shape ({batch},), got {array.shape}")
    for row, length in enumerate(array.tolist()):  # of any size: before they are cast
        if not 0 <= length <= steps:
            raise ValueError(f"lengths must be from 0 to {steps}, got {length} for sequence {row}")
    return array.astype(np.int64)


def frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy over bytes, which nobody can make writable."""
    copy: npt.NDArray[Any] = np.frombuffer(array.tobytes(), array.dtype)
    return copy.reshape(array.shape)
