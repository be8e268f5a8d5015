"""Models that PyTorch's exporters write, read back: the same outputs as PyTorch's."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import oracle

onnx = oracle("onnx")

from onnx import TensorProto, helper
from onnx_models import model_of, recurrent_node

import fusedrnn as fr
from fusedrnn.formats.onnx_nodes import find_recurrent

TOLERANCE = 5e-6

MODULES: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("LSTM", {}),
    "lstm-no-bias": ("LSTM", {"bias": False}),
    "lstm-stack": ("LSTM", {"num_layers": 3}),
    "lstm-bidirectional-stack": ("LSTM", {"num_layers": 2, "bidirectional": True}),
    "lstm-batch-first": (
        "LSTM",
        {"num_layers": 2, "bidirectional": True, "batch_first": True},
    ),
    "gru": ("GRU", {}),
    "gru-batch-first-stack": ("GRU", {"num_layers": 2, "batch_first": True}),
    "gru-bidirectional": ("GRU", {"bidirectional": True}),
    "rnn": ("RNN", {"num_layers": 2}),
    "rnn-relu": ("RNN", {"nonlinearity": "relu", "bidirectional": True}),
}


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    torch = oracle("torch")
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield torch
    logging.disable(logging.NOTSET)


def export(torch: Any, module: Any, path: Path, *inputs: Any, dynamo: bool, **options: Any) -> Any:
    if dynamo:
        pytest.importorskip("onnxscript")
        options |= {"verbose": False, "external_data": False}
    torch.onnx.export(module.eval(), inputs, str(path), dynamo=dynamo, **options)
    return onnx.load(path)


@pytest.mark.parametrize("dynamo", (False, True), ids=("torchscript", "dynamo"))
@pytest.mark.parametrize(("kind", "options"), MODULES.values(), ids=MODULES)
def test_an_exported_layer_is_the_layer(
    torch: Any, tmp_path: Path, kind: str, options: dict[str, Any], dynamo: bool
) -> None:
    if dynamo and (kind == "RNN" or len(options) not in (0, 3)):
        pytest.skip("this exporter takes seconds for each, and writes an RNN step by step")
    module = getattr(torch.nn, kind)(3, 5, **options)
    x = torch.randn(7, 2, 3)
    said: dict[str, Any] = (
        {} if dynamo else {"input_names": ["x"], "dynamic_axes": {"x": {0: "one", 1: "other"}}}
    )
    export(torch, module, tmp_path / "m.onnx", x, dynamo=dynamo, **said)
    layer = fr.load(tmp_path / "m.onnx")
    a = layer.architecture
    assert (a.num_layers, a.bidirectional) == (module.num_layers, module.bidirectional)
    assert layer.batch_first == module.batch_first
    for name, array in layer.weights.items():
        np.testing.assert_array_equal(array, getattr(module, name).detach().numpy(), name)
    with torch.no_grad():
        y, state = module(x)
    mine, after = layer(x.numpy())
    np.testing.assert_allclose(mine, y.numpy(), TOLERANCE, TOLERANCE)
    for one, other in zip(after, state if kind == "LSTM" else [state], strict=True):
        np.testing.assert_allclose(one, other.numpy(), TOLERANCE, TOLERANCE)


@pytest.mark.parametrize("dynamo", (False, True), ids=("torchscript", "dynamo"))
def test_a_learnt_initial_state_is_the_layers(torch: Any, tmp_path: Path, dynamo: bool) -> None:
    class Learnt(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.lstm = torch.nn.LSTM(3, 5, 2)
            self.h = torch.nn.Parameter(torch.randn(2, 1, 5))
            self.c = torch.nn.Parameter(torch.randn(2, 1, 5))

        def forward(self, x: Any) -> Any:
            batch = x.shape[1]
            return self.lstm(
                x, (self.h.expand(-1, batch, -1).contiguous(), self.c.repeat(1, batch, 1))
            )

    module = Learnt()
    x = torch.randn(7, 2, 3)
    export(torch, module, tmp_path / "m.onnx", x, dynamo=dynamo)
    with torch.no_grad():
        y, _ = module(x)
    layer = fr.load(tmp_path / "m.onnx")
    np.testing.assert_allclose(layer(x.numpy())[0], y.numpy(), TOLERANCE, TOLERANCE)
    np.testing.assert_array_equal(layer.initial_state[1], module.c.detach().numpy()[:, 0])


@pytest.mark.parametrize("dynamo", (False, True), ids=("torchscript", "dynamo"))
@pytest.mark.parametrize("kind", ("LSTMCell", "GRUCell", "RNNCell"))
def test_an_exported_cell_is_said_to_be_one(
    torch: Any, tmp_path: Path, kind: str, dynamo: bool
) -> None:
    module = getattr(torch.nn, kind)(3, 5)
    x, h = torch.randn(2, 3), torch.randn(2, 5)
    state = (h, torch.randn(2, 5)) if kind == "LSTMCell" else h
    export(torch, module, tmp_path / "m.onnx", x, state, dynamo=dynamo)
    found = fr.inspect(tmp_path / "m.onnx")
    (cell,) = found.parts
    gates = {"LSTMCell": 4, "GRUCell": 3, "RNNCell": 1}[kind]
    assert (cell.kind, cell.macs_per_step) == ("cell", gates * 5 * (3 + 5))
    with pytest.raises(ValueError, match="spelled out"):
        fr.load(tmp_path / "m.onnx")


def test_an_unrolled_rnn_is_said_to_be_one(torch: Any, tmp_path: Path) -> None:
    module = torch.nn.RNN(3, 5, nonlinearity="relu")
    export(torch, module, tmp_path / "m.onnx", torch.randn(6, 2, 3), dynamo=True)
    cells = [part for part in fr.inspect(tmp_path / "m.onnx").parts if part.kind == "cell"]
    assert [cell.macs_per_step for cell in cells] == [5 * (3 + 5)]


# ---- stacks, by hand -----------------------------------------------------------------------------


def stack_of(between: list[Any], arrays: dict[str, Any], **changes: Any) -> tuple[int, list[int]]:
    """How many layers are found in two nodes with these between them, and how high they are."""
    random = np.random.default_rng(0)
    directions = changes.pop("directions", 1)
    layout = changes.pop("layout", 0)
    outputs = changes.pop("outputs", ("Y2",))
    other = {"direction": "bidirectional"} if directions == 2 else {}
    nodes = []
    for place, x in ((1, "X"), (2, "x")):
        width = 4 if place == 1 else 4 * directions
        arrays |= {
            f"W{place}": random.standard_normal((directions, 12, width)).astype(np.float32),
            f"R{place}": random.standard_normal((directions, 12, 4)).astype(np.float32),
        }
        given = {"linear_before_reset": 1, "layout": layout} | other
        given |= changes if place == 2 else {}
        node = helper.make_node(
            "GRU", [x, f"W{place}", f"R{place}"], [f"Y{place}"], name=f"gru{place}", **given
        )
        nodes.append(node)
    made = model_of([nodes[0], *between, nodes[1]], arrays, ("X",), outputs)
    layers, _ = find_recurrent(made)
    return len(layers), [layer.architecture.num_layers for layer in layers]


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def node(operator: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(operator, inputs.split(), [output], **attributes)


SQUEEZE = [node("Squeeze", "Y1 one", "x")]
ONE = {"one": ints(1)}
JOIN = [node("Transpose", "Y1", "t", perm=[0, 2, 1, 3]), node("Reshape", "t s", "x")]
DYNAMIC = [
    node("Transpose", "Y1", "t", perm=[0, 2, 1, 3]),
    node("Shape", "t", "s", start=0),
    node("Slice", "s i0 i1", "T"),
    node("Gather", "s i1", "B"),
    node("Slice", "s i2 i3", "D"),
    node("Slice", "s i3 i4", "H"),
    node("Mul", "D H", "DH"),
    node("Reshape", "DH minus", "last"),
    node("Concat", "T B last", "shape", axis=0),
    node("Reshape", "t shape", "x"),
]
PLACES = {f"i{n}": ints(n) for n in range(5)} | {"minus": ints(-1)}


@pytest.mark.parametrize(
    ("between", "arrays", "changes"),
    (
        (SQUEEZE, ONE, {}),
        (JOIN, {"s": ints(0, 0, -1)}, {}),
        (JOIN, {"s": ints(0, 0, -1)}, {"directions": 2}),
        (JOIN, {"s": ints(0, -1, 8)}, {"directions": 2}),
        (DYNAMIC, PLACES, {"directions": 2}),
        ([node("Dropout", "Y1", "d"), node("Squeeze", "d one", "x")], ONE, {}),
        ([node("Reshape", "Y1 s", "x")], {"s": ints(0, 0, -1)}, {"layout": 1, "directions": 2}),
        ([node("Squeeze", "Y1 two", "x")], {"two": ints(2)}, {"layout": 1}),
    ),
)
def test_nodes_that_are_a_stack(between: list[Any], arrays: Any, changes: Any) -> None:
    assert stack_of(between, dict(arrays), **changes) == (1, [2])


@pytest.mark.parametrize(
    ("between", "arrays", "changes"),
    (
        # Others read what is between.
        (SQUEEZE, ONE, {"outputs": ("Y2", "x")}),
        (SQUEEZE, ONE, {"outputs": ("Y2", "Y1")}),
        ([*SQUEEZE, node("Relu", "x", "z")], ONE, {}),
        # Other options.
        (SQUEEZE, ONE, {"linear_before_reset": 0}),
        (SQUEEZE, ONE, {"direction": "reverse"}),
        (SQUEEZE, ONE, {"clip": 1.0}),
        (SQUEEZE, ONE, {"activations": ["Sigmoid", "Relu"]}),
        # More than moves, or other moves.
        ([node("Relu", "Y1", "r"), node("Squeeze", "r one", "x")], ONE, {}),
        ([node("Squeeze", "Y1 one", "s"), node("Transpose", "s", "x", perm=[1, 0, 2])], ONE, {}),
        ([node("Reshape", "Y1 s", "x")], {"s": ints(0, 0, -1)}, {"directions": 2}),
        (JOIN, {"s": ints(6, 2, 8)}, {"directions": 2}),
        (JOIN, {"s": ints(-1, 0, 8)}, {"directions": 2, "layout": 1}),
        (
            [*DYNAMIC[:-2], node("Concat", "B T last", "shape", axis=0), DYNAMIC[-1]],
            PLACES,
            {"directions": 2},
        ),
    ),
)
def test_negative_control_nodes_that_are_none(
    between: list[Any], arrays: Any, changes: Any
) -> None:
    assert stack_of(between, dict(arrays), **changes) == (2, [1, 1])


def test_shapes_of_numbers_are_believed_where_the_model_says_them() -> None:
    random = np.random.default_rng(0)

    def made(*lengths: int) -> Any:
        arrays: dict[str, Any] = {"s": ints(6, 2, 8)}
        nodes = []
        for place, x, width in ((1, "X", 3), (2, "x", 8)):
            arrays[f"W{place}"] = random.standard_normal((2, 4, width)).astype(np.float32)
            arrays[f"R{place}"] = random.standard_normal((2, 4, 4)).astype(np.float32)
            names = [x, f"W{place}", f"R{place}"]
            nodes.append(helper.make_node("RNN", names, [f"Y{place}"], direction="bidirectional"))
        model = model_of([nodes[0], *JOIN, nodes[1]], arrays, ("X",), ("Y2",))
        info = helper.make_tensor_value_info("t", TensorProto.FLOAT, lengths)
        model.graph.value_info.append(info)
        return find_recurrent(model)[0]

    assert len(made(6, 2, 2, 4)) == 1
    assert len(made(2, 6, 2, 4)) == 2


def test_a_layer_is_batch_first_where_x_and_y_are_transposed() -> None:
    random = np.random.default_rng(0)
    arrays = {
        "W": random.standard_normal((1, 12, 4)).astype(np.float32),
        "R": random.standard_normal((1, 12, 4)).astype(np.float32),
    } | ONE
    gru = recurrent_node("GRU", ("W", "R"))
    gru.input[0] = "x"
    turn = node("Transpose", "X", "x", perm=[1, 0, 2])
    squeeze = node("Squeeze", "Y one", "y")
    for nodes, outputs, expected in (
        ([turn, gru, squeeze, node("Transpose", "y", "z", perm=[1, 0, 2])], ("z",), True),
        ([turn, gru, squeeze], ("y",), False),
        ([turn, gru], ("Y_h",), True),
        ([node("Identity", "X", "x"), gru], ("Y_h",), False),
    ):
        (layer,), _ = find_recurrent(model_of(nodes, arrays, ("X",), outputs))
        assert layer.batch_first == expected
