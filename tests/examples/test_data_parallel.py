"""The example of data-parallel training: two ranks end alike, and as one process on the joint batch."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import oracle

torch = oracle("torch")

EXAMPLES = Path(__file__).parents[2] / "examples"
STEPS = 5


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    if not torch.distributed.is_available():
        pytest.skip("this build of PyTorch has no torch.distributed")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        patch.setenv("PYTHONPATH", str(EXAMPLES))
        yield importlib.import_module("train_data_parallel")


def test_two_ranks_train_as_one_process_does(example: Any) -> None:
    (losses, parameters), (others, other_parameters) = example.run(2, STEPS)
    assert losses != others  # each had its own part of the batch
    assert list(parameters) == list(other_parameters)
    for name, each in parameters.items():
        assert torch.equal(each, other_parameters[name])

    alone = example.fresh()
    before = {name: each.clone() for name, each in alone.state_dict().items()}
    joint = example.train(alone, STEPS)
    for step, loss in enumerate(joint):
        assert loss == pytest.approx((losses[step] + others[step]) / 2, rel=1e-4)
    for name, each in alone.state_dict().items():
        # Adam divides by the root of the square of a gradient: rounding of small ones is seen.
        torch.testing.assert_close(parameters[name], each, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(before[name], each, rtol=1e-3, atol=1e-4)


def test_negative_control_a_rank_alone_ends_elsewhere(example: Any) -> None:
    alone, part = example.fresh(), example.fresh()
    example.train(alone, STEPS)
    example.train(part, STEPS, 0, 2)
    for one, other in zip(alone.parameters(), part.parameters(), strict=True):
        assert not torch.allclose(one, other, rtol=1e-3, atol=1e-4)
