"""Forward and backward passes as a table, for a terminal, for Markdown and for the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fusedrnn.report.engines import ENGINES, OURS
from fusedrnn.report.groups import TRAINING
from fusedrnn.report.results import Ratio, Results, Row
from fusedrnn.report.text import duration, error, quartiles, ratio, share

__all__ = ["Line", "columns", "lines", "markdown_table"]


@dataclass(frozen=True)
class Line:
    """A row of that table.

    Attributes
    ----------
    backward
        How many times as long as the forward pass the rest takes.
    peak
        The part of a core's FMA rate that the products of the backward pass reach in that time; None where the limit is
        not known, or for several threads.
    against
        How many times as long each other engine takes, in the order of :func:`others`; None where it lacks the cell.
    scaling
        How many times as fast as with one thread, of rows with several.
    """

    row: Row
    backward: Ratio | None
    peak: float | None
    against: tuple[Ratio | None, ...]
    scaling: Ratio | None

    @property
    def cells(self) -> tuple[str, ...]:
        """Text, column by column, but for the ratios."""
        ours = self.row.measures.get(OURS)
        if ours is None:
            return ("not measured", *[""] * 5)
        return (
            duration(ours.median),
            "" if ours.reached is None else share(ours.reached),
            ratio(self.backward.median) if self.backward else "",
            "" if self.peak is None else share(self.peak),
            "" if ours.tape is None else f"{ours.tape:,} B",
            error(ours.error),
        )


def others(results: Results) -> list[str]:
    """The engines that C is compared with, which train too."""
    return [
        name
        for name in results.engines
        if name != OURS and any(name in row.measures for row in results.rows if row.trained)
    ]


def columns(results: Results) -> list[str]:
    """The headings of :attr:`Line.cells`, and then of the ratios."""
    return [
        *(
            ENGINES[OURS].short,
            "of the limit",
            "backward / forward",
            "of the peak",
            "tape",
            "error",
        ),
        *(f"{ENGINES[name].short} takes" for name in others(results)),
    ]


def lines(results: Results, group: str) -> list[Line]:
    """The rows of a group."""
    peak = float(results.limits["flops"]) if results.limits else None
    engines = others(results)
    found = []
    for row in results.in_group(group):
        ours = row.measures.get(OURS)
        rate = ours.backward_flops if ours else None
        alone = row.threads in (None, 1)
        found.append(
            Line(
                row,
                ours.backward if ours else None,
                rate / peak if rate and peak and alone else None,
                tuple(row.ratio(name) for name in engines),
                results.scaling(row, OURS) if row.threads not in (None, 1) else None,
            )
        )
    return found


def markdown_table(results: Results) -> str:
    """Every row, as one table in Markdown with the circumstances below it."""
    heads = ["", "shape", *columns(results)]
    text = [_row(heads), "|---|---|" + "--:|" * (len(heads) - 2)]
    for group in TRAINING:
        for each in lines(results, group):
            name = each.row.network + _KINDS[group]
            against = (_against(one) for one in each.against)
            text.append(_row([name, each.row.title, *each.cells, *against]))
    facts = results.environment
    versions = [
        f"{name} {facts['versions'][key]}"
        for name, key in (("fusedrnn", "fusedrnn"), ("NumPy", "numpy"))
    ]
    versions += [f"{ENGINES[name].label} {number}" for name, number in results.libraries.items()]
    text += [
        "",
        f"*{facts['cpu']}, {facts['isa']}; {', '.join(versions)}; {results.passes} passes.*",
    ]
    if facts["busy"]:
        text += ["", f"*The machine was busy: load {facts['load']:.2f} at the start.*"]
    return "\n".join(text) + "\n"


_KINDS = {
    "training": "",
    "ragged training": ", unequal lengths",
    "outputs training": ", unequal lengths, loss of the outputs",
    "training threads": "",
}


def _against(found: Ratio | None) -> str:
    """A ratio, bold where C is slower; a dash where there is none."""
    if found is None:
        return "–"
    return f"**{quartiles(found)}**" if found.verdict == "slower" else quartiles(found)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
