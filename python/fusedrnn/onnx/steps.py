"""What a session runs, one after another: pieces of the model in ONNX Runtime, layers, and moves of numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["LayerStep", "MoveStep", "PieceStep", "Step", "Values"]

Array = npt.NDArray[Any]
#: What there is so far, by name.
Values = dict[str, Any]
#: Reads values, and adds values.
Step = Callable[[Values], None]


class PieceStep:
    """A piece that ONNX Runtime runs.

    Parameters
    ----------
    session
        An ``onnxruntime.InferenceSession`` of it.
    inputs
        The values that it reads.
    defaults
        Those that it reads if the caller has given them.
    outputs
        The values that it gives.
    """

    def __init__(
        self, session: Any, inputs: Sequence[str], defaults: Sequence[str], outputs: Sequence[str]
    ) -> None:
        self.session = session
        self._inputs, self._defaults, self._outputs = tuple(inputs), tuple(defaults), list(outputs)
        # The session's own run first checks what was checked here, in Python: a quarter of the time of a small piece.
        # Behind it is the same call; what it does for other providers than the CPU's is needed for these.
        cpu = session.get_providers() == ["CPUExecutionProvider"]
        self._run = getattr(session, "_sess", session).run if cpu else session.run

    def __call__(self, values: Values) -> None:
        feeds = {name: values[name] for name in self._inputs}
        for name in self._defaults:
            if name in values:
                feeds[name] = values[name]
        values.update(zip(self._outputs, self._run(self._outputs, feeds, None), strict=True))


class MoveStep:
    """A node that moves numbers."""

    def __init__(
        self,
        what: str,
        function: Callable[..., Array],
        inputs: Sequence[str],
        constants: Mapping[str, Array],
        output: str,
    ) -> None:
        self._what, self._function, self._output = what, function, output
        self._inputs, self._constants = tuple(inputs), dict(constants)

    def __call__(self, values: Values) -> None:
        constants = self._constants
        given = [constants[name] if name in constants else values[name] for name in self._inputs]
        try:
            values[self._output] = self._function(*given)
        except (IndexError, TypeError, ValueError) as error:
            shapes = ", ".join(
                f"{n!r} of shape {np.shape(v)}" for n, v in zip(self._inputs, given, strict=True)
            )
            raise ValueError(f"{self._what}, with {shapes}: {error}") from None


class LayerStep:
    """A recurrent node.

    Parameters
    ----------
    what
        What messages call the node.
    layer
        Its layer.
    batch_first
        Whether the node has layout=1.
    inputs
        The values X, sequence_lens, initial_h and initial_c, as far as the layer is called with them, by these names.
    constants
        Those of the values that are constant.
    outputs
        The names of Y, Y_h and Y_c; "" for one that nobody reads.
    """

    def __init__(
        self,
        what: str,
        layer: Any,
        *,
        batch_first: bool,
        inputs: Mapping[str, str],
        constants: Mapping[str, Array],
        outputs: Sequence[str],
    ) -> None:
        self._what, self._layer, self._batch_first = what, layer, batch_first
        self._named, self._constants = dict(inputs), dict(constants)
        a = layer.architecture
        self._directions, self._units = a.directions, a.hidden_size
        self._x = inputs["X"]
        self._lengths = inputs.get("sequence_lens")
        keys = ("initial_h", "initial_c")[: len(a.table.states)]
        self._state = None if {*keys}.isdisjoint(inputs) else tuple(inputs.get(key) for key in keys)
        self._y = outputs[0]
        self._after = [(place, name) for place, name in enumerate(outputs[1:]) if name]

    def __call__(self, values: Values) -> None:
        x = self._value(values, self._x)
        try:
            if x.ndim != 3:
                axes = "(batch, steps" if self._batch_first else "(steps, batch"
                raise ValueError(f"x must have 3 axes, {axes}, features), got shape {x.shape}")
            state = None if self._state is None else self._given(values, x)
            lengths = None if self._lengths is None else self._value(values, self._lengths)
            y, after = self._layer(x, state, lengths)
        except (TypeError, ValueError) as error:
            names = ", ".join(f"{key} is {name!r}" for key, name in self._named.items())
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{self._what}, whose {names}: {error}") from None
        if self._y:
            if self._batch_first:
                y = y.reshape(*y.shape[:2], self._directions, self._units)
            elif self._directions == 1:
                y = y[:, None]
            else:
                y = y.reshape(*y.shape[:2], 2, self._units).transpose(0, 2, 1, 3)
            values[self._y] = y
        for place, name in self._after:
            values[name] = after[place].transpose(1, 0, 2) if self._batch_first else after[place]

    def _value(self, values: Values, name: str) -> Any:
        return self._constants[name] if name in self._constants else values[name]

    def _given(self, values: Values, x: Array) -> tuple[Array, ...]:
        """The state that the node is given; zeros for a half that it is not."""
        assert self._state is not None
        batch = x.shape[0 if self._batch_first else 1]
        found = []
        for name in self._state:
            if name is None:
                found.append(np.zeros((self._directions, batch, self._units), np.float32))
                continue
            value = self._value(values, name)
            if self._batch_first and value.ndim == 3:
                value = value.transpose(1, 0, 2)
            found.append(value)
        return tuple(found)
