"""The modules of fusedrnn.torch: what the rest of the package knows of them, and resets."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from conftest import FAMILY, oracle
from drawn_modules import own_module

import fusedrnn as fr

torch = oracle("torch")
ft = pytest.importorskip("fusedrnn.torch", exc_type=ImportError)
nn = torch.nn

STACKS = [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False}]


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("stack", STACKS, ids=["one", "stack"])
def test_a_layer_is_made_of_a_module_with_all_its_options(name: str, stack: dict[str, Any]) -> None:
    module = own_module(name, **stack)
    layer, x = fr.from_torch(module), torch.randn(4, 2, 3)
    assert layer.architecture == module.architecture
    assert layer.batch_first == module.batch_first
    with torch.no_grad():
        np.testing.assert_array_equal(layer(x.numpy())[0], module(x)[0].numpy())


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("stack", STACKS, ids=["one", "stack"])
def test_a_module_is_counted_with_all_its_options(name: str, stack: dict[str, Any]) -> None:
    module = own_module(name, **stack)
    model = nn.Sequential()
    model.add_module("layer", module)
    model.add_module("out", nn.Linear(module.architecture.output_size, 5))
    (own, out), exact = fr.count(model).network.layers, fr.count(module.architecture)
    assert own.kind == module.architecture.cell
    assert own.macs_per_step == exact.macs_per_step
    assert own.peak_macs_per_step == exact.peak_macs_per_step
    assert (own.input_size, own.output_size) == (3, out.input_size)
    assert own.stored == sum(each.numel() for each in module.parameters())


def test_a_subclass_with_another_forward_is_not_counted() -> None:
    class Doubled(ft.GRU):  # type: ignore[misc,name-defined]
        def forward(self, x: Any, state: Any = None) -> Any:
            return super().forward(*super().forward(x, state))

    class Named(ft.GRU):  # type: ignore[misc,name-defined]
        pass

    assert fr.count(Doubled(3, 3)).network.layers[0].macs_per_step is None
    assert fr.count(Named(3, 3)).network.layers[0].macs_per_step == 54


@pytest.mark.parametrize("name", ["lstm-peephole", "gru-before", "rnn-clip", "clockwork"])
def test_conversion_leaves_modules_of_this_package_as_they_are(name: str) -> None:
    model = nn.ModuleList([own_module(name), nn.GRU(3, 4)])
    assert ft.left_alone(model) == {"1": "not converted"}
    kind = type(model[0])
    ft.convert(model)
    assert ft.left_alone(model) == {}
    assert type(model[0]) is kind
    ft.convert(own_module(name))  # no warning


# ---- resets ------------------------------------------------------------------------------------------------


def stepped(own: Any, x: Any, state: Any, resets: Any) -> tuple[Any, Any]:
    """PyTorch's module a step at a time, whose state is multiplied by 0 where it is reset."""
    outputs = []
    for step, where in zip(x, resets, strict=True):
        kept = (~where).float()[:, None]
        state = tuple(each * kept for each in state) if isinstance(state, tuple) else state * kept
        y, state = own(step[None], state)
        outputs.append(y)
    return torch.cat(outputs), state


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("first", [False, True], ids=["time_major", "batch_first"])
def test_resets_are_those_of_a_loop_that_zeroes_the_state(kind: str, first: bool) -> None:
    torch.manual_seed(6)
    own, module = (
        getattr(nn, kind)(3, 5, 2),
        getattr(ft, kind)(3, 5, 2, batch_first=first),
    )
    module.load_state_dict(own.state_dict())
    x, resets = torch.randn(9, 4, 3, requires_grad=True), torch.rand(9, 4) < 0.25
    h = torch.randn(2, 4, 5, requires_grad=True)
    state = (h, torch.randn(2, 4, 5)) if kind == "LSTM" else h

    def outputs_and_gradients(y: Any, last: Any, parameters: Any) -> list[Any]:
        last = last if isinstance(last, tuple) else (last,)
        total = (y * y).sum() + sum(each.sin().sum() for each in last)
        return [y, *last, *torch.autograd.grad(total, [x, h, *parameters])]

    expected = outputs_and_gradients(*stepped(own, x, state, resets), own.parameters())

    def found(mask: Any) -> list[Any]:
        turned = (x.transpose(0, 1), mask.T) if first else (x, mask)
        y, last = module(turned[0], state, resets=turned[1])
        y = y.transpose(0, 1) if first else y
        return outputs_and_gradients(y, last, module.parameters())

    for one, other in zip(found(resets), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)
    elsewhere = copy.deepcopy(resets)
    elsewhere[4, 2] = ~elsewhere[4, 2]
    with pytest.raises(AssertionError):  # negative control
        torch.testing.assert_close(found(elsewhere)[0], expected[0], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("resets", "error"),
    [
        (torch.zeros(9, 4), TypeError),
        (torch.zeros(4, 9, dtype=torch.bool), ValueError),
        ([[False] * 4] * 9, TypeError),
    ],
)
def test_wrong_resets_are_named(resets: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="resets"):
        ft.LSTM(3, 5)(torch.randn(9, 4, 3), resets=resets)


def test_two_directions_have_no_resets() -> None:
    module = ft.LSTM(3, 5, bidirectional=True)
    with pytest.raises(fr.UnsupportedError, match="resets"):
        module(torch.randn(9, 4, 3), resets=torch.zeros(9, 4, dtype=torch.bool))
