"""PyTorch: ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` in eager mode, and their cells where only a step is wanted."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from fusedrnn.bench.cases import SINGLE_STEPS
from fusedrnn.bench.peers.interface import Array, Peer, Setup

__all__ = ["FRAMEWORK", "variants"]

#: Whose layouts its weights have.
FRAMEWORK = "torch"


def variants(setup: Setup) -> Sequence[Peer]:
    """A step by the module or by its cell; unequal lengths packed or padded."""
    case = setup.case
    if case.lengths is not None:
        # Padded, the reverse direction would begin in the padding.
        bidirectional = case.architecture.bidirectional
        return [_Packed(setup)] if bidirectional else [_Packed(setup), _Padded(setup)]
    # No cell has a projection.
    if case.group in SINGLE_STEPS and not case.architecture.proj_size:
        return [_Module(setup), _Cell(setup)]
    return [_Module(setup)]


class _Layer:
    """What all variants have in common."""

    name = "torch"

    def __init__(self, setup: Setup) -> None:
        import torch

        self._torch = torch
        self._from_numpy = torch.from_numpy
        self._threads = setup.threads
        self._module = self._loaded(self._made(setup), setup)
        self._state: Any = None
        self._keeps_state = setup.keeps_state
        if setup.case.lengths is not None:
            self._lengths = torch.tensor(setup.case.lengths)

    def _made(self, setup: Setup) -> Any:
        a = setup.architecture
        options = {"proj_size": a.proj_size} if a.proj_size else {}
        kind = getattr(self._torch.nn, setup.layout(FRAMEWORK).layer_class)
        return kind(a.input_size, a.hidden_size, bidirectional=a.bidirectional, **options)

    def _loaded(self, module: Any, setup: Setup) -> Any:
        """The module with the weights; biases that they lack are zero."""
        arrays = {
            name + end: array
            for end, part in zip(setup.ends, setup.arrays(FRAMEWORK), strict=True)
            for name, array in part.items()
        }
        with self._torch.no_grad():
            for name, parameter in module.named_parameters():
                # A cell calls weight_ih what a module calls weight_ih_l0.
                array = arrays.get(name if "_l0" in name else f"{name}_l0")
                if array is None:
                    parameter.zero_()
                else:
                    parameter.copy_(self._from_numpy(array))
        return module.eval()

    @contextmanager
    def ready(self) -> Iterator[None]:
        torch = self._torch
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode(), warnings.catch_warnings():
                # That it has no fused kernel for a projection is what is measured, and no news.
                warnings.filterwarnings("ignore", "LSTM with projections")
                yield
        finally:
            torch.set_num_threads(before)

    def reset(self) -> None:
        self._state = None


class _Module(_Layer):
    """The module, called for one step or for all."""

    variant = "module"

    def step(self, x: Array) -> Array:
        y, self._state = self._module(self._from_numpy(x)[None], self._state)
        output: Array = y[0].numpy()
        return output

    def run(self, x: Array) -> Array:
        y, state = self._module(self._from_numpy(x), self._state)
        if self._keeps_state:
            self._state = state
        output: Array = y.numpy()
        return output


class _Cell(_Layer):
    """The cell, which makes one step."""

    variant = "cell"

    def _made(self, setup: Setup) -> Any:
        kind = getattr(self._torch.nn, setup.layout(FRAMEWORK).step_class)
        return kind(setup.case.input, setup.case.hidden)

    def step(self, x: Array) -> Array:
        self._state = self._module(self._from_numpy(x), self._state)
        h = self._state[0] if type(self._state) is tuple else self._state
        output: Array = h.numpy()
        return output

    def run(self, x: Array) -> Array:
        return np.stack([self.step(each) for each in x])


class _Packed(_Layer):
    """Unequal lengths as a packed sequence, which computes only the steps that there are."""

    variant = "packed"

    def step(self, x: Array) -> Array:
        raise NotImplementedError("unequal lengths have no single step")

    def run(self, x: Array) -> Array:
        rnn = self._torch.nn.utils.rnn
        packed = rnn.pack_padded_sequence(self._from_numpy(x), self._lengths, enforce_sorted=False)
        y, _ = rnn.pad_packed_sequence(self._module(packed)[0], total_length=len(x))
        output: Array = y.numpy()
        return output


class _Padded(_Layer):
    """Unequal lengths as equal ones, whose outputs past the end are set to zero."""

    variant = "padded"

    def step(self, x: Array) -> Array:
        raise NotImplementedError("unequal lengths have no single step")

    def run(self, x: Array) -> Array:
        y, _ = self._module(self._from_numpy(x))
        past = self._torch.arange(len(x))[:, None] >= self._lengths
        output: Array = y.masked_fill_(past[:, :, None], 0).numpy()
        return output
