"""sigmoid and tanh of a vector: ``csrc/cells/activations.h``, line for line.

The mathematics and the reasons are told there, and the bounds below hold for both, over all floats.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from fusedrnn.kernels.simd import Vector

__all__ = [
    "SIGMOID_MAX_ABS_ERROR",
    "TANH_MAX_ABS_ERROR",
    "TANH_MAX_ULP_ERROR",
    "functions",
    "over_array",
]

#: Largest |error| found over every float, for each instruction set (8.94e-8 and 1.49e-7), rounded up.
SIGMOID_MAX_ABS_ERROR = 9e-8
TANH_MAX_ABS_ERROR = 1.5e-7
#: Likewise in units of the last place of tanh(x), so that tanh(x) ~ x for tiny x (2.61).
TANH_MAX_ULP_ERROR = 2.7


class ExpParts(NamedTuple):
    """e^x = scale * (1 + small)."""

    scale: Vector
    small: Vector


#: Adding 1.5 * 2^23 rounds to an integer, left in the low bits; 127 more biases the exponent.
MAGIC = 12582912.0 + 127.0
LOG2_E = float.fromhex("0x1.715476p+0")
#: ln 2 in two parts: n times the first is exact.
LN2_HIGH = float.fromhex("0x1.62e400p-1")
LN2_LOW = float.fromhex("0x1.7f7d1cp-20")
C2 = float.fromhex("0x1.fffffep-2")
C3 = float.fromhex("0x1.5554b0p-3")
C4 = float.fromhex("0x1.555674p-5")
C5 = float.fromhex("0x1.12277ep-7")
C6 = float.fromhex("0x1.6bec14p-10")


@cache
def functions(isa: str) -> ModuleType:
    """sigmoid(vector) and tanh(vector) for one instruction set."""
    from fusedrnn.kernels.policy import inlined
    from fusedrnn.kernels.simd import vocabulary

    vf = vocabulary(isa)

    @inlined
    def exp(x):
        magic = vf.set1(MAGIC)
        t = vf.fma(x, vf.set1(LOG2_E), magic)
        n = vf.sub(t, magic)
        r = vf.fma(n, vf.set1(-LN2_HIGH), x)
        r = vf.fma(n, vf.set1(-LN2_LOW), r)
        q = vf.set1(C6)
        q = vf.fma(q, r, vf.set1(C5))
        q = vf.fma(q, r, vf.set1(C4))
        q = vf.fma(q, r, vf.set1(C3))
        q = vf.fma(q, r, vf.set1(C2))
        return ExpParts(vf.shl23(t), vf.fma(vf.mul(r, r), q, r))

    @inlined
    def sigmoid(x):
        one = vf.set1(1.0)
        clamped = vf.maximum(vf.set1(-87.0), vf.minimum(vf.set1(87.0), x))
        e = exp(vf.sub(vf.set1(0.0), clamped))
        return vf.div(one, vf.add(one, vf.fma(e.scale, e.small, e.scale)))

    @inlined
    def tanh(x):
        clamped = vf.maximum(vf.set1(-10.0), vf.minimum(vf.set1(10.0), x))
        e = exp(vf.add(clamped, clamped))
        m = vf.fma(e.scale, e.small, vf.sub(e.scale, vf.set1(1.0)))
        return vf.div(m, vf.add(m, vf.set1(2.0)))

    module = ModuleType(f"{__name__}.{isa}")
    module.__dict__.update(sigmoid=sigmoid, tanh=tanh)
    return module


def over_array(name: str, isa: str) -> Callable[[Any, Any, int], None]:
    """(x, y, n): one of the functions over an array, for tests of the functions alone."""
    from fusedrnn.kernels.simd import vocabulary

    vf = vocabulary(isa)
    function = getattr(functions(isa), name)

    def activation(x, y, n):
        for k in range(0, n, vf.LANES):
            vf.store_n(y + k, function(vf.load_n(x + k, n - k)), n - k)

    activation.__name__ = name
    return activation
