"""What an analysis found, as one page that needs nothing else, and as JSON beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fusedrnn import __version__
from fusedrnn.analysis.drifts import Drift
from fusedrnn.analysis.horizons import LOST, Horizon
from fusedrnn.analysis.text import Tracked
from fusedrnn.analysis.traces import Trace, Unit, place_name
from fusedrnn.counting.result import Result, Table
from fusedrnn.errors import MissingExtraError
from fusedrnn.files import check_output, write_file
from fusedrnn.report.engines import ENGINES
from fusedrnn.report.plots import themed
from fusedrnn.report.strips import (
    GATE_COLOURS,
    MAX_CHARACTERS,
    STATE_COLOURS,
    Drawn,
    of_steps,
    of_text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Page", "check", "drift_page", "horizon_page", "trace_page", "write_page"]

FILES = ("index.html", "results.json")
#: The number of units that are drawn, and of the numbers of the input above them.
DRAWN, INPUTS = 6, 8
#: The colours of lines, which a dark page replaces.
COLOURS = tuple(engine.colour for engine in ENGINES.values() if engine.name != "naive")


@dataclass(frozen=True)
class Page:
    """What a page shows.

    Attributes
    ----------
    kind, name, title
        The command; what was analysed; the heading.
    result
        What is written as JSON.
    lead
        Sentences.
    figures
        SVG elements, and what they show.
    drawn, scale
        Units over the input, and a sentence on how.
    tables, notes
        Below the pictures.
    """

    kind: str
    name: str
    title: str
    result: Result
    lead: Sequence[str] = ()
    figures: Sequence[tuple[str, str]] = ()
    drawn: Sequence[Drawn] = ()
    scale: str = ""
    tables: Sequence[Table] = ()
    notes: Sequence[str] = field(default_factory=tuple)


def check(folder: Path) -> None:
    """Raise the error that writing a page would end in: before the work whose result it is.

    Raises
    ------
    MissingExtraError
        If a package that draws pages is not installed.
    OSError
        If the folder or a file in it cannot be written.
    """
    for package in ("jinja2", "matplotlib"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "bench", "a report")
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        check_output(folder / name)


def write_page(folder: Path, page: Page) -> Path:
    """Write a page and its JSON; each file whole or not at all. Returns the page's path."""
    write_file(folder / "results.json", page.result.to_json().encode())
    write_file(folder / "index.html", rendered(page).encode())
    return folder / "index.html"


