"""Which arrays of a Keras file are whose, by the rules by which Keras itself loads them.

A ``.keras`` archive has a tree: the layers of a model stand under their classes in snake case, counted (``layers/lstm_1``),
whatever they are called; their parts under the attributes of the layer; arrays under numbers. An ``.h5`` file has a list of
arrays for each layer of the outermost model; in it, order and names tell the rest.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Protocol

from fusedrnn.errors import ModelFormatError
from fusedrnn.formats.contents import Tensor
from fusedrnn.formats.hdf5 import Hdf5
from fusedrnn.shapes import listed

__all__ = ["Listed", "Tree", "Weights", "snake_case"]


Fault = Callable[[str], ModelFormatError]


class Weights(Protocol):
    """The arrays of a model or layer."""

    def rest(self) -> list[Tensor]:
        """All of them."""

    def own(self) -> list[Tensor]:
        """Those of a model that are of none of its layers, as far as this can be told."""

    def child(self, name: str) -> Weights:
        """Those of an attribute of a layer that is itself a layer."""

    def model(self, layers: Sequence[tuple[str, str]]) -> list[Weights]:
        """Those of each layer of a model, from the classes and names of the layers."""

    def directions(self, counts: Sequence[int]) -> list[Weights]:
        """Those of the two layers of a Bidirectional, which should have so many."""

    def cells(self, cells: Sequence[tuple[str, int]], name: str) -> list[list[Tensor]]:
        """Those of the cells of a recurrent layer of this name: of each cell its class, and how many it should have."""


def snake_case(name: str) -> str:
    """A class's name as Keras writes it in paths: "CuDNNLSTM" is "cu_dnnlstm"."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _counted(classes: Sequence[str]) -> Iterator[str]:
    """The names under which layers of these classes stand in a tree."""
    used: dict[str, int] = {}
    for each in classes:
        name = snake_case(each)
        number = used.get(name, 0)
        used[name] = number + 1
        yield f"{name}_{number}" if number else name


def _wrong_count(
    fault: Fault, name: str, wanted: int, tensors: Sequence[Tensor]
) -> ModelFormatError:
    return fault(
        f"layer {name!r} must have {wanted} arrays by its configuration, and has {len(tensors)}: "
        f"{listed(repr(tensor.name) for tensor in tensors) or 'none'}"
    )


@dataclass(frozen=True)
class Tree:
    """A place in the tree of a ``.keras`` archive.

    Attributes
    ----------
    tensors, names
        All arrays of the file by path, and these in order.
    path
        The place.
    """

    file: Hdf5
    tensors: Mapping[str, Tensor]
    names: Sequence[str]
    path: str = ""

    @classmethod
    def of(cls, file: Hdf5, tensors: Mapping[str, Tensor]) -> Tree:
        """The whole tree."""
        return cls(file, tensors, sorted(tensors))

    def rest(self) -> list[Tensor]:
        begin = f"{self.path}/" if self.path else ""
        start = bisect_left(self.names, begin)
        below = takewhile(lambda name: name.startswith(begin), islice(self.names, start, None))
        return [self.tensors[name] for name in below]

    def own(self) -> list[Tensor]:
        # Numbers, of which 10 comes after 9.
        return sorted(self.child("vars").rest(), key=lambda tensor: (len(tensor.name), tensor.name))

    def child(self, name: str) -> Tree:
        path = f"{self.path}/{name}" if self.path else name
        return Tree(self.file, self.tensors, self.names, path)

    def model(self, layers: Sequence[tuple[str, str]]) -> list[Weights]:
        place = self.child("layers")
        found: list[Weights] = []
        for key, (_, name) in zip(_counted([kind for kind, _ in layers]), layers, strict=True):
            child = place.child(key)
            said = self.file.text(f"{child.path}/vars", "name")
            if said is not None and said != name:
                raise self.file.fault(
                    f"the arrays of {child.path!r} are of a layer {said!r}; its configuration has {name!r} there"
                )
            found.append(child)
        return found

    def directions(self, counts: Sequence[int]) -> list[Weights]:
        return [self.child("forward_layer"), self.child("backward_layer")]

    def cells(self, cells: Sequence[tuple[str, int]], name: str) -> list[list[Tensor]]:
        place = self.child("cell")
        places = [place]
        if len(cells) > 1 or place.child("cells").rest():
            keys = _counted([kind for kind, _ in cells])
            places = [place.child("cells").child(key) for key in keys]
        found = [each.own() for each in places]
        for (_, wanted), tensors in zip(cells, found, strict=True):
            if len(tensors) != wanted:
                raise _wrong_count(self.file.fault, name, wanted, tensors)
        return found


