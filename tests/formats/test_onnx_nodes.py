"""Recurrent nodes of ONNX: the conformance tests of ONNX itself, and what they do not see, against ONNX Runtime.

ONNX's own tests have constant weights: they pass with any gate order but for one of GRU. So nodes with random weights and
every attribute are drawn here, and each fact of the layout has a negative control.
"""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import hypothesis
import numpy as np
import pytest
from conftest import oracle
from hypothesis import strategies as st

oracle("onnx")

from onnx_models import Arrays, layout_of, model_of, recurrent_node, run_node

import fusedrnn as fr
from fusedrnn.formats.contents import FoundLayer
from fusedrnn.formats.layouts import reordered
from fusedrnn.formats.onnx_nodes import find_recurrent, is_recurrent, simplest

#: The rounding of two float32 computations of up to 6 steps whose values grow: see tests/layers/test_oracles.py.
TOLERANCE = 2e-5
#: What a negative control must differ by.
DIFFERENCE = 1e-2

# ---- ONNX's own tests ----------------------------------------------------------------------------


@cache
def node_tests() -> dict[str, Any]:
    """ONNX's backend tests of recurrent operators, by name."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tests of other operators, which are all made
        cases = load_model_tests(kind="node")
    return {
        case.name: case
        for case in cases
        if case.model is not None
        and any(is_recurrent(node) for node in case.model.graph.node)
        and not any(node.domain for node in case.model.graph.node)
    }


NODE_TESTS = [
    *(
        f"test_{cell}_{name}"
        for cell in ("lstm", "gru", "simple_rnn")
        for name in (
            "defaults",
            "with_initial_bias",
            "batchwise",
            "reverse",
            "bidirectional",
        )
    ),
    "test_lstm_with_peepholes",
    "test_gru_seq_length",
    "test_rnn_seq_length",
]


def test_these_are_all_of_them() -> None:
    assert sorted(NODE_TESTS) == sorted(node_tests())


@pytest.mark.parametrize("name", NODE_TESTS)
def test_node_test(name: str) -> None:
    """The weights, which ONNX's test feeds, are made initializers: a layer must know them."""
    from onnx import ModelProto, numpy_helper

    case = node_tests()[name]
    ((given, expected),) = case.data_sets
    model = ModelProto.FromString(case.model.SerializeToString())
    feeds = dict(zip((each.name for each in model.graph.input), given, strict=True))
    for weight in ("W", "R", "B", "P"):
        if weight in feeds:
            model.graph.initializer.append(numpy_helper.from_array(feeds.pop(weight), weight))
            (place,) = (n for n, each in enumerate(model.graph.input) if each.name == weight)
            del model.graph.input[place]
    layers, parts = find_recurrent(model)
    assert (len(layers), parts) == (1, ())
    got = run_node(layers[0], feeds)
    for value, array in zip(model.graph.output, expected, strict=True):
        np.testing.assert_allclose(got[value.name], array, rtol=1e-3, atol=1e-7)


# ---- ONNX Runtime as oracle ----------------------------------------------------------------------

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
FUNCTIONS = {"RNN": 1, "GRU": 2, "LSTM": 3}
#: Activations and how many parameters each has. Not ThresholdedRelu, which jumps: rounding may do so, too.
ACTIVATIONS = {
    "Sigmoid": 0,
    "Tanh": 0,
    "Relu": 0,
    "Affine": 2,
    "LeakyRelu": 1,
    "ScaledTanh": 2,
    "HardSigmoid": 2,
    "Elu": 1,
    "Softsign": 0,
    "Softplus": 0,
}
BOUNDED = ("Sigmoid", "HardSigmoid", "Tanh", "Softsign")


