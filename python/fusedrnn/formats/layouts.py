"""How other frameworks lay out recurrent weights, as data: gate orders, biases, transpositions, class names.

A :class:`Layout` is a framework's form of one row of the cell table. :func:`to_layout` turns the canonical weights of one
layer and direction (PyTorch's names, shapes and gate order, see :mod:`fusedrnn.weights`) into the arrays that the framework
has, and :func:`from_layout` turns these arrays back. Both only move, transpose, negate and, where a framework keeps fewer
biases, add numbers:

* ``to_layout(from_layout(arrays))`` gives the same arrays, bit by bit. The one exception is the block of f in ONNX's LSTM
  with ``input_forget``, which ONNX does not read: it comes back as zeros;
* ``from_layout(to_layout(weights))`` gives the same weights where the framework keeps as many biases as the weights have.

This module is plain Python, so that a program that only counts can ask for a class name; its functions import NumPy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fusedrnn.cells import CELLS, Cell
from fusedrnn.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy.typing as npt

    from fusedrnn.architecture import Architecture

    Array = npt.NDArray[Any]

__all__ = [
    "FRAMEWORKS",
    "LAYOUTS",
    "Biases",
    "Layout",
    "find",
    "from_layout",
    "reordered",
    "suffix",
    "to_layout",
]

#: What a framework keeps of the biases of one layer and direction, G blocks of H rows each:
#:
#: * "double": two arrays, that of the input product and that of the recurrent product;
#: * "joined": one array of 2 G H rows, these two one after the other;
#: * "rows": one array (2, G H), these two one above the other;
#: * "single": one array of G H rows, the sum; a recurrent bias that is not in the sum must be zero;
#: * "appended": one array of (G + 1) H rows: the sum, and then the recurrent bias of the last gate, which is not in the sum;
#: * "separate": two arrays, the sum and the recurrent bias of the last gate.
Biases = Literal["double", "joined", "rows", "single", "appended", "separate"]

#: The frameworks, by the name of the Python package, and what people call them.
FRAMEWORKS = {
    "torch": "PyTorch",
    "onnx": "ONNX",
    "keras": "Keras",
    "openvino": "OpenVINO",
    "flax": "Flax",
    "nnx": "Flax NNX",
    "equinox": "Equinox",
    "keras_cudnn": "Keras CuDNN",
    "keras1": "Keras 1",
    "tensorflow1": "TensorFlow 1",
}


@dataclass(frozen=True)
class Layout:
    """A framework's form of one row of the cell table.

    Attributes
    ----------
    framework
        A key of :data:`FRAMEWORKS`.
    cell, form
        The name and the form of the row of the cell table.
    layer_class
        The framework's class or operator for whole sequences; "" for none of its own.
    step_class
        The framework's class or operator for one step; "" for none.
    gates
        The order of the gate blocks, in the letters of the cell table.
    input, recurrent
        The names of the arrays of W and R. With "{gate}" in them, each gate has an array of its own.
    bias
        The names of the arrays of the biases; as many as ``biases`` says.
    biases
        What these arrays hold.
    transposed
        Whether gate blocks are columns: W is (X, G H), and R is (H, G H).
    flat
        Whether the numbers of each of these blocks (X, H) are, row by row, those of (H, X): what cuDNN reads.
    projection
        The name of the array (P, H) of the projection; "" for no projection.
    peephole
        The name of the array of the peepholes; "" for no peepholes.
    peepholes
        The order of the blocks in that array.
    options
        The options of the class, or the attributes of the operator, that choose this form.
    """

    framework: str
    cell: str
    form: str
    layer_class: str
    step_class: str
    gates: str
    input: str
    recurrent: str
    bias: tuple[str, ...]
    biases: Biases
    transposed: bool = False
    flat: bool = False
    projection: str = ""
    peephole: str = ""
    peepholes: str = ""
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def row(self) -> Cell:
        """The row of the cell table."""
        return next(row for row in CELLS[self.cell] if row.form == self.form)

    @property
    def canonical_gates(self) -> str:
        """The order of the gate blocks in canonical weights."""
        return "".join(gate.name for gate in self.row.gates)

    @property
    def lacks_own_bias(self) -> bool:
        """Whether a recurrent bias that cannot be added to the others has no place: it must be zero."""
        return self.biases == "single" and bool(self.row.own_recurrent_bias)

    @property
    def negates(self) -> bool:
        """Whether the coupled gate is stored with its sign turned.

        ONNX has f = 1 - i where this package has i = 1 - f. As 1 - sigmoid(x) = sigmoid(-x), ONNX's i is f with the sign
        of every weight, bias and peephole turned.
        """
        return self.form == "coupled"


def _torch(cell: str, form: str, name: str) -> Layout:
    gates = {"rnn": "h", "lstm": "ifgo", "gru": "rzn"}[cell]
    bias = ("bias_ih", "bias_hh")
    projection = "weight_hr" if cell == "lstm" else ""
    return Layout(
        *("torch", cell, form, name, f"{name}Cell", gates, "weight_ih", "weight_hh", bias),
        biases="double",
        projection=projection,
    )


def _onnx(cell: str, form: str, name: str, **options: int) -> Layout:
    gates = {"rnn": "h", "lstm": "iofg", "gru": "zrn"}[cell]
    peephole = ("P", "iof") if cell == "lstm" else ("", "")
    return Layout(
        *("onnx", cell, form, name, "", gates, "W", "R", ("B",)),
        biases="joined",
        peephole=peephole[0],
        peepholes=peephole[1],
        options=tuple(options.items()),
    )


def _keras(cell: str, form: str, name: str, biases: Biases = "single", **options: bool) -> Layout:
    gates = {"rnn": "h", "lstm": "ifgo", "gru": "zrn"}[cell]
    return Layout(
        *("keras", cell, form, name, f"{name}Cell", gates, "kernel", "recurrent_kernel", ("bias",)),
        biases=biases,
        transposed=True,
        options=tuple(options.items()),
    )


def _openvino(
    cell: str, form: str, name: str, biases: Biases = "single", **options: bool
) -> Layout:
    gates = {"rnn": "h", "lstm": "figo", "gru": "zrn"}[cell]
    return Layout(
        *("openvino", cell, form, f"{name}Sequence", f"{name}Cell", gates, "W", "R", ("B",)),
        biases=biases,
        options=tuple(options.items()),
    )


def _flax(cell: str, form: str, name: str, bias: tuple[str, ...], biases: Biases) -> Layout:
    gates = {"rnn": "h", "lstm": "ifgo", "gru": "rzn"}[cell]
    gate = "" if cell == "rnn" else "{gate}"
    names = f"i{gate}/kernel", f"h{gate}/kernel"
    return Layout(
        *("flax", cell, form, "", name, gates, *names, bias), biases=biases, transposed=True
    )


def _keras_cudnn(cell: str, form: str, name: str) -> Layout:
    gates = {"lstm": "ifgo", "gru": "zrn"}[cell]
    return Layout(
        *("keras_cudnn", cell, form, name, "", gates, "kernel", "recurrent_kernel", ("bias",)),
        biases="joined",
        transposed=True,
        flat=True,
    )


def _keras1(cell: str, form: str, name: str) -> Layout:
    gates = {"rnn": "h", "lstm": "igfo", "gru": "zrn"}[cell]
    gate = "" if cell == "rnn" else "_{gate}"
    return Layout(
        *("keras1", cell, form, name, "", gates, f"W{gate}", f"U{gate}", (f"b{gate}",)),
        biases="single",
        transposed=True,
    )


def _nnx(cell: str, form: str, name: str, biased: str) -> Layout:
    gates = {"rnn": "h", "lstm": "ifgo", "gru": "rzn"}[cell]
    names = "dense_i/kernel", "dense_h/kernel", (f"{biased}/bias",)
    return Layout(*("nnx", cell, form, "", name, gates, *names), biases="single", transposed=True)


def _equinox(cell: str, form: str, name: str, bias: tuple[str, ...], biases: Biases) -> Layout:
    gates = {"lstm": "ifgo", "gru": "rzn"}[cell]
    return Layout(
        *("equinox", cell, form, "", name, gates, "weight_ih", "weight_hh", bias), biases=biases
    )


#: Every layout. Keras's LSTM calls its third gate c, and ONNX and OpenVINO do so too: g here.
LAYOUTS: tuple[Layout, ...] = (
    _torch("rnn", "", "RNN"),
    _torch("lstm", "", "LSTM"),
    _torch("gru", "after", "GRU"),
    _onnx("rnn", "", "RNN"),
    _onnx("lstm", "", "LSTM"),
    _onnx("lstm", "coupled", "LSTM", input_forget=1),
    _onnx("gru", "after", "GRU", linear_before_reset=1),
    _onnx("gru", "before", "GRU", linear_before_reset=0),
    _keras("rnn", "", "SimpleRNN"),
    _keras("lstm", "", "LSTM"),
    _keras("gru", "after", "GRU", "rows", reset_after=True),
    _keras("gru", "before", "GRU", reset_after=False),
    _openvino("rnn", "", "RNN"),
    _openvino("lstm", "", "LSTM"),
    _openvino("gru", "after", "GRU", "appended", linear_before_reset=True),
    _openvino("gru", "before", "GRU", linear_before_reset=False),
    # The cells of flax.linen, whose parameters are a tree: here the path of each, joined by "/".
    _flax("rnn", "", "SimpleCell", ("i/bias",), "single"),
    _flax("lstm", "", "LSTMCell", ("h{gate}/bias",), "single"),
    _flax("gru", "after", "GRUCell", ("i{gate}/bias", "hn/bias"), "separate"),
    # The cells of flax.nnx. Its LSTMCell has the arrays of flax.linen's, its OptimizedLSTMCell has these.
    _nnx("rnn", "", "SimpleCell", "dense_i"),
    _nnx("lstm", "", "OptimizedLSTMCell", "dense_h"),
    _nnx("gru", "after", "GRUCell", "dense_i"),
    _equinox("lstm", "", "LSTMCell", ("bias",), "single"),
    _equinox("gru", "after", "GRUCell", ("bias", "bias_n"), "separate"),
    # Layers of Keras 2 for cuDNN alone.
    _keras_cudnn("lstm", "", "CuDNNLSTM"),
    _keras_cudnn("gru", "after", "CuDNNGRU"),
    # Keras 1, whose gates have arrays of their own; it calls n h.
    _keras1("rnn", "", "SimpleRNN"),
    _keras1("lstm", "", "LSTM"),
    _keras1("gru", "before", "GRU"),
    # The kernel's first X rows are of the input, the others recurrent: here they are two arrays. The forget bias that
    # TensorFlow adds at run time is not in them.
    Layout(
        *("tensorflow1", "lstm", "", "", "BasicLSTMCell", "igfo", "kernel", "recurrent_kernel"),
        bias=("bias",),
        biases="single",
        transposed=True,
    ),
)


def suffix(layer: int, direction: int) -> str:
    """The end of the canonical names of a layer and direction: "_l0", "_l1_reverse"."""
    return f"_l{layer}" + ("_reverse" if direction else "")


def find(framework: str, architecture: Architecture) -> Layout | None:
    """The framework's layout for the cell of an architecture; None where the framework has no such cell.

    The form of the cell, its projection and its peepholes decide. Activations and limits are not looked at: which of them
    a framework has is not a matter of layout.
    """
    for layout in LAYOUTS:
        if (layout.framework, layout.cell, layout.form) == (
            framework,
            architecture.cell,
            architecture.table.form,
        ):
            lacks = (architecture.proj_size and not layout.projection) or (
                architecture.peephole and not layout.peephole
            )
            return None if lacks else layout
    return None


def reordered(array: Array, order: Iterable[str], wanted: Iterable[str]) -> Array:
    """The blocks of an array along its first axis, stacked in another order.

    Parameters
    ----------
    array
        As many blocks of equal length as ``order`` has names.
    order
        The names of the blocks as they are.
    wanted
        The names of the blocks as they are to be: some or all of those in ``order``.
    """
    import numpy as np

    names = list(order)
    blocks = dict(zip(names, np.split(array, len(names)), strict=True))
    return np.concatenate([blocks[name] for name in wanted])


def to_layout(
    layout: Layout, weights: Mapping[str, Array], end: str = "_l0", peephole: str | None = None
) -> dict[str, Array]:
    """The arrays of a framework, from the canonical weights of one layer and direction.

    Parameters
    ----------
    layout
        Of the framework and the cell.
    weights
        Canonical weights. Those of other layers and directions are not looked at.
    end
        What the names of this layer and direction end in, see :func:`suffix`.
    peephole
        The gates that have peepholes, as in ``Architecture.peephole``; None for all that may have one.

    Returns
    -------
    dict
        The arrays by the framework's names. Biases are among them if the weights have biases; where the framework keeps
        two and the weights have one, the second is zero.

    Raises
    ------
    UnsupportedError
        If the framework has no place for one of the arrays.
    """
    kinds = _kinds(weights, end)
    W = kinds["weight_ih"]
    units = len(W) // len(layout.canonical_gates)
    arrays = _named(layout, layout.input, _gates_to(layout, W), layout.gates)
    arrays |= _named(layout, layout.recurrent, _gates_to(layout, kinds["weight_hh"]), layout.gates)
    arrays |= _biases_to(layout, kinds, units)
    for kind, name, what in (
        ("weight_hr", layout.projection, "projection"),
        ("weight_peephole", layout.peephole, "peepholes"),
    ):
        if kind in kinds and not name:
            framework = FRAMEWORKS[layout.framework]
            raise UnsupportedError(f"{framework}'s {layout.row.title} has no {what}")
    if "weight_hr" in kinds:
        arrays[layout.projection] = kinds["weight_hr"].copy()
    if "weight_peephole" in kinds:
        arrays[layout.peephole] = _peepholes_to(layout, kinds["weight_peephole"], units, peephole)
    return arrays


def from_layout(
    layout: Layout, arrays: Mapping[str, Array], end: str = "_l0", peephole: str | None = None
) -> dict[str, Array]:
    """Canonical weights of one layer and direction, from the arrays of a framework.

    Parameters
    ----------
    layout
        Of the framework and the cell.
    arrays
        The arrays of one layer and direction by the framework's names, without an axis for directions. Biases, the
        projection and peepholes may be absent.
    end
        What the canonical names are to end in, see :func:`suffix`.
    peephole
        The gates whose peepholes are wanted, as in ``Architecture.peephole``; None for all that may have one.

    Raises
    ------
    ValueError
        If an array is missing or left over, or its shape cannot be that of gate blocks; the message names the array.
    """
    given = dict(arrays)
    gates = layout.gates
    W = _taken(layout, layout.input, given, gates)
    R = _taken(layout, layout.recurrent, given, gates)
    if W is None or R is None:
        missing = layout.input if W is None else layout.recurrent
        raise ValueError(f"{FRAMEWORKS[layout.framework]} weights: {missing!r} is missing")
    units = len(W) // len(gates)
    weights = {"weight_ih": _gates_from(layout, W), "weight_hh": _gates_from(layout, R)}
    weights |= _biases_from(layout, given, units)
    if layout.projection in given:
        weights["weight_hr"] = given.pop(layout.projection).copy()
    if layout.peephole in given:
        P = given.pop(layout.peephole)
        _check_rows(layout, layout.peephole, P, len(layout.peepholes) * units)
        weights["weight_peephole"] = _peepholes_from(layout, P, peephole)
    if given:
        names = ", ".join(map(repr, given))
        raise ValueError(f"{FRAMEWORKS[layout.framework]} weights: left over: {names}")
    return {name + end: array for name, array in weights.items()}


# ---- parts ---------------------------------------------------------------------------------------


def _kinds(weights: Mapping[str, Array], end: str) -> dict[str, Array]:
    """The arrays of one layer and direction, by their names without its end."""
    return {name.removesuffix(end): array for name, array in weights.items() if name.endswith(end)}


def _gates_to(layout: Layout, array: Array) -> Array:
    """Gate blocks in the framework's order; still rows."""
    import numpy as np

    order = layout.canonical_gates
    if not layout.negates:
        return reordered(array, order, layout.gates)
    blocks = dict(zip(order, np.split(array, len(order)), strict=True))
    blocks["i"] = -blocks["f"]
    blocks["f"] = np.zeros_like(blocks["f"])
    return np.concatenate([blocks[gate] for gate in layout.gates])


