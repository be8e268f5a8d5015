"""What a recurrent network costs: parameters, multiply-adds, FLOPs, bytes, before it is built.

Every number is derived from the cell table and from :meth:`fusedrnn.architecture.Architecture.weights`.
What is counted, and what is not, is in :data:`CONVENTIONS`, which travels with every result.

This module is plain Python: counting needs neither NumPy nor the C extension.
"""

from __future__ import annotations

import csv
import io
import json
import math
import numbers
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from fractions import Fraction
from functools import cached_property
from operator import attrgetter
from typing import Any, Protocol, TypeAlias

from fusedrnn.architecture import Architecture, checked_size
from fusedrnn.cells import CELLS

__all__ = [
    "CONVENTIONS",
    "WEIGHT_BYTES",
    "Complexity",
    "Counts",
    "LayerCounts",
    "Operations",
    "Part",
    "Work",
    "aligned",
    "count",
]

#: An average per step may be a fraction; every other count is an int.
Figure: TypeAlias = int | Fraction

SCHEMA_VERSION = 1
FLOAT_BYTES, COUNTER_BYTES = 4, 8
#: Bytes of one matrix weight, by the name of its type.
WEIGHT_BYTES = {"float32": FLOAT_BYTES, "bfloat16": 2, "int8": 1}
DIRECTIONS = ("forward", "reverse")
#: A sum of more lengths than this is explained by its value alone.
MOST_TERMS = 16

#: What each figure means, in words.
CONVENTIONS = {
    "sizes": "D_x: width of an input row (input_size). D_n: number of units (hidden_size). "
    "D_h: width of the h that is fed back and shown: proj_size, or else D_n.",
    "parameters": "Effective: matrix weights, peepholes and one bias per gate block and unit "
    "(none with bias none); a second bias vector is only ever added to the first. Where it is not, "
    "in the candidate of a GRU that resets after the product, the second one counts too. Elements "
    "of a Clockwork matrix that must be zero are no weights.",
    "parameters_stored": "As the weights are kept, by the bias option: none, the effective ones, "
    "or two bias vectors.",
    "parameters_two_biases": "As PyTorch and cuDNN keep them: two bias vectors. null with bias "
    "none.",
    "macs": "One multiply-add per weight of the input, recurrent and projection matrices, step "
    "and sequence: W x and R h are one sum of D_x + D_h terms.",
    "elementwise": "Multiplications and additions between vectors of units, as the equations of "
    "the cell are written; a peephole is one of each per unit. Not MACs.",
    "bias_adds": "One per bias of parameters. Not MACs.",
    "activations": "Evaluations of each activation and of clip, each in a column of its own. "
    "Not FLOPs.",
    "flops": "2 * macs + bias_adds + elementwise_multiplies + elementwise_adds.",
    "per_step": "One step of one sequence; bytes: one step of the whole batch. Figures without "
    "per_step are for all steps and the whole batch.",
    "average": "Modules of a Clockwork RNN rest in most steps: per_step is the average over a "
    "cycle of steps (the least common multiple of the periods; times it, every average is whole), "
    "peak is a step in which all modules are active, as at t = 0. Figures for all steps are exact, "
    "from t = 0. Of every other cell all steps are alike.",
    "lengths": "Sequences of unequal length: every figure for all steps is of the sum of the "
    "lengths, without padding; weights are read in as many steps as the longest sequence has.",
    "bytes": "Every matrix weight of what is active is read once per step in its type, every "
    "peephole and bias of parameters once in float32; the scales of int8 weights are left out. "
    "Each layer and direction reads x and its states and writes y and its states, in float32 "
    "(the step counter of a Clockwork RNN: int64), once per step and sequence.",
    "bytes_cached": "The same without weights and biases: they stay in a cache.",
    "intensity": "flops / bytes.",
    "state_size": "Floats kept from one step to the next, per sequence; state_counters: integers.",
    "backward_macs": "Multiply-adds of the matrix products of the backward pass, for all steps "
    "and the whole batch: one for the gradient of the weight and one for that of what it is "
    "multiplied with, per MAC, without those that only the gradients of the input of layer 0 and "
    "of the initial states need. Nothing else of the backward pass is counted. null unless asked.",
    "training_macs": "macs + backward_macs.",
}

FOOTNOTE = (
    "D_x: width of an input row. D_h: width of the h that is fed back. D_n: units.\n"
    "MACs: one per matrix weight. FLOPs: 2 * MACs + bias adds + multiplies + adds.\n"
    "effective: one bias per gate block and unit, and a second only where it is not just added to "
    "the first."
)


@dataclass(frozen=True)
class Counts:
    """What there is, in integers that add up.

    Attributes
    ----------
    input_weights, recurrent_weights, projection_weights
        Elements of the matrices that x, the fed-back h, and the h to be projected go through.
    peephole_weights
        Elements of the vectors that the cell's state is multiplied with.
    biases
        The effective ones: one per gate block and unit and those second ones that cannot be added
        to the first; 0 for a network without biases.
    biases_stored, biases_two
        The same as they are kept, and as two vectors (0 without biases).
    state_size, state_counters
        Floats and integers kept from one step to the next.
    values_moved
        Floats of x and the states that are read, and of y and the states that are written.
    """

    input_weights: int
    recurrent_weights: int
    projection_weights: int
    peephole_weights: int
    biases: int
    biases_stored: int
    biases_two: int
    state_size: int
    state_counters: int
    values_moved: int

    @property
    def matrix_weights(self) -> int:
        """Elements of all matrices."""
        return self.input_weights + self.recurrent_weights + self.projection_weights

    @property
    def parameters(self) -> int:
        """Matrix weights, peepholes and effective biases."""
        return self.matrix_weights + self.peephole_weights + self.biases

    @property
    def parameters_stored(self) -> int:
        """Elements of the weight arrays as they are kept."""
        return self.matrix_weights + self.peephole_weights + self.biases_stored

    @property
    def parameters_two_biases(self) -> int | None:
        """Elements as PyTorch and cuDNN keep them; None without biases."""
        two = self.matrix_weights + self.peephole_weights + self.biases_two
        return two if self.biases else None


