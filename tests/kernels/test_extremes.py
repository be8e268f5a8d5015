"""Unbounded activations: shut gates, overflow, infinities and NaN are those of the specification.

A sum is one bias, so that it does not depend on the order of additions, and each unit is a case of its own. What is
infinite or NaN is compared with the specification in float32, what is finite with the specification in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import Maker, options
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fusedrnn as fr

UNITS = 12

#: The cells whose values have no bound, with what they are made with.
CASES: dict[str, tuple[type[fr.Layer], dict[str, Any]]] = {
    "rnn-relu": (fr.RNN, {"activation": "relu"}),
    "rnn-identity": (fr.RNN, {"activation": "identity"}),
    "clockwork-identity": (fr.ClockworkRNN, {"periods": (1,), "activation": "identity"}),
    "lstm-identity": (fr.LSTM, {"activation": "identity", "output_activation": "identity"}),
    "lstm-relu": (fr.LSTM, {"activation": "relu"}),
    "lstm-output": (fr.LSTM, {"output_activation": "identity"}),
    "lstm-hard": (
        fr.LSTM,
        {
            "gate_activation": "hard_sigmoid",
            "activation": "identity",
            "output_activation": "relu",
        },
    ),
    "lstm-coupled": (
        fr.LSTM,
        {"coupled": True, "activation": "identity", "output_activation": "relu"},
    ),
    "gru-after": (fr.GRU, {"reset": "after", "activation": "identity"}),
    "gru-before": (fr.GRU, {"reset": "before", "activation": "relu"}),
}

#: Sums of gates: open and shut in float32 and float64 alike, or near neither.
GATES = [-3e38, -1e30, -1000.0, -80.0, -40.0, -33.5, -5.0, -1.0, 0.0, 1.0, 40.0, 80.0, 1e30, 3e38]
VALUES = [0.0, 1.0, -1.0, 0.25, 30.0, -90.0, 1e10, -1e20, 1e30, 3e38, -3e38]
UNREAL = [np.inf, -np.inf, np.nan]

gate_sums = st.lists(st.sampled_from([*GATES, *UNREAL]), min_size=UNITS, max_size=UNITS)
values = st.lists(st.sampled_from([*VALUES, *UNREAL]), min_size=UNITS, max_size=UNITS)
real_values = st.lists(st.sampled_from(VALUES), min_size=UNITS, max_size=UNITS)


def weights_of(
    layer: fr.Layer, gates: list[list[float]], candidate: list[float], own: list[float]
) -> dict[str, np.ndarray]:
    """Weights of 0, but for the biases, which are the sums, and R_n of a GRU that resets before, which is 1 of itself."""
    table = layer.architecture.table
    weights = {name: np.zeros_like(array) for name, array in layer.weights.items()}
    sums = iter(gates)
    rows = [candidate if gate.role == "state" else next(sums) for gate in table.gates]
    weights["bias_ih_l0"] = np.float32(rows).ravel()
    if table.own_recurrent_bias:
        weights["bias_hh_l0"][2 * UNITS :] = own
    if table.kernel == "gru_before":
        weights["weight_hh_l0"][2 * UNITS :] = np.eye(UNITS)
    return weights


def in_float64(layer: fr.Layer, weights: dict[str, np.ndarray], **other: Any) -> fr.Layer:
    chosen = {**options(layer), **other}
    wide = {name: array.astype(np.float64) for name, array in weights.items()}
    return type(layer).from_weights(wide, backend="numpy", dtype="float64", **chosen)


def states(layer: fr.Layer, h: list[float], cell: list[float]) -> list[np.ndarray]:
    """Of two rows: h is finite in the first; in the second any value of h makes the products of all units NaN."""
    given = {
        "h": [[value if np.isfinite(value) else 2.0 for value in h], h],
        "c": [cell, cell[::-1]],
    }
    return [
        np.float32([given[each.name]]) if each.name in given else np.zeros((1, 2), np.int64)
        for each in layer.architecture.table.states
    ]


def assert_agrees(layer: fr.Layer, weights: dict[str, np.ndarray], state: list[np.ndarray]) -> None:
    """A step of the layer is that of these weights in the specification."""
    x = np.zeros((1, 2, 1), np.float32)
    floats = [array.dtype.kind == "f" for array in state]
    wide = [array.astype(np.float64) if real else array for array, real in zip(state, floats)]
    magnitudes = {
        name: np.abs(array)
        if name == "bias_hh_l0"
        else np.where(candidates(layer), np.abs(array), array)
        if name == "bias_ih_l0"
        else array
        for name, array in weights.items()
    }
    unbounded = {
        name: "identity" for name in ("activation", "output_activation") if name in options(layer)
    }
    chosen = options(layer)
    with np.errstate(all="ignore"):
        found = layer(x, state)
        narrow = type(layer).from_weights(weights, backend="numpy", **chosen)(x, state)
        true = in_float64(layer, weights)(x.astype(np.float64), wide)
        # What the terms of a sum add up to without their signs: rounding errors are relative to it.
        scale = in_float64(layer, magnitudes, **unbounded)(
            x.astype(np.float64), [np.abs(array) for array in wide]
        )
    outputs = [(result[0], *result[1]) for result in (found, narrow, true, scale)]
    # Gates below the smallest normal number are 0; so is i / d of a tanh g = n / d, which is below 2^-126 for i < 2^-97.
    floor = 1e-29 if options(layer).get("activation") == "tanh" else 1e-37
    for ours, in_32, in_64, error in zip(*outputs, strict=True):
        finite = np.isfinite(in_32)
        np.testing.assert_array_equal(ours[~finite], in_32[~finite])
        assert np.isfinite(ours[finite]).all()
        tolerance = np.where(np.isfinite(error), 1e-4 * np.abs(error), np.inf)[finite]
        assert (np.abs(ours[finite] - in_64[finite]) <= tolerance + floor).all()


def candidates(layer: fr.Layer) -> np.ndarray:
    """Which elements of a bias are the candidate's."""
    roles = [gate.role == "state" for gate in layer.architecture.table.gates]
    return np.repeat(roles, UNITS)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[type[fr.Layer], dict[str, Any]]:
    return CASES[request.param]


