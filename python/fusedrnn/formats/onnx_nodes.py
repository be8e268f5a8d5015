"""Recurrent nodes of ONNX: LSTM, GRU and RNN, and ONNX Runtime's DynamicQuantizeLSTM, as layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.architecture import Architecture
from fusedrnn.cells import ACTIVATIONS, CELLS, Activation
from fusedrnn.errors import ArchitectureError, UnsupportedError
from fusedrnn.formats.contents import FoundLayer, Part, Tensor
from fusedrnn.formats.layouts import Layout, find, from_layout, suffix
from fusedrnn.formats.onnx_graph import (
    STANDARD,
    GraphView,
    NotConstantError,
    Place,
    main_graph,
    walk,
)
from fusedrnn.formats.onnx_quantized import QUANTIZERS, QuantizedWeights, is_quantized, turned
from fusedrnn.formats.onnx_stacks import NodeLayer, Uses, stacked
from fusedrnn.formats.values import FLOATS, as_float32, conversions
from fusedrnn.narrowing import Narrow

__all__ = [
    "ATTRIBUTES",
    "CELL_OF",
    "DIRECTIONS",
    "INPUTS",
    "ROLES",
    "activation_words",
    "find_recurrent",
    "is_recurrent",
    "node_layer",
    "node_name",
    "recurrent_among",
    "unique",
]

Array = npt.NDArray[Any]
#: A message of ONNX's protobuf.
Proto = Any

#: The operators, and the cell of each.
CELL_OF = {"RNN": "rnn", "GRU": "gru", "LSTM": "lstm"}
#: The inputs, in order. GRU and RNN end with initial_h.
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
#: Those of them that are weights.
STORED = ("W", "R", "B", "P")
DIRECTIONS = ("forward", "reverse", "bidirectional")
#: The attributes of all three; GRU has linear_before_reset and LSTM has input_forget beside them.
ATTRIBUTES = frozenset(
    {
        "activation_alpha",
        "activation_beta",
        "activations",
        "clip",
        "direction",
        "hidden_size",
        "layout",
        "output_sequence",  # of version 1: whether Y is wanted
    }
)
TYPES_OF: dict[str, type] = {
    "activation_alpha": float,
    "activation_beta": float,
    "activations": str,
    "clip": float,
    "direction": str,
}
OWN_ATTRIBUTE = {"RNN": "", "GRU": "linear_before_reset", "LSTM": "input_forget"}
#: What the activations of a direction are for, in order.
ROLES = {
    "rnn": ("activation",),
    "gru": ("gate_activation", "activation"),
    "lstm": ("gate_activation", "activation", "output_activation"),
}
#: The largest float32, which ONNX Runtime takes for no limit.
NO_CLIP = 3.4028234e38
#: What is not given of these is unknown: ONNX has no such operators whose defaults it could be.
NO_DEFAULTS: dict[str, tuple[float | None, ...]] = {
    "affine": (None, 0.0),
    "scaled_tanh": (None, None),
}
#: The activations by ONNX's names, in lower case. The identity is not among them: it is Affine with 1 and 0.
FUNCTIONS = {name.replace("_", ""): name for name in ACTIVATIONS if name != "identity"}


def is_recurrent(node: Proto) -> bool:
    """Whether a node is one of the standard recurrent operators."""
    return node.op_type in CELL_OF and node.domain in STANDARD


def node_name(node: Proto) -> str:
    """What a node's layer is called: the name of the node, or else of the first output that it has."""
    return str(node.name or next(filter(None, node.output), node.op_type))


def unique(name: str, taken: dict[str, int]) -> str:
    """The name, or with a number behind it if it is taken; it is taken then. ``taken`` counts the uses of each name."""
    found = name
    while found in taken:
        taken[name] += 1
        found = f"{name}#{taken[name]}"
    taken[found] = 1
    return found


def find_recurrent(
    model: Proto, view: GraphView | None = None
) -> tuple[tuple[FoundLayer, ...], tuple[Part, ...]]:
    """Every recurrent layer of a model, those in subgraphs and functions too.

    Parameters
    ----------
    model
        A ModelProto.
    view
        Its main graph, from :func:`main_graph`, which also says where external data may be; None for a model that has none.

    Returns
    -------
    layers
        One for each node, or for several nodes that are a stack; with names of their own.
    parts
        The recurrent nodes that are no layer here, with the reason in their notes.

    Raises
    ------
    ModelFormatError
        If the model is damaged or not as ONNX describes; the message names the node.
    """
    view = main_graph(model) if view is None else view
    places = list(walk(model, view))
    return recurrent_among(places, Uses(places, view))


