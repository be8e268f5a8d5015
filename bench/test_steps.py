"""One time step: the kernel alone, in a loop in C, and as it is called from Python."""

from __future__ import annotations

from typing import Any

from fusedrnn.bench.measure import benchmark as made
from fusedrnn.bench.peers import FUSED
from fusedrnn.bench.session import rows, timed


@timed("step, kernel alone")
@rows("step", engines=FUSED)
def test_step_kernel(benchmark: Any, case: str, engine: str, pass_: int) -> None:
    made(case, engine).time_kernel(benchmark)


@timed("step from Python")
@rows("step")
def test_step_from_python(benchmark: Any, case: str, engine: str, pass_: int) -> None:
    made(case, engine).time_calls(benchmark)


@timed("call")
@rows("call")
def test_call(benchmark: Any, case: str, engine: str, pass_: int) -> None:
    made(case, engine).time_calls(benchmark)


@timed("streams")
@rows("streams")
def test_streams(benchmark: Any, case: str, engine: str, pass_: int) -> None:
    made(case, engine).time_calls(benchmark)
