"""The C kernels beside ONNX Runtime's LSTM, round by round in one run: ``python -m fusedrnn.bench.onnxruntime_lstm``.

One thread each. Whole sequences at batch 1, and single steps with h and c carried by the caller. For a
step ONNX Runtime is called in both ways that it has, ``run`` and ``run_with_iobinding`` on buffers that are bound
beforehand, and the faster one of the two is what it is compared by. Needs the extras ``bench`` and ``peers``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import fusedrnn as fr
from fusedrnn.bench.console import console
from fusedrnn.bench.interleave import Quartiles, calls, interleaved
from fusedrnn.bench.measure import CHECKED_STEPS, LARGEST_ERROR, WrongResultError
from fusedrnn.bench.peers import Array
from fusedrnn.cli import guarded
from fusedrnn.errors import MissingExtraError
from fusedrnn.files import write_file

SEQUENCES = (32, 64, 128, 256)
STEPS = (8, 16, 32, 64, 128)
LENGTH = 100

#: How many times as fast as ONNX Runtime the C kernels are meant to be.
SEQUENCE_TARGET = 1.0
STEP_TARGET, STEP_TARGET_UP_TO = 5.0, 64


@dataclass(frozen=True)
class Comparison:
    """One row: seconds of both, their paired ratios, and the errors against float64."""

    what: str
    steps: int
    hidden: int
    fusedrnn: Quartiles
    onnxruntime: Quartiles
    called_by: str
    ratio: Quartiles
    pairs: int
    fusedrnn_error: float
    onnxruntime_error: float
    target: float | None

    @property
    def met(self) -> bool | None:
        """Whether the target is; None if the row has none."""
        return None if self.target is None else self.ratio.median >= self.target


def model(weights: Mapping[str, Array], steps: int) -> bytes:
    """An ONNX model of one LSTM layer at batch 1: x (T, 1, X), h and c (1, 1, H) -> y, h, c."""
    from onnx import TensorProto, checker, helper, numpy_helper

    inputs = weights["weight_ih_l0"].shape[1]
    hidden = weights["weight_hh_l0"].shape[1]

    def reordered(array: Array) -> Array:
        i, f, g, o = np.split(array, 4)
        return np.concatenate([i, o, f, g])  # ONNX: i o f c

    bias = reordered(weights["bias_ih_l0"])
    constants = {
        "W": reordered(weights["weight_ih_l0"])[None],
        "R": reordered(weights["weight_hh_l0"])[None],
        "B": np.concatenate([bias, np.zeros_like(bias)])[None],  # of the input, of the recurrence
    }

    def value(name: str, *shape: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    node = helper.make_node(
        "LSTM",
        ["x", "W", "R", "B", "", "h", "c"],
        ["y", "h_next", "c_next"],
        hidden_size=hidden,
    )
    graph = helper.make_graph(
        [node],
        "lstm",
        [value("x", steps, 1, inputs), value("h", 1, 1, hidden), value("c", 1, 1, hidden)],
        [
            value("y", steps, 1, 1, hidden),
            value("h_next", 1, 1, hidden),
            value("c_next", 1, 1, hidden),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    # An opset and a file version that every ONNX Runtime of the last years reads.
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(made)
    return bytes(made.SerializeToString())


def session(weights: Mapping[str, Array], steps: int) -> Any:
    """ONNX Runtime on that model, with one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    return onnxruntime.InferenceSession(
        model(weights, steps), options, providers=["CPUExecutionProvider"]
    )


