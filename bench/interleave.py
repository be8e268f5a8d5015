"""Several things timed in one run, a round of each in turn, for the scripts of this package."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fusedrnn.bench.clock import clock

__all__ = ["Quartiles", "calls", "interleaved"]

#: Times so many repeats and gives the seconds they took.
Timer = Callable[[int], float]


@dataclass(frozen=True)
class Quartiles:
    """A median, and the range of the middle half around it."""

    q1: float
    median: float
    q3: float

    @classmethod
    def of(cls, values: list[float]) -> Quartiles:
        """The quartiles of these values."""
        return cls(*(float(value) for value in np.percentile(values, (25, 50, 75))))


def calls(call: Callable[..., object], *args: object, now: Callable[[], float] = clock) -> Timer:
    """A timer of calls from Python; what the loop itself costs is in the time."""

    def timer(repeats: int) -> float:
        start = now()
        for _ in range(repeats):
            call(*args)
        return now() - start

    return timer


def interleaved(
    timers: Mapping[str, Timer], rounds: int, round_seconds: float = 2e-3
) -> dict[str, list[float]]:
    """Seconds for one repeat, in every round, of every timer.

    Parameters
    ----------
    timers
        What is timed, by name. A round of each in turn, another one first each time.
    rounds
        How many.
    round_seconds
        How long a round of one timer lasts at least.
    """
    repeats = {name: _repeats(timer, round_seconds) for name, timer in timers.items()}
    names = list(timers)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            start = turn % len(names)
            for name in names[start:] + names[:start]:
                seconds[name].append(timers[name](repeats[name]) / repeats[name])
    finally:
        if collecting:
            gc.enable()
    return seconds


def _repeats(timer: Timer, round_seconds: float) -> int:
    repeats = 1
    while timer(repeats) < round_seconds:
        repeats *= 2
    return repeats
