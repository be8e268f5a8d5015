"""safetensors: eight bytes with the length of a header, the header in JSON, and the arrays, one behind the other.

The header is read and checked; the arrays stay in the file until somebody wants them. To look into 10 GB reads some
kilobytes. Every array must lie in the file, without gaps and without overlap, as the format demands.

A layer that :func:`write` has written carries what its arrays do not tell, its cell and its options, as JSON under the key
``fusedrnn`` of the metadata. Like everything in a file this is checked, as if a stranger had written it.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fusedrnn.architecture import Architecture, checked_bool
from fusedrnn.cells import CELLS
from fusedrnn.errors import ModelFormatError
from fusedrnn.files import write_file
from fusedrnn.formats.contents import Contents, FoundLayer, Tensor
from fusedrnn.formats.torch_state import contents, found_layer
from fusedrnn.formats.values import floats
from fusedrnn.shapes import WEIGHT_NAME

if TYPE_CHECKING:
    import numpy.typing as npt

    from fusedrnn.layers import Layer
    from fusedrnn.narrowing import Narrow

    Array = npt.NDArray[Any]

__all__ = ["listed", "read", "recognises", "write"]

#: The longest header that is read; the format's own limit.
MAX_HEADER = 100_000_000
#: The types of the format: NumPy's name, and bytes. float8 is listed, and cannot be read.
TYPES = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "U16": ("uint16", 2),
    "I16": ("int16", 2),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "U32": ("uint32", 4),
    "I32": ("int32", 4),
    "F32": ("float32", 4),
    "U64": ("uint64", 8),
    "I64": ("int64", 8),
    "F64": ("float64", 8),
}
#: The metadata of a layer of this package, and how the names of its initial state begin.
KEY, STATE = "fusedrnn", "initial_state."
#: The types of the matrices of narrow layers, and how the names of the scales of int8 end.
NARROW = {"float16": "F16", "bfloat16": "BF16", "int8": "I8", "w8a7": "I8"}
SCALE = "_scale"
#: The most axes of an array.
MAX_AXES = 32


def recognises(head: bytes, members: frozenset[str]) -> bool:
    """Whether a file begins with the length of a header and its opening brace."""
    if len(head) < 9:
        return False
    (length,) = struct.unpack("<Q", head[:8])
    return 2 <= length < 2**40 and head[8:9] == b"{"


def read(path: Path, *, external_data: bool = False) -> Contents:
    """What the file holds.

    Raises
    ------
    ModelFormatError
        If its header is not as the format demands, or an array of a recurrent layer is missing or left over.
    """
    tensors, metadata = listed(path)
    if KEY in metadata:
        own = _own(path, metadata[KEY], tensors)
        return Contents(str(path), "safetensors, of fusedrnn", (own,))
    return contents(str(path), "safetensors", tensors)


def listed(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The arrays by name, none of them read yet, and the metadata.

    Raises
    ------
    ModelFormatError
        If the header is not as the format demands.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > MAX_HEADER or 8 + length > size:
            raise ModelFormatError(
                f"{path}: a header of {length:,} bytes in a file of {size:,}; at most {MAX_HEADER:,} are read"
            )
        text = file.read(length)
    header = _json(path, text)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(
        isinstance(each, str) for each in metadata.values()
    ):
        raise ModelFormatError(f"{path}: __metadata__ must be texts by name")
    return _tensors(path, header, start=8 + length, size=size), metadata


def _json(path: Path, text: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ModelFormatError(f"{path}: the header has {twice!r} twice")
        return found

    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no number")

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=once, parse_constant=constant)
    except ModelFormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path}: the header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise ModelFormatError(f"{path}: the header must be an object, not {type(header).__name__}")
    return header


def _tensors(path: Path, header: Mapping[str, Any], start: int, size: int) -> dict[str, Tensor]:
    """The arrays by name, in the order of the file, each of which is where its offsets say."""
    ends: list[tuple[int, int, str]] = []
    found = {}
    for name, entry in header.items():
        what = f"{path}: tensor {name!r}"
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ModelFormatError(
                f"{what} must have dtype, shape and data_offsets, and nothing else"
            )
        kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(kind, str) or kind not in TYPES:
            raise ModelFormatError(f"{what} has the unknown dtype {kind!r}")
        if not _sizes(shape) or len(shape) > MAX_AXES:
            raise ModelFormatError(
                f"{what} must have a shape of up to {MAX_AXES} lengths, got {shape!r:.80}"
            )
        if not _sizes(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= size - start:
            raise ModelFormatError(
                f"{what} must lie in the {size - start:,} bytes behind the header, got offsets {offsets!r:.80}"
            )
        dtype, item = TYPES[kind]
        begin, end = offsets
        if prod(shape) * item != end - begin:
            raise ModelFormatError(
                f"{what}: {kind} of shape {shape!r:.80} needs {prod(shape) * item:,} bytes, and has {end - begin:,}"
            )
        ends.append((begin, end, name))
        found[name] = Tensor(
            name,
            tuple(shape),
            dtype,
            partial(_array, path, start + begin, dtype, tuple(shape), name),
        )
    at = 0
    for begin, end, name in sorted(ends):
        if begin != at:
            problem = (
                "overlaps the one before" if begin < at else f"leaves a gap of {begin - at:,} bytes"
            )
            raise ModelFormatError(f"{path}: tensor {name!r} {problem}")
        at = end
    if at != size - start:
        raise ModelFormatError(
            f"{path}: {size - start - at:,} bytes behind the last tensor belong to none"
        )
    return found


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(
        type(each) is int and 0 <= each < 2**63 for each in value
    )


def _array(path: Path, start: int, dtype: str, shape: tuple[int, ...], name: str) -> Array:
    """The numbers of an array, mapped from the file."""
    import numpy as np

    if dtype.startswith("float8"):
        raise ModelFormatError(f"{path}: tensor {name!r} is {dtype}, which cannot be read yet")
    stored = np.dtype("<u2" if dtype == "bfloat16" else dtype).newbyteorder("<")
    if not prod(shape):
        return np.empty(shape, np.float32 if dtype == "bfloat16" else stored)
    try:
        mapped: Array = np.memmap(path, stored, "r", start, shape)
    except ValueError:
        raise ModelFormatError(f"{path}: tensor {name!r} ends behind the end of the file") from None
    if dtype != "bfloat16":
        return mapped
    # bfloat16 is the upper half of a float32.
    widened: Array = (mapped.astype(np.uint32) << 16).view(np.float32)
    return widened


# ---- layers of this package ----------------------------------------------------------------------


def _own(path: Path, text: str, tensors: Mapping[str, Tensor]) -> FoundLayer:
    """The layer that :func:`write` has written."""
    what = f"{path}: the metadata {KEY!r}"
    said = {"weight_dtype": "float32"} | _json(path, text.encode())
    if set(said) != {"cell", "options", "batch_first", "weight_dtype"} or not isinstance(
        said["options"], dict
    ):
        raise ModelFormatError(f"{what} must have cell, options and batch_first")
    weight_dtype = said["weight_dtype"]
    if not isinstance(weight_dtype, str) or weight_dtype not in ("float32", *NARROW):
        raise ModelFormatError(f"{what}: weight_dtype {weight_dtype!r:.80} is unknown")
    cell, options = said["cell"], dict(said["options"])
    if not isinstance(cell, str) or cell not in CELLS:
        raise ModelFormatError(f"{what}: cell must be one of {', '.join(CELLS)}, got {cell!r:.80}")
    if isinstance(options.get("periods"), list):
        options["periods"] = tuple(options["periods"])
    unknown = set(options) - Architecture.untold_names(cell)
    if unknown:
        raise ModelFormatError(
            f"{what}: {cell} has no option {', '.join(sorted(map(repr, unknown)))}"
        )
    group = {name: tensor for name, tensor in tensors.items() if WEIGHT_NAME.fullmatch(name)}
    scales = {name: tensors[name + SCALE] for name in group if name + SCALE in tensors}
    as_floats = group | {name: _scaled(path, group[name], each) for name, each in scales.items()}
    try:
        batch_first = checked_bool("batch_first", said["batch_first"])
        found = found_layer(
            str(path), "", as_floats, cell=cell, options=options, batch_first=batch_first
        )
    except (ValueError, TypeError) as error:
        if isinstance(error, ModelFormatError):
            raise
        raise ModelFormatError(f"{what}: {error}") from None
    if weight_dtype != "float32":
        stored = (*group.values(), *scales.values())
        notes = (f"{weight_dtype} weights in the file",)
        found = replace(found, weight_dtype=weight_dtype, tensors=stored, notes=notes)
    if scales:
        found = replace(found, read=partial(_weights, str(path), group, scales))
    states = {f"{STATE}{each.name}" for each in found.architecture.table.states}
    left_over = set(tensors) - set(group) - {tensor.name for tensor in scales.values()}
    if not left_over:
        return found
    if left_over != states:
        raise ModelFormatError(
            f"{path}: left over: {', '.join(sorted(map(repr, left_over - states)))}"
        )
    initial = [tensors[f"{STATE}{each.name}"] for each in found.architecture.table.states]
    return replace(
        found,
        tensors=(*found.tensors, *initial),
        read_state=lambda: tuple(tensor.read() for tensor in initial),
    )


def _scaled(path: Path, integers: Tensor, scales: Tensor) -> Tensor:
    """A matrix of int8, as one of the numbers that it stands for."""
    if integers.dtype != "int8" or scales.dtype != "float32" or scales.shape != integers.shape[:1]:
        raise ModelFormatError(
            f"{path}: tensor {scales.name!r} must have a float32 for each row of int8 {integers.name!r}"
        )
    return replace(integers, dtype="float32")


def _weights(
    where: str, group: Mapping[str, Tensor], scales: Mapping[str, Tensor]
) -> dict[str, Array | Narrow]:
    """Read the weights; those that have scales are kept."""
    from fusedrnn.narrowing import Narrow

    return {
        name: Narrow("int8", tensor.read(), scales[name].read())
        if name in scales
        else floats(tensor, where)
        for name, tensor in group.items()
    }


def write(layer: Layer[Any], path: Path) -> None:
    """Write a layer, whole or not at all; :func:`read` finds the same one, bit by bit."""
    import numpy as np

    from fusedrnn.narrowing import Narrow

    architecture = layer.architecture
    said = {
        "cell": architecture.cell,
        "options": architecture.untold(),
        "batch_first": layer.batch_first,
    }
    kinds = {name: kind for kind, (name, _) in TYPES.items()}
    if layer.weight_dtype in NARROW:
        said["weight_dtype"] = layer.weight_dtype
    arrays: dict[str, tuple[str, Array]] = {}
    for name, each in layer._weights.items():
        if not isinstance(each, Narrow):
            arrays[name] = (kinds[str(each.dtype)], each)
            continue
        arrays[name] = (NARROW[each.weight_dtype], each.values)
        if each.scales is not None:
            arrays[name + SCALE] = ("F32", each.scales)
    if layer.initial_state is not None:
        for state, array in zip(architecture.table.states, layer.initial_state, strict=True):
            arrays[f"{STATE}{state.name}"] = (kinds[str(array.dtype)], array)
    header: dict[str, Any] = {"__metadata__": {"format": "np", KEY: json.dumps(said)}}
    at, pieces = 0, []
    # Widest items first, as the library does: then each begins at a multiple of its size.
    for name, (kind, array) in sorted(arrays.items(), key=lambda each: -each[1][1].itemsize):
        piece = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
        offsets = [at, at + len(piece)]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets}
        pieces.append(piece)
        at += len(piece)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    write_file(path, b"".join([struct.pack("<Q", len(text)), text, *pieces]))
