"""What this installation is, and what this machine offers."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

from fusedrnn._native import ffi, lib
from fusedrnn.engines import BACKENDS
from fusedrnn.engines.native import active_isa, isas

__all__ = ["info"]


def info() -> dict[str, Any]:
    """What this installation is and what this machine offers: JSON-able, for bug reports and logs.

    Returns
    -------
    dict
        version, python, numpy, numba (None if absent), cpu, isa (active and available), backends, build
        (compiler and flags), caches (bytes by level, of one core), threads (of a layer unless it is
        asked for more), cores (that this process may use).
    """
    from fusedrnn import __version__

    numba_version = _version("numba")
    return {
        "version": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "numpy": np.__version__,
        "numba": numba_version,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "isa": active_isa(),
        "isas": list(isas()),
        "backends": [name for name in BACKENDS if name != "numba" or numba_version],
        "build": " ".join(ffi.string(lib.fr_build()).decode().split()),
        "caches": _caches(),
        "threads": 1,
        "cores": len(os.sched_getaffinity(0)),
    }


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _caches() -> dict[str, int]:
    """Data and unified caches of CPU 0 in bytes, as Linux describes them."""
    sizes = {}
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            kind, level, size = (
                (folder / name).read_text(encoding="ascii").strip()
                for name in ("type", "level", "size")
            )
        except OSError:
            continue
        if kind != "Instruction":
            sizes[f"L{level}"] = int(size[:-1]) * units[size[-1]]
    return sizes
