"""Every cell against implementations that share no code with this package.

PyTorch, ONNX Runtime, Keras and Flax run the same weights, laid out as each of them lays them out
(fusedrnn.formats.layouts); the Clockwork RNN, which none of them has, is compared with a dense,
masked one written below. Weights, inputs and initial states are random, so that no two gates, units
or directions are alike, and each oracle has negative controls: a wrong gate order or option must be
seen.

An oracle that is not installed is skipped, or, with FUSEDRNN_REQUIRE_ORACLES=1, an error.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import ALL, Draw, Target, oracle

import fusedrnn as fr
from fusedrnn.formats.layouts import LAYOUTS, Layout, from_layout, suffix

# What the oracles say about themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
]

# Two float32 computations of the same numbers, in different orders and with different tanh and
# sigmoid, each of which is right to a few units in the last place. The error of a chain of n sums
# grows like log2(n) when they are added in lanes and trees: 4 log2(n) eps, with n the 99 terms of
# the longest sum here (a second layer that reads two directions of 33 units) times 12 steps, is
# 4.9e-6. Measured: 2.4e-6 with softplus, 1.4e-6 elsewhere. Relative as well as absolute, because
# relu and identity let states grow beyond 1.
TOLERANCE = 5e-6

# What a negative control must differ by: far more than any rounding.
DIFFERENCE = 1e-2

Arrays = dict[str, np.ndarray]
Result = tuple[np.ndarray, ...]  # y (T, B, D * R), then the states (L * D, B, ·)
Build = Callable[..., Any]

CLASSES = {"rnn": fr.RNN, "gru": fr.GRU, "lstm": fr.LSTM}

# Inputs, units, batch, steps: 1, odd, and more than the widest vector.
SIZES = ((3, 1, 2, 4), (5, 7, 3, 9), (2, 17, 5, 6), (9, 33, 2, 12))
SIZE = (5, 7, 3, 9)


# ---- what the tests share ------------------------------------------------------------------------


@pytest.fixture(params=ALL, ids=str)
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Makes a layer of any class from its weights, on one backend and instruction set."""
    target: Target = request.param
    if target.isa:
        monkeypatch.setenv("FUSEDRNN_ISA", target.isa)

    def make(kind: Any, weights: Arrays, **options: Any) -> Any:
        layer = kind.from_weights(weights, backend=target.backend, **options)
        assert (layer.backend, layer.isa) == (target.backend, target.isa)
        return layer

    return make


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These layers are so small that PyTorch's threads would only wait for each other."""
    if importlib.util.find_spec("torch") is None:
        yield
        return
    torch = importlib.import_module("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_agrees(ours: tuple[np.ndarray, Any], theirs: Result) -> None:
    y, state = ours
    for mine, other in zip((y, *state), theirs, strict=True):
        assert mine.shape == other.shape
        assert mine.dtype == np.float32
        np.testing.assert_allclose(mine, other, rtol=TOLERANCE, atol=TOLERANCE)


def assert_differs(ours: tuple[np.ndarray, Any], theirs: Result) -> None:
    assert ours[0].shape == theirs[0].shape
    assert np.abs(ours[0] - theirs[0]).max() > DIFFERENCE


def matrix(draw: Draw, *shape: int) -> np.ndarray:
    """Weights that neither vanish nor let a relu explode, whatever the number of columns."""
    return draw(*shape) * np.float32(0.8 * shape[-1] ** -0.5)


def vector(draw: Draw, *shape: int) -> np.ndarray:
    return draw(*shape) * np.float32(0.5)


def some_lengths(random: np.random.Generator, batch: int, steps: int) -> list[int]:
    """From 1 to all the steps, both included, in no order."""
    return [int(n) for n in random.permutation(np.linspace(1, steps, batch).astype(int))]


def assert_zero_past_the_end(y: np.ndarray, lengths: Sequence[int]) -> None:
    for row, length in enumerate(lengths):
        assert not y[length:, row].any()
        assert y[:length, row].any()


def layout_of(framework: str, cell: str, options: dict[str, Any] | None = None) -> Layout:
    """How a framework lays out a cell with these options."""
    options = options or {}
    form = "coupled" if options.get("coupled") else options.get("reset", "after") * (cell == "gru")
    return next(
        each
        for each in LAYOUTS
        if (each.framework, each.cell, each.form) == (framework, cell, form)
    )


def wrong_orders(order: str) -> Iterator[str]:
    return ("".join(p) for p in itertools.permutations(order) if "".join(p) != order)


def wrong_gates(layout: Layout) -> Iterator[Layout]:
    """The layout with every other order of its gates."""
    return (replace(layout, gates=order) for order in wrong_orders(layout.gates))


# ---- PyTorch -------------------------------------------------------------------------------------

PYTORCH = {
    "rnn-tanh": ("rnn", {}, {}),
    "rnn-relu": ("rnn", {"activation": "relu"}, {"nonlinearity": "relu"}),
    "gru": ("gru", {}, {}),
    "lstm": ("lstm", {}, {}),
    "lstm-projected": ("lstm", {}, {"proj_size": True}),
}
pytorch_cells = pytest.mark.parametrize(
    ("cell", "options", "their_options"), PYTORCH.values(), ids=PYTORCH
)


def pytorch(
    cell: str, draw: Draw, inputs: int, units: int, layers: int, proj_size: int = 0, **options: Any
) -> tuple[Any, Arrays]:
    """A PyTorch module with random weights, and these, in its names, shapes and gate order."""
    torch = oracle("torch")
    if proj_size:
        options["proj_size"] = (units + 1) // 2
    module = getattr(torch.nn, layout_of("torch", cell).layer_class)(
        inputs, units, layers, **options
    )
    weights = {}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            weights[name] = (vector if parameter.ndim == 1 else matrix)(draw, *parameter.shape)
            parameter.copy_(torch.from_numpy(weights[name]))
    return module, weights


def pytorch_state(module: Any, draw: Draw, batch: int) -> Result:
    rows = module.num_layers * (2 if module.bidirectional else 1)
    h = vector(draw, rows, batch, module.proj_size or module.hidden_size)
    c = vector(draw, rows, batch, module.hidden_size)
    return (h, c) if module.mode == "LSTM" else (h,)


def run_pytorch(
    module: Any, x: np.ndarray, state: Result, lengths: Sequence[int] | None = None
) -> Result:
    torch = oracle("torch")
    rnn = torch.nn.utils.rnn
    given = torch.from_numpy(x)
    before = tuple(map(torch.from_numpy, state))
    if lengths is not None:
        given = rnn.pack_padded_sequence(given, torch.tensor(lengths), enforce_sorted=False)
    with torch.inference_mode():
        y, after = module(given, before if len(before) > 1 else before[0])
    if lengths is not None:
        y, _ = rnn.pad_packed_sequence(y, total_length=len(x))
    return tuple(array.numpy() for array in (y, *(after if len(before) > 1 else (after,))))


@pytest.mark.parametrize("bias", (False, True), ids=("no-bias", "bias"))
@pytest.mark.parametrize(
    ("layers", "bidirectional"), ((1, False), (1, True), (3, False), (2, True))
)
@pytorch_cells
def test_pytorch(
    build: Build,
    draw: Draw,
    cell: str,
    options: dict[str, Any],
    their_options: dict[str, Any],
    layers: int,
    bidirectional: bool,
    bias: bool,
) -> None:
    for inputs, units, batch, steps in SIZES:
        if units == 1 and their_options.get("proj_size"):
            continue  # nothing to project
        theirs, weights = pytorch(
            cell,
            draw,
            inputs,
            units,
            layers,
            bidirectional=bidirectional,
            bias=bias,
            **their_options,
        )
        x, state = draw(steps, batch, inputs), pytorch_state(theirs, draw, batch)
        ours = build(CLASSES[cell], weights, **options)
        assert_agrees(ours(x, state), run_pytorch(theirs, x, state))


@pytest.mark.parametrize(("layers", "bidirectional"), ((1, False), (1, True), (2, True)))
@pytorch_cells
def test_pytorch_packed_sequences(
    build: Build,
    draw: Draw,
    random: np.random.Generator,
    cell: str,
    options: dict[str, Any],
    their_options: dict[str, Any],
    layers: int,
    bidirectional: bool,
) -> None:
    inputs, units, batch, steps = 5, 9, 6, 11
    theirs, weights = pytorch(
        cell, draw, inputs, units, layers, bidirectional=bidirectional, **their_options
    )
    x, state = draw(steps, batch, inputs), pytorch_state(theirs, draw, batch)
    lengths = some_lengths(random, batch, steps)
    for row, length in enumerate(lengths):
        x[length:, row] = np.nan  # never read
    ours = build(CLASSES[cell], weights, **options)
    y, after = ours(x, state, lengths)
    assert_agrees((y, after), run_pytorch(theirs, x, state, lengths))
    assert_zero_past_the_end(y, lengths)

    # Without believing PyTorch: states are those of each row's own last step in its direction.
    wide = ours.architecture.fed_back
    rows = np.arange(batch)
    top = after.h[-2:] if bidirectional else after.h[-1:]
    np.testing.assert_array_equal(top[0], y[np.array(lengths) - 1, rows, :wide])
    if bidirectional:
        np.testing.assert_array_equal(top[1], y[0, :, wide:])


@pytorch_cells
def test_pytorch_sees_a_row_that_is_run_past_its_end(
    build: Build,
    draw: Draw,
    cell: str,
    options: dict[str, Any],
    their_options: dict[str, Any],
) -> None:
    theirs, weights = pytorch(cell, draw, 5, 9, 1, bidirectional=True, **their_options)
    x, state = draw(7, 3, 5), pytorch_state(theirs, draw, 3)
    ours = build(CLASSES[cell], weights, **options)
    expected = run_pytorch(theirs, x, state, [3, 7, 5])
    assert_agrees(ours(x, state, [3, 7, 5]), expected)
    assert_differs(ours(x, state, [4, 7, 5]), expected)
    assert_differs(ours(x, state), expected)


@pytest.mark.parametrize("cell", ("gru", "lstm"))
def test_pytorch_sees_every_wrong_gate_order(build: Build, draw: Draw, cell: str) -> None:
    inputs, units, batch, steps = SIZE
    theirs, weights = pytorch(cell, draw, inputs, units, 1)
    x, state = draw(steps, batch, inputs), pytorch_state(theirs, draw, batch)
    expected = run_pytorch(theirs, x, state)
    layout = layout_of("torch", cell)
    arrays = {name.removesuffix("_l0"): array for name, array in weights.items()}
    assert_agrees(
        build(CLASSES[cell], from_layout(layout, arrays))(x, state), run_pytorch(theirs, x, state)
    )
    for wrong in wrong_gates(layout):
        swapped = from_layout(wrong, arrays)
        assert_differs(build(CLASSES[cell], swapped)(x, state), expected)


@pytest.mark.parametrize(
    ("cell", "wrong"),
    (
        ("rnn", {"activation": "relu"}),
        ("rnn", {"clip": 0.5}),
        ("gru", {"reset": "before"}),
        ("gru", {"activation": "identity"}),
        ("lstm", {"gate_activation": "hard_sigmoid"}),
        ("lstm", {"output_activation": "identity"}),
        ("lstm", {"cell_clip": 0.5}),
    ),
)
def test_pytorch_sees_wrong_options(
    build: Build, draw: Draw, cell: str, wrong: dict[str, Any]
) -> None:
    inputs, units, batch, steps = SIZE
    theirs, weights = pytorch(cell, draw, inputs, units, 1)
    x, state = draw(steps, batch, inputs), pytorch_state(theirs, draw, batch)
    expected = run_pytorch(theirs, x, state)
    assert_agrees(build(CLASSES[cell], weights)(x, state), expected)
    assert_differs(build(CLASSES[cell], weights, **wrong)(x, state), expected)


@pytest.mark.parametrize("cell", CLASSES)
def test_pytorch_sees_wrong_weights(build: Build, draw: Draw, cell: str) -> None:
    inputs, units, batch, steps = SIZE
    theirs, weights = pytorch(cell, draw, inputs, units, 1, bidirectional=True)
    x, state = draw(steps, batch, inputs), pytorch_state(theirs, draw, batch)
    expected = run_pytorch(theirs, x, state)

    def transposed(array: np.ndarray) -> np.ndarray:
        blocks = len(layout_of("torch", cell).gates)
        return np.concatenate([block.T for block in np.split(array, blocks)])

    def swapped(one: str, other: str) -> Arrays:
        return weights | {one: weights[other], other: weights[one]}

    wrong = [
        weights | {"weight_hh_l0": transposed(weights["weight_hh_l0"])},
        weights | {"bias_hh_l0": 0 * weights["bias_hh_l0"]},
        swapped("weight_ih_l0", "weight_ih_l0_reverse"),
        swapped("weight_hh_l0", "weight_hh_l0_reverse"),
    ]
    if cell == "gru":  # elsewhere the two biases are only ever added up
        wrong.append(swapped("bias_ih_l0", "bias_hh_l0"))
    for each in wrong:
        assert_differs(build(CLASSES[cell], each)(x, state), expected)


# ---- ONNX Runtime --------------------------------------------------------------------------------
#
# Lengths of 0 and batches of 0 are not here: ONNX Runtime answers the former with a state of zeros
# and ends the process on the latter.

ONNX_NAMES = {
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "relu": "Relu",
    "identity": "Affine",
    "hard_sigmoid": "HardSigmoid",
    "affine": "Affine",
    "leaky_relu": "LeakyRelu",
    "thresholded_relu": "ThresholdedRelu",
    "scaled_tanh": "ScaledTanh",
    "elu": "Elu",
    "softsign": "Softsign",
    "softplus": "Softplus",
}
ONNX_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn": ("rnn", {}),
    "rnn-relu": ("rnn", {"activation": "relu"}),
    "rnn-identity": ("rnn", {"activation": "identity"}),
    "rnn-clip": ("rnn", {"clip": 0.6}),
    "rnn-relu-clip": ("rnn", {"activation": "relu", "clip": 0.6}),
    "gru-after": ("gru", {"reset": "after"}),
    "gru-after-clip": ("gru", {"reset": "after", "clip": 0.6}),
    "gru-before": ("gru", {"reset": "before"}),
    "gru-before-clip": ("gru", {"reset": "before", "clip": 0.6}),
    "gru-before-activations": (
        "gru",
        {"reset": "before", "gate_activation": "hard_sigmoid(0.3, 0.45)", "activation": "relu"},
    ),
    "gru-after-activations": (
        "gru",
        {"reset": "after", "gate_activation": "hard_sigmoid", "activation": "identity"},
    ),
    "lstm": ("lstm", {}),
    "lstm-clip": ("lstm", {"clip": 0.6}),
    "lstm-peepholes": ("lstm", {"peephole": "ifo"}),
    "lstm-peephole-o": ("lstm", {"peephole": "o"}),
    "lstm-peepholes-if": ("lstm", {"peephole": "if"}),
    "lstm-peepholes-clip": ("lstm", {"peephole": "ifo", "clip": 0.6}),
    "lstm-coupled": ("lstm", {"coupled": True}),
    "lstm-coupled-clip": ("lstm", {"coupled": True, "clip": 0.6}),
    "lstm-coupled-peepholes": ("lstm", {"coupled": True, "peephole": "fo"}),
    "lstm-hard-sigmoid": ("lstm", {"gate_activation": "hard_sigmoid(0.3, 0.45)"}),
    "lstm-coupled-hard-sigmoid": (
        "lstm",
        {"coupled": True, "gate_activation": "hard_sigmoid(0.3, 0.5)"},
    ),
    "lstm-relu-identity": (
        "lstm",
        {"activation": "relu", "output_activation": "identity"},
    ),
    "lstm-identity-relu": (
        "lstm",
        {"activation": "identity", "output_activation": "relu", "peephole": "ifo"},
    ),
}
onnx_cases = pytest.mark.parametrize(("cell", "options"), ONNX_CASES.values(), ids=ONNX_CASES)


