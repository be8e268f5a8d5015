"""Keras models: every recurrent layer that Keras writes computes what Keras computes; nothing is lost; nothing is guessed.

Keras itself is the oracle for what it can still write. What only old versions wrote is made here with h5py, and the
equations are written out in NumPy.
"""

from __future__ import annotations

import importlib
import io
import itertools
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Draw
from hypothesis import given, settings
from hypothesis import strategies as st

import fusedrnn as fr
from fusedrnn.formats import layouts

h5py = pytest.importorskip("h5py")

TOLERANCE = 5e-6
DIFFERENCE = 1e-3


def oracle(name: str) -> Any:
    """A module that a test compares with."""
    if os.environ.get("FUSEDRNN_REQUIRE_ORACLES") != "1":
        return pytest.importorskip(name)
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def keras(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Keras, which computes with PyTorch here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        patch.setenv("KERAS_BACKEND", "torch")
        oracle("torch")
        return oracle("keras")


def randomise(layer: Any, seed: int = 0) -> None:
    """Weights that are all different, biases too."""
    draw = np.random.default_rng(seed)
    layer.set_weights(
        [0.6 * draw.standard_normal(each.shape).astype(np.float32) for each in layer.get_weights()]
    )


def inputs(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def run(keras: Any, model: Any, x: np.ndarray) -> Any:
    out = model(x)
    if isinstance(out, (list, tuple)):
        return [np.array(keras.ops.convert_to_numpy(each.detach())) for each in out]
    return np.array(keras.ops.convert_to_numpy(out.detach()))


def save(keras: Any, layers: Any, shape: tuple[int, ...], path: Path) -> Any:
    model = keras.Sequential([keras.Input(shape), *layers])
    randomise(model)
    model.save(path)
    return model


quiet = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
both = pytest.mark.parametrize("end", ["keras", "h5"])

#: Layers by class: what may vary.
drawn = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["SimpleRNN", "LSTM", "GRU"]),
        "form": st.sampled_from(["layer", "cell", "bidirectional"]),
        "inputs": st.integers(1, 5),
        "units": st.integers(1, 6),
        "use_bias": st.booleans(),
        "reset_after": st.booleans(),
        "go_backwards": st.booleans(),
        "activation": st.sampled_from(["tanh", "relu", "linear", "softsign", "hard_sigmoid"]),
        "recurrent_activation": st.sampled_from(["sigmoid", "hard_sigmoid"]),
        "end": st.sampled_from(["keras", "h5"]),
        "seed": st.integers(0, 1000),
    }
)


def built(keras: Any, config: dict[str, Any]) -> Any:
    """A layer of Keras with this configuration."""
    kind, form = config["kind"], config["form"]
    options = {name: config[name] for name in ("units", "use_bias", "activation")}
    if kind != "SimpleRNN":
        options["recurrent_activation"] = config["recurrent_activation"]
    if kind == "GRU":
        options["reset_after"] = config["reset_after"]
    backwards = config["go_backwards"] and form != "bidirectional"
    if form == "cell":
        cell = getattr(keras.layers, f"{kind}Cell")(**options)
        return keras.layers.RNN(cell, return_sequences=True, go_backwards=backwards)
    layer = getattr(keras.layers, kind)(**options, return_sequences=True, go_backwards=backwards)
    return keras.layers.Bidirectional(layer) if form == "bidirectional" else layer


