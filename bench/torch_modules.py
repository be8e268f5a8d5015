"""Your PyTorch model: modules as PyTorch runs them, and converted ones (``fusedrnn.torch.convert``).

Both are called in one process, with one thread, a round of each in turn: ``fusedrnn bench torch``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import click

from fusedrnn.bench.pairs import Case, Pair, Pairs, timed

__all__ = ["CASES", "measure", "measured"]

#: How far outputs may be apart.
TOLERANCE = 1e-4


def _layer(kind: str, units: int, steps: int, batch: int) -> tuple[Any, Any]:
    import torch

    return getattr(torch.nn, kind)(units, units), torch.randn(steps, batch, units)


def _model(steps: int, batch: int) -> tuple[Any, Any]:
    """Embedding, bidirectional GRU, LSTM with projection, dense."""
    import torch
    from torch import nn

    class Tagger(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(1000, 64)
            self.gru = nn.GRU(64, 64, bidirectional=True)
            self.lstm = nn.LSTM(128, 128, proj_size=64)
            self.out = nn.Linear(64, 20)

        def forward(self, words: Any) -> Any:
            return self.out(self.lstm(self.gru(self.embedding(words))[0])[0])

    return Tagger(), torch.arange(steps * batch).reshape(steps, batch) % 1000


def _cases() -> Iterator[Case]:
    for kind in ("LSTM", "GRU"):
        for units in (32, 128, 256):
            for steps, batch in ((1, 1), (100, 1), (100, 16)):
                yield Case(
                    f"nn.{kind}, H = X = {units}, T={steps}, B={batch}",
                    lambda k=kind, u=units, s=steps, b=batch: _layer(k, u, s, b),  # type: ignore[misc]
                )
    for batch in (1, 16):
        yield Case(
            f"embedding, two-way GRU 64, LSTM 128 with projection 64, dense, T=50, B={batch}",
            lambda b=batch: _model(50, b),  # type: ignore[misc]
        )


CASES = tuple(_cases())


def measure(case: Case, rounds: int) -> Pair:
    """Both, side by side. Their outputs must agree.

    Parameters
    ----------
    case
        What is measured.
    rounds
        How many rounds of each.
    """
    from fusedrnn.torch import convert  # says what to install, where PyTorch is missing

    import torch  # isort: skip

    torch.set_num_threads(1)
    torch.manual_seed(1)
    module, x = case.make()
    converted = convert(copy.deepcopy(module.eval()))
    with torch.inference_mode():
        one, other = (
            found[0] if isinstance(found, tuple) else found for found in (module(x), converted(x))
        )
        error = float((one - other).abs().max())
        if error > TOLERANCE:
            raise click.ClickException(f"{case.name}: outputs differ by {error:.2g}")
        return timed(case.name, module, converted, (x,), rounds, difference=error)


def measured(pairs: Iterable[Pair]) -> Pairs:
    """The pairs as one result."""
    return Pairs("Your PyTorch model", "PyTorch", "converted", tuple(pairs))
