"""A benchmark JSON as rows: one for each thing that was timed, with every engine's figures in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from fusedrnn.report.engines import BASELINE, ENGINES, LIBRARIES, OURS
from fusedrnn.report.groups import GROUPS, TRAINING

__all__ = [
    "NOT_SLOWER",
    "SCHEMA",
    "Latency",
    "Measure",
    "Overhead",
    "Ratio",
    "Results",
    "Row",
    "Stage",
    "load",
    "parse",
]

#: The number of the schema of a benchmark JSON: another number cannot be read.
SCHEMA = 1

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
class Measure:
    """One engine's figures in one row: times in seconds for one call, over all rounds.

    Attributes
    ----------
    error
        The largest error against float64.
    empty_loop
        Seconds for one repeat of the timing loop around a function that does nothing.
    bits
        Bits per character, of the character model.
    floor
        The least seconds that this machine could take, where that is known.
    intensity
        The operations for each byte of weights that are read.
    passes
        The median of each pass over all rows.
    variant
        How a library was called, where it can be called in several ways.
    backward_macs
        Of a forward and backward pass: the multiply-adds of the matrix products backward.
    forward
        Of a forward and backward pass: what the forward pass takes without training, in each pass over all rows.
    tape
        The bytes that our kernels keep of each step of one sequence for the backward pass, beside x.
    """

    median: float
    q1: float
    q3: float
    rounds: int
    flops: float
    error: float
    empty_loop: float
    isa: str | None
    bits: float | None = None
    floor: float | None = None
    intensity: float | None = None
    passes: tuple[float, ...] = ()
    variant: str = ""
    backward_macs: int | None = None
    forward: tuple[float, ...] = ()
    tape: int | None = None

    @property
    def backward(self) -> Ratio | None:
        """How many times as long as a forward pass the rest takes: the backward pass, and keeping what it needs."""
        rest = [both - one for both, one in zip(self.passes, self.forward, strict=False)]
        return Ratio.of(rest, self.forward)

    @property
    def backward_flops(self) -> float | None:
        """Operations a second of the backward pass's products, in all of what is not a forward pass."""
        if not (self.forward and self.backward_macs):
            return None
        rest = median(both - one for both, one in zip(self.passes, self.forward, strict=True))
        return 2 * self.backward_macs / rest if rest > 0 else None

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
    cell, options
        The cell and its options, as the cell table names them.
    network
        The name of the cell with its options, for people.
    title
        The name of the shape, for people.
    threads
        How many compute, where that was varied; else None, for one.
    """

    group: str
    case: str
    cell: str
    options: dict[str, Any]
    network: str
    title: str
    sizes: dict[str, int]
    measures: dict[str, Measure] = field(default_factory=dict)
    baseline: Measure | None = None
    threads: int | None = None

    @property
    def trained(self) -> bool:
        """Whether it is about a forward and backward pass."""
        return self.group in TRAINING

    @property
    def plain(self) -> bool:
        """Whether it is the LSTM without options: the network that has every shape."""
        return self.cell == "lstm" and not self.options

    def ratio(self, engine: str, over: str = OURS) -> Ratio | None:
        """How many times as long an engine takes as ours; None if one of the two was not measured."""
        theirs, ours = self.measures.get(engine), self.measures.get(over)
        return Ratio.of(theirs.passes, ours.passes) if theirs and ours else None

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


@dataclass(frozen=True)
class Overhead:
    """What ways to step cost above their kernel.

    Attributes
    ----------
    seconds
        Seconds of each way, by name.
    above, calls
        The quartiles of what is above the kernel, in seconds and in empty calls, by name.
    """

    engine: str
    hidden: int
    empty: float
    kernel: float
    seconds: dict[str, float]
    above: dict[str, tuple[float, float, float]]
    calls: dict[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Stage:
    """One stage of the explanation from naive to fast; see :mod:`fusedrnn.bench.stages`."""

    hidden: int
    name: str
    isa: str | None
    seconds: tuple[float, float, float]
    gain: float | None
    total: float
    error: float


@dataclass
class Results:
    """All rows of a benchmark JSON, and the circumstances.

    Attributes
    ----------
    max_error
        The largest error that an engine was allowed.
    failures
        What was not measured, and why.
    limits
        What a core of the machine does at most with the instruction set that was used, where that is known.
    libraries
        Other people's that were asked for, with their versions.
    threads
        How many some rows were measured with, as well as with one; None for no other number.
    latencies
        The distribution of single steps, by engine and size.
    clock
        Seconds that reading the clock takes, which are in each of those.
    compile
        Seconds to compile each Numba kernel, and to read it from its cache, by cell and role.
    overheads
        What calls from Python cost above their kernel, by engine and size.
    limits_of_calls
        What ways to step are meant to cost at most above their kernel: in empty calls, and in seconds.
    stages
        The stages of the explanation from naive to fast.
    about_stages
        What is new in each stage, by name.
    rates
        FLOP/s of FMAs, and of a tile alone by the size of its panels.
    """

    rows: list[Row]
    passes: int
    max_error: float
    quick: bool
    summary: bool
    training: bool
    environment: dict[str, Any]
    failures: dict[str, str]
    limits: dict[str, Any] | None
    libraries: dict[str, str]
    threads: int | None
    latencies: list[Latency] = field(default_factory=list)
    clock: float = 0.0
    compile: dict[str, dict[str, float]] = field(default_factory=dict)
    overheads: list[Overhead] = field(default_factory=list)
    limits_of_calls: tuple[dict[str, float], dict[str, float]] = field(
        default_factory=lambda: ({}, {})
    )
    stages: list[Stage] = field(default_factory=list)
    about_stages: dict[str, str] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)

    @property
    def engines(self) -> list[str]:
        """The engines that were measured, the baseline first."""
        seen = {engine for row in self.rows for engine in row.measures}
        return [engine for engine in ENGINES if engine in seen]

    @property
    def own(self) -> list[str]:
        """Those that are not other people's libraries."""
        return [engine for engine in self.engines if engine not in LIBRARIES]

    @property
    def versus(self) -> list[Row]:
        """The forward passes in which a library was measured too, with one thread, the worst for us first."""
        found = [
            row
            for row in self.rows
            if row.against_fastest and row.threads is None and not row.trained
        ]
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
                return Ratio.of(one.passes, several.passes) if one and several else None
        return None

    def within(self, overhead: Overhead, way: str) -> str:
        """ "met" or "missed": whether a way to step costs as little above its kernel as it is meant to; "" for no limit."""
        in_calls, in_seconds = self.limits_of_calls
        for limits, found in ((in_calls, overhead.calls), (in_seconds, overhead.above)):
            if way in limits:
                return "met" if found[way][1] <= limits[way] else "missed"
        return ""

    def in_group(self, name: str) -> list[Row]:
        """The rows of a group."""
        return [row for row in self.rows if row.group == name]


