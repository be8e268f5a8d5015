"""A benchmark session of pytest: several passes over all rows, merged into one result.

pytest-benchmark runs the rounds of one benchmark one after another. On a machine whose speed drifts, two
engines would then be measured in different weather. Here every row is a test with a parameter ``turn``: a
pass over all rows is one turn, the engines take turns within it, and in the JSON the turns of a row are one
benchmark again, its statistics those of all its rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from pytest_benchmark.stats import Stats

from fusedrnn.bench.cases import CASES, Group, in_group
from fusedrnn.bench.clock import clock
from fusedrnn.bench.environment import commit, environment
from fusedrnn.bench.measure import LARGEST_ERROR, limits
from fusedrnn.bench.peers import ENGINES, one_thread

__all__ = [
    "FULL_PASSES",
    "FUSED",
    "QUICK_PASSES",
    "Session",
    "each_engine",
    "each_shape",
    "merged",
    "timed",
]

QUICK_PASSES, FULL_PASSES = 5, 9

#: The engines whose loop over steps can run without Python.
FUSED = ("numba", "c")

_ORDER = {case.id: position for position, case in enumerate(CASES)}


def timed(group: str) -> pytest.MarkDecorator:
    """A benchmark of that group, timed by our clock and without garbage collection."""
    return pytest.mark.benchmark(group=group, disable_gc=True, timer=clock)


def each_shape(group: Group) -> pytest.MarkDecorator:
    """A test for each case of a group."""
    cases = [
        pytest.param(case.id, marks=[pytest.mark.quick] if case.quick else [], id=case.id)
        for case in in_group(group)
    ]
    return pytest.mark.parametrize("case", cases)


def each_engine(*engines: str) -> pytest.MarkDecorator:
    """A test for each of these engines, or for all of them."""
    return pytest.mark.parametrize("engine", engines or tuple(ENGINES))


class Session:
    """The pytest plugin; ``conftest.py`` registers one if nobody else did.

    Parameters
    ----------
    passes
        How often all rows are measured.
    started
        Called once with the number of tests.
    finished
        Called after each test with the number of its pass.

    Attributes
    ----------
    failures
        What was not measured, and why.
    """

    def __init__(
        self,
        passes: int = FULL_PASSES,
        started: Callable[[int], None] = lambda tests: None,
        finished: Callable[[int], None] = lambda turn: None,
    ) -> None:
        self.passes = passes
        self.failures: dict[str, str] = {}
        self._started = started
        self._finished = finished
        with one_thread():  # as everything is measured
            self._environment = environment()
            self._limits = limits()
        self._turns: dict[str, int] = {}
        self._rows: dict[str, str] = {}

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "turn" in metafunc.fixturenames:
            metafunc.parametrize("turn", range(self.passes))

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(items, key=self._position)
        self._turns = {item.nodeid: _parameters(item)["turn"] for item in items}
        self._rows = {item.nodeid: _row(item.nodeid, _parameters(item)) for item in items}
        self._started(len(items))

    def _position(self, item: pytest.Item) -> tuple[int, int, str, int]:
        """One pass after another, a case at a time, and another engine first in each pass."""
        parameters = _parameters(item)
        turn: int = parameters["turn"]
        engine = list(ENGINES).index(parameters["engine"])
        case = _ORDER.get(parameters["case"], len(_ORDER))
        return turn, case, _function(item.nodeid), (engine + turn) % len(ENGINES)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = crash.message if crash else report.longreprtext
            self.failures.setdefault(self._rows[report.nodeid], reason.strip().splitlines()[0])
        if report.when == "teardown":
            self._finished(self._turns[report.nodeid])

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
        output_json["fusedrnn"] = {
            "passes": self.passes,
            "largest_error": LARGEST_ERROR,
            "quick": config.getoption("markexpr") == "quick",
            "environment": self._environment,
            "machine": self._limits.to_dict() if self._limits else None,
            "failures": self.failures,
        }


def merged(benchmarks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One benchmark for all turns of a row, with the statistics of all their rounds.

    The schema is pytest-benchmark's, and so are the formulas. Benchmarks without a turn stay as they are.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for benchmark in benchmarks:
        rows.setdefault(_without_turn(benchmark["fullname"], benchmark["params"]), []).append(
            benchmark
        )
    return [_one(fullname, turns) for fullname, turns in rows.items()]


def _one(fullname: str, turns: list[dict[str, Any]]) -> dict[str, Any]:
    stats: Any = Stats()  # type: ignore[no-untyped-call]
    for turn in turns:
        stats.data += turn["stats"]["data"]
    first = turns[0]
    name = fullname.partition("::")[2]
    infos = [turn["extra_info"] for turn in turns]
    info = dict(infos[0])
    if "max_error" in info:
        info["max_error"] = max(each["max_error"] for each in infos)
    if "empty_loop" in info:
        info["empty_loop"] = median(each["empty_loop"] for each in infos)
    return {
        **first,
        "name": name,
        "fullname": fullname,
        "params": {key: value for key, value in first["params"].items() if key != "turn"},
        "param": name.partition("[")[2].rstrip("]"),
        "extra_info": info,
        "stats": {
            **stats.as_dict(),
            "data": stats.data,
            "iterations": first["stats"]["iterations"],
        },
    }


def _without_turn(fullname: str, parameters: dict[str, Any]) -> str:
    """The full name without the turn, and without the folder of whoever ran it."""
    path, _, name = fullname.partition("::")
    if "turn" in parameters:
        name = _row(fullname, parameters)
    return f"{Path(path).name}::{name}"


def _row(nodeid: str, parameters: dict[str, Any]) -> str:
    """The name of what all turns of a test measure."""
    return f"{_function(nodeid)}[{parameters['case']}-{parameters['engine']}]"


def _function(nodeid: str) -> str:
    return nodeid.partition("::")[2].partition("[")[0]


def _parameters(item: pytest.Item) -> dict[str, Any]:
    assert isinstance(item, pytest.Function)
    return item.callspec.params
