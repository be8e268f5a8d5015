"""ONNX Runtime's DynamicQuantizeLSTM: its integers and scales are kept, and mean what they mean there."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import oracle
from damaged import load_with_flipped_bytes

onnx = oracle("onnx")
ort = oracle("onnxruntime")

from onnx import TensorProto, helper, numpy_helper
from onnx_models import Arrays, recurrent_node
from onnx_models import model_of as standard_model

import fusedrnn as fr
from fusedrnn import cli
from fusedrnn.formats.contents import Contents
from fusedrnn.formats.onnx_file import contents
from fusedrnn.formats.onnx_tensors import Store
from fusedrnn.narrowing import Narrow

UNITS, WIDTH = 6, 5
#: What 8 bits of x and h, of the whole batch, change there.
THEIR_ERROR = 2e-2
#: Differences to float64: of widened weights; and what integers of 15 bits for x and h add.
TOLERANCE, INTEGERS = 3e-6, 1e-3
DIRECTIONS = {1: "forward", 2: "bidirectional"}
NAMES = (
    *("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"),
    *("W_scale", "W_zero_point", "R_scale", "R_zero_point"),
)


def quantized_arrays(
    dtype: str = "int8",
    zero_point: int = 0,
    per_channel: bool = False,
    directions: int = 1,
    most: int = 64,
    seed: int = 0,
) -> Arrays:
    """The inputs of a node, whose integers are up to ``most`` from their zero point.

    ONNX Runtime's products of int8 saturate on CPUs without VNNI where integers are above 64.
    """
    random = np.random.default_rng(seed)
    D, rows = directions, 4 * UNITS
    arrays = {}
    for key, columns in (("W", WIDTH), ("R", UNITS)):
        shape = (D, rows) if per_channel else (D,)
        q = random.integers(-most, most, (D, columns, rows)) + zero_point
        arrays[key] = q.astype(dtype)
        arrays[f"{key}_scale"] = random.uniform(0.3, 0.6, shape).astype(np.float32) / most
        arrays[f"{key}_zero_point"] = np.full(shape, zero_point, dtype)
    for key, length in (("B", 2 * rows), ("P", 3 * UNITS)):
        arrays[key] = random.uniform(-0.3, 0.3, (D, length)).astype(np.float32)
    return arrays


def quantized_model(arrays: Arrays, **attributes: Any) -> Any:
    names = [name if name in ("X", *arrays) else "" for name in NAMES]
    attributes = {"hidden_size": UNITS, "direction": DIRECTIONS[len(arrays["W"])]} | attributes
    node = helper.make_node(
        "DynamicQuantizeLSTM",
        names,
        ["Y", "Y_h", "Y_c"],
        name="node",
        domain="com.microsoft",
        **attributes,
    )
    return model_of([node], arrays)


def model_of(nodes: list[Any], arrays: Arrays) -> Any:
    model = standard_model(nodes, arrays, opset=17)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.ir_version = 8
    return model


def dequantized_model(arrays: Arrays, **attributes: Any) -> Any:
    """The standard's node with the numbers that the integers stand for."""
    D = len(arrays["W"])
    wide = {key: arrays[key] for key in ("B", "P") if key in arrays}
    for key in ("W", "R"):
        scale, zero = (
            arrays[f"{key}_{each}"].reshape(D, 1, -1) for each in ("scale", "zero_point")
        )
        numbers = (arrays[key].astype(int) - zero.astype(int)) * scale.astype(float)
        wide[key] = np.ascontiguousarray(numbers.astype(np.float32).transpose(0, 2, 1))
    attributes = {"hidden_size": UNITS, "direction": DIRECTIONS[D]} | attributes
    return standard_model([recurrent_node("LSTM", tuple(wide), **attributes)], wide)


def found_in(model: Any) -> Contents:
    return contents(model, Store())


def canonical(rows: np.ndarray) -> np.ndarray:
    """Rows of the gates i o f c as i f g o."""
    i, o, f, c = np.split(rows, 4)
    return np.concatenate([i, f, c, o])


def run_there(model: Any, x: np.ndarray) -> np.ndarray:
    y = ort.InferenceSession(model.SerializeToString()).run(["Y"], {"X": x})[0]
    result: np.ndarray = y.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1)
    return result


def far(x: np.ndarray, y: np.ndarray, near: float) -> bool:
    return not np.allclose(x, y, rtol=near, atol=near)