@dataclass(frozen=True)
class Operations:
    """What is executed, in figures that add up: ints, or fractions where they are averages.

    Attributes
    ----------
    input_macs, recurrent_macs, projection_macs
        Multiply-adds: one per weight of the matrix.
    peephole_products
        Multiplications by peepholes, which are among the elementwise ones.
    elementwise_multiplies, elementwise_adds
        Operations between vectors of units.
    bias_adds
        Additions of biases: one per effective bias.
    activations
        Pairs of a function's name and how often it is evaluated; ``clip`` is among them.
    """

    input_macs: Figure
    recurrent_macs: Figure
    projection_macs: Figure
    peephole_products: Figure
    elementwise_multiplies: Figure
    elementwise_adds: Figure
    bias_adds: Figure
    activations: tuple[tuple[str, Figure], ...]

    @property
    def macs(self) -> Figure:
        """Multiply-adds of the matrix products."""
        return _whole(self.input_macs + self.recurrent_macs + self.projection_macs)

    @property
    def flops(self) -> Figure:
        """Floating-point operations; activations are not among them."""
        elementwise = self.elementwise_multiplies + self.elementwise_adds
        return _whole(2 * self.macs + self.bias_adds + elementwise)


@dataclass(frozen=True)
class Part:
    """What is computed in one step in ``period``, from t = 0: a module of a Clockwork RNN, or all."""

    period: int
    operations: Operations


@dataclass(frozen=True)
class Work:
    """What one sequence costs one layer in one direction, as parts that run together or rest."""

    parts: tuple[Part, ...]

    @cached_property
    def average(self) -> Operations:
        """One step of one sequence, on the average of a cycle."""
        return _sum((Fraction(1, part.period), part.operations) for part in self.parts)

    @cached_property
    def peak(self) -> Operations:
        """One step of one sequence in which every part runs."""
        return _sum((1, part.operations) for part in self.parts)

    def executed(self, runs: Callable[[int], int]) -> Operations:
        """All of many steps, when a part of some period runs so many times."""
        return _sum((runs(part.period), part.operations) for part in self.parts)


@dataclass(frozen=True)
class LayerCounts:
    """One layer in one direction (0 forward, 1 reverse): its sizes, its counts and its work."""

    layer: int
    direction: int
    D_x: int
    D_h: int
    D_n: int
    counts: Counts
    work: Work


def _whole(figure: Figure) -> Figure:
    return figure.numerator if figure.denominator == 1 else figure


def _sum(terms: Iterable[tuple[Figure, Operations]]) -> Operations:
    """Operations, each so many times, added up."""
    names = [field.name for field in fields(Operations) if field.name != "activations"]
    sums: dict[str, Figure] = dict.fromkeys(names, 0)
    evaluations: dict[str, Figure] = {}
    for times, operations in terms:
        for name in names:
            sums[name] += times * getattr(operations, name)
        for function, figure in operations.activations:
            evaluations[function] = evaluations.get(function, 0) + times * figure
    return Operations(
        **{name: _whole(figure) for name, figure in sums.items()},
        activations=tuple((name, _whole(figure)) for name, figure in evaluations.items()),
    )


