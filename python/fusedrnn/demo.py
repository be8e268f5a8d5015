"""A real model on real data: a character LSTM reads a book it has never seen, and writes some more.

``fusedrnn demo`` runs it through every backend and through naive NumPy. How the model was trained is in
``examples/train_kjv.py``; where it comes from, in ``data/README.md``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import as_file, files
from importlib.util import find_spec
from typing import Any

import numpy as np

import fusedrnn as fr
from fusedrnn.architecture import NARROW
from fusedrnn.arrays import Array
from fusedrnn.bench.peers.naive import LaidOut
from fusedrnn.bench.peers.naive import lstm as naive_lstm
from fusedrnn.engines import BACKENDS
from fusedrnn.formats.safetensors_file import listed
from fusedrnn.weights import Weights

__all__ = ["CharacterModel", "held_out_text", "load_model", "run"]

#: Engines take turns over pieces of this many characters, so that a slow moment hits them all.
PIECE = 4096

#: The engine that the others are compared with.
NAIVE = "naive NumPy"

#: The largest number of characters to write: all of them are kept in memory.
MAX_CHARACTERS = 1_000_000

#: Bits per character of any two backends differ by less than this, relatively.
AGREEMENT = 1e-4


@dataclass(frozen=True)
class CharacterModel:
    """One-hot characters -> LSTM -> a probability for each next character.

    Attributes
    ----------
    weights
        The canonical arrays of the LSTM.
    head_weight, head_bias
        (V, H) and (V,): from h to the logits of the V characters.
    vocabulary
        The V characters, in index order.
    """

    weights: Weights
    head_weight: Array
    head_bias: Array
    vocabulary: str

    def indices(self, text: str) -> list[int]:
        """The place of each character in the vocabulary."""
        places = {character: place for place, character in enumerate(self.vocabulary)}
        for character in text:
            if character not in places:
                raise ValueError(
                    f"{character!r} is not one of the {len(places)} characters that the model knows: "
                    f"{self.vocabulary.strip()} and the end of a line"
                )
        return [places[character] for character in text]

    def one_hot(self, text: str) -> Array:
        """x (T, 1, V): a 1 at each character's place."""
        return np.eye(len(self.vocabulary), dtype=np.float32)[self.indices(text)][:, None]

    def log_probabilities(self, h: Array) -> Array:
        """Of every next character, (..., V), in float64."""
        logits = h.astype(np.float64) @ self.head_weight.T + self.head_bias
        logits -= logits.max(axis=-1, keepdims=True)
        result: Array = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        return result

    def bits(self, y: Array, following: str) -> float:
        """The bits it takes to say ``following``, given the outputs y (T, 1, H) before each character."""
        chosen = self.log_probabilities(y[:, 0])[np.arange(len(y)), self.indices(following)]
        return float(-chosen.sum() / np.log(2))


@lru_cache(maxsize=1)
def load_model() -> CharacterModel:
    """The trained model that comes with the package."""
    with as_file(files("fusedrnn") / "data" / "char_lstm.safetensors") as path:
        tensors, about = listed(path)
        arrays = {name: np.array(tensor.read()) for name, tensor in tensors.items()}
    head = {name: arrays.pop(name) for name in ("head.weight", "head.bias")}
    return CharacterModel(
        weights=arrays,
        head_weight=head["head.weight"],
        head_bias=head["head.bias"],
        vocabulary=json.loads(about["vocabulary"]),
    )


def held_out_text() -> str:
    """The Acts of the Apostles, which the model was not trained on: one verse a line."""
    return (files("fusedrnn") / "data" / "acts.txt").read_text(encoding="ascii")


def run(
    *,
    backend: str = "auto",
    characters: int = 400,
    temperature: float = 0.7,
    seed: int | None = None,
    as_json: bool = False,
) -> int:
    """Read the text with every engine, then write some more; say what that took.

    Parameters
    ----------
    backend
        The backend that writes.
    characters
        Number of characters to write, from 0 to :data:`MAX_CHARACTERS`.
    temperature
        0 always takes the likeliest character; 1 draws from the model's distribution.
    seed
        At least 0, for the same text each time.
    as_json
        Print JSON instead of text.

    Returns
    -------
    int
        1 if the engines disagree, else 0.
    """
    if not 0 <= characters <= MAX_CHARACTERS:
        raise ValueError(f"characters must be from 0 to {MAX_CHARACTERS:,}, got {characters}")
    if not temperature >= 0:
        raise ValueError(f"temperature must not be negative, got {temperature}")
    if seed is not None and seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    model = load_model()
    writer = fr.LSTM.from_weights(model.weights, backend=backend)
    engines, narrow = _engines(model), _narrow(model)
    text = held_out_text()
    say: Callable[[str], Any] = (lambda line: None) if as_json else print

    cost = fr.count(writer)
    say(
        f"A character LSTM ({len(model.vocabulary)} inputs, {writer.architecture.hidden_size} units, "
        f"{cost.parameters:,} parameters in the LSTM) reads the Acts of the Apostles,\n"
        f"which it has never seen: {len(text):,} characters, one by one.\n"
    )
    progress = sys.stderr.isatty() and not as_json
    figures = _read({**engines, **narrow}, model, text, progress=progress)
    naive = figures[NAIVE]["microseconds_per_character"]
    say(f"{'engine':<14}{'bits per character':>20}{'us per character':>20}{'against naive':>16}")
    for name, row in figures.items():
        say(
            f"{name:<14}{row['bits_per_character']:>20.6f}{row['microseconds_per_character']:>20.2f}"
            f"{naive / row['microseconds_per_character']:>15.1f}x"
        )
    if "numba" not in figures:
        say("numba is left out, because it is not installed: pip install 'fusedrnn[numba]'")
    bits = [figures[name]["bits_per_character"] for name in engines]
    agree = max(bits) - min(bits) <= AGREEMENT * min(bits)
    say(
        "\nEvery engine agrees to one part in ten thousand; weights of 16 and 8 bits are rounded (docs/narrow.md)."
        if agree
        else "\nTHE ENGINES DISAGREE: that is a bug, please report it with the output of fusedrnn info."
    )

    say(f"\nAnd a stream of it ({writer.backend}) writes, character by character:\n")
    written = []
    began = time.perf_counter()
    for character in _write(model, writer, characters, temperature, seed):
        written.append(character)
        if not as_json:
            print(character, end="", flush=True)
    seconds = time.perf_counter() - began
    say("\n")
    if as_json:
        result = {
            "schema_version": 1,
            "characters": len(text),
            "engines": {name: figures[name] for name in engines},
            "narrow": {name: figures[name] for name in narrow},
            "agree": agree,
            "sample": "".join(written),
            "sample_microseconds_per_character": 1e6 * seconds / max(len(written), 1),
        }
        print(json.dumps(result, indent=2))
    return 0 if agree else 1


