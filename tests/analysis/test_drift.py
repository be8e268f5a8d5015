"""Drift: errors over time against runs in float64, and what is said about them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import Draw, options

import fusedrnn as fr
from fusedrnn.analysis import drifts
from fusedrnn.analysis.drifts import DTYPES
from fusedrnn.narrowing import stored, widened

Member = tuple[type[fr.Layer], dict[str, Any]]


def wide(layer: fr.Layer) -> fr.Layer:
    weights = {name: array.astype(np.float64) for name, array in layer.weights.items()}
    return type(layer).from_weights(weights, backend="numpy", dtype="float64", **options(layer))


@pytest.mark.parametrize("weight_dtype", ["float32", "bfloat16", "w8a7"])
def test_errors_are_those_of_two_runs(
    member: Member, weight_dtype: str, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drifts, "PIECE", 7)
    cell, chosen = member
    layer = cell(3, 6, seed=1, backend="c", **chosen)
    x = draw(20, 2, 3)
    found = fr.analysis.drift(layer, x, weight_dtype, causes=False)
    tested = layer
    if weight_dtype != "float32":
        tested = layer.narrow(weight_dtype)
    error = np.abs(tested(x)[0] - wide(layer)(x.astype(np.float64))[0])
    y = found["y"]
    np.testing.assert_allclose(y.rms, np.sqrt((error**2).mean((1, 2))))
    np.testing.assert_allclose(y.largest, error.max((1, 2)))
    np.testing.assert_allclose(y.unit_rms, np.sqrt((error**2).mean((0, 1))))
    np.testing.assert_allclose(y.unit_largest, error.max((0, 1)))
    assert [curve.name for curve in found.curves] == [
        "y", "layer 0: h", *(["layer 0: c"] if cell is fr.LSTM else []),
    ]  # fmt: skip
    np.testing.assert_array_equal(found["layer 0: h"].rms, y.rms)
    if cell is fr.LSTM:
        c = found["layer 0: c"]
        last = np.abs(tested(x)[1].c - wide(layer)(x.astype(np.float64))[1].c)[0]
        assert c.largest[-1] == pytest.approx(last.max())


def test_stacks_in_two_directions(draw: Draw) -> None:
    layer = fr.GRU(3, 6, 2, bidirectional=True, seed=0, batch_first=True)
    x = draw(2, 30, 3)
    found = fr.analysis.drift(layer, x, "bfloat16")
    names = ["layer 0", "layer 0, reverse", "layer 1", "layer 1, reverse"]
    assert [curve.name for curve in found.curves] == ["y", *(f"{name}: h" for name in names)]
    assert found.steps == len(found["y"].rms) == 30
    assert {(cause.layer, cause.block) for cause in found.causes} == {
        (name, letter + gate) for name in names for letter in ("W_", "R_") for gate in "rzn"
    }
    squares = [found[f"layer 1{end}: h"].rms ** 2 for end in ("", ", reverse")]
    np.testing.assert_allclose(found["y"].rms ** 2, np.mean(squares, axis=0))


def test_narrower_is_worse(draw: Draw) -> None:
    layer = fr.LSTM(8, 16, seed=0)
    x = draw(300, 2, 8)
    totals = [fr.analysis.drift(layer, x, each, causes=False)["y"].total for each in DTYPES]
    assert totals[0] < 1e-6
    assert totals[0] < totals[1] / 50 and totals[1] < totals[2] / 4 and totals[1] < totals[3] / 4


# ---- growing and bounded -------------------------------------------------------------------------


def adding(forget: float) -> tuple[fr.Layer, np.ndarray]:
    """An LSTM whose c adds up a small input, and an input: with no forgetting its error grows with the steps."""
    layer = fr.LSTM(3, 4, activation="identity", seed=0)
    weights = {name: np.zeros_like(array) for name, array in layer.weights.items()}
    i, f, g, o = np.arange(16).reshape(4, 4)
    weights["bias_ih_l0"][[*i, *o]] = 20
    weights["bias_ih_l0"][f] = forget
    weights["weight_ih_l0"][g] = np.random.default_rng(0).random((4, 3)) * 1e-3
    x = np.random.default_rng(1).random((3000, 1, 3)).astype(np.float32)
    return layer.with_weights(weights), x


def test_an_error_that_is_added_up_grows() -> None:
    layer, x = adding(30)
    found = fr.analysis.drift(layer, x, "int8")
    assert found["layer 0: c"].grows
    assert found["layer 0: c"].exponent == pytest.approx(1, abs=0.1)
    assert any("grows" in line for line in found.verdict())
    assert found.causes[0].block == "W_g"


def test_negative_control_a_cell_that_forgets_does_not_grow() -> None:
    layer, x = adding(2)
    found = fr.analysis.drift(layer, x, "int8")
    assert found["layer 0: c"].grows is False
    assert abs(found["layer 0: c"].exponent or 0) < 0.1
    assert any("bounded" in line for line in found.verdict())


def test_a_short_run_does_not_tell(draw: Draw) -> None:
    found = fr.analysis.drift(fr.LSTM(3, 4), draw(40, 3))
    assert found["y"].grows is None
    assert any("cannot be told" in line for line in found.verdict())


# ---- causes --------------------------------------------------------------------------------------


def narrowed_weights(layer: fr.Layer[Any], weight_dtype: str) -> dict[str, np.ndarray]:
    """The weights of a layer, rounded and widened again."""
    return widened(stored(layer.weights, layer.architecture, weight_dtype))


@pytest.mark.parametrize("block", ["W_i", "R_f", "W_o", "P"])
def test_the_block_that_is_not_exact_is_the_cause(block: str, draw: Draw) -> None:
    """All weights but one block's are bfloat16 numbers already."""
    layer = fr.LSTM(5, 8, proj_size=6, seed=0)
    weights = narrowed_weights(layer, "bfloat16")
    name = {"W": "weight_ih_l0", "R": "weight_hh_l0", "P": "weight_hr_l0"}[block[0]]
    rows = slice(None)
    if block != "P":
        first = 8 * "ifgo".index(block[-1])
        rows = slice(first, first + 8)
    weights[name][rows] = layer.weights[name][rows]
    found = fr.analysis.drift(layer.with_weights(weights), draw(50, 2, 5), "bfloat16")
    assert found.causes[0].block == block
    assert found.causes[0].rms == pytest.approx(found["y"].total, rel=1e-3)
    assert found.causes[1].rms < found.causes[0].rms / 100
    assert len(found.causes) == 9


