"""One time step: the kernel alone, in a loop in C, and as it is called from Python."""

from __future__ import annotations

from typing import Any

from fusedrnn.bench.measure import subject
from fusedrnn.bench.session import FUSED, each_engine, each_shape, timed


@timed("step, kernel alone")
@each_shape("step")
@each_engine(*FUSED)
def test_step_kernel(benchmark: Any, case: str, engine: str, turn: int) -> None:
    subject(case, engine).time_kernel(benchmark)


@timed("step from Python")
@each_shape("step")
@each_engine()
def test_step_from_python(benchmark: Any, case: str, engine: str, turn: int) -> None:
    this = subject(case, engine)
    this.time_calls(benchmark, this.peer.step, this.problem.x[0])
