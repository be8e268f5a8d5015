"""Whole ONNX models in ONNX Runtime alone, and in a session that runs their recurrent nodes here: ``fr.onnx.session``.

Both are called with ``run`` in one process, with one thread, a round of each in turn: ``fusedrnn bench onnx``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import click
import numpy as np

import fusedrnn as fr
from fusedrnn.bench.pairs import Case, Pair, Pairs, timed

__all__ = ["CASES", "measure", "measured"]

Arrays = Mapping[str, np.ndarray[Any, Any]]
#: How far outputs may be apart.
TOLERANCE = 1e-4
#: The gates of each operator.
GATES = {"LSTM": 4, "GRU": 3}


# ---- models --------------------------------------------------------------------------------------


class _Model:
    """A model that grows node by node; sequences are (T, B, ·)."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)
        self.nodes: list[Any] = []
        self._stored: dict[str, np.ndarray[Any, Any]] = {}
        self._inputs: list[Any] = []
        self.feeds: dict[str, np.ndarray[Any, Any]] = {}

    def normal(self, *shape: int) -> np.ndarray[Any, Any]:
        return self._random.standard_normal(shape).astype(np.float32)

    def feed(self, name: str, array: np.ndarray[Any, Any], *axes: str) -> str:
        from onnx import helper

        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        self._inputs.append(helper.make_tensor_value_info(name, kind, axes))
        self.feeds[name] = array
        return name

    def store(self, array: np.ndarray[Any, Any]) -> str:
        name = f"stored{len(self._stored)}"
        self._stored[name] = array
        return name

    def weights(self, *shape: int) -> str:
        return self.store(self.normal(*shape) / np.float32(np.sqrt(shape[-1])))

    def node(self, operator: str, *inputs: str, outputs: int = 1, **said: Any) -> Any:
        from onnx import helper

        names = [f"value{len(self.nodes)}_{place}" for place in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, **said))
        return names[0] if outputs == 1 else names

    def recurrent(
        self, operator: str, x: str, width: int, units: int, *state: str, both: bool = False
    ) -> tuple[str, list[str]]:
        """The joined outputs of a recurrent node; and its states."""
        rows, directions = GATES[operator] * units, 1 + both
        said = {"linear_before_reset": 1} if operator == "GRU" else {}
        y, *after = self.node(
            operator,
            x,
            self.weights(directions, rows, width),
            self.weights(directions, rows, units),
            self.weights(directions, 2 * rows),
            *(("", *state) if state else ()),
            outputs=3 if operator == "LSTM" else 2,
            hidden_size=units,
            direction="bidirectional" if both else "forward",
            **said,
        )
        if not both:
            return self.node("Squeeze", y, self.store(np.array([1]))), after
        turned = self.node("Transpose", y, perm=[0, 2, 1, 3])
        return self.node("Reshape", turned, self.store(np.array([0, 0, -1]))), after

    def dense(self, x: str, width: int, units: int) -> str:
        return str(
            self.node(
                "Add", self.node("MatMul", x, self.weights(width, units)), self.weights(units)
            )
        )

    def done(self, *outputs: str) -> tuple[Any, Arrays]:
        from onnx import TensorProto, helper, numpy_helper

        graph = helper.make_graph(
            self.nodes,
            "model",
            self._inputs,
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(array, name) for name, array in self._stored.items()],
        )
        opsets = [helper.make_opsetid("", 17)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8), self.feeds


def _stack(units: int, layers: int, steps: int, batch: int) -> tuple[Any, Arrays]:
    model = _Model()
    x = model.feed("x", model.normal(steps, batch, units), "T", "B", "X")
    for _ in range(layers):
        x, _ = model.recurrent("LSTM", x, units, units)
    return model.done(x)


def _tagger(units: int, steps: int, batch: int) -> tuple[Any, Arrays]:
    model = _Model()
    x = model.feed("x", model.normal(steps, batch, 64), "T", "B", "X")
    y, _ = model.recurrent("GRU", x, 64, units, both=True)
    return model.done(model.node("Softmax", model.dense(y, 2 * units, 40), axis=-1))


