"""The layers of this package as modules of PyTorch."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fusedrnn.architecture import Architecture
from fusedrnn.engines.threads import Threads
from fusedrnn.errors import UnsupportedError
from fusedrnn.layer import Layer
from fusedrnn.layers import LAYERS
from fusedrnn.torch.calls import STATE, obstacle, run
from fusedrnn.torch.packing import Choices, State, pack
from fusedrnn.training.tape import TapeKind

__all__ = ["GRU", "LSTM", "RNN", "ClockworkRNN"]


class _Module(nn.Module):
    """What all of them share. Parameters have the names, shapes and order of PyTorch's, and then what PyTorch lacks.

    Attributes
    ----------
    architecture
        The cell, its sizes and its options.
    """

    _cell: ClassVar[str]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        device: Any,
        dtype: Any,
        threads: Threads,
        backend: str,
        tape: TapeKind,
        **options: Any,
    ) -> None:
        super().__init__()
        if not isinstance(bias, bool) or not isinstance(batch_first, bool):
            raise TypeError(f"bias and batch_first must be bools, got {bias!r} and {batch_first!r}")
        if isinstance(dropout, bool) or not isinstance(dropout, (int, float)):
            raise TypeError(f"dropout must be a number, not {type(dropout).__name__}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be from 0 to 1, got {dropout}")
        self.architecture = a = Architecture(
            self._cell,
            input_size,
            hidden_size,
            num_layers,
            bidirectional=bidirectional,
            bias="double" if bias else "none",
            **options,
        )
        if dropout and a.num_layers == 1:
            warnings.warn(
                f"dropout={dropout} is between the layers of a stack: one layer has none",
                stacklevel=3,
            )
        self.input_size, self.hidden_size = a.input_size, a.hidden_size
        self.num_layers, self.bidirectional, self.proj_size = (
            a.num_layers,
            a.bidirectional,
            a.proj_size,
        )
        self.bias, self.batch_first, self.dropout = bias, batch_first, float(dropout)
        # What cannot be is refused here, not at the first call.
        LAYERS[self._cell](1, len(a.periods) or 2, threads=threads, backend=backend, **a.untold())
        self._options = json.dumps(a.untold())
        self.__dict__[STATE] = State(threads, backend, tape)
        self._names = [weight.name for weight in a.weights()]
        for weight in a.weights():
            values = torch.empty(weight.shape, device=device, dtype=dtype)
            self.register_parameter(weight.name, nn.Parameter(values))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters uniformly on ±1/sqrt(H), as PyTorch; what no module of a Clockwork RNN reads is 0."""
        a = self.architecture
        bound = a.hidden_size**-0.5
        with torch.no_grad():
            for weight in a.weights():
                values = self._parameters[weight.name]
                nn.init.uniform_(values, -bound, bound)
                if weight.kind == "recurrent":
                    for module in range(len(a.periods)):
                        rows = slice(module * a.module_size, (module + 1) * a.module_size)
                        values[rows, : a.module_reads(module)] = 0

    def flatten_parameters(self) -> None:
        """Nothing: kernels read copies of the parameters."""

    def extra_repr(self) -> str:
        """Sizes and options, as in the constructor."""
        said = [str(self.input_size), str(self.hidden_size)]
        chosen = self.architecture.chosen()
        chosen.pop("bias", None)
        chosen |= {"bias": False} if not self.bias else {}
        chosen |= {"batch_first": True} if self.batch_first else {}
        chosen |= {"dropout": self.dropout} if self.dropout else {}
        return ", ".join(said + [f"{name}={value!r}" for name, value in chosen.items()])

    def _choices(self) -> Choices:
        state: State = self.__dict__[STATE]
        return Choices(
            self._cell,
            self._options,
            self.batch_first,
            state.threads,
            state.backend,
            state.tape,
        )

    def _weights(self) -> dict[str, Any]:
        """The weights as they are now: functional_call exchanges them, and a parametrisation computes them."""
        stored = self._parameters
        return {
            name: stored[name] if name in stored else getattr(self, name) for name in self._names
        }

    def layer(self) -> Layer[Any]:
        """A layer of this package with the parameters as they are now, in memory of its own; dropout is left out."""
        return pack(self._choices(), self._weights()).layer

    def forward(
        self, x: Any, state: Any = None, *, resets: Tensor | None = None
    ) -> tuple[Any, Any]:
        """Run over whole sequences, with gradients where they are asked for.

        Parameters
        ----------
        x
            (T, B, X), or (B, T, X) if ``batch_first``, or (T, X); or a ``PackedSequence``.
        state
            The state before step 0, each (L * D, B, ·) or (L * D, ·): a tensor for a cell with one, or a tuple.
        resets
            (T, B) bools, or (B, T) if ``batch_first``, or (T,): where one is True, that row's state is zero before that
            step. Beside a ``PackedSequence``: in the order of the batch before it was packed.

        Returns
        -------
        y, state
            As PyTorch's modules return them.

        Raises
        ------
        TypeError, ValueError
            For arguments that are not as described.
        UnsupportedError
            For what the kernels cannot compute; the message names it.
        """
        traced = torch.compiler.is_compiling()
        weights = self._weights()
        given = () if state is None else state if isinstance(state, tuple) else (state,)
        data = x.data if isinstance(x, PackedSequence) else x
        own: State = self.__dict__[STATE]
        kind = weights[self._names[0]].dtype if own.backend == "numpy" else torch.float32
        counted = self._cell == "clockwork" and len(given) > 1
        reason = obstacle((data, *given[: 1 if counted else None]), weights.values(), traced, kind)
        if reason:
            self._refuse(reason)
        if resets is not None and not isinstance(resets, Tensor):
            raise TypeError(f"resets must be a tensor of bools, not {type(resets).__name__}")
        dropout = self.dropout if self.training and self.num_layers > 1 else 0.0
        inference = traced and not self.training and torch.compiler.is_exporting()
        y, after = run(
            own,
            self._choices(),
            weights,
            x,
            given,
            resets=resets,
            dropout=dropout,
            inference=inference,
        )
        return y, after if len(after) > 1 else after[0]

    def _refuse(self, reason: str) -> NoReturn:
        theirs = "" if self._cell == "clockwork" else f"; torch.nn.{type(self).__name__} may"
        raise UnsupportedError(
            f"fusedrnn.torch.{type(self).__name__} computes float32 tensors on the CPU, in eager mode or under "
            f"torch.compile, and does not take {reason}{theirs}"
        )


