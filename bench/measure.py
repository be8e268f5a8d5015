"""How one row is measured: an engine on a case, checked against float64, then timed.

Needs the packages of the extra ``bench``.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from math import ceil
from statistics import median
from typing import Any

import numpy as np

import fusedrnn as fr
from fusedrnn.bench.cases import Case, find
from fusedrnn.bench.clock import clock
from fusedrnn.bench.peers import Array, FusedLSTM, NaiveLSTM, Peer, make

__all__ = ["Problem", "Subject", "WrongResultError", "check", "pose", "problem", "subject"]

#: The largest error of an h, which is in [-1, 1], that a timed engine may have against float64: above what rounding
#: does to the trained model over its whole text (3e-5 in C, 1.4e-5 in NumPy), far below what a wrong gate does.
LARGEST_ERROR = 1e-4

#: A step is checked over this many, each with an input of its own.
CHECKED_STEPS = 20

#: A round lasts at least this long: ten thousand times what the clock resolves.
ROUND_SECONDS = 1e-3

#: The rounds of one row in one pass over all rows fill this time: at least one, and not too many.
PASS_SECONDS = 0.03
MOST_ROUNDS = 15


class WrongResultError(AssertionError):
    """An engine does not compute what the specification says; it is not timed."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A case with numbers: the weights, the inputs, and what is to come out.

    Attributes
    ----------
    x
        (T, B, X); for a step, one input for each step of the check.
    expected
        What the specification makes of x in float64, from a state of zeros.
    """

    case: Case
    title: str
    weights: Mapping[str, Array]
    x: Array
    expected: Array


def pose(case: Case, title: str, weights: Mapping[str, Array], x: Array) -> Problem:
    """A problem, with its solution."""
    exact = {name: array.astype(np.float64) for name, array in weights.items()}
    layer = fr.LSTM.from_weights(exact, backend="numpy", dtype="float64")
    y, _ = layer(x.astype(np.float64))
    return Problem(case, title, weights, x, y)


@cache
def problem(case: Case) -> Problem:
    """The problem of a case of the list: random weights, and standard normal inputs."""
    steps = CHECKED_STEPS if case.group == "step" else case.steps
    random = np.random.default_rng(1)
    x = random.standard_normal((steps, case.batch, case.input), np.float32)
    return pose(case, case.title, fr.LSTM(case.input, case.hidden, seed=0).weights, x)


def check(what: str, peer: Peer, problem: Problem) -> float:
    """The largest error of a peer, run from a state of zeros.

    Raises
    ------
    WrongResultError
        If it is above :data:`LARGEST_ERROR`, or not a number.
    """
    peer.reset()
    if problem.case.group == "step":
        y = np.stack([peer.step(x).copy() for x in problem.x])
    else:
        y = peer.run(problem.x)
    error = float(np.max(np.abs(y - problem.expected)))
    if not error <= LARGEST_ERROR:
        raise WrongResultError(
            f"{what} is wrong and was not timed: max error {error:.3g} against float64, "
            f"allowed is {LARGEST_ERROR:g}"
        )
    return error


@dataclass(eq=False)
class Subject:
    """An engine on a problem, made once and kept for all passes.

    Attributes
    ----------
    plan
        Repeats in a round and rounds in a pass, by what is timed: made in the first pass and the same
        in all others.
    """

    problem: Problem
    engine: str
    peer: NaiveLSTM | FusedLSTM
    plan: dict[str, tuple[int, int]] = field(default_factory=dict)

    def time_calls(self, benchmark: Any, call: Callable[[Array], object], x: Array) -> None:
        """Check the peer, then time calls from Python, looped as often as the clock needs."""
        error = self._check()
        repeats, rounds = self._plan("calls", lambda times: seconds(call, x, times=times))
        benchmark.extra_info.update(
            self._facts(), max_error=error, repeats=repeats, empty_loop=empty_loop(x)
        )
        benchmark.pedantic(call, (x,), rounds=rounds, iterations=repeats)

    def time_kernel(self, benchmark: Any) -> None:
        """Check the peer, then time its kernel alone: steps from the bound input, looped in C."""
        assert isinstance(self.peer, FusedLSTM)
        error = self._check()
        steps = self.peer.run_steps
        repeats, rounds = self._plan("kernel", lambda times: seconds(steps, times))
        # The loop is in C, where it costs next to nothing.
        benchmark.extra_info.update(self._facts(), max_error=error, repeats=repeats, empty_loop=0.0)
        benchmark.pedantic(steps, (repeats,), rounds=rounds)
        if benchmark.stats is not None:  # None with --benchmark-disable
            # pytest-benchmark knows loops that it runs itself; this one ran inside the call.
            benchmark.stats.iterations = repeats
            data = benchmark.stats.stats.data
            data[:] = [each / repeats for each in data]

    def _check(self) -> float:
        return check(f"{self.engine} on {self.problem.title}", self.peer, self.problem)

    def _plan(self, what: str, round_seconds: Callable[[int], float]) -> tuple[int, int]:
        if what not in self.plan:
            self.plan[what] = plan_rounds(round_seconds)
        return self.plan[what]

    def _facts(self) -> dict[str, Any]:
        case = self.problem.case
        cost = fr.count(
            case.cell,
            input_size=case.input,
            hidden_size=case.hidden,
            steps=case.steps,
            batch=case.batch,
        )
        return {
            "case": case.id,
            "title": self.problem.title,
            "engine": self.engine,
            "isa": self.peer.isa if isinstance(self.peer, FusedLSTM) else None,
            "cell": case.cell,
            "T": case.steps,
            "B": case.batch,
            "X": case.input,
            "H": case.hidden,
            "macs": cost.macs,
            "flops": cost.flops,
        }


@cache
def subject(case_id: str, engine: str) -> Subject:
    """The engine on that case of the list."""
    posed = problem(find(case_id))
    return Subject(posed, engine, make(engine, posed.weights, posed.case.batch))


def seconds(call: Callable[..., object], *args: object, times: int = 1) -> float:
    """For a loop of calls without garbage collection: the loop that pytest-benchmark has."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = clock()
        for _ in range(times):
            call(*args)
        return clock() - start
    finally:
        if collecting:
            gc.enable()


def plan_rounds(round_seconds: Callable[[int], float]) -> tuple[int, int]:
    """How many repeats make a round of :data:`ROUND_SECONDS`, and how many rounds one pass.

    Parameters
    ----------
    round_seconds
        What a round of so many repeats takes.
    """
    repeats = 1
    while (took := round_seconds(repeats)) < ROUND_SECONDS:
        # A short round is a poor guess: never more than ten times as many on the word of one.
        repeats = ceil(repeats * min(10, max(2, 1.2 * ROUND_SECONDS / took)))
    return repeats, min(MOST_ROUNDS, max(1, round(PASS_SECONDS / took)))


def empty_loop(*args: object, times: int = 10_000) -> float:
    """Seconds for one turn of the timing loop around a Python function that does nothing."""

    def nothing(*_: object) -> None:
        pass

    return median(seconds(nothing, *args, times=times) / times for _ in range(5))
