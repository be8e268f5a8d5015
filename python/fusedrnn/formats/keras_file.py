"""The reader of Keras models: ``.keras`` archives, and the ``.h5`` files of Keras 1, 2 and 3.

Both are a configuration (JSON) and arrays (HDF5), and both are read as data: Keras is not imported, and no code in them is
loaded. Which arrays are whose follows the rules by which Keras itself loads them: see :mod:`fusedrnn.formats.keras_weights`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusedrnn.errors import ModelFormatError
from fusedrnn.formats.contents import Contents, FoundLayer, Part, Tensor
from fusedrnn.formats.hdf5 import MAGIC, Hdf5, walk
from fusedrnn.formats.keras_cells import (
    RECURRENT,
    Cell,
    NotUnderstood,
    cell_of,
    found,
    guessed,
)
from fusedrnn.formats.keras_parts import part_of
from fusedrnn.formats.keras_weights import Listed, Tree, Weights
from fusedrnn.formats.zipped import opened
from fusedrnn.shapes import listed

if TYPE_CHECKING:
    from fusedrnn.layers import Layer

__all__ = ["from_keras", "read", "recognises"]

CONFIG, METADATA, ARRAYS = "config.json", "metadata.json", "model.weights.h5"
#: Bytes of a configuration.
MAX_JSON = 32 * 2**20
#: Models in models.
MAX_DEPTH = 64
#: Classes that hold layers.
MODELS = ("Sequential", "Functional", "Model")
#: Said of a layer without a configuration.
DEFAULTS = "no configuration: activations are Keras' defaults"
#: The arrays of a cell by the numbers that Keras 3 gives them.
NUMBERED = {"0": "kernel", "1": "recurrent_kernel", "2": "bias"}
#: Groups of a file that are about training.
TRAINING = (
    *("optimizer", "optimizer_weights", "metrics", "compile_metrics", "_compile_metrics"),
    *("loss_tracker", "_loss_tracker", "_metrics"),
)


def recognises(head: bytes, members: frozenset[str]) -> bool:
    """Whether a file is HDF5, or an archive that Keras writes."""
    return head.startswith(MAGIC) or {CONFIG, METADATA} <= members


def read(path: Path, *, external_data: bool = False) -> Contents:
    """What the file holds.

    Raises
    ------
    ModelFormatError
        If it is damaged or leads out of itself, or if arrays are missing, left over or of another shape; the message lists
        them.
    MissingExtraError
        Without h5py.
    """
    with path.open("rb") as file:
        archive = not file.read(len(MAGIC)).startswith(MAGIC)
    try:
        return _of_archive(path) if archive else _of_hdf5(path)
    except RecursionError:
        raise ModelFormatError(f"{path}: its configuration is nested too deeply") from None


def from_keras(layer: Any, name: str | None = None, **options: Any) -> Layer[Any]:
    """A layer from one of Keras that is in memory: SimpleRNN, LSTM, GRU, RNN of their cells, or Bidirectional of these.

    Parameters
    ----------
    layer
        A built layer, or a model.
    name
        Of a model: which of its layers, as :func:`fusedrnn.inspect` would name it.
    **options
        Those of :meth:`Layer.from_weights`, before what Keras says: ``backend``, ``threads``, ``batch_first``.

    Returns
    -------
    Layer
        With a copy of the weights; ``batch_first``, as Keras is.

    Raises
    ------
    ValueError
        If the layer is not built or not one that this package has; or if there are several and no name: the message lists
        them.
    """
    if not callable(getattr(layer, "get_config", None)) or not hasattr(layer, "get_weights"):
        raise TypeError(f"layer must be a layer of Keras, not {type(layer).__name__}")
    if not layer.built:
        raise ValueError(f"layer {layer.name!r} is not built and has no weights: call it first")
    package = sys.modules.get(type(layer).__module__.partition(".")[0])
    reader = _Reader("", getattr(package, "__version__", None))
    inside = {each.name: _named(each) for each in getattr(layer, "layers", ())}
    node = {"class_name": type(layer).__name__, "config": layer.get_config()}
    weights = Listed(reader.fault, _named(layer), inside if node["class_name"] in MODELS else None)
    reader.layer(node, weights, "" if inside else layer.name, 0)
    return reader.contents("Keras", {}, []).find(name).layer(**options)


def _named(layer: Any) -> tuple[tuple[str, Tensor], ...]:
    """The arrays of a layer in memory by name."""
    arrays = layer.get_weights()
    names = [getattr(each, "path", each.name) for each in layer.weights]
    return tuple(
        (name, Tensor(name, array.shape, str(array.dtype), partial(_itself, array)))
        for name, array in zip(names, arrays, strict=True)
    )


def _itself(array: Any) -> Any:
    return array


# ---- the two forms -------------------------------------------------------------------------------


def _of_archive(path: Path) -> Contents:
    with opened(path) as archive:
        if ARRAYS not in archive.members:
            raise archive.fault(f"no {ARRAYS}: weights in several files are not read")
        config = _json(path, archive.read(CONFIG, MAX_JSON), CONFIG)
        metadata = _json(path, archive.read(METADATA, MAX_JSON), METADATA)
    said = metadata.get("keras_version")
    version = said if isinstance(said, str) else None
    file = walk(path, ARRAYS, ("name",))
    tensors = {
        # As Keras 2.12 called it.
        re.sub("(^|/)_layer_checkpoint_dependencies/", r"\1layers/", name): tensor
        for name, tensor in file.tensors.items()
    }
    reader = _Reader(str(path), version)
    kept, training = _without_training(tensors)
    reader.model(config, Tree.of(file, kept), "", 0)
    return reader.contents(f"Keras {version or 'of an unknown version'}, .keras", kept, training)


def _of_hdf5(path: Path) -> Contents:
    file = walk(path, texts=("keras_version", "model_config", "weight_names"))
    group = "model_weights" if "model_weights" in file.groups else ""
    version = file.text("", "keras_version") or file.text(group, "keras_version")
    form = f"Keras {version or 'of an unknown version'}, .h5"
    kept, training = _without_training(file.tensors)
    reader = _Reader(str(path), version)
    text = file.text("", "model_config")
    if text is None:
        return _weights_only(reader, file, kept, training, form)
    config = _json(path, text, "model_config")
    reader.model(config, Listed.of_file(file, group, kept), "", 0)
    return reader.contents(form, kept, training)


def _weights_only(
    reader: _Reader, file: Hdf5, kept: Mapping[str, Tensor], training: list[Tensor], form: str
) -> Contents:
    """A file without a configuration: what the names and shapes tell."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in kept.items():
        place, _, kind = name.rpartition("/")
        kind = kind.partition(":")[0]
        if re.search("(^|/)cell/(.*/)?vars$", place) and kind in NUMBERED:
            kind = NUMBERED[kind]
        groups.setdefault(place, {})[kind] = tensor
    layers: dict[str, list[tuple[Cell, list[Tensor]]]] = {}
    for place, arrays in groups.items():
        name, backwards = _place(place)
        if {"kernel", "recurrent_kernel"} <= set(arrays) <= set(NUMBERED.values()):
            try:
                cell = guessed(arrays, reader.version, backwards)
                ordered = [arrays[kind] for kind in NUMBERED.values() if kind in arrays]
                layers.setdefault(name, []).append((cell, ordered))
                reader.took(ordered)
                continue
            except NotUnderstood as error:
                reader.not_understood(Part(name, "cell", "", tuple(arrays.values())), str(error))
                continue
        reader.add(Part(name, "?", tensors=tuple(arrays.values())))
    for name, cells in layers.items():
        cells.sort(key=lambda each: each[0].backwards)
        pair = len(cells) == 2 and cells[0][0].twin(cells[1][0])
        for number, each in enumerate([cells] if pair else [[each] for each in cells]):
            own = name if pair or len(cells) == 1 else f"{name}/{number}"
            kind = each[0][0].kind
            reader.layers.append(
                found(
                    reader.path,
                    own,
                    f"Bidirectional({kind})" if pair else kind,
                    each,
                    reader.version,
                    notes=() if kind.startswith("CuDNN") else (DEFAULTS,),
                )
            )
    if not reader.version and not layers:
        form = "HDF5"
    return reader.contents(f"{form} (weights only)", kept, training)