@dataclass(frozen=True)
class Complexity:
    """The cost of an :class:`~fusedrnn.architecture.Architecture`, as :func:`count` returns it.

    Figures without ``per_step`` are for all steps of the whole batch; :data:`CONVENTIONS` says
    what each one means. Figures ``per_step`` are averages, which are fractions where a Clockwork RNN
    makes them so; ``peak`` is its busiest step. For every other cell the two are the same.

    Attributes
    ----------
    architecture
        What was counted.
    steps, batch
        T steps of B sequences; of sequences of unequal length, the steps of the longest.
    lengths
        Of the sequences, where they were given.
    dtype
        Type of the matrix weights, a key of :data:`WEIGHT_BYTES`.
    rate
        Steps per second, or None.
    backward
        Whether the backward pass is wanted too.
    layers
        One row per layer and direction.
    """

    architecture: Architecture
    steps: int
    batch: int
    lengths: tuple[int, ...] | None
    dtype: str
    rate: int | float | None
    backward: bool
    layers: tuple[LayerCounts, ...]

    @cached_property
    def total(self) -> Counts:
        """What all layers and directions hold."""
        names = [field.name for field in fields(Counts)]
        return Counts(*(sum(getattr(row.counts, name) for row in self.layers) for name in names))

    @cached_property
    def average(self) -> Operations:
        """One step of one sequence in all layers and directions, on average."""
        return _sum((many, row.work.average) for row, many in self._kinds)

    @cached_property
    def peak(self) -> Operations:
        """One step of one sequence in all layers and directions, when nothing rests."""
        return _sum((many, row.work.peak) for row, many in self._kinds)

    @cached_property
    def executed(self) -> Operations:
        """All steps of all sequences in all layers and directions."""
        return _sum((many, self._executed[row.counts]) for row, many in self._kinds)

    @property
    def cycle(self) -> int:
        """Steps after which a Clockwork RNN repeats itself; 1 for every other cell."""
        return math.lcm(*self.architecture.periods)

    @property
    def sequence_steps(self) -> int:
        """Steps of all sequences together: steps * batch, or the sum of the lengths."""
        return self._runs(1)

    @property
    def parameters(self) -> int:
        """Matrix weights, peepholes and effective biases: the headline."""
        return self.total.parameters

    @property
    def parameters_stored(self) -> int:
        """Elements of the weight arrays as they are kept."""
        return self.total.parameters_stored

    @property
    def parameters_two_biases(self) -> int | None:
        """Elements as PyTorch and cuDNN keep them; None without biases."""
        return self.total.parameters_two_biases

    @property
    def macs_per_step(self) -> Figure:
        """Multiply-adds of one step of one sequence, on average."""
        return self.average.macs

    @property
    def peak_macs_per_step(self) -> int:
        """Multiply-adds of the busiest step of one sequence."""
        return int(self.peak.macs)

    @property
    def macs(self) -> int:
        """Multiply-adds of all steps and sequences."""
        return int(self.executed.macs)

    @property
    def elementwise_multiplies(self) -> int:
        """Multiplications between vectors of units, all steps and sequences."""
        return int(self.executed.elementwise_multiplies)

    @property
    def elementwise_adds(self) -> int:
        """Additions between vectors of units, all steps and sequences."""
        return int(self.executed.elementwise_adds)

    @property
    def bias_adds(self) -> int:
        """Additions of biases, all steps and sequences."""
        return int(self.executed.bias_adds)

    @property
    def activations(self) -> dict[str, int]:
        """Evaluations of each activation, all steps and sequences."""
        return {name: int(times) for name, times in self.executed.activations}

    @property
    def flops_per_step(self) -> Figure:
        """Floating-point operations of one step of one sequence, on average."""
        return self.average.flops

    @property
    def peak_flops_per_step(self) -> int:
        """Floating-point operations of the busiest step of one sequence."""
        return int(self.peak.flops)

    @property
    def flops(self) -> int:
        """Floating-point operations of all steps and sequences."""
        return int(self.executed.flops)

    @cached_property
    def backward_macs(self) -> int | None:
        """Multiply-adds of the backward pass, all steps and sequences; None unless asked for."""
        return sum(map(self._backward, self.layers)) if self.backward else None

    @property
    def training_macs(self) -> int | None:
        """Multiply-adds of both passes, all steps and sequences; None unless asked for."""
        return None if self.backward_macs is None else self.macs + self.backward_macs

    @property
    def state_size(self) -> int:
        """Floats kept from one step to the next, per sequence."""
        return self.total.state_size

    @property
    def state_counters(self) -> int:
        """Integers kept from one step to the next, per sequence."""
        return self.total.state_counters

    @property
    def state_bytes(self) -> int:
        """Bytes of the states of the whole batch."""
        return self.batch * _state_bytes(self.total)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the matrices in ``dtype``, of the peepholes and effective biases in float32."""
        return self._weight_bytes(self.total)

    @property
    def weight_bytes_per_step(self) -> Figure:
        """Bytes of the weights that a step reads, on average; at the peak: all of them."""
        return self._read_bytes(self.average)

    @property
    def bytes_per_step(self) -> Figure:
        """Bytes that one step of the whole batch moves, on average, when it reads its weights."""
        return _whole(self.weight_bytes_per_step + self.bytes_per_step_cached)

    @property
    def peak_bytes_per_step(self) -> int:
        """Bytes that the busiest step of the whole batch moves when it reads every weight."""
        return self.weight_bytes + self.bytes_per_step_cached

    @property
    def bytes_per_step_cached(self) -> int:
        """Bytes that one step of the whole batch moves when the weights stay in a cache."""
        return self.batch * _moved_bytes(self.total)

    @cached_property
    def bytes(self) -> int:
        """Bytes moved by all steps when each reads the weights it needs."""
        read = _sum((many, row.work.executed(self._reads)) for row, many in self._kinds)
        return int(self._read_bytes(read)) + self.bytes_cached

    @property
    def bytes_cached(self) -> int:
        """Bytes moved by all steps when the weights stay in a cache."""
        return self.sequence_steps * _moved_bytes(self.total)

    @property
    def intensity(self) -> float:
        """FLOPs per byte when each step reads the weights it needs."""
        return self.flops / self.bytes

    @property
    def intensity_cached(self) -> float:
        """FLOPs per byte when the weights stay in a cache."""
        return self.flops / self.bytes_cached

    @property
    def macs_per_second(self) -> int | float | None:
        """Multiply-adds per second of the whole batch at ``rate``; None without a rate."""
        return self._per_second(self.batch * self.average.macs)

    @property
    def bytes_per_second(self) -> int | float | None:
        """Bytes per second at ``rate`` when each step reads its weights; None without a rate."""
        return self._per_second(self.bytes_per_step)

    @property
    def bytes_per_second_cached(self) -> int | float | None:
        """Bytes per second at ``rate`` when the weights are cached; None without a rate."""
        return self._per_second(self.bytes_per_step_cached)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain, unrounded numbers, with the conventions in words."""
        sequences = {
            "bytes": self.bytes,
            "bytes_cached": self.bytes_cached,
            "state_bytes": self.state_bytes,
            "intensity": self.intensity,
            "intensity_cached": self.intensity_cached,
            "macs_per_second": self.macs_per_second,
            "bytes_per_second": self.bytes_per_second,
            "bytes_per_second_cached": self.bytes_per_second_cached,
        }
        return {
            "schema_version": SCHEMA_VERSION,
            "conventions": dict(CONVENTIONS),
            "architecture": dict(_described(self.architecture)),
            "steps": self.steps,
            "batch": self.batch,
            "lengths": None if self.lengths is None else list(self.lengths),
            "cycle": self.cycle,
            "dtype": self.dtype,
            "rate": self.rate,
            "layers": [_place(row) | self._figures(row) for row in self.layers],
            "total": self._figures() | sequences,
        }

    def to_json(self) -> str:
        """:meth:`to_dict` as JSON text.

        Raises
        ------
        ValueError
            A rate so high that a figure is beyond a float: JSON has no infinity.
        """
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """One line per layer and direction, then one whose ``layer`` is ``total``."""
        rows = [_place(row) | self._figures(row) for row in self.layers]
        rows.append({"layer": "total"} | self._figures())
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def to_markdown(self) -> str:
        """The tables of ``str()`` in Markdown."""
        parts = [f"## {self._title()}"]
        for caption, header, rows, left in self._tables():
            rule = [":--" if column < left else "--:" for column in range(len(header))]
            lines = ("| " + " | ".join(row) + " |" for row in (header, rule, *rows))
            parts += [f"**{caption}**", "\n".join(lines)]
        parts.append(FOOTNOTE)
        return "\n\n".join(parts) + "\n"

    def __str__(self) -> str:
        parts = [self._title()]
        for caption, header, rows, left in self._tables():
            parts.append(f"{caption}\n{aligned([header, *rows], left=left)}")
        parts.append(FOOTNOTE)
        return "\n\n".join(parts)

    def explain(self) -> str:
        """Each formula with its numbers, for people who want to check them by hand."""
        blocks = [self._title()]
        for label, rows in self._alike():
            formulas = self._clockwork_formulas if self.architecture.periods else self._formulas
            blocks.append(f"{label}\n{aligned(list(formulas(rows[0])), left=2)}")
        blocks.append(f"All layers\n{aligned(list(self._sums()), left=2)}")
        if self.architecture.bidirectional:
            blocks.append(self._both_directions())
        return "\n\n".join(blocks)

    def _runs(self, period: int) -> int:
        """How often what has this period runs, in all sequences from t = 0."""
        if self.lengths is None:
            return self.batch * self._reads(period)
        return sum(-(-length // period) for length in self.lengths)

    def _reads(self, period: int) -> int:
        """In how many steps of the batch what has this period runs: sequences start together."""
        return -(-self.steps // period)

    @cached_property
    def _kinds(self) -> list[tuple[LayerCounts, int]]:
        """One row of each kind, and how many there are: what is held tells what is done."""
        times = Counter(row.counts for row in self.layers)
        first = {row.counts: row for row in reversed(self.layers)}
        return [(first[counts], many) for counts, many in times.items()]

    @cached_property
    def _executed(self) -> dict[Counts, Operations]:
        """All steps of all sequences, by what a layer holds."""
        return {row.counts: row.work.executed(self._runs) for row, _ in self._kinds}

    def _backward(self, row: LayerCounts) -> int:
        executed = self._executed[row.counts]
        unwanted = self.batch * self._products_of_h(row.counts)
        if row.layer == 0:
            unwanted += int(executed.input_macs)
        return 2 * int(executed.macs) - unwanted

    def _products_of_h(self, counts: Counts) -> int:
        """Multiply-adds of one step with h itself: in the first step nothing else needs their gradient.

        A gate block that reads another vector through R needs that vector's gradient in every step.
        """
        table = self.architecture.table
        other = sum(
            any(f"R_{gate.name} (" in equation for equation in table.equations)
            for gate in table.gates
        )
        return counts.recurrent_weights * (len(table.gates) - other) // len(table.gates)

    def _weight_bytes(self, counts: Counts) -> int:
        vectors = counts.peephole_weights + counts.biases
        return WEIGHT_BYTES[self.dtype] * counts.matrix_weights + FLOAT_BYTES * vectors

    def _read_bytes(self, operations: Operations) -> Figure:
        """Bytes of the weights that these operations read, each of them once."""
        vectors = operations.peephole_products + operations.bias_adds
        return _whole(WEIGHT_BYTES[self.dtype] * operations.macs + FLOAT_BYTES * vectors)

    def _per_second(self, figure: Figure) -> int | float | None:
        if self.rate is None:
            return None
        product = self.rate * figure
        if isinstance(product, Fraction):
            product = _whole(product)
        return product if isinstance(product, int) else float(product)

    def _figures(self, row: LayerCounts | None = None) -> dict[str, int | float | None]:
        """The figures of a row, or of all of them, in plain numbers."""
        if row is None:
            counts, backward = self.total, self.backward_macs
            average, peak, executed = self.average, self.peak, self.executed
        else:
            counts, backward = row.counts, self._backward(row) if self.backward else None
            average, peak, executed = row.work.average, row.work.peak, self._executed[row.counts]
        read, moved = self._read_bytes(average), self.batch * _moved_bytes(counts)
        figures: dict[str, Figure | None] = {
            "input_weights": counts.input_weights,
            "recurrent_weights": counts.recurrent_weights,
            "projection_weights": counts.projection_weights,
            "peephole_weights": counts.peephole_weights,
            "biases": counts.biases,
            "parameters": counts.parameters,
            "parameters_stored": counts.parameters_stored,
            "parameters_two_biases": counts.parameters_two_biases,
            **{f"{name}_per_step": figure for name, figure in _operations(average)},
            **{f"peak_{name}_per_step": figure for name, figure in _operations(peak)},
            **dict(_operations(executed)),
            "backward_macs": backward,
            "training_macs": None if backward is None else executed.macs + backward,
            "state_size": counts.state_size,
            "state_counters": counts.state_counters,
            "weight_bytes": self._weight_bytes(counts),
            "weight_bytes_per_step": read,
            "bytes_per_step": _whole(read + moved),
            "peak_bytes_per_step": self._weight_bytes(counts) + moved,
            "bytes_per_step_cached": moved,
        }
        return {
            name: float(figure) if isinstance(figure, Fraction) else figure
            for name, figure in figures.items()
        }

    def _title(self) -> str:
        size = self.architecture
        options = "".join(f", {name} {value}" for name, value in _chosen(size))
        layers = f"{size.num_layers} layer" + ("s" if size.num_layers > 1 else "")
        directions = "two directions" if size.bidirectional else "one direction"
        return (
            f"{size.table.title}: input_size {size.input_size}, hidden_size {size.hidden_size}"
            f"{options}, {layers}, {directions}, bias {size.bias}; {self._extent()}, "
            f"{self.dtype} weights"
        )

    def _extent(self) -> str:
        """What figures without ``per_step`` are for."""
        if self.lengths is None:
            return f"steps {self.steps:,}, batch {self.batch:,}"
        return f"lengths up to {self.steps:,}, {self.sequence_steps:,} in all, batch {self.batch:,}"

    def _tables(self) -> Iterator[tuple[str, list[str], list[list[str]], int]]:
        """Caption, header, rows, and how many columns are words, of each table for people."""
        yield self._parameter_table()
        caption = "Operations in one step of one sequence"
        if self.architecture.periods:
            yield self._operation_table(f"{caption}, on average", average=True)
            yield self._operation_table(f"{caption}, at the peak", average=False)
        else:
            yield self._operation_table(caption, average=False)
        yield self._summary()

    def _places(self) -> Iterator[list[str]]:
        for row in self.layers:
            yield [str(row.layer), DIRECTIONS[row.direction]]
        if len(self.layers) > 1:
            yield ["total", ""]

    def _parameter_table(self) -> tuple[str, list[str], list[list[str]], int]:
        sizes = [[_text(row.D_x), _text(row.D_h), _text(row.D_n)] for row in self.layers]
        sizes.append(["", "", ""])
        columns = {"input": "input_weights", "recurrent": "recurrent_weights"}
        if self.total.projection_weights:
            columns["projection"] = "projection_weights"
        if self.total.peephole_weights:
            columns["peephole"] = "peephole_weights"
        columns |= {"biases": "biases", "effective": "parameters"}
        every = [*(row.counts for row in self.layers), self.total]
        rows = [
            [*place, *size, *(_text(getattr(counts, name)) for name in columns.values())]
            for place, size, counts in zip(self._places(), sizes, every, strict=False)
        ]
        return "Parameters", ["layer", "direction", "D_x", "D_h", "D_n", *columns], rows, 2

    def _operation_table(
        self, caption: str, *, average: bool
    ) -> tuple[str, list[str], list[list[str]], int]:
        works: list[Work | Complexity] = [*(row.work for row in self.layers), self]
        every = [work.average if average else work.peak for work in works]
        names = [name for name, _ in every[-1].activations]
        header = ["layer", "direction", "MACs", "multiplies", "adds", "bias adds", "FLOPs", *names]
        rows = [
            [
                *place,
                _text(operations.macs),
                _text(operations.elementwise_multiplies),
                _text(operations.elementwise_adds),
                _text(operations.bias_adds),
                _text(operations.flops),
                *(_text(times) for _, times in operations.activations),
            ]
            for place, operations in zip(self._places(), every, strict=False)
        ]
        return caption, header, rows, 2

    def _summary(self) -> tuple[str, list[str], list[list[str]], int]:
        batch = f"batch {self.batch:,}"
        all_steps = f"{self.steps:,} step{'s' * (self.steps > 1)}, {batch}"
        if self.lengths is not None:
            all_steps = f"{self.sequence_steps:,} steps in all, {batch}"
        average = ", average" if self.architecture.periods else ""
        rows = [
            ["parameters, effective", _text(self.parameters)],
            [f"parameters stored, bias {self.architecture.bias}", _text(self.parameters_stored)],
            [
                "parameters stored with two biases (PyTorch, cuDNN)",
                _text(self.parameters_two_biases),
            ],
            [f"MACs, {all_steps}", _text(self.macs)],
            [f"FLOPs, {all_steps}", _text(self.flops)],
        ]
        if self.backward_macs is not None and self.training_macs is not None:
            rows += [
                [f"MACs of the backward pass, {all_steps}", _text(self.backward_macs)],
                ["MACs, forward and backward", _text(self.training_macs)],
                ["FLOPs of those MACs, forward", _text(2 * self.macs)],
                ["FLOPs of those MACs, forward and backward", _text(2 * self.training_macs)],
            ]
        rows += [
            [f"state bytes, {batch}", _text(self.state_bytes)],
            [f"weight bytes, {self.dtype}", _text(self.weight_bytes)],
        ]
        if average:
            rows.append(["weight bytes per step, average", _text(self.weight_bytes_per_step)])
        rows.append([f"bytes per step{average}", _text(self.bytes_per_step)])
        if average:
            rows.append(["bytes per step, peak", _text(self.peak_bytes_per_step)])
        rows += [
            ["bytes per step, weights cached", _text(self.bytes_per_step_cached)],
            [f"bytes, {all_steps}", _text(self.bytes)],
            [f"bytes, {all_steps}, weights cached", _text(self.bytes_cached)],
            ["FLOPs per byte", f"{self.intensity:,.3f}"],
            ["FLOPs per byte, weights cached", f"{self.intensity_cached:,.3f}"],
        ]
        if self.rate is not None:
            rows += [
                [
                    f"MACs per second at {_text(self.rate)} steps/s{average}",
                    _text(self.macs_per_second),
                ],
                [f"bytes per second{average}", _text(self.bytes_per_second)],
                ["bytes per second, weights cached", _text(self.bytes_per_second_cached)],
            ]
        return "Totals", ["figure", "value"], rows, 1

    def _alike(self) -> Iterator[tuple[str, list[LayerCounts]]]:
        """The rows, put together where all their figures are the same."""
        groups: dict[Counts, list[LayerCounts]] = {}
        for row in self.layers:
            groups.setdefault(row.counts, []).append(row)
        for rows in groups.values():
            first, last = rows[0].layer, rows[-1].layer
            label = f"Layer {first}" if first == last else f"Each of layers {first} to {last}"
            yield label + (", each direction" if self.architecture.bidirectional else ""), rows

    def _formulas(self, row: LayerCounts) -> Iterator[list[str]]:
        table, counts, work = self.architecture.table, row.counts, row.work.peak
        letters = str(self.architecture.peephole)
        gates, own, looks = len(table.gates), len(table.own_recurrent_bias), len(letters)
        projection = "+D_h*D_n" if counts.projection_weights else ""
        peepholes = f"+{looks}*D_n" if looks else ""

        def parameters(biases: int) -> str:
            bias = ("", "+D_n", "+2*D_n")[biases]
            second = "+D_n" * own if biases == 1 else ""
            return f"{gates}*(D_n*(D_h+D_x){bias}){second}{projection}{peepholes}"

        yield _line(row, "parameters", parameters(bool(counts.biases)), counts.parameters)
        if counts.parameters_two_biases is not None:
            yield _line(row, "with two biases", parameters(2), counts.parameters_two_biases)
        yield _line(row, "MACs per step", f"{gates}*D_n*(D_h+D_x){projection}", work.macs)
        if row.D_x == row.D_h == row.D_n:
            matrices = counts.matrix_weights // row.D_n**2
            vectors = [
                f"{figure // row.D_n}*D = {figure:,} {name}"
                for name, figure in (
                    ("biases", counts.biases),
                    ("peephole weights", counts.peephole_weights),
                )
                if figure
            ]
            without = f", without the {' and the '.join(vectors)}" if vectors else ""
            formula = f"{matrices}*D^2 = {matrices}*{row.D_n}^2"
            yield ["", f"{formula} = {counts.matrix_weights:,}{without}"]
        seen = [f"peephole of {gate}" for gate in letters]
        for label, formulas, value in (
            ("multiplies", table.products, work.elementwise_multiplies),
            ("adds", table.sums, work.elementwise_adds),
        ):
            every = [*formulas, *seen]
            note = f": {', '.join(every)}" if every else ""
            yield _line(row, label, f"{len(every)}*D_n", value, note)
        if counts.biases:
            yield _line(row, "bias adds", f"{gates + own}*D_n", work.bias_adds)
        for name, times in work.activations:
            yield _line(row, name, f"{times // row.D_n}*D_n", times)
        yield _flops("FLOPs per step", work)
        states = {"hidden": "D_h", "cell": "D_n"}
        state = "+".join(states[state.kind] for state in table.states)
        yield _line(row, "state", state, counts.state_size)
        yield _line(row, "values moved", f"D_x+D_h+2*({state})", counts.values_moved)

    def _clockwork_formulas(self, row: LayerCounts) -> Iterator[list[str]]:
        size, counts, work = self.architecture, row.counts, row.work
        periods, units = size.periods, size.module_size
        modules = [(period, row.D_n - size.module_reads(m)) for m, period in enumerate(periods)]
        read = "+".join(str(width) for _, width in modules)
        shares = "+".join(f"1/{period}" for period in periods)
        terms = "+".join(f"({row.D_x}+{width})/{period}" for period, width in modules)

        def line(label: str, words: str, numbers: str, value: Figure) -> list[str]:
            exact = f" = {value}" if isinstance(value, Fraction) else ""
            return [label, f"{words} = {numbers} = {_text(value)}{exact}"]

        yield line("k", "units of a module", f"{row.D_n}/{len(periods)}", units)
        for label, biases, parameters in (
            ("parameters", int(counts.biases > 0), counts.parameters),
            ("with two biases", 2, counts.parameters_two_biases),
        ):
            if parameters is not None:
                yield line(
                    label,
                    "D_n*D_x+k*(units that each module reads)" + ("", "+D_n", "+2*D_n")[biases],
                    f"{row.D_n}*{row.D_x}+{units}*({read})"
                    + ("", f"+{row.D_n}", f"+2*{row.D_n}")[biases],
                    parameters,
                )
        yield line(
            "average MACs",
            "k*(sum of (D_x+units read)/period)",
            f"{units}*({terms})",
            work.average.macs,
        )
        yield line(
            "peak MACs",
            "D_n*D_x+k*(units that each module reads)",
            f"{row.D_n}*{row.D_x}+{units}*({read})",
            work.peak.macs,
        )
        vectors = [("bias adds", work.average.bias_adds, work.peak.bias_adds)]
        vectors += [
            (name, average, peak)
            for (name, average), (_, peak) in zip(
                work.average.activations, work.peak.activations, strict=True
            )
        ]
        for name, average, peak in vectors:
            if peak:
                yield line(f"average {name}", "k*(sum of 1/period)", f"{units}*({shares})", average)
                yield _line(row, f"peak {name}", f"{peak // row.D_n}*D_n", peak)
        yield _flops("average FLOPs", work.average)
        yield _flops("peak FLOPs", work.peak)
        yield _line(row, "state", "D_n", counts.state_size, " and the step counter t")
        yield _line(row, "values moved", "D_x+D_h+2*(D_n)", counts.values_moved)

    def _sums(self) -> Iterator[list[str]]:
        groups = [(len(rows), rows[0]) for _, rows in self._alike()]
        size, clockwork = WEIGHT_BYTES[self.dtype], bool(self.architecture.periods)
        weights, moved = self.weight_bytes, self.bytes_per_step_cached
        which, many = "steps*batch", f"{self.steps}*{self.batch}"
        if self.lengths is not None:
            few = len(self.lengths) <= MOST_TERMS
            which = "(sum of lengths)"
            many = f"({'+'.join(map(str, self.lengths if few else [self.sequence_steps]))})"

        def total(label: str, figures: Iterable[Figure], value: Figure) -> list[str]:
            terms = zip((times for times, _ in groups), map(_exact, figures), strict=True)
            return [label, f"{'+'.join(f'{n}*{figure}' for n, figure in terms)} = {_text(value)}"]

        def line(label: str, formula: str, numbers: str, value: float) -> list[str]:
            return [label, f"{formula} = {numbers} = {_text(value)}"]

        parameters = (row.counts.parameters for _, row in groups)
        yield total("parameters, effective", parameters, self.parameters)
        for label, of in (
            ("MACs", attrgetter("macs")),
            ("FLOPs", attrgetter("flops")),
        ):
            peaks = [of(row.work.peak) for _, row in groups]
            if clockwork:
                averages = [of(row.work.average) for _, row in groups]
                yield total(f"average {label}", averages, of(self.average))
                yield total(f"peak {label}", peaks, of(self.peak))
                formula = f"layers*(active steps of a module)*(its {label})"
                numbers = "+".join(
                    f"{times}*{self._runs(part.period)}*{of(part.operations)}"
                    for times, row in groups
                    for part in row.work.parts
                )
            else:
                yield total(f"{label} per step", peaks, of(self.peak))
                formula = f"{which}*{label} per step"
                numbers = f"{many}*{of(self.peak)}"
            yield line(label, formula, numbers, of(self.executed))
        if self.backward_macs is not None:
            inputs = sum(
                int(self._executed[row.counts].input_macs) for row in self.layers if row.layer == 0
            )
            of_h = sum(self._products_of_h(row.counts) for row in self.layers)
            yield line(
                "backward MACs",
                "2*MACs-those of x in layer 0-batch*those of h in a first step",
                f"2*{self.macs}-{inputs}-{self.batch}*{of_h}",
                self.backward_macs,
            )
        yield line(
            "weight bytes",
            f"{self.dtype}*matrices+float32*(biases+peepholes)",
            f"{size}*{self.total.matrix_weights}"
            f"+{FLOAT_BYTES}*({self.total.biases}+{self.total.peephole_weights})",
            weights,
        )
        counters = self.total.state_counters
        yield line(
            "bytes per step, weights cached",
            "batch*(float32*values moved" + ("+2*int64*counters)" if counters else ")"),
            f"{self.batch}*({FLOAT_BYTES}*{self.total.values_moved}"
            + (f"+2*{COUNTER_BYTES}*{counters})" if counters else ")"),
            moved,
        )
        yield line(
            "peak bytes per step" if clockwork else "bytes per step",
            "weight bytes+bytes cached",
            f"{weights}+{moved}",
            self.peak_bytes_per_step,
        )

    def _both_directions(self) -> str:
        twin = count(replace(self.architecture, bidirectional=False))
        rows = [["matrix weights", "two directions / one = ratio"]]
        for one in twin.layers[:2]:
            alone = one.counts.matrix_weights
            both = sum(row.counts.matrix_weights for row in self.layers if row.layer == one.layer)
            label, why = (
                ("layer 0", "the same layer twice")
                if one.layer == 0
                else ("each layer above", "twice, and each reads both directions: D_x = 2*D_h")
            )
            rows.append([label, f"{both:,} / {alone:,} = {both / alone:.4g}: {why}"])
        return "Beside the same network in one direction\n" + aligned(rows, left=2)


class _Layer(Protocol):
    @property
    def architecture(self) -> Architecture: ...


def count(
    model: str | Architecture | _Layer,
    *,
    steps: int = 1,
    batch: int = 1,
    lengths: Iterable[int] | None = None,
    dtype: str = "float32",
    rate: float | None = None,
    backward: bool = False,
    **sizes: Any,
) -> Complexity:
    """Count what a recurrent network costs.

    Parameters
    ----------
    model
        An :class:`~fusedrnn.architecture.Architecture`, a layer (anything with an ``architecture``), or
        the name of a cell, whose sizes then follow as keywords.
    steps
        T: steps of a sequence, >= 1.
    batch
        B: sequences side by side, >= 1.
    lengths
        Steps of each sequence, >= 1, where they differ; instead of ``steps`` and ``batch``.
    dtype
        Type of the matrix weights, which only the bytes depend on: "float32", "bfloat16", "int8".
    rate
        Steps per second, for the figures per second.
    backward
        Count the matrix products of the backward pass too: ``backward_macs``, ``training_macs``.
    **sizes
        With a cell's name, the fields of :class:`~fusedrnn.architecture.Architecture`: ``input_size``,
        ``hidden_size``, ``num_layers``, ``bidirectional``, ``proj_size``, ``bias``, ...

    Returns
    -------
    Complexity

    Raises
    ------
    TypeError, ValueError
        For a model, size or option that is unknown, missing or out of range.

    Examples
    --------
    >>> count("lstm", input_size=1500, hidden_size=1500).parameters
    18006000
    """
    architecture = _architecture(model, sizes)
    if dtype not in WEIGHT_BYTES:
        raise ValueError(f"dtype must be one of {', '.join(WEIGHT_BYTES)}, got {dtype!r}")
    if not isinstance(backward, bool):
        raise TypeError(f"backward must be True or False, not {type(backward).__name__}")
    steps, batch = checked_size("steps", steps, 1), checked_size("batch", batch, 1)
    unequal = _lengths(lengths)
    if unequal is not None:
        if (steps, batch) != (1, 1):
            raise ValueError("lengths say how many steps and sequences there are: give no others")
        steps, batch = max(unequal), len(unequal)
    return Complexity(
        architecture=architecture,
        steps=steps,
        batch=batch,
        lengths=unequal,
        dtype=dtype,
        rate=_rate(rate),
        backward=backward,
        layers=tuple(_layers(architecture)),
    )


def aligned(rows: Sequence[Sequence[str]], *, left: int) -> str:
    """Lay out rows of text in columns: the first ``left`` to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _architecture(model: object, sizes: dict[str, Any]) -> Architecture:
    if isinstance(model, str):
        known = {field.name: field for field in fields(Architecture) if field.name != "cell"}
        for name in sizes:
            if name not in known:
                raise TypeError(f"unknown keyword {name!r}; a cell has {', '.join(known)}")
        for name, field in known.items():
            if field.default is MISSING and name not in sizes:
                raise TypeError(f"{name} is missing: a cell's name needs its sizes")
        return Architecture(model, **sizes)
    architecture = getattr(model, "architecture", model)
    if not isinstance(architecture, Architecture):
        kind = type(model).__name__
        raise TypeError(f"model must be a cell's name, an Architecture or a layer, not {kind}")
    if sizes:
        raise TypeError(f"{', '.join(sizes)}: an Architecture or a layer brings its own sizes")
    return architecture


def _rate(rate: object) -> int | float | None:
    if rate is None:
        return None
    if isinstance(rate, bool) or not isinstance(rate, numbers.Real):
        raise TypeError(f"rate must be a number, not {type(rate).__name__}")
    # An int stays one: figures per second are then exact.
    number = int(rate) if isinstance(rate, numbers.Integral) else float(rate)
    if not 0 < number < math.inf:
        raise ValueError(f"rate must be above 0 and finite, got {rate}")
    return number


def _lengths(lengths: Iterable[int] | None) -> tuple[int, ...] | None:
    if lengths is None:
        return None
    if isinstance(lengths, str) or not hasattr(lengths, "__iter__"):
        raise TypeError(f"lengths must be a sequence of ints, not {type(lengths).__name__}")
    every = tuple(checked_size("lengths", length, 0) for length in lengths)
    if not any(every):
        raise ValueError("lengths must name a length per sequence, not all of them 0")
    return every


def _described(architecture: Architecture) -> Iterator[tuple[str, Any]]:
    """The fields of an architecture for a file, without the options that its cell does not have."""
    options = frozenset().union(*(forms[0].options for forms in CELLS.values()))
    for name, value in asdict(architecture).items():
        if name not in options - architecture.table.options:
            yield name, list(value) if isinstance(value, tuple) else value


def _chosen(architecture: Architecture) -> Iterator[tuple[str, str]]:
    """The options that are not at their default; the form of a cell is in its title."""
    for field in fields(Architecture):
        value = getattr(architecture, field.name)
        named = field.name in architecture.table.options - {"coupled", "reset"}
        if named and value != field.default:
            every = value if isinstance(value, tuple) else (value,)
            words = (f"{one:g}" if isinstance(one, float) else str(one) for one in every)
            yield field.name, ",".join(words)


def _elements(architecture: Architecture) -> dict[tuple[int, int], Counter[str]]:
    """Elements of the weights by kind, for each layer and direction."""
    elements: dict[tuple[int, int], Counter[str]] = {}
    for weight in architecture.weights():
        place = elements.setdefault((weight.layer, weight.direction), Counter())
        place[weight.kind] += weight.elements
    return elements


def _layers(architecture: Architecture) -> Iterator[LayerCounts]:
    table, units = architecture.table, architecture.hidden_size
    stored = _elements(architecture)
    without = architecture.bias == "none"
    one = stored if without else _elements(replace(architecture, bias="single"))
    two = stored if without else _elements(replace(architecture, bias="double"))
    widths = {"hidden": architecture.fed_back, "cell": units, "counter": 0}
    state = sum(widths[state.kind] for state in table.states)
    counters = sum(state.kind == "counter" for state in table.states)
    works: dict[Counts, Work] = {}
    for (layer, direction), elements in stored.items():
        width = architecture.layer_input(layer)
        counts = Counts(
            input_weights=elements["input"],
            recurrent_weights=elements["recurrent"],
            projection_weights=elements["projection"],
            peephole_weights=elements["peephole"],
            biases=one[layer, direction]["bias"],
            biases_stored=elements["bias"],
            biases_two=two[layer, direction]["bias"],
            state_size=state,
            state_counters=counters,
            values_moved=width + architecture.fed_back + 2 * state,
        )
        if counts not in works:
            works[counts] = Work(tuple(_parts(architecture, counts)))
        yield LayerCounts(
            layer=layer,
            direction=direction,
            D_x=width,
            D_h=architecture.fed_back,
            D_n=units,
            counts=counts,
            work=works[counts],
        )


def _parts(architecture: Architecture, counts: Counts) -> Iterator[Part]:
    """What a layer executes: all of it each step, or each of its modules in the steps of its own."""
    units = architecture.hidden_size
    if not architecture.periods:
        yield Part(1, _step(architecture, counts, units, counts.recurrent_weights))
        return
    size = architecture.module_size
    for module, period in enumerate(architecture.periods):
        recurrent = size * (units - architecture.module_reads(module))
        yield Part(period, _step(architecture, counts, size, recurrent))


def _step(architecture: Architecture, counts: Counts, active: int, recurrent: int) -> Operations:
    """What a step of ``active`` units executes, which have so many recurrent weights."""
    table, units = architecture.table, architecture.hidden_size
    peepholes = counts.peephole_weights * active // units
    functions = Counter([architecture.activation_of(gate.role).name for gate in table.gates])
    functions.update(architecture.activation_of("output").name for _ in table.outputs)
    limits = len(table.gates) * (architecture.clip is not None)
    limits += architecture.cell_clip is not None
    if limits:
        functions["clip"] = limits
    return Operations(
        input_macs=counts.input_weights * active // units,
        recurrent_macs=recurrent,
        projection_macs=counts.projection_weights * active // units,
        peephole_products=peepholes,
        elementwise_multiplies=active * len(table.products) + peepholes,
        elementwise_adds=active * len(table.sums) + peepholes,
        bias_adds=counts.biases * active // units,
        activations=tuple((name, active * times) for name, times in functions.items()),
    )


def _operations(operations: Operations) -> Iterator[tuple[str, Figure]]:
    """The figures of a table that are for people and files, with their names."""
    for name in ("macs", "elementwise_multiplies", "elementwise_adds", "bias_adds"):
        yield name, getattr(operations, name)
    yield from operations.activations
    yield "flops", operations.flops


def _state_bytes(counts: Counts) -> int:
    return FLOAT_BYTES * counts.state_size + COUNTER_BYTES * counts.state_counters


def _moved_bytes(counts: Counts) -> int:
    """What one step of one sequence moves beside the weights."""
    return FLOAT_BYTES * counts.values_moved + 2 * COUNTER_BYTES * counts.state_counters


def _line(row: LayerCounts, label: str, formula: str, value: Figure, note: str = "") -> list[str]:
    """A formula in the sizes of a row, with their numbers, and its value."""
    numbers = re.sub("D_[xhn]", lambda match: str(getattr(row, match.group())), formula)
    return [label, f"{formula} = {numbers} = {_text(value)}{note}"]


def _flops(label: str, operations: Operations) -> list[str]:
    figures = [operations.bias_adds, operations.elementwise_multiplies, operations.elementwise_adds]
    numbers = "+".join(map(_exact, [operations.macs, *figures]))
    formula = "2*MACs+bias adds+multiplies+adds"
    return [label, f"{formula} = 2*{numbers} = {_text(operations.flops)}"]


def _place(row: LayerCounts) -> dict[str, Any]:
    return {
        "layer": row.layer,
        "direction": DIRECTIONS[row.direction],
        "D_x": row.D_x,
        "D_h": row.D_h,
        "D_n": row.D_n,
    }


def _exact(figure: Figure) -> str:
    """A figure as a term of a formula."""
    return f"({figure})" if isinstance(figure, Fraction) else str(figure)


def _text(figure: float | Fraction | None) -> str:
    """A figure for people; integers keep every digit."""
    if figure is None:
        return "-"
    if isinstance(figure, int):
        return f"{figure:,}"
    return f"{float(figure):,.3f}" if isinstance(figure, Fraction) else f"{figure:,.6g}"