def _gates_from(layout: Layout, array: Array) -> Array:
    """Gate blocks in canonical order."""
    if not layout.negates:
        return reordered(array, layout.gates, layout.canonical_gates)
    coupled = reordered(array, layout.gates, layout.canonical_gates.replace("f", "i"))
    units = len(array) // len(layout.gates)
    first = layout.canonical_gates.index("f") * units
    coupled[first : first + units] *= -1
    return coupled


def _named(layout: Layout, name: str, array: Array, gates: str) -> dict[str, Array]:
    """An array of gate blocks under the framework's names, one or one for each gate."""
    import numpy as np

    if "{gate}" not in name:
        if layout.flat and array.ndim == 2:
            blocks = np.split(array, len(gates))
            return {name: np.hstack([each.reshape(each.shape[::-1]) for each in blocks])}
        return {name: np.ascontiguousarray(array.T) if layout.transposed else array}
    blocks = np.split(array, len(gates))
    return {
        name.format(gate=gate): np.ascontiguousarray(block.T)
        for gate, block in zip(gates, blocks, strict=True)
    }


def _taken(layout: Layout, name: str, arrays: dict[str, Array], gates: str) -> Array | None:
    """The same array again, its gate blocks as rows; None if there is none. Taken out of the arrays."""
    import numpy as np

    names = [name.format(gate=gate) for gate in gates] if "{gate}" in name else [name]
    found = [arrays.pop(each) for each in names if each in arrays]
    if not found:
        return None
    if len(found) < len(names):
        raise ValueError(
            f"{FRAMEWORKS[layout.framework]} weights: of {', '.join(names)} some are missing"
        )
    array = np.concatenate([each.T if layout.transposed else each for each in found])
    if layout.flat and array.ndim == 2 and len(array) % len(gates) == 0:
        array = np.concatenate([each.T.reshape(each.shape) for each in np.split(array, len(gates))])
    if not array.ndim or not len(array) or len(array) % len(gates):
        raise ValueError(
            f"{FRAMEWORKS[layout.framework]} weights: {name!r} must have {len(gates)} blocks of hidden_size, "
            f"got shape {found[0].shape}"
        )
    return array


