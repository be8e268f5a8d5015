"""Train a recurrent network on the adding problem, with NumPy alone: no framework.

A sequence has two inputs: numbers drawn from [0, 1), and marks, which are 1 at one step of the first half and at one
of the second half, and 0 elsewhere. After the last step the network has to tell the sum of the two marked numbers
(Hochreiter & Schmidhuber 1997, experiment 4, in the form of Le, Jaitly & Hinton 2015). Who always says 1 has a mean
squared error of 1/6; to do better, gradients have to reach back over half of the sequence.

    python examples/train_adding_problem.py                  # an LSTM learns it in about 20 s of CPU time
    python examples/train_adding_problem.py --cell rnn --out plain       # with the same settings a plain RNN does not
    python examples/train_adding_problem.py --resume         # after Ctrl-C

Every step draws new sequences, so the loss is that of sequences never seen before. Needs the extra bench.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from training_run import Gradients, Training, at_least, new_parser, run

BATCH = 32


class AddingProblem(Training):
    """The layer over the sequences, and a linear head on its last output."""

    columns = ("mean squared error",)
    scale = "log"
    levels: ClassVar[dict[str, float]] = {"always 1": 1 / 6, "solved": 0.01}
    forget_bias = 2.0  # with 1, one of three seeds tried had not begun to learn after 2,000 steps

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(2, 1, settings)

    def draw_batch(self) -> tuple[np.ndarray, np.ndarray]:
        """The sequences x (T, B, 2) of this step, and the sums (B, 1)."""
        length, row = self.settings["length"], np.arange(BATCH)
        random = self.random("sequences", self.step)
        x = np.zeros((length, BATCH, 2), np.float32)
        x[..., 0] = random.random((length, BATCH), np.float32)
        first = random.integers(0, length // 2, BATCH)
        second = random.integers(length // 2, length, BATCH)
        x[first, row, 1] = x[second, row, 1] = 1
        return x, (x[first, row, 0] + x[second, row, 0])[:, None]

    def gradients(self) -> tuple[float, Gradients]:
        """The mean squared error of this step's sequences, and its gradients."""
        x, sums = self.draw_batch()
        y, _, tape = self.layer.record(x)
        error = y[-1] @ self.head["head.weight"].T + self.head["head.bias"] - sums
        d_output = (2 / BATCH) * error
        dy = np.zeros_like(y)
        dy[-1] = d_output @ self.head["head.weight"]
        of_head = {"head.weight": d_output.T @ y[-1], "head.bias": d_output.sum(axis=0)}
        of_layer = tape.backward(dy, want_x=False).weights
        return float(np.mean(error**2)), of_layer | of_head

    def summary(self) -> str:
        """The last point of the curve, and since when the problem has been solved."""
        settings, (_, last) = self.settings, self.curve[-1]
        unsolved = [step for step, loss in self.curve if loss >= self.levels["solved"]]
        after = int(max(unsolved, default=0))
        solved = f"below 0.01 after step {after}" if after < self.step else "not solved"
        return (
            f"{settings['cell']}, {settings['hidden']} units, T={settings['length']}, seed {settings['seed']}: "
            f"mean squared error {last:.5f} (always 1: {1 / 6:.3f}); {solved}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = new_parser(__doc__, hidden=32, steps=3000, every=50, out="adding-problem")
    parser.add_argument(
        "--length",
        type=at_least(2),
        metavar="T",
        default=100,
        help="steps of a sequence (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    settings = {
        name: getattr(options, name)
        for name in ("cell", "hidden", "steps", "every", "seed", "length")
    }
    return run(lambda: AddingProblem(settings), options.out, resume=options.resume)


if __name__ == "__main__":
    sys.exit(main())
