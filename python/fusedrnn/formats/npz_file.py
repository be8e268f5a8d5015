"""NumPy archives: a zip of arrays, each in NumPy's own format, under names like those of a ``state_dict``.

Only the headers are read until somebody wants the numbers. Arrays of Python objects, which are pickles, are refused.
"""

from __future__ import annotations

import io
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fusedrnn.errors import ModelFormatError
from fusedrnn.formats.contents import Contents, Tensor
from fusedrnn.formats.torch_state import contents
from fusedrnn.formats.zipped import Archive, opened

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["MAGIC", "listed", "read", "read_header", "recognises"]

END, MAGIC = ".npy", b"\x93NUMPY"
#: Bytes of a member that hold its header.
MAX_HEADER = 2**16
#: The most bytes of a compressed member.
MAX_COMPRESSED = 2**32


def recognises(head: bytes, members: frozenset[str]) -> bool:
    """Whether an archive has arrays, and nothing else."""
    return bool(members) and all(name.endswith(END) for name in members)


def read(path: Path, *, external_data: bool = False) -> Contents:
    """What the file holds.

    Raises
    ------
    ModelFormatError
        If it is damaged, holds Python objects, or an array that is not as large as it says.
    """
    return contents(str(path), "NumPy archive", listed(path))


def listed(path: Path) -> dict[str, Tensor]:
    """The arrays by name, none of them read yet.

    Raises
    ------
    ModelFormatError
        If the archive is damaged, holds Python objects, or an array that is not as large as it says.
    """
    with opened(path) as archive:
        names = {member: member.removesuffix(END) for member in archive.members}
        return {name: _tensor(path, archive, member, name) for member, name in names.items()}


def read_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether axes are in Fortran's order, and dtype of an array that begins here.

    Raises
    ------
    ValueError
        If it is no array of numbers, or of a version that is not known; the message says why.
    """
    import numpy as np

    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        version = np.lib.format.read_magic(file)
        if version not in readers:
            raise ValueError(f"version {version[0]}.{version[1]} of the format")
        shape, fortran, dtype = readers[version](file)
    except Exception as error:  # noqa: BLE001  NumPy's parser raises what Python's parser raises
        raise ValueError(" ".join(str(error).split())[:120]) from None
    if dtype.hasobject:
        raise ValueError("Python objects, which would have to be executed; save numbers instead")
    if dtype.kind not in "fiub" or any(length < 0 for length in shape):
        raise ValueError(f"{dtype} of shape {shape} is no array of numbers")
    return tuple(shape), fortran, dtype


def _tensor(path: Path, archive: Archive, member: str, name: str) -> Tensor:
    start = archive.where(member)
    size = archive.members[member]
    if start is None:
        head = archive.read(member, MAX_COMPRESSED)
    else:
        with path.open("rb") as file:
            file.seek(start)
            head = file.read(min(size, MAX_HEADER))
    text = io.BytesIO(head)
    try:
        shape, fortran, dtype = read_header(text)
    except ValueError as error:
        raise ModelFormatError(f"{path}: array {name!r} cannot be read: {error}") from None
    if text.tell() + prod(shape) * dtype.itemsize != size:
        raise ModelFormatError(
            f"{path}: array {name!r} of shape {shape} and {dtype} needs {prod(shape) * dtype.itemsize:,} bytes, "
            f"and has {size - text.tell():,}"
        )
    order = "F" if fortran else "C"
    at = text.tell() if start is None else start + text.tell()
    numbers = partial(_numbers, path, member, at, start is None, dtype, shape, order)
    return Tensor(name, shape, str(dtype.newbyteorder("=")), numbers)


def _numbers(
    path: Path,
    member: str,
    at: int,
    compressed: bool,
    dtype: Any,
    shape: tuple[int, ...],
    order: Any,
) -> npt.NDArray[Any]:
    import numpy as np

    if not prod(shape):
        return np.empty(shape, dtype)
    if not compressed:
        mapped: npt.NDArray[Any] = np.memmap(path, dtype, "r", at, shape, order)
        return mapped
    with opened(path) as archive:
        content = archive.read(member, MAX_COMPRESSED)
    return np.frombuffer(content, dtype, offset=at).reshape(shape, order=order)
