"""What an ONNX model has beside recurrent nodes: operators with parameters, by kind, and constants that are none."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from fusedrnn.errors import UnsupportedError
from fusedrnn.formats.contents import Part, Tensor
from fusedrnn.formats.onnx_graph import STANDARD, GraphView, Place
from fusedrnn.formats.onnx_nodes import is_recurrent, node_name, unique
from fusedrnn.formats.onnx_operators import OPERATORS
from fusedrnn.formats.onnx_quantized import is_quantized
from fusedrnn.formats.values import FLOATS

__all__ = ["Inventory"]

#: A message of ONNX's protobuf.
Proto = Any

MICROSOFT = "com.microsoft"
#: Operators that multiply by a matrix: where it may be among the inputs, and where the bias.
DENSE = {
    "MatMul": ((1, 0), None),
    "Gemm": ((1, 0), 2),
    "MatMulInteger": ((1, 0), None),
    "QLinearMatMul": ((3,), None),
    "FusedMatMul": ((1, 0), None),
    "FusedGemm": ((1, 0), 2),
    "DynamicQuantizeMatMul": ((1,), 4),
    "MatMulIntegerToFloat": ((1,), 6),
}
CONVOLUTIONS = {
    "Conv": ((1,), 2),
    "ConvTranspose": ((1,), 2),
    "ConvInteger": ((1,), None),
    "QLinearConv": ((3,), 8),
    "FusedConv": ((1,), 2),
}
NORMALISATIONS = {
    "BatchNormalization": (2,),
    "InstanceNormalization": (2,),
    "LayerNormalization": (2,),
    "GroupNormalization": (2,),
    "RMSNormalization": (),
    "SimplifiedLayerNormalization": (),
    "SkipLayerNormalization": (3,),
    "SkipSimplifiedLayerNormalization": (),
}
ATTENTIONS = ("Attention", "MultiHeadAttention", "GroupQueryAttention", "QAttention")
#: Standard operators whose multiply-adds are not worked out here.
UNKNOWN_COST = ("Einsum", "DFT", "STFT", "DeformConv", "LinearAttention", "CausalConvWithState")
#: Operators that run the graphs in their attributes, whose nodes are looked at in their turn.
CONTROL = ("If", "Loop", "Scan", "SequenceMap")
#: What a value may go through between a product and the activation of a gate.
BETWEEN = (
    *("Split", "Slice", "Add", "Sum", "Gather", "Squeeze", "Unsqueeze", "Reshape", "Transpose"),
    *("Identity", "Cast", "Clip", "Concat"),
)
SIGMOIDS = ("Sigmoid", "HardSigmoid")
CELL_NOTE = (
    "a recurrent cell spelled out in operators: not read as a layer; load the checkpoint of the framework "
    "that it was exported from"
)
#: Arrays of so many numbers are looked at, to see whether they are all the same.
MAX_PLAIN = 1 << 20
#: Most products that a gate is the sum of; more are something else.
MAX_PRODUCTS = 4


@dataclass(frozen=True)
class _Product:
    """A node that multiplies by constant weights."""

    view: GraphView
    node: Proto
    tensors: tuple[Tensor, ...]
    bias: tuple[Tensor, ...]
    shape: tuple[int, ...]
    moving: str

    @property
    def weights(self) -> frozenset[str]:
        return frozenset(tensor.name for tensor in self.tensors)


@dataclass
class Inventory:
    """Sorts the nodes of a model into parts.

    Attributes
    ----------
    places
        Every node.
    functions
        Names of the model's own functions, by domain and operator.
    used
        The stored tensors that are already accounted for, and the name of what has each.
    parts
        What was found.
    """

    places: Sequence[Place]
    functions: Collection[tuple[str, str]]
    used: dict[str, str] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    taken: dict[str, int] = field(default_factory=dict)
    _products: dict[int, _Product] = field(default_factory=dict)
    _biases: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)
    _bias_adds: set[int] = field(default_factory=set)

    def sort(self) -> list[Part]:
        """The parts, in the order of the model."""
        for place, (view, node) in enumerate(self.places):
            if node.op_type in DENSE and node.domain in (*STANDARD, MICROSOFT):
                self._find_product(place, view, node)
        self._find_biases()
        in_cells = self._find_cells()
        for place, (view, node) in enumerate(self.places):
            cell = in_cells.get(place)
            if cell is not None:
                self._add_cell(cell)
            elif place not in in_cells and place not in self._bias_adds:
                self._sort_node(place, view, node)
        return self.parts

    # ---- products and the cells that they are parts of --------------------------------------------

    def _find_product(self, place: int, view: GraphView, node: Proto) -> None:
        where, bias_place = DENSE[node.op_type]
        for index in where:
            name = _input(node, index)
            shape = _shape(view, name) if name else None
            if shape is None:
                continue
            moving = _input(node, 0 if index else 1)
            self._products[place] = _Product(
                *(view, node, _leaves(view, name), _at(view, node, bias_place)),
                shape,
                moving,
            )
            return

    def _find_biases(self) -> None:
        """Adds of a constant to a product are its bias."""
        made = {
            (id(product.view), product.node.output[0]): place
            for place, product in self._products.items()
        }
        for place, (view, node) in enumerate(self.places):
            if node.op_type != "Add" or len(node.input) != 2:
                continue
            for one, other in (node.input, reversed(node.input)):
                home, name = view.home(one)
                product = made.get((id(home), name))
                if product is not None and (shape := _shape(view, other)) is not None and shape:
                    self._bias_adds.add(place)
                    self._biases[product] = self._biases.get(product, ()) + _leaves(view, other)
                    break

    def _find_cells(self) -> dict[int, list[int] | None]:
        """The products of spelled-out cells: for the first of each cell, all of them; None for the others."""
        sums: dict[tuple[int, str], frozenset[int]] = {}
        fed: dict[tuple[int, str], bool] = {}
        gates: dict[frozenset[int], list[str]] = {}
        back: set[int] = set()
        made: dict[frozenset[str], int] = {}
        for product in self._products.values():
            made[product.weights] = made.get(product.weights, 0) + 1
        given: set[frozenset[int]] = set()  # whose activation is an output of the graph
        outputs: dict[int, frozenset[str]] = {}
        for place, (view, node) in enumerate(self.places):
            keys = [(id(home), name) for home, name in map(view.home, filter(None, node.input))]
            out = [(id(view), name) for name in node.output if name]
            if place in self._products:
                found = frozenset({place})
                moving = view.home(self._products[place].moving)
                shape = self._products[place].shape
                square = len(shape) == 2 and shape[0] == shape[1]
                # h comes from the step before, by the same weights, or is the caller's to keep.
                again = made[self._products[place].weights] > 1 and fed.get(
                    (id(moving[0]), moving[1])
                )
                if square and (again or moving[1] in moving[0].inputs):
                    back.add(place)
            elif node.op_type in BETWEEN:
                found = frozenset().union(*(sums.get(key, frozenset()) for key in keys))
                found = found if len(found) <= MAX_PRODUCTS else frozenset()
            else:
                found = frozenset()
            state = node.op_type in BETWEEN and any(fed.get(key) for key in keys)
            if node.op_type in (*SIGMOIDS, "Tanh", "Relu") and keys:
                products = sums.get(keys[0], frozenset())
                if products:
                    gates.setdefault(products, []).append(node.op_type)
                if out and out[0][1] in outputs.setdefault(id(view), _outputs(view)):
                    given.add(products)
                state = bool(products)
            for key in out:
                sums[key], fed[key] = found, state
        cells: dict[frozenset[str], set[int]] = {}
        for products, kinds in gates.items():
            shut = sum(kind in SIGMOIDS for kind in kinds)
            gated = shut >= 2 and (len(products) > 1 or "Tanh" in kinds)
            plain = len(products) == 2 and any(
                place in back and (products in given or made[self._products[place].weights] > 1)
                for place in products
            )
            if gated or plain:
                names = frozenset().union(*(self._products[each].weights for each in products))
                cells.setdefault(names, set()).update(products)
        result: dict[int, list[int] | None] = {}
        for members in cells.values():
            ordered = sorted(members)
            result |= dict.fromkeys(ordered)
            result[ordered[0]] = ordered
        return result

    def _add_cell(self, places: list[int]) -> None:
        products = [self._products[place] for place in places]
        weights: dict[frozenset[str], int] = {}
        tensors: dict[str, Tensor] = {}
        biases: set[str] = set()
        for place, product in zip(places, products, strict=True):
            weights[product.weights] = prod(product.shape)
            bias = product.bias + self._biases.get(place, ())
            tensors |= {each.name: each for each in (*product.tensors, *bias)}
            biases |= {each.name for each in bias}
        first = products[0]
        name = unique(node_name(first.node), self.taken)
        note = CELL_NOTE
        if len(products) > len(weights):
            note += f"; it is unrolled, into {len(products)} products"
        self._add(
            name, "cell", first.node.op_type, tensors.values(), biases, sum(weights.values()), note
        )

    # ---- one node --------------------------------------------------------------------------------

    def _sort_node(self, place: int, view: GraphView, node: Proto) -> None:
        standard = node.domain in STANDARD
        known = standard or node.domain == MICROSOFT
        kind = node.op_type
        if is_recurrent(node) or is_quantized(node) or kind in ("Constant", "ConstantOfShape"):
            return
        if (node.domain, kind) in self.functions or (standard and kind in CONTROL):
            return  # their nodes come by themselves
        if place in self._products:
            self._add_dense(place)
        elif known and kind in DENSE:
            note = "a product of two values known at run time: its multiply-adds depend on how long they are"
            self._add(self._name(node), "attention", kind, (), (), None, note)
        elif known and kind in CONVOLUTIONS:
            self._add_convolution(view, node)
        elif known and kind in NORMALISATIONS:
            bias = _at(view, node, *NORMALISATIONS[kind])
            # The mean and variance that a BatchNormalization has seen are no parameters.
            own = _at(view, node, 1, 2) if kind == "BatchNormalization" else _floats(view, node)
            self._add(self._name(node), "normalisation", kind, own, {each.name for each in bias}, 0)
        elif known and kind in ATTENTIONS:
            note = "its multiply-adds depend on the lengths of its inputs"
            self._add(self._name(node), "attention", kind, _floats(view, node), (), None, note)
        elif standard and kind == "Gather" and len(_shape(view, _input(node, 0)) or ()) == 2:
            self._add(self._name(node), "embedding", kind, _leaves(view, node.input[0]), (), 0)
        elif not standard or kind in UNKNOWN_COST:
            note = (
                f"an operator of {node.domain!r}, which is not known"
                if not standard
                else "its multiply-adds are not worked out here"
            )
            self._add(self._name(node), "?", kind, _floats(view, node), (), None, note)
        elif kind not in OPERATORS:
            tensors = [each for each in _floats(view, node) if not _is_plain(each)]
            if tensors:
                self._add(self._name(node), "arrays", kind, tensors, (), 0)

    def _name(self, node: Proto) -> str:
        return unique(node_name(node), self.taken)

    def _add_dense(self, place: int) -> None:
        product = self._products[place]
        bias = product.bias + self._biases.get(place, ())
        self._add(
            self._name(product.node),
            *("dense", product.node.op_type, (*product.tensors, *bias)),
            {each.name for each in bias},
            prod(product.shape),
        )

    def _add_convolution(self, view: GraphView, node: Proto) -> None:
        (index,), bias_place = CONVOLUTIONS[node.op_type]
        name = _input(node, index)
        shape = _shape(view, name) if name else None
        if shape is None:
            note = "its weights are known at run time"
            self._add(self._name(node), "convolution", node.op_type, (), (), None, note)
            return
        bias = _at(view, node, bias_place)
        strides = view.attributes_of(node).get("strides") or [1]
        macs, note = None, "an image: how many positions it has, the model does not say"
        if len(shape) == 3 and set(strides) == {1}:
            macs, note = prod(shape), "one position a step"
        elif len(shape) == 3:
            note = f"{prod(shape)} multiply-adds a position, one position every {strides[0]} steps"
        else:
            made = node.input[0] if node.op_type == "ConvTranspose" else node.output[0]
            dims = view.static_shapes.get(made)
            if dims is not None and len(dims) == len(shape) and all(n > 0 for n in dims[2:]):
                macs = prod(shape) * prod(dims[2:])
                note = f"for an image of {' x '.join(map(str, dims[2:]))} positions"
        self._add(
            self._name(node),
            *("convolution", node.op_type, (*_leaves(view, name), *bias)),
            {each.name for each in bias},
            macs,
            note,
        )

    def _add(
        self,
        name: str,
        kind: str,
        origin: str,
        tensors: Iterable[Tensor],
        biases: Iterable[str],
        macs: int | None,
        note: str = "",
    ) -> None:
        """Add a part. A tensor that another one has, too, is named."""
        every = {tensor.name: tensor for tensor in tensors}
        notes = [note] if note else []
        for tensor in every.values():
            owner = self.used.setdefault(tensor.name, name)
            if owner != name:
                notes.append(f"{tensor.name!r} is shared with {owner!r}")
        part = Part(
            name,
            kind,
            origin,
            tuple(every.values()),
            frozenset(set(biases) & set(every)),
            macs,
            "; ".join(notes),
        )
        self.parts.append(part)


# ---- parts ---------------------------------------------------------------------------------------


def _input(node: Proto, place: int) -> str:
    return str(node.input[place]) if place < len(node.input) else ""


def _outputs(view: GraphView) -> frozenset[str]:
    return frozenset(each if isinstance(each, str) else each.name for each in view.graph.output)


def _shape(view: GraphView, name: str) -> tuple[int, ...] | None:
    """The shape of a constant; None if it is none, or not worked out here."""
    try:
        return view.shape(name) if name else None
    except UnsupportedError:
        return None


def _leaves(view: GraphView, name: str) -> tuple[Tensor, ...]:
    return tuple(tensor for tensor in view.leaves(name) if tensor.elements)


def _at(view: GraphView, node: Proto, *places: int | None) -> tuple[Tensor, ...]:
    """The stored tensors of those of a node's inputs, at these places, that are constant."""
    found: dict[str, Tensor] = {}
    for place in places:
        name = _input(node, place) if place is not None else ""
        if _shape(view, name) is not None:
            found |= {tensor.name: tensor for tensor in _leaves(view, name)}
    return tuple(found.values())


def _floats(view: GraphView, node: Proto) -> tuple[Tensor, ...]:
    """The stored float tensors among a node's inputs."""
    found = _at(view, node, *range(len(node.input)))
    return tuple(tensor for tensor in found if tensor.dtype in FLOATS)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is one number, however often."""
    if tensor.elements <= 1 or tensor.elements > MAX_PLAIN:
        return tensor.elements <= 1
    numbers = tensor.read().ravel()
    return bool((numbers == numbers[0]).all())
