"""What the tests of ONNX share: models of one node, and a layer run as that node."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fusedrnn.formats.contents import FoundLayer
from fusedrnn.formats.layouts import LAYOUTS, Layout
from fusedrnn.formats.onnx_nodes import INPUTS

Arrays = dict[str, np.ndarray]
OPSET = 22


def model_of(
    nodes: list[onnx.NodeProto],
    initializers: Arrays | None = None,
    inputs: tuple[str, ...] = ("X",),
    outputs: tuple[str, ...] = ("Y",),
    **fields: Any,
) -> onnx.ModelProto:
    """A model of these nodes; floats go in and out."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [
            helper.make_tensor_value_info(
                name, TensorProto.INT32 if name == "sequence_lens" else TensorProto.FLOAT, None
            )
            for name in inputs
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (initializers or {}).items()],
    )
    opsets = [helper.make_opsetid("", fields.pop("opset", OPSET))]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, **fields)


def recurrent_node(
    operator: str, given: tuple[str, ...] = ("W", "R", "B"), **attributes: Any
) -> onnx.NodeProto:
    """A recurrent node that reads X and those other inputs, under their own names."""
    names = ["X", *(name if name in given else "" for name in INPUTS[1:])]
    while not names[-1]:
        names.pop()
    outputs = ["Y", "Y_h", "Y_c"][: 3 if operator == "LSTM" else 2]
    return helper.make_node(operator, names, outputs, name="node", **attributes)


def layout_of(operator: str, **attributes: int) -> Layout:
    """The layout of an operator with these attributes."""
    for layout in LAYOUTS:
        options = dict(layout.options)
        if (
            (layout.framework, layout.layer_class) == ("onnx", operator)
            and all(attributes.get(name, 0) == value for name, value in options.items())
            and (options or not attributes.get("input_forget"))
        ):
            return layout
    raise AssertionError(operator)


def run_node(found: FoundLayer, feeds: Arrays, **options: Any) -> Arrays:
    """Y, Y_h and Y_c as ONNX has them, from the layer that the node was read as."""
    layer = found.layer(**options)
    a = layer.architecture
    state = None
    if "initial_h" in feeds:
        state = [feeds[name] for name in ("initial_h", "initial_c") if name in feeds]
        if found.batch_first:
            state = [array.transpose(1, 0, 2) for array in state]
    y, after = layer(feeds["X"], state, feeds.get("sequence_lens"))
    y = y.reshape(*y.shape[:2], a.directions, a.fed_back)
    if not found.batch_first:
        return dict(zip(("Y", "Y_h", "Y_c"), (y.transpose(0, 2, 1, 3), *after)))
    return dict(zip(("Y", "Y_h", "Y_c"), (y, *(each.transpose(1, 0, 2) for each in after))))
