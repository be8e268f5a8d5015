"""From checked weights to something that runs: the engines, one for each way of computing a layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusedrnn.architecture import Architecture
from fusedrnn.arrays import FLOAT32
from fusedrnn.engines.base import Engine
from fusedrnn.engines.compiled import Compiled
from fusedrnn.engines.numpy import Reference
from fusedrnn.engines.threads import Threads
from fusedrnn.errors import UnsupportedError
from fusedrnn.narrowing import Stored

__all__ = ["BACKENDS", "choose"]

BACKENDS = ("c", "numba", "numpy")


def choose(
    backend: str,
    architecture: Architecture,
    weights: Stored,
    dtype: np.dtype[Any],
    threads: Threads = 1,
) -> Engine:
    """The engine for a backend's name; "auto" is C, or NumPy for float64."""
    if isinstance(backend, str) and backend == "auto":
        backend = "c" if dtype == FLOAT32 else "numpy"
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise ValueError(f"backend must be 'auto' or one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "numpy":
        if threads not in (1, "auto"):
            raise UnsupportedError(
                f"threads must be 1 or 'auto' for backend 'numpy', got {threads}; NumPy's BLAS has threads of its own"
            )
        return Reference(architecture, weights, dtype)
    if dtype != FLOAT32:
        raise UnsupportedError(
            f"dtype must be float32 for backend {backend!r}, got {dtype}; float64 needs backend='numpy'"
        )
    return Compiled(architecture, weights, backend, threads)
