"""What a model file holds: arrays that have not been read yet, recurrent layers made of them, and everything else.

Every reader of a format gives a :class:`Contents`. Sizes, shapes and names are known; the numbers stay in the file until
somebody asks for them, so that to look into 10 GB takes milliseconds.

This module is plain Python: a program that only looks or counts needs neither NumPy nor the C extension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from fusedrnn.architecture import Architecture
from fusedrnn.counting.result import Result, Table, figure_text, printable
from fusedrnn.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy.typing as npt

    from fusedrnn.layers import Layer
    from fusedrnn.narrowing import Narrow

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


#: How many shapes of a part a table shows.
MAX_SHAPES = 4
#: Kinds whose use the file does not tell, or that are not read as what they are.
NOT_UNDERSTOOD = ("cell", "arrays", "?")


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
    array
        What it is, where a file can give one array several names: the same for all of them. By default, its name.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Array] = field(compare=False, repr=False)
    array: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.array:
            object.__setattr__(self, "array", self.name)

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
        Reads the canonical weights, as float32; or matrices as they are kept, as :class:`fusedrnn.Narrow`.
    tensors
        The arrays of the file that it is made of, each once.
    batch_first
        Whether its sequences are (B, T, ·) there.
    weight_dtype
        To what type its matrices are narrowed, as they are in the file; "float32": they are not.
    read_state
        Reads the initial state that the file has for it, each (L * D, ·); None where it has none.
    notes
        What was decided or converted on the way: "float16 weights, widened", "forget bias 1 added".
    """

    name: str
    origin: str
    architecture: Architecture
    read: Callable[[], Mapping[str, Array | Narrow]] = field(compare=False, repr=False)
    tensors: tuple[Tensor, ...] = ()
    batch_first: bool = False
    weight_dtype: str = "float32"
    read_state: Callable[[], Sequence[Array]] | None = field(
        default=None, compare=False, repr=False
    )
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Elements of its canonical weights."""
        return sum(weight.elements for weight in self.architecture.weights())

    @property
    def options(self) -> Mapping[str, Any]:
        """The options of its architecture that are not default, but for the height of the stack."""
        chosen = self.architecture.chosen()
        return {name: value for name, value in chosen.items() if name != "num_layers"}

    def layer(self, **options: Any) -> Layer[Any]:
        """Read the weights, and make the layer.

        Parameters
        ----------
        **options
            Those of :meth:`Layer.from_weights`: ``backend``, ``threads``, ``batch_first``, ``weight_dtype``, ... They go
            before what the file says.
        """
        from fusedrnn.layers import LAYERS

        said = self.architecture.untold()
        said |= {"batch_first": self.batch_first, "weight_dtype": self.weight_dtype}
        if self.read_state is not None:
            said["initial_state"] = self.read_state()
        try:
            self.architecture.check_compiled("c")
        except UnsupportedError:  # an activation that only NumPy has; the notes say so
            said["backend"] = "numpy"
        return LAYERS[self.architecture.cell].from_weights(self.read(), **(said | options))


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
class Contents(Result):
    """What a model file holds. ``print`` shows it as tables; ``to_json``, ``to_csv`` and ``to_markdown`` write it.

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

    # ---- how it is written ---------------------------------------------------------------------------

    def _title(self) -> str:
        return f"{self.path or 'model'}: {self.format}"

    def _document(self) -> Mapping[str, Any]:
        return {
            "path": self.path,
            "format": self.format,
            "layers": [_layer_document(layer) for layer in self.layers],
            "parts": [_part_document(part) for part in self.parts],
            "constants": [_tensor_document(tensor) for tensor in self.constants],
            "notes": list(self.notes),
        }

    def _records(self) -> list[Mapping[str, Any]]:
        """A line for each recurrent layer, each other part and each constant."""
        rows: list[Mapping[str, Any]] = [
            {
                "name": layer.name,
                "kind": layer.architecture.cell,
                "origin": layer.origin,
                "input_size": layer.architecture.input_size,
                "hidden_size": layer.architecture.hidden_size,
                "num_layers": layer.architecture.num_layers,
                "options": _options_text(layer),
                "parameters": layer.parameters,
                "note": "; ".join(layer.notes),
            }
            for layer in self.layers
        ]
        rows += [
            {
                "name": part.name,
                "kind": part.kind,
                "origin": part.origin,
                "parameters": _elements(part.tensors),
                "note": part.note,
            }
            for part in self.parts
        ]
        rows += [{"name": tensor.name, "kind": "constant"} for tensor in self.constants]
        return rows or [{"name": None, "kind": None}]

    def _lead(self) -> Iterator[str]:
        if not self.layers:
            yield "No recurrent layer that is understood."

    def _tables(self) -> Iterator[Table]:
        if self.layers:
            header = ["name", "origin", "cell", "X", "H", "layers", "options", "parameters"]
            rows = [_layer_row(layer) for layer in self.layers]
            yield Table("Recurrent layers", header, rows, [3, 4, 5, 7])
        header = ["name", "kind", "origin", "arrays", "parameters", "note"]
        for caption, understood in (("Other parts", True), ("Not understood", False)):
            rows = [
                _part_row(part)
                for part in self.parts
                if (part.kind not in NOT_UNDERSTOOD) == understood
            ]
            if rows:
                yield Table(caption, header, rows, [4])
        if self.constants:
            rows = [
                [tensor.name, _shape_text(tensor), tensor.dtype, figure_text(tensor.elements)]
                for tensor in self.constants
            ]
            header = ["array", "shape", "type", "elements"]
            yield Table("Constants, which are no parameters", header, rows, [3])

    def _notes(self) -> Iterator[str]:
        noted = [
            f"{printable(layer.name or layer.origin)}: {printable(note)}"
            for layer in self.layers
            for note in layer.notes
        ]
        if noted:
            yield "\n".join(noted)
        yield from self.notes