@dataclass
class Case:
    """A node, its weights, and what is fed to it at run time."""

    operator: str
    attributes: dict[str, Any]
    weights: Arrays
    feeds: Arrays = field(default_factory=dict)

    def model(self, **attributes: Any) -> Any:
        given = (*self.weights, *(name for name in self.feeds if name != "X"))
        node = recurrent_node(self.operator, given, **self.attributes | attributes)
        return model_of([node], self.weights, tuple(self.feeds), tuple(node.output))

    def found(self, **attributes: Any) -> FoundLayer:
        layers, parts = find_recurrent(self.model(**attributes))
        assert parts == ()
        return layers[0]

    def ours(self) -> Arrays:
        return run_node(self.found(), self.feeds)

    def oracle(self) -> Arrays:
        return run_by_onnx_runtime(self.model(), self.feeds)


def run_by_onnx_runtime(model: Any, feeds: Arrays) -> Arrays:
    runtime = oracle("onnxruntime")
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    session = runtime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    names = [each.name for each in model.graph.output]
    return dict(zip(names, session.run(names, feeds), strict=True))


def case_of(
    operator: str,
    seed: int,
    *,
    sizes: tuple[int, int, int, int] = (3, 5, 2, 4),
    directions: int = 1,
    bias: bool = True,
    state: bool = True,
    peepholes: bool = False,
    lengths: bool = False,
    **attributes: Any,
) -> Case:
    """A node with random weights and inputs; sizes are X, H, B and T."""
    random = np.random.default_rng(seed)
    inputs, units, batch, steps = sizes

    def draw(*shape: int) -> np.ndarray:
        return random.uniform(-0.7, 0.7, shape).astype(np.float32)

    gates = GATES[operator]
    weights = {
        "W": draw(directions, gates * units, inputs),
        "R": draw(directions, gates * units, units),
    }
    if bias:
        weights["B"] = draw(directions, 2 * gates * units)
    if peepholes:
        weights["P"] = draw(directions, 3 * units)
    feeds = {"X": draw(steps, batch, inputs) * 2}
    if lengths:
        drawn = random.integers(1, steps + 1, batch).astype(np.int32)
        drawn[0] = steps  # ONNX Runtime wants one that is as long as X
        feeds["sequence_lens"] = drawn
    if state:
        feeds["initial_h"] = draw(directions, batch, units)
        if operator == "LSTM":
            feeds["initial_c"] = draw(directions, batch, units)
    attributes.setdefault("hidden_size", units)
    if directions == 2:
        attributes["direction"] = "bidirectional"
    return Case(operator, attributes, weights, feeds)


def assert_agrees(one: Arrays, other: Arrays) -> None:
    assert set(one) == set(other)
    for name, array in one.items():
        largest = max(
            1.0, float(np.abs(other[name]).max())
        )  # unbounded activations may let it grow
        np.testing.assert_allclose(array, other[name], 0, TOLERANCE * largest, err_msg=name)


def differs(one: Arrays, other: Arrays) -> bool:
    return max(float(np.abs(array - other[name]).max()) for name, array in one.items()) > DIFFERENCE


@st.composite
def cases(draw: st.DrawFn) -> Case:
    operator = draw(st.sampled_from(("LSTM", "GRU", "RNN")))
    attributes: dict[str, Any] = {}
    directions = draw(st.sampled_from((1, 1, 2)))
    if directions == 1:
        attributes["direction"] = draw(st.sampled_from(("forward", "reverse")))
    coupled = False
    if operator == "GRU":
        attributes["linear_before_reset"] = draw(st.sampled_from((0, 1)))
    elif operator == "LSTM":
        coupled = bool(draw(st.sampled_from((0, 0, 1))))
        attributes["input_forget"] = int(coupled)
    if draw(st.booleans()):
        attributes["clip"] = draw(st.sampled_from((0.3, 0.75, 2.0)))
    if draw(st.booleans()):
        names = [draw(st.sampled_from(sorted(ACTIVATIONS))) for _ in range(FUNCTIONS[operator])]
        if operator != "RNN":  # gates without bounds grow beyond float32
            names[0] = draw(st.sampled_from(("Sigmoid",) if coupled else BOUNDED))
        numbers = [[draw(st.sampled_from((0.3, 0.5, 0.9)))] * ACTIVATIONS[name] for name in names]
        for key, place in (("activation_alpha", 0), ("activation_beta", 1)):
            given = [each[place] for each in numbers if len(each) > place]
            if given and ({"Affine", "ScaledTanh"} & set(names) or draw(st.booleans())):
                attributes[key] = given * directions
        if operator != "RNN" and draw(st.booleans()):  # whose names are as written
            names = [name.upper() for name in names]
        attributes["activations"] = names * directions
    return case_of(
        operator,
        draw(st.integers(0, 2**32 - 1)),
        sizes=tuple(draw(st.integers(1, most)) for most in (5, 9, 4, 6)),
        directions=directions,
        bias=draw(st.booleans()),
        state=draw(st.booleans()),
        peepholes=operator == "LSTM" and draw(st.booleans()),
        lengths=draw(st.booleans()),
        **attributes,
    )


