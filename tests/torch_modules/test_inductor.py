"""Converted models, and this package's own modules, compiled by Inductor: ``nox -s inductor``."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import oracle

torch = oracle("torch")
ft = pytest.importorskip("fusedrnn.torch", exc_type=ImportError)
nn = torch.nn

pytestmark = pytest.mark.skipif(
    "FUSEDRNN_INDUCTOR" not in os.environ, reason="it takes a minute: nox -s inductor"
)


@pytest.fixture(autouse=True)
def compiled_anew() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Tagger(nn.Module):
    """Embedding, a recurrent layer, element by element what Inductor fuses and computes in place, dense."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.embedding, self.layer, self.out = nn.Embedding(50, 8), layer, nn.Linear(8, 50)

    def forward(self, words: Any) -> Any:
        y = self.layer(self.embedding(words).tanh() * 2)[0]
        return self.out((y * 3).sigmoid() + y)


def losses(model: Any) -> list[float]:
    random = torch.Generator().manual_seed(7)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    found = []
    for _ in range(5):
        words = torch.randint(50, (4, 9), generator=random)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(words).flatten(0, 1), words.roll(1, 1).flatten())
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("whole", [False, True], ids=["breaks", "one_graph"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_converted_model_trains_and_infers(kind: str, whole: bool) -> None:
    torch.manual_seed(1)
    own = Tagger(getattr(nn, kind)(8, 8, batch_first=True))
    model = ft.convert(copy.deepcopy(own))
    with torch._dynamo.config.patch(allow_rnn=whole):
        compiled = torch.compile(model, fullgraph=whole)
        expected = losses(own)
        assert losses(compiled) == pytest.approx(expected, rel=1e-5)
        words = torch.arange(18).reshape(2, 9)
        with torch.no_grad():
            torch.testing.assert_close(compiled(words), own(words), rtol=1e-4, atol=1e-5)
    assert losses(own) != pytest.approx(
        expected, rel=1e-5
    )  # negative control: weights that went on


@pytest.mark.parametrize(
    "make",
    [
        lambda: ft.LSTM(8, 8, batch_first=True, peephole=True),
        lambda: ft.GRU(8, 8, batch_first=True, reset="before", tape="segments"),
        lambda: ft.ClockworkRNN(8, 8, batch_first=True, periods=(1, 2)),
    ],
    ids=["peepholes", "segments", "clockwork"],
)
def test_a_module_of_this_package_trains_in_one_graph(make: Callable[[], Any]) -> None:
    torch.manual_seed(1)
    model = Tagger(make())
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True)
    assert losses(compiled) == pytest.approx(losses(model), rel=1e-5)
