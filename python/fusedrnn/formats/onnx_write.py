"""A layer as an ONNX model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from fusedrnn.cells import Activation
from fusedrnn.errors import MissingExtraError, UnsupportedError
from fusedrnn.formats.layouts import Layout, find, suffix, to_layout

if TYPE_CHECKING:
    import numpy.typing as npt

    from fusedrnn.architecture import Architecture
    from fusedrnn.layers import Layer

    Array = npt.NDArray[Any]

__all__ = ["to_onnx"]

#: A message of ONNX's protobuf.
Proto = Any

#: What is written; ONNX Runtime reads it from version 1.20 on.
OPSET, IR_VERSION = 22, 10
#: Most bytes of weights: protobuf's limit, with room for the graph.
MAX_BYTES = 2**31 - 2**20
STATES = ("initial_h", "initial_c")


def to_onnx(layer: Layer[Any]) -> Any:
    """An ONNX model that computes what a layer computes.

    Parameters
    ----------
    layer
        An LSTM, GRU or RNN, of float32.

    Returns
    -------
    onnx.ModelProto
        Of opset 22. Input ``x`` and output ``y`` are those of the layer: (T, B, ·), or (B, T, ·) if ``batch_first``, with any
        T and B. The states are inputs ``initial_h`` and, of an LSTM, ``initial_c``, and outputs ``final_h`` and
        ``final_c``, each (L * D, B, ·). A layer with an ``initial_state`` has no such inputs: its state is in the model.
        :func:`from_onnx` gives the same layer again. Write it with ``onnx.save``.

    Raises
    ------
    UnsupportedError
        For what ONNX does not have: a projection, a Clockwork RNN, ``cell_clip``, coupled gates of another activation than
        sigmoid; for float64; for weights of more than 2 GiB.
    MissingExtraError
        If the package onnx is not installed.

    Notes
    -----
    ONNX Runtime 1.32 ends the process on an empty batch, and does not let NaN through as this package does.
    """
    if find_spec("onnx") is None:
        raise MissingExtraError("onnx", "onnx", "to_onnx")
    return _Writer(layer, _checked(layer)).model()


def _checked(layer: Layer[Any]) -> Layout:
    """ONNX's layout of the layer's cell."""
    a = layer.architecture
    layout = find("onnx", a)
    what = f"{a.table.title} with a projection" if a.proj_size else a.table.title
    if layout is None:
        raise UnsupportedError(f"ONNX has no {what}")
    if a.cell_clip is not None:
        raise UnsupportedError(
            f"ONNX has no cell_clip, only clip, which limits the sums of gates; got {a.cell_clip}"
        )
    gate = a.activation_of("gate")
    if (
        a.coupled
        and gate.name != "sigmoid"
        and (gate.name, gate.parameters[1:])
        != (
            "hard_sigmoid",
            (0.5,),
        )
    ):
        raise UnsupportedError(
            f"ONNX's input_forget couples the other gate, which is the same for sigmoid and hard_sigmoid(·, 0.5) only, "
            f"not for {gate}"
        )
    if str(layer.dtype) != "float32":
        raise UnsupportedError(f"to_onnx writes float32, not {layer.dtype}")
    if sum(array.nbytes for array in layer.weights.values()) > MAX_BYTES:
        raise UnsupportedError("the weights are more than an ONNX file can have, 2 GiB")
    return layout


@dataclass
class _Writer:
    """Collects the nodes and tensors of a model."""

    layer: Layer[Any]
    layout: Layout
    nodes: list[Proto] = field(default_factory=list)
    tensors: list[Proto] = field(default_factory=list)

    @property
    def architecture(self) -> Architecture:
        return self.layer.architecture

    def model(self) -> Proto:
        import onnx
        from onnx import TensorProto, helper

        from fusedrnn import __version__

        a = self.architecture
        states = len(a.table.states)
        rows = a.num_layers * a.directions
        own_state = self.layer.initial_state is not None
        given = [f"initial_{state.name}" for state in a.table.states]
        finals = [f"final_{state.name}" for state in a.table.states]
        self._layers(self._input(), list(self._initial(given)), finals)
        axes = ["B", "T"] if self.layer.batch_first else ["T", "B"]

        def value(name: str, shape: list[int | str]) -> Proto:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

        state_shape: list[int | str] = [rows, "B", a.hidden_size]
        graph = helper.make_graph(
            self.nodes,
            self.layout.layer_class,
            [value("x", [*axes, a.input_size])]
            + [value(name, state_shape) for name in given[:states] if not own_state],
            [value("y", [*axes, a.output_size])] + [value(name, state_shape) for name in finals],
            self.tensors,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="fusedrnn",
            producer_version=__version__,
        )
        onnx.checker.check_model(model, full_check=True)
        return model

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node of one output; its name."""
        from onnx import helper

        self.nodes.append(
            helper.make_node(operator, inputs, [output], name=f"{output}_node", **attributes)
        )
        return output

    def tensor(self, name: str, array: Any) -> str:
        """Add an initializer; its name."""
        import numpy as np
        from onnx import numpy_helper

        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def ints(self, name: str, *numbers: int) -> str:
        import numpy as np

        return self.tensor(name, np.array(numbers, np.int64))

    def _input(self) -> str:
        """x as the nodes want it, (T, B, X)."""
        if not self.layer.batch_first:
            return "x"
        return self.node("Transpose", ["x"], "x_by_time", perm=[1, 0, 2])

    def _initial(self, names: list[str]) -> Iterator[list[str]]:
        """For each state, what it is before the first step, layer by layer."""
        a = self.architecture
        own = self.layer.initial_state
        if own is not None:
            place = 0 if self.layer.batch_first else 1
            self.node("Shape", ["x"], "batch", start=place, end=place + 1)
            self.node("Concat", [self.ints("one", 1), "batch", "one"], "rows", axis=0)
        for index, name in enumerate(names):
            if own is not None:
                stored = self.tensor(f"{name}_row", own[index][:, None])
                name = self.node("Expand", [stored, "rows"], name)
            if a.num_layers == 1:
                yield [name]
                continue
            from onnx import helper

            parts = [f"{name}_l{layer}" for layer in range(a.num_layers)]
            if not index:
                self.ints("state_parts", *[a.directions] * a.num_layers)
            self.nodes.append(
                helper.make_node(
                    "Split", [name, "state_parts"], parts, name=f"{name}_split", axis=0
                )
            )
            yield parts

    def _layers(self, x: str, initial: list[list[str]], finals: list[str]) -> None:
        """The recurrent nodes, what is between them, and the outputs."""
        from onnx import helper

        a = self.architecture
        several = a.num_layers > 1
        last: list[list[str]] = [[] for _ in finals]
        y_name = "y_by_time" if self.layer.batch_first else "y"
        for layer in range(a.num_layers):
            end = f"_l{layer}"
            arrays = self._arrays(layer)
            inputs = [x, *(arrays.get(key, "") for key in ("W", "R", "B")), ""]
            inputs += [parts[layer] for parts in initial]
            inputs += [arrays["P"]] if "P" in arrays else []
            outputs = [f"Y{end}"]
            for place, final in enumerate(finals):
                name = f"{final}{end}" if several else final
                outputs.append(name)
                last[place].append(name)
            name = f"{self.layout.layer_class}{end}"
            self.nodes.append(
                helper.make_node(
                    self.layout.layer_class, inputs, outputs, name=name, **self._attributes()
                )
            )
            top = layer == a.num_layers - 1
            x = self._joined(f"Y{end}", y_name if top else f"x_l{layer + 1}", first=not layer)
        if self.layer.batch_first:
            self.node("Transpose", [x], "y", perm=[1, 0, 2])
        if several:
            for final, parts in zip(finals, last, strict=True):
                self.node("Concat", parts, final, axis=0)

    def _joined(self, y: str, output: str, *, first: bool) -> str:
        """Y (T, D, B, H) as (T, B, D H)."""
        if self.architecture.directions == 1:
            if first:
                self.ints("direction_axis", 1)
            return self.node("Squeeze", [y, "direction_axis"], output)
        if first:
            self.ints("joined_shape", 0, 0, -1)
        self.node("Transpose", [y], f"{y}_by_row", perm=[0, 2, 1, 3])
        return self.node("Reshape", [f"{y}_by_row", "joined_shape"], output)

    def _arrays(self, layer: int) -> dict[str, str]:
        """The names of the initializers of one layer, by the inputs that they are."""
        import numpy as np

        a = self.architecture
        by_direction = [
            to_layout(self.layout, self.layer.weights, suffix(layer, direction), a.peephole_gates)
            for direction in range(a.directions)
        ]
        return {
            key: self.tensor(f"{key}_l{layer}", np.stack([each[key] for each in by_direction]))
            for key in by_direction[0]
        }

    def _attributes(self) -> dict[str, Any]:
        from fusedrnn.formats.onnx_nodes import ROLES, activation_words

        a = self.architecture
        direction = "bidirectional" if a.bidirectional else "reverse" if a.reverse else "forward"
        said: dict[str, Any] = {"hidden_size": a.hidden_size, "direction": direction}
        said |= dict(self.layout.options)
        if a.clip is not None:
            said["clip"] = a.clip
        options = [a.activation_of(_role(name)) for name in ROLES[a.cell]]
        defaults = [Activation("sigmoid", ()), Activation("tanh", ()), Activation("tanh", ())]
        if options != (defaults[1:2] if a.cell == "rnn" else defaults[: len(options)]):
            words = [activation_words(each) for each in options] * a.directions
            said["activations"] = [name for name, _ in words]
            for place, key in enumerate(("activation_alpha", "activation_beta")):
                numbers = [given[place] for _, given in words if len(given) > place]
                if numbers:
                    said[key] = numbers
        return said


def _role(option: str) -> str:
    return {"gate_activation": "gate", "activation": "state", "output_activation": "output"}[option]
