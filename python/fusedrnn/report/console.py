"""Results as tables on a terminal, as Markdown on standard output, and where both are printed."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from fusedrnn.files import encoding_errors
from fusedrnn.report.compare import Change
from fusedrnn.report.engines import BASELINE, ENGINES, OURS
from fusedrnn.report.groups import GROUPS, Group
from fusedrnn.report.results import NOT_SLOWER, Results, Row
from fusedrnn.report.text import duration, error, quartiles, ratio, span
from fusedrnn.report.training import Line, columns, lines

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = [
    "make_console",
    "show_changes",
    "show_results",
    "show_table",
    "summary",
]

#: The style of a ratio of another library's time by ours.
_STYLES = {"faster": "green", "even": "", "slower": "bold red"}


def make_console(file: TextIO | None = None) -> Console:
    """Rich's console for figures and paths, on standard output unless another file is given.

    A reader that goes away is a BrokenPipeError, where Rich alone would exit with 1; and what the
    encoding of the output lacks is written in ASCII, where Rich alone would fail; a handler of encoding
    errors that PYTHONIOENCODING names is kept.
    """
    from rich.console import Console

    class Ours(Console):
        def on_broken_pipe(self) -> NoReturn:
            raise BrokenPipeError

    stream = sys.stdout if file is None else file
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=encoding_errors(stream))
    # Titles and reasons are text of others: no markup in it.
    return Ours(file=file, highlight=False, markup=False)


def show_table(console: Console, table: Table) -> None:
    """Print a table as wide as it is: a terminal that is narrower wraps its lines, and nothing is lost."""
    from rich.measure import Measurement

    options = console.options.update(width=10_000)
    natural = Measurement.get(console, options, table).maximum
    before = console.width
    console.width = max(before, natural)
    try:
        console.print(table)
        console.print()
    finally:
        console.width = before


def _table(title: str, columns: Iterable[str], left: int = 1) -> Table:
    """An empty table: the first columns are text, the others figures."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title, style="bold"), title_justify="left", box=None)
    for place, name in enumerate(columns):
        table.add_column(
            Text(name), justify="left" if place < left else "right", no_wrap=True, header_style=""
        )
    return table


def _add_rows(table: Table, rows: Iterable[tuple[str, list[Any]]]) -> None:
    """Rows under the names of their networks."""
    from rich.text import Text

    head = None
    for network, cells in rows:
        if network != head:
            head = network
            table.add_row(Text(network, style="bold"))
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in cells))


# ---- results -------------------------------------------------------------------------------------


def show_results(console: Console, results: Results) -> None:
    """Every table that a result has something for, and what must be known about it."""
    facts = results.environment
    console.print(f"{facts['cpu']}, {facts['isa']}, {results.passes} passes\n")
    for group in GROUPS:
        rows = results.in_group(group.name)
        if rows and rows[0].trained:
            show_table(console, _trained(results, group))
        elif rows:
            table = _versus if results.libraries else _gains
            show_table(console, table(results, group, rows))
            if not results.libraries:
                worst = max(measure.error for row in rows for measure in row.measures.values())
                console.print(f"max error against float64: {error(worst)}\n")
    if results.overheads:
        show_table(console, _overheads(results))
    if results.latencies:
        show_table(console, _latencies(results))
        console.print(
            f"Reading the clock takes {duration(results.clock)}, which is in each time of a single step."
        )
    if results.stages:
        _show_stages(console, results)
    if any(row.trained for row in results.rows):
        console.print(
            "Training: forward and backward with all gradients. Backward: what is not the forward pass of a plain call, by that; "
            "of the peak: its products; tape: kept of each step of a sequence; error: the largest of a gradient, norm by norm; takes: the time by that of C."
        )
    if results.rows and results.libraries:
        console.print(
            "Medians of C, and how many times as long the others take, pass by pass, with quartiles; below "
            f"{NOT_SLOWER} it is C that is slower."
        )
    elif results.rows:
        console.print(
            "Medians. IQR: the middle half of the rounds, in percent of the median; gain: over naive NumPy."
        )
    if facts["busy"]:
        console.print(
            f"The machine was busy (load {facts['load']:.2f} at the start): an idle one is faster."
        )
    for reason, names in results.reasons.items():
        console.print(f"not measured: {', '.join(names)}: {reason}", soft_wrap=True)


