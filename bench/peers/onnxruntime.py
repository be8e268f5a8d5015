"""ONNX Runtime: a model of one node, called with arrays or through buffers that are bound beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from fusedrnn.architecture import Architecture
from fusedrnn.bench.cases import Case
from fusedrnn.bench.peers.interface import Array, Peer, Weights

__all__ = ["model", "offers", "ways"]

#: ONNX's orders of the gates. Its i is the gate that a coupled LSTM computes, and f what that leaves.
_ORDERS = {"rnn": ("h", "h"), "lstm": ("ifgo", "iofg"), "gru": ("rzn", "zrn")}


def offers(architecture: Architecture) -> bool:
    """Not projections, nor Clockwork."""
    return architecture.cell in _ORDERS and not architecture.proj_size


def ways(case: Case, weights: Weights, threads: int) -> Sequence[Peer]:
    """By ``run`` and by ``run_with_iobinding``."""
    return [_Run(case, weights, threads), _Bound(case, weights, threads)]


# ---- the model -----------------------------------------------------------------------------------


def _node_weights(a: Architecture, weights: Weights, end: str) -> dict[str, Array]:
    """W, R, B and perhaps P of one direction, as ONNX lays them out."""
    coupled = a.table.form == "coupled"
    ours, theirs = _ORDERS[a.cell]

    def laid(array: Array) -> Array:
        if not coupled:
            blocks = dict(zip(ours, np.split(array, len(ours)), strict=True))
        else:
            # ONNX has f = 1 - i, and 1 - sigmoid(x) = sigmoid(-x): its i is our f with every sign turned.
            f, g, o = np.split(array, 3)
            blocks = {"i": -f, "f": np.zeros_like(f), "g": g, "o": o}
        return np.concatenate([blocks[gate] for gate in theirs])

    W, R = weights[f"weight_ih{end}"], weights[f"weight_hh{end}"]
    of_input: Array = weights.get(f"bias_ih{end}", np.zeros(len(W), np.float32))
    of_h: Array = weights.get(f"bias_hh{end}", np.zeros(len(R), np.float32)).copy()
    own = weights.get(f"bias_hn{end}")
    if own is not None:
        of_h[-len(own) :] += own
    arrays = {"W": laid(W), "R": laid(R), "B": np.concatenate([laid(of_input), laid(of_h)])}
    if a.peephole:
        given = weights[f"weight_peephole{end}"].reshape(-1, a.hidden_size)
        p = dict(zip(str(a.peephole), given, strict=True))
        if coupled and "f" in p:
            p["i"] = -p.pop("f")
        zero = np.zeros(a.hidden_size, np.float32)
        arrays["P"] = np.concatenate([p.get(gate, zero) for gate in "iof"])
    return arrays


def model(case: Case, weights: Weights) -> bytes:
    """An ONNX model of one layer: x (T, B, X), and h and c if the state is carried -> y, h, c."""
    from onnx import TensorProto, checker, helper, numpy_helper

    a = case.architecture
    ends = ("_l0", "_l0_reverse")[: a.directions]
    parts = [_node_weights(a, weights, end) for end in ends]
    constants = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    attributes: dict[str, Any] = {
        "hidden_size": a.hidden_size,
        "direction": "bidirectional" if a.bidirectional else "forward",
    }
    if a.cell == "gru":
        attributes["linear_before_reset"] = int(a.table.form == "after")
    if a.table.form == "coupled":
        attributes["input_forget"] = 1
    if case.lengths is not None:
        constants["lengths"] = np.array(case.lengths, np.int32)

    states = _states(case)
    # Inputs by position, "" for one that is not given: x W R B lengths h c P.
    given = ["x", "W", "R", "B", "lengths" if case.lengths is not None else "", *states]
    if "P" in constants:
        given += [""] * (7 - len(given)) + ["P"]

    def value(name: str, *shape: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    def state(name: str) -> Any:
        return value(name, a.directions, case.batch, a.hidden_size)

    outputs = [f"{name}_next" for name in states]
    steps, batch = case.steps, case.batch
    graph = helper.make_graph(
        [helper.make_node(a.cell.upper(), given, ["y", *outputs], **attributes)],
        "layer",
        [value("x", steps, batch, a.input_size), *map(state, states)],
        [value("y", steps, a.directions, batch, a.hidden_size), *map(state, outputs)],
        [
            numpy_helper.from_array(np.ascontiguousarray(array), name)
            for name, array in constants.items()
        ],
    )
    # An opset and a file version that every ONNX Runtime of the last years reads.
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if made.ByteSize() < 2**31 - 1:  # protobuf's limit
        checker.check_model(made)
    return bytes(made.SerializeToString())


def _states(case: Case) -> tuple[str, ...]:
    """The states that are carried: none where a sequence does not go on."""
    if case.architecture.bidirectional or case.lengths is not None:
        return ()
    return ("h", "c") if case.architecture.cell == "lstm" else ("h",)


# ---- calling it ----------------------------------------------------------------------------------


class _Session:
    """What both ways have in common."""

    name = "onnxruntime"

    def __init__(self, case: Case, weights: Weights, threads: int) -> None:
        import onnxruntime

        a = case.architecture
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        self._session = onnxruntime.InferenceSession(
            model(case, weights), options, providers=["CPUExecutionProvider"]
        )
        self._names = _states(case)
        self._state_shape = (a.directions, case.batch, a.hidden_size)
        self._y_shape = (case.steps, a.directions, case.batch, a.hidden_size)

    def ready(self) -> AbstractContextManager[Any]:
        return nullcontext()


def _joined(y: Array) -> Array:
    """From (T, D, B, H) to (T, B, D H): a view where there is one direction."""
    if y.shape[1] == 1:
        output: Array = y[:, 0]
        return output
    return np.concatenate([y[:, 0], y[:, 1]], axis=2)


class _Run(_Session):
    """As most people call it: arrays in, arrays out."""

    way = "run"

    def __init__(self, case: Case, weights: Weights, threads: int) -> None:
        super().__init__(case, weights, threads)
        self._run = self._session.run
        self.reset()

    def reset(self) -> None:
        self._state = [np.zeros(self._state_shape, np.float32) for _ in self._names]

    def step(self, x: Array) -> Array:
        h: Array = self.run(x[None])[0]
        return h

    def run(self, x: Array) -> Array:
        y, *self._state = self._run(
            None, {"x": x, **dict(zip(self._names, self._state, strict=True))}
        )
        return _joined(y)


class _Bound(_Session):
    """Through bound buffers; two bindings take turns, so that no state is copied.

    A step's input is copied into its buffer, as fusedrnn reads a new array in each; a sequence is bound itself.
    """

    way = "io-binding"

    def __init__(self, case: Case, weights: Weights, threads: int) -> None:
        super().__init__(case, weights, threads)
        from onnxruntime import OrtValue

        self._wrapped: Callable[[Array], Any] = OrtValue.ortvalue_from_numpy
        self._call = self._session.run_with_iobinding
        self._x = np.zeros((1, case.batch, case.input), np.float32)
        self._y = np.zeros(self._y_shape, np.float32)
        self._states = [
            [np.zeros(self._state_shape, np.float32) for _ in self._names] for _ in range(2)
        ]
        y = self._wrapped(self._y)
        values = [[self._wrapped(array) for array in arrays] for arrays in self._states]
        self._values = (y, values)  # what the bindings point to
        self._turns = []
        for now, after in (values, values[::-1]):
            binding = self._session.io_binding()
            binding.bind_ortvalue_output("y", y)
            for name, given, made in zip(self._names, now, after, strict=True):
                binding.bind_ortvalue_input(name, given)
                binding.bind_ortvalue_output(f"{name}_next", made)
            self._turns.append(binding)
        self._turn = 0
        self._bound: Array | None = None

    def reset(self) -> None:
        self._turn = 0
        for array in self._states[0]:
            array[...] = 0

    def step(self, x: Array) -> Array:
        if self._bound is not self._x:
            self._bind(self._x)
        self._x[0] = x
        h: Array = self._next()[0]
        return h

    def run(self, x: Array) -> Array:
        if self._bound is not x:
            self._bind(x)
        return self._next()

    def _bind(self, x: Array) -> None:
        self._bound, self._value = x, self._wrapped(x)
        for binding in self._turns:
            binding.bind_ortvalue_input("x", self._value)

    def _next(self) -> Array:
        self._call(self._turns[self._turn])
        self._turn ^= 1
        return _joined(self._y)
