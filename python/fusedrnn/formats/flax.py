"""Layers from the arrays of Flax, Equinox and TensorFlow 1, none of which is imported.

Flax keeps parameters as a tree of mappings, Equinox as attributes of a module; what counts are names and shapes. The gates'
order is in :mod:`fusedrnn.formats.layouts`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fusedrnn.errors import ModelFormatError
from fusedrnn.formats.layouts import FRAMEWORKS, LAYOUTS, Layout, from_layout, suffix
from fusedrnn.formats.values import as_float32
from fusedrnn.shapes import listed

if TYPE_CHECKING:
    from fusedrnn.layers import Layer

    Array = np.typing.NDArray[Any]

__all__ = ["from_equinox", "from_flax", "from_tf1"]

#: How deep a tree may be.
MAX_DEPTH = 64
#: The two layers of a Bidirectional.
DIRECTIONS = ("forward_rnn", "backward_rnn")


def from_flax(params: Any, name: str | None = None, **options: Any) -> Layer[Any]:
    """A layer from the parameters of Flax: of ``flax.linen`` or ``flax.nnx``.

    Cells are LSTMCell, OptimizedLSTMCell, GRUCell and SimpleCell, alone, in RNN or in Bidirectional, at any depth.

    Parameters
    ----------
    params
        The tree that ``init`` gives or a part of it; of nnx, a state or ``nnx.to_pure_dict`` of it.
    name
        Which cell, as a path ("encoder/rnn"), where the tree has several.
    **options
        Those of :meth:`Layer.from_weights`; ``activation="relu"`` or the like where the cell does not have Flax's
        default: arrays do not tell. ``batch_first`` is True, as in Flax, unless it is given.

    Raises
    ------
    ValueError
        If arrays are missing, left over or of another shape; or if there are several cells and no name: the message lists
        them.
    """
    leaves = dict(_leaves(params, (), 0))
    groups = _cells(leaves)
    if name is None and len(groups) == 1:
        (name,) = groups
    if name not in groups:
        said = listed(map(repr, groups)) or "none"
        asked = "give the name of one" if name is None else f"there is none called {name!r}"
        raise ValueError(f"the parameters hold {len(groups)} recurrent layers, {said}: {asked}")
    directions = groups[name]
    layouts = [_layout(name, arrays) for arrays in directions]
    if len(set(layouts)) > 1:
        raise ModelFormatError(f"Flax weights: the two directions of {name!r} are different cells")
    weights: dict[str, Array] = {}
    for number, arrays in enumerate(directions):
        weights |= from_layout(layouts[0], arrays, suffix(0, number))
    return _layer(layouts[0], weights, {"batch_first": True} | options)


def from_equinox(cell: Any, **options: Any) -> Layer[Any]:
    """A layer from ``equinox.nn.LSTMCell`` or ``equinox.nn.GRUCell``.

    Parameters
    ----------
    cell
        The module, or its arrays by name: ``weight_ih``, ``weight_hh``, ``bias`` and ``bias_n``.
    **options
        Those of :meth:`Layer.from_weights`.

    Raises
    ------
    ValueError
        If it is no such cell; the message says why.
    """
    names = ("weight_ih", "weight_hh", "bias", "bias_n")
    given = cell if isinstance(cell, Mapping) else vars(cell)
    arrays = {
        str(name): _array(str(name), value)
        for name, value in given.items()
        if value is not None and (name in names or isinstance(cell, Mapping))
    }
    if not {"weight_ih", "weight_hh"} <= set(arrays):
        raise ValueError(
            f"Equinox weights: weight_ih and weight_hh are needed, got {listed(map(repr, arrays)) or 'none'}"
        )
    rows, units = arrays["weight_hh"].shape if arrays["weight_hh"].ndim == 2 else (0, 1)
    for layout in LAYOUTS:
        if layout.framework == "equinox" and len(layout.gates) * units == rows:
            return _layer(layout, from_layout(layout, arrays), options)
    raise ValueError(
        f"Equinox weights: 'weight_hh' must have 4 or 3 blocks of hidden_size, got shape {arrays['weight_hh'].shape}"
    )


def from_tf1(
    kernel: Any, bias: Any = None, *, forget_bias: float = 1.0, **options: Any
) -> Layer[Any]:
    """A layer from the arrays of TensorFlow 1's BasicLSTMCell or LSTMCell without peepholes and projection.

    Parameters
    ----------
    kernel
        (X + H, 4 H), gates in the order i, c, f, o.
    bias
        (4 H,); None for zeros.
    forget_bias
        What the cell adds to the sum of the forget gate at run time and does not keep in ``bias``. It is added to the bias
        here.
    **options
        Those of :meth:`Layer.from_weights`.

    Raises
    ------
    ValueError
        If an array is of another shape.
    """
    (layout,) = (each for each in LAYOUTS if each.framework == "tensorflow1")
    whole = _array("kernel", kernel)
    units = whole.shape[1] // 4 if whole.ndim == 2 else 0
    if not units or whole.shape[1] % 4 or whole.shape[0] <= units:
        raise ValueError(f"kernel must be (X + H, 4 H), got shape {whole.shape}")
    sums = np.zeros(4 * units, np.float32) if bias is None else _array("bias", bias).copy()
    if sums.shape != (4 * units,):
        raise ValueError(f"bias must be {(4 * units,)}, got shape {sums.shape}")
    at = layout.gates.index("f") * units
    sums[at : at + units] += np.float32(forget_bias)
    arrays = {
        layout.input: whole[:-units],
        layout.recurrent: whole[-units:],
        layout.bias[0]: sums,
    }
    return _layer(layout, from_layout(layout, arrays), options)


# ---- parts ---------------------------------------------------------------------------------------


def _array(name: str, value: Any) -> Array:
    """An array as float32; a parameter of nnx is what it holds."""
    while hasattr(value, "get_value") and not isinstance(value, np.ndarray):
        value = value.get_value()
    array = np.asarray(value)
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    if array.dtype.kind != "f":
        raise ValueError(f"weights: {name!r} must be of floats, got {array.dtype}")
    return as_float32(array, f"weights: {name!r}")


def _leaves(tree: Any, path: tuple[str, ...], depth: int) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The arrays of a tree by their paths."""
    if depth > MAX_DEPTH:
        raise ValueError(f"the parameters are nested more than {MAX_DEPTH} deep")
    items = getattr(tree, "items", None)
    if callable(items):
        for key, value in items():
            yield from _leaves(value, (*path, str(key)), depth + 1)
    elif tree is not None:
        yield path, tree


