"""PyTorch: ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` in eager mode, and their cells where only a step is wanted."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from fusedrnn.bench.cases import SINGLE_STEPS
from fusedrnn.bench.peers.interface import Array, Loss, Peer, Setup, Trainer, Weights

__all__ = ["FRAMEWORK", "trainers", "variants"]

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


def trainers(setup: Setup) -> Sequence[Trainer]:
    """Unequal lengths packed; or padded, where the last state is not in the loss."""
    case = setup.case
    if case.lengths is None:
        return [_Trained(setup)]
    padded = case.group == "outputs training" and not case.architecture.bidirectional
    return [_TrainedPacked(setup), *([_Trained(setup, "padded")] if padded else [])]


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
            with self._mode(), warnings.catch_warnings():
                # That it has no fused kernel for a projection is what is measured, and no news.
                warnings.filterwarnings("ignore", "LSTM with projections")
                yield
        finally:
            torch.set_num_threads(before)

    def _mode(self) -> AbstractContextManager[Any]:
        """Without gradients."""
        mode: AbstractContextManager[Any] = self._torch.inference_mode()
        return mode

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


class _Trained(_Layer):
    """The module and autograd: equal lengths, or unequal ones as equal ones, where past the end dy is zero.

    ``autograd.grad`` gives the gradients as new tensors, where ``backward`` would also see to the old ones.
    """

    def __init__(self, setup: Setup, variant: str = "module") -> None:
        super().__init__(setup)
        self.variant = variant
        self._setup = setup
        torch, a = self._torch, setup.architecture
        self._module.train()
        loss = Loss.of(setup.case)
        self._incoming = [self._incoming_outputs(loss)]
        if loss.dstate is not None:
            self._incoming += [self._from_numpy(each) for each in loss.dstate if each is not None]
        self._names = ["x", *(state.name for state in a.table.states)]
        self._zeros = tuple(
            torch.zeros(a.state_shape(state, setup.case.batch), requires_grad=True)
            for state in a.table.states
        )
        self._before = self._zeros if len(self._zeros) > 1 else self._zeros[0]
        self._inputs = [*self._zeros, *self._module.parameters()]
        self._names += [name for name, _ in self._module.named_parameters()]

    def _incoming_outputs(self, loss: Loss) -> Any:
        return self._from_numpy(loss.dy)

    def _mode(self) -> AbstractContextManager[Any]:
        """With gradients."""
        mode: AbstractContextManager[Any] = self._torch.enable_grad()
        return mode

    def run(self, x: Array) -> dict[str, Array]:
        """See :class:`~fusedrnn.bench.peers.interface.Trainer`."""
        torch = self._torch
        leaf = self._from_numpy(x).requires_grad_()
        y, state = self._outputs(leaf)
        outputs = [y, *(state if type(state) is tuple else (state,))][: len(self._incoming)]
        found = torch.autograd.grad(outputs, [leaf, *self._inputs], self._incoming)
        return {name: each.numpy() for name, each in zip(self._names, found, strict=True)}

    def forward(self, x: Array) -> object:
        """See :class:`~fusedrnn.bench.peers.interface.Trainer`."""
        with self._torch.inference_mode():
            return self._outputs(self._from_numpy(x))

    def _outputs(self, x: Any) -> Any:
        return self._module(x, self._before)

    def laid_out(self, gradients: Weights) -> dict[str, Array]:
        """See :class:`~fusedrnn.bench.peers.interface.Trainer`."""
        found = {name: gradients[name] for name in self._names if name in gradients}
        weights, units = dict(gradients), self._setup.architecture.hidden_size
        for end in self._setup.ends:
            # Of two biases that are added, where the weights have one, each has the gradient of the sum.
            both = weights.setdefault(f"bias_hh{end}", weights[f"bias_ih{end}"].copy())
            if f"bias_hn{end}" in weights:
                both[-units:] = 0
        several = Setup(self._setup.case, weights)
        for end, part in zip(several.ends, several.arrays(FRAMEWORK), strict=True):
            found |= {name + end: array for name, array in part.items()}
        return found


class _TrainedPacked(_Trained):
    """The same with a packed sequence."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup, "packed")

    def _packed(self, array: Any) -> Any:
        pack = self._torch.nn.utils.rnn.pack_padded_sequence
        return pack(array, self._lengths, enforce_sorted=False)

    def _incoming_outputs(self, loss: Loss) -> Any:
        return self._packed(self._from_numpy(loss.dy)).data

    def _outputs(self, x: Any) -> Any:
        y, state = self._module(self._packed(x), self._before)
        return y.data, state
