"""The examples that train without a framework: they learn, stop cleanly, and go on as if they had never stopped."""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusedrnn as fr

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = ("train_adding_problem", "train_characters")
SENTENCE = "the cat sat on the mat, and the rat that sat in the hat ate it. "

Change = Callable[[dict[str, np.ndarray]], None]


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    """The examples can be imported, with what draws and shows progress."""
    for package in ("matplotlib", "rich"):
        pytest.importorskip(package)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield


def a_text(folder: Path) -> Path:
    file = folder / "text.txt"
    file.write_text(60 * SENTENCE)
    return file


def arguments(script: str, folder: Path, out: str, *more: str) -> list[str]:
    """A small training of some 40 steps."""
    small = ["--hidden", "7", "--steps", "41", "--every", "10", "--out", str(folder / out), *more]
    if script == "train_characters":
        return [str(a_text(folder)), "--window", "16", *small]
    return ["--length", "6", *small]


def run(script: str, folder: Path, out: str, *more: str) -> int:
    code = importlib.import_module(script).main(arguments(script, folder, out, *more))
    assert isinstance(code, int)
    return code


def checkpoint(folder: Path, out: str) -> dict[str, bytes]:
    """All that a checkpoint holds, bit by bit."""
    with np.load(folder / out / "checkpoint.npz") as arrays:
        return {name: array.tobytes() for name, array in arrays.items()}


# ---- they learn ----------------------------------------------------------------------------------


def untrained(gradients: dict[str, np.ndarray]) -> None:
    for gradient in gradients.values():
        gradient[...] = 0


def no_recurrent(gradients: dict[str, np.ndarray]) -> None:
    gradients["weight_hh_l0"][...] = 0


def flipped_recurrent(gradients: dict[str, np.ndarray]) -> None:
    gradients["weight_hh_l0"] *= -1


BROKEN = (untrained, no_recurrent, flipped_recurrent)


def last_point(training: Any, change: Change | None) -> float:
    """What the curve ends with if the gradients are changed before each step."""
    right = training.gradients

    def changed() -> tuple[float, dict[str, np.ndarray]]:
        loss, gradients = right()
        if change is not None:
            change(gradients)
        return loss, gradients

    training.gradients = changed
    for _ in range(training.settings["steps"]):
        training.advance()
    return float(training.curve[-1][-1])


def adding(change: Change | None = None) -> float:
    settings = {"cell": "gru", "hidden": 16, "steps": 300, "every": 50, "seed": 1, "length": 10}
    script = importlib.import_module("train_adding_problem")
    return last_point(script.AddingProblem(settings), change)


def characters(change: Change | None = None) -> float:
    """Bits per character of a held-out text."""
    settings = {"cell": "lstm", "hidden": 32, "steps": 120, "every": 40, "seed": 1, "window": 16}
    script = importlib.import_module("train_characters")
    return last_point(script.Characters(settings, 60 * SENTENCE, 4 * SENTENCE), change)


def test_the_adding_problem_is_learnt() -> None:
    assert adding() < 0.02


def test_the_characters_are_learnt() -> None:
    assert characters() < 1.1


@pytest.mark.parametrize("change", BROKEN)
def test_negative_control_broken_gradients_do_not_add(change: Change) -> None:
    assert adding(change) > 0.04


@pytest.mark.parametrize("change", BROKEN)
def test_negative_control_broken_gradients_do_not_write(change: Change) -> None:
    assert characters(change) > 1.3


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_gradients_are_those_of_the_loss(script: str) -> None:
    """The head's, too, and through the head: along a direction, against central differences in float32."""
    module = importlib.import_module(script)
    settings = {"cell": "lstm", "hidden": 8, "steps": 9, "every": 9, "seed": 2}

    def loss_at(step: float, direction: dict[str, np.ndarray]) -> float:
        training = (
            module.AddingProblem(settings | {"length": 6})
            if script == "train_adding_problem"
            else module.Characters(settings | {"window": 16}, 60 * SENTENCE, SENTENCE)
        )
        moved = {
            name: array + np.float32(step) * direction.get(name, np.float32(0))
            for name, array in training.weights.items()
        }
        training.head = {name: moved.pop(name) for name in training.head}
        training.layer = training.layer.with_weights(moved)
        loss, gradients = training.gradients()
        along.update(gradients)
        # The characters' loss is in bits, the gradients are those of nats.
        return float(loss * (np.log(2) if script == "train_characters" else 1))

    along: dict[str, np.ndarray] = {}
    loss_at(0, {})
    gradients = {name: array.copy() for name, array in along.items()}
    for name, gradient in gradients.items():
        norm = float(np.linalg.norm(gradient))
        direction = {name: gradient / norm}
        slope = (loss_at(1e-2, direction) - loss_at(-1e-2, direction)) / 2e-2
        assert slope == pytest.approx(norm, rel=2e-2), name


# ---- they stop and go on -------------------------------------------------------------------------


