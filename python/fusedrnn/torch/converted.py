"""PyTorch's recurrent modules, converted in place and back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._C._dynamo.eval_frame import get_eval_frame_callback
from torch.nn.utils.rnn import PackedSequence

from fusedrnn.engines.threads import Threads
from fusedrnn.errors import UnsupportedError
from fusedrnn.formats.torch_modules import CLASSES, own_architecture
from fusedrnn.layers import LAYERS
from fusedrnn.torch.autograd import wants_gradient
from fusedrnn.torch.calls import STATE, obstacle, run
from fusedrnn.torch.packing import Choices, State, array_of
from fusedrnn.training.tape import TapeKind, checked_tape

__all__ = ["CONVERTED", "convert", "left_alone", "revert"]

ModuleT = TypeVar("ModuleT", bound="nn.Module")


class _Converted:
    """What all converted modules share; PyTorch's class stands behind it."""

    _cell: str

    # Of PyTorch's modules.
    training: bool
    __dict__: dict[str, Any]

    def _fused_state(self) -> State:
        state: State | None = self.__dict__.get(STATE)
        if state is None:  # made by the constructor, not by convert
            state = self.__dict__[STATE] = State()
        return state

    def _choices(self) -> Choices:
        own, state = (
            self.__dict__,
            self._fused_state(),
        )  # getattr takes a microsecond for what is not there
        nonlinearity = own.get("nonlinearity", "")
        options = f'{{"activation": "{nonlinearity}"}}' if nonlinearity else "{}"
        return Choices(
            self._cell,
            options,
            own.get("batch_first", False),
            state.threads,
            state.backend,
            state.tape,
        )

    def _weights(self) -> dict[str, Any]:
        """The weights as they are now, by canonical name."""
        raise NotImplementedError

    def _one_step(self, input: Any, traced: bool) -> bool:
        """Whether a call is one step of one direction.

        With gradients PyTorch computes such a call: a record and a backward pass of this package for every single step
        take longer than its few operators, up to twice as long at H = 32.
        """
        raise NotImplementedError

    def _computed(
        self, input: Any, given: tuple[Tensor, ...], weights: dict[str, Any], inference: bool
    ) -> Any:
        """What ``forward`` returns, by the kernels."""
        raise NotImplementedError

    def forward(self, input: Any, hx: Any = None) -> Any:
        """As PyTorch's ``forward``."""
        traced = torch.compiler.is_compiling()
        weights = self._weights()
        packed = isinstance(input, PackedSequence)
        given = () if hx is None else hx if isinstance(hx, tuple) else (hx,)
        inputs = (input.data if packed else input, *given)
        # A module in eval mode that is exported is a graph for inference, whether gradients are on or not.
        inference = traced and not self.training and torch.compiler.is_exporting()
        # Autocast would make another type of a call of PyTorch's.
        single = (
            not inference and not torch.is_autocast_enabled("cpu") and self._one_step(input, traced)
        )
        if (
            (packed and traced)
            or (single and wants_gradient(*weights.values()))
            or obstacle(inputs, weights.values(), traced)
            or (single and wants_gradient(*inputs))
        ):
            return super().forward(input, hx)  # type: ignore[misc]
        run: Callable[..., Any] = self._run
        if not traced and get_eval_frame_callback() is not None:
            # At a break of the graph where a model is compiled: this is not to be compiled piece by piece.
            run = torch.compiler.disable(run)
        return run(input, hx, given, weights, inference)

    def _run(
        self,
        input: Any,
        hx: Any,
        given: tuple[Tensor, ...],
        weights: dict[str, Any],
        inference: bool,
    ) -> Any:
        """The kernels; or PyTorch's own forward, which says in its own words what is wrong with an input."""
        if isinstance(input, Tensor) and not torch.compiler.is_compiling() and not input.numel():
            return super().forward(input, hx)  # type: ignore[misc]
        try:
            return self._computed(input, given, weights, inference)
        except UnsupportedError:
            raise
        except (RuntimeError, TypeError, ValueError):
            return super().forward(input, hx)  # type: ignore[misc]