def _cells(leaves: Mapping[tuple[str, ...], Any]) -> dict[str, list[dict[str, Array]]]:
    """The arrays of each recurrent layer, one mapping or two for two directions, by the path of the layer."""
    inner = {
        name.split("/")[0].format(gate=gate)
        for layout in LAYOUTS
        if layout.framework in ("flax", "nnx")
        for name in (layout.input, layout.recurrent)
        for gate in layout.gates
    }
    found: dict[str, dict[str, dict[str, Array]]] = {}
    roots: dict[tuple[str, ...], dict[str, Array]] = {}
    for path, value in leaves.items():
        # nnx calls a gate "if_", because "if" is a word of Python.
        if len(path) < 2 or path[-2].rstrip("_") not in inner:
            continue
        place = [each for each in path[:-2] if each != "params"]
        if place and place[-1] == "cell":
            place.pop()
        which = place.pop() if place and place[-1] in DIRECTIONS else ""
        roots[path[:-2]] = found.setdefault("/".join(place), {}).setdefault(which, {})
        roots[path[:-2]][f"{path[-2].rstrip('_')}/{path[-1]}"] = _array("/".join(path), value)
    for path, value in leaves.items():
        for root, arrays in roots.items():
            key = "/".join(path[len(root) :])
            # An array of the same cell that is not one of its parameters: an error, later.
            inside = root[-1:] == ("cell",) and path[: len(root)] == root and "rngs" not in path
            if inside and key.replace("_/", "/") not in arrays:
                arrays[key] = np.asarray(value)
    kept: dict[str, list[dict[str, Array]]] = {}
    for place_name, group in found.items():
        if set(group) == set(DIRECTIONS):
            kept[place_name] = [group[which] for which in DIRECTIONS]
        else:
            for which, arrays in group.items():
                kept["/".join(filter(None, (place_name, which)))] = [arrays]
    return {
        name: group
        for name, group in kept.items()
        if all(any(key[0] in "hd" and "kernel" in key for key in arrays) for arrays in group)
    }


def _layout(name: str, arrays: Mapping[str, Array]) -> Layout:
    """The layout whose kernels these are."""
    kernels = {key for key in arrays if key.endswith("/kernel")}
    for layout in LAYOUTS:
        if layout.framework not in ("flax", "nnx"):
            continue
        wanted = {
            each.format(gate=gate)
            for each in (layout.input, layout.recurrent)
            for gate in layout.gates
        }
        if kernels != wanted:
            continue
        rows, units = len(layout.gates), arrays.get(layout.recurrent, np.zeros((1, 1))).shape
        if layout.framework == "nnx" and (len(units) != 2 or units[0] * rows != units[1]):
            continue
        return layout
    raise ModelFormatError(
        f"{FRAMEWORKS['flax']} weights: {name!r} is no cell that is known: it has {listed(map(repr, arrays))}"
    )


def _layer(layout: Layout, weights: dict[str, Array], options: dict[str, Any]) -> Layer[Any]:
    from fusedrnn.layers import LAYERS

    return LAYERS[layout.cell].from_weights(weights, **options)
