"""Layers of narrow matrices that somebody else has made: they are kept to the bit, and computed with as they are."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FAMILY, Draw, Maker, Target

import fusedrnn as fr
from fusedrnn.engines.native import isas
from fusedrnn.kernels.integers import as_integers
from fusedrnn.narrowing import INTEGERS, WEIGHT_DTYPES, Narrow, matrices

NARROW = WEIGHT_DTYPES[1:]
#: As of a step of float32 weights.
TOLERANCE = 3e-6

Weights = dict[str, Any]


@pytest.fixture(params=isas())
def make_c(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Maker:
    return Maker(Target("c", request.param), monkeypatch)


def given(layer: fr.Layer[Any], weight_dtype: str = "int8", seed: int = 1) -> Weights:
    """Weights of a layer's names and shapes: integers of all 8 bits and scales of all 24, or the layer's own in 16 bits."""
    if weight_dtype not in INTEGERS:
        return dict(layer.narrow(weight_dtype)._weights)
    random = np.random.default_rng(seed)
    weights: Weights = {**layer.weights}
    for name, (rows, columns) in matrices(layer.architecture).items():
        values = random.integers(-128, 128, (rows, columns)).astype(np.int8)
        values[layer.weights[name] == 0] = 0  # what modules of a Clockwork RNN do not read
        scales = (random.uniform(0.2, 1, rows) / 128 / columns**0.5).astype(np.float32)
        weights[name] = Narrow(weight_dtype, values, scales)
    return weights


def same(stored: Any, expected: Weights) -> None:
    assert set(stored) == set(expected)
    for name, each in expected.items():
        if isinstance(each, Narrow):
            assert stored[name].weight_dtype == each.weight_dtype
            assert stored[name].values.tobytes() == each.values.tobytes()
            np.testing.assert_array_equal(stored[name].scales, each.scales)
        else:
            np.testing.assert_array_equal(stored[name], each)


def told(layer: fr.Layer[Any]) -> dict[str, Any]:
    return layer.architecture.untold()


@pytest.mark.parametrize("weight_dtype", NARROW)
@pytest.mark.parametrize("name", FAMILY)
def test_given_matrices_are_kept_to_the_bit(name: str, weight_dtype: str, tmp_path: Path) -> None:
    cell, chosen = FAMILY[name]
    model = cell(5, 12, 2, seed=1, bidirectional=True, **chosen)
    weights = given(model, weight_dtype)
    layer = cell.from_weights(weights, **told(model))
    assert layer.weight_dtype == weight_dtype
    same(layer._weights, weights)
    fr.save(layer, tmp_path / "layer")
    again = (
        fr.load(tmp_path / "layer"),
        pickle.loads(pickle.dumps(layer)),
        layer.narrow(weight_dtype),
    )
    for other in (*again, model.narrow(weight_dtype).with_weights(weights)):
        assert other.weight_dtype == weight_dtype
        same(other._weights, weights)
    other = given(model, weight_dtype, seed=2)
    matrix = other["weight_hh_l1"]
    other["weight_hh_l1"] = Narrow(weight_dtype, matrix.values[::-1], matrix.scales)
    with pytest.raises(AssertionError):  # negative control
        same(layer._weights, other)


@pytest.mark.parametrize("weight_dtype", INTEGERS)
@pytest.mark.parametrize("name", ["lstm", "lstm-projection", "gru", "gru-before", "rnn"])
def test_a_step_is_that_of_the_specification(
    name: str, weight_dtype: str, make_c: Maker, draw: Draw
) -> None:
    """Step by step from the same state, so that x and h are the same integers."""
    cell, chosen = FAMILY[name]
    weights = given(cell(7, 12, seed=1, **chosen), weight_dtype)
    options = told(cell(7, 12, **chosen))
    layer = make_c.from_weights(weights, cell=cell, **options)
    more = {"backend": "numpy", "dtype": "float64"}
    specification = cell.from_weights(weights, **options, **more)
    kept = specification.weights["weight_hh_l0"]
    R = weights["weight_hh_l0"]
    np.testing.assert_array_equal(kept, R.values.astype(float) * R.scales.astype(float)[:, None])
    wrong = {**weights, "weight_hh_l0": Narrow(weight_dtype, R.values, R.scales[::-1].copy())}
    another = cell.from_weights(wrong, **options, **more)
    # What a second product reads is not the same in float32 and float64: its integers may be one off.
    near = (
        1e-4 if layer.architecture.proj_size or layer.architecture.reset == "before" else TOLERANCE
    )
    state: Any = None
    differs = False
    for x in 3 * draw(9, 1, 4, 7):
        before = state and tuple(each.astype(np.float64) for each in state)
        true = specification(x.astype(np.float64), before)[1]
        control = another(x.astype(np.float64), before)[1]
        _, state = layer(x, state)
        for values, true_values in zip(state, true, strict=True):
            np.testing.assert_allclose(values, true_values, rtol=near, atol=near)
        differs = differs or not np.allclose(state[0], control[0], rtol=near, atol=near)
    assert differs


@pytest.mark.parametrize("weight_dtype", INTEGERS)
@pytest.mark.parametrize("inputs", [5, 1024, 1027, 2048])
def test_sums_of_the_largest_integers_are_exact(
    make_c: Maker, inputs: int, weight_dtype: str
) -> None:
    values = np.full((9, inputs), -128, np.int8)
    values[1], values[2, ::2] = 127, 127
    scales = np.ones(9, np.float32)
    zeros = Narrow(weight_dtype, np.zeros((9, 9), np.int8), scales)
    weights = {"weight_ih_l0": Narrow(weight_dtype, values, scales), "weight_hh_l0": zeros}
    layer = make_c.from_weights(weights, cell=fr.RNN, activation="identity")
    x = np.ones((1, 2, inputs), np.float32)
    x[:, 1] = -1
    q, step = as_integers(x, weight_dtype)
    total = np.float32(0)
    for k in range(0, inputs, 1024):
        whole = q[..., k : k + 1024].astype(np.int64) @ values[:, k : k + 1024].T.astype(np.int64)
        total = total + whole.astype(np.float32)
    np.testing.assert_array_equal(layer(x)[0], step * total)


@pytest.mark.parametrize("name", ["lstm", "gru", "lstm-coupled"])
def test_prefix_and_gate_order(name: str) -> None:
    cell, chosen = FAMILY[name]
    model = cell(3, 4, seed=1, **chosen)
    weights, options = given(model), told(model)
    gates = "".join(gate.name for gate in model.architecture.table.gates)
    order = np.concatenate([np.arange(4) + 4 * gates.index(gate) for gate in gates[::-1]])
    turned = {
        f"a.{key}": each.rows(order)
        if isinstance(each, Narrow)
        else each[order]
        if len(each) == len(order)
        else each
        for key, each in weights.items()
    }
    layer = cell.from_weights(turned, prefix="a.", gate_order=gates[::-1], **options)
    same(layer._weights, weights)
    with pytest.raises(AssertionError):
        same(cell.from_weights(turned, prefix="a.", **options)._weights, weights)


def test_another_weight_dtype_rounds_or_widens() -> None:
    model = fr.GRU(3, 4, seed=1)
    weights = given(model)
    layer = fr.GRU.from_weights(weights)
    wide = fr.GRU.from_weights(weights, weight_dtype="float32")
    assert wide.weight_dtype == "float32"
    for name, array in wide.weights.items():
        np.testing.assert_array_equal(array, layer.weights[name])
    half = fr.GRU.from_weights(weights, weight_dtype="float16")
    same(half._weights, {**wide.narrow("float16")._weights})
    exact = fr.GRU.from_weights(weights, weight_dtype="float32", backend="numpy", dtype="float64")
    R = weights["weight_hh_l0"]
    np.testing.assert_array_equal(exact.weights["weight_hh_l0"], R.widened(np.float64))
    assert (exact.weights["weight_hh_l0"] != wide.weights["weight_hh_l0"]).any()
    assert wide.with_weights(weights).weight_dtype == "float32"
    fewer = layer.narrow("w8a7")  # the same integers
    assert fewer.weight_dtype == "w8a7"
    same(fewer._weights, given(model, "w8a7"))
    same(fr.GRU.from_weights(given(model, "w8a7"), weight_dtype="int8")._weights, weights)
    mixed = {**weights, "weight_hh_l0": model.weights["weight_hh_l0"]}
    with pytest.raises(ValueError, match="weight_ih_l0 is int8, weight_hh_l0 is float32"):
        fr.GRU.from_weights(mixed)
    assert fr.GRU.from_weights(mixed, weight_dtype="int8").weight_dtype == "int8"


def test_a_layer_has_copies() -> None:
    weights = given(fr.RNN(3, 4, seed=1))
    layer = fr.RNN.from_weights(weights)
    before = layer.weights["weight_hh_l0"].copy()
    weights["weight_hh_l0"].values[...] = 1
    weights["weight_hh_l0"].scales[...] = 1
    np.testing.assert_array_equal(layer.weights["weight_hh_l0"], before)


INT8 = np.ones((4, 4), np.int8)
ONES = np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (Narrow("int4", INT8, ONES), ValueError, "float16.*got 'int4'"),
        (Narrow("int8", INT8.astype("i2"), ONES), TypeError, "must be int8"),
        (Narrow("int8", INT8[0], ONES), ValueError, "shape"),
        (Narrow("int8", INT8.tolist(), ONES), TypeError, "numpy.ndarray"),  # type: ignore[arg-type]
        (Narrow("int8", INT8, None), TypeError, "scales"),
        (Narrow("int8", INT8, ONES[:3]), ValueError, "scales"),
        (Narrow("int8", INT8, ONES.astype("f8")), TypeError, "scales"),  # type: ignore[arg-type]
        (Narrow("int8", INT8, np.float32([1, 0, 1, 1])), ValueError, "row 1"),
        (Narrow("int8", INT8, np.float32([1, 1, -1, 1])), ValueError, "row 2"),
        (Narrow("int8", INT8, np.float32([1, 1, 1, np.nan])), ValueError, "row 3"),
        (Narrow("int8", INT8, np.float32([1, 1, 1, np.inf])), ValueError, "row 3"),
        (Narrow("int8", INT8, np.float32([1e-40, 1, 1, 1])), ValueError, "row 0"),
        (Narrow("float16", np.full((4, 4), 0x7C00, "u2")), ValueError, r"\[0, 0\] = inf"),
        (Narrow("float16", np.full((4, 4), 0x8001, "u2")), ValueError, "subnormal"),
        (Narrow("bfloat16", np.full((4, 4), 0x7FC0, "u2")), ValueError, "nan"),
        (Narrow("bfloat16", np.zeros((4, 4), "u2"), ONES), ValueError, "scales"),
    ],
)
def test_what_is_no_narrow_matrix_is_refused(bad: Narrow, error: Any, message: str) -> None:
    weights = given(fr.RNN(3, 4, seed=1), "int8")
    for key in ("weight_hh_l0", "weight_ih_l0"):
        with pytest.raises(error, match=f"{key}.*({message})|{message}.*{key}"):
            fr.RNN.from_weights({**weights, key: bad}, weight_dtype="int8")
        with pytest.raises(error, match=key):
            fr.RNN(3, 4).with_weights({**weights, key: bad})


def test_another_shape_is_refused() -> None:
    weights = given(fr.RNN(3, 4, seed=1))
    weights["weight_hh_l0"] = Narrow("int8", INT8[:3], ONES[:3])
    with pytest.raises(ValueError, match=r"weight_hh_l0' must have shape \(4, 4\), got \(3, 4\)"):
        fr.RNN(3, 4).with_weights(weights)


def test_only_matrices_may_be_narrow() -> None:
    weights = given(fr.RNN(4, 4, seed=1))
    with pytest.raises(TypeError, match="bias_ih_l0.*Narrow"):
        fr.RNN.from_weights({**weights, "bias_ih_l0": weights["weight_ih_l0"]})
    layer = fr.ClockworkRNN(3, 8, periods=(1, 2), seed=1)
    values = np.ones((8, 8), np.int8)
    full = Narrow("int8", values, np.ones(8, np.float32))
    with pytest.raises(ValueError, match="weight_hh_l0.*must be zero"):
        layer.with_weights({**layer.weights, "weight_hh_l0": full})


@pytest.mark.parametrize("weight_dtype", NARROW)
def test_stored_weights_make_the_same_layer(weight_dtype: str, draw: Draw) -> None:
    plain = fr.LSTM(5, 6, seed=1)
    layer = fr.LSTM.from_weights(given(plain, weight_dtype))
    x = draw(7, 2, 5)
    for again in (
        fr.LSTM.from_weights(layer.stored_weights),
        layer.with_weights(layer.stored_weights),
    ):
        same(again.stored_weights, dict(layer.stored_weights))
    np.testing.assert_array_equal(fr.LSTM.from_weights(layer.stored_weights)(x)[0], layer(x)[0])
    assert all(isinstance(each, np.ndarray) for each in plain.stored_weights.values())