class BoundStep:
    """A step through buffers bound beforehand; two bindings take turns, so that no state is copied.

    The input is copied into the bound buffer by each step, as fusedrnn reads a new array in each.
    """

    def __init__(self, weights: Mapping[str, Array]) -> None:
        from onnxruntime import OrtValue

        self._session = session(weights, 1)
        inputs = weights["weight_ih_l0"].shape[1]
        hidden = weights["weight_hh_l0"].shape[1]
        self._x = np.zeros((1, 1, inputs), np.float32)
        x = OrtValue.ortvalue_from_numpy(self._x)
        self._y = np.zeros((1, 1, 1, hidden), np.float32)
        self._output: Array = self._y[0, 0]
        y = OrtValue.ortvalue_from_numpy(self._y)
        self._states = [np.zeros((1, 1, hidden), np.float32) for _ in range(4)]
        h0, c0, h1, c1 = map(OrtValue.ortvalue_from_numpy, self._states)
        self._values = (x, y, h0, c0, h1, c1)  # what the bindings point to
        self._turns = []
        for h, c, h_next, c_next in ((h0, c0, h1, c1), (h1, c1, h0, c0)):
            binding = self._session.io_binding()
            for name, bound in (("x", x), ("h", h), ("c", c)):
                binding.bind_ortvalue_input(name, bound)
            for name, bound in (("y", y), ("h_next", h_next), ("c_next", c_next)):
                binding.bind_ortvalue_output(name, bound)
            self._turns.append(binding)
        self._run = self._session.run_with_iobinding
        self._turn = 0

    def step(self, x: Array) -> Array:
        """From x (1, X) to h (1, H)."""
        self._x[0] = x
        self._run(self._turns[self._turn])
        self._turn ^= 1
        return self._output


