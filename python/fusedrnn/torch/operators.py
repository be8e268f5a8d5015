"""The operators of compiled and exported graphs: ``fusedrnn::run``; with gradients ``fusedrnn::record`` and ``::gradients``."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from fusedrnn.layer import Layer
from fusedrnn.shapes import from_shapes
from fusedrnn.torch.autograd import gradients, record
from fusedrnn.torch.packing import Choices, Packed, array_of, pack

__all__ = ["called"]

#: Layers that compiled graphs have in memory.
MAX_KEPT = 32

_kept: OrderedDict[tuple[Any, ...], Packed] = OrderedDict()
_kept_lock = Lock()


def called(
    choices: Choices,
    weights: Mapping[str, Tensor],
    x: Tensor,
    given: Sequence[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    taped: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """y and the state after a call, by an operator: with gradients if it is to be taped."""
    h, second = (*given, None, None)[:2]
    operator = torch.ops.fusedrnn.record if taped else torch.ops.fusedrnn.run
    y, last, last_second = operator(
        x, h, second, lengths, resets, list(weights.values()), " ".join(weights), choices.text()
    )[:3]
    two = choices.cell in ("lstm", "clockwork")
    return y, (last, last_second) if two else (last,)


def _layer(names: str, weights: Sequence[Tensor], choices: str) -> Layer[Any]:
    """The fused layer of a call, packed again if its weights have changed."""
    # The packed weights are held, so no other tensor can be at their addresses.
    key = (choices, names, *(weight.data_ptr() for weight in weights))
    with _kept_lock:
        packed = _kept.get(key)
        if packed is not None and packed.watched.same(packed.watched.tensors):
            named = packed.watched.tensors
        else:
            named = dict(zip(names.split(), weights, strict=True))
        packed = _kept[key] = pack(Choices.of(choices), named, packed)
        _kept.move_to_end(key)
        while len(_kept) > MAX_KEPT:
            _kept.popitem(last=False)
        return packed.layer


def _state(h: Tensor | None, second: Tensor | None) -> tuple[Tensor, ...]:
    return tuple(each for each in (h, second) if each is not None)


def _array(tensor: Tensor | None) -> Any:
    return None if tensor is None else array_of(tensor)


@torch.library.custom_op("fusedrnn::run", mutates_args=())
def _run(
    x: Tensor,
    h: Tensor | None,
    second: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    weights: list[Tensor],
    names: str,
    choices: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last h, and the last c or counter (empty for a cell without one), each in memory of its own."""
    state = tuple(map(array_of, _state(h, second))) or None
    y, after = _layer(names, weights, choices)(
        array_of(x), state, _array(lengths), resets=_array(resets)
    )
    last = [torch.from_numpy(array) for array in after]
    return torch.from_numpy(y), last[0], last[1] if len(last) > 1 else x.new_empty(0)


@torch.library.custom_op("fusedrnn::record", mutates_args=())
def _record(
    x: Tensor,
    h: Tensor | None,
    second: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    weights: list[Tensor],
    names: str,
    choices: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As ``run``, and the token of the tape."""
    layer = _layer(names, weights, choices)
    y, after, token = record(
        layer, x, _state(h, second), _array(lengths), _array(resets), Choices.of(choices).tape
    )
    return y, after[0], after[1] if len(after) > 1 else x.new_empty(0), token


@torch.library.custom_op("fusedrnn::gradients", mutates_args=())
def _gradients(
    token: Tensor,
    y: Tensor,
    dy: Tensor | None,
    dh: Tensor | None,
    dsecond: Tensor | None,
    x: Tensor,
    h: Tensor | None,
    second: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    weights: list[Tensor],
    names: str,
    choices: str,
) -> list[Tensor]:
    """The gradients of x, of the state if one was given (empty of a counter), and of the weights.

    The tape reads y: a graph that has y among the operator's inputs does not use its memory for anything else before.
    """
    layer, state = _layer(names, weights, choices), _state(h, second)
    dstate = [dh, dsecond][: len(layer.state_type._fields)]
    found = gradients(
        token,
        layer,
        x,
        state,
        _array(lengths),
        _array(resets),
        Choices.of(choices).tape,
        dy,
        dstate,
        want_x=True,
    )
    arrays = (found.x, *(found.state if state else ()), *found.weights.values())
    return [x.new_empty(0) if array is None else torch.from_numpy(array) for array in arrays]


def _fake(
    x: Tensor,
    h: Tensor | None,
    second: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    weights: list[Tensor],
    names: str,
    choices: str,
) -> tuple[Tensor, Tensor, Tensor]:
    cell, options, batch_first, *_ = Choices.of(choices)
    shapes = {
        name: tuple(map(int, each.shape)) for name, each in zip(names.split(), weights, strict=True)
    }
    a = from_shapes(cell, shapes, json.loads(options))
    batch = () if x.dim() == 2 else (x.shape[0 if batch_first else 1],)
    rows = a.num_layers * a.directions
    y, last = x.new_empty((*x.shape[:-1], a.output_size)), x.new_empty((rows, *batch, a.fed_back))
    if cell == "clockwork":
        return y, last, x.new_empty((rows, *batch), dtype=torch.int64)
    return y, last, x.new_empty((rows, *batch, a.hidden_size) if cell == "lstm" else 0)


@_run.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _fake(*arguments)


@_record.register_fake
def _(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (*_fake(x, *arguments), x.new_empty(1, dtype=torch.int64))


@_gradients.register_fake
def _(
    token: Tensor,
    y: Tensor,
    dy: Tensor | None,
    dh: Tensor | None,
    dsecond: Tensor | None,
    x: Tensor,
    h: Tensor | None,
    second: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    weights: list[Tensor],
    names: str,
    choices: str,
) -> list[Tensor]:
    arrays = (x, *_state(h, second), *weights)
    return [x.new_empty(each.shape if each.is_floating_point() else 0) for each in arrays]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, h, second, lengths, resets, weights, names, choices = inputs
    ctx.names, ctx.choices = names, choices
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, h, second, lengths, resets, output[0], output[3], *weights)
    ctx.mark_non_differentiable(*(each for each in output if not each.is_floating_point()))


def _backward(ctx: Any, dy: Any, dh: Any, dsecond: Any, dtoken: Any) -> tuple[Any, ...]:
    x, h, second, lengths, resets, y, token, *weights = ctx.saved_tensors
    if Choices.of(ctx.choices).cell != "lstm":
        dsecond = None
    found = torch.ops.fusedrnn.gradients(
        token,
        y,
        dy,
        dh,
        dsecond,
        x,
        h,
        second,
        lengths,
        resets,
        weights,
        ctx.names,
        ctx.choices,
    )
    dx, *rest = found
    dbefore = [None if each is None else rest.pop(0) for each in (h, second)]
    if second is not None and not second.is_floating_point():
        dbefore[1] = None
    return (dx, *dbefore, None, None, rest, None, None)


_record.register_autograd(_backward, setup_context=_setup)
