"""``fusedrnn bench``: measure, show, and write a report; or compare two results."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Any

from fusedrnn.errors import MissingExtraError, UnsupportedError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fusedrnn.bench.session import Selection
    from fusedrnn.report.results import Group, Results, Row

__all__ = ["run"]

#: What the extra ``bench`` brings, as modules.
PACKAGES = (
    "numba",
    "pytest",
    "pytest_benchmark",
    "matplotlib",
    "jinja2",
    "rich",
    "safetensors",
    "threadpoolctl",
    "cpuinfo",
)

INTERRUPTED = 130

#: Of fewer, a percentile of 99.9 would not tell anything.
LEAST_STEPS = 1000


def run(args: argparse.Namespace) -> int:
    """Do what ``fusedrnn bench`` was asked for.

    Parameters
    ----------
    args
        ``quick``, ``peers``, ``long`` and ``latency`` (bools), ``report`` (a folder or None), ``json`` (a file or
        None), ``isa`` (a name or None), ``threads`` and ``steps`` (ints or None), ``cases`` (a pattern or None),
        ``compare`` (two files or None).

    Returns
    -------
    int
        The exit status: 0; 1 if something could not be measured; 130 after Ctrl-C.

    Raises
    ------
    ValueError
        For a file or folder that cannot be read or written: found before anything is measured.
    RuntimeError
        If nothing could be measured, or the measurement broke off.
    BrokenPipeError
        If the reader of the output went away; nothing is written then.
    MissingExtraError
        If a package of the extra is not installed.
    """
    for package in PACKAGES:
        if find_spec(package) is None:
            raise MissingExtraError(package, "bench", "fusedrnn bench")
    from fusedrnn.bench.console import console as make_console

    # Where nobody sees a terminal, tables are as wide as these are.
    console = make_console(width=None if sys.stdout.isatty() or not args.peers else 120)
    if args.compare:
        if any(value for name, value in vars(args).items() if name not in ("compare", "run")):
            raise ValueError("--compare measures nothing: it takes no other option")
        old, new = map(Path, args.compare)
        _show_comparison(console, old, new)
        return 0

    report = Path(args.report) if args.report else None
    file = Path(args.json) if args.json else None
    if report:
        _make_folder("--report", report)
        _writable_folder("--report", report)
    if file:
        if file.is_dir():
            raise ValueError(f"--json: {file} is a folder")
        if file.is_file() or not file.exists():  # a pipe or device is not replaced
            _writable_folder("--json", Path(os.path.realpath(file)).parent)
    libraries = _libraries(console) if args.peers else None
    try:
        results = _measured(console, _selection(args, libraries), args)
    except KeyboardInterrupt:  # outside pytest, which has its own way to say so
        results = None
    if results is None:
        console.print("interrupted: nothing was written")
        return INTERRUPTED
    _show_results(console, results)
    try:
        _write(console, results, report, file)
    except KeyboardInterrupt:
        console.print("interrupted")
        return INTERRUPTED
    return 1 if results["fusedrnn"]["failures"] else 0


# ---- measuring -----------------------------------------------------------------------------------


def _libraries(console: Console) -> tuple[str, ...]:
    """The other libraries that are installed; of the rest it is said that they are left out."""
    from fusedrnn.bench.peers import LIBRARIES, installed, missing
    from fusedrnn.report.results import LABELS

    found = tuple(installed())
    if not found:
        module, extra = next((modules[0], extra) for modules, extra in LIBRARIES.values())
        raise MissingExtraError(module, "peers,torch", "fusedrnn bench --peers")
    for library, (_, extra) in LIBRARIES.items():
        if library not in found:
            console.print(
                f"{LABELS[library]} is left out, because {missing(library)!r} is not installed: "
                f"pip install 'fusedrnn[{extra}]'",
                markup=False,
                soft_wrap=True,
            )
    return found


def _selection(args: argparse.Namespace, libraries: tuple[str, ...] | None) -> Selection:
    """What is to be measured, of the list of cases."""
    from fusedrnn.bench.cases import CASES, matches
    from fusedrnn.bench.session import Selection
    from fusedrnn.engines.native import isas

    cores = len(os.sched_getaffinity(0))
    threads = args.threads
    if threads is None:
        # Beside others, what a second thread brings is part of the answer.
        threads = min(2, cores) if args.peers else 1
    if threads < 1:
        raise ValueError(f"--threads must be at least 1, got {threads}")
    if threads > cores:
        raise ValueError(
            f"--threads must be at most {cores}, the cores of this machine, got {threads}"
        )
    if args.steps is not None and not (args.latency or args.peers):
        raise ValueError("--steps is about --latency: it goes with that, or with --peers")
    if args.steps is not None and args.steps < LEAST_STEPS:
        raise ValueError(f"--steps must be at least {LEAST_STEPS}, got {args.steps}")
    if args.latency and (args.cases is not None or args.long or args.threads):
        raise ValueError(
            "--latency has its own sizes: it takes neither --cases nor --long nor --threads"
        )
    if args.isa is not None and args.isa not in isas():
        raise UnsupportedError(
            f"--isa must be one of {', '.join(isas())} on this machine, got {args.isa!r}"
        )
    if args.cases is not None and not any(matches(case.id, args.cases) for case in CASES):
        raise ValueError(
            f"--cases: no case is called {args.cases!r}; their names are like {CASES[0].id}, and * and ? stand for "
            "the rest"
        )
    return Selection(args.quick, libraries, args.long, args.cases, threads if threads > 1 else None)


def _measured(
    console: Console, selection: Selection, args: argparse.Namespace
) -> dict[str, Any] | None:
    """The JSON of a benchmark session; None after Ctrl-C."""
    changes = {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_ADDOPTS": None,
        "PYTEST_PLUGINS": None,
    }
    if args.isa:
        changes["FUSEDRNN_ISA"] = args.isa
    everything = not (args.latency or args.cases)
    # Numba and the layers read the instruction set when they are first used: not before this.
    with _environment(changes):
        results = _nothing(selection) if args.latency else _session(console, selection)
        if results is None:
            return None
        if args.latency or (args.peers and everything):
            results["fusedrnn"]["latency"] = _latency(console, selection, args.steps, results)
        if everything and not args.quick:
            results["fusedrnn"]["compile"] = _compile(console, results["fusedrnn"]["failures"])
    if not (results["benchmarks"] or results["fusedrnn"]["latency"]["rows"]):
        raise RuntimeError(_reasons(results["fusedrnn"]["failures"]))
    return results


def _nothing(selection: Selection) -> dict[str, Any]:
    """A result without rows."""
    from fusedrnn.bench.session import about

    return {"benchmarks": [], "fusedrnn": about(selection, {})}


def _reasons(failures: dict[str, str]) -> str:
    return "nothing was measured: " + "; ".join(f"{name}: {why}" for name, why in failures.items())


def _latency(
    console: Console, selection: Selection, steps: int | None, results: dict[str, Any]
) -> dict[str, Any]:
    """The distribution of single steps."""
    from fusedrnn.bench import latency

    usual = latency.QUICK_STEPS if selection.quick else latency.STEPS
    failures = results["fusedrnn"]["failures"]
    return latency.measure(selection.engines, steps or usual, failures, console.print)


def _compile(console: Console, failures: dict[str, str]) -> dict[str, dict[str, float]]:
    """What Numba takes to compile each kernel."""
    from fusedrnn.bench.compile_time import compile_seconds
    from fusedrnn.cells import CELLS

    found = {}
    for cell in CELLS:
        console.print(f"compiling the Numba kernel of {cell}")
        try:
            found[cell] = compile_seconds(cell)
        except RuntimeError as error:
            failures[f"compile[{cell}]"] = str(error)
    return found


def _session(console: Console, selection: Selection) -> dict[str, Any] | None:
    """The JSON of pytest's session."""
    import pytest

    progress = _Progress(console)
    with (
        tempfile.TemporaryDirectory(prefix="fusedrnn-bench-") as folder,
        progress.listening(),
        progress.bar,
    ):
        from fusedrnn.bench.session import Session

        session = Session(selection, progress.started, progress.finished)
        output = Path(folder, "results.json")
        here = str(Path(__file__).parent)
        # Nobody's pytest.ini and plugins, and no terminal report: this command has its own.
        options = [here, f"--rootdir={here}", f"--config-file={os.devnull}", "--capture=no"]
        options += ["--import-mode=importlib", "-pno:terminal", "-pno:cacheprovider"]
        options += ["-ppytest_benchmark.plugin", "--benchmark-quiet", f"--benchmark-json={output}"]
        # Where pytest-benchmark would keep results, and makes a folder even if there are none.
        options += [f"--benchmark-storage=file://{folder}"]
        status = pytest.main(options, plugins=[session])
        if progress.reader_gone:
            raise BrokenPipeError
        if status == pytest.ExitCode.INTERRUPTED:
            return None
        ended = status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        if not (ended and progress.complete):
            raise RuntimeError(f"the measurement broke off: pytest ended with {status!r}")
        # pytest-benchmark writes no file if there is nothing to write.
        if output.exists():
            results: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
            if results["benchmarks"]:
                return results
        raise RuntimeError(_reasons(session.failures))


