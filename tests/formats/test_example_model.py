"""The trained model of the package goes into every format that is written, and comes back to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import oracle

import fusedrnn as fr
from fusedrnn.demo import load_model


def safetensors(layer: fr.LSTM, path: Path) -> None:
    fr.save(layer, path)


def npz(layer: fr.LSTM, path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, **layer.weights)


def onnx(layer: fr.LSTM, path: Path) -> None:
    path.write_bytes(fr.to_onnx(layer).SerializeToString())


def checkpoint(layer: fr.LSTM, path: Path) -> None:
    torch = oracle("torch")
    state = {name: torch.from_numpy(array) for name, array in fr.to_state_dict(layer).items()}
    torch.save(state, path)


def keras(layer: fr.LSTM, path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "torch")
        library = oracle("keras")
    model = library.Sequential(
        [library.Input((None, 63)), library.layers.LSTM(128, return_sequences=True)]
    )
    from fusedrnn.formats.layouts import find, to_layout

    row = find("keras", layer.architecture)
    assert row is not None
    model.layers[0].set_weights([*to_layout(row, layer.weights).values()])
    model.save(path.with_suffix(".keras"))
    path.with_suffix(".keras").rename(path)


@pytest.mark.parametrize("write", [safetensors, npz, onnx, checkpoint, keras])
def test_there_and_back(write: Callable[[fr.LSTM, Path], None], tmp_path: Path) -> None:
    layer = fr.LSTM.from_weights(load_model().weights)
    write(layer, tmp_path / "model")  # recognised by its content: the name says nothing
    again = fr.load(tmp_path / "model")
    x = load_model().one_hot("In the beginning")
    two_biases = write is checkpoint or "bias_hh_l0" in layer.weights
    np.testing.assert_array_equal(again.weights["weight_hh_l0"], layer.weights["weight_hh_l0"])
    y, expected = (each(np.ascontiguousarray(x[:, 0]))[0] for each in (again, layer))
    if write is keras and two_biases:  # Keras keeps the sum of both
        np.testing.assert_allclose(y, expected, atol=2e-6)
    else:
        np.testing.assert_array_equal(y, expected)
