"""The library's promises, as properties: the same bits however a computation is cut, and what threads may do."""

from __future__ import annotations

import os
import threading
import warnings

import numpy as np
import pytest
from conftest import Draw, Maker
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fusedrnn as fr


def same_bits(a: np.ndarray, b: np.ndarray) -> None:
    assert a.shape == b.shape
    np.testing.assert_array_equal(a.view(np.uint32), np.ascontiguousarray(b).view(np.uint32))


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.integers(1, 12),
    batch=st.sampled_from([1, 1, 2, 3, 8, 12, 21]),  # units or rows are divided
    inputs=st.integers(1, 20),
    hidden=st.sampled_from([6, 12, 33, 66]),  # multiples of any number of modules
    layers=st.integers(1, 3),
    bidirectional=st.booleans(),
    threads=st.integers(2, 5),
    seed=st.integers(0, 2**31),
)
def test_same_bits_for_any_number_of_threads(
    make_compiled: Maker,
    member,
    steps,
    batch,
    inputs,
    hidden,
    layers,
    bidirectional,
    threads,
    seed,
) -> None:
    cell, chosen = member
    alone, several = (
        make_compiled(
            inputs,
            hidden,
            layers,
            cell=cell,
            bidirectional=bidirectional,
            threads=number,
            seed=seed,
            **chosen,
        )
        for number in (1, threads)
    )
    random = np.random.default_rng(seed)
    x = random.standard_normal((steps, batch, inputs)).astype(np.float32)
    y, after = alone(x)

    def same(pair, others) -> None:
        same_bits(pair[0], others[0])
        for array, other in zip(pair[1], others[1], strict=True):
            assert array.tobytes() == other.tobytes()

    same(several(x), (y, after))
    lengths = random.integers(0, steps + 1, batch)
    same(several(x, after, lengths), alone(x, after, lengths))
    row = slice(*sorted(random.integers(0, batch + 1, 2)))
    same_bits(several(x[:, row])[0], y[:, row])
    at = int(random.integers(0, steps + 1))
    if not bidirectional:
        middle = several(x[:at])[1]
        same(several(x[at:], middle), (y[at:], after))
        stream = several.stream(batch)
        for x_t, y_t in zip(x, y, strict=True):
            same_bits(stream.step(x_t), y_t)
        same((y, stream.state), (y, after))


def test_negative_control_another_order_of_sums_gives_other_bits(
    make_compiled: Maker, draw: Draw
) -> None:
    layer = make_compiled(40, 33, threads=2, seed=0)
    order = np.arange(40)[::-1]
    weights = {
        name: array[:, order] if "weight_ih" in name else array
        for name, array in layer.weights.items()
    }
    turned = make_compiled.from_weights(weights, threads=2)
    x = draw(9, 2, 40)
    np.testing.assert_allclose(turned(x[:, :, order])[0], layer(x)[0], rtol=0, atol=1e-6)
    with pytest.raises(AssertionError):
        same_bits(turned(x[:, :, order])[0], layer(x)[0])


def test_negative_control_other_inputs_give_other_bits(make_compiled: Maker, draw: Draw) -> None:
    layer = make_compiled(3, 5, seed=0)
    x = draw(9, 2, 3)
    nudged = x.copy()
    nudged[0, 0, 0] = np.nextafter(nudged[0, 0, 0], np.float32(9), dtype=np.float32) + np.float32(
        1e-3
    )
    with pytest.raises(AssertionError):
        same_bits(layer(nudged)[0], layer(x)[0])


def test_denormals_are_flushed_inside_and_kept_outside(make_compiled: Maker, draw: Draw) -> None:
    layer = make_compiled(3, 5, bias=False, seed=0)
    tiny = np.full((4, 1, 3), 1e-40, np.float32)
    y, state = layer(tiny, (np.full((1, 1, 5), 1e-40, np.float32),) * 2)
    assert not y.any() and not state.c.any(), "denormals inside count as zero"
    assert np.float32(1e-40) * np.float32(0.5) != 0, "the caller's mode must be restored"


def test_one_layer_in_many_threads(make_compiled: Maker, draw: Draw) -> None:
    layer = make_compiled(16, 48, 2, seed=0)
    inputs = [draw(50, 2, 16) for _ in range(4)]
    expected = [layer(x)[0] for x in inputs]
    wrong = []

    def work(x: np.ndarray, y: np.ndarray) -> None:
        for _ in range(30):
            if not np.array_equal(layer(x)[0], y):
                wrong.append(1)

    threads = [
        threading.Thread(target=work, args=pair) for pair in zip(inputs, expected, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_one_stream_in_two_threads_is_an_error(make: Maker, draw: Draw) -> None:
    layer = make(32, 200, seed=0)
    stream = layer.stream()
    x = draw(2000 if make.target.backend != "numpy" else 400, 1, 32)
    refused: list[str] = []

    def run_until_one_is_refused() -> None:
        for _ in range(200):
            if refused:
                return
            try:
                stream.run(x)
            except fr.StreamBusyError as error:
                refused.append(str(error))

    thread = threading.Thread(target=run_until_one_is_refused)
    thread.start()
    while thread.is_alive() and not refused:
        try:
            stream.step(x[0])
        except fr.StreamBusyError as error:
            refused.append(str(error))
    thread.join()
    assert refused and "another thread" in refused[0]
    stream.step(x[0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_fork(make_compiled: Maker, draw: Draw) -> None:
    layer = make_compiled(8, 24, seed=0)
    x = draw(20, 2, 8)
    y, _ = layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        os._exit(0 if np.array_equal(layer(x)[0], y) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
