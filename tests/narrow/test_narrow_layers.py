"""Layers with narrow weights: right for the weights that they store, and the same bits however a computation is cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import FAMILY, Draw, Maker, exact
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fusedrnn as fr
from fusedrnn.engines.native import isas
from fusedrnn.kernels.integers import as_integers
from fusedrnn.narrowing import INTEGERS, WEIGHT_DTYPES, Narrow

NARROW = WEIGHT_DTYPES[1:]

#: As for float32 weights: differences to float64 that rounding explains over a few dozen steps.
TOLERANCE = 3e-6
#: What integers of 15 bits for x and h add to that, and those of 8 bits.
NEAR = {"int8": 1e-3, "w8a7": 0.2}

Member = tuple[type[fr.Layer], dict[str, Any]]


@pytest.fixture(params=isas())
def make_c(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Maker:
    from conftest import Target

    return Maker(Target("c", request.param), monkeypatch)


few = settings(
    max_examples=min(3, settings.default.max_examples),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SIZES = {
    "steps": st.integers(2, 12),
    "batch": st.sampled_from([1, 1, 2, 3, 8, 13]),
    "inputs": st.integers(1, 20),
    "hidden": st.sampled_from([6, 12, 33, 66]),  # multiples of every number of modules
    "layers": st.integers(1, 2),
    "bidirectional": st.booleans(),
    "weight_dtype": st.sampled_from(NARROW),
    "seed": st.integers(0, 2**31),
}


def same_bits(a: np.ndarray, b: np.ndarray) -> None:
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()


def same(pair: Any, other: Any) -> None:
    same_bits(pair[0], other[0])
    for array, values in zip(pair[1], other[1], strict=True):
        same_bits(array, values)


def assert_right(layer: fr.Layer, x: np.ndarray, lengths: np.ndarray | None = None) -> None:
    y, after = layer(x, None, lengths)
    true_y, true_after = exact(layer)(x.astype(np.float64), None, lengths)
    near = NEAR.get(layer.weight_dtype, TOLERANCE)
    np.testing.assert_allclose(y, true_y, rtol=near, atol=near)
    for values, true_values in zip(after, true_after, strict=True):
        np.testing.assert_allclose(values, true_values, rtol=near, atol=near)


def sums_of_integers(layer: fr.Layer, x: np.ndarray) -> np.ndarray:
    """What an RNN gives that only adds up W x, of integers: in NumPy's integers, and float32 for the step."""
    W = layer._weights["weight_ih_l0"].values.astype(np.int64)
    q, step = as_integers(x, layer.weight_dtype)
    slices = range(0, x.shape[-1], 1024)
    parts = [q[..., k : k + 1024].astype(np.int64) @ W[:, k : k + 1024].T for k in slices]
    total = np.float32(0)
    for part in parts:
        total = total + part.astype(np.float32)
    return step * layer._weights["weight_ih_l0"].scales * total


@pytest.mark.parametrize("weight_dtype", INTEGERS)
@pytest.mark.parametrize("inputs", [1, 5, 16, 33, 1027])
def test_integer_sums_are_those_of_numpy(
    make_c: Maker, inputs: int, weight_dtype: str, draw: Draw
) -> None:
    random = np.random.default_rng(inputs)
    weights = random.integers(-127, 128, (41, inputs)).astype(np.float32)
    weights[:, 0] = 127  # the scales are 1
    arrays = {"weight_ih_l0": weights, "weight_hh_l0": np.zeros((41, 41), np.float32)}
    layer = make_c.from_weights(
        arrays, cell=fr.RNN, activation="identity", weight_dtype=weight_dtype
    )
    x = draw(3, 5, inputs) * np.float32([[1], [1e-3], [1e6], [0], [1e-35]])
    np.testing.assert_array_equal(layer(x)[0], sums_of_integers(layer, x))
    weights[3] = np.roll(weights[3], 1)  # negative control
    if inputs > 1:
        assert (layer(x)[0] != sums_of_integers(made_of(layer, weights), x)).any()


def made_of(layer: fr.Layer, weights: np.ndarray) -> fr.Layer:
    return layer.with_weights({**layer.weights, "weight_ih_l0": weights})