def load(path: Path) -> dict[str, Any]:
    """The JSON of a benchmark, as ``fusedrnn bench run --json`` writes it.

    Raises
    ------
    ValueError
        If there is no such file, or it is not such a JSON; the message names the file.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or too deep
        raise ValueError(f"{path} is not JSON: {error}") from error
    try:
        parse(results)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a result of 'fusedrnn bench'") from error
    return dict(results)


def parse(results: dict[str, Any]) -> Results:
    """The rows of a benchmark JSON, those of a network together, and else in the order they were measured."""
    about = results["fusedrnn"]
    if about["schema"] != SCHEMA:
        raise ValueError(f"schema must be {SCHEMA}, got {about['schema']!r}")
    machine, latency = about["machine"], about["latency"] or {"rows": [], "clock": 0}
    overhead = about["overhead"] or {"rows": [], "max_calls": {}, "max_seconds": {}}
    stages = about["stages"] or {"rows": [], "stages": {}, "rates": {}}
    rows = _rows(results["benchmarks"])
    networks = list(dict.fromkeys(row.network for row in rows))
    return Results(
        rows=sorted(rows, key=lambda row: networks.index(row.network)),
        passes=int(about["passes"]),
        max_error=_number(about["max_error"]),
        quick=bool(about["quick"]),
        summary=bool(about["summary"]),
        training=bool(about.get("training")),
        environment=dict(about["environment"]),
        failures=dict(about["failures"]),
        limits=machine["limits"].get(about["environment"]["isa"]) if machine else None,
        libraries=dict(about["libraries"]),
        threads=about["threads"],
        latencies=[_latency(each) for each in latency["rows"]],
        clock=_number(latency["clock"]),
        compile={name: dict(took) for name, took in (about["compile"] or {}).items()},
        overheads=[_overhead(each) for each in overhead["rows"]],
        limits_of_calls=(dict(overhead["max_calls"]), dict(overhead["max_seconds"])),
        stages=[_stage(each) for each in stages["rows"]],
        about_stages=dict(stages["stages"]),
        rates=dict(stages["rates"]),
    )


def _rows(benchmarks: list[dict[str, Any]]) -> list[Row]:
    rows: dict[tuple[str, str, int | None], Row] = {}
    for benchmark in benchmarks:
        info, stats = benchmark["extra_info"], benchmark["stats"]
        threads = info["threads"]
        key = benchmark["group"], info["case"], threads
        if key not in rows:
            title = str(info["title"])
            if threads is not None:
                title += f", {threads} thread{'s' if threads > 1 else ''}"
            rows[key] = Row(
                *key[:2],
                cell=info["cell"],
                options={name: _hashable(value) for name, value in info["options"].items()},
                network=str(info["network"]),
                title=title,
                sizes={name: int(info[name]) for name in ("T", "B", "X", "H")},
                threads=threads,
            )
        rows[key].measures[info["engine"]] = Measure(
            median=_seconds(stats["median"]),
            q1=_seconds(stats["q1"]),
            q3=_seconds(stats["q3"]),
            rounds=int(stats["rounds"]),
            flops=_number(info["flops"]),
            error=_number(info["max_error"]),
            empty_loop=_number(info["empty_loop"]),
            isa=info["isa"],
            bits=info.get("bits_per_character"),  # of the character model only
            floor=info["floor"] and _seconds(info["floor"]),
            intensity=info["intensity"] and _number(info["intensity"]),
            passes=tuple(_seconds(each) for each in info["passes"]),
            variant=info["variant"],
            backward_macs=info.get("backward_macs"),
            forward=tuple(_seconds(each) for each in info.get("forward", ())),
            tape=info.get("tape"),
        )
    baselines = {group.name: group.baseline for group in GROUPS}
    for row in rows.values():
        naive = rows.get((baselines[row.group], row.case, row.threads))
        row.baseline = naive.measures.get(BASELINE) if naive else None
    return list(rows.values())


def _number(value: Any) -> float:
    """A number that is one."""
    number = float(value)
    if not isfinite(number):
        raise ValueError(f"must be finite, got {number}")
    return number


def _seconds(value: Any) -> float:
    """A time that can be divided by."""
    seconds = _number(value)
    if not seconds > 0:
        raise ValueError(f"must be above 0, got {seconds}")
    return seconds


def _hashable(value: Any) -> Any:
    """Of an option: JSON has lists where an architecture has tuples."""
    return tuple(value) if isinstance(value, list) else value


def _latency(row: dict[str, Any]) -> Latency:
    return Latency(
        engine=row["engine"],
        hidden=int(row["hidden"]),
        steps=int(row["steps"]),
        error=_number(row["max_error"]),
        percentiles={name: _number(seconds) for name, seconds in row["percentiles"].items()},
        slower=[(_number(share), _number(seconds)) for share, seconds in row["slower"]],
    )


def _three(quartiles: dict[str, Any]) -> tuple[float, float, float]:
    q1, middle, q3 = (_number(quartiles[name]) for name in ("q1", "median", "q3"))
    return q1, middle, q3


def _overhead(row: dict[str, Any]) -> Overhead:
    return Overhead(
        engine=row["engine"],
        hidden=int(row["hidden"]),
        empty=_seconds(row["empty"]),
        kernel=_seconds(row["kernel"]),
        seconds={name: _seconds(value) for name, value in row["seconds"].items()},
        above={name: _three(value) for name, value in row["above"].items()},
        calls={name: _three(value) for name, value in row["calls"].items()},
    )


def _stage(row: dict[str, Any]) -> Stage:
    return Stage(
        hidden=int(row["hidden"]),
        name=row["name"],
        isa=row["isa"],
        seconds=_three(row["seconds"]),
        gain=row["gain"] and _number(row["gain"]),
        total=_number(row["total"]),
        error=_number(row["error"]),
    )