@settings(
    max_examples=min(10, settings.default.max_examples),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    gates=st.lists(gate_sums, min_size=3, max_size=3),
    candidate=values,
    own=values,
    h=values,
    cell=values,
)
def test_extreme_values(make: Maker, case, gates, candidate, own, h, cell) -> None:
    kind, chosen = case
    layer = make(1, UNITS, cell=kind, bias="double", seed=0, **chosen)
    weights = weights_of(layer, gates, candidate, own)
    made = make.from_weights(weights, cell=kind, **options(layer))
    assert_agrees(made, weights, states(layer, h, cell))


def shut(make: Maker) -> tuple[fr.Layer, dict[str, np.ndarray], list[np.ndarray]]:
    layer = make(1, UNITS, bias="double", activation="identity", output_activation="identity")
    gates = [[-3e38] * UNITS, [-1000.0] * UNITS, [40.0] * UNITS]
    weights = weights_of(layer, gates, [3e38] * UNITS, [])
    return layer, weights, states(layer, [0.0] * UNITS, [3e38] * UNITS)


def test_a_shut_gate_is_zero(make: Maker) -> None:
    layer, weights, state = shut(make)
    made = make.from_weights(weights, **options(layer))
    y, after = made(np.zeros((1, 2, 1), np.float32), state)
    assert not y.any() and not after.c.any()
    assert_agrees(made, weights, state)


def test_negative_control_a_gate_that_is_almost_shut_fails(make: Maker) -> None:
    layer, weights, state = shut(make)
    gates = ~candidates(layer)
    ajar = {**weights, "bias_ih_l0": weights["bias_ih_l0"].copy()}
    ajar["bias_ih_l0"][gates] = np.clip(ajar["bias_ih_l0"][gates], -33, 33)
    made = make.from_weights(ajar, **options(layer))
    with pytest.raises(AssertionError):
        assert_agrees(made, weights, state)