@contextmanager
def _environment(changes: dict[str, str | None]) -> Iterator[None]:
    """Environment variables set, or with None unset, for a while."""
    before = {name: os.environ.get(name) for name in changes}

    def apply(values: dict[str, str | None]) -> None:
        for name, value in values.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    apply(changes)
    try:
        yield
    finally:
        apply(before)


class _Progress:
    """A bar on a terminal; elsewhere a line for each pass. Both say how long it will go on."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self._console = console
        self._tests = self._done = 0
        # No refreshing in the background: a second thread would take part in the measurement.
        self.bar = Progress(
            TextColumn("measuring"),
            BarColumn(),
            TextColumn("{task.description}"),
            console=console,
            auto_refresh=False,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self.bar.add_task("", total=1.0)
        self._pass = -1
        self._start = monotonic()
        #: Whether a line could not be printed because nobody reads them any more.
        self.reader_gone = False
        #: Whether there was a Ctrl-C.
        self.interrupted = False

    @property
    def complete(self) -> bool:
        """Whether every test has run."""
        return 0 < self._tests == self._done

    def started(self, tests: int, seconds: float) -> None:
        """Called once, with the number of tests and the seconds that they may take."""
        self._tests = tests
        self._start = monotonic()
        self._print(f"{tests} measurements, {_about(seconds)}")

    def finished(self, turn: int, done: float) -> None:
        """Called after each test, with the part of all of them that is done."""
        self._done += 1
        left = _about((monotonic() - self._start) * (1 / done - 1))
        self.bar.update(self._task, completed=done, description=f"{left} left")
        self.bar.refresh()
        if turn != self._pass and not self._console.is_terminal:
            self._pass = turn
            self._print(f"pass {turn + 1}: {self._done - 1} of {self._tests} done, {left} left")
        if self.reader_gone or self.interrupted:
            # What else is raised here is a fault to pytest, with a traceback; this ends it.
            raise KeyboardInterrupt

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Remember a Ctrl-C: LLVM, while Numba compiles, calls back into Python and swallows what is raised there."""

        def remember(number: int, frame: FrameType | None) -> None:
            self.interrupted = True
            signal.default_int_handler(number, frame)

        if threading.current_thread() is not threading.main_thread():  # where no signal arrives
            yield
            return
        before = signal.signal(signal.SIGINT, remember)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _print(self, line: str) -> None:
        try:
            self._console.print(line)
        except BrokenPipeError:
            self.reader_gone = True


