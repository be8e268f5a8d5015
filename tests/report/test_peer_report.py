"""What a report says about other libraries: made from results that are made up, so that what it must say is known."""

from __future__ import annotations

import json
import re
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarking import bench

from fusedrnn.bench import compile_time, guard, latency, overhead, timing
from fusedrnn.bench import run as verbs
from fusedrnn.bench.cases import CASES, Case, find
from fusedrnn.bench.compile_time import compile_seconds
from fusedrnn.bench.measure import WrongResultError
from fusedrnn.report import parse, render
from fusedrnn.report.engines import ENGINES, LIBRARIES
from fusedrnn.report.plots import available_plots
from fusedrnn.report.results import SCHEMA, Results, Row
from fusedrnn.report.targets import TARGETS, Network, outcomes

#: Seconds of C in the made-up results; those of the others are multiples of it, pass by pass.
PASSES = [1e-3, 2e-3, 1e-3, 1.1e-3, 0.9e-3]


def row(
    case: Case, group: str, engine: str, times: float = 1.0, threads: int | None = None, **more: Any
) -> dict[str, Any]:
    """One benchmark, which took so many times as long as C."""
    passes = [times * each for each in PASSES]
    low, middle, high = (float(each) for each in np.percentile(passes, (25, 50, 75)))
    return {
        "group": group,
        "extra_info": {
            "case": case.id,
            "cell": case.cell,
            "options": dict(case.options),
            "network": case.network,
            "title": case.title,
            "engine": engine,
            "variant": "",
            "floor": None,
            "intensity": None,
            "isa": None,
            "threads": threads,
            "T": case.steps,
            "B": case.batch,
            "X": case.input,
            "H": case.hidden,
            "flops": 1e8,
            "max_error": 1e-7,
            "empty_loop": 0.0,
            "passes": passes,
            **more,
        },
        "stats": {
            "median": middle,
            "q1": low,
            "q3": high,
            "rounds": 5,
            "iterations": 1,
            "data": passes,
        },
    }


def made_up(rows: list[dict[str, Any]], **about: Any) -> dict[str, Any]:
    """A result with these rows."""
    facts = {
        "date": "now",
        "cpu": "a processor",
        "isa": "avx2",
        "isas": ["avx2"],
        "caches": {},
        "cores": 2,
        "system": "a system",
        "python": "3",
        "blas": [],
        "build": "cc",
        "versions": {"fusedrnn": "0"},
        "commit": {},
        "load": 0.0,
        "busy": False,
    }
    limits = {"flops": 2e11, "bandwidth": {"L1": 4e11, "L2": 2e11, "DRAM": 2e10}, "latency": {}}
    return {
        "benchmarks": rows,
        "fusedrnn": {
            "schema": SCHEMA,
            "passes": 5,
            "max_error": 1e-4,
            "summary": False,
            "latency": None,
            "overhead": None,
            "stages": None,
            "compile": None,
            "quick": False,
            "environment": facts,
            "machine": {"limits": {"avx2": limits}},
            "failures": {},
            "libraries": dict.fromkeys(LIBRARIES, "1.0"),
            "threads": 2,
            **about,
        },
    }


STEP = find("lstm-T1-B1-X32-H32")
STEP_64 = find("lstm-T1-B1-X64-H64")
BATCH = find("lstm-T100-B16-X128-H128")
GRU = find("gru-reset-after-T100-B1-X128-H128")
THREADS = find("lstm-T100-B1-X256-H256")


