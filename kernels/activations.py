"""sigmoid and tanh of a vector, as quotients: ``csrc/cells/activations.h``, line for line.

The mathematics and the reasons are told there, and the bounds below hold for both, over all floats.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from fusedrnn._native import lib

if TYPE_CHECKING:
    from fusedrnn.kernels.simd import Vector

__all__ = [
    "SIGMOID_MAX_ABS_ERROR",
    "TANH_MAX_ABS_ERROR",
    "TANH_MAX_ULP_ERROR",
    "functions",
    "over_array",
]

#: Largest |error| found over every float, rounded up: 8.94e-8 and 1.19e-7 with FMA, 9.32e-8 and 1.69e-7
#: in the baseline.
SIGMOID_MAX_ABS_ERROR = 9.4e-8
TANH_MAX_ABS_ERROR = 1.7e-7
#: The error bound of tanh in units of the last place of tanh(x), so that tanh(x) ~ x for tiny x (4.34).
TANH_MAX_ULP_ERROR = 4.4


class Quotient(NamedTuple):
    """n / d, a division that is not made yet."""

    n: Vector
    d: Vector


class Power(NamedTuple):
    """2^u = scale + scaled * p."""

    scale: Vector
    scaled: Vector
    p: Vector


SIGMOID_LIMIT, FULL_SIGMOID_LIMIT, TANH_LIMIT, LOG2_E, ROUNDING = (
    getattr(lib, f"FR_{name}")
    for name in ("SIGMOID_LIMIT", "FULL_SIGMOID_LIMIT", "TANH_LIMIT", "LOG2_E", "ROUNDING")
)
P0, P1, P2, P3, P4, P5 = (getattr(lib, f"FR_EXP2_{power}") for power in range(6))


@cache
def functions(isa: str) -> ModuleType:
    """sigmoid(vector) and tanh(vector), as quotients, for one instruction set."""
    from fusedrnn.kernels.policy import inlined
    from fusedrnn.kernels.simd import vocabulary

    vf = vocabulary(isa)

    @inlined
    def divided(q):
        return vf.div(q.n, q.d)

    @inlined
    def whole(v):
        """v / 1."""
        return Quotient(v, vf.set1(1.0))

    @inlined
    def exp2(x, limit, factor):
        """2^(factor x), for x within +-limit."""
        magic = vf.set1(ROUNDING)
        x = vf.maximum(vf.set1(-limit), vf.minimum(vf.set1(limit), x))
        t = vf.fma(x, vf.set1(factor), magic)
        r = vf.fma(x, vf.set1(factor), vf.sub(magic, t))
        scale = vf.shl23(t)
        r2 = vf.mul(r, r)
        p01 = vf.fma(vf.set1(P1), r, vf.set1(P0))
        p23 = vf.fma(vf.set1(P3), r, vf.set1(P2))
        p45 = vf.fma(vf.set1(P5), r, vf.set1(P4))
        return Power(scale, vf.mul(scale, r), vf.fma(vf.fma(p45, r2, p23), r2, p01))

    @inlined
    def power_plus(e, one):
        return vf.fma(e.scaled, e.p, vf.add(e.scale, vf.set1(one)))

    @inlined
    def sigmoid_within(x, limit):
        e = exp2(x, limit, -LOG2_E)
        return Quotient(vf.set1(1.0), power_plus(e, 1.0))

    @inlined
    def sigmoid(x):
        return sigmoid_within(x, SIGMOID_LIMIT)

    @inlined
    def full_sigmoid(x):
        """To be divided alone."""
        return sigmoid_within(x, FULL_SIGMOID_LIMIT)

    @inlined
    def tanh(x):
        e = exp2(x, TANH_LIMIT, 2.0 * LOG2_E)
        return Quotient(power_plus(e, -1.0), power_plus(e, 1.0))

    module = ModuleType(f"{__name__}.{isa}")
    module.__dict__.update(
        divided=divided, whole=whole, sigmoid=sigmoid, full_sigmoid=full_sigmoid, tanh=tanh
    )
    return module


def over_array(name: str, isa: str) -> Callable[[Any, Any, int], None]:
    """(x, y, n): one of the functions over an array, for tests of the functions alone."""
    from fusedrnn.kernels.simd import vocabulary

    vf = vocabulary(isa)
    function = getattr(functions(isa), name)
    divided = functions(isa).divided

    def activation(x, y, n):
        for k in range(0, n, vf.LANES):
            vf.store_n(y + k, divided(function(vf.load_n(x + k, n - k))), n - k)

    activation.__name__ = name
    return activation
