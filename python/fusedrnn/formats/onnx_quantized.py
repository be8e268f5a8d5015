"""ONNX Runtime's DynamicQuantizeLSTM: an LSTM node whose W and R are integers, with scales and zero points.

A weight is (q - zero point) * scale, and what ONNX Runtime does to x and h besides is its own. W is (D, X, 4 H) and R is
(D, H, 4 H), columns where the standard's node has rows; scales and zero points are one for each direction, or one for each
of these columns.

Operator: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.DynamicQuantizeLSTM
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.errors import UnsupportedError
from fusedrnn.formats.layouts import Layout, from_layout
from fusedrnn.formats.onnx_graph import GraphView
from fusedrnn.formats.values import said_of_integers
from fusedrnn.narrowing import LARGEST_SCALE, SMALLEST_SCALE, Narrow

__all__ = ["QUANTIZERS", "QuantizedWeights", "is_quantized", "turned"]

Array = npt.NDArray[Any]
#: A message of ONNX's protobuf.
Proto = Any

#: The inputs behind those of an LSTM.
QUANTIZERS = ("W_scale", "W_zero_point", "R_scale", "R_zero_point")
MATRICES = ("W", "R")
#: What a zero point is where every integer less it fits int8.
CENTRES = {"int8": 0, "uint8": 128}


def is_quantized(node: Proto) -> bool:
    """Whether a node is a DynamicQuantizeLSTM."""
    return bool(node.op_type == "DynamicQuantizeLSTM" and node.domain == "com.microsoft")


def turned(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of W or R of this node, from that of the standard's; and back."""
    directions, rows, columns = shape
    return directions, columns, rows


@dataclass(frozen=True)
class QuantizedWeights:
    """W and R of a node.

    Attributes
    ----------
    view
        The graph that the node is in.
    inputs
        The names of the values that it reads, by the names of its inputs.
    what
        What messages call the node.
    """

    view: GraphView
    inputs: Mapping[str, str]
    what: str

    def note(self, low: int) -> tuple[bool, str]:
        """Whether all integers are int8, from ``low`` on, and kept; and what is said of that."""
        dtypes, kept = set(), True
        for key in MATRICES:
            self._scales(key)
            zero_point = self._zero_point(key)
            dtypes.add(zero_point.dtype.name)
            if low > -128 or (zero_point != CENTRES[zero_point.dtype.name]).any():
                integers = self.integers(key)
                kept = kept and low <= integers.min() and integers.max() <= 127
        return kept, said_of_integers(dtypes, kept=kept)

    def integers(self, key: str) -> npt.NDArray[np.int16]:
        """The integers of W or R less their zero points: (D, rows, columns), as the standard has them."""
        values, zero_point = self._constant(key), self._zero_point(key)
        if values.dtype != zero_point.dtype:
            raise self.view.store.fault(
                f"{self.what}: {key} must be of its zero point's type, {zero_point.dtype}, got {values.dtype}"
            )
        less: npt.NDArray[np.int16] = values.astype(np.int16) - zero_point.astype(np.int16)[:, None]
        return less.transpose(0, 2, 1)

    def scaled(
        self, layout: Layout, direction: int, end: str, integers: Mapping[str, Array], *, keep: bool
    ) -> dict[str, Array | Narrow]:
        """The matrices of one direction, of canonical integers that end in ``end``: as int8, or widened."""
        columns = {key: self._scales(key)[direction][:, None] for key in MATRICES}
        found: dict[str, Array | Narrow] = {}
        # A scale has no sign to be turned.
        for name, scales in from_layout(layout, columns, end).items():
            scales = np.abs(scales)
            found[name] = (
                Narrow("int8", integers[name].astype(np.int8), scales[:, 0])
                if keep
                else integers[name] * scales
            )
        return found

    def _constant(self, key: str) -> Array:
        try:
            return self.view.constant(self.inputs[key])
        except UnsupportedError as error:
            raise UnsupportedError(f"{self.what}: {key}: {error}") from None

    def _each(self, key: str, like: str) -> Array:
        """The scales or zero points of a matrix, for each of its columns: (D, columns)."""
        directions, _, columns = self.view.shape(self.inputs[like])
        array = self._constant(key)
        if array.shape not in ((directions,), (directions, columns)):
            raise self.view.store.fault(
                f"{self.what}: {key} must have shape ({directions},) or ({directions}, {columns}), got {array.shape}"
            )
        return np.broadcast_to(array.reshape(directions, -1), (directions, columns))

    def _zero_point(self, matrix: str) -> Array:
        """The zero points of a matrix, whose type is that of the matrix."""
        key = f"{matrix}_zero_point"
        found = (
            self._each(key, matrix)
            if key in self.inputs
            else np.zeros_like(self._constant(matrix)[:, 0])
        )
        if found.dtype.name not in CENTRES:
            raise self.view.store.fault(
                f"{self.what}: {matrix} must be int8 or uint8, got {found.dtype}"
            )
        return found

    def _scales(self, matrix: str) -> npt.NDArray[np.float32]:
        key = f"{matrix}_scale"
        scales = self._each(key, matrix)
        if scales.dtype != np.float32:
            raise self.view.store.fault(f"{self.what}: {key} must be float32, got {scales.dtype}")
        wrong = scales[~((scales >= SMALLEST_SCALE) & (scales <= LARGEST_SCALE))]
        if wrong.size:
            raise UnsupportedError(
                f"{self.what}: {key} must be from {SMALLEST_SCALE:.3g} to {LARGEST_SCALE:.3g}, got {wrong[0]}"
            )
        return scales.astype(np.float32)
