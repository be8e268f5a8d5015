"""Narrow weights beside float32, and beside the int8 of ONNX Runtime and PyTorch: ``fusedrnn bench narrow``.

One LSTM in each shape. All are timed in one process with one thread, a round of each in turn; each has its error beside its time: of y,
against the specification in float64 with the weights as they were.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

import fusedrnn as fr
from fusedrnn.bench.pairs import Case
from fusedrnn.bench.peers import missing, one_thread
from fusedrnn.bench.timing import Quartiles, calls, interleaved
from fusedrnn.counting.result import Result, Table
from fusedrnn.narrowing import WEIGHT_DTYPES

__all__ = ["CASES", "Beside", "Measured", "Shape", "measure", "measured"]

#: What the others are compared with.
BASE = "float32"


def _lstm(units: int, batch: int, steps: int) -> tuple[Any, Any]:
    """An LSTM, X = H, and its input."""
    layer = fr.LSTM(units, units, backend="c", seed=1)
    x = np.random.default_rng(units).standard_normal((steps, batch, units))
    return layer, x.astype(np.float32)


def _case(units: int, batch: int, steps: int) -> Case:
    return Case(f"H=X={units}, T={steps}, B={batch}", lambda: _lstm(units, batch, steps))


CASES = (
    *(_case(units, 1, 100) for units in (64, 128, 256)),
    _case(512, 1, 50),
    _case(1024, 1, 25),
    _case(128, 16, 100),
    _case(256, 16, 50),
)


@dataclass(frozen=True)
class Measured:
    """One way to compute a shape.

    Attributes
    ----------
    name
        "int8", "ONNX Runtime int8".
    seconds
        Of a step of all sequences: the median of all rounds.
    ratios
        The time of float32 here over this one's, round by round: above 1 this one is faster.
    rms, largest
        The error of y.
    """

    name: str
    seconds: float
    ratios: Quartiles
    rms: float
    largest: float


@dataclass(frozen=True)
class Shape:
    """All ways to compute one shape."""

    name: str
    ways: tuple[Measured, ...]


@dataclass(frozen=True)
class Beside(Result):
    """All shapes, as a table and in JSON."""

    shapes: tuple[Shape, ...]

    def _title(self) -> str:
        return "LSTMs with narrow weights"

    def _document(self) -> Mapping[str, Any]:
        return {"benchmark": "narrow weights", "ways": self._records()}

    def _records(self) -> list[Mapping[str, Any]]:
        return [
            {
                "shape": shape.name,
                "name": way.name,
                "step_seconds": way.seconds,
                "faster": way.ratios.median,
                "faster, lower quartile": way.ratios.q1,
                "faster, upper quartile": way.ratios.q3,
                "rms": way.rms,
                "largest": way.largest,
            }
            for shape in self.shapes
            for way in shape.ways
        ]

    def _tables(self) -> Iterator[Table]:
        header = [
            "",
            "",
            "a step, us",
            "faster than float32",
            "middle half",
            "RMS error of y",
            "largest",
        ]
        rows = [
            [
                shape.name if number == 0 else "",
                way.name,
                f"{way.seconds * 1e6:,.2f}",
                f"{way.ratios.median:.2f}",
                f"{way.ratios.q1:.2f} to {way.ratios.q3:.2f}",
                f"{way.rms:.1e}",
                f"{way.largest:.1e}",
            ]
            for shape in self.shapes
            for number, way in enumerate(shape.ways)
        ]
        yield Table("One thread, a round of each in turn", header, rows, [2, 3, 5, 6])

    def _notes(self) -> Iterator[str]:
        yield "faster: the time of float32 here by this one's, round by round, the median."
        yield "error: of y, against float64 with the weights as they were."


def _onnxruntime(layer: Any, x: Any, quantised: bool) -> Callable[[], Any]:
    import onnxruntime

    made = fr.to_onnx(layer)
    if quantised:
        made = _quantised(made)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x_name, *states = [each.name for each in session.get_inputs()]
    zeros = np.zeros((1, x.shape[1], layer.architecture.hidden_size), np.float32)
    inputs = {x_name: x, **dict.fromkeys(states, zeros)}
    output = [session.get_outputs()[0].name]
    return lambda: session.run(output, inputs)[0]


def _quantised(model: Any) -> Any:
    """The model with DynamicQuantizeLSTM, as ONNX Runtime's own tool makes it."""
    import tempfile
    from pathlib import Path

    import onnx
    from onnxruntime.quantization import quantize_dynamic

    quiet = logging.getLogger().disabled
    logging.getLogger().disabled = True  # it advises to optimise a graph that has one node
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "int8.onnx"
            quantize_dynamic(model, path)
            return onnx.load(path)
    finally:
        logging.getLogger().disabled = quiet


def _torch_int8(layer: Any, x: Any) -> Callable[[], Any]:
    import torch

    module = torch.nn.LSTM(layer.architecture.input_size, layer.architecture.hidden_size)
    module.load_state_dict(
        {name: torch.from_numpy(np.array(each)) for name, each in fr.to_state_dict(layer).items()}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there will be another way
        small = torch.ao.quantization.quantize_dynamic(
            torch.nn.Sequential(module), {torch.nn.LSTM}, dtype=torch.qint8
        )[0]
    given = torch.from_numpy(x)

    def run() -> Any:
        with torch.inference_mode():
            return small(given)[0].numpy()

    return run


def _ways(layer: Any, x: Any) -> dict[str, Callable[[], Any]]:
    def here(made: Any) -> Callable[[], Any]:
        return lambda: made(x)[0]

    ways = {BASE: here(layer)}
    ways |= {each: here(layer.narrow(each)) for each in WEIGHT_DTYPES[1:]}
    if not missing("onnxruntime"):
        ways["ONNX Runtime float32"] = _onnxruntime(layer, x, False)
        ways["ONNX Runtime int8"] = _onnxruntime(layer, x, True)
    if not missing("torch"):
        ways["PyTorch int8"] = _torch_int8(layer, x)
    return ways


def measure(case: Case, rounds: int) -> Shape:
    """All ways, side by side.

    Parameters
    ----------
    case
        What is computed.
    rounds
        How many rounds of each.
    """
    layer, x = case.make()
    wide = {name: array.astype(np.float64) for name, array in layer.weights.items()}
    exact = fr.LSTM.from_weights(wide, backend="numpy", dtype="float64")(x.astype(np.float64))[0]
    with one_thread():
        ways = _ways(layer, x)
        errors = {
            name: np.asarray(way()).reshape(exact.shape) - exact for name, way in ways.items()
        }
        seconds = interleaved({name: calls(way) for name, way in ways.items()}, rounds)
    found = []
    for name, each in seconds.items():
        ratios = [one / other for one, other in zip(seconds[BASE], each, strict=True)]
        error = errors[name]
        found.append(
            Measured(
                name,
                median(each) / len(x),
                Quartiles.of(ratios),
                float(np.sqrt(np.mean(error**2))),
                float(np.abs(error).max()),
            )
        )
    return Shape(case.name, tuple(found))


def measured(shapes: Iterable[Shape]) -> Beside:
    """The shapes as one result."""
    return Beside(tuple(shapes))