def _check_rows(layout: Layout, name: str, array: Array, wanted: int) -> None:
    if array.size != wanted:
        raise ValueError(
            f"{FRAMEWORKS[layout.framework]} weights: {name!r} must have {wanted} elements, got shape {array.shape}"
        )


def _biases_to(layout: Layout, kinds: Mapping[str, Array], units: int) -> dict[str, Array]:
    """The biases as the framework keeps them."""
    import numpy as np

    own = f"bias_h{layout.canonical_gates[-1]}"  # of a GRU's n; of an RNN it is bias_hh itself
    if not {"bias_ih", "bias_hh", own} & set(kinds):
        return {}
    zeros = np.zeros(len(kinds["weight_ih"]), kinds["weight_ih"].dtype)
    of_input: Array = kinds.get("bias_ih", zeros)
    of_h: Array = kinds.get("bias_hh", zeros).copy()
    if own in kinds and own != "bias_hh":
        # Adding nothing would turn -0 into 0.
        of_h[-units:] = of_h[-units:] + kinds[own] if "bias_hh" in kinds else kinds[own]
    if layout.biases in ("double", "joined", "rows"):
        both = [_gates_to(layout, bias) for bias in (of_input, of_h)]
        if layout.biases == "double":
            return dict(zip(layout.bias, both, strict=True))
        return {
            layout.bias[0]: np.concatenate(both) if layout.biases == "joined" else np.stack(both)
        }
    total = of_input + of_h if "bias_hh" in kinds else of_input.copy()
    if layout.lacks_own_bias:
        if of_h[-units:].any():
            raise UnsupportedError(
                f"{FRAMEWORKS[layout.framework]}'s {layout.row.title} has no recurrent bias of {layout.canonical_gates[-1]}"
            )
        total[-units:] = of_input[-units:]
    if layout.biases == "single":
        return _named(layout, layout.bias[0], _gates_to(layout, total), layout.gates)
    total[-units:] = of_input[-units:]
    laid = _gates_to(layout, total)
    if layout.biases == "appended":
        return {layout.bias[0]: np.concatenate([laid, of_h[-units:]])}
    return _named(layout, layout.bias[0], laid, layout.gates) | {
        layout.bias[1]: of_h[-units:].copy()
    }


