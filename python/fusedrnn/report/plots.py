"""The plots of a report, as matplotlib figures and as SVG for a page that may be light or dark."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from math import log10
from typing import TYPE_CHECKING, Any

from fusedrnn.report.engines import BASELINE, ENGINES, LIBRARIES, OURS
from fusedrnn.report.groups import GROUPS, TRAINING, Group
from fusedrnn.report.results import NOT_SLOWER, Results, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["PLOTS", "available_plots", "image", "inline", "saved", "themed"]

TEXT, GRID = "#1c1c1e", "#d5d5da"
#: Behind what is slower than another library.
LOSS = "#fbe0dc"
#: White, but no other white: it becomes the colour of the page.
PAGE = "#fefefe"

#: What the colours become where the page decides.
_VARIABLES = {
    **{engine.colour: f"var(--{name})" for name, engine in ENGINES.items()},
    TEXT: "currentColor",
    GRID: "var(--line)",
    LOSS: "var(--loss)",
    PAGE: "var(--page)",
}

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": TEXT,
    "axes.facecolor": "none",
    "axes.edgecolor": TEXT,
    "axes.labelcolor": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "grid.color": GRID,
    "legend.frameon": False,
    "svg.fonttype": "none",
}
_WIDTH = 4.5


@contextmanager
def _style(salt: str) -> Iterator[None]:
    import matplotlib

    # The salt keeps the ids of two plots on one page apart, and the same from run to run.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}):
        yield


def speedup(results: Results) -> Figure:
    """How many times as fast as naive NumPy the LSTM is in every shape."""
    lines: list[tuple[str, Row | None]] = []
    for group in GROUPS:
        rows = [row for row in _alone(results, group) if row.plain]
        # The names of real data are long, and the same in every row: they are the heading's.
        texts = [row.title.removeprefix(f"{group.name}, ") for row in rows]
        named = all(text != row.title for text, row in zip(texts, rows, strict=True))
        lines += _section(
            group, list(zip(texts, rows, strict=True)), f": {group.name}" if named else ""
        )
    return _speedups(results, lines)


def networks(results: Results) -> Figure:
    """How many times as fast every cell is, in that shape of each group which most of them have."""
    lines: list[tuple[str, Row | None]] = []
    for group in GROUPS:
        rows = [row for row in _alone(results, group) if row.baseline]
        shapes = Counter(row.title for row in rows)
        if not shapes or max(shapes.values()) == 1:
            continue
        # Of several, the last in the list: the largest.
        shape = max(reversed(shapes), key=shapes.__getitem__)
        several = [(row.network, row) for row in rows if row.title == shape]
        lines += _section(group, several, f": {shape}")
    return _speedups(results, lines)


def _alone(results: Results, group: Group) -> list[Row]:
    """The forward passes of a group with one thread, as all are but those about threads."""
    rows = results.in_group(group.name)
    return [row for row in rows if row.threads is None and not row.trained]


def _section(
    group: Group, rows: list[tuple[str, Row]], more: str = ""
) -> list[tuple[str, Row | None]]:
    """Lines of a plot: a heading, and the rows whose speed-up is known."""
    known: list[tuple[str, Row | None]] = [(text, row) for text, row in rows if row.baseline]
    return [(f"{group.title.partition(':')[0]}{more}", None), *known] if known else []


def _speedups(results: Results, lines: list[tuple[str, Row | None]]) -> Figure:
    """Speed-ups over naive NumPy, row by row; the bars span the quartiles."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, 0.9 + 0.21 * len(lines)), layout="constrained")
    axes = figure.add_subplot()
    for engine in results.own:
        if engine == BASELINE:
            continue
        _dots(
            axes,
            engine,
            [
                (place, middle, *limits)
                for place, (_, row) in enumerate(lines)
                if row is not None
                and (middle := row.speedup(engine)) is not None
                and (limits := row.speedup_range(engine)) is not None
            ],
        )
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.9), high)
    axes.axvline(
        1, color=ENGINES[BASELINE].colour, linewidth=1.2, label=f"{ENGINES[BASELINE].label} = 1×"
    )
    _named_lines(figure, axes, lines)
    axes.set_xlabel("speed-up, log scale")
    figure.legend(loc="outside upper center", ncols=3, columnspacing=1, handletextpad=0.4)
    return figure