def interrupted(script: str, step: int, folder: Path, out: str) -> int:
    """The exit code after a Ctrl-C in the middle of a step."""
    module = importlib.import_module("training_run")
    advance = module.Training.advance
    with pytest.MonkeyPatch.context() as patch:

        def advance_and_interrupt(training: Any) -> None:
            if training.step == step:
                signal.raise_signal(signal.SIGINT)
            advance(training)

        patch.setattr(module.Training, "advance", advance_and_interrupt)
        return run(script, folder, out)


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_interrupted_run_goes_on_as_if_there_had_been_no_interrupt(
    script: str, tmp_path: Path
) -> None:
    assert run(script, tmp_path, "whole") == 0
    # Between two points of the curve, and inside a pass over the text.
    assert interrupted(script, 16, tmp_path, "parts") == 130
    assert int.from_bytes(checkpoint(tmp_path, "parts")["step"], "little") == 17
    assert run(script, tmp_path, "parts", "--resume") == 0
    assert checkpoint(tmp_path, "parts") == checkpoint(tmp_path, "whole")
    assert (tmp_path / "parts" / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("script", "forgotten"),
    [(SCRIPTS[0], "adam"), (SCRIPTS[1], "adam"), (SCRIPTS[1], "state")],
)
def test_negative_control_what_a_checkpoint_must_hold(
    script: str, forgotten: str, tmp_path: Path
) -> None:
    assert run(script, tmp_path, "whole") == 0
    interrupted(script, 16, tmp_path, "parts")
    file = tmp_path / "parts" / "checkpoint.npz"
    with np.load(file) as found:
        arrays = dict(found)
    for name, array in arrays.items():
        if name.startswith(forgotten):
            array[...] = 0
    np.savez(file, **arrays)
    assert run(script, tmp_path, "parts", "--resume") == 0
    assert checkpoint(tmp_path, "parts")["curve"] != checkpoint(tmp_path, "whole")["curve"]


def test_ctrl_c_ends_the_process_with_a_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "train_adding_problem.py"), "--steps", "1000000"]
    command += ["--hidden", "7", "--length", "6", "--every", "20", "--out", str(tmp_path / "run")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith("step 20")
        process.send_signal(signal.SIGINT)
        said = process.stdout.read()
        assert (process.stderr.read(), process.wait(60)) == ("", 130)
    assert "--resume" in said.splitlines()[-1]
    step = int.from_bytes(checkpoint(tmp_path, "run")["step"], "little")
    assert f"after step {step} of 1000000" in said
    assert fr.load(tmp_path / "run" / "checkpoint.npz").architecture.hidden_size == 7


KILLED = """
import os, signal, sys
import fusedrnn.files, train_adding_problem, training_run

written = 0
def first_half(write):
    def half(*arguments):
        global written
        *file, content = arguments
        written += 1
        if written == 2:
            write(*file, content[:len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        write(*file, content)
    return half

class Unbuffered(fusedrnn.files.Draft):
    def write(self, content):
        super().write(content)
        self._pieces.flush()

if sys.argv.pop(1) == "whole or absent":
    fusedrnn.files.Draft = Unbuffered
    Unbuffered.write = first_half(Unbuffered.write)
else:
    training_run.write_file = first_half(lambda file, content: file.write_bytes(content))
train_adding_problem.main(sys.argv[1:])
"""


@pytest.mark.parametrize("way", ["whole or absent", "in place"])
def test_a_checkpoint_is_whole_after_a_kill_in_the_middle_of_the_next(
    way: str, tmp_path: Path
) -> None:
    """And the negative control: one that is written in place is not."""
    small = arguments("train_adding_problem", tmp_path, "run")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, way, *small],
        cwd=EXAMPLES,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")
    resumed = run("train_adding_problem", tmp_path, "run", "--resume")
    if way == "in place":
        assert resumed == 2
        return
    assert list((tmp_path / "run").glob(".fusedrnn-*"))  # what was being written
    assert resumed == 0
    assert run("train_adding_problem", tmp_path, "other") == 0
    assert checkpoint(tmp_path, "run") == checkpoint(tmp_path, "other")


def test_no_training_is_lost_or_mixed_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "train_characters"
    assert run(script, tmp_path, "none", "--resume") == 2
    assert run(script, tmp_path, "run") == 0
    before = checkpoint(tmp_path, "run")
    assert run(script, tmp_path, "run") == 2
    for option, value in (("--hidden", "8"), ("--seed", "5"), ("--steps", "50")):
        capsys.readouterr()
        assert run(script, tmp_path, "run", option, value, "--resume") == 2
        assert option[2:] in capsys.readouterr().err
    held_out = tmp_path / "other.txt"
    held_out.write_text("another text")
    assert run(script, tmp_path, "run", "--held-out", str(held_out), "--resume") == 2
    assert checkpoint(tmp_path, "run") == before


def test_a_text_that_is_too_short_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "short.txt"
    text.write_text("too short")
    script = importlib.import_module("train_characters")
    assert script.main([str(text), "--out", str(tmp_path / "run")]) == 2
    assert "too short" in capsys.readouterr().err
