"""Model files: which reader a file is for, by its content; what is in it; a layer from it; a layer into one."""

from __future__ import annotations

import os
import stat
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusedrnn.errors import ModelFormatError
from fusedrnn.formats.contents import Contents
from fusedrnn.formats.zipped import MAGIC, opened

if TYPE_CHECKING:
    from fusedrnn.layers import Layer

__all__ = ["inspect", "load", "read", "save"]

#: The readers, in the order in which they are asked whether a file is theirs: modules of this folder, each with
#: ``recognises(head: bytes, members: frozenset[str]) -> bool`` and ``read(path: Path, *, external_data: bool) -> Contents``.
#: ``head`` is how the file begins; ``members`` are the names in it, if it is a zip archive.
READERS = ("safetensors_file", "torch_file", "keras_file", "npz_file", "onnx_file")
#: How much of a file's beginning a reader is shown.
HEAD_BYTES = 4096
#: Suffixes of the formats that are read, and not written by :func:`save`.
OTHER_SUFFIXES = (".pt", ".pth", ".onnx", ".keras", ".h5", ".npz")


def inspect(path: str | os.PathLike[str], *, external_data: bool = False) -> Contents:
    """What a model file holds: recurrent layers with their sizes, the rest by kind, and what is not understood.

    No weights are read, and nothing in the file is executed. The format is recognised by the content.

    Parameters
    ----------
    path
        A PyTorch checkpoint (``.pt``, ``.pth``), safetensors, ONNX, Keras (``.keras``, ``.h5``) or ``.npz``.
    external_data
        Of an ONNX model: whether weights in other files of the model's own folder may be read.

    Raises
    ------
    ModelFormatError
        If the file is none of these, is damaged, or would have to be executed; the message says which.
    OSError
        If the file cannot be read.
    """
    return read(Path(path), external_data=external_data)


def load(
    path: str | os.PathLike[str],
    name: str | None = None,
    *,
    external_data: bool = False,
    **options: Any,
) -> Layer[Any]:
    """A recurrent layer from a model file.

    Parameters
    ----------
    path, external_data
        As in :func:`inspect`.
    name
        Which one, as :func:`inspect` names it; not needed where there is one only.
    **options
        Those of :meth:`Layer.from_weights`, before what the file says: ``backend``, ``threads``, ``batch_first``,
        ``weight_dtype``. Weights are float32 by default, whatever the file has, but for a narrow layer of :func:`save`, and
        for integers that int8 holds: ONNX Runtime's DynamicQuantizeLSTM.

    Raises
    ------
    ModelFormatError, ValueError
        As in :func:`inspect`; or if there are several layers and no name: the message lists them.
    """
    return read(Path(path), external_data=external_data).find(name).layer(**options)


def save(layer: Layer[Any], path: str | os.PathLike[str]) -> None:
    """Write a layer to a safetensors file, whole or not at all. :func:`load` gives the same layer again.

    Parameters
    ----------
    layer
        Any layer. Its weights have PyTorch's names; its options stand in the file's metadata. Narrow matrices are
        written in their own type; those of int8 with an array of scales each, ``weight_ih_l0_scale``.
    path
        Where to write it.

    Raises
    ------
    ValueError
        If the suffix is that of another format.
    OSError
        If it cannot be written there.
    """
    from fusedrnn.formats.safetensors_file import write
    from fusedrnn.layers import Layer

    suffix = Path(path).suffix.lower()
    if suffix in OTHER_SUFFIXES:
        raise ValueError(
            f"save writes safetensors, which {suffix} is not; see fr.to_onnx and fr.to_state_dict for other formats"
        )
    if not isinstance(layer, Layer):
        raise TypeError(f"layer must be a layer of this package, not {type(layer).__name__}")
    write(layer, Path(path))


def read(path: Path, *, external_data: bool = False) -> Contents:
    """The contents of a file, by the reader that recognises it."""
    kind = path.stat().st_mode
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):  # it might never begin, or never end
        raise ModelFormatError(f"{path}: not a regular file; copy it into one first")
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    members: frozenset[str] = frozenset()
    if head.startswith(MAGIC):
        with opened(path) as archive:
            members = frozenset(archive.members)
    for name in READERS:
        reader = import_module(f"fusedrnn.formats.{name}")
        if reader.recognises(head, members):
            contents: Contents = reader.read(path, external_data=external_data)
            return contents
    raise ModelFormatError(
        f"{path}: not a model file of a known format: PyTorch checkpoint, safetensors, ONNX, Keras (.keras, .h5), .npz"
    )
