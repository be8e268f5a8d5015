"""How one row is measured: an engine on a case, checked against float64, then timed.

Needs the packages of the extra ``bench``.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from math import ceil, lcm
from statistics import median
from typing import Any

import numpy as np

import fusedrnn as fr
from fusedrnn.arrays import FLOAT32
from fusedrnn.bench.cases import Case, find
from fusedrnn.bench.clock import clock, wall
from fusedrnn.bench.interleave import calls, interleaved
from fusedrnn.bench.peers import LIBRARIES, Array, Fused, Peer, layer, ways
from fusedrnn.weights import initialise

__all__ = [
    "Problem",
    "Subject",
    "WrongResultError",
    "check",
    "computes_here",
    "fastest",
    "forget",
    "limits",
    "pose",
    "problem",
    "subject",
]

#: The largest error of an h, which is in [-1, 1], that a timed engine may have against float64: above what rounding
#: does to the trained model over its whole text (3e-5 in C, 1.4e-5 in NumPy), far below what a wrong gate does.
LARGEST_ERROR = 1e-4

#: A step is checked over this many, each with an input of its own.
CHECKED_STEPS = 20

#: A round lasts at least this long: ten thousand times what the clock resolves.
ROUND_SECONDS = 1e-3

#: The rounds of one row in one pass over all rows fill this time: at least one, and not too many.
PASS_SECONDS = 0.015
MOST_ROUNDS = 15

#: How long several threads rest before they are timed, so that those of the engine before have gone to sleep: they
#: spin for a while, waiting for more work, and would take the cores of this one.
REST_SECONDS = 0.02


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
    cost
        What it costs, counted.
    """

    case: Case
    title: str
    weights: Mapping[str, Array]
    x: Array
    expected: Array

    @cached_property
    def cost(self) -> fr.Complexity:
        case = self.case
        if case.lengths is not None:
            return fr.count(case.architecture, lengths=case.lengths)
        return fr.count(case.architecture, steps=case.steps, batch=case.batch)

    def bound(self, isa: str | None) -> fr.Roofline | None:
        """The least time that one core of this machine could take, for as many calls as make a cycle.

        None where there is no saying: for other engines, for unequal lengths, and where there are no limits.
        """
        machine, case = limits(), self.case
        if isa is None or machine is None or case.lengths is not None:
            return None
        steps = case.steps * self.cycle
        return fr.roofline(case.architecture, machine, steps=steps, batch=case.batch, isa=isa)

    @property
    def cycle(self) -> int:
        """Calls after which a Clockwork RNN has made every step of its cycle equally often; else 1."""
        return lcm(self.cost.cycle, self.case.steps) // self.case.steps


@cache
def limits() -> fr.Machine | None:
    """The limits of this machine, which are measured the first time; None if that cannot be done."""
    try:
        return fr.this_machine()
    except fr.UnsupportedError:
        return None


def pose(case: Case, title: str, weights: Mapping[str, Array], x: Array) -> Problem:
    """A problem, with its solution."""
    exact = {name: array.astype(np.float64) for name, array in weights.items()}
    oracle = layer(case.architecture, exact, backend="numpy", dtype="float64")
    y, _ = oracle(x.astype(np.float64), lengths=case.lengths)
    return Problem(case, title, weights, x, y)


