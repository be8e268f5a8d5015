"""The tape's sums and states, and traces: against the specification, step by step in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import FAMILY, Draw, Maker
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fusedrnn as fr
from fusedrnn.analysis.traces import SHUT
from fusedrnn.engines.base import by_direction
from fusedrnn.kernels.reference import STEPS, Function, parameters

Member = tuple[type[fr.Layer], dict[str, Any]]
#: Of float32 against float64, over a few dozen steps of small layers.
BOUND = 2e-5


def specified(
    layer: fr.Layer, place: int, inputs: np.ndarray, state: list[np.ndarray], resets: Any = None
) -> list[dict[str, np.ndarray]]:
    """What each step of one sequence computes by reference.py in float64: what gates are given and give, and states.

    Spies see the arguments of the limits and activations, in the order in which the specification calls them.
    """
    a = layer.architecture
    weights = {name: array.astype(np.float64) for name, array in layer.weights.items()}
    w = parameters(a, by_direction(a, weights)[place])
    seen: list[np.ndarray] = []

    def spied(function: Function) -> Function:
        def value(s: np.ndarray) -> np.ndarray:
            result = function(s)
            seen.append(result)
            return result

        return replace(function, value=value)

    spy = replace(w, gate=spied(w.gate), state=spied(w.state))
    steps = []
    now = tuple(array.astype(np.float64) if array.dtype.kind == "f" else array for array in state)
    for t, x in enumerate(inputs.astype(np.float64)):
        if resets is not None and resets[t]:
            now = tuple(np.zeros_like(each) for each in now)
        seen.clear()
        old, now = now, STEPS[a.cell, a.table.form](x[None], now, spy)
        named = {"h": now[0]}
        if not a.periods:
            # A coupled LSTM calls its gates in the order of the table, and any other LSTM, too.
            names = [gate.name for gate in a.table.gates]
            named |= dict(zip(names, seen, strict=True))
        if a.cell == "lstm":
            i = 1 - named["f"] if a.coupled else named["i"]
            named |= {"c": now[1], "i": i, "retained": named["f"] * old[1], "added": i * named["g"]}
            named["output"] = named["o"] * w.output(now[1])
        elif a.cell == "gru":
            named |= {"retained": named["z"] * old[0], "added": (1 - named["z"]) * named["n"]}
        steps.append({name: array[0] for name, array in named.items()})
    return steps


def in_order(array: np.ndarray, place: int, layer: fr.Layer, row: int, length: int) -> np.ndarray:
    """One row's steps in the order of computation."""
    reverse = layer.architecture.reverse or place % layer.architecture.directions
    steps = array[:length, row]
    return steps[::-1] if reverse else steps


def assert_as_specified(
    layer: fr.Layer,
    traced: fr.analysis.Trace,
    x: np.ndarray,
    state: list[np.ndarray],
    lengths: list[int],
    resets: Any = None,
) -> None:
    a = layer.architecture
    read = x
    for place, named in enumerate(traced):
        if place and place % a.directions == 0:
            below = traced.values[place - a.directions : place]
            read = np.concatenate([each["h"] for each in below], axis=2)
        for row, length in enumerate(lengths):
            steps = specified(
                layer,
                place,
                in_order(read, place, layer, row, length),
                [array[place][row : row + 1] for array in state],
                None if resets is None else resets[:, row],
            )
            for name in steps[0] if steps else ():
                want = np.array([step[name] for step in steps])
                got = in_order(named[name], place, layer, row, length)
                np.testing.assert_allclose(got, want, rtol=BOUND, atol=BOUND, err_msg=name)
            for name, array in named.items():
                past = array[length:, row]
                assert not past.any() if array.dtype == bool else np.isnan(past).all(), name


def drawn_state(layer: fr.Layer, batch: int, random: np.random.Generator) -> list[np.ndarray]:
    a = layer.architecture
    return [
        random.integers(0, 7, a.state_shape(each, batch))
        if each.kind == "counter"
        else (random.standard_normal(a.state_shape(each, batch)) / 2).astype(np.float32)
        for each in a.table.states
    ]


