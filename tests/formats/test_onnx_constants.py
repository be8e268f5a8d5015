"""Constants of ONNX models through chains of operators: what is worked out here is what ONNX Runtime gives."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from conftest import oracle

onnx = oracle("onnx")

from onnx import TensorProto, helper, numpy_helper
from onnx_models import Arrays, model_of

import fusedrnn as fr
from fusedrnn.formats.onnx_graph import MAX_CHAIN, NotConstantError, main_graph

Node = Any


def node(operator: str, *inputs: str, outputs: tuple[str, ...] = ("Y",), **attributes: Any) -> Node:
    return helper.make_node(operator, inputs, outputs, **attributes)


def constant(name: str, **value: Any) -> Node:
    return helper.make_node("Constant", [], [name], **value)


def by_onnx_runtime(model: Any) -> np.ndarray:
    runtime = oracle("onnxruntime")
    settings = runtime.SessionOptions()
    settings.log_severity_level = 3
    session = runtime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    array: np.ndarray = session.run(["Y"], {})[0]
    return array


def model(nodes: list[Node], arrays: Arrays | None = None, **fields: Any) -> Any:
    return model_of(nodes, arrays, (), ("Y",), **fields)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


A = np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7

CHAINS: dict[str, tuple[list[Node], Arrays]] = {
    "identity": ([node("Identity", "A")], {"A": A}),
    "value": ([constant("Y", value=numpy_helper.from_array(A))], {}),
    "value-float": ([constant("Y", value_float=0.3)], {}),
    "value-floats": ([constant("Y", value_floats=[0.3, 2.0])], {}),
    "value-ints": (
        [constant("axes", value_ints=[0, 4]), node("Unsqueeze", "A", "axes")],
        {"A": A},
    ),
    "unsqueeze": ([node("Unsqueeze", "A", "axes")], {"A": A, "axes": ints(-1, 0)}),
    "squeeze": ([node("Squeeze", "A", "axes")], {"A": A[:, :1], "axes": ints(1)}),
    "squeeze-all": ([node("Squeeze", "A")], {"A": A[:1, :1]}),
    "reshape": ([node("Reshape", "A", "shape")], {"A": A, "shape": ints(0, -1)}),
    "reshape-allowzero": (
        [node("Reshape", "A", "shape", allowzero=1)],
        {"A": A, "shape": ints(4, 6)},
    ),
    "flatten": ([node("Flatten", "A", axis=-1)], {"A": A}),
    "transpose": ([node("Transpose", "A", perm=[2, 0, 1])], {"A": A}),
    "transpose-all": ([node("Transpose", "A")], {"A": A}),
    "concat": ([node("Concat", "A", "B", axis=-2)], {"A": A, "B": A[:, :1] - 9}),
    "slice": (
        [node("Slice", "A", "starts", "ends", "axes")],
        {"A": A, "starts": ints(-3, 0), "ends": ints(2**62, 2), "axes": ints(2, 1)},
    ),
    "slice-back": (
        [node("Slice", "A", "starts", "ends", "", "steps")],
        {"A": A, "starts": ints(-1, 2), "ends": ints(-(2**62), 0), "steps": ints(-1, -2)},
    ),
    "split": (
        [node("Split", "A", "parts", outputs=("X", "Y"), axis=2)],
        {"A": A, "parts": ints(1, 3)},
    ),
    "cast": (
        [
            node("Cast", "A", outputs=("half",), to=TensorProto.FLOAT16),
            node("Cast", "half", to=TensorProto.FLOAT),
        ],
        {"A": A},
    ),
    "cast-double": ([node("Cast", "A", to=TensorProto.FLOAT)], {"A": A.astype(np.float64) / 3}),
    "cast-bfloat16": (
        [
            node("Cast", "A", outputs=("half",), to=TensorProto.BFLOAT16),
            node("Cast", "half", to=TensorProto.FLOAT),
        ],
        {"A": A},
    ),
    "expand": ([node("Expand", "A", "shape")], {"A": A[:, :1], "shape": ints(3, 1)}),
    "tile": ([node("Tile", "A", "repeats")], {"A": A, "repeats": ints(1, 2, 1)}),
    "dequantize": (
        [node("DequantizeLinear", "Q", "scale", "zero")],
        {
            "Q": np.arange(24, dtype=np.uint8).reshape(4, 6),
            "scale": np.float32(0.3),
            "zero": np.uint8(7),
        },
    ),
    "dequantize-axis": (
        [node("DequantizeLinear", "Q", "scale", "zero", axis=-2)],
        {
            "Q": np.arange(24, dtype=np.int8).reshape(4, 6),
            "scale": np.array([0.1, 0.2, 0.3, 0.4], np.float32),
            "zero": np.array([1, -2, 3, -4], np.int8),
        },
    ),
    "dequantize-no-zero": (
        [node("DequantizeLinear", "Q", "scale", axis=0)],
        {
            "Q": np.arange(24, dtype=np.int8).reshape(4, 6),
            "scale": np.array([0.1, 0.2, 0.3, 0.4], np.float32),
        },
    ),
    "a-long-chain": (
        [
            node("Unsqueeze", "A", "axes", outputs=("a",)),
            node("Transpose", "a", outputs=("b",), perm=[0, 3, 1, 2]),
            node("Concat", "b", "b", outputs=("c",), axis=1),
            node("Reshape", "c", "shape"),
        ],
        {"A": A, "axes": ints(0), "shape": ints(2, -1)},
    ),
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_a_chain_is_what_onnx_runtime_makes_of_it(chain: tuple[list[Node], Arrays]) -> None:
    made = model(*chain)
    view = main_graph(made)
    got, expected = view.constant("Y"), by_onnx_runtime(made)
    np.testing.assert_array_equal(got, expected)
    assert view.shape("Y") == expected.shape


def test_older_models_say_axes_in_attributes() -> None:
    nodes = [
        node("Unsqueeze", "A", outputs=("a",), axes=[0]),
        node("Split", "a", outputs=("b", "c"), axis=3, split=[1, 3]),
        node("Slice", "c", outputs=("d",), axes=[2], starts=[1], ends=[3]),
        node("Squeeze", "d", axes=[0]),
    ]
    view = main_graph(model(nodes, {"A": A}, opset=9))
    np.testing.assert_array_equal(view.constant("Y"), A[:, 1:3, 1:])


@pytest.mark.parametrize(
    "field",
    ("float_data", "double_data", "float16", "bfloat16", "int32_data", "int64_data", "uint64_data"),
)
def test_numbers_in_fields_of_their_own(field: str) -> None:
    numbers = (
        [1.5, -2.0, 3.25]
        if field in ("float_data", "double_data", "float16", "bfloat16")
        else [1, 2, 3]
    )
    kinds = {
        "float_data": TensorProto.FLOAT,
        "double_data": TensorProto.DOUBLE,
        "float16": TensorProto.FLOAT16,
        "bfloat16": TensorProto.BFLOAT16,
        "int32_data": TensorProto.INT8,
        "int64_data": TensorProto.INT64,
        "uint64_data": TensorProto.UINT32,
    }
    proto = helper.make_tensor("Y", kinds[field], [3], numbers)
    made = model([])
    assert not proto.HasField("raw_data")
    made.graph.initializer.append(proto)
    np.testing.assert_array_equal(main_graph(made).constant("Y"), numbers)


def test_values_of_graphs_around_and_of_callers() -> None:
    """A function's input is its caller's constant; its attribute is that of the call."""
    function = helper.make_function(
        "own",
        "Turned",
        ["F"],
        ["G"],
        [
            node("Transpose", "F", outputs=("G",)),
            helper.make_node("Concat", ["G", "G"], ["H"]),
        ],
        [helper.make_opsetid("", 22)],
        ["axis"],
    )
    reference = onnx.AttributeProto(name="axis", ref_attr_name="axis", type=onnx.AttributeProto.INT)
    function.node[1].attribute.append(reference)
    call = helper.make_node("Turned", ["A"], ["Y"], domain="own", axis=1)
    made = model([call], {"A": A[0]}, functions=[function])
    view = main_graph(made).call(call, function)
    np.testing.assert_array_equal(view.constant("G"), A[0].T)
    np.testing.assert_array_equal(view.constant("H"), np.concatenate([A[0].T] * 2, 1))


def test_leaves_are_what_the_numbers_come_from() -> None:
    nodes, arrays = CHAINS["a-long-chain"]
    assert [each.name for each in main_graph(model(nodes, arrays)).leaves("Y")] == ["A"]
    nodes, arrays = CHAINS["dequantize"]
    assert {each.name for each in main_graph(model(nodes, arrays)).leaves("Y")} == set(arrays)


def test_an_all_equal_value_is_known_even_if_its_shape_is_not() -> None:
    nodes = [
        node("Shape", "X", outputs=("s",)),
        node("ConstantOfShape", "s", outputs=("zeros",)),
        node("Slice", "zeros", "one", "two", outputs=("Y",)),
        node("Expand", "A", "s", outputs=("other",)),
    ]
    made = model_of(nodes, {"one": ints(0), "two": ints(1), "A": A}, ("X",))
    view = main_graph(made)
    assert view.fill("Y") == 0
    assert view.fill("other") is None
    with pytest.raises(NotConstantError, match="'X' is an input"):
        view.constant("other")
    np.testing.assert_array_equal(view.constant("other", any_batch=True), A)


# ---- what is no constant, or no model ------------------------------------------------------------


def test_an_input_is_not_constant() -> None:
    made = model_of([node("Transpose", "X")], {})
    with pytest.raises(NotConstantError, match="'X' is an input"):
        main_graph(made).shape("Y")


def test_an_operator_that_is_not_known_is_named() -> None:
    with pytest.raises(fr.UnsupportedError, match="'Y' is made by Exp"):
        main_graph(model([node("Exp", "A")], {"A": A})).constant("Y")
    with pytest.raises(NotConstantError):
        main_graph(model_of([node("Exp", "X")])).constant("Y")


def test_a_circle_is_an_error() -> None:
    nodes = [node("Identity", "Y", outputs=("a",)), node("Transpose", "a")]
    with pytest.raises(fr.ModelFormatError, match="made of itself"):
        main_graph(model(nodes)).shape("Y")
    assert main_graph(model(nodes)).fill("Y") is None
    assert main_graph(model(nodes)).leaves("Y") == ()


def test_a_long_chain_is_an_error() -> None:
    names = [f"v{place}" for place in range(MAX_CHAIN + 2)]
    nodes = [node("Identity", one, outputs=(other,)) for one, other in itertools.pairwise(names)]
    view = main_graph(model(nodes, {"v0": A}))
    with pytest.raises(fr.ModelFormatError, match=f"more than {MAX_CHAIN} operators"):
        view.constant(names[-1])
    np.testing.assert_array_equal(view.constant(names[MAX_CHAIN]), A)


@pytest.mark.parametrize("operator", ("Concat", "Tile", "Expand"))
def test_a_chain_that_grows_beyond_the_model_is_an_error(operator: str) -> None:
    nodes, last = [], "A"
    for place in range(60):
        name = f"v{place}"
        more = {"Concat": (last,), "Tile": ("big",), "Expand": ("huge",)}[operator]
        nodes.append(
            node(
                operator,
                last,
                *more,
                outputs=(name,),
                **({"axis": 0} if operator == "Concat" else {}),
            )
        )
        last = name
    arrays = {"A": A[:1, :1], "big": ints(2**20, 1, 1), "huge": ints(2**40, 1, 1)}
    with pytest.raises(fr.ModelFormatError, match="far more numbers than the model stores"):
        main_graph(model(nodes, arrays)).constant(last)


@pytest.mark.parametrize(
    ("made", "arrays"),
    (
        (node("Reshape", "A", "s"), {"s": ints(5, 5)}),
        (node("Reshape", "A", "s"), {"s": A}),
        (node("Reshape", "A", "s"), {"s": ints(0, 0, 0, 0)}),
        (node("Reshape", "A"), {}),
        (node("Unsqueeze", "A", "s"), {"s": ints(9)}),
        (node("Squeeze", "A", "s"), {"s": ints(0)}),
        (node("Transpose", "A", perm=[0, 0, 1]), {}),
        (node("Transpose", "A", perm=[0]), {}),
        (node("Slice", "A", "s", "s", "t"), {"s": ints(0), "t": ints(9)}),
        (node("Slice", "A", "s", "s", "", "s"), {"s": ints(0)}),
        (node("Slice", "A", "s"), {"s": ints(0)}),
        (node("Split", "A", "s", axis=0), {"s": ints(1, 7)}),
        (node("Split", "A", "s", axis=9), {"s": ints(1, 1)}),
        (node("Concat", "A", "s", axis=0), {"s": A[:, :1]}),
        (node("Concat", "A", "s", axis=7), {"s": A}),
        (node("Concat", axis=0), {}),
        (node("Identity"), {}),
        (node("DequantizeLinear", "A", "s"), {"s": np.float32(1)}),
        (node("DequantizeLinear", "s"), {"s": ints(1)}),
        (node("Tile", "A", "s"), {"s": ints(1, -1, 1)}),
        (node("Expand", "A", "s"), {"s": ints(5, 5, 5)}),
    ),
    ids=lambda each: each.op_type if hasattr(each, "op_type") else "",
)
def test_operators_that_do_not_fit_are_errors(made: Node, arrays: Arrays) -> None:
    view = main_graph(model([made], {"A": A} | arrays))
    with pytest.raises(fr.ModelFormatError, match=f"{made.op_type}.*'Y'"):
        view.constant("Y")


def test_names_twice_are_errors() -> None:
    twice = model([], {"Y": A})
    twice.graph.initializer.append(twice.graph.initializer[0])
    with pytest.raises(fr.ModelFormatError, match="two initializers are named 'Y'"):
        main_graph(twice)
    with pytest.raises(fr.ModelFormatError, match="'Y' is made twice"):
        main_graph(model([node("Identity", "A"), node("Identity", "A")], {"A": A}))
    with pytest.raises(fr.ModelFormatError, match="'nowhere' is used, and nothing gives it"):
        main_graph(model([node("Identity", "nowhere")])).shape("Y")


def test_tensors_that_are_not_what_they_say_are_errors() -> None:
    def broken(change: Any) -> Any:
        made = model([], {"Y": A})
        change(made.graph.initializer[0])
        return main_graph(made)

    def dims(*lengths: int) -> Any:
        def change(proto: Any) -> None:
            proto.dims[:] = lengths

        return change

    def raw(data: bytes) -> Any:
        def change(proto: Any) -> None:
            proto.raw_data = data

        return change

    def field(proto: Any) -> None:
        proto.ClearField("raw_data")
        proto.float_data.append(1)

    for change, match in (
        (dims(2, 3, -4), "negative axis"),
        (dims(2, 3, 5), "must have 120 bytes, got 96"),
        (dims(2**40, 2**40), "must have .* bytes, got 96"),
        (raw(b"1234567"), "must have 96 bytes, got 7"),
        (field, "must have 24 numbers, got 1"),
        (lambda proto: proto.segment.SetInParent(), "segments"),
    ):
        with pytest.raises(fr.ModelFormatError, match=match):
            broken(change).shape("Y")

    def kind(number: int) -> Any:
        def change(proto: Any) -> None:
            proto.data_type = number

        return change

    for number, match in ((TensorProto.STRING, "string"), (999, "type 999")):
        with pytest.raises(fr.UnsupportedError, match=match):
            broken(kind(number)).constant("Y")
