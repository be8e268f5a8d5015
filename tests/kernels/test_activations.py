"""The activations' declared error bounds, over floats of every exponent; with FUSEDRNN_ALL_FLOATS=1 over all 2^32."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from conftest import COMPILED, Target

from fusedrnn._native import ffi, lib
from fusedrnn.engines.native import isas
from fusedrnn.kernels import activations, reference

ALL = os.environ.get("FUSEDRNN_ALL_FLOATS") == "1"

BOUNDS = {
    "sigmoid": activations.SIGMOID_MAX_ABS_ERROR,
    "full_sigmoid": activations.SIGMOID_MAX_ABS_ERROR,
    "tanh": activations.TANH_MAX_ABS_ERROR,
}
#: What each is in the specification.
MEANINGS = {"sigmoid": "sigmoid", "full_sigmoid": "sigmoid", "tanh": "tanh"}
Function = Callable[[np.ndarray], np.ndarray]


def floats() -> Iterator[np.ndarray]:
    """Float32 bit patterns, NaNs among them, in pieces: all of them, or every 1009th, a prime."""
    piece = 2**24
    for start in range(0, 2**32, piece):
        patterns = np.arange(start, start + piece, 1 if ALL else 1009, dtype=np.uint64)
        yield patterns.astype(np.uint32).view(np.float32)


def kernel(target: Target, name: str) -> Function:
    """An activation as the kernels of a target compute it."""
    if target.backend == "c":
        index = isas()[target.isa]

        def call(x, y, n):
            assert lib.fr_activation(index, name.encode(), x, y, n) == 0

    else:
        pytest.importorskip("numba")
        from fusedrnn.kernels.compiled import activation

        compiled = activation(name, target.isa)
        call = ffi.cast("void (*)(const float *, float *, int64_t)", compiled.address)

    def function(x: np.ndarray) -> np.ndarray:
        y = np.empty_like(x)
        call(ffi.from_buffer("float *", x), ffi.from_buffer("float *", y), len(x))
        return y

    return function


def assert_within_bounds(name: str, function: Function, pieces: Iterator[np.ndarray]) -> None:
    for x in pieces:
        y = function(x)
        np.testing.assert_array_equal(np.isnan(y), np.isnan(x))
        real = ~np.isnan(x)
        if not real.any():
            continue
        x, y = x[real], y[real]
        true = getattr(reference, MEANINGS[name])(x.astype(np.float64))
        error = np.abs(y - true)
        assert error.max() <= BOUNDS[name], f"at {x[error.argmax()]!r}"
        if name == "tanh":
            normal = np.abs(true) >= np.finfo(np.float32).tiny
            ulp = error[normal] / np.spacing(np.abs(true[normal]).astype(np.float32))
            assert ulp.max(initial=0) <= activations.TANH_MAX_ULP_ERROR, (
                f"at {x[normal][ulp.argmax()]!r}"
            )


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("target", COMPILED, ids=str)
def test_error_bounds(target: Target, name: str) -> None:
    assert_within_bounds(name, kernel(target, name), floats())


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("target", COMPILED, ids=str)
def test_limits_and_tails(target: Target, name: str) -> None:
    function = kernel(target, name)
    limits = np.array([-np.inf, -3e38, 3e38, np.inf], np.float32)
    expected = [-1, -1, 1, 1] if name == "tanh" else [0, 0, 1, 1]
    # A sigmoid of less than -33 is that of -33; a full one that of -88, a denormal, which is 0 in a layer.
    atol = {"sigmoid": 5e-15, "full_sigmoid": 1.2e-38, "tanh": 0}[name]
    np.testing.assert_allclose(function(limits), expected, rtol=0, atol=atol)
    for count in range(1, 40):
        x = np.linspace(-4, 4, count, dtype=np.float32)
        guarded = np.full(count + 32, 7.0, np.float32)
        guarded[16:-16] = function(x)
        np.testing.assert_array_equal(function(np.append(x, x))[:count], guarded[16:-16])


@pytest.mark.parametrize("target", COMPILED, ids=str)
def test_a_full_sigmoid_is_right_relative_to_itself(target: Target) -> None:
    x = np.linspace(-87, 20, 200_001, dtype=np.float32)
    true = reference.sigmoid(x.astype(np.float64))
    np.testing.assert_allclose(kernel(target, "full_sigmoid")(x), true, rtol=1e-5)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(kernel(target, "sigmoid")(x), true, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("sigmoid", lambda x: np.float32(0.5) + np.clip(x / 6, -0.5, 0.5).astype(np.float32)),
        ("tanh", lambda x: (1 - 2 / (np.exp(2 * x.astype(np.float32)) + 1)).astype(np.float32)),
        ("tanh", lambda x: np.clip(x, -1, 1)),
    ],
)
def test_negative_control_coarser_functions_fail(name: str, wrong: Function) -> None:
    x = np.linspace(-20, 20, 100_001, dtype=np.float32)
    with pytest.raises(AssertionError):
        assert_within_bounds(name, wrong, iter([x]))


def test_the_specification_neither_overflows_nor_warns() -> None:
    x = np.array([-np.inf, -1e30, -800, -0.0, 0.0, 800, 1e30, np.inf])
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        np.testing.assert_array_equal(reference.sigmoid(x), [0, 0, 0, 0.5, 0.5, 1, 1, 1])
    assert np.isnan(reference.sigmoid(np.array([np.nan]))).all()
    assert reference.sigmoid(np.ones(3, np.float32)).dtype == np.float32
