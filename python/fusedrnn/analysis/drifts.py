"""What rounding does to a layer over time: the error of h, c and y against the specification in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.analysis.gates import check_finite, check_states, recording
from fusedrnn.analysis.traces import place_name
from fusedrnn.architecture import NARROW, Architecture, Weight
from fusedrnn.arrays import FLOAT32, Array
from fusedrnn.counting.result import Result, Table
from fusedrnn.errors import UnsupportedError
from fusedrnn.layers import Layer
from fusedrnn.narrowing import INTEGERS, Stored, stored, widened

__all__ = [
    "DTYPES",
    "PIECE",
    "Cause",
    "Curve",
    "Drift",
    "drift",
    "rebuilt",
    "wide_layer",
]

Float64 = npt.NDArray[np.float64]

#: The types of weights whose drift can be had.
DTYPES = ("float32", *NARROW)
#: Steps that are in memory at a time.
PIECE = 1024
#: Steps over which the causes are looked for, at most.
CAUSE_STEPS = 2000
#: Fewer steps than this do not tell whether an error grows.
FEW = 1000
#: An error that fits t^p grows if p is above this, and the last part is above the first by this factor.
GROWING, FACTOR = 0.25, 1.5
#: Of the cause that is not a block of weights: x and h as integers, in all layers.
ALL, INPUTS = "all layers", "x and h"
#: The number of causes that a table has.
SHOWN = 9


@dataclass(frozen=True)
class Curve:
    """The error of one array over time.

    Attributes
    ----------
    name
        "y", "layer 0: h", "layer 0: c".
    rms, largest
        (T,): of each step, the root of the mean square and the largest absolute error, over sequences and units.
    unit_rms, unit_largest
        (H,) or (R,): the same of each unit, over sequences and steps.
    signal
        The root of the mean square of the array itself.
    """

    name: str
    rms: Float64
    largest: Float64
    unit_rms: Float64
    unit_largest: Float64
    signal: float

    @property
    def total(self) -> float:
        """The root of the mean square over all steps."""
        return float(np.sqrt(np.mean(self.rms**2))) if len(self.rms) else 0.0

    @property
    def relative(self) -> float:
        """The error as a part of the signal."""
        return self.total / self.signal if self.signal else 0.0

    def blocks(self) -> tuple[Float64, Float64]:
        """The middle steps, and the root of the mean square, of up to 20 equal parts of all but the first tenth."""
        steps = len(self.rms)
        edges = np.unique(np.linspace(steps // 10, steps, 21).astype(int))
        parts = list(pairwise(edges))
        middle = np.array([(first + last) / 2 for first, last in parts])
        rms = np.array([np.sqrt(np.mean(self.rms[first:last] ** 2)) for first, last in parts])
        return middle, rms

    @property
    def exponent(self) -> float | None:
        """The p of error ~ t^p that fits :meth:`blocks` best; None for too few steps, or no error."""
        if len(self.rms) < FEW:
            return None
        middle, rms = self.blocks()
        if (rms <= 0).any():
            return None
        return float(np.polyfit(np.log(middle), np.log(rms), 1)[0])

    @property
    def grows(self) -> bool | None:
        """Whether the error grows with the number of steps; None where that cannot be told."""
        exponent = self.exponent
        if exponent is None:
            return None
        _, rms = self.blocks()
        quarter = max(len(rms) // 4, 1)
        first, last = np.mean(rms[:quarter]), np.mean(rms[-quarter:])
        return bool(exponent > GROWING and last > FACTOR * first)


@dataclass(frozen=True)
class Cause:
    """The error of y where one block of weights alone is rounded, or x and h alone.

    Attributes
    ----------
    layer
        "layer 0", "layer 1, reverse"; "all layers" of x and h.
    block
        "W_f", "R_o", "P"; or "x and h", made integers.
    rms
        The root of the mean square of the error of y, over all steps that were looked at.
    """

    layer: str
    block: str
    rms: float


@dataclass(frozen=True)
class Drift(Result):
    """What rounding does to a layer over time.

    Attributes
    ----------
    architecture, weight_dtype, steps
        Of the layer; the type to which matrices were rounded ("float32": not); T.
    curves
        y, then h and c of each layer and direction.
    causes
        The worst first; empty for float32.
    """

    architecture: Architecture
    weight_dtype: str
    steps: int
    curves: tuple[Curve, ...]
    causes: tuple[Cause, ...]

    def __getitem__(self, name: str) -> Curve:
        for curve in self.curves:
            if curve.name == name:
                return curve
        raise KeyError(f"{name!r}: there are {', '.join(each.name for each in self.curves)}")

    def verdict(self) -> list[str]:
        """What that means, and what can be done, in sentences."""
        y = self["y"]
        worst = y.largest.max(initial=0)
        said = [
            f"With {self.weight_dtype} weights y is off by {y.total:.2g} (RMS, {y.relative:.2g} of y), at most {worst:.2g}."
        ]
        growing = [curve for curve in self.curves if curve.grows]
        if len(y.rms) < FEW:
            said.append(f"Whether that grows cannot be told from fewer than {FEW} steps.")
        elif growing:
            first = max(growing, key=lambda curve: curve.exponent or 0)
            said.append(
                f"Over {self.steps:,} steps the error grows: that of {first.name} as t^{first.exponent:.2f}. If it still does over ten "
                "times as many, some unit adds up without forgetting: reset the state at times, or keep those weights wide."
            )
        else:
            said.append("The error is bounded: it does not grow with the number of steps.")
        if self.causes and self.causes[0].rms > 0:
            total = sum(each.rms**2 for each in self.causes)
            cause = self.causes[0]
            said.append(
                f"The largest part comes from {cause.block} of {cause.layer}: {cause.rms**2 / total:.0%} of the squares."
            )
        return said

    def _title(self) -> str:
        a = self.architecture
        return (
            f"{a.table.title}, {a.hidden_size} units, {self.weight_dtype} weights: error against float64 over "
            f"{self.steps:,} steps"
        )

    def _lead(self) -> Iterable[str]:
        return self.verdict()

    def _document(self) -> Mapping[str, Any]:
        return {
            "kind": "drift",
            "cell": self.architecture.cell,
            "weight_dtype": self.weight_dtype,
            "steps": self.steps,
            "verdict": self.verdict(),
            "curves": [
                {
                    **self._row(curve),
                    "unit_rms": curve.unit_rms.tolist(),
                    "unit_largest": curve.unit_largest.tolist(),
                    "over_time": _over_time(curve),
                }
                for curve in self.curves
            ],
            "causes": [
                {"layer": cause.layer, "block": cause.block, "rms": cause.rms}
                for cause in self.causes
            ],
        }

    def _row(self, curve: Curve) -> dict[str, Any]:
        return {
            "name": curve.name,
            "rms": curve.total,
            "largest": float(curve.largest.max(initial=0)),
            "relative": curve.relative,
            "exponent": curve.exponent,
            "grows": curve.grows,
        }

    def _records(self) -> Sequence[Mapping[str, Any]]:
        return [self._row(curve) for curve in self.curves]

    def _tables(self) -> Iterable[Table]:
        yield self.curve_table()
        if self.causes:
            yield self.cause_table()

    def curve_table(self) -> Table:
        """The errors over all steps, and whether they grow."""
        words = {None: "-", True: "grows", False: "bounded"}
        return Table(
            "errors",
            ["", "RMS", "largest", "of the signal", "worst unit", "its RMS", "t^p", ""],
            [
                [
                    curve.name,
                    f"{curve.total:.2e}",
                    f"{curve.largest.max(initial=0):.2e}",
                    f"{curve.relative:.2e}",
                    str(int(np.argmax(curve.unit_rms))),
                    f"{curve.unit_rms.max(initial=0):.2e}",
                    "-" if curve.exponent is None else f"{curve.exponent:+.2f}",
                    words[curve.grows],
                ]
                for curve in self.curves
            ],
            numbers=range(1, 7),
        )

    def cause_table(self) -> Table:
        """The blocks of weights, or x and h, whose rounding alone does most."""
        return Table(
            "one thing rounded at a time",
            ["block", "layer", "RMS error of y"],
            [[each.block, each.layer, f"{each.rms:.2e}"] for each in self.causes[:SHOWN]],
            numbers=[2],
        )


def _over_time(curve: Curve, points: int = 100) -> list[dict[str, float]]:
    """The error in up to so many equal parts of the steps."""
    edges = np.unique(np.linspace(0, len(curve.rms), points + 1).astype(int))
    return [
        {
            "from": int(first),
            "rms": float(np.sqrt(np.mean(curve.rms[first:last] ** 2))),
            "largest": float(curve.largest[first:last].max()),
        }
        for first, last in pairwise(edges)
    ]


def drift(
    layer: Layer[Any],
    x: Array,
    weight_dtype: str | None = None,
    state: Sequence[Array] | None = None,
    *,
    causes: bool = True,
    progress: Callable[[float], object] = lambda share: None,
) -> Drift:
    """The error of a layer over time, against the specification in float64 with the same weights.

    Parameters
    ----------
    layer
        A layer that computes in float32, of any backend.
    x, state
        As for a call of the layer, with at least one step. x must be finite. Long sequences are run in pieces, unless a
        direction runs backward.
    weight_dtype
        "float32": only the arithmetic is rounded. "float16", "bfloat16", "int8", "w8a7": the matrices are, too, as
        :func:`fusedrnn.narrowing.narrowed` says, and with the latter two x and h are made integers. None: as it is in the
        layer.
    causes
        Whether to round one block of weights at a time, too, over the first 2,000 steps; and x and h alone, where
        they are made integers.
    progress
        Called with the part that is done, from 0 to 1.

    Returns
    -------
    Drift
        ``drift["y"]``, ``drift["layer 0: c"]``; as text, a verdict and tables.

    Raises
    ------
    ValueError
        If x, or a weight to be rounded, is NaN, infinite or beyond the type; the message names the first. If the type is
        unknown, or there is no step.
    UnsupportedError
        If the layer is float64.
    """
    if layer.dtype != FLOAT32:
        raise UnsupportedError(
            "drift is of layers that compute in float32: a float64 layer is what they are compared with"
        )
    if weight_dtype is None:
        weight_dtype = layer.weight_dtype
    if weight_dtype not in DTYPES:
        raise ValueError(f"weight_dtype must be one of {', '.join(DTYPES)}, got {weight_dtype!r}")
    signature = layer._signature
    call, _ = signature.call(x, state, None, None)
    check_finite(x)
    steps, batch, _ = call.x.shape
    if not steps or not batch:
        raise ValueError("x must have at least one step and sequence: there is no error of none")
    a = layer.architecture
    wide = wide_layer(layer)
    backend = recording(layer).backend
    kept = stored(layer._weights, a, weight_dtype)
    weights = widened(kept)
    blocks: list[tuple[str, str, Weight, slice]] = []
    if weight_dtype not in ("float32", layer.weight_dtype):
        blocks = list(_blocks(a)) if causes else []
    tested = rebuilt(layer, kept, backend, weight_dtype=weight_dtype)
    rounded = rebuilt(layer, weights, backend)
    others = [
        rounded.with_weights(_with_block(layer.weights, weights, weight, rows))
        for *_, weight, rows in blocks
    ]
    if causes and weight_dtype in INTEGERS:
        others.append(rounded)
    errors = _Errors(a, steps, batch)
    squares = np.zeros(len(others))
    piece = steps if a.bidirectional or a.reverse else PIECE
    start = [np.array(array) for array in call.state]
    now: list[Any] = [start] * (2 + len(others))
    looked = 0
    for first in range(0, steps, piece):
        part = np.ascontiguousarray(call.x[first : first + piece])
        y64, now[0], tape = wide.record(part.astype(np.float64), _wide(now[0]))
        reference = tape.states()
        check_states(reference, first=first)
        y32, now[1], tape = tested.record(part, now[1])
        errors.add(first, "y", y32, y64)
        rounded_states = tape.states()
        check_states(rounded_states, first=first)
        for place, (one, other) in enumerate(zip(rounded_states, reference, strict=True)):
            for name, narrow, exact in zip("hc", one, other):
                errors.add(first, f"{place_name(a, place)}: {name}", narrow, exact)
        if first < CAUSE_STEPS:
            looked += len(part)
            for k, other_layer in enumerate(others):
                y, now[2 + k] = other_layer(part, now[2 + k])
                squares[k] += np.sum((y - (y32 if other_layer is rounded else y64)) ** 2)
        progress(min((first + len(part)) / steps, 1.0))
    names = [(name, block) for name, block, *_ in blocks]
    if others and others[-1] is rounded:
        names.append((ALL, INPUTS))
    found = [
        Cause(name, block, float(np.sqrt(square / (looked * batch * a.output_size))))
        for (name, block), square in zip(names, squares, strict=True)
    ]
    return Drift(
        a, weight_dtype, steps, errors.curves(), tuple(sorted(found, key=lambda each: -each.rms))
    )


def _wide(state: Sequence[Array]) -> list[Array]:
    return [each.astype(np.float64) if each.dtype.kind == "f" else each for each in state]


def rebuilt(
    layer: Layer[Any],
    weights: Stored,
    backend: str,
    dtype: str = "float32",
    weight_dtype: str = "float32",
) -> Layer[Any]:
    """A layer of these weights, steps first, without a state of its own."""
    options = layer.architecture.untold()
    return type(layer).from_weights(
        weights, backend=backend, dtype=dtype, weight_dtype=weight_dtype, **options
    )


def wide_layer(layer: Layer[Any]) -> Layer[Any]:
    """The layer in float64, by the specification."""
    weights = {name: array.astype(np.float64) for name, array in layer.weights.items()}
    return rebuilt(layer, weights, "numpy", "float64")


def _blocks(a: Architecture) -> Iterable[tuple[str, str, Weight, slice]]:
    """Every block of weights that is narrowed: its layer, its name, and the rows of a matrix that it is."""
    letters = {"input": "W", "recurrent": "R"}
    for weight in a.weights():
        name = place_name(a, weight.layer * a.directions + weight.direction)
        if weight.kind == "projection":
            yield name, "P", weight, slice(None)
        elif weight.kind in letters:
            for place, gate in enumerate(a.table.gates):
                rows = slice(place * a.hidden_size, (place + 1) * a.hidden_size)
                yield name, f"{letters[weight.kind]}_{gate.name}", weight, rows


def _with_block(
    weights: Mapping[str, Array], narrow: Mapping[str, Array], weight: Weight, rows: slice
) -> dict[str, Array]:
    changed = np.array(weights[weight.name])
    changed[rows] = narrow[weight.name][rows]
    return {**weights, weight.name: changed}


class _Errors:
    """Adds up errors, piece by piece."""

    def __init__(self, a: Architecture, steps: int, batch: int) -> None:
        self._steps, self._batch = steps, batch
        self._curves: dict[str, list[Float64]] = {}

    def add(self, first: int, name: str, narrow: Array, exact: Array) -> None:
        """Errors of some steps, (t, B, units), from a step on."""
        error = np.abs(narrow - exact)
        units = error.shape[2]
        rms, largest, unit_squares, unit_largest, signal = self._curves.setdefault(
            name,
            [np.zeros(self._steps), np.zeros(self._steps), np.zeros(units), np.zeros(units), np.zeros(1)],
        )  # fmt: skip
        here = slice(first, first + len(error))
        rms[here] = np.sqrt(np.mean(error**2, axis=(1, 2)))
        largest[here] = error.max(axis=(1, 2))
        unit_squares += np.sum(error**2, axis=(0, 1))
        np.maximum(unit_largest, error.max(axis=(0, 1)), out=unit_largest)
        signal += np.sum(exact**2)

    def curves(self) -> tuple[Curve, ...]:
        """What came of them."""
        count = self._steps * self._batch
        return tuple(
            Curve(
                name, rms, largest, np.sqrt(squares / count), unit_largest,
                float(np.sqrt(signal[0] / (count * len(squares)))),
            )
            for name, (rms, largest, squares, unit_largest, signal) in self._curves.items()
        )  # fmt: skip