@hypothesis.given(cases())
def test_any_node_is_what_onnx_runtime_makes_of_it(case: Case) -> None:
    assert_agrees(case.ours(), case.oracle())


@pytest.mark.parametrize("directions", (1, 2))
@pytest.mark.parametrize("operator", GATES)
def test_layout_1_is_the_same_batch_first(operator: str, directions: int) -> None:
    case = case_of(operator, 1, directions=directions, lengths=True)
    found = case.found(layout=1)
    assert found.batch_first
    feeds = {
        name: array if name == "sequence_lens" else array.swapaxes(0, 1)
        for name, array in case.feeds.items()
    }
    expected = case.oracle()
    expected["Y"] = expected["Y"].transpose(2, 0, 1, 3)
    got = run_node(found, feeds)
    assert_agrees(
        got, {name: a if name == "Y" else a.swapaxes(0, 1) for name, a in expected.items()}
    )


@pytest.mark.parametrize(
    ("operator", "attributes"),
    (
        ("LSTM", {}),
        ("GRU", {"linear_before_reset": 0}),
        ("GRU", {"linear_before_reset": 1}),
    ),
)
def test_negative_control_a_wrong_gate_order_is_seen(
    operator: str, attributes: dict[str, int]
) -> None:
    case = case_of(operator, 2, **attributes)
    expected = case.oracle()
    right = layout_of(operator, **attributes).gates
    for order in itertools.permutations(right):
        weights = {
            name: _reordered(array, right, "".join(order), 1 + (name == "B"))
            for name, array in case.weights.items()
        }
        got = Case(operator, case.attributes, weights, case.feeds).ours()
        assert differs(got, expected) == ("".join(order) != right)


def _reordered(array: np.ndarray, order: str, wanted: str, halves: int) -> np.ndarray:
    parts = np.split(array[0], halves)
    return np.concatenate([reordered(part, order, wanted) for part in parts])[None]


def test_negative_control_a_wrong_order_of_peepholes_is_seen() -> None:
    case = case_of("LSTM", 3, peepholes=True)
    expected = case.oracle()
    for order in itertools.permutations("iof"):
        P = _reordered(case.weights["P"], "iof", "".join(order), 1)
        got = Case("LSTM", case.attributes, case.weights | {"P": P}, case.feeds).ours()
        assert differs(got, expected) == ("".join(order) != "iof")


@pytest.mark.parametrize(
    ("operator", "right", "wrong"),
    (
        ("GRU", {"linear_before_reset": 1}, {"linear_before_reset": 0}),
        ("LSTM", {"input_forget": 1}, {"input_forget": 0}),
        ("LSTM", {"clip": 0.3}, {"clip": 9.0}),
        ("RNN", {"direction": "reverse"}, {"direction": "forward"}),
        (
            "RNN",
            {"activations": ["LeakyRelu"], "activation_alpha": [0.5]},
            {"activations": ["Relu"]},
        ),
        (
            "LSTM",
            # The second number is that of the second function that takes one.
            {
                "activations": ["HardSigmoid", "Tanh", "ScaledTanh"],
                "activation_alpha": [0.3, 0.9],
                "activation_beta": [0.4, 1.5],
            },
            {"activation_alpha": [0.9, 0.3]},
        ),
    ),
)
def test_negative_control_an_attribute_that_is_not_read_is_seen(
    operator: str, right: dict[str, Any], wrong: dict[str, Any]
) -> None:
    case = case_of(operator, 4, **right)
    expected = case.oracle()
    assert_agrees(case.ours(), expected)
    assert differs(run_node(case.found(**wrong), case.feeds), expected)


