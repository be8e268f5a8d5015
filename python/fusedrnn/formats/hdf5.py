"""The one way into HDF5: what a hostile file could use to lead elsewhere, run code or fill the memory is refused.

HDF5 can link to other files and paths, keep arrays in other files, compute arrays of others (virtual datasets), load
filters from plugins, and declare arrays of any size with nothing stored of them. A model file needs none of this.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fusedrnn.errors import MissingExtraError, ModelFormatError
from fusedrnn.formats.contents import Tensor
from fusedrnn.formats.zipped import opened

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["MAGIC", "Hdf5", "walk"]

#: How a file begins.
MAGIC = b"\x89HDF\r\n\x1a\n"
MAX_OBJECTS = 50_000
MAX_DEPTH = 64
#: Bytes of a compressed array that are read whatever is stored of it; above them, at most MAX_RATIO times what is stored.
FREE_BYTES = 64 * 2**20
MAX_RATIO = 32
#: Bytes of all attributes that are read; and of an attribute of texts of variable length, if each of them was the longest
#: that the file can have.
MAX_TEXTS = 256 * 2**20
MAX_VARIABLE = 4 * 2**30
#: The most bytes of a compressed member of an archive.
MAX_COMPRESSED = 2**32
#: Filters that HDF5 has itself: deflate, shuffle, fletcher32. Others are plugins, which is code.
FILTERS = {1, 2, 3}

Result = TypeVar("Result")


@dataclass(frozen=True)
class Hdf5:
    """What an HDF5 file holds.

    Attributes
    ----------
    path, member
        The file, and the member of it that is HDF5 where it is an archive, or "".
    tensors
        Its arrays by path, as "model_weights/lstm/kernel".
    groups
        The paths of its groups, "" being the file itself.
    texts
        By group and name, the attributes that were asked for: a text or several. Keras cuts a long attribute into ``name0``,
        ``name1``, ...: they come as one.
    """

    path: Path
    member: str
    tensors: dict[str, Tensor]
    groups: tuple[str, ...]
    texts: dict[tuple[str, str], tuple[str, ...]]

    def fault(self, message: str) -> ModelFormatError:
        """The error of this file that says so."""
        return _fault(self.path, self.member, message)

    def text(self, group: str, name: str) -> str | None:
        """An attribute that is one text; None if there is none."""
        found = self.texts.get((group, name))
        return found[0] if found else None


def walk(path: Path, member: str = "", texts: Sequence[str] = ()) -> Hdf5:
    """Every array of a file by its path; the numbers are not read.

    Parameters
    ----------
    path
        An HDF5 file, or an archive.
    member
        The member of the archive.
    texts
        The names of the attributes that are wanted.

    Raises
    ------
    ModelFormatError
        If the file is damaged, leads out of itself, or would need more memory than it has bytes.
    MissingExtraError
        Without h5py.
    """
    tensors: dict[str, Tensor] = {}
    groups: list[str] = []
    said: dict[tuple[str, str], tuple[str, ...]] = {}

    def read(file: Any) -> None:
        import h5py

        seen = {_address(file)}
        headers = 0
        ahead = [("", file, 0)]
        while ahead:
            name, group, depth = ahead.pop()
            groups.append(name)
            if depth > MAX_DEPTH:
                raise _fault(path, member, f"groups in groups, {depth} deep")
            inside = []
            for key in group:
                full = f"{name}/{key}" if name else key
                link = group.get(key, getlink=True)
                if not isinstance(link, h5py.HardLink):
                    raise _fault(path, member, f"{full!r} is a link that may lead elsewhere")
                child = group[key]
                address = _address(child)
                if address in seen:
                    raise _fault(path, member, f"{full!r} is linked twice, or in a circle")
                seen.add(address)
                headers += _header_bytes(child)
                if len(seen) > MAX_OBJECTS:
                    raise _fault(path, member, f"more than {MAX_OBJECTS:,} objects")
                if isinstance(child, h5py.Group):
                    inside.append((full, child, depth + 1))
                elif isinstance(child, h5py.Dataset):
                    tensors[full] = _tensor(path, member, full, child)
            ahead += reversed(inside)
        arrays = sum(_bytes(tensor) for tensor in tensors.values())
        around = max(0, _length(path) - arrays - headers)
        left = MAX_TEXTS
        for name in groups:
            group = file[name] if name else file
            has = set(group.attrs)
            for wanted in texts:
                found: list[str] = []
                for piece in _pieces(wanted, has):
                    found += _attribute(path, member, group, piece, around)
                left -= sum(map(len, found))
                if left < 0:
                    raise _fault(path, member, f"its attributes have more than {MAX_TEXTS:,} bytes")
                if wanted in has or found:
                    said[name, wanted] = tuple(found)

    _guarded(path, member, read)
    return Hdf5(path, member, tensors, tuple(groups), said)


# ---- parts ---------------------------------------------------------------------------------------


def _fault(path: Path, member: str, message: str) -> ModelFormatError:
    return ModelFormatError(f"{path}: {f'{member}: ' if member else ''}{message}")


def _pieces(name: str, has: Container[str]) -> Iterator[str]:
    """The names under which an attribute is kept."""
    if name in has:
        yield name
        return
    number = 0
    while f"{name}{number}" in has:
        yield f"{name}{number}"
        number += 1


def _attribute(path: Path, member: str, group: Any, name: str, around: int) -> list[str]:
    """An attribute that is a text or several; ``around`` is what arrays and headers leave of the file: no text is longer."""
    import h5py

    attribute = group.attrs.get_id(name)
    elements = prod(attribute.shape)
    if not elements:
        return []
    text = h5py.check_string_dtype(attribute.dtype)
    if text is None:
        raise _fault(path, member, f"attribute {name!r} of {group.name!r} is no text")
    long = elements * around if text.length is None else attribute.get_storage_size()
    if long > (MAX_VARIABLE if text.length is None else MAX_TEXTS):
        raise _fault(path, member, f"attribute {name!r} of {group.name!r} is too large")
    value = group.attrs[name]
    values = [value] if isinstance(value, (str, bytes)) else value.ravel().tolist()
    return [each.decode("utf-8") if isinstance(each, bytes) else str(each) for each in values]


def _length(path: Path) -> int:
    return path.stat().st_size


def _bytes(tensor: Tensor) -> int:
    import numpy as np

    return tensor.elements * (2 if tensor.dtype == "bfloat16" else np.dtype(tensor.dtype).itemsize)


def _address(thing: Any) -> tuple[int, int]:
    import h5py

    info = h5py.h5o.get_info(thing.id)
    return info.fileno, info.addr


def _header_bytes(thing: Any) -> int:
    """How much of the file an object takes, but for numbers and texts."""
    import h5py

    info = h5py.h5o.get_info(thing.id)
    sizes = info.meta_size
    return int(info.hdr.space.total + sizes.obj.index_size + sizes.obj.heap_size)


class _Window(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, file: io.FileIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._at)]
        self._file.seek(self._start + self._at)
        count = self._file.readinto(view) or 0
        self._at += count
        return count


@contextmanager
def _source(path: Path, member: str) -> Iterator[Any]:
    """What h5py opens: a path, or a file within a file."""
    if not member:
        yield path
        return
    with opened(path) as archive:
        start = archive.where(member)
        size = archive.members[member]
        if start is None:
            yield io.BytesIO(archive.read(member, MAX_COMPRESSED))
            return
    with io.FileIO(path, "rb") as file:
        yield _Window(file, start, size)


def _guarded(path: Path, member: str, use: Callable[[Any], Result]) -> Result:
    """Open the file, and use it; what HDF5 and h5py find wrong is an error of the file."""
    try:
        import h5py
    except ImportError:
        raise MissingExtraError("h5py", "keras", f"to read {path}") from None
    try:
        with _source(path, member) as source, h5py.File(source, "r") as file:
            return use(file)
    except ModelFormatError:
        raise
    except FileNotFoundError:
        raise
    except MemoryError:
        raise _fault(path, member, "needs more memory than there is") from None
    except Exception as error:  # noqa: BLE001  h5py raises whatever fits what HDF5 says
        said = " ".join(str(error).split())[:160]
        raise _fault(path, member, f"damaged HDF5: {said}") from None


def _tensor(path: Path, member: str, name: str, dataset: Any) -> Tensor:
    dtype = _checked(path, member, name, dataset)
    shape = tuple(int(length) for length in dataset.shape)
    return Tensor(name, shape, dtype, partial(_numbers, path, member, name, shape, dtype))


def _checked(path: Path, member: str, name: str, dataset: Any) -> str:
    """The type of an array that may be read."""

    def fault(message: str) -> ModelFormatError:
        return _fault(path, member, f"array {name!r} {message}")

    if dataset.shape is None:
        raise fault("has no shape")
    plist = dataset.id.get_create_plist()
    if dataset.is_virtual:
        raise fault("is a virtual dataset, which reads other files")
    if plist.get_external_count():
        raise fault("keeps its numbers in another file, which is not read")
    filters = [plist.get_filter(at)[0] for at in range(plist.get_nfilters())]
    if not set(filters) <= FILTERS:
        raise fault(f"is compressed by filter {max(filters)}; deflate is read")
    dtype = dataset.dtype
    if dtype.kind == "V" and dtype.itemsize == 2 and _says_bfloat16(dataset):
        known = "bfloat16"
    elif dtype.kind in "fiub" and dtype.itemsize <= 8:
        known = str(dtype.newbyteorder("="))
    else:
        raise fault(f"is {str(dtype)[:80]}, which is no array of numbers")
    declared, stored = prod(dataset.shape) * dtype.itemsize, dataset.id.get_storage_size()
    if declared > (max(FREE_BYTES, MAX_RATIO * stored) if filters else stored):
        raise fault(f"says that it has {declared:,} bytes, and {stored:,} are stored")
    if stored > _length(path):
        raise fault(f"says that {stored:,} bytes of it are stored, more than the file has")
    if dataset.chunks and prod(dataset.chunks) * dtype.itemsize > max(FREE_BYTES, declared):
        raise fault(f"has pieces of {dataset.chunks}, larger than itself")
    return known


def _says_bfloat16(dataset: Any) -> bool:
    if "dtype" not in dataset.attrs or dataset.attrs.get_id("dtype").shape != ():
        return False
    return str(dataset.attrs["dtype"]) == "bfloat16"


def _numbers(path: Path, member: str, name: str, shape: tuple[int, ...], dtype: str) -> Array:
    def read(file: Any) -> Array:
        import h5py
        import numpy as np

        # Every link was looked at when the file was walked; in the meantime somebody may have changed the file.
        dataset = file.get(name, getlink=False)
        if not isinstance(dataset, h5py.Dataset):
            raise _fault(path, member, f"array {name!r} is gone")
        if (dataset.shape, _checked(path, member, name, dataset)) != (shape, dtype):
            raise _fault(path, member, f"array {name!r} has changed since the file was looked at")
        numbers: Array
        if dtype == "bfloat16":
            numbers = np.empty(shape, np.uint16)
            if numbers.size:
                numbers = np.asarray(dataset[()]).view("<u2")
            return (numbers.astype(np.uint32) << 16).view(np.float32)
        numbers = np.asarray(dataset[()])
        return numbers.astype(numbers.dtype.newbyteorder("="), copy=False)

    return _guarded(path, member, read)
