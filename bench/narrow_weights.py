"""Narrow weights beside float32, and beside the int8 and bfloat16 of other libraries: ``fusedrnn bench narrow``.

One LSTM in each shape. All are timed in one process with one thread, a round of each in turn; each has its error beside its time: of y,
against the specification in float64 with the weights as they were.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

import fusedrnn as fr
from fusedrnn.bench import cases
from fusedrnn.bench.pairs import Case
from fusedrnn.bench.peers import Setup, missing, one_thread
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
    _case(256, 1, 1),
    _case(512, 1, 1),
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
    """All ways to compute one shape.

    Attributes
    ----------
    name
        "H=X=64, T=100, B=1".
    ways
        In the order of the table.
    left_out
        Why a way is not among them.
    """

    name: str
    ways: tuple[Measured, ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Beside(Result):
    """All shapes, as a table and in JSON."""

    shapes: tuple[Shape, ...]

    def _title(self) -> str:
        return "LSTMs with narrow weights"

    def _document(self) -> Mapping[str, Any]:
        return {
            "benchmark": "narrow weights",
            "ways": self._records(),
            "left_out": self._left_out(),
        }

    def _left_out(self) -> list[str]:
        """Why ways are not in it, each reason once."""
        return list(dict.fromkeys(reason for shape in self.shapes for reason in shape.left_out))

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
        yield from self._left_out()


#: Gives y: an array, or a tensor of PyTorch.
Run = Callable[[], Any]


@dataclass
class _Ways:
    """The ways to compute a shape.

    Attributes
    ----------
    timed
        What is timed, by name; it gives y.
    left_out
        Why a way is not among them.
    """

    timed: dict[str, Run] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def _onnxruntime(layer: Any, x: Any, weight_bits: int | None = None) -> Run:
    """ONNX Runtime's float32; or its int8, with weights of so many bits: for 7 its quantizer has an option."""
    import onnxruntime

    made = fr.to_onnx(layer)
    if weight_bits is not None:
        made = _quantised(made, weight_bits)
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


def _quantised(model: Any, weight_bits: int) -> Any:
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
            quantize_dynamic(model, path, reduce_range=weight_bits == 7)
            return onnx.load(path)
    finally:
        logging.getLogger().disabled = quiet


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """A context in which PyTorch, where it is installed, computes with one thread."""
    if missing("torch"):
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _torch_module(layer: Any) -> Any:
    import torch

    module = torch.nn.LSTM(layer.architecture.input_size, layer.architecture.hidden_size)
    module.load_state_dict(
        {name: torch.from_numpy(np.array(each)) for name, each in fr.to_state_dict(layer).items()}
    )
    return module


def _torch_int8(module: Any) -> Any:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there will be another way
        return torch.ao.quantization.quantize_dynamic(
            torch.nn.Sequential(module), {torch.nn.LSTM}, dtype=torch.qint8
        )[0]


def _torch(module: Any, x: Any, dtype: str) -> Run:
    import torch

    given = torch.from_numpy(x).to(getattr(torch, dtype))

    def run() -> Any:
        with torch.inference_mode():
            return module(given)[0]

    return run


def _openvino(layer: Any, x: Any, precision: str) -> tuple[Run, str]:
    """The way, and the precision that it has."""
    from fusedrnn.bench.peers.openvino import Request

    a, (steps, batch, _) = layer.architecture, x.shape
    # Lengths, all equal: every run begins at zero, as the other ways do.
    case = cases.Case("batch", steps, batch, a.input_size, a.hidden_size, lengths=(steps,) * batch)
    request = Request(Setup(case, layer.weights), precision)
    return lambda: request.run(x), request.precision


def _ways(layer: Any, x: Any) -> _Ways:
    def here(made: Any) -> Run:
        return lambda: made(x)[0]

    ways = _Ways({BASE: here(layer)})
    ways.timed |= {each: here(layer.narrow(each)) for each in WEIGHT_DTYPES[1:]}
    if not missing("onnxruntime"):
        ways.timed["ONNX Runtime float32"] = _onnxruntime(layer, x)
        # Its sums of products of 8 bits saturate on CPUs without VNNI, and are much less exact there.
        ways.timed["ONNX Runtime int8"] = _onnxruntime(layer, x, 8)
        ways.timed["ONNX Runtime int8 of 7 bits"] = _onnxruntime(layer, x, 7)
    if not missing("torch"):
        import torch

        ways.timed["PyTorch int8"] = _torch(_torch_int8(_torch_module(layer)), x, "float32")
        ways.timed["PyTorch bfloat16"] = _torch(
            _torch_module(layer).to(torch.bfloat16), x, "bfloat16"
        )
    if not missing("openvino"):
        run, precision = _openvino(layer, x, "bf16")
        if precision == "bf16":
            ways.timed["OpenVINO bfloat16"] = run
        else:
            ways.left_out.append(
                f"OpenVINO bfloat16 is left out: on this CPU OpenVINO computes in {precision} instead."
            )
    return ways


def _array(y: Any) -> Any:
    """y as NumPy has it: PyTorch's bfloat16, which NumPy does not have, as float32."""
    return y if isinstance(y, np.ndarray) else y.float().numpy()


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
    with one_thread(), _one_torch_thread():
        ways = _ways(layer, x)
        errors = {
            name: _array(way()).reshape(exact.shape) - exact for name, way in ways.timed.items()
        }
        seconds = interleaved({name: calls(way) for name, way in ways.timed.items()}, rounds)
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
    return Shape(case.name, tuple(found), tuple(ways.left_out))


def measured(shapes: Iterable[Shape]) -> Beside:
    """The shapes as one result."""
    return Beside(tuple(shapes))
