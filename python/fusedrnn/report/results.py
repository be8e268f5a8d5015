"""A benchmark JSON as rows: one for each thing that was timed, with every engine's figures in it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = [
    "BASELINE",
    "GROUPS",
    "LABELS",
    "PLAIN",
    "SHORT",
    "Group",
    "Measure",
    "Results",
    "Row",
    "load",
    "parse",
]

#: What the others are compared with.
BASELINE = "naive"

#: The network that has every shape.
PLAIN = "LSTM"

#: In the order of tables and legends: on a small screen the first columns are seen first.
LABELS = {"naive": "naive NumPy", "c": "fusedrnn C", "numba": "fusedrnn Numba"}
SHORT = {"naive": "NumPy", "c": "C", "numba": "Numba"}


@dataclass(frozen=True)
class Group:
    """Rows that are timed in the same way.

    Attributes
    ----------
    name
        In the JSON.
    meaning
        What one time in this group is, for people.
    baseline
        The group whose naive row the speed-up is against.
    """

    name: str
    title: str
    meaning: str
    baseline: str


#: In the order of the report.
GROUPS = (
    Group(
        "step from Python",
        "One step, called from Python",
        "One call of step(x): what a program pays that feeds a network one input at a time.",
        "step from Python",
    ),
    Group(
        "step, kernel alone",
        "One step, the kernel alone",
        "The same steps in a loop in C, without a call from Python between them; each is finished "
        "before the next begins, as a caller has it. Naive NumPy has no such loop: the speed-up is "
        "over its step from Python.",
        "step from Python",
    ),
    Group("sequence", "One sequence", "One call for all T steps of a single sequence.", "sequence"),
    Group("batch", "A batch of sequences", "One call for all T steps of B sequences.", "batch"),
    Group(
        "ragged",
        "A batch of unequal lengths",
        "One call for B sequences, the longest of T steps and the mean about half of that. fusedrnn is told the "
        "lengths; naive NumPy computes all T steps of all sequences and masks them. Operations are counted for "
        "the steps that there are.",
        "ragged",
    ),
    Group(
        "char LSTM on Acts",
        "Real data: a character model reads the Acts of the Apostles",
        "One call for all T characters, one-hot, batch 1. Bits per character say how well the model "
        "guesses the next one: the same for every engine, or one of them is wrong.",
        "char LSTM on Acts",
    ),
)


@dataclass(frozen=True)
class Measure:
    """One engine's figures in one row: times in seconds for one call, over all rounds.

    Attributes
    ----------
    error
        The largest error against float64.
    empty_loop
        Seconds for one turn of the timing loop around a function that does nothing.
    bits
        Bits per character, of the character model.
    floor
        The least seconds that this machine could take, where that is known.
    """

    median: float
    q1: float
    q3: float
    rounds: int
    iterations: int
    flops: float
    error: float
    empty_loop: float
    isa: str | None
    bits: float | None = None
    floor: float | None = None

    @property
    def reached(self) -> float | None:
        """How much of this machine's limit was reached: 1 is all of it."""
        return None if self.floor is None else self.floor / self.median

    @property
    def spread(self) -> float:
        """The range between the quartiles, in parts of the median."""
        return (self.q3 - self.q1) / self.median

    @property
    def gflops(self) -> float:
        """Billions of floating-point operations a second, activations not counted."""
        return self.flops / self.median / 1e9


@dataclass
class Row:
    """One thing that was timed, and by engine how long it took.

    Attributes
    ----------
    network
        The name of the cell with its options.
    title
        The name of the shape.
    """

    group: str
    case: str
    network: str
    title: str
    sizes: dict[str, int]
    measures: dict[str, Measure] = field(default_factory=dict)
    baseline: Measure | None = None

    @property
    def floor(self) -> float | None:
        """The least seconds that this machine could take, where that is known."""
        floors = [each.floor for each in self.measures.values() if each.floor is not None]
        return min(floors, default=None)

    def speedup(self, engine: str) -> float | None:
        """How many times as fast as naive NumPy; None if one of the two was not measured."""
        measure = self.measures.get(engine)
        if measure is None or self.baseline is None:
            return None
        return self.baseline.median / measure.median

    def speedup_range(self, engine: str) -> tuple[float, float] | None:
        """The same between quartiles: the slower quarter of one by the faster of the other."""
        measure = self.measures.get(engine)
        if measure is None or self.baseline is None:
            return None
        return self.baseline.q1 / measure.q3, self.baseline.q3 / measure.q1


@dataclass
class Results:
    """All rows of a benchmark JSON, and the circumstances.

    Attributes
    ----------
    bound
        The largest error that an engine was allowed.
    failures
        What was not measured, and why.
    limits
        What a core of the machine does at most with the instruction set that was used, where that is known.
    """

    rows: list[Row]
    passes: int
    bound: float
    quick: bool
    environment: dict[str, Any]
    failures: dict[str, str]
    limits: dict[str, Any] | None

    @property
    def engines(self) -> list[str]:
        """The engines that were measured, the baseline first."""
        seen = {engine for row in self.rows for engine in row.measures}
        return [engine for engine in LABELS if engine in seen]

    def in_group(self, name: str) -> list[Row]:
        """The rows of a group."""
        return [row for row in self.rows if row.group == name]


def load(path: Path) -> dict[str, Any]:
    """The JSON of a benchmark, as ``fusedrnn bench --json`` writes it.

    Raises
    ------
    ValueError
        If there is no such file, or it is not such a JSON; the message names the file.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:  # not UTF-8, or not JSON
        raise ValueError(f"{path} is not JSON: {error}") from error
    try:
        parse(results)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a result of 'fusedrnn bench'") from error
    return dict(results)


def parse(results: dict[str, Any]) -> Results:
    """The rows of a benchmark JSON, those of a network together, and else in the order they were measured."""
    about = results["fusedrnn"]
    machine = about.get("machine")
    rows: dict[tuple[str, str], Row] = {}
    for benchmark in results["benchmarks"]:
        info, stats = benchmark["extra_info"], benchmark["stats"]
        key = benchmark["group"], info["case"]
        if key not in rows:
            sizes = {name: int(info[name]) for name in ("T", "B", "X", "H")}
            # Before there were other cells, there was the LSTM.
            rows[key] = Row(*key, info.get("network", PLAIN), info["title"], sizes)
        rows[key].measures[info["engine"]] = Measure(
            median=float(stats["median"]),
            q1=float(stats["q1"]),
            q3=float(stats["q3"]),
            rounds=int(stats["rounds"]),
            iterations=int(stats["iterations"]),
            flops=float(info["flops"]),
            error=float(info["max_error"]),
            empty_loop=float(info["empty_loop"]),
            isa=info["isa"],
            bits=info.get("bits_per_character"),
            floor=info.get("floor"),
        )
    baselines = {group.name: group.baseline for group in GROUPS}
    for row in rows.values():
        naive = rows.get((baselines[row.group], row.case))
        row.baseline = naive.measures.get(BASELINE) if naive else None
    networks = list(dict.fromkeys(row.network for row in rows.values()))
    return Results(
        rows=sorted(rows.values(), key=lambda row: networks.index(row.network)),
        passes=int(about["passes"]),
        bound=float(about["largest_error"]),
        quick=bool(about["quick"]),
        environment=dict(about["environment"]),
        failures=dict(about["failures"]),
        limits=machine["limits"].get(about["environment"]["isa"]) if machine else None,
    )
