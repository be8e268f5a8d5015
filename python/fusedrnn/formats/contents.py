"""What a model file holds: arrays that have not been read yet, recurrent layers made of them, and everything else.

Every reader of a format gives a :class:`Contents`. Sizes, shapes and names are known; the numbers stay in the file until
somebody asks for them, so that to look into 10 GB takes milliseconds.

This module is plain Python: a program that only looks or counts needs neither NumPy nor the C extension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from fusedrnn.architecture import Architecture
from fusedrnn.cells import CELLS
from fusedrnn.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy.typing as npt

    from fusedrnn.layers import Layer

    Array = npt.NDArray[Any]

__all__ = ["KINDS", "Contents", "FoundLayer", "Part", "Tensor"]

#: Kinds of parts that are not recurrent layers. "?" is one that is not understood.
KINDS = (
    "dense",
    "convolution",
    "embedding",
    "normalisation",
    "attention",
    "cell",  # a recurrent cell spelled out in simple operators, which was seen and not read as a layer
    "arrays",  # arrays without any word of what they are for
    "?",
)


@dataclass(frozen=True)
class Tensor:
    """An array of a file, not read yet.

    Attributes
    ----------
    name
        As in the file.
    shape
        Its axes.
    dtype
        As stored, in NumPy's words: "float32", "int8"; or "bfloat16", "float8_e4m3fn", which NumPy does not have.
    read
        Reads it. bfloat16 comes as float32, widened exactly; all else comes as stored.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Array] = field(compare=False, repr=False)

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)


@dataclass(frozen=True)
class FoundLayer:
    """A recurrent layer of a file.

    Attributes
    ----------
    name
        In its model: "encoder.lstm", or the name of an ONNX node; "" for that of a file which is one layer.
    origin
        What it is there: "PyTorch LSTM", "ONNX GRU node", "Keras Bidirectional(LSTM)".
    architecture
        Cell, sizes and options.
    read
        Reads the canonical weights, as float32.
    tensors
        The arrays of the file that it is made of, each once.
    batch_first
        Whether its sequences are (B, T, ·) there.
    read_state
        Reads the initial state that the file has for it, each (L * D, ·); None where it has none.
    notes
        What was decided or converted on the way: "float16 weights, widened", "forget bias 1 added".
    """

    name: str
    origin: str
    architecture: Architecture
    read: Callable[[], Mapping[str, Array]] = field(compare=False, repr=False)
    tensors: tuple[Tensor, ...] = ()
    batch_first: bool = False
    read_state: Callable[[], Sequence[Array]] | None = field(
        default=None, compare=False, repr=False
    )
    notes: tuple[str, ...] = ()

    def layer(self, **options: Any) -> Layer[Any]:
        """Read the weights, and make the layer.

        Parameters
        ----------
        **options
            Those of :meth:`Layer.from_weights`: ``backend``, ``threads``, ``batch_first``, ... They go before what the
            file says.
        """
        from fusedrnn import layers

        classes = {
            each.cell: each for each in (layers.RNN, layers.LSTM, layers.GRU, layers.ClockworkRNN)
        }
        own = CELLS[self.architecture.cell][0].options | {"reverse"}
        said = {
            name: value
            for name, value in self.architecture.chosen().items()
            if name in own and name != "proj_size"  # which the shapes tell
        }
        said["batch_first"] = self.batch_first
        if self.read_state is not None:
            said["initial_state"] = self.read_state()
        try:
            self.architecture.check_compiled("c")
        except UnsupportedError:  # an activation that only NumPy has; the notes say so
            said["backend"] = "numpy"
        found: Layer[Any] = classes[self.architecture.cell].from_weights(
            self.read(), **(said | options)
        )
        return found


@dataclass(frozen=True)
class Part:
    """A part of a file's model that is not a recurrent layer.

    Attributes
    ----------
    name
        In its model.
    kind
        One of :data:`KINDS`.
    origin
        What it is there: "Linear", "MatMul", "Conv2D"; "" where the file does not say.
    tensors
        Its parameters.
    biases
        The names of those that are biases.
    macs_per_step
        Multiply-adds of one step of one sequence; None where the file does not tell.
    note
        What the sizes do not say.
    """

    name: str
    kind: str
    origin: str = ""
    tensors: tuple[Tensor, ...] = ()
    biases: frozenset[str] = frozenset()
    macs_per_step: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Contents:
    """What a model file holds.

    Attributes
    ----------
    path
        The file, or "" for a model in memory.
    format
        In words: "PyTorch checkpoint", "safetensors", "ONNX, opset 22".
    layers
        The recurrent layers, in the order of the model or file.
    parts
        Everything else, in that order.
    constants
        Arrays that are no parameters: shapes, indices, all-zero second biases.
    notes
        What a reader should know of the file as a whole.
    """

    path: str
    format: str
    layers: tuple[FoundLayer, ...] = ()
    parts: tuple[Part, ...] = ()
    constants: tuple[Tensor, ...] = ()
    notes: tuple[str, ...] = ()

    def find(self, name: str | None = None) -> FoundLayer:
        """The layer of that name; without a name, the only one.

        Raises
        ------
        ValueError
            If there is none of that name, no layer at all, or several and no name; the message lists them.
        """
        listed = ", ".join(repr(layer.name) for layer in self.layers)
        if name is None:
            if len(self.layers) == 1:
                return self.layers[0]
            if self.layers:
                raise ValueError(
                    f"{self.path or 'the model'} holds {len(self.layers)} recurrent layers: give the name of one: {listed}"
                )
            said = "; ".join(self.notes)
            raise ValueError(
                f"{self.path or 'the model'} holds no recurrent layer that is understood"
                + (f": {said}" if said else "")
            )
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise ValueError(
            f"{self.path or 'the model'} holds no recurrent layer {name!r}; it has {listed or 'none'}"
        )
