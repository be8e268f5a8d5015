"""ONNX Runtime: a model of one node, called with arrays or through buffers that are bound beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from fusedrnn.bench.peers.interface import Array, Peer, Setup

__all__ = ["FRAMEWORK", "model", "variants"]

#: Whose layouts its weights have.
FRAMEWORK = "onnx"


def variants(setup: Setup) -> Sequence[Peer]:
    """By ``run`` and by ``run_with_iobinding``."""
    return [_Run(setup), _Bound(setup)]


# ---- the model -----------------------------------------------------------------------------------


def model(setup: Setup) -> bytes:
    """An ONNX model of one layer: x (T, B, X), and h and c if the state is carried -> y, h, c."""
    from onnx import TensorProto, checker, helper, numpy_helper

    a, case, layout = setup.architecture, setup.case, setup.layout(FRAMEWORK)
    parts = setup.arrays(FRAMEWORK)
    constants = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    attributes: dict[str, Any] = {
        "hidden_size": a.hidden_size,
        "direction": "bidirectional" if a.bidirectional else "forward",
        **dict(layout.options),
    }
    if case.lengths is not None:
        constants["lengths"] = np.array(case.lengths, np.int32)

    # Inputs by position, "" for one that is not given: x W R B lengths h c P.
    given = ["x", "W", "R"]
    given += [name if name in constants else "" for name in ("B", "lengths")]
    given += setup.states
    if "P" in constants:
        given += [""] * (7 - len(given)) + ["P"]

    def value(name: str, *shape: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    def state(name: str) -> Any:
        return value(name, a.directions, case.batch, a.hidden_size)

    outputs = [f"{name}_next" for name in setup.states]
    steps, batch = case.steps, case.batch
    graph = helper.make_graph(
        [helper.make_node(layout.layer_class, given, ["y", *outputs], **attributes)],
        "layer",
        [value("x", steps, batch, a.input_size), *map(state, setup.states)],
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


# ---- calling it ----------------------------------------------------------------------------------


class _Session:
    """What both variants have in common."""

    name = "onnxruntime"

    def __init__(self, setup: Setup) -> None:
        import onnxruntime

        a, case = setup.architecture, setup.case
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = setup.threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        self._session = onnxruntime.InferenceSession(
            model(setup), options, providers=["CPUExecutionProvider"]
        )
        self._names = setup.states
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

    variant = "run"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
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
    """Through bound buffers; two bindings alternate, so that no state is copied.

    A step's input is copied into its buffer, as fusedrnn reads a new array in each; a sequence is bound itself.
    """

    variant = "io-binding"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        from onnxruntime import OrtValue

        self._wrapped: Callable[[Array], Any] = OrtValue.ortvalue_from_numpy
        self._call = self._session.run_with_iobinding
        self._x = np.zeros((1, setup.case.batch, setup.case.input), np.float32)
        self._y = np.zeros(self._y_shape, np.float32)
        self._states = [
            [np.zeros(self._state_shape, np.float32) for _ in self._names] for _ in range(2)
        ]
        y = self._wrapped(self._y)
        values = [[self._wrapped(array) for array in arrays] for arrays in self._states]
        self._values = (y, values)  # which the bindings point to
        self._bindings = []
        for now, after in (values, values[::-1]):
            binding = self._session.io_binding()
            binding.bind_ortvalue_output("y", y)
            for name, given, made in zip(self._names, now, after, strict=True):
                binding.bind_ortvalue_input(name, given)
                binding.bind_ortvalue_output(f"{name}_next", made)
            self._bindings.append(binding)
        self._now = 0
        self._bound: Array | None = None

    def reset(self) -> None:
        self._now = 0
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
        for binding in self._bindings:
            binding.bind_ortvalue_input("x", self._value)

    def _next(self) -> Array:
        self._call(self._bindings[self._now])
        self._now ^= 1
        return _joined(self._y)
