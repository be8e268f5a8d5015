"""What the verbs of ``fusedrnn bench`` do: measure, show, and write a report; or compare two results."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusedrnn.bench.outputs import NOWHERE, Outputs
from fusedrnn.bench.progress import Progress
from fusedrnn.errors import MissingExtraError, UnsupportedError
from fusedrnn.report.engines import LIBRARIES

if TYPE_CHECKING:
    from rich.console import Console

    from fusedrnn.bench.session import Selection

__all__ = ["diff", "latency", "peers", "run", "stages"]

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
MIN_STEPS = 1000


# ---- the verbs -----------------------------------------------------------------------------------


def run(
    *,
    quick: bool = False,
    long: bool = False,
    cases: str | None = None,
    threads: int | None = None,
    training: bool = False,
    markdown: bool = False,
    isa: str | None = None,
    outputs: Outputs = NOWHERE,
) -> int:
    """Measure our kernels and naive NumPy: ``fusedrnn bench run``.

    Parameters
    ----------
    quick
        Fewer shapes and passes.
    long
        Also shapes that take minutes each.
    cases
        Only cases whose names match; see :func:`~fusedrnn.bench.cases.matches`.
    threads
        Number of threads with which some cases are measured, besides one; None for one only.
    training
        Forward and backward passes alone, with all gradients.
    markdown
        Print the table of ``training`` in Markdown, and everything else to standard error.
    isa
        The instruction set; None for the best one.
    outputs
        Where results are written.

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
    _check_training(training, markdown, {"--long": long})
    console = _prepared("fusedrnn bench run", outputs, progress_only=markdown)
    selection = _selection(quick, None, long, cases, threads, training=training)

    def measure() -> dict[str, Any] | None:
        results = _session(console, selection)
        if results is not None and not (quick or cases or training):
            results["fusedrnn"]["compile"] = _compile(console, results["fusedrnn"]["failures"])
        return results

    return _finished(console, outputs, _measured(isa, measure), markdown=markdown)


def peers(
    *,
    quick: bool = False,
    long: bool = False,
    summary: bool = False,
    cases: str | None = None,
    threads: int | None = None,
    steps: int | None = None,
    training: bool = False,
    markdown: bool = False,
    isa: str | None = None,
    outputs: Outputs = NOWHERE,
) -> int:
    """Measure our kernels and the other libraries that are installed: ``fusedrnn bench peers``.

    Parameters
    ----------
    quick, long, cases, training, markdown, isa, outputs
        As in :func:`run`.
    summary
        Measure a few shapes only, and print one small table in Markdown.
    threads
        As in :func:`run`, but None for two, if there are two cores: what a second thread brings is part of the answer.
    steps
        How many single steps are timed; None for the usual number.

    Returns
    -------
    int
        As in :func:`run`.
    """
    others = {
        "--quick": quick,
        "--long": long,
        "--cases": cases is not None,
        "--threads": threads is not None,
        "--steps": steps is not None,
        "--training": training,
    }
    if summary and any(others.values()):
        given = ", ".join(option for option, is_given in others.items() if is_given)
        raise ValueError(f"--summary has its own shapes and passes: it does not take {given}")
    _check_training(training, markdown, {"--long": long, "--steps": steps is not None})
    _check_steps(steps)
    console = _prepared("fusedrnn bench peers", outputs, progress_only=summary or markdown)
    from fusedrnn.bench.cases import SUMMARY_LIBRARIES
    from fusedrnn.bench.peers import TRAINERS
    from fusedrnn.engines.native import isas
    from fusedrnn.report.console import summary as small_table

    libraries = _libraries(console, TRAINERS if training else LIBRARIES)
    if summary:
        libraries = tuple(name for name in libraries if name in SUMMARY_LIBRARIES)
    elif threads is None:
        threads = min(2, _cores())
    selection = _selection(quick, libraries, long, cases, threads, summary, training)

    def measure() -> dict[str, Any] | None:
        results = _session(console, selection)
        if results is None or summary or cases or training:
            return results
        failures = results["fusedrnn"]["failures"]
        results["fusedrnn"]["latency"] = _latency(console, selection, steps, failures)
        if not quick:
            results["fusedrnn"]["compile"] = _compile(console, failures)
        return results

    results = _measured(isa, measure)
    if summary and results is not None:
        from fusedrnn.report import parse

        # Tables of Markdown are for a file or a page: they alone are on standard output.
        options = f" --isa {isa}" * (isa not in (None, next(iter(isas()))))
        print(small_table(parse(results), f"fusedrnn bench peers --summary{options}"), end="")
    return _finished(console, outputs, results, show=not summary, markdown=markdown)


