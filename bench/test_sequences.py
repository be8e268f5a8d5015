"""Whole sequences, alone and in batches, in one call from Python."""

from __future__ import annotations

from typing import Any

from fusedrnn.bench.measure import subject
from fusedrnn.bench.session import each_engine, each_shape, timed


@timed("sequence")
@each_shape("sequence")
@each_engine()
def test_sequence(benchmark: Any, case: str, engine: str, turn: int) -> None:
    this = subject(case, engine)
    this.time_calls(benchmark, this.peer.run, this.problem.x)


@timed("batch")
@each_shape("batch")
@each_engine()
def test_batch(benchmark: Any, case: str, engine: str, turn: int) -> None:
    this = subject(case, engine)
    this.time_calls(benchmark, this.peer.run, this.problem.x)


@timed("ragged")
@each_shape("ragged")
@each_engine()
def test_ragged(benchmark: Any, case: str, engine: str, turn: int) -> None:
    this = subject(case, engine)
    this.time_calls(benchmark, this.peer.run, this.problem.x)