def test_a_trace_is_what_the_specification_computes(
    make_recording: Maker, member: Member, draw: Draw, random: np.random.Generator
) -> None:
    cell, chosen = member
    layer = make_recording(3, 6, 2, cell=cell, bidirectional=True, seed=1, **chosen)
    x, state, lengths = draw(9, 3, 3), drawn_state(layer, 3, random), [9, 4, 0]
    traced = fr.analysis.trace(layer, x, state, lengths)
    assert len(traced) == 4
    assert_as_specified(layer, traced, x, state, lengths)


@pytest.mark.parametrize("name", ["lstm", "gru", "clockwork"])
def test_negative_control_another_weight_is_another_trace(name: str, draw: Draw) -> None:
    cell, chosen = FAMILY[name]
    layer = cell(3, 6, seed=1, **chosen)
    x = draw(9, 1, 3)
    traced = fr.analysis.trace(layer, x)
    weights = {key: array.copy() for key, array in layer.weights.items()}
    gates = len(weights["weight_ih_l0"]) // 6
    swapped = [1, 0, *range(2, gates)] if gates > 1 else [0]
    blocks = weights["weight_ih_l0"].reshape(gates, 6, 3)[swapped]
    weights["weight_ih_l0"] = blocks.reshape(-1, 3) * (1 if gates > 1 else 1.01)
    state = [np.zeros(layer.architecture.state_shape(each, 1), np.float32) for each in
             layer.architecture.table.states]  # fmt: skip
    with pytest.raises(AssertionError):
        assert_as_specified(layer.with_weights(weights), traced, x, state, [9])


