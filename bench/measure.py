"""How one row is measured: an engine on a case, checked against float64, then timed.

Needs the packages of the extra ``bench``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from math import lcm
from statistics import median
from typing import Any, Generic, TypeVar, cast

import numpy as np

import fusedrnn as fr
from fusedrnn.arrays import FLOAT32
from fusedrnn.bench.cases import SINGLE_STEPS, TRAINING, Case, find
from fusedrnn.bench.peers import (
    LIBRARIES,
    Array,
    Fused,
    Loss,
    Peer,
    Setup,
    Trained,
    Trainer,
    gradients_of,
    layer,
    trainers,
    variants,
)
from fusedrnn.bench.timing import (
    Clock,
    Timer,
    calls,
    clock,
    empty_loop,
    interleaved,
    looped_in_c,
    no_collection,
    plan_repeats,
    wall,
)
from fusedrnn.weights import initialise

__all__ = [
    "MAX_ERROR",
    "Benchmark",
    "Problem",
    "WrongResultError",
    "benchmark",
    "check",
    "check_gradients",
    "computes_here",
    "fastest",
    "free",
    "limits",
    "make_problem",
    "problem",
]

#: The largest error of an h, which is in [-1, 1], that a timed engine may have against float64: above what rounding
#: does to the trained model over its whole text (3e-5 in C, 1.4e-5 in NumPy), far below what a wrong gate does. Of a
#: gradient it is the norm of the error by that of the gradient.
MAX_ERROR = 1e-4

#: A step is checked over this many, each with an input of its own.
CHECKED_STEPS = 20

#: A round lasts at least this long: ten thousand times what the clock resolves.
ROUND_SECONDS = 1e-3

#: The rounds of one row in one pass over all rows fill this time: at least one, and not too many.
PASS_SECONDS = 0.015
MAX_ROUNDS = 15

#: How long several threads rest before they are timed, so that those of the engine before have gone to sleep: they
#: spin for a while, waiting for more work, and would take the cores of this one.
REST_SECONDS = 0.02


#: What is measured on a problem: what runs it, or what trains on it.
Engine = TypeVar("Engine", bound="Peer | Trainer")


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
    gradients
        Where the case is trained: those of its loss, by canonical names, from the specification in float64.
    cost
        What it costs, counted: with the backward pass, where the case is trained.
    """

    case: Case
    title: str
    weights: Mapping[str, Array]
    x: Array
    expected: Array
    gradients: Mapping[str, Array] | None = None

    @cached_property
    def cost(self) -> fr.Complexity:
        case = self.case
        options: dict[str, Any] = (
            {"steps": case.steps, "batch": case.batch}
            if case.lengths is None
            else {"lengths": case.lengths}
        )
        if case.group in TRAINING:
            options |= {"backward": True, "want_x": True, "want_state": True}
        return fr.count(case.architecture, **options)

    def setup(self, threads: int = 1) -> Setup:
        """What an engine is made for."""
        return Setup(self.case, self.weights, threads)

    def roofline(self, isa: str | None) -> fr.Roofline | None:
        """The least time that one core of this machine could take, for as many calls as make a cycle.

        None where there is no saying: for other engines, for unequal lengths, and where there are no limits.
        """
        machine, case = limits(), self.case
        if isa is None or machine is None or case.lengths is not None:
            return None
        shape = {"steps": case.steps * self.cycle, "batch": case.batch}
        training = case.group in TRAINING
        return fr.roofline(
            case.architecture, machine, **shape, isa=isa, training=training, want_x=training
        )

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


def make_problem(case: Case, title: str, weights: Mapping[str, Array], x: Array) -> Problem:
    """A problem, with its solution."""
    exact = {name: array.astype(np.float64) for name, array in weights.items()}
    oracle = layer(case.architecture, exact, backend="numpy", dtype="float64")
    wide = x.astype(np.float64)
    if case.group not in TRAINING:
        return Problem(case, title, weights, x, oracle(wide, lengths=case.lengths)[0])
    y, _, tape = oracle.record(wide, None, case.lengths)
    return Problem(case, title, weights, x, y, gradients_of(tape, Loss.of(case, np.float64)))


@cache
def problem(case: Case) -> Problem:
    """The problem of a case of the list: random weights, and standard normal inputs."""
    steps = CHECKED_STEPS if case.group in SINGLE_STEPS else case.steps
    random = np.random.default_rng(1)
    x = random.standard_normal((steps, case.batch, case.input), np.float32)
    return make_problem(case, case.title, initialise(case.architecture, 0, FLOAT32), x)


