"""Activations and their slopes, for the backward pass: ``csrc/cells/slopes.h``, line for line.

::

    sigmoid' = n (d - n) / d^2          of sigmoid = n / d
    tanh'    = 4 (d - 1) / d^2          of tanh = (d - 2) / d

The numerics are told in C.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from fusedrnn.kernels import activations, product
from fusedrnn.kernels.policy import inlined
from fusedrnn.kernels.product import IDENTITY, RELU, SIGMOID
from fusedrnn.kernels.simd import vocabulary

if TYPE_CHECKING:
    from fusedrnn.kernels.simd import Vector

__all__ = ["functions"]


class Slope(NamedTuple):
    """An activation and its slope."""

    value: Vector
    slope: Vector


@cache
def functions(isa: str, weight_type: str) -> ModuleType:
    """What ``product.functions`` has, and the slopes, for one instruction set and type of weights."""
    vf = vocabulary(isa)
    fr = product.functions(isa, weight_type)
    activation = activations.functions(isa)
    sigmoid, full_sigmoid, tanh = activation.sigmoid, activation.full_sigmoid, activation.tanh

    @inlined
    def inside(sum_, limit, v):
        """``v`` where |sum| is below the limit; 0 elsewhere."""
        return vf.less(vf.set1(-limit), sum_, vf.less(sum_, vf.set1(limit), v))

    @inlined
    def sigmoid_slope(q):
        part = vf.div(vf.set1(1.0), q.d)
        value = vf.mul(q.n, part)
        return Slope(value, vf.mul(value, vf.mul(vf.sub(q.d, q.n), part)))

    @inlined
    def tanh_slope(sum_):
        one = vf.set1(1.0)
        q = tanh(sum_)
        part = vf.div(one, q.d)
        slope = vf.mul(vf.mul(vf.set1(4.0), vf.mul(vf.sub(q.d, one), part)), part)
        return Slope(vf.mul(q.n, part), slope)

    @inlined
    def state_slope(activation, sum_):
        one, zero = vf.set1(1.0), vf.set1(0.0)
        if activation == RELU:
            return Slope(vf.maximum(zero, sum_), vf.less(zero, sum_, one))
        return Slope(sum_, one) if activation == IDENTITY else tanh_slope(sum_)

    @inlined
    def gate_slope(w, defaults, sum_):
        """A gate and its slope."""
        if defaults:
            return sigmoid_slope(sigmoid(sum_))
        limited = fr.limited(sum_, w.clip)
        if w.gate_activation == SIGMOID:
            q = full_sigmoid(limited) if fr.unbounded(w) else sigmoid(limited)
            gate = sigmoid_slope(q)
        else:
            alpha, zero, one = vf.set1(w.alpha), vf.set1(0.0), vf.set1(1.0)
            line = vf.fma(alpha, limited, vf.set1(w.beta))
            slope = vf.less(zero, line, vf.less(line, one, alpha))
            gate = Slope(vf.maximum(zero, vf.minimum(one, line)), slope)
        return Slope(gate.value, inside(sum_, w.clip, gate.slope))

    @inlined
    def candidate_slope(w, defaults, sum_):
        """The candidate and its slope."""
        if defaults:
            return tanh_slope(sum_)
        candidate = state_slope(w.state_activation, fr.limited(sum_, w.clip))
        return Slope(candidate.value, inside(sum_, w.clip, candidate.slope))

    module = ModuleType(f"{__name__}.{isa}")
    module.__dict__.update(
        vars(fr)
        | {
            "__name__": module.__name__,
            "inside": inside,
            "tanh_slope": tanh_slope,
            "state_slope": state_slope,
            "gate_slope": gate_slope,
            "candidate_slope": candidate_slope,
        }
    )
    return module
