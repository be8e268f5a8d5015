"""PyTorch's recurrent modules in memory: a layer from one, and the ``state_dict`` of one from a layer."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from fusedrnn.errors import UnsupportedError
from fusedrnn.formats.contents import FoundLayer, Tensor
from fusedrnn.formats.layouts import LAYOUTS, find, suffix, to_layout
from fusedrnn.formats.torch_quantized import quantized_class, quantized_layer
from fusedrnn.formats.torch_state import found_layer

if TYPE_CHECKING:
    import numpy.typing as npt

    from fusedrnn.architecture import Architecture
    from fusedrnn.layers import Layer

__all__ = ["CLASSES", "found_in", "from_torch", "own_architecture", "to_state_dict"]

#: PyTorch's classes and their cells in this package.
CLASSES = {
    name: row.cell
    for row in LAYOUTS
    if row.framework == "torch"
    for name in (row.layer_class, row.step_class)
}


def from_torch(module: Any, **options: Any) -> Layer[Any]:
    """A layer with the weights and options of a PyTorch module.

    Parameters
    ----------
    module
        ``nn.RNN``, ``nn.LSTM``, ``nn.GRU``, or one of their cells, converted or not; or a module of
        :mod:`fusedrnn.torch`. float16 and bfloat16 weights are widened, float64 ones rounded. Dropout between layers,
        which does nothing in inference, is left out. Or one of these that ``torch.ao.quantization.quantize_dynamic`` has
        made: its layer has "int8" weights, its integers and scales, or "float16" ones.
    **options
        Those of :meth:`Layer.from_weights`, before what the module says: ``backend``, ``threads``, ``batch_first``.

    Raises
    ------
    TypeError
        If the module is none of these.
    """
    found = found_in(module)
    if found is None:
        names = ", ".join(f"nn.{name}" for name in CLASSES)
        raise TypeError(
            f"module must be one of {names}, one of them quantized, or of fusedrnn.torch, not {type(module).__name__}"
        )
    return found.layer(**options)


def found_in(module: Any, name: str = "") -> FoundLayer | None:
    """The recurrent layer that a module is; None for another module."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    quantized = quantized_class(module)
    if quantized is not None:
        return quantized_layer(module, name, quantized, CLASSES[quantized])
    own = own_architecture(module)
    options: dict[str, Any]
    if own is not None:
        cell, options, step, origin = own.cell, own.untold(), False, "fusedrnn.torch"
        batch_first = module.batch_first
    else:
        for theirs, cell in CLASSES.items():
            if isinstance(module, getattr(torch.nn, theirs)):
                break
        else:
            return None
        step, origin = theirs.endswith("Cell"), f"PyTorch {theirs}"
        options = {"activation": module.nonlinearity} if cell == "rnn" else {}
        batch_first = not step and bool(module.batch_first)
    group = {
        f"{each}_l0" if step else each: _tensor(f"{name}.{each}".lstrip("."), parameter)
        for each, parameter in module.named_parameters(recurse=False)
    }
    return found_layer(
        "",
        name,
        group,
        cell=cell,
        options=options,
        batch_first=batch_first,
        origin=origin,
    )


def own_architecture(module: Any) -> Architecture | None:
    """The architecture of a module of :mod:`fusedrnn.torch`; None for another module."""
    layers = sys.modules.get("fusedrnn.torch.layers")  # there is no such module without it
    classes: Any = tuple(getattr(layers, each) for each in layers.__all__) if layers else ()
    if not isinstance(module, classes):
        return None
    architecture: Architecture = module.architecture
    return architecture


def _tensor(name: str, parameter: Any) -> Tensor:
    kind = str(parameter.dtype).removeprefix("torch.")

    def read() -> npt.NDArray[Any]:
        values = parameter.detach().cpu()
        array: npt.NDArray[Any] = (values.float() if kind == "bfloat16" else values).numpy()
        return array

    return Tensor(name, tuple(parameter.shape), kind, read)


def to_state_dict(layer: Layer[Any], prefix: str = "") -> dict[str, npt.NDArray[Any]]:
    """A layer's weights as the ``state_dict`` of PyTorch's module of the same sizes, in NumPy arrays.

    Parameters
    ----------
    layer
        Of which PyTorch has a module: RNN, LSTM, GRU with the reset after the product.
    prefix
        What the names are to begin with, "encoder.lstm.".

    Returns
    -------
    dict
        PyTorch's names and shapes. There are two biases if the layer has any: the second of a layer with one is zero.
        ``module.load_state_dict({name: torch.from_numpy(a) for name, a in ...items()})`` takes them.

    Raises
    ------
    UnsupportedError
        For what PyTorch does not have; the message names it.
    """
    a = layer.architecture
    row = find("torch", a)
    allowed = {"num_layers", "bidirectional", "proj_size", "bias"}
    usual = {"activation": ("tanh", "relu")} if a.cell == "rnn" else {}
    lacks = [
        f"{name}={value!r}"
        for name, value in a.chosen().items()
        if name not in allowed and value not in usual.get(name, ())
    ]
    if row is None or lacks:
        raise UnsupportedError(
            f"PyTorch has no {a.table.title}" + (f" with {', '.join(lacks)}" if lacks else "")
        )
    arrays: dict[str, npt.NDArray[Any]] = {}
    for number in range(a.num_layers):
        for direction in range(a.directions):
            end = suffix(number, direction)
            of_layer = {name: array for name, array in layer.weights.items() if name.endswith(end)}
            arrays |= {
                f"{prefix}{name}{end}": array
                for name, array in to_layout(row, of_layer, end).items()
            }
    return arrays
