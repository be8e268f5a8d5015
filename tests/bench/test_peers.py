"""Other libraries beside fusedrnn: that each is right on what it offers, that a wrong one is not timed, and ratios."""

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
from benchmarking import arguments, swapped

import fusedrnn as fr
from fusedrnn.bench import measure, peers
from fusedrnn.bench.cases import CASES, Case, find, matches, networks
from fusedrnn.bench.measure import (
    Problem,
    Subject,
    WrongResultError,
    check,
    computes_here,
    fastest,
    problem,
)
from fusedrnn.bench.peers import ENGINES, LIBRARIES, Naive, missing, offers, ways
from fusedrnn.bench.run import run
from fusedrnn.bench.session import FULL_PASSES, Selection
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
    for module in LIBRARIES[library][0]:
        if os.environ.get("FUSEDRNN_REQUIRE_ORACLES") == "1":
            importlib.import_module(module)
        else:
            pytest.importorskip(module)


def errors(library: str, posed: Problem, weights: Any = None) -> dict[str, float]:
    """Of each way to call it; where it is not as told, the check raises."""
    found = {}
    for this in ways(library, posed.case, weights or posed.weights):
        assert this.name == library
        with this.ready():
            found[this.way] = check(library, this, posed)
            # Again, from zero again.
            assert check(library, this, posed) == found[this.way]
    return found


