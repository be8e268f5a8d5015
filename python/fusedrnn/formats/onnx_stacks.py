"""Recurrent nodes of ONNX that are the layers of one stack: each reads what the one below gives, and nothing else does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.errors import UnsupportedError
from fusedrnn.formats.contents import FoundLayer
from fusedrnn.formats.layouts import suffix
from fusedrnn.formats.onnx_graph import STANDARD, GraphView, Place
from fusedrnn.narrowing import Narrow

__all__ = ["NodeLayer", "Uses", "stacked"]

Array = npt.NDArray[Any]
#: A message of ONNX's protobuf.
Proto = Any
#: An axis, by the axes of Y that are joined in it: ("T",), ("D", "H").
Axis = tuple[str, ...]
#: Largest number of nodes between two layers of a stack, and of values that a shape on the way is made of.
MAX_WAY, MAX_VALUES = 10, 50


@dataclass(frozen=True)
class NodeLayer:
    """A recurrent node and its layer."""

    view: GraphView
    node: Proto
    layer: FoundLayer


class Uses:
    """The nodes that read each value of a model.

    Parameters
    ----------
    places
        Every node of the model.
    main
        The main graph.
    """

    def __init__(self, places: Sequence[Place], main: GraphView) -> None:
        self._nodes: dict[tuple[int, str], list[Proto | None]] = {}
        views = {id(main): main} | {id(view): view for view, _ in places}
        for view, node in places:
            for name in filter(None, node.input):
                self._add(view, name, node)
        for view in views.values():
            for each in view.graph.output:  # None: who reads it is outside
                self._add(view, each if isinstance(each, str) else each.name, None)

    def _add(self, view: GraphView, name: str, node: Proto | None) -> None:
        home, name = view.home(name)
        self._nodes.setdefault((id(home), name), []).append(node)

    def of(self, view: GraphView, name: str) -> list[Proto | None]:
        """Those of a value of this graph that need more than its shape; None for one outside the graph."""
        readers = self._nodes.get((id(view), name), [])
        return [node for node in readers if node is None or node.op_type != "Shape"]


def stacked(nodes: Sequence[NodeLayer], uses: Uses) -> list[FoundLayer]:
    """The layers of the nodes: one of several layers for those that are a stack."""
    stacks: list[list[NodeLayer]] = []
    tops: dict[tuple[int, str], list[NodeLayer]] = {}  # by the value Y of their last node
    for each in nodes:
        way = _way(each, uses)
        stack = tops.get((id(way[0]), way[1])) if way else None
        if way and stack and _continues(stack[-1], each, way):
            stack.append(each)
        else:
            stack = [each]
            stacks.append(stack)
        if each.node.output and each.node.output[0]:
            tops[id(each.view), each.node.output[0]] = stack
    return [_turned(stack, _joined(stack), uses) for stack in stacks]


#: A graph, the name of a value of it, and the nodes from this value to the X of a recurrent node, in order.
Way = tuple[GraphView, str, list[Proto]]


def _way(above: NodeLayer, uses: Uses) -> Way | None:
    """Where the X of a node comes from, through operators that only move numbers; None if others read these, too."""
    view, name = above.view.home(above.node.input[0])
    path: list[Proto] = []
    while len(path) < MAX_WAY and view is above.view and len(uses.of(view, name)) == 1:
        node = view.makers.get(name)
        if node is None or not node.input:
            return None
        if node.op_type not in MOVES or node.domain not in STANDARD:
            return view, name, path[::-1]
        path.append(node)
        view, name = view.home(node.input[0])
    return None


def _continues(below: NodeLayer, above: NodeLayer, way: Way) -> bool:
    """Whether a node is the next layer of the stack that another one ends."""
    one, other = below.layer, above.layer
    wanted = replace(one.architecture, input_size=one.architecture.output_size)
    return (
        below.node.op_type == above.node.op_type
        and wanted == other.architecture
        and (one.batch_first, one.weight_dtype) == (other.batch_first, other.weight_dtype)
        and _input(below.node, 4) == _input(above.node, 4)
        and _joins(one, way)
    )


def _input(node: Proto, place: int) -> str:
    return str(node.input[place]) if place < len(node.input) else ""


def _joined(stack: Sequence[NodeLayer]) -> FoundLayer:
    """One layer, of the layers of a stack."""
    layers = [each.layer for each in stack]
    first = layers[0]
    if len(layers) == 1:
        return first
    architecture = replace(first.architecture, num_layers=len(layers))
    directions = architecture.directions

    def read() -> Mapping[str, Array | Narrow]:
        weights = {}
        for place, layer in enumerate(layers):
            own = layer.read()
            for weight in layer.architecture.weights():
                end = suffix(0, weight.direction)
                name = weight.name.removesuffix(end) + suffix(place, weight.direction)
                weights[name] = own[weight.name]
        return weights

    def read_state() -> Sequence[Array]:
        shape = directions, architecture.hidden_size
        zeros = [np.zeros(shape, np.float32)] * len(architecture.table.states)
        parts = [layer.read_state() if layer.read_state else zeros for layer in layers]
        return tuple(np.concatenate(rows) for rows in zip(*parts, strict=True))

    names = ", ".join(repr(layer.name) for layer in layers)
    notes = [f"nodes {names} as one stack"]
    for layer in layers:
        notes += [f"{layer.name!r}: {note}" for note in layer.notes]
    tensors = {tensor.name: tensor for layer in layers for tensor in layer.tensors}
    return replace(
        first,
        architecture=architecture,
        read=read,
        tensors=tuple(tensors.values()),
        read_state=read_state if any(layer.read_state for layer in layers) else None,
        notes=tuple(notes),
    )


# ---- from Y to X ---------------------------------------------------------------------------------


def _joins(below: FoundLayer, way: Way) -> bool:
    """Whether the way from Y joins the directions, and does nothing else."""
    view, name, path = way
    axes = _along(below, view, name, path)
    return axes is not None and _is_output(axes, "BT" if below.batch_first else "TB", below)


def _along(
    below: FoundLayer, view: GraphView, name: str, path: Sequence[Proto]
) -> list[Axis] | None:
    """The axes that Y has behind these nodes; None if they do more than move its numbers."""
    axes: list[Axis] = [(letter,) for letter in ("BTDH" if below.batch_first else "TDBH")]
    architecture = below.architecture
    moves = _Moves(view, {name: list(axes)}, architecture.directions, architecture.hidden_size)
    for node in path:
        moved = MOVES[node.op_type](moves, node, axes)
        if moved is None:
            return None
        axes = moves.tracked[node.output[0]] = moved
    return axes


def _is_output(axes: list[Axis], order: str, layer: FoundLayer) -> bool:
    """Whether these are the axes of a layer's output, (T, B, ·) or (B, T, ·)."""
    return axes[:-1] == [(letter,) for letter in order] and (
        axes[-1] == ("D", "H") or (layer.architecture.directions == 1 and axes[-1] == ("H",))
    )


