"""Every option that Numba compiles a kernel with.

A kernel is called from C, with two addresses and without the interpreter: it has no arguments to
unbox, holds no GIL, and nothing in it may raise.

- ``error_model="numpy"``: no test for a zero divisor, whose exception nobody could catch.
- ``fastmath=False``: a NaN stays a NaN, and the order of a sum is part of the contract.
- ``boundscheck=False``: kernels read addresses, whatever ``NUMBA_BOUNDSCHECK`` says.
- ``debug=False``: debug information knows no vectors, whatever ``NUMBA_DEBUGINFO`` says.
- ``forceinline``: a call would pass vectors and tuples through memory.
- ``no_cpython_wrapper``, ``no_cfunc_wrapper``: what is inlined is called by kernels alone; each wrapper
  would be compiled with a copy of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core.ccallback import CFunc
from numba.core.typing.templates import Signature

from fusedrnn.kernels.cache import kernel_cache

__all__ = ["BackKernel", "Kernel", "compile_kernel", "inlined"]

#: (w, s, phase, t, z): what ``fr_kernel`` is in C.
Kernel = Callable[[Any, Any, Any, Any, Any], None]
#: (w, b, phase, t, z): what ``fr_back_kernel`` is in C.
BackKernel = Callable[[Any, Any, Any, Any, Any], None]

OPTIONS: dict[str, Any] = {
    "error_model": "numpy",
    "fastmath": False,
    "boundscheck": False,
    "debug": False,
}


def inlined(function: Callable[..., Any]) -> Any:
    """Compile a function into each kernel that calls it."""
    return njit(
        forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, _nrt=False, **OPTIONS
    )(function)


def compile_kernel(function: Callable[..., None], signature: Signature, isa: str) -> Any:
    """Compile a kernel of this package to a C function, or take it from the cache.

    Returns
    -------
    numba.core.ccallback.CFunc
        What ``numba.cfunc`` returns: an ``address``, and whether there were ``cache_hits``.
    """
    types = signature.args, signature.return_type
    compiled: Any = CFunc(function, types, locals={}, options={"nopython": True, **OPTIONS})
    compiled._cache = cache = kernel_cache(function, isa)
    with cache.turn():
        compiled.compile()
    return compiled
