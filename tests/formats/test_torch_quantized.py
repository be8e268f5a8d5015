"""PyTorch's dynamically quantized modules: their integers and scales are kept, and mean what they mean there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Draw, oracle

import fusedrnn as fr
from fusedrnn.narrowing import Narrow, matrices

torch = oracle("torch")

pytestmark = pytest.mark.filterwarnings("ignore:torch.ao.quantization", "ignore::UserWarning")

#: What 7 or 8 bits of x and h, of the whole batch, change there.
THEIR_ERROR = 3e-2
#: What float16 weights, of which none is rounded again, may differ by; and what integers of 15 bits for x and h add.
TOLERANCE, INTEGERS = 5e-6, 1e-3
WIDTH, UNITS = 5, 6

CASES = [
    ("LSTM", {}),
    ("LSTM", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    ("GRU", {"num_layers": 2}),
    ("GRU", {"bidirectional": True}),
]
CELLS = [("LSTMCell", {}), ("GRUCell", {}), ("RNNCell", {"nonlinearity": "relu"})]


def quantized(kind: str, options: dict[str, Any], dtype: Any = None) -> Any:
    """A module, and what PyTorch makes of it."""
    torch.manual_seed(3)
    model = torch.nn.Sequential(getattr(torch.nn, kind)(WIDTH, UNITS, **options))
    made = torch.ao.quantization.quantize_dynamic(
        model, {type(model[0])}, dtype=dtype or torch.qint8
    )
    assert "quantized" in type(made[0]).__module__
    return made[0]


def run_there(module: Any, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        if not type(module).__name__.endswith("Cell"):
            return np.asarray(module(torch.from_numpy(x))[0])
        state, outputs = None, []
        for x_t in torch.from_numpy(x):
            state = module(x_t, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
    return torch.stack(outputs).numpy()


def dequantized(module: Any) -> dict[str, np.ndarray]:
    """Its weights in float64, worked out by PyTorch."""
    given = {**module.get_weight(), **module.get_bias()}
    end = "_l0" if type(module).__name__.endswith("Cell") else ""
    return {
        name + end: (each.dequantize() if each.is_quantized else each.detach()).double().numpy()
        for name, each in given.items()
    }


def far(x: np.ndarray, y: np.ndarray, near: float) -> bool:
    return not np.allclose(x, y, rtol=near, atol=near)


@pytest.mark.parametrize(("kind", "options"), CASES + CELLS)
def test_integers_and_scales_are_kept(kind: str, options: dict[str, Any], draw: Draw) -> None:
    module = quantized(kind, options)
    layer = fr.from_torch(module)
    assert layer.weight_dtype == "int8" and layer.architecture.bias == "double"
    assert layer.batch_first == options.get("batch_first", False)
    for name in matrices(layer.architecture):
        kept = layer._weights[name]
        theirs = module.get_weight()[name.removesuffix("_l0") if kind.endswith("Cell") else name]
        assert isinstance(kept, Narrow) and kept.scales is not None
        np.testing.assert_array_equal(kept.values, theirs.int_repr().numpy())
        assert np.unique(kept.scales).tolist() == [theirs.q_scale()]
        assert len(np.unique(kept.values)) > 20  # not all the same
    x = draw(9, 4, WIDTH)
    y, theirs = layer(x)[0], run_there(module, x)
    np.testing.assert_allclose(y, theirs, rtol=0, atol=THEIR_ERROR)
    told = {"batch_first": layer.batch_first, **layer.architecture.untold()}
    exact = type(layer).from_weights(dequantized(module), backend="numpy", dtype="float64", **told)
    true = exact(x.astype(np.float64))[0]
    np.testing.assert_allclose(y, true, rtol=INTEGERS, atol=INTEGERS)
    if not layer.batch_first and layer.architecture.num_layers == 1:
        step = fr.from_torch(module, backend="numpy", dtype="float64")(x[:1].astype(np.float64))[0]
        np.testing.assert_allclose(layer(x[:1])[0], step, rtol=TOLERANCE, atol=TOLERANCE)
    gates = "".join(gate.name for gate in layer.architecture.table.gates)
    if len(gates) > 1:
        wrong = type(layer).from_weights(layer._weights, gate_order=gates[::-1], **told)(x)[0]
    else:
        wrong = type(layer).from_weights(layer._weights, activation="tanh")(x)[0]
    assert far(wrong, theirs, THEIR_ERROR) and far(wrong, true, INTEGERS)


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_float16_weights_are_kept(kind: str, options: dict[str, Any], draw: Draw) -> None:
    module = quantized(kind, options, torch.float16)
    layer = fr.from_torch(module)
    assert layer.weight_dtype == "float16"
    expected = dequantized(module)
    for name, array in layer.weights.items():
        normal = np.abs(expected[name]) >= 2.0**-14
        np.testing.assert_array_equal(array[normal], expected[name][normal])
    x = draw(9, 4, WIDTH)
    np.testing.assert_allclose(layer(x)[0], run_there(module, x), rtol=TOLERANCE, atol=TOLERANCE)


def repacked(weight: Any, other: Any) -> Any:
    """A quantized GRU of other quantized matrices."""
    module = torch.ao.nn.quantized.dynamic.GRU(WIDTH, UNITS)
    biases = {name: torch.zeros(3 * UNITS) for name in ("bias_ih_l0", "bias_hh_l0")}
    module.set_weight_bias({"weight_ih_l0": weight, "weight_hh_l0": other, **biases})
    return module


def test_scales_of_rows_and_zero_points() -> None:
    torch.manual_seed(3)
    W, R = torch.randn(3 * UNITS, WIDTH), torch.randn(3 * UNITS, UNITS)
    rows = torch.linspace(0.02, 0.05, 3 * UNITS)
    per_row = torch.quantize_per_channel(
        W, rows.double(), torch.zeros(3 * UNITS, dtype=torch.long), 0, torch.qint8
    )
    small = torch.quantize_per_tensor(R, 0.05, 3, torch.qint8)
    layer = fr.from_torch(repacked(per_row, small))
    assert layer.weight_dtype == "int8"
    kept, other = layer._weights["weight_ih_l0"], layer._weights["weight_hh_l0"]
    assert isinstance(kept, Narrow) and isinstance(other, Narrow)
    np.testing.assert_array_equal(kept.scales, rows.numpy())
    np.testing.assert_array_equal(kept.values, per_row.int_repr().numpy())
    np.testing.assert_array_equal(other.values, small.int_repr().numpy().astype(int) - 3)
    far_off = torch.quantize_per_tensor(R, 0.005, 3, torch.qint8)
    assert far_off.int_repr().min() == -128
    wide = fr.from_torch(repacked(per_row, far_off))
    assert wide.weight_dtype == "float32"
    np.testing.assert_array_equal(wide.weights["weight_hh_l0"], far_off.dequantize().numpy())


def test_a_quantized_module_is_counted() -> None:
    model = torch.nn.Sequential(torch.nn.GRU(WIDTH, UNITS, 2), torch.nn.ReLU())
    made = torch.ao.quantization.quantize_dynamic(model, {torch.nn.GRU}, dtype=torch.qint8)
    ours, theirs = fr.count(made), fr.count(model)
    assert ours.macs_per_step == theirs.macs_per_step
    assert ours.parameters == theirs.parameters
    assert fr.count(fr.from_torch(made[0])).weight_dtype == "int8"


@pytest.mark.parametrize("dtype", ["qint8", "float16"])
def test_a_file_of_packed_weights_says_what_to_do(dtype: str, tmp_path: Path) -> None:
    module = quantized("LSTM", {}, getattr(torch, dtype))
    torch.save(module.state_dict(), tmp_path / "model.pt")
    for read in (fr.load, fr.inspect, fr.count):
        with pytest.raises(fr.ModelFormatError, match="ScriptObject.*quantize_dynamic.*from_torch"):
            read(tmp_path / "model.pt")
    fr.save(fr.from_torch(module), tmp_path / "model.safetensors")
    x = np.ones((3, 1, WIDTH), np.float32)
    again = fr.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(again(x)[0], fr.from_torch(module)(x)[0])


def test_a_quantized_linear_is_no_layer() -> None:
    made = torch.ao.quantization.quantize_dynamic(
        torch.nn.Sequential(torch.nn.Linear(3, 4)), {torch.nn.Linear}, dtype=torch.qint8
    )
    with pytest.raises(TypeError, match="one of them quantized"):
        fr.from_torch(made[0])
