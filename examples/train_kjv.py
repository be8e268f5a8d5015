"""Train the character-level language model that ``fusedrnn demo`` runs.

One-hot characters go through one LSTM layer and a linear head that gives the logits of the next
character. The text is the King James Version, one verse a line; the Acts of the Apostles are held
out: nothing of that book reaches the weights, the vocabulary or the choice of the best step.

Needs PyTorch and safetensors, but not fusedrnn itself.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

State = tuple[Tensor, Tensor]

HELD_OUT_BOOKS = {"Ac", "Acts"}
VALIDATION_SHARE = 0.02  # of each training book, from its end
VALIDATION_STREAMS = 16

BATCH = 16  # small: at this size the number of steps counts for more than their noise
WINDOW = 128  # characters between two truncations of backpropagation
LEARNING_RATE = 1e-2
FINAL_LEARNING_RATE = 1e-5
CLIP_NORM = 1.0
REPORT_STEPS = 2000

SAMPLE_CHARACTERS = 400
SAMPLE_TEMPERATURE = 0.7

DATA_DIR = Path(__file__).resolve().parents[1] / "python" / "fusedrnn" / "data"
EXAMPLE = """\
example (the text as Debian's package bible-kjv prints it):
  bible -f gen1:1-rev22:21 > kjv.txt
  python examples/train_kjv.py kjv.txt --minutes 40

Ctrl-C ends the training early; the best weights so far are still evaluated and saved.
"""


@dataclass(frozen=True)
class Corpus:
    """The text in three parts; every verse, reference stripped, ends in a newline."""

    training: str
    validation: str
    held_out: str

    @property
    def vocabulary(self) -> str:
        """The characters of all books but the held-out one, in index order."""
        return "".join(sorted(set(self.training + self.validation)))


def read_corpus(path: Path) -> Corpus:
    """Read verses such as ``Ge1:1 In the beginning ...`` and split them by book.

    Parameters
    ----------
    path : Path
        Plain ASCII text, one verse a line.

    Returns
    -------
    Corpus
        The held-out book, the last verses of every other book, and the rest.
    """
    books: dict[str, list[str]] = {}
    for number, line in enumerate(path.read_text(encoding="ascii").splitlines(), start=1):
        if not line:
            continue
        verse = re.fullmatch(r"(\d?[A-Za-z]+)\d+:\d+ (.+)", line)
        if verse is None:
            raise ValueError(f"{path}, line {number}: expected 'Ge1:1 text', found {line[:40]!r}")
        books.setdefault(verse[1], []).append(verse[2].strip() + "\n")

    training, validation, held_out = [], [], []
    for book, verses in books.items():
        if book in HELD_OUT_BOOKS:
            held_out += verses
        else:
            kept = len(verses) - int(VALIDATION_SHARE * len(verses))
            training += verses[:kept]
            validation += verses[kept:]

    corpus = Corpus("".join(training), "".join(validation), "".join(held_out))
    if not corpus.held_out:
        raise ValueError(f"{path}: no verse of the held-out book (Acts)")
    if len(corpus.training) <= BATCH * WINDOW or len(corpus.validation) <= VALIDATION_STREAMS:
        raise ValueError(f"{path}: too short to train on ({len(corpus.training)} characters)")
    unknown = sorted(set(corpus.held_out) - set(corpus.vocabulary))
    if unknown:
        raise ValueError(f"{path}: characters of the held-out book only: {unknown}")
    return corpus


def encode(text: str, vocabulary: str) -> Tensor:
    """Turn text into indices of its characters, shape (characters,)."""
    index = {character: i for i, character in enumerate(vocabulary)}
    return torch.tensor([index[character] for character in text])


def as_streams(codes: Tensor, count: int) -> Tensor:
    """Cut a sequence into `count` equal consecutive parts, shape (steps, count); drop the rest."""
    steps = len(codes) // count
    return codes[: steps * count].view(count, steps).T.contiguous()


class CharLSTM(nn.Module):
    """One-hot character -> one LSTM layer -> logits of the next character."""

    def __init__(self, characters: int, hidden_size: int) -> None:
        super().__init__()
        self.characters = characters
        self.lstm = nn.LSTM(characters, hidden_size)
        self.head = nn.Linear(hidden_size, characters)

        # Two biases that are only ever added are one parameter trained at twice the rate.
        weights = dict(self.lstm.named_parameters())
        nn.init.zeros_(weights["bias_hh_l0"].requires_grad_(False))
        # An open forget gate lets gradients through time from the first step on.
        nn.init.ones_(weights["bias_ih_l0"][hidden_size : 2 * hidden_size])

    def forward(self, codes: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Logits (T, B, X) after each of the characters `codes` (T, B), and the last state."""
        hidden, state = self.lstm(functional.one_hot(codes, self.characters).float(), state)
        return self.head(hidden), state


def bits(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the target characters, in bits per character."""
    nats = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return nats / math.log(2)


@torch.no_grad()
def evaluate(model: CharLSTM, streams: Tensor, window: int = 500) -> float:
    """Bits per character of streams (T, B), each from zero state, its first character given."""
    total, state = 0.0, None
    for start in range(0, len(streams) - 1, window):
        targets = streams[start + 1 : start + 1 + window]
        logits, state = model(streams[start : start + len(targets)], state)
        total += bits(logits, targets).item() * len(targets)
    return total / (len(streams) - 1)


@dataclass(frozen=True)
class Snapshot:
    """The weights at one step, and what they score on the validation text."""

    step: int
    validation_bits: float
    weights: dict[str, Tensor]


def train(
    model: CharLSTM, training: Tensor, validation: Tensor, seconds: float, steps: float
) -> Snapshot | None:
    """Train by truncated backpropagation through time until either budget is spent.

    Parameters
    ----------
    model : CharLSTM
        Trained in place.
    training, validation : Tensor
        Character indices, shape (characters,).
    seconds, steps : float
        The budgets; either may be infinite. The learning rate falls along a cosine of the share
        that is spent of the scarcer one.

    Returns
    -------
    Snapshot or None
        The best validated weights; None if Ctrl-C came before the first validation.
    """
    validation = as_streams(validation, VALIDATION_STREAMS)
    optimizer = torch.optim.Adam(
        [p for p in model.parameters() if p.requires_grad], betas=(0.9, 0.99), fused=True
    )
    best: Snapshot | None = None
    state: State | None = None
    streams = torch.empty(0, BATCH)
    position = step = 0
    spent = loss_sum = 0.0
    began = time.monotonic()

    try:
        while spent < 1:
            if position + 1 >= len(streams):
                # Each pass starts elsewhere, so that streams and windows are cut at other places.
                offset = int(torch.randint(len(training), ()))
                streams = as_streams(training.roll(offset), BATCH)
                state, position = None, 0
            targets = streams[position + 1 : position + 1 + WINDOW]
            logits, state = model(streams[position : position + len(targets)], state)
            state = (state[0].detach(), state[1].detach())
            position += len(targets)

            loss = bits(logits, targets)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            falling = (1 + math.cos(math.pi * spent)) / 2
            for group in optimizer.param_groups:
                group["lr"] = FINAL_LEARNING_RATE + falling * (LEARNING_RATE - FINAL_LEARNING_RATE)
            optimizer.step()

            step += 1
            loss_sum += loss.item()
            elapsed = time.monotonic() - began
            spent = max(elapsed / seconds, step / steps)
            if step % REPORT_STEPS == 0 or spent >= 1:
                score = evaluate(model, validation)
                if best is None or score < best.validation_bits:
                    weights = {name: w.clone() for name, w in model.state_dict().items()}
                    best = Snapshot(step, score, weights)
                print(
                    f"step {step:6d}  {elapsed / 60:5.1f} min  "
                    f"training {loss_sum / ((step - 1) % REPORT_STEPS + 1):.3f}  "
                    f"validation {score:.4f}  best {best.validation_bits:.4f} bits/character",
                    flush=True,
                )
                loss_sum = 0.0
    except KeyboardInterrupt:
        print(f"\ninterrupted after {step} steps", flush=True)
    return best


@torch.no_grad()
def sample(model: CharLSTM, vocabulary: str, count: int, temperature: float) -> str:
    """Let the model write `count` characters, beginning on a new line."""
    code, state = torch.tensor([[vocabulary.index("\n")]]), None
    written = []
    for _ in range(count):
        logits, state = model(code, state)
        code = torch.multinomial(torch.softmax(logits[0] / temperature, dim=-1), 1)
        written.append(vocabulary[int(code)])
    return "".join(written)


def exported_tensors(model: CharLSTM) -> dict[str, Tensor]:
    """Name the float32 weights as they are saved, with one bias per gate."""
    weights = model.state_dict()
    return {
        "weight_ih_l0": weights["lstm.weight_ih_l0"],
        "weight_hh_l0": weights["lstm.weight_hh_l0"],
        "bias_ih_l0": weights["lstm.bias_ih_l0"] + weights["lstm.bias_hh_l0"],
        "head.weight": weights["head.weight"],
        "head.bias": weights["head.bias"],
    }


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file at once, so that no reader ever sees half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
    print(f"wrote {path} ({len(content)} bytes)")


def positive(text: str) -> float:
    """Parse an argument that must be a number above zero."""
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text}")
    return number


def positive_integer(text: str) -> int:
    """Parse an argument that must be a whole number above zero."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text}")
    return number


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Train the character-level LSTM of 'fusedrnn demo' on the King James Version, "
        "with the Acts of the Apostles held out.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("text", type=Path, help="the text: ASCII, one verse a line ('Ge1:1 ...')")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=DATA_DIR,
        help="where char_lstm.safetensors and acts.txt go (default: the package's data directory)",
    )
    parser.add_argument(
        "--hidden",
        type=positive_integer,
        metavar="H",
        default=128,
        help="hidden size (default: %(default)s)",
    )
    parser.add_argument(
        "--minutes", type=positive, help="time to train for (default: 40 unless --steps is given)"
    )
    parser.add_argument(
        "--steps",
        type=positive_integer,
        help=f"steps to train for, each {BATCH} x {WINDOW} characters; with --minutes, "
        "whichever ends first",
    )
    parser.add_argument("--seed", type=int, default=1, help="random seed (default: %(default)s)")
    parser.add_argument(
        "--threads",
        type=positive_integer,
        default=1,
        help="PyTorch's threads (default: %(default)s)",
    )
    arguments = parser.parse_args()
    if arguments.minutes is None:
        arguments.minutes = 40.0 if arguments.steps is None else math.inf
    if arguments.steps is None:
        arguments.steps = math.inf
    return arguments


