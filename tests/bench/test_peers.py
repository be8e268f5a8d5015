"""Other libraries versus fusedrnn: that each is right on what it offers, that a wrong one is not timed, and ratios."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarking import swapped

import fusedrnn as fr
from fusedrnn.bench import measure, peers
from fusedrnn.bench import run as verbs
from fusedrnn.bench.cases import CASES, GROUPS, SINGLE_STEPS, Case, find, matches, networks
from fusedrnn.bench.measure import (
    Benchmark,
    Problem,
    WrongResultError,
    check,
    computes_here,
    fastest,
    problem,
)
from fusedrnn.bench.peers import LIBRARIES, OWN, Fused, Naive, Setup, missing, offers, variants
from fusedrnn.bench.session import FULL_PASSES, Selection
from fusedrnn.report.engines import ENGINES
from fusedrnn.report.results import NOT_SLOWER, Measure, Ratio, Row

#: Every cell and option of the list, so small that all of it runs in no time.
SMALL = [
    Case("batch", 13, 3, 5, 8, cell=cell, options=options)
    for cell, options in (("lstm", ()), *networks(8))
]
#: The shapes in which they differ.
SHAPES: dict[str, dict[str, Any]] = {
    "batch": {},
    "sequence": {"group": "sequence", "batch": 1},
    "step": {"group": "step", "steps": 1, "batch": 1},
    "call": {"group": "call", "steps": 1, "batch": 1},
    "streams": {"group": "streams", "steps": 1, "batch": 3},
    "ragged": {"group": "ragged", "lengths": (5, 13, 1)},
}
#: Which networks a library does not have.
LACKS = {
    "torch": {"LSTM with peepholes", "coupled LSTM", "GRU, reset before", "Clockwork RNN 1-2-4-8"},
    "onnxruntime": {"LSTM, projection H/2", "Clockwork RNN 1-2-4-8"},
    "openvino": {
        *("LSTM with peepholes", "coupled LSTM"),
        *("LSTM, projection H/2", "Clockwork RNN 1-2-4-8"),
    },
}

libraries = pytest.mark.parametrize("library", LIBRARIES)


def needs(library: str) -> None:
    """Skip without the library, unless it must be there."""
    for module in ENGINES[library].modules:
        if os.environ.get("FUSEDRNN_REQUIRE_ORACLES") == "1":
            importlib.import_module(module)
        else:
            pytest.importorskip(module)


def errors(library: str, this_problem: Problem, weights: Any = None) -> dict[str, float]:
    """Of each variant; where it is not as told, the check raises."""
    found = {}
    for this in variants(library, Setup(this_problem.case, weights or this_problem.weights)):
        assert this.name == library
        with this.ready():
            found[this.variant] = check(library, this, this_problem)
            # Again, from zero again.
            assert check(library, this, this_problem) == found[this.variant]
    return found


class TestRight:
    @libraries
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("case", SMALL, ids=lambda case: case.network)
    def test_every_variant_on_every_cell(self, library: str, shape: str, case: Case) -> None:
        assert offers(library, case) == (case.network not in LACKS[library])
        if not offers(library, case):
            return
        if shape in SINGLE_STEPS and case.architecture.bidirectional:
            return
        needs(library)
        found = errors(library, problem(replace(case, **SHAPES[shape])))
        assert max(found.values()) < 1e-6
        if library == "torch" and shape in SINGLE_STEPS:
            assert set(found) == {"module"} | (
                {"cell"} - {"cell" * bool(case.architecture.proj_size)}
            )

    @libraries
    @pytest.mark.parametrize("shape", ["sequence", "step"])
    def test_state_is_carried(self, library: str, shape: str) -> None:
        needs(library)
        this_problem = problem(replace(SMALL[0], **SHAPES[shape], input=6))
        for this in variants(library, this_problem.setup()):
            with this.ready():
                check(library, this, this_problem)
                if shape == "step":
                    again = np.stack([this.step(x).copy() for x in this_problem.x])
                else:
                    again = this.run(this_problem.x)
            # From a state of zeros it would be what is expected.
            assert np.abs(again - this_problem.expected).max() > 1e-3

    @libraries
    def test_biases(self, library: str) -> None:
        needs(library)
        for kind, options in ((fr.LSTM, {}), (fr.GRU, {"reset": "after"}), (fr.RNN, {})):
            made = kind(5, 8, bias="double", seed=3, **options)
            case = Case("batch", 4, 2, 5, 8, cell=kind.cell, options=tuple(options.items()))
            x = np.random.default_rng(0).standard_normal((4, 2, 5), np.float32)
            this_problem = Problem(case, "this", made.weights, x, made(x)[0])
            assert max(errors(library, this_problem).values()) < 1e-6

    @libraries
    def test_in_the_thread_that_calls(self, library: str) -> None:
        needs(library)
        for name in ("lstm-T1-B1-X64-H64", "lstm-T100-B16-X64-H64"):
            this_problem = problem(find(name))
            for this in variants(library, this_problem.setup()):
                assert computes_here(this, this_problem), this.variant

    def test_a_worker_thread_is_noticed(self) -> None:
        class Elsewhere(Naive):
            def run(self, x: Any) -> Any:
                worker = threading.Thread(target=super().run, args=(x,))
                worker.start()
                worker.join()
                return x

        this_problem = problem(find("lstm-T100-B1-X32-H32"))
        assert not computes_here(Elsewhere(this_problem.setup()), this_problem)
        assert computes_here(Naive(this_problem.setup()), this_problem)

    def test_pytorch_has_its_threads_only_for_a_while(self) -> None:
        needs("torch")
        import torch

        this_problem = problem(SMALL[0])
        before = torch.get_num_threads()
        (this,) = variants("torch", this_problem.setup(before + 1))
        with this.ready():
            assert torch.get_num_threads() == before + 1
            assert torch.is_inference_mode_enabled()
        assert torch.get_num_threads() == before
        assert not torch.is_inference_mode_enabled()


class TestWrong:
    @libraries
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize(("cell", "blocks"), [("lstm", 4), ("gru", 3)])
    def test_swapped_gates(self, library: str, shape: str, cell: str, blocks: int) -> None:
        needs(library)
        options = (("reset", "after"),) if cell == "gru" else ()
        case = replace(SMALL[0], cell=cell, options=options, **SHAPES[shape])
        this_problem = problem(case)
        with pytest.raises(WrongResultError, match="was not timed"):
            errors(library, this_problem, swapped(this_problem.weights, blocks))

    @libraries
    def test_and_it_is_not_timed(self, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
        needs(library)
        timed: list[object] = []

        class Fixture:
            extra_info: dict[str, Any] = {}  # noqa: RUF012

            def pedantic(self, *arguments: object, **options: object) -> None:
                timed.append(arguments)

        monkeypatch.setattr(measure, "interleaved", lambda *a, **k: timed.append(a))
        this_problem = problem(replace(SMALL[0], **SHAPES["sequence"]))
        several = variants(library, Setup(this_problem.case, swapped(this_problem.weights, 4)))
        with pytest.raises(WrongResultError, match="not timed"):
            this = Benchmark(this_problem, library, fastest(several, this_problem, lambda: 0.0))
            this.time_calls(Fixture())
        assert timed == []

    @libraries
    def test_forgotten_lengths(self, library: str) -> None:
        needs(library)
        this_problem = problem(replace(SMALL[0], **SHAPES["ragged"]))
        lame = replace(this_problem, case=replace(this_problem.case, lengths=(13, 13, 13)))
        with pytest.raises(WrongResultError):
            errors(library, lame)

    @pytest.mark.parametrize("wrong", [0, 1])
    def test_the_fastest_variant_must_be_right_too(self, wrong: int) -> None:
        this_problem = problem(find("lstm-T100-B1-X32-H32"))
        several = [Naive(this_problem.setup()), Naive(this_problem.setup())]
        several[wrong] = Naive(Setup(this_problem.case, swapped(this_problem.weights, 4)))
        with pytest.raises(WrongResultError):
            fastest(several, this_problem, lambda: 0.0)


class TestFastest:
    def test_the_one_that_takes_the_least_time(self) -> None:
        now = 0.0

        class Slow(Naive):
            def __init__(self, variant: str, takes: float) -> None:
                super().__init__(this_problem.setup())
                self.variant, self._takes = variant, takes

            def run(self, x: Any) -> Any:
                nonlocal now
                now += self._takes
                return super().run(x)

            def ready(self) -> Any:
                return nullcontext()

        this_problem = problem(find("lstm-T100-B1-X32-H32"))
        several = [Slow("slow", 3.0), Slow("fast", 1.0), Slow("middle", 2.0)]
        assert fastest(several, this_problem, lambda: now).variant == "fast"
        assert fastest(several[:1], this_problem, lambda: now).variant == "slow"


class TestSelection:
    def test_runs(self) -> None:
        def names(**given: Any) -> set[str]:
            this = Selection(**given)
            return {each.id for group in GROUPS for each in this.cases(group)}

        quick, default = names(quick=True), names()
        peers_, quick_peers = names(libraries=()), names(libraries=(), quick=True)
        assert quick < default
        assert quick_peers < peers_
        assert names(long=True) > default
        assert names(libraries=(), long=True) | default == {
            case.id
            for case in CASES
            if case.runs & {"default", "peers", "quick", "quick peers", "long"}
        }
        assert names(libraries=(), pattern="gru-*-B1-*") == {
            name for name in peers_ if name.startswith("gru-") and "-B1-" in name
        }
        assert not any(find(name).runs == {"long"} for name in peers_ | default)

    def test_threads(self) -> None:
        assert Selection().cases("threads") == []
        several = Selection(threads=2).cases("threads")
        assert len(several) == sum("threads" in case.runs for case in CASES) > 0
        fewer = Selection(threads=2, quick=True, libraries=()).cases("threads")
        assert 0 < len(fewer) < len(several)

    def test_ratios_have_enough_pairs(self) -> None:
        assert Selection(libraries=(), quick=True).passes == FULL_PASSES >= 15

    def test_everybodys_sizes_are_there(self) -> None:
        beside = [case for case in CASES if "peers" in case.runs]
        for hidden in (32, 64, 128, 256, 512):
            assert find(f"lstm-T1-B1-X{hidden}-H{hidden}") in beside
        for hidden in (64, 128, 256, 512, 1024):
            assert {case.batch for case in beside if case.hidden == hidden} >= {16, 64}
        assert {case.hidden for case in beside if case.group == "step"} >= {8, 12, 40, 96, 384, 650}
        assert {case.input for case in beside} >= {40, 65, 80, 257}
        assert any(case.architecture.bidirectional and case.hidden == 32 for case in beside)

    def test_patterns(self) -> None:
        assert matches("lstm-T1-B1-X32-H32", None)
        assert matches("lstm-T1-B1-X32-H32", "B1-X32")
        assert matches("lstm-T1-B1-X32-H32", "lstm-*-H32")
        assert not matches("lstm-T1-B1-X32-H32", "gru")


def test_memory_is_freed() -> None:
    this_problem = problem(SMALL[0])
    assert problem(SMALL[0]) is this_problem
    measure.free()
    assert problem(SMALL[0]) is not this_problem


class TestRatio:
    def test_of_pairs(self) -> None:
        ours = [1.0, 10.0, 1.0, 1.0, 1.0]
        theirs = [2.0, 20.0, 4.0, 1.0, 2.0]
        found = Ratio.of(theirs, ours)
        assert found is not None
        # The slow second pass was slow for both.
        assert (found.q1, found.median, found.q3, found.pairs) == (2.0, 2.0, 2.0, 5)
        quartiles = np.percentile([3, 1, 4, 1, 5, 9, 2, 6], (25, 50, 75))
        found = Ratio.of([3, 1, 4, 1, 5, 9, 2, 6], [1] * 8)
        assert found is not None
        assert (found.q1, found.median, found.q3) == tuple(quartiles)

    def test_nothing_to_pair(self) -> None:
        assert Ratio.of([], []) is None
        assert Ratio.of([1.0, 2.0], [1.0]) is None
        assert Ratio.of([3.0], [1.5]) == Ratio(2.0, 2.0, 2.0, 1)

    @pytest.mark.parametrize(
        ("middle", "verdict"),
        [
            (0.9, "slower"),
            (NOT_SLOWER - 1e-9, "slower"),
            (NOT_SLOWER, "even"),
            (1.03, "even"),
            (1.04, "faster"),
        ],
    )
    def test_verdicts(self, middle: float, verdict: str) -> None:
        assert Ratio(0, middle, 9, 15).verdict == verdict

    def test_the_fastest_library_of_a_row(self) -> None:
        def timed(*passes: float) -> Measure:
            middle = float(np.median(passes))
            return Measure(middle, middle, middle, 1, 1.0, 0.0, 0.0, None, passes=passes)

        row = Row("step", "case", "lstm", {}, "LSTM", "H=X=32", {})
        assert row.fastest is None
        row.measures.update(torch=timed(4, 4), openvino=timed(3, 3), naive=timed(1, 1))
        assert row.fastest is None  # ours is not there
        row.measures["c"] = timed(2, 1.5)
        assert row.fastest == "openvino"
        assert row.against_fastest == Ratio.of([3, 3], [2, 1.5])
        assert row.ratio("onnxruntime") is None


class TestMissing:
    def test_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(peers, "find_spec", lambda name: None)
        with pytest.raises(fr.MissingExtraError, match=r"fusedrnn\[peers,torch\]"):
            verbs.peers()

    def test_one(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        seen = []

        def session(console: object, selection: Selection) -> None:
            seen.append(selection.libraries)

        monkeypatch.setattr(peers, "find_spec", lambda name: None if name == "torch" else True)
        monkeypatch.setattr(verbs, "_session", session)
        assert verbs.peers() == 130
        assert seen == [("onnxruntime", "openvino")]
        said = capsys.readouterr().out
        assert "PyTorch is left out, because 'torch' is not installed" in said
        assert "pip install 'fusedrnn[torch]'" in said

    def test_onnx_runtime_needs_onnx(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(peers, "find_spec", lambda name: None if name == "onnx" else True)
        assert missing("onnxruntime") == "onnx"
        assert missing("openvino") is None

    def test_nothing_is_imported_that_is_not_asked_for(self) -> None:
        code = (
            "import sys, fusedrnn.bench.peers as peers\n"
            "from fusedrnn.bench.cases import CASES\n"
            "assert any(peers.offers(name, case) for name in peers.LIBRARIES for case in CASES)\n"
            "print([name for name in ('torch', 'onnx', 'onnxruntime', 'openvino') if name in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.stdout.strip() == "[]", done.stderr


class TestRun:
    def test_one_case_for_real(self, tmp_path: Path) -> None:
        for library in LIBRARIES:
            needs(library)
        code = (
            "import sys, numpy as np\n"
            "from dataclasses import replace\n"
            "import fusedrnn.bench.session as session\n"
            "import fusedrnn.bench.peers.torch as lame\n"
            "from fusedrnn.cli import main\n"
            "session.FULL_PASSES = 2\n"
            "right = lame.variants\n"
            "def variants(setup):\n"
            "    i, f, g, o = np.split(setup.weights['weight_ih_l0'], 4)\n"
            "    swapped = {**setup.weights, 'weight_ih_l0': np.concatenate([f, i, g, o])}\n"
            "    return right(setup if setup.case.hidden == 32 else replace(setup, weights=swapped))\n"
            "lame.variants = variants\n"
            # As if each case took minutes: all its passes come together, and then it is freed.
            "session._is_long = lambda case: True\n"
            "freed, free = [], session.free\n"
            "session.free = lambda: (freed.append(1), free())\n"
            "status = main(sys.argv[1:])\n"
            "print('freed', len(freed))\n"
            "sys.exit(status)"
        )
        words = ["bench", "peers", "--quick", "--threads", "1", "--cases", "lstm-T1-B1-X[13]2*"]
        done = subprocess.run(
            [sys.executable, "-c", code, *words, "--json", "out.json", "--report", "report"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done.stdout + done.stderr
        assert "freed 2\n" in done.stdout
        written = json.loads((tmp_path / "out.json").read_text())
        found: dict[str, set[str]] = {}
        for benchmark in written["benchmarks"]:
            info = benchmark["extra_info"]
            assert len(info["passes"]) == 2
            assert all(each > 0 for each in info["passes"])
            if benchmark["group"] == "step from Python":
                found.setdefault(info["case"], set()).add(info["engine"])
                assert (info["variant"] == "") == (info["engine"] not in ("torch", "onnxruntime"))
        everything = set(ENGINES)
        assert found["lstm-T1-B1-X32-H32"] == everything
        # The one whose gates are swapped is not timed, and the rest is.
        assert found["lstm-T1-B1-X128-H128"] == everything - {"torch"}
        (row,) = (name for name in written["fusedrnn"]["failures"])
        assert row == "test_step_from_python[lstm-T1-B1-X128-H128-torch]"
        assert "is wrong and was not timed" in written["fusedrnn"]["failures"][row]
        assert set(written["fusedrnn"]["libraries"]) == set(LIBRARIES)
        page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
        assert "is wrong and was not timed" in page
        assert re.search(r'<td class="first (faster|even|slower)">', page)


class TestArguments:
    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"cases": "nosuch"}, "--cases: no case is called 'nosuch'"),
            ({"threads": 0}, "--threads must be at least 1, got 0"),
            (
                {"threads": 4096},
                r"--threads must be at most \d+, the cores of this machine, got 4096",
            ),
        ],
    )
    def test_mistakes(self, given: dict[str, Any], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            verbs.run(**given)


class TestSummary:
    def test_the_table(self, tmp_path: Path) -> None:
        needs("onnxruntime")
        code = (
            "import sys\n"
            "import fusedrnn.bench.session as session\n"
            "from fusedrnn.bench import cases\n"
            "from fusedrnn.cli import main\n"
            "session.FULL_PASSES = 1\n"
            "session.CASES = [case for case in cases.CASES if case.hidden == 32]\n"
            "sys.exit(main(['bench', 'peers', '--summary', '--json', 'out.json']))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        # The table alone is on standard output: it can go into a file.
        lines = done.stdout.splitlines()
        assert all(line.startswith("|") for line in lines[:5])
        assert {line.count("|") for line in lines[:5]} == {lines[0].count("|")}
        for name in ("fusedrnn", "ONNX Runtime", "naive NumPy"):
            assert name in lines[0]
        assert [line.split("|")[2].strip() for line in lines[2:5]] == [
            *("one step", "a sequence, T=100, B=1", "a batch, T=100, B=32")
        ]
        cells = [cell.strip(" *") for line in lines[2:5] for cell in line.split("|")[3:-1]]
        assert all(
            re.fullmatch(r"[\d.,]+\xa0(ns|µs|ms|s)\**( \(\de-\d\d\)| \(\d\.\de-\d\d\))", cell)
            for cell in cells
        ), cells
        assert fr.info()["cpu"] in done.stdout
        assert "fusedrnn bench peers --summary" in done.stdout
        found = json.loads((tmp_path / "out.json").read_text())["benchmarks"]
        engines = {each["extra_info"]["engine"] for each in found}
        assert engines <= {"naive", "c", "torch", "onnxruntime"}


class TestFused:
    """Rows that are about how fusedrnn is called compute what they say."""

    def test_a_call_is_of_the_layer(self) -> None:
        this = problem(replace(SMALL[0], **SHAPES["call"]))
        peer = Fused(this.setup(), "c")
        assert not hasattr(peer, "stream")
        assert check("this", peer, this) < 1e-6

    def test_streams_are_a_group(self) -> None:
        this = problem(replace(SMALL[0], **SHAPES["streams"]))
        peer = Fused(this.setup(), "c")
        assert len(peer.stream._streams) == 3
        assert check("this", peer, this) < 1e-6
        # Negative control: one of them lags behind.
        peer.reset()
        peer.stream._streams[1].step(this.x[0, 1:2])
        y = np.stack([peer.step(row).copy() for row in this.x])
        assert np.abs(y - this.expected)[:, 1].max() > 1e-3
        assert np.abs(y - this.expected)[:, ::2].max() < 1e-6


def test_engines_and_libraries_are_told_apart() -> None:
    assert not set(OWN) & set(LIBRARIES)
    assert {*OWN, *LIBRARIES} == set(ENGINES)