def _decoder(units: int, *, attends_first: bool) -> tuple[Any, Arrays]:
    """A step of a decoder for one sequence: embedding, LSTM, attention over 20 outputs of an encoder, dense."""
    model = _Model()
    width = units // 2
    seen = model.feed("seen", model.normal(1, 20, units), "B", "S", "H")  # (B, S, H)
    h = model.feed("h", model.normal(1, 1, units), "D", "B", "H")
    c = model.feed("c", model.normal(1, 1, units), "D", "B", "H")
    ids = model.feed("ids", np.array([[3]]), "T", "B")
    x = model.node("Gather", model.weights(60, width), ids)  # (1, B, X)

    def context(query: str) -> str:
        """(1, B, H), from a query of that shape."""
        rows = model.node("Transpose", query, perm=[1, 0, 2])
        scores = model.node("MatMul", rows, model.node("Transpose", seen, perm=[0, 2, 1]))
        shares = model.node("Softmax", scores, axis=-1)
        return str(model.node("Transpose", model.node("MatMul", shares, seen), perm=[1, 0, 2]))

    if attends_first:
        joined = model.node("Concat", x, context(h), axis=2)
        y, after = model.recurrent("LSTM", joined, width + units, units, h, c)
        return model.done(model.dense(y, units, 60), *after)
    y, after = model.recurrent("LSTM", x, width, units, h, c)
    joined = model.node("Concat", y, context(y), axis=2)
    return model.done(model.dense(joined, 2 * units, 60), *after)


def _mostly_dense() -> tuple[Any, Arrays]:
    model = _Model()
    x = model.feed("x", model.normal(100, 1, 512), "T", "B", "X")
    for _ in range(3):
        x = model.node("Relu", model.dense(x, 512, 512))
    y, _ = model.recurrent("GRU", x, 512, 16)
    return model.done(model.dense(y, 16, 512))


CASES = (
    Case("3 LSTM layers, H=128, T=100, B=1", lambda: _stack(128, 3, 100, 1)),
    Case("3 LSTM layers, H=128, T=100, B=16", lambda: _stack(128, 3, 100, 16)),
    Case("2 LSTM layers, H=32, T=100, B=1", lambda: _stack(32, 2, 100, 1)),
    Case("2 LSTM layers, H=32, T=1, B=1", lambda: _stack(32, 2, 1, 1)),
    Case("bidirectional GRU, H=128, dense, softmax, T=100, B=1", lambda: _tagger(128, 100, 1)),
    Case("bidirectional GRU, H=128, dense, softmax, T=100, B=16", lambda: _tagger(128, 100, 16)),
    Case("bidirectional GRU, H=32, dense, softmax, T=1, B=1", lambda: _tagger(32, 1, 1)),
    Case("decoder step, H=256, LSTM then attention", lambda: _decoder(256, attends_first=False)),
    Case("decoder step, H=256, attention then LSTM", lambda: _decoder(256, attends_first=True)),
    Case("decoder step, H=32, LSTM then attention", lambda: _decoder(32, attends_first=False)),
    Case("decoder step, H=32, attention then LSTM", lambda: _decoder(32, attends_first=True)),
    Case("3 dense layers of 512, GRU, H=16, dense, T=100, B=1", _mostly_dense),
)


# ---- measuring -----------------------------------------------------------------------------------


def measure(case: Case, rounds: int) -> Pair:
    """Both, side by side. Their outputs must agree.

    Parameters
    ----------
    case
        What is measured.
    rounds
        How many rounds of each.
    """
    try:
        import onnxruntime
    except ImportError:
        raise fr.MissingExtraError("onnxruntime", "onnxruntime", "this benchmark") from None
    model, feeds = case.make()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    theirs = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    ours = fr.onnx.session(model)
    for one, other in zip(ours.run(None, feeds), theirs.run(None, feeds), strict=True):
        if not np.allclose(one, other, atol=TOLERANCE):
            raise click.ClickException(f"{case.name}: outputs differ")
    pieces = len(ours.report.pieces)
    return timed(case.name, theirs.run, ours.run, (None, feeds), rounds, pieces=pieces)


def measured(pairs: Iterable[Pair]) -> Pairs:
    """The pairs as one result."""
    return Pairs("Whole ONNX models", "onnxruntime", "session", tuple(pairs))