def several() -> dict[str, Any]:
    """Wins, a loss, a draw, a cell that a library lacks, and threads."""
    kernel = {"floor": 1e-4, "intensity": 0.5}
    return made_up(
        [
            row(STEP, "step from Python", "naive", 40),
            row(STEP, "step from Python", "numba", 1.2),
            row(STEP, "step from Python", "c", **kernel),
            row(STEP, "step from Python", "torch", 44),
            row(STEP, "step from Python", "onnxruntime", 16),
            row(STEP, "step from Python", "openvino", 25),
            row(STEP_64, "step from Python", "c"),
            row(STEP_64, "step from Python", "torch", 30),
            row(STEP_64, "step from Python", "onnxruntime", 9.5),
            row(BATCH, "batch", "naive", 3),
            row(BATCH, "batch", "numba", 1.4),
            row(BATCH, "batch", "c", **kernel),
            row(BATCH, "batch", "torch", 1.0),
            row(BATCH, "batch", "onnxruntime", 0.9),
            row(GRU, "sequence", "c"),
            row(GRU, "sequence", "torch", 4.9),
            *(row(THREADS, "threads", "c", times, n) for n, times in ((1, 1.0), (2, 0.5))),
            *(row(THREADS, "threads", "torch", times, n) for n, times in ((1, 1.5), (2, 1.2))),
        ],
        overhead={
            "max_calls": {"step(x)": 5.0},
            "max_seconds": {"layer(x, state)": 3e-6},
            "rows": [each_overhead("c", 2e-6), each_overhead("numba", 4e-6)],
        },
        stages={
            "stages": {"naive": "as people write it", "fused": "one loop"},
            "rates": {"FMA": 1e11, "16 KiB": 8e10},
            "rows": [each_stage("naive", None, 1.0), each_stage("fused", 4.0, 4.0)],
        },
        latency={"clock": 4e-8, "rows": [each_latency("c", 1e-6), each_latency("torch", 3e-5)]},
        compile={"lstm backward": {"compile": 7.5, "cached": 0.25}},
    )


def each_overhead(engine: str, above: float) -> dict[str, Any]:
    """A call of the layer that costs so much above its kernel; a step of the stream costs four empty calls."""
    extra = {"step(x)": 4e-7, "layer(x, state)": above}
    return {
        "engine": engine,
        "hidden": 32,
        "empty": 1e-7,
        "kernel": 5e-7,
        "seconds": {name: 5e-7 + value for name, value in extra.items()},
        "above": {name: three(value) for name, value in extra.items()},
        "calls": {name: three(value / 1e-7) for name, value in extra.items()},
    }


def three(value: float) -> dict[str, float]:
    return {"q1": 0.9 * value, "median": value, "q3": 1.1 * value}


def each_stage(name: str, gain: float | None, total: float) -> dict[str, Any]:
    return {
        "hidden": 32,
        "name": name,
        "isa": None,
        "seconds": three(1e-5 / total),
        "gain": gain,
        "total": total,
        "error": 1e-7,
    }


def each_latency(engine: str, seconds: float) -> dict[str, Any]:
    taken = np.full(2000, 1e9 * seconds)
    taken[:5] *= 100
    return {"engine": engine, "hidden": 32, "max_error": 1e-7, **latency.distribution(taken)}


@pytest.fixture(scope="module")
def results() -> Results:
    return parse(several())


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return render(several())


def about(network: Network, case: Case) -> bool:
    """Whether a target's network is that of a case."""
    sizes = {"H": case.hidden}
    return network.about(Row("", case.id, case.cell, dict(case.options), "", "", sizes))


