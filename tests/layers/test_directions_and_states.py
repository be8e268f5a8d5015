"""A layer that runs backwards only, and a layer with an initial state of its own."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from conftest import FAMILY, Draw

import fusedrnn as fr
from fusedrnn.counting.counts import count

BACKENDS = ("c", "numba", "numpy")


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("backend", ["c", "numba"])
def test_reverse_is_forward_on_the_turned_sequence(name: str, backend: str, draw: Draw) -> None:
    cell, chosen = FAMILY[name]
    if chosen.get("bidirectional"):
        pytest.skip("it has both directions")
    forward = cell(5, 18, seed=3, backend=backend, **chosen)
    reverse = cell(5, 18, seed=3, backend=backend, reverse=True, **chosen)
    x = draw(7, 4, 5)
    y, state = reverse(x)
    expected, after = forward(x[::-1])
    np.testing.assert_array_equal(y, expected[::-1])
    for mine, its in zip(state, after, strict=True):
        np.testing.assert_array_equal(mine, its)
    assert not np.array_equal(y, forward(x)[0])


@pytest.mark.parametrize("backend", ["c", "numba"])
def test_reverse_begins_at_the_end_of_each_sequence(backend: str, draw: Draw) -> None:
    forward = fr.LSTM(5, 18, 2, seed=3, backend=backend)
    reverse = fr.LSTM(5, 18, 2, seed=3, backend=backend, reverse=True)
    x, lengths = draw(7, 4, 5), [7, 3, 0, 1]
    y, state = reverse(x, lengths=lengths)
    for row, length in enumerate(lengths):
        expected, after = forward(x[:length, row][::-1])
        np.testing.assert_array_equal(y[:length, row], expected[::-1])
        assert not y[length:, row].any()
        np.testing.assert_array_equal(state.c[:, row], after.c)


def test_reverse_has_the_bits_of_one_thread_in_two(draw: Draw) -> None:
    x = draw(40, 8, 32)
    one, two = (fr.LSTM(32, 64, 2, seed=3, reverse=True, threads=n) for n in (1, 2))
    np.testing.assert_array_equal(one(x)[0], two(x)[0])


def test_reverse_is_said_kept_and_counted() -> None:
    layer = fr.GRU(5, 6, reverse=True)
    assert "reverse=True" in repr(layer)
    assert pickle.loads(pickle.dumps(layer)).architecture.reverse
    assert fr.GRU.from_weights(layer.weights, reverse=True).architecture == layer.architecture
    assert count(layer).to_dict()["layers"][0]["direction"] == "reverse"
    assert count(layer).parameters == count("gru", input_size=5, hidden_size=6).parameters
    with pytest.raises(fr.ArchitectureError, match="reverse must be False"):
        fr.GRU(5, 6, reverse=True, bidirectional=True)
    with pytest.raises(fr.UnsupportedError, match="reverse layer has no stream"):
        layer.stream()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_initial_state_is_where_calls_and_streams_begin(backend: str, draw: Draw) -> None:
    given = draw(2, 18), draw(2, 18)
    layer = fr.LSTM(5, 18, 2, seed=3, backend=backend, initial_state=given)
    plain = fr.LSTM(5, 18, 2, seed=3, backend=backend)
    x = draw(7, 4, 5)
    everywhere = tuple(np.repeat(array[:, None], 4, axis=1) for array in given)
    expected, after = plain(x, everywhere)
    for _ in range(3):  # the third call of a shape is prepared
        y, state = layer(x)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(state.c, after.c)
    np.testing.assert_allclose(layer(x[:, 0])[0], expected[:, 0], atol=1e-6)
    assert not np.array_equal(expected, plain(x)[0])
    np.testing.assert_array_equal(layer(x, plain(x)[1])[0], plain(x, plain(x)[1])[0])

    stream = layer.stream(4)
    for _ in range(2):
        steps = [stream.step(x[t]).copy() for t in range(7)]
        np.testing.assert_array_equal(np.stack(steps), expected)
        stream.reset()


def test_an_initial_state_is_a_copy_kept_in_pickles_and_checked(draw: Draw) -> None:
    h = draw(1, 18)
    layer = fr.GRU(5, 18, seed=3, initial_state=(h,))
    h[...] = 0
    again = pickle.loads(pickle.dumps(layer))
    assert again.initial_state is not None and layer.initial_state is not None
    np.testing.assert_array_equal(again.initial_state.h, layer.initial_state.h)
    assert layer.initial_state.h.any()
    assert fr.GRU(5, 18).initial_state is None
    with pytest.raises(ValueError, match="read-only"):
        layer.initial_state.h[...] = 0
    with pytest.raises(ValueError, match=r"initial_state\.h must have shape \(1, 18\)"):
        fr.GRU(5, 18, initial_state=(draw(2, 18),))
    with pytest.raises(TypeError, match="initial_state must be a tuple"):
        fr.GRU(5, 18, initial_state=h)  # type: ignore[arg-type]
    clock = fr.ClockworkRNN(5, 18, periods=(1, 2), initial_state=(draw(1, 18), np.array([3])))
    assert clock(draw(2, 4, 5))[1].t.tolist() == [[5, 5, 5, 5]]