def in_another_order(layer: fr.Layer[Any]) -> fr.Layer[Any]:
    """The layer with its gates mistaken for others."""
    untold = layer.architecture.untold()
    mistaken = "oif" if layer.architecture.coupled else "fgoi"
    gates = "".join(gate.name for gate in layer.architecture.table.gates)
    order = mistaken if sorted(mistaken) == sorted(gates) else gates[::-1]
    return type(layer).from_weights(layer._weights, gate_order=order, **untold)


KEPT = [("int8", 0), ("uint8", 128), ("int8", 3), ("uint8", 120)]


@pytest.mark.parametrize(("dtype", "zero_point"), KEPT)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("directions", [1, 2])
def test_integers_and_scales_are_kept(
    dtype: str, zero_point: int, per_channel: bool, directions: int
) -> None:
    arrays = quantized_arrays(dtype, zero_point, per_channel, directions)
    found = found_in(quantized_model(arrays)).find()
    layer = found.layer()
    assert (layer.weight_dtype, layer.architecture.bias) == ("int8", "double")
    assert layer.architecture.peephole == "ifo"
    assert any(note.startswith(f"{dtype} weights, kept") for note in found.notes)
    assert {each.name for each in found.tensors} == set(arrays)
    for direction, end in enumerate(("_l0", "_l0_reverse")[:directions]):
        for key, name in (("W", "weight_ih"), ("R", "weight_hh")):
            kept = layer._weights[name + end]
            assert isinstance(kept, Narrow)
            integers = arrays[key][direction].T.astype(int) - zero_point
            np.testing.assert_array_equal(kept.values, canonical(integers))
            assert (kept.values != integers).any()  # negative control
            scale = np.broadcast_to(arrays[f"{key}_scale"][direction], 4 * UNITS)
            assert kept.scales is not None
            np.testing.assert_array_equal(kept.scales, canonical(scale))


CASES = [
    ("int8", 0, False, 1, {}),
    ("int8", 0, True, 2, {}),
    ("uint8", 128, True, 1, {}),
    ("uint8", 128, False, 2, {"input_forget": 1}),
    ("int8", 0, True, 1, {"input_forget": 1}),
    ("int8", 2, False, 1, {"clip": 0.5}),
    ("uint8", 100, True, 1, {}),
    ("int8", 0, False, 1, {"direction": "reverse"}),
]


@pytest.mark.parametrize(("dtype", "zero_point", "per_channel", "directions", "attributes"), CASES)
def test_y_is_onnx_runtime_s_and_the_specification_s(
    dtype: str, zero_point: int, per_channel: bool, directions: int, attributes: Any
) -> None:
    arrays = quantized_arrays(dtype, zero_point, per_channel, directions)
    model = quantized_model(arrays, **attributes)
    layer = fr.from_onnx(model)
    assert layer.weight_dtype == "int8"
    x = np.random.default_rng(1).standard_normal((9, 3, WIDTH)).astype(np.float32)
    y = layer(x)[0]
    theirs = run_there(model, x)
    np.testing.assert_allclose(y, theirs, rtol=0, atol=THEIR_ERROR)
    exact = fr.from_onnx(dequantized_model(arrays, **attributes), backend="numpy", dtype="float64")
    true = exact(x.astype(np.float64))[0]
    np.testing.assert_allclose(y, true, rtol=INTEGERS, atol=INTEGERS)
    specification = fr.from_onnx(model, backend="numpy", dtype="float64")
    step = specification(x[:1].astype(np.float64))[0]  # x is the same integers then
    np.testing.assert_allclose(layer(x[:1])[0], step, rtol=TOLERANCE, atol=TOLERANCE)
    wrong = in_another_order(layer)(x)[0]
    assert far(wrong, theirs, THEIR_ERROR) and far(wrong, true, INTEGERS)
    assert far(wrong[:1], step, TOLERANCE)


@pytest.mark.parametrize(
    ("dtype", "zero_point", "attributes"),
    [("uint8", 120, {}), ("int8", 5, {}), ("int8", 0, {"input_forget": 1})],
)
def test_what_does_not_fit_is_widened_and_said(
    dtype: str, zero_point: int, attributes: Any
) -> None:
    arrays = quantized_arrays(dtype, zero_point, most=8)
    extreme = np.iinfo(dtype).max if dtype == "uint8" else np.iinfo(dtype).min
    arrays["W"][0, 0, :3] = extreme
    for key in ("W", "R"):
        arrays[f"{key}_scale"] /= 8
    found = found_in(quantized_model(arrays, **attributes)).find()
    layer = found.layer()
    assert layer.weight_dtype == "float32"
    (note,) = [note for note in found.notes if "widened" in note]
    assert dtype in note and "fit int8" in note
    wide = fr.from_onnx(dequantized_model(arrays, **attributes))
    for name, array in wide.weights.items():
        np.testing.assert_array_equal(layer.weights[name], array)
    x = np.random.default_rng(1).standard_normal((9, 3, WIDTH)).astype(np.float32)
    np.testing.assert_array_equal(layer(x)[0], wide(x)[0])
    if not attributes:
        exact = fr.from_onnx(dequantized_model(arrays), backend="numpy", dtype="float64")
        true = exact(x.astype(np.float64))[0]
        np.testing.assert_allclose(layer(x)[0], true, rtol=TOLERANCE, atol=TOLERANCE)


