"""What the training examples share: a loop with progress, checkpoints and a learning curve, that Ctrl-C ends cleanly.

Progress and plot need the extra bench: pip install '.[bench]'.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import signal
import sys
import time
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import numpy as np
from adam import Adam
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import fusedrnn as fr
from fusedrnn.files import write_file

Gradients = dict[str, np.ndarray]

CELLS: dict[str, type[fr.Layer[Any]]] = {"lstm": fr.LSTM, "gru": fr.GRU, "rnn": fr.RNN}
CHECKPOINT, CURVE = "checkpoint.npz", "curve.png"
INTERRUPTED = 130  # what a shell makes of SIGINT
COLOURS = ("#0b66c3", "#c2410c")


class Training(ABC):
    """A layer, a linear head, and how far their training is. What happens in a step depends on nothing else.

    Parameters
    ----------
    inputs, outputs
        Widths of x and of the head.
    settings
        Everything that the results depend on, JSON values by name; among them cell, hidden, seed and steps.
    """

    #: What the columns of the curve are, behind the step; the scale of the plot; levels to be drawn, by name.
    columns: ClassVar[tuple[str, ...]]
    scale: ClassVar[str] = "linear"
    levels: ClassVar[dict[str, float]] = {}
    #: The first bias of an LSTM's forget gates: open ones let gradients through time from the first step on.
    forget_bias: ClassVar[float] = 1.0
    #: The learning rate of the first step; it falls to 0 along a cosine.
    rate: ClassVar[float] = 1e-2

    def __init__(self, inputs: int, outputs: int, settings: dict[str, Any]) -> None:
        self.settings = settings
        hidden = settings["hidden"]
        layer = CELLS[settings["cell"]](inputs, hidden, seed=settings["seed"])
        weights = {name: array.copy() for name, array in layer.weights.items()}
        if settings["cell"] == "lstm":
            weights["bias_ih_l0"][hidden : 2 * hidden] = self.forget_bias
        self.layer: fr.Layer[Any] = layer.with_weights(weights)
        drawn = self.random("head").uniform(-1, 1, (outputs, hidden)) / math.sqrt(hidden)
        self.head = {
            "head.weight": drawn.astype(np.float32),
            "head.bias": np.zeros(outputs, np.float32),
        }
        self.adam = Adam(sum(array.size for array in self.weights.values()))
        #: The number of steps that are done, and the losses of those since the last point of the curve.
        self.step, self.losses = 0, list[float]()
        #: The points of the curve: the step, and a value for each column.
        self.curve: list[tuple[float, ...]] = []
        #: The state that goes on from step to step, where one does: plain arrays.
        self.state: tuple[np.ndarray, ...] | None = None

    @abstractmethod
    def gradients(self) -> tuple[float, Gradients]:
        """The loss of this step, and the gradients of all weights."""

    def point(self, loss: float) -> tuple[float, ...]:
        """A value for each column of the curve; ``loss`` is the mean since the last point."""
        return (loss,)

    @abstractmethod
    def summary(self) -> str:
        """What came of the training."""

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """Of the layer and the head."""
        return {**self.layer.weights, **self.head}

    def random(self, purpose: str, count: int = 0) -> np.random.Generator:
        """A source that depends on the seed, the purpose and a count alone: there is no state of it to be kept."""
        return np.random.default_rng([self.settings["seed"], *purpose.encode(), count])

    def advance(self) -> None:
        """One step: loss, gradients, new weights."""
        loss, gradients = self.gradients()
        if not math.isfinite(loss):
            raise ValueError(f"the loss is {loss} at step {self.step}")
        falling = (1 + math.cos(math.pi * self.step / self.settings["steps"])) / 2
        new = self.adam.step(self.weights, gradients, self.rate * falling)
        self.head = {name: new.pop(name) for name in self.head}
        self.layer = self.layer.with_weights(new)
        self.step += 1
        self.losses.append(loss)
        if self.step % self.settings["every"] == 0 or self.step == self.settings["steps"]:
            self.curve.append((self.step, *self.point(float(np.mean(self.losses)))))
            self.losses = []

    # ---- checkpoints -----------------------------------------------------------------------------

    def save(self, file: Path) -> None:
        """Write everything that the next step depends on: the whole file, or nothing. fr.load reads its layer."""
        arrays = {f"layer.{name}": array for name, array in self.layer.weights.items()} | self.head
        arrays |= {"adam.mean": self.adam.mean, "adam.square": self.adam.square}
        arrays |= {f"state.{i}": array for i, array in enumerate(self.state or ())}
        content = io.BytesIO()
        np.savez(
            content,
            step=np.array(self.step),
            losses=np.array(self.losses),
            curve=np.array(self.curve).reshape(-1, 1 + len(self.columns)),
            settings=np.frombuffer(json.dumps(self.settings).encode(), np.uint8),
            **arrays,
        )
        write_file(file, content.getvalue())

    def restore(self, file: Path) -> None:
        """Go back to where a checkpoint was written. A ValueError for one of other settings."""
        try:
            with np.load(file, allow_pickle=False) as found:
                arrays = dict(found)
            settings = json.loads(arrays["settings"].tobytes())
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            raise ValueError(f"{file}: no checkpoint of this script: {error}") from None
        for name, value in self.settings.items():
            if settings.get(name) != value:
                raise ValueError(
                    f"{file}: was made with {name} {settings.get(name)!r}, not {value!r}"
                )
        self.layer = self.layer.with_weights(
            {name: arrays[f"layer.{name}"] for name in self.layer.weights}
        )
        self.head = {name: arrays[name] for name in self.head}
        self.adam.mean, self.adam.square = arrays["adam.mean"], arrays["adam.square"]
        self.step = self.adam.steps = int(arrays["step"])
        self.losses = arrays["losses"].tolist()
        self.curve = [tuple(row) for row in arrays["curve"].tolist()]
        names = sorted(name for name in arrays if name.startswith("state."))
        self.state = tuple(arrays[name] for name in names) or None

    # ---- the learning curve ----------------------------------------------------------------------

    def draw(self, file: Path) -> None:
        """Plot the curve."""
        steps, *columns = zip(*self.curve, strict=True)
        figure = Figure((6, 3.5), layout="constrained")
        axes = figure.add_subplot(xlabel="step", yscale=self.scale)
        for name, values, colour in zip(self.columns, columns, COLOURS, strict=False):
            axes.plot(steps, values, color=colour, label=name)
        for name, level in self.levels.items():
            axes.axhline(level, color="grey", linewidth=0.8, linestyle="--")
            axes.annotate(
                name,
                (1, level),
                xycoords=("axes fraction", "data"),
                xytext=(0, 2),
                textcoords="offset points",
                ha="right",
                va="bottom",
                color="grey",
                fontsize=8,
            )
        axes.set_xlim(0, self.settings["steps"])
        axes.spines[["top", "right"]].set_visible(False)
        if len(columns) > 1:
            axes.legend(frameon=False)
        else:
            axes.set_ylabel(self.columns[0])
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=150)
        write_file(file, content.getvalue())


# ---- the command line ----------------------------------------------------------------------------


def new_parser(
    description: str | None, *, hidden: int, steps: int, every: int, out: str
) -> argparse.ArgumentParser:
    """The options that every example has, with its defaults."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cell", choices=CELLS, default="lstm", help="default: %(default)s")
    for name, default, least, text in (
        ("hidden", hidden, 1, "units"),
        ("steps", steps, 1, "steps of training"),
        ("every", every, 1, "steps between two points of the curve, each with a checkpoint"),
        ("seed", 1, 0, "of weights and data"),
    ):
        parser.add_argument(
            f"--{name}",
            type=at_least(least),
            metavar="N",
            default=default,
            help=f"{text} (default: %(default)s)",
        )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=Path(out),
        help=f"folder for {CHECKPOINT} and {CURVE} (default: %(default)s)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint in the folder"
    )
    return parser


