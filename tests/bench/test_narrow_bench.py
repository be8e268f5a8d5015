"""Narrow weights beside the int8 and bfloat16 of other libraries."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from conftest import oracle

from fusedrnn import cli
from fusedrnn.bench import narrow_weights

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrow_weights, "CASES", (narrow_weights._case(16, 2, 5),))


def measured(capsys: Capture) -> dict[str, Any]:
    assert cli.main(["bench", "narrow", "--rounds", "2", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def ways(capsys: Capture) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in measured(capsys)["ways"]}


def test_all_types_have_a_time_and_an_error(
    small: None, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(narrow_weights, "missing", lambda library: library)  # none is installed
    found = ways(capsys)
    assert list(found) == ["float32", "float16", "bfloat16", "int8", "w8a7"]
    assert found["float32"]["rms"] < 1e-6
    assert found["float32"]["rms"] < found["float16"]["rms"] < found["bfloat16"]["rms"] < 1e-2
    assert found["float32"]["faster"] == 1 and found["int8"]["step_seconds"] > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_other_libraries_compute_the_same_layer(small: None, capsys: Capture) -> None:
    oracle("onnxruntime")
    oracle("torch")
    found = ways(capsys)
    assert found["ONNX Runtime float32"]["rms"] < 1e-6
    for name in ("ONNX Runtime int8", "ONNX Runtime int8 of 7 bits", "PyTorch int8"):
        assert found["int8"]["rms"] < found[name]["rms"] < 0.1
    # Everything is rounded to bfloat16 there, and so is y: more than its weights alone.
    assert found["bfloat16"]["rms"] < found["PyTorch bfloat16"]["rms"] < 0.1


def test_openvino_computes_the_same_layer_from_zero_in_each_run() -> None:
    oracle("openvino")
    layer, x = narrow_weights._lstm(16, 2, 5)
    run, precision = narrow_weights._openvino(layer, x, "f32")
    assert precision == "f32"
    for _ in range(2):
        np.testing.assert_allclose(run(), layer(x)[0], atol=1e-6)
    run, precision = narrow_weights._openvino(layer, x, "bf16")
    error = np.abs(run() - layer(x)[0]).max()
    assert error < 1e-6 if precision == "f32" else 1e-5 < error < 0.1


@pytest.mark.parametrize("precision", ["bf16", "f32"])
def test_openvino_without_bfloat16_is_left_out_and_said(
    small: None, capsys: Capture, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr(
        narrow_weights, "missing", lambda library: library if library != "openvino" else None
    )
    monkeypatch.setattr(
        narrow_weights, "_openvino", lambda layer, x, asked: (lambda: layer(x)[0], precision)
    )
    found = measured(capsys)
    names = [each["name"] for each in found["ways"]]
    assert ("OpenVINO bfloat16" in names) == (precision == "bf16")
    assert len(found["left_out"]) == (precision == "f32")
    assert cli.main(["bench", "narrow", "--rounds", "2"]) == 0
    assert ("in f32 instead" in capsys.readouterr().out) == (precision == "f32")