def test_another_weight_dtype_can_be_asked_for() -> None:
    model = quantized_model(quantized_arrays())
    kept, wide = fr.from_onnx(model), fr.from_onnx(model, weight_dtype="float32")
    assert wide.weight_dtype == "float32"
    for name, array in kept.weights.items():
        np.testing.assert_array_equal(wide.weights[name], array)


def test_initial_states_and_no_zero_points() -> None:
    arrays = quantized_arrays()
    x = np.random.default_rng(1).standard_normal((4, 1, WIDTH)).astype(np.float32)
    expected = fr.from_onnx(quantized_model(arrays))
    state = [np.full((1, 1, UNITS), value, np.float32) for value in (0.25, -0.5)]
    arrays |= dict(zip(("initial_h", "initial_c"), state, strict=True))
    del arrays["W_zero_point"], arrays["R_zero_point"]
    layer = fr.from_onnx(quantized_model(arrays))
    assert layer.weight_dtype == "int8"
    np.testing.assert_array_equal(layer(x)[0], expected(x, state)[0])
    assert (layer(x)[0] != expected(x)[0]).any()


# ---- models that ONNX Runtime has quantized --------------------------------------------------------


def float_stack(directions: int) -> Any:
    """Two layers, one behind the other."""
    random = np.random.default_rng(5)
    arrays: Arrays = {}
    nodes = []
    D, width, source = directions, WIDTH, "X"
    for number in range(2):
        here = {
            f"W{number}": (D, 4 * UNITS, width),
            f"R{number}": (D, 4 * UNITS, UNITS),
            f"B{number}": (D, 8 * UNITS),
        }
        arrays |= {n: random.uniform(-0.6, 0.6, s).astype(np.float32) for n, s in here.items()}
        made = ["Y", "", ""] if number else ["between", "", ""]
        nodes.append(
            helper.make_node(
                "LSTM",
                [source, *here],
                made,
                name=f"lstm{number}",
                hidden_size=UNITS,
                direction=DIRECTIONS[D],
            )
        )
        if not number:
            turn = helper.make_node("Transpose", ["between"], ["turned"], perm=[0, 2, 1, 3])
            join = helper.make_node("Reshape", ["turned", "shape"], ["joined"])
            nodes += [turn, join]
            arrays["shape"] = np.array([0, 0, -1])
        width, source = D * UNITS, "joined"
    return model_of(nodes, arrays)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(("kind", "directions"), [("QInt8", 1), ("QUInt8", 2)])
def test_models_that_onnx_runtime_has_quantized(
    per_channel: bool, kind: str, directions: int, tmp_path: Path
) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model, path = float_stack(directions), tmp_path / "quantized.onnx"
    logging.disable(logging.WARNING)
    try:
        quantize_dynamic(
            model,
            path,
            per_channel=per_channel,
            weight_type=QuantType[kind],
            reduce_range=True,
        )
    finally:
        logging.disable(logging.NOTSET)
    quantized = onnx.load(path)
    stored = {each.name: numpy_helper.to_array(each) for each in quantized.graph.initializer}
    found = fr.inspect(path).find()
    assert found.origin == "ONNX DynamicQuantizeLSTM node"
    assert (found.architecture.num_layers, found.architecture.directions) == (2, directions)
    layer = fr.load(path)
    assert layer.weight_dtype == "int8"
    for number in range(2):
        kept = layer._weights[f"weight_hh_l{number}"]
        assert isinstance(kept, Narrow) and kept.scales is not None
        integers = stored[f"R{number}_quantized"][0].T
        np.testing.assert_array_equal(kept.values, canonical(integers))
        scale = np.broadcast_to(stored[f"R{number}_scale"][0], 4 * UNITS)
        np.testing.assert_array_equal(kept.scales, canonical(scale))
    x = np.random.default_rng(1).standard_normal((9, 3, WIDTH)).astype(np.float32)
    y, theirs = layer(x)[0], run_there(quantized, x)
    np.testing.assert_allclose(y, theirs, rtol=0, atol=THEIR_ERROR)
    unquantized = fr.from_onnx(model)(x)[0]
    np.testing.assert_allclose(y, unquantized, rtol=0, atol=THEIR_ERROR)
    assert far(in_another_order(layer)(x)[0], theirs, THEIR_ERROR)


