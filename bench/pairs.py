"""Something as it is, and the same with this package in it: side by side, a round of each in turn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, TypeVar

import click

from fusedrnn.bench.timing import Quartiles, calls, interleaved
from fusedrnn.counting.result import Result, Table

__all__ = ["Case", "Pair", "Pairs", "each", "timed"]

CaseT = TypeVar("CaseT")


@dataclass(frozen=True)
class Case:
    """A model, and what it is called with.

    Attributes
    ----------
    name
        In words.
    make
        Makes the model and its inputs.
    """

    name: str
    make: Callable[[], tuple[Any, Any]]


@dataclass(frozen=True)
class Pair:
    """What a call takes in both.

    Attributes
    ----------
    name
        What is called, in words.
    theirs, ours
        Seconds of a call, the median of all rounds.
    ratios
        Their time over ours, round by round: above 1 ours is faster.
    facts
        What else is known of the pair, by the heading of its column.
    """

    name: str
    theirs: float
    ours: float
    ratios: Quartiles
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pairs(Result):
    """Pairs, as a table and in JSON.

    Attributes
    ----------
    title
        Of the table.
    theirs, ours
        What the two are called.
    """

    title: str
    theirs: str
    ours: str
    pairs: tuple[Pair, ...]

    def _title(self) -> str:
        return self.title

    def _document(self) -> Mapping[str, Any]:
        return {"benchmark": self.title, "pairs": self._records()}

    def _records(self) -> list[Mapping[str, Any]]:
        return [
            {
                "name": pair.name,
                f"{self.theirs}, seconds": pair.theirs,
                f"{self.ours}, seconds": pair.ours,
                "ratio": pair.ratios.median,
                "ratio, lower quartile": pair.ratios.q1,
                "ratio, upper quartile": pair.ratios.q3,
                **pair.facts,
            }
            for pair in self.pairs
        ]

    def _tables(self) -> Iterator[Table]:
        facts = list(dict.fromkeys(name for pair in self.pairs for name in pair.facts))
        header = ["", f"{self.theirs}, us", f"{self.ours}, us", "ratio", "middle half", *facts]
        rows = [
            [
                pair.name,
                f"{pair.theirs * 1e6:,.1f}",
                f"{pair.ours * 1e6:,.1f}",
                f"{pair.ratios.median:.2f}",
                f"{pair.ratios.q1:.2f} to {pair.ratios.q3:.2f}",
                *(_text(pair.facts[name]) for name in facts),
            ]
            for pair in self.pairs
        ]
        yield Table(
            "One thread, a round of each in turn", header, rows, [1, 2, 3, *range(5, len(header))]
        )

    def _notes(self) -> Iterator[str]:
        yield f"ratio: {self.theirs} over {self.ours}, round by round, the median; above 1 {self.ours} is faster."


def _text(fact: Any) -> str:
    return f"{fact:.1e}" if isinstance(fact, float) else str(fact)


def each(cases: Iterable[CaseT]) -> Iterator[CaseT]:
    """The cases one by one, with a bar on a terminal."""
    listed = list(cases)
    with click.progressbar(listed, label="measuring", file=sys.stderr) as bar:
        yield from bar


def timed(
    name: str,
    theirs: Callable[..., Any],
    ours: Callable[..., Any],
    arguments: tuple[Any, ...],
    rounds: int,
    **facts: Any,
) -> Pair:
    """Time both, a round of each in turn."""
    timers = {"theirs": calls(theirs, *arguments), "ours": calls(ours, *arguments)}
    seconds = interleaved(timers, rounds)
    ratios = [one / other for one, other in zip(seconds["theirs"], seconds["ours"], strict=True)]
    medians = median(seconds["theirs"]), median(seconds["ours"])
    return Pair(name, *medians, Quartiles.of(ratios), facts)