def check_gradients(what: str, trainer: Trainer, problem: Problem) -> float:
    """The largest relative error of a gradient: the norm of the difference by that of the gradient in float64.

    Raises
    ------
    WrongResultError
        If it is above :data:`MAX_ERROR`, or not a number; or if there are other gradients than there should be.
    """
    assert problem.gradients is not None
    expected, found = trainer.laid_out(problem.gradients), trainer.run(problem.x)
    if set(found) != set(expected):
        differ = ", ".join(sorted(set(found) ^ set(expected)))
        raise WrongResultError(f"{what} has other gradients and was not timed: {differ}")
    errors = [
        float(np.linalg.norm(found[name] - wanted) / (np.linalg.norm(wanted) or 1))
        for name, wanted in expected.items()
    ]
    return checked(what, float(np.max(errors)))


def check(what: str, peer: Peer, problem: Problem) -> float:
    """The largest error of a peer, run from a state of zeros.

    Raises
    ------
    WrongResultError
        If it is above :data:`MAX_ERROR`, or not a number.
    """
    peer.reset()
    group = problem.case.group
    if group == "call":
        y = np.concatenate([peer.run(row[None]).copy() for row in problem.x])
    elif group in SINGLE_STEPS:
        y = np.stack([peer.step(row).copy() for row in problem.x])
    else:
        y = peer.run(problem.x)
    return checked_error(what, y, problem.expected)


def checked_error(what: str, y: Array, expected: Array) -> float:
    """The largest error of y, if it is small enough to time what made y.

    Raises
    ------
    WrongResultError
        If it is above :data:`MAX_ERROR`, or not a number.
    """
    return checked(what, float(np.max(np.abs(y - expected))))


def checked(what: str, error: float) -> float:
    """An error, if it is small enough.

    Raises
    ------
    WrongResultError
        As above.
    """
    if not error <= MAX_ERROR:
        raise WrongResultError(
            f"{what} is wrong and was not timed: max error {error:.3g} against float64, "
            f"allowed is {MAX_ERROR:g}"
        )
    return error


@dataclass(eq=False)
class Benchmark(Generic[Engine]):
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
    peer: Engine
    threads: int | None = None
    plan: dict[str, tuple[int, int]] = field(default_factory=dict)

    def time_calls(self, fixture: Any) -> None:
        """Check the peer, then time calls from Python, looped as often as the clock needs.

        Parameters
        ----------
        fixture
            pytest-benchmark's.
        """
        now = clock if self.threads is None else wall
        call, x = _call(self.peer, self.problem)
        with self.peer.ready():
            if self.threads is not None:
                time.sleep(REST_SECONDS)
            error = self._check()
            repeats, rounds = self._plan("calls", calls(call, x, now=now))
            fixture.extra_info.update(
                self._facts(), max_error=error, repeats=repeats, empty_loop=empty_loop(x)
            )
            if self.problem.gradients is not None:
                fixture.extra_info["forward"] = self._forward(now)
            fixture.pedantic(call, (x,), rounds=rounds, iterations=repeats)

    def _forward(self, now: Clock) -> float:
        """Seconds of a forward pass alone, as without training: what the backward pass is compared with."""
        timer = calls(cast(Trainer, self.peer).forward, self.problem.x, now=now)
        repeats, rounds = self._plan("forward", timer)
        with no_collection():
            return median(timer(repeats) / repeats for _ in range(rounds))

    def time_kernel(self, fixture: Any) -> None:
        """Check the peer, then time its kernel alone: steps from the bound input, looped in C."""
        assert isinstance(self.peer, Fused)
        error = self._check()
        steps = self.peer.run_steps
        repeats, rounds = self._plan("kernel", looped_in_c(steps))
        # The loop is in C, where it costs next to nothing.
        fixture.extra_info.update(self._facts(), max_error=error, repeats=repeats, empty_loop=0.0)
        fixture.pedantic(steps, (repeats,), rounds=rounds)
        if fixture.stats is not None:  # None with --benchmark-disable
            # pytest-benchmark knows loops that it runs itself; this one ran inside the call.
            fixture.stats.iterations = repeats
            data = fixture.stats.stats.data
            data[:] = [each / repeats for each in data]

    def _check(self) -> float:
        return _checked(_named(self.engine, self.problem), self.peer, self.problem)

    def _plan(self, what: str, timer: Timer) -> tuple[int, int]:
        if what not in self.plan:
            with no_collection():
                self.plan[what] = plan_rounds(timer, self.problem.cycle)
        return self.plan[what]

    def _facts(self) -> dict[str, Any]:
        case, cost = self.problem.case, self.problem.cost
        isa = self.peer.isa if isinstance(self.peer, (Fused, Trained)) else None
        # Averages per step: calls go on where the last one ended, also in the cycle of a Clockwork RNN.
        steps = cost.sequence_steps
        backward = cost.backward_executed
        # It is that of one core.
        roofline = self.problem.roofline(isa) if self.threads in (None, 1) else None
        parts = roofline.parts if roofline else ()
        return {
            "case": case.id,
            "cell": case.cell,
            "options": dict(case.options),
            "network": case.network,
            "title": self.problem.title,
            "engine": self.engine,
            "variant": self.peer.variant,
            "threads": self.threads,
            "isa": isa,
            "T": case.steps,
            "B": case.batch,
            "X": case.input,
            "H": case.hidden,
            "lengths": case.lengths,
            "macs": float(cost.macs_per_step * steps),
            "flops": float(cost.flops_per_step * steps) + (backward.flops if backward else 0),
            # Of the backward pass, and what a tape keeps of each step of a sequence.
            "backward_macs": cost.backward_macs,
            "tape": cost.tape_bytes // steps if backward else None,
            "floor": roofline and roofline.seconds / self.problem.cycle,
            "intensity": (
                sum(part.flops for part in parts) / sum(part.bytes_read for part in parts)
                if parts
                else None
            ),
        }