@pytest.mark.parametrize("name", ("initial_h", "initial_c"))
def test_negative_control_a_lost_state_is_seen(name: str) -> None:
    case = case_of("LSTM", 5)
    expected = case.oracle()
    case.feeds[name] = np.zeros_like(case.feeds[name])
    assert differs(case.ours(), expected)


# ---- what is said of a node ----------------------------------------------------------------------


def test_defaults_of_activations_are_those_of_the_operators() -> None:
    for name in ("HardSigmoid", "LeakyRelu", "Elu", "Softsign"):
        case = case_of("RNN", 6, activations=[name])
        assert_agrees(case.ours(), case.oracle())
    # ONNX Runtime takes 0 for alpha, and the operator's default is 1.
    found = case_of("RNN", 6, activations=["ThresholdedRelu"]).found()
    assert found.architecture.activation == "thresholded_relu"
    for name in ("Affine", "ScaledTanh"):
        assert "no default" in refused(case_of("RNN", 6, activations=[name]))


def test_a_layer_with_an_activation_that_is_not_compiled_runs_on_numpy() -> None:
    found = case_of("RNN", 6, activations=["Elu"]).found()
    assert found.layer().backend == "numpy"
    assert any("numpy" in note for note in found.notes)
    with pytest.raises(fr.UnsupportedError, match="elu"):
        found.layer(backend="c")


def test_second_biases_of_zero_are_no_parameters() -> None:
    case = case_of("GRU", 7, linear_before_reset=1)
    assert case.found().architecture.bias == "double"
    case.weights["B"][:, 15:25] = 0  # those of z and r
    assert case.found().architecture.bias == "single"
    assert any("all zero" in note for note in case.found().notes)
    assert_agrees(case.ours(), case.oracle())


def test_peepholes_of_zero_are_left_out() -> None:
    case = case_of("LSTM", 8, peepholes=True)
    case.weights["P"][:, :5] = 0
    assert case.found().architecture.peephole == "fo"
    assert_agrees(case.ours(), case.oracle())


def test_what_comes_at_run_time_is_noted() -> None:
    notes = " ".join(case_of("LSTM", 9, lengths=True).found().notes)
    for name in ("sequence_lens", "initial_h", "initial_c"):
        assert f"{name!r}" in notes
    case = case_of("LSTM", 9, state=False, lengths=True)
    case.weights["sequence_lens"] = case.feeds.pop("sequence_lens")
    assert "constant [4, " in " ".join(case.found().notes)


@pytest.mark.parametrize("dtype", (np.float16, np.float64))
def test_other_floats_are_converted_and_this_is_said(dtype: Any) -> None:
    case = case_of("LSTM", 10)
    expected = {name: array.astype(dtype) for name, array in case.weights.items()}
    found = Case("LSTM", case.attributes, expected, case.feeds).found()
    weights = found.layer().weights
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}
    i = slice(0, 5)
    np.testing.assert_array_equal(
        weights["weight_ih_l0"][i], expected["W"][0, i].astype(np.float32)
    )
    assert any(str(np.dtype(dtype)) in note for note in found.notes)


def test_quantized_weights_are_dequantized() -> None:
    from onnx import helper

    case = case_of("LSTM", 10)
    scale = np.linspace(0.001, 0.01, 20).astype(np.float32)
    zero = np.arange(-10, 10).astype(np.int8)
    W = case.weights["W"]
    quantized = np.clip(np.rint(W / scale[:, None]) + zero[:, None], -128, 127).astype(np.int8)
    arrays = {**case.weights, "Q": quantized, "scale": scale, "zero": zero}
    del arrays["W"]
    names = ["Q", "scale", "zero"]
    nodes = [
        helper.make_node("DequantizeLinear", names, ["W"], axis=1),
        *case.model().graph.node,
    ]
    model = model_of(nodes, arrays, tuple(case.feeds), ("Y", "Y_h", "Y_c"))
    (found,), _ = find_recurrent(model)
    assert [each.name for each in found.tensors] == [*names, "R", "B"]
    assert any("int8" in note for note in found.notes)
    assert_agrees(run_node(found, case.feeds), run_by_onnx_runtime(model, case.feeds))