class TestTargets:
    def found(self, results: Results) -> dict[tuple[str, str], Any]:
        return {(each.target.title, each.row.title): each for each in outcomes(results)}

    def test_met_and_missed(self, results: Results) -> None:
        found = self.found(results)
        step = found["One step from Python, B=1", "H=X=32"]
        assert (step.met, step.against, step.wanted) == (True, "onnxruntime", "15.0×")
        assert step.reached.startswith("16.0×")
        assert not found["One step from Python, B=1", "H=X=64"].met
        gru = found["Others against PyTorch, T=100, B=1", "H=X=128, T=100"]
        assert (gru.met, gru.against, gru.wanted) == (False, "torch", "5.00×")
        batch = found["A batch, B=16 and 64: not slower", "H=X=128, T=100, B=16"]
        assert (batch.met, batch.against) == (False, "onnxruntime")

    def test_of_the_peak(self, results: Results) -> None:
        peak = self.found(results)["A batch, B=16 and 64: of the FMA peak", "H=X=128, T=100, B=16"]
        # 1e8 operations in a millisecond are half of 2e11 a second.
        assert peak.reached.startswith("50")
        assert not peak.met

    def test_threads_are_compared_with_one(self, results: Results) -> None:
        title = "Several threads: not less than the ratio with one"
        found = self.found(results)
        outcome = found[title, "H=X=256, T=100, 2 threads"]
        # 1.2 / 0.5 with two, 1.5 with one.
        assert (outcome.met, outcome.wanted) == (True, "1.50×")
        assert outcome.reached.startswith("2.40×")
        assert (title, "H=X=256, T=100, 1 thread") not in found
        worse = several()
        for each in worse["benchmarks"]:
            info = each["extra_info"]
            if info["threads"] == 2 and info["engine"] == "torch":
                info["passes"] = [0.7 * each for each in PASSES]
        assert not self.found(parse(worse))[title, "H=X=256, T=100, 2 threads"].met

    def test_every_target_is_about_shapes_of_the_list(self) -> None:
        groups = {"step": "step from Python"}
        for target in TARGETS:
            for hidden in target.minimum:
                rows = [
                    case
                    for case in CASES
                    if (groups.get(case.group, case.group) == target.group)
                    or (target.group.endswith("threads") and target.group in case.runs)
                    if case.hidden == hidden == case.input
                    and any(about(network, case) for network in target.networks)
                    and case.batch in target.batch
                    and target.steps in (None, case.steps)
                    and case.runs & {"peers", "threads", "training", "training threads"}
                ]
                # Threads are tried where there is enough to do.
                assert rows or (target.of == "threads" and hidden < 128), (target.title, hidden)

    def test_without_libraries_there_is_none(self) -> None:
        alone = several()
        alone["benchmarks"] = [
            each for each in alone["benchmarks"] if each["extra_info"]["engine"] not in LIBRARIES
        ]
        alone["fusedrnn"]["libraries"] = {}
        assert "Figures to reach" not in render(alone)["report.md"].decode()