def onnx_arrays(
    cell: str, options: dict[str, Any], draw: Draw, inputs: int, units: int, directions: int
) -> Arrays:
    """The weights of an ONNX node: W, R, B and, for peepholes, P, as ONNX lays them out."""
    layout = layout_of("onnx", cell, options)
    rows = len(layout.gates) * units
    arrays = {
        "W": matrix(draw, directions, rows, inputs),
        "R": matrix(draw, directions, rows, units),
        "B": vector(draw, directions, 2 * rows),
    }
    if letters := options.get("peephole"):
        # With coupled gates the one that ONNX has is i, and what its f is given is not looked at.
        letters += "i" if options.get("coupled") else ""
        parts = [vector(draw, directions, units) * (gate in letters) for gate in layout.peepholes]
        arrays["P"] = np.concatenate(parts, axis=1)
    return arrays


def from_onnx(options: dict[str, Any], arrays: Arrays, layout: Layout) -> Arrays:
    """Canonical weights of an ONNX node."""
    weights: Arrays = {}
    for direction in range(len(arrays["W"])):
        part = {name: array[direction] for name, array in arrays.items()}
        weights |= from_layout(layout, part, suffix(0, direction), options.get("peephole"))
    return weights


def onnx_attributes(
    cell: str, options: dict[str, Any], units: int, directions: int
) -> dict[str, Any]:
    roles = {"rnn": ["activation"], "gru": ["gate_activation", "activation"]}.get(
        cell, ["gate_activation", "activation", "output_activation"]
    )
    names, alphas, betas = [], [], []
    for role in roles:
        default = "sigmoid" if role == "gate_activation" else "tanh"
        name, _, rest = options.get(role, default).partition("(")
        parameters = [float(part) for part in rest.rstrip(")").split(",") if part]
        if name == "identity":
            parameters = [1.0, 0.0]
        if name == "hard_sigmoid" and not parameters:
            parameters = [0.2, 0.5]
        names.append(ONNX_NAMES[name])
        alphas += parameters[:1]
        betas += parameters[1:]
    attributes: dict[str, Any] = {
        "hidden_size": units,
        "direction": "bidirectional" if directions == 2 else "forward",
        "activations": names * directions,
    }
    if alphas:
        attributes["activation_alpha"] = alphas * directions
    if betas:
        attributes["activation_beta"] = betas * directions
    if "clip" in options:
        attributes["clip"] = options["clip"]
    return attributes | dict(layout_of("onnx", cell, options).options)