def latency(
    *,
    versus: bool = False,
    quick: bool = False,
    steps: int | None = None,
    isa: str | None = None,
    outputs: Outputs = NOWHERE,
) -> int:
    """Measure what a call costs above its kernel, and how long each of many single steps takes.

    Parameters
    ----------
    versus
        Also other libraries, as far as they are installed.
    quick
        Fewer steps.
    steps
        How many steps; None for the usual number.
    isa, outputs
        As in :func:`run`.

    Returns
    -------
    int
        As in :func:`run`.
    """
    _check_steps(steps)
    console = _prepared("fusedrnn bench latency", outputs)
    selection = _selection(quick, _libraries(console) if versus else None)

    def measure() -> dict[str, Any]:
        from fusedrnn.bench import overhead
        from fusedrnn.bench.peers import FUSED

        results = _nothing(selection)
        console.print("calls of single steps, and their kernels")
        rounds = overhead.QUICK_ROUNDS if quick else overhead.ROUNDS
        results["fusedrnn"]["overhead"] = overhead.measure(FUSED, rounds)
        failures = results["fusedrnn"]["failures"]
        results["fusedrnn"]["latency"] = _latency(console, selection, steps, failures)
        return results

    return _finished(console, outputs, _measured(isa, measure))


def stages(
    *,
    hidden: Sequence[int] | None = None,
    rounds: int | None = None,
    outputs: Outputs = NOWHERE,
) -> int:
    """Measure an LSTM from naive NumPy to several threads, stage after stage.

    Parameters
    ----------
    hidden
        Sizes; None for the usual ones.
    rounds
        How many rounds of each stage; None for the usual number.
    outputs
        As in :func:`run`.

    Returns
    -------
    int
        As in :func:`run`.
    """
    if rounds is not None and rounds < 1:
        raise ValueError(f"--rounds must be at least 1, got {rounds}")
    if hidden and min(hidden) < 1:
        raise ValueError(f"--hidden must be at least 1, got {min(hidden)}")
    console = _prepared("fusedrnn bench stages", outputs)

    def measure() -> dict[str, Any]:
        from fusedrnn.bench import stages as module

        results = _nothing(_selection(False, None))
        results["fusedrnn"]["stages"] = module.measure(
            hidden or module.HIDDEN, rounds or module.ROUNDS, console.print
        )
        return results

    return _finished(console, outputs, _measured(None, measure))


def diff(old: Path, new: Path) -> int:
    """Show what changed from one result to another: ``fusedrnn bench diff``.

    Parameters
    ----------
    old, new
        Files, as ``--json`` writes them.

    Returns
    -------
    int
        0.

    Raises
    ------
    ValueError
        If one of them is not a result, or there are no rows in it.
    """
    if find_spec("rich") is None:
        raise MissingExtraError("rich", "bench", "fusedrnn bench diff")
    from fusedrnn.report import compare, load
    from fusedrnn.report.console import make_console, show_changes

    console = make_console()
    results = [load(path) for path in (old, new)]
    for path, each in zip((old, new), results, strict=True):
        if not each["benchmarks"]:
            raise ValueError(f"{path}: there are no rows in it to compare")
    for fact in ("cpu", "isa"):
        values = [each["fusedrnn"]["environment"][fact] for each in results]
        if values[0] != values[1]:
            console.print(f"Not alike: {fact} was {values[0]} and is {values[1]}.")
    show_changes(console, compare(*results))
    return 0


# ---- what they share -----------------------------------------------------------------------------


def _prepared(command: str, outputs: Outputs, progress_only: bool = False) -> Console:
    """The console of a verb, after everything that it needs has been found."""
    for package in PACKAGES:
        if find_spec(package) is None:
            raise MissingExtraError(package, "bench", command)
    outputs.check()
    from fusedrnn.report.console import make_console

    return make_console(sys.stderr) if progress_only else outputs.console()


def _finished(
    console: Console,
    outputs: Outputs,
    results: dict[str, Any] | None,
    show: bool = True,
    markdown: bool = False,
) -> int:
    """Show and write results, as tables or as the Markdown of training; the exit status."""
    if results is None:
        console.print("interrupted: nothing was written")
        return INTERRUPTED
    from fusedrnn.report import parse
    from fusedrnn.report.console import show_results
    from fusedrnn.report.training import markdown_table

    if markdown:
        print(markdown_table(parse(results)), end="")
    elif show:
        show_results(console, parse(results))
    try:
        outputs.write(console, results)
    except KeyboardInterrupt:
        console.print("interrupted")
        return INTERRUPTED
    return 1 if results["fusedrnn"]["failures"] else 0


