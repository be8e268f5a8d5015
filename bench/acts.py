"""The row with real data: the character model of ``fusedrnn demo`` reads the Acts of the Apostles."""

from __future__ import annotations

from functools import cache

from fusedrnn.bench.cases import Case
from fusedrnn.bench.measure import Benchmark, Problem, make_problem
from fusedrnn.bench.peers import Peer, make
from fusedrnn.demo import held_out_text, load_model

__all__ = ["QUICK_CHARACTERS", "bits_per_character", "demo_benchmark", "demo_problem"]

#: How much of the text ``--quick`` reads.
QUICK_CHARACTERS = 2000


@cache
def demo_problem(characters: int | None) -> Problem:
    """The model on the first `characters` characters of the text; None for all of it."""
    model = load_model()
    text = held_out_text()[:characters]
    inputs, hidden = len(model.vocabulary), model.head_weight.shape[1]
    case = Case("sequence", len(text), 1, inputs, hidden)
    title = f"char LSTM on Acts, H={hidden}, X={inputs}, T={len(text):,}"
    return make_problem(case, title, model.weights, model.one_hot(text))


@cache
def demo_benchmark(engine: str, characters: int | None) -> Benchmark[Peer]:
    """An engine on that problem."""
    problem = demo_problem(characters)
    return Benchmark(problem, engine, make(engine, problem.setup()))


def bits_per_character(benchmark: Benchmark[Peer]) -> float:
    """How badly the model guesses the next character with this engine's outputs: less is better."""
    following = held_out_text()[1 : len(benchmark.problem.x)]
    benchmark.peer.reset()
    y = benchmark.peer.run(benchmark.problem.x)[:-1]
    return load_model().bits(y, following) / len(following)
