"""How weights are rounded: against definitions of the types that share nothing with the rounding under test."""

from __future__ import annotations

import pickle
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fusedrnn as fr
from fusedrnn.narrowing import (
    INTEGERS,
    LARGEST,
    WEIGHT_DTYPES,
    Narrow,
    narrowed,
    stored,
    weight_dtype_of,
)

NARROW = WEIGHT_DTYPES[1:]
ARCHITECTURE = fr.Architecture("rnn", 4, 3)


def narrow(matrix: npt.ArrayLike, weight_dtype: str) -> Narrow:
    """A matrix (3, 4) in a narrow type."""
    weights = {"weight_ih_l0": np.array(matrix, np.float32).reshape(3, 4)}
    weights["weight_hh_l0"] = np.zeros((3, 3), np.float32)
    return narrowed(weights, ARCHITECTURE, weight_dtype)["weight_ih_l0"]


def nearest(number: float, precision: int, least: int) -> float:
    """A number rounded to so many significant bits, ties to even; 0 if that is below 2**least."""
    exact = abs(Fraction(number))
    if not exact:
        return 0.0
    unit = Fraction(2) ** (int(np.frexp(np.float64(number))[1]) - precision)
    rounded = round(exact / unit) * unit  # round() of a Fraction is to even
    return float(np.copysign(float(rounded), number)) if rounded >= Fraction(2) ** least else 0.0


#: Of all magnitudes that both types hold, and numbers half way between two float16 or two bfloat16.
NUMBERS = st.one_of(
    st.floats(-60000, 60000, width=32, allow_subnormal=False),
    st.builds(
        lambda odd, exponent, nudge: float(np.float32(np.ldexp(odd + nudge, exponent))),
        st.integers(-4096, 4096),
        st.integers(-30, 3),
        st.sampled_from([0.0, 2.0**-11, -(2.0**-11)]),
    ),
)
MATRICES = st.lists(NUMBERS, min_size=12, max_size=12)


@given(MATRICES)
def test_float16_is_the_nearest_and_never_subnormal(numbers: list[float]) -> None:
    expected = [nearest(number, 11, -14) for number in numbers]
    np.testing.assert_array_equal(narrow(numbers, "float16").widened().ravel(), expected)


@given(MATRICES)
def test_bfloat16_is_the_nearest(numbers: list[float]) -> None:
    expected = [nearest(number, 8, -200) for number in numbers]
    np.testing.assert_array_equal(narrow(numbers, "bfloat16").widened().ravel(), expected)


@given(MATRICES)
def test_int8_is_the_nearest_multiple_of_the_scale_of_its_row(numbers: list[float]) -> None:
    found = narrow(numbers, "int8")
    assert found.scales is not None
    rows = np.array(numbers, np.float32).reshape(3, 4)
    for row, integers, scale in zip(rows, found.values, found.scales, strict=True):
        largest = Fraction(float(np.abs(row).max()))
        if not largest:
            assert scale == 1 and not integers.any()
            continue
        assert 1 - Fraction(2) ** -15 < Fraction(float(scale)) * 127 / largest <= 1
        expected = [round(Fraction(float(w)) / Fraction(float(scale))) for w in row]
        assert integers.tolist() == expected
        assert np.abs(integers).max() == 127


def test_another_rounding_is_noticed() -> None:
    halves = np.float32([1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-8] * 3)
    cut = (halves.view(np.uint32) & 0xFFFF0000).view(np.float32)  # bfloat16 by truncation
    up = np.float32([1 + 2**-10, 1 + 2 * 2**-10, 0, 0] * 3)  # float16, ties away from zero
    assert (narrow(halves, "bfloat16").widened().ravel() != cut).any()
    assert (narrow(halves, "float16").widened().ravel() != up)[0]
    row = np.float32([127, 0.5, 1.5, 2.5] * 3)
    assert narrow(row, "int8").values[0].tolist() == [127, 0, 2, 2]


