"""A layer run over rows of any number, a piece at a time, with the state carried from piece to piece."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fusedrnn.files import write_file
from fusedrnn.formats.npz_file import listed
from fusedrnn.layers import Layer
from fusedrnn.rows import Rows, piece_steps
from fusedrnn.shapes import unmatched

__all__ = ["Latency", "load_state", "run", "save_state", "stream"]

Array = npt.NDArray[Any]


class Takes(Protocol):
    """What takes the outputs."""

    def write(self, y: Array) -> None: ...
    def finish(self) -> None: ...


@dataclass
class Latency:
    """How long steps took, in memory that does not grow with their number.

    Attributes
    ----------
    counts
        How many steps took how many nanoseconds, of which eight binary digits are kept.
    """

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, nanoseconds: int) -> None:
        """Count a step."""
        drop = max(0, nanoseconds.bit_length() - 8)
        self.counts[nanoseconds >> drop << drop] += 1

    @property
    def steps(self) -> int:
        """How many steps were counted."""
        return self.counts.total()

    def percentile(self, percent: float) -> float:
        """The seconds that so many in a hundred steps took at most, to within a percent."""
        wanted, seen = percent / 100 * self.steps, 0
        for nanoseconds, times in sorted(self.counts.items()):
            seen += times
            if seen >= wanted:
                return nanoseconds * 1e-9
        return 0.0

    def __str__(self) -> str:
        p50, p99 = (f"{self.percentile(percent) * 1e6:,.3g} us" for percent in (50, 99))
        return f"{self.steps:,} steps: p50 {p50}, p99 {p99} a step"


def run(
    layer: Layer[Any],
    rows: Rows,
    output: Takes,
    *,
    state: Sequence[Array] | None = None,
    progress: Callable[[float | None], object] = lambda share: None,
) -> Any:
    """Run a layer over rows, in pieces.

    Outputs and state are those of one call over the whole sequence, to the bit (backends ``c`` and ``numba``). A
    layer with a direction from the last step to the first is run in one piece: all rows are in memory.

    Parameters
    ----------
    layer
        Not ``batch_first``.
    rows
        The input.
    output
        What takes y, (t, B, D * R), piece by piece.
    state
        The state before the first row, each (L * D, B, ·); None for the layer's own.
    progress
        Called after each piece with the part of the input that is done.

    Returns
    -------
    tuple
        The state after the last row.
    """
    for piece in _pieces(layer, rows):
        y, state = layer(piece, state)
        output.write(y)
        progress(rows.share)
    output.finish()
    return state


def _pieces(layer: Layer[Any], rows: Rows) -> Iterator[Array]:
    size = layer.architecture
    steps = piece_steps(rows.batch or 1, max(size.input_size, size.output_size))
    if not backward(layer):
        yield from rows.pieces(steps)
        return
    yield np.concatenate(list(rows.pieces(rows.steps or steps)))


def backward(layer: Layer[Any]) -> bool:
    """Whether a direction of a layer begins at the last step."""
    return layer.architecture.bidirectional or layer.architecture.reverse


def stream(
    layer: Layer[Any],
    rows: Rows,
    output: Takes,
    *,
    state: Sequence[Array] | None = None,
    progress: Callable[[float | None], object] = lambda share: None,
) -> tuple[Any, Latency]:
    """Step a layer over rows, each as soon as it is there; otherwise as :func:`run`.

    Returns
    -------
    state : tuple
        The state after the last row.
    latency : Latency
        How long the steps took, without reading and writing.
    """
    running = layer.stream(rows.batch or 1)
    if state is not None:
        running.reset(state)
    latency = Latency()
    for (x,) in rows.pieces(1):
        start = perf_counter_ns()
        y = running.step(x)
        latency.add(perf_counter_ns() - start)
        output.write(y[None])
        progress(rows.share)
    output.finish()
    return running.state, latency


# ---- states --------------------------------------------------------------------------------------


def save_state(path: str | os.PathLike[str], state: Any) -> None:
    """Write a state to an .npz file, an array for each of its fields."""
    memory = io.BytesIO()
    np.savez(memory, **state._asdict())
    write_file(path, memory.getvalue())


def load_state(path: str | os.PathLike[str], layer: Layer[Any], batch: int) -> Any:
    """The state of a layer from an .npz file that :func:`save_state` wrote.

    Raises
    ------
    ValueError
        If it is no such file, or the state of another layer or batch; the message begins with the path.
    """
    wanted = layer.state_type._fields
    try:
        saved = listed(Path(path))
        if difference := unmatched(wanted, saved):
            raise ValueError(difference)
        values = tuple(np.asarray(saved[name].read()) for name in wanted)
        return layer.state_type(*layer._signature.check_state(values, batch))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a state of this layer: {error}") from None
