"""How long single steps take when they are called from Python: not the middle, but all of them.

Every step is timed on its own, by the clock on the wall: what the system does to the process meanwhile is part of the
answer. Reading the clock is in each time, and is in the result.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import numpy as np

from fusedrnn.bench.cases import find
from fusedrnn.bench.measure import WrongResultError, benchmark, check
from fusedrnn.bench.peers import FUSED, one_thread
from fusedrnn.bench.timing import each_call, no_collection
from fusedrnn.errors import UnsupportedError

__all__ = ["HIDDEN", "PERCENTILES", "QUICK_STEPS", "STEPS", "distribution", "measure"]

#: Sizes of an LSTM with as many inputs, for one sequence.
HIDDEN = (32, 128, 256)

STEPS, QUICK_STEPS = 1_000_000, 100_000
#: Other engines take longer: fusedrnn makes this many times as many steps as they do.
FEWER = 50

#: Passes over all engines, so that a busy moment of the machine is not all one engine's.
PASSES = 10
WARM_UP = 200
ARRAYS = 64

PERCENTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
#: Points of the curve that a plot shows, equally far apart on its logarithmic axis.
POINTS = 120


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
    report: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """The distribution of each engine at each size.

    Parameters
    ----------
    engines
        Names of engines and libraries.
    steps
        How many steps fusedrnn makes; the others make a fiftieth of them.
    failures
        What could not be measured is added to it, and why.
    report
        Called with a line for people before each size.
    """
    found: list[dict[str, Any]] = []
    for hidden in HIDDEN:
        report(f"latency of {steps:,} steps, H = {hidden}")
        found += _at(hidden, engines, steps, failures)
    clock = median(each_call(lambda x: None, [None], 10_000)) * 1e-9
    return {"clock": clock, "rows": found}


def _at(
    hidden: int, engines: Sequence[str], steps: int, failures: dict[str, str]
) -> Iterator[dict[str, Any]]:
    case = find(f"lstm-T1-B1-X{hidden}-H{hidden}")
    random = np.random.default_rng(0)
    inputs = list(random.standard_normal((ARRAYS, 1, hidden), np.float32))
    made, taken = {}, {}
    for engine in engines:
        try:
            this = benchmark(case.id, engine)
            with this.peer.ready():
                error = check(engine, this.peer, this.problem)
        except (WrongResultError, UnsupportedError, RuntimeError, ImportError) as reason:
            failures[f"latency[{case.id}-{engine}]"] = str(reason)
            continue
        made[engine] = (this, error)
        taken[engine] = array("q")
    with one_thread(), no_collection(freeze=True):
        order = deque(made)
        for number in range(PASSES):
            order.rotate(-1)  # another one first
            for engine in order:
                peer = made[engine][0].peer
                wanted = steps if engine in FUSED else max(PASSES, steps // FEWER)
                # Shared out over the passes, the remainder among the first.
                share = wanted // PASSES + (number < wanted % PASSES)
                with peer.ready():
                    each_call(peer.step, inputs, WARM_UP)
                    taken[engine] += each_call(peer.step, inputs, share)
    for engine, (this, error) in made.items():
        yield {
            "engine": engine,
            "hidden": hidden,
            "variant": this.peer.variant,
            "max_error": error,
            **distribution(taken[engine]),
        }
