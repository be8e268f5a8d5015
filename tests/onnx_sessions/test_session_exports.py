"""Models that PyTorch exports, in a session: the outputs of PyTorch, for lengths and batches of any size."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from conftest import oracle

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import fusedrnn as fr

TOLERANCE = 5e-6
#: The exporter warns of what it traces.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    torch = oracle("torch")
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    yield torch
    logging.disable(logging.NOTSET)


def tagger(torch: Any) -> tuple[Any, dict[str, dict[int, str]], Callable[[int, int], Any]]:
    """Embedding, two bidirectional GRUs, two LSTMs, dense; batches first, and states of zeros."""
    nn = torch.nn

    class Tagger(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(20, 8)
            self.gru = nn.GRU(8, 6, num_layers=2, bidirectional=True, batch_first=True)
            self.lstm = nn.LSTM(12, 7, num_layers=2, batch_first=True)
            self.dense = nn.Linear(7, 4)

        def forward(self, ids: Any) -> Any:
            y, h = self.gru(self.embedding(ids))
            y, (last, c) = self.lstm(torch.relu(y))
            return torch.softmax(self.dense(y), -1), h, last, c

    def inputs(steps: int, batch: int) -> Any:
        return (torch.randint(0, 20, (batch, steps)),)

    return Tagger(), {"ids": {0: "B", 1: "T"}}, inputs


def packed(torch: Any) -> tuple[Any, dict[str, dict[int, str]], Callable[[int, int], Any]]:
    """A bidirectional stack over sequences of lengths of their own."""
    nn = torch.nn

    class Packed(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 5, num_layers=2, bidirectional=True)

        def forward(self, x: Any, lengths: Any) -> Any:
            rows = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
            y, (h, c) = self.lstm(rows)
            return nn.utils.rnn.pad_packed_sequence(y)[0], h, c

    def inputs(steps: int, batch: int) -> Any:
        lengths = torch.tensor([steps - row % steps for row in range(batch)])
        return torch.randn(steps, batch, 3), lengths

    return Packed(), {"x": {0: "T", 1: "B"}, "lengths": {0: "B"}}, inputs


def decoder(torch: Any) -> tuple[Any, dict[str, dict[int, str]], Callable[[int, int], Any]]:
    """One step: embedding, two LSTM layers whose states go in and out, dense."""
    nn = torch.nn

    class Decoder(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(30, 16)
            self.lstm = nn.LSTM(16, 24, 2)
            self.dense = nn.Linear(24, 30)

        def forward(self, ids: Any, h: Any, c: Any) -> Any:
            y, (h, c) = self.lstm(self.embedding(ids)[None], (h, c))
            return self.dense(y[0]), h, c

    def inputs(steps: int, batch: int) -> Any:
        state = torch.randn(2, batch, 24), torch.randn(2, batch, 24)
        return torch.randint(0, 30, (batch,)), *state

    return Decoder(), {"ids": {0: "B"}, "h": {1: "B"}, "c": {1: "B"}}, inputs


@pytest.mark.parametrize(
    ("make", "nodes", "pieces"), [(tagger, 4, 2), (packed, 2, 2), (decoder, 2, 1)]
)
def test_an_exported_model_gives_what_pytorch_gives(
    torch: Any, make: Any, nodes: int, pieces: int
) -> None:
    module, axes, inputs = make(torch)
    file = io.BytesIO()
    torch.onnx.export(
        module.eval(),
        inputs(4, 2),
        file,
        dynamo=False,
        input_names=list(axes),
        dynamic_axes=axes,
        opset_version=17,
    )
    session = fr.onnx.session(onnx.load_from_string(file.getvalue()), log_severity_level=3)
    assert [node.runs_in for node in session.report.recurrent] == ["fusedrnn"] * nodes
    assert len(session.report.pieces) == pieces
    for steps, batch in ((4, 2), (1, 1), (7, 3)):
        given = inputs(steps, batch)
        feeds = {name: each.numpy() for name, each in zip(axes, given, strict=True)}
        with torch.no_grad():
            wanted = module(*given)
        for one, other in zip(session.run(None, feeds), wanted, strict=True):
            np.testing.assert_allclose(one, other.numpy(), atol=TOLERANCE)