def test_a_session_leaves_the_node_to_onnx_runtime() -> None:
    model = quantized_model(quantized_arrays())
    session = fr.onnx.session(model)
    assert "DynamicQuantizeLSTM" in str(session.report) and "fr.load" in str(session.report)
    x = np.random.default_rng(1).standard_normal((4, 2, WIDTH)).astype(np.float32)
    options = ort.SessionOptions()
    options.intra_op_num_threads = (
        1  # or each thread has a scale of its own for its part of the batch
    )
    theirs = ort.InferenceSession(model.SerializeToString(), options).run(None, {"X": x})
    for ours, array in zip(session.run(None, {"X": x}), theirs, strict=True):
        np.testing.assert_array_equal(ours, array)


# ---- what is told, and what is wrong ---------------------------------------------------------------


def test_commands_on_a_quantized_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, rows = tmp_path / "model.onnx", tmp_path / "x.npy"
    onnx.save(quantized_model(quantized_arrays()), path)
    x = np.random.default_rng(1).standard_normal((9, WIDTH)).astype(np.float32)
    np.save(rows, x)

    def said(*arguments: object) -> str:
        assert cli.main([str(each) for each in arguments]) == 0
        return capsys.readouterr().out

    assert "int8 weights, kept" in said("inspect", path)
    counted = json.loads(said("count", path, "--json"))
    matrices = 4 * UNITS * (WIDTH + UNITS)
    assert counted["total"]["macs_per_step"] == matrices
    machine = ["--machine", "docs/example-machine.json", "--json"]
    bound = json.loads(said("roofline", path, *machine))
    vectors = (4 + 3) * UNITS  # effective biases, and peepholes
    assert sum(part["weight_bytes"] for part in bound["parts"]) == matrices + 4 * vectors
    said("run", path, rows, "-o", tmp_path / "y.npy")
    layer = fr.load(path)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), layer(x)[0])
    drift = json.loads(said("drift", path, "--input", rows, "--weight-dtype", "int8", "--json"))
    assert [each["block"] for each in drift["causes"]] == ["x and h"]  # no weight is rounded again
    assert cli.main(["narrow", str(path), "--input", str(rows)]) != 0
    assert "int8 weights" in capsys.readouterr().err


def test_flipped_bytes_give_an_error_or_a_layer(tmp_path: Path) -> None:
    onnx.save(quantized_model(quantized_arrays("uint8", 127)), tmp_path / "model.onnx")
    load_with_flipped_bytes(tmp_path / "model.onnx", 300)


def changed(**arrays: Any) -> Any:
    found = quantized_arrays() | arrays
    return quantized_model({key: array for key, array in found.items() if array is not None})


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"W_scale": None}, "input W_scale is missing"),
        ({"R_scale": np.ones((1, 3), "f4")}, "R_scale must have shape"),
        ({"R_scale": np.ones(1, "f8")}, "R_scale must be float32"),
        ({"W_zero_point": np.zeros(2, "i1")}, "W_zero_point must have shape"),
        ({"W_zero_point": np.zeros(1, "u1")}, "W must be of its zero point's type"),
        ({"W_zero_point": np.zeros(1, "i4")}, "W must be int8 or uint8"),
        ({"W": np.zeros((1, 4 * UNITS, WIDTH), "i1")}, "W must have shape"),
        ({"R": np.zeros((1, UNITS, 4 * UNITS), "f4"), "R_zero_point": None}, "R must be int8"),
    ],
)
def test_a_damaged_node_is_refused(arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(fr.ModelFormatError, match=message):
        found_in(changed(**arrays)).find().layer()


@pytest.mark.parametrize("scale", [0, -1, np.nan, np.inf, 1e-40])
def test_scales_that_are_none_are_named(scale: float) -> None:
    found = found_in(changed(R_scale=np.float32([scale])))
    assert [part.kind for part in found.parts] == ["?"]
    with pytest.raises(ValueError, match="R_scale must be from"):
        found.find()


def test_scales_known_at_run_time_are_named() -> None:
    model = changed(R_scale=None)
    node = model.graph.node[0]
    node.input[NAMES.index("R_scale")] = "given"
    model.graph.input.append(helper.make_tensor_value_info("given", TensorProto.FLOAT, [1]))
    with pytest.raises(ValueError, match="R_scale: 'given' is an input"):
        found_in(model).find()
