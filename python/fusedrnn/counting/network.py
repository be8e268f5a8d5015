"""A network as layers, each of which reads earlier ones side by side, and what it costs, layer by layer.

Recurrent layers are those of :mod:`fusedrnn.cells`; around them stand embeddings, dense layers and what else published
networks are made of. :mod:`fusedrnn.counting.network_file` reads a network from a file.

This module is plain Python: counting needs neither NumPy nor the C extension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Literal

from fusedrnn.architecture import checked_size
from fusedrnn.counting.result import Figure, Result, Table, aligned, figure_text, printable

__all__ = [
    "CONVENTIONS",
    "FIGURES",
    "TIED",
    "Array",
    "Layer",
    "Network",
    "NetworkComplexity",
    "Published",
]

Tied = Literal["once", "twice"]
TIED: tuple[Tied, ...] = ("once", "twice")

#: What each figure means, in words.
CONVENTIONS = {
    "weights": "Elements of all arrays but biases; peepholes are among them.",
    "biases": "Elements of bias arrays, as stored: none, one or two vectors per gate block.",
    "parameters": "weights + biases.",
    "macs_per_step": "One multiply-add per weight of a matrix, each layer once per step of one "
    "sequence. A lookup in an embedding is none; a convolution has one per weight and position; "
    "a Clockwork RNN is averaged over its periods.",
    "tied": "A dense layer tied to an embedding uses its weights: parameters count them once "
    "or, as if they were two arrays, twice. MACs are the same.",
    "not_counted": "Elementwise operations, biases and activations are not MACs: fusedrnn count "
    "CELL has them in columns of their own.",
}

FOOTNOTE = (
    "parameters: weights and biases as stored. MACs: one per weight of a matrix; a lookup is none."
)


# ---- what a network is ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Array:
    """One array of parameters.

    Attributes
    ----------
    elements
        How many are parameters: fewer than the shape says where the others must be zero.
    """

    name: str
    shape: tuple[int, ...]
    bias: bool
    elements: int


@dataclass(frozen=True)
class Layer:
    """One layer of a network: what it reads and what it is made of.

    Attributes
    ----------
    reads
        Names of the earlier layers it reads, side by side.
    input_size, output_size
        Width of a row that it reads and that it gives; 0 for one that reads nothing.
    arrays
        Its parameters.
    macs_per_step, peak_macs_per_step
        Multiply-adds of one step of one sequence: on average, and at most.
    tied
        The embedding whose weights it uses, or None.
    note
        What the sizes do not say.
    """

    name: str
    kind: str
    reads: tuple[str, ...]
    input_size: int
    output_size: int
    arrays: tuple[Array, ...]
    macs_per_step: Figure
    peak_macs_per_step: int
    tied: str | None = None
    note: str = ""

    @property
    def weights(self) -> int:
        """Elements of all arrays but biases, tied ones among them."""
        return sum(array.elements for array in self.arrays if not array.bias)

    @property
    def biases(self) -> int:
        """Elements of the bias arrays."""
        return sum(array.elements for array in self.arrays if array.bias)

    def own_weights(self, tied: Tied) -> int:
        """The weights, without those of the embedding it is tied to where they count once."""
        return 0 if self.tied and tied == "once" else self.weights


#: What a published figure may be of.
FIGURES = ("parameters", "macs_per_step", "matrix_flops_per_second")


@dataclass(frozen=True)
class Published:
    """A figure that someone published of the network, for ``fusedrnn verify``.

    Attributes
    ----------
    figure
        One of :data:`FIGURES`.
    printed
        As it was printed, "66M"; None where no figure was found.
    provenance
        "read" in a source, or from "memory" and unverified; None where there is no figure.
    source
        Who published it.
    where
        Where it was read.
    convention
        What the figure counts.
    expected
        "match" or "no match".
    reason
        Why no match is expected.
    layers
        Names of the layers that it is of; empty for all.
    tied
        Whether tied weights count "once" or "twice".
    shares
        The figure is that of one of this number of equal parts: a mean over data sets.
    rate
        Steps per second.
    """

    figure: str
    printed: str | None
    provenance: str | None
    source: str
    where: str
    convention: str
    expected: str
    reason: str
    layers: tuple[str, ...]
    tied: Tied
    shares: int
    rate: int | None


@dataclass(frozen=True)
class Network:
    """A network as data, checked."""

    name: str
    layers: tuple[Layer, ...]
    published: tuple[Published, ...] = ()

    def count(self, *, steps: int = 1, batch: int = 1, tied: Tied = "once") -> NetworkComplexity:
        """Count what the network costs.

        Parameters
        ----------
        steps
            T: steps of a sequence, >= 1.
        batch
            B: sequences side by side, >= 1.
        tied
            Count tied weights "once" or "twice".

        Raises
        ------
        TypeError, ValueError
            For a size that is not an int or is out of range, or another ``tied``.
        """
        steps, batch = checked_size("steps", steps, 1), checked_size("batch", batch, 1)
        if tied not in TIED:
            raise ValueError(f"tied must be one of {', '.join(TIED)}, got {tied!r}")
        return NetworkComplexity(self, steps, batch, tied)


# ---- what it costs -------------------------------------------------------------------------------


@dataclass(frozen=True)
class NetworkComplexity(Result):
    """The cost of a :class:`Network`; :data:`CONVENTIONS` says what each figure means."""

    network: Network
    steps: int
    batch: int
    tied: Tied

    @property
    def weights(self) -> int:
        """Elements of all arrays but biases, tied ones as ``tied`` says."""
        return sum(layer.own_weights(self.tied) for layer in self.network.layers)

    @property
    def biases(self) -> int:
        """Elements of all bias arrays."""
        return sum(layer.biases for layer in self.network.layers)

    @property
    def parameters(self) -> int:
        """Weights and biases, tied ones as ``tied`` says."""
        return self.weights + self.biases

    @cached_property
    def parameters_tied_once(self) -> int:
        """Parameters with tied weights counted once."""
        return sum(layer.own_weights("once") + layer.biases for layer in self.network.layers)

    @cached_property
    def parameters_tied_twice(self) -> int:
        """Parameters with tied weights counted as if they were two arrays."""
        return sum(layer.weights + layer.biases for layer in self.network.layers)

    @cached_property
    def macs_per_step(self) -> Figure:
        """Multiply-adds of one step of one sequence."""
        return sum(layer.macs_per_step for layer in self.network.layers)

    @property
    def peak_macs_per_step(self) -> int:
        """The same in a step in which every module of a Clockwork RNN runs."""
        return sum(layer.peak_macs_per_step for layer in self.network.layers)

    @property
    def macs(self) -> Figure:
        """Multiply-adds of all steps and sequences."""
        return self.steps * self.batch * self.macs_per_step

    def _document(self) -> Mapping[str, Any]:
        return {
            "conventions": CONVENTIONS,
            "name": self.network.name,
            "steps": self.steps,
            "batch": self.batch,
            "tied": self.tied,
            "layers": [self._row(layer) for layer in self.network.layers],
            "total": self._total(),
        }

    def _total(self) -> dict[str, Any]:
        return {
            "weights": self.weights,
            "biases": self.biases,
            "parameters": self.parameters,
            "parameters_tied_once": self.parameters_tied_once,
            "parameters_tied_twice": self.parameters_tied_twice,
            "macs_per_step": self.macs_per_step,
            "peak_macs_per_step": self.peak_macs_per_step,
            "macs": self.macs,
        }

    def _records(self) -> list[Mapping[str, Any]]:
        """A line for each layer, then one whose ``layer`` is ``total``."""
        rows = [self._row(layer) for layer in self.network.layers]
        total = {key: value for key, value in self._total().items() if key in rows[0]}
        return [*rows, {"layer": "total"} | total]

    def explain(self) -> str:
        """Each array with its shape, and what the totals are made of."""
        blocks = [printable(self._title())]
        for layer in self.network.layers:
            lines = [_explained(array) for array in layer.arrays]
            counted = list(layer.arrays)
            if layer.tied and self.tied == "once":
                lines[0][1] += f", counted in {layer.tied}"
                del counted[0]
            terms = "+".join(str(array.elements) for array in counted) or "0"
            parameters = layer.own_weights(self.tied) + layer.biases
            lines.append(["parameters", f"{terms} = {parameters:,}"])
            if layer.note:
                lines.append(["note", layer.note])
            lines.append(["MACs per step", figure_text(layer.macs_per_step)])
            blocks.append(f"{printable(f'{layer.name} ({_kind(layer)})')}\n{aligned(lines)}")
        product = f"{self.steps}*{self.batch}*{_operand(self.macs_per_step)}"
        totals = [
            ["parameters", self._sum(lambda layer: layer.own_weights(self.tied) + layer.biases)],
            ["MACs per step", self._sum(lambda layer: layer.macs_per_step)],
            ["MACs", f"steps*batch*MACs per step = {product} = {figure_text(self.macs)}"],
        ]
        blocks.append(f"All layers\n{aligned(totals)}")
        return "\n\n".join(blocks)

    def _sum(self, figure: Callable[[Layer], Figure]) -> str:
        values = [figure(layer) for layer in self.network.layers]
        return f"{'+'.join(map(_operand, values))} = {figure_text(sum(values))}"

    def _title(self) -> str:
        return f"{self.network.name}; steps {self.steps:,}, batch {self.batch:,}"

    def _row(self, layer: Layer) -> dict[str, Any]:
        weights = layer.own_weights(self.tied)
        return {
            "layer": layer.name,
            "kind": layer.kind,
            "reads": list(layer.reads),
            "tied": layer.tied,
            "input_size": layer.input_size,
            "output_size": layer.output_size,
            "weights": weights,
            "biases": layer.biases,
            "parameters": weights + layer.biases,
            "macs_per_step": layer.macs_per_step,
            "peak_macs_per_step": layer.peak_macs_per_step,
            "macs": self.steps * self.batch * layer.macs_per_step,
        }

    def _notes(self) -> Iterator[str]:
        yield FOOTNOTE

    def _tables(self) -> Iterator[Table]:
        header = ["layer", "kind", "reads", "in", "out"]
        header += ["weights", "biases", "parameters", "MACs per step"]
        rows = [
            [
                layer.name,
                _kind(layer),
                " + ".join(layer.reads) or "-",
                figure_text(layer.input_size),
                figure_text(layer.output_size),
                figure_text(layer.own_weights(self.tied)),
                figure_text(layer.biases),
                figure_text(layer.own_weights(self.tied) + layer.biases),
                figure_text(layer.macs_per_step),
            ]
            for layer in self.network.layers
        ]
        totals = (self.weights, self.biases, self.parameters, self.macs_per_step)
        rows.append(["total", "", "", "", "", *map(figure_text, totals)])
        yield Table("Layers, in one step of one sequence", header, rows, range(3, len(header)))
        all_steps = f"{self.steps:,} step{'s' * (self.steps > 1)}, batch {self.batch:,}"
        figures: list[tuple[str, Figure]] = [("parameters", self.parameters)]
        if any(layer.tied for layer in self.network.layers):
            figures = [
                ("parameters, tied weights once", self.parameters_tied_once),
                ("parameters, tied weights twice", self.parameters_tied_twice),
            ]
        figures.append(("MACs per step", self.macs_per_step))
        if self.peak_macs_per_step != self.macs_per_step:
            figures.append(("MACs per step, peak", self.peak_macs_per_step))
        figures.append((f"MACs, {all_steps}", self.macs))
        rows = [[name, figure_text(figure)] for name, figure in figures]
        yield Table("Totals", ["figure", "value"], rows, [1])


def _operand(figure: Figure) -> str:
    """A figure as a term of a sum."""
    return str(figure) if isinstance(figure, int) else f"({figure})"


def _kind(layer: Layer) -> str:
    return f"{layer.kind}, tied to {layer.tied}" if layer.tied else layer.kind


def _explained(array: Array) -> list[str]:
    shape, full = "*".join(map(str, array.shape)), prod(array.shape)
    if array.elements == full:
        return [array.name, f"{shape} = {full:,}"]
    return [array.name, f"{array.elements:,} of {shape} = {full:,}; the others are zero"]
