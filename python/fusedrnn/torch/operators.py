"""The operator of compiled and exported graphs."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from fusedrnn.engines.threads import Threads
from fusedrnn.shapes import from_shapes
from fusedrnn.torch.packing import Packed, array_of, pack

__all__: list[str] = []

#: Layers that compiled graphs have in memory.
MAX_KEPT = 32

_kept: OrderedDict[tuple[Any, ...], Packed] = OrderedDict()
_kept_lock = Lock()


@torch.library.custom_op("fusedrnn::run", mutates_args=())
def _operator(
    x: Tensor,
    h: Tensor | None,
    c: Tensor | None,
    weights: list[Tensor],
    names: str,
    cell: str,
    activation: str,
    batch_first: bool,
    threads: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last h, and the last c (empty for a cell without one), each in memory of its own."""
    number: Threads = "auto" if threads == "auto" else int(threads)
    choices = cell, activation, batch_first, number, backend
    # The packed weights are held, so no other tensor can be at their addresses.
    key = (*choices, *(weight.data_ptr() for weight in weights))
    with _kept_lock:
        packed = _kept.get(key)
        if packed is None or not packed.fits(packed.weights):
            packed = _kept[key] = pack(names.split(), weights, *choices)
        _kept.move_to_end(key)
        while len(_kept) > MAX_KEPT:
            _kept.popitem(last=False)
    state = None
    if h is not None:
        state = (array_of(h),) if c is None else (array_of(h), array_of(c))
    y, after = packed.layer(array_of(x), state)
    last = [torch.from_numpy(array) for array in after]
    return torch.from_numpy(y), last[0], last[1] if len(last) > 1 else x.new_empty(0)


@_operator.register_fake
def _(
    x: Tensor,
    h: Tensor | None,
    c: Tensor | None,
    weights: list[Tensor],
    names: str,
    cell: str,
    activation: str,
    batch_first: bool,
    threads: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = {
        name: tuple(map(int, each.shape)) for name, each in zip(names.split(), weights, strict=True)
    }
    a = from_shapes(cell, shapes, {})
    batch = () if x.dim() == 2 else (x.shape[0 if batch_first else 1],)
    rows = a.num_layers * a.directions
    y, last_h = x.new_empty((*x.shape[:-1], a.output_size)), x.new_empty((rows, *batch, a.fed_back))
    return y, last_h, x.new_empty((rows, *batch, a.hidden_size) if cell == "lstm" else 0)
