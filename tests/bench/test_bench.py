"""The benchmarks themselves: what is measured, that wrong results are not timed, how passes merge."""

from __future__ import annotations

import gc
import inspect
import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarking import bench, swapped

import fusedrnn as fr
from fusedrnn.bench import environment as environment_module
from fusedrnn.bench import overhead, stages, timing
from fusedrnn.bench import run as verbs
from fusedrnn.bench.acts import bits_per_character, demo_benchmark, demo_problem
from fusedrnn.bench.cases import CASES, GROUPS, Case, find, in_group, networks
from fusedrnn.bench.environment import busy, environment
from fusedrnn.bench.measure import (
    Benchmark,
    Problem,
    WrongResultError,
    benchmark,
    check,
    limits,
    plan_rounds,
    problem,
)
from fusedrnn.bench.peers import OWN, Fused, Naive, Setup, layer, make
from fusedrnn.bench.peers.fused import layer_class
from fusedrnn.bench.session import merged
from fusedrnn.bench.timing import interleaved
from fusedrnn.cells import CELLS
from fusedrnn.cli.bench import bench as verbs_group

#: Every cell and option of the list, so small that all of it runs in no time.
SMALL = [
    Case("batch", 13, 3, 5, 8, cell=cell, options=options)
    for cell, options in (("lstm", ()), *networks(8))
]
small = pytest.mark.parametrize("case", SMALL, ids=lambda case: case.network)


def peer(engine: str, this: Problem) -> Naive | Fused:
    return make(engine, this.setup())


class Fixture:
    """pytest-benchmark's, as far as it is used: it times nothing, and remembers what it should have timed."""

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}
        self.timed: list[object] = []
        self.stats = None

    def pedantic(self, *arguments: object, **options: object) -> None:
        self.timed.append(arguments)


def facts(case_id: str, engine: str) -> dict[str, Any]:
    """What is written down about a row."""

    fixture = Fixture()
    benchmark(case_id, engine).time_calls(fixture)
    return fixture.extra_info


