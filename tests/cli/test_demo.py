"""The character model: real weights and a real text, in every backend."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

import fusedrnn as fr
from fusedrnn import demo
from fusedrnn.cli import main

NUMBA = importlib.util.find_spec("numba") is not None


def test_the_data_is_small_and_fits_the_model() -> None:
    for name in ("acts.txt", "char_lstm.safetensors", "README.md"):
        assert 0 < len((files("fusedrnn") / "data" / name).read_bytes()) < 500_000
    model = demo.load_model()
    assert set(demo.held_out_text()) <= set(model.vocabulary)
    assert model.head_weight.shape == (len(model.vocabulary), 128)


def test_backends_agree_on_the_text_and_with_the_training_script() -> None:
    model = demo.load_model()
    text = demo.held_out_text()[:3000]
    engines = demo._read(demo._engines(model), model, text, progress=False)
    bits = {name: row["bits_per_character"] for name, row in engines.items()}
    assert set(bits) == {"naive NumPy", "numpy", "c"} | ({"numba"} if NUMBA else set())
    assert max(bits.values()) - min(bits.values()) <= 1e-4 * min(bits.values())
    header = (files("fusedrnn") / "data" / "char_lstm.safetensors").read_bytes()
    stored = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]
    # Of the whole book; its beginning is much like the rest.
    assert bits["c"] == pytest.approx(float(stored["held_out_bits_per_character"]), rel=0.1)


def test_the_weights_are_those_of_the_file() -> None:
    load = pytest.importorskip("safetensors.numpy").load
    stored = (files("fusedrnn") / "data" / "char_lstm.safetensors").read_bytes()
    model, expected = demo.load_model(), load(stored)
    arrays = {**model.weights, "head.weight": model.head_weight, "head.bias": model.head_bias}
    assert set(arrays) == set(expected)
    for name, array in arrays.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, expected[name])


def test_it_needs_nothing_but_its_weights() -> None:
    """Not what the extras bring: it reads, and says which backend is left out."""
    code = (
        "import sys\n"
        "for name in ('safetensors', 'threadpoolctl', 'numba', 'rich', 'pytest'):\n"
        "    sys.modules[name] = None\n"
        "from fusedrnn import cli, demo\n"
        "demo.held_out_text = lambda: 'The former treatise have I made'\n"
        "sys.exit(cli.main(['demo', '--characters', '9', '--seed', '3']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^c  +\d", done.stdout, re.MULTILINE)
    assert "numba is left out" in done.stdout


def test_rounding_stays_small_on_a_long_text() -> None:
    model = demo.load_model()
    x = model.one_hot(demo.held_out_text()[:10_000])
    exact = {name: array.astype(np.float64) for name, array in model.weights.items()}
    true_y, _ = fr.LSTM.from_weights(exact, dtype="float64")(x.astype(np.float64))
    for backend in ("c", "numba") if NUMBA else ("c",):
        y, _ = fr.LSTM.from_weights(model.weights, backend=backend)(x)
        assert np.abs(y - true_y).max() < 5e-5


def test_negative_control_a_wrong_gate_order_reads_badly() -> None:
    model = demo.load_model()
    swapped = {
        name: np.concatenate([np.split(array, 4)[gate] for gate in (1, 0, 2, 3)])
        for name, array in model.weights.items()
    }
    text = demo.held_out_text()[:1000]
    x, following = model.one_hot(text[:-1]), text[1:]
    right = model.bits(fr.LSTM.from_weights(model.weights)(x)[0], following)
    wrong = model.bits(fr.LSTM.from_weights(swapped)(x)[0], following)
    assert wrong > 1.1 * right


def test_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "held_out_text", lambda: "The former treatise have I made")
    arguments = ["demo", "--json", "--characters", "50", "--seed", "3"]
    assert main(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    assert main([*arguments, "--backend", "numpy"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert first["sample"] == second["sample"], "one seed, one text, whatever the backend"
    assert len(first["sample"]) == 50
    assert first["agree"] is True


def test_bad_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--characters", "-1"], "characters must be from 0"),
        (["--characters", "99999999999999999999"], "characters must be from 0"),
        (["--seed", "-1"], "seed must not be negative"),
        (["--temperature", "-0.5"], "temperature must not be negative"),
        (["--temperature", "nan"], "temperature must not be negative"),
        (["--backend", "cuda"], "--backend: 'cuda' is not one of auto, c"),
        (["--temperature", "x"], "--temperature"),
    ):
        assert main(["demo", *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.skipif(not NUMBA, reason="numba is not installed")
def test_an_engine_that_cannot_run_fails_before_anything_is_said() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fusedrnn", "demo"],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "NUMBA_DISABLE_JIT" in done.stderr


def test_the_training_script_is_there() -> None:
    script = Path(__file__).parents[2] / "examples" / "train_kjv.py"
    compile(script.read_text(encoding="utf-8"), str(script), "exec")
