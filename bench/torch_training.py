"""Your PyTorch model in training: whole steps of an ordinary loop, as PyTorch runs them, and with a converted model.

Both train in one process, with one thread, a round of each in turn: ``fusedrnn bench torch --training``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import click

from fusedrnn.bench.pairs import Case, Pair, Pairs, timed

__all__ = ["CASES", "measure", "measured"]

#: How many steps are compared before any is timed.
COMPARED = 20

#: How far losses may be apart, relative to PyTorch's.
TOLERANCE = 1e-4

WORDS, TAGS = 1000, 20


def _tagger(kind: str, units: int, batch: int, *, steps: int = 50, **options: Any) -> Any:
    """Embedding, one recurrent module, dense: a tag for each word of a batch; and the batch.

    Parameters
    ----------
    kind
        A class of ``torch.nn``.
    units
        H; the embedding is as wide.
    batch, steps
        B and T.
    **options
        Of the recurrent module; ``packed``: sequences from a fifth of T to T long, as a ``PackedSequence``.
    """
    import torch
    from torch import nn
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    lengths = (
        torch.linspace(steps, steps // 5, batch).long() if options.pop("packed", False) else None
    )

    class Tagger(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(WORDS, units)
            self.layer = getattr(nn, kind)(units, units, batch_first=True, **options)
            self.out = nn.Linear(units * (1 + self.layer.bidirectional), TAGS)

        def forward(self, words: Any) -> Any:
            x = self.embedding(words)
            if lengths is not None:
                x = pack_padded_sequence(x, lengths, True)
            y, _ = self.layer(x)
            if lengths is not None:
                y = pad_packed_sequence(y, True)[0]
            return self.out(y)

    words = torch.randint(WORDS, (batch, steps))
    return Tagger(), (words, words.roll(1, 1) % TAGS)


def _control(units: int, steps: int) -> Any:
    """A cell that is called step by step, as in control and reinforcement learning, and dense; and one sequence."""
    import torch
    from torch import nn

    class Policy(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.out = nn.LSTMCell(8, units), nn.Linear(units, TAGS)

        def forward(self, x: Any) -> Any:
            state, found = None, []
            for each in x:
                state = self.cell(each, state)
                found.append(state[0])
            return self.out(torch.stack(found))

    return Policy(), (torch.randn(steps, 1, 8), torch.randint(TAGS, (steps, 1)))


CASES = (
    Case("a tagger: embedding, GRU 64, dense, T=50, B=16", lambda: _tagger("GRU", 64, 16)),
    Case("a tagger: embedding, LSTM 128, dense, T=50, B=16", lambda: _tagger("LSTM", 128, 16)),
    Case(
        "characters: embedding, two LSTMs of 128, dense, T=100, B=32",
        lambda: _tagger("LSTM", 128, 32, steps=100, num_layers=2),
    ),
    Case(
        "unequal lengths: embedding, two-way LSTM 64, packed, dense, T=10 to 50, B=16",
        lambda: _tagger("LSTM", 64, 16, bidirectional=True, packed=True),
    ),
    Case(
        "few steps: embedding, LSTM 32, dense, T=5, B=1",
        lambda: _tagger("LSTM", 32, 1, steps=5),
    ),
    Case("step by step: LSTMCell 32, dense, T=20, B=1", lambda: _control(32, 20)),
)


def _training(model: Any, x: Any, wanted: Any) -> Callable[[], Any]:
    """One step of an ordinary loop, which gives the loss."""
    import torch

    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    cross_entropy = torch.nn.functional.cross_entropy

    def step() -> Any:
        optimizer.zero_grad()
        loss = cross_entropy(model(x).flatten(0, 1), wanted.flatten())
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def measure(case: Case, rounds: int) -> Pair:
    """Both, side by side. Their losses must agree.

    Parameters
    ----------
    case
        What is trained.
    rounds
        How many rounds of each.
    """
    from fusedrnn.torch import convert  # says what to install, where PyTorch is missing

    import torch  # isort: skip

    torch.set_num_threads(1)
    torch.manual_seed(1)
    model, batch = case.make()
    converted = convert(copy.deepcopy(model))
    theirs, ours = _training(model, *batch), _training(converted, *batch)
    error = 0.0
    for step in range(COMPARED):
        one, other = float(theirs()), float(ours())
        error = max(error, abs(one - other))
        if not abs(one - other) <= TOLERANCE * abs(one):
            raise click.ClickException(
                f"{case.name}: losses of step {step} differ: {one:.7g} and {other:.7g}"
            )
    return timed(case.name, theirs, ours, (), rounds, difference=error)


def measured(pairs: Iterable[Pair]) -> Pairs:
    """The pairs as one result."""
    return Pairs("Your PyTorch model in training", "PyTorch", "converted", tuple(pairs))
