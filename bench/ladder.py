"""From naive to fast, a rung at a time: ``python -m fusedrnn.bench.ladder``.

One LSTM with as many inputs as units, X = H, and what a step of one sequence takes on each rung: what each idea gains
beside the one before it, in one run, the rungs in turn. ``docs/performance.md`` explains them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import fusedrnn as fr
from fusedrnn._native import ffi, lib
from fusedrnn.bench.clock import wall
from fusedrnn.bench.console import console
from fusedrnn.bench.environment import commit
from fusedrnn.bench.interleave import Quartiles, Timer, calls, interleaved
from fusedrnn.bench.measure import LARGEST_ERROR, WrongResultError
from fusedrnn.bench.peers import Array, Fused, Naive, Weights, one_thread
from fusedrnn.cli import guarded
from fusedrnn.engines.native import isas
from fusedrnn.engines.packing import aligned
from fusedrnn.errors import MissingExtraError
from fusedrnn.files import write_file

__all__ = ["RUNGS", "Rung", "climb", "main", "scalar_lstm"]

HIDDEN = (32, 128, 512)
STEPS = 256
BATCH = 16

#: What is timed, and what is new in it; the time is for one step of one sequence.
RUNGS = {
    "naive": "NumPy: one product for all gates, each gate an array",
    "fused": "one loop over units, no array of a gate; plain scalar code, compiled by Numba",
    "packed": "weights in panels, vectors of the smallest instruction set: one step at a time",
    "wide": "the same in the best instruction set of this CPU",
    "merged": "whole sequences: W x of many steps made at once",
    "blocked": f"{BATCH} sequences at once: a weight that is read serves several rows",
    "team": "the same, units or, in a small layer, rows divided between two threads",
}


@dataclass(frozen=True)
class Rung:
    """One row: seconds for one step of one sequence, and how many times as fast as the rung below and as the first."""

    hidden: int
    name: str
    isa: str | None
    seconds: Quartiles
    gain: float | None
    total: float
    error: float


def scalar_lstm() -> Callable[..., None]:
    """The LSTM as a loop over units, on canonical weights: fused, and nothing else."""
    from numba import njit

    @njit(error_model="numpy")  # type: ignore[untyped-decorator]
    def run(x: Any, W: Any, R: Any, b: Any, h: Any, c: Any, y: Any) -> None:
        H = h.size
        before = np.empty_like(h)
        for t in range(x.shape[0]):
            before[:] = h
            for unit in range(H):
                i, f, g, o = b[unit], b[H + unit], b[2 * H + unit], b[3 * H + unit]
                for k in range(x.shape[1]):
                    i += W[unit, k] * x[t, k]
                    f += W[H + unit, k] * x[t, k]
                    g += W[2 * H + unit, k] * x[t, k]
                    o += W[3 * H + unit, k] * x[t, k]
                for k in range(H):
                    i += R[unit, k] * before[k]
                    f += R[H + unit, k] * before[k]
                    g += R[2 * H + unit, k] * before[k]
                    o += R[3 * H + unit, k] * before[k]
                one = np.float32(1)
                i, f, o = (
                    one / (one + np.exp(-i)),
                    one / (one + np.exp(-f)),
                    one / (one + np.exp(-o)),
                )
                c[unit] = f * c[unit] + i * np.tanh(g)
                h[unit] = o * np.tanh(c[unit])
                y[t, unit] = h[unit]

    compiled: Callable[..., None] = run
    return compiled


@contextmanager
def isa(name: str | None) -> Iterator[None]:
    """Layers made meanwhile have this instruction set; None for the best."""
    before = os.environ.pop("FUSEDRNN_ISA", None)
    if name is not None:
        os.environ["FUSEDRNN_ISA"] = name
    try:
        yield
    finally:
        os.environ.pop("FUSEDRNN_ISA", None)
        if before is not None:
            os.environ["FUSEDRNN_ISA"] = before


def largest_error(y: Array, expected: Array) -> float:
    """The error of a rung, if it is small enough to time what made it."""
    error = float(np.max(np.abs(y - expected)))
    if not error <= LARGEST_ERROR:
        raise WrongResultError(f"a rung is wrong and was not timed: max error {error:.3g}")
    return error


def climb(hidden: int, rounds: int) -> list[Rung]:
    """Every rung, for one size."""
    weights: Weights = fr.LSTM(hidden, hidden, seed=0, backend="numpy").weights
    x = np.random.default_rng(0).standard_normal((STEPS, BATCH, hidden), np.float32)
    alone = np.ascontiguousarray(x[:, :1])
    exact = {name: array.astype(np.float64) for name, array in weights.items()}
    reference = fr.LSTM.from_weights(exact, backend="numpy", dtype="float64")
    expected, _ = reference(x.astype(np.float64))

    available = fr.info()["isas"]
    timers: dict[str, Timer] = {}
    sizes: dict[str, int] = {}
    errors: dict[str, float] = {}
    isas: dict[str, str | None] = {}

    def rung(name: str, of: str | None, y: Array, timer: Timer, steps: int) -> None:
        timers[name], sizes[name], isas[name] = timer, steps, of
        errors[name] = largest_error(y, expected[:, : y.shape[1]])

    naive = Naive(weights)
    rung("naive", None, naive.run(alone), calls(naive.run, alone, now=wall), STEPS)
    compiled = scalar_lstm()
    y = np.empty((STEPS, hidden), np.float32)
    arguments = [
        alone[:, 0],
        *(weights[name] for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0")),
    ]
    state = [np.zeros(hidden, np.float32) for _ in range(2)]
    compiled(*arguments, *state, y)
    rung("fused", None, y[:, None], calls(compiled, *arguments, *state, y, now=wall), STEPS)
    for name, of in (("packed", available[-1]), ("wide", available[0])):
        with isa(of):
            peer = Fused(weights, "c")
            made = np.stack([peer.step(row).copy() for row in alone])
            peer.stream.input[...] = alone[0]
            rung(name, of, made, kernel(peer), 1)
    with isa(None):
        for name, given, threads in (("merged", alone, 1), ("blocked", x, 1), ("team", x, 2)):
            layer = fr.LSTM.from_weights(weights, threads=threads)
            steps = STEPS * given.shape[1]
            rung(name, available[0], layer(given)[0], calls(layer, given, now=wall), steps)

    rows: list[Rung] = []
    for name, values in interleaved(timers, rounds).items():
        seconds = Quartiles.of([each / sizes[name] for each in values])
        gain = rows[-1].seconds.median / seconds.median if rows else None
        total = rows[0].seconds.median / seconds.median if rows else 1.0
        rows.append(Rung(hidden, name, isas[name], seconds, gain, total, errors[name]))
    return rows


def kernel(peer: Fused) -> Timer:
    """Steps looped in C."""

    def timer(repeats: int) -> float:
        start = wall()
        peer.run_steps(repeats)
        return wall() - start

    return timer


#: Panels of a tile in KiB: they fit L1, and L2.
TILE_KIB = (16, 512)


def tile_rates() -> dict[str, float]:
    """FLOP/s of FMAs from registers, and of the largest tile of a batch whose panels are in L1 and in L2."""
    best = next(iter(isas().values()))

    def rate(probe: bytes, kib: int) -> float:
        buffer = aligned((kib * 256,))
        buffer.fill(1)
        pointer = ffi.from_buffer("float *", buffer)
        return float(lib.fr_probe(best, probe, pointer, buffer.size, 0.1))

    return {"FMA": rate(b"fma", 1), **{f"{kib} KiB": rate(b"tile", kib) for kib in TILE_KIB}}


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m fusedrnn.bench.ladder",
        description="From naive NumPy to a team of threads: what each idea gains for an LSTM with X = H.",
    )
    parser.add_argument(
        "--hidden", type=int, nargs="+", default=HIDDEN, metavar="H", help="default: 32 128 512"
    )
    parser.add_argument("--rounds", type=int, default=25, metavar="N", help="default: 25")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE")
    args = parser.parse_args(arguments)
    if args.rounds < 1 or min(args.hidden) < 1:
        parser.error("--rounds and --hidden must be at least 1")
    try:
        import numba  # noqa: F401
        from rich.table import Table
    except ImportError as missing:
        package = str(missing.name).partition(".")[0]
        raise MissingExtraError(package, "bench", "this measurement") from missing

    from fusedrnn.report.text import duration, ratio

    with one_thread():
        found = [rung for hidden in args.hidden for rung in climb(hidden, args.rounds)]
    table = Table(box=None)
    table.add_column("H = X", justify="right")
    for name in ("rung", "instruction set"):
        table.add_column(name, no_wrap=True)
    for name in ("a step of a sequence", "q1 - q3", "gain", "over naive", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in found:
        table.add_row(
            str(row.hidden) if row.name == "naive" else "",
            row.name,
            row.isa or "",
            duration(row.seconds.median),
            f"{duration(row.seconds.q1)} - {duration(row.seconds.q3)}",
            ratio(row.gain),
            ratio(row.total),
            f"{row.error:.0e}",
        )
    facts, at = fr.info(), commit()
    out = console(width=None if sys.stdout.isatty() else 120)
    out.print(
        f"{facts['cpu']}; fusedrnn {facts['version']} at {at.get('id', 'no commit')[:12]}; {facts['build']}; "
        f"NumPy {facts['numpy']}; {args.rounds} rounds, medians, the clock on the wall",
        soft_wrap=True,
    )
    out.print(table)
    rates = tile_rates()
    shares = ", ".join(
        f"{rate / rates['FMA']:.0%} with {name} of panels"
        for name, rate in rates.items()
        if name != "FMA"
    )
    out.print(
        f"FMA rate {rates['FMA'] / 1e9:.0f} GFLOP/s; a tile alone reaches {shares}", highlight=False
    )
    for name, said in RUNGS.items():
        out.print(f"{name:8} {said}", soft_wrap=True, highlight=False)
    if args.json:
        content = {
            "machine": facts,
            "commit": at,
            "rates": rates,
            "rows": [asdict(row) for row in found],
        }
        write_file(args.json, (json.dumps(content, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
