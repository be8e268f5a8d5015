"""A benchmark JSON as rows: one for each thing that was timed, with every engine's figures in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

__all__ = [
    "BASELINE",
    "GROUPS",
    "LABELS",
    "LIBRARIES",
    "NOT_SLOWER",
    "OURS",
    "PLAIN",
    "SHORT",
    "Group",
    "Latency",
    "Measure",
    "Ratio",
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
LABELS = {
    "naive": "naive NumPy",
    "c": "fusedrnn C",
    "numba": "fusedrnn Numba",
    "torch": "PyTorch",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
}
SHORT = {**LABELS, "naive": "NumPy", "c": "C", "numba": "Numba"}


#: Engines that are other people's, and the one of ours that they are compared with.
LIBRARIES = ("torch", "onnxruntime", "openvino")
OURS = "c"

#: A ratio whose median is at least this is not slower: below it is more than noise.
NOT_SLOWER = 0.97


@dataclass(frozen=True)
class Ratio:
    """How many times as long one engine takes as another, pass by pass: the middle of the paired ratios.

    Attributes
    ----------
    pairs
        How many passes there were, in each of which both were measured, one soon after the other.
    """

    q1: float
    median: float
    q3: float
    pairs: int

    @classmethod
    def of(cls, theirs: Sequence[float], ours: Sequence[float]) -> Ratio | None:
        """Of the times of two engines in the same passes; None where there is nothing to pair."""
        if len(theirs) != len(ours) or not ours:
            return None
        ratios = [one / other for one, other in zip(theirs, ours, strict=True)]
        if len(ratios) == 1:
            return cls(ratios[0], ratios[0], ratios[0], 1)
        low, _, high = quantiles(ratios, method="inclusive")
        return cls(low, median(ratios), high, len(ratios))

    @property
    def verdict(self) -> str:
        """ "faster", "even" or "slower": what fusedrnn is."""
        if self.median < NOT_SLOWER:
            return "slower"
        return "faster" if self.median > 1 / NOT_SLOWER else "even"


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
        "threads",
        "Several threads",
        "One call for all T steps, by one thread and by several, all timed by the clock on the wall. Every library "
        "is told how many threads it has.",
        "threads",
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
    bound, intensity
        What that floor is spent on; and the operations for each byte of weights that are read.
    turns
        The median of each pass over all rows.
    way
        How a library was called, where there are several ways.
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
    bound: str | None = None
    intensity: float | None = None
    turns: tuple[float, ...] = ()
    way: str = ""

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
    threads
        How many compute, where that was varied; else None, for one.
    """

    group: str
    case: str
    network: str
    title: str
    sizes: dict[str, int]
    measures: dict[str, Measure] = field(default_factory=dict)
    baseline: Measure | None = None
    threads: int | None = None

    def ratio(self, engine: str, over: str = OURS) -> Ratio | None:
        """How many times as long an engine takes as ours; None if one of the two was not measured."""
        theirs, ours = self.measures.get(engine), self.measures.get(over)
        return Ratio.of(theirs.turns, ours.turns) if theirs and ours else None

    @property
    def fastest(self) -> str | None:
        """The library that takes the least time; None if none was measured, or ours was not."""
        found = [name for name in LIBRARIES if name in self.measures and OURS in self.measures]
        return min(found, key=lambda name: self.measures[name].median, default=None)

    @property
    def numba(self) -> Ratio | None:
        """Numba's time by C's."""
        return self.ratio("numba", "c")

    @property
    def against_fastest(self) -> Ratio | None:
        """The ratio to that."""
        return self.ratio(self.fastest) if self.fastest else None

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