def _turned(stack: Sequence[NodeLayer], layer: FoundLayer, uses: Uses) -> FoundLayer:
    """The layer, with ``batch_first`` if x is transposed in front of it, and y behind it or not used."""
    if layer.batch_first or not _is_turned(stack[0]):
        return layer
    view, node = stack[-1].view, stack[-1].node
    first = name = str(node.output[0]) if node.output else ""
    path: list[Proto] = []
    while name and (readers := uses.of(view, name)):
        if len(readers) > 1 or readers[0] is None or readers[0].op_type not in MOVES:
            return layer
        path.append(readers[0])
        axes = _along(layer, view, first, path)
        if axes is None or len(path) > MAX_WAY:
            return layer
        if _is_output(axes, "BT", layer):
            break
        name = str(readers[0].output[0])
    notes = (*layer.notes, "x and y are transposed in the model: (B, T, ·)")
    return replace(layer, batch_first=True, notes=notes)


def _is_turned(below: NodeLayer) -> bool:
    view, name = below.view.home(below.node.input[0])
    node = view.makers.get(name)
    return (
        node is not None
        and node.op_type == "Transpose"
        and view.attributes_of(node).get("perm") == [1, 0, 2]
    )


@dataclass(frozen=True)
class _Moves:
    """What operators make of the axes of Y; each answers None for what is not a mere way to the next X.

    Attributes
    ----------
    view
        The graph.
    tracked
        The axes of the values on the way.
    directions, units
        Lengths of D and H.
    """

    view: GraphView
    tracked: dict[str, list[Axis]]
    directions: int
    units: int
    _known: dict[str, list[int | Axis] | None] = field(default_factory=dict)

    def ints(self, node: Proto, place: int, name: str) -> list[int] | None:
        """The constant ints of an input or an attribute."""
        value = self.view.attributes_of(node).get(name)
        if value is None and _input(node, place):
            try:
                value = self.view.constant(node.input[place]).ravel().tolist()
            except UnsupportedError:
                return None
        return [int(each) for each in value] if value is not None else None

    def same(self, node: Proto, axes: list[Axis]) -> list[Axis] | None:
        """Identity, and a Dropout that is not in training."""
        return axes if not _input(node, 2) else None

    def squeeze(self, node: Proto, axes: list[Axis]) -> list[Axis] | None:
        places = self.ints(node, 1, "axes")
        if places is None or len(places) != 1 or not -len(axes) <= places[0] < len(axes):
            return None
        gone = places[0] % len(axes)
        left = axes[:gone] + axes[gone + 1 :]
        return left if axes[gone] == ("D",) and self.directions == 1 else None

    def transpose(self, node: Proto, axes: list[Axis]) -> list[Axis] | None:
        perm = self.view.attributes_of(node).get("perm")
        if perm is None or sorted(perm) != list(range(len(axes))):
            return None
        return [axes[place] for place in perm]

    def reshape(self, node: Proto, axes: list[Axis]) -> list[Axis] | None:
        """The last axes, D and H, become one; the others stay as they are."""
        if axes[2:] not in ([("D",), ("H",)], [("H",)]) or not _input(node, 1):
            return None
        wanted = self.lengths(node.input[1])
        if wanted is None or len(wanted) != 3 or wanted.count(-1) > 1:
            return None
        joined = tuple(letter for axis in axes[2:] for letter in axis)
        known = {joined: self.units * (self.directions if "D" in joined else 1)}
        dims = self.view.static_shapes.get(node.input[0], ())
        known |= dict(zip(axes[:2], dims, strict=False))
        result = [*axes[:2], joined]
        for place, (axis, length) in enumerate(zip(result, wanted, strict=True)):
            copied = length == 0 and place < 2
            if not (copied or length in (-1, axis) or (length and length == known.get(axis))):
                return None
        return result

    def lengths(self, name: str) -> list[int | Axis] | None:
        """A shape that is partly known: ints, or the axes whose lengths are taken from a value on the way."""
        if name not in self._known and len(self._known) < MAX_VALUES:
            self._known[name] = None  # a value that is made of itself is none
            self._known[name] = self._lengths(name)
        return self._known.get(name)

    def _lengths(self, name: str) -> list[int | Axis] | None:
        try:
            return [int(each) for each in self.view.constant(name).ravel()]
        except UnsupportedError:
            pass
        view, name = self.view.home(name)
        node = view.makers.get(name)
        if node is None or view is not self.view:
            return None
        if node.op_type == "Shape" and node.input[0] in self.tracked:
            said = view.attributes_of(node)
            shape: list[int | Axis] = list(self.tracked[node.input[0]])
            return shape[said.get("start", 0) : said.get("end")]
        if node.op_type not in ("Slice", "Gather", "Concat", "Mul", *RESHAPES):
            return None
        if node.op_type == "Concat":
            parts = [self.lengths(each) for each in node.input]
            return None if None in parts else [each for part in parts if part for each in part]
        given = self.lengths(node.input[0])
        if given is None or node.op_type in RESHAPES:
            return given
        if node.op_type == "Mul":
            by = self.lengths(node.input[1])
            pair = given + (by or [])
            if len(pair) != 2 or not all(isinstance(each, tuple) for each in pair):
                return None
            return [tuple(letter for each in pair if isinstance(each, tuple) for letter in each)]
        if node.op_type == "Gather":
            places = self.ints(node, 1, "")
            if places is None or not all(-len(given) <= each < len(given) for each in places):
                return None
            return [given[each] for each in places]
        starts, ends = self.ints(node, 1, "starts"), self.ints(node, 2, "ends")
        steps = self.ints(node, 4, "steps") or [1]
        if starts is None or ends is None or len(starts) != 1 or steps != [1]:
            return None
        return given[starts[0] : ends[0]]


#: Of a shape with one number: the same number.
RESHAPES = ("Squeeze", "Unsqueeze", "Reshape", "Identity", "Cast")
#: What may stand between Y and the next X.
MOVES = {
    "Identity": _Moves.same,
    "Dropout": _Moves.same,
    "Squeeze": _Moves.squeeze,
    "Transpose": _Moves.transpose,
    "Reshape": _Moves.reshape,
}
