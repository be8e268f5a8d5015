"""What this installation is, and what this machine offers."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np

from fusedrnn._native import ffi, lib
from fusedrnn.engines import BACKENDS
from fusedrnn.engines.native import active_isa, isas
from fusedrnn.engines.threads import core_count
from fusedrnn.machine import system

__all__ = ["info"]


def info() -> dict[str, Any]:
    """What this installation is and what this machine offers: JSON-able, for bug reports and logs.

    Returns
    -------
    dict
        version, python, numpy, numba (None if absent), cpu, isa (active and available), backends, build
        (compiler and flags), caches (bytes by level, of one core), cores (that this process may use).
    """
    from fusedrnn import __version__

    numba_version = _version("numba")
    return {
        "version": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "numpy": np.__version__,
        "numba": numba_version,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": system.cpu_name(),
        "isa": active_isa(),
        "isas": list(isas()),
        "backends": [name for name in BACKENDS if name != "numba" or numba_version],
        "build": " ".join(ffi.string(lib.fr_build()).decode().split()),
        "caches": system.cache_sizes(),
        "cores": core_count(),
    }


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None
