"""An ONNX model as graphs of named values: what makes each value, and the constants among them, through chains.

Weights reach a node as initializers, but also through Constant, Unsqueeze, Concat, DequantizeLinear and the like.
:meth:`GraphView.constant` works such a chain out with NumPy, and :meth:`GraphView.shape` only its shape, which reads no weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import helper

from fusedrnn.errors import ModelFormatError, UnsupportedError
from fusedrnn.formats.contents import Tensor
from fusedrnn.formats.onnx_operators import FILLED, OPERATORS, Operands, blank
from fusedrnn.formats.onnx_tensors import EXTERNAL, Store
from fusedrnn.formats.values import FLOATS

__all__ = ["GraphView", "NotConstantError", "Place", "main_graph", "walk"]

Array = npt.NDArray[Any]
#: A message of ONNX's protobuf.
Proto = Any

#: Longest chain of operators that a constant goes through.
MAX_CHAIN = 100
#: Deepest nesting of subgraphs and functions.
MAX_DEPTH = 32
#: Largest number of nodes looked at, those of a function once for each call.
MAX_NODES = 250_000
#: A chain gives at most so many times the numbers that the model stores, and a few more.
MAX_GROWTH, MAX_SMALL = 2, 1 << 20
#: Types of the attributes that are read here, by their numbers in ONNX: one int, a tensor, several ints.
INT, TENSOR, INTS = 2, 4, 7
ATTRIBUTE_TYPES = {"value": TENSOR}
ATTRIBUTE_TYPES |= dict.fromkeys(("perm", "axes", "starts", "ends", "split", "strides"), INTS)
ATTRIBUTE_TYPES |= dict.fromkeys(
    ("allowzero", "axis", "block_size", "end", "start", "to", "num_outputs"), INT
)
#: What the standard operators' domain is called.
STANDARD = ("", "ai.onnx")


class NotConstantError(UnsupportedError):
    """A value that is only known when the model runs."""


@dataclass(frozen=True, eq=False)
class GraphView:
    """A graph, or the body of a function for one call of it.

    Attributes
    ----------
    graph
        The GraphProto or FunctionProto.
    store
        Where tensors' numbers are.
    outer
        The graph around it, whose values it sees; None for the main graph and for functions.
    bound
        For a function: the values of the caller that its inputs are.
    attributes
        For a function: the attributes of the call, by name.
    scope
        What the names of its tensors begin with, so that no two of a model are alike: "" in the main graph.
    where
        What messages call it: "", "in If 'choice' (then_branch)".
    depth
        How many graphs and functions it is in.
    makers
        The node that gives each value.
    initializers
        By name.
    sparse
        Names of the sparse initializers.
    inputs
        Names of the graph's inputs.
    limit
        Largest number of elements of a constant that a chain gives.
    overridable
        Whether an initializer that is an input, too, is only a default.
    """

    graph: Proto
    store: Store
    outer: GraphView | None = None
    bound: Mapping[str, tuple[GraphView, str]] = field(default_factory=dict)
    attributes: Mapping[str, Proto] = field(default_factory=dict)
    scope: str = ""
    where: str = ""
    depth: int = 0
    makers: dict[str, Proto] = field(init=False, default_factory=dict)
    initializers: dict[str, Proto] = field(init=False, default_factory=dict)
    sparse: set[str] = field(init=False, default_factory=set)
    inputs: frozenset[str] = field(init=False, default=frozenset())
    limit: int = MAX_SMALL
    overridable: bool = False

    def __post_init__(self) -> None:
        self._check_names()
        for proto in getattr(self.graph, "initializer", ()):
            if proto.name in self.initializers:
                raise self.store.fault(f"two initializers are named {proto.name!r}")
            self.initializers[proto.name] = proto
        for proto in getattr(self.graph, "sparse_initializer", ()):
            self.sparse.add(proto.values.name)
        for node in self.graph.node:
            for name in filter(None, node.output):
                if name in self.makers or name in self.initializers:
                    raise self.store.fault(f"value {name!r} is made twice")
                self.makers[name] = node
        names = (each if isinstance(each, str) else each.name for each in self.graph.input)
        object.__setattr__(self, "inputs", frozenset(names))

    def _check_names(self) -> None:
        """That every name is text: what is no UTF-8 comes as bytes."""
        names = [each.name for each in getattr(self.graph, "initializer", ())]
        for group in (self.graph.input, self.graph.output):
            names += [each if isinstance(each, (str, bytes)) else each.name for each in group]
        for node in self.graph.node:
            names += [node.name, node.op_type, node.domain, *node.input, *node.output]
            for each in node.attribute:
                names += [each.name, each.ref_attr_name]
        for name in names:
            if not isinstance(name, str):
                raise self.store.fault(f"a name is not UTF-8: {name!r}"[:300])

    # ---- attributes ------------------------------------------------------------------------------

    def attributes_of(self, node: Proto) -> dict[str, Any]:
        """The attributes of a node as Python values; those that refer to the call of a function are looked up there."""
        found = {}
        for each in node.attribute:
            given = each
            if each.ref_attr_name:
                if each.ref_attr_name not in self.attributes:
                    continue  # the operator's default
                given = self.attributes[each.ref_attr_name]
            if each.name in found:
                raise self.store.fault(f"node {node.name!r} has attribute {each.name!r} twice")
            kind = ATTRIBUTE_TYPES.get(each.name, given.type)
            if given.type != kind:
                raise self.store.fault(
                    f"node {node.name!r}: attribute {each.name!r} must be of type {kind} of ONNX, got {given.type}"
                )
            try:
                value = helper.get_attribute_value(given)
            except ValueError as error:
                raise self.store.fault(
                    f"node {node.name!r}, attribute {each.name!r}: {error}"
                ) from None
            if isinstance(value, bytes):
                value = value.decode("utf-8", "replace")
            elif isinstance(value, list) and value and isinstance(value[0], bytes):
                value = [part.decode("utf-8", "replace") for part in value]
            found[each.name] = value
        return found

    @cached_property
    def static_shapes(self) -> dict[str, tuple[int, ...]]:
        """The lengths of values' axes, where the model says them; 0 for an axis whose length it does not say."""
        groups = (getattr(self.graph, group, ()) for group in ("value_info", "input", "output"))
        return {
            each.name: tuple(int(dim.dim_value) for dim in each.type.tensor_type.shape.dim)
            for group in groups
            for each in group
            if not isinstance(each, str)
        }

    # ---- values ----------------------------------------------------------------------------------

    def home(self, name: str) -> tuple[GraphView, str]:
        """The graph that a value is of, and its name there: a graph around it, or the caller of a function.

        Raises
        ------
        ModelFormatError
            If nothing gives a value of this name.
        """
        view: GraphView | None = self
        while view is not None:
            if name in view.bound:
                bound, name = view.bound[name]
                return bound.home(name)
            if (
                name in view.initializers
                or name in view.sparse
                or name in view.makers
                or name in view.inputs
            ):
                return view, name
            view = view.outer
        raise self.store.fault(f"value {name!r} is used, and nothing gives it")

    def stored(self) -> Iterator[Tensor]:
        """Every tensor that is stored in the graph itself: initializers and Constants."""
        for name in (*self.initializers, *self.makers):
            tensor = self.tensor(name)
            if tensor is not None:
                yield tensor

    def tensor(self, name: str) -> Tensor | None:
        """The stored tensor of a value, if it is an initializer or a Constant; None if it is not."""
        view, name = self.home(name)
        if name in view.initializers:
            return self.store.tensor(view.initializers[name], view.scope + name)
        node = view.makers.get(name)
        if node is not None and node.op_type == "Constant" and node.domain in STANDARD:
            return view._constant_node(node, name)
        return None

    def _constant_node(self, node: Proto, name: str) -> Tensor:
        said = self.attributes_of(node)
        if len(said) != 1:
            raise self.store.fault(f"Constant {name!r} must have one attribute, got {sorted(said)}")
        ((kind, value),) = said.items()
        if kind == "value":
            return self.store.tensor(value, self.scope + name)
        dtypes = {"float": np.float32, "floats": np.float32, "int": np.int64, "ints": np.int64}
        dtype = dtypes.get(kind.removeprefix("value_"))
        if dtype is not None and kind.startswith("value_"):
            array = np.array(value, dtype)
            return Tensor(self.scope + name, array.shape, str(array.dtype), lambda: array)

        def read() -> Array:
            raise UnsupportedError(f"Constant {name!r} has a {kind}, which is not read")

        return Tensor(self.scope + name, (), kind, read)

    def leaves(self, name: str) -> tuple[Tensor, ...]:
        """The stored tensors that a constant's numbers come from; not those that only say its shape."""
        return tuple(tensor for _, tensor in self._sources(name))

    def replaceable(self, name: str) -> list[str]:
        """The names of those of its :meth:`leaves` that are only defaults of inputs of the model."""
        sources = self._sources(name)
        return [
            tensor.name
            for view, tensor in sources
            if view.overridable and tensor.name in view.inputs
        ]

    def _sources(self, name: str) -> list[tuple[GraphView, Tensor]]:
        found: list[tuple[GraphView, Tensor]] = []
        seen = set()
        waiting = [self.home(name)]
        while waiting:
            view, name = waiting.pop()
            if (id(view), name) in seen:
                continue
            seen.add((id(view), name))
            stored = view.tensor(name)
            if stored is not None:
                found.append((view, stored))
                continue
            node = view.makers.get(name)
            if node is not None and node.op_type in OPERATORS:
                data = OPERATORS[node.op_type].data
                inputs = node.input if data is None else list(node.input)[:data]
                waiting += [view.home(each) for each in reversed(inputs) if each]
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a constant, as worked out without its numbers.

        Raises
        ------
        NotConstantError
            If it is not a constant; the message says what it is.
        UnsupportedError
            If it comes through an operator that is not known here.
        ModelFormatError
            If the chain of operators is circular, too long, or does not fit together.
        """
        shape: tuple[int, ...] = _Chain(real=False).array(*self.home(name)).shape
        return shape

    def constant(self, name: str, *, any_batch: bool = False) -> Array:
        """A constant's numbers: as stored, or worked out from what is stored.

        Parameters
        ----------
        name
            Of the value.
        any_batch
            Whether Expand and Tile to a shape that is not known here leave it as it is.

        Raises
        ------
        NotConstantError, UnsupportedError, ModelFormatError
            As :meth:`shape`.
        """
        _Chain(real=False, any_batch=any_batch).array(*self.home(name))  # is it small enough?
        return _Chain(real=True, any_batch=any_batch).array(*self.home(name))

    def fill(self, name: str) -> float | None:
        """The number that all elements of a value are, even where its shape is only known at run time; or None."""
        seen = set()
        view = self
        for _ in range(MAX_CHAIN):
            view, name = view.home(name)
            if (id(view), name) in seen:
                return None
            seen.add((id(view), name))
            stored = view.tensor(name)
            if stored is not None:
                return _same(stored)
            node = view.makers.get(name)
            if node is None:
                return None
            if node.op_type == "ConstantOfShape":
                value = view.attributes_of(node).get("value")
                return 0.0 if value is None else _same(view.store.tensor(value, name))
            if node.op_type not in FILLED or not node.input:
                return None
            name = node.input[0]
        return None

    # ---- graphs inside ---------------------------------------------------------------------------

    def inner(self, node: Proto) -> Iterator[GraphView]:
        """The graphs in a node's attributes: the branches of If, the bodies of Loop and Scan."""
        for each in node.attribute:
            graphs = [each.g] if each.HasField("g") else list(each.graphs)
            for graph in graphs:
                where = f"in {node.op_type} {_called(node)!r} ({each.name})"
                yield GraphView(
                    graph,
                    self.store,
                    outer=self,
                    attributes=self.attributes,
                    scope=f"{self.scope}{_called(node)}.{each.name}/",
                    where=", ".join(filter(None, (where, self.where))),
                    depth=self.depth + 1,
                    limit=self.limit,
                )

    def call(self, node: Proto, function: Proto) -> GraphView:
        """The body of a function, for one call of it."""
        given = list(node.input) + [""] * (len(function.input) - len(node.input))
        bound = {
            formal: (self, actual)
            for formal, actual in zip(function.input, given, strict=False)
            if actual
        }
        attributes = {each.name: each for each in function.attribute_proto}
        for each in node.attribute:
            if not each.ref_attr_name:
                attributes[each.name] = each
            elif each.ref_attr_name in self.attributes:
                attributes[each.name] = self.attributes[each.ref_attr_name]
        where = f"in function {function.name!r}, called by {_called(node)!r}"
        return GraphView(
            function,
            self.store,
            bound=bound,
            attributes=attributes,
            scope=f"{function.domain}.{function.name}/",
            where=", ".join(filter(None, (where, self.where))),
            depth=self.depth + 1,
            limit=self.limit,
        )


