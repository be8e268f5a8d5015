"""A network as layers, each of which reads earlier ones side by side, and what it costs, layer by layer.

Recurrent layers are those of :mod:`fusedrnn.cells`; around them stand embeddings, dense layers and what else published
networks are made of. :mod:`fusedrnn.counting.network_file` reads a network from a file.

This module is plain Python: counting needs neither NumPy nor the C extension.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    "at_least": "Where the MACs of a layer are not known, theirs and the totals are null, and at_least has the sums of "
    "those that are known; null where all are known.",
    "stored": "Elements of a model file's arrays; more than the parameters where the file keeps zeros, copies or a second "
    "bias that is only added. An array that several layers share counts once. null for a network that no file stores.",
    "constants": "Arrays of a model file that are no parameters; in stored, not in parameters.",
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
    shared
        The earlier layer whose array it is, or None.
    """

    name: str
    shape: tuple[int, ...]
    bias: bool
    elements: int
    shared: str | None = None


@dataclass(frozen=True)
class Layer:
    """One layer of a network: what it reads and what it is made of.

    Attributes
    ----------
    reads
        Names of the earlier layers it reads, side by side.
    input_size, output_size
        Width of a row that it reads and that it gives; 0 for one that reads nothing, None where that is not known.
    arrays
        Its parameters.
    macs_per_step, peak_macs_per_step
        Multiply-adds of one step of one sequence: on average, and at most. None where they are not known.
    note
        What the sizes do not say.
    stored
        Elements that a file stores for it alone; None where no file does.
    """

    name: str
    kind: str
    reads: tuple[str, ...]
    input_size: int | None
    output_size: int | None
    arrays: tuple[Array, ...]
    macs_per_step: Figure | None
    peak_macs_per_step: int | None
    note: str = ""
    stored: int | None = None

    @property
    def tied(self) -> str | None:
        """The layers whose arrays it uses, or None."""
        names = dict.fromkeys(array.shared for array in self.arrays if array.shared)
        return " + ".join(names) or None

    @property
    def weights(self) -> int:
        """Elements of all arrays but biases, tied ones among them."""
        return sum(array.elements for array in self.arrays if not array.bias)

    @property
    def biases(self) -> int:
        """Elements of the bias arrays."""
        return sum(array.elements for array in self.arrays if array.bias)

    def own(self, tied: Tied) -> tuple[Array, ...]:
        """The arrays that count here: without those of other layers where these count once."""
        return tuple(array for array in self.arrays if tied == "twice" or not array.shared)

    def own_weights(self, tied: Tied) -> int:
        """The weights that count here."""
        return sum(array.elements for array in self.own(tied) if not array.bias)

    def own_biases(self, tied: Tied) -> int:
        """The biases that count here."""
        return sum(array.elements for array in self.own(tied) if array.bias)


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
    """A network as data, checked.

    Attributes
    ----------
    name, layers
        Its name, and its layers in their order.
    published
        Figures that someone published of it.
    origin
        The format of the model file that it comes from; "" for a description.
    constants
        Arrays of that file that are no parameters.
    notes
        What a reader should know of it as a whole.
    """

    name: str
    layers: tuple[Layer, ...]
    published: tuple[Published, ...] = ()
    origin: str = ""
    constants: tuple[Array, ...] = ()
    notes: tuple[str, ...] = ()

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
        """Elements of all bias arrays, tied ones as ``tied`` says."""
        return sum(layer.own_biases(self.tied) for layer in self.network.layers)

    @property
    def parameters(self) -> int:
        """Weights and biases, tied ones as ``tied`` says."""
        return self.weights + self.biases

    @cached_property
    def parameters_tied_once(self) -> int:
        """Parameters with tied weights counted once."""
        return self._parameters("once")

    @cached_property
    def parameters_tied_twice(self) -> int:
        """Parameters with tied weights counted as if they were two arrays."""
        return self._parameters("twice")

    def _parameters(self, tied: Tied) -> int:
        layers = self.network.layers
        return sum(layer.own_weights(tied) + layer.own_biases(tied) for layer in layers)

    @property
    def stored(self) -> int | None:
        """Elements of all arrays of the model file; None where no file stores the network."""
        stored = [layer.stored for layer in self.network.layers if layer.stored is not None]
        constants = sum(array.elements for array in self.network.constants)
        return sum(stored) + constants if self.network.origin else None

    @property
    def unknown(self) -> tuple[str, ...]:
        """Names of the layers whose MACs are not known."""
        return tuple(layer.name for layer in self.network.layers if layer.macs_per_step is None)

    @cached_property
    def known_macs_per_step(self) -> Figure:
        """Multiply-adds of one step of one sequence, of the layers whose MACs are known."""
        return sum(layer.macs_per_step or 0 for layer in self.network.layers)

    @property
    def known_peak_macs_per_step(self) -> int:
        """The same in a step in which every module of a Clockwork RNN runs."""
        return sum(layer.peak_macs_per_step or 0 for layer in self.network.layers)

    @property
    def known_macs(self) -> Figure:
        """Multiply-adds of all steps and sequences, of the layers whose MACs are known."""
        return self.steps * self.batch * self.known_macs_per_step

    @property
    def macs_per_step(self) -> Figure | None:
        """Multiply-adds of one step of one sequence; None where those of a layer are not known."""
        return None if self.unknown else self.known_macs_per_step

    @property
    def peak_macs_per_step(self) -> int | None:
        """The same in a step in which every module of a Clockwork RNN runs."""
        return None if self.unknown else self.known_peak_macs_per_step

    @property
    def macs(self) -> Figure | None:
        """Multiply-adds of all steps and sequences; None where those of a layer are not known."""
        return None if self.unknown else self.known_macs

    def _document(self) -> Mapping[str, Any]:
        return {
            "conventions": CONVENTIONS,
            "name": self.network.name,
            "format": self.network.origin or None,
            "notes": list(self.network.notes),
            "steps": self.steps,
            "batch": self.batch,
            "tied": self.tied,
            "layers": [self._row(layer) for layer in self.network.layers],
            "constants": [
                {"name": array.name, "shape": list(array.shape), "elements": array.elements}
                for array in self.network.constants
            ],
            "total": self._total() | {"at_least": self._at_least()},
        }

    def _at_least(self) -> dict[str, Figure] | None:
        if not self.unknown:
            return None
        return {
            "macs_per_step": self.known_macs_per_step,
            "peak_macs_per_step": self.known_peak_macs_per_step,
            "macs": self.known_macs,
        }

    def _total(self) -> dict[str, Any]:
        return {
            "weights": self.weights,
            "biases": self.biases,
            "parameters": self.parameters,
            "parameters_tied_once": self.parameters_tied_once,
            "parameters_tied_twice": self.parameters_tied_twice,
            "stored": self.stored,
            "macs_per_step": self.macs_per_step,
            "peak_macs_per_step": self.peak_macs_per_step,
            "macs": self.macs,
        }

    def _records(self) -> list[Mapping[str, Any]]:
        """A line for each layer, then one whose ``layer`` is ``total``."""
        rows = [self._row(layer) for layer in self.network.layers]
        total = self._total()
        if rows:
            total = {key: value for key, value in total.items() if key in rows[0]}
        return [*rows, {"layer": "total"} | total]

    def explain(self) -> str:
        """Each array with its shape, and what the totals are made of."""
        blocks = [printable(self._title())]
        for layer in self.network.layers:
            lines = [self._explained(array) for array in layer.arrays]
            terms = "+".join(str(array.elements) for array in layer.own(self.tied)) or "0"
            lines.append(["parameters", f"{terms} = {self._own(layer):,}"])
            if layer.note:
                lines.append(["note", layer.note])
            lines.append(["MACs per step", _macs_text(layer.macs_per_step)])
            blocks.append(f"{printable(f'{layer.name} ({_kind(layer)})')}\n{aligned(lines)}")
        at_least = "at least " if self.unknown else ""
        product = f"{self.steps}*{self.batch}*{_operand(self.known_macs_per_step)}"
        own = [self._own(layer) for layer in self.network.layers]
        macs = [layer.macs_per_step for layer in self.network.layers]
        totals = [
            ["parameters", _sum(own, "")],
            ["MACs per step", _sum(macs, at_least)],
            [
                "MACs",
                f"steps*batch*MACs per step = {product} = {at_least}{figure_text(self.known_macs)}",
            ],
        ]
        blocks.append(f"All layers\n{aligned(totals)}")
        return "\n\n".join(blocks)

    def _explained(self, array: Array) -> list[str]:
        shape, full = "*".join(map(str, array.shape)) or "1", prod(array.shape)
        text = f"{shape} = {full:,}"
        if array.elements != full:
            text = f"{array.elements:,} of {shape} = {full:,}; the others are zero"
        if array.shared and self.tied == "once":
            text += f", counted in {array.shared}"
        return [array.name, text]

    def _own(self, layer: Layer) -> int:
        """The parameters that count in a layer."""
        return layer.own_weights(self.tied) + layer.own_biases(self.tied)

    def _title(self) -> str:
        origin = f" ({self.network.origin})" if self.network.origin else ""
        return f"{self.network.name}{origin}; steps {self.steps:,}, batch {self.batch:,}"

    def _row(self, layer: Layer) -> dict[str, Any]:
        macs = layer.macs_per_step
        return {
            "layer": layer.name,
            "kind": layer.kind,
            "reads": list(layer.reads),
            "tied": layer.tied,
            "input_size": layer.input_size,
            "output_size": layer.output_size,
            "weights": layer.own_weights(self.tied),
            "biases": layer.own_biases(self.tied),
            "parameters": self._own(layer),
            "stored": layer.stored,
            "macs_per_step": macs,
            "peak_macs_per_step": layer.peak_macs_per_step,
            "macs": None if macs is None else self.steps * self.batch * macs,
        }

    def _notes(self) -> Iterator[str]:
        yield from self.network.notes
        noted = [layer for layer in self.network.layers if layer.note and self.network.origin]
        if noted:
            yield "\n".join(f"{printable(layer.name)}: {printable(layer.note)}" for layer in noted)
        if self.unknown:
            yield f"?: the MACs of {len(self.unknown):,} of the layers are not known; they are in no total."
        yield FOOTNOTE

    def _tables(self) -> Iterator[Table]:
        columns = ["layer", "kind", "reads", "in", "out", "weights", "biases", "parameters"]
        columns += ["stored", "MACs per step"]
        # What reads what is not in a model file; what is stored is in nothing else.
        hidden = "reads" if self.network.origin else "stored"
        header = [column for column in columns if column != hidden]
        totals = {
            "layer": "total",
            "weights": figure_text(self.weights),
            "biases": figure_text(self.biases),
            "parameters": figure_text(self.parameters),
            "stored": figure_text(self.stored),
            "MACs per step": self._total_text(self.known_macs_per_step),
        }
        cells = [*map(self._cells, self.network.layers), totals]
        rows = [[row.get(column, "") for column in header] for row in cells]
        numbers = range(header.index("in"), len(header))
        yield Table("Layers, in one step of one sequence", header, rows, numbers)
        yield Table("Totals", ["figure", "value"], list(self._summary()), [1])
        if self.network.constants:
            rows = [
                [array.name, "x".join(map(str, array.shape)) or "one", figure_text(array.elements)]
                for array in self.network.constants
            ]
            yield Table(
                "Constants, which are no parameters", ["array", "shape", "elements"], rows, [2]
            )

    def _cells(self, layer: Layer) -> dict[str, str]:
        return {
            "layer": layer.name,
            "kind": _kind(layer),
            "reads": " + ".join(layer.reads) or "-",
            "in": figure_text(layer.input_size),
            "out": figure_text(layer.output_size),
            "weights": figure_text(layer.own_weights(self.tied)),
            "biases": figure_text(layer.own_biases(self.tied)),
            "parameters": figure_text(self._own(layer)),
            "stored": figure_text(layer.stored),
            "MACs per step": _macs_text(layer.macs_per_step),
        }

    def _summary(self) -> Iterator[list[str]]:
        if any(layer.tied for layer in self.network.layers):
            yield ["parameters, tied weights once", figure_text(self.parameters_tied_once)]
            yield ["parameters, tied weights twice", figure_text(self.parameters_tied_twice)]
        else:
            yield ["parameters", figure_text(self.parameters)]
        if self.stored is not None:
            yield ["elements stored", figure_text(self.stored)]
        yield ["MACs per step", self._total_text(self.known_macs_per_step)]
        if self.known_peak_macs_per_step != self.known_macs_per_step:
            yield ["MACs per step, peak", self._total_text(self.known_peak_macs_per_step)]
        all_steps = f"{self.steps:,} step{'s' * (self.steps > 1)}, batch {self.batch:,}"
        yield [f"MACs, {all_steps}", self._total_text(self.known_macs)]

    def _total_text(self, known: Figure) -> str:
        return f"{'at least ' if self.unknown else ''}{figure_text(known)}"


def _macs_text(figure: Figure | None) -> str:
    return "?" if figure is None else figure_text(figure)


def _sum(figures: Sequence[Figure | None], at_least: str) -> str:
    terms = "+".join("?" if figure is None else _operand(figure) for figure in figures) or "0"
    return f"{terms} = {at_least}{figure_text(sum(figure or 0 for figure in figures))}"


def _operand(figure: Figure) -> str:
    """A figure as a term of a sum."""
    return str(figure) if isinstance(figure, int) else f"({figure})"


def _kind(layer: Layer) -> str:
    return f"{layer.kind}, tied to {layer.tied}" if layer.tied else layer.kind
