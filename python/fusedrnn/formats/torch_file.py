"""PyTorch checkpoints, without PyTorch, and without executing anything.

A ``.pt`` file is a zip archive: ``data.pkl``, a pickle of dictionaries and tensors, and a member of raw bytes for each
storage. A pickle is a program that may call any function. The reader here knows those that build a tensor, a parameter
and an ordered dictionary, none of which does anything but remember what it was given, and the names of storages; every
other name is refused, and no other way is tried afterwards. The instructions are looked through before the first one is
followed. What they build cannot be changed by them, and sizes, offsets and strides are checked against the bytes that are
there.

Whole modules, TorchScript and the formats before PyTorch 1.6 are refused by name.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import sys
from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fusedrnn.errors import ModelFormatError
from fusedrnn.formats.contents import Contents, Tensor
from fusedrnn.formats.torch_state import contents
from fusedrnn.formats.zipped import MAGIC, Archive, opened

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["read", "recognises"]

PICKLE = "data.pkl"
#: Bytes of the pickle: names, shapes and small values, no numbers of tensors.
MAX_PICKLE = 16 * 2**20
#: The most axes of a tensor, nested levels of dictionaries, and values in them.
MAX_AXES, MAX_LEVELS, MAX_VALUES = 32, 64, 4_000_000
#: The instructions of a pickle that are followed: those that PyTorch writes.
INSTRUCTIONS = frozenset(
    [
        "PROTO",
        "FRAME",
        "NEWOBJ",
        "STOP",
        "MARK",
        "POP",
        "GLOBAL",
        "STACK_GLOBAL",
        "REDUCE",
        "BUILD",
        "BINPERSID",
        "NONE",
        "NEWTRUE",
        "NEWFALSE",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "BINFLOAT",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
        "BINBYTES",
        "SHORT_BINBYTES",
        "EMPTY_DICT",
        "SETITEM",
        "SETITEMS",
        "EMPTY_LIST",
        "APPEND",
        "APPENDS",
        "EMPTY_TUPLE",
        "TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
        "EMPTY_SET",
        "ADDITEMS",
        "BINPUT",
        "LONG_BINPUT",
        "MEMOIZE",
        "BINGET",
        "LONG_BINGET",
    ]
)
#: PyTorch's classes of storages: NumPy's name of a number, and bytes.
STORAGES = {
    "DoubleStorage": ("float64", 8),
    "FloatStorage": ("float32", 4),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
}
SAVE_STATE = "save its weights instead, torch.save(model.state_dict(), path)"
#: How pickles begin, those of protocol 2 to 5, and tar archives have this further behind.
OLD_PICKLE, TAR = b"\x80", b"ustar"


def recognises(head: bytes, members: frozenset[str]) -> bool:
    """Whether an archive has a ``data.pkl``, or a file begins as an older checkpoint does."""
    if members:
        return any(name.rpartition("/")[2] == PICKLE for name in members)
    return (head.startswith(OLD_PICKLE) and head[1:2] in b"\x02\x03\x04\x05") or head[
        257:262
    ] == TAR


def read(path: Path, *, external_data: bool = False) -> Contents:
    """What the file holds: the tensors of all its dictionaries, whose keys are joined by dots.

    Raises
    ------
    ModelFormatError
        If it is a whole module, TorchScript or an older format; if it asks for anything but dictionaries and tensors;
        if a tensor does not lie in its storage.
    """
    with path.open("rb") as file:
        zipped = file.read(len(MAGIC)) == MAGIC
    if not zipped:
        raise ModelFormatError(
            f"{path}: a pickle or archive of before PyTorch 1.6, which would have to be executed; load it with PyTorch "
            f"and {SAVE_STATE}"
        )
    with opened(path) as archive:
        folder = _folder(path, archive)
        found = _Checkpoint(path, archive, folder).load()
    tensors: dict[str, Tensor] = {}
    for name, tensor in _flattened(path, found, [MAX_VALUES]):
        if name in tensors:
            raise ModelFormatError(f"{path}: two tensors are called {name!r}")
        tensors[name] = tensor
    return contents(str(path), "PyTorch checkpoint", tensors)


def _folder(path: Path, archive: Archive) -> str:
    """The folder of the archive that holds everything, with its slash."""
    pickles = [name for name in archive.members if name.rpartition("/")[2] == PICKLE]
    if len(pickles) > 1:
        raise ModelFormatError(f"{path}: several {PICKLE}: {', '.join(map(repr, pickles[:4]))}")
    folder = pickles[0].removesuffix(PICKLE)
    if any(name.startswith(f"{folder}code/") for name in archive.members):
        raise ModelFormatError(
            f"{path}: TorchScript, which would have to be executed; {SAVE_STATE}"
        )
    order = f"{folder}byteorder"
    if order in archive.members and archive.read(order, 16).strip() != b"little":
        raise ModelFormatError(
            f"{path}: written by a machine of the other byte order, which is not read"
        )
    return folder


def _flattened(
    path: Path, found: object, left: list[int], prefix: str = "", level: int = 0
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of dictionaries and lists in each other. Other values, numbers and texts, are left out.

    ``left`` counts down the values: a few lists that hold each other can stand for any number of them.
    """
    if level > MAX_LEVELS:
        raise ModelFormatError(f"{path}: dictionaries nested more than {MAX_LEVELS} deep")
    if isinstance(found, _Tensor):
        yield prefix.removesuffix("."), found.named(prefix.removesuffix("."))
        return
    if isinstance(found, dict):
        inner = found.items()
    elif isinstance(found, (list, tuple)):
        inner = dict(enumerate(found)).items()
    else:
        return
    for key, value in inner:
        left[0] -= 1
        if not left[0]:
            raise ModelFormatError(
                f"{path}: dictionaries and lists of more than {MAX_VALUES:,} values"
            )
        if isinstance(key, (str, int)):
            yield from _flattened(path, value, left, f"{prefix}{key}.", level + 1)