def rendered(page: Page) -> str:
    """The page as HTML, with everything in it."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    def colours(name: str) -> list[str]:
        return [to_hex(colormaps[name](share)) for share in (0, 0.25, 0.5, 0.75, 1.0)]

    templates = Environment(
        loader=PackageLoader("fusedrnn.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("analysis.html.jinja").render(
        page=page,
        version=__version__,
        engines=ENGINES,
        gate_colours=colours(GATE_COLOURS),
        state_colours=colours(STATE_COLOURS),
    )


def _figure(salt: str, about: str, draw: Callable[[Axes], None]) -> tuple[str, str]:
    """One plot as an SVG element, and what it shows."""

    def drawn() -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.5, 2.9), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(axis="y", linewidth=0.6)
        draw(axes)
        return figure

    return themed(drawn, salt, about), about


# ---- horizon -------------------------------------------------------------------------------------


def horizon_page(found: Horizon, name: str) -> Page:
    """What a layer remembers: half-lives, retention and the norms of derivatives."""
    figures = []
    if found[0].gate is not None:
        figures.append(
            _figure(
                "half-lives",
                "Half-life of each unit: log 0.5 / mean log of its gate, longest first.",
                lambda axes: _half_lives(axes, found),
            )
        )
        figures.append(
            _figure(
                "retained",
                "What is left of what was stored: the unit in the middle (line), the one that keeps most (dashed), and between "
                "the quarter that keep least and the quarter that keep most (area). Medians over all windows of so many steps.",
                lambda axes: _retained(axes, found),
            )
        )
    if any(len(each.norm) for memory in found.memories for each in memory.norms):
        figures.append(
            _figure(
                "norms",
                "Norms of derivatives of the state over distance: below the dotted line, 1 %, hardly anything is learned.",
                lambda axes: _norms(axes, found),
            )
        )
    return Page(
        "horizon",
        name,
        found._title(),
        found,
        found.verdict(),
        figures,
        tables=list(found._tables()),
    )


def _half_lives(axes: Axes, found: Horizon) -> None:
    for place, memory in enumerate(found.memories):
        values = np.sort(memory.fitted_half_lives)[::-1]
        finite = values[np.isfinite(values)]
        axes.plot(
            np.arange(len(finite)), finite, color=COLOURS[place % len(COLOURS)], label=memory.name
        )
    axes.set_yscale("log")
    axes.set_xlabel("unit, by half-life")
    axes.set_ylabel("steps")
    axes.legend(fontsize=7)


def _retained(axes: Axes, found: Horizon) -> None:
    for place, memory in enumerate(found.memories):
        colour = COLOURS[place % len(COLOURS)]
        low, middle, high = np.quantile(memory.retained, (0.25, 0.5, 0.75), axis=1)
        axes.plot(memory.steps, middle, color=colour, label=memory.name)
        axes.plot(memory.steps, memory.retained.max(axis=1), color=colour, linestyle="--")
        axes.fill_between(memory.steps, low, high, color=colour, alpha=0.25, linewidth=0)
    axes.set_xscale("log")
    axes.set_ylim(0, 1)
    axes.set_xlabel("steps")
    axes.set_ylabel("left of 1")
    axes.legend(fontsize=7)


def _norms(axes: Axes, found: Horizon) -> None:
    for place, memory in enumerate(found.memories):
        for each in memory.norms:
            norm = each.norm
            good = np.isfinite(norm) & (norm > 0)
            axes.plot(
                (np.arange(len(norm)) + 1)[good],
                norm[good],
                color=COLOURS[place % len(COLOURS)],
                linestyle="-" if each.state == "c" or len(memory.norms) == 1 else "--",
                label=f"{memory.name}: d{each.state}_T/d{each.state}_t",
            )
    axes.axhline(LOST, color=COLOURS[-1], linestyle=":", linewidth=1)
    axes.set_yscale("log")
    axes.set_xlabel("distance T - t, in steps")
    axes.legend(fontsize=7)


# ---- drift ---------------------------------------------------------------------------------------


def drift_page(found: Drift, name: str) -> Page:
    """The error over time, and its causes."""
    figures = [
        _figure(
            "errors",
            "Error against float64 over time: root of the mean square over units, in up to 100 equal parts of the steps.",
            lambda axes: _errors(axes, found),
        )
    ]
    if found.causes:
        figures.append(
            _figure(
                "causes",
                "Error of y where one block of weights alone is rounded, or x and h alone; the worst first.",
                lambda axes: _causes(axes, found),
            )
        )
    return Page(
        "drift", name, found._title(), found, found.verdict(), figures, tables=list(found._tables())
    )


def _errors(axes: Axes, found: Drift) -> None:
    for k, curve in enumerate(found.curves):
        edges = np.unique(np.linspace(0, len(curve.rms), 101).astype(int))
        squares = np.add.reduceat(curve.rms**2, edges[:-1]) / np.diff(edges)
        good = squares > 0
        axes.plot(
            ((edges[:-1] + edges[1:]) / 2)[good],
            np.sqrt(squares)[good],
            color=COLOURS[k % len(COLOURS)],
            linewidth=3 if curve.name == "y" else 1.2,  # of a single layer, y is h: both are seen
            label=curve.name,
        )
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("error, RMS")
    axes.legend(fontsize=7)


def _causes(axes: Axes, found: Drift) -> None:
    shown = found.causes[:12][::-1]
    several = len({each.layer for each in found.causes}) > 1
    names = [f"{each.block}, {each.layer}" if several else each.block for each in shown]
    axes.barh(range(len(shown)), [each.rms for each in shown], color=COLOURS[0])
    axes.set_yticks(range(len(shown)), names)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("error of y, RMS")


# ---- trace ---------------------------------------------------------------------------------------


def trace_page(
    found: Trace, name: str, x: npt.NDArray[Any], text: str | None, units: Sequence[int] = ()
) -> Page:
    """The gates of some units over the input: of the first sequence.

    Parameters
    ----------
    found
        Of x, (T, B, X).
    name
        Of the model.
    x, text
        What the layer has read, and the text that x is, if it is one.
    units
        Which units, of the last layer; none for those that follow the text, or else for the most and least used and
        those of the longest memory.
    """
    last = len(found) - found.architecture.directions
    chosen = [(last, unit) for unit in units] or _worth_drawing(found, last)
    follows = {(each.place, each.unit): each for each in reversed(found.tracked)}
    by_place = {(unit.place, unit.unit): unit for unit in found.units}
    drawn = []
    for place, number in chosen:
        unit = by_place[place, number]
        about = _about(unit)
        if each := follows.get((place, number)):
            about = f"{each.feature}: {_followed(each)}. {about}"
        rows, signed = _rows(found, place, number)
        title = f"Unit {number} of {place_name(found.architecture, place)}"
        if text is None:
            inputs = {f"x {k}": x[:, 0, k] for k in range(min(x.shape[2], INPUTS))}
            strips = [of_steps(inputs | rows, signed | frozenset(inputs))]
            drawn.append(Drawn(title, about, True, strips))
        else:
            drawn.append(Drawn(title, about, False, list(of_text(rows, signed, text))))
    scale = "Of the first sequence, if there are several."
    if text is not None:
        scale = f"Under the first {min(len(text), MAX_CHARACTERS)} characters."
    figures = []
    if found.architecture.table.retaining_gate:
        figures = [
            _figure("use", "Each unit: its half-life and how much it is used.", lambda axes: _use(axes, found))
        ]  # fmt: skip
    return Page(
        "trace",
        name,
        found._title(),
        found,
        _lead(found),
        figures,
        drawn,
        scale,
        list(found._tables()),
        list(found._notes()),
    )


def _worth_drawing(found: Trace, place: int) -> list[tuple[int, int]]:
    units = [(each.place, each.unit) for each in found.tracked]
    longest = sorted(
        (unit for unit in found.units if unit.place == place),
        key=lambda unit: -(unit.half_life or 0),
    )
    others = [*found.most_used(place, 2), *longest[:2], *found.least_used(place, 2)]
    units += [(unit.place, unit.unit) for unit in others]
    return list(dict.fromkeys(units))[:DRAWN]


def _lead(found: Trace) -> list[str]:
    lines = []
    for each in found.tracked[:5]:
        layer = place_name(found.architecture, each.place)
        lines.append(
            f"{each.feature}: {_followed(each)}, {layer}, on the half of the text that it was not chosen on."
        )
    for place in range(len(found)):
        most, least = found.most_used(place, 1)[0], found.least_used(place, 1)[0]
        lines.append(
            f"{place_name(found.architecture, place)}: unit {most.unit} is used most, unit {least.unit} least."
        )
    return lines


def _followed(each: Tracked) -> str:
    means = ""
    if each.where is not None and each.elsewhere is not None:
        means = f", {each.where:.2f} there and {each.elsewhere:.2f} elsewhere"
    return (
        f"followed by {each.value} of unit {each.unit} (correlation {each.correlation:+.2f}{means})"
    )


def _about(unit: Unit) -> str:
    parts = [f"Its output varies by {unit.use:.2f}."]
    if unit.half_life is not None:
        half = (
            "beyond half of the input"
            if np.isinf(unit.half_life)
            else f"{unit.half_life:,.3g} steps"
        )
        parts.append(f"Half-life {half}.")
    shares = [f"{name} {share:.0%}" for name, share in unit.saturated.items()]
    if shares:
        parts.append(f"At an end of the range: {', '.join(shares)} of the steps.")
    return " ".join(parts)


def _rows(
    found: Trace, place: int, unit: int
) -> tuple[dict[str, npt.NDArray[Any]], frozenset[str]]:
    """The arrays of a unit that are drawn, each (T,), of the first sequence; and those of them that have a sign."""
    a, named = found.architecture, found._flat[place]
    gates = [each.name for each in a.table.gates if each.role == "gate" and each.name in named]
    if a.coupled:
        gates.append("i")
    candidates = [
        each.name for each in a.table.gates if each.role == "state" and each.name in named
    ]
    others = [each for each in ("due", "retained", "added", "c", "output") if each in named]
    if "output" not in named and "h" not in candidates:
        others.append("h")
    rows = {name: named[name][:, 0, unit] for name in (*gates, *candidates, *others)}
    return rows, frozenset(rows) - set(gates) - {"due"}


def _use(axes: Axes, found: Trace) -> None:
    for place in range(len(found)):
        own = [
            unit for unit in found.units if unit.place == place and np.isfinite(unit.half_life or 0)
        ]
        axes.plot(
            [unit.half_life or 0.0 for unit in own if np.isfinite(unit.half_life or 0)],
            [unit.use for unit in own if np.isfinite(unit.half_life or 0)],
            "o",
            markersize=3,
            color=COLOURS[place % len(COLOURS)],
            label=place_name(found.architecture, place),
        )
    axes.set_xscale("log")
    axes.set_xlabel("half-life in steps")
    axes.set_ylabel("use")
    axes.legend(fontsize=7)
