"""What a gate that changes with the data keeps: products over windows of steps, measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.analysis.gates import in_own_order
from fusedrnn.architecture import Architecture
from fusedrnn.engines.base import Lengths

__all__ = ["half_lives", "log_gate", "retained_over"]

#: The smallest value of a gate: below it nothing is left in float32 after a step.
SMALLEST = 2.0**-126

Float64 = npt.NDArray[np.float64]


def log_gate(
    named: Mapping[str, npt.NDArray[Any]], a: Architecture, lengths: Lengths, *, reverse: bool
) -> list[Float64]:
    """The running sum of the logarithm of the gate that retains, of each row: (length + 1, H), from 0 on."""
    gate = named[str(a.table.retaining_gate)]
    sums = []
    for row, length in enumerate(lengths.tolist()):
        values = in_own_order(gate, row, length, reverse=reverse).astype(np.float64)
        logs = np.log(np.maximum(values, SMALLEST))
        sums.append(np.concatenate([np.zeros((1, logs.shape[1])), np.cumsum(logs, axis=0)]))
    return sums


def retained_over(sums: Sequence[Float64], steps: int) -> Float64 | None:
    """The median over all windows of so many steps of what each unit keeps, (H,); None if no sequence is so long."""
    windows = [each[steps:] - each[:-steps] for each in sums if len(each) > steps]
    if not windows:
        return None
    return np.asarray(np.exp(np.median(np.concatenate(windows), axis=0)))


def half_lives(sums: Sequence[Float64]) -> Float64:
    """The median, over the steps of the first half of each sequence, of the steps until half is left: (H,).

    inf for a unit that keeps more than half from most of those steps to the end.
    """
    found = []
    for each in sums:
        starts = max(len(each) // 2, 1)
        rows = []
        for unit in range(each.shape[1]):
            lost = -each[:, unit]  # ascends unless a gate is above 1
            lost = np.maximum.accumulate(lost)
            end = np.searchsorted(lost, lost[:starts] + np.log(2))
            rows.append(np.where(end < len(lost), end - np.arange(starts), np.inf))
        found.append(np.array(rows))
    return np.asarray(np.median(np.concatenate(found, axis=1), axis=1))
