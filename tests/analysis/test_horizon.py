"""How long a layer remembers: closed forms, and derivatives against central differences in float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import FAMILY, Draw

import fusedrnn as fr
from fusedrnn.analysis import formulas
from fusedrnn.analysis.horizons import QUANTILES, STEPS


def constant(cell: type[fr.Layer], biases: dict[int, Any], hidden: int, **chosen: Any) -> fr.Layer:
    """A layer whose weights are all 0, but for the biases of some gate blocks."""
    layer = cell(1, hidden, **chosen)
    weights = {name: np.zeros_like(array) for name, array in layer.weights.items()}
    for block, values in biases.items():
        weights["bias_ih_l0"][block * hidden : (block + 1) * hidden] = values
    return layer.with_weights(weights)


# ---- closed forms --------------------------------------------------------------------------------


def test_the_figures_of_a_constant_gate() -> None:
    assert formulas.retention(0.99, 500) == pytest.approx(0.00657, abs=5e-6)
    assert formulas.half_life(0.99) == pytest.approx(68.97, abs=0.01)
    assert formulas.retention(formulas.forget_for(500), 500) == pytest.approx(0.5)
    assert formulas.half_life(1) == formulas.time_constant(1) == np.inf
    assert formulas.half_life(0) == 0
    for forget in (0.01, 0.5, 0.998):
        assert 1 / (1 + np.exp(-formulas.bias_of(forget))) == pytest.approx(forget)


@pytest.mark.parametrize(
    ("cell", "block", "backend"), [(fr.LSTM, 1, "c"), (fr.GRU, 1, "c"), (fr.LSTM, 1, "numpy")]
)
def test_a_constant_gate_is_measured(cell: type[fr.Layer], block: int, backend: str) -> None:
    layer = constant(
        cell, {block: [formulas.bias_of(each) for each in (0.99, 0.9, 0.5)]}, 3, backend=backend
    )
    found = fr.analysis.horizon(layer, np.zeros((600, 1), np.float32), distance=60, ends=2)
    memory = found[0]
    assert memory.gate == ("f" if cell is fr.LSTM else "z")
    np.testing.assert_allclose(memory.mean, [0.99, 0.9, 0.5], rtol=1e-6)
    np.testing.assert_allclose(memory.quantiles, np.tile(memory.mean, (len(QUANTILES), 1)))
    np.testing.assert_array_equal(memory.half_lives, [69, 7, 1])
    np.testing.assert_allclose(memory.fitted_half_lives, [68.97, 6.579, 1], rtol=1e-3)
    kept = dict(zip(memory.steps, memory.retained, strict=True))
    assert tuple(kept) == STEPS[:-1]
    np.testing.assert_allclose(kept[500][0], 0.99**500, rtol=1e-3)
    # Nothing but the gate passes the state on: the rows of the derivative are its powers.
    norms = memory.norms[0]
    want = np.array([0.99, 0.9, 0.5]) ** np.arange(1, 61)[:, None]
    np.testing.assert_allclose(np.exp(norms.logs), want, rtol=1e-4)
    assert norms.units == (0, 1, 2)
    alone = constant(cell, {block: formulas.bias_of(0.99)}, 2, backend=backend)
    norms = fr.analysis.horizon(alone, np.zeros((99, 1), np.float32), ends=1)[0].norms[0]
    assert norms.growth == pytest.approx(0.99, abs=1e-5)


def test_gates_of_a_changing_input() -> None:
    """f is 0.9 and 0.5 in turn: half of what is stored is gone after one or two steps; 0.45 is left after two."""
    layer = constant(fr.LSTM, {}, 1)
    weights = {name: array.copy() for name, array in layer.weights.items()}
    weights["weight_ih_l0"][1] = formulas.bias_of(0.9)
    x = np.array([1.0, 0.0] * 50, np.float32)[:, None]
    memory = fr.analysis.horizon(layer.with_weights(weights), x)[0]
    assert memory.mean[0] == pytest.approx(0.7)
    assert memory.retained[memory.steps.index(2), 0] == pytest.approx(0.45)
    assert memory.fitted_half_lives[0] == pytest.approx(2 * np.log(0.5) / np.log(0.45), rel=1e-3)
    assert 1 <= memory.half_lives[0] <= 2
    np.testing.assert_allclose(memory.quantiles[[0, -1], 0], [0.5, 0.9], rtol=1e-6)


@pytest.mark.parametrize("gain", [0.9, 1.0, 1.1])
def test_an_rnn_vanishes_and_explodes_as_its_matrix_does(gain: float) -> None:
    layer = fr.RNN(3, 8, activation="identity", bias=False, init=fr.init.orthogonal(gain), seed=0)
    found = fr.analysis.horizon(layer, np.zeros((1500, 3), np.float32), distance=1000, ends=1)
    (norms,) = found[0].norms
    assert norms.growth == pytest.approx(gain, abs=1e-4)
    assert norms.log_norm[-1] == pytest.approx(1000 * np.log(gain), abs=0.01)  # beyond float32
    word = {0.9: "shrinks", 1.0: "neither", 1.1: "grows"}[gain]
    assert any(word in line for line in found.verdict())
    json.loads(found.to_json())


# ---- derivatives ---------------------------------------------------------------------------------


def differences(layer: fr.Layer, x: np.ndarray, step: int, kind: int) -> np.ndarray:
    """d(last state)/d(state before a step) of one kind, by central differences: (outputs, inputs)."""
    wide = type(layer).from_weights(
        {name: array.astype(np.float64) for name, array in layer.weights.items()},
        backend="numpy", dtype="float64", **layer.architecture.untold(),
    )  # fmt: skip
    x = x.astype(np.float64)
    _, state = wide(x[:step])
    columns = []
    for unit in range(state[kind].shape[-1]):
        ends = []
        for sign in (1, -1):
            moved = [array.copy() for array in state]
            moved[kind][0, unit] += sign * 1e-6
            ends.append(wide(x[step:], moved)[1][kind][0])
        columns.append((ends[0] - ends[1]) / 2e-6)
    return np.array(columns).T


SMOOTH = [
    name for name in FAMILY if "clip" not in name and "hard" not in name and "relu" not in name
]


@pytest.mark.parametrize("name", SMOOTH)
def test_norms_are_those_of_central_differences(name: str, draw: Draw) -> None:
    cell, chosen = FAMILY[name]
    layer = cell(3, 6, seed=2, backend="c", **chosen)
    x = draw(12, 3)
    norms = {
        each.state: each for each in fr.analysis.horizon(layer, x, distance=8, ends=1)[0].norms
    }
    assert set(norms) == ({"c", "h"} if cell is fr.LSTM else {"h"})
    for state, each in norms.items():
        kind = 1 if state == "c" else 0
        for distance in (1, 3, 8):
            want = np.linalg.norm(differences(layer, x, 12 - distance, kind), axis=1)
            np.testing.assert_allclose(np.exp(each.logs[distance - 1]), want, rtol=2e-4, atol=1e-9)
        # A negative control: one step more or less is seen.
        other = np.linalg.norm(differences(layer, x, 12 - 4, kind), axis=1)
        assert not np.allclose(np.exp(each.logs[2]), other, rtol=2e-3, atol=1e-9)


def test_layers_and_directions_are_taken_one_by_one(draw: Draw) -> None:
    """Each layer and direction of a stack is what a layer of its own would be, over what it reads."""
    stack = fr.LSTM(3, 6, 2, bidirectional=True, seed=5)
    x = draw(15, 2, 3)
    found = fr.analysis.horizon(stack, x, distance=10)
    traced = fr.analysis.trace(stack, x)
    below = np.concatenate([traced[0]["h"], traced[1]["h"]], axis=2)
    for place, read in enumerate([x, x, below, below]):
        end = f"_l{place // 2}" + ("_reverse" if place % 2 else "")
        weights = {
            name.replace(end, "_l0"): array
            for name, array in stack.weights.items()
            if name.endswith(end)
        }
        read = read[::-1] if place % 2 else read
        alone = fr.analysis.horizon(
            fr.LSTM.from_weights(weights), np.ascontiguousarray(read), distance=10
        )[0]
        np.testing.assert_allclose(found[place].half_lives, alone.half_lives)
        for one, other in zip(found[place].norms, alone.norms, strict=True):
            np.testing.assert_allclose(one.logs, other.logs, rtol=1e-3, atol=1e-3)


def test_a_state_that_overflows_is_named() -> None:
    layer = fr.RNN(1, 4, activation="identity", init=fr.init.orthogonal(10), seed=0)
    with pytest.raises(ValueError, match=r"h of layer and direction 0 is not finite at step \d+"):
        fr.analysis.horizon(layer, np.ones((60, 1), np.float32))


def test_rows_of_unequal_lengths(draw: Draw) -> None:
    layer = fr.LSTM(3, 6, seed=0)
    x = draw(20, 3, 3)
    both = fr.analysis.horizon(layer, x, lengths=[20, 5, 0], distance=4, ends=1)
    alone = fr.analysis.horizon(layer, x[:, :1], distance=4, ends=1)
    assert both.steps == 25
    assert not np.allclose(both[0].mean, alone[0].mean)
    rows = [fr.analysis.trace(layer, x[:n, k : k + 1])[0]["f"] for k, n in ((0, 20), (1, 5))]
    np.testing.assert_allclose(both[0].mean, np.concatenate(rows).mean((0, 1)), rtol=1e-6)
    assert max(both[0].steps) == 20


# ---- what it says --------------------------------------------------------------------------------


def test_saturated_units_are_named() -> None:
    layer = constant(fr.LSTM, {0: [9, 0, 0], 1: [9, -9, 0], 2: [0, 0, 9]}, 3)
    memory = fr.analysis.horizon(layer, np.zeros((50, 1), np.float32))[0]
    assert memory.saturated("i") == [0]
    assert (memory.always("f", "open"), memory.always("f", "shut")) == ([0], [1])
    assert memory.saturated("g") == [2]
    assert memory.saturated("o") == []
    said = "\n".join(memory.verdict())
    assert "f is nearly always open in 1 unit (0)" in said
    assert "g is nearly always at an end of its range in 1 unit (2)" in said


def test_a_short_memory_is_told_how_to_begin_longer(draw: Draw) -> None:
    stack = fr.GRU(3, 6, 2, seed=0)
    said = fr.analysis.horizon(stack, draw(60, 3), distance=1).verdict()
    assert len([line for line in said if "fr.init.chrono(2, N)" in line]) == 1
    long = fr.GRU(3, 6, init=fr.init.chrono(200, 300), seed=0)
    said = fr.analysis.horizon(long, np.zeros((900, 3), np.float32), distance=1).verdict()
    assert not any("chrono" in line for line in said)


@pytest.mark.parametrize("name", ["rnn", "clockwork"])
def test_a_cell_without_the_gate_has_norms_alone(name: str, draw: Draw) -> None:
    cell, chosen = FAMILY[name]
    found = fr.analysis.horizon(cell(3, 6, **chosen), draw(30, 2, 3))
    assert found[0].gate is None
    assert "no gate that retains" in found.verdict()[0]
    assert len(found[0].norms[0].norm) == 30
    assert str(found)


def test_as_tables_json_csv_and_markdown(draw: Draw) -> None:
    found = fr.analysis.horizon(fr.GRU(3, 6, 2, seed=0), draw(30, 2, 3))
    document = json.loads(found.to_json())
    assert [each["name"] for each in document["layers"]] == ["layer 0", "layer 1"]
    unit = document["layers"][1]["units"][4]
    assert unit["half_life"] == found[1].half_lives[4]
    assert unit["retained_10"] == found[1].retained[3, 4]
    assert document["layers"][0]["norms"][0]["by_distance"] == found[0].norms[0].norm.tolist()
    assert found.to_csv().count("\n") == 1 + 12
    assert "half-life" in found.to_markdown() and "half-life" in str(found)


def test_progress_goes_to_the_end(draw: Draw) -> None:
    said: list[float] = []
    fr.analysis.horizon(fr.LSTM(3, 6, 2), draw(30, 2, 3), progress=said.append)
    assert said == sorted(said) and said[-1] == 1


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda layer, x: fr.analysis.horizon(layer, x[:0]), "at least one step"),
        (lambda layer, x: fr.analysis.horizon(layer, x * np.float32(np.nan)), r"x\[0, 0, 0\]"),
        (lambda layer, x: fr.analysis.horizon(layer, x, distance=-1), "distance"),
        (lambda layer, x: fr.analysis.horizon(layer, x, ends=0), "ends"),
        (lambda layer, x: fr.analysis.horizon(layer, x, ends=True), "ends"),
    ],
)
def test_bad_input(run: Callable[..., Any], message: str, draw: Draw) -> None:
    with pytest.raises(ValueError, match=message):
        run(fr.LSTM(3, 6), draw(5, 2, 3))
