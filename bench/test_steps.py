"""One time step: the kernel alone, in a loop in C, and as it is called from Python."""

from __future__ import annotations

from typing import Any

from fusedrnn.bench.measure import subject
from fusedrnn.bench.peers import FUSED
from fusedrnn.bench.session import rows, timed


@timed("step, kernel alone")
@rows("step", engines=FUSED)
def test_step_kernel(benchmark: Any, case: str, engine: str, turn: int) -> None:
    subject(case, engine).time_kernel(benchmark)


@timed("step from Python")
@rows("step")
def test_step_from_python(benchmark: Any, case: str, engine: str, turn: int) -> None:
    this = subject(case, engine)
    this.time_calls(benchmark, this.peer.step, this.problem.x[0])