def recurrent_among(
    places: Sequence[Place], uses: Uses
) -> tuple[tuple[FoundLayer, ...], tuple[Part, ...]]:
    """The recurrent layers among the nodes of a model, and the recurrent nodes that are none, as :func:`find_recurrent`."""
    nodes, parts = [], []
    taken: dict[str, int] = {}
    for view, node in places:
        if not is_recurrent(node) and not is_quantized(node):
            continue
        name = unique(node_name(node), taken)
        try:
            nodes.append(NodeLayer(view, node, replace(node_layer(view, node), name=name)))
        except UnsupportedError as error:
            tensors = _stored(view, node)
            parts.append(Part(name, "?", f"ONNX {node.op_type} node", tensors, note=str(error)))
    return tuple(stacked(nodes, uses)), tuple(parts)


def _stored(view: GraphView, node: Proto) -> tuple[Tensor, ...]:
    """The stored tensors among a node's weights."""
    return tuple(
        tensor
        for place, name in enumerate(node.input)
        if name and place < len(INPUTS) and INPUTS[place] in STORED
        for tensor in view.leaves(name)
    )


def node_layer(view: GraphView, node: Proto) -> FoundLayer:
    """The layer that an LSTM, GRU, RNN or DynamicQuantizeLSTM node is.

    Parameters
    ----------
    view
        The graph that the node is in.
    node
        The NodeProto.

    Raises
    ------
    UnsupportedError
        If this package has no such layer, or the node's weights are not constant; the message says why.
    ModelFormatError
        If the node is not as ONNX describes.
    """
    return _Node(view, node, f"node {node_name(node)!r} ({node.op_type})").layer()