@dataclass(frozen=True)
class Latency:
    """How long the single steps of one engine took.

    Attributes
    ----------
    percentiles
        Seconds, by name.
    slower
        Points of a curve: the share of the steps that took longer than so many seconds.
    """

    engine: str
    hidden: int
    steps: int
    error: float
    percentiles: dict[str, float]
    slower: list[tuple[float, float]]


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
    libraries
        Other people's that were asked for, with their versions.
    threads
        How many some rows were measured with, beside one; None for no other number.
    latencies
        The distribution of single steps, by engine and size.
    clock
        Seconds that reading the clock takes, which are in each of those.
    compile
        Seconds to compile each Numba kernel, and to read it from its cache, by cell.
    """

    rows: list[Row]
    passes: int
    bound: float
    quick: bool
    environment: dict[str, Any]
    failures: dict[str, str]
    limits: dict[str, Any] | None
    libraries: dict[str, str] = field(default_factory=dict)
    threads: int | None = None
    latencies: list[Latency] = field(default_factory=list)
    clock: float = 0.0
    compile: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def engines(self) -> list[str]:
        """The engines that were measured, the baseline first."""
        seen = {engine for row in self.rows for engine in row.measures}
        return [engine for engine in LABELS if engine in seen]

    @property
    def own(self) -> list[str]:
        """Those that are not other people's libraries."""
        return [engine for engine in self.engines if engine not in LIBRARIES]

    @property
    def beside(self) -> list[Row]:
        """The rows in which a library was measured too, with one thread, the worst for us first."""
        found = [row for row in self.rows if row.against_fastest and row.threads is None]
        return sorted(
            found, key=lambda row: row.against_fastest.median if row.against_fastest else 0
        )

    @property
    def kernels(self) -> list[Row]:
        """The rows in which both of our kernels were measured with one thread, the worst for Numba first."""
        found = [row for row in self.rows if row.numba and row.threads is None]
        return sorted(found, key=lambda row: -row.numba.median if row.numba else 0)

    @property
    def reasons(self) -> dict[str, list[str]]:
        """What was not measured, by the reason."""
        found: dict[str, list[str]] = {}
        for name, reason in self.failures.items():
            found.setdefault(reason, []).append(name)
        return found

    def scaling(self, row: Row, engine: str) -> Ratio | None:
        """How many times as fast an engine is with the threads of that row as with one, pass by pass."""
        for other in self.rows:
            if (other.group, other.case, other.threads) == (row.group, row.case, 1):
                one, several = other.measures.get(engine), row.measures.get(engine)
                return Ratio.of(one.turns, several.turns) if one and several else None
        return None

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
    rows: dict[tuple[str, str, int | None], Row] = {}
    for benchmark in results["benchmarks"]:
        info, stats = benchmark["extra_info"], benchmark["stats"]
        threads = info.get("threads")
        key = benchmark["group"], info["case"], threads
        if key not in rows:
            sizes = {name: int(info[name]) for name in ("T", "B", "X", "H")}
            title = info["title"]
            if threads is not None:
                title += f", {threads} thread{'s' if threads > 1 else ''}"
            # Before there were other cells, there was the LSTM.
            network = info.get("network", PLAIN)
            rows[key] = Row(*key[:2], network, title, sizes, threads=threads)
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
            bound=info.get("bound"),
            intensity=info.get("intensity"),
            turns=tuple(float(each) for each in info.get("turns", ())),
            way=info.get("way", ""),
        )
    baselines = {group.name: group.baseline for group in GROUPS}
    for row in rows.values():
        naive = rows.get((baselines[row.group], row.case, row.threads))
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
        libraries=dict(about.get("libraries", {})),
        threads=about.get("threads"),
        latencies=[_latency(each) for each in about.get("latency", {}).get("rows", [])],
        clock=float(about.get("latency", {}).get("clock", 0)),
        compile=dict(about.get("compile", {})),
    )


def _latency(row: dict[str, Any]) -> Latency:
    return Latency(
        engine=row["engine"],
        hidden=int(row["hidden"]),
        steps=int(row["steps"]),
        error=float(row["max_error"]),
        percentiles={name: float(seconds) for name, seconds in row["percentiles"].items()},
        slower=[(float(share), float(seconds)) for share, seconds in row["slower"]],
    )
