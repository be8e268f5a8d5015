"""What units of a layer that reads text follow in it: the position in a word, marks, ends of lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["FEW", "Tracked", "features", "tracked"]

Float64 = npt.NDArray[np.float64]

#: Fewer characters than this do not tell what a unit follows.
FEW = 1000
#: A correlation below this on the second half of a text is not called following.
WEAK = 0.3
#: Arrays of a trace that units are looked for in: gates and states, but for an h that only shows c.
VALUES = ("i", "f", "o", "c", "r", "z", "h")


@dataclass(frozen=True)
class Tracked:
    """The value of a unit that follows a feature of a text best.

    Attributes
    ----------
    feature
        One of :func:`features`.
    value, unit, place
        The name of an array, the unit, and the index of the layer and direction: chosen on the first half of the text.
    correlation
        Pearson's, on the second half: it was not chosen for that.
    where, elsewhere
        The mean of the value at characters that have the feature, and at all others, of the second half; None for a
        position.
    """

    feature: str
    value: str
    unit: int
    place: int
    correlation: float
    where: float | None
    elsewhere: float | None


def features(text: str) -> dict[str, Float64]:
    """Features of each character of a text, (T,), by name: 1 or 0, or positions, which count from 0."""
    letters = np.array([character.isalpha() for character in text])
    breaks = np.array([character == "\n" for character in text])
    marks = np.array([character in ",.;:?!" for character in text])
    shown = {
        "capital letter": np.array([character.isupper() for character in text]),
        "vowel": np.array([character in "aeiouAEIOU" for character in text]),
        "space": np.array([character == " " for character in text]),
        "punctuation mark": marks,
        "end of a line": breaks,
        "position in a word": _since(~letters),
        "position in a line, log": np.log1p(_since(breaks)),
        "characters since a mark, log": np.log1p(_since(marks)),
    }
    return {name: values.astype(np.float64) for name, values in shown.items()}


def _since(ends: npt.NDArray[np.bool_]) -> Float64:
    """How many steps ago the last end was; from the beginning of the text, before the first."""
    steps = np.arange(len(ends))
    return np.asarray(steps - np.maximum.accumulate(np.where(ends, steps, 0)), np.float64)


def tracked(values: Sequence[Mapping[str, npt.NDArray[Any]]], text: str) -> tuple[Tracked, ...]:
    """The units that follow features of the text that a layer has read.

    Parameters
    ----------
    values
        Of each layer and direction: arrays (T, 1, ·), as :class:`~fusedrnn.analysis.gates.Recorded` has them.
    text
        T characters.

    Returns
    -------
    tuple of Tracked
        One for each feature that some unit follows, the strongest first; none for a text of fewer than :data:`FEW`.
    """
    if len(text) < FEW:
        return ()
    half = len(text) // 2
    columns, names = [], []
    for place, named in enumerate(values):
        for name in VALUES:
            if name in named and not (name == "h" and "c" in named):
                columns.append(named[name][:, 0].astype(np.float64))
                names += [(name, unit, place) for unit in range(named[name].shape[2])]
    every = np.concatenate(columns, axis=1)
    found = []
    for feature, wanted in features(text).items():
        best = int(np.argmax(np.abs(_correlations(every[:half], wanted[:half]))))
        correlation = float(_correlations(every[half:, [best]], wanted[half:])[0])
        if abs(correlation) >= WEAK:
            means: list[float | None] = [None, None]
            if set(np.unique(wanted)) <= {0.0, 1.0}:
                has, rest = wanted[half:] > 0, every[half:, best]
                means = [float(rest[has].mean()), float(rest[~has].mean())]
            found.append(Tracked(feature, *names[best], correlation, *means))
    return tuple(sorted(found, key=lambda each: -abs(each.correlation)))


def _correlations(values: Float64, wanted: Float64) -> Float64:
    """Pearson's correlation of each column with a feature; 0 for what does not vary."""
    centred, feature = values - values.mean(axis=0), wanted - wanted.mean()
    size = np.linalg.norm(centred, axis=0) * np.linalg.norm(feature)
    return np.asarray(centred.T @ feature / np.where(size > 1e-9, size, np.inf))
