"""Small model files, made by hand: what commands and counts are tested with."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from os import PathLike
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fusedrnn.architecture import Architecture
from fusedrnn.formats.contents import FoundLayer, Tensor

X, H, OUT = 3, 4, 2


def oracle(name: str) -> Any:
    """A package that a test needs: without it the test is skipped, or, with FUSEDRNN_REQUIRE_ORACLES=1, fails."""
    if os.environ.get("FUSEDRNN_REQUIRE_ORACLES") == "1":
        return import_module(name)
    return pytest.importorskip(name)


def tensor(name: str, *shape: int, dtype: str = "float32") -> Tensor:
    """An array that nobody may read."""

    def read() -> Any:
        raise AssertionError(f"{name} is read")

    return Tensor(name, shape, dtype, read)


def found(
    name: str, architecture: Architecture, tensors: Sequence[Tensor] | None = None, **rest: Any
) -> FoundLayer:
    """A layer whose arrays have their canonical names, with the name of the layer before them."""

    def read() -> Mapping[str, Any]:
        raise AssertionError(f"{name} is read")

    if tensors is None:
        tensors = [tensor(f"{name}.{each.name}", *each.shape) for each in architecture.weights()]
    return FoundLayer(name, "test", architecture, read, tuple(tensors), **rest)


def lstm_arrays(seed: int = 0, directions: int = 1, inputs: int = X) -> dict[str, np.ndarray]:
    """W, R and B of an ONNX LSTM."""
    random = np.random.default_rng(seed)
    shapes = {
        "W": (directions, 4 * H, inputs),
        "R": (directions, 4 * H, H),
        "B": (directions, 8 * H),
    }
    return {
        name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }


def save_onnx(
    path: str | PathLike[str],
    *,
    directions: int = 1,
    layers: Sequence[str] = ("encoder",),
    more: Callable[[list[Any], list[Any]], object] = lambda nodes, arrays: None,
) -> None:
    """An ONNX model of LSTMs side by side and a dense layer.

    Parameters
    ----------
    path
        Where to.
    directions
        1 or 2.
    layers
        Names of the LSTMs, all of which read x.
    more
        Called with the nodes and initializers, to add to them.
    """
    nodes, arrays = [], []
    for number, name in enumerate(layers):
        for kind, array in lstm_arrays(number, directions).items():
            arrays.append(numpy_helper.from_array(array, f"{name}.{kind}"))
        weights = [f"{name}.{kind}" for kind in "WRB"]
        direction = "bidirectional" if directions == 2 else "forward"
        nodes.append(
            helper.make_node(
                "LSTM",
                ["x", *weights],
                [f"{name}.y"],
                name=name,
                hidden_size=H,
                direction=direction,
            )
        )
    out = np.random.default_rng(9).standard_normal((H, OUT)).astype(np.float32)
    arrays.append(numpy_helper.from_array(out, "out.weight"))
    nodes.append(helper.make_node("MatMul", [f"{layers[0]}.y", "out.weight"], ["z"], name="out"))
    more(nodes, arrays)
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", "B", X])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        arrays,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(path))