@quiet
@settings(max_examples=20)
@given(config=drawn)
def test_layers_compute_what_keras_computes(
    keras: Any, config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("model") / f"model.{config['end']}"
    model = keras.Sequential([keras.Input((4, config["inputs"])), built(keras, config)])
    randomise(model, config["seed"])
    model.save(path)
    x = inputs(2, 4, config["inputs"])
    expected = run(keras, model, x)
    if config["go_backwards"] and config["form"] != "bidirectional":
        expected = expected[:, ::-1]  # Keras leaves its outputs in the order of computation
    (found,) = fr.inspect(path).layers
    assert found.batch_first
    # Functions that only NumPy has are asked for.
    backend = "numpy" if config["activation"] in ("softsign", "hard_sigmoid") else "auto"
    for layer in (
        fr.load(path, backend=backend),
        fr.from_keras(model.layers[0], backend=backend),
        fr.from_keras(model, backend=backend),
    ):
        assert layer.architecture == found.architecture
        y, _ = layer(x)
        np.testing.assert_allclose(y, expected, rtol=TOLERANCE, atol=TOLERANCE)


@quiet
@both
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_wrong_gate_order_is_seen(
    keras: Any, kind: str, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = getattr(keras.layers, kind)(5, return_sequences=True)
    path = tmp_path / f"model.{end}"
    model = save(keras, [layer], (6, 3), path)
    x = inputs(2, 6, 3)
    expected = run(keras, model, x)
    right = {"LSTM": "ifgo", "GRU": "zrn"}[kind]
    for order in itertools.permutations(right):
        rows = tuple(
            replace(row, gates="".join(order))
            if row.framework == "keras" and row.cell == kind.lower()
            else row
            for row in layouts.LAYOUTS
        )
        monkeypatch.setattr("fusedrnn.formats.keras_cells.LAYOUTS", rows)
        y, _ = fr.load(path)(x)
        far = np.abs(y - expected).max()
        assert far < TOLERANCE if "".join(order) == right else far > DIFFERENCE


@quiet
@both
def test_a_model_of_many_layers(keras: Any, end: str, tmp_path: Path) -> None:
    """Every array is somebody's, whatever the layers are called: names do not follow the order of classes."""
    layers = keras.layers
    inner = keras.Sequential(
        [
            keras.Input((7, 3)),
            layers.GRU(3, return_sequences=True, reset_after=False, name="gru"),
            layers.Dense(2),
        ],
        name="inner",
    )
    inner.layers[0].trainable = False  # an .h5 file has arrays that are frozen after the others
    x = keras.Input((7, 5))
    y = layers.Masking(name="masking")(x)
    y = layers.Bidirectional(layers.LSTM(4, return_sequences=True), name="both")(y)
    y = layers.LSTM(4, return_sequences=True, name="zebra", dropout=0.2, recurrent_dropout=0.1)(y)
    y = layers.LSTM(3, return_sequences=True, name="ant", stateful=False)(y)
    y = layers.RNN([layers.LSTMCell(3), layers.GRUCell(4)], return_sequences=True, name="stack")(y)
    y = layers.TimeDistributed(layers.Dense(3), name="each")(y)
    y = inner(y)
    y = layers.BatchNormalization(name="norm")(y)
    y = layers.Conv1D(4, 3, padding="same", name="conv")(y)
    y = layers.MultiHeadAttention(2, 3, name="attention")(y, y)
    y = layers.GRU(3, name="last", go_backwards=True)(y)
    model = keras.Model(x, layers.Dense(2, name="head")(y))
    model.compile("adam", "mse")
    path = tmp_path / f"model.{end}"
    model.save(path)
    contents = fr.inspect(path)
    names = ["both", "zebra", "ant", "stack/lstm_cell", "stack/gru_cell", "inner/gru", "last"]
    found = {layer.name: layer for layer in contents.layers}
    assert [name.rstrip("_0123456789") for name in found] == names
    assert found["zebra"].architecture.input_size == 8
    assert found["ant"].architecture.hidden_size == 3
    assert any("dropout 0.2 and recurrent dropout 0.1" in note for note in found["zebra"].notes)
    assert found["last"].architecture.reverse
    assert any("last step only" in note for note in found["last"].notes)
    assert any("masking masks" in note for note in contents.notes)
    parts = {part.origin: part for part in contents.parts}
    kinds = {part.name: (part.kind, part.macs_per_step) for part in contents.parts}
    assert kinds["each"] == ("dense", 12)
    assert kinds["norm"] == ("normalisation", 0)
    assert kinds["conv"] == ("convolution", 2 * 3 * 4)
    assert kinds["attention"] == ("attention", None)
    assert kinds["head"] == ("dense", 6)
    assert len(parts["MultiHeadAttention"].biases) == 4
    assert len(parts["Dense"].biases) == 1
    arrays = [*contents.layers, *contents.parts]
    total = sum(tensor.elements for each in arrays for tensor in each.tensors)
    assert total == sum(int(np.prod(each.shape)) for each in model.weights)
    for name, layer in (
        ("zebra", model.get_layer("zebra")),
        ("ant", model.get_layer("ant")),
        ("inner/gru", inner.layers[0]),
    ):
        own = fr.from_keras(layer).weights
        for key, array in fr.load(path, name).weights.items():
            np.testing.assert_array_equal(array, own[key])
    with pytest.raises(ValueError, match="zebra"):
        fr.load(path)


@quiet
@both
def test_a_stack_of_cells_is_a_chain_of_layers(keras: Any, end: str, tmp_path: Path) -> None:
    path = tmp_path / f"model.{end}"
    cells = [keras.layers.LSTMCell(3), keras.layers.LSTMCell(4), keras.layers.SimpleRNNCell(2)]
    model = save(keras, [keras.layers.RNN(cells, return_sequences=True)], (5, 3), path)
    x = inputs(2, 5, 3)
    expected = run(keras, model, x)
    y = x
    for layer in fr.inspect(path).layers:
        y, _ = layer.layer()(y)
    np.testing.assert_allclose(y, expected, rtol=TOLERANCE, atol=TOLERANCE)


@quiet
@both
@pytest.mark.parametrize(
    ("mode", "join"),
    [
        ("sum", lambda a, b: a + b),
        ("mul", lambda a, b: a * b),
        ("ave", lambda a, b: (a + b) / 2),
        (None, lambda a, b: [a, b]),
    ],
)
def test_directions_that_are_not_joined(
    keras: Any, mode: str | None, join: Callable[..., Any], end: str, tmp_path: Path
) -> None:
    path = tmp_path / f"model.{end}"
    x = keras.Input((5, 3))
    layer = keras.layers.Bidirectional(
        keras.layers.GRU(4, return_sequences=True), merge_mode=mode, name="both"
    )
    model = keras.Model(x, layer(x))
    randomise(model)
    model.save(path)
    contents = fr.inspect(path)
    assert [each.name for each in contents.layers] == ["both/forward", "both/backward"]
    assert any(repr(mode) in note for note in contents.layers[0].notes)
    x = inputs(2, 5, 3)
    forward, backward = (each.layer()(x)[0] for each in contents.layers)
    expected = run(keras, model, x)
    for ours, theirs in zip(
        np.atleast_1d(join(forward, backward)), np.atleast_1d(expected), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)


@quiet
@both
def test_a_backward_layer_that_differs(keras: Any, end: str, tmp_path: Path) -> None:
    path = tmp_path / f"model.{end}"
    layer = keras.layers.Bidirectional(
        keras.layers.LSTM(4, return_sequences=True),
        backward_layer=keras.layers.LSTM(
            4, return_sequences=True, go_backwards=True, activation="relu"
        ),
    )
    model = save(keras, [layer], (5, 3), path)
    x = inputs(2, 5, 3)
    ys = [each.layer()(x)[0] for each in fr.inspect(path).layers]
    np.testing.assert_allclose(
        np.concatenate(ys, -1), run(keras, model, x), rtol=TOLERANCE, atol=TOLERANCE
    )


@quiet
def test_weights_only(keras: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.weights.h5"
    layers = [
        keras.layers.Bidirectional(keras.layers.LSTM(4, return_sequences=True)),
        keras.layers.GRU(3, return_sequences=True, reset_after=False),
        keras.layers.SimpleRNN(2, return_sequences=True),
    ]
    model = keras.Sequential([keras.Input((5, 3)), *layers])
    randomise(model)
    model.save_weights(path)
    x = inputs(2, 5, 3)
    y = x
    for name in ("bidirectional", "gru", "simple_rnn"):
        y, _ = fr.load(path, name)(y)
    np.testing.assert_allclose(y, run(keras, model, x), rtol=TOLERANCE, atol=TOLERANCE)
    assert "no configuration" in fr.inspect(path).layers[0].notes[0]


@quiet
@both
@pytest.mark.parametrize("activation", ["silu", "gelu", "leaky_relu"])
def test_an_unknown_activation_is_not_guessed(
    keras: Any, activation: str, end: str, tmp_path: Path
) -> None:
    path = tmp_path / f"model.{end}"
    save(keras, [keras.layers.LSTM(4, activation=activation)], (5, 3), path)
    contents = fr.inspect(path)
    (part,) = contents.parts
    assert (contents.layers, part.kind, part.origin) == ((), "cell", "LSTM")
    assert activation in part.note
    with pytest.raises(ValueError, match=activation):
        fr.load(path)


@quiet
def test_half_precision_is_widened(keras: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    for dtype in ("float16", "bfloat16", "float64"):
        layer = keras.layers.LSTM
        model = keras.Sequential(
            [keras.Input((5, 3)), layer(4, dtype=dtype, recurrent_initializer="glorot_uniform")]
        )
        model.save(path)
        (found,) = fr.inspect(path).layers
        assert any(dtype in note for note in found.notes)
        kernel = model.layers[0].weights[0].value.detach().double().numpy()
        np.testing.assert_array_equal(
            found.read()["weight_ih_l0"], kernel.astype(np.float32).T, strict=True
        )


@quiet
def test_layers_that_cannot_be_taken_over(keras: Any) -> None:
    with pytest.raises(ValueError, match="not built"):
        fr.from_keras(keras.layers.LSTM(4))
    with pytest.raises(TypeError, match="Keras"):
        fr.from_keras(np.zeros(3))
    layer = keras.layers.LSTM(4, activation=lambda x: x)
    layer.build((None, None, 3))
    with pytest.raises(ValueError, match="a function of its own"):
        fr.from_keras(layer)
    model = keras.Sequential([keras.Input((5, 3)), keras.layers.LSTM(4), keras.layers.Dense(2)])
    assert fr.from_keras(model, backend="numpy").backend == "numpy"


# ---- what old versions wrote ---------------------------------------------------------------------


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def fifth(x: np.ndarray) -> np.ndarray:
    return np.clip(0.2 * x + 0.5, 0, 1)


def sixth(x: np.ndarray) -> np.ndarray:
    return np.clip(x / 6 + 0.5, 0, 1)


Gate = Callable[[np.ndarray], np.ndarray]


def lstm(x: np.ndarray, W: Any, U: Any, b: Any, gate: Gate = sigmoid) -> np.ndarray:
    """Keras' LSTM, of arrays by gate; x (B, T, X)."""
    h = c = np.zeros((len(x), U["i"].shape[0]))
    ys = []
    for t in range(x.shape[1]):
        a = {g: x[:, t] @ W[g] + h @ U[g] + b[g] for g in "ifco"}
        c = gate(a["f"]) * c + gate(a["i"]) * np.tanh(a["c"])
        h = gate(a["o"]) * np.tanh(c)
        ys.append(h)
    return np.stack(ys, 1)


def gru(x: np.ndarray, W: Any, U: Any, b: Any, gate: Gate = sigmoid, own: Any = None) -> np.ndarray:
    """Keras' GRU, of arrays by gate; with own biases of the recurrent product, it resets after that."""
    h = np.zeros((len(x), U["z"].shape[0]))
    ys = []
    for t in range(x.shape[1]):
        d = own or dict.fromkeys("zrh", 0)
        z, r = (gate(x[:, t] @ W[g] + h @ U[g] + b[g] + d[g]) for g in "zr")
        n = h @ U["h"] + d["h"]
        n = r * n if own else (r * h) @ U["h"]
        h = z * h + (1 - z) * np.tanh(x[:, t] @ W["h"] + b["h"] + n)
        ys.append(h)
    return np.stack(ys, 1)


def by_gate(draw: Draw, gates: str, inputs: int, units: int) -> tuple[dict[str, Any], ...]:
    return (
        {g: draw(inputs, units) for g in gates},
        {g: 0.5 * draw(units, units) for g in gates},
        {g: draw(units) for g in gates},
    )


def write(
    path: Path,
    layer: dict[str, Any],
    arrays: dict[str, np.ndarray],
    version: str | None,
    name: str = "rnn_1",
) -> None:
    """A file as Keras 1 and 2 write it: a Sequential of one layer, its arrays in this order."""
    with h5py.File(path, "w") as file:
        layer["config"]["name"] = name
        config = {"class_name": "Sequential", "config": [layer]}
        file.attrs["model_config"] = json.dumps(config).encode()
        file.attrs["backend"] = b"tensorflow"
        if version:
            file.attrs["keras_version"] = version.encode()
        weights = file.create_group("model_weights")
        weights.attrs["layer_names"] = [name.encode()]
        group = weights.create_group(name)
        group.attrs["weight_names"] = [each.encode() for each in arrays]
        for each, array in arrays.items():
            group[each] = array


def config(kind: str, **options: Any) -> dict[str, Any]:
    recurrent = {} if kind == "SimpleRNN" else {"recurrent_activation": "sigmoid"}
    given = {"units": 4, "activation": "tanh", "use_bias": True, **recurrent, **options}
    return {"class_name": kind, "config": given}


def stacked(of: dict[str, np.ndarray], gates: str) -> np.ndarray:
    return np.concatenate([of[g] for g in gates], -1)


@pytest.mark.parametrize(
    ("version", "gate"),
    [("1.2.2", fifth), ("2.1.5", fifth), ("2.2.4-tf", fifth), ("2.15.0", fifth), ("3.0.5", sixth)],
)
def test_a_hard_sigmoid_is_that_of_the_version(
    tmp_path: Path, draw: Draw, version: str, gate: Gate
) -> None:
    W, U, b = by_gate(draw, "ifco", 3, 4)
    arrays = {
        "rnn_1/kernel:0": stacked(W, "ifco"),
        "rnn_1/recurrent_kernel:0": stacked(U, "ifco"),
        "rnn_1/bias:0": stacked(b, "ifco"),
    }
    path = tmp_path / "old.h5"
    write(path, config("LSTM", recurrent_activation="hard_sigmoid"), arrays, version)
    x = draw(2, 6, 3)
    y, _ = fr.load(path)(x)
    np.testing.assert_allclose(y, lstm(x, W, U, b, gate), rtol=TOLERANCE, atol=TOLERANCE)
    other = sixth if gate is fifth else fifth
    assert np.abs(y - lstm(x, W, U, b, other)).max() > DIFFERENCE

    write(path, config("LSTM", recurrent_activation="hard_sigmoid"), arrays, None)
    assert any("unknown version" in note for note in fr.inspect(path).layers[0].notes)
    with pytest.raises(fr.ModelFormatError, match="gate_activation"):
        fr.load(path)
    alpha = "0.2" if gate is fifth else repr(1 / 6)
    said, _ = fr.load(path, gate_activation=f"hard_sigmoid({alpha}, 0.5)")(x)
    np.testing.assert_array_equal(said, y)


def flat(of: dict[str, np.ndarray], gates: str) -> np.ndarray:
    """Each (X, H) as CuDNN layers keep it: the numbers of (H, X), row by row."""
    return np.concatenate(
        [np.ascontiguousarray(of[g].T).reshape(of[g].shape) for g in gates], axis=1
    )


def test_cudnn_lstm(tmp_path: Path, draw: Draw) -> None:
    W, U, b = by_gate(draw, "ifco", 3, 4)
    second = {g: draw(4) for g in "ifco"}
    arrays = {
        "rnn_1/kernel:0": flat(W, "ifco"),
        "rnn_1/recurrent_kernel:0": flat(U, "ifco"),
        "rnn_1/bias:0": np.concatenate([stacked(b, "ifco"), stacked(second, "ifco")]),
    }
    path = tmp_path / "old.h5"
    layer = {"class_name": "CuDNNLSTM", "config": {"units": 4, "return_sequences": True}}
    write(path, layer, arrays, "2.1.5")
    x = draw(2, 6, 3)
    y, _ = fr.load(path)(x)
    both_biases = {g: b[g] + second[g] for g in "ifco"}
    np.testing.assert_allclose(y, lstm(x, W, U, both_biases), rtol=TOLERANCE, atol=TOLERANCE)
    assert np.abs(y - lstm(x, W, U, b)).max() > DIFFERENCE
    # The same numbers taken as those of an LSTM are another layer.
    arrays["rnn_1/bias:0"] = stacked(both_biases, "ifco")
    write(path, config("LSTM"), arrays, "2.1.5")
    assert np.abs(fr.load(path)(x)[0] - y).max() > DIFFERENCE


def test_cudnn_gru(tmp_path: Path, draw: Draw) -> None:
    W, U, b = by_gate(draw, "zrh", 3, 4)
    own = {g: draw(4) for g in "zrh"}
    arrays = {
        "rnn_1/kernel:0": flat(W, "zrh"),
        "rnn_1/recurrent_kernel:0": flat(U, "zrh"),
        "rnn_1/bias:0": np.concatenate([stacked(b, "zrh"), stacked(own, "zrh")]),
    }
    path = tmp_path / "old.h5"
    write(path, {"class_name": "CuDNNGRU", "config": {"units": 4}}, arrays, "2.1.5")
    x = draw(2, 6, 3)
    y, _ = fr.load(path)(x)
    np.testing.assert_allclose(y, gru(x, W, U, b, own=own), rtol=TOLERANCE, atol=TOLERANCE)
    swapped = gru(x, W, U, own, own=b)
    assert np.abs(y - swapped).max() > DIFFERENCE


@pytest.mark.parametrize("said", [{}, {"reset_after": False}])
def test_a_gru_without_a_word_on_its_reset_is_that_of_old_keras(
    tmp_path: Path, draw: Draw, said: dict[str, Any]
) -> None:
    W, U, b = by_gate(draw, "zrh", 3, 4)
    arrays = {
        "rnn_1/kernel:0": stacked(W, "zrh"),
        "rnn_1/recurrent_kernel:0": stacked(U, "zrh"),
        "rnn_1/bias:0": stacked(b, "zrh"),
    }
    path = tmp_path / "old.h5"
    write(path, config("GRU", **said), arrays, "2.0.8")
    x = draw(2, 6, 3)
    y, _ = fr.load(path)(x)
    np.testing.assert_allclose(y, gru(x, W, U, b), rtol=TOLERANCE, atol=TOLERANCE)
    after = gru(x, W, U, b, own={g: np.zeros(4) for g in "zrh"})
    assert np.abs(y - after).max() > DIFFERENCE
    del arrays["rnn_1/bias:0"]
    write(path, config("GRU", use_bias=False, **said), arrays, "2.0.8")
    zero = dict.fromkeys("zrh", 0)
    np.testing.assert_allclose(fr.load(path)(x)[0], gru(x, W, U, zero), rtol=1e-5, atol=TOLERANCE)


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", "icfo"), ("GRU", "zrh")])
def test_keras_1_has_arrays_for_each_gate(
    tmp_path: Path, draw: Draw, kind: str, gates: str
) -> None:
    W, U, b = by_gate(draw, gates, 3, 4)
    arrays = {
        f"rnn_1_{name}_{g}": of[g] for g in gates for name, of in (("W", W), ("U", U), ("b", b))
    }
    options = {
        "output_dim": 4,
        "activation": "tanh",
        "inner_activation": "hard_sigmoid",
        "consume_less": "cpu",
    }
    path = tmp_path / "old.h5"
    write(path, {"class_name": kind, "config": options}, arrays, "1.2.2")
    x = draw(2, 6, 3)
    y, _ = fr.load(path)(x)
    run = lstm if kind == "LSTM" else gru
    np.testing.assert_allclose(y, run(x, W, U, b, fifth), rtol=TOLERANCE, atol=TOLERANCE)


# ---- files that lie ------------------------------------------------------------------------------


@pytest.fixture
def honest(tmp_path: Path, draw: Draw) -> Path:
    """A file that is read."""
    path = tmp_path / "model.h5"
    W, U, b = by_gate(draw, "ifco", 3, 4)
    arrays = {
        "rnn_1/kernel:0": stacked(W, "ifco"),
        "rnn_1/recurrent_kernel:0": stacked(U, "ifco"),
        "rnn_1/bias:0": stacked(b, "ifco"),
    }
    write(path, config("LSTM"), arrays, "2.1.5")
    fr.load(path)
    return path


KERNEL, BIAS = "model_weights/rnn_1/rnn_1/kernel:0", "model_weights/rnn_1/rnn_1/bias:0"


def refused(path: Path, match: str) -> None:
    """One line that begins with the path, and says so."""
    with pytest.raises(fr.ModelFormatError, match=match) as caught:
        fr.load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def soft(file: Any) -> None:
    del file[KERNEL]
    file[KERNEL] = h5py.SoftLink("/model_weights")


def external(file: Any) -> None:
    del file[KERNEL]
    file[KERNEL] = h5py.ExternalLink("/etc/passwd", "/x")


def elsewhere(file: Any) -> None:
    del file[KERNEL]
    file.create_dataset(
        KERNEL, (3, 16), np.float32, external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
    )


def virtual(file: Any) -> None:
    del file[KERNEL]
    layout = h5py.VirtualLayout((3, 16), np.float32)
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (3, 16))
    file.create_virtual_dataset(KERNEL, layout)


def circle(file: Any) -> None:
    file["model_weights/again"] = file["model_weights"]


def twice(file: Any) -> None:
    file["model_weights/again"] = file[KERNEL]


def deep(file: Any) -> None:
    file.create_group("/".join("abcde" * 20))


def compound(file: Any) -> None:
    del file[KERNEL]
    file[KERNEL] = np.zeros((3, 16), [("a", np.float32), ("b", np.int32)])


def texts(file: Any) -> None:
    del file[KERNEL]
    file.create_dataset(KERNEL, (3, 16), h5py.string_dtype())


def reference(file: Any) -> None:
    del file[KERNEL]
    file.create_dataset(KERNEL, (3, 16), h5py.ref_dtype)


def bomb(file: Any) -> None:
    del file[KERNEL]
    file.create_dataset(KERNEL, (2**20, 2**20), np.float32, chunks=(1024, 1024), compression=9)


def empty(file: Any) -> None:
    del file[KERNEL]
    file.create_dataset(KERNEL, (2**20, 2**20), np.float32)


def plugin(file: Any) -> None:
    del file[KERNEL]
    file.create_dataset(KERNEL, (3, 16), np.float32, chunks=(3, 16), compression="lzf")


def integers(file: Any) -> None:
    del file[KERNEL]
    file[KERNEL] = np.zeros((3, 16), np.int32)


def misshapen(file: Any) -> None:
    del file[KERNEL]
    file[KERNEL] = np.zeros((3, 12), np.float32)


def missing(file: Any) -> None:
    del file[BIAS]


def fewer(file: Any) -> None:
    group = file["model_weights/rnn_1"]
    group.attrs["weight_names"] = [b"rnn_1/kernel:0", b"rnn_1/recurrent_kernel:0"]


def left_over(file: Any) -> None:
    file["model_weights/rnn_1/more"] = np.zeros(3, np.float32)


def large_attribute(file: Any) -> None:
    names = ["x"] * 4000
    file["model_weights/rnn_1"].attrs["weight_names"] = np.array(names, object)
    file.attrs["padding"] = "x" * (2 * 2**20)


def no_json(file: Any) -> None:
    file.attrs["model_config"] = b"{"


def deep_json(file: Any) -> None:
    # Deeper than Python's stack; as a text of variable length, which may be long.
    file.attrs["model_config"] = '{"a":' * 200_000


def deep_models(file: Any) -> None:
    node: dict[str, Any] = config("LSTM")
    for _ in range(80):
        node = {"class_name": "Sequential", "config": [node]}
    file.attrs["model_config"] = json.dumps(node)


def not_layers(file: Any) -> None:
    node = {"class_name": "Sequential", "config": [1, "x", None]}
    file.attrs["model_config"] = json.dumps(node)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (soft, "link that may lead elsewhere"),
        (external, "link that may lead elsewhere"),
        (elsewhere, "in another file"),
        (virtual, "virtual"),
        (circle, "linked twice"),
        (twice, "linked twice"),
        (deep, "deep"),
        (compound, "no array of numbers"),
        (texts, "no array of numbers"),
        (reference, "no array of numbers"),
        (bomb, "are stored"),
        (empty, "are stored"),
        (plugin, "filter"),
        (integers, "kernel:0.*must be of floats"),
        (misshapen, r"kernel:0.*\(3, 16\).*\(3, 12\)"),
        (missing, "bias:0"),
        (fewer, "must have 3 arrays"),
        (left_over, "left over.*more"),
        (large_attribute, "too large"),
        (no_json, "no JSON"),
        (deep_json, "no JSON"),
        (deep_models, "deep"),
        (not_layers, "where a layer should be"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_hostile_files(honest: Path, spoil: Callable[[Any], None], match: str) -> None:
    with h5py.File(honest, "r+") as file:
        spoil(file)
    refused(honest, match)


def test_truncated_files(honest: Path) -> None:
    whole = honest.read_bytes()
    for length in (8, 100, 1000, len(whole) // 2, len(whole) - 1):
        honest.write_bytes(whole[:length])
        refused(honest, "damaged HDF5")


@settings(max_examples=60)
@given(data=st.data())
def test_damaged_files(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever bytes are changed: a layer, or an error of the file."""
    path = tmp_path_factory.getbasetemp() / "damaged.h5"
    arrays = {"a/kernel": np.ones((3, 16), "f4"), "a/recurrent_kernel": np.ones((4, 16), "f4")}
    write(path, config("LSTM", use_bias=False), arrays, "3.0.0", "a")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    try:
        fr.load(path)
    except (fr.ModelFormatError, ValueError) as error:
        assert str(path) in str(error) or "layer" in str(error)


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)


def keras_archive(draw: Draw, *, name: str = "a", kind: str = "lstm") -> dict[str, bytes]:
    """The members of a .keras file."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        group = file.create_group(f"layers/{kind}/cell/vars")
        for number, shape in enumerate([(3, 16), (4, 16), (16,)]):
            group[str(number)] = draw(*shape)
        file.create_group(f"layers/{kind}/vars").attrs["name"] = name
    layer = config("LSTM")
    layer["config"]["name"] = "a"
    model = {"class_name": "Sequential", "config": {"name": "model", "layers": [layer]}}
    return {
        "metadata.json": b'{"keras_version": "3.4.1"}',
        "config.json": json.dumps(model).encode(),
        "model.weights.h5": content.getvalue(),
    }


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_archives(tmp_path: Path, draw: Draw, compression: int) -> None:
    path = tmp_path / "model.keras"
    archive(path, keras_archive(draw), compression)
    assert fr.load(path).architecture.hidden_size == 4


def test_archives_that_lie(tmp_path: Path, draw: Draw) -> None:
    path = tmp_path / "model.keras"
    archive(path, keras_archive(draw, name="b"))
    refused(path, "'b'.*'a'")
    archive(path, keras_archive(draw, kind="lstm_1"))
    refused(path, "must have 3 arrays")
    members = keras_archive(draw)
    del members["model.weights.h5"]
    archive(path, members)
    refused(path, "model.weights.h5")
    archive(path, keras_archive(draw) | {"model.weights.h5": b"nothing"})
    refused(path, "damaged HDF5")
    archive(path, keras_archive(draw) | {"model.weights.h5": bytes(2**28)}, zipfile.ZIP_DEFLATED)
    refused(path, "grow")


def test_no_code_of_a_file_is_loaded(tmp_path: Path, draw: Draw) -> None:
    """A Lambda, and a class from anywhere: parts that are not understood."""
    members = keras_archive(draw)
    model = json.loads(members["config.json"])
    code = {"class_name": "__lambda__", "config": {"value": "gASVAAAA", "defaults": None}}
    model["config"]["layers"] += [
        {"class_name": "Lambda", "config": {"name": "l", "function": code}},
        {"module": "os", "class_name": "system", "config": {"name": "s", "command": "touch x"}},
    ]
    path = tmp_path / "model.keras"
    archive(path, members | {"config.json": json.dumps(model).encode()})
    assert [layer.name for layer in fr.inspect(path).layers] == ["a"]
    model["config"]["layers"][0]["config"]["activation"] = code
    archive(path, members | {"config.json": json.dumps(model).encode()})
    assert fr.inspect(path).parts[0].kind == "cell"


def test_without_h5py(honest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(fr.MissingExtraError, match=r"fusedrnn\[keras\]"):
        fr.load(honest)


def test_other_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "data.h5"
    with h5py.File(path, "w") as file:
        file["a/b"] = np.zeros((2, 3))
    contents = fr.inspect(path)
    assert [part.kind for part in contents.parts] == ["?"]
    with pytest.raises(ValueError, match="no recurrent layer"):
        fr.load(path)