#: A node and the graph that it is in.
Place = tuple[GraphView, Proto]


def main_graph(model: Proto, store: Store | None = None) -> GraphView:
    """The main graph of a ModelProto.

    Raises
    ------
    ModelFormatError
        If two values have one name, or a tensor in another file may not be read or is not there.
    """
    store = Store() if store is None else store
    stored = model.ByteSize()
    for each in model.graph.initializer:
        if each.data_location == EXTERNAL:
            stored += store.tensor(each, each.name).elements
    return GraphView(
        model.graph,
        store,
        limit=MAX_GROWTH * stored + MAX_SMALL,
        overridable=model.ir_version >= 4,
    )


def walk(model: Proto, view: GraphView) -> Iterator[Place]:
    """Every node of the main graph, of the graphs in it, and of the functions that are called, in the model's order.

    Raises
    ------
    ModelFormatError
        If graphs and functions are nested too deep, or call themselves, or are too many.
    """
    for each in model.functions:
        if not (isinstance(each.domain, str) and isinstance(each.name, str)):
            raise view.store.fault(f"the name of a function is not UTF-8: {each.name!r}"[:300])
    functions = {
        (each.domain, each.name, getattr(each, "overload", "")): each for each in model.functions
    }
    waiting = [(view, iter(view.graph.node))]
    seen = 0
    while waiting:
        view, nodes = waiting[-1]
        node = next(nodes, None)
        if node is None:
            waiting.pop()
            continue
        seen += 1
        if seen > MAX_NODES:
            raise view.store.fault(f"more than {MAX_NODES} nodes, those of functions at each call")
        if view.depth >= MAX_DEPTH:
            raise view.store.fault(
                f"graphs and functions are nested deeper than {MAX_DEPTH}, or without end"
            )
        yield view, node
        function = functions.get((node.domain, node.op_type, getattr(node, "overload", "")))
        insides = list(view.inner(node))
        if function is not None:
            insides.append(view.call(node, function))
        waiting += [(each, iter(each.graph.node)) for each in reversed(insides)]


