"""Whole sequences, alone and in batches, in one call from Python."""

from __future__ import annotations

from typing import Any

from fusedrnn.bench.measure import benchmark as made
from fusedrnn.bench.peers import FUSED, LIBRARIES
from fusedrnn.bench.session import rows, timed
from fusedrnn.bench.timing import wall


@timed("sequence")
@rows("sequence")
def test_sequence(benchmark: Any, case: str, engine: str, pass_: int) -> None:
    made(case, engine).time_calls(benchmark)


@timed("batch")
@rows("batch")
def test_batch(benchmark: Any, case: str, engine: str, pass_: int) -> None:
    made(case, engine).time_calls(benchmark)


@timed("ragged")
@rows("ragged")
def test_ragged(benchmark: Any, case: str, engine: str, pass_: int) -> None:
    made(case, engine).time_calls(benchmark)


@timed("threads", wall)
@rows("threads", engines=(*FUSED, *LIBRARIES))
def test_threads(benchmark: Any, case: str, engine: str, threads: int, pass_: int) -> None:
    made(case, engine, threads).time_calls(benchmark)
