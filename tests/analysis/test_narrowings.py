"""What each type of weights brings a layer, and costs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FAMILY, Draw

import fusedrnn as fr
from fusedrnn import cli
from fusedrnn.analysis.narrowings import Narrowed, Narrowings

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("name", ["lstm", "gru-before", "lstm-projection", "clockwork"])
def test_errors_are_those_of_the_layers(name: str, draw: Draw) -> None:
    cell, chosen = FAMILY[name]
    layer, x = cell(5, 12, seed=1, **chosen), draw(40, 2, 5)
    found = fr.analysis.narrowings(layer, x)
    wide = {key: array.astype(np.float64) for key, array in layer.weights.items()}
    told = {key: value for key, value in chosen.items() if key != "proj_size"}
    exact = cell.from_weights(wide, backend="numpy", dtype="float64", **told)(x.astype("f8"))[0]
    for weight_dtype in ("float16", "bfloat16", "int8", "w8a7"):
        error = layer.narrow(weight_dtype)(x)[0] - exact
        assert found[weight_dtype].rms == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-6)
        assert found[weight_dtype].largest == pytest.approx(np.abs(error).max(), rel=1e-6)
    assert found["float32"].rms < found["float16"].rms < found["bfloat16"].rms
    for weight_dtype in ("float16", "int8"):  # a small layer: biases and scales count
        assert found[weight_dtype].weight_bytes < 0.75 * found["float32"].weight_bytes


def choice(*types: tuple[str, float, float]) -> Narrowings:
    made = tuple(
        Narrowed(name, None, 400 // (k + 1), seconds, error, error, error)
        for k, (name, seconds, error) in enumerate(types)
    )
    return Narrowings(fr.LSTM(3, 4).architecture, 10, 1, "avx2", 0.01, made)


def test_the_fastest_that_is_near_enough_is_recommended() -> None:
    wide = ("float32", 10.0, 1e-7)
    assert choice(wide, ("float16", 6.0, 1e-4), ("int8", 4.0, 5e-3)).recommended == "int8"
    assert choice(wide, ("float16", 6.0, 1e-4), ("int8", 4.0, 5e-2)).recommended == "float16"
    assert choice(wide, ("float16", 9.5, 1e-4), ("int8", 9.9, 5e-3)).recommended == "float32"
    assert choice(wide, ("float16", 6.0, 2e-2), ("int8", 4.0, 5e-2)).recommended == "float32"


def test_a_type_that_does_not_hold_the_weights_is_said(draw: Draw) -> None:
    weights: dict[str, Any] = dict(fr.RNN(3, 4, seed=0).weights)
    weights["weight_ih_l0"] = weights["weight_ih_l0"] * np.float32(1e6)
    found = fr.analysis.narrowings(fr.RNN.from_weights(weights), draw(5, 1, 3))
    assert "weight_ih_l0" in (found["float16"].refused or "")
    assert found["bfloat16"].refused is None
    assert "weight_ih_l0" in str(found)


def test_bad_input(draw: Draw) -> None:
    layer, x = fr.GRU(3, 4, seed=0), draw(5, 1, 3)
    with pytest.raises(ValueError, match="at least one step"):
        fr.analysis.narrowings(layer, x[:0])
    with pytest.raises(fr.UnsupportedError, match="float32"):
        fr.analysis.narrowings(layer.narrow("int8"), x)
    x[2, 0, 1] = np.nan
    with pytest.raises(ValueError, match="nan"):
        fr.analysis.narrowings(layer, x)


def test_the_command(tmp_path: Path, capsys: Capture, draw: Draw) -> None:
    fr.save(fr.GRU(3, 4, seed=0), tmp_path / "gru.safetensors")
    np.save(tmp_path / "x.npy", draw(30, 3))
    words = [
        "narrow",
        str(tmp_path / "gru.safetensors"),
        "--input",
        str(tmp_path / "x.npy"),
        "--json",
    ]
    assert cli.main(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert [each["weight_dtype"] for each in said["types"]] == [
        "float32",
        "float16",
        "bfloat16",
        "int8",
        "w8a7",
    ]
    assert said["steps"] == 30 and said["recommended"] in {
        "float32",
        "float16",
        "bfloat16",
        "int8",
        "w8a7",
    }
