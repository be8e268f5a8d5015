"""What narrow weights bring a layer, and cost it, on its own data: bytes, time and error of each type."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import thread_time
from typing import Any

import numpy as np

from fusedrnn.analysis.drifts import PIECE, rebuilt, wide_layer
from fusedrnn.analysis.gates import check_finite
from fusedrnn.architecture import Architecture
from fusedrnn.arrays import FLOAT32, Array
from fusedrnn.counting.result import Result, Table
from fusedrnn.errors import UnsupportedError
from fusedrnn.layers import Layer
from fusedrnn.narrowing import WEIGHT_DTYPES, Narrow, stored

__all__ = ["Narrowed", "Narrowings", "narrowings"]

#: Steps that are timed at a time, and how often.
TIMED_STEPS, ROUNDS = 200, 9
#: A type is faster if it takes less than this part of the time of float32.
FASTER = 0.9


@dataclass(frozen=True)
class Narrowed:
    """One type of weights.

    Attributes
    ----------
    weight_dtype
        "float32", "float16", "bfloat16", "int8" or "w8a7".
    refused
        Why the layer's weights do not fit the type; the figures are then None.
    weight_bytes
        Bytes of the weights as they are kept: matrices, scales and biases.
    step_seconds
        Processor time of a step of all sequences of x, on one thread: the median of several passes.
    rms, largest, relative
        The error of y against float64 with the weights as they were: the root of the mean square over all of y, the largest,
        and the first as a part of that of y.
    """

    weight_dtype: str
    refused: str | None = None
    weight_bytes: int | None = None
    step_seconds: float | None = None
    rms: float | None = None
    largest: float | None = None
    relative: float | None = None


@dataclass(frozen=True)
class Narrowings(Result):
    """Every type of weights beside float32, on the data of a layer.

    Attributes
    ----------
    architecture, steps, batch
        Of the layer; T and B of x.
    isa
        The instruction set that was timed.
    tolerance
        The largest error of y, as a part of y, that a recommended type may have.
    types
        float32 first.
    """

    architecture: Architecture
    steps: int
    batch: int
    isa: str
    tolerance: float
    types: tuple[Narrowed, ...]

    def __getitem__(self, weight_dtype: str) -> Narrowed:
        for each in self.types:
            if each.weight_dtype == weight_dtype:
                return each
        raise KeyError(weight_dtype)

    @property
    def recommended(self) -> str:
        """The fastest type of those that are near enough; float32 where none of them is faster and none is wanted for its size."""
        return self._choice()[0]

    def _choice(self) -> tuple[str, str]:
        wide = self["float32"]
        near = [
            each
            for each in self.types[1:]
            if each.relative is not None and each.relative <= self.tolerance
        ]
        if not near:
            return "float32", f"no narrow type is within {self.tolerance:.2g} of y"
        fastest = min(near, key=lambda each: each.step_seconds or 0)
        if (fastest.step_seconds or 0) < FASTER * (wide.step_seconds or 0):
            return fastest.weight_dtype, (
                f"the fastest of those within {self.tolerance:.2g} of y: {self._times(fastest)}, with an error of "
                f"{fastest.relative:.2g} of y"
            )
        smallest = min(near, key=lambda each: (each.weight_bytes or 0, each.relative or 0))
        return "float32", (
            f"no type within {self.tolerance:.2g} of y is faster by a tenth here: weights do not limit this layer at this batch. Where "
            f"memory counts, {smallest.weight_dtype} takes {self._share(smallest)} of it"
        )

    def _times(self, each: Narrowed) -> str:
        wide = self["float32"].step_seconds
        if wide is None or each.step_seconds is None:
            return "-"
        return f"{wide / each.step_seconds:.2f}x as fast as float32"

    def _share(self, each: Narrowed) -> str:
        wide = self["float32"].weight_bytes
        return "-" if not wide or each.weight_bytes is None else f"{each.weight_bytes / wide:.0%}"

    def _title(self) -> str:
        a = self.architecture
        return f"{a.table.title}, {a.input_size} to {a.hidden_size}: weights of each type, over {self.steps:,} steps of {self.batch}"

    def _lead(self) -> Iterable[str]:
        choice, reason = self._choice()
        return [f"Recommended: {choice}, {reason}."]

    def _document(self) -> Mapping[str, Any]:
        choice, reason = self._choice()
        return {
            "kind": "narrow weights",
            "cell": self.architecture.cell,
            "steps": self.steps,
            "batch": self.batch,
            "isa": self.isa,
            "tolerance": self.tolerance,
            "recommended": choice,
            "reason": reason,
            "types": self._records(),
        }

    def _records(self) -> list[dict[str, Any]]:
        return [
            {
                "weight_dtype": each.weight_dtype,
                "weight_bytes": each.weight_bytes,
                "step_seconds": each.step_seconds,
                "rms": each.rms,
                "largest": each.largest,
                "relative": each.relative,
                "refused": each.refused,
            }
            for each in self.types
        ]

    def _tables(self) -> Iterable[Table]:
        header = [
            "weights",
            "bytes",
            "of float32",
            "a step",
            "faster",
            "RMS error of y",
            "largest",
            "of y",
        ]
        yield Table(
            "types", header, list(map(self._line, self.types)), numbers=range(1, len(header))
        )

    def _line(self, each: Narrowed) -> Sequence[str]:
        if each.step_seconds is None:
            return [each.weight_dtype, *["-"] * 7]
        wide = self["float32"].step_seconds or 0
        return [
            each.weight_dtype,
            f"{each.weight_bytes:,}",
            self._share(each),
            f"{each.step_seconds * 1e6:,.2f} us",
            f"{wide / each.step_seconds:.2f}x",
            f"{each.rms:.2e}",
            f"{each.largest:.2e}",
            f"{each.relative:.2e}",
        ]

    def _notes(self) -> Iterable[str]:
        refused = [each.refused for each in self.types if each.refused]
        return [
            *refused,
            f"error: of y, against float64 with the weights as they were; time: of a step of x in a sequence, one thread, {self.isa}.",
        ]


def narrowings(
    layer: Layer[Any],
    x: Array,
    state: Sequence[Array] | None = None,
    *,
    tolerance: float = 0.01,
    progress: Callable[[float], object] = lambda share: None,
) -> Narrowings:
    """Bytes, time and error of each type of weights, measured on a layer's own data.

    Parameters
    ----------
    layer
        A float32 layer; the C backend is what is timed.
    x, state
        As for a call of the layer, with at least one step. x must be finite.
    tolerance
        The largest error of y that a recommended type may have: a root of the mean square, as a part of that of y.
    progress
        Called with the part that is done, from 0 to 1.

    Returns
    -------
    Narrowings
        ``found["int8"].relative``, ``found.recommended``; as text, a table.

    Raises
    ------
    ValueError
        If x is NaN or infinite; if there is no step.
    UnsupportedError
        If the layer is not float32.
    """
    if layer.dtype != FLOAT32 or layer.weight_dtype != "float32":
        raise UnsupportedError(
            f"types of weights are compared on a float32 layer, which they are made of: this one has {layer.weight_dtype} weights"
        )
    call, _ = layer._signature.call(x, state, None, None)
    check_finite(x)
    steps, batch, _ = call.x.shape
    if not steps or not batch:
        raise ValueError("x must have at least one step and sequence: there is no error of none")
    a = layer.architecture
    start = [np.array(array) for array in call.state]
    made: dict[str, Layer[Any]] = {"float32": rebuilt(layer, layer.weights, "c")}
    refused = {}
    for weight_dtype in WEIGHT_DTYPES[1:]:
        try:
            made[weight_dtype] = made["float32"].narrow(weight_dtype)
        except ValueError as error:
            refused[weight_dtype] = f"{weight_dtype}: {error}"
    errors = _errors(wide_layer(layer), made, call.x, start, lambda share: progress(0.8 * share))
    part = np.ascontiguousarray(call.x[:TIMED_STEPS])
    seconds = _step_seconds(made, part, start)
    progress(1.0)
    types = []
    for weight_dtype in WEIGHT_DTYPES:
        if weight_dtype in refused:
            types.append(Narrowed(weight_dtype, refused[weight_dtype]))
            continue
        kept = stored(layer.weights, a, weight_dtype).values()
        size = sum(each.nbytes if isinstance(each, (Narrow, np.ndarray)) else 0 for each in kept)
        types.append(
            Narrowed(weight_dtype, None, size, seconds[weight_dtype], *errors[weight_dtype])
        )
    isa = made["float32"].isa or ""
    return Narrowings(a, steps, batch, isa, tolerance, tuple(types))


def _errors(
    wide: Layer[Any],
    made: Mapping[str, Layer[Any]],
    x: Array,
    start: Sequence[Array],
    progress: Callable[[float], object],
) -> dict[str, tuple[float, float, float]]:
    """The errors of y of each layer against the float64 one, in pieces: RMS, the largest, and RMS as a part of y."""
    a = wide.architecture
    piece = len(x) if a.bidirectional or a.reverse else PIECE
    exact_state: Any = [
        each.astype(np.float64) if each.dtype.kind == "f" else each for each in start
    ]
    states: dict[str, Any] = dict.fromkeys(made, start)
    squares, largest, signal, count = dict.fromkeys(made, 0.0), dict.fromkeys(made, 0.0), 0.0, 0
    for first in range(0, len(x), piece):
        part = np.ascontiguousarray(x[first : first + piece])
        exact, exact_state = wide(part.astype(np.float64), exact_state)
        signal += float(np.sum(exact**2))
        count += exact.size
        for name, layer in made.items():
            y, states[name] = layer(part, states[name])
            error = np.abs(y - exact)
            squares[name] += float(np.sum(error**2))
            largest[name] = max(largest[name], float(error.max(initial=0)))
        progress((first + len(part)) / len(x))
    scale = (signal / count) ** 0.5
    rms = {name: (square / count) ** 0.5 for name, square in squares.items()}
    return {name: (rms[name], largest[name], rms[name] / scale if scale else 0.0) for name in made}


def _step_seconds(
    made: Mapping[str, Layer[Any]], x: Array, state: Sequence[Array]
) -> dict[str, float]:
    """Processor time of a step of each layer: all of them in turn, so that all see the same machine."""
    times: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(ROUNDS + 1):  # the first one fills the caches
        for name, layer in made.items():
            begin = thread_time()
            layer(x, state)
            times[name].append((thread_time() - begin) / len(x))
    return {name: median(each[1:]) for name, each in times.items()}
