"""How many threads compute a call: what may be asked for, and what ``"auto"`` knows."""

from __future__ import annotations

import atexit
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np

from fusedrnn._native import lib

__all__ = ["Model", "Threads", "checked_threads", "meeting_seconds"]

# Stop the pool before the interpreter shuts down.
atexit.register(lib.fr_team_stop)

Threads = int | Literal["auto"]


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


#: Steps so long are timed once: beside them meetings do not count, whatever the caches hold.
LONG_STEP_SECONDS = 1e-3

#: A team must be so much faster than one thread before it is asked: what is shared costs caches and power besides.
SHARED_GAIN = 1.25


#: What it takes to wake threads that sleep, and to have them at work: 30 to 130 microseconds.
WAKING_SECONDS = 200e-6


class Model(NamedTuple):
    """What ``threads="auto"`` knows of a batch size: how many are fastest, and what a step takes one of them."""

    threads: int
    step_seconds: float


_meetings: dict[int, float] = {}


def meeting_seconds(threads: int) -> float | None:
    """What a meeting of so many threads takes on this machine; None if it cannot be had now."""
    if threads not in _meetings:
        measured = [lib.fr_time_meetings(threads, 500) for _ in range(7)]
        if min(measured) < 0:
            return None
        _meetings[threads] = median(measured)
    return _meetings[threads]