def test_a_constant_initial_state_is_the_layers_own() -> None:
    case = case_of("LSTM", 11, directions=2, sizes=(3, 5, 1, 4))
    plain = case.ours()
    for name in ("initial_h", "initial_c"):
        case.weights[name] = case.feeds.pop(name)
    assert_agrees(case.ours(), plain)
    assert_agrees(case.ours(), case.oracle())
    case.weights |= {name: np.zeros_like(case.weights[name]) for name in ("initial_h", "initial_c")}
    assert case.found().read_state is None


def refused(case: Case, **attributes: Any) -> str:
    layers, parts = find_recurrent(case.model(**attributes))
    assert layers == ()
    assert [part.kind for part in parts] == ["?"]
    return parts[0].note


def test_what_is_no_layer_here_is_said() -> None:
    several = case_of("RNN", 12, directions=2, activations=["Tanh", "Relu"])
    assert "tanh and relu" in refused(several)
    coupled = case_of("LSTM", 12, input_forget=1, activations=["HardSigmoid", "Tanh", "Tanh"])
    assert "input_forget" in refused(coupled, activation_beta=[0.4])
    assert "W is not constant" in refused(_fed(case_of("LSTM", 12), "W"))
    assert "P is not constant" in refused(_fed(case_of("LSTM", 12, peepholes=True), "P"))
    assert "'strange'" in refused(case_of("GRU", 12), strange=1)
    rows = case_of("LSTM", 12)
    rows.weights["initial_h"] = rows.feeds.pop("initial_h")
    assert "initial_h is a constant that differs from row to row" in refused(rows)


def _fed(case: Case, name: str) -> Case:
    case.feeds[name] = case.weights.pop(name)
    return case


@pytest.mark.parametrize(
    ("attributes", "match"),
    (
        ({"direction": "backward"}, "direction"),
        ({"layout": 2}, "layout"),
        ({"hidden_size": 4}, "hidden_size is 4, and R has 5 columns; PyTorch"),
        ({"hidden_size": 5.0}, "hidden_size.* int"),
        ({"activations": ["Tanh"]}, "activations must be 3"),
        ({"activations": "Tanh"}, "activations.* list"),
        ({"clip": -1.0}, "clip"),
        ({"clip": float("nan")}, "clip"),
    ),
)
def test_a_node_that_cannot_be_is_an_error(attributes: dict[str, Any], match: str) -> None:
    with pytest.raises(fr.ModelFormatError, match=f"^the model: node 'node' .*{match}"):
        find_recurrent(case_of("LSTM", 13).model(**attributes))


@pytest.mark.parametrize("name", ("W", "R", "B", "P"))
def test_a_wrong_shape_is_an_error(name: str) -> None:
    case = case_of("LSTM", 14, peepholes=True)
    case.weights[name] = case.weights[name][:, :-1]
    with pytest.raises(fr.ModelFormatError, match=rf"{name} must have shape \(1, "):
        find_recurrent(case.model())


def test_a_missing_input_is_an_error() -> None:
    case = case_of("GRU", 15)
    del case.weights["R"]
    with pytest.raises(fr.ModelFormatError, match="input R is missing"):
        find_recurrent(case.model())


def test_the_simplest_number_is_the_same_float32() -> None:
    assert simplest(float(np.float32(1 / 6))) == 1 / 6
    assert simplest(float(np.float32(0.2))) == 0.2
    for number in np.random.default_rng(0).standard_normal(200).astype(np.float32) * 1e3:
        assert np.float32(simplest(float(number))) == number
