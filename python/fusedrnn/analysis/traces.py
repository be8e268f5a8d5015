"""Every gate and state of a layer over time, and how much each unit is used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.analysis.formulas import half_life_text
from fusedrnn.analysis.gates import recorded
from fusedrnn.analysis.retention import half_lives, log_gate
from fusedrnn.analysis.text import Tracked, tracked
from fusedrnn.architecture import Architecture
from fusedrnn.arrays import Array
from fusedrnn.counting.result import Result, Table
from fusedrnn.engines.base import Lengths
from fusedrnn.layers import Layer

__all__ = ["SHUT", "Trace", "Unit", "gate_shares", "place_name", "trace"]

Shares = npt.NDArray[np.float64]

#: Below this share of its range a gate is shut, and above 1 minus this share it is open: both are saturated.
SHUT = 0.05
#: The number of units that a table has of the most, and of the least used.
SHOWN = 5


@dataclass(frozen=True)
class Unit:
    """How a unit of one layer and direction was used.

    Attributes
    ----------
    place, unit
        Index of its layer and direction, in the order of the state; its number.
    use
        The standard deviation of its output over all steps: 0 for a unit that always says the same.
    mean
        The mean of each gate.
    shut, open
        The share of steps at which a gate was below :data:`SHUT`, and above 1 - :data:`SHUT`; of a candidate that
        goes through tanh: below -1 and above 1, but for that much.
    half_life
        Steps until half of what it stored is left, the median over steps; inf if that is beyond half of the
        sequence, None for cells that have no gate for it.
    """

    place: int
    unit: int
    use: float
    mean: Mapping[str, float]
    shut: Mapping[str, float]
    open: Mapping[str, float]
    half_life: float | None

    @property
    def saturated(self) -> Mapping[str, float]:
        """The share of steps at which each gate was shut or open."""
        return {name: self.shut[name] + self.open[name] for name in self.shut}


@dataclass(frozen=True)
class Trace(Result):
    """Every gate and state over time: ``trace[0]["f"]`` is the forget gate of the first layer and direction.

    Attributes
    ----------
    architecture
        Of the layer.
    values
        Of each layer and direction, in the order of the state: named arrays, in the layout of x, with H (of h: R)
        last; NaN past a sequence's end. Their names are those of the equations: i, f, g, o, c, h; r, z, n, h; h; and
        ``retained`` and ``added``, the two terms of the new state (f * c and i * g; z * h and (1 - z) * n);
        ``output`` of an LSTM, o * tanh(c'), which is h unless there is a projection; ``due`` of a Clockwork RNN,
        whether the step computed the unit.
    tracked
        What units follow in the text, where the layer has read one: see :meth:`reading`.
    """

    architecture: Architecture
    values: tuple[Mapping[str, npt.NDArray[Any]], ...]
    _flat: tuple[Mapping[str, npt.NDArray[Any]], ...]
    _lengths: Lengths
    tracked: tuple[Tracked, ...] = ()

    def reading(self, text: str) -> Trace:
        """This trace of a layer that has read one character a step, with what its units follow in the text."""
        return replace(self, tracked=tracked(self._flat, text))

    def __getitem__(self, place: int) -> Mapping[str, npt.NDArray[Any]]:
        return self.values[place]

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """How each unit was used, layer by layer."""
        found = []
        for place, named in enumerate(self._flat):
            found += _units(self.architecture, place, named, self._lengths)
        return tuple(found)

    def most_used(self, place: int, count: int = SHOWN) -> list[Unit]:
        """The units whose output changes most, of one layer and direction."""
        own = [unit for unit in self.units if unit.place == place]
        return sorted(own, key=lambda unit: -unit.use)[:count]

    def least_used(self, place: int, count: int = SHOWN) -> list[Unit]:
        """The units whose output changes least, of one layer and direction."""
        own = [unit for unit in self.units if unit.place == place]
        return sorted(own, key=lambda unit: unit.use)[:count]

    def _title(self) -> str:
        a = self.architecture
        steps = int(self._lengths.sum())
        return f"{a.table.title}, {a.hidden_size} units, traced over {steps:,} steps"

    def _document(self) -> Mapping[str, Any]:
        return {
            "kind": "trace",
            "cell": self.architecture.cell,
            "hidden_size": self.architecture.hidden_size,
            "steps": int(self._lengths.sum()),
            "shut_below": SHUT,
            "tracked": [
                {
                    "feature": each.feature,
                    "layer": place_name(self.architecture, each.place),
                    "value": each.value,
                    "unit": each.unit,
                    "correlation": each.correlation,
                    "mean_where": each.where,
                    "mean_elsewhere": each.elsewhere,
                }
                for each in self.tracked
            ],
            "units": [self._row(unit) for unit in self.units],
        }

    def _row(self, unit: Unit) -> dict[str, Any]:
        half = unit.half_life
        row: dict[str, Any] = {
            "layer": place_name(self.architecture, unit.place),
            "unit": unit.unit,
            "use": unit.use,
            "half_life": None if half is None or not np.isfinite(half) else half,
        }
        for name in unit.mean:
            row |= {f"{name}_mean": unit.mean[name]}
        for name in unit.shut:
            row |= {f"{name}_shut": unit.shut[name], f"{name}_open": unit.open[name]}
        return row

    def _records(self) -> Sequence[Mapping[str, Any]]:
        return [self._row(unit) for unit in self.units]

    def _tables(self) -> Iterable[Table]:
        if self.tracked:
            yield self.tracked_table()
        for place in range(len(self)):
            name = place_name(self.architecture, place)
            for word, units in (
                ("most", self.most_used(place)),
                ("least", self.least_used(place)),
            ):
                yield self.table(f"{name}: the {word} used units", units)

    def tracked_table(self) -> Table:
        """What units follow in the text."""
        return Table(
            "what units follow in the text: chosen on its first half, figures of its second",
            ["feature", "value", "unit", "correlation", "mean there", "elsewhere", "layer"],
            [
                [
                    each.feature,
                    each.value,
                    str(each.unit),
                    f"{each.correlation:+.2f}",
                    *(
                        "-" if mean is None else f"{mean:.2f}"
                        for mean in (each.where, each.elsewhere)
                    ),
                    place_name(self.architecture, each.place),
                ]
                for each in self.tracked
            ],
            numbers=[2, 3, 4, 5],
        )

    def table(self, caption: str, units: Sequence[Unit]) -> Table:
        """Some units as a table: how much they are used, their half-lives, and how often each gate is saturated."""
        gates = list(units[0].shut) if units else []
        return Table(
            caption,
            ["unit", "use", "half-life", *(f"{name} saturated" for name in gates)],
            [
                [
                    str(unit.unit),
                    f"{unit.use:.3f}",
                    half_life_text(unit.half_life),
                    *(f"{unit.saturated[name]:.0%}" for name in gates),
                ]
                for unit in units
            ],
            numbers=range(3 + len(gates)),
        )

    def _notes(self) -> Iterable[str]:
        yield (
            "use: the standard deviation of a unit's output over the steps. half-life: steps until half of what it "
            f"stored is left, the median. saturated: the share of steps at which a gate is within {SHUT:g} of an end of "
            "its range."
        )


def place_name(architecture: Architecture, place: int) -> str:
    """What a layer and direction is called: "layer 0", "layer 1, reverse"."""
    layer, direction = divmod(place, architecture.directions)
    return f"layer {layer}{', reverse' if direction or architecture.reverse else ''}"


def trace(
    layer: Layer[Any],
    x: Array,
    state: Sequence[Array] | None = None,
    lengths: Sequence[int] | None = None,
    *,
    resets: npt.NDArray[np.bool_] | None = None,
) -> Trace:
    """Every gate and state of a layer over time.

    The sums of all gates and all states come from the tape of :meth:`Layer.record`: no product is computed twice. Gates
    are their activations, elementwise in NumPy, in the layer's dtype: within a few roundings of those that the kernel had.

    Parameters
    ----------
    layer
        Any layer; one of the numba backend is run by C, with the same bits.
    x, state, lengths, resets
        As for a call of the layer. x must be finite.

    Returns
    -------
    Trace
        ``trace[k][name]`` of each layer and direction k, in the order of the state.

    Raises
    ------
    ValueError
        If x has NaN or infinity; the message names the first place.
    TypeError, ValueError, UnsupportedError
        As a call of the layer.
    """
    found = recorded(layer, x, state, lengths, resets=resets)
    batched = np.ndim(x) == 3

    def as_given(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if not batched:
            return array[:, 0]
        return array.swapaxes(0, 1) if layer.batch_first else array

    values = tuple(
        {name: as_given(array) for name, array in named.items()} for named in found.values
    )
    return Trace(layer.architecture, values, tuple(found.values), found.lengths)


def _units(
    a: Architecture, place: int, named: Mapping[str, npt.NDArray[Any]], lengths: Lengths
) -> list[Unit]:
    valid = np.arange(len(named["h"]))[:, None] < lengths
    low, high = gate_shares(a, named, valid)
    mean = {name: _mean(named[name][valid]) for name in _gates(a, named)}
    output = named.get("output", named["h"])[valid]
    halves: Sequence[float | None] = [None] * a.hidden_size
    if a.table.retaining_gate and output.size:
        reverse = bool(a.reverse or place % a.directions)
        halves = half_lives(log_gate(named, a, lengths, reverse=reverse)).tolist()
    use = output.std(axis=0, dtype=np.float64) if output.size else np.zeros(a.hidden_size)

    def of(some: Mapping[str, Array], unit: int) -> dict[str, float]:
        return {name: float(each[unit]) for name, each in some.items()}

    return [
        Unit(
            place,
            unit,
            use=float(use[unit]),
            mean=of(mean, unit),
            shut=of(low, unit),
            open=of(high, unit),
            half_life=halves[unit],
        )
        for unit in range(a.hidden_size)
    ]


def _gates(a: Architecture, named: Mapping[str, Any]) -> dict[str, str]:
    """The gates of a trace and the names of their activations; that of a coupled input gate is the forget gate's."""
    gates = {each.name: a.activation_of(each.role).name for each in a.table.gates}
    gates |= {"i": gates["f"]} if a.coupled else {}
    return {name: activation for name, activation in gates.items() if name in named}


def gate_shares(
    a: Architecture, named: Mapping[str, npt.NDArray[Any]], valid: npt.NDArray[np.bool_]
) -> tuple[dict[str, Shares], dict[str, Shares]]:
    """The share of steps at which each gate with two ends is shut, and open: by gate, each (H,)."""
    shut, opened = {}, {}
    for name, activation in _gates(a, named).items():
        low = {"sigmoid": 0, "hard_sigmoid": 0, "tanh": -1}.get(activation)
        if low is not None:
            values = named[name][valid]
            shut[name], opened[name] = _mean(values < low + SHUT), _mean(values > 1 - SHUT)
    return shut, opened


def _mean(values: npt.NDArray[Any]) -> Shares:
    if not len(values):
        return np.zeros(values.shape[1])
    return np.asarray(values.mean(axis=0, dtype=np.float64))
