"""The pieces of an ONNX model that ONNX Runtime runs, as models of their own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from onnx import (
    GraphProto,
    ModelProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
    shape_inference,
)

from fusedrnn.errors import ModelFormatError
from fusedrnn.formats.onnx_tensors import EXTERNAL, Store
from fusedrnn.onnx.cut import Cut, free_names

__all__ = ["extracted", "inferred_types", "type_of", "type_text"]

#: A message of ONNX's protobuf.
Proto = Any
#: From this version on an initializer need not be an input, and is constant if it is none.
IR_VERSION = 4
#: Initializers of more elements say nothing of shapes.
MAX_SHAPE_ELEMENTS = 1024
#: ONNX Runtime's names of element types.
ELEMENTS = {
    TensorProto.FLOAT: "float",
    TensorProto.DOUBLE: "double",
    **{
        number: name.lower()
        for name, number in TensorProto.DataType.items()
        if name not in ("FLOAT", "DOUBLE", "UNDEFINED")
    },
}
NUMBERS = {name: number for number, name in ELEMENTS.items()}


def type_text(proto: Proto) -> str:
    """A type as ONNX Runtime writes it: "tensor(float)"; "" for one that is not said."""
    kind = proto.WhichOneof("value")
    if kind == "tensor_type":
        return f"tensor({ELEMENTS.get(proto.tensor_type.elem_type, '')})"
    if kind in ("sequence_type", "optional_type"):
        inner = type_text(getattr(proto, kind).elem_type)
        return f"{kind.removesuffix('_type').replace('sequence', 'seq')}({inner})"
    return ""


def type_of(text: str, shape: Sequence[Any] | None) -> Proto:
    """The type that ONNX Runtime writes so.

    Raises
    ------
    ModelFormatError
        If it is none that can go from one piece of a model into another.
    """
    found = re.fullmatch(r"(tensor|seq|optional)\((.*)\)", text)
    kind, inner = found.groups() if found else ("", "")
    if kind == "tensor" and inner in NUMBERS:
        return helper.make_tensor_type_proto(NUMBERS[inner], shape)
    if kind == "seq":
        return helper.make_sequence_type_proto(type_of(inner, None))
    if kind == "optional":
        return helper.make_optional_type_proto(type_of(inner, None))
    raise ModelFormatError(f"a value of type {text!r} cannot be passed from piece to piece")


def inferred_types(model: Proto) -> dict[str, Proto]:
    """The types of values as far as they can be inferred. Large weights are not looked at."""
    graph = GraphProto()
    graph.CopyFrom(_without_weights(model.graph))
    bare = _around(model, graph)
    try:
        graph = shape_inference.infer_shapes(bare, data_prop=True).graph
    except (shape_inference.InferenceError, MemoryError, RuntimeError, ValueError):
        # ONNX Runtime says what is wrong, when it is given the piece.
        graph = bare.graph
    found = {
        each.name: helper.make_tensor_type_proto(each.data_type, list(each.dims))
        for each in model.graph.initializer
    }
    for each in (*graph.value_info, *graph.output, *graph.input):
        text = type_text(each.type)
        if text and "()" not in text:
            found[each.name] = each.type
    return found


def _without_weights(graph: Proto) -> Proto:
    bare = GraphProto(name=graph.name)
    bare.node.extend(graph.node)
    bare.input.extend(graph.input)
    bare.output.extend(graph.output)
    bare.value_info.extend(graph.value_info)
    named = {each.name for each in graph.input}
    for each in graph.initializer:
        if each.data_location != EXTERNAL and prod(each.dims) <= MAX_SHAPE_ELEMENTS:
            bare.initializer.append(each)
        elif each.name not in named:
            bare.input.append(
                helper.make_tensor_value_info(each.name, each.data_type, list(each.dims))
            )
    return bare


def extracted(
    cut: Cut,
    nodes: Iterable[int],
    outputs: Sequence[str],
    types: Mapping[str, Proto],
) -> tuple[Proto, list[str], list[str]]:
    """A piece as a model.

    Parameters
    ----------
    cut
        The model that it is of.
    nodes
        Places of its nodes.
    outputs
        The values that it is to give.
    types
        Of the values that it may read.

    Returns
    -------
    model
        A ModelProto that needs no other file.
    inputs
        The values that it needs.
    defaults
        Inputs of the whole model that it may be given, and has initializers for.
    """
    graph = cut.view.graph
    own = set(nodes)
    names = {name for place in own for name in free_names(cut.nodes[place])}
    own |= cut.constant_nodes(names)
    names |= {name for place in own for name in free_names(cut.nodes[place])} | set(outputs)
    made = {name for place in own for name in cut.nodes[place].output}
    stored = [each for each in graph.initializer if each.name in names]
    sparse = [each for each in graph.sparse_initializer if each.values.name in names]
    known = {each.name for each in stored} | {each.values.name for each in sparse}
    inputs = sorted(names - made - known)
    defaults = sorted(known & cut.view.inputs) if cut.view.overridable else []

    part = GraphProto(name=graph.name or "piece")
    part.node.extend(cut.nodes[place] for place in sorted(own))
    part.initializer.extend(stored)
    part.sparse_initializer.extend(sparse)
    for name in (*inputs, *defaults):
        part.input.append(ValueInfoProto(name=name, type=types.get(name)))
    for name in outputs:  # ONNX Runtime infers their types
        part.output.append(ValueInfoProto(name=name, type=types.get(name)))
    inner = made - set(outputs)
    part.value_info.extend(each for each in graph.value_info if each.name in inner)
    _bring_in(part, cut.view.store)
    return _around(cut.model, part), inputs, defaults


def _around(model: Proto, graph: Proto) -> Proto:
    """A model of another graph, with the versions, functions and metadata of a model."""
    return ModelProto(
        graph=graph,
        ir_version=max(IR_VERSION, model.ir_version),
        opset_import=model.opset_import,
        functions=model.functions,
        metadata_props=model.metadata_props,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        domain=model.domain,
        model_version=model.model_version,
    )


# ---- external data -------------------------------------------------------------------------------


def _bring_in(graph: Proto, store: Store) -> None:
    """The numbers of tensors that stand in other files, into the graph itself."""
    for tensor in _tensors(graph):
        if tensor.data_location != EXTERNAL:
            continue
        name, kind = tensor.name, tensor.data_type
        array = store.tensor(tensor, name).read()
        if kind == TensorProto.BFLOAT16:  # which came widened, exactly
            raw = (array.view(np.uint32) >> 16).astype("<u2").tobytes()
            shape = list(tensor.dims)
            tensor.Clear()
            tensor.CopyFrom(TensorProto(name=name, data_type=kind, dims=shape, raw_data=raw))
        else:
            tensor.CopyFrom(numpy_helper.from_array(array, name))


def _tensors(graph: Proto) -> list[Proto]:
    """Every tensor in a graph, and in the graphs in it."""
    found = list(graph.initializer)
    for sparse in graph.sparse_initializer:
        found += [sparse.values, sparse.indices]
    for node in graph.node:
        for each in node.attribute:
            found += [each.t] if each.HasField("t") else []
            found += each.tensors
            for sparse in [each.sparse_tensor] if each.HasField("sparse_tensor") else []:
                found += [sparse.values, sparse.indices]
            for inner in [each.g] if each.HasField("g") else each.graphs:
                found += _tensors(inner)
    return found