class PlainStep:
    """A step as most people call it: arrays in, arrays out."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self._run = session(weights, 1).run
        hidden = weights["weight_hh_l0"].shape[1]
        self._h = np.zeros((1, 1, hidden), np.float32)
        self._c = np.zeros((1, 1, hidden), np.float32)

    def step(self, x: Array) -> Array:
        """From x (1, X) to h (1, H)."""
        given = {"x": x[None], "h": self._h, "c": self._c}
        y, self._h, self._c = self._run(None, given)
        output: Array = y[0, 0]
        return output


def error(what: str, y: Array, expected: Array) -> float:
    """The largest error, if it is small enough to time what made it."""
    largest = float(np.max(np.abs(y - expected)))
    if not largest <= LARGEST_ERROR:
        raise WrongResultError(
            f"{what} is wrong and was not timed: max error {largest:.3g} against float64"
        )
    return largest


def problem(hidden: int, steps: int) -> tuple[fr.LSTM, Array, Array]:
    """A layer with H = X, an input (T, 1, X), and the output in float64."""
    layer = fr.LSTM(hidden, hidden, seed=hidden, backend="c")
    x = np.random.default_rng(hidden).standard_normal((steps, 1, hidden), np.float32)
    exact = {name: array.astype(np.float64) for name, array in layer.weights.items()}
    reference = fr.LSTM.from_weights(exact, backend="numpy", dtype="float64")
    return layer, x, reference(x.astype(np.float64))[0]


def compare_sequence(hidden: int, rounds: int) -> Comparison:
    """A whole sequence at batch 1, from Python, from a state of zeros."""
    layer, x, expected = problem(hidden, LENGTH)
    run = session(layer.weights, LENGTH).run
    zeros = np.zeros((1, 1, hidden), np.float32)
    given = {"x": x, "h": zeros, "c": zeros}
    return compared(
        "sequence",
        LENGTH,
        hidden,
        rounds,
        ours=(calls(layer, x), error("fusedrnn", layer(x)[0], expected)),
        theirs={
            "run": (
                calls(run, None, given),
                error("ONNX Runtime", run(None, given)[0][:, 0], expected),
            )
        },
        target=SEQUENCE_TARGET,
    )


def compare_step(hidden: int, rounds: int) -> Comparison:
    """Single steps from Python, each with the h and c of the one before."""
    layer, x, expected = problem(hidden, CHECKED_STEPS)
    steppers: dict[str, Callable[[Array], Array]] = {
        "fusedrnn": layer.stream().step,
        "run": PlainStep(layer.weights).step,
        "run_with_iobinding": BoundStep(layer.weights).step,
    }
    timed = {}
    for name, step in steppers.items():
        y = np.stack([step(x_t).copy() for x_t in x])
        timed[name] = (calls(step, x[0]), error(name, y, expected))
    return compared(
        "step",
        1,
        hidden,
        rounds,
        ours=timed.pop("fusedrnn"),
        theirs=timed,
        target=STEP_TARGET if hidden <= STEP_TARGET_UP_TO else None,
    )


def compared(
    what: str,
    steps: int,
    hidden: int,
    rounds: int,
    *,
    ours: tuple[Callable[[int], float], float],
    theirs: dict[str, tuple[Callable[[int], float], float]],
    target: float | None,
) -> Comparison:
    """Both timed in turn, theirs by whichever way of calling it is faster."""
    timers = {"fusedrnn": ours[0], **{name: timer for name, (timer, _) in theirs.items()}}
    seconds = interleaved(timers, rounds)
    fastest = min(theirs, key=lambda name: median(seconds[name]))
    pairs = zip(seconds[fastest], seconds["fusedrnn"], strict=True)
    return Comparison(
        what=what,
        steps=steps,
        hidden=hidden,
        fusedrnn=Quartiles.of(seconds["fusedrnn"]),
        onnxruntime=Quartiles.of(seconds[fastest]),
        called_by=fastest,
        ratio=Quartiles.of([other / own for other, own in pairs]),
        pairs=rounds,
        fusedrnn_error=ours[1],
        onnxruntime_error=theirs[fastest][1],
        target=target,
    )


def rows(rounds: int) -> Iterator[Comparison]:
    """Every comparison, as it is made."""
    for hidden in SEQUENCES:
        yield compare_sequence(hidden, rounds)
    for hidden in STEPS:
        yield compare_step(hidden, rounds)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m fusedrnn.bench.onnxruntime_lstm",
        description="The C kernels beside ONNX Runtime's LSTM, one thread each.",
    )
    parser.add_argument(
        "--rounds", type=int, default=25, metavar="N", help="paired ratios a row (default: 25)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE")
    args = parser.parse_args(arguments)
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    try:
        import onnx
        import onnxruntime
    except ImportError as missing:
        raise MissingExtraError(str(missing.name), "peers", "this comparison") from missing
    try:
        from rich.table import Table
    except ImportError as missing:
        raise MissingExtraError("rich", "bench", "this comparison") from missing

    from fusedrnn.report.text import duration, ratio

    table = Table(box=None)
    for name in ("what", "H = X", "fusedrnn C", "ONNX Runtime", "called by"):
        table.add_column(name, no_wrap=True, justify="right" if name != "called by" else "left")
    for name in ("ratio", "q1 - q3", "errors", "target"):
        table.add_column(name, no_wrap=True, justify="right")
    found = list(rows(args.rounds))
    for row in found:
        said = "" if row.target is None else f"{row.target:g}× {'met' if row.met else 'MISSED'}"
        table.add_row(
            row.what if row.steps == 1 else f"{row.what}, T={row.steps}",
            str(row.hidden),
            duration(row.fusedrnn.median),
            duration(row.onnxruntime.median),
            row.called_by,
            ratio(row.ratio.median),
            f"{row.ratio.q1:.2f} - {row.ratio.q3:.2f}",
            f"{row.fusedrnn_error:.0e} {row.onnxruntime_error:.0e}",
            said,
        )
    facts = fr.info()
    out = console(width=None if sys.stdout.isatty() else 120)
    out.print(
        f"{facts['cpu']}, {facts['isa']}; fusedrnn {facts['version']}, ONNX Runtime "
        f"{onnxruntime.__version__}, ONNX {onnx.__version__}; one thread each, {args.rounds} pairs"
    )
    out.print(table)
    out.print(
        "Ratio: ONNX Runtime's time by fusedrnn's, round by round. Errors: the largest against float64, "
        "of fusedrnn and of ONNX Runtime."
    )
    if args.json:
        content = {
            "cpu": facts["cpu"],
            "isa": facts["isa"],
            "onnxruntime": onnxruntime.__version__,
            "rows": [asdict(row) for row in found],
        }
        write_file(args.json, (json.dumps(content, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
