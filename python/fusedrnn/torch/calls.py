"""How a module's call is run here: the one way of converted modules and of this package's own.

Plain or packed sequences, the whole stack or its layers one by one with dropout between them; in eager mode, or by the
operators of a compiled graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fusedrnn.torch.autograd import compute, wants_gradient
from fusedrnn.torch.operators import called
from fusedrnn.torch.packing import Choices, State, array_of

__all__ = ["STATE", "obstacle", "run"]

#: The attribute of a module that holds its :class:`State`.
STATE = "_fusedrnn"

#: What autocast makes of float32, and a call here makes float32 again.
HALVES = (torch.bfloat16, torch.float16)

Hidden = tuple[Tensor, ...]


def obstacle(
    inputs: Iterable[Any], weights: Iterable[Any], traced: bool, kind: torch.dtype = torch.float32
) -> str:
    """Why a call cannot be computed here, as a noun phrase; "" if it can.

    Parameters
    ----------
    inputs, weights
        What the call was given, and what it reads; None in the place of what is not there.
    traced
        Whether it is being compiled.
    kind
        Of the numbers.
    """
    halves = HALVES if torch.is_autocast_enabled("cpu") else ()
    for tensors, accepted in ((inputs, halves), (weights, ())):
        for tensor in tensors:
            if tensor is None:
                continue
            if type(tensor) is not Tensor and type(tensor) is not nn.Parameter and not traced:
                return f"a {type(tensor).__name__}"
            if tensor.dtype is not kind and tensor.dtype not in accepted:
                return f"{str(tensor.dtype).removeprefix('torch.')} numbers"
            if not tensor.is_cpu or tensor.layout is not torch.strided:
                return f"a tensor that is {tensor.layout} on {tensor.device}"
    if not traced and torch._C._are_functorch_transforms_active():
        return "a transform of torch.func (vmap, grad, jvp)"
    if forward_ad._current_level >= 0:
        return "a gradient in forward mode"
    return "torch.jit" if torch.jit.is_tracing() else ""


def run(
    state: State,
    choices: Choices,
    weights: Mapping[str, Tensor],
    input: Any,
    given: Hidden,
    *,
    resets: Tensor | None = None,
    dropout: float = 0.0,
    inference: bool = False,
) -> tuple[Any, Hidden]:
    """The output and the state after a call.

    Parameters
    ----------
    state
        Of the module.
    weights
        By canonical name, in canonical order.
    input
        A tensor or a ``PackedSequence``.
    given
        The state before step 0, each (L * D, B, ·); () for none.
    resets
        As the layer's, where that has them; (T, B) or (B, T) in the order of the batch beside a packed sequence.
    dropout
        Between the layers of the stack.
    inference
        Whether gradients are not wanted, whatever requires them.
    """
    if torch.is_autocast_enabled("cpu"):  # stays float32
        input = input.float() if _dtype(input) in HALVES else input
        given = tuple(each.float() if each.dtype in HALVES else each for each in given)
    if dropout:
        return _by_layer(state, choices, weights, input, given, resets, dropout, inference)
    if isinstance(input, PackedSequence):
        return _packed(state, choices, weights, input, given, resets, inference)
    return _called(state, choices, weights, input, given, None, resets, inference)


def _dtype(input: Any) -> torch.dtype:
    kind: torch.dtype = (input.data if isinstance(input, PackedSequence) else input).dtype
    return kind


def _called(
    state: State,
    choices: Choices,
    weights: Mapping[str, Tensor],
    x: Tensor,
    given: Hidden,
    lengths: Tensor | None,
    resets: Tensor | None,
    inference: bool,
) -> tuple[Tensor, Hidden]:
    """A call over padded sequences: in eager mode, or as an operator of a compiled graph."""
    if torch.compiler.is_compiling():
        taped = not inference and wants_gradient(x, *given, *weights.values())
        return called(choices, weights, x, given, lengths, resets, taped)
    layer = state.current(choices, weights)
    return compute(
        layer,
        x,
        given,
        None if lengths is None else lengths.numpy(),
        None if resets is None else array_of(resets),
        list(weights.values()),
        choices.tape,
    )


def _packed(
    state: State,
    choices: Choices,
    weights: Mapping[str, Tensor],
    input: PackedSequence,
    given: Hidden,
    resets: Tensor | None,
    inference: bool,
) -> tuple[PackedSequence, Hidden]:
    """A packed batch: in its sorted order, padded, with lengths; and packed again."""
    data, sizes, order, back = input
    batch_first = choices.batch_first
    x, lengths = pad_packed_sequence(PackedSequence(data, sizes), batch_first)
    if order is not None:
        given = tuple(each.index_select(1, order) for each in given)
        resets = None if resets is None else resets.index_select(0 if batch_first else 1, order)
    y, after = _called(state, choices, weights, x, given, lengths, resets, inference)
    again = pack_padded_sequence(y, lengths, batch_first)
    if back is not None:
        after = tuple(each.index_select(1, back) for each in after)
    return PackedSequence(again.data, sizes, order, back), after


def _by_layer(
    state: State,
    choices: Choices,
    weights: Mapping[str, Tensor],
    input: Any,
    given: Hidden,
    resets: Tensor | None,
    dropout: float,
    inference: bool,
) -> tuple[Any, Hidden]:
    """The layers of the stack one by one, as layers of their own, with dropout between them.

    Sequences are time-major between them, and packed data stays packed: the random numbers are those of ``nn.LSTM``.
    """
    packed = isinstance(input, PackedSequence)
    turned = choices.batch_first and not packed and input.dim() == 3
    if turned:
        input = input.transpose(0, 1)
    if choices.batch_first and resets is not None and resets.dim() == 2:
        resets = resets.transpose(0, 1)
    each_layer = choices._replace(batch_first=False)
    layers = 1 + max(_layer_of(name) for name in weights)
    rows = layers * (1 + any(name.endswith("_reverse") for name in weights))
    for each in given:
        if each.dim() == 0 or len(each) != rows:
            raise ValueError(
                f"the state must have shape ({rows}, ...): layers times directions, got {tuple(each.shape)}"
            )
    parts = [each.chunk(layers) for each in given]
    ends = []
    for number in range(layers):
        own = {
            name.replace(f"_l{number}", "_l0"): weight
            for name, weight in weights.items()
            if _layer_of(name) == number
        }
        before = tuple(part[number] for part in parts)
        if number and packed:
            input = input._replace(data=nn.functional.dropout(input.data, dropout))
        elif number:
            input = nn.functional.dropout(input, dropout)
        input, after = run(
            state.of_layer(number),
            each_layer,
            own,
            input,
            before,
            resets=resets,
            inference=inference,
        )
        ends.append(after)
    output = input.transpose(0, 1) if turned else input
    return output, tuple(torch.cat(parts) for parts in zip(*ends, strict=True))


def _layer_of(name: str) -> int:
    """The layer of a canonical name."""
    return int(name.removesuffix("_reverse").rpartition("_l")[2])
