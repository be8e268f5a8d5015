"""What a result depends on apart from the code: the machine, its load, versions, the commit.

Nothing here names the host, the user or a path.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import datetime, timezone
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import fusedrnn as fr

__all__ = ["busy", "commit", "environment", "versions"]

_ROOT = Path(fr.__file__).parents[2]


def environment() -> dict[str, Any]:
    """The facts, JSON-able."""
    load = os.getloadavg()[0]
    info = fr.info()
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": info["cpu"],
        "isa": info["isa"],
        "isas": info["isas"],
        "caches": info["caches"],
        "cores": info["cores"],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": info["python"],
        "versions": {
            "fusedrnn": info["version"],
            **versions(("numpy", "numba", "llvmlite", "cffi")),
        },
        "blas": _blas(),
        "build": info["build"],
        "commit": commit(),
        "load": round(load, 2),
        "busy": busy(load, info["cores"]),
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of each package, which is installed."""
    return {name: version(name) for name in packages}


def busy(load: float, cores: int) -> bool:
    """Whether other work was running: the timed thread then shares caches, memory and clock."""
    return load > max(0.5, cores / 4)


def commit() -> dict[str, Any]:
    """The commit of the checkout that fusedrnn is imported from or was built in, if there is one."""
    if not ((_ROOT / ".git").exists() and (_ROOT / "csrc" / "api.h").is_file()):
        return _built_commit()
    try:
        return {
            "id": _git("rev-parse", "HEAD"),
            "time": _git("show", "-s", "--format=%cI", "HEAD"),
            "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.CalledProcessError):
        return {}


def _built_commit() -> dict[str, Any]:
    """What CMakeLists.txt noted: the commit, its time, and perhaps "dirty"; nothing outside git."""
    note = files("fusedrnn") / "_commit.txt"
    words = note.read_text(encoding="ascii").split() if note.is_file() else []
    return {"id": words[0], "time": words[1], "dirty": "dirty" in words} if words else {}


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_ROOT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _blas() -> list[dict[str, Any]]:
    """NumPy's BLAS, without the path that it was loaded from."""
    from threadpoolctl import threadpool_info

    wanted = ("internal_api", "version", "architecture", "threading_layer", "num_threads")
    return [
        {name: library[name] for name in wanted if name in library}
        for library in threadpool_info()
        if library["user_api"] == "blas"
    ]