cut = settings(
    max_examples=min(8, settings.default.max_examples),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@cut
@given(
    name=st.sampled_from(sorted(FAMILY)),
    hidden=st.sampled_from([6, 18, 36]),
    layers=st.integers(1, 3),
    batch=st.integers(1, 4),
    steps=st.integers(0, 12),
    threads=st.integers(1, 3),
    reverse=st.booleans(),
    resetting=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_call_is_traced(
    name: str, hidden: int, layers: int, batch: int, steps: int, threads: int, reverse: bool,
    resetting: bool, seed: int,
) -> None:  # fmt: skip
    cell, chosen = FAMILY[name]
    random = np.random.default_rng(seed)
    layer = cell(
        2, hidden, layers, reverse=reverse, threads=threads, backend="c", seed=seed, **chosen
    )
    x = random.standard_normal((steps, batch, 2)).astype(np.float32)
    state = drawn_state(layer, batch, random)
    resets = random.random((steps, batch)) < 0.3 if resetting and not reverse else None
    traced = fr.analysis.trace(layer, x, state, resets=resets)
    assert_as_specified(layer, traced, x, state, [steps] * batch, resets)


def test_nothing_is_traced_of_nothing(make_recording: Maker, member: Member) -> None:
    cell, chosen = member
    for steps, batch in ((0, 2), (3, 0)):
        x = np.zeros((steps, batch, 3), np.float32)
        traced = fr.analysis.trace(make_recording(3, 6, 2, cell=cell, **chosen), x)
        assert {array.shape[:2] for array in traced[1].values()} == {(steps, batch)}
        assert {unit.use for unit in traced.units} == {0}


def test_due_units_are_those_that_a_step_computes(draw: Draw) -> None:
    layer = fr.ClockworkRNN(3, 6, periods=(1, 2, 4), seed=0)
    x = draw(9, 1, 3)
    resets = np.zeros((9, 1), bool)
    resets[5] = True
    named = fr.analysis.trace(layer, x, resets=resets)[0]
    count = np.array([0, 1, 2, 3, 4, 0, 1, 2, 3])
    want = np.repeat(count[:, None] % [1, 2, 4] == 0, 2, axis=1)
    np.testing.assert_array_equal(named["due"][:, 0], want)
    held = ~named["due"][1:] & ~resets[1:, :, None]
    np.testing.assert_array_equal(named["h"][1:][held], named["h"][:-1][held])


@pytest.mark.parametrize("layout", ["time first", "batch first", "unbatched"])
def test_a_trace_has_the_layout_of_x(layout: str, draw: Draw) -> None:
    layer = fr.LSTM(3, 6, batch_first=layout == "batch first", seed=0)
    x = draw(*{"time first": (5, 2, 3), "batch first": (2, 5, 3), "unbatched": (5, 3)}[layout])
    named = fr.analysis.trace(layer, x)[0]
    y, _ = layer(x)
    assert {array.shape for array in named.values()} == {y.shape}
    np.testing.assert_array_equal(named["h"], y)  # nothing is computed again: these are y's bits


@pytest.mark.parametrize("name", sorted(FAMILY))
def test_a_tape_has_its_sums_after_a_backward_pass(name: str, draw: Draw) -> None:
    cell, chosen = FAMILY[name]
    layer = cell(3, 6, 2, seed=0, **chosen)
    y, _, tape = layer.record(draw(5, 2, 3))
    before = [*([] if layer.architecture.periods else tape.sums()), *sum(tape.states(), ())]
    tape.backward(np.ones_like(y), keep=True)
    after = [*([] if layer.architecture.periods else tape.sums()), *sum(tape.states(), ())]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_tape_says_what_it_does_not_have(draw: Draw) -> None:
    layer = fr.LSTM(3, 6, seed=0)
    x = draw(5, 2, 3)
    _, _, tape = layer.record(x, tape="segments")
    for ask in (tape.sums, tape.states):
        with pytest.raises(fr.UnsupportedError, match="full"):
            ask()
    _, _, tape = layer.record(x)
    tape.backward(None)
    for ask in (tape.sums, tape.states):
        with pytest.raises(ValueError, match="used"):
            ask()
    for backend in ("c", "numpy"):
        clockwork = fr.ClockworkRNN(3, 6, periods=(1, 2), backend=backend)
        with pytest.raises(fr.UnsupportedError, match="Clockwork"):
            clockwork.record(x)[2].sums()


def test_a_layer_of_numba_is_traced_with_the_same_bits(draw: Draw) -> None:
    pytest.importorskip("numba")
    x = draw(5, 2, 3)
    one, other = (
        fr.analysis.trace(fr.LSTM(3, 6, seed=0, backend=backend), x)[0]
        for backend in ("c", "numba")
    )
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_none_is_named_by_its_place(value: float, draw: Draw) -> None:
    x = draw(5, 2, 3)
    x[3, 1, 2] = x[4, 0, 0] = value
    with pytest.raises(ValueError, match=r"x\[3, 1, 2\] is (nan|inf), the first of 2"):
        fr.analysis.trace(fr.LSTM(3, 6), x)


def test_units_are_described_by_what_they_did() -> None:
    """An LSTM that is made to: unit 0 never forgets, unit 1 forgets at once, unit 2 keeps 0.99; only 1 is used."""
    layer = fr.LSTM(1, 3, seed=0)
    weights = {name: np.zeros_like(array) for name, array in layer.weights.items()}
    _, f, g, _ = np.arange(12).reshape(4, 3)
    bias = weights["bias_ih_l0"]
    bias[f] = [30, -30, np.log(0.99 / 0.01)]
    weights["weight_ih_l0"][g[1]] = 5
    x = np.array([[1.0], [-1.0]] * 200, np.float32)
    traced = fr.analysis.trace(layer.with_weights(weights), x)
    units = traced.units
    assert [unit.half_life for unit in units] == [np.inf, 1, 69]
    assert traced.most_used(0)[0].unit == 1
    assert units[0].use == 0 < units[1].use
    assert [unit.open["f"] for unit in units] == [1, 0, 1]
    assert [unit.shut["f"] for unit in units] == [0, 1, 0]
    assert (units[1].shut["g"], units[1].open["g"]) == (0.5, 0.5)
    assert units[2].mean["f"] == pytest.approx(0.99)
    assert units[0].saturated["i"] == 0
    assert 0 < SHUT < 0.5
    assert traced.to_dict()["units"][2]["half_life"] == 69
    assert traced.to_dict()["units"][0]["half_life"] is None