def _gains(results: Results, group: Group, rows: list[Row]) -> Table:
    """Every engine's time, and its gain over naive NumPy."""
    engines = [name for name in results.engines if any(name in row.measures for row in rows)]
    columns = ["shape"]
    for engine in engines:
        columns += [ENGINES[engine].short, "IQR"]
        if engine != BASELINE:
            columns.append("gain")
    table = _table(group.title, columns)

    def cells(row: Row) -> list[str]:
        found = [row.title]
        for engine in engines:
            measure = row.measures.get(engine)
            found += [duration(measure.median), f"{measure.spread:.0%}"] if measure else ["", ""]
            if engine != BASELINE:
                found.append(ratio(row.speedup(engine)))
        return found

    _add_rows(table, ((row.network, cells(row)) for row in rows))
    return table


def _versus(results: Results, group: Group, rows: list[Row]) -> Table:
    """Our time, and the ratio of every other engine's to it."""
    from rich.text import Text

    others = [
        name
        for name in results.engines
        if name != OURS and any(name in row.measures for row in rows)
    ]
    table = _table(
        group.title,
        ["shape", ENGINES[OURS].short, "error", *(ENGINES[name].short for name in others)],
    )

    def cells(row: Row) -> list[Any]:
        ours = row.measures.get(OURS)
        found: list[Any] = [
            row.title,
            *((duration(ours.median), error(ours.error)) if ours else ("", "")),
        ]
        for name in others:
            against = row.ratio(name)
            found.append(
                Text(quartiles(against), style=_STYLES[against.verdict]) if against else "-"
            )
        return found

    _add_rows(table, ((row.network, cells(row)) for row in rows))
    return table


def _trained(results: Results, group: Group) -> Table:
    """Our forward and backward passes, and the ratio of every other engine's to them."""
    from rich.text import Text

    table = _table(group.title, ["shape", *columns(results)])

    def cells(each: Line) -> list[Any]:
        against = (
            Text(quartiles(one), style=_STYLES[one.verdict]) if one else "-" for one in each.against
        )
        return [each.row.title, *each.cells, *against]

    several = lines(results, group.name)
    _add_rows(table, ((each.row.network, cells(each)) for each in several))
    return table


def _latencies(results: Results) -> Table:
    """Percentiles of single steps."""
    names = results.latencies[0].percentiles
    table = _table("How long single steps of an LSTM take", ["engine", "steps", *names, "error"])
    _add_rows(
        table,
        (
            (
                f"H=X={each.hidden}",
                [
                    ENGINES[each.engine].label,
                    f"{each.steps:,}",
                    *map(duration, each.percentiles.values()),
                    error(each.error),
                ],
            )
            for each in results.latencies
        ),
    )
    return table


def _overheads(results: Results) -> Table:
    """What ways to step cost above their kernel."""
    from rich.text import Text

    ways = list(results.overheads[0].seconds)
    columns = ["shape", "empty call", "kernel"]
    for way in ways:
        columns += [way, "above", "calls"]
    table = _table("What a call costs above its kernel; calls: in empty calls", columns)
    styles = {"met": "green", "missed": "bold red", "": ""}

    def cells(each: Any) -> list[Any]:
        found: list[Any] = [f"H=X={each.hidden}", duration(each.empty), duration(each.kernel)]
        for way in ways:
            style = styles[results.within(each, way)]
            found += [
                duration(each.seconds[way]),
                Text(duration(each.above[way][1]), style=style),
                f"{each.calls[way][1]:.1f}",
            ]
        return found

    _add_rows(table, ((ENGINES[each.engine].label, cells(each)) for each in results.overheads))
    return table


