"""A fused layer's gradients, as PyTorch asks for them: one function of its autograd, and the tapes of its calls.

A tape lives as long as its token: a tensor that PyTorch keeps among the tensors saved for the backward pass, and drops
with them. Where the token is gone or has been used (``retain_graph=True``, ``torch.utils.checkpoint``, saved tensors that were
moved) the call is recorded again, with the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from fusedrnn.errors import UnsupportedError
from fusedrnn.layer import Layer
from fusedrnn.torch.packing import array_of
from fusedrnn.training.tape import Gradients, Tape, TapeKind

__all__ = ["compute", "gradients", "record", "wants_gradient"]


SECOND_GRADIENT = (
    "fusedrnn has no second gradients: use torch.nn's own layers for them, or undo the conversion with "
    "fusedrnn.torch.revert(model)"
)
BATCHED_GRADIENT = (
    "fusedrnn has no gradients under vmap (is_grads_batched, torch.func): use torch.nn's own layers for them, or undo "
    "the conversion with fusedrnn.torch.revert(model)"
)

_numbers = count()
_tapes: WeakValueDictionary[int, Tape] = WeakValueDictionary()


class _TokenArray(np.ndarray[Any, Any]):
    """The memory of a token, which holds its tape."""

    tape: Tape


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether a gradient of one of these is asked for."""
    if torch.is_grad_enabled():
        for tensor in tensors:  # any() of a generator takes twice as long
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def compute(
    layer: Layer[Any],
    x: Tensor,
    state: tuple[Tensor, ...],
    lengths: Any,
    resets: Any,
    weights: Sequence[Tensor],
    tape: TapeKind,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """y and the state after a call; with gradients if any are asked for.

    Parameters
    ----------
    state
        () if none is given.
    lengths, resets
        As the layer's, as arrays.
    weights
        Those that the layer was packed from, in the order of ``layer.weights``.
    tape
        As :meth:`Layer.record` has it.
    """
    if wants_gradient(*weights, x, *state):
        resets = None if resets is None else resets.copy()  # a call may be recorded again
        y, *after = _Recorded.apply(layer, lengths, resets, tape, len(state), x, *state, *weights)
        return y, tuple(after)
    values, ends = layer(array_of(x), tuple(map(array_of, state)) or None, lengths, resets=resets)
    return torch.from_numpy(values), tuple(map(torch.from_numpy, ends))


def record(
    layer: Layer[Any],
    x: Tensor,
    state: Sequence[Tensor],
    lengths: Any,
    resets: Any,
    kind: TapeKind,
) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """y, the state after the call, and the token of the tape, which is of that kind."""
    y, after, tape = _taped(layer, x, state, lengths, resets, kind)
    number = next(_numbers)
    token = np.full(1, number).view(_TokenArray)
    token.tape = _tapes[number] = tape
    y.flags.writeable = True  # a change in place is told by the tensor's version counter
    return torch.from_numpy(y), tuple(map(torch.from_numpy, after)), torch.from_numpy(token)


def _taped(
    layer: Layer[Any],
    x: Tensor,
    state: Sequence[Tensor],
    lengths: Any,
    resets: Any,
    kind: TapeKind,
) -> tuple[Any, Any, Tape]:
    before = tuple(map(array_of, state)) or None
    return layer.record(array_of(x), before, lengths, resets=resets, tape=kind)


def gradients(
    token: Tensor,
    layer: Layer[Any],
    x: Tensor,
    state: Sequence[Tensor],
    lengths: Any,
    resets: Any,
    kind: TapeKind,
    dy: Tensor | None,
    dstate: Sequence[Tensor | None],
    want_x: bool,
) -> Gradients:
    """The gradients of a recorded call: of its tape, once; recorded again after that."""
    try:
        given = [None if each is None else array_of(each.resolve_neg()) for each in (dy, *dstate)]
    except RuntimeError as error:  # those of a transform have no memory of their own
        raise UnsupportedError(BATCHED_GRADIENT) from error
    tape = _tapes.pop(int(token.item()), None)
    if tape is None:
        _, _, tape = _taped(layer, x, state, lengths, resets, kind)
    return tape.backward(given[0], tuple(given[1:]), want_x=want_x)


class _Recorded(torch.autograd.Function):
    """A call of a layer, of which a gradient is asked for."""

    @staticmethod
    def forward(
        ctx: Any,
        layer: Layer[Any],
        lengths: Any,
        resets: Any,
        kind: TapeKind,
        states: int,
        x: Tensor,
        *others: Tensor,
    ) -> tuple[Tensor, ...]:
        state = others[:states]
        y, after, token = record(layer, x, state, lengths, resets, kind)
        ctx.call = layer, lengths, resets, kind
        ctx.states, ctx.weights = states, len(others) - states
        ctx.save_for_backward(x, *state, y, token)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(each for each in after if not each.is_floating_point()))
        return (y, *after)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *dafter: Tensor | None) -> tuple[Any, ...]:
        x, *state, y, token = ctx.saved_tensors
        wanted = ctx.needs_input_grad[5:]
        dstate = [None if each is None or not each.is_floating_point() else each for each in dafter]
        layer, lengths, resets, kind = ctx.call
        found = gradients(token, layer, x, state, lengths, resets, kind, dy, dstate, wanted[0])
        arrays = (
            found.x,
            *(found.state if ctx.states else ()),
            *(found.weights.values() if ctx.weights else ()),
        )
        results = [
            torch.from_numpy(array) if want and array is not None else None
            for want, array in zip(wanted, arrays, strict=True)
        ]
        if torch.is_grad_enabled():  # create_graph=True
            results = _once(results, (y, dy, *dafter))
        return (None, None, None, None, None, *results)


def _once(results: list[Tensor | None], sources: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The same gradients, whose own gradient is an error: not a zero, whatever asks for it.

    Parameters
    ----------
    sources
        What they depend on: y, through which PyTorch finds the way to x, the state and the weights, and the gradients of
        the outputs.
    """
    there = [each for each in results if each is not None]
    named = iter(_NoSecondGradient.apply(len(there), *there, *sources))
    return [each if each is None else next(named) for each in results]


class _NoSecondGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, number: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(each.view_as(each) for each in tensors[:number])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise UnsupportedError(SECOND_GRADIENT)
