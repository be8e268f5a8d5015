"""The Numba kernels, compiled on first use: ``build(name, isa).address`` is an ``fr_kernel`` or ``fr_back_kernel``.

The address is bound as ``fr_panels.kernel`` or ``back_kernel`` and called in C, as a C kernel is: layers, directions,
streams, the flushing of denormals and the cost of a call are the same for both.
Importing this module neither imports Numba nor compiles.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from fusedrnn.cells import CELLS
from fusedrnn.errors import MissingExtraError, UnsupportedError

if TYPE_CHECKING:
    from fusedrnn.kernels.simd import InstructionSet

__all__ = ["ACTIVATIONS", "ROLES", "CompiledKernel", "Role", "activation", "build", "lanes"]

ACTIVATIONS = ("sigmoid", "full_sigmoid", "tanh")

Role = Literal["forward", "backward"]
#: What a kernel of a role reads and writes, and what the name of its module ends with.
ROLES: dict[Role, tuple[str, str]] = {
    "forward": ("fr_span", ""),
    "backward": ("fr_back_span", "_back"),
}

#: What forward kernels are compiled for, by the types of weights: each is a kernel of its own, compiled where it is asked for.
WEIGHTS = {
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "int8": "int8",
    "w8a7": "int8",  # the panels say how many bits x and h have
}


@dataclass(frozen=True)
class CompiledKernel:
    """A C function made by Numba. It lives as long as this object.

    Attributes
    ----------
    name
        :attr:`fusedrnn.cells.Cell.kernel`, or the activation.
    kind
        One of :data:`ROLES`, or "activation".
    isa
        The instruction set whose vocabulary it is written in.
    weights
        The type of weights that it reads.
    address
        Where the function is.
    cached
        Whether it was taken from the cache on disk instead of compiled.
    """

    name: str
    kind: str
    isa: str
    weights: str
    address: int
    cached: bool
    owner: Any = field(repr=False)


_ROWS = {row.kernel: row for rows in CELLS.values() for row in rows}
_built: dict[tuple[str, str, str, str], CompiledKernel] = {}
_lock = threading.RLock()

# A fork waits until nobody compiles. The thread that does would not be there in the child, and this lock, Numba's, and
# what LLVM keeps for itself would stay as it left them: renewing the locks alone leaves children that hang.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )


def build(
    name: str, isa: str, role: Role = "forward", weight_dtype: str = "float32"
) -> CompiledKernel:
    """The kernel of a row of the cell table, for an instruction set that this CPU has.

    The first call compiles, in seconds, or reads the cache; every call returns the same object.

    Parameters
    ----------
    name
        A :attr:`fusedrnn.cells.Cell.kernel`. The kernels of all forms of a cell are in the module of the
        cell's name, the backward ones in that of the name and ``_back``; only the one that is asked for is compiled.
    isa
        A name of ``fr_isa_name`` that runs here: the panels must be packed for its lanes.
    role
        One of :data:`ROLES`.
    weight_dtype
        The type of the weights, of :data:`fusedrnn.narrowing.WEIGHT_DTYPES`. The panels of the backward pass are
        "float32".

    Raises
    ------
    ValueError
        If there is no such kernel, instruction set, role or type of weights.
    MissingExtraError
        If Numba is not installed.
    UnsupportedError
        If Numba is told not to compile, by ``NUMBA_DISABLE_JIT``.
    """
    if role not in ROLES:
        raise ValueError(f"role must be one of {', '.join(ROLES)}, got {role!r}")
    known = WEIGHTS if role == "forward" else ("float32",)
    if weight_dtype not in known:
        raise ValueError(
            f"weight_dtype of a {role} kernel must be one of {', '.join(known)}, got {weight_dtype!r}"
        )
    weights = WEIGHTS[weight_dtype]
    compile_ = partial(_compile_cell, role, weights)
    return _memoised(role, "kernel", tuple(_ROWS), name, isa, compile_, weights)


def activation(name: str, isa: str) -> CompiledKernel:
    """One activation alone, for tests: ``void (const float *x, float *y, int64_t n)``.

    Parameters and errors are those of :func:`build`, with a name of :data:`ACTIVATIONS`.
    """
    return _memoised("activation", "activation", ACTIVATIONS, name, isa, _compile_activation)


def lanes(isa: str) -> int:
    """L: units in a block of the panels, for an instruction set."""
    return _instruction_sets()[isa].lanes


def _instruction_sets() -> dict[str, InstructionSet]:
    try:
        import numba
    except ImportError as error:
        raise MissingExtraError("numba", "numba", "The numba backend") from error
    if numba.config.DISABLE_JIT:
        raise UnsupportedError("the numba backend cannot run with NUMBA_DISABLE_JIT set")

    from fusedrnn.kernels.simd import INSTRUCTION_SETS

    return INSTRUCTION_SETS


def _memoised(
    kind: str,
    what: str,
    names: tuple[str, ...],
    name: str,
    isa: str,
    compile_: Callable[[str, str], Any],
    weights: str = "float32",
) -> CompiledKernel:
    if name not in names:
        raise ValueError(f"{what} must be one of {', '.join(names)}, got {name!r}")
    key = kind, name, isa, weights
    kernel = _built.get(key)
    if kernel is not None:  # without the lock, behind which others may compile for seconds
        return kernel
    with _lock:
        kernel = _built.get(key)
        if kernel is None:
            known = _instruction_sets()
            if isa not in known:
                raise ValueError(f"isa must be one of {', '.join(known)}, got {isa!r}")
            compiled = compile_(name, isa)
            cached = compiled.cache_hits > 0
            kernel = CompiledKernel(name, kind, isa, weights, compiled.address, cached, compiled)
            _built[key] = kernel
    return kernel


def _compile_cell(role: Role, weights: str, name: str, isa: str) -> Any:
    from numba import types

    from fusedrnn.kernels.memory import floats, struct
    from fusedrnn.kernels.policy import compile_kernel

    span, behind = ROLES[role]
    signature = types.void(struct("fr_panels"), struct(span), types.int64, types.int64, floats)
    row = _ROWS[name]
    kernel = import_module(f"fusedrnn.kernels.{row.name}{behind}").kernel
    if role == "backward":
        return compile_kernel(kernel(isa, row.form), signature, isa)
    function = kernel(isa, row.form, weights)
    if weights != "float32":  # the cache tells kernels apart by their names
        function.__name__ += f"_{weights}"
    return compile_kernel(function, signature, isa)


def _compile_activation(name: str, isa: str) -> Any:
    from numba import types

    from fusedrnn.kernels import activations
    from fusedrnn.kernels.memory import floats
    from fusedrnn.kernels.policy import compile_kernel

    function = activations.over_array(name, isa)
    return compile_kernel(function, types.void(floats, floats, types.int64), isa)