def main() -> None:
    """Train, evaluate on the held-out book, save."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    try:
        corpus = read_corpus(arguments.text)
        arguments.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise SystemExit(f"train_kjv.py: {error}") from None

    vocabulary = corpus.vocabulary
    model = CharLSTM(len(vocabulary), arguments.hidden)
    print(
        f"{len(corpus.training)} characters to train on, {len(corpus.validation)} to validate, "
        f"{len(corpus.held_out)} held out; {len(vocabulary)} different ones; "
        f"{sum(p.numel() for p in model.parameters() if p.requires_grad)} parameters",
        flush=True,
    )
    best = train(
        model,
        encode(corpus.training, vocabulary),
        encode(corpus.validation, vocabulary),
        seconds=60 * arguments.minutes,
        steps=arguments.steps,
    )
    if best is None:
        raise SystemExit("train_kjv.py: no weights were validated yet; nothing is saved")

    model.load_state_dict(best.weights)
    held_out_bits = evaluate(model, as_streams(encode(corpus.held_out, vocabulary), 1))
    print(f"\nheld-out book: {held_out_bits:.4f} bits/character (weights of step {best.step})")
    print(f"a sample:\n\n{sample(model, vocabulary, SAMPLE_CHARACTERS, SAMPLE_TEMPERATURE)}\n")

    metadata = {
        "vocabulary": json.dumps(vocabulary),
        "text": "King James Version (public domain), all books but the held-out one; "
        "one verse a line, no references",
        "held_out": "Acts of the Apostles (acts.txt)",
        "held_out_bits_per_character": f"{held_out_bits:.4f}",
        "training": f"{best.step} steps of {BATCH} x {WINDOW} characters, Adam, "
        f"learning rate {LEARNING_RATE:g} to {FINAL_LEARNING_RATE:g} by cosine, "
        f"seed {arguments.seed}, torch {torch.__version__}",
    }
    weights = safetensors.torch.save(exported_tensors(model), metadata)
    write_atomically(arguments.out / "acts.txt", corpus.held_out.encode("ascii"))
    write_atomically(arguments.out / "char_lstm.safetensors", weights)


if __name__ == "__main__":
    main()
