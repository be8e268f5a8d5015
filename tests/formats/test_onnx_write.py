"""Layers as ONNX models: every option that ONNX has comes back, and ONNX Runtime computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FAMILY, Draw, oracle

oracle("onnx")

import fusedrnn as fr
from fusedrnn.architecture import Architecture

#: The rounding of two float32 computations: see tests/layers/test_oracles.py.
TOLERANCE = 5e-6

SHAPES: dict[str, dict[str, Any]] = {
    "one": {},
    "stack": {"num_layers": 3},
    "bidirectional": {"bidirectional": True},
    "bidirectional-stack": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "batch-first": {"batch_first": True},
    "reverse": {"reverse": True},
    "reverse-stack": {"reverse": True, "num_layers": 2, "batch_first": True},
    "no-bias": {"bias": False, "num_layers": 2},
    "double-bias": {"bias": "double"},
}


def lacks(a: Architecture) -> bool:
    """Whether ONNX has no such layer."""
    return bool(a.cell == "clockwork" or a.proj_size or a.cell_clip)


def assert_same_layer(one: fr.Layer[Any], other: fr.Layer[Any]) -> None:
    """The same options and the same bits."""
    assert type(one) is type(other)
    assert one.architecture == other.architecture
    assert one.batch_first == other.batch_first
    assert set(one.weights) == set(other.weights)
    for name, array in one.weights.items():
        assert array.tobytes() == other.weights[name].tobytes(), name
    states = [layer.initial_state for layer in (one, other)]
    assert (states[0] is None) == (states[1] is None)
    for mine, others in zip(*[state or () for state in states], strict=True):
        assert mine.tobytes() == others.tobytes()


def run(model: Any, x: np.ndarray, state: Any = ()) -> list[np.ndarray]:
    """ONNX Runtime's y and states."""
    runtime = oracle("onnxruntime")
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = runtime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    feeds = {"x": x} | dict(zip(("initial_h", "initial_c"), state))
    outputs: list[np.ndarray] = session.run(None, feeds)
    return outputs


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_layer_comes_back(member: Any, shape: dict[str, Any], draw: Draw) -> None:
    kind, options = member
    layer = kind(4, 6, seed=1, **options, **shape)
    if lacks(layer.architecture):
        with pytest.raises(fr.UnsupportedError, match="ONNX has no"):
            fr.to_onnx(layer)
        return
    model = fr.to_onnx(layer)
    assert_same_layer(fr.from_onnx(model), layer)
    a = layer.architecture
    x = draw(3, 5, 4)
    batch = 3 if layer.batch_first else 5
    state = [draw(*a.state_shape(each, batch)) for each in a.table.states]
    y, after = layer(x, state)
    for mine, theirs in zip((y, *after), run(model, x, state), strict=True):
        np.testing.assert_allclose(theirs, mine, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("shape", ("one", "bidirectional-stack", "reverse-stack"))
@pytest.mark.parametrize("name", ("lstm", "gru", "rnn"))
def test_an_initial_state_is_in_the_model(name: str, shape: str, draw: Draw) -> None:
    kind, options = FAMILY[name]
    plain = kind(4, 6, seed=1, **options, **SHAPES[shape])
    a = plain.architecture
    state = [draw(*a.state_shape(each, 1))[:, 0] for each in a.table.states]
    layer = kind.from_weights(
        plain.weights,
        batch_first=plain.batch_first,
        initial_state=state,
        reverse=a.reverse,
        **options,
    )
    model = fr.to_onnx(layer)
    assert_same_layer(fr.from_onnx(model), layer)
    x = draw(3, 5, 4)
    y, after = layer(x)
    for mine, theirs in zip((y, *after), run(model, x), strict=True):
        np.testing.assert_allclose(theirs, mine, rtol=TOLERANCE, atol=TOLERANCE)
    assert np.abs(plain(x)[0] - y).max() > 1e-2


def test_a_file_comes_back(tmp_path: Path) -> None:
    import onnx

    layer = fr.GRU(4, 6, num_layers=2, seed=1)
    path = tmp_path / "a model"
    onnx.save(fr.to_onnx(layer), path)
    assert_same_layer(fr.load(path), layer)
    assert_same_layer(fr.from_onnx(path), layer)
    assert_same_layer(fr.from_onnx(str(path), "GRU_l0"), layer)


@pytest.mark.parametrize(
    ("layer", "match"),
    (
        (lambda: fr.LSTM(3, 4, proj_size=2), "projection"),
        (lambda: fr.ClockworkRNN(3, 4, periods=(1, 2)), "Clockwork"),
        (lambda: fr.LSTM(3, 4, cell_clip=1.0), "cell_clip"),
        (
            lambda: fr.LSTM(3, 4, coupled=True, gate_activation="hard_sigmoid(0.2, 0.4)"),
            "input_forget",
        ),
        (lambda: fr.LSTM(3, 4, dtype="float64", backend="numpy"), "float64"),
    ),
)
def test_what_onnx_lacks_is_said(layer: Any, match: str) -> None:
    with pytest.raises(fr.UnsupportedError, match=match):
        fr.to_onnx(layer())