# ---- the pickle ----------------------------------------------------------------------------------


# Named tuples: no instruction of a pickle can change one.
class _StorageType(NamedTuple):
    """The class of a storage, as the pickle names it."""

    name: str


class _Storage(NamedTuple):
    """A storage: its member of the archive, and how many numbers of which type it has."""

    member: str
    dtype: str
    item: int
    numbers: int


class _Tensor(NamedTuple):
    """A tensor: a view of a storage."""

    path: Path
    start: int
    storage: _Storage
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def named(self, name: str) -> Tensor:
        """The same as every reader gives it."""
        # Two names of one parameter are two tensors of one storage.
        array = f"{self.start} {self.storage.dtype} {self.shape} {self.strides}"
        return Tensor(name, self.shape, self.storage.dtype, partial(self._array, name), array)

    def _array(self, name: str) -> Array:
        import numpy as np

        storage, wide = self.storage, self.storage.dtype == "bfloat16"
        kind = np.dtype("<u2" if wide else storage.dtype).newbyteorder("<")
        if not prod(self.shape):
            return np.empty(self.shape, np.float32 if wide else kind)
        span = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        try:
            mapped = np.memmap(self.path, kind, "r", self.start, (span,))
        except ValueError:
            raise ModelFormatError(
                f"{self.path}: tensor {name!r} ends behind the end of the file"
            ) from None
        steps = [step * storage.item for step in self.strides]
        view: Array = np.lib.stride_tricks.as_strided(mapped, self.shape, steps, writeable=False)
        return (view.astype(np.uint32) << 16).view(np.float32) if wide else view


class _Function:
    """A function that a pickle may call, and not change."""

    __slots__ = ("_function",)

    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a function of a pickle cannot be changed")

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)


