"""ONNX models: recognised, read into contents and layers. Nothing of a model is ever run.

The package onnx is imported only to read the protobuf; the numbers of tensors, in the model or in other files of its
folder, are read here (:mod:`fusedrnn.formats.onnx_tensors`).
"""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusedrnn.errors import MissingExtraError, ModelFormatError
from fusedrnn.formats.contents import Contents, FoundLayer, Tensor

if TYPE_CHECKING:
    from fusedrnn.formats.onnx_tensors import Store
    from fusedrnn.layers import Layer

__all__ = ["contents", "from_onnx", "parsed", "read", "recognises"]

#: A message of ONNX's protobuf.
Proto = Any

#: No protobuf message is larger.
MAX_BYTES = 2**31 - 1
#: The fields of ModelProto: their numbers, and how each is written: a number, or bytes with their length.
NUMBER, BYTES = 0, 2
FIELDS = {1: NUMBER, 2: BYTES, 3: BYTES, 4: BYTES, 5: NUMBER, 6: BYTES, 7: BYTES, 8: BYTES}
FIELDS |= {14: BYTES, 20: BYTES, 25: BYTES, 26: BYTES}
IR_VERSION = 1
MAX_IR_VERSION = 100


def recognises(head: bytes, members: frozenset[str]) -> bool:
    """Whether a file that begins like this, or an archive of these members, is one.

    Protobuf has no mark of its own: the fields that the beginning holds must be those of a model, and ir_version must be
    among them.
    """
    at, versioned = 0, False
    while at < len(head):
        key, at = _varint(head, at)
        field, wire = key >> 3, key & 7
        if FIELDS.get(field) != wire:
            return False
        value, at = _varint(head, at)
        if at > len(head):
            break
        if field == IR_VERSION:
            if not 1 <= value <= MAX_IR_VERSION:
                return False
            versioned = True
        if wire == BYTES:
            at += value
    return versioned


def _varint(head: bytes, at: int) -> tuple[int, int]:
    """The number at a place, and the place behind it; far behind the end if it is cut off."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(head):
            return value, len(head) + 1
        value |= (head[at] & 0x7F) << shift
        at += 1
        if head[at - 1] < 0x80:
            return value, at
    return -1, at


def read(path: Path, *, external_data: bool = False) -> Contents:
    """What the file holds."""
    return contents(*parsed(path, external_data=external_data))


def parsed(path: Path, *, external_data: bool = False) -> tuple[Proto, Store]:
    """A file's ModelProto, without the tensors that stand in other files; and where its tensors' numbers are.

    Raises
    ------
    ModelFormatError
        If the file is no whole ONNX model.
    MissingExtraError
        If the package onnx is not installed.
    """
    _need_onnx()
    from google.protobuf.message import DecodeError
    from onnx import ModelProto

    from fusedrnn.formats.onnx_tensors import Store

    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ModelFormatError(
            f"{path}: {size} bytes, more than an ONNX file can have, {MAX_BYTES}"
        )
    try:
        model = ModelProto.FromString(path.read_bytes())
    except DecodeError as error:
        raise ModelFormatError(f"{path}: not a whole ONNX model: {error}") from None
    return model, Store(str(path), path.parent if external_data else None)


def _need_onnx() -> None:
    if find_spec("onnx") is None:
        raise MissingExtraError("onnx", "onnx", "an ONNX model")


def contents(model: Proto, store: Store) -> Contents:
    """What a ModelProto holds.

    Parameters
    ----------
    model
        The ModelProto.
    store
        Where its tensors' numbers are.
    """
    from fusedrnn.formats.onnx_graph import STANDARD, main_graph, walk
    from fusedrnn.formats.onnx_nodes import recurrent_among
    from fusedrnn.formats.onnx_parts import Inventory
    from fusedrnn.formats.onnx_stacks import Uses

    if not model.HasField("graph"):
        raise store.fault("it has no graph")
    view = main_graph(model, store)
    places = list(walk(model, view))
    layers, refused = recurrent_among(places, Uses(places, view))
    layers, used = _once(layers)
    inventory = Inventory(
        places,
        {(each.domain, each.name) for each in model.functions},
        used,
        list(refused),
        {each.name: 1 for each in layers} | {each.name: 1 for each in refused},
    )
    parts = inventory.sort()
    used |= {tensor.name: part.name for part in parts for tensor in part.tensors}
    views = {id(view): view} | {id(each): each for each, _ in places}
    constants: dict[str, Tensor] = {}
    for each in views.values():
        for tensor in each.stored():
            if tensor.name not in used:
                constants.setdefault(tensor.name, tensor)
    versions = [f"opset {each.version}" for each in model.opset_import if each.domain in STANDARD]
    notes = [part.note for part in refused]
    notes += [f"{part.name!r}: {part.note}" for part in parts if part.kind == "cell"]
    sparse = sorted(name for each in views.values() for name in each.sparse)
    if sparse:
        notes.append(f"sparse initializers, which are not read: {', '.join(map(repr, sparse))}")
    return Contents(
        path=store.path,
        format=", ".join(["ONNX", *versions[:1]]),
        layers=layers,
        parts=tuple(parts),
        constants=tuple(constants.values()),
        notes=tuple(dict.fromkeys(notes)),
    )


def _once(layers: tuple[FoundLayer, ...]) -> tuple[tuple[FoundLayer, ...], dict[str, str]]:
    """The layers, each tensor with the first that has it; and whose each is."""
    used: dict[str, str] = {}
    found = []
    for layer in layers:
        own = [
            each for each in layer.tensors if used.setdefault(each.name, layer.name) == layer.name
        ]
        shared = [
            f"{each.name!r} is shared with {used[each.name]!r}"
            for each in layer.tensors
            if used[each.name] != layer.name
        ]
        found.append(replace(layer, tensors=tuple(own), notes=(*layer.notes, *shared)))
    return tuple(found), used


def from_onnx(
    model: Any,
    name: str | None = None,
    *,
    external_data: bool = False,
    **options: Any,
) -> Layer[Any]:
    """A recurrent layer from an ONNX model.

    Parameters
    ----------
    model
        A path, or an ``onnx.ModelProto``.
    name
        Of the layer: the name of its node, as :func:`inspect` shows it; not needed where there is one only.
    external_data
        Whether weights in other files of the model's own folder may be read.
    **options
        Those of :meth:`Layer.from_weights`, before what the model says: ``backend``, ``threads``, ``batch_first``.

    Returns
    -------
    Layer
        An LSTM, GRU or RNN. Nodes that are a stack are one layer. Biases are two of each ("double"), as ONNX keeps them,
        unless the second ones are all zero.

    Raises
    ------
    ModelFormatError, ValueError
        If the model is damaged, or has no such layer; the message lists those that it has.
    MissingExtraError
        If the package onnx is not installed.
    """
    if isinstance(model, (str, os.PathLike)):
        found = read(Path(model), external_data=external_data)
    else:
        _need_onnx()
        from onnx import ModelProto

        from fusedrnn.formats.onnx_tensors import Store

        if not isinstance(model, ModelProto):
            kind = type(model).__name__
            raise TypeError(f"model must be a path or an onnx.ModelProto, not {kind}")
        found = contents(model, Store())
    return found.find(name).layer(**options)