class _Sequences(_Converted):
    """A module that runs over whole sequences: RNN, LSTM or GRU."""

    # Of PyTorch's modules.
    _parameters: dict[str, Any]
    _flat_weights_names: list[str]
    batch_first: bool
    bidirectional: bool
    dropout: float
    num_layers: int

    def _weights(self) -> dict[str, Any]:
        # functional_call exchanges them, and a parametrisation computes them.
        stored = self._parameters
        return {
            name: stored[name] if name in stored else getattr(self, name)
            for name in self._flat_weights_names
        }

    def _one_step(self, input: Any, traced: bool) -> bool:
        if traced or self.bidirectional or not isinstance(input, Tensor) or not input.dim():
            return False  # a compiled graph may serve any number of steps
        steps: int = input.shape[1 if self.batch_first and input.dim() == 3 else 0]
        return steps == 1

    def _computed(
        self, input: Any, given: tuple[Tensor, ...], weights: dict[str, Any], inference: bool
    ) -> Any:
        dropout = self.dropout if self.training and self.num_layers > 1 else 0.0
        y, after = run(
            self._fused_state(),
            self._choices(),
            weights,
            input,
            given,
            dropout=dropout,
            inference=inference,
        )
        return y, after if len(after) > 1 else after[0]


class _Steps(_Converted):
    """A module that runs one step: RNNCell, LSTMCell or GRUCell."""

    # Of PyTorch's modules.
    _parameters: dict[str, Any]

    def _weights(self) -> dict[str, Any]:
        return {name + "_l0": each for name, each in self._parameters.items() if each is not None}

    def _one_step(self, input: Any, traced: bool) -> bool:
        return True

    def _computed(
        self, input: Any, given: tuple[Tensor, ...], weights: dict[str, Any], inference: bool
    ) -> Any:
        state, choices = self._fused_state(), self._choices()
        if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
            before = tuple(each[None] for each in given)
            _, after = run(state, choices, weights, input[None], before, inference=inference)
            last = tuple(each[0] for each in after)
        else:  # there are no gradients: an array gets an axis in a tenth of the time of a tensor
            start = tuple(array_of(each)[None] for each in given) or None
            _, ends = state.current(choices, weights)(array_of(input)[None], start)
            last = tuple(torch.from_numpy(each[0]) for each in ends)
        return last if len(last) > 1 else last[0]


class RNN(_Sequences, nn.RNN):
    """``nn.RNN``, run by this package where it can be."""

    _cell = "rnn"


class LSTM(_Sequences, nn.LSTM):
    """``nn.LSTM``, run by this package where it can be."""

    _cell = "lstm"


class GRU(_Sequences, nn.GRU):
    """``nn.GRU``, run by this package where it can be."""

    _cell = "gru"


class RNNCell(_Steps, nn.RNNCell):
    """``nn.RNNCell``, run by this package where it can be."""

    _cell = "rnn"


class LSTMCell(_Steps, nn.LSTMCell):
    """``nn.LSTMCell``, run by this package where it can be."""

    _cell = "lstm"


class GRUCell(_Steps, nn.GRUCell):
    """``nn.GRUCell``, run by this package where it can be."""

    _cell = "gru"


#: PyTorch's classes, and the ones here.
CONVERTED: dict[type[Any], type[Any]] = {
    getattr(nn, each.__name__): each for each in (RNN, LSTM, GRU, RNNCell, LSTMCell, GRUCell)
}
assert set(CLASSES) == {each.__name__ for each in CONVERTED}


# ---- conversion ----------------------------------------------------------------------------------------