def at_least(least: int) -> Callable[[str], int]:
    """What parses an argument that must be a whole number from ``least`` on."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        return value

    return number


def run(make: Callable[[], Training], out: Path, *, resume: bool) -> int:
    """Train to the last step, or to a Ctrl-C: then the step that has begun is ended, and a checkpoint written.

    Returns
    -------
    int
        The exit code: 0; 130 after Ctrl-C; 2 after an error, of which a line on standard error tells.
    """
    try:
        training = make()
        out.mkdir(parents=True, exist_ok=True)
        file = out / CHECKPOINT
        if resume:
            training.restore(file)
        elif file.exists():
            raise ValueError(f"{file}: is there; go on from it with --resume, or remove it")
        began, first = time.monotonic(), training.step
        _train(training, file)
    except (OSError, ValueError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # the second one: what was written before stays
        return INTERRUPTED
    seconds = time.monotonic() - began
    print(f"{training.step - first} steps in {seconds:.1f} s; wrote {file}", end="")
    if training.curve:
        training.draw(out / CURVE)
        print(f" and {out / CURVE}", end="")
    print()
    if training.step < training.settings["steps"]:
        print(f"stopped after step {training.step} of {training.settings['steps']}: --resume")
        return INTERRUPTED
    print(training.summary())
    return 0


def _train(training: Training, file: Path) -> None:
    steps, columns = training.settings["steps"], training.columns
    console = Console()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with _interrupts() as arrived, bar:
        task = bar.add_task("training", total=steps, completed=training.step)
        while training.step < steps and not arrived:
            points = len(training.curve)
            training.advance()
            if len(training.curve) > points:
                training.save(file)
                values = zip(columns, training.curve[-1][1:], strict=True)
                line = ", ".join(f"{name} {value:.4f}" for name, value in values)
                bar.update(task, description=line)
                if not console.is_terminal:
                    print(f"step {training.step}: {line}", flush=True)
            bar.update(task, completed=training.step)
        training.save(file)


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """The Ctrl-C that have arrived. The first waits for the step to end; a second one does not."""
    arrived: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        if len(arrived) > 1:
            signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield arrived
    finally:
        signal.signal(signal.SIGINT, before)
