"""Narrow weights beside the int8 of other libraries."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import oracle

from fusedrnn import cli
from fusedrnn.bench import narrow_weights

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrow_weights, "CASES", (narrow_weights._case(16, 2, 5),))


def ways(capsys: Capture) -> dict[str, dict[str, Any]]:
    assert cli.main(["bench", "narrow", "--rounds", "2", "--json"]) == 0
    return {each["name"]: each for each in json.loads(capsys.readouterr().out)["ways"]}


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
    for name in ("ONNX Runtime int8", "PyTorch int8"):
        assert found["int8"]["rms"] < found[name]["rms"] < 0.1
