"""Gates and states over time from the tape of a call: elementwise, because the tape has the sums of all products.

Arrays are (T, B, ·) here, whatever the layout of x, with NaN past a sequence's end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.architecture import Architecture
from fusedrnn.arrays import Array
from fusedrnn.engines.base import Lengths, by_direction
from fusedrnn.kernels.reference import FUNCTIONS, parameters
from fusedrnn.layers import Layer

__all__ = ["Recorded", "check_finite", "check_states", "in_own_order", "recorded", "recording"]


@dataclass(frozen=True)
class Recorded:
    """A recorded call of a layer.

    Attributes
    ----------
    values
        Of each layer and direction, in the order of the state: its named arrays, each (T, B, ·).
    inputs
        Of each layer and direction: what it read, (T, B, ·).
    before
        The state before step 0: each (L * D, B, ·).
    lengths
        (B,), of the sequences.
    """

    values: list[dict[str, npt.NDArray[Any]]]
    inputs: list[Array]
    before: list[Array]
    lengths: Lengths


def check_finite(x: Array) -> None:
    """Raise a ValueError that names the first place of x that is NaN or infinite: an average would hide it."""
    wrong = np.argwhere(~np.isfinite(x))
    if len(wrong):
        place = tuple(int(each) for each in wrong[0])
        raise ValueError(
            f"x must be finite to be analysed: x[{', '.join(map(str, place))}] is {x[place]}, "
            f"the first of {len(wrong):,} such numbers"
        )


def check_states(
    states: Sequence[tuple[Array, ...]], past: npt.NDArray[np.bool_] | bool = False, first: int = 0
) -> None:
    """Raise a ValueError that names the first step and row whose state overflowed.

    Parameters
    ----------
    states
        Of each layer and direction: h and perhaps c, (T, B, ·).
    past
        (T, B): what is past a sequence's end.
    first
        The number of the first step.
    """
    for place, several in enumerate(states):
        for name, array in zip("hc", several):
            wrong = np.argwhere(~np.isfinite(array).all(axis=2) & ~past)
            if len(wrong):
                step, row = wrong[0].tolist()
                raise ValueError(
                    f"{name} of layer and direction {place} is not finite at step {first + step} of sequence {row}: the layer "
                    "overflows on this x, or its weights are not finite"
                )


def recording(layer: Layer[Any]) -> Layer[Any]:
    """The layer, in C instead of Numba, which takes seconds to compile what records."""
    if layer.backend != "numba":
        return layer
    saved = layer.__getstate__() | {"backend": "c"}
    copy = type(layer).__new__(type(layer))
    copy.__setstate__(saved)
    return copy


def recorded(
    layer: Layer[Any],
    x: Array,
    state: Sequence[Array] | None = None,
    lengths: Sequence[int] | None = None,
    *,
    resets: npt.NDArray[np.bool_] | None = None,
) -> Recorded:
    """Record a call, and name what its tape has."""
    a, signature = layer.architecture, layer._signature
    call, _ = signature.call(x, state, lengths, None, resets)
    check_finite(x)
    before = [array.copy() for array in call.state]
    _, _, tape = recording(layer).record(x, state, lengths, resets=resets)
    states = tape.states()
    sums: Sequence[Array | None] = [None] * len(states) if a.periods else tape.sums()
    steps, batch, _ = call.x.shape
    ends = np.full(batch, steps) if call.lengths is None else call.lengths
    past = np.arange(steps)[:, None] >= ends
    check_states(states, past)
    read = [np.where(past[..., None], np.nan, call.x).astype(call.x.dtype)]
    for first in range(0, len(states), a.directions):
        read.append(np.concatenate([each[0] for each in states[first : first + a.directions]], 2))
    found = []
    for index, (now, total) in enumerate(zip(states, sums, strict=True)):
        reverse = bool(a.reverse or index % a.directions)
        start = [array[index] for array in before]
        old = [
            _previous(array, first, ends, call.resets, reverse) for array, first in zip(now, start)
        ]
        if total is None:
            due = _due(a, start[1], steps, ends, call.resets, reverse) & ~past[..., None]
            found.append({"h": now[0], "due": due})
        else:
            found.append(_named(layer, index, total, now, old))
    inputs = [read[index // a.directions] for index in range(len(states))]
    return Recorded(found, inputs, before, ends)


def _named(
    layer: Layer[Any], index: int, sums: Array, now: Sequence[Array], old: Sequence[Array]
) -> dict[str, npt.NDArray[Any]]:
    """The values of a layer and direction by the names of the specification, from sums and states."""
    a = layer.architecture
    w = parameters(a, by_direction(a, layer.weights)[index])
    named: dict[str, npt.NDArray[Any]] = {}
    for place, gate in enumerate(a.table.gates):
        total = sums[:, :, place]
        if gate.name in w.p:
            total = total + w.p[gate.name] * (now[1] if gate.peephole == "c'" else old[1])
        if a.clip is not None:
            total = np.clip(total, -a.clip, a.clip)
        activation = a.activation_of(gate.role)
        named[gate.name] = FUNCTIONS[activation.name](total, *activation.parameters)
    if a.cell == "lstm":
        if a.coupled:
            named["i"] = 1 - named["f"]
        output = a.activation_of("output")
        named |= {
            "c": now[1],
            "h": now[0],
            "retained": named["f"] * old[1],
            "added": named["i"] * named["g"],
            "output": now[0]
            if not a.proj_size
            else named["o"] * FUNCTIONS[output.name](now[1], *output.parameters),
        }
    elif a.cell == "gru":
        named |= {
            "h": now[0],
            "retained": named["z"] * old[0],
            "added": (1 - named["z"]) * named["n"],
        }
    else:
        named["h"] = now[0]
    return named


def in_own_order(array: Any, row: int, length: int, *, reverse: bool) -> Any:
    """The steps of one row in the order in which they were computed: (length, ·)."""
    steps = array[:length, row]
    return steps[::-1] if reverse else steps


def _previous(states: Array, start: Array, lengths: Lengths, resets: Any, reverse: bool) -> Array:
    """The state before each step, (T, B, ·), from those after it; past a sequence's end it has no meaning."""
    old = np.empty_like(states)
    if not len(states):
        return old
    if not reverse:
        old[0], old[1:] = start, states[:-1]
    else:
        old[:-1], old[-1] = states[1:], 0
        rows = np.flatnonzero(lengths)
        old[lengths[rows] - 1, rows] = start[rows]
    if resets is not None:
        old[resets] = 0
    return old


def _due(
    a: Architecture, count: Any, steps: int, lengths: Lengths, resets: Any, reverse: bool
) -> npt.NDArray[np.bool_]:
    """Which units of a Clockwork RNN a step computes, (T, B, H)."""
    time = np.arange(steps)[:, None]
    made = count + (lengths - 1 - time if reverse else time)
    if resets is not None:
        last = np.maximum.accumulate(np.where(resets, time, -1), axis=0)
        made = np.where(last < 0, made, time - last)
    periods = np.repeat(np.asarray(a.periods), a.module_size)
    return np.asarray(made[..., None] % periods == 0)