@dataclass(frozen=True)
class _Node:
    """A recurrent node as it is read.

    Attributes
    ----------
    what
        What messages call it.
    """

    view: GraphView
    node: Proto
    what: str

    @property
    def operator(self) -> str:
        """The standard's operator of the cell."""
        return "LSTM" if is_quantized(self.node) else str(self.node.op_type)

    def layer(self) -> FoundLayer:
        said = self._attributes()
        cell = CELL_OF[self.operator]
        direction = said.get("direction", "forward")
        if direction not in DIRECTIONS:
            raise self.fault(f"direction must be one of {', '.join(DIRECTIONS)}, got {direction!r}")
        directions = 2 if direction == "bidirectional" else 1
        if said.get("layout", 0) not in (0, 1):
            raise self.fault(f"layout must be 0 or 1, got {said['layout']}")
        inputs = self._inputs()
        options: dict[str, Any] = {"bidirectional": directions == 2}
        if direction == "reverse":
            options["reverse"] = True
        if cell == "lstm":
            options["coupled"] = bool(said.get("input_forget", 0))
        elif cell == "gru":
            options["reset"] = "after" if said.get("linear_before_reset", 0) else "before"
        if not said.get("clip", NO_CLIP) >= NO_CLIP:  # NaN, too, is an error then
            options["clip"] = simplest(said["clip"])
        options |= self._activations(cell, said, directions)
        units, width = self._sizes(inputs, said, directions, cell)
        try:
            plain = Architecture(cell, width, units, **options)
        except ArchitectureError as error:
            raise self.fault(str(error)) from None
        if plain.coupled:
            self._check_coupled(plain)
        layout = find("onnx", plain)
        assert layout is not None  # ONNX has every form of its own operators
        notes = [self.view.where] if self.view.where else []
        more, said_of_biases = self._extras(layout, inputs, directions, units)
        notes += said_of_biases
        architecture = replace(plain, **more)
        state, said_of_states = self._state(
            inputs, cell, directions, units, batch_first=bool(said.get("layout"))
        )
        notes += said_of_states
        stored = (*STORED, *QUANTIZERS)
        tensors = self._tensors(inputs, stored if state is None else (*stored, *INPUTS[5:7]))
        kept, quantized = False, None
        if is_quantized(self.node):
            quantized = QuantizedWeights(self.view, inputs, self.what)
            kept, said_of_integers = quantized.note(low=-127 if layout.negates else -128)
            notes.append(said_of_integers)
        notes += self._notes(inputs, tensors, architecture)

        def read() -> Mapping[str, Array | Narrow]:
            return self._weights(layout, architecture, inputs, quantized, keep=kept)

        return FoundLayer(
            name=node_name(self.node),
            origin=f"ONNX {self.node.op_type} node",
            architecture=architecture,
            read=read,
            tensors=tensors,
            batch_first=bool(said.get("layout")),
            weight_dtype="int8" if kept else "float32",
            read_state=None if state is None else lambda: state,
            notes=tuple(notes),
        )

    def fault(self, message: str) -> Exception:
        return self.view.store.fault(f"{self.what}: {message}")

    def lacks(self, message: str) -> UnsupportedError:
        return UnsupportedError(f"{self.what}: {message}")

    # ---- attributes ------------------------------------------------------------------------------

    def _attributes(self) -> dict[str, Any]:
        said = self.view.attributes_of(self.node)
        known = ATTRIBUTES | {OWN_ATTRIBUTE[self.operator]}
        for name, value in said.items():
            if name not in known:
                raise self.lacks(f"attribute {name!r} is not known; it has {value!r}"[:300])
            kind = TYPES_OF.get(name, int)
            several = name.startswith("activation")
            if several != isinstance(value, list) or not all(
                isinstance(each, kind) for each in (value if several else [value])
            ):
                raise self.fault(
                    f"attribute {name!r} must be {'a list of ' * several}{kind.__name__}, got {value!r}"[
                        :300
                    ]
                )
        return said

    def _activations(self, cell: str, said: dict[str, Any], directions: int) -> dict[str, str]:
        """The activations by the options that they are."""
        roles = ROLES[cell]
        names = said.get("activations") or []
        if not names:
            return {}
        wanted = len(roles) * directions
        if cell == "rnn" and directions == 1 and len(names) == 2:
            names = names[:1]  # ONNX's default names two
        if len(names) != wanted:
            raise self.fault(f"activations must be {wanted} names, got {names}"[:300])
        alphas, betas = (iter(said.get(f"activation_{name}", ())) for name in ("alpha", "beta"))
        found = []
        for name in names:
            key = FUNCTIONS.get(str(name).lower())
            if key is None:
                raise self.lacks(f"activation {name!r} is not known")
            defaults = ACTIVATIONS[key]
            numbers = [
                next(rest, default)
                for rest, default in zip(
                    (alphas, betas), NO_DEFAULTS.get(key, defaults), strict=False
                )
            ]
            parameters = tuple(simplest(each) for each in numbers if each is not None)
            if len(parameters) < len(numbers):
                raise self.lacks(
                    f"activation {name} without all of activation_alpha and activation_beta, for which ONNX has no default"
                )
            if (key, parameters) == ("affine", (1.0, 0.0)):
                key, parameters = "identity", ()
            found.append(str(Activation(key, parameters)))
        if found[: len(roles)] != found[-len(roles) :]:
            raise self.lacks(
                f"the directions have different activations: {', '.join(found[: len(roles)])} and "
                f"{', '.join(found[len(roles) :])}"
            )
        return dict(zip(roles, found, strict=False))

    def _check_coupled(self, architecture: Architecture) -> None:
        """input_forget=1: 1 - gate(x) must be gate(-x), by which ONNX's i becomes f."""
        gate = architecture.activation_of("gate")
        symmetric = gate.name == "sigmoid" or (
            gate.name == "hard_sigmoid" and gate.parameters[1] == 0.5
        )
        if not symmetric:
            raise self.lacks(
                f"input_forget=1 with the gate activation {gate}, for which 1 - gate(x) is not gate(-x)"
            )

    # ---- weights ---------------------------------------------------------------------------------

    def _inputs(self) -> dict[str, str]:
        """The names of the values that the node reads, by the names of its inputs."""
        needed = ["X", "W", "R"]
        allowed: tuple[str, ...] = INPUTS if self.operator == "LSTM" else INPUTS[:6]
        if is_quantized(self.node):
            allowed += QUANTIZERS
            needed += ["W_scale", "R_scale"]
        names = list(self.node.input)
        if len(names) > len(allowed):
            raise self.fault(f"it has {len(names)} inputs, and can have {len(allowed)}")
        found = {key: name for key, name in zip(allowed, names, strict=False) if name}
        for key in needed:
            if key not in found:
                raise self.fault(f"input {key} is missing")
        return found

    def _shape(self, inputs: Mapping[str, str], key: str) -> tuple[int, ...]:
        try:
            return self.view.shape(inputs[key])
        except NotConstantError as error:
            raise self.lacks(f"{key} is not constant: {error}") from None
        except UnsupportedError as error:
            raise self.lacks(f"{key}: {error}") from None

    def _constant(self, inputs: Mapping[str, str], key: str) -> Array:
        """A constant input, as float32."""
        array = self.view.constant(inputs[key])
        if array.dtype.kind != "f":
            raise self.fault(f"{key} must be floats, got {array.dtype}")
        return as_float32(array, f"{self.what}: {key}")

    def _sizes(
        self, inputs: Mapping[str, str], said: dict[str, Any], directions: int, cell: str
    ) -> tuple[int, int]:
        """H and X, after every shape has been checked."""
        gates = len(CELLS[cell][0].gates)
        shapes = {key: self._shape(inputs, key) for key in STORED if key in inputs}
        W, R = shapes["W"], shapes["R"]
        if len(W) != 3 or len(R) != 3 or 0 in W or 0 in R:
            raise self.fault(f"W and R must have 3 axes that are not 0, got {W} and {R}")
        turn = turned if is_quantized(self.node) else tuple
        units, width = turn(R)[2], turn(W)[2]
        stated = said.get("hidden_size", units)
        wanted = {
            "W": turn((directions, gates * units, width)),
            "R": turn((directions, gates * units, units)),
            "B": (directions, 2 * gates * units),
            "P": (directions, 3 * units),
        }
        wrong = [
            f"{key} must have shape {wanted[key]}, got {shape}"
            for key, shape in shapes.items()
            if shape != wanted[key]
        ]
        if stated != units:
            wrong.append(f"hidden_size is {stated}, and R has {units} columns")
        if wrong:
            hint = (
                "; PyTorch's exporter writes such nodes for an LSTM with proj_size, which ONNX does not have: "
                "read the checkpoint instead"
                if cell == "lstm" and stated != units
                else ""
            )
            raise self.fault("; ".join(wrong) + hint)
        return units, width

    def _extras(
        self, layout: Layout, inputs: Mapping[str, str], directions: int, units: int
    ) -> tuple[dict[str, Any], list[str]]:
        """The biases and peepholes that are there: an all-zero block is none. And what is said of that."""
        notes: list[str] = []
        found: dict[str, Any] = {"bias": "none"}
        if "B" in inputs:
            rows = len(layout.gates)
            second = self._constant(inputs, "B").reshape(directions, 2, rows, units)[:, 1]
            own = layout.row.own_recurrent_bias
            # Nor is the block of f read, where ONNX makes f of i.
            unread = ("f",) if layout.negates else ()
            redundant = [
                place for place, gate in enumerate(layout.gates) if gate not in (*own, *unread)
            ]
            found["bias"] = "double" if second[:, redundant].any() else "single"
            if found["bias"] == "single":
                kept = f", but for that of {', '.join(own)}" if own else ""
                notes.append(
                    f"the second half of B {inputs['B']!r} is all zero{kept}: no parameters"
                )
        if "P" in inputs:
            blocks = self._constant(inputs, "P").reshape(directions, 3, units)
            has = {gate for place, gate in enumerate(layout.peepholes) if blocks[:, place].any()}
            if layout.negates:  # ONNX's i is f here, and its f is not read
                has = (has - {"f", "i"}) | ({"f"} if "i" in has else set())
            found["peephole"] = "".join(sorted(has, key="ifo".index))
            zero = [gate for gate in layout.row.gates if gate.peephole and gate.name not in has]
            if zero:
                names = ", ".join(gate.name for gate in zero)
                notes.append(
                    f"the peepholes of {names} in P {inputs['P']!r} are all zero: left out"
                )
        return found, notes

    def _weights(
        self,
        layout: Layout,
        architecture: Architecture,
        inputs: Mapping[str, str],
        quantized: QuantizedWeights | None,
        *,
        keep: bool,
    ) -> dict[str, Array | Narrow]:
        """The canonical weights; integers are kept or widened."""
        arrays = {
            key: quantized.integers(key)
            if quantized and key in ("W", "R")
            else self._constant(inputs, key)
            for key in STORED
            if key in inputs
        }
        if not architecture.peephole:
            arrays.pop("P", None)
        wanted = {weight.name for weight in architecture.weights()}
        weights: dict[str, Array | Narrow] = {}
        for direction in range(architecture.directions):
            end = suffix(0, direction)
            one = {key: array[direction] for key, array in arrays.items()}
            moved = from_layout(layout, one, end, architecture.peephole_gates)
            for gate in layout.row.own_recurrent_bias:
                if f"bias_h{gate}{end}" in wanted:
                    moved[f"bias_h{gate}{end}"] = moved[f"bias_hh{end}"][
                        -architecture.hidden_size :
                    ]
            weights |= {n: np.ascontiguousarray(moved[n]) for n in moved if n in wanted}
            if quantized:
                weights |= quantized.scaled(layout, direction, end, moved, keep=keep)
        return weights

    def _tensors(self, inputs: Mapping[str, str], keys: Sequence[str]) -> tuple[Tensor, ...]:
        """The stored tensors that these inputs are made of, each once."""
        found: dict[str, Tensor] = {}
        for key in keys:
            if key in inputs:
                for tensor in self.view.leaves(inputs[key]):
                    found.setdefault(tensor.name, tensor)
        return tuple(found.values())

    # ---- states ----------------------------------------------------------------------------------

    def _state(
        self,
        inputs: Mapping[str, str],
        cell: str,
        directions: int,
        units: int,
        *,
        batch_first: bool,
    ) -> tuple[tuple[Array, ...] | None, list[str]]:
        """The constant initial state, if there is one that is not zero; and what is said of that."""
        keys = ["initial_h", "initial_c"][: len(CELLS[cell][0].states)]
        arrays: dict[str, Array | None] = {}
        notes = []
        for key in keys:
            if key not in inputs or self.view.fill(inputs[key]) == 0:
                arrays[key] = np.zeros((directions, units), np.float32)
                continue
            try:
                array = self.view.constant(inputs[key], any_batch=True)
            except NotConstantError:
                arrays[key] = None
                notes.append(f"{key} is {inputs[key]!r}, known at run time: the state of a call")
                continue
            except UnsupportedError as error:
                raise self.lacks(f"{key}: {error}") from None
            if batch_first and array.ndim == 3:
                array = array.transpose(1, 0, 2)
            if array.ndim != 3 or (array.shape[0], array.shape[2]) != (directions, units):
                raise self.fault(
                    f"{key} must have shape ({directions}, batch, {units}), got {array.shape}"
                )
            rows = as_float32(array, f"{self.what}: {key}")
            if not rows.shape[1] or (rows != rows[:, :1]).any():
                raise self.lacks(
                    f"{key} is a constant that differs from row to row of a batch of {rows.shape[1]}"
                )
            arrays[key] = np.ascontiguousarray(rows[:, 0])
        values = [array for array in arrays.values() if array is not None]
        if len(values) < len(arrays):
            constant = [key for key, array in arrays.items() if array is not None and array.any()]
            notes += [
                f"{key} is a constant that is not zero: give both as the state" for key in constant
            ]
            return None, notes
        return (tuple(values) if any(array.any() for array in values) else None), notes

    # ---- notes -----------------------------------------------------------------------------------

    def _notes(
        self,
        inputs: Mapping[str, str],
        tensors: Sequence[Tensor],
        architecture: Architecture,
    ) -> list[str]:
        notes = []
        if "sequence_lens" in inputs:
            try:
                lengths = self.view.constant(inputs["sequence_lens"]).ravel()[:8].tolist()
                notes.append(
                    f"sequence_lens is the constant {lengths}: give it as the lengths of a call"
                )
            except UnsupportedError:
                notes.append(
                    f"sequence_lens is {inputs['sequence_lens']!r}, known at run time: the lengths of a call"
                )
        notes += conversions(each for each in tensors if each.dtype in FLOATS)
        quantized = sorted({each.dtype for each in tensors if each.dtype not in FLOATS})
        if quantized and not is_quantized(self.node):
            notes.append(f"{', '.join(quantized)} numbers, turned into float32")
        overridable = [
            name
            for key in (*STORED, *QUANTIZERS)
            if key in inputs
            for name in self.view.replaceable(inputs[key])
        ]
        if overridable:
            names = ", ".join(map(repr, dict.fromkeys(overridable)))
            notes.append(f"the model lets its caller replace {names}: what it stores is taken")
        try:
            architecture.check_compiled("c")
        except UnsupportedError:
            notes.append("activations that only the numpy backend has")
        return notes


def simplest(number: float) -> float:
    """The simplest number that is the same float32: 0.2 for 0.20000000298, 1/6 for 0.16666667163."""
    single = np.float32(number)
    if not np.isfinite(single):
        return float(single)
    close = float(Fraction(float(single)).limit_denominator(100))
    return close if np.float32(close) == single else float(str(single))


def activation_words(activation: Activation) -> tuple[str, tuple[float, ...]]:
    """ONNX's name of an activation, and its parameters: alpha, or alpha and beta."""
    if activation.name == "identity":
        return "Affine", (1.0, 0.0)
    name = "".join(part.capitalize() for part in activation.name.split("_"))
    return name, activation.parameters