@dataclass(frozen=True)
class Listed:
    """The arrays that an ``.h5`` file lists.

    Attributes
    ----------
    fault
        Makes an error of the file.
    tensors
        By the names that Keras gave them, in its order: "lstm/lstm_cell/kernel:0".
    layers
        Of a whole file: the same of each of its layers.
    """

    fault: Fault
    tensors: tuple[tuple[str, Tensor], ...]
    layers: Mapping[str, tuple[tuple[str, Tensor], ...]] | None = None

    @classmethod
    def of_file(cls, file: Hdf5, group: str, tensors: Mapping[str, Tensor]) -> Listed:
        """Those of a whole file, which stand in a group."""
        begin = f"{group}/" if group else ""
        layers: dict[str, tuple[tuple[str, Tensor], ...]] = {}
        for place in file.groups:
            name = place.removeprefix(begin)
            names = file.texts.get((place, "weight_names"))
            if names is None or not place.startswith(begin) or not name:
                continue
            missing = [each for each in names if f"{place}/{each}" not in tensors]
            if missing:
                raise file.fault(f"arrays of layer {name!r} are missing: {listed(missing)}")
            layers[name] = tuple((each, tensors[f"{place}/{each}"]) for each in names)
        every = tuple(each for group in layers.values() for each in group)
        return cls(file.fault, every, layers)

    def rest(self) -> list[Tensor]:
        return [tensor for _, tensor in self.tensors]

    def own(self) -> list[Tensor]:
        of_model = (self.layers or {}).get("top_level_model_weights", ())
        return [tensor for _, tensor in of_model]

    def child(self, name: str) -> Listed:
        return self

    def model(self, layers: Sequence[tuple[str, str]]) -> list[Weights]:
        names = [name for _, name in layers]
        if self.layers is not None:
            return [Listed(self.fault, self.layers.get(name, ())) for name in names]
        found: dict[str, list[tuple[str, Tensor]]] = {name: [] for name in names}
        for name, tensor in self.tensors:
            # Keras 1 has no slashes: "lstm_1_W_i".
            old = re.sub("_(W|U|b)(_[a-z])?(:0)?$", "", name)
            parts = [part for part in (*name.split("/")[:-1], old) if part in found]
            if not parts:
                raise self.fault(
                    f"array {tensor.name!r} is of none of the layers {listed(map(repr, names))}"
                )
            found[parts[0]].append((name, tensor))
        return [Listed(self.fault, tuple(found[name])) for name in names]

    def directions(self, counts: Sequence[int]) -> list[Weights]:
        groups: list[list[tuple[str, Tensor]]] = [[], []]
        for number, each in enumerate(self.tensors):
            forward, backward = ("forward_" in each[0], "backward_" in each[0])
            told = forward != backward
            groups[backward if told else number >= counts[0]].append(each)
        return [Listed(self.fault, tuple(group)) for group in groups]

    def cells(self, cells: Sequence[tuple[str, int]], name: str) -> list[list[Tensor]]:
        tensors = self.rest()
        if sum(count for _, count in cells) != len(tensors):
            raise _wrong_count(self.fault, name, sum(count for _, count in cells), tensors)
        found = []
        for _, count in cells:
            found.append(tensors[:count])
            tensors = tensors[count:]
        return found
