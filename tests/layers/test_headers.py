"""NumPy lets anyone change an array's shape, strides and dtype in place: no layer or stream depends on those of others."""

from __future__ import annotations

import pickle
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from time import monotonic

import numpy as np
import pytest
from conftest import Draw, Maker

import fusedrnn as fr


def reached(array: object) -> Iterator[np.ndarray]:
    """An array, and the arrays whose memory it shows."""
    while isinstance(array, np.ndarray):
        yield array
        array = array.base


def spoil(array: np.ndarray) -> None:
    """Change all that NumPy lets one change of an array and of those behind it."""
    for each in reached(array):
        for name, value in (("shape", -1), ("dtype", np.int16), ("strides", (0,))):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                try:
                    setattr(each, name, value)
                except (AttributeError, ValueError, TypeError):
                    pass
        with pytest.raises(ValueError):
            each.resize(10**6, refcheck=False)


def test_the_input_of_a_stream(make: Maker, draw: Draw) -> None:
    layer = make(6, 6, 2, seed=0)
    stream, twin = layer.stream(2), layer.stream(2)
    x = draw(2, 6)
    for _ in range(3):
        spoil(stream.input)
        assert (stream.batch_size, stream.input.shape, stream.input.dtype) == (2, (2, 6), "f4")
        stream.input[...] = twin.input[...] = x
        np.testing.assert_array_equal(stream.step(), twin.step())
        np.testing.assert_array_equal(stream.step(x), twin.step(x))
    stream.input.shape = (-1,)
    with pytest.raises(ValueError, match=r"x .*\(steps, 2, 6\)"):
        stream.run(draw(5, 12, 6))
    np.testing.assert_array_equal(stream.run(x[None]), twin.run(x[None]))


def test_the_output_of_a_step(make: Maker, draw: Draw) -> None:
    layer = make(6, 6, seed=0)
    x = draw(4, 6)
    for grouped in (False, True):
        stream, twin = (
            fr.StreamGroup([layer.stream(3), layer.stream()]) if grouped else layer.stream(4)
            for _ in range(2)
        )
        for given in (None, x, x.view(Other)):
            expected, y = twin.step(given), stream.step(given)
            assert y is stream.output
            np.testing.assert_array_equal(y, expected)
            spoil(y)
            assert stream.output.shape == (4, 6)
            np.testing.assert_array_equal(stream.output, expected)
            y = stream.output
            spoil(y)
            y, expected = stream.step(x), twin.step(x)
            assert (y.shape, y.dtype, y.flags.writeable) == ((4, 6), "f4", False)
            np.testing.assert_array_equal(y, expected)
            np.testing.assert_array_equal(stream.step(y), twin.step(expected))


class Other(np.ndarray):
    """An array that C does not take."""


def test_the_weights_of_a_layer(make: Maker, draw: Draw) -> None:
    layer = make(3, 5, 2, seed=0)
    x = draw(4, 2, 3)
    y, _ = layer(x)
    before = {name: array.copy() for name, array in layer.weights.items()}
    for array in layer.weights.values():
        spoil(array)
    for name, array in layer.weights.items():
        np.testing.assert_array_equal(array, before[name])
    twin = pickle.loads(pickle.dumps(layer))
    for one in (layer, twin, make.from_weights(layer.weights)):
        np.testing.assert_array_equal(one(x)[0], y)


def test_what_a_call_returns_is_the_callers(make: Maker, draw: Draw) -> None:
    layer = make(3, 5, 2, seed=0)
    x = draw(4, 2, 3)
    expected, after = layer(x)
    state: tuple[np.ndarray, ...] | None = None
    for _ in range(4):
        y, state = layer(x)
        np.testing.assert_array_equal(y, expected)
        for array, values in zip(state, after, strict=True):
            np.testing.assert_array_equal(array, values)
        for array in (y, *state):
            array.shape = (-1,)
            array[...] = np.nan
    copies = tuple(array.copy() for array in after)
    for _ in range(4):  # a state that goes in is not written to
        _, other = layer(x, after)
        for array, values, new in zip(after, copies, other, strict=True):
            np.testing.assert_array_equal(array, values)
            assert not np.shares_memory(array, new)


