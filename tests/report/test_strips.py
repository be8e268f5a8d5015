"""Rows of colours: what is drawn where."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib import colormaps
from matplotlib.image import imread

from fusedrnn.report.strips import (
    GATE_COLOURS,
    LINE,
    MAX_CHARACTERS,
    MAX_COLUMNS,
    STATE_COLOURS,
    Strip,
    of_steps,
    of_text,
)


def pixels(strip: Strip) -> np.ndarray:
    return imread(io.BytesIO(base64.b64decode(strip.png)), format="png")


def assert_colour(pixel: np.ndarray, name: str, share: float) -> None:
    np.testing.assert_allclose(pixel, colormaps[name](share), atol=2 / 255)


def test_values_stand_under_their_characters() -> None:
    text = "ab c\n" * 10
    f, c = np.linspace(0, 1, len(text)), np.linspace(-2, 4, len(text))
    strips = list(of_text({"f": f, "c": c}, frozenset("c"), text))
    assert len(strips) == 2
    drawn = pixels(strips[1])
    assert drawn.shape == (2, LINE, 4)
    for k in (0, 7, len(text) - LINE - 1):
        assert_colour(drawn[0, k], GATE_COLOURS, f[LINE + k])
        assert_colour(drawn[1, k], STATE_COLOURS, (c[LINE + k] / 4 + 1) / 2)
    assert drawn[0, len(text) - LINE :, 3].max() == 0  # nothing past the end of the text
    assert [name for _, name in strips[0].names] == ["f", "c"]
    shown = [character for _, character in strips[0].characters]
    assert "".join(shown[:4]) == "abc\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"
    places = [x for x, _ in strips[0].characters]
    assert places[1] - places[0] == 10 and places[2] - places[1] == 20  # a space between


def test_a_long_text_is_cut() -> None:
    text = "x" * (3 * MAX_CHARACTERS)
    strips = list(of_text({"f": np.zeros(len(text))}, frozenset(), text))
    assert len(strips) * LINE == MAX_CHARACTERS


def test_many_steps_are_averaged() -> None:
    steps = 3 * MAX_COLUMNS
    f = np.tile([0.0, 0.3, 0.9], MAX_COLUMNS)
    drawn = pixels(of_steps({"f": f}, frozenset()))
    assert drawn.shape == (1, MAX_COLUMNS, 4)
    assert_colour(drawn[0, 5], GATE_COLOURS, 0.4)
    few = pixels(of_steps({"f": f[:9], "x": -f[:9]}, frozenset("x")))
    assert few.shape == (2, 9, 4)
    assert_colour(few[0, 2], GATE_COLOURS, 0.9)
    assert_colour(few[1, 2], STATE_COLOURS, 0.0)
    assert f"{steps:,}" in dict(map(reversed, of_steps({"f": f}, frozenset()).marks))
