"""Where the graph of an ONNX model is cut: which nodes run here, and which ONNX Runtime runs, in as few pieces as there can be.

Every node has a level: how many recurrent layers, one behind the other, must have run before it. A node may wait for a
later level until its first reader needs it. So pieces are as points that stab intervals of levels: the fewest are found
by always taking the earliest end of an interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.errors import UnsupportedError
from fusedrnn.formats.contents import FoundLayer
from fusedrnn.formats.onnx_graph import STANDARD, GraphView, main_graph, walk
from fusedrnn.formats.onnx_nodes import INPUTS, is_recurrent, node_layer, node_name
from fusedrnn.formats.onnx_operators import OPERATORS
from fusedrnn.formats.onnx_quantized import is_quantized
from fusedrnn.formats.onnx_tensors import Store
from fusedrnn.onnx.moves import DATA_INPUTS, Move, move

__all__ = ["RUN_TIME", "Cut", "Left", "Step", "free_names", "opened"]

Array = npt.NDArray[Any]
#: A message of ONNX's protobuf.
Proto = Any
#: The inputs of a recurrent node that are known at run time.
RUN_TIME = ("X", "sequence_lens", "initial_h", "initial_c")
#: From this opset on a Dropout says by an input that it is in training.
DROPOUT_OPSET = 12
#: Types of stored numbers that NumPy has, too.
NUMPY_TYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")


@dataclass(frozen=True)
class Left:
    """A recurrent node that ONNX Runtime runs, and why."""

    name: str
    operator: str
    reason: str


@dataclass(frozen=True)
class Step:
    """What is run at once.

    Attributes
    ----------
    kind
        "layer" or "move", of one node; or "piece", of any number.
    nodes
        Places of the nodes in the graph, in an order in which they can run.
    """

    kind: str
    nodes: tuple[int, ...]


def opened(model: Proto, store: Store) -> tuple[Proto, GraphView]:
    """A model whose functions have no recurrent nodes, for these are put in the place of their calls; and its main graph."""
    view = main_graph(model, store)
    for _ in walk(model, view):  # an error, if calls are without end or far too many
        pass
    bodies = [node for function in model.functions for node in function.node]
    if any(is_recurrent(node) for node in bodies):
        from onnx.inliner import inline_local_functions

        model = inline_local_functions(model)
        view = main_graph(model, store)
    return model, view


def free_names(node: Proto) -> Iterator[str]:
    """The values that a node reads: its inputs, and what the graphs in it take from around them."""
    yield from filter(None, node.input)
    for each in node.attribute:
        for graph in [each.g] if each.HasField("g") else each.graphs:
            own = {value.name for value in (*graph.input, *graph.initializer)}
            own |= {sparse.values.name for sparse in graph.sparse_initializer}
            own |= {name for inner in graph.node for name in inner.output}
            inside = [name for inner in graph.node for name in free_names(inner)]
            # A graph may give a value of the graph around it without a node between.
            for name in (*inside, *(value.name for value in graph.output)):
                if name not in own:
                    yield name


@dataclass
class Cut:
    """A model's main graph, divided.

    Parameters
    ----------
    model, view
        From :func:`opened`.
    backend
        Of the layers: "auto" leaves to ONNX Runtime what only the numpy backend has.

    Attributes
    ----------
    layers
        The recurrent nodes that run here.
    left
        The recurrent nodes that do not.
    reads
        The values that a node reads at run time, of each node that is needed.
    moves
        The nodes that only move numbers and run here.
    steps
        What is run, in order.
    """

    model: Proto
    view: GraphView
    backend: str
    layers: dict[int, FoundLayer] = field(init=False, default_factory=dict)
    left: list[Left] = field(init=False, default_factory=list)
    reads: dict[int, tuple[str, ...]] = field(init=False, default_factory=dict)
    moves: frozenset[int] = field(init=False, default=frozenset())
    steps: list[Step] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.nodes = list(self.view.graph.node)
        self.maker = {
            name: place for place, node in enumerate(self.nodes) for name in node.output if name
        }
        self.outputs = [each.name for each in self.view.graph.output]
        self._find_layers()
        order = self._needed()
        self.readers: dict[str, list[int]] = {}
        for place in order:
            for name in self.reads[place]:
                self.readers.setdefault(name, []).append(place)
        self.moves = self._moves(order)
        for place in self.moves:
            self.reads[place] = tuple(n for n in self._data(place) if not self.constant(n))
        self.steps = self._steps(order)

    # ---- layers ----------------------------------------------------------------------------------

    def _find_layers(self) -> None:
        for place, node in enumerate(self.nodes):
            if is_recurrent(node):
                try:
                    self.layers[place] = self._layer(node)
                except UnsupportedError as error:
                    said = f"node {node_name(node)!r} ({node.op_type}): "
                    reason = str(error).removeprefix(said)
                    self.left.append(Left(node_name(node), node.op_type, reason))
        for view, node in walk(self.model, self.view):
            if is_quantized(node):
                reason = (
                    "its int8 weights are for a kernel of ONNX Runtime's; fr.load reads the layer"
                )
                self.left.append(Left(node_name(node), node.op_type, reason))
            elif view is not self.view and is_recurrent(node):
                reason = f"it is {view.where}, a graph that is not cut"
                self.left.append(Left(node_name(node), node.op_type, reason))

    def _layer(self, node: Proto) -> FoundLayer:
        found = node_layer(self.view, node)
        stored = self.view.tensor(node.input[1])
        dtype = stored.dtype if stored else str(self.view.constant(node.input[1]).dtype)
        if dtype != "float32":
            raise UnsupportedError(f"it computes in {dtype}")
        if self.backend == "auto":
            found.architecture.check_compiled("auto")
        return found

    def run_time_inputs(self, place: int) -> dict[str, str]:
        """The values that a layer of a node is called with, by the names of ONNX's inputs."""
        node, found = self.nodes[place], self.layers[place]
        given = {key: name for key, name in zip(INPUTS, node.input, strict=False) if name}
        given = {key: name for key, name in given.items() if key in RUN_TIME}
        states = [key for key in given if key.startswith("initial")]
        zero = all(self.view.fill(given[key]) == 0 for key in states)
        if zero or found.read_state is not None:  # then the layer has it
            for key in states:
                del given[key]
        return given

    # ---- what is needed --------------------------------------------------------------------------

    @cached_property
    def _constants(self) -> frozenset[str]:
        """Values that are stored, or made of such in ways that are worked out here."""
        known = {*self.view.initializers, *self.view.sparse}
        ends = set(self.outputs)
        for node in self.nodes:
            pure = node.domain in STANDARD and node.op_type in (*OPERATORS, "Constant")
            if pure and known.issuperset(filter(None, node.input)) and ends.isdisjoint(node.output):
                known.update(filter(None, node.output))
        return frozenset(known)

    def constant(self, name: str) -> bool:
        """Whether a value is the same in every run."""
        return name in self._constants

    def _needed(self) -> list[int]:
        """The places of the nodes that the outputs need, each behind those that it reads."""
        waiting = [self.maker[name] for name in self.outputs if name in self.maker]
        before: dict[int, set[int]] = {}
        while waiting:
            place = waiting.pop()
            if place in before:
                continue
            names = (
                self.run_time_inputs(place).values()
                if place in self.layers
                else free_names(self.nodes[place])
            )
            self.reads[place] = tuple(dict.fromkeys(n for n in names if not self.constant(n)))
            for name in self.reads[place]:
                self.view.home(name)  # an error, if nothing gives it
            before[place] = {self.maker[n] for n in self.reads[place] if n in self.maker}
            waiting += before[place]
        for name in self.outputs:
            self.view.home(name)
        try:
            return list(TopologicalSorter(before).static_order())
        except CycleError as error:
            node = self.nodes[error.args[1][0]]
            raise self.view.store.fault(
                f"node {node_name(node)!r} reads what is made of its own output"
            ) from None

    # ---- moves -----------------------------------------------------------------------------------

    def _data(self, place: int) -> list[str]:
        node = self.nodes[place]
        return list(node.input[: DATA_INPUTS[node.op_type]])

    def _is_light(self, place: int) -> bool:
        """Whether a node only moves numbers, in a way that is known when the model is opened."""
        node = self.nodes[place]
        if place in self.layers or node.op_type not in DATA_INPUTS or node.domain not in STANDARD:
            return False
        data = self._data(place)
        if len(list(filter(None, node.output))) != 1 or not data or not all(data):
            return False
        if len(data) < (DATA_INPUTS[node.op_type] or 1):
            return False
        if node.op_type == "Dropout" and (len(node.input) > 2 or self._opset < DROPOUT_OPSET):
            return False
        try:
            for name in filter(self.constant, node.input[len(data) :]):
                self.view.constant(name)
        except UnsupportedError:
            return False
        stored = [self.view.tensor(name) for name in data if self.constant(name)]
        return all(each and each.dtype in NUMPY_TYPES for each in stored) and all(
            self.constant(name) for name in node.input[len(data) :] if name
        )

    @cached_property
    def _opset(self) -> int:
        return max(
            (each.version for each in self.model.opset_import if each.domain in STANDARD), default=1
        )

    def _moves(self, order: list[int]) -> frozenset[int]:
        """The light nodes that run here: those around layers, which then need no piece of ONNX Runtime between them."""
        if not self.layers:
            return frozenset()
        light = {place for place in order if self._is_light(place)}
        near: set[int] = set()  # behind layers, inputs and other such nodes only
        for place in order:
            makers = {self.maker.get(name, -1) for name in self.reads[place]}
            if place in light and all(
                each == -1 or each in self.layers or each in near for each in makers
            ):
                near.add(place)
        here: set[int] = set()
        ends = set(self.outputs)
        for place in reversed(order):
            if place not in light:
                continue
            names = self.nodes[place].output
            readers = [reader for name in names for reader in self.readers.get(name, ())]
            ours = [reader in self.layers or reader in here for reader in readers]
            ends_here = not ends.isdisjoint(names)
            if (all(ours) and not ends_here) or (place in near and (any(ours) or ends_here)):
                here.add(place)
        return frozenset(here)

    # ---- steps -----------------------------------------------------------------------------------

    def _steps(self, order: list[int]) -> list[Step]:
        pieces = self._pieces(order)
        step_of = {place: step for step in pieces for place in step.nodes}
        for place in order:
            if place not in step_of:
                step_of[place] = Step("layer" if place in self.layers else "move", (place,))
        before: dict[Step, set[Step]] = {step: set() for step in step_of.values()}
        for place, step in step_of.items():
            made = (self.maker[name] for name in self.reads[place] if name in self.maker)
            before[step] |= {step_of[each] for each in made} - {step}
        return list(TopologicalSorter(before).static_order())

    def _pieces(self, order: list[int]) -> list[Step]:
        first = self._first_levels(order)
        last = self._last_levels(order, first)
        waiting = [place for place in order if place not in self.layers and place not in self.moves]
        pieces = []
        while waiting:
            level = min(last[place] for place in waiting)
            taken = tuple(place for place in waiting if first[place] <= level)
            waiting = [place for place in waiting if first[place] > level]
            pieces.append(Step("piece", taken))
        return pieces

    def _first_levels(self, order: Iterable[int]) -> dict[int, int]:
        """The first level that a node can run in."""
        first: dict[int, int] = {}
        for place in order:
            makers = [self.maker[name] for name in self.reads[place] if name in self.maker]
            first[place] = max((first[each] + (each in self.layers) for each in makers), default=0)
        return first

    def _last_levels(self, order: list[int], first: Mapping[int, int]) -> dict[int, int]:
        """The last level that a node can run in without making another one late; a layer's is its first."""
        end = max(first.values(), default=0)
        last: dict[int, int] = {}
        for place in reversed(order):
            readers = [
                last[reader]
                for name in self.nodes[place].output
                for reader in self.readers.get(name, ())
            ]
            last[place] = first[place] if place in self.layers else min(readers, default=end)
        return last

    # ---- constants -------------------------------------------------------------------------------

    def move_of(self, place: int) -> tuple[Move, list[str]]:
        """What a node that moves numbers does, and its data inputs."""
        node, data = self.nodes[place], self._data(place)
        sizes = [
            np.ravel(self.view.constant(name)).tolist() if name else None
            for name in node.input[len(data) :]
        ]
        try:
            return move(node.op_type, self.view.attributes_of(node), sizes), data
        except (KeyError, ValueError) as error:
            raise self.view.store.fault(f"node {node_name(node)!r}: {error}") from None

    def constant_nodes(self, names: Iterable[str]) -> set[int]:
        """The nodes that constants come through."""
        found: set[int] = set()
        waiting = [name for name in names if name in self.maker and self.constant(name)]
        while waiting:
            place = self.maker[waiting.pop()]
            if place not in found:
                found.add(place)
                waiting += [name for name in self.nodes[place].input if name in self.maker]
        return found
