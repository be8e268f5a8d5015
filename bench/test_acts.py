"""Real data: a character model reads the Acts of the Apostles, which it was not trained on."""

from __future__ import annotations

from typing import Any

from fusedrnn.bench.acts import QUICK_CHARACTERS, bits_per_character, demo_benchmark
from fusedrnn.bench.peers import OWN
from fusedrnn.bench.session import rows, timed


@timed("char LSTM on Acts")
@rows(names={"beginning": True, "whole": False}, engines=OWN)
def test_acts(benchmark: Any, case: str, engine: str, pass_: int) -> None:
    this = demo_benchmark(engine, None if case == "whole" else QUICK_CHARACTERS)
    this.time_calls(benchmark)
    benchmark.extra_info["bits_per_character"] = bits_per_character(this)