@pytest.mark.parametrize(("weight_dtype", "near"), [("int8", 2e-3), ("w8a7", 0.2)])
def test_integers_of_x_and_h_are_a_cause(weight_dtype: str, near: float, draw: Draw) -> None:
    """Of weights that are integers already, the only one."""
    layer = fr.LSTM(5, 8, seed=0)
    exact = layer.with_weights(narrowed_weights(layer, weight_dtype))
    x = draw(50, 2, 5)
    found = fr.analysis.drift(exact, x, weight_dtype)
    first, second = found.causes[:2]
    assert (first.layer, first.block, len(found.causes)) == ("all layers", "x and h", 9)
    assert first.rms == pytest.approx(found["y"].total, rel=1e-2) and 1e-7 < first.rms < near
    assert second.rms < first.rms / 10
    narrow = fr.analysis.drift(layer.narrow(weight_dtype), x)
    assert narrow.weight_dtype == weight_dtype and len(narrow.causes) == 1
    assert narrow["y"].total == found["y"].total


# ---- what it says and refuses --------------------------------------------------------------------


def test_as_tables_json_csv_and_markdown(draw: Draw) -> None:
    found = fr.analysis.drift(fr.LSTM(3, 4, seed=0), draw(200, 1, 3), "int8")
    document = json.loads(found.to_json())
    assert document["curves"][0]["rms"] == found["y"].total
    assert len(document["curves"][0]["over_time"]) == 100
    assert document["causes"][0]["block"] == found.causes[0].block
    assert found.to_csv().count("\n") == 4
    assert "RMS" in str(found) and "RMS" in found.to_markdown()
    with pytest.raises(KeyError, match="layer 0: c"):
        found["c"]


def test_progress_goes_to_the_end(draw: Draw) -> None:
    said: list[float] = []
    fr.analysis.drift(fr.LSTM(3, 4), draw(2500, 1, 3), progress=said.append)
    assert said == sorted(said) and said[-1] == 1 and len(said) == 3


def heavy(value: float) -> fr.Layer:
    layer = fr.LSTM(3, 4)
    weights = {name: array.copy() for name, array in layer.weights.items()}
    weights["weight_hh_l0"][1, 2] = value
    return layer.with_weights(weights)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda x: fr.analysis.drift(heavy(7e4), x, "float16"), r"weight_hh_l0\[1, 2\] = 70000.0"),
        (lambda x: fr.analysis.drift(heavy(np.nan), x, "int8"), r"weight_hh_l0\[1, 2\] = nan"),
        (lambda x: fr.analysis.drift(heavy(np.nan), x), "not finite at step"),
        (lambda x: fr.analysis.drift(fr.LSTM(3, 4), x, "int4"), "float32, float16, bfloat16, int8"),
        (lambda x: fr.analysis.drift(fr.LSTM(3, 4), x[:0]), "at least one step"),
        (lambda x: fr.analysis.drift(fr.LSTM(3, 4), x * np.float32(np.inf)), r"x\[0, 0, 0\]"),
        (
            lambda x: fr.analysis.drift(fr.LSTM(3, 4, dtype="float64"), x.astype(float)),
            "layers that compute in float32",
        ),
    ],
)
def test_bad_input(run: Callable[[np.ndarray], Any], message: str, draw: Draw) -> None:
    with pytest.raises(ValueError, match=message):
        run(draw(5, 2, 3))