def _place(path: str) -> tuple[str, bool]:
    """The name of the layer of a group of arrays, and whether it is the backward one of two directions."""
    parts = [part for part in path.split("/") if part not in ("layers", "vars", "cell", "cells")]
    parts = [part for number, part in enumerate(parts) if part not in parts[:number]]
    backwards = any(part.startswith("backward_") for part in parts)
    at = next((n for n, part in enumerate(parts) if re.match("(for|back)ward_", part)), None)
    if at is not None:
        parts = parts[:at]
    elif (
        "stacked_rnn_cells" not in parts
        and len(parts) > 1
        and re.search(r"_cell(_\d+)?$", parts[-1])
    ):
        parts.pop()
    return "/".join(parts), backwards


def _json(path: Path, text: str | bytes, what: str) -> dict[str, Any]:
    if len(text) > MAX_JSON:
        raise ModelFormatError(f"{path}: {what} has {len(text):,} characters")
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        said = " ".join(str(error).split())[:120]
        raise ModelFormatError(f"{path}: {what} is no JSON: {said}") from None
    if not isinstance(parsed, dict):
        raise ModelFormatError(f"{path}: {what} must be an object, not a {type(parsed).__name__}")
    return parsed


def _without_training(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The arrays of the model, and those of its training."""
    kept = {name: each for name, each in tensors.items() if name.split("/")[0] not in TRAINING}
    return kept, [each for name, each in tensors.items() if name not in kept]


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


# ---- the walk over the configuration -------------------------------------------------------------


class _Reader:
    """What was found so far.

    Attributes
    ----------
    version
        Of the Keras that wrote the file; None if it does not say.
    """

    def __init__(self, path: str, version: str | None) -> None:
        self.path = path
        self.version = version
        self.layers: list[FoundLayer] = []
        self.parts: list[Part] = []
        self.notes: list[str] = []
        self.constants: list[Tensor] = []
        self._taken: set[str] = set()

    def fault(self, message: str) -> ModelFormatError:
        return ModelFormatError(f"{self.path or 'the model'}: {message}")

    def contents(
        self, form: str, tensors: Mapping[str, Tensor], training: list[Tensor]
    ) -> Contents:
        """Everything; an array that is nobody's is an error."""
        left = [each.name for each in tensors.values() if each.name not in self._taken]
        if left:
            raise self.fault(
                f"arrays of no layer of the configuration are left over: {listed(left)}"
            )
        if training:
            self.notes.append(f"{len(training)} arrays of the optimizer and metrics are left out")
        return Contents(
            self.path,
            form,
            tuple(self.layers),
            tuple(self.parts),
            tuple(self.constants),
            tuple(self.notes),
        )

    def took(self, tensors: Any) -> None:
        """Note that arrays belong to something."""
        for tensor in tensors:
            if tensor.name in self._taken:
                raise self.fault(f"array {tensor.name!r} belongs to two layers")
            self._taken.add(tensor.name)

    def add(self, part: Part) -> None:
        self.took(part.tensors)
        self.parts.append(part)

    def not_understood(self, part: Part, why: str) -> None:
        """A recurrent layer that is not read as one."""
        self.add(replace(part, kind="cell", macs_per_step=None, note=why))
        self.notes.append(f"{part.name} is not understood: {why}")

    def model(self, node: object, weights: Weights, name: str, depth: int) -> None:
        """A model: its layers in order."""
        kind, config = self._class(node)
        if depth > MAX_DEPTH:
            raise self.fault(f"models in models, {depth} deep")
        # Keras 1 and 2 write the layers of a Sequential without a configuration around them.
        inside = config if isinstance(config, list) else _mapping(config).get("layers")
        if kind not in MODELS or not isinstance(inside, list):
            rest = weights.rest()
            self.notes.append(
                f"{name or 'the model'} is a {kind}, whose layers the file does not tell"
            )
            if rest:
                self.add(Part(name or kind, "?", kind, tuple(rest)))
            return
        layers = []
        for each in inside:
            inner, options = self._class(each)
            own = each.get("name") if isinstance(each, dict) else None
            if own is None and isinstance(options, dict):
                own = options.get("name")
            layers.append((inner, own if isinstance(own, str) else inner, each))
        places = weights.model([(inner, own) for inner, own, _ in layers])
        for (_, own, each), place in zip(layers, places, strict=True):
            self.layer(each, place, f"{name}/{own}" if name else own, depth + 1)
        self._finish(weights, name)

    def _finish(self, weights: Weights, name: str) -> None:
        """Arrays that a model has itself."""
        own = [tensor for tensor in weights.own() if tensor.name not in self._taken]
        if own:
            self.add(Part(name or "model", "?", "", tuple(own)))

    def layer(self, node: object, weights: Weights, name: str, depth: int) -> None:
        """A layer of any class."""
        kind, config = self._class(node)
        options = _mapping(config)
        if depth > MAX_DEPTH:
            raise self.fault(f"layers in layers, {depth} deep")
        if kind in MODELS:
            self.model(node, weights, name, depth)
        elif kind == "TimeDistributed":
            self.layer(options.get("layer"), weights.child("layer"), name, depth + 1)
            self._finish(weights, name)
        elif kind == "Bidirectional":
            self._bidirectional(options, weights, name)
        elif kind in RECURRENT or kind == "RNN":
            self._recurrent(kind, options, weights, name)
        else:
            if kind == "Masking" or options.get("mask_zero") is True:
                self.notes.append(
                    f"{name} masks steps: Keras holds the state on them; give lengths instead"
                )
            rest = self._weights(weights)
            if rest:
                self.add(part_of(kind, options, name, rest))

    def _recurrent(self, kind: str, options: dict[str, Any], weights: Weights, name: str) -> None:
        """A recurrent layer: as many as it has cells."""
        try:
            cells = self._cells(kind, options)
        except NotUnderstood as error:
            self.not_understood(part_of(kind, options, name, self._weights(weights)), str(error))
            return
        groups = weights.cells([(cell.kind, cell.arrays) for cell in cells], name)
        for number, (cell, tensors) in enumerate(zip(cells, groups, strict=True)):
            own = name if len(cells) == 1 else f"{name}/{cell.name or number}"
            note = () if len(cells) == 1 else (f"cell {number + 1} of {len(cells)} of a stack",)
            self.took(tensors)
            self.layers.append(
                found(self.path, own, kind, [(cell, tensors)], self.version, notes=note)
            )
        self._seeds(weights)

    def _cells(self, kind: str, options: dict[str, Any]) -> list[Cell]:
        """The cells of a recurrent layer, with what the layer says."""
        if kind != "RNN":
            return [cell_of(kind, options, options, self.version)]
        inner, config = self._class(options.get("cell"))
        inside = _mapping(config)
        nodes = [options.get("cell")]
        if inner == "StackedRNNCells":
            several = inside.get("cells")
            nodes = several if isinstance(several, list) else []
        cells = []
        for each in nodes:
            cell, config = self._class(each)
            cells.append(cell_of(cell, _mapping(config), options, self.version))
        if not cells:
            raise NotUnderstood("a stack of no cells")
        return cells

    def _bidirectional(self, options: dict[str, Any], weights: Weights, name: str) -> None:
        kind, config = self._class(options.get("layer"))
        forward = _mapping(config)
        given = options.get("backward_layer")
        if given is not None:
            other, config = self._class(given)
            backward = _mapping(config)
        else:
            other, backward = kind, forward | {"go_backwards": not forward.get("go_backwards")}
        try:
            if kind not in (*RECURRENT, "RNN") or other not in (*RECURRENT, "RNN"):
                raise NotUnderstood(f"Bidirectional of {kind} is not understood")
            cells = [self._cells(kind, forward), self._cells(other, backward)]
        except NotUnderstood as error:
            self.not_understood(
                part_of("Bidirectional", options, name, self._weights(weights)), str(error)
            )
            return
        groups = [
            place.cells([(cell.kind, cell.arrays) for cell in each], name)
            for each, place in zip(
                cells,
                weights.directions([sum(cell.arrays for cell in each) for each in cells]),
                strict=True,
            )
        ]
        for group in groups:
            for tensors in group:
                self.took(tensors)
        mode = options.get("merge_mode", "concat")
        pairs = [list(zip(*pair, strict=True)) for pair in zip(cells, groups, strict=True)]
        (one, two) = pairs
        origin = f"Bidirectional({kind})"
        if (
            mode == "concat"
            and len(one) == len(two) == 1
            and one[0][0].twin(two[0][0])
            and not one[0][0].backwards
        ):
            self.layers.append(found(self.path, name, origin, [one[0], two[0]], self.version))
        else:
            why = (
                f"merge_mode {mode!r}"
                if mode != "concat"
                else "a stack of cells"
                if len(one) > 1
                else "two directions that differ"
            )
            for which, pair in (("forward", one), ("backward", two)):
                for number, each in enumerate(pair):
                    own = f"{name}/{which}" + (f"/{number}" if len(pair) > 1 else "")
                    note = (f"a direction of its own, because of {why}",)
                    self.layers.append(
                        found(self.path, own, origin, [each], self.version, notes=note)
                    )
        self._seeds(weights)

    def _weights(self, weights: Weights) -> list[Tensor]:
        self._seeds(weights)
        return [tensor for tensor in weights.rest() if tensor.name not in self._taken]

    def _seeds(self, weights: Weights) -> None:
        """The random numbers of dropout are no parameters."""
        seeds = [
            tensor
            for tensor in weights.rest()
            if tensor.name not in self._taken and tensor.dtype.startswith("uint")
        ]
        self.took(seeds)
        self.constants += seeds

    def _class(self, node: object) -> tuple[str, object]:
        """The class and the configuration of a part of the configuration."""
        if not isinstance(node, dict) or not isinstance(node.get("class_name"), str):
            raise self.fault(f"its configuration has {str(node)[:60]!r} where a layer should be")
        return node["class_name"], node.get("config")
