"""PyTorch: ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` in eager mode, and their cells where only a step is wanted."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from fusedrnn.architecture import Architecture
from fusedrnn.bench.cases import Case
from fusedrnn.bench.peers.interface import Array, Peer, Weights

__all__ = ["offers", "ways"]


def offers(architecture: Architecture) -> bool:
    """Not peepholes, nor coupled gates, nor a GRU that resets before the product, nor Clockwork."""
    table = (architecture.cell, architecture.table.form)
    return table in (("lstm", ""), ("gru", "after"), ("rnn", "")) and not architecture.peephole


def ways(case: Case, weights: Weights, threads: int) -> Sequence[Peer]:
    """A step by the module or by its cell; unequal lengths packed or padded."""
    given = (case, weights, threads)
    if case.lengths is not None:
        # Padded, the reverse direction would begin in the padding.
        bidirectional = case.architecture.bidirectional
        return [_Packed(*given)] if bidirectional else [_Packed(*given), _Padded(*given)]
    # No cell has a projection.
    if case.group == "step" and not case.architecture.proj_size:
        return [_Module(*given), _Cell(*given)]
    return [_Module(*given)]


class _Layer:
    """What all ways have in common."""

    name = "torch"

    def __init__(self, case: Case, weights: Weights, threads: int) -> None:
        import torch

        self._torch = torch
        self._from_numpy = torch.from_numpy
        self._threads = threads
        self._module = self._loaded(self._made(case.architecture), weights)
        self._state: Any = None
        # A sequence that has a reverse direction does not go on.
        self._carries = not case.architecture.bidirectional
        if case.lengths is not None:
            self._lengths = torch.tensor(case.lengths)

    def _made(self, a: Architecture) -> Any:
        nn = self._torch.nn
        kinds: dict[str, Any] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
        options = {"proj_size": a.proj_size} if a.proj_size else {}
        return kinds[a.cell](a.input_size, a.hidden_size, bidirectional=a.bidirectional, **options)

    def _loaded(self, module: Any, weights: Weights) -> Any:
        """The module with canonical weights, whose names are PyTorch's; biases that they lack are zero."""
        with self._torch.no_grad():
            for name, parameter in module.named_parameters():
                # A cell calls weight_ih what a module calls weight_ih_l0.
                name = name if "_l0" in name else f"{name}_l0"
                values = np.zeros(tuple(parameter.shape), np.float32)
                if name in weights:
                    values[...] = weights[name]
                own = name.replace("bias_hh", "bias_hn")
                if own != name and own in weights:  # of a GRU's n alone: the last block
                    values[-len(weights[own]) :] += weights[own]
                parameter.copy_(self._from_numpy(values))
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

    way = "module"

    def step(self, x: Array) -> Array:
        y, self._state = self._module(self._from_numpy(x)[None], self._state)
        output: Array = y[0].numpy()
        return output

    def run(self, x: Array) -> Array:
        y, state = self._module(self._from_numpy(x), self._state)
        if self._carries:
            self._state = state
        output: Array = y.numpy()
        return output


class _Cell(_Layer):
    """The cell, which makes one step."""

    way = "cell"

    def _made(self, a: Architecture) -> Any:
        nn = self._torch.nn
        kinds: dict[str, Any] = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}
        return kinds[a.cell](a.input_size, a.hidden_size)

    def step(self, x: Array) -> Array:
        self._state = self._module(self._from_numpy(x), self._state)
        h = self._state[0] if type(self._state) is tuple else self._state
        output: Array = h.numpy()
        return output

    def run(self, x: Array) -> Array:
        return np.stack([self.step(each) for each in x])


class _Packed(_Layer):
    """Unequal lengths as a packed sequence, which computes only the steps that there are."""

    way = "packed"

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

    way = "padded"

    def step(self, x: Array) -> Array:
        raise NotImplementedError("unequal lengths have no single step")

    def run(self, x: Array) -> Array:
        y, _ = self._module(self._from_numpy(x))
        past = self._torch.arange(len(x))[:, None] >= self._lengths
        output: Array = y.masked_fill_(past[:, :, None], 0).numpy()
        return output
