"""How the state at one step depends on that of an earlier one: exact, by the backward pass of one step after another.

The derivative of the state after step T with respect to that after step t is a product of the Jacobians of the steps
between. Its rows are found from T backward: ``layer.record`` of one step from the state that the call had there, and
``tape.backward`` of what has come so far. A row is scaled by a power of two after each step, so nothing vanishes or
overflows in float32: that is exact, because a backward pass is linear.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.analysis.gates import Recorded, in_own_order, recording
from fusedrnn.arrays import Array
from fusedrnn.layers import Layer

__all__ = ["MAX_UNITS", "Norms", "norms"]

Float64 = npt.NDArray[np.float64]

#: Of so many units, evenly spaced, the rows of a Jacobian are computed: all of a smaller layer.
MAX_UNITS = 128


@dataclass(frozen=True)
class Norms:
    """Norms of the derivatives of one layer and direction over distance.

    Attributes
    ----------
    state
        "c" or "h": of dc_T/dc_t, or of dh_T/dh_t. h and c are independent coordinates of the state.
    units
        The units whose rows were computed.
    logs
        (distances, units): the logarithm of the norm of a unit's row, the root of the mean square over all ends T;
        logs[k] at a distance of k + 1 steps.
    ends
        How many ends T the mean is over.
    """

    state: str
    units: tuple[int, ...]
    logs: Float64
    ends: int

    @property
    def log_norm(self) -> Float64:
        """(distances,): the logarithm of :attr:`norm`, for norms of any size."""
        return _log_mean_square(2 * self.logs, 1) / 2

    @property
    def norm(self) -> Float64:
        """(distances,): the root of the mean square over the rows: 1 for a state that is passed on unchanged."""
        with np.errstate(over="ignore", under="ignore"):
            return np.asarray(np.exp(self.log_norm))

    @property
    def growth(self) -> float:
        """The factor per step that fits the logarithms of the norms best; 0 if a norm is 0, NaN without distances."""
        logs = self.log_norm
        if not len(logs):
            return float("nan")
        if np.isneginf(logs).any():
            return 0.0
        slope = np.polyfit(np.arange(len(logs)), logs, 1)[0] if len(logs) > 1 else logs[0]
        return float(np.exp(slope))


def _log_mean_square(logs: Float64, axis: int) -> Float64:
    """The logarithm of the mean of exp(logs)."""
    return np.asarray(np.logaddexp.reduce(logs, axis=axis) - np.log(logs.shape[axis]))


def norms(
    layer: Layer[Any],
    found: Recorded,
    place: int,
    distance: int,
    ends: int,
    progress: Callable[[float], object] = lambda share: None,
) -> list[Norms]:
    """The norms of dc_T/dc_t, of an LSTM, and of dh_T/dh_t, at distances from 1 on.

    Parameters
    ----------
    layer, found, place
        A recorded call, and the index of the layer and direction.
    distance
        The largest distance; not beyond the longest sequence.
    ends
        The number of steps T, evenly spaced over the sequences.
    progress
        Called with the part that is done.

    Returns
    -------
    list of Norms
        Without distances if there are no steps.
    """
    a = layer.architecture
    single = _alone(layer, place)
    reverse = bool(a.reverse or place % a.directions)
    distance = min(distance, int(found.lengths.max(initial=0)))
    kinds = ["c", "h"] if a.cell == "lstm" else ["h"]
    chosen = _ends(found.lengths, distance, ends) if distance else []
    rows = [
        _Row(found, place, row, int(found.lengths[row]), reverse, a.cell, counter=bool(a.periods))
        for row, _ in chosen
    ]
    results = []
    parts = max(len(kinds) * len(chosen), 1)
    for number, kind in enumerate(kinds):
        width = a.hidden_size if kind == "c" else a.fed_back
        count = min(width, MAX_UNITS)
        units = tuple(int(each) for each in np.linspace(0, width - 1, count).round())
        every = np.zeros((len(chosen), distance, count))
        for pair, (row, (_, end)) in enumerate(zip(rows, chosen, strict=True)):
            before = number * len(chosen) + pair
            every[pair] = _walk(
                single, row, end, distance, kind, units, width,
                lambda share, before=before: progress((before + share) / parts),  # type: ignore[misc]
            )  # fmt: skip
        logs = _log_mean_square(2 * every, 0) / 2 if len(chosen) else np.zeros((0, count))
        results.append(Norms(kind, units, logs, len(chosen)))
    return results


class _Row:
    """One sequence, as a layer and direction computed it: what it read, and the state before each step."""

    def __init__(
        self, found: Recorded, place: int, row: int, length: int, reverse: bool, cell: str, *, counter: bool
    ) -> None:  # fmt: skip
        named = found.values[place]
        self.x = in_own_order(found.inputs[place], row, length, reverse=reverse)
        self.states: list[Any] = []
        for name, start in zip(("h", "c"), found.before):
            if name == "c" and cell != "lstm":
                break
            after = in_own_order(named[name], row, length, reverse=reverse)
            self.states.append(np.concatenate([start[place, row][None], after[:-1]]))
        if counter:
            self.states.append(found.before[1][place, row] + np.arange(length))


def _walk(
    single: Layer[Any],
    row: _Row,
    end: int,
    distance: int,
    kind: str,
    units: Sequence[int],
    width: int,
    progress: Callable[[float], object],
) -> Float64:
    """The logarithms of the norms of some rows at each distance from the state after step end - 1: (distance, units)."""
    count = len(units)
    sizes = [each.shape[-1] for each in row.states if each.ndim == 2]
    gradients = [np.zeros((1, count, size), single.dtype) for size in sizes]
    at = 1 if kind == "c" else 0
    gradients[at][0, np.arange(count), list(units)] = 1
    exponents = np.zeros(count, np.int64)
    logs = np.empty((distance, count))
    for k in range(distance):
        step = end - 1 - k
        x = np.repeat(row.x[step][None, None], count, axis=1)
        state = [np.repeat(each[step][None, None], count, axis=1) for each in row.states]
        _, _, tape = single.record(x, state)
        given = [*gradients, *[None] * (len(state) - len(gradients))]
        back = tape.backward(None, given, want_x=False).state
        gradients = [each for each in back if each is not None]
        largest = np.max([np.abs(each[0]).max(axis=1) for each in gradients], axis=0)
        _, shift = np.frexp(largest)
        gradients = [np.ldexp(each, -shift[:, None]).astype(single.dtype) for each in gradients]
        exponents += shift
        with np.errstate(divide="ignore"):
            norm = np.sqrt(np.sum(gradients[at][0].astype(np.float64) ** 2, axis=1))
            logs[k] = np.log(norm) + exponents * np.log(2)
        progress((k + 1) / distance)
    return logs


def _ends(lengths: Any, distance: int, ends: int) -> list[tuple[int, int]]:
    """Rows and ends, evenly spaced over the sequences that are long enough."""
    possible = [
        (row, end)
        for row, length in enumerate(lengths.tolist())
        for end in range(distance, length + 1)
    ]
    places = np.linspace(len(possible) - 1, 0, min(ends, len(possible))).round().astype(int)
    return [possible[place] for place in sorted(set(places.tolist()))]


def _alone(layer: Layer[Any], place: int) -> Layer[Any]:
    """One layer and direction as a layer of its own, in one direction forward."""
    a = layer.architecture
    level, direction = divmod(place, a.directions)
    end = f"_l{level}{'_reverse' if direction else ''}"
    own = {
        each.name: each
        for each in a.weights()
        if (each.layer, each.direction) == (level, direction)
    }
    arrays: dict[str, Array] = {name.removesuffix(end) + "_l0": layer.weights[name] for name in own}
    options = a.untold()
    options.pop("reverse", None)
    made = type(layer).from_weights(
        arrays, backend=layer.backend, dtype=str(layer.dtype), **options
    )
    return recording(made)
