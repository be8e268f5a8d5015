"""Whole sequences, alone and in batches, in one call from Python."""

from __future__ import annotations

from typing import Any

from fusedrnn.bench.clock import wall
from fusedrnn.bench.measure import subject
from fusedrnn.bench.peers import FUSED, LIBRARIES
from fusedrnn.bench.session import rows, timed


@timed("sequence")
@rows("sequence")
def test_sequence(benchmark: Any, case: str, engine: str, turn: int) -> None:
    this = subject(case, engine)
    this.time_calls(benchmark, this.peer.run, this.problem.x)


@timed("batch")
@rows("batch")
def test_batch(benchmark: Any, case: str, engine: str, turn: int) -> None:
    this = subject(case, engine)
    this.time_calls(benchmark, this.peer.run, this.problem.x)


@timed("ragged")
@rows("ragged")
def test_ragged(benchmark: Any, case: str, engine: str, turn: int) -> None:
    this = subject(case, engine)
    this.time_calls(benchmark, this.peer.run, this.problem.x)


@timed("threads", wall)
@rows(engines=(*FUSED, *LIBRARIES))
def test_threads(benchmark: Any, case: str, engine: str, threads: int, turn: int) -> None:
    this = subject(case, engine, threads)
    this.time_calls(benchmark, this.peer.run, this.problem.x)