def _show_stages(console: Console, results: Results) -> None:
    """The stages of the explanation from naive to fast."""
    table = _table(
        "From naive to fast",
        [
            "stage",
            "instruction set",
            "a step of a sequence",
            "q1 - q3",
            "gain",
            "over naive",
            "error",
        ],
        left=2,
    )
    _add_rows(
        table,
        (
            (
                f"H=X={each.hidden}",
                [
                    each.name,
                    each.isa or "",
                    duration(each.seconds[1]),
                    span(each.seconds[0], each.seconds[2], each.seconds[1]),
                    ratio(each.gain),
                    ratio(each.total),
                    error(each.error),
                ],
            )
            for each in results.stages
        ),
    )
    show_table(console, table)
    fma = results.rates["FMA"]
    shares = ", ".join(
        f"{rate / fma:.0%} with {name} of panels"
        for name, rate in results.rates.items()
        if name != "FMA"
    )
    console.print(f"FMA rate {fma / 1e9:.0f} GFLOP/s; a tile alone reaches {shares}")
    for name, about in results.about_stages.items():
        console.print(f"{name:8} {about}", soft_wrap=True)


# ---- two results ---------------------------------------------------------------------------------


def show_changes(console: Console, changes: list[Change]) -> None:
    """What changed from one result to another."""
    for group in dict.fromkeys(change.group for change in changes):
        table = _table(group, ["shape", "engine", "old", "new", "old / new", "verdict"], left=2)
        _add_rows(
            table,
            (
                (
                    change.network,
                    [
                        change.title,
                        change.engine,
                        *(
                            duration(each.median) if each else ""
                            for each in (change.old, change.new)
                        ),
                        ratio(change.ratio) if change.ratio else "",
                        change.verdict,
                    ],
                )
                for change in changes
                if change.group == group
            ),
        )
        show_table(console, table)
    console.print(
        "Medians; old / new above 1 is faster now. Within noise: the middle halves of the rounds overlap."
    )


# ---- a small table -------------------------------------------------------------------------------

_KINDS = {"step from Python": "one step", "sequence": "a sequence", "batch": "a batch"}


def summary(results: Results, command: str) -> str:
    """The rows of a result as one small table in Markdown: each engine's time, and its error.

    Parameters
    ----------
    results
        Of the few shapes that such a table is about.
    command
        What made it.
    """
    engines = [OURS, *(name for name in results.engines if name not in (OURS, BASELINE)), BASELINE]
    engines = [name for name in engines if name in results.engines]
    facts = results.environment
    heads = []
    for name in engines:
        version = results.libraries.get(name, "")
        label = "fusedrnn" if name == OURS else ENGINES[name].label
        heads.append(f"{label} {version}".strip())
    lines = [
        f"| LSTM | | {' | '.join(heads)} |",
        f"|---|---|{'--:|' * len(engines)}",
    ]
    rows = sorted(results.rows, key=lambda row: row.sizes["H"])
    size = 0
    for row in rows:
        if row.group not in _KINDS:
            continue
        T, B, H = (row.sizes[name] for name in "TBH")
        shape = _KINDS[row.group]
        if row.group != "step from Python":
            shape += f", T={T}, B={B}"
        cells = []
        for name in engines:
            measure = row.measures.get(name)
            fastest = measure and measure.median == min(m.median for m in row.measures.values())
            time = duration(measure.median) if measure else "–"
            time = f"**{time}**" if fastest else time
            cells.append(f"{time} ({error(measure.error)})" if measure else time)
        lines.append(f"| {f'H = X = {H}' if size != H else ''} | {shape} | {' | '.join(cells)} |")
        size = H
    commit = facts["commit"].get("id", "")[:12]
    versions = facts["versions"]
    made = f"fusedrnn {versions['fusedrnn']}" + (f" at {commit}" if commit else "")
    lines += [
        "",
        (
            f"*Time of one call, the median of {results.passes} passes, one thread, float32; in brackets the largest error "
            f"against float64. {facts['cpu']}, {facts['isa']}; {made}, NumPy {versions['numpy']}, {facts['python']}. "
            f"Made by `{command}`.*"
        ),
    ]
    if facts["busy"]:
        lines += ["", f"*The machine was busy: load {facts['load']:.2f} at the start.*"]
    return "\n".join(lines) + "\n"
