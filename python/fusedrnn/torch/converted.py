"""PyTorch's recurrent modules, converted in place and back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._C._dynamo.eval_frame import get_eval_frame_callback
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fusedrnn.engines.threads import Threads
from fusedrnn.formats.torch_modules import CLASSES
from fusedrnn.layer import Layer
from fusedrnn.layers import LAYERS
from fusedrnn.torch.packing import State, array_of, pack

__all__ = ["CONVERTED", "STATE", "convert", "left_alone", "revert"]

ModuleT = TypeVar("ModuleT", bound="nn.Module")

#: The attribute of a converted module that holds what this package knows of it.
STATE = "_fusedrnn"


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

    def _choices(self) -> tuple[str, str, bool]:
        """The cell, its activation ("": it has no choice), and whether sequences are (B, T, ·)."""
        return self._cell, getattr(self, "nonlinearity", ""), getattr(self, "batch_first", False)

    def _current(self, names: Sequence[str], weights: Sequence[Tensor]) -> Layer[Any] | None:
        """The fused layer with the weights as they are now; None for weights that cannot be read here."""
        state = self._fused_state()
        packed = state.packed
        if packed is None or not packed.fits(weights):
            if any(each.dtype is not torch.float32 or not each.is_cpu for each in weights):
                return None
            try:
                packed = pack(names, weights, *self._choices(), state.threads, state.backend)
            except RuntimeError:  # those of a transform (vmap) have no memory of their own
                return None
            state.packed = packed
        return packed.layer

    def _operator(
        self, x: Tensor, h: Any, c: Any, names: Sequence[str], weights: Sequence[Any]
    ) -> tuple[Tensor, Any]:
        """y and the state, by the operator of compiled graphs."""
        state = self._fused_state()
        y, last_h, last_c = torch.ops.fusedrnn.run(
            x,
            h,
            c,
            weights,
            " ".join(names),
            *self._choices(),
            str(state.threads),
            state.backend,
        )
        return y, (last_h, last_c) if self._cell == "lstm" else last_h

    def _kernels(self, *arguments: Any) -> Any:
        """Run ``_run``, at a break of the graph where a model is compiled: it is not to be compiled piece by piece."""
        run: Callable[..., Any] = self._run
        if get_eval_frame_callback() is not None:
            run = torch.compiler.disable(run)
        return run(*arguments)

    def _run(self, *arguments: Any) -> Any:
        raise NotImplementedError


def _runs_here(
    inputs: Sequence[Tensor | None], weights: Sequence[Tensor], traced: bool, for_training: bool
) -> bool:
    """Whether a call can be computed here: plain float32 on the CPU, and nobody wants a gradient."""
    for tensor in inputs:
        if tensor is not None and not (
            (type(tensor) is Tensor or traced or type(tensor) is nn.Parameter)
            and tensor.dtype is torch.float32
            and tensor.is_cpu
            and tensor.layout is torch.strided
        ):
            return False
    # An exported graph of a module in eval mode is for inference, whether gradients are on or not.
    exported = traced and not for_training and torch.compiler.is_exporting()
    if torch.is_grad_enabled() and not exported:
        for tensor in (*inputs, *weights):
            if tensor is not None and tensor.requires_grad:
                return False
    return not (
        torch.is_autocast_enabled("cpu")
        or torch.jit.is_tracing()
        or forward_ad._current_level >= 0  # a tangent goes along
    )


class _Sequences(_Converted):
    """A module that runs over whole sequences: RNN, LSTM or GRU."""

    # Of PyTorch's modules.
    _parameters: dict[str, Any]
    _flat_weights_names: list[str]
    batch_first: bool
    bidirectional: bool
    dropout: float
    num_layers: int
    permute_hidden: Callable[[Any, Any], Any]

    def _weights(self) -> list[Any]:
        """The weights as they are now: functional_call exchanges them, and a parametrisation computes them."""
        stored = self._parameters
        return [
            stored[name] if name in stored else getattr(self, name)
            for name in self._flat_weights_names
        ]

    def forward(self, input: Any, hx: Any = None) -> Any:
        """As PyTorch's ``forward``."""
        weights = self._weights()
        traced = torch.compiler.is_compiling()
        packed = isinstance(input, PackedSequence)
        inputs = (input.data if packed else input, *(hx if isinstance(hx, tuple) else (hx,)))
        drops = self.training and self.dropout and self.num_layers > 1
        if drops or not _runs_here(inputs, weights, traced, self.training):
            return super().forward(input, hx)  # type: ignore[misc]
        if not traced:
            return self._kernels(input, hx, weights)
        if packed:
            return super().forward(input, hx)  # type: ignore[misc]
        x, h, c = (*inputs, None)[:3]
        return self._operator(x, h, c, self._flat_weights_names, weights)

    def _run(self, input: Any, hx: Any, weights: list[Any]) -> Any:
        """The kernels; or PyTorch's own forward, which says in its own words what is wrong with an input."""
        layer = self._current(self._flat_weights_names, weights)
        if layer is None or (isinstance(input, Tensor) and not input.numel()):
            return super().forward(input, hx)  # type: ignore[misc]
        try:
            if isinstance(input, PackedSequence):
                return self._packed(layer, input, hx)
            state = hx if hx is None or isinstance(hx, tuple) else (hx,)
            y, after = layer(array_of(input), state and tuple(map(array_of, state)))
        except (RuntimeError, TypeError, ValueError):
            return super().forward(input, hx)  # type: ignore[misc]
        return torch.from_numpy(y), _outgoing(after)

    def _packed(self, layer: Layer[Any], input: PackedSequence, hx: Any) -> Any:
        """A packed batch: in its sorted order, padded, with lengths; and packed again."""
        data, sizes, order, back = input
        x, lengths = pad_packed_sequence(PackedSequence(data, sizes))
        state = None
        if hx is not None:
            ordered = self.permute_hidden(hx, order)
            state = tuple(
                array_of(each) for each in (ordered if isinstance(hx, tuple) else (ordered,))
            )
        steps = array_of(x.transpose(0, 1) if self.batch_first else x)
        y, after = layer(steps, state, lengths=lengths.numpy())
        outputs = torch.from_numpy(y)
        outputs = outputs.transpose(0, 1) if self.batch_first else outputs
        again = pack_padded_sequence(outputs, lengths)
        return PackedSequence(again.data, sizes, order, back), self.permute_hidden(
            _outgoing(after), back
        )


