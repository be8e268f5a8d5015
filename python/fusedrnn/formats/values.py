"""The numbers of a file as float32: what may be converted, what is said of it, and what is refused.

This module is plain Python; its functions import NumPy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fusedrnn.errors import ModelFormatError
from fusedrnn.formats.contents import Tensor

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["FLOATS", "as_float32", "conversions", "floats", "said_of_integers"]

#: The types of weights that become float32.
FLOATS = ("float16", "bfloat16", "float32", "float64")


def conversions(tensors: Iterable[Tensor]) -> tuple[str, ...]:
    """What is said of weights that become float32, each type once."""
    types = dict.fromkeys(tensor.dtype for tensor in tensors)
    return tuple(
        f"{dtype} weights, {'rounded' if dtype == 'float64' else 'widened'} to float32"
        for dtype in types
        if dtype != "float32"
    )


def said_of_integers(dtypes: Iterable[str], *, kept: bool) -> str:
    """What is said of weights that are integers, which became int8, or float32 where they are too many for it."""
    types = sorted(set(dtypes))
    said = f"{', '.join(types)} weights"
    if not kept:
        return f"{said}, widened to float32: less their zero points they do not all fit int8"
    return f"{said}, kept" + ("" if types == ["int8"] else " as int8")


def as_float32(array: Array, what: str) -> Array:
    """Floats as float32.

    Raises
    ------
    ModelFormatError
        If a number is outside its range; the message names ``what``.
    """
    import numpy as np

    if array.dtype == np.float32:
        return np.asarray(array, np.float32)  # in the byte order of this machine
    with np.errstate(over="ignore", under="ignore"):
        narrow = array.astype(np.float32)
    if (np.isinf(narrow) & ~np.isinf(array)).any():
        raise ModelFormatError(f"{what} has numbers that float32 cannot hold")
    return narrow


def floats(tensor: Tensor, where: str) -> Array:
    """Read a tensor as float32; ``where`` begins the message of an error."""
    return as_float32(tensor.read(), f"{where}: tensor {tensor.name!r}")
