"""The C extension: its instruction sets, and how it is handed arrays."""

from __future__ import annotations

import os
import sys
from functools import cache, lru_cache
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import module_from_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from fusedrnn import _native
from fusedrnn._native import ffi, lib
from fusedrnn.arrays import FLOAT32, Array
from fusedrnn.errors import StreamBusyError, UnsupportedError

if TYPE_CHECKING:
    from fusedrnn.kernels.compiled import Role

__all__ = [
    "active_isa",
    "address",
    "arrays",
    "find_kernel",
    "isas",
    "pointer",
    "reads_array",
    "reads_arrays",
    "strided",
]


def _load_arrays() -> Any:
    """The module of ``csrc/arrays.c``: a second one in the library that holds cffi's."""
    loader = ExtensionFileLoader("fusedrnn._arrays", _native.__file__)
    module: Any = module_from_spec(ModuleSpec(loader.name, loader, origin=loader.path))
    loader.exec_module(module)
    module.set_types(np.ndarray, StreamBusyError)
    return module


arrays = _load_arrays()


@lru_cache(maxsize=1)
def isas() -> dict[str, int]:
    """The instruction sets that this build has and this CPU runs, best first: name -> index in C."""
    found = {}
    index = 0
    while (name := lib.fr_isa_name(index)) != ffi.NULL:
        if lib.fr_isa_runs_here(index):
            found[ffi.string(name).decode()] = index
        index += 1
    return found


def active_isa() -> str:
    """The instruction set for new layers: the best there is, or the one ``FUSEDRNN_ISA`` names.

    Raises
    ------
    UnsupportedError
        If ``FUSEDRNN_ISA`` names one that this build or this CPU does not have.
    """
    asked = os.environ.get("FUSEDRNN_ISA", "")
    if not asked:
        return next(iter(isas()))
    if asked not in isas():
        raise UnsupportedError(
            f"FUSEDRNN_ISA must be one of {', '.join(isas())} on this machine, got {asked!r}"
        )
    return asked


#: Major versions of NumPy whose array struct is the one in ``csrc/arrays.c``.
KNOWN_NUMPY = ("1", "2")


@cache
def reads_arrays() -> bool:
    """Whether C may read this interpreter's and this NumPy's arrays: see ``csrc/arrays.c``.

    Elsewhere the arrays of a call are checked in Python, which takes longer and accepts the same.
    """
    if sys.implementation.name != "cpython" or np.__version__.split(".")[0] not in KNOWN_NUMPY:
        return False
    array = np.zeros((2, 3), FLOAT32)
    others = (
        array.astype(FLOAT32.newbyteorder()),
        array.astype(np.int32),
        array.astype(np.float64),
        array.T,
        np.zeros((2, 6), FLOAT32)[:, ::2],
        array[0],
    )
    return reads_array(array) and not any(map(reads_array, others))


def reads_array(array: Array) -> bool:
    """Whether C takes an array for a plain one of shape (2, 3), and finds its data."""
    return bool(arrays.reads(array, array.ctypes.data, (2, 3)))


def address(pointer: Any) -> int:
    """The address that a pointer of cffi holds, for the functions of :mod:`fusedrnn._arrays`."""
    return int(ffi.cast("uintptr_t", pointer))


def pointer(array: Array) -> Any:
    return ffi.from_buffer("float *", array)  # an error unless it is C-contiguous


def strided(array: Array) -> Any:
    # ndarray.ctypes costs seven times as much as a buffer, which strided arrays do not give.
    return pointer(array) if array.flags.c_contiguous else ffi.cast("float *", array.ctypes.data)


def find_kernel(
    backend: str, name: str, isa: str, role: Role = "forward", weight_dtype: str = "float32"
) -> Any:
    """The kernel of a row of the cell table. Numba has one for each type of weights, C has one for all."""
    find, declared = {
        "forward": (lib.fr_find_kernel, "fr_kernel"),
        "backward": (lib.fr_find_back_kernel, "fr_back_kernel"),
    }[role]
    if backend == "c":
        return find(isas()[isa], name.encode())
    from fusedrnn.kernels.compiled import build

    return ffi.cast(declared, build(name, isa, role, weight_dtype).address)
