"""The benchmarks themselves: what is measured, that wrong results are not timed, how passes merge."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarking import arguments, swapped

import fusedrnn as fr
from fusedrnn.bench import environment as environment_module
from fusedrnn.bench.acts import bits_per_character, demo_problem, demo_subject
from fusedrnn.bench.cases import CASES, GROUPS, Case, find, in_group, networks
from fusedrnn.bench.environment import busy, environment
from fusedrnn.bench.interleave import interleaved
from fusedrnn.bench.measure import (
    Problem,
    Subject,
    WrongResultError,
    check,
    limits,
    plan_rounds,
    problem,
    subject,
)
from fusedrnn.bench.peers import ENGINES, Fused, Naive, layer, make
from fusedrnn.bench.run import run
from fusedrnn.bench.session import merged
from fusedrnn.cells import CELLS

#: Every cell and option of the list, so small that all of it runs in no time.
SMALL = [
    Case("batch", 13, 3, 5, 8, cell=cell, options=options)
    for cell, options in (("lstm", ()), *networks(8))
]
small = pytest.mark.parametrize("case", SMALL, ids=lambda case: case.network)


def peer(engine: str, posed: Problem) -> Naive | Fused:
    case = posed.case
    return make(engine, posed.weights, case.batch, case.architecture, case.lengths)


def facts(case_id: str, engine: str) -> dict[str, Any]:
    """What is written down about a row."""

    class Benchmark:
        def __init__(self) -> None:
            self.extra_info: dict[str, Any] = {}

        def pedantic(self, *arguments: object, **options: object) -> None:
            pass

    benchmark = Benchmark()
    this = subject(case_id, engine)
    step = this.problem.case.group == "step"
    call, x = (this.peer.step, this.problem.x[0]) if step else (this.peer.run, this.problem.x)
    this.time_calls(benchmark, call, x)
    return benchmark.extra_info


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
        for case in in_group("ragged"):
            assert case.lengths is not None
            assert len(case.lengths) == case.batch
            assert (min(case.lengths) >= 1, max(case.lengths)) == (True, case.steps)
            assert 0.4 < sum(case.lengths) / case.batch / case.steps < 0.6
        assert {case.cell for case in in_group("ragged")} == {"lstm", "gru", "rnn"}
        assert all((case.lengths is None) == (case.group != "ragged") for case in CASES)

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
    @pytest.mark.parametrize("engine", ENGINES)
    def test_right(self, engine: str, case: Case) -> None:
        posed = problem(case)
        this = peer(engine, posed)
        assert this.name == engine
        assert check(engine, this, posed) < 1e-6
        again = this.run(posed.x)
        if case.architecture.bidirectional:  # which begins anew
            np.testing.assert_allclose(again, posed.expected, atol=1e-6)
        else:
            assert np.abs(again - posed.expected).max() > 1e-3

    @small
    @pytest.mark.parametrize("engine", ENGINES)
    def test_unequal_lengths(self, engine: str, case: Case) -> None:
        posed = problem(replace(case, group="ragged", lengths=(5, 13, 1)))
        assert not posed.expected[5:, 0].any()
        assert posed.expected[:, 1].any(axis=1).all()
        assert check(engine, peer(engine, posed), posed) < 1e-6

    @small
    @pytest.mark.parametrize("engine", ENGINES)
    def test_state_goes_on_and_is_reset(self, engine: str, case: Case) -> None:
        if case.architecture.bidirectional:
            pytest.skip("has no steps")
        posed = problem(case)
        this = peer(engine, posed)
        first = np.concatenate([this.run(posed.x[:5]), this.run(posed.x[5:])])
        this.reset()
        second = np.stack([this.step(x).copy() for x in posed.x])
        np.testing.assert_allclose(first, posed.expected, atol=1e-6)
        np.testing.assert_allclose(second, posed.expected, atol=1e-6)

    @pytest.mark.parametrize("bias", [False, True, "double"])
    @small
    def test_biases(self, case: Case, bias: bool | str) -> None:
        kinds = {kind.cell: kind for kind in (fr.RNN, fr.LSTM, fr.GRU, fr.ClockworkRNN)}
        this = kinds[case.cell](5, 8, bias=bias, seed=0, **dict(case.options))
        x = np.ones((4, 2, 5), np.float32)
        naive = Naive(this.weights, 2, this.architecture)
        np.testing.assert_allclose(naive.run(x), this(x)[0], atol=1e-6)

    def test_without_an_architecture_it_is_an_lstm(self) -> None:
        posed = problem(SMALL[0])
        for this in (Naive(posed.weights, 3), Fused(posed.weights, "c", 3)):
            assert check("this", this, posed) < 1e-6

    @small
    def test_the_oracle_is_in_float64(self, case: Case) -> None:
        posed = problem(case)
        assert posed.expected.dtype == np.float64
        single = layer(case.architecture, posed.weights, backend="numpy")(posed.x)[0]
        assert 0 < np.abs(single - posed.expected).max() < 1e-6


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
        posed = problem(find(name))
        timed: list[object] = []

        class Benchmark:
            extra_info: dict[str, Any] = {}  # noqa: RUF012

            def pedantic(self, *arguments: object, **options: object) -> None:
                timed.append(arguments)

        naive = Naive(swapped(posed.weights, blocks), architecture=posed.case.architecture)
        this = Subject(posed, "naive", naive)
        with pytest.raises(
            WrongResultError, match="naive on .*, .* wrong and was not timed: max error"
        ):
            this.time_calls(Benchmark(), this.peer.run, posed.x)
        assert timed == []

    @pytest.mark.parametrize(
        ("name", "other"),
        [
            ("gru-reset-after-T100-B1-X64-H64", {"reset": "before"}),
            ("clockwork-periods-1-2-4-8-T100-B1-X64-H64", {"periods": (1, 2, 4, 9)}),
        ],
    )
    def test_another_option_is_wrong(self, name: str, other: dict[str, Any]) -> None:
        posed = problem(find(name))
        naive = Naive(posed.weights, 1, replace(posed.case.architecture, **other))
        with pytest.raises(WrongResultError):
            check("this", naive, posed)

    @pytest.mark.parametrize("lengths", [None, (100,) * 16])
    def test_forgotten_lengths_are_wrong(self, lengths: tuple[int, ...] | None) -> None:
        posed = problem(find("lstm-ragged-T100-B16-X128-H128"))
        with pytest.raises(WrongResultError):
            check("this", Naive(posed.weights, 16, lengths=lengths), posed)

    def test_not_a_number_is_wrong(self) -> None:
        posed = problem(find("lstm-T100-B1-X32-H32"))
        bias = np.full(128, np.nan, np.float32)
        with pytest.raises(WrongResultError, match="nan"):
            check("this", Naive({**posed.weights, "bias_ih_l0": bias}), posed)

    def test_kernel_is_checked_too(self) -> None:
        posed = problem(find("lstm-T1-B1-X32-H32"))
        weights = {**posed.weights, "bias_ih_l0": posed.weights["bias_ih_l0"] + np.float32(1)}
        this = Subject(posed, "c", Fused(weights, "c"))
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
        assert step["floor"] == fr.floor_seconds(a, 1, 1, limits(), step["isa"])
        assert facts("gru-reset-after-T1-B1-X64-H64", "naive")["floor"] is None
        assert facts("gru-reset-after-ragged-T100-B16-X128-H128", "c")["floor"] is None
        clockwork = facts("clockwork-periods-1-2-4-8-T1-B1-X64-H64", "c")
        busiest = fr.floor_seconds(find(clockwork["case"]).architecture, 1, 1, limits())
        assert 0 < clockwork["floor"] < busiest

    def test_interleaved_takes_turns(self) -> None:
        order: list[str] = []

        def timer(name: str) -> Any:
            return lambda repeats: order.append(name) or float(repeats)

        seconds = interleaved({"a": timer("a"), "b": timer("b")}, rounds=4, round_seconds=1)
        assert order[2:] == ["a", "b", "b", "a", "a", "b", "b", "a"]
        assert seconds == {"a": [1.0] * 4, "b": [1.0] * 4}


def benchmark_turn(turn: int, data: list[float], **info: Any) -> dict[str, Any]:
    """What pytest-benchmark writes for one turn of a row."""
    name = f"test_step[{turn}-c-shape]"
    return {
        "group": "step",
        "name": name,
        "fullname": f"../somebody/bench/test_steps.py::{name}",
        "params": {"turn": turn, "case": "shape", "engine": "c"},
        "param": f"{turn}-c-shape",
        "extra_info": {"max_error": 0.0, "empty_loop": 1.0, **info},
        "options": {},
        "stats": {"data": data, "iterations": 7},
    }


class TestMerging:
    def test_statistics_of_the_union(self) -> None:
        random = np.random.default_rng(0)
        parts = [list(random.lognormal(size=size)) for size in (5, 9, 4)]
        (row,) = merged([benchmark_turn(turn, part) for turn, part in enumerate(parts)])
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

    def test_names_lose_the_turn_and_the_folder(self) -> None:
        (row,) = merged([benchmark_turn(0, [1.0]), benchmark_turn(1, [2.0])])
        assert row["name"] == "test_step[shape-c]"
        assert row["fullname"] == "test_steps.py::test_step[shape-c]"
        assert row["params"] == {"case": "shape", "engine": "c"}
        assert row["param"] == "shape-c"

    def test_the_worst_error_and_the_middle_loop(self) -> None:
        (row,) = merged(
            [
                benchmark_turn(0, [1.0], max_error=1e-7, empty_loop=3.0),
                benchmark_turn(1, [1.0], max_error=3e-7, empty_loop=1.0),
                benchmark_turn(2, [1.0], max_error=2e-7, empty_loop=2.0),
            ]
        )
        assert row["extra_info"]["max_error"] == 3e-7
        assert row["extra_info"]["empty_loop"] == 2.0

    def test_other_benchmarks_stay_apart(self) -> None:
        other = benchmark_turn(0, [1.0])
        other["params"] = {**other["params"], "engine": "numba"}
        assert len(merged([benchmark_turn(0, [1.0]), other])) == 2


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
    @pytest.mark.parametrize("engine", ENGINES)
    def test_same_bits_per_character(self, engine: str) -> None:
        this = demo_subject(engine, 300)
        assert this.problem.x.shape[:2] == (300, 1)
        assert check(engine, this.peer, this.problem) < 1e-5
        reference = bits_per_character(demo_subject("naive", 300))
        assert bits_per_character(this) == pytest.approx(reference, abs=1e-4)
        # Uniform guessing takes the logarithm of the vocabulary.
        assert reference < np.log2(demo_problem(300).x.shape[2])


class TestBadInput:
    def test_report_folder_that_cannot_be_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def never(*_: object, **__: object) -> None:
            raise AssertionError("the benchmark ran")

        monkeypatch.setattr("fusedrnn.bench.run._measured", never)
        file = tmp_path / "file"
        file.touch()
        with pytest.raises(ValueError, match="^--report: cannot write to .*: Not a directory$"):
            run(arguments(report=file / "folder"))
        with pytest.raises(ValueError, match="^--report: cannot write to .*: File exists$"):
            run(arguments(report=file))
        with pytest.raises(ValueError, match="^--json: .* is a folder$"):
            run(arguments(json=tmp_path))
        with pytest.raises(ValueError, match="^--json: cannot write to .*: No such file"):
            run(arguments(json=tmp_path / "new" / "results.json"))
        assert not (tmp_path / "new").exists()

    def test_compare_takes_no_other_option(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="--compare measures nothing"):
            run(arguments(compare=[tmp_path / "a", tmp_path / "b"], quick=True))

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (None, "No such file or directory"),
            ("{", "is not JSON"),
            ("[]", "is not a result of 'fusedrnn bench'"),
            ("3", "is not a result of 'fusedrnn bench'"),
            ('{"benchmarks": []}', "is not a result of 'fusedrnn bench'"),
            ('{"benchmarks": [{"group": 3}], "fusedrnn": {}}', "is not a result of"),
        ],
    )
    def test_not_a_result(self, tmp_path: Path, content: str | None, said: str) -> None:
        path = tmp_path / "old.json"
        if content is not None:
            path.write_text(content)
        with pytest.raises(ValueError, match=said) as caught:
            run(arguments(compare=[path, path]))
        assert "old.json" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_unknown_isa(self) -> None:
        with pytest.raises(fr.UnsupportedError, match="--isa must be one of .*, got .mmx."):
            run(arguments(isa="mmx"))

    def test_missing_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fusedrnn.bench.run.find_spec", lambda name: None)
        with pytest.raises(fr.MissingExtraError, match=r"fusedrnn\[bench\]"):
            run(arguments())

    @pytest.mark.parametrize(
        ("script", "package", "extra"),
        [
            ("step_overhead", "rich", "bench"),
            ("ladder", "rich", "bench"),
        ],
    )
    def test_scripts_without_their_packages(self, script: str, package: str, extra: str) -> None:
        code = (
            "import runpy, sys\n"
            f"sys.modules[{package!r}] = None\n"
            f"runpy.run_module('fusedrnn.bench.{script}', run_name='__main__')"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert done.stderr.startswith("fusedrnn: error: ")
        assert f"needs the package {package!r}: pip install 'fusedrnn[{extra}]'" in done.stderr
        assert done.stderr.count("\n") == 1


class TestLadder:
    def test_every_rung_computes_the_same_and_says_what_it_gains(
        self, tmp_path: Path, capsys
    ) -> None:
        from fusedrnn.bench import ladder

        out = tmp_path / "ladder.json"
        assert ladder.main(["--hidden", "9", "--rounds", "1", "--json", str(out)]) == 0
        rows = json.loads(out.read_text())["rows"]
        assert [row["name"] for row in rows] == list(ladder.RUNGS)
        assert all(0 < row["error"] < 1e-5 for row in rows)
        for below, row in pairwise(rows):
            gain = below["seconds"]["median"] / row["seconds"]["median"]
            assert row["gain"] == pytest.approx(gain)
        assert rows[0]["gain"] is None
        printed = capsys.readouterr().out
        for name, said in ladder.RUNGS.items():
            assert name in printed and said in printed

    def test_negative_control_a_wrong_rung_is_not_timed(self, monkeypatch) -> None:
        from fusedrnn.bench import ladder

        right = ladder.scalar_lstm()

        def wrong(x, W, R, b, h, c, y) -> None:
            right(x, W, R[::-1].copy(), b, h, c, y)

        monkeypatch.setattr(ladder, "scalar_lstm", lambda: wrong)
        with pytest.raises(WrongResultError, match="wrong and was not timed"):
            ladder.climb(8, 1)