def _about(seconds: float) -> str:
    """A time that nobody knows exactly."""
    if seconds < 100:
        return f"about {max(1, round(seconds))} s"
    return f"about {seconds / 60:.0f} min" if seconds < 6000 else f"about {seconds / 3600:.1f} h"


# ---- writing -------------------------------------------------------------------------------------


def _make_folder(option: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{option}: cannot write to {folder}: {error.strerror}") from error


def _writable_folder(option: str, folder: Path) -> None:
    """Try to write into the folder, while nothing has been measured yet."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{option}: cannot write to {folder}: {error.strerror}") from error


def _write(
    console: Console, results: dict[str, Any], report: Path | None, file: Path | None
) -> None:
    from fusedrnn.files import write_file
    from fusedrnn.report import render

    if file:
        write_file(file, (json.dumps(results, indent=1) + "\n").encode())
        console.print(f"results: {file}", soft_wrap=True)
    if report:
        for name, content in render(results).items():
            write_file(report / name, content)
        console.print(f"report: {report / 'index.html'}", soft_wrap=True)


# ---- showing -------------------------------------------------------------------------------------


def _show_results(console: Console, results: dict[str, Any]) -> None:
    from rich.table import Table

    from fusedrnn.report.results import BASELINE, GROUPS, NOT_SLOWER, PLAIN, SHORT, parse
    from fusedrnn.report.text import duration, error, ratio

    parsed = parse(results)
    facts = parsed.environment
    console.print(f"{facts['cpu']}, {facts['isa']}, {parsed.passes} passes\n")
    for group in GROUPS:
        rows = parsed.in_group(group.name)
        if not rows:
            continue
        if parsed.libraries:
            console.print(_beside_libraries(parsed, group, rows), "")
            continue
        engines = [name for name in parsed.engines if any(name in row.measures for row in rows)]
        table = Table(title=group.title, title_justify="left", title_style="bold", box=None)
        table.add_column(PLAIN)
        network = PLAIN
        for engine in engines:
            table.add_column(SHORT[engine], justify="right", no_wrap=True)
            table.add_column("IQR", justify="right", no_wrap=True)
            if engine != BASELINE:
                table.add_column("gain", justify="right", no_wrap=True)
        for row in rows:
            if row.network != network:
                network = row.network
                table.add_row(f"[bold]{network}[/bold]")
            cells = [row.title]
            for engine in engines:
                measure = row.measures.get(engine)
                cells += (
                    [duration(measure.median), f"{measure.spread:.0%}"] if measure else ["", ""]
                )
                if engine != BASELINE:
                    cells.append(ratio(row.speedup(engine)))
            table.add_row(*cells)
        worst = max(measure.error for row in rows for measure in row.measures.values())
        console.print(table, f"max error against float64: {error(worst)}", "")
    if parsed.latencies:
        console.print(_latency_table(parsed), "")
    if not parsed.rows:
        console.print(f"Reading the clock takes {duration(parsed.clock)}, which is in each time.")
    elif parsed.libraries:
        console.print(
            "Medians of C, and how many times as long the others take, pass by pass, with quartiles; below "
            f"{NOT_SLOWER} it is C that is slower."
        )
    else:
        console.print(
            "Medians. IQR: the middle half of the rounds, in percent of the median; gain: over naive NumPy."
        )
    if facts["busy"]:
        console.print(
            f"The machine was busy (load {facts['load']:.2f} at the start): an idle one is faster."
        )
    for reason, names in parsed.reasons.items():
        console.print(f"not measured: {', '.join(names)}: {reason}", markup=False, soft_wrap=True)


def _beside_libraries(results: Results, group: Group, rows: list[Row]) -> Table:
    """Our time, and the ratio of every other engine to it."""
    from rich.table import Table

    from fusedrnn.report.results import OURS, PLAIN, SHORT
    from fusedrnn.report.text import duration, error, quartiles

    colours = {"faster": "green", "even": "default", "slower": "bold red"}
    others = [
        name
        for name in results.engines
        if name != OURS and any(name in row.measures for row in rows)
    ]
    table = Table(title=group.title, title_justify="left", title_style="bold", box=None)
    table.add_column(PLAIN)
    table.add_column(SHORT[OURS], justify="right", no_wrap=True)
    table.add_column("error", justify="right", no_wrap=True)
    for name in others:
        table.add_column(SHORT[name], justify="right", no_wrap=True)
    network = PLAIN
    for row in rows:
        if row.network != network:
            network = row.network
            table.add_row(f"[bold]{network}[/bold]")
        ours = row.measures.get(OURS)
        cells = [row.title, *((duration(ours.median), error(ours.error)) if ours else ("", ""))]
        for name in others:
            against = row.ratio(name)
            colour = colours[against.verdict] if against else "default"
            cells.append(f"[{colour}]{quartiles(against)}[/{colour}]" if against else "-")
        table.add_row(*cells)
    return table


def _latency_table(results: Results) -> Table:
    """Percentiles of single steps."""
    from rich.table import Table

    from fusedrnn.report.results import LABELS
    from fusedrnn.report.text import duration, error

    table = Table(
        title="How long single steps take", title_justify="left", title_style="bold", box=None
    )
    table.add_column("LSTM")
    table.add_column("")
    for name in ("steps", *results.latencies[0].percentiles, "error"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in results.latencies:
        times = [duration(seconds) for seconds in each.percentiles.values()]
        name = LABELS[each.engine]
        table.add_row(f"H=X={each.hidden}", name, f"{each.steps:,}", *times, error(each.error))
    return table


def _show_comparison(console: Console, old: Path, new: Path) -> None:
    from rich.table import Table

    from fusedrnn.report import compare, load
    from fusedrnn.report.results import PLAIN
    from fusedrnn.report.text import duration, ratio

    results = {"old": load(old), "new": load(new)}
    for fact in ("cpu", "isa"):
        values = [each["fusedrnn"]["environment"][fact] for each in results.values()]
        if values[0] != values[1]:
            console.print(f"Not alike: {fact} was {values[0]} and is {values[1]}.")
    changes = compare(results["old"], results["new"])
    for group in dict.fromkeys(change.group for change in changes):
        table = Table(title=group, title_justify="left", title_style="bold", box=None)
        network = PLAIN
        table.add_column(PLAIN, no_wrap=True)
        table.add_column("engine", no_wrap=True)
        for name in ("old", "new", "old / new"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("verdict", no_wrap=True)
        for change in changes:
            if change.group == group:
                times = [duration(each.median) if each else "" for each in (change.old, change.new)]
                quotient = ratio(change.ratio) if change.ratio else ""
                if change.network != network:
                    network = change.network
                    table.add_row(f"[bold]{network}[/bold]")
                table.add_row(change.title, change.engine, *times, quotient, change.verdict)
        console.print(table, "")
    console.print(
        "Medians; old / new above 1 is faster now. Within noise: the middle halves of the rounds overlap."
    )


if __name__ == "__main__":
    sys.exit("run this as: fusedrnn bench")
