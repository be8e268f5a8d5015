"""From a benchmark JSON to a comparison and a report; the JSON is that of a real, tiny run."""

from __future__ import annotations

import copy
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from html.parser import HTMLParser
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from benchmarking import bench

from fusedrnn.bench import run as verbs
from fusedrnn.bench.environment import commit
from fusedrnn.bench.measure import limits
from fusedrnn.bench.outputs import Outputs
from fusedrnn.bench.progress import Progress
from fusedrnn.files import write_file
from fusedrnn.report import compare, load, parse, render
from fusedrnn.report.compare import verdict
from fusedrnn.report.console import make_console, show_results
from fusedrnn.report.engines import ENGINES, LIBRARIES
from fusedrnn.report.groups import GROUPS as ALL_GROUPS
from fusedrnn.report.groups import TRAINING
from fusedrnn.report.plots import available_plots
from fusedrnn.report.results import Measure
from fusedrnn.report.text import duration, error, ratio, share, size, span

#: What is measured without other libraries and several threads.
GROUPS = [group for group in ALL_GROUPS if group.name not in ("threads", *TRAINING)]
OWN = [name for name in ENGINES if name not in LIBRARIES]
PLOTS_HERE = ["speedup", "networks", "step-time", *(["roofline"] if limits() else [])]


def foreign_checkout(folder: Path) -> None:
    """Make the folder somebody else's repository, with a commit of its own, if there is git."""
    if shutil.which("git"):
        who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
        for arguments in (["init", "--quiet"], [*who, "commit", "--quiet", "--allow-empty", "-mx"]):
            subprocess.run(["git", *arguments], cwd=folder, check=True)


