"""Real data: a character model reads the Acts of the Apostles, which it was not trained on."""

from __future__ import annotations

from typing import Any

from fusedrnn.bench.acts import QUICK_CHARACTERS, bits_per_character, demo_subject
from fusedrnn.bench.peers import ENGINES
from fusedrnn.bench.session import rows, timed


@timed("char LSTM on Acts")
@rows(names={"beginning": True, "whole": False}, engines=tuple(ENGINES))
def test_acts(benchmark: Any, case: str, engine: str, turn: int) -> None:
    this = demo_subject(engine, None if case == "whole" else QUICK_CHARACTERS)
    this.time_calls(benchmark, this.peer.run, this.problem.x)
    benchmark.extra_info["bits_per_character"] = bits_per_character(this)