def _dots(axes: Axes, engine: str, points: list[tuple[int, float, float, float]]) -> None:
    """An engine in every line that it is in: its ratio, and bars between the quartiles."""
    axes.errorbar(
        [middle for _, middle, _, _ in points],
        [place for place, _, _, _ in points],
        xerr=[
            [middle - low for _, middle, low, _ in points],
            [high - middle for _, middle, _, high in points],
        ],
        **ENGINES[engine].marker,
        linestyle="none",
        color=ENGINES[engine].colour,
        label=ENGINES[engine].label,
    )


def _named_lines(figure: Figure, axes: Axes, lines: list[tuple[str, Row | None]]) -> None:
    """The names of the lines of a plot of ratios, and its headings."""
    from matplotlib.transforms import blended_transform_factory

    _plain_ticks(axes.xaxis, lambda value: f"{value:.2g}×" if value < 1 else f"{value:g}×")
    axes.set_yticks(range(len(lines)), [text if row else "" for text, row in lines])
    # Headings begin at the left edge and go on across the axes, where their lines are empty.
    across = blended_transform_factory(figure.transFigure, axes.transData)
    for place, (text, row) in enumerate(lines):
        if row is None:
            heading = axes.text(0.01, place, text, va="center", weight="bold", transform=across)
            heading.set_bbox({"facecolor": PAGE, "edgecolor": "none", "pad": 1.5})
            heading.set_in_layout(False)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", which="both", linewidth=0.5)
    axes.set_axisbelow(True)


def peers(results: Results) -> Figure:
    """How many times as long each library takes as the C kernels, for every shape of the LSTM."""
    lines: list[tuple[str, Row | None]] = []
    for group in GROUPS:
        rows = [row for row in _versus(results, group) if row.plain]
        lines += [(group.title, None), *((row.title, row) for row in rows)] if rows else []
    return _against(results, lines)


def peer_networks(results: Results) -> Figure:
    """The same for all other cells."""
    lines: list[tuple[str, Row | None]] = []
    for group in GROUPS:
        network = None
        for row in _versus(results, group):
            if row.plain:
                continue
            if row.network != network:
                network = row.network
                lines.append((f"{network}: {group.title[0].lower()}{group.title[1:]}", None))
            lines.append((row.title, row))
    return _against(results, lines)


def _versus(results: Results, group: Group) -> list[Row]:
    """The forward passes of a group that other libraries have too."""
    return [row for row in results.in_group(group.name) if row.fastest and not row.trained]


def training(results: Results) -> Figure:
    """How many times as long as the C kernels every engine takes forward and backward, row by row."""
    lines: list[tuple[str, Row | None]] = []
    for group in (group for group in GROUPS if group.name in TRAINING):
        rows = results.in_group(group.name)
        for network in dict.fromkeys(row.network for row in rows):
            kind = "" if group.name == "training" else group.title.replace("Training, ", ": ")
            lines.append((f"{network}{kind}", None))
            lines += [(row.title, row) for row in rows if row.network == network]
    return _against(results, lines, (BASELINE, *LIBRARIES))


