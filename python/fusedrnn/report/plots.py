"""The plots of a report, as matplotlib figures and as SVG for a page that may be light or dark."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import log10
from typing import TYPE_CHECKING, Any

from fusedrnn.report.results import BASELINE, GROUPS, LABELS, PLAIN, Group, Results, Row
from fusedrnn.report.text import ratio

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["PLOTS", "image", "inline"]

COLOURS = {"naive": "#9a5b00", "numba": "#0b7a43", "c": "#1d5fc4"}
#: Hollow squares around dots: both are seen where Numba and C are as fast.
MARKERS: dict[str, dict[str, Any]] = {
    "naive": {"marker": "D", "markersize": 4},
    "numba": {"marker": "s", "markersize": 7, "markerfacecolor": "none"},
    "c": {"marker": "o", "markersize": 4},
}
TEXT, GRID = "#1c1c1e", "#d5d5da"
#: White, but no other white: it becomes the colour of the page.
PAGE = "#fefefe"

#: What the colours become where the page decides.
_VARIABLES = {
    **{colour: f"var(--{engine})" for engine, colour in COLOURS.items()},
    TEXT: "currentColor",
    GRID: "var(--line)",
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
        rows = [row for row in results.in_group(group.name) if row.network == PLAIN]
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
        rows = [row for row in results.in_group(group.name) if row.baseline]
        shapes = Counter(row.title for row in rows)
        if not shapes or max(shapes.values()) == 1:
            continue
        # Of several, the last in the list: the largest.
        shape = max(reversed(shapes), key=shapes.__getitem__)
        several = [(row.network, row) for row in rows if row.title == shape]
        lines += _section(group, several, f": {shape}")
    return _speedups(results, lines)


def _section(
    group: Group, rows: list[tuple[str, Row]], more: str = ""
) -> list[tuple[str, Row | None]]:
    """Lines of a plot: a heading, and the rows whose speed-up is known."""
    known: list[tuple[str, Row | None]] = [(text, row) for text, row in rows if row.baseline]
    return [(f"{group.title.partition(':')[0]}{more}", None), *known] if known else []


def _speedups(results: Results, lines: list[tuple[str, Row | None]]) -> Figure:
    """Speed-ups over naive NumPy, row by row; the bars span the quartiles."""
    from matplotlib.figure import Figure
    from matplotlib.transforms import blended_transform_factory

    figure = Figure(figsize=(_WIDTH, 0.9 + 0.21 * len(lines)), layout="constrained")
    axes = figure.add_subplot()
    for engine in results.engines:
        if engine == BASELINE:
            continue
        points = [
            (place, middle, *limits)
            for place, (_, row) in enumerate(lines)
            if row is not None
            and (middle := row.speedup(engine)) is not None
            and (limits := row.speedup_range(engine)) is not None
        ]
        axes.errorbar(
            [middle for _, middle, _, _ in points],
            [place for place, _, _, _ in points],
            xerr=[
                [middle - low for _, middle, low, _ in points],
                [high - middle for _, middle, _, high in points],
            ],
            **MARKERS[engine],
            linestyle="none",
            color=COLOURS[engine],
            label=LABELS[engine],
        )
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.9), high)
    axes.axvline(1, color=COLOURS[BASELINE], linewidth=1.2, label=f"{LABELS[BASELINE]} = 1×")
    _plain_ticks(axes.xaxis, lambda value: ratio(value) if value < 1 else f"{value:g}×")
    axes.set_xlabel("speed-up, log scale")
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
            row
            for row in results.in_group(group)
            if row.network == PLAIN and row.sizes["X"] == row.sizes["H"]
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
                **MARKERS[engine],
                color=COLOURS[engine],
                label=LABELS[engine] + where,
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


#: By the name of the file: how it is drawn, and what it says to people who cannot see it.
PLOTS: dict[str, tuple[Callable[[Results], Figure], str]] = {
    "speedup": (
        speedup,
        "LSTM: speed-up over naive NumPy for every shape; the tables below have the figures.",
    ),
    "networks": (
        networks,
        "Speed-up over naive NumPy, cell by cell, in the same few shapes.",
    ),
    "step-time": (
        step_time,
        "LSTM: time per step by hidden size, both axes logarithmic, a line per engine.",
    ),
}


def image(name: str, results: Results, kind: str) -> bytes:
    """A plot as a file: ``kind`` is "png" or "svg"."""
    return _saved(name, results, kind, "white")


def inline(name: str, results: Results) -> str:
    """A plot as an SVG element, which takes its colours from the page around it."""
    svg = _saved(name, results, "svg", "none").decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Its width is the page's business; its shape is in the viewBox.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{PLOTS[name][1]}"', 1)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg


def _saved(name: str, results: Results, kind: str, background: str) -> bytes:
    file = io.BytesIO()
    with _style(name):
        figure = PLOTS[name][0](results)
        metadata = {"Date": None} if kind == "svg" else {}
        figure.savefig(file, format=kind, dpi=200, facecolor=background, metadata=metadata)
    return file.getvalue()
