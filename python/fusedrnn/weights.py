"""Canonical weights: what arrays a layer has, checked, inferred from shapes, and initialised.

Canonical means PyTorch's names, shapes and gate order: ``weight_ih_l0`` (G H, X), ``weight_hh_l0`` (G H, R),
``bias_ih_l0`` and ``bias_hh_l0`` (G H,), ``weight_hr_l0`` (P, H), with ``_reverse`` for the second direction and
``l1``, ``l2``, … up the stack. Which of them exist follows from :meth:`Architecture.weights`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from fusedrnn.architecture import Architecture
from fusedrnn.arrays import FLOAT32, Array, check_is_array, check_size, frozen
from fusedrnn.formats.layouts import reordered
from fusedrnn.init import Initialiser
from fusedrnn.narrowing import Narrow, Stored, checked_narrow, matrices
from fusedrnn.shapes import WEIGHT_NAME, from_shapes, listed, unmatched

__all__ = ["Weights", "checked", "in_canonical_order", "infer", "initialise", "under"]

Weights = Mapping[str, Array]


def initialise(
    architecture: Architecture,
    seed: int | None,
    dtype: np.dtype[Any],
    init: Initialiser | Sequence[Initialiser] | None = None,
) -> Weights:
    """Weights drawn from the uniform distribution on ±1/sqrt(H), PyTorch's default; initialisers then replace some.

    The same ``seed`` gives the same weights on every machine and in every dtype (up to rounding).
    """
    for weight in architecture.weights():
        check_size(weight.name, weight.shape, dtype)
    try:
        random = np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise type(error)(f"seed must be None or an int of 0 or more, got {seed!r}") from None
    bound = architecture.hidden_size**-0.5
    drawn = {
        weight.name: random.uniform(-bound, bound, weight.shape).astype(dtype)
        for weight in architecture.weights()
    }
    for each in _initialisers(init):
        each(architecture, drawn, random)
    for name, rows, columns in _never_read(architecture):
        drawn[name][rows, columns] = 0
    return MappingProxyType({name: frozen(array) for name, array in drawn.items()})


def _initialisers(init: Initialiser | Sequence[Initialiser] | None) -> Sequence[Initialiser]:
    given = () if init is None else init if isinstance(init, (list, tuple)) else (init,)
    for each in given:
        if not callable(each) or isinstance(each, type):
            kind = type(each).__name__
            raise TypeError(
                f"init must be of fusedrnn.init, as fr.init.chrono(2, 500), or a list of such, not {kind}"
            )
    return given


def _never_read(architecture: Architecture) -> Iterator[tuple[str, slice, slice]]:
    """The blocks of recurrent matrices that no module of a Clockwork RNN reads."""
    for weight in architecture.weights() if architecture.periods else ():
        if weight.kind == "recurrent":
            for module in range(len(architecture.periods)):
                rows = slice(
                    module * architecture.module_size, (module + 1) * architecture.module_size
                )
                yield weight.name, rows, slice(0, architecture.module_reads(module))


def under(prefix: str, weights: Stored) -> Stored:
    """The arrays whose names begin with a prefix, by what is left of their names.

    Raises
    ------
    ValueError
        If there are none, or one that is not the name of a recurrent weight; the message names them.
    """
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be text, not {type(prefix).__name__}")
    if not isinstance(weights, Mapping):
        kind = type(weights).__name__
        raise TypeError(f"weights must be a mapping from names to arrays, not {kind}")
    if not prefix:
        return weights
    found = {
        name[len(prefix) :]: array
        for name, array in weights.items()
        if isinstance(name, str) and name.startswith(prefix)
    }
    if not found:
        given = listed(weights) or "no arrays"
        raise ValueError(f"weights: no name begins with the prefix {prefix!r}; given are {given}")
    unknown = [prefix + name for name in found if not WEIGHT_NAME.fullmatch(name)]
    if unknown:
        raise ValueError(
            f"weights: left over under the prefix {prefix!r}: {listed(unknown)}; "
            "names there must be like 'weight_ih_l0', 'weight_hh_l0_reverse', 'bias_ih_l1'"
        )
    return found


def infer(cell: str, weights: Stored, options: Mapping[str, Any]) -> Architecture:
    """The architecture whose weights these are, from names and shapes, and from what options say.

    Raises
    ------
    ValueError
        If a name is not canonical, or the shapes of the first layer do not determine the sizes.
        Missing, left-over and misshapen arrays are found by :func:`checked`.
    """
    shapes = {
        name: checked_narrow(name, array).shape
        if isinstance(array, Narrow)
        else check_is_array(f"weights: {name!r}", array, FLOAT32).shape
        for name, array in weights.items()
    }
    return from_shapes(cell, shapes, options)


def in_canonical_order(architecture: Architecture, weights: Stored, gate_order: str) -> Stored:
    """Arrays whose gate blocks are in another order, with the blocks in canonical order.

    Raises
    ------
    ValueError
        If the order is not one of all the cell's gates, or an array is not of that many blocks.
    """
    gates = "".join(gate.name for gate in architecture.table.gates)
    if not isinstance(gate_order, str) or sorted(gate_order) != sorted(gates):
        raise ValueError(
            f"gate_order must have the letters {gates!r} in some order, got {gate_order!r}"
        )
    rows = len(gates) * architecture.hidden_size
    wanted = {weight.name for weight in architecture.weights() if weight.shape[0] == rows}
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    order = reordered(np.arange(rows), gate_order, gates)
    return {
        name: array
        if name not in wanted or not name.startswith(kinds) or array.shape[:1] != (rows,)
        else array.rows(order)
        if isinstance(array, Narrow)
        else array[order]
        for name, array in weights.items()
    }


def checked(architecture: Architecture, weights: Stored, dtype: np.dtype[Any]) -> Stored:
    """A private, read-only copy of the weights, after every name, shape and dtype has been checked.

    Raises
    ------
    ValueError
        Missing or left-over arrays, or a wrong shape; the message names the array.
    TypeError
        Anything but float32 (or, for a float64 layer, float64), or a :class:`Narrow` matrix: nothing is rounded silently.
    """
    weights = under("", weights)
    wanted = {weight.name: weight.shape for weight in architecture.weights()}
    if weights.keys() != wanted.keys():
        raise ValueError(f"weights: {unmatched(wanted, weights)}")
    copies: dict[str, Array | Narrow] = {}
    for name, shape in wanted.items():
        given = weights[name]
        if isinstance(given, Narrow) and name in matrices(architecture):
            narrow = checked_narrow(name, given)
            if narrow.shape != shape:
                raise ValueError(f"weights: {name!r} must have shape {shape}, got {narrow.shape}")
            copies[name] = narrow.frozen()
            continue
        array = check_is_array(f"weights: {name!r}", given, dtype)
        if array.dtype not in (dtype, FLOAT32):
            names = " or ".join(sorted({str(FLOAT32), str(dtype)}))
            raise TypeError(
                f"weights: {name!r} must be native-endian {names}, got {array.dtype.str!r} "
                f"({array.dtype}); convert it with .astype('{dtype}')"
            )
        if array.shape != shape:
            raise ValueError(f"weights: {name!r} must have shape {shape}, got {array.shape}")
        copies[name] = frozen(array.astype(dtype, copy=False))
    for name, rows, columns in _never_read(architecture):
        kept = copies[name]
        if (kept.widened() if isinstance(kept, Narrow) else kept)[rows, columns].any():
            raise ValueError(
                f"weights: {name!r} must be zero in rows {rows.start}:{rows.stop}, columns "
                f"0:{columns.stop}: that module does not read faster ones"
            )
    return MappingProxyType(copies)