def _against(
    results: Results,
    lines: list[tuple[str, Row | None]],
    engines: Sequence[str] = LIBRARIES,
) -> Figure:
    """Ratios of those engines, row by row; behind what is slower than one of them there is a colour."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, 1.2 + 0.19 * len(lines)), layout="constrained")
    axes = figure.add_subplot()
    for library in (each for each in engines if each in results.engines):
        _dots(
            axes,
            library,
            [
                (place, found.median, found.q1, found.q3)
                for place, (_, row) in enumerate(lines)
                if row is not None and (found := row.ratio(library)) is not None
            ],
        )
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.5), max(high, 2))
    axes.axvspan(axes.get_xlim()[0], NOT_SLOWER, facecolor=LOSS, zorder=0)
    axes.axvline(1, color=ENGINES[OURS].colour, linewidth=1.2, label=f"{ENGINES[OURS].label} = 1×")
    _named_lines(figure, axes, lines)
    axes.set_xlabel(f"times {ENGINES[OURS].label}, log scale")
    figure.legend(loc="outside upper center", ncols=2, columnspacing=1, handletextpad=0.4)
    return figure


def roofline(results: Results) -> Figure:
    """Every row of the kernels under the limits of a core: operations a second by operations for each byte of weights."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, 4.4), layout="constrained")
    axes = figure.add_subplot()
    limits = results.limits or {}
    reached = [
        (engine, measure.intensity, measure.gflops)
        for engine in results.own
        for row in results.rows
        if row.threads is None
        and (measure := row.measures.get(engine)) is not None
        and measure.intensity is not None
    ]
    intensities = [intensity for _, intensity, _ in reached]
    low, high = min(intensities) / 1.5, max(intensities) * 1.5
    peak = float(limits["flops"]) / 1e9
    for (level, speed), style in zip(
        limits["bandwidth"].items(), ("-", "--", "-.", ":", (0, (1, 3))), strict=False
    ):
        bandwidth = float(speed) / 1e9
        ridge = min(peak / bandwidth, high)
        axes.plot(
            [low, ridge],
            [low * bandwidth, ridge * bandwidth],
            color=TEXT,
            linewidth=0.9,
            linestyle=style,
            label=f"{level}: {bandwidth:,.0f} GB/s",
        )
    axes.axhline(peak, color=TEXT, linewidth=1.2)
    axes.text(high, peak * 1.06, f"FMA peak {peak:,.0f} GFLOP/s", ha="right", va="bottom")
    for engine in dict.fromkeys(name for name, _, _ in reached):
        axes.plot(
            [x for name, x, _ in reached if name == engine],
            [y for name, _, y in reached if name == engine],
            **{**ENGINES[engine].marker, "markersize": ENGINES[engine].marker["markersize"] * 0.8},
            linestyle="none",
            color=ENGINES[engine].colour,
            label=ENGINES[engine].label,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(min(y for _, _, y in reached) / 1.5, peak * 1.6)
    _plain_ticks(axes.xaxis, lambda value: f"{value:g}")
    _plain_ticks(axes.yaxis, lambda value: f"{value:g}")
    axes.set_xlabel("operations for each byte of weights that is read")
    axes.set_ylabel("GFLOP/s")
    axes.grid(which="major", linewidth=0.5)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=2, columnspacing=1, handletextpad=0.4)
    return figure