class TestReport:
    def test_the_worst_come_first(self, results: Results, files: dict[str, bytes]) -> None:
        assert [row.title for row in results.versus] == [
            *("H=X=128, T=100, B=16", "H=X=128, T=100", "H=X=64", "H=X=32")
        ]
        page = files["index.html"].decode()
        table = page[page.index('class="versus"') :]
        table = table[: table.index("</table>")]
        assert table.index("H=X=128, T=100, B=16") < table.index("H=X=64") < table.index("H=X=32")

    def test_losses_are_marked_as_wins_are(self, files: dict[str, bytes]) -> None:
        page = files["index.html"].decode()
        assert re.search(r'<td class="first slower">0\.90×<small>0\.90&ndash;0\.90', page)
        assert re.search(r'<td class="first faster">44\.0×', page)
        assert re.search(r'<td class="first even">1\.00×', page)
        assert "faster in 3</strong>, even in 0, and" in page
        assert "slower in 1</strong>" in page
        text = files["report.md"].decode()
        assert "**0.90× 0.90\N{EN DASH}0.90**" in text
        assert "**44.0×" not in text
        assert "slower in 1" in text

    def test_what_is_lacking_is_a_dash(self, files: dict[str, bytes]) -> None:
        (line,) = (
            each
            for each in files["report.md"].decode().splitlines()
            if each.startswith("| GRU")
            and "takes" not in each
            and "4.90" in each
            and "One seq" in each
        )
        assert line.count("– |") == 6  # two libraries: ratio, time, error

    def test_markdown_tables_are_rectangular(self, files: dict[str, bytes]) -> None:
        widths: set[int] = set()
        tables = 0
        for line in [*files["report.md"].decode().splitlines(), ""]:
            if line.startswith("|"):
                widths.add(line.count("|"))
                continue
            assert len(widths) <= 1, widths
            tables += bool(widths)
            widths = set()
        assert tables >= 7

    def test_rows_are_as_wide_as_their_tables(self, files: dict[str, bytes]) -> None:
        page = files["index.html"].decode()
        for name in ("versus", "targets", "latency", "kernels", "overhead", "stages"):
            for table in re.findall(rf'<table class="{name}">(.*?)</table>', page, re.DOTALL):
                heads = re.findall(
                    r"<tr.*?</tr>", re.search(r"<thead>.*?</thead>", table, re.DOTALL)[0], re.DOTALL
                )
                body = re.findall(r"<tr.*?</tr>", table.partition("<tbody>")[2], re.DOTALL)
                assert body
                assert {cells(each) for each in body} == {cells(heads[0])}, name

    def test_every_plot_is_there(self, results: Results, files: dict[str, bytes]) -> None:
        names = available_plots(results)
        assert set(names) >= {"peers", "peer-networks", "roofline", "latency"}
        for name in names:
            assert files[f"{name}.png"].startswith(b"\x89PNG")
        assert files["index.html"].decode().count("<svg") == len(names)
        plot = files["peers.svg"].decode()
        for library in LIBRARIES[:2]:
            assert ENGINES[library].label in plot

    def test_threads_and_scaling(self, results: Results, files: dict[str, bytes]) -> None:
        one, two = results.in_group("threads")
        assert (one.threads, two.threads) == (1, 2)
        scaled = results.scaling(two, "c")
        assert scaled is not None
        assert scaled.median == pytest.approx(2)
        assert "2.00× one thread" in files["index.html"].decode()
        assert "H=X=256, T=100, 2 threads" in files["report.md"].decode()

    def test_numba_versus_c(self, results: Results, files: dict[str, bytes]) -> None:
        assert [round(row.numba.median, 2) for row in results.kernels if row.numba] == [1.4, 1.2]
        page = files["index.html"].decode()
        assert re.search(r'<td class="missed">1\.40×', page)
        assert re.search(r'<td class="met">1\.20×', page)
        for name in ("index.html", "report.md"):
            assert (
                "lstm backward 7.50\N{NO-BREAK SPACE}s, then 250\N{NO-BREAK SPACE}ms"
                in files[name].decode()
            )

    def test_latency_alone(self, tmp_path: Path) -> None:
        alone = several()
        alone["benchmarks"] = []
        alone["fusedrnn"]["libraries"] = {}
        alone["fusedrnn"].update(compile=None, overhead=None, stages=None)
        found = render(alone)
        assert "How long single steps take" in found["index.html"].decode()
        assert found["index.html"].decode().count("<svg") == 1
        assert "Results" not in found["report.md"].decode()

    def test_what_a_call_costs(self, results: Results, files: dict[str, bytes]) -> None:
        c, numba = results.overheads
        assert [results.within(each, "layer(x, state)") for each in (c, numba)] == ["met", "missed"]
        assert results.within(c, "step(x)") == "met"
        assert results.within(c, "another way") == ""
        page = files["index.html"].decode()
        assert re.search(r'<td class="met">2\.00.µs<small>20\.0 calls', page)
        assert re.search(r'<td class="missed">4\.00.µs<small>40\.0 calls', page)
        assert re.search(r"layer\(x, state\).*in empty calls", files["report.md"].decode())

    def test_stages(self, files: dict[str, bytes]) -> None:
        for name in ("index.html", "report.md"):
            text = files[name].decode()
            assert "From naive to fast" in text
            assert "as people write it" in text
            assert "4.00×" in text

    def test_every_engine_has_its_colours(self, files: dict[str, bytes]) -> None:
        page = files["index.html"].decode()
        for name, engine in ENGINES.items():
            assert f"--{name}: {engine.colour};" in page
            assert f"--{name}: {engine.dark};" in page
            assert f".{name} {{ color: var(--{name}); }}" in page

    def test_reasons_are_said_once(self) -> None:
        lame = several()
        lame["fusedrnn"]["failures"] = {f"{name}[a]": "no luck" for name in "bcdefgh"}
        for name in ("index.html", "report.md"):
            text = render(lame)[name].decode()
            assert text.count("no luck") == 1
            assert "b[a]" in text
            assert "and 1 more" in text


