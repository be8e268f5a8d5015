"""The numbers of ONNX tensors: inside the model, or in another file of its folder."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from fusedrnn.errors import ModelFormatError, UnsupportedError
from fusedrnn.formats.contents import Tensor

__all__ = ["EXTERNAL", "Store", "tensor_dtype"]

Array = npt.NDArray[Any]
#: A message of ONNX's protobuf.
Proto = Any

#: Element types that are read: their number in ONNX, NumPy's name, how they are stored as raw bytes, and the field that
#: holds them otherwise. float16 and bfloat16 stand there as bits.
TYPES: dict[int, tuple[str, str, str]] = {
    1: ("float32", "<f4", "float_data"),
    2: ("uint8", "u1", "int32_data"),
    3: ("int8", "i1", "int32_data"),
    4: ("uint16", "<u2", "int32_data"),
    5: ("int16", "<i2", "int32_data"),
    6: ("int32", "<i4", "int32_data"),
    7: ("int64", "<i8", "int64_data"),
    9: ("bool", "?", "int32_data"),
    10: ("float16", "<u2", "int32_data"),
    11: ("float64", "<f8", "double_data"),
    12: ("uint32", "<u4", "uint64_data"),
    13: ("uint64", "<u8", "uint64_data"),
    16: ("bfloat16", "<u2", "int32_data"),
}
#: Where a tensor's numbers are: ``TensorProto.EXTERNAL``.
EXTERNAL = 1


def tensor_dtype(number: int) -> str:
    """The name of an element type: NumPy's, or ONNX's in lower case where NumPy has none."""
    if number in TYPES:
        return TYPES[number][0]
    try:
        return str(TensorProto.DataType.Name(number)).lower()
    except ValueError:
        return f"type {number}"


@dataclass(frozen=True)
class Store:
    """Where the numbers of a model's tensors are.

    Attributes
    ----------
    path
        The model's file, as messages name it; "" for a model in memory.
    folder
        The folder whose files may be read; None: no other file may.
    """

    path: str = ""
    folder: Path | None = None

    def fault(self, message: str) -> ModelFormatError:
        """The error of this model that says so."""
        return ModelFormatError(f"{self.path or 'the model'}: {message}")

    def tensor(self, proto: Proto, name: str) -> Tensor:
        """A tensor that is not read yet. What can be checked without its numbers is checked here.

        Raises
        ------
        ModelFormatError
            If it holds more or fewer numbers than its shape says, or stands in a file that may not be read.
        """
        shape = tuple(int(length) for length in proto.dims)
        what = f"tensor {name!r}"
        if any(length < 0 for length in shape):
            raise self.fault(f"{what} has a negative axis: {shape}")
        dtype = tensor_dtype(proto.data_type)
        known = TYPES.get(proto.data_type)
        if proto.HasField("segment"):
            raise self.fault(f"{what} is in segments, which ONNX has given up")
        if proto.data_location == EXTERNAL:
            span = self._span(proto, what)
            if known is not None:
                self._check_size(what, shape, _itemsize(known), span[2])
            self._open(what, span, read=False)
        elif known is not None and proto.HasField("raw_data"):
            self._check_size(what, shape, _itemsize(known), len(proto.raw_data))
        elif known is not None:
            count = len(getattr(proto, known[2]))
            if count != prod(shape):
                raise self.fault(
                    f"{what} of shape {shape} must have {prod(shape)} numbers, got {count} in {known[2]}"
                )

        def read() -> Array:
            if known is None:
                raise UnsupportedError(f"{what} is of type {dtype}, which is not read")
            return self._numbers(proto, what, known).reshape(shape)

        return Tensor(name, shape, dtype, read)

    def _check_size(self, what: str, shape: tuple[int, ...], itemsize: int, given: int) -> None:
        if given != prod(shape) * itemsize:
            raise self.fault(
                f"{what} of shape {shape} must have {prod(shape) * itemsize} bytes, got {given}"
            )

    def _numbers(self, proto: Proto, what: str, known: tuple[str, str, str]) -> Array:
        """The numbers in one row; bfloat16 as float32."""
        name, stored, field = known
        if proto.data_location == EXTERNAL:
            numbers = np.frombuffer(self._open(what, self._span(proto, what)), stored)
        elif proto.HasField("raw_data"):
            numbers = np.frombuffer(proto.raw_data, stored)
        else:
            given = np.array(getattr(proto, field))
            numbers = given.astype(stored)
            if (numbers != given).any() and name not in ("float32", "float64"):
                raise self.fault(f"{what} has numbers that {name} cannot hold")
        if name == "float16":
            return numbers.view("<f2")
        if name == "bfloat16":
            return (numbers.astype(np.uint32) << 16).view(np.float32)
        return numbers

    # ---- external data ---------------------------------------------------------------------------

    def _span(self, proto: Proto, what: str) -> tuple[tuple[str, ...], int, int]:
        """The path in the model's folder, part by part, the offset and the length of a tensor's bytes."""
        if self.folder is None:
            raise self.fault(
                f"{what} is external data, in another file: not read unless it is asked for, with external_data=True"
                + ("" if self.path else " and the path of the model")
            )
        said = {entry.key: entry.value for entry in proto.external_data}
        if not all(isinstance(text, str) for pair in said.items() for text in pair):
            raise self.fault(f"{what}: what says where its external data is, is not UTF-8")
        location = said.get("location", "")
        if "\\" in location or "\0" in location:
            raise self.fault(
                f"{what}: external data {location!r} is not a plain path in the model's folder"
            )
        path = PurePosixPath(location)
        if path.is_absolute() or not path.parts or ".." in path.parts:
            raise self.fault(f"{what}: external data {location!r} is not in the model's folder")
        known = TYPES.get(proto.data_type)
        whole = prod(proto.dims) * _itemsize(known) if known else 0
        numbers = []
        for key, absent in (("offset", 0), ("length", whole)):
            text = said.get(key, str(absent))
            if not (text.isascii() and text.isdigit() and len(text) < 19):
                raise self.fault(f"{what}: external data with {key} {text!r}, which is not a size")
            numbers.append(int(text))
        return path.parts, numbers[0], numbers[1]

    def _open(self, what: str, span: tuple[tuple[str, ...], int, int], read: bool = True) -> bytes:
        """The bytes of a tensor in another file, or only a look at whether they are there.

        They are read, not mapped: a file that is cut short behind a map ends the process.
        """
        parts, offset, length = span
        location = "/".join(parts)
        assert self.folder is not None  # from _span on
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        file = -1
        try:
            for part in parts[:-1]:
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
                os.close(folder)
                folder = inner
            # A pipe would wait for its other end.
            file = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise self.fault(f"{what}: external data {location!r} is not a regular file")
            if status.st_nlink > 1:
                raise self.fault(
                    f"{what}: external data {location!r} is a hard link, to a file that may be elsewhere"
                )
            if offset + length > status.st_size:
                raise self.fault(
                    f"{what}: external data {location!r} has {status.st_size} bytes, and {offset} to "
                    f"{offset + length} are asked for"
                )
            return _pread(file, length, offset) if read else b""
        except OSError as error:
            raise self.fault(
                f"{what}: external data {location!r} cannot be opened as a file of the model's folder "
                f"without links: {error.strerror}"
            ) from None
        finally:
            os.close(folder)
            if file >= 0:
                os.close(file)


def _itemsize(known: tuple[str, str, str]) -> int:
    return int(known[1].lstrip("<")[-1]) if known[1] != "?" else 1


def _pread(file: int, length: int, offset: int) -> bytes:
    pieces = []
    while length:
        piece = os.pread(file, length, offset)
        if not piece:
            raise OSError(0, "it was cut short meanwhile")
        pieces.append(piece)
        length -= len(piece)
        offset += len(piece)
    return b"".join(pieces)
