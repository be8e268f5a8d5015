"""The row with real data: the character model of ``fusedrnn demo`` reads the Acts of the Apostles."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np

import fusedrnn as fr
from fusedrnn.bench.cases import Case
from fusedrnn.bench.measure import Problem, Subject, pose
from fusedrnn.bench.peers import Array, make

__all__ = ["QUICK_CHARACTERS", "bits_per_character", "demo_problem", "demo_subject"]

DATA = Path(fr.__file__).parent / "data"

#: How much of the text ``--quick`` reads.
QUICK_CHARACTERS = 2000


@cache
def demo_problem(characters: int | None) -> Problem:
    """The model on the first so many characters of the text; None for all of it."""
    weights, vocabulary = _model()
    text = _text(characters)
    index = [vocabulary.index(character) for character in text]
    x = np.eye(len(vocabulary), dtype=np.float32)[index][:, None]
    hidden = weights["weight_hh_l0"].shape[1]
    case = Case("sequence", len(text), 1, len(vocabulary), hidden)
    title = f"H={hidden}, X={len(vocabulary)}, T={len(text):,}"
    recurrent = {name: array for name, array in weights.items() if not name.startswith("head.")}
    return pose(case, title, recurrent, x)


@cache
def demo_subject(engine: str, characters: int | None) -> Subject:
    """An engine on that problem."""
    posed = demo_problem(characters)
    return Subject(posed, engine, make(engine, posed.weights))


@cache
def bits_per_character(subject: Subject) -> float:
    """How badly the model guesses the next character with this engine's outputs: less is better."""
    weights, _ = _model()
    subject.peer.reset()
    y = subject.peer.run(subject.problem.x)[:-1, 0].astype(np.float64)
    following = subject.problem.x[1:, 0].argmax(axis=1)
    logits = y @ weights["head.weight"].T + weights["head.bias"]
    logits -= logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(len(logits)), following]
    nats = np.log(np.exp(logits).sum(axis=1)) - chosen
    return float(nats.mean() / np.log(2))


@cache
def _model() -> tuple[dict[str, Array], str]:
    from safetensors import safe_open

    with safe_open(DATA / "char_lstm.safetensors", framework="numpy") as file:
        vocabulary: str = json.loads(file.metadata()["vocabulary"])
        return {name: file.get_tensor(name) for name in file.keys()}, vocabulary  # noqa: SIM118


def _text(characters: int | None) -> str:
    return (DATA / "acts.txt").read_text(encoding="ascii")[:characters]
