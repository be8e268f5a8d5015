"""Every cell and option, in every backend and instruction set: right, the same bits, and without surprises."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from conftest import Draw, Maker, exact, options
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fusedrnn as fr
from fusedrnn.bench.cases import CASES
from fusedrnn.cells import Activation

# Differences to float64 that rounding explains over a few dozen steps; unbounded activations scale with their state.
TOLERANCE = 3e-6

Member = tuple[type[fr.Layer], dict[str, Any]]

cut = settings(
    max_examples=min(8, settings.default.max_examples),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SIZES = {
    "steps": st.integers(1, 25),
    "batch": st.integers(1, 14),
    "inputs": st.integers(1, 20),
    # A multiple of every number of modules, above every projection.
    "hidden": st.integers(2, 14).map(lambda n: 3 * n),
    "layers": st.integers(1, 3),
    "bidirectional": st.booleans(),
    "seed": st.integers(0, 2**31),
}


def problem(
    make: Maker, member: Member, steps, batch, inputs, hidden, layers, bidirectional, seed
) -> tuple[fr.Layer, np.ndarray, list[np.ndarray], np.ndarray]:
    cell, chosen = member
    layer = make(
        inputs, hidden, layers, cell=cell, bidirectional=bidirectional, seed=seed, **chosen
    )
    random = np.random.default_rng(seed)
    x = random.standard_normal((steps, batch, inputs)).astype(np.float32)
    state = [
        random.standard_normal(array.shape).astype(np.float32) / 2
        if array.dtype.kind == "f"
        else random.integers(0, 9, array.shape)
        for array in layer._signature.start_state(batch)
    ]
    return layer, x, state, random.integers(0, steps + 1, batch)


def widened(arrays: list[np.ndarray]) -> list[np.ndarray]:
    return [array.astype(np.float64) if array.dtype.kind == "f" else array for array in arrays]


def assert_matches(layer, x, state, lengths) -> None:
    y, after = layer(x, state, lengths)
    true_y, true_after = exact(layer)(x.astype(np.float64), widened(state), lengths)
    np.testing.assert_allclose(y, true_y, rtol=TOLERANCE, atol=TOLERANCE)
    for values, true_values in zip(after, true_after, strict=True):
        np.testing.assert_allclose(values, true_values, rtol=TOLERANCE, atol=TOLERANCE)


def same_bits(a: np.ndarray, b: np.ndarray) -> None:
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()


@cut
@given(**SIZES)
def test_against_float64(make: Maker, member: Member, **sizes) -> None:
    layer, x, state, lengths = problem(make, member, **sizes)
    assert_matches(layer, x, state, None)
    assert_matches(layer, x, state, lengths)


def test_negative_control_a_wrong_gate_order_fails(make: Maker, member: Member, draw: Draw) -> None:
    cell, chosen = member
    layer = make(5, 12, cell=cell, seed=1, **chosen)
    gates = len(layer.architecture.table.gates)
    if gates == 1:  # one gate: other units instead
        weights = {
            name: array[::-1] if array.ndim == 1 else array for name, array in layer.weights.items()
        }
    else:
        turned = [*range(1, gates), 0]
        weights = {
            name: np.concatenate([np.split(array, gates)[gate] for gate in turned])
            if len(array) == gates * 12 and "peephole" not in name
            else array
            for name, array in layer.weights.items()
        }
    wrong = cell.from_weights(weights, backend=make.target.backend, **options(layer))
    x = draw(9, 3, 5)
    true_y, _ = exact(layer)(x.astype(np.float64))
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(wrong(x)[0], true_y, rtol=TOLERANCE, atol=TOLERANCE)


@cut
@given(**SIZES)
def test_same_bits_for_any_batch_place_and_length(
    make_compiled: Maker, member: Member, **sizes
) -> None:
    layer, x, state, lengths = problem(make_compiled, member, **sizes)
    y, after = layer(x, state, lengths)
    whole, _ = layer(x, state)
    for row in range(sizes["batch"]):
        one = slice(row, row + 1)
        alone = [array[:, one] for array in state]
        length = int(lengths[row])
        y_one, after_one = layer(x[:length, one], alone)
        same_bits(y_one, y[:length, one])
        assert not y[length:, row].any()
        for values, values_one in zip(after, after_one, strict=True):
            same_bits(values_one, values[:, one])
        same_bits(layer(x[:, one], alone)[0], whole[:, one])


@cut
@given(**{**SIZES, "bidirectional": st.just(False)}, data=st.data())
def test_same_bits_whole_chunked_or_stepped(
    make_compiled: Maker, member: Member, data, **sizes
) -> None:
    layer, x, before, _ = problem(make_compiled, member, **sizes)
    y, after = layer(x, before)
    at = data.draw(st.integers(0, sizes["steps"]))

    first, middle = layer(x[:at], before)
    second, end = layer(x[at:], middle)
    same_bits(np.concatenate([first, second]), y)
    stream = layer.stream(sizes["batch"])
    stream.reset(before)
    stepped = [stream.step(np.ascontiguousarray(x_t)).copy() for x_t in x[:at]]
    rest = stream.run(x[at:])
    same_bits(np.concatenate([np.stack(stepped), rest]) if stepped else rest, y)
    for values, by_chunks, by_steps in zip(after, end, stream.state, strict=True):
        same_bits(by_chunks, values)
        same_bits(by_steps, values)


@pytest.mark.parametrize(
    ("steps", "batch", "inputs", "hidden"),
    [(5, 3, 120, 120), (900, 2, 3, 64)],
    ids=["beyond the first cache", "across chunks"],
)
def test_same_bits_of_large_layers(
    make_compiled: Maker, draw: Draw, steps: int, batch: int, inputs: int, hidden: int
) -> None:
    """Their tile of one row is another one, and their input product is made in several chunks."""
    layer = make_compiled(inputs, hidden, seed=0)
    x = draw(steps, batch, inputs)
    y, after = layer(x)
    at = 5 * steps // 9 + 11 if steps > 9 else 2
    first, middle = layer(x[:at])
    second, end = layer(x[at:], middle)
    same_bits(np.concatenate([first, second]), y)
    same_bits(end.c, after.c)
    for row in range(batch):
        alone = np.ascontiguousarray(x[:, row : row + 1])
        same_bits(layer(alone)[0], y[:, row : row + 1])
        stream = layer.stream()
        same_bits(np.stack([stream.step(x_t).copy() for x_t in alone]), y[:, row : row + 1])


#: Each shape of the quick benchmark once, with its cell and options, of no more steps than tell.
BENCHMARKED = {
    (case.cell, case.options, case.input, case.hidden, case.batch, min(case.steps, 10))
    for case in CASES
    if "quick" in case.runs
}


@pytest.mark.parametrize("shape", sorted(BENCHMARKED, key=str), ids=str)
def test_benchmark_shapes(make_compiled: Maker, draw: Draw, shape: tuple[Any, ...]) -> None:
    cell, chosen, inputs, hidden, batch, steps = shape
    classes = {each.cell: each for each in (fr.RNN, fr.LSTM, fr.GRU, fr.ClockworkRNN)}
    layer = make_compiled(inputs, hidden, cell=classes[cell], seed=2, **dict(chosen))
    rows = layer.architecture.directions
    state = [
        array if array.dtype.kind == "i" else draw(*array.shape) / 2
        for array in layer._signature.start_state(batch)
    ]
    assert len(state[0]) == rows
    assert_matches(layer, draw(steps, batch, inputs), state, None)


def test_calls_that_c_checks_are_the_others(make: Maker, member: Member, draw: Draw) -> None:
    """A shape that comes again is checked in C: the same bits as for arrays that only Python takes."""
    cell, chosen = member
    for batch_first, bidirectional in ((False, True), (True, False)):
        layer = make(
            5, 12, 2, cell=cell, batch_first=batch_first, bidirectional=bidirectional, seed=10, **chosen
        )  # fmt: skip
        for shape in ((1, 1, 5), (3, 2, 5), (4, 5)):
            x = draw(*shape)
            for state in (None, layer(x)[1]):
                y, after = layer(np.repeat(x, 2, axis=-1)[..., ::2], state)
                for _ in range(4):
                    y_again, after_again = layer(x, state)
                    same_bits(y_again, y)
                    assert type(after_again) is layer.state_type
                    for values, again in zip(after, after_again, strict=True):
                        same_bits(again, values)
                if state is not None:  # of another type, or layout
                    others = (tuple(state), list(state), [np.asfortranarray(a) for a in state])
                    for other in others:
                        same_bits(layer(x, other)[0], y)
            assert bool(layer._plain.get(shape)) == (make.target.backend != "numpy")
            assert_out_is_checked(layer, x)


def assert_out_is_checked(layer: fr.Layer, x: np.ndarray) -> None:
    """Of a shape that comes again: y is written to ``out``, unless that is no array to write to."""
    y, _ = layer(x)
    out = np.full(y.shape, np.nan, np.float32)
    assert layer(x, out=out)[0] is out
    same_bits(out, y)
    read_only = out.view()
    read_only.flags.writeable = False
    both = np.zeros(x.size + y.size, np.float32)
    over = both[: x.size].reshape(x.shape)
    over[...] = x
    for x_given, other in (
        (x, read_only),
        (x, np.empty((*y.shape, 1), np.float32)[..., 0].T),
        (x, np.empty(y.shape, np.float64)),
        (over, both[x.size - 1 : x.size - 1 + y.size].reshape(y.shape)),
    ):
        with pytest.raises((TypeError, ValueError), match="out"):
            layer(x_given, out=other)
    same_bits(layer(x)[0], y)


def test_one_sequence_without_a_batch_axis(make: Maker, member: Member, draw: Draw) -> None:
    cell, chosen = member
    for batch_first in (False, True):
        layer = make(
            5, 12, 2, cell=cell, batch_first=batch_first, bidirectional=True, seed=11, **chosen
        )
        x = draw(7, 5)
        batched = x[None] if batch_first else x[:, None]
        state: Any = None
        state_batched: Any = None
        for _ in range(2):
            y, state = layer(x, state)
            y_batched, state_batched = layer(batched, state_batched)
            assert y.shape == (7, layer.architecture.output_size)
            same_bits(y, y_batched.reshape(y.shape))
            for values, others in zip(state, state_batched, strict=True):
                same_bits(values, others[:, 0])
        out = np.empty_like(y)
        assert layer(x, state, out=out)[0] is out
        same_bits(out, layer(x, state)[0])
        assert layer(draw(0, 5))[0].shape == (0, layer.architecture.output_size)
        with pytest.raises(ValueError, match=r"state\.h .*\(4, "):
            layer(x, state_batched)
        with pytest.raises(ValueError, match=r"state\.h .*\(4, 1, "):
            layer(batched, state)
        with pytest.raises(ValueError, match="lengths .*batch axis"):
            layer(x, lengths=[7])
    with pytest.raises(ValueError, match=r"x .*\(steps, 1, 5\)"):
        make(5, 12, cell=cell, **chosen).stream().run(x)


def test_step_functions(make: Maker, member: Member, draw: Draw) -> None:
    cell, chosen = member
    layer = make(5, 12, cell=cell, seed=2, **chosen)
    step = {
        fr.RNN: fr.rnn_step,
        fr.LSTM: fr.lstm_step,
        fr.GRU: fr.gru_step,
        fr.ClockworkRNN: fr.clockwork_step,
    }
    state = [array[0] for array in layer._signature.start_state(3)]
    state[0][...] = draw(*state[0].shape) / 2
    x = draw(3, 5)
    after = step[cell](x, *state, layer)
    arrays = after if isinstance(after, tuple) else (after,)
    true = step[cell](x.astype(np.float64), *widened(state), exact(layer))
    for array, true_array, before in zip(
        arrays, true if isinstance(true, tuple) else (true,), state, strict=True
    ):
        assert array.shape == before.shape
        np.testing.assert_allclose(array, true_array, rtol=TOLERANCE, atol=TOLERANCE)


def test_empty(make: Maker, member: Member, draw: Draw) -> None:
    cell, chosen = member
    layer = make(5, 12, 2, cell=cell, bidirectional=True, seed=3, **chosen)
    state = layer._signature.start_state(4)
    state[0] += 1
    for lengths in (None, [0, 0, 0, 0]):
        y, after = layer(draw(0, 4, 5), state, lengths)
        assert y.shape == (0, 4, layer.architecture.output_size)
        np.testing.assert_array_equal(after[0], state[0])
    y, after = layer(draw(3, 4, 5), state, [0, 0, 0, 0])
    assert not y.any()
    for values, before in zip(after, state, strict=True):
        np.testing.assert_array_equal(values, before)
    y, after = layer(draw(3, 0, 5))
    assert y.shape[:2] == (3, 0)
    assert after[0].shape[:2] == (4, 0)
    assert layer(draw(3, 0, 5), lengths=[])[0].shape[:2] == (3, 0)


def test_padding_is_never_read(make: Maker, member: Member, draw: Draw) -> None:
    cell, chosen = member
    layer = make(5, 12, 2, cell=cell, bidirectional=True, seed=4, **chosen)
    x = draw(7, 3, 5)
    lengths = np.array([7, 2, 4])
    y, _ = layer(x, lengths=lengths)
    for row, length in enumerate(lengths):
        x[length:, row] = np.nan
    padded, _ = layer(x, lengths=lengths)
    np.testing.assert_array_equal(padded, y)
    turned = cell.from_weights(
        layer.weights, backend=make.target.backend, batch_first=True, **options(layer)
    )
    y_turned, _ = turned(np.ascontiguousarray(x.transpose(1, 0, 2)), lengths=lengths)
    np.testing.assert_allclose(y_turned.transpose(1, 0, 2), y, rtol=0, atol=1e-6)


def test_nan_propagates_in_its_own_row(make: Maker, member: Member, draw: Draw) -> None:
    cell, chosen = member
    layer = make(5, 12, cell=cell, seed=5, **chosen)
    x = draw(4, 3, 5)
    x[0, 1, 2] = np.nan
    y, _ = layer(x)
    assert np.isfinite(y[:, [0, 2]]).all()
    assert np.isnan(y[0, 1]).all()


def test_pickle_copy_and_repr(make: Maker, member: Member, draw: Draw) -> None:
    cell, chosen = member
    layer = make(5, 12, 2, cell=cell, bidirectional=True, batch_first=True, seed=6, **chosen)
    x = draw(3, 2, 5)
    for twin in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer), copy.copy(layer)):
        assert repr(twin) == repr(layer)
        np.testing.assert_array_equal(twin(x)[0], layer(x)[0])
    for name, value in chosen.items():
        assert f"{name}={getattr(layer.architecture, name)!r}" in repr(layer), value


def test_two_biases_give_the_same(make: Maker, member: Member, draw: Draw) -> None:
    cell, chosen = member
    layer = make(5, 12, cell=cell, bias="double", seed=7, **chosen)
    assert_matches(layer, draw(4, 2, 5), layer._signature.start_state(2), None)
    bare = make(5, 12, cell=cell, bias=False, seed=7, **chosen)
    assert_matches(bare, draw(4, 2, 5), bare._signature.start_state(2), None)
    assert not any("bias" in name for name in bare.weights)


def test_an_idle_module_holds_its_units(make: Maker, draw: Draw) -> None:
    layer = make(2, 9, cell=fr.ClockworkRNN, periods=(1, 2, 4), seed=8)
    y, state = layer(draw(8, 1, 2))
    moved = [
        [
            bool((y[t, 0, 3 * m : 3 * m + 3] != y[t - 1, 0, 3 * m : 3 * m + 3]).all())
            for m in range(3)
        ]
        for t in range(1, 8)
    ]
    assert moved == [[True, t % 2 == 0, t % 4 == 0] for t in range(1, 8)]
    assert state.t.tolist() == [[8]]


def test_states_of_any_layout(make: Maker, member: Member, draw: Draw) -> None:
    cell, chosen = member
    layer = make(5, 12, 2, cell=cell, seed=9, **chosen)
    x = draw(4, 3, 5)
    for array in layer._signature.start_state(3):
        assert array.flags.c_contiguous
    state = [
        array if array.dtype.kind == "i" else draw(*array.shape)
        for array in layer._signature.start_state(3)
    ]
    y, after = layer(x, state)
    turned = [np.ascontiguousarray(array.swapaxes(0, 1)).swapaxes(0, 1) for array in state]
    assert not turned[0].flags.c_contiguous
    for other in (turned, [np.asfortranarray(array) for array in state]):
        y_other, after_other = layer(x, other)
        np.testing.assert_array_equal(y_other, y)
        np.testing.assert_array_equal(after_other[0], after[0])
    row = [array[:, :1] for array in state]
    same = [np.broadcast_to(array, (2, 3, *array.shape[2:])) for array in row]
    y_same, _ = layer(x, same)
    np.testing.assert_array_equal(y_same, layer(x, [array.copy() for array in same])[0])
    stream = layer.stream(3)
    stream.reset(turned)
    np.testing.assert_allclose(stream.run(x), y, rtol=0, atol=1e-6)


@pytest.mark.parametrize("reset", ("after", "before"))
@pytest.mark.parametrize("n", (1e10, 1e30, np.inf))
def test_a_large_candidate_does_not_wash_out_h(make: Maker, reset: str, n: float) -> None:
    layer = make(1, 3, cell=fr.GRU, activation="identity", reset=reset, bias="double")
    weights = {name: np.zeros_like(array) for name, array in layer.weights.items()}
    weights["bias_ih_l0"][3:6] = 30 if np.isfinite(n) else -1
    weights["bias_ih_l0"][6:] = n
    layer = make.from_weights(weights, cell=fr.GRU, activation="identity", reset=reset)
    h = np.ones((1, 1, 3), np.float32)
    with np.errstate(over="ignore"):
        y, _ = layer(np.zeros((1, 1, 1), np.float32), (h,))
    true_y, _ = exact(layer)(np.zeros((1, 1, 1)), (h.astype(np.float64),))
    if np.isfinite(n):
        # z is 1 - 1e-13, and 1 in float32: all of h is kept, and none of n in float32.
        np.testing.assert_allclose(y, 1, rtol=0, atol=1e-6)
    else:
        np.testing.assert_array_equal(y, true_y)


@given(alpha=st.floats(-1e6, 1e6), beta=st.floats(-1e6, 1e6))
def test_activations_keep_their_parameters(alpha: float, beta: float) -> None:
    parsed = Activation.parse("gate_activation", f"hard_sigmoid({alpha!r}, {beta!r})")
    assert parsed.parameters == (alpha, beta)
    assert Activation.parse("gate_activation", str(parsed)) == parsed
