"""How long single steps take when they are called from Python: not the middle, but all of them.

Every step is timed on its own, by the clock on the wall: what the system does to the process meanwhile is part of the
answer. Reading the clock is in each time, and stands beside the result.
"""

from __future__ import annotations

import gc
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from time import perf_counter_ns
from typing import Any

import numpy as np

from fusedrnn.bench.cases import find
from fusedrnn.bench.measure import WrongResultError, check, subject
from fusedrnn.bench.peers import FUSED, Array, one_thread
from fusedrnn.errors import UnsupportedError

__all__ = [
    "HIDDEN",
    "PERCENTILES",
    "QUICK_STEPS",
    "STEPS",
    "clock_seconds",
    "distribution",
    "measure",
    "timed",
]

#: Of an LSTM with as many inputs, one sequence.
HIDDEN = (32, 128, 256)

STEPS, QUICK_STEPS = 1_000_000, 100_000
#: Other engines take longer, and make fewer: one in so many.
FEWER = 50

#: Engines take turns, so that a busy moment of the machine is not all one engine's.
TURNS = 10
WARM_UP = 200
ARRAYS = 64

PERCENTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
#: Points of the curve that a plot shows, equally far apart on its logarithmic axis.
POINTS = 120


@contextmanager
def frozen() -> Iterator[None]:
    """No garbage collection: what there is now is not looked at, and nothing is collected."""
    collecting = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()


def timed(
    step: Callable[[Array], object],
    inputs: Sequence[Array],
    steps: int,
    now: Callable[[], int] = perf_counter_ns,
) -> array[int]:
    """Nanoseconds of each of so many steps, from one input after the other."""
    taken = array("q", bytes(8 * steps))
    several = len(inputs)
    for number in range(steps):
        x = inputs[number % several]
        start = now()
        step(x)
        taken[number] = now() - start
    return taken


def clock_seconds() -> float:
    """What reading the clock takes, which is in every time."""
    return median(timed(lambda x: None, [np.zeros(1)], 10_000)) * 1e-9


def distribution(nanoseconds: Any) -> dict[str, Any]:
    """Percentiles in seconds, and of the curve its points: which share of the steps took longer than what."""
    seconds = np.asarray(nanoseconds) * 1e-9
    shares = np.geomspace(1.0, 1.0 / len(seconds), POINTS)
    values = np.percentile(seconds, 100 * (1 - shares))
    return {
        "steps": len(seconds),
        "percentiles": {
            name: float(np.percentile(seconds, percent)) for name, percent in PERCENTILES.items()
        },
        "slower": [
            [float(share), float(value)] for share, value in zip(shares, values, strict=True)
        ],
    }


def measure(
    engines: Sequence[str],
    steps: int,
    failures: dict[str, str],
    said: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """The distribution of each engine at each size.

    Parameters
    ----------
    engines
        Names of engines and libraries.
    steps
        Of fusedrnn; the others make a fiftieth of them.
    failures
        What could not be measured is added to it, and why.
    said
        Called with a line for people before each size.
    """
    found: list[dict[str, Any]] = []
    for hidden in HIDDEN:
        said(f"latency of {steps:,} steps, H = {hidden}")
        found += _at(hidden, engines, steps, failures)
    return {"clock": clock_seconds(), "rows": found}


def _at(
    hidden: int, engines: Sequence[str], steps: int, failures: dict[str, str]
) -> Iterator[dict[str, Any]]:
    case = find(f"lstm-T1-B1-X{hidden}-H{hidden}")
    random = np.random.default_rng(0)
    inputs = list(random.standard_normal((ARRAYS, 1, hidden), np.float32))
    subjects, taken = {}, {}
    for engine in engines:
        try:
            this = subject(case.id, engine)
            with this.peer.ready():
                error = check(engine, this.peer, this.problem)
        except (WrongResultError, UnsupportedError, RuntimeError, ImportError) as reason:
            failures[f"latency[{case.id}-{engine}]"] = str(reason)
            continue
        subjects[engine] = (this, error)
        taken[engine] = array("q")
    with one_thread(), frozen():
        order = deque(subjects)
        for turn in range(TURNS):
            order.rotate(-1)  # another one first
            for engine in order:
                peer = subjects[engine][0].peer
                wanted = steps if engine in FUSED else max(TURNS, steps // FEWER)
                # Shared out over the turns, the remainder among the first.
                share = wanted // TURNS + (turn < wanted % TURNS)
                with peer.ready():
                    timed(peer.step, inputs, WARM_UP)
                    taken[engine] += timed(peer.step, inputs, share)
    for engine, (this, error) in subjects.items():
        yield {
            "engine": engine,
            "hidden": hidden,
            "way": this.peer.way,
            "max_error": error,
            **distribution(taken[engine]),
        }