@cache
def problem(case: Case) -> Problem:
    """The problem of a case of the list: random weights, and standard normal inputs."""
    steps = CHECKED_STEPS if case.group == "step" else case.steps
    random = np.random.default_rng(1)
    x = random.standard_normal((steps, case.batch, case.input), np.float32)
    return pose(case, case.title, initialise(case.architecture, 0, FLOAT32), x)


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
    threads
        How many compute, timed by the wall; None for one, timed by its own clock.
    plan
        Repeats in a round and rounds in a pass, by what is timed: made in the first pass and the same
        in all others.
    """

    problem: Problem
    engine: str
    peer: Peer
    threads: int | None = None
    plan: dict[str, tuple[int, int]] = field(default_factory=dict)

    def time_calls(self, benchmark: Any, call: Callable[[Array], object], x: Array) -> None:
        """Check the peer, then time calls from Python, looped as often as the clock needs."""
        now = clock if self.threads is None else wall
        with self.peer.ready():
            if self.threads is not None:
                time.sleep(REST_SECONDS)
            error = self._check()
            repeats, rounds = self._plan(
                "calls", lambda times: seconds(call, x, times=times, now=now)
            )
            benchmark.extra_info.update(
                self._facts(), max_error=error, repeats=repeats, empty_loop=empty_loop(x)
            )
            benchmark.pedantic(call, (x,), rounds=rounds, iterations=repeats)

    def time_kernel(self, benchmark: Any) -> None:
        """Check the peer, then time its kernel alone: steps from the bound input, looped in C."""
        assert isinstance(self.peer, Fused)
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
        return check(_named(self.engine, self.problem), self.peer, self.problem)

    def _plan(self, what: str, round_seconds: Callable[[int], float]) -> tuple[int, int]:
        if what not in self.plan:
            self.plan[what] = plan_rounds(round_seconds, self.problem.cycle)
        return self.plan[what]

    def _facts(self) -> dict[str, Any]:
        case, cost = self.problem.case, self.problem.cost
        isa = self.peer.isa if isinstance(self.peer, Fused) else None
        # Averages per step: calls go on where the last one ended, also in the cycle of a Clockwork RNN.
        steps = cost.sequence_steps
        # It is that of one core.
        bound = self.problem.bound(isa) if self.threads in (None, 1) else None
        parts = bound.parts if bound else ()
        return {
            "case": case.id,
            "network": case.network,
            "title": self.problem.title,
            "engine": self.engine,
            "way": self.peer.way,
            "threads": self.threads,
            "isa": isa,
            "cell": case.cell,
            "T": case.steps,
            "B": case.batch,
            "X": case.input,
            "H": case.hidden,
            "lengths": case.lengths,
            "macs": float(cost.macs_per_step * steps),
            "flops": float(cost.flops_per_step * steps),
            "floor": bound and bound.seconds / self.problem.cycle,
            "bound": bound and bound.limited_by,
            "intensity": (
                sum(part.flops for part in parts) / sum(part.bytes_read for part in parts)
                if parts
                else None
            ),
        }


@cache
def subject(case_id: str, engine: str, threads: int | None = None) -> Subject:
    """The engine on that case of the list, called in the way that is fastest."""
    posed = problem(find(case_id))
    several = ways(engine, posed.case, posed.weights, threads or 1)
    peer = fastest(several, posed, clock if threads is None else wall)
    if threads is None and engine in LIBRARIES and not computes_here(peer, posed):
        raise RuntimeError(
            f"{engine} does not compute in the thread that calls it: the clock of that thread "
            "would not count its work, and it was not timed"
        )
    return Subject(posed, engine, peer, threads)


def forget() -> None:
    """Let go of all problems and engines: they hold their weights."""
    subject.cache_clear()
    problem.cache_clear()


def _named(engine: str, problem: Problem) -> str:
    return f"{engine} on {problem.case.network}, {problem.title}"


def _call(peer: Peer, problem: Problem) -> tuple[Callable[[Array], object], Array]:
    """What is timed, and on what."""
    return (peer.step, problem.x[0]) if problem.case.group == "step" else (peer.run, problem.x)


def fastest(several: Sequence[Peer], problem: Problem, now: Callable[[], float]) -> Peer:
    """Of several ways to call an engine the one that takes the least time; each must be right."""
    if len(several) == 1:
        return several[0]
    timers = {}
    for number, peer in enumerate(several):
        with peer.ready():
            check(f"{_named(peer.name, problem)} ({peer.way})", peer, problem)
        timers[str(number)] = _timer(peer, problem, now)
    rounds = 5 if problem.case.group == "step" else 3  # the ways of a step differ most
    taken = interleaved(timers, rounds, ROUND_SECONDS)
    return several[int(min(taken, key=lambda number: median(taken[number])))]


def _timer(peer: Peer, problem: Problem, now: Callable[[], float]) -> Callable[[int], float]:
    timer = calls(*_call(peer, problem), now=now)

    def ready(repeats: int) -> float:
        with peer.ready():
            return timer(repeats)

    return ready


def computes_here(peer: Peer, problem: Problem) -> bool:
    """Whether the thread that calls a peer is the one that computes: nearly all of the process's time is its own."""
    call, x = _call(peer, problem)
    shares = []
    with peer.ready():
        for _ in range(5):
            own, all_ = time.thread_time(), time.process_time()
            while time.process_time() - all_ < 2 * ROUND_SECONDS and (
                time.thread_time() - own < 2 * ROUND_SECONDS
            ):
                call(x)
            shares.append((time.thread_time() - own) / (time.process_time() - all_))
    # The best of several: what another library's threads do after their work is not this one's.
    return max(shares) > 0.9


def seconds(
    call: Callable[..., object],
    *args: object,
    times: int = 1,
    now: Callable[[], float] = clock,
) -> float:
    """For a loop of calls without garbage collection: the loop that pytest-benchmark has."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = now()
        for _ in range(times):
            call(*args)
        return now() - start
    finally:
        if collecting:
            gc.enable()


def plan_rounds(round_seconds: Callable[[int], float], multiple: int = 1) -> tuple[int, int]:
    """How many repeats make a round of :data:`ROUND_SECONDS`, and how many rounds one pass.

    Parameters
    ----------
    round_seconds
        What a round of so many repeats takes.
    multiple
        Repeats are a multiple of this.
    """
    repeats = multiple
    while (took := round_seconds(repeats)) < ROUND_SECONDS:
        # A short round is a poor guess: never more than ten times as many on the word of one.
        factor = min(10, max(2, 1.2 * ROUND_SECONDS / took))
        repeats = multiple * ceil(repeats // multiple * factor)
    return repeats, min(MOST_ROUNDS, max(1, round(PASS_SECONDS / took)))


def empty_loop(*args: object, times: int = 2_000) -> float:
    """Seconds for one turn of the timing loop around a Python function that does nothing."""

    def nothing(*_: object) -> None:
        pass

    return median(seconds(nothing, *args, times=times) / times for _ in range(5))