def _called(node: Proto) -> str:
    """What a node is called: its name, or its first output's."""
    return str(node.name or next(filter(None, node.output), ""))


def _same(tensor: Tensor) -> float | None:
    if tensor.dtype not in FLOATS or not tensor.elements:
        return None
    numbers = tensor.read().ravel()
    return float(numbers[0]) if (numbers == numbers[0]).all() else None


# ---- chains of operators -------------------------------------------------------------------------


@dataclass
class _Chain:
    """Works out one constant.

    Attributes
    ----------
    real
        Whether numbers are wanted; otherwise arrays are of the right shape and hold one number in all places.
    """

    real: bool
    any_batch: bool = False
    done: dict[tuple[int, str], list[Array]] = field(default_factory=dict)
    begun: list[tuple[int, str]] = field(default_factory=list)

    def array(self, view: GraphView, name: str) -> Array:
        """The value of that name, which is of this graph."""
        stored = view.tensor(name)
        if stored is not None:
            return stored.read() if self.real else np.broadcast_to(np.float32(0), stored.shape)
        node = view.makers.get(name)
        if name in view.sparse:
            raise UnsupportedError(f"{name!r} is a sparse initializer, which is not read")
        if node is None:
            raise NotConstantError(f"{name!r} is an input of the model's graph")
        key = (id(view), str(next(iter(node.output))))
        if key in self.begun:
            raise view.store.fault(f"value {name!r} is made of itself")
        if len(self.begun) >= MAX_CHAIN:
            raise view.store.fault(f"value {name!r} comes through more than {MAX_CHAIN} operators")
        if key not in self.done:
            self.begun.append(key)
            try:
                self.done[key] = self._results(view, node, name)
            finally:
                self.begun.pop()
        results = self.done[key]
        place = list(node.output).index(name)
        if place >= len(results):
            raise view.store.fault(f"{node.op_type} gives no output {place}, which is {name!r}")
        return results[place]

    def _results(self, view: GraphView, node: Proto, name: str) -> list[Array]:
        operator = OPERATORS.get(node.op_type) if node.domain in STANDARD else None
        if operator is None:
            for each in filter(None, node.input):  # is that why?
                self.array(*view.home(each))
            raise UnsupportedError(
                f"{name!r} is made by {node.op_type}, which is not worked out here"
            )
        inputs: list[Any] = []
        for place, each in enumerate(node.input):
            if not each:
                inputs.append(None)
                continue
            if operator.data is None or place < operator.data:
                inputs.append(self.array(*view.home(each)))
                continue
            # What says a shape must be known even where only the shape is wanted.
            chain = self if self.real else _Chain(real=True, begun=list(self.begun))
            try:
                inputs.append(chain.array(*view.home(each)))
            except UnsupportedError:
                if self.any_batch and node.op_type in ("Expand", "Tile") and inputs:
                    return [inputs[0]]
                raise
        try:
            results = operator.run(
                Operands(inputs, view.attributes_of(node), self.real, view.limit)
            )
        except (ModelFormatError, UnsupportedError):
            raise
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise view.store.fault(f"{node.op_type} that makes {name!r}: {error}") from None
        return results if self.real else [blank(result.shape) for result in results]