class Meddling(tuple):
    """A state that does something while it is looked at."""

    __slots__ = ()
    action: Callable[[], None]

    def __len__(self) -> int:
        type(self).action()
        return super().__len__()

    def __iter__(self) -> Iterator[np.ndarray]:
        type(self).action()
        return super().__iter__()


def test_a_state_that_reshapes_x(make: Maker, draw: Draw) -> None:
    layer = make(8, 5, seed=0)
    x, state = draw(10, 4, 8), (draw(1, 4, 5), draw(1, 4, 5))
    y, _ = layer(x, state)
    for shape in ((40, 1, 8), (1, 320), (320, 1, 1)):
        given = x.copy()

        def action(given: np.ndarray = given, shape: tuple[int, ...] = shape) -> None:
            given.shape = shape

        Meddling.action = staticmethod(action)
        np.testing.assert_array_equal(layer(given, Meddling(state))[0], y)
        assert given.shape == shape


def test_lengths_that_reshape_x_and_out(make: Maker, draw: Draw) -> None:
    layer = make(8, 5, seed=0)
    x = draw(10, 4, 8)
    y, _ = layer(x, lengths=[10, 3, 0, 4])

    class Lengths:
        def __array__(self, *_: object, **__: object) -> np.ndarray:
            given.shape = (40, 1, 8)
            out.shape = (200,)
            return np.array([10, 3, 0, 4])

    given, out = x.copy(), np.zeros_like(y)
    found, _ = layer(given, lengths=Lengths(), out=out)
    assert found is out and given.shape == (40, 1, 8)
    np.testing.assert_array_equal(out.reshape(y.shape), y)


@pytest.mark.parametrize("stepped", [False, True])
def test_another_thread_reshapes_x(make: Maker, draw: Draw, stepped: bool) -> None:
    """The header is read while nobody else can change it: the result is of the one shape or of the other."""
    layer = make(6, 5, seed=0)
    shapes = ((6, 6), (36,), (2, 18)) if stepped else ((4, 3, 6), (3, 4, 6), (72,))
    x = draw(*shapes[0])
    call = layer.stream(6).step if stepped else (lambda x: layer(x)[0])
    expected = [] if stepped else [layer(x.reshape(shape))[0] for shape in shapes[:2]]
    stop = threading.Event()

    def reshape() -> None:
        while not stop.is_set():
            for shape in shapes:
                x.shape = shape

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=reshape)
    thread.start()
    try:
        end = monotonic() + 0.2
        while monotonic() < end:
            try:
                y = call(x)
            except ValueError:
                continue
            if stepped:
                assert y.shape == (6, 5)
            else:
                assert any(np.array_equal(y, each) for each in expected)
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)


VIEWS = {
    "a part of wider rows": lambda x: np.concatenate([x, x], axis=2)[:, :, : x.shape[2]],
    "every second step": lambda x: np.repeat(x, 2, axis=0)[::2],
    "every second row": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "backwards": lambda x: x[::-1].copy()[::-1],
    "other axes": lambda x: x.swapaxes(0, 1).copy().swapaxes(0, 1),
    "one row for all": lambda x: np.broadcast_to(x[:1, :1], x.shape),
}


@pytest.mark.parametrize("backend", ["c", "numba", "numpy"])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("form", ["batch", "batch_first", "one"])
def test_calls_of_one_shape_and_other_strides_do_not_meet(
    view: str, backend: str, form: str, draw: Draw
) -> None:
    first = form == "batch_first"
    layer = fr.LSTM(5, 7, seed=0, backend=backend, batch_first=first)
    fresh = fr.LSTM(5, 7, seed=0, backend=backend, batch_first=first)
    x = draw(9, 3, 5)
    seen = VIEWS[view](x)
    if form == "one":
        x, seen = x[:, 0].copy(), seen[:, 0]
    state = layer(x)[1]
    for _ in range(3):
        for array in (seen, seen, x, x, seen, x):
            copied = np.ascontiguousarray(array)
            expected = fresh(copied, tuple(each.copy() for each in state))[0]
            np.testing.assert_allclose(layer(array, state)[0], expected, atol=1e-6)
