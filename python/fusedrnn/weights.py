"""Canonical weights: what arrays a layer has, checked, inferred from shapes, and initialised.

Canonical means PyTorch's names, shapes and gate order: ``weight_ih_l0`` (G H, X), ``weight_hh_l0`` (G H, R),
``bias_ih_l0`` and ``bias_hh_l0`` (G H,), ``weight_hr_l0`` (P, H), with ``_reverse`` for the second direction and
``l1``, ``l2``, … up the stack. Which of them exist follows from :meth:`Architecture.weights`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from fusedrnn.cells import CELLS, Architecture, Bias
from fusedrnn.gate import FLOAT32, Array, array_gate, size_gate

__all__ = ["Weights", "checked", "infer", "initialise"]

Weights = Mapping[str, Array]

_NAME = re.compile(r"(weight_ih|weight_hh|bias_ih|bias_hh|weight_hr)_l(0|[1-9]\d{0,4})(_reverse)?")


def initialise(architecture: Architecture, seed: int | None, dtype: np.dtype[Any]) -> Weights:
    """Weights drawn from the uniform distribution on ±1/sqrt(H), PyTorch's default.

    The same ``seed`` gives the same weights on every machine and in every dtype (up to rounding).
    """
    for weight in architecture.weights():
        size_gate(weight.name, weight.shape, dtype)
    try:
        random = np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise type(error)(f"seed must be None or an int of 0 or more, got {seed!r}") from None
    bound = architecture.hidden_size**-0.5
    drawn = {
        weight.name: random.uniform(-bound, bound, weight.shape).astype(dtype)
        for weight in architecture.weights()
    }
    return _frozen(drawn)


def infer(cell: str, weights: Weights) -> Architecture:
    """The architecture whose weights these are, from names and shapes alone.

    Raises
    ------
    ValueError
        If a name is not canonical, or the shapes of the first layer do not determine the sizes.
        Missing, left-over and misshapen arrays are found by :func:`checked`.
    """
    if not isinstance(weights, Mapping):
        kind = type(weights).__name__
        raise TypeError(f"weights must be a mapping from names to arrays, not {kind}")
    found = []
    for name in weights:
        match = _NAME.fullmatch(name) if isinstance(name, str) else None
        if match is None:
            raise ValueError(
                f"weights: {name!r} is not the name of a recurrent weight; "
                "names are like 'weight_ih_l0', 'weight_hh_l0_reverse', 'bias_ih_l1'"
            )
        found.append((match[1], int(match[2]), bool(match[3])))

    def shape(name: str) -> tuple[int, int]:
        if name not in weights:
            given = _listed(weights) or "no arrays"
            raise ValueError(f"weights: {name!r} is missing; given are {given}")
        array_shape = array_gate(f"weights: {name!r}", weights[name], FLOAT32).shape
        if len(array_shape) != 2:
            raise ValueError(f"weights: {name!r} must have 2 axes, got shape {array_shape}")
        return int(array_shape[0]), int(array_shape[1])

    gates = len(CELLS[cell].gates)
    rows, inputs = shape("weight_ih_l0")
    if rows % gates or rows == 0 or inputs == 0:
        raise ValueError(
            f"weights: 'weight_ih_l0' must have shape ({gates} * hidden_size, input_size), "
            f"got {(rows, inputs)}"
        )
    kinds = {kind for kind, _, _ in found}
    bias: Bias = "double" if "bias_hh" in kinds else "single" if "bias_ih" in kinds else "none"
    return Architecture(
        cell,
        input_size=inputs,
        hidden_size=rows // gates,
        num_layers=1 + max(layer for _, layer, _ in found),
        bidirectional=any(reverse for _, _, reverse in found),
        proj_size=shape("weight_hr_l0")[0] if "weight_hr" in kinds else 0,
        bias=bias,
    )


def checked(architecture: Architecture, weights: Weights, dtype: np.dtype[Any]) -> Weights:
    """A private, read-only copy of the weights, after every name, shape and dtype has been checked.

    Raises
    ------
    ValueError
        Missing or left-over arrays, or a wrong shape; the message names the array.
    TypeError
        Anything but float32 (or, for a float64 layer, float64): nothing is rounded silently.
    """
    wanted = {weight.name: weight.shape for weight in architecture.weights()}
    missing = [name for name in wanted if name not in weights]
    left_over = [name for name in weights if name not in wanted]
    if missing or left_over:
        said = [f"missing: {_listed(missing)}"] if missing else []
        said += [f"left over: {_listed(left_over)}"] if left_over else []
        raise ValueError("weights: " + "; ".join(said))
    accepted = {np.dtype(np.float32), dtype}
    copies = {}
    for name, shape in wanted.items():
        array = array_gate(f"weights: {name!r}", weights[name], dtype)
        if array.dtype not in accepted:
            names = " or ".join(sorted(str(kind) for kind in accepted))
            raise TypeError(
                f"weights: {name!r} must be native-endian {names}, got {array.dtype.str!r} "
                f"({array.dtype}); convert it with .astype('{dtype}')"
            )
        if array.shape != shape:
            raise ValueError(f"weights: {name!r} must have shape {shape}, got {array.shape}")
        copies[name] = np.array(array, dtype=dtype, order="C", subok=False)
    return _frozen(copies)


def _frozen(arrays: dict[str, Array]) -> Weights:
    # Over bytes, which nobody can make writable.
    frozen = {
        name: np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape)
        for name, array in arrays.items()
    }
    return MappingProxyType(frozen)


def _listed(names: Any) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
