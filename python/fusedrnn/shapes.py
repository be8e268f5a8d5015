"""What the names and shapes of canonical weights tell: which architecture they belong to.

This module is plain Python: a program that only looks into a file needs neither NumPy nor the C extension.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from fusedrnn.architecture import Architecture, Bias
from fusedrnn.cells import CELLS

__all__ = ["KINDS", "WEIGHT_NAME", "from_shapes", "listed", "unmatched"]

_OWN = {
    f"bias_h{gate}"
    for forms in CELLS.values()
    for form in forms
    for gate in form.own_recurrent_bias
}
#: The kinds of canonical arrays, as their names begin.
KINDS = (
    "weight_ih",
    "weight_hh",
    "bias_ih",
    "bias_hh",
    "weight_hr",
    "weight_peephole",
    *sorted(_OWN),
)
#: A canonical name: its kind, its layer, and whether it is of the second direction.
WEIGHT_NAME = re.compile(rf"({'|'.join(KINDS)})_l(0|[1-9]\d{{0,4}})(_reverse)?")


def from_shapes(
    cell: str, shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any]
) -> Architecture:
    """The architecture whose weights have these shapes, and what options say beside.

    Parameters
    ----------
    cell
        A key of :data:`CELLS`.
    shapes
        By canonical name, without a prefix.
    options
        Of the cell, where shapes do not tell them.

    Raises
    ------
    ValueError
        If a name is not canonical, or the shapes of the first layer do not determine the sizes. Missing, left-over
        and misshapen arrays are not looked for.
    """
    found = []
    for name in shapes:
        match = WEIGHT_NAME.fullmatch(name) if isinstance(name, str) else None
        if match is None:
            raise ValueError(
                f"weights: {name!r} is not the name of a recurrent weight; "
                "names are like 'weight_ih_l0', 'weight_hh_l0_reverse', 'bias_ih_l1'"
            )
        found.append((match[1], int(match[2]), bool(match[3])))

    def shape(name: str, axes: int) -> tuple[int, ...]:
        if name not in shapes:
            given = listed(shapes) or "no arrays"
            raise ValueError(f"weights: {name!r} is missing; given are {given}")
        array_shape = shapes[name]
        if len(array_shape) != axes or 0 in array_shape:
            raise ValueError(f"weights: {name!r} must have {axes} axes, got shape {array_shape}")
        return array_shape

    kinds = {kind for kind, _, _ in found}
    rows, inputs = shape("weight_ih_l0", 2)
    proj_size, units = shape("weight_hr_l0", 2) if "weight_hr" in kinds else (0, 0)
    units = units or shape("weight_hh_l0", 2)[1]
    known = dict(options)
    if known.pop("proj_size", proj_size) != proj_size:
        raise ValueError(
            f"weights: proj_size is {proj_size} by the arrays, got {options['proj_size']!r}"
        )
    if cell == "lstm" and rows == 3 * units:
        known.setdefault("coupled", True)
    forms = {len(form.gates) for form in CELLS[cell]}
    if rows not in {gates * units for gates in forms}:
        several = " or ".join(str(gates) for gates in sorted(forms, reverse=True))
        raise ValueError(
            f"weights: 'weight_ih_l0' must have shape ({several} * hidden_size, input_size) with "
            f"hidden_size {units}, got {(rows, inputs)}"
        )
    if "weight_peephole" in kinds and "peephole" not in known:
        letters = "fo" if known.get("coupled") else "ifo"
        (length,) = shape("weight_peephole_l0", 1)
        if length != len(letters) * units:
            raise ValueError(
                f"weights: 'weight_peephole_l0' has {length} elements, which is not {len(letters)} * "
                f"hidden_size: say which gates have peepholes, as in peephole='o'"
            )
        known["peephole"] = letters
    bias: Bias = "double" if "bias_hh" in kinds else "single" if "bias_ih" in kinds else "none"
    return Architecture(
        cell,
        input_size=inputs,
        hidden_size=units,
        num_layers=1 + max(layer for _, layer, _ in found),
        bidirectional=any(reverse for _, _, reverse in found),
        proj_size=proj_size,
        bias=bias,
        **known,
    )


def unmatched(wanted: Iterable[str], given: Iterable[str]) -> str:
    """Which names are missing and which are left over, in words; "" if all are there and no other."""
    wanted, given = list(wanted), list(given)
    has, wants = set(given), set(wanted)
    missing = [name for name in wanted if name not in has]
    left_over = [name for name in given if name not in wants]
    said = [f"missing: {listed(missing)}"] if missing else []
    said += [f"left over: {listed(left_over)}"] if left_over else []
    return "; ".join(said)


def listed(names: Iterable[object]) -> str:
    """Names for a message: six, and how many more."""
    said = [str(name) for name in names]
    return ", ".join(said[:6]) + (f" and {len(said) - 6} more" if len(said) > 6 else "")