@pytest.mark.parametrize("weight_dtype", NARROW)
@given(MATRICES)
def test_narrowed_again_is_the_same(weight_dtype: str, numbers: list[float]) -> None:
    once = narrow(numbers, weight_dtype)
    again = narrow(once.widened(), weight_dtype)
    assert again.values.tobytes() == once.values.tobytes()
    assert (again.scales is None) == (once.scales is None)
    if once.scales is not None and again.scales is not None:
        assert again.scales.tobytes() == once.scales.tobytes()
    np.testing.assert_array_equal(once.widened(np.float64), once.widened())


@pytest.mark.parametrize("weight_dtype", NARROW)
@pytest.mark.parametrize(("bad", "what"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_nan_and_inf_are_refused_by_name(weight_dtype: str, bad: float, what: str) -> None:
    with pytest.raises(
        ValueError, match=rf"weight_ih_l0\[0, 1\] = {what} must be finite.*{weight_dtype}"
    ):
        narrow([0, bad, *range(10)], weight_dtype)


@pytest.mark.parametrize(
    ("weight_dtype", "number", "shown"),
    [("float16", 65520.0, "65520.0 .*float16.*65504"), ("bfloat16", 3.4e38, "3.39.*3.396")],
)
def test_what_a_type_cannot_hold_is_refused(weight_dtype: str, number: float, shown: str) -> None:
    with pytest.raises(ValueError, match=rf"weight_ih_l0\[0, 0\] = {shown}"):
        narrow([number, *range(11)], weight_dtype)
    assert narrow([65504.0, *range(11)], weight_dtype).widened().max() in (65504, 65536)


def test_rows_too_small_for_a_scale_are_zero() -> None:
    tiny = narrow([1e-40, -1e-42, 0, 0, *range(8)], "int8")
    assert tiny.scales is not None and tiny.scales[0] == 1
    assert not tiny.values[0].any() and tiny.values[1].any()


@pytest.mark.parametrize("weight_dtype", INTEGERS)
def test_the_largest_row_of_integers_is_read_again(weight_dtype: str) -> None:
    largest = np.float32(LARGEST[weight_dtype])
    layer = fr.RNN.from_weights(
        {"weight_ih_l0": np.float32([[largest, 1e-40]]), "weight_hh_l0": np.float32([[0]])},
        weight_dtype=weight_dtype,
    )
    again = pickle.loads(pickle.dumps(layer))
    np.testing.assert_array_equal(again.weights["weight_ih_l0"], layer.weights["weight_ih_l0"])
    assert layer.weights["weight_ih_l0"][0, 0] == pytest.approx(largest, rel=1e-4)
    beyond = np.nextafter(largest, np.float32(np.inf))
    with pytest.raises(ValueError, match="is beyond"):
        narrow(3 * [float(beyond), 0, 0, 0], weight_dtype)


@pytest.mark.parametrize("weight_dtype", WEIGHT_DTYPES[1:])
def test_numbers_too_small_raise_nothing(weight_dtype: str) -> None:
    with np.errstate(all="raise"):
        narrow(3 * [1e-39, 1e-44, 0, 1e-30], weight_dtype)


@pytest.mark.parametrize("bad", ["float64", "int4", "fp16", None, 16, ["int8"]])
def test_an_unknown_type_is_refused(bad: object) -> None:
    with pytest.raises(ValueError, match="weight_dtype must be one of 'float32', 'float16'"):
        fr.LSTM(3, 4).narrow(bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weight_dtype must be one of"):
        fr.LSTM(3, 4, weight_dtype=bad)  # type: ignore[arg-type]


def test_float32_is_no_narrow_type() -> None:
    with pytest.raises(ValueError, match="'float16', 'bfloat16', 'int8' or 'w8a7'"):
        fr.LSTM(3, 4).narrow("float32")


def test_only_matrices_are_narrowed() -> None:
    layer = fr.LSTM(3, 6, proj_size=2, peephole=True, bidirectional=True, seed=0)
    kept = stored(layer.weights, layer.architecture, "int8")
    assert weight_dtype_of(kept) == "int8" and weight_dtype_of(layer.weights) == "float32"
    for name, array in layer.weights.items():
        is_matrix = name.startswith(("weight_ih", "weight_hh", "weight_hr"))
        assert isinstance(kept[name], Narrow) == is_matrix
        assert is_matrix or kept[name] is array or not np.any(kept[name] != array)  # type: ignore[comparison-overlap]
