"""The benchmark of converted PyTorch modules."""

from __future__ import annotations

import pytest
from conftest import oracle

oracle("torch")

from fusedrnn.bench import torch_training
from fusedrnn.bench.pairs import Case
from fusedrnn.bench.torch_modules import CASES, measure, measured

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")


@pytest.mark.parametrize("case", [CASES[0], CASES[9], CASES[-2]], ids=lambda case: case.name)
def test_a_module_is_measured_in_both(case: Case) -> None:
    found = measure(case, rounds=2)
    assert min(found.theirs, found.ours, found.ratios.q1) > 0
    assert case.name in str(measured([found]))
    assert found.facts["difference"] < 1e-5


def test_negative_control_outputs_that_differ_are_not_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import click
    import torch

    from fusedrnn import torch as adapter

    real = adapter.convert

    def spoiled(module: torch.nn.Module) -> torch.nn.Module:
        with torch.no_grad():
            module.weight_hh_l0.mul_(2)  # type: ignore[operator,union-attr]
        return real(module)

    monkeypatch.setattr(adapter, "convert", spoiled)
    with pytest.raises(click.ClickException, match="differ"):
        measure(CASES[2], rounds=1)


@pytest.mark.parametrize("case", torch_training.CASES, ids=lambda case: case.name)
def test_a_training_step_is_measured_in_both(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_training, "COMPARED", 2)
    found = torch_training.measure(case, rounds=1)
    assert min(found.theirs, found.ours, found.ratios.q1) > 0
    assert case.name in str(torch_training.measured([found]))
    assert found.facts["difference"] < 1e-5


def test_negative_control_losses_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    import click
    import torch

    from fusedrnn import torch as adapter

    real = adapter.convert

    def spoiled(model: torch.nn.Module) -> torch.nn.Module:
        model.cell.weight_hh.register_hook(torch.zeros_like)  # type: ignore[operator,union-attr]
        return real(model)

    monkeypatch.setattr(adapter, "convert", spoiled)
    with pytest.raises(click.ClickException, match="losses of step 1 differ"):
        torch_training.measure(torch_training.CASES[-1], rounds=1)
