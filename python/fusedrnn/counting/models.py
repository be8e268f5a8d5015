"""What a model costs that somebody already has: a model file, a PyTorch module, a description; and :func:`count` of anything.

A model file's contents become a :class:`~fusedrnn.counting.network.Network`, so that a file and a description print the same
tables. Recurrent layers are counted from their architecture, exactly; of other parts the reader of the format says what
is known.

This module is plain Python: counting needs neither NumPy nor the C extension, and never imports PyTorch.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

from fusedrnn.architecture import Architecture
from fusedrnn.cells import CELLS
from fusedrnn.counting import counts
from fusedrnn.counting.counts import Complexity, HasArchitecture
from fusedrnn.counting.network import Array, Layer, Network, NetworkComplexity, Tied
from fusedrnn.formats.contents import Contents, FoundLayer, Part, Tensor

__all__ = ["count", "is_model_file", "network", "read"]

#: What a file ends in whose name says that it is a model, whatever is in it.
SUFFIXES = (".pt", ".pth", ".safetensors", ".onnx", ".keras", ".h5", ".hdf5", ".npz")
#: How much of a file's beginning tells text from a model.
HEAD_BYTES = 512
#: Control characters that text may have: tab, line feed, form feed, carriage return, and that of old terminals.
IN_TEXT = b"\t\n\f\r\x1b"
#: Kinds of parts that have no product of matrices: a lookup is none, and elementwise operations are none.
WITHOUT_MACS = ("embedding", "normalisation")


@overload
def count(model: Literal["rnn", "lstm", "gru", "clockwork"], **options: Any) -> Complexity: ...


@overload
def count(model: Architecture | HasArchitecture, **options: Any) -> Complexity: ...


@overload
def count(model: Contents, **options: Any) -> NetworkComplexity: ...


@overload
def count(model: Any, **options: Any) -> Any: ...


def count(
    model: Any,
    *,
    steps: int = 1,
    batch: int = 1,
    tied: Tied = "once",
    external_data: bool = False,
    **given: Any,
) -> Complexity | NetworkComplexity:
    """Count what a recurrent network, or a whole model, costs.

    Parameters
    ----------
    model
        Of one cell: its name, whose sizes then follow as keywords; an :class:`~fusedrnn.architecture.Architecture`; or a
        layer (anything with an ``architecture``). A whole model: the path of a model file (see
        :func:`fusedrnn.inspect`) or of a network as TOML; what ``inspect`` gives; or a PyTorch module.
    steps
        T: steps of a sequence, >= 1.
    batch
        B: sequences side by side, >= 1.
    lengths
        Of one cell: steps of each sequence, >= 0 and not all 0, where they differ; instead of ``steps`` and ``batch``.
    weight_dtype
        Of one cell: type of the matrix weights, which only the bytes depend on: "float32", "float16", "bfloat16", "int8", "w8a7".
    rate
        Of one cell: steps per second, for the figures per second.
    backward
        Of one cell: count the matrix products of the backward pass too: ``backward_macs``, ``training_macs``.
    tied
        Of a whole model: count weights that several layers share "once" or "twice".
    external_data
        Of an ONNX model: whether other files of the model's own folder may be read.
    **sizes
        With a cell's name, the fields of :class:`~fusedrnn.architecture.Architecture`: ``input_size``,
        ``hidden_size``, ``num_layers``, ``bidirectional``, ``proj_size``, ``bias``, ...

    Returns
    -------
    Complexity or NetworkComplexity
        The latter for a whole model. Where the MACs of a layer of it are not known, ``macs_per_step`` and ``macs`` are
        None, and ``known_macs_per_step`` and ``known_macs`` are what is known.

    Raises
    ------
    TypeError, ValueError
        For a model, size or option that is unknown, missing or out of range.
    ModelFormatError
        For a file that is damaged, or would have to be executed.
    OSError
        For a file that cannot be read.

    Examples
    --------
    >>> count("lstm", input_size=1500, hidden_size=1500).parameters
    18006000
    >>> count("model.onnx", steps=100).known_macs    # doctest: +SKIP
    1234500
    """
    made = _whole_model(model, steps, external_data)
    if made is None:
        if tied != "once" or external_data:
            raise TypeError("tied and external_data go with a whole model, not with one cell")
        return counts.count(model, steps=steps, batch=batch, **given)
    if given:
        raise TypeError(f"{', '.join(given)}: not with a whole model, which says its own sizes")
    return made.count(steps=steps, batch=batch, tied=tied)


def _whole_model(model: Any, steps: int, external_data: bool) -> Network | None:
    """The network that a model is; None if it is one cell, or nothing."""
    if isinstance(model, Contents):
        return network(model)
    if isinstance(model, str) and (model in CELLS or not _is_path(model)):
        return None
    if isinstance(model, (str, os.PathLike)):
        return read(model, external_data=external_data)
    torch = sys.modules.get("torch")  # an object of its classes is not there without it
    if torch is not None and isinstance(model, torch.nn.Module):
        from fusedrnn.counting.modules import network_of

        return network_of(model, steps=steps)
    return None


def _is_path(text: str) -> bool:
    """Whether a text is rather a path than the name of a cell."""
    return os.path.lexists(text) or bool({".", "/"} & set(text))


# ---- files ---------------------------------------------------------------------------------------


def read(path: str | os.PathLike[str], *, external_data: bool = False) -> Network:
    """The network of a model file, or of a description as TOML; the path ``-`` is a description on standard input.

    Raises
    ------
    OSError, ValueError
        If the file cannot be read, or is damaged; the message begins with the path.
    """
    if is_model_file(path):
        from fusedrnn.formats import files

        return network(files.read(Path(path), external_data=external_data))
    from fusedrnn.counting import network_file

    return network_file.load(os.fspath(path))


def is_model_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a model rather than a description: by its name, or because it is not text.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    if os.fspath(path) == "-":
        return False
    if Path(path).suffix.lower() in SUFFIXES:
        return True
    # What is read from a pipe is gone: a pipe has descriptions only.
    if not stat.S_ISREG(os.stat(path).st_mode):
        return False
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    return any(byte < 0x20 and byte not in IN_TEXT for byte in head)


# ---- contents ------------------------------------------------------------------------------------


def network(contents: Contents) -> Network:
    """What a model file holds, as a network: recurrent layers first, then the other parts."""
    seen: dict[str, str] = {}
    layers = [_recurrent(layer, seen) for layer in contents.layers]
    layers += [_part(part, seen) for part in contents.parts]
    constants = [tensor for tensor in contents.constants if tensor.array not in seen]
    return Network(
        name=contents.path or "model",
        layers=tuple(layers),
        origin=contents.format,
        constants=tuple(_array(tensor, bias=False) for tensor in constants),
        notes=contents.notes,
    )


def _recurrent(found: FoundLayer, seen: dict[str, str]) -> Layer:
    architecture = found.architecture
    complexity = counts.count(architecture)
    name = found.name or architecture.cell
    stored, shared = _stored(found.tensors, name, seen)
    # Only a name that ends as the canonical one says which of them a tensor is.
    arrays = tuple(
        Array(
            weight.name,
            weight.shape,
            weight.kind == "bias",
            weight.elements,
            _sharer(weight.name, shared, whole=len(shared) == len(found.tensors)),
        )
        for weight in architecture.weights()
    )
    notes = list(found.notes)
    own = sum(array.elements for array in arrays if not array.shared)
    if stored > own:
        notes.append(f"{stored - own:,} elements are stored beside the parameters")
    return Layer(
        name=name,
        kind=architecture.cell,
        reads=(),
        input_size=architecture.input_size,
        output_size=architecture.output_size,
        arrays=arrays,
        macs_per_step=complexity.macs_per_step,
        peak_macs_per_step=complexity.peak_macs_per_step,
        note="; ".join(notes),
        stored=stored,
    )


def _sharer(name: str, shared: dict[str, str], *, whole: bool) -> str | None:
    """The layer that a canonical array is shared with, or None."""
    if whole:
        return next(iter(shared.values()), None)
    return next((other for tensor, other in shared.items() if tensor.endswith(name)), None)


def _part(part: Part, seen: dict[str, str]) -> Layer:
    name = part.name or part.kind
    stored, shared = _stored(part.tensors, name, seen)
    macs = 0 if part.kind in WITHOUT_MACS else part.macs_per_step
    return Layer(
        name=name,
        kind=part.kind,
        reads=(),
        input_size=None,
        output_size=None,
        arrays=tuple(
            _array(tensor, bias=tensor.name in part.biases, shared=shared.get(tensor.name))
            for tensor in part.tensors
        ),
        macs_per_step=macs,
        peak_macs_per_step=macs,
        note=part.note,
        stored=stored,
    )


def _stored(
    tensors: Sequence[Tensor], name: str, seen: dict[str, str]
) -> tuple[int, dict[str, str]]:
    """Elements of the tensors that no earlier layer has; and which layer has each of the others."""
    shared = {tensor.name: seen[tensor.array] for tensor in tensors if tensor.array in seen}
    stored = sum(tensor.elements for tensor in tensors if tensor.name not in shared)
    seen.update({tensor.array: name for tensor in tensors if tensor.name not in shared})
    return stored, shared


def _array(tensor: Tensor, *, bias: bool, shared: str | None = None) -> Array:
    return Array(tensor.name, tensor.shape, bias, tensor.elements, shared)
