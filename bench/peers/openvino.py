"""OpenVINO: a model of one operation, compiled for latency, in float32 unless told otherwise, its state kept inside."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import numpy as np

from fusedrnn.bench.peers.interface import Array, Peer, Setup

__all__ = ["FRAMEWORK", "Request", "variants"]

#: Whose layouts its weights have.
FRAMEWORK = "openvino"

#: The property that says in which type a model computes.
PRECISION = "INFERENCE_PRECISION_HINT"


def variants(setup: Setup) -> Sequence[Peer]:
    """State inside the model: faster than tensors that are exchanged from call to call."""
    return [Request(setup)]


def _model(setup: Setup) -> Any:
    """x (B, T, X) -> y (B, D, T, H), and h and c from and to the model's own variables."""
    from openvino import Model
    from openvino import opset13 as ops
    from openvino._offline_transformations import apply_make_stateful_transformation

    a, case, layout = setup.architecture, setup.case, setup.layout(FRAMEWORK)
    parts = setup.arrays(FRAMEWORK)
    W, R, B = (ops.constant(np.stack([part[name] for part in parts])) for name in "WRB")
    lengths = case.lengths if case.lengths is not None else (case.steps,) * case.batch
    x = ops.parameter([case.batch, case.steps, a.input_size], np.float32, name="x")
    names = [state.name for state in a.table.states]
    shape = (case.batch, a.directions, a.hidden_size)
    states = [
        ops.parameter(shape, np.float32, name=name)
        if setup.keeps_state
        else ops.constant(np.zeros(shape, np.float32))
        for name in names
    ]
    direction = "bidirectional" if a.bidirectional else "forward"
    given = (x, *states, ops.constant(np.array(lengths, np.int32)), W, R, B, a.hidden_size)
    if a.cell == "lstm":
        node = ops.lstm_sequence(*given, direction)
    elif a.cell == "gru":
        node = ops.gru_sequence(*given, direction, **dict(layout.options))
    else:
        node = ops.rnn_sequence(*given, direction, activations=["tanh"])
    if not setup.keeps_state:
        return Model([node.output(0)], [x], "layer")
    made = Model([node.output(index) for index in range(1 + len(names))], [x, *states], "layer")
    pairs = {}
    for index, name in enumerate(names, start=1):
        made.inputs[index].set_names({name})
        made.outputs[index].set_names({f"{name}_next"})
        pairs[name] = f"{name}_next"
    apply_make_stateful_transformation(made, pairs)
    return made


@cache
def _core() -> Any:
    from openvino import Core

    return Core()


class Request:
    """One infer request, its tensors bound once.

    A step's input is copied into its buffer, as fusedrnn reads a new array in each; a sequence is laid out
    once, the batch outside, as OpenVINO has it, and what that takes is not in its time.

    Parameters
    ----------
    setup
        What it is made for.
    precision
        The type that it is asked to compute in: "f32", "bf16".

    Attributes
    ----------
    precision
        The type that it computes in: a CPU without instructions for the one asked for has another.
    """

    name = "openvino"
    variant = ""

    def __init__(self, setup: Setup, precision: str = "f32") -> None:
        from openvino import Tensor

        a, case = setup.architecture, setup.case
        # Its default is whatever the machine is fastest with, bfloat16 for one.
        compiled = _core().compile_model(
            _model(setup),
            "CPU",
            {
                PRECISION: precision,
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": setup.threads,
            },
        )
        self.precision: str = compiled.get_property(PRECISION).to_string()
        self._request = compiled.create_infer_request()
        self._infer = self._request.infer
        self._x = np.zeros((case.batch, case.steps, a.input_size), np.float32)
        self._y = np.zeros((case.batch, a.directions, case.steps, a.hidden_size), np.float32)
        self._tensors = [Tensor(array, shared_memory=True) for array in (self._x, self._y)]
        self._request.set_input_tensor(0, self._tensors[0])
        self._request.set_output_tensor(0, self._tensors[1])
        self._bound: Array | None = None

    def ready(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def reset(self) -> None:
        self._request.reset_state()

    def step(self, x: Array) -> Array:
        self._x[:, 0] = x
        self._infer()
        return self._y[:, 0, 0]

    def run(self, x: Array) -> Array:
        if self._bound is not x:
            self._x[...] = x.transpose(1, 0, 2)
            self._bound = x
        self._infer()
        y = self._y.transpose(2, 0, 1, 3)  # (T, B, D, H)
        return y[:, :, 0] if y.shape[2] == 1 else y.reshape(*y.shape[:2], -1)
