"""How long a layer remembers: what its gates keep on real data, and how far back gradients reach."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fusedrnn.analysis import jacobians
from fusedrnn.analysis.formulas import half_life, half_life_text
from fusedrnn.analysis.gates import recorded
from fusedrnn.analysis.jacobians import Norms
from fusedrnn.analysis.retention import half_lives, log_gate, retained_over
from fusedrnn.analysis.traces import gate_shares, place_name
from fusedrnn.architecture import Architecture
from fusedrnn.arrays import Array
from fusedrnn.counting.result import Result, Table
from fusedrnn.layers import Layer

__all__ = ["QUANTILES", "Horizon", "Memory", "horizon"]

Float64 = npt.NDArray[np.float64]

#: Of which the distribution of a gate is given.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
#: Steps over which retention is given.
STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
#: A unit is saturated whose gate is shut or open at more than this share of the steps.
SATURATED = 0.9
#: A gradient below this part of what it began with teaches nothing.
LOST = 0.01
#: Factors of growth per step from which on gradients vanish, and explode.
VANISHING, EXPLODING = 0.999, 1.001
#: A memory below so many steps is short: how to begin with a longer one is said.
SHORT = 50
#: The number of units of each layer that the table has.
SHOWN = 5


@dataclass(frozen=True)
class Memory:
    """How long one layer and direction remembers.

    Attributes
    ----------
    name
        "layer 0", "layer 1, reverse".
    gate
        The gate that retains, f or z; None for a cell without one, whose arrays are empty.
    mean, quantiles
        (H,) and (quantiles, H), of that gate: see :data:`QUANTILES`.
    steps
        Numbers of steps.
    retained
        (steps, H): the median, over all windows of so many steps, of the product of the gate over a window: what is
        left of what was stored.
    half_lives
        (H,): the median of the steps until less than half is left; inf if that is beyond half of the sequence.
    fitted_half_lives
        (H,): log 0.5 / mean log f.
    shut, open
        By gate, (H,): the share of steps at which it is below :data:`SHUT`, and above 1 - :data:`SHUT`; tanh: below
        -1 + :data:`SHUT`, and above 1 - :data:`SHUT`.
    norms
        Of dc_T/dc_t and of dh_T/dh_t over distance.
    """

    name: str
    gate: str | None
    mean: Float64
    quantiles: Float64
    steps: tuple[int, ...]
    retained: Float64
    half_lives: Float64
    fitted_half_lives: Float64
    shut: Mapping[str, Float64]
    open: Mapping[str, Float64]
    norms: tuple[Norms, ...]

    def always(self, gate: str, end: Literal["shut", "open"]) -> list[int]:
        """The units whose gate is shut, or open, at more than :data:`SATURATED` of the steps."""
        share = self.shut[gate] if end == "shut" else self.open[gate]
        return [int(unit) for unit in np.flatnonzero(share > SATURATED)]

    def saturated(self, gate: str) -> list[int]:
        """The units whose gate is at an end of its range, one or the other, at more than :data:`SATURATED` of the steps."""
        share = self.shut[gate] + self.open[gate]
        return [int(unit) for unit in np.flatnonzero(share > SATURATED)]

    def verdict(self) -> list[str]:
        """What that means, and what can be done, in sentences."""
        return [*self._memory_said(), *self._gradients_said(), *self._saturation_said()]

    def _memory_said(self) -> Iterable[str]:
        if self.gate is None:
            yield (
                f"{self.name}: the cell has no gate that retains, so there is no half-life: what it remembers is in "
                "the norms of dh_T/dh_t."
            )
            return
        if not len(self.half_lives):
            return
        middle, longest = float(np.median(self.half_lives)), int(np.argmax(self.half_lives))
        most = self.half_lives[longest]
        far = _steps(most) if np.isfinite(most) else "longer than half of the sequence"
        at_least = _steps(middle) if np.isfinite(middle) else "half of the sequence"
        yield (
            f"{self.name}: half of the units keep half of what they store for {at_least} or longer; the longest memory "
            f"is that of unit {longest}, {far}."
        )

    def _gradients_said(self) -> Iterable[str]:
        for each in self.norms:
            norm, rate = each.norm, each.growth
            if not len(norm):
                continue
            name = f"{self.name}: d{each.state}_T/d{each.state}_t"
            if each.state == "h" and len(self.norms) > 1:
                name += " (c held)"
            if rate < VANISHING:
                gone = np.flatnonzero(norm < LOST)
                where = (
                    f"below {LOST:.0%} from {gone[0] + 1} steps on: what is further back is hardly learned this way"
                    if len(gone)
                    else f"still {norm[-1]:.2g} after {len(norm)} steps"
                )
                yield f"{name} shrinks by {1 - rate:.2%} a step, and is {where}."
            elif rate > EXPLODING:
                yield (
                    f"{name} grows by {rate - 1:.2%} a step, to {norm[-1]:.3g} after {len(norm)}: clip gradients, or "
                    "begin with orthogonal recurrent matrices (fr.init.orthogonal)."
                )
            else:
                yield f"{name} neither shrinks nor grows: {norm[-1]:.3g} after {len(norm)} steps."

    def _saturation_said(self) -> Iterable[str]:
        for gate in self.shut:
            if gate == self.gate:
                kept, lost = self.always(gate, "open"), self.always(gate, "shut")
                if kept:
                    yield f"{self.name}: {gate} is nearly always open in {_listed(kept)}: long memories."
                if lost:
                    yield f"{self.name}: {gate} is nearly always shut in {_listed(lost)}: they remember nothing."
            elif units := self.saturated(gate):
                yield (
                    f"{self.name}: {gate} is nearly always at an end of its range in {_listed(units)}: gradients hardly "
                    "pass through it there."
                )


def _steps(number: float) -> str:
    return f"{half_life_text(number)} step{'' if number == 1 else 's'}"


def _listed(units: Sequence[int]) -> str:
    some = ", ".join(map(str, units[:8])) + (", ..." if len(units) > 8 else "")
    return f"{len(units)} unit{'s' if len(units) > 1 else ''} ({some})"


@dataclass(frozen=True)
class Horizon(Result):
    """How long a layer remembers.

    Attributes
    ----------
    architecture
        Of the layer.
    steps
        The number of steps of all sequences.
    memories
        Of each layer and direction, in the order of the state.
    """

    architecture: Architecture
    steps: int
    memories: tuple[Memory, ...]

    def __getitem__(self, place: int) -> Memory:
        return self.memories[place]

    def __len__(self) -> int:
        return len(self.memories)

    def verdict(self) -> list[str]:
        """What that means, and what can be done, in sentences."""
        said = [line for memory in self.memories for line in memory.verdict()]
        longest = max((float(each.half_lives.max(initial=0)) for each in self.memories), default=0)
        if 0 < longest < SHORT:
            said.append(
                f"If the task needs more than {_steps(longest)}, begin with fr.init.chrono(2, N), where N is the longest "
                "distance that matters; fusedrnn horizon --memory N says which bias that is."
            )
        return said

    def _title(self) -> str:
        a = self.architecture
        return (
            f"{a.table.title}, {a.hidden_size} units: what it remembers, over {self.steps:,} steps"
        )

    def _lead(self) -> Iterable[str]:
        return self.verdict()

    def _document(self) -> Mapping[str, Any]:
        return {
            "kind": "horizon",
            "cell": self.architecture.cell,
            "hidden_size": self.architecture.hidden_size,
            "steps": self.steps,
            "quantiles": list(QUANTILES),
            "verdict": self.verdict(),
            "layers": [_document_of(memory) for memory in self.memories],
        }

    def _records(self) -> Sequence[Mapping[str, Any]]:
        return [
            {"layer": memory.name, "unit": unit, **_unit_of(memory, unit)}
            for memory in self.memories
            for unit in range(self.architecture.hidden_size)
        ]

    def _tables(self) -> Iterable[Table]:
        for memory in self.memories:
            if memory.gate is not None:
                yield self.memory_table(memory)
            yield self.norm_table(memory)

    def memory_table(self, memory: Memory, shown: int = SHOWN) -> Table:
        """The units that remember longest and shortest, and the middle of all."""
        order = np.argsort(-memory.fitted_half_lives, kind="stable")
        cut = order if len(order) <= 2 * shown else [*order[:shown], *order[-shown:]]
        steps = [k for k in memory.steps if k in STEPS[::3]]
        places = [memory.steps.index(k) for k in steps]
        rows = [
            [
                str(unit),
                f"{memory.mean[unit]:.3f}",
                *(f"{memory.quantiles[q, unit]:.3f}" for q in (0, 2, 4)),
                half_life_text(float(memory.half_lives[unit])),
                half_life_text(float(memory.fitted_half_lives[unit])),
                *(f"{memory.retained[k, unit]:.3g}" for k in places),
            ]
            for unit in cut
        ]
        return Table(
            f"{memory.name}: {memory.gate}, longest and shortest memory of {len(order)} units",
            ["unit", "mean", "5 %", "median", "95 %", "half-life", "fitted", *(f"kept {k}" for k in steps)],
            rows,
            numbers=range(7 + len(steps)),
        )  # fmt: skip

    def norm_table(self, memory: Memory) -> Table:
        """Norms over distance, and the fitted factor per step."""
        some = [k for k in STEPS if all(k <= len(each.logs) for each in memory.norms)]
        return Table(
            f"{memory.name}: norms of derivatives over distance in steps",
            ["", *map(str, some), "factor a step"],
            [
                [
                    f"d{each.state}_T/d{each.state}_t",
                    *(f"{each.norm[k - 1]:.3g}" for k in some),
                    f"{each.growth:.4f}",
                ]
                for each in memory.norms
            ],
            numbers=range(1, 2 + len(some)),
        )


def _finite(values: Any) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def _document_of(memory: Memory) -> dict[str, Any]:
    return {
        "name": memory.name,
        "gate": memory.gate,
        "units": [_unit_of(memory, unit) for unit in range(len(memory.mean))],
        "norms": [
            {
                "of": f"d{each.state}_T/d{each.state}_t",
                "ends": each.ends,
                "units": list(each.units),
                "by_distance": _finite(each.norm),
                "factor_per_step": None if not len(each.logs) else each.growth,
            }
            for each in memory.norms
        ],
    }


def _unit_of(memory: Memory, unit: int) -> dict[str, Any]:
    row: dict[str, Any] = {}
    if memory.gate is not None:
        row["mean"] = float(memory.mean[unit])
        for name, value in zip(QUANTILES, memory.quantiles[:, unit], strict=True):
            row[f"quantile_{name:g}"] = float(value)
        row["half_life"], row["fitted_half_life"] = _finite(
            (memory.half_lives[unit], memory.fitted_half_lives[unit])
        )
        for steps, values in zip(memory.steps, memory.retained, strict=True):
            row[f"retained_{steps}"] = float(values[unit])
    for gate in memory.shut:
        row[f"{gate}_shut"] = float(memory.shut[gate][unit])
        row[f"{gate}_open"] = float(memory.open[gate][unit])
    return row


def horizon(
    layer: Layer[Any],
    x: Array,
    state: Sequence[Array] | None = None,
    lengths: Sequence[int] | None = None,
    *,
    distance: int = 100,
    ends: int = 4,
    progress: Callable[[float], object] = lambda share: None,
) -> Horizon:
    """How long a layer remembers, on data: what its gates keep, and how far back gradients reach.

    The gates are those of :func:`trace`. The norms of dc_T/dc_t and dh_T/dh_t are exact: products of the Jacobians of the
    steps, row by row, by backward passes of one step each; of a layer with more than 128 units, for 128 of them, evenly
    spaced. Bengio, Simard and Frasconi 1994 and Pascanu, Mikolov and Bengio 2013 (arXiv:1211.5063) say why they vanish
    and explode.

    Parameters
    ----------
    layer
        Any layer. A cell without a gate that retains (RNN, Clockwork) has the norms alone.
    x, state, lengths
        As for a call of the layer, with at least one step. x must be finite.
    distance
        The largest distance of derivatives in steps, at least 0; not beyond the longest sequence.
    ends
        The number of steps T that norms are averaged over, at least 1.
    progress
        Called with the part that is done, from 0 to 1.

    Returns
    -------
    Horizon
        ``horizon[k]`` of each layer and direction k; as text, a verdict and tables.

    Raises
    ------
    ValueError
        If x has NaN or infinity, the message names the first place; or if there is no step.
    TypeError, ValueError, UnsupportedError
        As a call of the layer.
    """
    for name, value, least in (("distance", distance, 0), ("ends", ends, 1)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name} must be an int of {least} or more, got {value!r}")
    found = recorded(layer, x, state, lengths)
    if not found.lengths.sum():
        raise ValueError("x must have at least one step: nothing is remembered of none")
    a, memories = layer.architecture, []
    count = len(found.values)
    for place in range(count):
        norms = jacobians.norms(
            layer, found, place, distance, ends,
            lambda share, place=place: progress((place + share) / count),  # type: ignore[misc]
        )  # fmt: skip
        memories.append(_memory(a, place, found.values[place], found.lengths, tuple(norms)))
        progress((place + 1) / count)
    return Horizon(a, int(found.lengths.sum()), tuple(memories))


def _memory(
    a: Architecture, place: int, named: Mapping[str, Any], lengths: Any, norms: tuple[Norms, ...]
) -> Memory:
    valid = np.arange(len(named["h"]))[:, None] < lengths
    shut, opened = gate_shares(a, named, valid)
    none = np.zeros(0)
    gate = a.table.retaining_gate
    name = place_name(a, place)
    if gate is None:
        return Memory(
            name, None, none, np.zeros((len(QUANTILES), 0)), (), np.zeros((0, 0)), none, none, shut, opened, norms
        )  # fmt: skip
    values = named[gate][valid].astype(np.float64)
    sums = log_gate(named, a, lengths, reverse=bool(a.reverse or place % a.directions))
    over = {k: kept for k in STEPS if (kept := retained_over(sums, k)) is not None}
    total = np.sum([each[-1] for each in sums], axis=0) / lengths.sum()
    return Memory(
        name=name,
        gate=gate,
        mean=values.mean(axis=0),
        quantiles=np.quantile(values, QUANTILES, axis=0),
        steps=tuple(over),
        retained=np.array(list(over.values())),
        half_lives=half_lives(sums),
        fitted_half_lives=np.array([half_life(float(np.exp(each))) for each in total]),
        shut=shut,
        open=opened,
        norms=norms,
    )
