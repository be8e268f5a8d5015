"""Recurrent layers in a mapping of names to arrays: a PyTorch ``state_dict``, however deep, or one like it.

A recurrent layer is a prefix below which stand PyTorch's names: ``weight_ih_l0``, ``weight_hh_l0_reverse``, ... of
``nn.RNN``, ``nn.LSTM`` and ``nn.GRU``; ``weight_ih``, ``weight_hh``, ``bias_ih`` and ``bias_hh`` of their cells. Which of
them it is follows from the shapes: as many blocks as the cell has gates. Everything else is told by names and shapes as
far as these go: a mapping does not say what an array is for.

This module is plain Python: names and shapes are enough until somebody wants the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from fusedrnn.architecture import Architecture
from fusedrnn.errors import ArchitectureError, ModelFormatError
from fusedrnn.formats.contents import Contents, FoundLayer, Part, Tensor
from fusedrnn.formats.layouts import LAYOUTS
from fusedrnn.formats.values import FLOATS, conversions, floats
from fusedrnn.shapes import WEIGHT_NAME, from_shapes, unmatched

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["TANH_ASSUMED", "contents", "found_layer"]

#: What is said of a plain RNN.
TANH_ASSUMED = "tanh is assumed, which the arrays do not tell: the option activation says otherwise"

#: The arrays of a cell, whose names have no end.
CELL_KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
#: PyTorch's rows of the layouts by the number of their gates: blocks of weight_ih.
BY_BLOCKS = {len(row.gates): row for row in LAYOUTS if row.framework == "torch"}
#: Arrays that are no parameters: the statistics of a batch normalisation, and what an optimizer remembers.
BUFFERS = (
    *("running_mean", "running_var", "num_batches_tracked"),
    *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "step"),
)
#: What the names of tables of embeddings have in them.
EMBEDDING_WORDS = ("embed", "emb", "wte", "wpe", "lookup")


def contents(
    path: str, form: str, tensors: Mapping[str, Tensor], notes: tuple[str, ...] = ()
) -> Contents:
    """What a mapping of names to arrays holds.

    Parameters
    ----------
    path
        The file, for messages.
    form
        What the file is, in words.
    tensors
        By name.
    notes
        Of the file as a whole.

    Raises
    ------
    ModelFormatError
        If an array of a recurrent layer is missing, left over or of another shape; the message lists them.
    """
    left = dict(tensors)
    layers = []
    for prefix, group in _stacks(tensors).items():
        for tensor in group.values():
            del left[tensor.name]
        layers.append(found_layer(path, prefix, group))
    for prefix, group in _cells(left).items():
        for tensor in group.values():
            del left[tensor.name]
        named = {f"{kind}_l0": tensor for kind, tensor in group.items()}
        layers.append(found_layer(path, prefix, named, origin="Cell"))
    buffers = [name for name in left if name.rpartition(".")[2] in BUFFERS]
    constants = tuple(left.pop(name) for name in buffers)
    order = {name: number for number, name in enumerate(tensors)}
    layers.sort(key=lambda layer: order[layer.tensors[0].name])
    return Contents(path, form, tuple(layers), tuple(_parts(left)), constants, notes)


def found_layer(
    path: str,
    name: str,
    group: Mapping[str, Tensor],
    *,
    origin: str = "",
    cell: str | None = None,
    options: Mapping[str, Any] | None = None,
    batch_first: bool = False,
) -> FoundLayer:
    """A recurrent layer from its arrays.

    Parameters
    ----------
    path, name
        The file, and the layer's name in it.
    group
        All its arrays by canonical name.
    origin
        What it is there; where the cell is not known, the end of the name of PyTorch's class: "Cell", or "".
    cell, options
        Where they are known; else the shapes tell the cell, and options are PyTorch's.
    batch_first
        Whether its sequences are (B, T, ·).

    Raises
    ------
    ModelFormatError
        If an array is missing, left over, of another shape, or no float.
    """
    where = f"{path or 'the model'}: layer {name!r}"
    shapes = {each: tensor.shape for each, tensor in group.items()}
    notes = []
    try:
        known = cell or _cell_of(shapes)
        if known == "rnn" and cell is None:
            notes.append(TANH_ASSUMED)
        architecture = from_shapes(known, shapes, options or {})
    except (ArchitectureError, ValueError) as error:
        text = str(error).removeprefix("weights: ")
        raise ModelFormatError(f"{where}: {text}") from None
    _check(where, architecture, group)
    notes += conversions(group.values())
    if cell is None:
        origin = f"PyTorch {BY_BLOCKS[len(architecture.table.gates)].layer_class}{origin}"
    return FoundLayer(
        name=name,
        origin=origin or architecture.table.title,
        architecture=architecture,
        read=partial(_read, where, group),
        tensors=tuple(group.values()),
        batch_first=batch_first,
        notes=tuple(notes),
    )


def _read(where: str, group: Mapping[str, Tensor]) -> dict[str, npt.NDArray[Any]]:
    return {name: floats(tensor, where) for name, tensor in group.items()}


def _cell_of(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The cell whose gates are as many as the blocks of weight_ih."""
    rows, recurrent = shapes.get("weight_ih_l0", ()), shapes.get("weight_hh_l0", ())
    projection = shapes.get("weight_hr_l0", ())
    if len(rows) != 2 or len(recurrent) != 2 or not all((*rows, *recurrent)):
        return "lstm"  # whatever it is, it is not whole: from_shapes says what is missing
    units = projection[1] if len(projection) == 2 and projection[1] else recurrent[1]
    row = BY_BLOCKS.get(rows[0] // units) if rows[0] % units == 0 else None
    if row is None:
        blocks = ", ".join(
            f"{number} ({row.layer_class})" for number, row in sorted(BY_BLOCKS.items())
        )
        raise ValueError(
            f"'weight_ih_l0' must have {blocks} blocks of hidden_size {units} rows, got shape {rows}"
        )
    return row.cell


def _check(where: str, architecture: Architecture, group: Mapping[str, Tensor]) -> None:
    """Every array is there, none is left over, and all are floats of the right shape."""
    wanted = {weight.name: weight.shape for weight in architecture.weights()}
    if difference := unmatched(wanted, group):
        raise ModelFormatError(f"{where}: {difference}")
    for name, shape in wanted.items():
        tensor = group[name]
        if tensor.shape != shape:
            raise ModelFormatError(
                f"{where}: {tensor.name!r} must have shape {shape}, got {tensor.shape}"
            )
        if tensor.dtype not in FLOATS:
            raise ModelFormatError(
                f"{where}: {tensor.name!r} must be one of {', '.join(FLOATS)}, got {tensor.dtype}"
            )


def _stacks(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The arrays of stacked layers by prefix, without its last dot, and canonical name."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        prefix, _, last = name.rpartition(".")
        if WEIGHT_NAME.fullmatch(last):
            groups.setdefault(prefix, {})[last] = tensor
    return groups


def _cells(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The same of cells. A name like theirs whose shape is not that of gate blocks is something else's."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        prefix, _, last = name.rpartition(".")
        if last in CELL_KINDS:
            groups.setdefault(prefix, {})[last] = tensor
    return {prefix: group for prefix, group in groups.items() if _is_cell(group)}


def _is_cell(group: Mapping[str, Tensor]) -> bool:
    try:
        W, R = group["weight_ih"].shape, group["weight_hh"].shape
    except KeyError:
        return False
    return len(W) == len(R) == 2 and R[1] > 0 and W[0] == R[0] and R[0] / R[1] in BY_BLOCKS


# ---- everything else -----------------------------------------------------------------------------


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[Part]:
    """What is not recurrent, by the prefix that it stands under."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        prefix, _, last = name.rpartition(".")
        groups.setdefault(prefix, {})[last] = tensor
    for prefix, group in groups.items():
        yield _part(prefix, group)


def _part(name: str, group: Mapping[str, Tensor]) -> Part:
    """One part, told by the names and shapes of its arrays."""
    tensors = tuple(group.values())
    biases = frozenset(tensor.name for last, tensor in group.items() if "bias" in last)
    if any(tensor.dtype not in FLOATS for tensor in tensors):
        kinds = ", ".join(sorted({tensor.dtype for tensor in tensors} - set(FLOATS)))
        return Part(
            name, "?", "", tensors, biases, note=f"arrays of {kinds}: what they are for is not told"
        )
    weight = group.get("weight")
    axes = len(weight.shape) if weight else 0
    last = name.rpartition(".")[2].lower()
    if "in_proj_weight" in group:
        return Part(
            name, "attention", "", tensors, biases, note="MACs depend on the number of steps"
        )
    if weight is not None and set(group) <= {"weight", "bias"}:
        bias = group.get("bias")
        if axes == 2 and bias is not None and bias.shape == weight.shape[:1]:
            return Part(name, "dense", "", tensors, biases, weight.elements)
        if axes == 2 and bias is None and any(word in last for word in EMBEDDING_WORDS):
            return Part(name, "embedding", "", tensors, biases, 0, "told by its name")
        if axes in (3, 4, 5):
            return Part(
                name,
                "convolution",
                "",
                tensors,
                biases,
                note="MACs depend on the size of its input",
            )
        if axes == 1 and bias is not None and bias.shape == weight.shape:
            return Part(name, "normalisation", "", tensors, biases, 0)
    return Part(
        name,
        "arrays",
        "",
        tensors,
        biases,
        note="names and shapes do not tell what these arrays are for",
    )
