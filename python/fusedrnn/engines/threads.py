"""How many threads compute a call: what may be asked for, the cores there are, and what ``"auto"`` chooses.

How a call is divided among threads, and what each division takes, is decided in ``csrc/schedule.c``. This module
measures what that model asks of the machine: usable cores, and the time of a barrier.
"""

from __future__ import annotations

import atexit
import os
import re
from functools import lru_cache
from math import inf
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np

from fusedrnn._native import ffi, lib

__all__ = [
    "MAX_EXIT_SECONDS",
    "WAKING_SECONDS",
    "Threads",
    "checked_threads",
    "choose_threads",
    "core_count",
    "cpu_quota",
    "usable_cores",
]

Threads = int | Literal["auto"]

#: How long the end of a process waits for a call that another thread has in the pool.
MAX_EXIT_SECONDS = 0.1

#: What it takes to wake threads that sleep, and to have them at work: 30 to 130 microseconds.
WAKING_SECONDS = 200e-6

# Stop the pool before the interpreter shuts down.
atexit.register(lib.fr_pool_stop, MAX_EXIT_SECONDS)


def checked_threads(threads: Any) -> Threads:
    """How many threads may compute, if it is such a number.

    Raises
    ------
    TypeError, ValueError
        If it is not.
    """
    if isinstance(threads, str):
        if threads != "auto":
            raise ValueError(f"threads must be a number or 'auto', got {threads!r}")
        return "auto"
    if isinstance(threads, bool) or not isinstance(threads, (int, np.integer)):
        raise TypeError(f"threads must be an int or 'auto', not {type(threads).__name__}")
    if not 1 <= threads <= lib.FR_MAX_THREADS:
        raise ValueError(f"threads must be from 1 to {lib.FR_MAX_THREADS}, got {threads}")
    return int(threads)


# ---- the cores there are ---------------------------------------------------------------------------


def core_count() -> int:
    """How many cores the affinity of this process allows."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not every system has it
        return os.cpu_count() or 1


@lru_cache(maxsize=1)
def usable_cores() -> int:
    """How many threads of this process can compute at once: its affinity, and the CPU quota of its cgroups.

    No call uses more threads than that, whatever was asked for: threads that share a core wait for each other in
    every step, which takes tens of times as long as one thread. The number is read once in a process, and again in
    a forked child; a stream keeps the number it was made with.
    """
    return max(1, min(core_count(), int(min(cpu_quota(), lib.FR_MAX_THREADS))))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=usable_cores.cache_clear)


def cpu_quota(root: Path = Path("/")) -> float:
    """The CPUs that the cgroups of this process, and those around them, allow; infinite without a limit.

    What cannot be read or understood limits nothing.
    """
    quota = inf
    for folder, top, version in _cgroup_folders(root):
        for each in (folder, *folder.parents):
            quota = min(quota, _quota_of(each, version))
            if each == top:
                break
    return quota


def _quota_of(folder: Path, version: int) -> float:
    """The limit of one cgroup: "max 100000" or "150000 100000" in version 2; two files, -1 for none, in version 1."""
    names = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    try:
        quota, period, *_ = " ".join(_text(folder / name) for name in names).split()
        share = float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):
        return inf
    return share if 0 < share < inf else inf


def _cgroup_folders(root: Path) -> list[tuple[Path, Path, int]]:
    """The cgroups that hold this process and may limit its CPU time: folder, top of their hierarchy, version."""
    try:
        memberships = _text(root / "proc/self/cgroup").splitlines()
        mounts = _text(root / "proc/self/mountinfo").splitlines()
    except OSError:
        return []
    found = []
    for mount in mounts:
        before, _, after = mount.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        is_v1 = kind[0] == "cgroup" and "cpu" in kind[2].split(",")
        if not is_v1 and kind[0] != "cgroup2":
            continue
        # The mount shows the hierarchy from `shown` on; a process in a container may be told its place in all of it.
        shown, top = _unescaped(fields[3]), root / _unescaped(fields[4]).lstrip("/")
        for membership in memberships:
            number, _, rest = membership.partition(":")
            controllers, _, path = rest.partition(":")
            if ("cpu" in controllers.split(",")) if is_v1 else (number == "0" and not controllers):
                inside = os.path.relpath(path or "/", shown) if path.startswith(shown) else path
                folder = Path(os.path.normpath(top / inside.lstrip("/")))
                if top not in (folder, *folder.parents) or not folder.is_dir():
                    folder = top
                found.append((folder, top, 1 if is_v1 else 2))
    return found


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="surrogateescape")


def _unescaped(field: str) -> str:
    """A path of mountinfo, where a space is written as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


# ---- threads="auto" --------------------------------------------------------------------------------

#: The seconds of a barrier, by the number of threads: 2, 4, 8, ... as far as they were needed.
_barriers: dict[int, float] = {}


def barrier_seconds(threads: int) -> float | None:
    """What a barrier of `threads` threads takes on this machine; None if the pool is at work for somebody else."""
    if threads not in _barriers:
        seconds = ffi.new("double[]", 7)
        if not lib.fr_time_barriers(threads, 500, len(seconds), seconds):
            return None
        _barriers[threads] = median(seconds)
    return _barriers[threads]


def choose_threads(plan: Any, steps: int, batch: int, step_seconds: float) -> int | None:
    """The number of threads for which ``fr_choose_threads`` says the least; None if it cannot be measured now.

    Barriers are measured for 2, 4, 8, ... threads, and no further than the answer may still change: a barrier of
    more threads takes no less time, so what is not measured yet is taken for as fast as the largest that is.
    """
    cores = usable_cores()
    costs = ffi.new("double[]", cores + 1)
    measured = 1
    while True:
        best = lib.fr_choose_threads(plan, steps, batch, cores, step_seconds, costs)
        if best.barrier_threads <= measured:
            return int(best.threads)
        larger = min(2 * measured, cores)
        seconds = barrier_seconds(larger)
        if seconds is None:
            return None
        seconds = max(seconds, costs[measured])
        for threads in range(measured + 1, cores + 1):
            costs[threads] = seconds
        measured = larger