def convert(
    module: ModuleT, *, threads: Threads = 1, backend: str = "auto", tape: TapeKind = "full"
) -> ModuleT:
    """Let this package run the recurrent modules of a model, in place.

    Every ``nn.RNN``, ``nn.LSTM``, ``nn.GRU`` and cell of them stays the same object, with the same parameters, names,
    hooks and ``state_dict``. Results are equal to rounding. Modules of this package stay as they are. See :func:`left_alone` for modules that were not converted,
    and :func:`revert` for the way back.

    Parameters
    ----------
    module
        A model, or one recurrent module.
    threads
        How many threads may compute a call, as in :class:`fusedrnn.Layer`: 1 unless asked for more.
    backend
        "c", "numba", "numpy" or "auto".
    tape
        What a call remembers for its gradients, as in :meth:`fusedrnn.Layer.record`: "segments" takes less memory and
        more time, and gives the same bits.

    Returns
    -------
    torch.nn.Module
        The same object.

    Raises
    ------
    TypeError, ValueError, MissingExtraError
        If an argument is not as described, or the backend is not there. Nothing has been converted.

    Warns
    -----
    UserWarning
        If there is nothing to convert, and nothing that this package runs.
    """
    _check_module(module)
    # Refuses what cannot be, before anything is converted.
    LAYERS["rnn"](1, 1, threads=threads, backend=backend)
    checked_tape(tape)
    found = 0
    for each in module.modules():
        if type(each) in CONVERTED and not _obstacle(each):
            each.__class__ = CONVERTED[type(each)]
        if isinstance(each, _Converted):
            each.__dict__[STATE] = State(threads, backend, tape)
        found += _runs_here(each)
    if not found:
        left = "; ".join(
            f"{name or 'the module'}: {why}" for name, why in left_alone(module).items()
        )
        warnings.warn(f"nothing to convert: {left or 'there is no recurrent module'}", stacklevel=2)
    return module


def revert(module: ModuleT) -> ModuleT:
    """Give the recurrent modules of a model PyTorch's own ``forward`` again, in place.

    Parameters
    ----------
    module
        A model of which any modules were converted.

    Returns
    -------
    torch.nn.Module
        The same object.
    """
    _check_module(module)
    own = {here: theirs for theirs, here in CONVERTED.items()}
    for each in module.modules():
        if type(each) in own:  # a module of this package has a state, too, and keeps it
            each.__dict__.pop(STATE, None)
            each.__class__ = own[type(each)]
    return module


def left_alone(module: nn.Module) -> dict[str, str]:
    """The recurrent modules of a model that PyTorch runs, and why, by name.

    Parameters
    ----------
    module
        A model, converted or not.

    Returns
    -------
    dict
        Names as in ``named_modules()``: "" is the module itself.
    """
    _check_module(module)
    return dict(_left_alone(module))


def _left_alone(module: nn.Module) -> Iterator[tuple[str, str]]:
    recurrent = tuple(CONVERTED)
    for name, each in module.named_modules():
        kind = getattr(each, "original_name", type(each).__name__)
        if type(each) in CONVERTED:
            yield name, _obstacle(each) or "not converted"
        elif _runs_here(each):
            continue
        elif isinstance(each, recurrent):
            yield name, f"{kind} is a class of its own, whose forward may do more than PyTorch's"
        elif kind in CLASSES:
            yield name, f"{type(each).__module__}.{kind} is not PyTorch's own float module"


def _runs_here(module: nn.Module) -> bool:
    return isinstance(module, _Converted) or own_architecture(module) is not None


def _obstacle(module: nn.Module) -> str:
    """Why a module of PyTorch's own class cannot be converted; "" if it can."""
    names = getattr(module, "_flat_weights_names", None) or ["weight_ih", "weight_hh"]
    for name in names:
        if name not in module._parameters:
            return f"{name} is computed from other parameters (weight norm, pruning)"
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.dtype is not torch.float32 or parameter.device.type != "cpu":
            return f"{name} is {str(parameter.dtype).removeprefix('torch.')} on {parameter.device}"
    return ""


def _check_module(module: object) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, not {type(module).__name__}")