def from_process(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fusedrnn", "bench", *command],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
        **options,
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One shape of each kind, measured as anybody would who has pytest and the installed package."""
    folder = tmp_path_factory.mktemp("results")
    foreign_checkout(folder)
    command = [sys.executable, "-m", "pytest", "-q", "-ppytest_benchmark.plugin"]
    command += ["-pno:cacheprovider", "--pyargs", "fusedrnn.bench", "--benchmark-json=out.json"]
    shapes = "X32-H32 or X65-H200 and step or X40-H96 and batch or gru and ragged or beginning"
    shapes += " or streams-T1-B4"
    family = "(lstm-T or before or clockwork) and (X64-H64 and step or X128-H128 and T50)"
    command += ["-k", f"{shapes} or {family}"]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "80"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return load(folder / "out.json")


@pytest.fixture(scope="module")
def files(results: dict[str, Any]) -> dict[str, bytes]:
    """The report of that run."""
    return render(results)


class Page(HTMLParser):
    """Checks that elements are closed in order, and keeps what a test asks about."""

    VOID = frozenset({"meta", "link", "br", "hr", "img", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def cells(row: str) -> int:
    """How many columns a row of an HTML table has."""
    tags = re.findall(r"<t[hd]\b[^>]*>", row)
    spans = [re.search(r'colspan="(\d+)"', tag) for tag in tags]
    return sum(int(span[1]) if span else 1 for span in spans)


class TestResults:
    def test_every_row_and_engine(self, results: dict[str, Any]) -> None:
        parsed = parse(results)
        assert parsed.engines == OWN
        assert parsed.failures == {}
        for group in GROUPS:
            assert parsed.in_group(group.name), group.name
        for row in parsed.rows:
            expected = set(OWN) - ({"naive"} if "kernel" in row.group else set())
            assert set(row.measures) == expected
            assert row.speedup("c") is not None
            for measure in row.measures.values():
                assert 0 < measure.q1 <= measure.median <= measure.q3
                assert measure.rounds >= parsed.passes
                assert measure.error <= 1e-5
                assert measure.flops > 0

    def test_every_network_stands_together(self, results: dict[str, Any]) -> None:
        parsed = parse(results)
        for group in GROUPS:
            networks = [row.network for row in parsed.in_group(group.name)]
            assert len([*groupby(networks)]) == len(set(networks))
            plain = [row.plain for row in parsed.in_group(group.name)]
            assert group.name == "ragged" or any(plain)
        assert len({row.network for row in parsed.rows}) == 4

    @pytest.mark.skipif(limits() is None, reason="the limits of this machine cannot be measured")
    def test_how_much_of_the_limit_was_reached(self, results: dict[str, Any]) -> None:
        parsed = parse(results)
        assert parsed.limits is not None
        for row in parsed.rows:
            for engine, measure in row.measures.items():
                known = engine != "naive" and row.group != "ragged"
                assert (measure.floor is not None) == known, (row, engine)
                assert (measure.reached is not None) == known
                # The limits may have been measured while the machine was slower.
                assert measure.reached is None or 0 < measure.reached < 2

    @pytest.mark.parametrize(
        ("place", "value"),
        [
            (("benchmarks", 0, "stats", "median"), 10**400),
            (("benchmarks", 0, "stats", "median"), 0),
            (("benchmarks", 0, "stats", "q1"), -1.0),
            (("benchmarks", 0, "stats", "q3"), float("inf")),
            (("benchmarks", 0, "extra_info", "flops"), float("nan")),
            (("benchmarks", 0, "extra_info", "passes"), [0.0]),
            (("benchmarks", 0, "extra_info", "options"), [1]),
            (("benchmarks", 0, "group"), "nosuch"),
            (("fusedrnn", "schema"), 0),
            (("fusedrnn", "passes"), float("inf")),
            (("fusedrnn", "failures"), 3),
        ],
        ids=lambda value: str(value)[:20],
    )
    def test_a_number_that_is_none_is_one_line(
        self,
        results: dict[str, Any],
        place: tuple[Any, ...],
        value: Any,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        wrong = copy.deepcopy(results)
        inner = wrong
        for key in place[:-1]:
            inner = inner[key]
        assert place[-1] in inner
        inner[place[-1]] = value
        path = tmp_path / "wrong.json"
        path.write_text(json.dumps(wrong))
        assert bench("diff", path, path) == 2
        said = capsys.readouterr().err
        assert "wrong.json" in said
        assert said.count("\n") == 1

    def test_text_of_others_is_no_markup(
        self, results: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        odd = copy.deepcopy(results)
        for benchmark in odd["benchmarks"]:
            benchmark["extra_info"].update(network="[/bold]LSTM", title="[red]H=1")
        odd["fusedrnn"]["environment"]["cpu"] = "[/]"
        path = tmp_path / "odd.json"
        path.write_text(json.dumps(odd))
        assert bench("diff", path, path) == 0
        show_results(make_console(), parse(odd))
        said = capsys.readouterr().out
        assert "[/bold]LSTM" in said and "[red]H=1" in said

    def test_names_no_host_no_user_and_no_path(self, results: dict[str, Any]) -> None:
        assert "node" not in results["machine_info"]
        text = json.dumps(results)
        assert platform.node() not in re.findall(r"[\w.-]+", text)
        assert str(Path(__file__).parents[2]) not in text
        assert str(Path.home()) + "/" not in text

    def test_the_commit_is_that_of_fusedrnn(self, results: dict[str, Any]) -> None:
        # The run was started in a repository of somebody else's.
        assert results["commit_info"] == commit()
        assert results["fusedrnn"]["environment"]["commit"] == commit()

    def test_says_how_many_threads_blas_had(self, results: dict[str, Any]) -> None:
        threads = [each["num_threads"] for each in results["fusedrnn"]["environment"]["blas"]]
        assert set(threads) == {1}

    def test_read_by_pytest_benchmark(self, results: dict[str, Any], tmp_path: Path) -> None:
        path = tmp_path / "0001_results.json"
        path.write_text(json.dumps(results))
        command = [sys.executable, "-m", "pytest_benchmark", "compare", str(path)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "test_sequence" in done.stdout

    def test_kernel_times_are_of_one_step(self, results: dict[str, Any]) -> None:
        for benchmark in results["benchmarks"]:
            assert benchmark["stats"]["iterations"] == benchmark["extra_info"]["repeats"]
            assert benchmark["options"]["disable_gc"]


class TestReport:
    def test_page_stands_alone(self, files: dict[str, bytes]) -> None:
        page = Page(files["index.html"].decode())
        for tag, attributes in page.attributes:
            assert tag not in {"script", "link", "img", "iframe"}
            for name in ("src", "href", "xlink:href"):
                target = attributes.get(name) or ""
                assert not target.startswith(("http", "//")), (tag, target)
        tags = [tag for tag, _ in page.attributes]
        assert tags.count("svg") == len(PLOTS_HERE)

    def test_what_is_referred_to_is_there_once(self, files: dict[str, bytes]) -> None:
        text = files["index.html"].decode()
        ids = [attributes.get("id") for _, attributes in Page(text).attributes]
        referred = set(re.findall(r'(?:xlink:href="|url\()#([\w-]+)', text))
        assert referred
        assert {id: ids.count(id) for id in referred} == dict.fromkeys(referred, 1)

    def test_figures_are_in_the_page_and_in_markdown(
        self, results: dict[str, Any], files: dict[str, bytes]
    ) -> None:
        for row in parse(results).rows:
            for engine, measure in row.measures.items():
                for name in ("index.html", "report.md"):
                    text = files[name].decode()
                    assert duration(measure.median) in text
                    assert error(measure.error) in text
                    assert engine == "naive" or ratio(row.speedup(engine)) in text

    def test_c_stands_before_numba(self, files: dict[str, bytes]) -> None:
        # On a small screen the first columns are seen first.
        heads = re.findall(r'<th colspan="\d" class="first (\w+)">', files["index.html"].decode())
        assert len(heads) == 3 * len(GROUPS) - 1
        assert "".join(heads).replace("naive", "") == "cnumba" * len(GROUPS)
        plot = files["speedup.svg"].decode()
        assert plot.rindex("fusedrnn C") < plot.rindex("fusedrnn Numba")

    def test_ranges_are_in_the_unit_of_the_time_above(self, results: dict[str, Any]) -> None:
        odd = copy.deepcopy(results)
        odd["benchmarks"][0]["stats"].update(q1=9.86e-7, median=1.01e-6, q3=1.094e-6)
        text = render(odd)["report.md"].decode().replace("\N{NO-BREAK SPACE}", " ")
        assert "1.01 µs (0.99\N{EN DASH}1.09 µs)" in text

    def test_plots(self, files: dict[str, bytes]) -> None:
        for name in PLOTS_HERE:
            assert files[f"{name}.png"].startswith(b"\x89PNG")
            assert b"<svg" in files[f"{name}.svg"]

    def test_networks_head_their_rows(
        self, results: dict[str, Any], files: dict[str, bytes]
    ) -> None:
        page, text = files["index.html"].decode(), files["report.md"].decode()
        parsed = parse(results)
        heads = re.findall(r'class="network"><th [^>]*><span>([^<]*)</span>', page)
        expected = []
        for group in GROUPS:
            names = list(dict.fromkeys(row.network for row in parsed.in_group(group.name)))
            expected += names if len(names) > 1 else []
        assert heads == expected
        for name in set(expected):
            assert re.search(rf"^\| {re.escape(name)} \| \w", text, re.MULTILINE)

    def test_every_row_is_as_wide_as_its_table(self, files: dict[str, bytes]) -> None:
        # As a browser counts it: one for each cell, or what its colspan says.
        page = files["index.html"].decode()
        tables = re.findall(r'<div class="scroll"[^>]*>\s*<table>(.*?)</table>', page, re.DOTALL)
        assert len(tables) == len(GROUPS)
        for table in tables:
            first, second, *rows = re.findall(r"<tr.*?</tr>", table, re.DOTALL)
            widths = {cells(row) for row in rows}
            # The second line of the head stands beside "shape", which reaches over both.
            assert widths == {cells(first)} == {cells(second) + 1}

    def test_cells_are_compared_in_one_shape(
        self, results: dict[str, Any], files: dict[str, bytes]
    ) -> None:
        plot = files["networks.svg"].decode()
        assert "One step, called from Python: H=X=64" in plot
        assert "A batch of sequences: H=X=128, T=50, B=16" in plot
        for name in {row.network for row in parse(results).in_group("batch")}:
            assert name in plot
        assert "H=X=32" not in plot
        other = files["speedup.svg"].decode()
        assert "GRU" not in other
        assert "H=X=32" in other

    def test_markdown_tables_are_rectangular(self, files: dict[str, bytes]) -> None:
        widths = set()
        for line in [*files["report.md"].decode().splitlines(), ""]:
            if line.startswith("|"):
                widths.add(line.count("|"))
            else:
                assert len(widths) <= 1
                widths = set()

    def test_what_could_not_be_measured_is_said(self, results: dict[str, Any]) -> None:
        lame = copy.deepcopy(results)
        lame["benchmarks"] = [
            each for each in lame["benchmarks"] if each["extra_info"]["engine"] != "numba"
        ]
        lame["fusedrnn"]["failures"] = {"test_sequence[<numba>]": "no numba & no luck"}
        files = render(lame)
        assert "&lt;numba&gt;" in files["index.html"].decode()
        assert "no numba &amp; no luck" in files["index.html"].decode()
        assert "no numba & no luck" in files["report.md"].decode()

    def test_one_row_lacks_an_engine(self, results: dict[str, Any]) -> None:
        lame = copy.deepcopy(results)
        left_out = {"lstm-T100-B1-X32-H32-numba", "gru-reset-before-T50-B16-X128-H128-naive"}
        lame["benchmarks"] = [each for each in lame["benchmarks"] if each["param"] not in left_out]
        assert len(lame["benchmarks"]) == len(results["benchmarks"]) - 2
        files = render(lame)
        Page(files["index.html"].decode())
        assert "not measured" in files["report.md"].decode()

    def test_without_naive_numpy(self, results: dict[str, Any]) -> None:
        lame = copy.deepcopy(results)
        lame["benchmarks"] = [
            each for each in lame["benchmarks"] if each["extra_info"]["engine"] == "c"
        ]
        Page(render(lame)["index.html"].decode())


def measure(median: float, iqr: float = 0.1) -> Measure:
    return Measure(median, median - iqr / 2, median + iqr / 2, 10, 1.0, 0.0, 0.0, None)


class TestCompare:
    def test_verdicts(self) -> None:
        assert verdict(measure(1.0), measure(1.05)) == "within noise"
        assert verdict(measure(1.0), measure(1.2)) == "slower"
        assert verdict(measure(1.2), measure(1.0)) == "faster"
        assert verdict(measure(1.0, iqr=1.0), measure(1.5, iqr=1.0)) == "within noise"
        assert verdict(None, measure(1.0)) == "only in new"
        assert verdict(measure(1.0), None) == "only in old"

    def test_with_itself(self, results: dict[str, Any]) -> None:
        changes = compare(results, results)
        assert len(changes) == len(results["benchmarks"])
        assert {change.verdict for change in changes} == {"within noise"}
        assert {change.ratio for change in changes} == {1.0}

    def test_command(
        self, results: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        new = copy.deepcopy(results)
        first, second, gone = new["benchmarks"][:3]
        for name in ("median", "q1", "q3"):
            first["stats"][name] *= 10
            second["stats"][name] /= 10
        new["benchmarks"].remove(gone)
        new["fusedrnn"]["environment"]["isa"] = "other"
        paths = [tmp_path / "old.json", tmp_path / "new.json"]
        for path, content in zip(paths, (results, new), strict=True):
            path.write_text(json.dumps(content))
        assert bench("diff", *paths) == 0
        said = capsys.readouterr().out
        for verdict_ in ("slower", "faster", "only in old", "within noise"):
            assert verdict_ in said
        assert "isa was" in said

    def test_in_ascii(self, results: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text(json.dumps(results))
        done = from_process(
            *("diff", "a.json", "a.json"),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
        )
        assert done.returncode == 0, done.stderr
        assert re.search(r"\d us .* 1\.00x ", done.stdout)

    def test_a_reader_that_goes_away_is_no_error(
        self, results: dict[str, Any], tmp_path: Path
    ) -> None:
        (tmp_path / "a.json").write_text(json.dumps(results))
        reading, writing = os.pipe()
        os.close(reading)
        done = from_process("diff", "a.json", "a.json", cwd=tmp_path, stdout=writing)
        os.close(writing)
        assert (done.returncode, done.stderr) == (141, "")


class TestRun:
    def test_writes_everything(
        self,
        results: dict[str, Any],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr("fusedrnn.bench.run._measured", lambda *_, **__: results)
        folder = tmp_path / "new" / "report"
        assert bench("run", "--report", folder, "--json", tmp_path / "results.json") == 0
        assert {path.name for path in folder.iterdir()} == set(render(results))
        assert json.loads((tmp_path / "results.json").read_text()) == results
        assert load(folder / "results.json") == results
        said = capsys.readouterr().out
        assert "One sequence" in said
        assert "max error against float64" in said

    def test_failures_are_a_failure(
        self,
        results: dict[str, Any],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        lame = copy.deepcopy(results)
        lame["fusedrnn"]["failures"] = {"test_sequence[numba]": "[no luck]"}
        monkeypatch.setattr("fusedrnn.bench.run._measured", lambda *_, **__: lame)
        assert bench("run") == 1
        assert "not measured: test_sequence[numba]: [no luck]" in capsys.readouterr().out

    def test_one_pass_for_real(self, tmp_path: Path) -> None:
        code = (
            "import sys\n"
            "import fusedrnn.bench.session as session\n"
            "from fusedrnn.cli import main\n"
            "session.QUICK_PASSES = 1\n"
            "sys.exit(main('bench run --quick --isa baseline --report report'.split()))"
        )
        # Somebody's pytest settings have no say.
        (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
        environment = {**os.environ, "PYTEST_ADDOPTS": "--no-such-option"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        written = load(tmp_path / "report" / "results.json")
        parsed = parse(written)
        assert parsed.quick
        assert parsed.passes == 1
        assert {m.isa for row in parsed.rows for m in row.measures.values()} == {None, "baseline"}
        page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
        assert "fusedrnn bench run --quick" in page
        assert {path.name for path in tmp_path.iterdir()} == {"pytest.ini", "report"}

    @pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
    def test_a_reader_that_goes_away_ends_it(self, tmp_path: Path, encoding: str) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = from_process(
            *("run", "--quick", "--json", "new.json"), cwd=tmp_path, stdout=writing, env=environment
        )
        os.close(writing)
        assert (done.returncode, done.stderr) == (141, "")
        assert list(tmp_path.iterdir()) == []

    def test_an_engine_that_fails_is_named_once_a_row(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "pytest", "-q", "-ppytest_benchmark.plugin"]
        command += ["-pno:cacheprovider", "--pyargs", "fusedrnn.bench", "--benchmark-json=out.json"]
        command += ["-k", "X32-H32 or beginning"]
        environment = {
            **os.environ,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "NUMBA_DISABLE_JIT": "1",
        }
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1, done.stdout + done.stderr
        written = load(tmp_path / "out.json")
        failures = written["fusedrnn"]["failures"]
        assert list(failures) == [
            "test_step_from_python[lstm-T1-B1-X32-H32-numba]",
            "test_step_kernel[lstm-T1-B1-X32-H32-numba]",
            "test_call[lstm-call-T1-B1-X32-H32-numba]",
            "test_sequence[lstm-T100-B1-X32-H32-numba]",
            "test_acts[beginning-numba]",
        ]
        assert all("NUMBA_DISABLE_JIT" in reason for reason in failures.values())
        assert parse(written).engines == ["naive", "c"]

    @pytest.mark.parametrize("status", [pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.OK])
    def test_an_incomplete_session_is_no_result(
        self,
        results: dict[str, Any],
        status: pytest.ExitCode,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        def session(options: list[str], **_: object) -> pytest.ExitCode:
            (output,) = (each for each in options if each.startswith("--benchmark-json="))
            Path(output.partition("=")[2]).write_text(json.dumps(results))
            return status

        monkeypatch.setattr("pytest.main", session)
        with pytest.raises(RuntimeError, match="the measurement broke off"):
            verbs.run(outputs=Outputs(json=tmp_path / "new.json"))
        assert list(tmp_path.iterdir()) == []

    def test_interrupt_leaves_nothing(self, tmp_path: Path) -> None:
        # A shell starts its background jobs deaf to Ctrl-C, and this suite may be one.
        code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        code += "from fusedrnn.cli import main; sys.exit(main())"
        command = [sys.executable, "-u", "-c", code, "bench", "run", "--report", "report"]
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert re.match(r"\d+ measurements, about \d+ min", process.stdout.readline())
        assert re.match(r"pass 1: 0 of \d+ done, about .* left", process.stdout.readline())
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 130, out + err
        assert "Traceback" not in err
        assert list((tmp_path / "report").iterdir()) == []

    def test_an_interrupt_that_was_swallowed_ends_it_all_the_same(
        self, request: pytest.FixtureRequest
    ) -> None:
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
        progress = Progress(make_console())
        progress.started(2, 1.0)
        with progress.listening():
            progress.finished(0, 0.5)
            with suppress(KeyboardInterrupt):  # as a callback from C does
                signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                progress.finished(0, 1.0)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_a_failed_write_leaves_the_old_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"old")

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("os.replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_file(path, b"new")
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]


class TestConsole:
    @pytest.mark.parametrize("columns", ["20", "60", "200"])
    def test_nothing_is_lost_on_a_narrow_terminal(
        self,
        results: dict[str, Any],
        columns: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("COLUMNS", columns)
        parsed = parse(results)
        show_results(make_console(), parsed)
        said = capsys.readouterr().out
        for row in parsed.rows:
            times = [duration(measure.median) for measure in row.measures.values()]
            assert any(
                line.strip().startswith(f"{row.title} ") and all(time in line for time in times)
                for line in said.splitlines()
            )
        assert "\N{HORIZONTAL ELLIPSIS}" not in said

    def test_rows_stand_under_the_name_of_their_cell(
        self, results: dict[str, Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        only = copy.deepcopy(results)
        only["benchmarks"] = [
            each for each in only["benchmarks"] if each["extra_info"]["cell"] == "clockwork"
        ]
        parsed = parse(only)
        show_results(make_console(), parsed)
        said = capsys.readouterr().out
        assert "LSTM" not in said
        assert "Clockwork RNN 1-2-4-8" in said

    def test_one_cell_alone_has_no_empty_legend(self, results: dict[str, Any]) -> None:
        only = copy.deepcopy(results)
        only["benchmarks"] = [
            each for each in only["benchmarks"] if each["extra_info"]["cell"] == "clockwork"
        ]
        assert not {"speedup", "step-time"} & set(available_plots(parse(only)))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            render(only)


class TestOutputs:
    def test_json_on_standard_output_is_alone_there(
        self, results: dict[str, Any], tmp_path: Path
    ) -> None:
        (tmp_path / "a.json").write_text(json.dumps(results))
        code = (
            "import json, sys\n"
            "from fusedrnn.bench import run as verbs\n"
            "from fusedrnn.cli import main\n"
            "results = json.load(open('a.json'))\n"
            "verbs._measured = lambda *_: results\n"
            "sys.exit(main(['bench', 'run', '--json', '/dev/stdout']))"
        )
        log = tmp_path / "log"
        log.write_text("what was there before\n")
        with log.open("a") as file:
            done = subprocess.run(
                [sys.executable, "-c", code],
                cwd=tmp_path,
                stdout=file,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert done.returncode == 0, done.stderr
        before, _, rest = log.read_text().partition("\n")
        assert before == "what was there before"
        assert json.loads(rest) == results
        assert "One sequence" in done.stderr

    @pytest.mark.parametrize("option", ["--json", "--report"])
    def test_results_are_kept_when_they_cannot_be_written(
        self,
        results: dict[str, Any],
        option: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(verbs, "_measured", lambda *_: results)
        monkeypatch.setattr("fusedrnn.bench.outputs.write_file", full)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "kept"))
        (tmp_path / "kept").mkdir()
        assert bench("run", option, tmp_path / "out") == 2
        said = capsys.readouterr().err
        (kept,) = (tmp_path / "kept").iterdir()
        assert option in said and "No space left on device" in said and str(kept) in said
        assert json.loads(kept.read_text()) == results

    def test_results_are_kept_when_the_report_cannot_be_made(
        self,
        results: dict[str, Any],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def broken(*_: object) -> None:
            raise RuntimeError("no fonts")

        monkeypatch.setattr(verbs, "_measured", lambda *_: results)
        monkeypatch.setattr("fusedrnn.report.render", broken)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        assert bench("run", "--report", tmp_path / "out") == 2
        said = capsys.readouterr().err
        assert "no fonts" in said
        (kept,) = tmp_path.glob("*.json")
        assert str(kept) in said
        assert json.loads(kept.read_text()) == results


class TestText:
    def test_durations(self) -> None:
        assert duration(1.234e-7) == "123\N{NO-BREAK SPACE}ns"
        assert duration(1.234e-6) == "1.23\N{NO-BREAK SPACE}µs"
        assert duration(12.34e-3) == "12.3\N{NO-BREAK SPACE}ms"
        assert duration(123.4) == "123\N{NO-BREAK SPACE}s"
        assert duration(3e-11) == "0.03\N{NO-BREAK SPACE}ns"

    def test_a_span_has_one_unit(self) -> None:
        assert span(9e-7, 1.1e-6, 9.5e-7) == "900\N{EN DASH}1,100\N{NO-BREAK SPACE}ns"
        assert span(9e-7, 1.1e-6, 1e-6) == "0.90\N{EN DASH}1.10\N{NO-BREAK SPACE}µs"

    def test_ratios_and_sizes(self) -> None:
        assert ratio(12.34) == "12.3×"
        assert ratio(None) == "\N{EN DASH}"
        assert share(0.456) == "46\N{NO-BREAK SPACE}%"
        assert share(None) == "\N{EN DASH}"
        assert size(48 * 1024) == "48 KiB"
        assert size(512) == "512 B"