class _Steps(_Converted):
    """A module that runs one step: RNNCell, LSTMCell or GRUCell."""

    # Of PyTorch's modules.
    _parameters: dict[str, Any]

    def forward(self, input: Any, hx: Any = None) -> Any:
        """As PyTorch's ``forward``."""
        traced = torch.compiler.is_compiling()
        weights = {
            f"{name}_l0": each for name, each in self._parameters.items() if each is not None
        }
        inputs = (input, *(hx if isinstance(hx, tuple) else (hx,)))
        if not _runs_here(inputs, [*weights.values()], traced, self.training):
            return super().forward(input, hx)  # type: ignore[misc]
        if not traced:
            return self._kernels(input, hx, weights)
        x, h, c = (None if each is None else each.unsqueeze(0) for each in (*inputs, None)[:3])
        _, last = self._operator(x, h, c, [*weights], [*weights.values()])
        return tuple(each[0] for each in last) if self._cell == "lstm" else last[0]

    def _run(self, input: Any, hx: Any, weights: dict[str, Any]) -> Any:
        layer = self._current([*weights], [*weights.values()])
        if layer is None or not input.numel():
            return super().forward(input, hx)  # type: ignore[misc]
        try:
            state = hx if hx is None or isinstance(hx, tuple) else (hx,)
            _, after = layer(
                array_of(input)[None], state and tuple(array_of(each)[None] for each in state)
            )
        except (RuntimeError, TypeError, ValueError):
            return super().forward(input, hx)  # type: ignore[misc]
        return _outgoing(tuple(array[0] for array in after))


def _outgoing(state: tuple[Any, ...]) -> Any:
    first = torch.from_numpy(state[0])
    return first if len(state) == 1 else (first, torch.from_numpy(state[1]))


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


def convert(module: ModuleT, *, threads: Threads = 1, backend: str = "auto") -> ModuleT:
    """Let this package run the recurrent modules of a model, in place.

    Every ``nn.RNN``, ``nn.LSTM``, ``nn.GRU`` and cell of them stays the same object, with the same parameters, names,
    hooks and ``state_dict``. Results are equal to rounding. See :func:`left_alone` for modules that were not converted,
    and :func:`revert` for the way back.

    Parameters
    ----------
    module
        A model, or one recurrent module.
    threads
        How many threads may compute a call, as in :class:`fusedrnn.Layer`: 1 unless asked for more.
    backend
        "c", "numba", "numpy" or "auto".

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
        If there is nothing to convert.
    """
    _check_module(module)
    LAYERS["rnn"](
        1, 1, threads=threads, backend=backend
    )  # refuses what cannot be, before anything is converted
    found = 0
    for each in module.modules():
        if type(each) in CONVERTED and not _obstacle(each):
            each.__class__ = CONVERTED[type(each)]
        if isinstance(each, _Converted):
            found += 1
            each.__dict__[STATE] = State(threads, backend)
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
        each.__dict__.pop(STATE, None)
        if type(each) in own:
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
        elif isinstance(each, _Converted):
            continue
        elif isinstance(each, recurrent):
            yield name, f"{kind} is a class of its own, whose forward may do more than PyTorch's"
        elif kind in CLASSES:
            yield name, f"{type(each).__module__}.{kind} is not PyTorch's own float module"


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
