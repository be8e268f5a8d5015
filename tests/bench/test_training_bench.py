"""Forward and backward in the benchmark: that gradients are right, that wrong ones are not timed, and the tables."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarking import swapped

import fusedrnn as fr
from fusedrnn.bench import guard
from fusedrnn.bench import run as verbs
from fusedrnn.bench.cases import CASES, GROUPS, TRAINING, Case, networks
from fusedrnn.bench.measure import (
    Benchmark,
    Problem,
    WrongResultError,
    check_gradients,
    fastest,
    problem,
)
from fusedrnn.bench.peers import TRAINERS, Loss, Setup, Trained, offers, trainers
from fusedrnn.bench.session import Selection
from fusedrnn.report import groups as report_groups
from fusedrnn.report import parse, render
from fusedrnn.report.results import Measure
from fusedrnn.report.targets import TARGETS
from fusedrnn.report.training import lines, markdown_table

SHAPES: dict[str, Any] = {
    "training": None,
    "ragged training": (5, 13, 1),
    "outputs training": (5, 13, 1),
}
SMALL = [
    Case(group, 13, 3, 5, 8, cell=cell, options=options, lengths=lengths)
    for cell, options in (("lstm", ()), *networks(8))
    for group, lengths in SHAPES.items()
]
LSTM, RAGGED, OUTPUTS = SMALL[:3]


def needs_torch() -> None:
    """Skip without PyTorch, unless it must be there."""
    if os.environ.get("FUSEDRNN_REQUIRE_ORACLES") == "1":
        importlib.import_module("torch")
    else:
        pytest.importorskip("torch")


def errors(engine: str, this: Problem, setup: Setup | None = None) -> dict[str, float]:
    """Of each variant; where it is not as told, the check raises."""
    found = {}
    for trainer in trainers(engine, setup or this.setup()):
        with trainer.ready():
            found[trainer.variant] = check_gradients(engine, trainer, this)
            trainer.forward(this.x)
            # Again: nothing is left of the last time.
            assert check_gradients(engine, trainer, this) == found[trainer.variant]
    return found


class TestRight:
    @pytest.mark.parametrize("engine", TRAINERS)
    @pytest.mark.parametrize("case", SMALL, ids=lambda case: case.id)
    def test_every_engine_on_every_cell(self, engine: str, case: Case) -> None:
        if not offers(engine, case):
            assert engine == "torch"
            return
        if engine == "torch":
            needs_torch()
        assert max(errors(engine, problem(case)).values()) < 2e-6

    def test_ways_of_pytorch(self) -> None:
        needs_torch()
        both = replace(OUTPUTS, options=(("bidirectional", True),))
        for case, variants in (
            (LSTM, {"module"}),
            (RAGGED, {"packed"}),
            (OUTPUTS, {"packed", "padded"}),
            (both, {"packed"}),
        ):
            assert {each.variant for each in trainers("torch", problem(case).setup())} == variants

    def test_what_trains(self) -> None:
        for case in SMALL:
            own = {"lstm-peephole", "lstm-coupled", "gru-reset-before", "clockwork-periods-1-2-4-8"}
            lacked = case.id.partition("-training")[0] in own
            assert offers("torch", case) != lacked
            assert not offers("onnxruntime", case)
            assert not offers("openvino", case)

    def test_the_loss(self) -> None:
        loss = Loss.of(RAGGED)
        assert not loss.dy[5:, 0].any()
        assert loss.dy[:, 1].any(axis=1).all()
        assert loss.dstate is not None
        assert all(each is not None and each.any() for each in loss.dstate)
        assert Loss.of(OUTPUTS).dstate is None
        clockwork = Loss.of(SMALL[-3])
        assert clockwork.dstate is not None
        assert clockwork.dstate[1] is None  # a counter
        np.testing.assert_array_equal(Loss.of(RAGGED, np.float64).dy, loss.dy)


class TestWrong:
    @pytest.mark.parametrize("engine", TRAINERS)
    @pytest.mark.parametrize("case", [LSTM, RAGGED, OUTPUTS], ids=lambda case: case.id)
    def test_swapped_gates(self, engine: str, case: Case) -> None:
        if engine == "torch":
            needs_torch()
        this = problem(case)
        with pytest.raises(WrongResultError, match="was not timed"):
            errors(engine, this, Setup(case, swapped(this.weights, 4)))

    def test_the_last_state_counts(self) -> None:
        this = problem(RAGGED)
        with pytest.raises(WrongResultError):
            errors("c", this, Setup(OUTPUTS, this.weights))

    def test_forgotten_lengths(self) -> None:
        this = problem(RAGGED)
        with pytest.raises(WrongResultError):
            errors("c", this, Setup(replace(RAGGED, lengths=(13, 13, 13)), this.weights))

    @pytest.mark.parametrize("name", ["x", "h", "c", "weight_hh_l0", "bias_ih_l0"])
    def test_one_wrong_gradient(self, name: str) -> None:
        class Lame(Trained):
            def run(self, x: Any) -> dict[str, Any]:
                found = super().run(x)
                return found if wrong is None else {**found, name: wrong(found[name])}

        this = problem(LSTM)
        lame = Lame(this.setup(), "c")
        wrong: Any = None
        assert check_gradients("this", lame, this) < 2e-6
        for wrong in (lambda g: g * 1.001, lambda g: g * np.nan):
            with pytest.raises(WrongResultError):
                check_gradients("this", lame, this)

    def test_a_missing_gradient(self) -> None:
        class Lame(Trained):
            def run(self, x: Any) -> dict[str, Any]:
                found = super().run(x)
                del found["x"]
                return found

        with pytest.raises(WrongResultError, match="other gradients"):
            check_gradients("this", Lame(problem(LSTM).setup(), "c"), problem(LSTM))

    def test_it_is_not_timed(self) -> None:
        this = problem(LSTM)
        lame = Trained(Setup(LSTM, swapped(this.weights, 4)), "c")

        class Fixture:
            extra_info: dict[str, Any] = {}  # noqa: RUF012

            def pedantic(self, *arguments: object, **options: object) -> None:
                raise AssertionError("it was timed")

        with pytest.raises(WrongResultError):
            Benchmark(this, "c", lame).time_calls(Fixture())
        with pytest.raises(WrongResultError):
            fastest([lame, lame], this, lambda: 0.0)


class TestSelection:
    def test_training_alone(self) -> None:
        def names(**given: Any) -> set[str]:
            this = Selection(**given)
            return {each.id for group in GROUPS for each in this.cases(group)}

        everything = {case.id for case in CASES if case.group in TRAINING}
        assert names(training=True) == names(training=True, libraries=("torch",)) == everything
        quick = names(training=True, quick=True)
        # The short runs are about the same few, so that the guard sees them.
        for libraries in (None, ("torch",)):
            for short in (True, False):
                found = names(quick=short, libraries=libraries) & everything
                assert found == quick
        assert 2 <= len(quick) <= 4 < len(everything)
        assert Selection(training=True).names({"whole": True}) == []

    def test_every_cell_and_shape(self) -> None:
        cases = [case for case in CASES if case.group in TRAINING]
        assert {case.network for case in cases} >= {case.network for case in SMALL} - {
            "LSTM, projection 4"
        }
        assert {case.batch for case in cases} == {1, 16, 64}
        assert any(case.steps * case.batch == 4000 for case in cases)
        for target in TARGETS:
            if target.group in TRAINING and target.of == "ratio":
                for hidden in target.minimum:
                    assert any(
                        case.group == target.group
                        and case.hidden == hidden
                        and case.batch in target.batch
                        for case in cases
                    ), (target.title, hidden)

    def test_groups_are_the_reports(self) -> None:
        assert {*TRAINING, "training threads"} == set(report_groups.TRAINING)

    def test_threads(self) -> None:
        several = Selection(training=True, threads=2)
        assert several.cases("threads") == []
        assert {case.group for case in several.cases("training threads")} == {"training"}
        assert Selection(threads=2).cases("training threads") == []
        assert Selection(training=True).cases("training threads") == []


class TestArguments:
    @pytest.mark.parametrize(
        ("verb", "given", "said"),
        [
            (verbs.run, {"training": True, "long": True}, "--training .* does not take --long"),
            (verbs.peers, {"training": True, "steps": 5000}, "does not take --steps"),
            (verbs.peers, {"summary": True, "training": True}, "does not take --training"),
            (verbs.run, {"markdown": True}, "--markdown is for --training"),
        ],
    )
    def test_mistakes(self, verb: Any, given: dict[str, Any], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            verb(**given)


def test_backward_by_forward() -> None:
    def measure(**given: Any) -> Measure:
        return Measure(3.0, 3.0, 3.0, 1, 1.0, 0.0, 0.0, None, passes=(3.0, 4.0, 3.2), **given)

    this = measure(forward=(1.0, 2.0, 1.0), backward_macs=11)
    assert this.backward is not None
    assert this.backward.median == pytest.approx(2.0)
    assert this.backward_flops == pytest.approx(11.0)
    assert measure().backward is None
    assert measure().backward_flops is None


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The JSON and the Markdown of a real run on shapes that take no time."""
    folder = tmp_path_factory.mktemp("training")
    libraries = "bench run"
    try:
        needs_torch()
        libraries = "bench peers"
    except pytest.skip.Exception:
        pass
    code = (
        "import sys\n"
        "from dataclasses import replace\n"
        "from fusedrnn.bench import cases, measure, session\n"
        "session.FULL_PASSES = session.QUICK_PASSES = 2\n"
        "several = [replace(case, steps=7, batch=3, input=5, hidden=8, options=(),\n"
        "                   lengths=case.lengths and (7, 1, 2))\n"
        "           for case in cases.CASES\n"
        "           if 'quick training' in case.runs and case.cell == 'lstm']\n"
        "several.append(replace(several[0], options=(('peephole', True),)))\n"
        "several[0] = replace(several[0], runs=several[0].runs | {'training threads'})\n"
        "session.CASES = several\n"
        "session._ORDER = {case.id: place for place, case in enumerate(several)}\n"
        "find = {case.id: case for case in several}.__getitem__\n"
        "measure.find = session.find = find\n"
        "from fusedrnn.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    words = [*libraries.split(), "--training", "--quick", "--markdown", "--json", "out.json"]
    threads = str(min(2, fr.info()["cores"]))
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--threads", threads],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(Path(folder, "out.json").read_text(encoding="utf-8")), done.stdout


class TestRun:
    def test_rows(self, written: tuple[dict[str, Any], str]) -> None:
        results, _ = written
        assert results["fusedrnn"]["training"] is True
        engines: dict[str, set[str]] = {}
        for each in results["benchmarks"]:
            info = each["extra_info"]
            assert len(info["forward"]) == len(info["passes"]) == 2
            assert 0 < info["max_error"] < 2e-6
            if each["group"] in TRAINING:
                engines.setdefault(info["case"], set()).add(info["engine"])
            wanted = {"backward": True, "want_x": True, "want_state": True}
            shape: dict[str, Any] = {"lengths": info["lengths"]}
            if info["lengths"] is None:
                shape = {"steps": 7, "batch": 3}
            counted = fr.count(
                "lstm", input_size=5, hidden_size=8, **shape, **wanted, **info["options"]
            )
            assert info["backward_macs"] == counted.backward_macs
            assert info["flops"] == counted.flops_per_step * counted.sequence_steps + (
                counted.backward_executed.flops if counted.backward_executed else 0
            )
        torch = {"torch"} & set(results["fusedrnn"]["libraries"])
        peephole = {name for name in engines if "peephole" in name}
        assert len(peephole) == 1
        for name, found in engines.items():
            assert found == {"naive", "c", "numba"} | (torch if name not in peephole else set())

    def test_markdown(self, written: tuple[dict[str, Any], str]) -> None:
        results, said = written
        table = [line for line in said.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in table}) == 1
        rows = {
            (each["group"], each["extra_info"]["case"], each["extra_info"]["threads"])
            for each in results["benchmarks"]
        }
        assert len(table) == 2 + len(rows)
        assert said.startswith(table[0])  # the progress is elsewhere
        assert markdown_table(parse(results)) == said
        assert all(" B |" in line for line in table[2:])

    def test_report(self, written: tuple[dict[str, Any], str]) -> None:
        results, _ = written
        parsed = parse(results)
        files = render(results)
        page, text = (files[name].decode() for name in ("index.html", "report.md"))
        assert "training.svg" in files
        for group in TRAINING:
            assert lines(parsed, group)
            for line in lines(parsed, group):
                for cell in line.cells[:1]:
                    assert cell in page
                    assert cell in text
        assert "--training" in page.split("Do it yourself")[1]
        # Forward passes have sections of their own, and there are none here.
        assert not parsed.versus
        assert "Compared with other libraries" not in page

    def test_guard(self, written: tuple[dict[str, Any], str]) -> None:
        found = guard.ratios(parse(written[0]))
        assert {name.partition(":")[0] for name in found} == set(TRAINING)
        assert all(ratio > 0 for ratio in found.values())
