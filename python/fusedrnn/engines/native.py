"""The C extension: its instruction sets, and how it is handed arrays."""

from __future__ import annotations

import os
from functools import cache, lru_cache
from typing import Any

import numpy as np

from fusedrnn._native import ffi, lib
from fusedrnn.arrays import FLOAT32, Array
from fusedrnn.errors import UnsupportedError

__all__ = ["active_isa", "find_kernel", "isas", "pointer", "reads_arrays", "strided"]


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


@cache
def reads_arrays() -> bool:
    """Whether C reads this interpreter's and this NumPy's arrays rightly: see ``csrc/native.csrc.c``."""
    array = np.zeros((2, 3), FLOAT32)
    others = (
        array.astype(FLOAT32.newbyteorder()),
        array.astype(np.int32),
        array.astype(np.float64),
        array.T,
        np.zeros((2, 6), FLOAT32)[:, ::2],
        array[0],
    )
    data = ffi.from_buffer(array)
    return bool(lib.fr_reads_array(id(array), data, 2, 3)) and not any(
        lib.fr_reads_array(id(other), ffi.cast("void *", other.ctypes.data), 2, 3)
        for other in others
    )


def pointer(array: Array) -> Any:
    return ffi.from_buffer("float *", array)  # an error unless it is C-contiguous


def strided(array: Array) -> Any:
    # ndarray.ctypes costs seven times as much as a buffer, which strided arrays do not give.
    return pointer(array) if array.flags.c_contiguous else ffi.cast("float *", array.ctypes.data)


def find_kernel(backend: str, name: str, isa: str) -> Any:
    if backend == "c":
        return lib.fr_find_kernel(isas()[isa], name.encode())
    from fusedrnn.kernels.compiled import build

    return ffi.cast("fr_kernel", build(name, isa).address)