def _engines(model: CharacterModel) -> dict[str, Callable[[Array], Array]]:
    """Everything that reads the text, from x to y, by name; made before anything is said."""
    engines: dict[str, Callable[[Array], Array]] = {
        NAIVE: _NaiveLSTM(fr.LSTM.from_weights(model.weights))
    }
    for backend in reversed(BACKENDS):
        if backend == "numba" and find_spec("numba") is None:
            continue
        # A layer, not a stream, for all: the numbers are those of the same call.
        engines[backend] = _Continued(fr.LSTM.from_weights(model.weights, backend=backend))
    return engines


def _narrow(model: CharacterModel) -> dict[str, Callable[[Array], Array]]:
    """The fastest backend with the weights rounded to each narrow type, by its name."""
    layer = fr.LSTM.from_weights(model.weights, backend="c")
    return {each: _Continued(layer.narrow(each)) for each in NARROW}


class _NaiveLSTM:
    """The benchmark's naive LSTM; goes on from where the last call left it."""

    def __init__(self, layer: fr.LSTM) -> None:
        self._weights = LaidOut(layer.architecture, layer.weights, "_l0")
        zeros = np.zeros((1, layer.architecture.hidden_size), np.float32)
        self._state: tuple[Any, ...] = (zeros, zeros)

    def __call__(self, x: Array) -> Array:
        y = []
        for x_t in x:
            self._state = naive_lstm(x_t, self._state, self._weights)
            y.append(self._state[0])
        return np.array(y)


def _one_thread() -> AbstractContextManager[Any]:
    """A context in which NumPy's products use one thread, as ours do, where threadpoolctl is there to say so."""
    if find_spec("threadpoolctl") is None:
        return nullcontext()
    from threadpoolctl import threadpool_limits

    limited: AbstractContextManager[Any] = threadpool_limits(1, user_api="blas")
    return limited


def _read(
    engines: Mapping[str, Callable[[Array], Array]],
    model: CharacterModel,
    text: str,
    *,
    progress: bool,
) -> dict[str, dict[str, float]]:
    """Bits and microseconds per character of every engine, taking turns over pieces of the text."""
    bits = dict.fromkeys(engines, 0.0)
    seconds = dict.fromkeys(engines, 0.0)
    last = len(text) - 1
    with _one_thread():
        for start in range(0, last, PIECE):
            end = min(start + PIECE, last)
            x = model.one_hot(text[start:end])
            for name, engine in engines.items():
                began = time.perf_counter()
                y = engine(x)
                seconds[name] += time.perf_counter() - began
                bits[name] += model.bits(y, text[start + 1 : end + 1])
            if progress:
                print(f"\r{end / last:4.0%}", end="", file=sys.stderr, flush=True)
    if progress:
        print("\r    \r", end="", file=sys.stderr, flush=True)
    return {
        name: {
            "bits_per_character": bits[name] / last,
            "microseconds_per_character": 1e6 * seconds[name] / last,
        }
        for name in engines
    }


class _Continued:
    """A layer that goes on from where the last call left it."""

    def __init__(self, layer: fr.LSTM) -> None:
        self._layer = layer
        self._state: fr.LSTMState | None = None

    def __call__(self, x: Array) -> Array:
        y, self._state = self._layer(x, self._state)
        return y


def _write(
    model: CharacterModel, layer: fr.LSTM, characters: int, temperature: float, seed: int | None
) -> Iterator[str]:
    """Sampled characters: each one is the input of the next step."""
    random = np.random.default_rng(seed)
    stream = layer.stream()
    place = model.vocabulary.index("\n")
    for _ in range(characters):
        stream.input[...] = 0
        stream.input[0, place] = 1
        log_probabilities = model.log_probabilities(stream.step()[0])
        if temperature == 0:
            place = int(log_probabilities.argmax())
        else:
            # Gumbel's trick: the largest of log p / temperature + noise is a draw from p^(1 / temperature).
            noise = random.gumbel(size=len(log_probabilities))
            place = int((log_probabilities / temperature + noise).argmax())
        yield model.vocabulary[place]
