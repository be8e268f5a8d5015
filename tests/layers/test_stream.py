"""Streams: a state of their own, steps without surprises."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import numpy as np
import pytest
from conftest import Draw, Maker, assert_allocates_nothing

import fusedrnn as fr
from fusedrnn._native import lib
from fusedrnn.engines import compiled


class Subclass(np.ndarray):
    """An array that the fast check does not take."""


def test_steps_are_the_sequence(make: Maker, draw: Draw) -> None:
    layer = make(5, 9, 2, seed=0)
    x = draw(8, 3, 5)
    y, state = layer(x)
    stream = layer.stream(3)
    for x_t, y_t in zip(x, y, strict=True):
        np.testing.assert_allclose(stream.step(x_t), y_t, rtol=0, atol=1e-6)
    np.testing.assert_allclose(stream.state.c, state.c, rtol=0, atol=1e-6)
    assert isinstance(stream.state, fr.LSTMState)


def test_bound_input(make: Maker, draw: Draw) -> None:
    layer = make(5, 9, seed=0)
    one, two = layer.stream(2), layer.stream(2)
    for _ in range(3):
        one.input[...] = draw(2, 5)
        np.testing.assert_array_equal(one.step(), two.step(one.input.copy()))


def test_output_is_a_read_only_view_apart_from_the_state(make: Maker, draw: Draw) -> None:
    stream = make(5, 9, seed=0).stream(2)
    y = stream.step(draw(2, 5))
    kept = y.copy()
    assert stream.step(draw(2, 5)) is y
    assert not np.array_equal(y, kept)
    with pytest.raises(ValueError, match="read-only"):
        y[...] = 0
    with pytest.raises(ValueError, match="WRITEABLE"):
        y.setflags(write=True)
    stream.state.h[...] = 0  # a copy: the stream goes on as it was
    assert stream.state.h.any()


def test_output_may_be_the_next_input(make: Maker, draw: Draw) -> None:
    layer = make(40, 40, seed=0)
    one, two = layer.stream(2), layer.stream(2)
    y = one.step(draw(2, 40))
    two.reset(one.state)
    for _ in range(4):
        copied = y.copy()
        y = one.step(y)
        np.testing.assert_array_equal(y, two.step(copied))


def test_reset(make: Maker, draw: Draw) -> None:
    layer = make(5, 9, 2, seed=0)
    stream = layer.stream(2)
    x = draw(2, 5)
    first = stream.step(x).copy()
    assert not np.array_equal(stream.step(x), first)
    stream.reset()
    np.testing.assert_array_equal(stream.step(x), first)
    state = (draw(2, 2, 9), draw(2, 2, 9))
    stream.reset(state)
    np.testing.assert_array_equal(stream.state.h, state[0])
    with pytest.raises(ValueError, match=r"state\.c must have shape \(2, 2, 9\), got \(1, 2, 9\)"):
        stream.reset((draw(2, 2, 9), draw(1, 2, 9)))
    np.testing.assert_array_equal(stream.state.c, state[1])


def test_run_of_a_batch_first_layer(make: Maker, draw: Draw) -> None:
    layer = make(5, 9, batch_first=True, seed=0)
    x = draw(2, 6, 5)
    np.testing.assert_array_equal(layer.stream(2).run(x), layer(x)[0])
    assert layer.stream(2).run(draw(2, 0, 5)).shape == (2, 0, 9)


def test_a_bad_step_changes_nothing(make: Maker, draw: Draw) -> None:
    stream = make(5, 9, seed=0).stream(2)
    stream.step(draw(2, 5))
    before = stream.state
    x = draw(2, 5)
    for bad, error, message in (
        (x[0], ValueError, r"x must have shape \(2, 5\), got \(5,\)"),
        (draw(5, 2), ValueError, r"x must have shape \(2, 5\), got \(5, 2\)"),
        (draw(2, 10)[:, ::2], ValueError, "x must be C-contiguous"),
        (draw(5, 2).T, ValueError, "x must be C-contiguous"),
        (x.astype(np.float64), TypeError, r"x must be float32, got float64.*astype\('float32'\)"),
        (x.astype(">f4"), TypeError, "byte order"),
        (x.astype(np.int32), TypeError, "x must be float32, got int32"),
        (x.tolist(), TypeError, "x must be a numpy.ndarray of float32, not list"),
        (np.ma.masked_array(x), TypeError, "not MaskedArray"),
    ):
        with pytest.raises(error, match=message):
            stream.step(bad)
    np.testing.assert_array_equal(stream.state.h, before.h)
    np.testing.assert_array_equal(stream.state.c, before.c)


def test_arrays_worth_a_copy(make: Maker, draw: Draw) -> None:
    layer = make(5, 9, seed=0)
    x = draw(2, 5)
    expected = layer.stream(2).step(x).copy()
    x.setflags(write=False)
    np.testing.assert_array_equal(layer.stream(2).step(x), expected)
    store = np.zeros(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
    store[...] = x
    np.testing.assert_array_equal(layer.stream(2).step(store), expected)
    subclass = x.view(Subclass)
    np.testing.assert_array_equal(layer.stream(2).step(subclass), expected)


def test_a_bidirectional_stream_is_an_error_that_says_why() -> None:
    with pytest.raises(fr.UnsupportedError, match="reverse direction starts from the last step"):
        fr.LSTM(3, 5, bidirectional=True).stream()


@pytest.mark.parametrize(
    ("size", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)]
)
def test_bad_batch_sizes(size: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="batch_size"):
        fr.LSTM(3, 5).stream(size)


def test_a_step_allocates_nothing(make_compiled: Maker, draw: Draw) -> None:
    stream = make_compiled(5, 9, 3, seed=0).stream(2)
    x = draw(2, 5)
    assert_allocates_nothing(lambda: stream.step(x), stream.step)


def test_buffers_are_written_to_not_replaced(make: Maker, draw: Draw) -> None:
    stream = make(5, 9, seed=0).stream(2)
    for name in ("input", "output", "state"):
        with pytest.raises(AttributeError):
            setattr(stream, name, draw(2, 5))


def test_copies_are_refused(make: Maker) -> None:
    stream = make(5, 9, seed=0).stream()
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="a Stream cannot be copied or pickled"):
            copied(stream)


def test_denormals_are_flushed_in_a_step_as_in_a_sequence(make_compiled: Maker) -> None:
    layer = make_compiled(5, 9, bias=False, seed=0)
    tiny = np.full((1, 5), 1e-40, np.float32)
    state = (np.full((1, 1, 9), 1e-40, np.float32),) * 2
    for step in (
        lambda s: s.step(tiny),
        lambda s: s.step(tiny.view(Subclass)),
    ):
        stream = layer.stream()
        stream.reset(state)
        assert not step(stream).any()
        assert not stream.state.c.any()
    assert np.float32(1e-40) * np.float32(0.5) != 0


def test_a_busy_stream_refuses_everything(make: Maker, draw: Draw) -> None:
    stream = make(5, 9, seed=0).stream(2)
    assert lib.fr_stream_take(stream._handle) == lib.FR_OK
    for call in (
        stream.step,
        lambda: stream.step(draw(2, 5)),
        lambda: stream.step(draw(2, 5).view(Subclass)),
        lambda: stream.run(draw(3, 2, 5)),
        stream.reset,
        lambda: stream.state,
    ):
        with pytest.raises(fr.StreamBusyError):
            call()
    lib.fr_stream_release(stream._handle)
    stream.step()


def test_the_status_of_a_step_tells_a_busy_stream_from_another_array(
    make: Maker, draw: Draw
) -> None:
    stream = make(5, 9, seed=0).stream(2)
    step, step_from, x = stream._step, stream._entry.step_from, draw(2, 5)
    fast = lib.FR_OK if make.target.backend != "numpy" else lib.FR_OTHER_ARRAY
    assert (step(None), step_from(x), step(x)) == (lib.FR_OK, lib.FR_OK, fast)
    for other in (x[0], x.astype(np.float64), draw(5, 2).T, x.tolist(), x.view(Subclass)):
        assert step(other) == lib.FR_OTHER_ARRAY
    assert lib.fr_stream_take(stream._handle) == lib.FR_OK
    busy = lib.FR_BUSY if fast == lib.FR_OK else fast
    assert lib.fr_stream_take(stream._handle) == lib.FR_BUSY
    assert (step(None), step_from(x), step(x)) == (lib.FR_BUSY, lib.FR_BUSY, busy)
    lib.fr_stream_release(stream._handle)
    assert step(None) == lib.FR_OK


def test_an_interrupted_step_of_the_specification_leaves_the_state(draw: Draw, monkeypatch) -> None:
    layer = fr.LSTM(5, 9, 3, backend="numpy", seed=0)
    stream = layer.stream(2)
    stream.step(draw(2, 5))
    before = stream.state
    step, calls = layer._engine._step, []

    def interrupted(*arguments, **named):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return step(*arguments, **named)

    monkeypatch.setattr(layer._engine, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stream.step(draw(2, 5))
    np.testing.assert_array_equal(stream.state.h, before.h)
    np.testing.assert_array_equal(stream.state.c, before.c)


def test_a_run_interrupted_between_two_pieces_leaves_the_state(
    make_compiled: Maker, draw: Draw, monkeypatch
) -> None:
    monkeypatch.setattr(compiled, "PIECE_FLOATS", 1)  # pieces of 64 steps
    layer = make_compiled(5, 9, 2, seed=0)
    stream = layer.stream(2)
    stream.step(draw(2, 5))
    before = stream.state
    run, calls = layer._engine._run, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(*arguments)

    monkeypatch.setattr(layer._engine, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stream.run(draw(200, 2, 5))
    assert len(calls) == 2
    np.testing.assert_array_equal(stream.state.h, before.h)
    np.testing.assert_array_equal(stream.state.c, before.c)


def test_a_stream_outlives_its_layer(make: Maker, draw: Draw) -> None:
    layer = make(5, 9, seed=0)
    x = draw(2, 5)
    expected = layer.stream(2).step(x).copy()
    stream = layer.stream(2)
    del layer
    junk = [np.ones(500, np.float32) for _ in range(200)]
    np.testing.assert_array_equal(stream.step(x), expected)
    del junk


def test_repr(make: Maker) -> None:
    assert "batch_size=3" in repr(make(5, 9).stream(3))


# ---- groups ----------------------------------------------------------------------------------------


def group_of(make: Maker, member, batches, **named) -> tuple[fr.StreamGroup, list[fr.Stream]]:
    """A group, and streams like its own that are stepped alone."""
    cell, chosen = member
    layer = make(5, 36, 2, cell=cell, seed=0, **named, **chosen)
    pairs = [(layer.stream(batch), layer.stream(batch)) for batch in batches]
    return fr.StreamGroup([one for one, _ in pairs]), [other for _, other in pairs]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_group_is_its_streams(make_compiled: Maker, member, draw: Draw, threads: int) -> None:
    batches = (1, 3, 1, 7)
    group, alone = group_of(make_compiled, member, batches, threads=threads)
    rows = np.cumsum((0, *batches))
    for number, stream in enumerate(group.streams):  # they were somewhere before
        for _ in range(number):
            x = draw(batches[number], 5)
            stream.step(x)
            alone[number].step(x)
    for step in range(6):
        x = draw(group.batch_size, 5)
        y = group.step(x)
        for first, last, stream in zip(rows, rows[1:], alone, strict=False):
            assert y[first:last].tobytes() == stream.step(x[first:last]).tobytes()
        if step == 3:  # and alone in between
            x = draw(3, 5)
            assert group.streams[1].step(x).tobytes() == alone[1].step(x).tobytes()
        for one, other in zip(group.streams, alone, strict=True):
            for array, expected in zip(one.state, other.state, strict=True):
                assert array.tobytes() == expected.tobytes()


def test_a_group_of_the_specification(member, draw: Draw) -> None:
    cell, chosen = member
    layer = cell(5, 36, 2, backend="numpy", seed=0, **chosen)
    one, two, other = layer.stream(2), layer.stream(), layer.stream(3)
    group = fr.StreamGroup((one, two))
    for _ in range(3):
        x = draw(3, 5)
        np.testing.assert_allclose(group.step(x), other.step(x), rtol=1e-5, atol=1e-6)
    for array, second, both in zip(one.state, two.state, other.state, strict=True):
        np.testing.assert_allclose(array, both[:, :2], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(second, both[:, 2:], rtol=1e-5, atol=1e-6)


def test_negative_control_rows_of_a_group_in_another_order_differ(make: Maker, draw: Draw) -> None:
    group, alone = group_of(make, (fr.LSTM, {}), (1, 1))
    x = draw(2, 5)
    y = group.step(x)
    assert not np.allclose(y[:1], alone[0].step(x[1:]))
    assert not np.allclose(group.streams[0].state.c, group.streams[1].state.c)


def test_what_a_group_shows_and_reads(make: Maker, draw: Draw) -> None:
    group, alone = group_of(make, (fr.LSTM, {}), (1, 2))
    assert (group.batch_size, group.input.shape, group.output.shape) == (3, (3, 5), (3, 36))
    assert "2 streams" in repr(group) and "batch_size=3" in repr(group)
    group.input[...] = draw(3, 5)
    y = group.step()
    assert y is group.output
    np.testing.assert_allclose(y[:1], alone[0].step(group.input[:1]), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="read-only"):
        y[0] = 0
    assert not group.streams[0].output.any(), "a stream's output is that of its own steps"
    with pytest.raises(TypeError, match="a StreamGroup cannot be copied or pickled"):
        copy.copy(group)
    square = make(36, 36, seed=0)
    group, other = fr.StreamGroup([square.stream(), square.stream()]), square.stream(2)
    y = group.step(draw(2, 36))
    other.reset([np.concatenate(pair, axis=1) for pair in zip(*(s.state for s in group.streams))])
    for _ in range(3):
        copied = y.copy()
        y = group.step(y)
        np.testing.assert_allclose(y, other.step(copied), rtol=0, atol=1e-6)


def test_a_bad_step_of_a_group_changes_nothing(make: Maker, draw: Draw) -> None:
    group, _ = group_of(make, (fr.LSTM, {}), (1, 2))
    before = [stream.state for stream in group.streams]
    for bad, error, message in (
        (draw(2, 5), ValueError, r"x must have shape \(3, 5\), got \(2, 5\)"),
        (draw(5, 3).T, ValueError, "x must be C-contiguous"),
        (draw(3, 5).astype(np.float64), TypeError, "x must be float32, got float64"),
    ):
        with pytest.raises(error, match=message):
            group.step(bad)
    for stream, state in zip(group.streams, before, strict=True):
        np.testing.assert_array_equal(stream.state.c, state.c)


def test_a_busy_stream_stops_its_group_and_a_busy_group_its_streams(
    make: Maker, draw: Draw
) -> None:
    group, _ = group_of(make, (fr.LSTM, {}), (1, 1, 1))
    x = draw(3, 5)
    for stream in group.streams:
        before = [other.state for other in group.streams]
        assert lib.fr_stream_take(stream._handle) == lib.FR_OK
        for call in (group.step, lambda: group.step(x), lambda: group.step(x.view(Subclass))):
            with pytest.raises(fr.StreamBusyError, match="a stream of this group is in use"):
                call()
        lib.fr_stream_release(stream._handle)
        for other, state in zip(group.streams, before, strict=True):  # and the others are free
            np.testing.assert_array_equal(other.state.c, state.c)
    assert lib.fr_stream_take(group._handle) == lib.FR_OK
    for stream in group.streams:
        with pytest.raises(fr.StreamBusyError, match="this stream is in use"):
            stream.step(x[:1])
    with pytest.raises(fr.StreamBusyError):
        group.step(x)
    with pytest.raises(fr.StreamBusyError):
        fr.StreamGroup(group.streams[1:]).step(x[1:])
    lib.fr_stream_release(group._handle)
    group.step(x)
    group.streams[0].step(x[:1])


def test_bad_groups(draw: Draw) -> None:
    layer, twin = fr.GRU(3, 5, seed=0), fr.GRU(3, 5, seed=0)
    one, two = layer.stream(), layer.stream()
    for streams, error, message in (
        ([], ValueError, "streams must be at least one, got none"),
        (one, TypeError, "streams must be a list or tuple of streams, not Stream"),
        ([one, "two"], TypeError, r"streams\[1\] must be a Stream, not str"),
        ([one, layer], TypeError, r"streams\[1\] must be a Stream, not GRU"),
        ([one, two, one], ValueError, r"streams must differ: streams\[2\] is there twice"),
        ([one, twin.stream()], ValueError, r"of one layer, .*streams\[1\] is of another"),
    ):
        with pytest.raises(error, match=message):
            fr.StreamGroup(streams)


def test_a_step_of_a_group_allocates_nothing(make_compiled: Maker, draw: Draw) -> None:
    group, _ = group_of(make_compiled, (fr.LSTM, {}), (1, 2, 1), threads=2)
    x = draw(4, 5)
    assert_allocates_nothing(lambda: group.step(x), group.step)


def test_a_group_outlives_its_streams_and_layer(make: Maker, draw: Draw) -> None:
    x = draw(2, 5)
    group, alone = group_of(make, (fr.LSTM, {}), (1, 1))
    del alone
    expected = group_of(make, (fr.LSTM, {}), (1, 1))[0].step(x).copy()
    gc.collect()
    junk = [np.ones(500, np.float32) for _ in range(200)]
    np.testing.assert_array_equal(group.step(x), expected)
    del junk


def test_some_rows_are_reset(
    make_recording: Maker, member: tuple[type[fr.Layer], dict[str, Any]], draw: Draw
) -> None:
    """A stream whose rows are reset between steps gives what the layer gives with resets before these steps."""
    cell, chosen = member
    layer = make_recording(5, 12, 2, cell=cell, seed=1, **chosen)
    x, resets = draw(6, 3, 5), np.zeros((6, 3), bool)
    resets[2, 1] = resets[4] = True
    resets[4, 0] = False
    y, after = layer(x, resets=resets)
    stream = layer.stream(3)
    for x_t, y_t, mask in zip(x, y, resets, strict=True):
        stream.reset(rows=mask)
        np.testing.assert_allclose(stream.step(x_t), y_t, rtol=0, atol=1e-6)
    for values, expected in zip(stream.state, after, strict=True):
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-6)
    assert not np.allclose(layer(x)[0], y)

    given = [array + 1 for array in stream.state]
    kept = stream.state
    stream.reset(given, rows=np.array([False, True, False]))
    for values, old, new in zip(stream.state, kept, given, strict=True):
        np.testing.assert_array_equal(values[:, [0, 2]], old[:, [0, 2]])
        np.testing.assert_array_equal(values[:, 1], new[:, 1])
    for rows, error in (
        (np.ones(3), TypeError),
        ([True] * 3, TypeError),
        (np.ones(2, bool), ValueError),
    ):
        with pytest.raises(error, match="rows must"):
            stream.reset(rows=rows)