def _libraries(console: Console, wanted: Sequence[str] = LIBRARIES) -> tuple[str, ...]:
    """The other libraries, of those wanted, that are installed; of the rest it is said that they are left out."""
    from fusedrnn.bench.peers import installed, missing
    from fusedrnn.report.engines import ENGINES

    found = tuple(name for name in installed() if name in wanted)
    if not found:
        module = ENGINES[LIBRARIES[0]].modules[0]
        raise MissingExtraError(module, "peers,torch", "measuring other libraries")
    for library in LIBRARIES:
        if library in wanted and library not in found:
            console.print(
                f"{ENGINES[library].label} is left out, because {missing(library)!r} is not installed: "
                f"pip install 'fusedrnn[{ENGINES[library].extra}]'",
                soft_wrap=True,
            )
    return found


def _cores() -> int:
    import fusedrnn as fr

    cores: int = fr.info()["cores"]
    return cores


def _check_training(training: bool, markdown: bool, others: dict[str, bool]) -> None:
    if markdown and not training:
        raise ValueError(
            "--markdown is for --training: --report writes every other table in Markdown"
        )
    given = ", ".join(option for option, is_given in others.items() if is_given)
    if training and given:
        raise ValueError(f"--training has its own shapes: it does not take {given}")


def _check_steps(steps: int | None) -> None:
    if steps is not None and steps < MIN_STEPS:
        raise ValueError(f"--steps must be at least {MIN_STEPS}, got {steps}")


def _selection(
    quick: bool,
    libraries: tuple[str, ...] | None,
    long: bool = False,
    cases: str | None = None,
    threads: int | None = None,
    summary: bool = False,
    training: bool = False,
) -> Selection:
    """What is to be measured, of the list of cases."""
    from fusedrnn.bench.cases import CASES, matches
    from fusedrnn.bench.session import Selection

    if threads is not None and threads < 1:
        raise ValueError(f"--threads must be at least 1, got {threads}")
    if threads is not None and threads > _cores():
        raise ValueError(
            f"--threads must be at most {_cores()}, the cores of this machine, got {threads}"
        )
    if cases is not None and not any(matches(case.id, cases) for case in CASES):
        raise ValueError(
            f"--cases: no case is called {cases!r}; their names are like {CASES[0].id}, and * and ? stand for "
            "the rest"
        )
    several = threads if threads is not None and threads > 1 else None
    return Selection(quick, libraries, long, cases, several, summary, training)


def _measured(
    isa: str | None, measure: Callable[[], dict[str, Any] | None]
) -> dict[str, Any] | None:
    """What a measurement gives with that instruction set; None after Ctrl-C."""
    from fusedrnn.engines.native import isas

    if isa is not None and isa not in isas():
        raise UnsupportedError(
            f"--isa must be one of {', '.join(isas())} on this machine, got {isa!r}"
        )
    # pytest is told everything by this command, and nothing by anybody's environment.
    changes = {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_ADDOPTS": None,
        "PYTEST_PLUGINS": None,
    }
    if isa is not None:
        changes["FUSEDRNN_ISA"] = isa
    # Numba and the layers read the instruction set when they are first used: not before this.
    with _environment(changes):
        try:
            results = measure()
        except KeyboardInterrupt:  # outside pytest, which has its own way to say so
            return None
    if results is not None:
        about = results["fusedrnn"]
        if not (
            results["benchmarks"]
            or (about["latency"] and about["latency"]["rows"])
            or about["stages"]
        ):
            raise RuntimeError(_reasons(about["failures"]))
    return results


def _nothing(selection: Selection) -> dict[str, Any]:
    """A result without rows."""
    from fusedrnn.bench.session import about

    return {"benchmarks": [], "fusedrnn": about(selection, {})}


def _reasons(failures: dict[str, str]) -> str:
    return "nothing was measured: " + "; ".join(f"{name}: {why}" for name, why in failures.items())


def _latency(
    console: Console, selection: Selection, steps: int | None, failures: dict[str, str]
) -> dict[str, Any]:
    """The distribution of single steps."""
    from fusedrnn.bench import latency

    usual = latency.QUICK_STEPS if selection.quick else latency.STEPS
    return latency.measure(selection.engines, steps or usual, failures, console.print)


def _compile(console: Console, failures: dict[str, str]) -> dict[str, dict[str, float]]:
    """What Numba takes to compile each kernel."""
    from fusedrnn.bench.compile_time import compile_seconds
    from fusedrnn.cells import CELLS
    from fusedrnn.kernels.compiled import ROLES

    found = {}
    for cell, role in product(CELLS, ROLES):
        name = f"{cell} {role}"
        console.print(f"compiling the Numba kernel {name}")
        try:
            found[name] = compile_seconds(cell, role)
        except RuntimeError as error:
            failures[f"compile[{name}]"] = str(error)
    return found


def _session(console: Console, selection: Selection) -> dict[str, Any] | None:
    """The JSON of pytest's session."""
    import pytest

    progress = Progress(console)
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