def _biases_from(layout: Layout, given: dict[str, Array], units: int) -> dict[str, Array]:
    """Canonical biases: as many as the framework keeps. Taken out of what is given."""
    import numpy as np

    rows = len(layout.gates) * units
    own = f"bias_h{layout.canonical_gates[-1]}"
    if layout.biases in ("single", "separate"):
        summed = _taken(layout, layout.bias[0], given, layout.gates)
        if summed is None:
            return {}
        _check_rows(layout, layout.bias[0], summed, rows)
        found = {"bias_ih": _gates_from(layout, summed)}
        if layout.biases == "separate" and layout.bias[1] in given:
            found[own] = given.pop(layout.bias[1]).copy()
            _check_rows(layout, layout.bias[1], found[own], units)
        elif layout.lacks_own_bias:
            found[own] = np.zeros(units, summed.dtype)
        return found
    arrays = [given.pop(name) for name in layout.bias if name in given]
    if not arrays:
        return {}
    if len(arrays) < len(layout.bias):
        names = " and ".join(layout.bias)
        raise ValueError(f"{FRAMEWORKS[layout.framework]} weights: {names} go together")
    if layout.biases == "appended":
        _check_rows(layout, layout.bias[0], arrays[0], rows + units)
        return {
            "bias_ih": _gates_from(layout, arrays[0][:rows]),
            own: arrays[0][rows:].copy(),
        }
    for name, array in zip(layout.bias, arrays, strict=True):
        _check_rows(layout, name, array, rows * 2 // len(arrays))
    of_input, of_h = arrays if len(arrays) == 2 else arrays[0].reshape(2, rows)
    return {"bias_ih": _gates_from(layout, of_input), "bias_hh": _gates_from(layout, of_h)}


def _peepholes_to(layout: Layout, array: Array, units: int, has: str | None) -> Array:
    """The peepholes of all the framework's gates: zero for a gate that has none."""
    import numpy as np

    has = _possible_peepholes(layout) if has is None else has
    if len(array) != len(has) * units:
        raise ValueError(
            f"weights: 'weight_peephole' must have {len(has)} blocks of {units} elements, for {has!r}, "
            f"got shape {array.shape}"
        )
    blocks = dict(zip(has, np.split(array, len(has)), strict=True))
    if layout.negates and "f" in blocks:
        blocks["i"] = -blocks.pop("f")
    zeros = np.zeros(units, array.dtype)
    return np.concatenate([blocks.get(gate, zeros) for gate in layout.peepholes])


def _peepholes_from(layout: Layout, array: Array, wanted: str | None) -> Array:
    """The canonical peepholes of the gates that are wanted."""
    import numpy as np

    blocks = dict(zip(layout.peepholes, np.split(array, len(layout.peepholes)), strict=True))
    if layout.negates:
        blocks["f"] = -blocks["i"]
    wanted = _possible_peepholes(layout) if wanted is None else wanted
    return np.concatenate([blocks[gate] for gate in wanted])


def _possible_peepholes(layout: Layout) -> str:
    """The gates that may have peepholes, in canonical order."""
    return "".join(gate.name for gate in layout.row.gates if gate.peephole)
