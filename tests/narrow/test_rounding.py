"""Weights in narrow types: against formats of other libraries, and by their definitions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from conftest import oracle
from hypothesis import given
from hypothesis import strategies as st

from fusedrnn.architecture import NARROW
from fusedrnn.narrowing import rounded

FINITE = st.floats(-60000, 60000, width=32)
MATRIX = st.lists(st.lists(FINITE, min_size=3, max_size=3), min_size=1, max_size=4)


def matrix(values: list[list[float]]) -> np.ndarray:
    return np.array(values, np.float32)


@given(MATRIX, st.sampled_from(NARROW))
def test_narrow_numbers_do_not_change(values: list[list[float]], kind: str) -> None:
    once = rounded("W", matrix(values), kind)
    assert once.dtype == np.float32
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


def test_a_row_of_int8_does_not_depend_on_others() -> None:
    weights = np.random.default_rng(0).standard_normal((4, 9)).astype(np.float32)
    alone = np.concatenate([rounded("W", row[None], "int8") for row in weights])
    np.testing.assert_array_equal(rounded("W", weights, "int8"), alone)
    louder = weights * np.float32([[1], [100], [1], [1]])
    np.testing.assert_array_equal(rounded("W", louder, "int8")[[0, 2, 3]], alone[[0, 2, 3]])
