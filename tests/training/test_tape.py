"""Tapes: what record, backward, resets and with_weights take and give, and what they refuse."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import FAMILY, Draw, Maker

import fusedrnn as fr

Member = tuple[type[fr.Layer], dict[str, Any]]
Made = Callable[..., fr.Layer]


@pytest.fixture
def made(make_recording: Maker) -> Made:
    """Makes a layer of any cell, 3 inputs wide with 6 units unless others are said, on a target that records."""

    def layer(cell: type[fr.Layer] = fr.LSTM, *sizes: int, **chosen: Any) -> fr.Layer:
        return make_recording(*(sizes or (3, 6)), cell=cell, **{"seed": 0} | chosen)

    return layer


@pytest.fixture
def lstm(made: Made) -> fr.Layer:
    return made()


# ---- what they give ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["time first", "batch first", "unbatched"])
def test_gradients_have_the_shapes_of_what_they_are_of(
    made: Made, member: Member, layout: str, draw: Draw
) -> None:
    cell, chosen = member
    layer = made(
        cell, 3, 6, 2, bidirectional=True, batch_first=layout == "batch first", bias="double", **chosen
    )  # fmt: skip
    x = draw(*{"time first": (5, 2, 3), "batch first": (2, 5, 3), "unbatched": (5, 3)}[layout])
    y, state, tape = layer.record(x)
    y_plain, state_plain = layer(x)
    np.testing.assert_array_equal(y, y_plain)
    gradients = tape.backward(draw(*y.shape))
    assert gradients.x.shape == x.shape
    assert type(gradients.state) is type(state) is layer.state_type
    for gradient, array, plain in zip(gradients.state, state, state_plain, strict=True):
        np.testing.assert_array_equal(array, plain)
        if array.dtype.kind == "i":
            assert gradient is None
        else:
            assert (gradient.shape, gradient.dtype) == (array.shape, array.dtype)
    assert list(gradients.weights) == list(layer.weights)
    for name, array in layer.weights.items():
        assert gradients.weights[name].shape == array.shape
        assert gradients.weights[name].dtype == layer.dtype
        assert gradients.weights[name].flags.writeable


def test_layouts_give_the_same_numbers(made: Made, member: Member, draw: Draw) -> None:
    cell, chosen = member
    first, turned = (made(cell, batch_first=value, **chosen) for value in (False, True))
    x, dy, resets = draw(5, 2, 3), None, np.random.default_rng(0).random((5, 2)) < 0.3
    y, _, tape = first.record(x, lengths=[5, 3], resets=resets)
    dy = draw(*y.shape)
    expected = tape.backward(dy)
    y_turned, _, tape = turned.record(
        np.ascontiguousarray(x.swapaxes(0, 1)), lengths=[5, 3], resets=resets.T
    )
    np.testing.assert_array_equal(y_turned.swapaxes(0, 1), y)
    found = tape.backward(dy.swapaxes(0, 1))
    np.testing.assert_array_equal(found.x.swapaxes(0, 1), expected.x)
    for name, array in expected.weights.items():
        np.testing.assert_array_equal(found.weights[name], array)

    one = first.record(x[:, :1], resets=resets[:, :1])[2].backward(dy[:, :1])
    alone = first.record(x[:, 0], resets=resets[:, 0])[2].backward(dy[:, 0])
    np.testing.assert_array_equal(alone.x, one.x[:, 0])
    np.testing.assert_array_equal(alone.state[0], one.state[0][:, 0])


def test_nothing_given_is_zeros(made: Made, member: Member, draw: Draw) -> None:
    cell, chosen = member
    layer = made(cell, **chosen)
    y, state, tape = layer.record(draw(4, 2, 3))
    nothing = tape.backward(None, keep=True)
    assert not nothing.x.any()
    assert not any(array.any() for array in nothing.weights.values())
    zeros = tuple(None if array.dtype.kind == "i" else np.zeros_like(array) for array in state)
    dy = draw(*y.shape)
    for dstate in (zeros, [None] * len(state), list(zeros)):
        for name, array in tape.backward(dy, dstate, keep=True).weights.items():
            np.testing.assert_array_equal(array, tape.backward(dy, keep=True).weights[name])
    last = zeros[0] + 1
    given = tape.backward(None, (last, *zeros[1:]), keep=True)
    as_output = np.zeros_like(dy)
    as_output[-1] = 1
    if cell is not fr.ClockworkRNN:
        assert given.x.any()
    np.testing.assert_array_equal(given.x, tape.backward(as_output).x)


@pytest.mark.parametrize("shape", [(0, 2), (3, 0), (0, 0)])
def test_no_steps_and_no_rows(
    made: Made, member: Member, draw: Draw, shape: tuple[int, int]
) -> None:
    cell, chosen = member
    layer = made(cell, 3, 6, 2, bidirectional=True, **chosen)
    x = draw(*shape, 3)
    for lengths in (None, [0] * shape[1]):
        y, state, tape = layer.record(x, lengths=lengths)
        dstate = [None if each.dtype.kind == "i" else each + 1 for each in state]
        gradients = tape.backward(np.full_like(y, np.nan), dstate)
        assert gradients.x.shape == x.shape
        for name, array in layer.weights.items():
            assert gradients.weights[name].shape == array.shape
            assert not gradients.weights[name].any()
        for gradient, given in zip(gradients.state, dstate, strict=True):
            assert gradient is given is None or np.array_equal(gradient, given)
    resets = np.zeros(shape, bool)
    assert made(cell, **chosen).record(x, resets=resets)[2].backward(None).x.shape == x.shape


def test_x_is_left_out_if_it_is_not_wanted(lstm: fr.Layer, draw: Draw) -> None:
    y, _, tape = lstm.record(draw(4, 2, 3))
    gradients = tape.backward(y.copy(), want_x=False, keep=True)
    assert gradients.x is None
    for name, array in tape.backward(y.copy()).weights.items():
        np.testing.assert_array_equal(gradients.weights[name], array)


def test_the_initial_state_of_a_layer_has_a_gradient_for_each_row(made: Made, draw: Draw) -> None:
    initial = (draw(1, 6), draw(1, 6))
    layer = made(initial_state=initial)
    x, dy = draw(4, 2, 3), draw(4, 2, 6)
    given = [np.repeat(array[:, None], 2, axis=1) for array in initial]
    own = layer.record(x)[2].backward(dy).state
    said = made().with_weights(layer.weights).record(x, given)[2].backward(dy).state
    for mine, other in zip(own, said, strict=True):
        assert mine.shape == (1, 2, 6)
        np.testing.assert_array_equal(mine, other)


def test_segments_give_the_same_bits(made: Made, member: Member, draw: Draw) -> None:
    cell, chosen = member
    layer = made(cell, 3, 6, 2, **chosen)
    x, dy = draw(9, 2, 3), draw(9, 2, layer.architecture.output_size)
    full, segments = (layer.record(x, tape=kind) for kind in ("full", "segments"))
    np.testing.assert_array_equal(full[0], segments[0])
    a, b = (each[2].backward(dy) for each in (full, segments))
    np.testing.assert_array_equal(a.x, b.x)
    for name, array in a.weights.items():
        np.testing.assert_array_equal(b.weights[name], array)


def test_nan_in_dy_goes_through(made: Made, member: Member, draw: Draw) -> None:
    cell, chosen = member
    layer = made(cell, **chosen)
    x = draw(4, 3, 3)
    y, _, tape = layer.record(x)
    dy = draw(*y.shape)
    dy[2, 1] = np.nan
    gradients = tape.backward(dy)
    assert (
        np.isnan(gradients.x[2 if "clockwork" != cell.cell else 0, 1]).any()
        or np.isnan(gradients.x[:3, 1]).any()
    )
    assert np.isfinite(gradients.x[:, [0, 2]]).all()
    assert np.isfinite(gradients.x[3, 1]).all()
    assert np.isnan(gradients.weights["weight_ih_l0"]).any()


# ---- what a tape holds ---------------------------------------------------------------------------


def test_a_tape_outlives_its_layer(made: Made, draw: Draw) -> None:
    layer, x, dy = made(), draw(4, 2, 3), draw(4, 2, 6)
    expected = layer.record(x)[2].backward(dy)
    tape, alive = layer.record(x)[2], weakref.ref(layer)
    del layer
    gc.collect()
    assert alive() is None
    np.testing.assert_array_equal(tape.backward(dy).x, expected.x)


def test_a_tape_keeps_what_it_needs_to_itself(made: Made, draw: Draw) -> None:
    layer, x, dy = made(fr.LSTM, 3, 6, 2), draw(4, 2, 3), draw(4, 2, 6)
    expected = layer.record(x)[2].backward(dy, (draw(2, 2, 6), None), keep=True)
    before, resets, lengths = (
        (draw(2, 2, 6), draw(2, 2, 6)),
        np.zeros((4, 2), bool),
        np.array([4, 3]),
    )
    dstate = (draw(2, 2, 6), None)
    expected = layer.record(x, before, lengths, resets=resets)[2].backward(dy, dstate)
    y, state, tape = layer.record(x, before, lengths, resets=resets)
    for array in (x, *before, *state):
        array[...] = 9
    resets[...], lengths[...] = True, 1
    with pytest.raises(ValueError, match="read-only"):
        y[...] = 9
    given = dstate[0].copy()
    found = tape.backward(dy, dstate)
    np.testing.assert_array_equal(dstate[0], given)
    np.testing.assert_array_equal(found.x, expected.x)
    for name, array in expected.weights.items():
        np.testing.assert_array_equal(found.weights[name], array)
    for mine, other in zip(found.state, expected.state, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_a_tape_is_used_once_unless_it_is_kept(lstm: fr.Layer, draw: Draw) -> None:
    y, _, tape = lstm.record(draw(4, 2, 3))
    first = tape.backward(y.copy(), keep=True)
    second = tape.backward(y.copy())
    for name, array in first.weights.items():
        np.testing.assert_array_equal(second.weights[name], array)
    for keep in (False, True):
        with pytest.raises(ValueError, match="used.*keep=True"):
            tape.backward(y.copy(), keep=keep)


def test_gradients_are_the_callers(lstm: fr.Layer, draw: Draw) -> None:
    y, _, tape = lstm.record(draw(4, 2, 3))
    first = tape.backward(y.copy(), keep=True)
    copies = {name: array.copy() for name, array in first.weights.items()}
    for array in (first.x, *first.state, *first.weights.values()):
        array[...] = 9
    for name, array in tape.backward(y.copy()).weights.items():
        np.testing.assert_array_equal(array, copies[name])


def test_threads_take_turns(lstm: fr.Layer, draw: Draw) -> None:
    y, _, tape = lstm.record(draw(50, 2, 3))
    expected = tape.backward(y.copy(), keep=True)
    found: list[fr.training.tape.Gradients] = []
    threads = [
        threading.Thread(target=lambda: found.append(tape.backward(y.copy(), keep=True)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for each in found:
        np.testing.assert_array_equal(each.x, expected.x)


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda dy: dy[:3], ValueError, r"dy must have shape \(4, 2, 6\), got \(3, 2, 6\)"),
        (lambda dy: dy[:, :1], ValueError, r"\(4, 2, 6\), got \(4, 1, 6\)"),
        (lambda dy: dy[..., :5], ValueError, r"\(4, 2, 6\), got \(4, 2, 5\)"),
        (lambda dy: dy[:, 0], ValueError, r"\(4, 2, 6\), got \(4, 6\)"),
        (lambda dy: dy.swapaxes(0, 1), ValueError, r"\(4, 2, 6\), got \(2, 4, 6\)"),
        (lambda dy: dy.astype(np.float64), TypeError, "dy must be float32, got float64"),
        (lambda dy: dy.tolist(), TypeError, "dy must be a numpy.ndarray"),
        (lambda dy: np.ma.masked_array(dy), TypeError, "MaskedArray"),
        (lambda dy: 1.0, TypeError, "not float"),
    ],
)
def test_dy_of_another_kind(lstm: fr.Layer, draw: Draw, change, error, message) -> None:
    y, _, tape = lstm.record(draw(4, 2, 3), lengths=[4, 2])
    with pytest.raises(error, match=message):
        tape.backward(change(draw(*y.shape)))
    tape.backward(draw(*y.shape))  # it can still be used


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda h: h, TypeError, r"dstate must be a tuple \(h, c\) of arrays, got ndarray"),
        (lambda h: (h,), TypeError, "got 1 of them"),
        (lambda h: (h, h[:, :1]), ValueError, r"dstate\.c must have shape \(1, 2, 6\)"),
        (lambda h: (h[0], None), ValueError, r"dstate\.h must have shape \(1, 2, 6\)"),
        (lambda h: (h.astype("f8"), None), TypeError, r"dstate\.h must be float32"),
    ],
)
def test_dstate_of_another_kind(lstm: fr.Layer, draw: Draw, change, error, message) -> None:
    y, state, tape = lstm.record(draw(4, 2, 3))
    with pytest.raises(error, match=message):
        tape.backward(y, change(state.h))
    tape.backward(y)


def test_the_state_of_another_layer_is_no_dstate(made: Made, lstm: fr.Layer, draw: Draw) -> None:
    x = draw(4, 2, 3)
    other = made(fr.GRU).record(x)[1]
    with pytest.raises(TypeError, match="dstate must be a tuple"):
        lstm.record(x)[2].backward(None, other)


def test_a_counter_has_no_gradient(made: Made, draw: Draw) -> None:
    y, state, tape = made(fr.ClockworkRNN, periods=(1, 2)).record(draw(4, 2, 3))
    with pytest.raises(TypeError, match=r"dstate\.t must be None"):
        tape.backward(y, state)
    assert tape.backward(y, (state.h, None)).state.t is None


@pytest.mark.parametrize("name", ["want_x", "keep"])
def test_switches_that_are_not_bool(lstm: fr.Layer, draw: Draw, name: str) -> None:
    y, _, tape = lstm.record(draw(4, 2, 3))
    with pytest.raises(TypeError, match=f"{name} must be True or False, not int"):
        tape.backward(y, **{name: 1})


@pytest.mark.parametrize("kind", ["none", True, None, 3])
def test_a_tape_of_an_unknown_kind(lstm: fr.Layer, draw: Draw, kind: Any) -> None:
    with pytest.raises(ValueError, match="tape must be 'full' or 'segments'"):
        lstm.record(draw(4, 2, 3), tape=kind)


@pytest.mark.parametrize(
    ("resets", "error", "message"),
    [
        (np.zeros((4, 2)), TypeError, "resets must be bool, got float64"),
        (np.zeros((4, 2), np.int8), TypeError, "resets must be bool, got int8"),
        ([[False] * 2] * 4, TypeError, "resets must be a numpy.ndarray of bool"),
        (np.zeros((2, 4), bool), ValueError, r"resets must have shape \(4, 2\), got \(2, 4\)"),
        (np.zeros(4, bool), ValueError, r"\(4, 2\), got \(4,\)"),
        (np.zeros((4, 2, 1), bool), ValueError, r"\(4, 2\), got \(4, 2, 1\)"),
        (True, TypeError, "not bool"),
    ],
)
def test_resets_of_another_kind(lstm: fr.Layer, draw: Draw, resets, error, message) -> None:
    x, out = draw(4, 2, 3), draw(4, 2, 6)
    before = out.copy()
    with pytest.raises(error, match=message):
        lstm(x, lengths=[4, 2], resets=resets, out=out)
    with pytest.raises(error, match=message):
        lstm.record(x, resets=resets)
    np.testing.assert_array_equal(out, before)


@pytest.mark.parametrize("option", ["bidirectional", "reverse"])
def test_resets_where_a_direction_runs_backward(made: Made, draw: Draw, option: str) -> None:
    layer = made(**{option: True})
    for run in (layer, layer.record):
        with pytest.raises(fr.UnsupportedError, match="resets must be None"):
            run(draw(4, 2, 3), resets=np.zeros((4, 2), bool))


# ---- resets in a plain run -----------------------------------------------------------------------


def test_resets_are_seen_in_a_shape_that_has_come_before(
    made: Made, member: Member, draw: Draw
) -> None:
    """Calls of a shape that comes again take a shorter way, which knows no resets."""
    cell, chosen = member
    layer = made(cell, **chosen)
    x, resets = draw(4, 2, 3), np.zeros((4, 2), bool)
    state = [a + 1 if a.dtype.kind == "f" else a + 3 for a in layer._signature.start_state(2)]
    plain = [layer(x, state)[0] for _ in range(3)][-1]
    np.testing.assert_array_equal(layer(x, state, resets=resets)[0], plain)
    resets[2, 1] = True
    y, after = layer(x, state, resets=resets)
    np.testing.assert_array_equal(y[:2], plain[:2])
    np.testing.assert_allclose(y[:, 0], plain[:, 0], rtol=0, atol=1e-6)
    y_rest, after_rest = layer(x[2:, 1:])
    np.testing.assert_allclose(y[2:, 1:], y_rest, rtol=0, atol=1e-6)
    for array, rest in zip(after, after_rest, strict=True):
        np.testing.assert_allclose(array[:, 1:], rest, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(layer(x, state)[0], plain)


def test_a_reset_forgets_nan(lstm: fr.Layer, draw: Draw) -> None:
    x, resets = draw(4, 2, 3), np.zeros((4, 2), bool)
    x[1, 0] = np.nan
    resets[2, 0] = True
    y, _, tape = lstm.record(x, resets=resets)
    assert np.isnan(y[1, 0]).all()
    assert np.isfinite(y[2:, 0]).all()
    dy = np.zeros_like(y)
    dy[2:, 0] = 1
    gradients = tape.backward(dy)
    assert np.isfinite(gradients.x[2:]).all()


# ---- other weights -------------------------------------------------------------------------------


def test_a_layer_with_other_weights(made: Made, member: Member, draw: Draw) -> None:
    cell, chosen = member
    x = draw(2, 4, 3)
    for more in ({"bidirectional": True}, {"reverse": True, "bias": "double"}):
        size = [each.shape[::2] for each in made(cell, **chosen, **more)._signature.states]
        initial = [draw(*s) if len(s) == 2 else np.ones(s, np.int64) for s in size]
        layer = made(cell, batch_first=True, initial_state=initial, **chosen, **more)
        other = made(cell, batch_first=True, seed=7, initial_state=initial, **chosen, **more)
        twin = layer.with_weights(other.weights)
        assert type(twin) is cell
        assert repr(twin) == repr(other)
        np.testing.assert_array_equal(twin(x)[0], other(x)[0])
        assert not np.array_equal(layer(x)[0], other(x)[0])


def test_other_weights_are_checked(lstm: fr.Layer) -> None:
    weights = dict(lstm.weights)
    for changed, error, message in (
        ({**weights, "weight_ih_l0": weights["weight_ih_l0"][:5]}, ValueError, "weight_ih_l0"),
        (
            {**weights, "weight_ih_l1": weights["weight_ih_l0"]},
            ValueError,
            "left over: weight_ih_l1",
        ),
        ({"weight_ih_l0": weights["weight_ih_l0"]}, ValueError, "missing: weight_hh_l0"),
        ({**weights, "bias_ih_l0": weights["bias_ih_l0"].astype("f8")}, TypeError, "bias_ih_l0"),
        (None, TypeError, "weights must be a mapping"),
    ):
        with pytest.raises(error, match=message):
            lstm.with_weights(changed)


def test_descent_descends(made: Made, draw: Draw) -> None:
    """Ten steps against the gradient, as a user writes them."""
    for name in ("lstm-peephole", "gru", "gru-before", "rnn", "clockwork"):
        cell, chosen = FAMILY[name]
        layer = made(cell, **chosen)
        x, wanted = draw(6, 4, 3), draw(6, 4, 6) / 4
        losses = []
        for _ in range(10):
            y, _, tape = layer.record(x)
            losses.append(float(((y - wanted) ** 2).mean()))
            gradients = tape.backward(2 * (y - wanted) / y.size).weights
            layer = layer.with_weights({n: w - gradients[n] for n, w in layer.weights.items()})
        assert losses == sorted(losses, reverse=True)