class RNN(_Module):
    """The vanilla RNN, as ``nn.RNN`` and with what this package has beside.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype
        As PyTorch's.
    nonlinearity
        "tanh", "relu" or "identity".
    clip
        As in :class:`fusedrnn.RNN`.
    threads, backend
        As in :class:`fusedrnn.Layer`. float64 parameters need ``backend="numpy"``.
    tape
        As in :meth:`fusedrnn.Layer.record`, for calls whose gradients are asked for.
    """

    _cell = "rnn"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        clip: float | None = None,
        threads: Threads = 1,
        backend: str = "auto",
        tape: TapeKind = "full",
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device,
            dtype,
            threads,
            backend,
            tape,
            activation=nonlinearity,
            clip=clip,
        )
        self.nonlinearity = nonlinearity


class LSTM(_Module):
    """Long short-term memory, as ``nn.LSTM`` and with what this package has beside.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype
        As PyTorch's.
    peephole, coupled, gate_activation, activation, output_activation, clip, cell_clip
        As in :class:`fusedrnn.LSTM`.
    threads, backend
        As in :class:`fusedrnn.Layer`. float64 parameters need ``backend="numpy"``.
    tape
        As in :meth:`fusedrnn.Layer.record`, for calls whose gradients are asked for.
    """

    _cell = "lstm"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        *,
        peephole: bool | str = False,
        coupled: bool = False,
        gate_activation: str = "sigmoid",
        activation: str = "tanh",
        output_activation: str = "tanh",
        clip: float | None = None,
        cell_clip: float | None = None,
        threads: Threads = 1,
        backend: str = "auto",
        tape: TapeKind = "full",
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device,
            dtype,
            threads,
            backend,
            tape,
            proj_size=proj_size,
            peephole=peephole,
            coupled=coupled,
            gate_activation=gate_activation,
            activation=activation,
            output_activation=output_activation,
            clip=clip,
            cell_clip=cell_clip,
        )


class GRU(_Module):
    """Gated recurrent unit, as ``nn.GRU`` and with what this package has beside.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype
        As PyTorch's.
    reset, gate_activation, activation, clip
        As in :class:`fusedrnn.GRU`.
    threads, backend
        As in :class:`fusedrnn.Layer`. float64 parameters need ``backend="numpy"``.
    tape
        As in :meth:`fusedrnn.Layer.record`, for calls whose gradients are asked for.
    """

    _cell = "gru"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        reset: str = "after",
        gate_activation: str = "sigmoid",
        activation: str = "tanh",
        clip: float | None = None,
        threads: Threads = 1,
        backend: str = "auto",
        tape: TapeKind = "full",
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device,
            dtype,
            threads,
            backend,
            tape,
            reset=reset,
            gate_activation=gate_activation,
            activation=activation,
            clip=clip,
        )


class ClockworkRNN(_Module):
    """The Clockwork RNN, in the form of ``nn.RNN``.

    Its state is a tuple: h, and the steps that each row has made, which have no gradient.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype
        As in :class:`RNN`.
    periods, activation, clip
        As in :class:`fusedrnn.ClockworkRNN`.
    threads, backend
        As in :class:`fusedrnn.Layer`. float64 parameters need ``backend="numpy"``.
    tape
        As in :meth:`fusedrnn.Layer.record`, for calls whose gradients are asked for.
    """

    _cell = "clockwork"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        periods: Sequence[int],
        activation: str = "tanh",
        clip: float | None = None,
        threads: Threads = 1,
        backend: str = "auto",
        tape: TapeKind = "full",
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device,
            dtype,
            threads,
            backend,
            tape,
            periods=periods,
            activation=activation,
            clip=clip,
        )
