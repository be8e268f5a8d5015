"""From naive to fast, one stage after another: what each idea gains over the stage before it.

One LSTM with as many inputs as units, X = H, and what a step of one sequence takes in each stage, in one run, a round of
every stage in each pass. ``docs/performance.md`` explains them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import fusedrnn as fr
from fusedrnn._native import ffi, lib
from fusedrnn.bench.cases import Case
from fusedrnn.bench.measure import checked_error
from fusedrnn.bench.peers import Array, Fused, Naive, Setup, Weights, one_thread
from fusedrnn.bench.timing import Quartiles, Timer, calls, interleaved, looped_in_c, wall
from fusedrnn.engines.native import isas
from fusedrnn.engines.packing import aligned

__all__ = ["HIDDEN", "ROUNDS", "STAGES", "Stage", "measure", "scalar_lstm", "stages_of"]

HIDDEN = (32, 128, 512)
ROUNDS = 25
STEPS = 256
BATCH = 16

#: What is timed, and what is new in it; the time is for one step of one sequence.
STAGES = {
    "naive": "NumPy: one product for all gates, each gate an array",
    "fused": "one loop over units, no array of a gate; plain scalar code, compiled by Numba",
    "packed": "weights in panels, vectors of the smallest instruction set: one step at a time",
    "wide": "the same in the best instruction set of this CPU",
    "merged": "whole sequences: W x of many steps made at once",
    "blocked": f"{BATCH} sequences at once: a weight that is read serves several rows",
    "threads": "the same, units or, in a small layer, rows divided between two threads",
}


@dataclass(frozen=True)
class Stage:
    """One row: what a stage takes, and what it gains.

    Attributes
    ----------
    hidden
        H, with as many inputs.
    name
        A key of :data:`STAGES`.
    isa
        The instruction set of the kernel; None where the stage has none of ours.
    seconds
        Seconds of one step of one sequence.
    gain
        How many times as fast as the stage before; None for the first.
    total
        How many times as fast as the first stage.
    error
        The largest error against float64.
    """

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


def stages_of(hidden: int, rounds: int) -> list[Stage]:
    """Every stage, for one size."""
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
    instructions: dict[str, str | None] = {}

    def stage(name: str, of: str | None, y: Array, timer: Timer, steps: int) -> None:
        timers[name], sizes[name], instructions[name] = timer, steps, of
        errors[name] = checked_error(f"stage {name!r}", y, expected[:, : y.shape[1]])

    setup = Setup(Case("step", 1, 1, hidden, hidden), weights)
    naive = Naive(setup)
    stage("naive", None, naive.run(alone), calls(naive.run, alone, now=wall), STEPS)
    compiled = scalar_lstm()
    y = np.empty((STEPS, hidden), np.float32)
    arguments = [
        alone[:, 0],
        *(weights[name] for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0")),
    ]
    state = [np.zeros(hidden, np.float32) for _ in range(2)]
    compiled(*arguments, *state, y)
    stage("fused", None, y[:, None], calls(compiled, *arguments, *state, y, now=wall), STEPS)
    for name, of in (("packed", available[-1]), ("wide", available[0])):
        with isa(of):
            peer = Fused(setup, "c")
            made = np.stack([peer.step(row).copy() for row in alone])
            peer.stream.input[...] = alone[0]
            stage(name, of, made, looped_in_c(peer.run_steps, now=wall), 1)
    with isa(None):
        for name, given, threads in (("merged", alone, 1), ("blocked", x, 1), ("threads", x, 2)):
            layer = fr.LSTM.from_weights(weights, threads=threads)
            steps = STEPS * given.shape[1]
            stage(name, available[0], layer(given)[0], calls(layer, given, now=wall), steps)

    rows: list[Stage] = []
    for name, values in interleaved(timers, rounds).items():
        seconds = Quartiles.of([each / sizes[name] for each in values])
        gain = rows[-1].seconds.median / seconds.median if rows else None
        total = rows[0].seconds.median / seconds.median if rows else 1.0
        rows.append(Stage(hidden, name, instructions[name], seconds, gain, total, errors[name]))
    return rows


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


def measure(
    hidden: Sequence[int] = HIDDEN,
    rounds: int = ROUNDS,
    report: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Every stage for each size, as JSON has it.

    Parameters
    ----------
    hidden
        Sizes of the LSTM.
    rounds
        How many rounds of each stage.
    report
        Called with a line for people before each size.
    """
    rows: list[Stage] = []
    with one_thread():
        for units in hidden:
            report(f"stages of an LSTM with H = X = {units}")
            rows += stages_of(units, rounds)
    return {
        "rounds": rounds,
        "stages": STAGES,
        "rates": tile_rates(),
        "rows": [asdict(row) for row in rows],
    }
