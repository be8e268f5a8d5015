"""Sessions: whole models, cut at their recurrent nodes, beside ONNX Runtime."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper

import fusedrnn as fr
from fusedrnn.onnx.sessions import Session

Arrays = dict[str, np.ndarray]
CELLS = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass
class Builder:
    """A model that grows node by node; sequences are (T, B, width)."""

    seed: int = 0
    opset: int = 17
    prefix: str = ""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: Arrays = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def store(self, array: np.ndarray, name: str = "") -> str:
        name = name or f"{self.prefix}stored{len(self.stored)}"
        self.stored[name] = array
        return name

    def weights(self, *shape: int) -> str:
        return self.store((self.random.standard_normal(shape) / 2).astype(np.float32))

    def ints(self, *numbers: int) -> str:
        return self.store(np.array(numbers, np.int64))

    def node(self, operator: str, *inputs: str, outputs: tuple[str, ...] = (), **said: Any) -> str:
        outputs = outputs or (f"{self.prefix}value{len(self.nodes)}",)
        self.nodes.append(
            helper.make_node(operator, inputs, outputs, name=outputs[0] + "!", **said)
        )
        return outputs[0]

    def recurrent(
        self,
        operator: str,
        x: str,
        width: int,
        units: int,
        given: tuple[str, ...] = (),
        **said: Any,
    ) -> tuple[str, str, str]:
        """A recurrent node; its Y, Y_h and Y_c."""
        gates = CELLS[operator]
        directions = 2 if said.get("direction") == "bidirectional" else 1
        weights = (
            self.weights(directions, gates * units, width),
            self.weights(directions, gates * units, units),
            self.weights(directions, 2 * gates * units),
        )
        y = f"{self.prefix}y{len(self.nodes)}"
        outputs = (y, f"{y}_h", f"{y}_c")
        self.node(
            operator,
            *(x, *weights, *given),
            outputs=outputs[: 3 if operator == "LSTM" else 2],
            hidden_size=units,
            **said,
        )
        return outputs

    def joined(self, y: str, directions: int) -> str:
        """From Y (T, D, B, H) to (T, B, D H)."""
        if directions == 1:
            return self.node("Squeeze", y, self.ints(1))
        return self.node(
            "Reshape", self.node("Transpose", y, perm=[0, 2, 1, 3]), self.ints(0, 0, -1)
        )

    def model(
        self,
        outputs: tuple[str, ...],
        inputs: dict[str, tuple[int | str, ...]] | None = None,
        **fields: Any,
    ) -> onnx.ModelProto:
        inputs = {"x": ("T", "B", 3)} if inputs is None else inputs
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [
                helper.make_tensor_value_info(
                    name, TensorProto.INT32 if name == "lens" else TensorProto.FLOAT, shape
                )
                for name, shape in inputs.items()
            ],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(array, name) for name, array in self.stored.items()],
        )
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8, **fields)


def plain(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def distance(model: onnx.ModelProto, feeds: Arrays, session: Session | None = None) -> float:
    """The largest difference between a session and ONNX Runtime; shapes and types must agree."""
    session = session or fr.onnx.session(model, log_severity_level=3)
    ours, theirs = session.run(None, feeds), plain(model).run(None, feeds)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert one.flags.c_contiguous
    return max(float(np.abs(one - other).max(initial=0)) for one, other in zip(ours, theirs))


def sequence(random: np.random.Generator, steps: int = 6, batch: int = 2, width: int = 3) -> Any:
    return random.standard_normal((steps, batch, width)).astype(np.float32)


#: Rounding, of values near 1 that come through a few nodes.
CLOSE = 2e-5


# ---- any graph -----------------------------------------------------------------------------------


@st.composite
def graphs(draw: st.DrawFn) -> tuple[onnx.ModelProto, int]:
    """Chains and diamonds; and how many recurrent nodes were drawn."""
    builder = Builder(draw(st.integers(0, 1000)), draw(st.sampled_from((13, 17, 20))))
    values = {"x": 3}  # (T, B, width) each
    ends = ["x"]
    recurrent = 0
    for _ in range(draw(st.integers(1, 9))):
        x = draw(st.sampled_from(list(values)))
        width = values[x]
        kind = draw(st.sampled_from((*CELLS, *CELLS, "MatMul", "Relu", "Concat", "Turns", "Add")))
        if kind in CELLS:
            recurrent += 1
            direction = draw(st.sampled_from(("forward", "reverse", "bidirectional")))
            units = draw(st.integers(1, 6))
            said: dict[str, Any] = {"direction": direction}
            if kind == "GRU":
                said["linear_before_reset"] = draw(st.integers(0, 1))
            outputs = builder.recurrent(kind, x, width, units, **said)
            directions = 2 if direction == "bidirectional" else 1
            made, width = builder.joined(outputs[0], directions), units * directions
            ends += outputs[: draw(st.integers(0, 2))]
        elif kind == "MatMul":
            units = draw(st.integers(1, 6))
            made, width = builder.node("MatMul", x, builder.weights(width, units)), units
        elif kind == "Relu":
            made = builder.node("Relu", x)
        elif kind == "Concat":
            other = draw(st.sampled_from(list(values)))
            made, width = builder.node("Concat", x, other, axis=2), width + values[other]
        elif kind == "Turns":
            made = builder.node("Transpose", x, perm=[1, 0, 2])
            if draw(st.booleans()):
                made = builder.node("Identity", made)
            made = builder.node("Transpose", made, perm=[1, 0, 2])
        else:
            last = builder.node("Gather", x, builder.ints(-1), axis=0)  # (1, B, width)
            made = builder.node("Add", x, last)
        values[made] = width
        ends.append(made)
    outputs = draw(st.lists(st.sampled_from(ends), min_size=1, max_size=4, unique=True))
    return builder.model(tuple(outputs)), recurrent


@given(graphs(), st.integers(1, 7), st.integers(1, 3))
@settings(max_examples=60)
def test_any_graph_gives_what_onnxruntime_gives(
    drawn: tuple[onnx.ModelProto, int], steps: int, batch: int
) -> None:
    model, _ = drawn
    feeds = {"x": sequence(np.random.default_rng(1), steps, batch)}
    session = fr.onnx.session(model, log_severity_level=3)
    assert distance(model, feeds, session) < CLOSE
    assert distance(model, feeds, session) < CLOSE  # a prepared call, too
    assert all(node.runs_in == "fusedrnn" for node in session.report.recurrent)


@given(graphs())
@settings(max_examples=15)
def test_empty_sequences_and_batches_have_their_shapes(
    drawn: tuple[onnx.ModelProto, int],
) -> None:
    """ONNX Runtime ends the process with an empty batch: the shapes of others must only differ in T and B."""
    model, _ = drawn
    if any(node.op_type == "Gather" for node in model.graph.node):
        return  # there is no last step
    session = fr.onnx.session(model, log_severity_level=3)

    def shapes(steps: int, batch: int) -> list[tuple[int, ...]]:
        x = np.zeros((steps, batch, 3), np.float32)
        return [array.shape for array in session.run(None, {"x": x})]

    full = shapes(101, 97)
    for steps, batch in ((0, 97), (101, 0), (0, 0)):
        lengths = {101: steps, 97: batch}
        wanted = [tuple(lengths.get(length, length) for length in shape) for shape in full]
        assert shapes(steps, batch) == wanted


def swapped_gates(model: onnx.ModelProto) -> None:
    """Of the first recurrent node: the blocks of its first two gates, exchanged."""
    node = next(node for node in model.graph.node if node.op_type == "LSTM")
    units = next(each.i for each in node.attribute if each.name == "hidden_size")
    for tensor in model.graph.initializer:
        if tensor.name in node.input[1:4]:
            array = numpy_helper.to_array(tensor).copy()
            array[:, : 2 * units] = np.roll(array[:, : 2 * units], units, axis=1)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def turned(model: onnx.ModelProto) -> None:
    """The first recurrent node in the other direction."""
    node = next(node for node in model.graph.node if node.op_type == "LSTM")
    for each in node.attribute:
        if each.name == "direction":
            each.s = b"reverse" if each.s == b"forward" else b"forward"


@pytest.mark.parametrize("wrong", [swapped_gates, turned])
def test_negative_control_a_wrong_model_differs(wrong: Callable[[Any], None]) -> None:
    builder = Builder()
    y, *_ = builder.recurrent("LSTM", "x", 3, 5, direction="forward")
    model = builder.model((builder.node("Relu", y),))
    feeds = {"x": sequence(builder.random)}
    assert distance(model, feeds) < CLOSE
    other = onnx.ModelProto()
    other.CopyFrom(model)
    wrong(other)
    assert distance(model, feeds, fr.onnx.session(other)) > 1e-2


# ---- how it is cut -------------------------------------------------------------------------------


def test_a_stack_needs_no_piece() -> None:
    builder = Builder()
    x, width = "x", 3
    for units in (4, 5, 6):
        y, *_ = builder.recurrent("LSTM", x, width, units, direction="bidirectional")
        x, width = builder.joined(y, 2), 2 * units
    model = builder.model((x,))
    session = fr.onnx.session(model)
    assert session.report.pieces == ()
    assert session.report.moves == 6
    assert distance(model, {"x": sequence(builder.random)}, session) < CLOSE


def test_nodes_wait_for_the_piece_that_needs_them() -> None:
    builder = Builder()
    y, *_ = builder.recurrent("GRU", "x", 3, 4)
    other = builder.node("MatMul", "x", builder.weights(3, 4))  # could run first, and need not
    both = builder.node("Concat", builder.joined(y, 1), other, axis=2)
    model = builder.model((builder.node("MatMul", both, builder.weights(8, 2)),))
    session = fr.onnx.session(model)
    assert len(session.report.pieces) == 1
    assert distance(model, {"x": sequence(builder.random)}, session) < CLOSE


def test_dense_layers_between_and_around_make_a_piece_each() -> None:
    builder = Builder()
    x = builder.node("MatMul", "x", builder.weights(3, 4))
    for _ in range(2):
        y, *_ = builder.recurrent("RNN", x, 4, 4)
        parallel, *_ = builder.recurrent("RNN", x, 4, 4)
        x = builder.node("Add", builder.joined(y, 1), builder.joined(parallel, 1))
    model = builder.model((x,))
    session = fr.onnx.session(model)
    assert len(session.report.pieces) == 3
    assert distance(model, {"x": sequence(builder.random)}, session) < CLOSE


def test_states_of_zeros_are_not_computed() -> None:
    builder = Builder()
    batch = builder.node("Gather", builder.node("Shape", "x"), builder.ints(1), axis=0)
    shape = builder.node("Concat", builder.ints(1), batch, builder.ints(4), axis=0)
    zeros = builder.node("ConstantOfShape", shape)
    y, h, _ = builder.recurrent("LSTM", "x", 3, 4, ("", zeros, zeros))
    model = builder.model((y, h))
    session = fr.onnx.session(model)
    assert session.report.pieces == ()
    assert session.report.unused == 4
    assert distance(model, {"x": sequence(builder.random)}, session) < CLOSE


def test_a_model_without_recurrent_nodes_is_one_piece() -> None:
    builder = Builder()
    model = builder.model((builder.node("Relu", builder.node("Transpose", "x")), "x"))
    session = fr.onnx.session(model)
    assert session.report.pieces == (2,)
    assert session.report.recurrent == ()
    assert distance(model, {"x": sequence(builder.random)}, session) == 0


def test_outputs_share_no_memory_with_inputs_or_each_other() -> None:
    builder = Builder()
    y, h, _ = builder.recurrent("LSTM", "x", 3, 4)
    same = builder.node("Identity", "x")
    stored = builder.weights(3)
    builder.node("Identity", stored)
    model = builder.model((y, builder.joined(y, 1), h, "x", same, stored))
    session = fr.onnx.session(model)
    x = sequence(builder.random)
    outputs = session.run(None, {"x": x})
    for place, one in enumerate(outputs):
        assert one.flags.writeable
        assert not any(np.may_share_memory(one, other) for other in (x, *outputs[:place]))
    before = [each.copy() for each in outputs]
    for each in outputs:
        each[...] = 7
    for one, other in zip(session.run(None, {"x": x}), before, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("operator", "sizes", "said"),
    [
        ("Identity", (), {}),
        ("Dropout", (), {}),
        ("Transpose", (), {}),
        ("Transpose", (), {"perm": [2, 0, 3, 1]}),
        ("Squeeze", (), {}),
        ("Squeeze", ((-3,),), {}),
        ("Unsqueeze", ((0, -1),), {}),
        ("Flatten", (), {}),
        ("Flatten", (), {"axis": -2}),
        ("Flatten", (), {"axis": 0}),
        ("Reshape", ((0, -1),), {}),
        ("Reshape", ((-1, 4),), {}),
        ("Reshape", ((0, 0, 2, 4),), {}),
        ("Reshape", ((6, 2, 4),), {"allowzero": 1}),
        ("Slice", ((1,), (-1,)), {}),
        ("Slice", ((-1, 0), (-100, 2), (0, 3), (-2, 1)), {}),
        ("Slice", ((0,), (2**62,), (-1,), (3,)), {}),
        ("Gather", (-1,), {}),
        ("Gather", ((3, 0, -2),), {"axis": -1}),
        ("Concat", ("y0",), {"axis": -2}),
    ],
)
def test_a_move_of_numbers_is_that_of_onnxruntime(
    operator: str, sizes: tuple[Any, ...], said: dict[str, Any]
) -> None:
    builder = Builder()
    y, *_ = builder.recurrent("GRU", "x", 3, 4)
    others = [
        size if isinstance(size, str) else builder.store(np.array(size, np.int64)) for size in sizes
    ]
    model = builder.model((builder.node(operator, y, *others, **said),))
    session = fr.onnx.session(model)
    assert session.report.moves == 1
    assert distance(model, {"x": sequence(builder.random)}, session) < CLOSE


def test_a_slice_of_an_axis_that_cannot_be_is_an_error_of_the_model() -> None:
    builder = Builder()
    y, *_ = builder.recurrent("GRU", "x", 3, 4)
    far = builder.node("Slice", y, builder.ints(0), builder.ints(1), builder.ints(2**40))
    with pytest.raises(fr.ModelFormatError, match="Slice: there are no axes"):
        fr.onnx.session(builder.model((far,)))


def test_a_move_by_sizes_that_are_attributes() -> None:
    builder = Builder(opset=9)
    y, *_ = builder.recurrent("GRU", "x", 3, 4)
    squeezed = builder.node("Squeeze", y, axes=[1])
    part = builder.node("Slice", squeezed, starts=[1], ends=[-1], axes=[0])
    model = builder.model((builder.node("Unsqueeze", part, axes=[2]),))
    session = fr.onnx.session(model)
    assert session.report.moves == 3
    assert distance(model, {"x": sequence(builder.random)}, session) < CLOSE


# ---- recurrent nodes -----------------------------------------------------------------------------


def test_lengths_and_states_are_given_at_run_time() -> None:
    builder = Builder()
    y, h, c = builder.recurrent("LSTM", "x", 3, 4, ("lens", "h", "c"), direction="bidirectional")
    states: dict[str, tuple[int | str, ...]] = {"h": (2, "B", 4), "c": (2, "B", 4)}
    model = builder.model((y, h, c), {"x": ("T", "B", 3), "lens": ("B",), **states})
    feeds = {
        "x": sequence(builder.random, 6, 3),
        "lens": np.array([6, 2, 4], np.int32),
        "h": sequence(builder.random, 2, 3, 4),
        "c": sequence(builder.random, 2, 3, 4),
    }
    assert distance(model, feeds) < CLOSE


@pytest.mark.parametrize("given_c", [False, True])
def test_one_state_at_run_time_and_the_other_stored_or_absent(given_c: bool) -> None:
    builder = Builder()
    c = builder.store(sequence(builder.random, 1, 2, 4)[:, :1].repeat(2, 1)) if given_c else ""
    y, *_ = builder.recurrent("LSTM", "x", 3, 4, ("", "h", c) if c else ("", "h"))
    model = builder.model((y,), {"x": ("T", "B", 3), "h": (1, "B", 4)})
    feeds = {"x": sequence(builder.random), "h": sequence(builder.random, 1, 2, 4)}
    assert distance(model, feeds) < CLOSE


def test_a_stored_state_and_stored_lengths() -> None:
    builder = Builder()
    h = builder.store(np.full((1, 2, 4), 0.5, np.float32) * np.arange(4, dtype=np.float32))
    lengths = builder.store(np.array([3, 5], np.int32))
    y, *_ = builder.recurrent("GRU", "x", 3, 4, (lengths, h))
    model = builder.model((y,))
    session = fr.onnx.session(model)
    assert session.report.recurrent[0].runs_in == "fusedrnn"
    assert distance(model, {"x": sequence(builder.random)}, session) < CLOSE


def test_states_that_come_as_slices_of_one_input() -> None:
    builder = Builder()
    x, width = "x", 3
    for layer in range(2):
        part = builder.node(
            *("Slice", "h", builder.ints(layer), builder.ints(layer + 1), builder.ints(0))
        )
        y, h, _ = builder.recurrent("GRU", x, width, 4, ("", part))
        x, width = builder.joined(y, 1), 4
    model = builder.model((x, h), {"x": ("T", "B", 3), "h": (2, "B", 4)})
    session = fr.onnx.session(model)
    assert session.report.pieces == ()
    feeds = {"x": sequence(builder.random), "h": sequence(builder.random, 2, 2, 4)}
    assert distance(model, feeds, session) < CLOSE


def test_batch_first_nodes_run_here() -> None:
    """ONNX Runtime has no layout=1: the same node with transpositions around it is the oracle."""
    builder, other = Builder(3), Builder(3)
    outputs = builder.recurrent("LSTM", "x", 3, 4, direction="bidirectional", layout=1)
    model = builder.model(outputs, {"x": ("B", "T", 3)})
    y, h, c = other.recurrent(
        "LSTM", other.node("Transpose", "x", perm=[1, 0, 2]), 3, 4, direction="bidirectional"
    )
    y = other.node("Transpose", y, perm=[2, 0, 1, 3])
    states = [other.node("Transpose", each, perm=[1, 0, 2]) for each in (h, c)]
    x = sequence(builder.random, 2, 5)
    theirs = plain(other.model((y, *states), {"x": ("B", "T", 3)})).run(None, {"x": x})
    for one, wanted in zip(fr.onnx.session(model).run(None, {"x": x}), theirs, strict=True):
        np.testing.assert_allclose(one, wanted, atol=CLOSE)


def test_nan_comes_out() -> None:
    builder = Builder()
    y, *_ = builder.recurrent("LSTM", "x", 3, 4)
    x = sequence(builder.random)
    x[2, 1, 0] = np.nan
    (found,) = fr.onnx.session(builder.model((y,))).run(None, {"x": x})
    assert np.isnan(found[2:, :, 1]).all()
    assert not np.isnan(found[:, :, 0]).any()
    assert not np.isnan(found[:2]).any()


def test_operators_that_onnx_does_not_know_stand_between_layers() -> None:
    """Their types are those that ONNX Runtime infers."""
    builder = Builder()
    y, *_ = builder.recurrent("GRU", "x", 3, 4)
    x = builder.joined(y, 1)
    for _ in range(2):
        x = builder.node("QuickGelu", x, domain="com.microsoft")
        y, *_ = builder.recurrent("GRU", x, 4, 4)
        x = builder.joined(y, 1)
        both = builder.node("QuickGelu", x, domain="com.microsoft")
        x = builder.node("Mul", x, both)
    model = builder.model((x,))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    session = fr.onnx.session(model)
    assert len(session.report.pieces) == 3
    assert distance(model, {"x": sequence(builder.random)}, session) < CLOSE


def test_only_the_last_state_is_wanted_of_a_stored_x() -> None:
    builder = Builder()
    x = builder.store(sequence(builder.random))
    *_, h, _ = builder.recurrent("LSTM", x, 3, 4)
    builder.nodes[0].output[:] = ["", h]
    model = builder.model((builder.node("Add", h, "x"),), {"x": (1, 2, 4)})
    assert distance(model, {"x": sequence(builder.random, 1, 2, 4)}) < CLOSE


def test_a_model_of_an_old_version_whose_weights_are_inputs() -> None:
    builder = Builder(opset=9)
    y, *_ = builder.recurrent("LSTM", "x", 3, 4)
    model = builder.model((builder.node("Relu", y),))
    model.ir_version = 3
    for name, array in builder.stored.items():
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape)
        model.graph.input.append(value)
    session = fr.onnx.session(model)
    assert [each.name for each in session.get_inputs()] == ["x"]
    assert distance(model, {"x": sequence(builder.random)}, session) < CLOSE


@pytest.mark.parametrize("threads", [2, "auto"])
def test_any_number_of_threads_gives_the_same(threads: Any) -> None:
    x = sequence(np.random.default_rng(0))
    one, other = (fr.onnx.session(simple(), threads=t).run(None, {"x": x}) for t in (1, threads))
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_an_embedding_in_front_and_a_missing_row() -> None:
    builder = Builder()
    table = builder.weights(10, 3)
    y, *_ = builder.recurrent("GRU", builder.node("Gather", table, "lens"), 3, 4)
    model = builder.model((y,), {"lens": ("T", "B")})
    session = fr.onnx.session(model)
    assert session.report.pieces == ()
    ids = np.array([[1, -1], [9, 0]], np.int32)
    assert distance(model, {"lens": ids}, session) < CLOSE
    with pytest.raises(ValueError, match="Gather"):
        session.run(None, {"lens": ids + 9})


# ---- what is left to onnxruntime -----------------------------------------------------------------


def reasons(session: Session) -> dict[str, str]:
    return {
        node.name: node.detail for node in session.report.recurrent if node.runs_in == "onnxruntime"
    }


def in_if(builder: Builder) -> str:
    """A choice between an LSTM and its X, both of values around it."""
    inner = Builder(7, prefix="inner_")
    y, *_ = inner.recurrent("LSTM", "seen", 3, 3)
    inner.joined(y, 1)
    graphs = []
    for name, nodes in (
        ("then", inner.nodes),
        ("else", [helper.make_node("Identity", ["seen"], ["value_else"])]),
    ):
        output = nodes[-1].output[0]
        value = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        graphs.append(helper.make_graph(nodes, name, [], [value]))
    builder.stored |= inner.stored
    total = builder.node(
        *("ReduceSum", "seen", builder.ints(0, 1, 2)), outputs=("total",), keepdims=0
    )
    positive = builder.node("Greater", total, builder.store(np.float32(0)))
    return builder.node("If", positive, then_branch=graphs[0], else_branch=graphs[1])


def test_nodes_in_subgraphs_are_left_and_others_run_here() -> None:
    builder = Builder()
    y, *_ = builder.recurrent("GRU", "x", 3, 3)
    builder.node("Squeeze", y, builder.ints(1), outputs=("seen",))
    model = builder.model((in_if(builder), "total"))
    session = fr.onnx.session(model)
    ((_, reason),) = reasons(session).items()
    assert "If" in reason and "then" in reason
    assert [node.runs_in for node in session.report.recurrent] == ["fusedrnn", "onnxruntime"]
    signs = set()
    for each in (sequence(builder.random, 1, 1) for _ in range(10)):
        assert distance(model, {"x": each}, session) < CLOSE
        signs.add(np.sign(session.run(["total"], {"x": each})[0]).item())
    assert signs == {-1, 1}  # both branches


def test_a_loop_reads_a_layer_from_around_it() -> None:
    builder = Builder()
    y, *_ = builder.recurrent("RNN", "x", 3, 4)
    seen = builder.joined(y, 1)

    def value(name: str, kind: int, shape: Any = None) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    body = helper.make_graph(
        [
            helper.make_node("Add", ["sum", seen], ["sum_next"]),
            helper.make_node("Identity", ["go"], ["go_next"]),
        ],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("sum", 1)],
        [value("go_next", TensorProto.BOOL, []), value("sum_next", 1)],
    )
    count, go = builder.store(np.int64(3)), builder.store(np.bool_(True))
    builder.node("Loop", count, go, builder.node("Relu", seen), outputs=("total",), body=body)
    model = builder.model(("total",))
    session = fr.onnx.session(model)
    assert len(session.report.pieces) == 1
    assert distance(model, {"x": sequence(builder.random)}, session) < CLOSE


def test_weights_known_at_run_time_are_left() -> None:
    builder = Builder()
    y, *_ = builder.recurrent("RNN", "x", 3, 4)
    builder.nodes[-1].input[1] = "W"
    model = builder.model((y,), {"x": ("T", "B", 3), "W": (1, 4, 3)})
    session = fr.onnx.session(model)
    assert "not constant" in reasons(session)["y0!"]
    feeds = {"x": sequence(builder.random), "W": sequence(builder.random, 1, 4, 3)}
    assert distance(model, feeds, session) < CLOSE


@pytest.mark.parametrize("backend", ["auto", "numpy"])
def test_activations_that_only_numpy_has(backend: str) -> None:
    builder = Builder()
    y, *_ = builder.recurrent("RNN", "x", 3, 4, activations=["Softplus"])
    model = builder.model((y,))
    session = fr.onnx.session(model, backend=backend)
    assert bool(reasons(session)) == (backend == "auto")
    assert distance(model, {"x": sequence(builder.random)}, session) < CLOSE


def test_nodes_in_functions_run_here() -> None:
    builder = Builder()
    y, *_ = builder.recurrent("LSTM", "x", 3, 4)
    node = builder.nodes.pop()
    node.input[:] = ["x", "W", "R", "B"]
    function = helper.make_function(
        "own", "Twice", ["x", "W", "R", "B"], [node.output[0]], [node],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    builder.nodes.append(helper.make_node("Twice", ["x", *builder.stored], [y], domain="own"))
    model = builder.model((builder.node("Relu", y),), functions=[function])
    model.opset_import.append(helper.make_opsetid("own", 1))
    session = fr.onnx.session(model)
    assert [each.runs_in for each in session.report.recurrent] == ["fusedrnn"]
    assert distance(model, {"x": sequence(builder.random)}, session) < CLOSE


# ---- inputs and outputs --------------------------------------------------------------------------


def simple() -> onnx.ModelProto:
    builder = Builder()
    y, h, _ = builder.recurrent("GRU", "x", 3, 4)
    return builder.model((builder.node("Relu", y), h))


def test_inputs_and_outputs_are_described_as_onnxruntime_does() -> None:
    builder = Builder()
    y, h, _ = builder.recurrent("LSTM", "x", 3, 4, ("lens",))
    model = builder.model((builder.joined(y, 1), h), {"x": (7, "B", 3), "lens": ("B",)})
    session, theirs = fr.onnx.session(model), plain(model)
    ours = [(each.name, each.type, each.shape) for each in session.get_inputs()]
    assert ours == [(each.name, each.type, tuple(each.shape)) for each in theirs.get_inputs()]
    ours = [(each.name, each.type) for each in session.get_outputs()]
    assert ours == [(each.name, each.type) for each in theirs.get_outputs()]


def test_outputs_are_chosen_by_name() -> None:
    session = fr.onnx.session(simple())
    x = sequence(np.random.default_rng(0))
    relu, h = session.run(None, {"x": x})
    names = [each.name for each in session.get_outputs()]
    (chosen,) = session.run(names[1:], {"x": x})
    np.testing.assert_array_equal(chosen, h)
    turned = session.run(names[::-1], {"x": x})
    np.testing.assert_array_equal(turned[1], relu)
    with pytest.raises(ValueError, match="'nothing'"):
        session.run(["nothing"], {"x": x})


@pytest.mark.parametrize(
    ("feeds", "error", "said"),
    [
        ({}, ValueError, "'x' is missing"),
        ({"x": np.zeros((2, 1, 3), np.float32), "X": 0}, ValueError, "'X'"),
        ({"x": np.zeros((2, 1, 3))}, TypeError, "'x' must be float32, got float64"),
        ({"x": np.zeros((2, 1, 4), np.float32)}, ValueError, "'x' must have shape"),
        ({"x": np.zeros((2, 3), np.float32)}, ValueError, "'x' must have shape"),
    ],
)
def test_wrong_feeds_are_named(feeds: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        fr.onnx.session(simple()).run(None, feeds)


def test_an_error_in_a_layer_names_its_node() -> None:
    builder = Builder()
    y, *_ = builder.recurrent("GRU", builder.node("Relu", "x"), 3, 4)
    model = builder.model((y,), {"x": ("T", "B", "X")})
    with pytest.raises(ValueError, match=r"node 'y1!' \(GRU\), whose X is 'value0'"):
        fr.onnx.session(model).run(None, {"x": np.zeros((2, 1, 5), np.float32)})


def test_lists_and_onnxruntime_values_are_inputs() -> None:
    session = fr.onnx.session(simple())
    x = sequence(np.random.default_rng(0))
    wanted = session.run(None, {"x": x})
    for given_x in (x.tolist(), onnxruntime.OrtValue.ortvalue_from_numpy(x)):
        for one, other in zip(session.run(None, {"x": given_x}), wanted, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_default_may_be_replaced_unless_a_layer_was_made_of_it() -> None:
    builder = Builder()
    y, *_ = builder.recurrent("RNN", "x", 3, 4)
    bias = builder.weights(4)
    model = builder.model((builder.node("Add", y, bias),))
    for name in (bias, builder.nodes[0].input[1]):
        shape = builder.stored[name].shape
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    session = fr.onnx.session(model)
    assert [each.name for each in session.get_inputs()] == ["x"]
    feeds = {"x": sequence(builder.random)}
    assert distance(model, feeds, session) < CLOSE
    assert distance(model, {**feeds, bias: np.ones(4, np.float32)}, session) < CLOSE
    weight = builder.nodes[0].input[1]
    with pytest.raises(ValueError, match=weight):
        session.run(None, {**feeds, weight: builder.stored[weight]})


# ---- files and options ---------------------------------------------------------------------------


def test_external_data_is_read_only_when_asked_for(tmp_path: Path) -> None:
    builder = Builder()
    y, *_ = builder.recurrent("LSTM", "x", 3, 4)
    model = builder.model((builder.node("MatMul", y, builder.weights(4, 5)),))
    feeds = {"x": sequence(builder.random)}
    wanted = plain(model).run(None, feeds)
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="model.bin", size_threshold=0)
    with pytest.raises(fr.ModelFormatError, match="external_data=True"):
        fr.onnx.session(path)
    session = fr.onnx.session(path, external_data=True)
    np.testing.assert_allclose(session.run(None, feeds)[0], wanted[0], atol=CLOSE)


def test_what_onnxruntime_refuses_is_an_error_of_the_model(tmp_path: Path) -> None:
    builder = Builder()
    path = tmp_path / "model.onnx"
    onnx.save(builder.model((builder.node("NoSuchThing", "x"),)), path)
    with pytest.raises(fr.ModelFormatError, match=r"model\.onnx.*NoSuchThing"):
        fr.onnx.session(path)
    path.write_bytes(b"\x08\x08no model")
    with pytest.raises(fr.ModelFormatError, match=r"model\.onnx"):
        fr.onnx.session(path)


def test_a_circle_is_an_error() -> None:
    builder = Builder()
    builder.node("Add", "x", "value1")
    builder.node("Relu", "value0")
    with pytest.raises(fr.ModelFormatError, match="its own output"):
        fr.onnx.session(builder.model(("value1",)))


def test_options_of_onnxruntime() -> None:
    level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    fr.onnx.session(simple(), graph_optimization_level=level, providers=["CPUExecutionProvider"])
    with pytest.raises(TypeError, match="graph_level"):
        fr.onnx.session(simple(), graph_level=level)
    with pytest.raises(TypeError, match="model must be"):
        fr.onnx.session(b"bytes")


# ---- the report ----------------------------------------------------------------------------------


def test_the_report_has_every_recurrent_node() -> None:
    builder = Builder()
    y, *_ = builder.recurrent("GRU", "x", 3, 3, linear_before_reset=1)
    builder.node("Squeeze", y, builder.ints(1), outputs=("seen",))
    session = fr.onnx.session(builder.model((in_if(builder),)))
    document = json.loads(session.report.to_json())
    assert [node["operator"] for node in document["recurrent"]] == ["GRU", "LSTM"]
    assert document["recurrent"][0]["detail"].startswith("<GRU(3, 3")
    assert sum(document["onnxruntime_pieces"]) == 4
    for text in (str(session.report), session.report.to_markdown()):
        assert "1 of 2 recurrent nodes" in text
    assert session.report.to_csv().count("\n") == 3
    assert "1 of 2 recurrent nodes" in repr(session)


# ---- processes and threads -----------------------------------------------------------------------


def test_several_threads_use_one_session() -> None:
    session = fr.onnx.session(simple())
    random = np.random.default_rng(0)
    inputs = [sequence(random, 5 + place % 3) for place in range(40)]
    wanted = [session.run(None, {"x": x}) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: session.run(None, {"x": x}), inputs * 5))
    for ours, other in zip(found, wanted * 5, strict=True):
        for one, two in zip(ours, other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_a_forked_child_uses_it() -> None:
    session = fr.onnx.session(simple())
    x = sequence(np.random.default_rng(0))
    wanted = session.run(None, {"x": x})
    child = os.fork()
    if not child:
        same = all(map(np.array_equal, session.run(None, {"x": x}), wanted))
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_it_says_that_it_cannot_be_pickled() -> None:
    with pytest.raises(TypeError, match="make it anew"):
        pickle.dumps(fr.onnx.session(simple()))