def run_onnx(
    cell: str,
    options: dict[str, Any],
    arrays: Arrays,
    x: np.ndarray,
    state: Result,
    lengths: Sequence[int] | None = None,
) -> Result:
    """What ONNX Runtime makes of a model of one node."""
    onnx, runtime = oracle("onnx"), oracle("onnxruntime")
    feeds = {"X": x, "W": arrays["W"], "R": arrays["R"], "B": arrays["B"]}
    if lengths is not None:
        feeds["sequence_lens"] = np.array(lengths, np.int32)
    feeds |= dict(zip(("initial_h", "initial_c"), state))
    if "P" in arrays:
        feeds["P"] = arrays["P"]
    places = ["X", "W", "R", "B", "sequence_lens", "initial_h"]
    places += ["initial_c", "P"] if cell == "lstm" else []
    outputs = ["Y", "Y_h", "Y_c"][: 1 + len(state)]

    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    directions, units = arrays["R"].shape[0], arrays["R"].shape[2]
    attributes = onnx_attributes(cell, options, units, directions)
    operator = layout_of("onnx", cell, options).layer_class
    node = helper.make_node(
        operator, [name if name in feeds else "" for name in places], outputs, **attributes
    )
    graph = helper.make_graph(
        [node],
        operator,
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in feeds.items()
        ],
        [helper.make_tensor_value_info(name, floats, None) for name in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = runtime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    y, *after = session.run(outputs, feeds)
    steps, directions, batch, width = y.shape
    return (y.transpose(0, 2, 1, 3).reshape(steps, batch, directions * width), *after)


def onnx_inputs(
    cell: str, draw: Draw, directions: int, size: tuple[int, int, int, int]
) -> tuple[np.ndarray, Result]:
    inputs, units, batch, steps = size
    states = 2 if cell == "lstm" else 1
    state = tuple(vector(draw, directions, batch, units) for _ in range(states))
    return draw(steps, batch, inputs), state


@pytest.mark.parametrize("directions", (1, 2))
@onnx_cases
def test_onnx(
    build: Build, draw: Draw, cell: str, options: dict[str, Any], directions: int
) -> None:
    for size in SIZES:
        x, state = onnx_inputs(cell, draw, directions, size)
        arrays = onnx_arrays(cell, options, draw, size[0], size[1], directions)
        ours = build(
            CLASSES[cell], from_onnx(options, arrays, layout_of("onnx", cell, options)), **options
        )
        assert_agrees(ours(x, state), run_onnx(cell, options, arrays, x, state))


@pytest.mark.parametrize("directions", (1, 2))
@onnx_cases
def test_onnx_sequence_lens(
    build: Build,
    draw: Draw,
    random: np.random.Generator,
    cell: str,
    options: dict[str, Any],
    directions: int,
) -> None:
    size = inputs, units, batch, steps = (5, 9, 6, 11)
    x, state = onnx_inputs(cell, draw, directions, size)
    arrays = onnx_arrays(cell, options, draw, inputs, units, directions)
    lengths = some_lengths(random, batch, steps)
    expected = run_onnx(cell, options, arrays, x, state, lengths)
    ours = build(
        CLASSES[cell], from_onnx(options, arrays, layout_of("onnx", cell, options)), **options
    )
    assert_agrees(ours(x, state, lengths), expected)
    assert_zero_past_the_end(ours(x, state, lengths)[0], lengths)
    assert_differs(ours(x, state), expected)


@pytest.mark.parametrize(
    "activation",
    (
        "sigmoid",
        "relu",
        "hard_sigmoid(0.3, 0.45)",
        "affine(0.6, 0.1)",
        "leaky_relu(0.3)",
        "thresholded_relu(0.4)",
        "scaled_tanh(0.7, 1.3)",
        "elu(0.8)",
        "softsign",
        "softplus",
    ),
)
@pytest.mark.parametrize(
    ("cell", "role"),
    (
        ("rnn", "activation"),
        ("gru", "gate_activation"),
        ("gru", "activation"),
        ("lstm", "gate_activation"),
        ("lstm", "activation"),
        ("lstm", "output_activation"),
    ),
)
def test_onnx_activations_of_the_numpy_backend(
    draw: Draw, cell: str, role: str, activation: str
) -> None:
    size = (5, 7, 3, 5)
    options = {role: activation} | ({"reset": "before"} if cell == "gru" else {})
    x, state = onnx_inputs(cell, draw, 2, size)
    arrays = onnx_arrays(cell, options, draw, size[0], size[1], 2)
    weights = from_onnx(options, arrays, layout_of("onnx", cell, options))
    expected = run_onnx(cell, options, arrays, x, state)
    ours = CLASSES[cell].from_weights(weights, backend="numpy", **options)
    assert_agrees(ours(x, state), expected)
    other = CLASSES[cell].from_weights(weights, backend="numpy", **options | {role: "affine(0.3)"})
    assert_differs(other(x, state), expected)


@pytest.mark.parametrize(
    ("cell", "options"), (("lstm", {}), ("gru", {"reset": "before"}), ("gru", {"reset": "after"}))
)
def test_onnx_sees_every_wrong_gate_order(
    build: Build, draw: Draw, cell: str, options: dict[str, Any]
) -> None:
    x, state = onnx_inputs(cell, draw, 1, SIZE)
    arrays = onnx_arrays(cell, options, draw, SIZE[0], SIZE[1], 1)
    expected = run_onnx(cell, options, arrays, x, state)
    for wrong in wrong_gates(layout_of("onnx", cell, options)):
        weights = from_onnx(options, arrays, wrong)
        assert_differs(build(CLASSES[cell], weights, **options)(x, state), expected)


def test_onnx_sees_every_wrong_order_of_peepholes(build: Build, draw: Draw) -> None:
    options = {"peephole": "ifo"}
    layout = layout_of("onnx", "lstm", options)
    x, state = onnx_inputs("lstm", draw, 1, SIZE)
    arrays = onnx_arrays("lstm", options, draw, SIZE[0], SIZE[1], 1)
    expected = run_onnx("lstm", options, arrays, x, state)
    for order in wrong_orders(layout.peepholes):
        weights = from_onnx(options, arrays, replace(layout, peepholes=order))
        assert_differs(build(fr.LSTM, weights, **options)(x, state), expected)


def test_onnx_sees_a_coupled_gate_that_is_not_negated(build: Build, draw: Draw) -> None:
    options = {"coupled": True, "peephole": "fo"}
    units = SIZE[1]
    x, state = onnx_inputs("lstm", draw, 1, SIZE)
    arrays = onnx_arrays("lstm", options, draw, SIZE[0], units, 1)
    expected = run_onnx("lstm", options, arrays, x, state)
    weights = from_onnx(options, arrays, layout_of("onnx", "lstm", options))
    assert_agrees(build(fr.LSTM, weights, **options)(x, state), expected)
    for array in weights.values():  # f is the first block of each
        array[:units] *= -1
    assert_differs(build(fr.LSTM, weights, **options)(x, state), expected)


@pytest.mark.parametrize(
    ("cell", "options", "wrong"),
    (
        ("rnn", {"activation": "relu"}, {"activation": "identity"}),
        ("rnn", {"clip": 0.6}, {"clip": None}),
        ("gru", {"reset": "after"}, {"reset": "before"}),
        ("gru", {"reset": "before"}, {"reset": "after"}),
        ("gru", {"reset": "after", "clip": 0.6}, {"clip": None}),
        ("gru", {"reset": "before", "clip": 0.6}, {"clip": None}),
        ("lstm", {"clip": 0.6}, {"clip": None}),
        ("lstm", {"clip": 0.6}, {"clip": None, "cell_clip": 0.6}),
        (
            "lstm",
            {"gate_activation": "hard_sigmoid(0.3, 0.45)"},
            {"gate_activation": "hard_sigmoid(0.2, 0.5)"},
        ),
        (
            "lstm",
            {"activation": "relu", "output_activation": "identity"},
            {"activation": "identity", "output_activation": "relu"},
        ),
    ),
)
def test_onnx_sees_wrong_options(
    build: Build, draw: Draw, cell: str, options: dict[str, Any], wrong: dict[str, Any]
) -> None:
    x, state = onnx_inputs(cell, draw, 1, SIZE)
    arrays = onnx_arrays(cell, options, draw, SIZE[0], SIZE[1], 1)
    expected = run_onnx(cell, options, arrays, x, state)
    weights = from_onnx(options, arrays, layout_of("onnx", cell, options))
    assert_differs(build(CLASSES[cell], weights, **options | wrong)(x, state), expected)


# ---- Keras ---------------------------------------------------------------------------------------

KERAS = {
    "rnn": ("rnn", {}),
    "gru-after": ("gru", {"reset": "after"}),
    "gru-before": ("gru", {"reset": "before"}),
    "lstm": ("lstm", {}),
}
keras_cells = pytest.mark.parametrize(("cell", "options"), KERAS.values(), ids=KERAS)


@pytest.fixture(scope="module")
def keras(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Keras on PyTorch (unless the environment says otherwise), which leaves nothing behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        if "KERAS_BACKEND" not in os.environ:
            oracle("torch")
            patch.setenv("KERAS_BACKEND", "torch")
        return oracle("keras")


def keras_layer(
    keras: Any, layout: Layout, draw: Draw, inputs: int, units: int, directions: int
) -> tuple[Any, list[Arrays]]:
    """A Keras layer with random weights, and each direction's: kernel, recurrent kernel, bias."""
    layer = getattr(keras.layers, layout.layer_class)(
        units, return_sequences=True, return_state=True, **dict(layout.options)
    )
    if directions == 2:
        layer = keras.layers.Bidirectional(layer)
    layer.build((None, None, inputs))
    parts: list[Arrays] = [{} for _ in range(directions)]
    each = len(layer.weights) // directions
    for number, weight in enumerate(layer.weights):
        name = weight.path.rpartition("/")[2]
        kind = vector if name in layout.bias else matrix
        parts[number // each][name] = kind(draw, *weight.shape)
    layer.set_weights([array for part in parts for array in part.values()])
    return layer, parts


def from_keras(arrays: list[Arrays], layout: Layout) -> Arrays:
    weights: Arrays = {}
    for direction, part in enumerate(arrays):
        weights |= from_layout(layout, part, suffix(0, direction))
    return weights


def run_keras(
    keras: Any, layer: Any, x: np.ndarray, state: Result, lengths: Sequence[int] | None = None
) -> Result:
    rows = np.ascontiguousarray(x.transpose(1, 0, 2))
    mask = None if lengths is None else np.arange(len(x)) < np.array(lengths)[:, None]
    directions = len(state[0])
    before = [array[direction] for direction in range(directions) for array in state]
    outputs = layer(rows, initial_state=before, mask=mask)
    y, *after = (np.array(keras.ops.convert_to_numpy(array)) for array in outputs)
    states = len(state)
    return (y.transpose(1, 0, 2), *(np.stack(after[s::states]) for s in range(states)))


@pytest.mark.parametrize("directions", (1, 2))
@keras_cells
def test_keras(
    keras: Any,
    build: Build,
    draw: Draw,
    cell: str,
    options: dict[str, Any],
    directions: int,
) -> None:
    layout = layout_of("keras", cell, options)
    for size in SIZES:
        x, state = onnx_inputs(cell, draw, directions, size)
        theirs, arrays = keras_layer(keras, layout, draw, size[0], size[1], directions)
        ours = build(CLASSES[cell], from_keras(arrays, layout), **options)
        assert_agrees(ours(x, state), run_keras(keras, theirs, x, state))


@keras_cells
def test_keras_masks(
    keras: Any,
    build: Build,
    draw: Draw,
    random: np.random.Generator,
    cell: str,
    options: dict[str, Any],
) -> None:
    """In both directions: there Keras shows zeros past the end, which alone it does not."""
    layout = layout_of("keras", cell, options)
    size = inputs, units, batch, steps = (5, 9, 4, 7)
    x, state = onnx_inputs(cell, draw, 2, size)
    theirs, arrays = keras_layer(keras, layout, draw, inputs, units, 2)
    lengths = some_lengths(random, batch, steps)
    expected = run_keras(keras, theirs, x, state, lengths)
    ours = build(CLASSES[cell], from_keras(arrays, layout), **options)
    assert_agrees(ours(x, state, lengths), expected)
    assert_differs(ours(x, state), expected)


@keras_cells
def test_keras_sees_wrong_weights_and_options(
    keras: Any,
    build: Build,
    draw: Draw,
    cell: str,
    options: dict[str, Any],
) -> None:
    layout = layout_of("keras", cell, options)
    x, state = onnx_inputs(cell, draw, 1, SIZE)
    theirs, arrays = keras_layer(keras, layout, draw, SIZE[0], SIZE[1], 1)
    expected = run_keras(keras, theirs, x, state)
    for wrong in wrong_gates(layout):
        weights = from_keras(arrays, wrong)
        assert_differs(build(CLASSES[cell], weights, **options)(x, state), expected)
    weights = from_keras(arrays, layout)
    other = {"activation": "identity"}
    if cell == "gru":
        weights["bias_hh_l0"] = weights.get("bias_hh_l0", 0 * weights["bias_ih_l0"])
        other = {"reset": "before" if options["reset"] == "after" else "after"}
    assert_differs(build(CLASSES[cell], weights, **options | other)(x, state), expected)


# ---- Flax ----------------------------------------------------------------------------------------
#
# Its cells only, one step after another. It is not among the oracles that must be there.

flax_cells = pytest.mark.parametrize("cell", ("rnn", "gru", "lstm"))


def flax_arrays(layout: Layout, draw: Draw, inputs: int, units: int) -> Arrays:
    """Random parameters of a cell of flax.linen, by their paths."""
    arrays: Arrays = {}
    for gate in layout.gates:
        arrays[layout.input.format(gate=gate)] = matrix(draw, inputs, units)
        arrays[layout.recurrent.format(gate=gate)] = matrix(draw, units, units)
        for bias in layout.bias:
            arrays[bias.format(gate=gate)] = vector(draw, units)
    return arrays


def run_flax(layout: Layout, arrays: Arrays, x: np.ndarray, state: Result) -> Result:
    linen = pytest.importorskip("flax.linen")
    cell = getattr(linen, layout.step_class)(features=state[0].shape[2])
    parameters: dict[str, Any] = {}
    for path, array in arrays.items():
        name, _, leaf = path.partition("/")
        parameters.setdefault(name, {})[leaf] = array
    # Flax has (c, h).
    carry = tuple(array[0] for array in reversed(state))
    carry = carry if len(carry) == 2 else carry[0]
    y = []
    for row in x:
        carry, output = cell.apply({"params": parameters}, carry, row)
        y.append(np.asarray(output))
    after = reversed(carry) if len(state) == 2 else (carry,)
    return (np.stack(y), *(np.asarray(array)[None] for array in after))


@flax_cells
def test_flax(build: Build, draw: Draw, cell: str) -> None:
    layout = layout_of("flax", cell)
    for size in SIZES:
        x, state = onnx_inputs(cell, draw, 1, size)
        arrays = flax_arrays(layout, draw, size[0], size[1])
        expected = run_flax(layout, arrays, x, state)
        ours = build(CLASSES[cell], from_layout(layout, arrays))
        assert_agrees(ours(x, state), expected)


@flax_cells
def test_flax_sees_parameters_of_other_gates(build: Build, draw: Draw, cell: str) -> None:
    layout = layout_of("flax", cell)
    x, state = onnx_inputs(cell, draw, 1, SIZE)
    arrays = flax_arrays(layout, draw, SIZE[0], SIZE[1])
    expected = run_flax(layout, arrays, x, state)
    for wrong in wrong_orders(layout.gates):
        kernels = {
            template.format(gate=gate): arrays[template.format(gate=other)]
            for template in (layout.input, layout.recurrent)
            for gate, other in zip(layout.gates, wrong, strict=True)
        }
        ours = build(CLASSES[cell], from_layout(layout, arrays | kernels))
        assert_differs(ours(x, state), expected)


# ---- Clockwork RNN -------------------------------------------------------------------------------

ACTIVATIONS = {
    "tanh": np.tanh,
    "relu": lambda v: np.maximum(v, 0),
    "identity": lambda v: v,
}


def reads(periods: Sequence[int], units: int) -> tuple[np.ndarray, np.ndarray]:
    """The period of every unit, and which units (columns) each unit (row) reads: no faster ones."""
    period = np.repeat(periods, units // len(periods))
    return period, period[None, :] >= period[:, None]


def dense_clockwork(
    x: np.ndarray,
    h: np.ndarray,
    t: np.ndarray,
    weights: Arrays,
    end: str,
    lengths: Sequence[int],
    period: np.ndarray,
    mask: np.ndarray,
    activation: Callable[[np.ndarray], np.ndarray],
    reverse: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One direction of one layer in float64: every unit at every step, and then which to keep."""
    W, R, b = (weights[name + end].astype(float) for name in ("weight_ih", "weight_hh", "bias_ih"))
    y = np.zeros((*x.shape[:2], len(R)))
    h, t = h.astype(float), t.copy()
    for row, length in enumerate(lengths):
        for step in reversed(range(length)) if reverse else range(length):
            new = activation(W @ x[step, row] + (R * mask) @ h[row] + b)
            h[row] = np.where(int(t[row]) % period == 0, new, h[row])
            y[step, row] = h[row]
            t[row] += 1
    return y, h, t


def run_dense_clockwork(
    x: np.ndarray,
    state: Result,
    weights: Arrays,
    periods: Sequence[int],
    lengths: Sequence[int] | None = None,
    activation: str = "tanh",
    mask: np.ndarray | None = None,
) -> Result:
    """All layers and directions of the masked dense RNN."""
    h, t = state
    steps, batch, _ = x.shape
    period, usual = reads(periods, h.shape[2])
    directions = 2 if "weight_ih_l0_reverse" in weights else 1
    after_h, after_t = [], []
    y = x.astype(float)
    for layer in range(len(h) // directions):
        parts = []
        for direction in range(directions):
            row = layer * directions + direction
            part, new_h, new_t = dense_clockwork(
                y,
                h[row],
                t[row],
                weights,
                f"_l{layer}" + ("_reverse" if direction else ""),
                [steps] * batch if lengths is None else lengths,
                period,
                usual if mask is None else mask,
                ACTIVATIONS[activation],
                reverse=bool(direction),
            )
            parts.append(part)
            after_h.append(new_h)
            after_t.append(new_t)
        y = np.concatenate(parts, axis=2)
    return y, np.stack(after_h), np.stack(after_t)


def clockwork_weights(
    draw: Draw,
    periods: Sequence[int],
    inputs: int,
    units: int,
    layers: int = 1,
    directions: int = 1,
) -> Arrays:
    _, mask = reads(periods, units)
    weights = {}
    for layer in range(layers):
        for direction in range(directions):
            end = f"_l{layer}" + ("_reverse" if direction else "")
            width = directions * units if layer else inputs
            weights["weight_ih" + end] = matrix(draw, units, width)
            weights["weight_hh" + end] = matrix(draw, units, units) * mask
            weights["bias_ih" + end] = vector(draw, units)
    return weights


def clockwork_state(
    draw: Draw, random: np.random.Generator, rows: int, batch: int, units: int
) -> Result:
    """In the middle of a sequence, another place for each row; one of them beyond 32 bits."""
    t = random.integers(0, 50, (rows, batch))
    t[0, 0] += 2**40
    return vector(draw, rows, batch, units), t


def assert_clockwork_agrees(ours: tuple[np.ndarray, Any], theirs: Result) -> None:
    y, state = ours
    their_y, their_h, their_t = theirs
    assert_agrees((y, (state.h,)), (their_y, their_h))
    assert state.t.dtype == np.int64
    np.testing.assert_array_equal(state.t, their_t)


PERIODS = ((1, 2, 4, 8), (1, 1, 3), (2, 3, 3, 5), (1,), (3,))
clockwork_periods = pytest.mark.parametrize("periods", PERIODS, ids=str)


@pytest.mark.parametrize("module_size", range(1, 10))
@clockwork_periods
def test_clockwork(
    build: Build,
    draw: Draw,
    random: np.random.Generator,
    periods: tuple[int, ...],
    module_size: int,
) -> None:
    inputs, units, batch, steps = 5, module_size * len(periods), 3, 13
    weights = clockwork_weights(draw, periods, inputs, units)
    x = draw(steps, batch, inputs)
    ours = build(fr.ClockworkRNN, weights, periods=periods)
    state = clockwork_state(draw, random, 1, batch, units)
    assert_clockwork_agrees(ours(x, state), run_dense_clockwork(x, state, weights, periods))
    zeros = tuple(np.zeros_like(array) for array in state)
    assert_clockwork_agrees(ours(x), run_dense_clockwork(x, zeros, weights, periods))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@clockwork_periods
def test_clockwork_stacks_directions_and_lengths(
    build: Build,
    draw: Draw,
    random: np.random.Generator,
    periods: tuple[int, ...],
    activation: str,
) -> None:
    inputs, units, batch, steps = 3, 5 * len(periods), 5, 9
    lengths = [4, 9, 0, 1, 7]
    x = draw(steps, batch, inputs)
    for layers, directions in ((1, 2), (2, 1), (2, 2)):
        weights = clockwork_weights(draw, periods, inputs, units, layers, directions)
        state = clockwork_state(draw, random, layers * directions, batch, units)
        ours = build(fr.ClockworkRNN, weights, periods=periods, activation=activation)
        for each in (None, lengths):
            theirs = run_dense_clockwork(x, state, weights, periods, each, activation)
            assert_clockwork_agrees(ours(x, state, each), theirs)


@clockwork_periods
def test_clockwork_in_chunks(
    build: Build, draw: Draw, random: np.random.Generator, periods: tuple[int, ...]
) -> None:
    inputs, units, batch, steps = 4, 3 * len(periods), 2, 17
    weights = clockwork_weights(draw, periods, inputs, units, layers=2)
    x = draw(steps, batch, inputs)
    ours = build(fr.ClockworkRNN, weights, periods=periods)
    chunks = np.split(x, [1, 2, 5, 12])

    state: Any = clockwork_state(draw, random, 2, batch, units)
    theirs = run_dense_clockwork(x, state, weights, periods)
    parts = []
    for chunk in chunks:
        y, state = ours(chunk, state)
        parts.append(y)
    assert_clockwork_agrees((np.concatenate(parts), state), theirs)

    zeros = (np.zeros((2, batch, units)), np.zeros((2, batch), int))
    stream = ours.stream(batch)
    y = np.concatenate([stream.run(chunk) for chunk in chunks])
    theirs = run_dense_clockwork(x, zeros, weights, periods)
    assert_clockwork_agrees((y, stream.state), theirs)


def test_clockwork_oracle_sees_what_is_wrong(
    build: Build, draw: Draw, random: np.random.Generator
) -> None:
    periods, inputs, units, batch, steps = (1, 2, 2, 4), 5, 20, 3, 11
    x = draw(steps, batch, inputs)
    period, mask = reads(periods, units)
    full = clockwork_weights(draw, periods, inputs, units)
    full["weight_hh_l0"] = matrix(draw, units, units)
    weights = full | {"weight_hh_l0": full["weight_hh_l0"] * mask}
    state = clockwork_state(draw, random, 1, batch, units)
    result = build(fr.ClockworkRNN, weights, periods=periods)(x, state)
    assert_clockwork_agrees(result, run_dense_clockwork(x, state, full, periods))

    module = np.arange(units) // 5
    wrong_masks = {
        "reads everything": np.ones_like(mask),
        "reads faster modules": mask.T,
        "reads only itself": module[None, :] == module[:, None],
        "reads slower modules, of equal ones only itself": (period[None, :] > period[:, None])
        | (module[None, :] == module[:, None]),
    }
    for wrong in wrong_masks.values():
        assert_differs(result, run_dense_clockwork(x, state, full, periods, mask=wrong))
    assert_differs(result, run_dense_clockwork(x, state, full, (1, 2, 3, 4)))
    late = (state[0], state[1] + 1)
    assert_differs(result, run_dense_clockwork(x, late, full, periods))
    with pytest.raises(ValueError, match="must be zero"):
        build(fr.ClockworkRNN, full, periods=periods)
