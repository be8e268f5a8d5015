"""What a step costs beyond its kernel when it is called from Python: ``python -m fusedrnn.bench.step_overhead``.

In units of an empty call from Python to C through cffi, ``fr_nothing``, which is the least that any step can
cost. The kernel, the empty call and both ways to step are timed in turn in one run, each in the plainest loop.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import fusedrnn as fr
from fusedrnn._native import lib
from fusedrnn.bench.clock import clock
from fusedrnn.bench.console import console
from fusedrnn.bench.interleave import Quartiles, Timer, interleaved
from fusedrnn.bench.peers import Fused
from fusedrnn.cli import guarded
from fusedrnn.errors import MissingExtraError
from fusedrnn.files import write_file

HIDDEN = (1, 8, 16, 32, 64)
ARRAYS = 64

#: The most that a step may cost beyond its kernel, in empty calls.
TARGETS = {"step(x)": 5.0, "step()": 2.0}


@dataclass(frozen=True)
class Overhead:
    """One row: seconds of each, and what the two ways to step add, in empty calls."""

    hidden: int
    nothing: float
    kernel: float
    seconds: dict[str, float]
    calls: dict[str, Quartiles]


def measure(hidden: int, backend: str, rounds: int) -> Overhead:
    """A stream of one sequence with as many inputs as units."""
    weights = fr.LSTM(hidden, hidden, seed=0).weights
    peer = Fused(weights, backend)
    random = np.random.default_rng(0)
    arrays = list(random.standard_normal((ARRAYS, 1, hidden), np.float32))
    seconds = interleaved(
        {
            "nothing": empty_calls,
            "kernel": kernel_steps(peer),
            "step(x)": steps_from(peer, arrays),
            "step()": bound_steps(peer),
        },
        rounds,
    )
    middle = {name: Quartiles.of(values).median for name, values in seconds.items()}
    extra = {
        name: Quartiles.of(
            [
                (step - kernel) / nothing
                for step, kernel, nothing in zip(
                    seconds[name], seconds["kernel"], seconds["nothing"], strict=True
                )
            ]
        )
        for name in TARGETS
    }
    steps = {name: middle[name] for name in TARGETS}
    return Overhead(hidden, middle["nothing"], middle["kernel"], steps, extra)


def empty_calls(repeats: int) -> float:
    """Calls of a C function that does nothing."""
    nothing = lib.fr_nothing
    start = clock()
    for _ in range(repeats):
        nothing()
    return clock() - start


def kernel_steps(peer: Fused) -> Timer:
    """Steps looped in C."""

    def timer(repeats: int) -> float:
        start = clock()
        peer.run_steps(repeats)
        return clock() - start

    return timer


def steps_from(peer: Fused, arrays: list[np.ndarray]) -> Timer:
    """Steps from one array after the other, all of them distinct."""
    step = peer.step

    def timer(repeats: int) -> float:
        xs = (arrays * -(-repeats // len(arrays)))[:repeats]
        start = clock()
        for x in xs:
            step(x)
        return clock() - start

    return timer


def bound_steps(peer: Fused) -> Timer:
    """Steps from the bound input buffer."""
    step = peer.step

    def timer(repeats: int) -> float:
        start = clock()
        for _ in range(repeats):
            step()
        return clock() - start

    return timer


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m fusedrnn.bench.step_overhead",
        description="What a step costs beyond its kernel when it is called from Python.",
    )
    parser.add_argument("--backend", choices=("c", "numba"), default="c", help="default: c")
    parser.add_argument("--rounds", type=int, default=51, metavar="N", help="default: 51")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE")
    args = parser.parse_args(arguments)
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    try:
        from rich.table import Table
    except ImportError as missing:
        raise MissingExtraError("rich", "bench", "this measurement") from missing

    from fusedrnn.report.text import duration

    table = Table(box=None)
    for name in ("H = X", "empty call", "kernel"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, target in TARGETS.items():
        for column in (name, "beyond the kernel, in calls", f"target {target:g}"):
            table.add_column(column, justify="right")
    rows = [measure(hidden, args.backend, args.rounds) for hidden in HIDDEN]
    for row in rows:
        cells = [str(row.hidden), duration(row.nothing), duration(row.kernel)]
        for name, target in TARGETS.items():
            extra = row.calls[name]
            met = "met" if extra.median <= target else "MISSED"
            beyond = f"{extra.median:.2f} ({extra.q1:.2f} - {extra.q3:.2f})"
            cells += [duration(row.seconds[name]), beyond, met]
        table.add_row(*cells)
    facts = fr.info()
    out = console(width=None if sys.stdout.isatty() else 120)
    out.print(f"{facts['cpu']}, {facts['isa']}, {facts['python']}, {args.rounds} rounds")
    out.print(table)
    out.print(f"step(x): {ARRAYS} distinct arrays in turn; step(): the bound input buffer.")
    if args.json:
        write_file(args.json, (json.dumps([asdict(row) for row in rows], indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