def _layer_document(layer: FoundLayer) -> dict[str, Any]:
    size = layer.architecture
    return {
        "name": layer.name,
        "origin": layer.origin,
        "cell": size.cell,
        "input_size": size.input_size,
        "hidden_size": size.hidden_size,
        "num_layers": size.num_layers,
        "options": layer.options,
        "batch_first": layer.batch_first,
        "initial_state": layer.read_state is not None,
        "parameters": layer.parameters,
        "stored": _elements(layer.tensors),
        "tensors": [_tensor_document(tensor) for tensor in layer.tensors],
        "notes": list(layer.notes),
    }


def _part_document(part: Part) -> dict[str, Any]:
    return {
        "name": part.name,
        "kind": part.kind,
        "origin": part.origin,
        "parameters": _elements(part.tensors),
        "tensors": [_tensor_document(tensor) for tensor in part.tensors],
        "note": part.note,
    }


def _tensor_document(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "shape": list(tensor.shape), "dtype": tensor.dtype}


def _elements(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.elements for tensor in tensors)


def _layer_row(layer: FoundLayer) -> list[str]:
    size = layer.architecture
    return [
        layer.name or "-",
        layer.origin,
        size.cell,
        figure_text(size.input_size),
        figure_text(size.hidden_size),
        figure_text(size.num_layers),
        _options_text(layer) or "-",
        figure_text(layer.parameters),
    ]


def _options_text(layer: FoundLayer) -> str:
    said = [
        name if value is True else f"{name} {','.join(map(str, _listed(value)))}"
        for name, value in layer.options.items()
    ]
    if layer.batch_first:
        said.append("batch_first")
    if layer.read_state is not None:
        said.append("initial_state")
    return ", ".join(said)


def _listed(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _part_row(part: Part) -> list[str]:
    shapes = ", ".join(_shape_text(tensor) for tensor in part.tensors[:MAX_SHAPES])
    if len(part.tensors) > MAX_SHAPES:
        shapes += f", ... ({len(part.tensors):,})"
    return [
        part.name,
        part.kind,
        part.origin or "-",
        shapes or "-",
        figure_text(_elements(part.tensors)),
        part.note,
    ]


def _shape_text(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one"