@cache
def benchmark(case_id: str, engine: str, threads: int | None = None) -> Benchmark[Any]:
    """The engine on that case of the list, called in the way that is fastest."""
    this = problem(find(case_id))
    setup = this.setup(threads or 1)
    several: Sequence[Peer | Trainer] = (
        variants(engine, setup) if this.gradients is None else trainers(engine, setup)
    )
    peer = fastest(several, this, clock if threads is None else wall)
    if threads is None and engine in LIBRARIES and not computes_here(peer, this):
        raise RuntimeError(
            f"{engine} does not compute in the thread that calls it: the clock of that thread "
            "would not count its work, and it was not timed"
        )
    return Benchmark(this, engine, peer, threads)


def free() -> None:
    """Free all problems and engines: they hold their weights."""
    benchmark.cache_clear()
    problem.cache_clear()


def _named(engine: str, problem: Problem) -> str:
    return f"{engine} on {problem.case.network}, {problem.title}"


def _checked(what: str, peer: Peer | Trainer, problem: Problem) -> float:
    """The largest error of what a case is about."""
    if problem.gradients is not None:
        return check_gradients(what, cast(Trainer, peer), problem)
    return check(what, cast(Peer, peer), problem)


def _call(peer: Peer | Trainer, problem: Problem) -> tuple[Callable[[Array], object], Array]:
    """What is timed, and its argument."""
    if problem.gradients is not None:
        return peer.run, problem.x
    peer = cast(Peer, peer)
    if problem.case.group == "call":
        return peer.run, problem.x[:1]
    if problem.case.group in SINGLE_STEPS:
        return peer.step, problem.x[0]
    return peer.run, problem.x


def fastest(several: Sequence[Engine], problem: Problem, now: Clock) -> Engine:
    """Of several variants of an engine the one that takes the least time; each must be right."""
    if len(several) == 1:
        return several[0]
    timers = {}
    for number, peer in enumerate(several):
        with peer.ready():
            _checked(f"{_named(peer.name, problem)} ({peer.variant})", peer, problem)
        timers[str(number)] = _timer(peer, problem, now)
    rounds = 5 if problem.case.group in SINGLE_STEPS else 3  # the variants of a step differ most
    taken = interleaved(timers, rounds, ROUND_SECONDS)
    return several[int(min(taken, key=lambda number: median(taken[number])))]


def _timer(peer: Peer | Trainer, problem: Problem, now: Clock) -> Timer:
    timer = calls(*_call(peer, problem), now=now)

    def ready(repeats: int) -> float:
        with peer.ready():
            return timer(repeats)

    return ready


def computes_here(peer: Peer | Trainer, problem: Problem) -> bool:
    """Whether the thread that calls a peer is the one that computes: nearly all of the process's time is its own."""
    call, x = _call(peer, problem)
    with peer.ready():
        # Several tries: what another library's threads do for a while after their work is not this one's.
        for _ in range(25):
            own, all_ = time.thread_time(), time.process_time()
            while time.process_time() - all_ < 2 * ROUND_SECONDS and (
                time.thread_time() - own < 2 * ROUND_SECONDS
            ):
                call(x)
            if time.thread_time() - own > 0.9 * (time.process_time() - all_):
                return True
    return False


def plan_rounds(timer: Timer, multiple: int = 1) -> tuple[int, int]:
    """How many repeats make a round of :data:`ROUND_SECONDS`, and how many rounds one pass."""
    repeats, took = plan_repeats(timer, ROUND_SECONDS, multiple)
    return repeats, min(MAX_ROUNDS, max(1, round(PASS_SECONDS / took)))