@pytest.mark.parametrize("weight_dtype", INTEGERS)
def test_a_step_of_integers_is_that_of_its_specification(
    make_c: Maker, member: Member, weight_dtype: str, draw: Draw
) -> None:
    """Step by step from the same state, so that x and h are the same integers."""
    cell, chosen = member
    layer = make_c(7, 12, cell=cell, seed=1, weight_dtype=weight_dtype, **chosen)
    wide = {name: array.astype(np.float64) for name, array in layer.weights.items()}
    more = {"backend": "numpy", "dtype": "float64", "weight_dtype": weight_dtype}
    specification = cell.from_weights(wide, **chosen, **more)
    # What a second product reads is not the same in float32 and float64: its integers may be one off.
    near = (
        1e-4 if layer.architecture.proj_size or layer.architecture.reset == "before" else TOLERANCE
    )
    state = None
    for x in 3 * draw(9, 1, 4, 7):
        given_state = state and tuple(
            each.astype(np.float64) if each.dtype == np.float32 else each for each in state
        )
        _, true = specification(x.astype(np.float64), given_state)
        _, state = layer(x, state)
        for values, true_values in zip(state, true, strict=True):
            np.testing.assert_allclose(values, true_values, rtol=near, atol=near)


@few
@given(**SIZES, threads=st.integers(2, 5))
def test_right_and_the_same_bits_however_it_is_cut(
    make_c: Maker,
    member: Member,
    steps,
    batch,
    inputs,
    hidden,
    layers,
    bidirectional,
    weight_dtype,
    seed,
    threads,
) -> None:
    cell, chosen = member
    sizes = (inputs, hidden, layers)
    more = {"bidirectional": bidirectional, "seed": seed, **chosen}
    layer = make_c(*sizes, cell=cell, weight_dtype=weight_dtype, **more)
    several = make_c(*sizes, cell=cell, weight_dtype=weight_dtype, threads=threads, **more)
    random = np.random.default_rng(seed)
    x = random.standard_normal((steps, batch, inputs)).astype(np.float32)
    lengths = random.integers(0, steps + 1, batch)
    assert_right(layer, x)
    assert_right(layer, x, lengths)
    y, after = layer(x)
    same(several(x), (y, after))
    same(several(x, after, lengths), layer(x, after, lengths))
    row = int(random.integers(batch))
    same_bits(layer(np.ascontiguousarray(x[:, row : row + 1]))[0], y[:, row : row + 1])
    if bidirectional:
        return
    at = int(random.integers(1, steps))
    same(several(x[at:], layer(x[:at])[1]), (y[at:], after))
    stream = layer.stream(batch)
    for x_t, y_t in zip(x, y, strict=True):
        same_bits(stream.step(x_t), y_t)
    same((y, stream.state), (y, after))
    resets = random.random((steps, batch)) < 0.3
    same(several(x, resets=resets), layer(x, resets=resets))


#: Those that multiply, then add, round twice.
FUSED = [isa for isa in isas() if isa != "baseline"]


