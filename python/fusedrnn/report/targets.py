"""THE FIGURES TO REACH: what the C kernels are meant to be versus other libraries, and what they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fusedrnn.report.engines import OURS
from fusedrnn.report.results import NOT_SLOWER, Ratio, Results, Row
from fusedrnn.report.text import quartiles, ratio, share

__all__ = ["TARGETS", "Network", "Outcome", "Target", "outcomes"]


@dataclass(frozen=True, eq=False)
class Network:
    """A cell with its options, as results carry them; an option may follow from H."""

    cell: str
    options: Mapping[str, Any | Callable[[int], Any]]

    def about(self, row: Row) -> bool:
        """Whether a row is about it."""
        hidden = row.sizes["H"]
        wanted = {
            name: value(hidden) if callable(value) else value
            for name, value in self.options.items()
        }
        return (row.cell, row.options) == (self.cell, wanted)


LSTM, RNN, GRU = Network("lstm", {}), Network("rnn", {}), Network("gru", {"reset": "after"})
PROJECTED = Network("lstm", {"proj_size": lambda hidden: hidden // 2})
BIDIRECTIONAL = Network("lstm", {"bidirectional": True})


@dataclass(frozen=True)
class Target:
    """A figure, and the rows that it is about.

    Attributes
    ----------
    title
        The heading in tables.
    group
        Of the rows, as in the JSON.
    minimum
        The smallest median ratio that meets it, by hidden size; the smallest part of the FMA peak if ``of`` is that.
    networks
        The cells with their options.
    steps, batch
        T and B, where they matter.
    against
        The library; None for the fastest of those that were measured.
    of
        What is compared: "ratio", "peak" for the part of a core's FMA rate that was reached, "threads" for the ratio
        of several threads by that of one, or "backward" for the time of a backward pass by that of a forward pass, of which
        ``minimum`` is the most.
    """

    title: str
    group: str
    minimum: dict[int, float]
    networks: tuple[Network, ...] = (LSTM,)
    steps: int | None = None
    batch: tuple[int, ...] = (1,)
    against: str | None = None
    of: Literal["ratio", "peak", "threads", "backward"] = "ratio"

    def about(self, row: Row) -> bool:
        """Whether it is about that row."""
        sizes = row.sizes
        return (
            row.group == self.group
            and any(network.about(row) for network in self.networks)
            and sizes["B"] in self.batch
            and sizes["H"] in self.minimum
            and sizes["X"] == sizes["H"]
            and self.steps in (None, sizes["T"])
        )


def _training(
    title: str,
    minimum: dict[int, float],
    networks: tuple[Network, ...] = (LSTM,),
    *,
    group: str = "training",
    batch: tuple[int, ...] = (16,),
    of: Literal["ratio", "threads", "backward"] = "ratio",
) -> Target:
    """A figure of forward and backward passes, against PyTorch."""
    heading = f"Training: {title}"
    return Target(heading, group, minimum, networks, batch=batch, against="torch", of=of)


_OTHERS = (GRU, RNN, PROJECTED)
_ALL = (32, 64, 128, 256, 512, 1024)

TARGETS = (
    Target(
        "One step from Python, B=1",
        "step from Python",
        {32: 15.0, 64: 10.0, 128: 4.0, 256: 2.0, 512: 1.2},
    ),
    Target(
        "A sequence, T=100, B=1",
        "sequence",
        {32: 2.2, 64: 2.0, 128: 1.6, 256: 1.5, 512: 1.3, 1024: 1.3},
        steps=100,
    ),
    Target(
        "A batch, B=16 and 64: not slower",
        "batch",
        dict.fromkeys(_ALL[1:], NOT_SLOWER),
        batch=(16, 64),
    ),
    Target(
        "A batch, B=16 and 64: of the FMA peak",
        "batch",
        dict.fromkeys((128, 256, 512), 0.85),
        batch=(16, 64),
        of="peak",
    ),
    Target(
        "Several threads: not less than the ratio with one",
        "threads",
        dict.fromkeys(_ALL, 1.0),
        (LSTM, BIDIRECTIONAL, GRU),
        batch=(1, 16, 64),
        of="threads",
    ),
    Target(
        "Others against PyTorch, T=100, B=1",
        "sequence",
        {32: 5.0, 64: 5.0, 128: 5.0, 256: 1.3, 512: 1.3},
        _OTHERS,
        steps=100,
        against="torch",
    ),
    Target(
        "Others against PyTorch, B=16",
        "batch",
        dict.fromkeys((128, 256, 512), 1.5),
        _OTHERS,
        batch=(16,),
        against="torch",
    ),
    Target(
        "Unequal lengths against PyTorch, B=16",
        "ragged",
        {128: 3.0},
        (LSTM, *_OTHERS),
        batch=(16,),
        against="torch",
    ),
    Target(
        "Bidirectional LSTM, T=100, B=1",
        "sequence",
        {32: 2.0},
        (BIDIRECTIONAL,),
        steps=100,
    ),
    _training("LSTM, B=1", {32: 5.0, 64: 3.0, 128: 1.6}, batch=(1,)),
    _training("LSTM, B=16", {32: 1.5, 64: 1.15, 128: 1.05, 256: 1.0, 512: 1.4}),
    _training("LSTM, B=64", {128: 1.15, 256: 1.0}, batch=(64,)),
    _training("GRU, B=1", {32: 30.0}, (GRU,), batch=(1,)),
    _training("GRU, B=16", {64: 5.0, 128: 3.0, 256: 2.3}, (GRU,)),
    _training("LSTM with projection, B=16", {64: 5.0, 128: 3.5}, (PROJECTED,)),
    _training("RNN, B=16", {64: 4.0, 128: 3.0}, (RNN,)),
    _training("bidirectional LSTM, B=16", {64: 1.6}, (BIDIRECTIONAL,)),
    _training("unequal lengths, B=16", {64: 8.0, 128: 5.0}, group="ragged training"),
    _training(
        "several threads: not less than the ratio with one",
        {128: 1.0, 256: 1.0},
        (LSTM, GRU),
        group="training threads",
        of="threads",
    ),
    _training(
        "a backward pass by a forward pass, B=16 and 64: at most",
        dict.fromkeys((32, 64, 128, 256, 512), 2.2),
        (LSTM, BIDIRECTIONAL, *_OTHERS),
        batch=(16, 64),
        of="backward",
    ),
)


@dataclass(frozen=True)
class Outcome:
    """What became of a target in one row.

    Attributes
    ----------
    wanted, reached
        As text, the second with its quartiles where it has them.
    against
        The library, if it is about one.
    met
        Whether the median is at least what is wanted, or at most where that is what is wanted.
    """

    target: Target
    row: Row
    wanted: str
    reached: str
    against: str | None
    met: bool


def outcomes(results: Results) -> list[Outcome]:
    """Every target in every row that it is about and that was measured."""
    return [
        outcome
        for target in TARGETS
        for row in sorted(results.rows, key=lambda row: (row.sizes["B"], row.sizes["H"]))
        if target.about(row)
        for outcome in _outcome(target, row, results)
    ]


def _outcome(target: Target, row: Row, results: Results) -> Iterator[Outcome]:
    minimum = target.minimum[row.sizes["H"]]
    if target.of == "peak":
        ours = row.measures.get(OURS)
        if ours and results.limits:
            part = ours.gflops * 1e9 / float(results.limits["flops"])
            yield Outcome(target, row, share(minimum), share(part), None, part >= minimum)
        return
    if target.of == "backward":
        ours = row.measures.get(OURS)
        backward = ours.backward if ours else None
        if backward:
            met = backward.median <= minimum
            yield Outcome(target, row, ratio(minimum), quartiles(backward), None, met)
        return
    library = target.against or row.fastest
    found = row.ratio(library) if library else None
    if library is None or found is None:
        return
    if target.of == "threads":
        one = _with_one_thread(row, results)
        if row.threads in (None, 1) or one is None:
            return
        minimum *= one.median
    met = found.median >= minimum
    yield Outcome(target, row, ratio(minimum), quartiles(found), library, met)


def _with_one_thread(row: Row, results: Results) -> Ratio | None:
    """The same against the library that was fastest with one thread."""
    for other in results.rows:
        if (other.group, other.case, other.threads) == (row.group, row.case, 1):
            return other.against_fastest
    return None