class TestRight:
    @libraries
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("case", SMALL, ids=lambda case: case.network)
    def test_every_way_on_every_cell(self, library: str, shape: str, case: Case) -> None:
        assert offers(library, case) == (case.network not in LACKS[library])
        if not offers(library, case):
            return
        if shape == "step" and case.architecture.bidirectional:
            return
        needs(library)
        found = errors(library, problem(replace(case, **SHAPES[shape])))
        assert max(found.values()) < 1e-6
        if library == "torch" and shape == "step":
            assert set(found) == {"module"} | (
                {"cell"} - {"cell" * bool(case.architecture.proj_size)}
            )

    @libraries
    @pytest.mark.parametrize("shape", ["sequence", "step"])
    def test_state_is_carried(self, library: str, shape: str) -> None:
        needs(library)
        posed = problem(replace(SMALL[0], **SHAPES[shape], input=6))
        for this in ways(library, posed.case, posed.weights):
            with this.ready():
                check(library, this, posed)
                if shape == "step":
                    again = np.stack([this.step(x).copy() for x in posed.x])
                else:
                    again = this.run(posed.x)
            # From a state of zeros it would be what is expected.
            assert np.abs(again - posed.expected).max() > 1e-3

    @libraries
    def test_biases(self, library: str) -> None:
        needs(library)
        for kind, options in ((fr.LSTM, {}), (fr.GRU, {"reset": "after"}), (fr.RNN, {})):
            made = kind(5, 8, bias="double", seed=3, **options)
            case = Case("batch", 4, 2, 5, 8, cell=kind.cell, options=tuple(options.items()))
            x = np.random.default_rng(0).standard_normal((4, 2, 5), np.float32)
            posed = Problem(case, "this", made.weights, x, made(x)[0])
            assert max(errors(library, posed).values()) < 1e-6

    @libraries
    def test_in_the_thread_that_calls(self, library: str) -> None:
        needs(library)
        for name in ("lstm-T1-B1-X64-H64", "lstm-T100-B16-X64-H64"):
            posed = problem(find(name))
            for this in ways(library, posed.case, posed.weights, 1):
                assert computes_here(this, posed), this.way

    def test_a_worker_thread_is_noticed(self) -> None:
        class Elsewhere(Naive):
            def run(self, x: Any) -> Any:
                worker = threading.Thread(target=super().run, args=(x,))
                worker.start()
                worker.join()
                return x

        posed = problem(find("lstm-T100-B1-X32-H32"))
        assert not computes_here(Elsewhere(posed.weights), posed)
        assert computes_here(Naive(posed.weights), posed)

    def test_pytorch_has_its_threads_only_for_a_while(self) -> None:
        needs("torch")
        import torch

        posed = problem(SMALL[0])
        before = torch.get_num_threads()
        (this,) = ways("torch", posed.case, posed.weights, before + 1)
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
        posed = problem(case)
        with pytest.raises(WrongResultError, match="was not timed"):
            errors(library, posed, swapped(posed.weights, blocks))

    @libraries
    def test_and_it_is_not_timed(self, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
        needs(library)
        timed: list[object] = []

        class Benchmark:
            extra_info: dict[str, Any] = {}  # noqa: RUF012

            def pedantic(self, *arguments: object, **options: object) -> None:
                timed.append(arguments)

        monkeypatch.setattr(measure, "interleaved", lambda *a, **k: timed.append(a))
        posed = problem(replace(SMALL[0], **SHAPES["sequence"]))
        several = ways(library, posed.case, swapped(posed.weights, 4))
        with pytest.raises(WrongResultError, match="not timed"):
            this = Subject(posed, library, fastest(several, posed, lambda: 0.0))
            this.time_calls(Benchmark(), this.peer.run, posed.x)
        assert timed == []

    @libraries
    def test_forgotten_lengths(self, library: str) -> None:
        needs(library)
        posed = problem(replace(SMALL[0], **SHAPES["ragged"]))
        lame = replace(posed, case=replace(posed.case, lengths=(13, 13, 13)))
        with pytest.raises(WrongResultError):
            errors(library, lame)

    @pytest.mark.parametrize("wrong", [0, 1])
    def test_the_fastest_way_must_be_right_too(self, wrong: int) -> None:
        posed = problem(find("lstm-T100-B1-X32-H32"))
        several = [Naive(posed.weights), Naive(posed.weights)]
        several[wrong] = Naive(swapped(posed.weights, 4))
        with pytest.raises(WrongResultError):
            fastest(several, posed, lambda: 0.0)


class TestFastest:
    def test_the_one_that_takes_the_least_time(self) -> None:
        now = 0.0

        class Slow(Naive):
            def __init__(self, way: str, takes: float) -> None:
                super().__init__(posed.weights)
                self.way, self._takes = way, takes

            def run(self, x: Any) -> Any:
                nonlocal now
                now += self._takes
                return super().run(x)

            def ready(self) -> Any:
                return nullcontext()

        posed = problem(find("lstm-T100-B1-X32-H32"))
        several = [Slow("slow", 3.0), Slow("fast", 1.0), Slow("middle", 2.0)]
        assert fastest(several, posed, lambda: now).way == "fast"
        assert fastest(several[:1], posed, lambda: now).way == "slow"


class TestSelection:
    def test_runs(self) -> None:
        def names(**given: Any) -> set[str]:
            this = Selection(**given)
            return {
                each.id
                for group in ("step", "sequence", "batch", "ragged")
                for each in this.cases(group)
            }

        quick, default = names(quick=True), names()
        peers_, quick_peers = names(libraries=()), names(libraries=(), quick=True)
        assert quick < default
        assert quick_peers < peers_
        assert names(long=True) > default
        assert names(libraries=(), long=True) | default == {
            case.id for case in CASES if case.runs - {"threads"}
        }
        assert names(libraries=(), pattern="gru-*-B1-*") == {
            name for name in peers_ if name.startswith("gru-") and "-B1-" in name
        }
        assert not any(find(name).runs == {"long"} for name in peers_ | default)

    def test_threads(self) -> None:
        assert Selection().cases(None) == []
        several = Selection(threads=2).cases(None)
        assert len(several) == sum("threads" in case.runs for case in CASES) > 0
        fewer = Selection(threads=2, quick=True, libraries=()).cases(None)
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


def test_memory_is_let_go_of() -> None:
    posed = problem(SMALL[0])
    assert problem(SMALL[0]) is posed
    measure.forget()
    assert problem(SMALL[0]) is not posed


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
        def timed(*turns: float) -> Measure:
            middle = float(np.median(turns))
            return Measure(middle, middle, middle, 1, 1, 1.0, 0.0, 0.0, None, turns=turns)

        row = Row("step", "case", "LSTM", "H=X=32", {})
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
            run(arguments(peers=True))

    def test_one(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        seen = []

        def measured(console: object, selection: Selection, args: object) -> None:
            seen.append(selection.libraries)

        monkeypatch.setattr(peers, "find_spec", lambda name: None if name == "torch" else True)
        monkeypatch.setattr("fusedrnn.bench.run._measured", measured)
        assert run(arguments(peers=True)) == 130
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
            "import fusedrnn.bench.session as session\n"
            "import fusedrnn.bench.peers.torch as lame\n"
            "from fusedrnn.cli import main\n"
            "session.FULL_PASSES = 2\n"
            "right = lame.ways\n"
            "def ways(case, weights, threads):\n"
            "    i, f, g, o = np.split(weights['weight_ih_l0'], 4)\n"
            "    swapped = {**weights, 'weight_ih_l0': np.concatenate([f, i, g, o])}\n"
            "    return right(case, weights if case.hidden == 32 else swapped, threads)\n"
            "lame.ways = ways\n"
            # As if each case took minutes: all its passes come together, and then it is let go of.
            "session._is_long = lambda case: True\n"
            "forgotten, forget = [], session.forget\n"
            "session.forget = lambda: (forgotten.append(1), forget())\n"
            "status = main(sys.argv[1:])\n"
            "print('forgotten', len(forgotten))\n"
            "sys.exit(status)"
        )
        words = ["bench", "--peers", "--quick", "--threads", "1", "--cases", "lstm-T1-B1-X[13]2*"]
        done = subprocess.run(
            [sys.executable, "-c", code, *words, "--json", "out.json", "--report", "report"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done.stdout + done.stderr
        assert "forgotten 2\n" in done.stdout
        written = json.loads((tmp_path / "out.json").read_text())
        found: dict[str, set[str]] = {}
        for benchmark in written["benchmarks"]:
            info = benchmark["extra_info"]
            assert len(info["turns"]) == 2
            assert all(turn > 0 for turn in info["turns"])
            if benchmark["group"] == "step from Python":
                found.setdefault(info["case"], set()).add(info["engine"])
                assert (info["way"] == "") == (info["engine"] not in ("torch", "onnxruntime"))
        everything = {*ENGINES, *LIBRARIES}
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
            run(arguments(**given))


def test_engines_and_libraries_are_told_apart() -> None:
    assert not set(ENGINES) & set(LIBRARIES)