class TestCases:
    def test_names_are_distinct_and_found(self) -> None:
        ids = [case.id for case in CASES]
        assert len(set(ids)) == len(ids)
        names = [(case.group, case.network, case.title) for case in CASES]
        assert len(set(names)) == len(names)
        for case in CASES:
            assert find(case.id) == case

    def test_every_cell_and_option_has_every_shape(self) -> None:
        shapes = {("step", 1, 1, 64), ("step", 1, 1, 256), ("sequence", 100, 1, 64)}
        shapes |= {("sequence", 100, 1, 256), ("batch", 50, 16, 128)}
        for name in {case.network for case in SMALL}:
            cases = [case for case in CASES if case.network == name]
            found = {(each.group, each.steps, each.batch, each.hidden) for each in cases}
            missing = shapes - found
            # A reverse direction has no steps.
            allowed = {each for each in shapes if "bidirectional" in name and each[0] == "step"}
            assert missing == allowed, name
            assert any("quick" in case.runs for case in cases)
        assert {case.cell for case in CASES} == set(CELLS)

    def test_names_say_cell_and_options(self) -> None:
        case = find("gru-reset-before-T1-B1-X64-H64")
        assert (case.cell, dict(case.options)) == ("gru", {"reset": "before"})
        assert (case.network, case.title) == ("GRU, reset before", "H=X=64")
        assert find("lstm-peephole-T1-B1-X64-H64").network == "LSTM with peepholes"
        assert find("lstm-proj_size-32-T1-B1-X64-H64").network == "LSTM, projection H/2"
        assert find("clockwork-periods-1-2-4-8-T1-B1-X64-H64").network == "Clockwork RNN 1-2-4-8"
        ragged = find("lstm-ragged-T100-B16-X128-H128")
        assert (ragged.network, ragged.title) == ("LSTM", "H=X=128, T\u2264100, B=16")

    def test_lengths(self) -> None:
        unequal = ("ragged", "ragged training", "outputs training")
        for case in (each for group in unequal for each in in_group(group)):
            assert case.lengths is not None
            assert len(case.lengths) == case.batch
            assert (min(case.lengths) >= 1, max(case.lengths)) == (True, case.steps)
            assert 0.4 < sum(case.lengths) / case.batch / case.steps < 0.6
        assert {case.cell for case in in_group("ragged")} == {"lstm", "gru", "rnn"}
        assert all((case.lengths is None) == (case.group not in unequal) for case in CASES)

    def test_every_group_has_quick_cases_too(self) -> None:
        for group in GROUPS:
            assert any("quick" in case.runs for case in in_group(group))
            assert not all("quick" in case.runs for case in CASES)

    def test_sizes(self) -> None:
        for case in CASES:
            assert min(case.steps, case.batch, case.input, case.hidden) >= 1
            if case.group == "step":
                assert (case.steps, case.batch) == (1, 1)
            if case.group == "sequence":
                assert case.batch == 1
        assert {case.hidden for case in in_group("step")} >= {32, 64, 128, 256, 512}
        assert any(case.hidden % 16 for case in CASES)

    def test_needs_nothing_but_python(self) -> None:
        code = (
            "import sys, fusedrnn.bench.cases\n"
            "print([name for name in ('numpy', 'numba', 'pytest') if name in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.stdout.strip() == "[]", done.stderr

    def test_peers_need_numpy_only(self) -> None:
        code = (
            "import sys, fusedrnn.bench.peers\n"
            "wanted = ('numba', 'pytest', 'threadpoolctl', 'fusedrnn._native')\n"
            "print([name for name in wanted if name in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.stdout.strip() == "[]", done.stderr


class TestPeers:
    @small
    @pytest.mark.parametrize("engine", OWN)
    def test_right(self, engine: str, case: Case) -> None:
        this_problem = problem(case)
        this = peer(engine, this_problem)
        assert this.name == engine
        assert check(engine, this, this_problem) < 1e-6
        again = this.run(this_problem.x)
        if case.architecture.bidirectional:  # which begins anew
            np.testing.assert_allclose(again, this_problem.expected, atol=1e-6)
        else:
            assert np.abs(again - this_problem.expected).max() > 1e-3

    @small
    @pytest.mark.parametrize("engine", OWN)
    def test_unequal_lengths(self, engine: str, case: Case) -> None:
        this_problem = problem(replace(case, group="ragged", lengths=(5, 13, 1)))
        assert not this_problem.expected[5:, 0].any()
        assert this_problem.expected[:, 1].any(axis=1).all()
        assert check(engine, peer(engine, this_problem), this_problem) < 1e-6

    @small
    @pytest.mark.parametrize("engine", OWN)
    def test_state_goes_on_and_is_reset(self, engine: str, case: Case) -> None:
        if case.architecture.bidirectional:
            pytest.skip("has no steps")
        this_problem = problem(case)
        this = peer(engine, this_problem)
        first = np.concatenate([this.run(this_problem.x[:5]), this.run(this_problem.x[5:])])
        this.reset()
        second = np.stack([this.step(x).copy() for x in this_problem.x])
        np.testing.assert_allclose(first, this_problem.expected, atol=1e-6)
        np.testing.assert_allclose(second, this_problem.expected, atol=1e-6)

    @pytest.mark.parametrize("bias", [False, True, "double"])
    @small
    def test_biases(self, case: Case, bias: bool | str) -> None:
        this = layer_class(case.cell)(5, 8, bias=bias, seed=0, **dict(case.options))
        x = np.ones((4, 2, 5), np.float32)
        naive = Naive(Setup(replace(case, steps=4, batch=2), this.weights))
        np.testing.assert_allclose(naive.run(x), this(x)[0], atol=1e-6)

    @small
    def test_the_oracle_is_in_float64(self, case: Case) -> None:
        this_problem = problem(case)
        assert this_problem.expected.dtype == np.float64
        single = layer(case.architecture, this_problem.weights, backend="numpy")(this_problem.x)[0]
        assert 0 < np.abs(single - this_problem.expected).max() < 1e-6


class TestWrongResults:
    @pytest.mark.parametrize(
        ("name", "blocks"),
        [
            ("lstm-T100-B1-X32-H32", 4),
            ("gru-reset-after-T100-B1-X64-H64", 3),
            ("gru-reset-before-T100-B1-X64-H64", 3),
        ],
    )
    def test_swapped_gates_are_not_timed(self, name: str, blocks: int) -> None:
        this_problem = problem(find(name))
        fixture = Fixture()
        naive = Naive(Setup(this_problem.case, swapped(this_problem.weights, blocks)))
        this = Benchmark(this_problem, "naive", naive)
        with pytest.raises(
            WrongResultError, match="naive on .*, .* wrong and was not timed: max error"
        ):
            this.time_calls(fixture)
        assert fixture.timed == []

    @pytest.mark.parametrize(
        ("name", "other"),
        [
            ("gru-reset-after-T100-B1-X64-H64", {"reset": "before"}),
            ("clockwork-periods-1-2-4-8-T100-B1-X64-H64", {"periods": (1, 2, 4, 9)}),
        ],
    )
    def test_another_option_is_wrong(self, name: str, other: dict[str, Any]) -> None:
        this_problem = problem(find(name))
        case = replace(this_problem.case, options=tuple(other.items()))
        naive = Naive(Setup(case, this_problem.weights))
        with pytest.raises(WrongResultError):
            check("this", naive, this_problem)

    @pytest.mark.parametrize("lengths", [None, (100,) * 16])
    def test_forgotten_lengths_are_wrong(self, lengths: tuple[int, ...] | None) -> None:
        this_problem = problem(find("lstm-ragged-T100-B16-X128-H128"))
        with pytest.raises(WrongResultError):
            check(
                "this",
                Naive(Setup(replace(this_problem.case, lengths=lengths), this_problem.weights)),
                this_problem,
            )

    def test_not_a_number_is_wrong(self) -> None:
        this_problem = problem(find("lstm-T100-B1-X32-H32"))
        bias = np.full(128, np.nan, np.float32)
        with pytest.raises(WrongResultError, match="nan"):
            check(
                "this",
                Naive(Setup(this_problem.case, {**this_problem.weights, "bias_ih_l0": bias})),
                this_problem,
            )

    def test_kernel_is_checked_too(self) -> None:
        this_problem = problem(find("lstm-T1-B1-X32-H32"))
        weights = {
            **this_problem.weights,
            "bias_ih_l0": this_problem.weights["bias_ih_l0"] + np.float32(1),
        }
        this = Benchmark(this_problem, "c", Fused(Setup(this_problem.case, weights), "c"))
        with pytest.raises(WrongResultError):
            this.time_kernel(None)


class TestMeasuring:
    def test_rounds_are_long_enough(self) -> None:
        asked: list[int] = []

        def round_seconds(repeats: int) -> float:
            asked.append(repeats)
            return repeats * 1e-6

        repeats, rounds = plan_rounds(round_seconds)
        assert 1000 <= repeats <= 2000
        assert rounds >= 1
        assert all(b <= 10 * a for a, b in pairwise(asked))

    def test_a_long_call_is_one_round(self) -> None:
        assert plan_rounds(lambda repeats: 1.0) == (1, 1)
        assert plan_rounds(lambda repeats: 1.0, 8) == (8, 1)

    def test_rounds_are_whole_cycles(self) -> None:
        repeats, _ = plan_rounds(lambda repeats: repeats * 1e-6, 8)
        assert repeats % 8 == 0
        assert 1000 <= repeats <= 2000
        # 100 steps are twelve cycles of 8 and a half, 50 are six and a quarter.
        for name, cycle in (("T1-B1-X64-H64", 8), ("T100-B1-X64-H64", 2), ("T50-B16-X128-H128", 4)):
            assert problem(find(f"clockwork-periods-1-2-4-8-{name}")).cycle == cycle
        assert problem(find("lstm-T1-B1-X32-H32")).cycle == 1

    def test_operations_are_those_of_the_average_step(self) -> None:
        name = "clockwork-periods-1-2-4-8-T1-B1-X64-H64"
        cost = problem(find(name)).cost
        assert facts(name, "c")["flops"] == cost.flops_per_step < cost.peak_flops_per_step
        assert facts(name, "c")["repeats"] % 8 == 0

    def test_operations_of_unequal_lengths_are_those_of_their_sum(self) -> None:
        whole = facts("lstm-T50-B16-X128-H128", "c")
        ragged = facts("lstm-ragged-T100-B16-X128-H128", "c")
        assert ragged["flops"] / sum(ragged["lengths"]) == whole["flops"] / (50 * 16)

    @pytest.mark.skipif(limits() is None, reason="the limits of this machine cannot be measured")
    def test_floor(self) -> None:
        step = facts("gru-reset-after-T1-B1-X64-H64", "c")
        a = find(step["case"]).architecture
        assert step["floor"] == fr.roofline(a, limits(), isa=step["isa"]).seconds
        assert facts("gru-reset-after-T1-B1-X64-H64", "naive")["floor"] is None
        assert facts("gru-reset-after-ragged-T100-B16-X128-H128", "c")["floor"] is None
        clockwork = facts("clockwork-periods-1-2-4-8-T1-B1-X64-H64", "c")
        busiest = fr.roofline(find(clockwork["case"]).architecture, limits(), steps=1).seconds
        assert 0 < clockwork["floor"] < busiest

    def test_interleaved_begins_with_another_one_each_time(self) -> None:
        order: list[str] = []

        def timer(name: str) -> Any:
            return lambda repeats: order.append(name) or float(repeats)

        seconds = interleaved({"a": timer("a"), "b": timer("b")}, rounds=4, round_seconds=1)
        assert order[2:] == ["a", "b", "b", "a", "a", "b", "b", "a"]
        assert seconds == {"a": [1.0] * 4, "b": [1.0] * 4}


def one_pass(number: int, data: list[float], **info: Any) -> dict[str, Any]:
    """What pytest-benchmark writes for one pass over a row."""
    name = f"test_step[{number}-c-shape]"
    return {
        "group": "step",
        "name": name,
        "fullname": f"../somebody/bench/test_steps.py::{name}",
        "params": {"pass_": number, "case": "shape", "engine": "c"},
        "param": f"{number}-c-shape",
        "extra_info": {"max_error": 0.0, "empty_loop": 1.0, **info},
        "options": {},
        "stats": {"data": data, "iterations": 7},
    }


class TestMerging:
    def test_statistics_of_the_union(self) -> None:
        random = np.random.default_rng(0)
        parts = [list(random.lognormal(size=size)) for size in (5, 9, 4)]
        (row,) = merged([one_pass(number, part) for number, part in enumerate(parts)])
        union = np.concatenate(parts)
        stats = row["stats"]
        assert stats["data"] == list(union)
        assert stats["rounds"] == 18
        assert stats["iterations"] == 7
        for name, value in {
            "min": union.min(),
            "max": union.max(),
            "mean": union.mean(),
            "stddev": union.std(ddof=1),
            "median": np.median(union),
            # pytest-benchmark's quartiles of an even number: the medians of the halves.
            "q1": np.median(np.sort(union)[:9]),
            "q3": np.median(np.sort(union)[9:]),
            "total": union.sum(),
            "ops": 1 / union.mean(),
        }.items():
            assert stats[name] == pytest.approx(value), name
        assert stats["iqr"] == pytest.approx(stats["q3"] - stats["q1"])

    def test_names_lose_the_pass_and_the_folder(self) -> None:
        (row,) = merged([one_pass(0, [1.0]), one_pass(1, [2.0])])
        assert row["name"] == "test_step[shape-c]"
        assert row["fullname"] == "test_steps.py::test_step[shape-c]"
        assert row["params"] == {"case": "shape", "engine": "c"}
        assert row["param"] == "shape-c"

    def test_the_worst_error_and_the_middle_loop(self) -> None:
        (row,) = merged(
            [
                one_pass(0, [1.0], max_error=1e-7, empty_loop=3.0),
                one_pass(1, [1.0], max_error=3e-7, empty_loop=1.0),
                one_pass(2, [1.0], max_error=2e-7, empty_loop=2.0),
            ]
        )
        assert row["extra_info"]["max_error"] == 3e-7
        assert row["extra_info"]["empty_loop"] == 2.0

    def test_other_benchmarks_stay_apart(self) -> None:
        other = one_pass(0, [1.0])
        other["params"] = {**other["params"], "engine": "numba"}
        assert len(merged([one_pass(0, [1.0]), other])) == 2


class TestEnvironment:
    def test_says_nothing_about_who_and_where(self) -> None:
        import getpass
        import platform

        text = json.dumps(environment())
        facts = json.loads(text)
        assert facts["isa"] in facts["isas"]
        assert platform.node() not in [str(value) for value in facts.values()]
        assert str(Path.home()) + "/" not in text
        assert str(Path(fr.__file__).parent) not in text
        assert getpass.getuser() not in [str(value) for value in facts.values()]

    def test_busy(self) -> None:
        assert not busy(0.1, 2)
        assert busy(1.0, 2)
        assert not busy(1.0, 64)

    def test_no_commit_outside_a_checkout(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(environment_module, "_ROOT", tmp_path)
        monkeypatch.setattr(environment_module, "files", lambda package: tmp_path)
        assert environment_module.commit() == {}
        (tmp_path / "_commit.txt").write_text("\n")  # built outside a checkout
        assert environment_module.commit() == {}

    @pytest.mark.parametrize("dirty", [False, True])
    def test_the_commit_of_an_installed_package(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dirty: bool
    ) -> None:
        monkeypatch.setattr(environment_module, "_ROOT", tmp_path)
        monkeypatch.setattr(environment_module, "files", lambda package: tmp_path)
        note = "0123456789abcdef 2026-01-02T03:04:05+00:00"
        (tmp_path / "_commit.txt").write_text(note + (" dirty\n" if dirty else "\n"))
        assert environment_module.commit() == {
            "id": "0123456789abcdef",
            "time": "2026-01-02T03:04:05+00:00",
            "dirty": dirty,
        }


class TestActs:
    @pytest.mark.parametrize("engine", OWN)
    def test_same_bits_per_character(self, engine: str) -> None:
        this = demo_benchmark(engine, 300)
        assert this.problem.x.shape[:2] == (300, 1)
        assert check(engine, this.peer, this.problem) < 1e-5
        reference = bits_per_character(demo_benchmark("naive", 300))
        assert bits_per_character(this) == pytest.approx(reference, abs=1e-4)
        # Uniform guessing takes the logarithm of the vocabulary.
        assert reference < np.log2(demo_problem(300).x.shape[2])


class TestLoops:
    """Each loop of timing.py makes as many calls as it is told, and reads the clock around them only."""

    def clock(self, log: list[object]) -> Any:
        times = iter(range(100))

        def now() -> float:
            log.append("clock")
            return float(next(times))

        return now

    @pytest.mark.parametrize("kind", ["calls", "bare_calls", "calls_over", "looped_in_c"])
    def test_a_timer(self, kind: str) -> None:
        log: list[object] = []
        now = self.clock(log)
        timer = {
            "calls": lambda: timing.calls(log.append, 7, now=now),
            "bare_calls": lambda: timing.bare_calls(lambda: log.append(7), now=now),
            "calls_over": lambda: timing.calls_over(log.append, [1, 2], now=now),
            "looped_in_c": lambda: timing.looped_in_c(log.append, now=now),
        }[kind]()
        assert timer(3) == 1.0
        body = {"calls_over": [1, 2, 1], "looped_in_c": [3]}.get(kind, [7, 7, 7])
        assert log == ["clock", *body, "clock"]

    def test_no_collection(self) -> None:
        assert gc.isenabled()
        with timing.no_collection(freeze=True):
            assert not gc.isenabled()
            assert gc.get_freeze_count() > 0
        assert gc.isenabled()
        assert gc.get_freeze_count() == 0
        gc.disable()
        try:
            with timing.no_collection():
                pass
            assert not gc.isenabled()  # as it was
        finally:
            gc.enable()

    def test_the_empty_loop_costs_something(self) -> None:
        assert 0 < timing.empty_loop(1) < 1e-4

    def test_nothing_else_reads_a_clock_in_a_loop(self) -> None:
        """One place times: elsewhere in bench/ nobody reads a clock, but for the progress bar and two proofs."""
        folder = Path(timing.__file__).parent
        allowed = {"timing.py", "progress.py", "measure.py", "compile_time.py"}
        for path in folder.rglob("*.py"):
            if path.name not in allowed:
                assert not re.search(
                    r"perf_counter|monotonic|time\.time|_time\(\)", path.read_text()
                ), path


class TestBadInput:
    @pytest.fixture
    def never(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def measured(*_: object, **__: object) -> None:
            raise AssertionError("the benchmark ran")

        monkeypatch.setattr(verbs, "_measured", measured)

    @pytest.mark.parametrize("verb", ["run", "latency", "stages"])
    def test_outputs_that_cannot_be_written(
        self, verb: str, tmp_path: Path, never: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "file"
        file.touch()
        for option, path, said in (
            ("--report", file / "folder", "Not a directory"),
            ("--report", file, "File exists"),
            ("--json", tmp_path, "is a folder"),
            ("--json", tmp_path / "new" / "results.json", "No such file"),
        ):
            assert bench(verb, option, path) == 2
            error = capsys.readouterr().err
            assert option in error and str(path) in error and said in error
            assert error.count("\n") == 1
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (None, "No such file or directory"),
            ("{", "is not JSON"),
            ("[" * 100_000, "is not JSON"),
            ("[]", "is not a result of 'fusedrnn bench'"),
            ("3", "is not a result of 'fusedrnn bench'"),
            ('{"benchmarks": []}', "is not a result of 'fusedrnn bench'"),
            ('{"benchmarks": [{"group": 3}], "fusedrnn": {}}', "is not a result of"),
        ],
    )
    def test_not_a_result(
        self,
        tmp_path: Path,
        content: str | None,
        said: str,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        path = tmp_path / "old.json"
        if content is not None:
            path.write_text(content)
        assert bench("diff", path, path) == 2
        error = capsys.readouterr().err
        assert said in error and "old.json" in error
        assert error.count("\n") == 1

    def test_unknown_isa(self, capsys: pytest.CaptureFixture[str]) -> None:
        for verb in ("run", "latency"):
            assert bench(verb, "--isa", "mmx") == 2
            error = capsys.readouterr().err
            assert "--isa must be one of" in error and "'mmx'" in error

    def test_missing_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(verbs, "find_spec", lambda name: None)
        for call in (verbs.run, verbs.peers, verbs.latency, verbs.stages):
            with pytest.raises(fr.MissingExtraError, match=r"fusedrnn\[bench\]"):
                call()
        with pytest.raises(fr.MissingExtraError, match=r"fusedrnn\[bench\]"):
            verbs.diff(Path("a"), Path("b"))

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ("stages --rounds 0", "--rounds must be at least 1, got 0"),
            ("stages --hidden 8 --hidden 0", "--hidden must be at least 1, got 0"),
            ("peers --summary --threads 1 --quick", "--quick, --threads"),
            ("run --cases nosuch", "'nosuch'"),
        ],
    )
    def test_mistakes(
        self, words: str, said: str, never: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert bench(*words.split()) == 2
        assert said in capsys.readouterr().err


class TestHelp:
    @pytest.mark.parametrize("verb", ["run", "peers", "latency", "stages", "diff"])
    def test_every_verb_has_examples_that_can_be_read(self, verb: str) -> None:
        command = verbs_group.commands[verb]
        examples = command.examples
        assert examples
        for example in examples:
            program, name, this, *words = shlex.split(example.partition(" > ")[0])
            assert (program, name, this) == ("fusedrnn", "bench", verb)
            command.make_context(verb, words)

    def test_every_option_reaches_its_function(self) -> None:
        # They have no report, and no function in bench/run.py.
        whole_models = {"torch", "onnx", "narrow"}
        assert whole_models <= verbs_group.commands.keys()
        for verb, command in verbs_group.commands.items():
            if verb in whole_models:
                continue
            takes = set(inspect.signature(getattr(verbs, verb)).parameters) - {"outputs"}
            assert {each.name for each in command.params} - {"report", "json"} == takes


class TestStages:
    def test_every_stage_computes_the_same_and_says_what_it_gains(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "stages.json"
        assert bench("stages", "--hidden", 9, "--rounds", 1, "--json", out) == 0
        rows = json.loads(out.read_text())["fusedrnn"]["stages"]["rows"]
        assert [row["name"] for row in rows] == list(stages.STAGES)
        assert all(0 < row["error"] < 1e-5 for row in rows)
        for below, row in pairwise(rows):
            gain = below["seconds"]["median"] / row["seconds"]["median"]
            assert row["gain"] == pytest.approx(gain)
        assert rows[0]["gain"] is None
        printed = capsys.readouterr().out
        for name, said in stages.STAGES.items():
            assert name in printed and said in printed

    def test_negative_control_a_wrong_stage_is_not_timed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        right = stages.scalar_lstm()

        def wrong(x: Any, W: Any, R: Any, b: Any, h: Any, c: Any, y: Any) -> None:
            right(x, W, R[::-1].copy(), b, h, c, y)

        monkeypatch.setattr(stages, "scalar_lstm", lambda: wrong)
        with pytest.raises(WrongResultError, match="stage 'fused' is wrong and was not timed"):
            stages.stages_of(8, 1)


class TestOverhead:
    def test_every_way_is_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(overhead, "HIDDEN", (8,))
        found = overhead.measure(("c", "numba"), 3)
        assert [row["engine"] for row in found["rows"]] == ["c", "numba"]
        for row in found["rows"]:
            assert set(row["seconds"]) == set(row["above"]) == set(row["calls"])
            assert set(row["seconds"]) == {*overhead.MAX_CALLS, *overhead.MAX_SECONDS}
            for name, seconds in row["seconds"].items():
                assert 0 < row["kernel"] < seconds, name

    def test_what_is_wrong_is_not_timed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def wrong(*_: object) -> float:
            raise WrongResultError("wrong")

        monkeypatch.setattr(overhead, "check", wrong)
        monkeypatch.setattr(overhead, "interleaved", lambda *_: pytest.fail("timed"))
        with pytest.raises(WrongResultError):
            overhead.measure(("c",), 1)
