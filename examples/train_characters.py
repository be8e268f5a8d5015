"""Train a character-level language model on a text, with NumPy alone: no framework.

One-hot characters go through one recurrent layer and a linear head that gives the logits of the next character: the
model of ``fusedrnn demo``, which examples/train_kjv.py trained with PyTorch.

    python examples/train_characters.py TEXT                 # the last tenth of the text is held out
    python examples/train_characters.py TEXT --held-out FILE
    python examples/train_characters.py TEXT --resume        # after Ctrl-C

The text is cut into streams that are read side by side, a window at a time. The state goes on from window to window,
and gradients end at the first step of each: truncated backpropagation through time. The text of the demo, without the
book that is held out and without the references before the verses:

    bible -f gen1:1-rev22:21 | grep -v '^Ac' | sed 's/^[^ ]* *//; s/ *$//' > kjv.txt
    python examples/train_characters.py kjv.txt --held-out python/fusedrnn/data/acts.txt

Needs the extra bench.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from training_run import Gradients, Training, at_least, new_parser, run

BATCH = 16
#: Characters that are read at once where there is no training.
PIECE = 4096
SAMPLE_CHARACTERS, SAMPLE_TEMPERATURE = 400, 0.7


class Characters(Training):
    """The layer over one-hot characters, and a linear head on every output."""

    columns = ("training, bits per character", "held out, bits per character")

    def __init__(self, settings: dict[str, Any], text: str, held_out: str) -> None:
        digest = hashlib.sha256((text + "\0" + held_out).encode()).hexdigest()
        self.vocabulary = "".join(sorted(set(text + held_out)))
        size = len(self.vocabulary)
        super().__init__(size, size, settings | {"text": digest, "vocabulary": self.vocabulary})
        self.text, self.held_out = self.codes(text), self.codes(held_out)
        #: How many windows a pass over the text has, and the streams of a pass: (its number, characters (T, B)).
        self.windows = (len(text) // BATCH - 1) // settings["window"]
        self.streams = (-1, np.empty((0, BATCH), np.int64))
        if self.windows < 1 or len(held_out) < 2:
            raise ValueError(
                f"too short a text: {len(text)} characters, and {len(held_out)} held out; a step reads "
                f"{BATCH} x {settings['window']}"
            )

    def codes(self, text: str) -> np.ndarray:
        """The place of each character in the vocabulary."""
        places = {character: place for place, character in enumerate(self.vocabulary)}
        return np.array([places[character] for character in text], np.int64)

    def one_hot(self, codes: np.ndarray) -> np.ndarray:
        result: np.ndarray = np.eye(len(self.vocabulary), dtype=np.float32)[codes]
        return result

    def log_probabilities(self, y: np.ndarray) -> np.ndarray:
        """Of every next character, (rows, V), after the outputs y (rows, H)."""
        logits = y @ self.head["head.weight"].T + self.head["head.bias"]
        logits -= logits.max(axis=1, keepdims=True)
        result: np.ndarray = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return result

    def window(self) -> tuple[np.ndarray, np.ndarray]:
        """The characters (T, B) of this step, and the ones that follow."""
        number, place = divmod(self.step, self.windows)
        if place == 0:
            self.state = None
        if self.streams[0] != number:
            # Each pass starts elsewhere, so that streams and windows are cut at other places.
            start = self.random("pass", number).integers(len(self.text))
            length = len(self.text) // BATCH
            rolled = np.roll(self.text, -start)[: length * BATCH]
            self.streams = (number, rolled.reshape(BATCH, length).T)
        size = self.settings["window"]
        part = self.streams[1][place * size : (place + 1) * size + 1]
        return part[:-1], part[1:]

    def gradients(self) -> tuple[float, Gradients]:
        """The bits per character of this step's window, and the gradients of their nats."""
        codes, following = self.window()
        # The state goes on as plain arrays: the gradients end here, at the first step of the window.
        y, self.state, tape = self.layer.record(self.one_hot(codes), self.state)
        rows = y.reshape(-1, y.shape[-1])
        logs = self.log_probabilities(rows)
        chosen = (np.arange(len(rows)), following.ravel())
        d_logits = np.exp(logs)
        d_logits[chosen] -= 1
        d_logits /= len(rows)
        dy = (d_logits @ self.head["head.weight"]).reshape(y.shape)
        of_head = {"head.weight": d_logits.T @ rows, "head.bias": d_logits.sum(axis=0)}
        of_layer = tape.backward(dy, want_x=False).weights
        return float(-logs[chosen].mean() / np.log(2)), of_layer | of_head

    def bits(self, codes: np.ndarray) -> float:
        """Bits per character of a text, from zero state, the first character given, the mean over the others."""
        total, state = 0.0, None
        for start in range(0, len(codes) - 1, PIECE):
            following = codes[start + 1 : start + 1 + PIECE]
            y, state = self.layer(self.one_hot(codes[start : start + len(following)]), state)
            total -= float(self.log_probabilities(y)[np.arange(len(y)), following].sum())
        return float(total / np.log(2) / (len(codes) - 1))

    def point(self, loss: float) -> tuple[float, ...]:
        return loss, self.bits(self.held_out)

    def sample(self, count: int) -> str:
        """What the model writes, beginning as the held-out text does."""
        random, stream, place = self.random("sample"), self.layer.stream(), int(self.held_out[0])
        written = []
        for _ in range(count):
            y = stream.step(self.one_hot(np.array([place])))
            # Gumbel's trick: the largest of log p / temperature + noise is a draw from p^(1 / temperature).
            logs = self.log_probabilities(y)[0] / SAMPLE_TEMPERATURE
            place = int((logs + random.gumbel(size=len(logs))).argmax())
            written.append(self.vocabulary[place])
        return "".join(written)

    def summary(self) -> str:
        """A sample, and the last point of the curve."""
        settings, (_, training, held_out) = self.settings, self.curve[-1]
        return (
            f"a sample:\n\n{self.sample(SAMPLE_CHARACTERS)}\n\n"
            f"{settings['cell']}, {settings['hidden']} units, seed {settings['seed']}: bits per character "
            f"{held_out:.4f} held out, {training:.4f} in training"
        )


def read(text: Path, held_out: Path | None) -> tuple[str, str]:
    """The text to train on, and the one that is held out: the last tenth of the text where there is no other."""
    whole = text.read_text(encoding="utf-8")
    if held_out is not None:
        return whole, held_out.read_text(encoding="utf-8")
    cut = len(whole) * 9 // 10
    return whole[:cut], whole[cut:]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = new_parser(__doc__, hidden=128, steps=5000, every=500, out="characters")
    parser.add_argument("text", type=Path, help="the text, UTF-8")
    parser.add_argument("--held-out", type=Path, metavar="FILE", help="a text to measure on")
    parser.add_argument(
        "--window",
        type=at_least(1),
        metavar="T",
        default=128,
        help="characters that gradients go back over (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    settings = {
        name: getattr(options, name)
        for name in ("cell", "hidden", "steps", "every", "seed", "window")
    }
    return run(
        lambda: Characters(settings, *read(options.text, options.held_out)),
        options.out,
        resume=options.resume,
    )


if __name__ == "__main__":
    sys.exit(main())