class _Dictionary(dict[Any, Any]):
    """An ordered dictionary, without the attributes that a pickle may give one (PyTorch's ``_metadata``)."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class _Checkpoint(pickle.Unpickler):
    """Reads a pickle of dictionaries and tensors, and refuses all else."""

    def __init__(self, path: Path, archive: Archive, folder: str) -> None:
        program = archive.read(f"{folder}{PICKLE}", MAX_PICKLE)
        super().__init__(io.BytesIO(program))
        self._path, self._archive, self._folder = path, archive, folder
        self._program = program

    def load(self) -> Any:
        """The object."""
        try:
            self._look_through()
            return super().load()
        except ModelFormatError:
            raise
        except RecursionError:
            raise ModelFormatError(f"{self._path}: {PICKLE} is nested too deep") from None
        except MemoryError:
            raise ModelFormatError(
                f"{self._path}: {PICKLE} asks for more memory than there is"
            ) from None
        except Exception as error:  # noqa: BLE001  whatever a damaged pickle makes of harmless functions
            said = " ".join(str(error).split())[:120]
            raise ModelFormatError(f"{self._path}: {PICKLE} is damaged: {said}") from None

    def _look_through(self) -> None:
        """Refuse instructions that PyTorch does not write, and a memo of more places than the pickle has bytes."""
        for instruction, argument, _ in pickletools.genops(self._program):
            if instruction.name not in INSTRUCTIONS:
                raise ModelFormatError(
                    f"{self._path}: {PICKLE} has the instruction {instruction.name}, which PyTorch does not write; "
                    f"{SAVE_STATE}"
                )
            if instruction.name == "LONG_BINPUT" and int(argument or 0) > len(self._program):
                raise ModelFormatError(f"{self._path}: {PICKLE} is damaged: memo {argument:,}")

    def find_class(self, module: str, name: str, /) -> Any:
        """What a pickle may call, or an error that names what was asked for."""
        if (module, name) == ("collections", "OrderedDict"):
            return _Function(_dictionary)
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Function(self._tensor)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _Function(_parameter)
        if module in ("torch", "torch.storage") and name in STORAGES:
            return _StorageType(name)
        what = f"{module}.{name}"
        if what == "torch.ScriptObject":
            raise ModelFormatError(
                f"{self._path}: weights that are packed for PyTorch's own kernels ({what!r}), as those of quantize_dynamic: "
                "load the module with PyTorch, and give it to fr.from_torch"
            )
        if module.startswith("torch.") and ".modules." in module or module == "__main__":
            raise ModelFormatError(
                f"{self._path}: a whole module ({what!r:.80}), which would have to be executed; {SAVE_STATE}"
            )
        raise ModelFormatError(
            f"{self._path}: asks for {what!r:.80}, and nothing but dictionaries and tensors is read; {SAVE_STATE}"
        )

    def persistent_load(self, pid: Any, /) -> _Storage:
        """A storage, whose bytes are a member of the archive."""
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise ModelFormatError(
                f"{self._path}: {PICKLE} refers to what is no storage: {pid!r:.80}"
            )
        _, kind, key, _, count = pid
        if not isinstance(kind, _StorageType) or not isinstance(key, str) or type(count) is not int:
            raise ModelFormatError(f"{self._path}: {PICKLE} has a damaged storage: {pid!r:.80}")
        dtype, item = STORAGES[kind.name]
        member = f"{self._folder}data/{key}"
        size = self._archive.members.get(member)
        if size is None:
            raise ModelFormatError(f"{self._path}: the storage {member!r:.80} is missing")
        if count < 0 or size != count * item:
            raise ModelFormatError(
                f"{self._path}: the storage {member!r:.80} has {size:,} bytes, not {count:,} numbers of {dtype}"
            )
        return _Storage(member, dtype, item, count)

    def _tensor(
        self, storage: object, offset: object, shape: object, strides: object, *_: object
    ) -> _Tensor:
        first, lengths, steps = _sizes((offset,)), _sizes(shape), _sizes(strides)
        if not isinstance(storage, _Storage) or first is None:
            raise ModelFormatError(f"{self._path}: a tensor without a storage")
        if lengths is None or steps is None or not len(lengths) == len(steps) <= MAX_AXES:
            raise ModelFormatError(
                f"{self._path}: a tensor of shape {shape!r:.80} with strides {strides!r:.80}"
            )
        last = first[0] + sum((n - 1) * step for n, step in zip(lengths, steps, strict=True))
        # A stride of 0 would make a few numbers as large a tensor as anyone likes.
        if prod(lengths) and (last >= storage.numbers or prod(lengths) > storage.numbers):
            raise ModelFormatError(
                f"{self._path}: a tensor of shape {lengths!r:.80} from {first[0]} on, with strides {steps!r:.80}, does not "
                f"lie in its storage of {storage.numbers:,} numbers"
            )
        start = self._archive.where(storage.member)
        if start is None:
            raise ModelFormatError(
                f"{self._path}: {storage.member!r:.80} is compressed, which PyTorch does not write"
            )
        return _Tensor(self._path, start + first[0] * storage.item, storage, lengths, steps)


def _sizes(values: object) -> tuple[int, ...] | None:
    """A tuple of sizes, or None for anything else."""
    if isinstance(values, tuple) and all(
        type(each) is int and 0 <= each <= sys.maxsize for each in values
    ):
        return values
    return None


def _dictionary(*items: Any) -> _Dictionary:
    if items not in ((), ([],)):
        raise ModelFormatError(f"an ordered dictionary of {len(items)} arguments")
    return _Dictionary()


def _parameter(data: object, *_: object) -> object:
    return data