def cells(row: str) -> int:
    tags = re.findall(r"<t[hd]\b[^>]*>", row)
    spans = [re.search(r'colspan="(\d+)"', tag) for tag in tags]
    return sum(int(span[1]) if span else 1 for span in spans)


class TestLatency:
    def test_percentiles_and_curve(self) -> None:
        found = latency.distribution(np.arange(1, 10_001))
        assert found["percentiles"] == pytest.approx(
            {"p50": 5000.5e-9, "p99": 9900.01e-9, "p99.9": 9990.001e-9, "max": 10_000e-9}
        )
        shares, values = np.array(found["slower"]).T
        assert (shares[0], shares[-1]) == pytest.approx((1.0, 1e-4))
        # Of the numbers to 10 000, that share is larger.
        np.testing.assert_allclose(1 - values * 1e9 / 10_000, shares, atol=2e-4)

    def test_each_step_is_timed(self) -> None:
        now = iter(range(0, 1000, 7))
        inputs = [np.full(1, number) for number in range(3)]
        seen: list[float] = []
        taken = timing.each_call(lambda x: seen.append(float(x[0])), inputs, 5, lambda: next(now))
        assert taken == array("q", [7] * 5)
        assert seen == [0, 1, 2, 0, 1]

    def test_engines(self) -> None:
        failures: dict[str, str] = {}
        found = latency.measure(("naive", "c"), 2000, failures)
        assert failures == {}
        steps = {(each["engine"], each["hidden"]): each["steps"] for each in found["rows"]}
        assert steps == {
            **{("c", hidden): 2000 for hidden in latency.HIDDEN},
            **{("naive", hidden): 40 for hidden in latency.HIDDEN},
        }
        for each in found["rows"]:
            p = each["percentiles"]
            assert 0 < p["p50"] <= p["p99"] <= p["p99.9"] <= p["max"]
        assert 0 < found["clock"] < 1e-4

    def test_what_is_wrong_is_not_timed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def wrong(*_: object) -> float:
            raise WrongResultError("wrong and was not timed")

        monkeypatch.setattr(latency, "check", wrong)
        failures: dict[str, str] = {}
        found = latency.measure(("c",), 1000, failures)
        assert found["rows"] == []
        assert set(failures.values()) == {"wrong and was not timed"}
        assert len(failures) == len(latency.HIDDEN)

    def test_command(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        report = tmp_path / "report"
        monkeypatch.setattr(overhead, "HIDDEN", (8,))
        words = ["--quick", "--steps", 1000, "--report", report, "--json", tmp_path / "a.json"]
        assert bench("latency", *words) == 0
        said = capsys.readouterr().out
        assert "How long single steps of an LSTM take" in said
        assert "layer(x, state)" in said
        assert "p99.9" in said
        written = json.loads((tmp_path / "a.json").read_text())
        assert written["benchmarks"] == []
        assert {each["engine"] for each in written["fusedrnn"]["latency"]["rows"]} == {
            "naive",
            "numba",
            "c",
        }
        assert (report / "latency.svg").is_file()

    def test_too_few_steps(self) -> None:
        for call in (verbs.latency, verbs.peers):
            with pytest.raises(ValueError, match="--steps must be at least 1000, got 999"):
                call(steps=999)


class TestCompileTime:
    def test_a_cell(self) -> None:
        found = compile_seconds("clockwork")
        assert 0 < found["cached"] < found["compile"]

    def test_unknown(self) -> None:
        with pytest.raises(ValueError, match="cell must be one of .*, got 'nosuch'"):
            compile_seconds("nosuch")

    def test_what_cannot_be_compiled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
        with pytest.raises(RuntimeError, match="lstm was not compiled: .*NUMBA_DISABLE_JIT"):
            compile_seconds("lstm")

    def test_a_cache_that_is_not_as_expected(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compile_time, "_CODE", "print('[1.0, true]')")
        with pytest.raises(RuntimeError, match="not as expected"):
            compile_seconds("lstm")


class TestGuard:
    def file(self, tmp_path: Path, slower: float = 1.0) -> Path:
        """A result in which the C kernels took so many times as long."""
        content = several()
        for each in content["benchmarks"]:
            info = each["extra_info"]
            if info["engine"] == "c":
                info["passes"] = [slower * each for each in info["passes"]]
        path = tmp_path / f"results-{slower}.json"
        path.write_text(json.dumps(content))
        return path

    def test_record_and_compare(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        ratios = tmp_path / "ratios.toml"
        here = f"--ratios={ratios}"
        assert guard.main([str(self.file(tmp_path)), here, "--record"]) == 0
        assert guard.read(ratios)["avx2"]["batch: lstm-T100-B16-X128-H128: c"] == pytest.approx(3)
        # 1 / 1.9 of the ratio is above half, 1 / 2.1 below.
        for slower, status in ((1.0, 0), (1.9, 0), (2.1, 1)):
            capsys.readouterr()
            assert guard.main([str(self.file(tmp_path, slower)), here]) == status
            said = capsys.readouterr().out
            assert ("FAILED" in said) == bool(status)
            assert "batch: lstm-T100-B16-X128-H128: numba" in said

    def test_other_instruction_sets_stay(self, tmp_path: Path) -> None:
        ratios = tmp_path / "ratios.toml"
        ratios.write_text(guard.written({"neon": {"a row": 2.0}}))
        guard.main([str(self.file(tmp_path)), f"--ratios={ratios}", "--record"])
        recorded = guard.read(ratios)
        assert recorded["neon"] == {"a row": 2.0}
        assert set(recorded) == {"neon", "avx2"}

    def test_new_and_missing_rows_do_not_fail(self) -> None:
        lines = guard.compare({"a": 1.0, "b": 2.0}, {"b": 2.0, "c": 3.0})
        assert {line.name: line.verdict for line in lines} == {
            "a": "new",
            "b": "as recorded",
            "c": "not measured",
        }

    def test_nothing_in_common_is_no_pass(self, tmp_path: Path) -> None:
        ratios = tmp_path / "ratios.toml"
        ratios.write_text(guard.written({"avx2": {"a row": 2.0}}))
        with pytest.raises(ValueError, match="none of its rows is recorded for avx2"):
            guard.main([str(self.file(tmp_path)), f"--ratios={ratios}"])

    def test_nothing_recorded(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert guard.main([str(self.file(tmp_path)), f"--ratios={tmp_path / 'none'}"]) == 0
        assert "Nothing is recorded for avx2" in capsys.readouterr().out

    def test_json(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        guard.main([str(self.file(tmp_path)), f"--ratios={tmp_path / 'none'}", "--json"])
        lines = json.loads(capsys.readouterr().out)
        assert {each["verdict"] for each in lines} == {"new"}

    def test_the_recorded_ones_can_be_read(self) -> None:
        recorded = guard.read(guard.RECORD)
        assert recorded
        rows = {name for section in recorded.values() for name in section}
        cases = {name.split(": ")[1] for name in rows if not name.startswith("char LSTM")}
        assert cases <= {case.id for case in CASES if "quick" in case.runs}

    @pytest.mark.parametrize(
        "content", ["[avx2", "[avx2]\na = 'b'\n", "[avx2]\na = -1\n", "a = 1\n"]
    )
    def test_not_a_record(self, tmp_path: Path, content: str) -> None:
        path = tmp_path / "ratios.toml"
        path.write_text(content)
        with pytest.raises(ValueError, match=r"ratios\.toml"):
            guard.read(path)

    def test_no_kernel_in_it(self, tmp_path: Path) -> None:
        path = tmp_path / "results.json"
        path.write_text(json.dumps(made_up([row(STEP, "step from Python", "naive")])))
        with pytest.raises(ValueError, match="no kernel was measured"):
            guard.main([str(path)])
