"""The one place that times: clocks, loops, and several things timed in one run, a round of each in turn.

Every loop here is the plainest that there is for its kind of call: what the loop itself costs is in the time.
"""

from __future__ import annotations

import gc
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from statistics import median
from time import perf_counter, perf_counter_ns, thread_time
from typing import Any

import numpy as np

__all__ = [
    "Clock",
    "Quartiles",
    "Timer",
    "bare_calls",
    "calls",
    "calls_over",
    "clock",
    "each_call",
    "empty_loop",
    "interleaved",
    "looped_in_c",
    "no_collection",
    "plan_repeats",
    "wall",
]

Clock = Callable[[], float]

#: Makes a number of repeats and gives the seconds that all of them took.
Timer = Callable[[int], float]

#: The CPU time of the measuring thread. What is measured with one thread computes in that thread and never waits, so on
#: an idle machine this is the time on the wall. On a busy one, the time for which another program had the core, often
#: several times that of a round, is not in it. Reading this clock costs a system call: less than a thousandth of a round.
clock: Clock = thread_time

#: The time on the wall, for what computes in several threads: the work of the others is not in the time of one.
wall: Clock = perf_counter


@dataclass(frozen=True)
class Quartiles:
    """A median, and the range of the middle half around it."""

    q1: float
    median: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        """The quartiles of these values."""
        return cls(*(float(value) for value in np.percentile(values, (25, 50, 75))))


@contextmanager
def no_collection(freeze: bool = False) -> Iterator[None]:
    """No garbage collection meanwhile; with ``freeze`` the collector also forgets what there is now."""
    collecting = gc.isenabled()
    if freeze:
        gc.collect()
        gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        if freeze:
            gc.unfreeze()
        if collecting:
            gc.enable()


# ---- loops ---------------------------------------------------------------------------------------


def calls(call: Callable[..., object], *args: object, now: Clock = clock) -> Timer:
    """Calls from Python with the same arguments."""

    def timer(repeats: int) -> float:
        start = now()
        for _ in range(repeats):
            call(*args)
        return now() - start

    return timer


def bare_calls(call: Callable[[], object], now: Clock = clock) -> Timer:
    """Calls from Python without arguments."""

    def timer(repeats: int) -> float:
        start = now()
        for _ in range(repeats):
            call()
        return now() - start

    return timer


def calls_over(
    call: Callable[[Any], object], inputs: Sequence[object], now: Clock = clock
) -> Timer:
    """Calls from Python with one input after another."""

    def timer(repeats: int) -> float:
        several = (list(inputs) * ceil(repeats / len(inputs)))[:repeats]
        start = now()
        for x in several:
            call(x)
        return now() - start

    return timer


def looped_in_c(run: Callable[[int], object], now: Clock = clock) -> Timer:
    """One call that makes all repeats itself, in a loop in C, where the loop costs next to nothing."""

    def timer(repeats: int) -> float:
        start = now()
        run(repeats)
        return now() - start

    return timer


def each_call(
    call: Callable[[Any], object],
    inputs: Sequence[object],
    repeats: int,
    now: Callable[[], int] = perf_counter_ns,
) -> array[int]:
    """Nanoseconds of each of `repeats` calls, with one input after another; reading the clock is in each time."""
    taken = array("q", bytes(8 * repeats))
    several = len(inputs)
    for number in range(repeats):
        x = inputs[number % several]
        start = now()
        call(x)
        taken[number] = now() - start
    return taken


def empty_loop(*args: object, repeats: int = 2_000) -> float:
    """Seconds for one repeat of :func:`calls` of a Python function that does nothing."""

    def nothing(*_: object) -> None:
        pass

    timer = calls(nothing, *args)
    with no_collection():
        return median(timer(repeats) / repeats for _ in range(5))


# ---- rounds --------------------------------------------------------------------------------------


def plan_repeats(timer: Timer, round_seconds: float, multiple: int = 1) -> tuple[int, float]:
    """How many repeats make a round that lasts at least so long, and how long it took.

    Parameters
    ----------
    timer
        What is to be timed.
    round_seconds
        How long a round lasts at least.
    multiple
        Repeats are a multiple of this.
    """
    repeats = multiple
    while (took := timer(repeats)) < round_seconds:
        # A short round is a poor guess: never more than ten times as many on the word of one.
        factor = min(10, max(2, 1.2 * round_seconds / took if took > 0 else 10))
        repeats = multiple * ceil(repeats // multiple * factor)
    return repeats, took


def interleaved(
    timers: Mapping[str, Timer], rounds: int, round_seconds: float = 2e-3
) -> dict[str, list[float]]:
    """Seconds for one repeat, in every round, of every timer.

    Parameters
    ----------
    timers
        What is timed, by name: a round of each, and another one first in each pass.
    rounds
        How many rounds of each.
    round_seconds
        How long a round of one timer lasts at least.
    """
    repeats = {name: plan_repeats(timer, round_seconds)[0] for name, timer in timers.items()}
    names = list(timers)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with no_collection():
        for number in range(rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                seconds[name].append(timers[name](repeats[name]) / repeats[name])
    return seconds
