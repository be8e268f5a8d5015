"""Two benchmark results side by side: what changed by more than the noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fusedrnn.report.engines import ENGINES
from fusedrnn.report.results import Measure, parse

__all__ = ["Change", "Verdict", "compare", "verdict"]

Verdict = Literal["faster", "slower", "within noise", "only in old", "only in new"]


@dataclass(frozen=True)
class Change:
    """One row of one engine in two results."""

    group: str
    network: str
    title: str
    engine: str
    old: Measure | None
    new: Measure | None

    @property
    def ratio(self) -> float | None:
        """Old over new: above 1 is faster now. None if one is missing."""
        return self.old.median / self.new.median if self.old and self.new else None

    @property
    def verdict(self) -> Verdict:
        """See :func:`verdict`."""
        return verdict(self.old, self.new)


def verdict(old: Measure | None, new: Measure | None) -> Verdict:
    """Whether two measures differ: their middle halves, from q1 to q3, do not touch."""
    if old is None:
        return "only in new"
    if new is None:
        return "only in old"
    if new.q3 < old.q1:
        return "faster"
    if new.q1 > old.q3:
        return "slower"
    return "within noise"


def compare(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """Every row of both results, matched by what was timed and by engine; old rows come first."""
    before, after = _measures(old), _measures(new)
    return [
        Change(group, network, title, _label(engine), before.get(key), after.get(key))
        for key in dict.fromkeys([*before, *after])
        for group, network, title, engine in [key]
    ]


def _measures(results: dict[str, Any]) -> dict[tuple[str, str, str, str], Measure]:
    return {
        (row.group, row.network, row.title, engine): measure
        for row in parse(results).rows
        for engine, measure in row.measures.items()
    }


def _label(engine: str) -> str:
    return ENGINES[engine].label if engine in ENGINES else engine
