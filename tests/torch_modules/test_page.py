"""The code of docs/pytorch.md runs, and does what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import oracle

import fusedrnn as fr

torch = oracle("torch")
ft = pytest.importorskip("fusedrnn.torch", exc_type=ImportError)

PAGE = Path(__file__).parents[2] / "docs" / "pytorch.md"


def test_the_code_of_the_page_runs() -> None:
    torch.manual_seed(0)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    values: dict[str, Any] = {}
    exec(blocks[0], values)  # noqa: S102 - our own page
    assert type(values["model"]) is torch.nn.GRU
    assert all(each.grad is not None for each in values["model"].parameters())

    exec(blocks[1], values)  # noqa: S102
    assert ft.left_alone(values["model"]) == {}
    assert (
        values["loss"].item() < 0.2 / 160
    )  # 1 / 160, the variance of the means, is what a head of 0 has

    exec(blocks[2], values)  # noqa: S102
    layer, lstm, x = values["layer"], values["lstm"], values["x"]
    assert isinstance(layer, fr.LSTM)
    y = layer(x.numpy(), resets=values["starts"].numpy())[0]
    assert torch.equal(torch.from_numpy(y), values["y"].detach())
    assert lstm.weight_peephole_l0.grad is not None
