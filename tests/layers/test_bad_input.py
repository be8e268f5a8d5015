"""Bad input gets a clear error that names the argument, what came and what was expected."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from conftest import Draw, Maker

import fusedrnn as fr


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: x[0, 0], ValueError, r"x .*\(steps, batch, 3\).*\(3,\)"),
        (lambda x: x[0, :, :2], ValueError, r"x .*\(steps, 3\).*\(2, 2\)"),
        (lambda x: x[None], ValueError, r"x .*\(steps, batch, 3\).*\(1, 4, 2, 3\)"),
        (
            lambda x: x[..., :2],
            ValueError,
            r"x must have shape \(steps, batch, 3\), got \(4, 2, 2\)",
        ),
        (
            lambda x: x.astype(np.float64),
            TypeError,
            r"x must be float32, got float64; convert it with x.ast",
        ),
        (lambda x: x.astype(np.float16), TypeError, "got float16"),
        (lambda x: x.astype(np.int64), TypeError, "got int64"),
        (lambda x: x.astype(np.complex64), TypeError, "got complex64"),
        (lambda x: x.astype(">f4"), TypeError, "'>f4' .not this machine's byte order"),
        (lambda x: x.astype(object), TypeError, "got object"),
        (lambda x: x.astype("S4"), TypeError, r"got \|S4"),
        (lambda x: x.tolist(), TypeError, "not list; convert it with numpy.asarray"),
        (lambda x: None, TypeError, "not NoneType"),
        (lambda x: np.ma.masked_array(x), TypeError, "not MaskedArray"),
    ],
)
def test_x(make: Maker, draw: Draw, change, error, message) -> None:
    with pytest.raises(error, match=message):
        make(3, 5)(change(draw(4, 2, 3)))


def test_x_of_a_batch_first_layer(make: Maker, draw: Draw) -> None:
    with pytest.raises(ValueError, match=r"x .*\(batch, steps, 3\)"):
        make(3, 5, batch_first=True)(draw(4, 2, 4))


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        (lambda h: h, TypeError, r"state must be a tuple \(h, c\) of arrays, got ndarray"),
        (lambda h: (h,), TypeError, "got 1 of them"),
        (lambda h: (h, h, h), TypeError, "got 3 of them"),
        (lambda h: (h, None), TypeError, r"state\.c must be a numpy.ndarray"),
        (lambda h: (h[0], h), ValueError, r"state\.h must have shape \(2, 2, 5\), got \(2, 5\)"),
        (
            lambda h: (h, h[:, :1]),
            ValueError,
            r"state\.c must have shape \(2, 2, 5\), got \(2, 1, 5\)",
        ),
        (lambda h: (h.astype("f8"), h), TypeError, r"state\.h must be float32, got float64"),
    ],
)
def test_state(make: Maker, draw: Draw, state, error, message) -> None:
    layer, x = make(3, 5, 2), draw(4, 2, 3)
    for _ in range(3):  # before and after a call of this shape is prepared
        with pytest.raises(error, match=message):
            layer(x, state(draw(2, 2, 5)))
        layer(x, (draw(2, 2, 5), draw(2, 2, 5)))


def test_out(make: Maker, draw: Draw) -> None:
    layer = make(5, 5)
    x = draw(4, 2, 5)
    read_only = np.zeros((4, 2, 5), np.float32)
    read_only.setflags(write=False)
    for out, error, message in (
        (np.zeros((4, 2, 6), np.float32), ValueError, r"out must have shape \(4, 2, 5\)"),
        (np.zeros((4, 2, 5)), TypeError, "out must be float32, got float64"),
        (np.zeros((5, 2, 4), np.float32).T, ValueError, "out must be C-contiguous"),
        (np.zeros((4, 2, 10), np.float32)[..., ::2], ValueError, "out must be C-contiguous"),
        (read_only, ValueError, "out must be writable"),
        (x, ValueError, "out must not overlap x"),
        ([0.0], TypeError, "out must be a numpy.ndarray"),
    ):
        with pytest.raises(error, match=message):
            layer(x, out=out)
    store = draw(50)
    with pytest.raises(ValueError, match="out must not overlap x"):
        layer(store[:40].reshape(4, 2, 5), out=store[10:50].reshape(4, 2, 5))


def test_out_is_untouched_after_an_error(make: Maker, draw: Draw) -> None:
    out = np.full((4, 2, 5), 7, np.float32)
    with pytest.raises(TypeError):
        make(3, 5)(draw(4, 2, 3), (draw(1, 2, 5), "c"), out=out)
    assert (out == 7).all()


def test_sizes_that_overflow_are_refused_before_anything_is_allocated(make: Maker) -> None:
    one = np.zeros((1, 1, 1), np.float32)
    huge = np.lib.stride_tricks.as_strided(one, (2**45, 1, 1), (0, 4, 4))
    with pytest.raises(ValueError, match="y is too large"):
        make(1, 8)(huge)
    wide = np.lib.stride_tricks.as_strided(one, (0, 2**45, 1), (0, 0, 4))
    with pytest.raises(ValueError, match="is too large"):
        make(1, 8)(wide)
    with pytest.raises(ValueError, match="is too large"):
        make(1, 8).stream(2**45)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input_size": 0}, ValueError, "input_size must be at least 1, got 0"),
        ({"hidden_size": -3}, ValueError, "hidden_size must be at least 1, got -3"),
        ({"hidden_size": 2.5}, TypeError, "hidden_size must be an int, not float"),
        ({"hidden_size": True}, TypeError, "hidden_size must be an int, not bool"),
        ({"num_layers": 0}, ValueError, "num_layers must be at least 1"),
        ({"hidden_size": 2**31}, ValueError, r"below 2\*\*31"),
        ({"bidirectional": 1}, TypeError, "bidirectional must be True or False"),
        ({"batch_first": "yes"}, TypeError, "batch_first must be True or False"),
        ({"bias": "triple"}, ValueError, "bias must be one of none, single, double"),
        ({"backend": "cuda"}, ValueError, "backend must be 'auto' or one of c, numba, numpy"),
        ({"dtype": "float16"}, ValueError, "dtype must be 'float32' or 'float64'"),
        ({"weight_dtype": "int4"}, ValueError, "weight_dtype .*float32.*int8.*int4"),
        ({"weight_dtype": None}, ValueError, "weight_dtype .*float32.*None"),
        ({"weights": "float32"}, TypeError, "LSTM has no option 'weights'"),
        ({"proj_size": 5}, ValueError, r"proj_size must be below hidden_size \(5\), got 5"),
        ({"proj_size": -1}, ValueError, "proj_size must be at least 0"),
        (
            {"peephole": "x"},
            ValueError,
            "peephole must be True, False or some of the letters 'ifo'",
        ),
        ({"peephole": "ii"}, ValueError, "some of the letters"),
        ({"peephole": np.ones(2)}, ValueError, "some of the letters"),
        ({"coupled": True, "peephole": "i"}, ValueError, "some of the letters 'fo'"),
        ({"coupled": "yes"}, TypeError, "coupled must be True or False"),
        ({"peepholes": True}, TypeError, "LSTM has no option 'peepholes'; did you mean 'peephole'"),
        ({"reset": "after"}, TypeError, "LSTM has no option 'reset'"),
        ({"gate_activation": "swish"}, ValueError, "gate_activation must be one of sigmoid"),
        ({"gate_activation": "hard_sigmoid(a)"}, ValueError, "must be numbers"),
        ({"gate_activation": "hard_sigmoid(1,2,3)"}, ValueError, "at most 2 finite parameters"),
        ({"gate_activation": "tanh"}, fr.UnsupportedError, "sigmoid, hard_sigmoid for the gate"),
        ({"activation": "softplus"}, fr.UnsupportedError, "backend='numpy' has them all"),
        ({"clip": 0}, ValueError, "clip must be above 0"),
        ({"clip": 10**400}, ValueError, "clip must be above 0 and finite in float32"),
        ({"num_layers": 10_001}, ValueError, "num_layers must be at most 10000"),
        ({"clip": float("nan")}, ValueError, "clip must be above 0"),
        ({"clip": 1e-50}, ValueError, "clip .*float32.*1e-50"),
        ({"cell_clip": 1e-40}, ValueError, "cell_clip .*float32.*1e-40"),
        ({"cell_clip": "3"}, TypeError, "cell_clip must be a number or None"),
        ({"bias": np.ones(2)}, ValueError, "bias must be one of"),
        ({"dtype": np.ones(2)}, ValueError, "dtype must be"),
        ({"backend": None}, ValueError, "backend must be"),
        ({"seed": "a"}, TypeError, "seed must be None or an int of 0 or more, got 'a'"),
        ({"seed": -1}, ValueError, "seed must be None or an int of 0 or more, got -1"),
        (
            {"input_size": 2**31 - 1, "hidden_size": 2**31 - 1},
            ValueError,
            "weight_ih_l0 is too large",
        ),
    ],
)
def test_constructor(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        fr.LSTM(**{"input_size": 3, "hidden_size": 5, **arguments})


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([4, 5], ValueError, "lengths must be from 0 to 4, got 5 for sequence 1"),
        ([-1, 2], ValueError, "lengths must be from 0 to 4, got -1 for sequence 0"),
        ([4], ValueError, r"lengths must have shape \(2,\), got \(1,\)"),
        ([[4, 2]], ValueError, r"lengths must have shape \(2,\), got \(1, 2\)"),
        ([[4], [2, 1]], ValueError, r"lengths must have shape \(2,\), got lists inside it"),
        ([4.0, 2.0], TypeError, "lengths must be ints, got float64"),
        ("ab", TypeError, "lengths must be ints"),
        ([True, False], TypeError, "lengths must be ints, got bool"),
        (np.ma.array([4, 2], mask=[0, 1]), TypeError, "lengths .*MaskedArray"),
        (np.array([2**64 - 1, 2], np.uint64), ValueError, f"lengths .*{2**64 - 1}"),
    ],
)
def test_lengths(make: Maker, draw: Draw, lengths, error, message) -> None:
    with pytest.raises(error, match=message):
        make(3, 5)(draw(4, 2, 3), lengths=lengths)


@pytest.mark.parametrize(
    ("cell", "options", "error", "message"),
    [
        (fr.GRU, {"peephole": True}, TypeError, "GRU has no option 'peephole'"),
        (fr.GRU, {"reset": "during"}, ValueError, "reset must be 'after' or 'before'"),
        (fr.RNN, {"gate_activation": "sigmoid"}, TypeError, "RNN has no option 'gate_activation'"),
        (fr.ClockworkRNN, {}, ValueError, "periods must name one period per module"),
        (fr.ClockworkRNN, {"periods": (1, 0)}, ValueError, "periods must be at least 1, got 0"),
        (fr.ClockworkRNN, {"periods": (2, 1)}, ValueError, "periods must ascend"),
        (
            fr.ClockworkRNN,
            {"periods": (1, 2, 4, 8)},
            ValueError,
            "divisible by the 4 modules, got 6",
        ),
        (fr.ClockworkRNN, {"periods": 3}, TypeError, "periods must be a sequence of ints"),
        (fr.ClockworkRNN, {"periods": (1, 2.5)}, TypeError, "periods must be an int, not float"),
    ],
)
def test_options_of_other_cells(cell, options, error, message) -> None:
    with pytest.raises(error, match=message):
        cell(3, 6, **options)


def test_clockwork_weights_outside_the_blocks() -> None:
    layer = fr.ClockworkRNN(3, 6, periods=(1, 2, 4), seed=0)
    weights = dict(layer.weights)
    matrix = weights["weight_hh_l0"].copy()
    matrix[5, 0] = 1
    with pytest.raises(ValueError, match=r"'weight_hh_l0' must be zero in rows 4:6, columns 0:4"):
        fr.ClockworkRNN.from_weights({**weights, "weight_hh_l0": matrix}, periods=(1, 2, 4))


def test_peepholes_that_shapes_do_not_tell() -> None:
    weights = fr.LSTM(3, 5, peephole="o", seed=0).weights
    with pytest.raises(ValueError, match="say which gates have peepholes, as in peephole='o'"):
        fr.LSTM.from_weights(weights)
    assert fr.LSTM.from_weights(weights, peephole="o").architecture.peephole == "o"


def without(name: str):
    return lambda w: {key: value for key, value in w.items() if key != name}


def with_(name: str, value):
    return lambda w: {**w, name: value(w) if callable(value) else value}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (without("weight_hh_l0"), ValueError, "'weight_hh_l0' is missing"),
        (without("weight_ih_l0"), ValueError, "'weight_ih_l0' is missing"),
        (without("weight_ih_l1"), ValueError, "missing: weight_ih_l1"),
        (without("bias_ih_l1"), ValueError, "missing: bias_ih_l1"),
        (
            with_("weight_hh_l3", lambda w: w["weight_hh_l0"]),
            ValueError,
            "missing: weight_ih_l2",
        ),
        (with_("head.weight", np.zeros(3, "f4")), ValueError, "'head.weight' is not the name"),
        (with_(7, np.zeros(3, "f4")), ValueError, "7 is not the name"),
        (
            with_("weight_hh_l1", lambda w: w["weight_hh_l1"][:, :4]),
            ValueError,
            r"'weight_hh_l1' must have shape \(20, 5\), got \(20, 4\)",
        ),
        (
            with_("weight_ih_l0", lambda w: w["weight_ih_l0"][:19]),
            ValueError,
            r"must have shape \(4 or 3 \* hidden_size, input_size\) with hidden_size 5, got \(19, 3\)",
        ),
        (
            with_("bias_ih_l0", lambda w: w["bias_ih_l0"].astype("f8")),
            TypeError,
            r"'bias_ih_l0' must be native-endian float32, got '<f8'",
        ),
        (with_("bias_ih_l0", lambda w: w["bias_ih_l0"].astype(">f4")), TypeError, "'>f4'"),
        (
            with_("bias_ih_l0", [0.0] * 20),
            TypeError,
            "must be a numpy.ndarray of float32, not list",
        ),
        (with_("weight_ih_l0", [[1.0], [1.0, 2.0]]), TypeError, "not list"),
        (with_("bias_ih_l0", lambda w: np.ma.array(w["bias_ih_l0"])), TypeError, "not MaskedArray"),
        (lambda w: {}, ValueError, "given are no arrays"),
        (with_("weight_hr_l0", np.zeros((2, 5), "f4")), ValueError, "missing: weight_hr_l1"),
        (lambda w: [], TypeError, "weights must be a mapping"),
    ],
)
def test_from_weights(change, error, message) -> None:
    weights = dict(fr.LSTM(3, 5, 2, seed=0).weights)
    with pytest.raises(error, match=message):
        fr.LSTM.from_weights(change(weights))


def test_step_function(draw: Draw) -> None:
    layer = fr.LSTM(3, 5)
    with pytest.raises(ValueError, match=r"h must have shape \(2, 5\), got \(1, 5\)"):
        fr.lstm_step(draw(2, 3), draw(1, 5), draw(2, 5), layer)
    for other in (3, layer.weights, dict(layer.weights), fr.GRU(3, 5)):
        with pytest.raises(TypeError, match=r"layer .*LSTM.*LSTM\.from_weights"):
            fr.lstm_step(draw(2, 3), draw(2, 5), draw(2, 5), other)
    with pytest.raises(ValueError, match="one LSTM layer in one direction"):
        fr.lstm_step(draw(2, 3), draw(2, 5), draw(2, 5), fr.LSTM(3, 5, 2))


def test_errors_pickle() -> None:
    error = pickle.loads(pickle.dumps(fr.MissingExtraError("numba", "numba", "backend='numba'")))
    assert "pip install 'fusedrnn[numba]'" in str(error)


def test_a_projection_is_told_by_the_arrays() -> None:
    weights = fr.LSTM(3, 5, proj_size=2, seed=0).weights
    assert fr.LSTM.from_weights(weights, proj_size=2).architecture.proj_size == 2
    with pytest.raises(ValueError, match="proj_size is 2 by the arrays, got 3"):
        fr.LSTM.from_weights(weights, proj_size=3)


def test_numbers_and_bools_of_numpy_are_numbers_and_bools() -> None:
    assert fr.LSTM(np.int64(3), np.int32(5), clip=np.float32(0.5)).architecture.clip == 0.5
    names = ("bidirectional", "coupled", "peephole", "bias", "batch_first")
    for bit in (True, False):
        ours = fr.LSTM(3, 5, seed=0, **dict.fromkeys(names, np.bool_(bit)))
        plain = fr.LSTM(3, 5, seed=0, **dict.fromkeys(names, bit))
        assert ours.architecture == plain.architecture
        assert type(ours.architecture.bidirectional) is bool
        assert ours.batch_first is bit
    for name in ("hidden_size", "num_layers", "clip"):
        with pytest.raises(TypeError, match=name):
            fr.LSTM(**{"input_size": 3, "hidden_size": 5, name: np.True_})
    with pytest.raises(TypeError, match="batch_size"):
        fr.LSTM(3, 5).stream(np.True_)


@pytest.mark.parametrize(
    ("arguments", "field", "wrong_type"),
    [
        ({"cell": "ltsm"}, "cell", False),
        ({"input_size": 0}, "input_size", False),
        ({"hidden_size": 2.5}, "hidden_size", True),
        ({"num_layers": 10_001}, "num_layers", False),
        ({"bidirectional": 1}, "bidirectional", True),
        ({"proj_size": 5}, "proj_size", False),
        ({"bias": "triple"}, "bias", False),
        ({"peephole": "x"}, "peephole", False),
        ({"periods": (1,)}, "periods", False),
        ({"cell": "gru", "reset": "during"}, "reset", False),
        ({"cell": "clockwork", "periods": 3}, "periods", True),
        ({"cell": "clockwork", "periods": (1, 2)}, "hidden_size", False),
        ({"cell": "clockwork", "periods": (0, 1)}, "periods", False),
        ({"activation": "swish"}, "activation", False),
        ({"gate_activation": "hard_sigmoid(a)"}, "gate_activation", False),
        ({"clip": -1}, "clip", False),
        ({"cell_clip": "3"}, "cell_clip", True),
    ],
)
def test_an_error_of_an_architecture_names_the_field(arguments, field, wrong_type) -> None:
    with pytest.raises(fr.ArchitectureError) as caught:
        fr.Architecture(**{"cell": "lstm", "input_size": 3, "hidden_size": 5, **arguments})
    error = caught.value
    assert error.field == field
    assert str(error) == f"{field} {error.reason}"
    assert isinstance(error, TypeError) == wrong_type
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.field, again.reason) == (type(error), field, error.reason)


def test_what_is_chosen_is_what_is_not_default() -> None:
    assert fr.Architecture("lstm", 3, 5).chosen() == {}
    assert fr.Architecture("gru", 3, 5, reset="after").chosen() == {}
    chosen = {"num_layers": 2, "bidirectional": True, "bias": "none", "reset": "before"}
    architecture = fr.Architecture("gru", 3, 5, **chosen)
    assert architecture.chosen() == chosen
    assert fr.Architecture("gru", 3, 5, **architecture.chosen()) == architecture


def test_a_prefix_is_cut_off() -> None:
    layer = fr.LSTM(3, 5, 2, seed=0)
    weights = {f"encoder.lstm.{name}": array for name, array in layer.weights.items()}
    others = {"encoder.lstmx": None, "head.weight": np.zeros(3), 7: None}
    found = fr.LSTM.from_weights({**weights, **others}, prefix="encoder.lstm.")
    assert found.architecture == layer.architecture
    for name, array in layer.weights.items():
        np.testing.assert_array_equal(found.weights[name], array)
    for prefix, error, message in (
        ("", ValueError, "encoder.lstm.weight_ih_l0"),
        ("decoder.", ValueError, "prefix 'decoder.'.*encoder"),
        (3, TypeError, "prefix"),
    ):
        with pytest.raises(error, match=message):
            fr.LSTM.from_weights(weights, prefix=prefix)
    with pytest.raises(ValueError, match="encoder.lstm.weight_xx_l0"):
        fr.LSTM.from_weights({**weights, "encoder.lstm.weight_xx_l0": None}, prefix="encoder.lstm.")


@pytest.mark.parametrize("count", [-1, 2**63 - 1, 2**62])
def test_a_counter_that_would_wrap_is_refused(make: Maker, count: int) -> None:
    layer = make(3, 4, cell=fr.ClockworkRNN, periods=(1, 2), seed=0)
    state = (np.zeros((1, 2, 4), np.float32), np.array([[0, count]]))
    for _ in range(3):  # before and after a call of this shape is prepared
        with pytest.raises(ValueError, match=rf"state\.t .*{count}"):
            layer(np.zeros((3, 2, 3), np.float32), state)
        layer(np.zeros((3, 2, 3), np.float32))
