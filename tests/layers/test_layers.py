"""Layers compute what the specification says: every backend and instruction set against float64."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from conftest import Draw, Maker, exact, scaled

import fusedrnn as fr
from fusedrnn.arrays import check_array

# Differences to float64 that rounding explains, for T of a few dozen: each step adds a few units in the last place,
# and the forget gate lets older ones fade. Measured: 6e-7 at H = 512.
TOLERANCE = 2e-6

# 1 and odd sizes, and both sides of every lane count and tile height there is (lanes 4, 8, 16; rows 2, 3, 6).
HIDDEN = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 65)
BATCHES = (1, 2, 3, 4, 5, 6, 7, 8, 12, 13)


def assert_matches(
    layer: fr.LSTM, x: np.ndarray, state: tuple[np.ndarray, ...] | None = None
) -> None:
    before = None if state is None else tuple(array.astype(np.float64) for array in state)
    y, after = layer(x, state)
    true_y, true_after = exact(layer)(x.astype(np.float64), before)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, true_y, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(after.h, true_after.h, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(after.c, true_after.c, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("steps", "batch", "inputs", "hidden"),
    [
        *((5, 2, 3, hidden) for hidden in HIDDEN),
        *((4, batch, 4, 19) for batch in BATCHES),
        *((6, 3, inputs, 18) for inputs in (1, 2, 3, 16, 17, 40, 73)),
        *((steps, 1, 5, 20) for steps in (1, 2, 3, 17, 200)),
    ],
)
def test_sizes(make: Maker, draw: Draw, steps: int, batch: int, inputs: int, hidden: int) -> None:
    assert_matches(make(inputs, hidden, seed=hidden), draw(steps, batch, inputs))


def test_memory_is_bounded_for_any_number_of_steps(make_compiled: Maker, draw: Draw) -> None:
    layer = make_compiled(2, 64, 3, seed=1)
    x, out = draw(60_000, 1, 2), np.empty((60_000, 1, 64), np.float32)
    layer(x[:10])
    tracemalloc.start()
    try:
        layer(x, out=out)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6e6 < out.nbytes
    np.testing.assert_array_equal(out[-1], layer.stream().run(x)[-1])


def test_more_steps_than_the_scratch_holds(make_compiled: Maker, draw: Draw) -> None:
    layer = make_compiled(2, 65, seed=1)
    assert_matches(layer, draw(700, 3, 2))


def test_batch_first_is_a_transpose(make: Maker, draw: Draw) -> None:
    layer = make(5, 9, 2, bidirectional=True, seed=4)
    turned = make.from_weights(layer.weights, batch_first=True)
    x = draw(7, 3, 5)
    y, state = layer(x)
    y_turned, state_turned = turned(np.ascontiguousarray(x.transpose(1, 0, 2)))
    np.testing.assert_array_equal(y_turned.transpose(1, 0, 2), y)
    np.testing.assert_array_equal(state_turned.c, state.c)
    assert_matches(turned, draw(3, 7, 5))


def test_two_biases_add_up(make: Maker, draw: Draw) -> None:
    layer = make(4, 6, bias="double", seed=5)
    one = dict(layer.weights)
    one["bias_ih_l0"] = one["bias_ih_l0"] + one.pop("bias_hh_l0")
    x = draw(5, 2, 4)
    np.testing.assert_array_equal(layer(x)[0], make.from_weights(one)(x)[0])


@pytest.mark.parametrize("order", ("i f o g", "i o f g", "f i g o", "g f i o"))
def test_negative_control_a_wrong_gate_order_fails(make: Maker, draw: Draw, order: str) -> None:
    layer = make(5, 9, seed=6)
    places = ["ifgo".index(gate) for gate in order.split()]
    swapped = {
        name: array.reshape(4, 9, *array.shape[1:])[places].reshape(array.shape)
        for name, array in layer.weights.items()
    }
    x = draw(7, 3, 5)
    true_y, _ = exact(layer)(x.astype(np.float64))
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(make.from_weights(swapped)(x)[0], true_y, rtol=0, atol=TOLERANCE)


def test_pytorch_names_and_shapes() -> None:
    torch = pytest.importorskip("torch")
    for layers in (1, 3):
        for bidirectional in (False, True):
            theirs = torch.nn.LSTM(5, 7, layers, bidirectional=bidirectional).state_dict()
            ours = fr.LSTM(5, 7, layers, bidirectional=bidirectional, bias="double").weights
            assert [(k, tuple(v.shape)) for k, v in theirs.items()] == [
                (k, v.shape) for k, v in ours.items()
            ]


def test_state_is_not_written_to(make: Maker, draw: Draw) -> None:
    layer = make(3, 5, seed=8)
    h, c = draw(1, 2, 5), draw(1, 2, 5)
    h_before, c_before = h.copy(), c.copy()
    x = draw(4, 2, 3)
    x_before = x.copy()
    _, state = layer(x, (h, c))
    np.testing.assert_array_equal(h, h_before)
    np.testing.assert_array_equal(c, c_before)
    np.testing.assert_array_equal(x, x_before)
    assert not np.shares_memory(state.h, h)


def test_out_is_used(make: Maker, draw: Draw) -> None:
    layer = make(3, 5, bidirectional=True, seed=9)
    x = draw(4, 2, 3)
    out = np.full((4, 2, 10), np.nan, np.float32)
    y, _ = layer(x, out=out)
    assert y is out
    np.testing.assert_array_equal(out, layer(x)[0])


@pytest.mark.parametrize("layers", (1, 2, 3))
def test_nothing_outside_the_arrays_is_touched(
    make_compiled: Maker, draw: Draw, layers: int
) -> None:
    for hidden in (1, 5, 16, 17):
        layer = make_compiled(3, hidden, layers, bidirectional=True, seed=10)
        wide = np.full((7 * 3 * 2 * hidden + 64,), 7.0, np.float32)
        out = wide[32:-32].reshape(7, 3, 2 * hidden)
        layer(draw(7, 3, 3), out=out)
        assert (wide[:32] == 7).all() and (wide[-32:] == 7).all()
        assert not (out == 7).any()


def test_strided_inputs(make: Maker, draw: Draw) -> None:
    layer = make(4, 6, seed=11)
    wide = draw(9, 6, 12)
    for x in (
        wide[::2, ::3, 2:6],  # gaps everywhere but in the last axis
        wide[:, :, ::3],  # a gap in the last axis
        wide[::-1, :, :4],  # backwards
        wide.transpose(1, 0, 2)[..., :4],
        np.broadcast_to(wide[0, 0, :4], (5, 3, 4)),
        np.asfortranarray(wide[..., :4]),
    ):
        y, contiguous = layer(x)[0], layer(np.ascontiguousarray(x))[0]
        # BLAS may sum a strided row in another order.
        atol = 1e-6 if layer.backend == "numpy" else 0
        np.testing.assert_allclose(y, contiguous, rtol=0, atol=atol)


def test_read_only_and_misaligned_inputs(make: Maker, draw: Draw) -> None:
    layer = make(4, 6, seed=12)
    x = draw(5, 2, 4)
    y = layer(x)[0]
    x.setflags(write=False)
    np.testing.assert_array_equal(layer(x)[0], y)
    store = np.zeros(x.nbytes + 1, np.uint8)
    misaligned = store[1:].view(np.float32).reshape(x.shape)
    misaligned[...] = x
    assert not misaligned.flags.aligned
    assert check_array("x", misaligned, x.shape).flags.aligned
    np.testing.assert_array_equal(layer(misaligned)[0], y)


def test_the_specification_does_not_warn(draw: Draw) -> None:
    layer = fr.LSTM(4, 20, backend="numpy", seed=13)
    x = 1e3 * draw(6, 2, 4)
    x[3, 1, 2] = np.inf
    with np.errstate(all="raise"):
        layer(x)


def test_large_inputs_saturate_without_warnings(make: Maker, draw: Draw) -> None:
    layer = make(4, 20, seed=13)
    for factor in (1e3, 1e10, 1e30, 3e38):
        x = np.sign(draw(6, 2, 4)) * np.float32(factor)
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            y, state = layer(x)
        assert np.isfinite(y).all()
        assert (np.abs(y) <= 1).all()
        assert (np.abs(state.c) <= 6).all()


@pytest.mark.parametrize("weight_scale", (1, 30))
def test_saturated_gates_match(make: Maker, draw: Draw, weight_scale: int) -> None:
    layer = make.from_weights(scaled(fr.LSTM(4, 20, seed=14), weight_scale))
    assert_matches(layer, 100 * draw(1, 2, 4))


def test_infinity_propagates(make: Maker, draw: Draw) -> None:
    layer = make(4, 21, seed=15)
    x = draw(6, 3, 4)
    x[2, 1, 3] = np.inf
    with np.errstate(invalid="ignore"):
        y, _ = layer(x)
        true_y, _ = exact(layer)(x.astype(np.float64))
    np.testing.assert_allclose(y, true_y, rtol=0, atol=TOLERANCE)


def test_nan_in_a_state_propagates(make: Maker, draw: Draw) -> None:
    layer = make(4, 21, seed=16)
    c = np.zeros((1, 1, 21), np.float32)
    c[0, 0, 20] = np.nan
    y, state = layer(draw(1, 1, 4), (np.zeros_like(c), c))
    assert np.isnan(state.c[0, 0]).tolist() == [False] * 20 + [True]
    assert np.isnan(y[0, 0, 20])


def test_error_stays_bounded_over_ten_thousand_steps(make_compiled: Maker, draw: Draw) -> None:
    layer = make_compiled(8, 24, seed=17)
    x = draw(10_000, 1, 8)
    y, _ = layer(x)
    true_y, _ = exact(layer)(x.astype(np.float64))
    error = np.abs(y - true_y).max(axis=(1, 2))
    assert error[:100].max() <= TOLERANCE
    assert error.max() <= TOLERANCE, "errors must not build up with T"


def test_weights_are_private_and_read_only(make: Maker, draw: Draw) -> None:
    given = {name: array.copy() for name, array in fr.LSTM(3, 5, seed=19).weights.items()}
    layer = make.from_weights(given)
    x = draw(4, 2, 3)
    y, _ = layer(x)
    given["weight_ih_l0"][...] = 0
    np.testing.assert_array_equal(layer(x)[0], y)
    with pytest.raises(ValueError, match="read-only"):
        layer.weights["weight_hh_l0"][...] = 0
    with pytest.raises(ValueError, match="WRITEABLE"):
        layer.weights["weight_hh_l0"].setflags(write=True)
    with pytest.raises(TypeError):
        layer.weights["weight_hh_l0"] = 0
    with pytest.raises(AttributeError):
        layer.weights = {}


def test_seed_is_reproducible() -> None:
    one, two, other = fr.LSTM(3, 5, seed=1), fr.LSTM(3, 5, seed=1), fr.LSTM(3, 5, seed=2)
    for name, array in one.weights.items():
        np.testing.assert_array_equal(array, two.weights[name])
        assert not np.array_equal(array, other.weights[name])
        assert np.abs(array).max() <= 5**-0.5
    assert not np.array_equal(
        fr.LSTM(3, 5).weights["weight_ih_l0"], fr.LSTM(3, 5).weights["weight_ih_l0"]
    )
    # The same numbers on every machine: PCG64 seeded with 1 begins with 0.51182.
    first = (2 * 0.5118216247002567 - 1) * 5**-0.5
    assert float(one.weights["weight_ih_l0"][0, 0]) == pytest.approx(first, abs=1e-8)


def test_repr_says_what_it_is(make: Maker) -> None:
    text = repr(make(3, 5, 2, bidirectional=True, bias=False))
    assert text.startswith("<LSTM(3, 5, num_layers=2, bidirectional=True, bias='none', backend=")
    assert (make.target.isa or "numpy") in text


def test_float64_is_for_numpy_alone(draw: Draw) -> None:
    layer = fr.LSTM(3, 5, dtype="float64", seed=0)
    assert layer.backend == "numpy"
    y, state = layer(draw(4, 2, 3).astype(np.float64))
    assert y.dtype == state.c.dtype == np.float64
    with pytest.raises(fr.UnsupportedError, match="float64"):
        fr.LSTM(3, 5, dtype="float64", backend="c")
