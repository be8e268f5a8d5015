"""PyTorch's dynamically quantized recurrent modules in memory, ``torch.ao.nn.quantized.dynamic``: their packed weights.

A weight of int8 is (q - zero point) * scale, with one scale for a matrix or for each of its rows; float16 weights are
numbers. What PyTorch does to x and h besides is its own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fusedrnn.formats.contents import FoundLayer, Tensor
from fusedrnn.formats.torch_state import found_layer
from fusedrnn.formats.values import said_of_integers

if TYPE_CHECKING:
    import numpy.typing as npt

    from fusedrnn.narrowing import Narrow

    Array = npt.NDArray[Any]

__all__ = ["quantized_class", "quantized_layer"]

#: Where the classes are; no object of them is there without it.
MODULE = "torch.ao.nn.quantized.dynamic.modules.rnn"
NAMES = ("LSTM", "GRU", "LSTMCell", "GRUCell", "RNNCell")


def quantized_class(module: Any) -> str | None:
    """The name of the class that a quantized recurrent module is of; None for another module."""
    classes = sys.modules.get(MODULE)
    if classes is None:
        return None
    return next((name for name in NAMES if isinstance(module, getattr(classes, name))), None)


def quantized_layer(module: Any, name: str, theirs: str, cell: str) -> FoundLayer:
    """The recurrent layer that a quantized module is.

    Parameters
    ----------
    module
        Of a class that :func:`quantized_class` names.
    name
        In its model.
    theirs, cell
        The name of the class, and its cell here.
    """
    step = theirs.endswith("Cell")
    given = {**module.get_weight(), **module.get_bias()}
    values = {f"{key}_l0" if step else key: each for key, each in given.items() if each is not None}
    group = {
        key: Tensor(f"{name}.{key}".lstrip("."), tuple(each.shape), "float32", _numbers(each))
        for key, each in values.items()
        if not each.is_quantized
    }
    matrices = {key: _Matrix(each) for key, each in values.items() if each.is_quantized}
    for key, matrix in matrices.items():
        shape = matrix.integers.shape
        group[key] = Tensor(f"{name}.{key}".lstrip("."), shape, "float32", matrix.widened)
    found = found_layer(
        "",
        name,
        group,
        cell=cell,
        options={"activation": module.nonlinearity} if cell == "rnn" else {},
        batch_first=not step and bool(module.batch_first),
        origin=f"PyTorch quantized {theirs}",
    )
    if not matrices:
        note = "float16 weights, kept, but that subnormal ones are 0"
        return replace(found, weight_dtype="float16", notes=(note,))
    kept = all(matrix.fits for matrix in matrices.values())
    found = replace(found, notes=(said_of_integers(["int8"], kept=kept),))
    if not kept:
        return found

    def read() -> Mapping[str, Array | Narrow]:
        narrow = {key: matrix.narrow() for key, matrix in matrices.items()}
        return {key: narrow[key] if key in narrow else group[key].read() for key in group}

    return replace(found, read=read, weight_dtype="int8")


def _numbers(tensor: Any) -> Any:
    """What reads a tensor of floats."""
    return lambda: tensor.detach().cpu().numpy()


class _Matrix:
    """A quantized matrix.

    Attributes
    ----------
    integers
        (rows, columns) int16, less their zero points.
    scales
        (rows,) float32.
    """

    def __init__(self, tensor: Any) -> None:
        import numpy as np

        rows = tensor.shape[0]
        if "channel" in str(tensor.qscheme()):
            scales = tensor.q_per_channel_scales().numpy()
            zeros = tensor.q_per_channel_zero_points().numpy()
        else:
            scales, zeros = np.full(rows, tensor.q_scale()), np.full(rows, tensor.q_zero_point())
        self.scales = scales.astype(np.float32)
        self.integers = tensor.int_repr().numpy() - zeros.astype(np.int16)[:, None]

    @property
    def fits(self) -> bool:
        """Whether all integers are int8."""
        return bool(self.integers.min() >= -128 and self.integers.max() <= 127)

    def narrow(self) -> Narrow:
        """As it is kept."""
        import numpy as np

        from fusedrnn.narrowing import Narrow

        return Narrow("int8", self.integers.astype(np.int8), self.scales)

    def widened(self) -> Array:
        """The numbers that the integers stand for, as float32."""
        numbers: Array = self.integers * self.scales[:, None]
        return numbers
