"""What units follow in a text: features, and units that are made to follow one."""

from __future__ import annotations

import numpy as np
import pytest

import fusedrnn as fr
from fusedrnn.analysis.text import FEW, features, tracked
from fusedrnn.demo import held_out_text, load_model

LINE = "Go, Paul.\nSo be it\n"


def test_features_of_a_line() -> None:
    found = features(LINE)
    assert all(len(values) == len(LINE) for values in found.values())

    def marked(name: str) -> str:
        return "".join(c for c, on in zip(LINE, found[name], strict=True) if on)

    assert marked("capital letter") == "GPS"
    assert marked("vowel") == "oauoei"
    assert marked("punctuation mark") == ",."
    assert marked("end of a line") == "\n\n"
    assert marked("space") == "   "
    assert found["position in a word"][4:8].tolist() == [1, 2, 3, 4]
    line = np.expm1(found["position in a line, log"]).round()
    assert line[:10].tolist() == [*range(9), 0] and line[10] == 1
    marks = np.expm1(found["characters since a mark, log"]).round()
    assert marks[2:6].tolist() == [0, 1, 2, 3]


def test_a_unit_that_follows_is_found_and_noise_is_not() -> None:
    text = LINE * 100
    random = np.random.default_rng(0)
    wanted = features(text)
    c = random.standard_normal((len(text), 1, 30))
    c[:, 0, 7] += 5 * wanted["vowel"]
    c[:, 0, 19] -= 3 * wanted["end of a line"]
    noise = random.standard_normal((len(text), 1, 30))
    found = {each.feature: each for each in tracked([{"h": noise}, {"h": noise, "c": c}], text)}
    vowel, line = found["vowel"], found["end of a line"]
    assert (vowel.value, vowel.unit, vowel.place) == ("c", 7, 1)
    assert (line.value, line.unit) == ("c", 19)
    half = len(text) // 2
    assert vowel.correlation == pytest.approx(
        np.corrcoef(c[half:, 0, 7], wanted["vowel"][half:])[0, 1]
    )
    assert vowel.correlation > 0 > line.correlation
    assert vowel.where == pytest.approx(5, abs=0.2) and vowel.elsewhere == pytest.approx(0, abs=0.2)
    assert (
        tracked([{"h": noise}], text) == ()
    )  # a negative control: the best of many is still noise
    assert tracked([{"c": c[:50]}], text[:50]) == ()  # too short to tell
    assert FEW > 50


def test_what_the_demo_model_follows() -> None:
    """What docs/memory.md says, on another part of the book than the command reads."""
    model, text = load_model(), held_out_text()[20_000:28_000]
    layer = fr.LSTM.from_weights(model.weights)
    trace = fr.analysis.trace(layer, model.one_hot(text))
    wanted = features(text)
    o, c = trace[0]["o"][:, 0], trace[0]["c"][:, 0]
    assert np.corrcoef(o[:, 6], wanted["punctuation mark"])[0, 1] > 0.6
    assert np.corrcoef(c[:, 51], wanted["position in a line, log"])[0, 1] < -0.35
    # Its input gate opens at the end of a line, and hardly anywhere else.
    i, ends = trace[0]["i"][:, 0, 51], wanted["end of a line"] > 0
    assert i[ends].mean() > 4 * i[~ends].mean()
    # A negative control: another unit's does not.
    other = trace[0]["i"][:, 0, 6]
    assert other[ends].mean() < 2 * other[~ends].mean()
    assert {each.feature for each in trace.reading(text).tracked} >= {"punctuation mark"}