@pytest.mark.skipif(
    len(FUSED) < 2, reason="needs two instruction sets with FMA, as AVX2 and AVX-512"
)
@pytest.mark.parametrize("weight_dtype", NARROW)
def test_the_same_bits_on_every_instruction_set_with_fma(
    weight_dtype: str, member: Member, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, chosen = member
    found, x = [], draw(9, 3, 7)
    for isa in FUSED:
        monkeypatch.setenv("FUSEDRNN_ISA", isa)
        found.append(cell(7, 33, 2, seed=1, weight_dtype=weight_dtype, **chosen)(x))
    for other in found[1:]:
        same(other, found[0])


@pytest.mark.parametrize("weight_dtype", NARROW)
@pytest.mark.parametrize("name", ["lstm-projection", "gru", "gru-before", "clockwork"])
def test_negative_control_rows_of_scales_or_weights_one_off_fail(
    make_c: Maker, name: str, weight_dtype: str, draw: Draw
) -> None:
    cell, chosen = FAMILY[name]
    layer = make_c(5, 12, cell=cell, seed=1, weight_dtype=weight_dtype, **chosen)
    x = draw(9, 3, 5)
    assert_right(layer, x)
    true_y, _ = exact(layer)(x.astype(np.float64))
    kept = dict(layer._weights)
    for matrix in ("weight_ih_l0", "weight_hh_l0"):
        one = kept[matrix]
        assert isinstance(one, Narrow)
        turned = (
            Narrow(weight_dtype, np.roll(one.values, 1, axis=0))
            if one.scales is None
            else Narrow(weight_dtype, one.values, np.roll(one.scales, 1))
        )
        wrong = layer.with_weights(layer.weights)
        wrong._engine = layer._engine.with_weights({**kept, matrix: turned})
        with pytest.raises(AssertionError):
            np.testing.assert_allclose(wrong(x)[0], true_y, rtol=TOLERANCE, atol=TOLERANCE)


def copied(make: Maker, matrix: np.ndarray, weight_dtype: str) -> np.ndarray:
    """A matrix as a layer's y: W x of unit vectors, without anything else."""
    units, inputs = matrix.shape
    weights = {"weight_ih_l0": matrix, "weight_hh_l0": np.zeros((units, units), np.float32)}
    layer = make.from_weights(
        weights, cell=fr.RNN, activation="identity", weight_dtype=weight_dtype
    )
    x = np.eye(inputs, dtype=np.float32)
    return np.concatenate([layer(x[None])[0][0], layer(x[:, None])[0][:, 0]])


@pytest.mark.parametrize("weight_dtype", ["float16", "bfloat16"])
def test_every_number_of_a_type_is_widened_exactly(make_c: Maker, weight_dtype: str) -> None:
    bits = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    numbers = Narrow(weight_dtype, bits).widened()
    # The kernels flush what is subnormal in float32.
    least = 2.0**-14 if weight_dtype == "float16" else 2.0**-126
    numbers[~np.isfinite(numbers) | (np.abs(numbers) < least)] = 0
    expected = np.concatenate([numbers.T, numbers.T])
    np.testing.assert_array_equal(copied(make_c, numbers, weight_dtype), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("weight_dtype", NARROW)
def test_nan_and_inf_in_x_go_through(
    make_c: Maker, weight_dtype: str, bad: float, draw: Draw
) -> None:
    weights = {name: array / 4 for name, array in fr.RNN(5, 12, seed=1).weights.items()}
    weights["weight_ih_l0"][3] = 0  # its scale is 1
    for cell, more in ((fr.RNN, weights), (fr.LSTM, None)):
        layer = (
            make_c.from_weights(more, cell=cell, activation="identity", weight_dtype=weight_dtype)
            if more
            else make_c(5, 12, cell=cell, seed=1, weight_dtype=weight_dtype)
        )
        x = draw(6, 2, 5)
        clean, _ = layer(x)
        x[2, 1, 3] = bad
        y, _ = layer(x)
        same_bits(y[:, :1], clean[:, :1])
        same_bits(y[:2], clean[:2])
        assert np.isnan(y[3:, 1]).all() if np.isnan(bad) or more else True
        assert np.isnan(y[2, 1]).any() or bad == np.inf


# ---- what a narrow layer is ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight_dtype", "bytes_per_weight"), list(zip(NARROW, (2, 2, 1, 1), strict=True))
)
def test_memory_is_a_half_or_a_quarter(
    make_c: Maker, weight_dtype: str, bytes_per_weight: int
) -> None:
    wide = make_c(64, 128, seed=0)
    layer = wide.narrow(weight_dtype)
    matrices = sum(array.size for array in wide.weights.values() if array.ndim == 2)
    vectors = 6 * 4 * 128 * 4  # biases, scales and sums of both matrices, and what lines leave free
    assert matrices * 4 < panel_bytes(wide) < matrices * 4 + vectors
    assert matrices * bytes_per_weight < panel_bytes(layer) < matrices * bytes_per_weight + vectors
    kept = sum(array.nbytes for array in layer._weights.values())
    assert matrices * bytes_per_weight < kept < matrices * bytes_per_weight + vectors


def panel_bytes(layer: fr.Layer) -> int:
    return layer._engine._alive[1].nbytes  # type: ignore[attr-defined]


@pytest.mark.parametrize("weight_dtype", NARROW)
def test_narrow_is_the_constructor_s_weight_dtype(
    make_c: Maker, member: Member, weight_dtype: str, draw: Draw
) -> None:
    cell, chosen = member
    wide = make_c(5, 12, cell=cell, seed=1, batch_first=True, threads=2, **chosen)
    small = wide.narrow(weight_dtype)
    made = make_c(
        5, 12, cell=cell, seed=1, batch_first=True, threads=2, weight_dtype=weight_dtype, **chosen
    )
    x = draw(3, 9, 5)
    same(small(x), made(x))
    assert (wide.weight_dtype, small.weight_dtype) == ("float32", weight_dtype)
    assert repr(small) == repr(made) and f"weight_dtype='{weight_dtype}'" in repr(small)
    assert (small.batch_first, small.threads, small.isa) == (True, 2, wide.isa)
    trained = wide.with_weights({name: array * 2 for name, array in wide.weights.items()})
    twice = small.with_weights({name: array * 2 for name, array in wide.weights.items()})
    assert twice.weight_dtype == weight_dtype
    same(twice(x), trained.narrow(weight_dtype)(x))
    for name, array in small.weights.items():
        assert array.dtype == np.float32 and not array.flags.writeable
        if array.ndim == 1:
            same_bits(array, wide.weights[name])


@pytest.mark.parametrize("weight_dtype", ["float16", "bfloat16"])
def test_numpy_computes_with_the_widened_weights(
    weight_dtype: str, member: Member, draw: Draw
) -> None:
    cell, chosen = member
    for dtype in ("float32", "float64"):
        small = cell(
            5, 12, seed=1, backend="numpy", dtype=dtype, weight_dtype=weight_dtype, **chosen
        )
        wide = cell.from_weights(
            small.weights,
            backend="numpy",
            dtype=dtype,
            **{name: value for name, value in chosen.items() if name != "proj_size"},
        )
        x = draw(9, 3, 5).astype(dtype)
        same(small(x), wide(x))
        same_bits(small.with_weights(small.weights)(x)[0], small(x)[0])


def test_the_initial_state_stays(draw: Draw) -> None:
    layer = fr.GRU(5, 6, seed=1, initial_state=(draw(1, 6),))
    small = layer.narrow("int8")
    assert small.initial_state is not None and layer.initial_state is not None
    same_bits(small.initial_state.h, layer.initial_state.h)


@pytest.mark.parametrize("weight_dtype", NARROW)
def test_groups_of_narrow_streams(make_c: Maker, weight_dtype: str, draw: Draw) -> None:
    layer = make_c(5, 12, seed=1, weight_dtype=weight_dtype)
    streams = [layer.stream() for _ in range(3)]
    x = draw(7, 3, 5)
    y, _ = layer(x)
    group = fr.StreamGroup(streams)
    for x_t, y_t in zip(x, y, strict=True):
        same_bits(np.asarray(group.step(x_t)), y_t)


@pytest.mark.parametrize("weight_dtype", NARROW)
def test_gradients_are_those_at_the_widened_weights(
    make_c: Maker, member: Member, weight_dtype: str, draw: Draw
) -> None:
    cell, chosen = member
    layer = make_c(7, 12, cell=cell, seed=1, weight_dtype=weight_dtype, **chosen)
    # With one step x and h are the same integers in float32 and float64, and no sum is near a jump of a derivative.
    steps = 1 if weight_dtype in INTEGERS else 9
    x, dy = draw(steps, 4, 7), draw(steps, 4, layer.architecture.output_size)
    y, state, tape = layer.record(x)
    same((y, state), layer(x))
    found = tape.backward(dy)
    if weight_dtype in INTEGERS:  # straight through the integers of x and h
        wide = {name: array.astype(np.float64) for name, array in layer.weights.items()}
        more = {"backend": "numpy", "dtype": "float64", "weight_dtype": weight_dtype}
        true = (
            cell.from_weights(wide, **chosen, **more)
            .record(x.astype(np.float64))[2]
            .backward(dy.astype(np.float64))
        )
        near = 1e-4 if layer.architecture.proj_size else 10 * TOLERANCE
    else:
        true = make_c.from_weights(layer.weights, cell=cell, **chosen).record(x)[2].backward(dy)
        near = 0 if make_c.target.isa != "baseline" else 1e-5
    for name, gradient in {**true.weights, "x": true.x}.items():
        mine = found.x if name == "x" else found.weights[name]
        norm = np.linalg.norm(gradient)
        assert np.linalg.norm(mine - gradient) <= near * norm, name


@pytest.mark.parametrize("weight_dtype", INTEGERS)
def test_weights_learn_through_a_narrow_layer(weight_dtype: str) -> None:
    """As docs/narrow.md trains: float32 weights get the gradients of a layer that has them rounded."""
    random = np.random.default_rng(0)
    teacher, learner = fr.LSTM(4, 8, seed=1), fr.LSTM(4, 8, seed=2)
    weights, narrow, losses = dict(learner.weights), learner.narrow(weight_dtype), []
    for _ in range(150):
        x = random.standard_normal((20, 16, 4)).astype(np.float32)
        narrow = narrow.with_weights(weights)
        y, _, tape = narrow.record(x)
        error = y - teacher(x)[0]
        losses.append(np.mean(error**2))
        gradients = tape.backward(2 / error.size * error).weights
        weights = {name: array - 20 * gradients[name] for name, array in weights.items()}
    assert losses[-1] < losses[0] / 20


@pytest.mark.parametrize("weight_dtype", NARROW)
def test_what_narrow_layers_do_not_do(weight_dtype: str, draw: Draw) -> None:
    layer = fr.LSTM(3, 4, weight_dtype=weight_dtype)
    with pytest.raises(ValueError, match=r"weight_hh_l0\[0, 0\] = nan"):
        layer.with_weights({**layer.weights, "weight_hh_l0": np.full((16, 4), np.nan, "f4")})
