"""The gates of a unit over its input, as rows of colours: under the characters of a text, or over steps."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["GATE_COLOURS", "STATE_COLOURS", "Drawn", "Strip", "of_steps", "of_text"]

#: Names of matplotlib's colour maps: of values from 0 to 1, and of those with a sign.
GATE_COLOURS, STATE_COLOURS = "YlGnBu", "PuOr"
#: Characters of a line, and of all lines that are drawn: a line is legible on a phone.
LINE, MAX_CHARACTERS = 32, 512
#: The most columns of a strip over steps; more steps than that are averaged.
MAX_COLUMNS = 400
#: Sizes in units of the drawing: a character, a row, and what is left of both for names.
CHARACTER, ROW, LEFT = 10, 9, 44

Values = npt.NDArray[Any]


@dataclass(frozen=True)
class Strip:
    """One drawing: rows of colours, and what stands above and beside them."""

    about: str
    width: int
    height: int
    left: int
    characters: Sequence[tuple[int, str]]
    names: Sequence[tuple[int, str]]
    marks: Sequence[tuple[int, str]]
    png: str


@dataclass(frozen=True)
class Drawn:
    """A unit, drawn."""

    title: str
    about: str
    wide: bool
    strips: Sequence[Strip]


def of_text(rows: Mapping[str, Values], signed: frozenset[str], text: str) -> Iterator[Strip]:
    """Values of a unit, each (T,), under the characters that the steps have read, line by line."""
    text = text[:MAX_CHARACTERS]
    image = _coloured({name: values[: len(text)] for name, values in rows.items()}, signed)
    for first in range(0, len(text), LINE):
        part = text[first : first + LINE]
        piece = np.zeros((len(rows), LINE, 4))
        piece[:, : len(part)] = image[:, first : first + LINE]
        shown = "".join(character if character.isprintable() else "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}" for character in part)  # fmt: skip
        yield Strip(
            about=f"{', '.join(rows)} under {' '.join(part.split())!r}",
            width=LEFT + LINE * CHARACTER,
            height=14 + ROW * len(rows),
            left=LEFT,
            characters=[
                (LEFT + CHARACTER * k + CHARACTER // 2, each)
                for k, each in enumerate(shown)
                if each != " "
            ],
            names=_names(rows),
            marks=(),
            png=_png(piece),
        )


def of_steps(rows: Mapping[str, Values], signed: frozenset[str]) -> Strip:
    """Values of a unit, each (T,), over all steps."""
    steps = len(next(iter(rows.values())))
    edges = np.unique(np.linspace(0, steps, min(steps, MAX_COLUMNS) + 1).astype(int))
    mean = {
        name: np.add.reduceat(values.astype(np.float64), edges[:-1]) / np.diff(edges)
        for name, values in rows.items()
    }
    width = 720
    return Strip(
        about=f"{', '.join(rows)} over {steps} steps",
        width=width,
        height=14 + ROW * len(rows),
        left=LEFT,
        characters=(),
        names=_names(rows),
        marks=[(LEFT, "step 0"), (width - 6 * len(f"{steps:,}"), f"{steps:,}")],
        png=_png(_coloured(mean, signed)),
    )


def _names(rows: Mapping[str, Values]) -> list[tuple[int, str]]:
    return [(14 + ROW * k + 8, name) for k, name in enumerate(rows)]


def _coloured(rows: Mapping[str, Values], signed: frozenset[str]) -> npt.NDArray[np.float64]:
    """The colours of values, (rows, T, 4): those with a sign by the largest of them."""
    from matplotlib import colormaps

    lines = []
    for name, values in rows.items():
        if name in signed:
            largest = float(np.nanmax(np.abs(values), initial=0)) or 1.0
            lines.append(colormaps[STATE_COLOURS]((values / largest + 1) / 2))
        else:
            lines.append(colormaps[GATE_COLOURS](values.astype(np.float64)))
    return np.array(lines)


def _png(pixels: npt.NDArray[np.float64]) -> str:
    from matplotlib.image import imsave

    file = io.BytesIO()
    imsave(file, pixels, format="png", metadata={"Software": "fusedrnn"})
    return base64.b64encode(file.getvalue()).decode()
