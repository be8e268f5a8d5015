"""What a call from Python costs above its kernel: a stream's step, and a layer called for one step.

The kernel, looped in C; an empty call from Python to C through cffi, ``fr_nothing``, which is the least that any call can
cost; and every way to step are timed in one run, a round of each in every pass, each in the plainest loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fusedrnn._native import lib
from fusedrnn.bench.cases import Case
from fusedrnn.bench.measure import check, problem
from fusedrnn.bench.peers import Fused, layer
from fusedrnn.bench.timing import (
    Quartiles,
    bare_calls,
    calls,
    calls_over,
    interleaved,
    looped_in_c,
)

__all__ = ["HIDDEN", "MAX_CALLS", "MAX_SECONDS", "Overhead", "measure"]

HIDDEN = (1, 8, 16, 32, 64)
ARRAYS = 64
QUICK_ROUNDS, ROUNDS = 15, 51

#: What a way to step is meant to cost at most above its kernel: in empty calls, or in seconds.
MAX_CALLS = {"step(x)": 5.0, "step()": 2.0}
MAX_SECONDS = {"layer(x, state)": 3e-6}


@dataclass(frozen=True)
class Overhead:
    """What ways to step cost.

    Attributes
    ----------
    engine
        "c" or "numba".
    hidden
        H, with as many inputs; one sequence.
    empty, kernel
        Seconds of an empty call, and of a step looped in C.
    seconds
        Seconds of each way to step.
    above
        The same without the kernel, pass by pass.
    calls
        What is above the kernel in empty calls, pass by pass.
    """

    engine: str
    hidden: int
    empty: float
    kernel: float
    seconds: dict[str, float]
    above: dict[str, Quartiles]
    calls: dict[str, Quartiles]


def measure(engines: Sequence[str], rounds: int) -> dict[str, Any]:
    """Every size and each of these engines, as JSON has it."""
    rows = [_at(engine, hidden, rounds) for engine in engines for hidden in HIDDEN]
    return {
        "max_calls": MAX_CALLS,
        "max_seconds": MAX_SECONDS,
        "arrays": ARRAYS,
        "rounds": rounds,
        "rows": [asdict(row) for row in rows],
    }


def _at(engine: str, hidden: int, rounds: int) -> Overhead:
    this = problem(Case("step", 1, 1, hidden, hidden))
    peer = Fused(this.setup(), engine)
    check(f"{engine}, H={hidden}", peer, this)
    called = layer(this.case.architecture, this.weights, backend=engine)
    random = np.random.default_rng(0)
    arrays = list(random.standard_normal((ARRAYS, 1, hidden), np.float32))
    x = arrays[0][None]
    _, state = called(x)
    ways = {
        "step(x)": calls_over(peer.step, arrays),
        "step()": bare_calls(peer.stream.step),
        "layer(x, state)": calls(called, x, state),
    }
    seconds = interleaved(
        {"empty": bare_calls(lib.fr_nothing), "kernel": looped_in_c(peer.run_steps), **ways},
        rounds,
    )
    middle = {name: Quartiles.of(values).median for name, values in seconds.items()}
    above = {
        name: [way - kernel for way, kernel in zip(seconds[name], seconds["kernel"], strict=True)]
        for name in ways
    }
    in_calls = {
        name: [extra / empty for extra, empty in zip(above[name], seconds["empty"], strict=True)]
        for name in ways
    }
    return Overhead(
        engine,
        hidden,
        middle["empty"],
        middle["kernel"],
        {name: middle[name] for name in ways},
        {name: Quartiles.of(values) for name, values in above.items()},
        {name: Quartiles.of(values) for name, values in in_calls.items()},
    )
