"""Weights in narrow types: against formats of other libraries, and by their definitions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from conftest import oracle
from hypothesis import given
from hypothesis import strategies as st

from fusedrnn.architecture import NARROW
from fusedrnn.narrowing import MAX_FLOAT16, int8_scales, rounded

FINITE = st.floats(-60000, 60000, width=32)
MATRIX = st.lists(st.lists(FINITE, min_size=3, max_size=3), min_size=1, max_size=4)


def matrix(values: list[list[float]]) -> np.ndarray:
    return np.array(values, np.float32)


@given(MATRIX, st.sampled_from(NARROW))
def test_narrow_numbers_do_not_change(values: list[list[float]], kind: str) -> None:
    once = rounded("W", matrix(values), kind)
    assert once.dtype == np.float32
    if kind == "int8":  # the largest of a row is 127 scales, but for the rounding of the product
        np.testing.assert_allclose(rounded("W", once, kind), once, rtol=3e-7)
    else:
        np.testing.assert_array_equal(rounded("W", once, kind), once)


@given(MATRIX)
def test_float16_and_bfloat16_are_the_nearest(values: list[list[float]]) -> None:
    """No other number with as many digits is nearer, in exact arithmetic; and ties go to the even one."""
    weights = matrix(values)
    for kind, digits, smallest in (("float16", 11, -14), ("bfloat16", 8, -126)):
        for given_, got in zip(weights.ravel(), rounded("W", weights, kind).ravel(), strict=True):
            exact = Fraction(float(given_))
            if not exact or abs(exact) < Fraction(2) ** smallest:
                continue
            exponent = int(np.floor(np.log2(abs(float(given_)))))
            unit = Fraction(2) ** (exponent - digits + 1)
            assert Fraction(float(got)) == round(exact / unit) * unit  # round() takes ties to even


def test_bfloat16_is_pytorchs() -> None:
    torch = oracle("torch")
    weights = np.random.default_rng(0).standard_normal((50, 40)).astype(np.float32) ** 5
    want = torch.from_numpy(weights).to(torch.bfloat16).to(torch.float32).numpy()
    np.testing.assert_array_equal(rounded("W", weights, "bfloat16"), want)
    half = torch.from_numpy(weights).to(torch.float16).to(torch.float32).numpy()
    normal = np.abs(half) >= 2.0**-14
    np.testing.assert_array_equal(rounded("W", weights, "float16")[normal], half[normal])
    assert not normal.all() and (rounded("W", weights, "float16")[~normal] == 0).all()


def test_subnormals_of_float16_become_zero() -> None:
    smallest = 2.0**-14
    below = np.nextafter(np.float32(smallest), np.float32(0))  # rounds up to it
    weights = matrix([[smallest, below, smallest * 0.75, -smallest, -smallest / 3, 0]])
    want = matrix([[smallest, smallest, 0, -smallest, 0, 0]])
    np.testing.assert_array_equal(rounded("W", weights, "float16"), want)


@given(MATRIX)
def test_int8_is_within_half_a_scale(values: list[list[float]]) -> None:
    weights = matrix(values)
    scales = int8_scales(weights)
    got = rounded("W", weights, "int8")
    steps = got / scales[:, None]
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)
    assert np.abs(steps).max() <= 127.0001
    assert (np.abs(got - weights) <= scales[:, None] * 0.50001).all()
    zero = ~weights.any(axis=1)
    np.testing.assert_array_equal(scales[zero], 1)
    if not zero.any():
        np.testing.assert_allclose(np.abs(steps).max(axis=1), 127, rtol=1e-5)


def test_a_row_of_int8_does_not_depend_on_others() -> None:
    weights = np.random.default_rng(0).standard_normal((4, 9)).astype(np.float32)
    alone = np.concatenate([rounded("W", row[None], "int8") for row in weights])
    np.testing.assert_array_equal(rounded("W", weights, "int8"), alone)
    louder = weights * np.float32([[1], [100], [1], [1]])
    np.testing.assert_array_equal(rounded("W", louder, "int8")[[0, 2, 3]], alone[[0, 2, 3]])


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (np.nan, "int8", r"W_hh\[1, 2\] = nan must be finite"),
        (-np.inf, "bfloat16", r"W_hh\[1, 2\] = -inf must be finite"),
        (65536, "float16", r"W_hh\[1, 2\] = 65536.0 is beyond float16"),
        (3.4e38, "bfloat16", r"W_hh\[1, 2\] = 3.\d+e\+38 is beyond bfloat16"),
        (0, "int4", r"weight_dtype must be one of float16, bfloat16, int8"),
        (0, "float32", r"weight_dtype must be one of"),
    ],
)
def test_what_cannot_be_narrowed(value: float, kind: str, message: str) -> None:
    weights = np.zeros((3, 4), np.float32)
    weights[1, 2] = value
    with pytest.raises(ValueError, match=message):
        rounded("W_hh", weights, kind)
    weights[1, 2] = MAX_FLOAT16
    if kind in NARROW:
        assert rounded("W_hh", weights, kind)[1, 2] == pytest.approx(MAX_FLOAT16, rel=2e-3)
