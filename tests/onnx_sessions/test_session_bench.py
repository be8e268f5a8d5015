"""The benchmark of whole ONNX models."""

from __future__ import annotations

import json
from dataclasses import replace

import click
import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from fusedrnn.bench import onnx_session
from fusedrnn.bench.onnx_session import CASES, measure, measured


@pytest.mark.parametrize("name", ["2 LSTM layers, H=32, T=1,", "H=32, attention then LSTM"])
def test_a_model_is_measured_in_both(name: str) -> None:
    (case,) = (case for case in CASES if name in case.name)
    found = measure(case, rounds=2)
    assert found.facts["pieces"] == (2 if "attention" in name else 0)
    assert min(found.theirs, found.ours, found.ratios.q1) > 0
    (record,) = json.loads(measured([found]).to_json())["pairs"]
    assert record["name"] == case.name
    assert record["ratio"] == found.ratios.median
    assert case.name in str(measured([found]))


def test_negative_control_outputs_that_differ_are_not_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = CASES[3]
    model, feeds = case.make()
    other, _ = case.make()
    for tensor in other.graph.initializer:
        if tensor.data_type == 1:
            tensor.raw_data = bytes(np.frombuffer(tensor.raw_data, np.float32) * np.float32(2))
    real = onnx_session.fr.onnx.session
    monkeypatch.setattr(onnx_session.fr.onnx, "session", lambda _: real(other))
    with pytest.raises(click.ClickException, match="differ"):
        measure(replace(case, make=lambda: (model, feeds)), rounds=1)


def test_names_of_models_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
