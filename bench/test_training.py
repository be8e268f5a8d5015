"""Forward and backward in one go: the gradients of x, of the state before and of every weight."""

from __future__ import annotations

from typing import Any

from fusedrnn.bench.measure import benchmark as made
from fusedrnn.bench.peers import FUSED, LIBRARIES, TRAINERS
from fusedrnn.bench.session import rows, timed
from fusedrnn.bench.timing import wall


@timed("training")
@rows("training", engines=TRAINERS)
def test_training(benchmark: Any, case: str, engine: str, pass_: int) -> None:
    made(case, engine).time_calls(benchmark)


@timed("ragged training")
@rows("ragged training", engines=TRAINERS)
def test_ragged_training(benchmark: Any, case: str, engine: str, pass_: int) -> None:
    made(case, engine).time_calls(benchmark)


@timed("outputs training")
@rows("outputs training", engines=TRAINERS)
def test_outputs_training(benchmark: Any, case: str, engine: str, pass_: int) -> None:
    made(case, engine).time_calls(benchmark)


@timed("training threads", wall)
@rows("training threads", engines=(*FUSED, *LIBRARIES))
def test_training_threads(benchmark: Any, case: str, engine: str, threads: int, pass_: int) -> None:
    made(case, engine, threads).time_calls(benchmark)