def latency(results: Results) -> Figure:
    """Which share of single steps took longer than what: a line per engine, a panel per size."""
    from matplotlib.figure import Figure

    sizes = list(dict.fromkeys(each.hidden for each in results.latencies))
    figure = Figure(figsize=(_WIDTH, 0.9 + 2.1 * len(sizes)), layout="constrained")
    several = figure.subplots(len(sizes), 1, squeeze=False, sharex=True)[:, 0]
    for axes, hidden in zip(several, sizes, strict=True):
        for each in results.latencies:
            if each.hidden == hidden:
                axes.plot(
                    [seconds * 1e6 for _, seconds in each.slower],
                    [part for part, _ in each.slower],
                    color=ENGINES[each.engine].colour,
                    linestyle=ENGINES[each.engine].line,
                    linewidth=1.3,
                    label=ENGINES[each.engine].label if hidden == sizes[0] else None,
                )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(f"H = X = {hidden}", loc="left")
        axes.set_ylabel("share that took longer")
        axes.grid(which="major", linewidth=0.5)
        axes.set_axisbelow(True)
        axes.minorticks_off()
    several[-1].set_xlabel("µs for one step")
    _plain_ticks(several[-1].xaxis, lambda value: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    figure.legend(loc="outside upper center", ncols=3, columnspacing=1, handletextpad=0.4)
    return figure


def step_time(results: Results) -> Figure:
    """What a step of the LSTM takes by hidden size: a line per engine, and the C kernel without Python."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, 3.9), layout="constrained")
    axes = figure.add_subplot()
    sizes: set[int] = set()
    for group, engines, style, where in (
        ("step from Python", results.engines, "-", ""),
        ("step, kernel alone", ["c"], ":", ", kernel alone"),
    ):
        rows = [
            row for row in results.in_group(group) if row.plain and row.sizes["X"] == row.sizes["H"]
        ]
        for engine in engines:
            points = [
                (row.sizes["H"], row.measures[engine]) for row in rows if engine in row.measures
            ]
            if not points:
                continue
            hidden = [size for size, _ in points]
            sizes.update(hidden)
            axes.errorbar(
                hidden,
                [measure.median * 1e6 for _, measure in points],
                yerr=[
                    [(measure.median - measure.q1) * 1e6 for _, measure in points],
                    [(measure.q3 - measure.median) * 1e6 for _, measure in points],
                ],
                linestyle=style,
                **ENGINES[engine].marker,
                color=ENGINES[engine].colour,
                label=ENGINES[engine].label + where,
            )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sorted(sizes), [str(size) for size in sorted(sizes)])
    axes.minorticks_off()
    _plain_ticks(axes.yaxis, lambda value: f"{value:g}")
    axes.set_xlabel("hidden size H, with as many inputs")
    axes.set_ylabel("µs per step")
    axes.grid(which="major", linewidth=0.5)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=2, columnspacing=1)
    return figure


def _plain_ticks(axis: Axis, text: Callable[[float], str]) -> None:
    """1, 2, 5, 10 instead of powers of ten, as far as there is room."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    low, high = axis.get_view_interval()
    decades = log10(high / low)
    between = (1.0, 2.0, 5.0) if decades < 1.5 else (1.0, 3.0) if decades < 2.5 else (1.0,)
    axis.set_major_locator(LogLocator(subs=between))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


#: By the name of the file: how it is drawn, what it says to people who cannot see it, and when there is any of it.
PLOTS: dict[str, tuple[Callable[[Results], Figure], str, Callable[[Results], bool]]] = {
    "peers": (
        peers,
        "LSTM: times as long as the C kernels that other libraries take. Where it is coloured, C is slower.",
        lambda results: any(row.plain for row in results.versus),
    ),
    "peer-networks": (
        peer_networks,
        "The other cells: times as long as the C kernels that other libraries take.",
        lambda results: any(not row.plain for row in results.versus),
    ),
    "training": (
        training,
        "Training: times as long as the C kernels that the others take, forward and backward. Where it is coloured, C is slower.",
        lambda results: any(
            row.ratio(BASELINE) or row.fastest for row in results.rows if row.trained
        ),
    ),
    "speedup": (
        speedup,
        "LSTM: speed-up over naive NumPy for every shape; the tables below have the figures.",
        lambda results: any(row.baseline for row in results.rows if row.plain and not row.trained),
    ),
    "networks": (
        networks,
        "Speed-up over naive NumPy, cell by cell, in the same few shapes.",
        lambda results: any(row.baseline for row in results.rows if not (row.plain or row.trained)),
    ),
    "step-time": (
        step_time,
        "LSTM: time per step by hidden size, both axes logarithmic, a line per engine.",
        lambda results: any(
            row.plain and row.sizes["X"] == row.sizes["H"]
            for group in ("step from Python", "step, kernel alone")
            for row in results.in_group(group)
        ),
    ),
    "roofline": (
        roofline,
        "Every row of the kernels under the limits of one core, both axes logarithmic.",
        lambda results: (
            results.limits is not None
            and any(each.intensity for row in results.rows for each in row.measures.values())
        ),
    ),
    "latency": (
        latency,
        "Which share of single steps took longer than what, both axes logarithmic.",
        lambda results: bool(results.latencies),
    ),
}


def available_plots(results: Results) -> list[str]:
    """The plots that there is something in."""
    return [name for name, (_, _, some) in PLOTS.items() if some(results)]


def image(name: str, results: Results, kind: str) -> bytes:
    """A plot as a file: ``kind`` is "png" or "svg"."""
    return saved(lambda: PLOTS[name][0](results), name, kind, "white")


def inline(name: str, results: Results) -> str:
    """A plot as an SVG element, which takes its colours from the page around it."""
    return themed(lambda: PLOTS[name][0](results), name, PLOTS[name][1])


def themed(draw: Callable[[], Figure], salt: str, about: str) -> str:
    """A figure as an SVG element, which takes its colours from the page around it; ``salt`` is its own on the page."""
    svg = saved(draw, salt, "svg", "none").decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Its width is the page's business; its shape is in the viewBox.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(about, quote=True)}"', 1)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg


def saved(draw: Callable[[], Figure], salt: str, kind: str, background: str) -> bytes:
    """A figure, drawn in the style of all pages, as a file."""
    file = io.BytesIO()
    with _style(salt):
        figure = draw()
        metadata = {"Date": None} if kind == "svg" else {}
        figure.savefig(file, format=kind, dpi=200, facecolor=background, metadata=metadata)
    return file.getvalue()
