"""A benchmark session of pytest: several passes over all rows, merged into one result.

pytest-benchmark runs the rounds of one benchmark one after another. On a machine whose speed drifts, two
engines would then be measured under a different machine load. Here every row is a test with a parameter ``pass_``:
the session passes over all rows several times, with another engine first each time, and in the JSON the passes of a
row are one benchmark again, its statistics those of all its rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from pytest_benchmark.stats import Stats

from fusedrnn.bench.cases import CASES, TRAINING, Case, Run, find, matches
from fusedrnn.bench.environment import commit, environment, versions
from fusedrnn.bench.measure import MAX_ERROR, free, limits
from fusedrnn.bench.peers import OWN, offers, one_thread
from fusedrnn.bench.timing import Clock, clock
from fusedrnn.report.engines import BASELINE, ENGINES, OURS
from fusedrnn.report.results import SCHEMA

__all__ = [
    "FULL_PASSES",
    "QUICK_PASSES",
    "Selection",
    "Session",
    "about",
    "merged",
    "rows",
    "timed",
]

#: Ratios are paired within a pass: where other libraries are compared, never fewer than FULL_PASSES.
QUICK_PASSES, FULL_PASSES = 8, 15

_ORDER = {case.id: position for position, case in enumerate(CASES)}
_ENGINES = tuple(ENGINES)
#: What one small table compares.
_SUMMARY = (BASELINE, OURS)

#: What is measured with one thread and with several, and in which runs its cases are.
THREADED: dict[str, Run] = {"threads": "threads", "training threads": "training threads"}

#: For the time that is left: what a measurement takes apart from its calls, and operations a second in it.
_OVERHEAD_SECONDS, _FLOPS = 0.03, 2e10


def timed(group: str, timer: Clock = clock) -> pytest.MarkDecorator:
    """A benchmark of that group, timed by one of our clocks and without garbage collection."""
    return pytest.mark.benchmark(group=group, disable_gc=True, timer=timer)


def rows(
    group: str | None = None,
    *,
    names: Mapping[str, bool] | None = None,
    engines: Sequence[str] = _ENGINES,
) -> pytest.MarkDecorator:
    """What a benchmark is run on: its parameters ``case`` and ``engine``, which the session fills in.

    Parameters
    ----------
    group
        The cases of that group; "threads" or "training threads" for those that are measured with several threads.
    names
        Instead of cases of the list: names, and whether the short run has them.
    engines
        Of these, those that are measured.
    """
    return pytest.mark.rows(group, names, engines)


@dataclass(frozen=True)
class Selection:
    """What a session measures.

    Attributes
    ----------
    quick
        The short run.
    libraries
        The other libraries that are measured too; None where the session is not about them.
    long
        Also what takes minutes for one row.
    pattern
        Only cases whose name has this; see :func:`~fusedrnn.bench.cases.matches`.
    threads
        Number of threads with which some cases are measured, besides one; None for one only.
    summary
        The few shapes of one small table, without Numba.
    training
        Forward and backward passes alone.
    """

    quick: bool = False
    libraries: tuple[str, ...] | None = None
    long: bool = False
    pattern: str | None = None
    threads: int | None = None
    summary: bool = False
    training: bool = False

    @property
    def passes(self) -> int:
        """How often all rows are measured."""
        return QUICK_PASSES if self.quick and self.libraries is None else FULL_PASSES

    @property
    def run(self) -> Run:
        """The run whose cases are measured."""
        if self.summary:
            return "summary"
        if self.training:
            return "quick training" if self.quick else "training"
        if self.libraries is None:
            return "quick" if self.quick else "default"
        return "quick peers" if self.quick else "peers"

    @property
    def engines(self) -> tuple[str, ...]:
        """Everything that is measured."""
        return (*(_SUMMARY if self.summary else OWN), *(self.libraries or ()))

    def cases(self, group: str) -> list[Case]:
        """Those of a group, or those of several threads."""
        runs: set[Run] = {self.run}
        if self.long:
            runs.add("long")
        if group in THREADED:
            if self.threads is None or (group == "training threads") != self.training:
                return []
            runs = {THREADED[group]}
        return [
            case
            for case in CASES
            if (group in THREADED or group == case.group)
            and runs & case.runs
            and (group not in THREADED or not self.quick or "quick peers" in case.runs)
            and matches(case.id, self.pattern)
        ]

    def names(self, names: Mapping[str, bool]) -> list[str]:
        """Rows that are not in the list of cases; other libraries are not asked for them."""
        if self.libraries is not None or self.training:
            return []
        return [
            name
            for name, quick in names.items()
            if quick >= self.quick and matches(name, self.pattern)
        ]


@dataclass
class _Left:
    """How much of the session is done, by what each measurement was expected to take."""

    all: float = 0.0
    done: float = 0.0
    of_each: dict[str, float] = field(default_factory=dict)


class Session:
    """The pytest plugin; ``conftest.py`` registers one if nobody else did.

    Parameters
    ----------
    selection
        What is measured.
    started
        Called once, with the number of tests and the seconds that they are expected to take.
    finished
        Called after each test, with the number of its pass and the part of the session that is done.

    Attributes
    ----------
    failures
        What was not measured, and why.
    """

    def __init__(
        self,
        selection: Selection | None = None,
        started: Callable[[int, float], None] = lambda tests, seconds: None,
        finished: Callable[[int, float], None] = lambda pass_, done: None,
    ) -> None:
        self.selection = selection or Selection()
        self.failures: dict[str, str] = {}
        self._started = started
        self._finished = finished
        with one_thread():  # before anything is measured: also how busy the machine is
            self._environment = environment()
            limits()
        self._passes: dict[str, int] = {}
        self._rows: dict[str, str] = {}
        self._left = _Left()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        marker = metafunc.definition.get_closest_marker("rows")
        if marker is None:
            return
        group, names, engines = marker.args
        chosen = self.selection
        parameters = list(_parameters_of(chosen, group, names, engines))
        if group in THREADED:
            several = [(*each.values, n) for each in parameters for n in (1, chosen.threads)]
            metafunc.parametrize(("case", "engine", "threads"), several)
        else:
            metafunc.parametrize(("case", "engine"), parameters)
        metafunc.parametrize("pass_", range(chosen.passes))

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        # A benchmark without rows is one item to pytest, whose parameters are not set.
        named = [item for item in items if _parameters(item)["engine"] in _ENGINES]
        items[:] = sorted(named, key=self._position)
        self._passes = {item.nodeid: _parameters(item)["pass_"] for item in items}
        self._rows = {item.nodeid: _row(item.nodeid, _parameters(item)) for item in items}
        self._left.of_each = {item.nodeid: _expected(_parameters(item)["case"]) for item in items}
        self._left.all = sum(self._left.of_each.values())
        self._started(len(items), self._left.all)

    def _position(self, item: pytest.Item) -> tuple[Any, ...]:
        """One pass after another, a case at a time, and another engine first in each pass.

        What takes long comes at the end, all passes of a case together: so much memory is in use only once.
        """
        parameters = _parameters(item)
        pass_: int = parameters["pass_"]
        engine = _ENGINES.index(parameters["engine"])
        case = _ORDER.get(parameters["case"], len(_ORDER))
        long = case if _is_long(parameters["case"]) else -1
        place = (engine + pass_) % len(_ENGINES)
        return long, pass_, case, _function(item.nodeid), parameters.get("threads", 1), place

    def pytest_runtest_teardown(self, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        case = _parameters(item)["case"]
        if _is_long(case) and (nextitem is None or _parameters(nextitem)["case"] != case):
            free()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = crash.message if crash else report.longreprtext
            self.failures.setdefault(self._rows[report.nodeid], reason.strip().splitlines()[0])
        if report.when == "teardown":
            self._left.done += self._left.of_each[report.nodeid]
            self._finished(self._passes[report.nodeid], self._left.done / self._left.all)

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_benchmark_generate_commit_info(self) -> dict[str, Any]:
        # The first answer counts, and pytest-benchmark's is about the folder it is started in,
        # which may be anybody's.
        return commit()

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_json(
        self, config: pytest.Config, output_json: dict[str, Any]
    ) -> None:
        output_json["machine_info"].pop("node", None)
        # A row that failed in one pass has no time, though other passes have.
        output_json["benchmarks"] = [
            row for row in merged(output_json["benchmarks"]) if row["name"] not in self.failures
        ]
        quick = config.getoption("markexpr") == "quick"
        output_json["fusedrnn"] = about(self.selection, self.failures) | {
            "quick": self.selection.quick or quick,
            "environment": self._environment,
        }


def about(selection: Selection, failures: dict[str, str]) -> dict[str, Any]:
    """What a result says apart from its rows."""
    with one_thread():  # as nearly everything is measured
        machine = limits()
        return {
            "schema": SCHEMA,
            "passes": selection.passes,
            "max_error": MAX_ERROR,
            "quick": selection.quick,
            "summary": selection.summary,
            "training": selection.training,
            "libraries": versions(selection.libraries or ()),
            "threads": selection.threads,
            "environment": environment(),
            "machine": machine.to_dict() if machine else None,
            "failures": failures,
            # What single steps take, and what is above their kernels; the stages of an explanation; what Numba compiles.
            "latency": None,
            "overhead": None,
            "stages": None,
            "compile": None,
        }


def merged(benchmarks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One benchmark for all passes of a row, with the statistics of all their rounds.

    The schema is pytest-benchmark's, and so are the formulas. Benchmarks without a pass stay as they are.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for benchmark in benchmarks:
        rows.setdefault(_without_pass(benchmark["fullname"], benchmark["params"]), []).append(
            benchmark
        )
    return [_one(fullname, passes) for fullname, passes in rows.items()]


def _one(fullname: str, passes: list[dict[str, Any]]) -> dict[str, Any]:
    stats: Any = Stats()  # type: ignore[no-untyped-call]
    for each in passes:
        stats.data += each["stats"]["data"]
    first = passes[0]
    name = fullname.partition("::")[2]
    infos = [each["extra_info"] for each in passes]
    info = dict(infos[0])
    if "max_error" in info:
        info["max_error"] = max(each["max_error"] for each in infos)
    if "pass_" in first["params"]:
        # What others are paired with: passes in which another engine was measured at the same time.
        several = sorted(passes, key=lambda each: int(each["params"]["pass_"]))
        info["passes"] = [median(each["stats"]["data"]) for each in several]
        if "forward" in info:
            info["forward"] = [each["extra_info"]["forward"] for each in several]
    if "empty_loop" in info:
        info["empty_loop"] = median(each["empty_loop"] for each in infos)
    return {
        **first,
        "name": name,
        "fullname": fullname,
        "params": {key: value for key, value in first["params"].items() if key != "pass_"},
        "param": name.partition("[")[2].rstrip("]"),
        "extra_info": info,
        "stats": {
            **stats.as_dict(),
            "data": stats.data,
            "iterations": first["stats"]["iterations"],
        },
    }


def _without_pass(fullname: str, parameters: dict[str, Any]) -> str:
    """The full name without the pass, and without the folder of whoever ran it."""
    path, _, name = fullname.partition("::")
    if "pass_" in parameters:
        name = _row(fullname, parameters)
    return f"{Path(path).name}::{name}"


def _row(nodeid: str, parameters: dict[str, Any]) -> str:
    """The name of what all passes of a test measure."""
    threads = f"-{parameters['threads']}" if "threads" in parameters else ""
    return f"{_function(nodeid)}[{parameters['case']}-{parameters['engine']}{threads}]"


def _function(nodeid: str) -> str:
    return nodeid.partition("::")[2].partition("[")[0]


def _parameters(item: pytest.Item) -> dict[str, Any]:
    assert isinstance(item, pytest.Function)
    return item.callspec.params


def _parameters_of(
    chosen: Selection,
    group: str | None,
    names: Mapping[str, bool] | None,
    engines: Iterable[str],
) -> Iterator[Any]:
    """Pairs of a case and an engine that offers it, as pytest's parameters."""
    engines = [engine for engine in chosen.engines if engine in engines]
    if names is not None:
        of_each = [(name, names[name], engines) for name in chosen.names(names)]
    else:
        of_each = [
            (case.id, "quick" in case.runs, [each for each in engines if offers(each, case)])
            for case in chosen.cases(group or "")
        ]
    for name, quick, offering in of_each:
        for engine in offering:
            yield pytest.param(name, engine, marks=[pytest.mark.quick] if quick else [])


def _is_long(case: str) -> bool:
    return case in _ORDER and find(case).runs == {"long"}


def _expected(case: str) -> float:
    """Seconds that one measurement may take: it is checked, and called once at least."""
    if case not in _ORDER:
        return _OVERHEAD_SECONDS
    passes = 3 if find(case).group in TRAINING else 1
    return _OVERHEAD_SECONDS + 2 * 2 * passes * find(case).macs / _FLOPS
