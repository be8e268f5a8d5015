"""What a recurrent network costs: parameters, multiply-adds, FLOPs, bytes, before it is built.

Every number is derived from the cell table and from :meth:`fusedrnn.cells.Architecture.weights`.
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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, Protocol

from fusedrnn.cells import Architecture, _size

__all__ = [
    "CONVENTIONS",
    "WEIGHT_BYTES",
    "Complexity",
    "Counts",
    "LayerCounts",
    "aligned",
    "count",
]

SCHEMA_VERSION = 1
FLOAT_BYTES = 4
#: Bytes of one matrix weight, by the name of its type.
WEIGHT_BYTES = {"float32": FLOAT_BYTES, "bfloat16": 2, "int8": 1}
DIRECTIONS = ("forward", "reverse")
MOST_LAYERS = 10_000

#: What each figure means, in words.
CONVENTIONS = {
    "sizes": "D_x: width of an input row (input_size). D_n: number of units (hidden_size). "
    "D_h: width of the h that is fed back and shown: proj_size, or else D_n.",
    "parameters": "Matrix weights and one bias per gate block and unit (none with bias none): a "
    "second bias vector is only ever added to the first.",
    "parameters_stored": "As the weights are kept: none, one or two bias vectors.",
    "parameters_two_biases": "As PyTorch and cuDNN keep them: two bias vectors. null with bias "
    "none.",
    "macs": "One multiply-add per weight of the input, recurrent and projection matrices, step "
    "and sequence: W x and R h are one sum of D_x + D_h terms.",
    "elementwise": "Multiplications and additions between vectors of units. Not MACs.",
    "bias_adds": "One per bias of parameters. Not MACs.",
    "activations": "Evaluations of sigmoid and tanh, each in a column of its own. Not FLOPs.",
    "flops": "2 * macs + bias_adds + elementwise_multiplies + elementwise_adds.",
    "per_step": "One step of one sequence; bytes: one step of the whole batch. Figures without "
    "per_step are for all steps and the whole batch.",
    "bytes": "Every matrix weight is read once per step in its type, every bias of parameters "
    "once in float32; the scales of int8 weights are left out. Each layer and direction reads x "
    "and its states and writes y and its states, in float32, once per step and sequence.",
    "bytes_cached": "The same without weights and biases: they stay in a cache.",
    "intensity": "flops / bytes.",
    "state_size": "Values kept from one step to the next, per sequence.",
}

FOOTNOTE = (
    "D_x: width of an input row. D_h: width of the h that is fed back. D_n: units.\n"
    "MACs: one per matrix weight. FLOPs: 2 * MACs + bias adds + multiplies + adds.\n"
    "parameters: one bias per gate block and unit; two biases: as in PyTorch and cuDNN."
)


@dataclass(frozen=True)
class Counts:
    """Plain integers that add up: what there is, and what one step of one sequence does.

    Attributes
    ----------
    input_weights, recurrent_weights, projection_weights
        Elements of the matrices that x, the fed-back h, and the h to be projected go through.
    biases
        One per gate block and unit, or 0 for a network without biases.
    biases_stored, biases_two
        The same as they are kept, and as two vectors (0 without biases).
    elementwise_multiplies, elementwise_adds
        Operations between vectors of units.
    activations
        Pairs of a function's name and how often it is evaluated.
    state_size
        Values kept from one step to the next.
    values_moved
        Values of x and the states that are read, and of y and the states that are written.
    """

    input_weights: int
    recurrent_weights: int
    projection_weights: int
    biases: int
    biases_stored: int
    biases_two: int
    elementwise_multiplies: int
    elementwise_adds: int
    activations: tuple[tuple[str, int], ...]
    state_size: int
    values_moved: int

    @property
    def macs(self) -> int:
        """Multiply-adds of the matrix products: one per matrix weight."""
        return self.input_weights + self.recurrent_weights + self.projection_weights

    @property
    def bias_adds(self) -> int:
        """Additions of biases: one per bias."""
        return self.biases

    @property
    def flops(self) -> int:
        """Floating-point operations; activations are not among them."""
        elementwise = self.elementwise_multiplies + self.elementwise_adds
        return 2 * self.macs + self.bias_adds + elementwise

    @property
    def parameters(self) -> int:
        """Matrix weights and one bias per gate block and unit."""
        return self.macs + self.biases

    @property
    def parameters_stored(self) -> int:
        """Elements of the weight arrays as they are kept."""
        return self.macs + self.biases_stored

    @property
    def parameters_two_biases(self) -> int | None:
        """Elements as PyTorch and cuDNN keep them; None without biases."""
        return self.macs + self.biases_two if self.biases else None


@dataclass(frozen=True)
class LayerCounts:
    """One layer in one direction (0 forward, 1 reverse): its sizes and its counts."""

    layer: int
    direction: int
    D_x: int
    D_h: int
    D_n: int
    counts: Counts


def _total(parts: Iterable[Counts]) -> Counts:
    rows = [vars(part) for part in parts]
    sums: dict[str, Any] = {
        name: sum(row[name] for row in rows) for name in rows[0] if name != "activations"
    }
    evaluations: Counter[str] = Counter()
    for row in rows:
        evaluations.update(dict(row["activations"]))
    return Counts(**sums, activations=tuple(evaluations.items()))


@dataclass(frozen=True)
class Complexity:
    """The cost of an :class:`~fusedrnn.cells.Architecture`, as :func:`count` returns it.

    Figures without ``per_step`` are for all steps of the whole batch; :data:`CONVENTIONS` says
    what each one means.

    Attributes
    ----------
    architecture
        What was counted.
    steps, batch
        T steps of B sequences.
    dtype
        Type of the matrix weights, a key of :data:`WEIGHT_BYTES`.
    rate
        Steps per second, or None.
    layers
        One row per layer and direction: one step of one sequence.
    """

    architecture: Architecture
    steps: int
    batch: int
    dtype: str
    rate: int | float | None
    layers: tuple[LayerCounts, ...]

    @cached_property
    def step(self) -> Counts:
        """All layers and directions: one step of one sequence."""
        return _total(row.counts for row in self.layers)

    @property
    def parameters(self) -> int:
        """Matrix weights and one bias per gate block and unit: the headline."""
        return self.step.parameters

    @property
    def parameters_stored(self) -> int:
        """Elements of the weight arrays as they are kept."""
        return self.step.parameters_stored

    @property
    def parameters_two_biases(self) -> int | None:
        """Elements as PyTorch and cuDNN keep them; None without biases."""
        return self.step.parameters_two_biases

    @property
    def macs_per_step(self) -> int:
        """Multiply-adds of one step of one sequence."""
        return self.step.macs

    @property
    def macs(self) -> int:
        """Multiply-adds of all steps and sequences."""
        return self._repeats * self.step.macs

    @property
    def elementwise_multiplies(self) -> int:
        """Multiplications between vectors of units, all steps and sequences."""
        return self._repeats * self.step.elementwise_multiplies

    @property
    def elementwise_adds(self) -> int:
        """Additions between vectors of units, all steps and sequences."""
        return self._repeats * self.step.elementwise_adds

    @property
    def bias_adds(self) -> int:
        """Additions of biases, all steps and sequences."""
        return self._repeats * self.step.bias_adds

    @property
    def activations(self) -> dict[str, int]:
        """Evaluations of each activation, all steps and sequences."""
        return {name: self._repeats * times for name, times in self.step.activations}

    @property
    def flops_per_step(self) -> int:
        """Floating-point operations of one step of one sequence."""
        return self.step.flops

    @property
    def flops(self) -> int:
        """Floating-point operations of all steps and sequences."""
        return self._repeats * self.step.flops

    @property
    def state_size(self) -> int:
        """Values kept from one step to the next, per sequence."""
        return self.step.state_size

    @property
    def state_bytes(self) -> int:
        """Bytes of the states of the whole batch."""
        return FLOAT_BYTES * self.batch * self.step.state_size

    @property
    def weight_bytes(self) -> int:
        """Bytes of the matrices in ``dtype`` and of the biases in float32."""
        return self._weight_bytes(self.step)

    @property
    def bytes_per_step(self) -> int:
        """Bytes that one step of the whole batch moves when it reads every weight."""
        return self.weight_bytes + self.bytes_per_step_cached

    @property
    def bytes_per_step_cached(self) -> int:
        """Bytes that one step of the whole batch moves when the weights stay in a cache."""
        return self._moved_bytes(self.step)

    @property
    def bytes(self) -> int:
        """Bytes moved by all steps when each reads every weight."""
        return self.steps * self.bytes_per_step

    @property
    def bytes_cached(self) -> int:
        """Bytes moved by all steps when the weights stay in a cache."""
        return self.steps * self.bytes_per_step_cached

    @property
    def intensity(self) -> float:
        """FLOPs per byte when each step reads every weight."""
        return self.flops / self.bytes

    @property
    def intensity_cached(self) -> float:
        """FLOPs per byte when the weights stay in a cache."""
        return self.flops / self.bytes_cached

    @property
    def macs_per_second(self) -> int | float | None:
        """Multiply-adds per second of the whole batch at ``rate``; None without a rate."""
        return self._per_second(self.batch * self.step.macs)

    @property
    def bytes_per_second(self) -> int | float | None:
        """Bytes per second at ``rate`` when each step reads every weight; None without a rate."""
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
            "architecture": asdict(self.architecture),
            "steps": self.steps,
            "batch": self.batch,
            "dtype": self.dtype,
            "rate": self.rate,
            "layers": [_place(row) | self._figures(row.counts) for row in self.layers],
            "total": self._figures(self.step) | sequences,
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
        rows = [_place(row) | self._figures(row.counts) for row in self.layers]
        rows.append({"layer": "total"} | self._figures(self.step))
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
            lines = list(self._formulas(rows[0]))
            blocks.append(f"{label}\n{aligned(lines, left=2)}")
        blocks.append(f"All layers\n{aligned(list(self._sums()), left=2)}")
        if self.architecture.bidirectional:
            blocks.append(self._both_directions())
        return "\n\n".join(blocks)

    @property
    def _repeats(self) -> int:
        return self.steps * self.batch

    def _weight_bytes(self, counts: Counts) -> int:
        return WEIGHT_BYTES[self.dtype] * counts.macs + FLOAT_BYTES * counts.biases

    def _moved_bytes(self, counts: Counts) -> int:
        return FLOAT_BYTES * self.batch * counts.values_moved

    def _per_second(self, figure: int) -> int | float | None:
        return None if self.rate is None else self.rate * figure

    def _figures(self, counts: Counts) -> dict[str, int | None]:
        weight_bytes, moved_bytes = self._weight_bytes(counts), self._moved_bytes(counts)
        return {
            "input_weights": counts.input_weights,
            "recurrent_weights": counts.recurrent_weights,
            "projection_weights": counts.projection_weights,
            "biases": counts.biases,
            "parameters": counts.parameters,
            "parameters_stored": counts.parameters_stored,
            "parameters_two_biases": counts.parameters_two_biases,
            "macs_per_step": counts.macs,
            "elementwise_multiplies_per_step": counts.elementwise_multiplies,
            "elementwise_adds_per_step": counts.elementwise_adds,
            "bias_adds_per_step": counts.bias_adds,
            **{f"{name}_per_step": times for name, times in counts.activations},
            "flops_per_step": counts.flops,
            "macs": self._repeats * counts.macs,
            "elementwise_multiplies": self._repeats * counts.elementwise_multiplies,
            "elementwise_adds": self._repeats * counts.elementwise_adds,
            "bias_adds": self._repeats * counts.bias_adds,
            **{name: self._repeats * times for name, times in counts.activations},
            "flops": self._repeats * counts.flops,
            "state_size": counts.state_size,
            "weight_bytes": weight_bytes,
            "bytes_per_step": weight_bytes + moved_bytes,
            "bytes_per_step_cached": moved_bytes,
        }

    def _title(self) -> str:
        size = self.architecture
        projection = f", proj_size {size.proj_size}" if size.proj_size else ""
        layers = f"{size.num_layers} layer" + ("s" if size.num_layers > 1 else "")
        directions = "two directions" if size.bidirectional else "one direction"
        return (
            f"{size.table.title}: input_size {size.input_size}, hidden_size {size.hidden_size}"
            f"{projection}, {layers}, {directions}, bias {size.bias}; steps {self.steps:,}, "
            f"batch {self.batch:,}, {self.dtype} weights"
        )

    def _tables(self) -> Iterator[tuple[str, list[str], list[list[str]], int]]:
        """Caption, header, rows, and how many columns are words, of each table for people."""
        yield self._parameter_table()
        yield self._operation_table()
        yield self._summary()

    def _rows(self) -> Iterator[tuple[list[str], Counts]]:
        for row in self.layers:
            yield [str(row.layer), DIRECTIONS[row.direction]], row.counts
        if len(self.layers) > 1:
            yield ["total", ""], self.step

    def _parameter_table(self) -> tuple[str, list[str], list[list[str]], int]:
        sizes = [[_text(row.D_x), _text(row.D_h), _text(row.D_n)] for row in self.layers]
        sizes.append(["", "", ""])
        header = ["layer", "direction", "D_x", "D_h", "D_n"]
        header += ["input", "recurrent", "projection", "biases", "parameters"]
        rows = [
            [
                *place,
                *size,
                _text(counts.input_weights),
                _text(counts.recurrent_weights),
                _text(counts.projection_weights),
                _text(counts.biases),
                _text(counts.parameters),
            ]
            for (place, counts), size in zip(self._rows(), sizes, strict=False)
        ]
        return "Parameters", header, rows, 2

    def _operation_table(self) -> tuple[str, list[str], list[list[str]], int]:
        names = [name for name, _ in self.step.activations]
        header = ["layer", "direction", "MACs", "multiplies", "adds", "bias adds", "FLOPs", *names]
        rows = [
            [
                *place,
                _text(counts.macs),
                _text(counts.elementwise_multiplies),
                _text(counts.elementwise_adds),
                _text(counts.bias_adds),
                _text(counts.flops),
                *(_text(times) for _, times in counts.activations),
            ]
            for place, counts in self._rows()
        ]
        return "Operations in one step of one sequence", header, rows, 2

    def _summary(self) -> tuple[str, list[str], list[list[str]], int]:
        all_steps = f"{self.steps:,} step{'s' * (self.steps > 1)}, batch {self.batch:,}"
        rows = [
            ["parameters", _text(self.parameters)],
            [f"parameters as stored, bias {self.architecture.bias}", _text(self.parameters_stored)],
            ["parameters with two biases", _text(self.parameters_two_biases)],
            [f"MACs, {all_steps}", _text(self.macs)],
            [f"FLOPs, {all_steps}", _text(self.flops)],
            [f"state bytes, batch {self.batch:,}", _text(self.state_bytes)],
            [f"weight bytes, {self.dtype}", _text(self.weight_bytes)],
            ["bytes per step", _text(self.bytes_per_step)],
            ["bytes per step, weights cached", _text(self.bytes_per_step_cached)],
            [f"bytes, {all_steps}", _text(self.bytes)],
            [f"bytes, {all_steps}, weights cached", _text(self.bytes_cached)],
            ["FLOPs per byte", f"{self.intensity:,.3f}"],
            ["FLOPs per byte, weights cached", f"{self.intensity_cached:,.3f}"],
        ]
        if self.rate is not None:
            rows += [
                [f"MACs per second at {_text(self.rate)} steps/s", _text(self.macs_per_second)],
                ["bytes per second", _text(self.bytes_per_second)],
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
        table, counts = self.architecture.table, row.counts
        gates = len(table.gates)
        projection = "+D_h*D_n" if counts.projection_weights else ""
        state = "+".join("D_h" if state.fed_back else "D_n" for state in table.states)

        def line(label: str, formula: str, value: int, note: str = "") -> list[str]:
            numbers = re.sub("D_[xhn]", lambda match: str(getattr(row, match.group())), formula)
            return [label, f"{formula} = {numbers} = {value:,}{note}"]

        def parameters(biases: int) -> str:
            bias = ("", "+D_n", "+2*D_n")[biases]
            return f"{gates}*(D_n*(D_h+D_x){bias}){projection}"

        yield line("parameters", parameters(bool(counts.biases)), counts.parameters)
        if counts.parameters_two_biases is not None:
            yield line("with two biases", parameters(2), counts.parameters_two_biases)
        yield line("MACs per step", f"{gates}*D_n*(D_h+D_x){projection}", counts.macs)
        if row.D_x == row.D_h == row.D_n:
            matrices = counts.macs // row.D_n**2
            without = f", without the {gates}*D = {gates * row.D_n:,} biases"
            formula = f"{matrices}*D^2 = {matrices}*{row.D_n}^2"
            yield ["", f"{formula} = {counts.macs:,}{without if counts.biases else ''}"]
        for label, formulas, value in (
            ("multiplies", table.products, counts.elementwise_multiplies),
            ("adds", table.sums, counts.elementwise_adds),
        ):
            note = f": {', '.join(formulas)}" if formulas else ""
            yield line(label, f"{len(formulas)}*D_n", value, note)
        if counts.biases:
            yield line("bias adds", f"{gates}*D_n", counts.bias_adds)
        for name, times in counts.activations:
            yield line(name, f"{times // row.D_n}*D_n", times)
        operations = (
            f"2*{counts.macs}+{counts.bias_adds}+{counts.elementwise_multiplies}"
            f"+{counts.elementwise_adds}"
        )
        flops = f"2*MACs+bias adds+multiplies+adds = {operations}"
        yield ["FLOPs per step", f"{flops} = {counts.flops:,}"]
        yield line("state", state, counts.state_size)
        yield line("values moved", f"D_x+D_h+2*({state})", counts.values_moved)

    def _sums(self) -> Iterator[list[str]]:
        groups = [(len(rows), rows[0].counts) for _, rows in self._alike()]
        step, size, many = self.step, WEIGHT_BYTES[self.dtype], f"{self.steps}*{self.batch}"
        weights, moved = self.weight_bytes, self.bytes_per_step_cached

        def total(name: str) -> str:
            terms = "+".join(f"{times}*{getattr(counts, name)}" for times, counts in groups)
            return f"{terms} = {getattr(step, name):,}"

        def line(label: str, formula: str, numbers: str, value: float) -> list[str]:
            return [label, f"{formula} = {numbers} = {_text(value)}"]

        yield ["parameters", total("parameters")]
        yield ["MACs per step", total("macs")]
        yield line("MACs", "steps*batch*MACs per step", f"{many}*{step.macs}", self.macs)
        yield ["FLOPs per step", total("flops")]
        yield line("FLOPs", "steps*batch*FLOPs per step", f"{many}*{step.flops}", self.flops)
        yield line(
            "weight bytes",
            f"{self.dtype}*matrices+float32*biases",
            f"{size}*{step.macs}+{FLOAT_BYTES}*{step.biases}",
            weights,
        )
        yield line(
            "bytes per step, weights cached",
            "float32*batch*values moved",
            f"{FLOAT_BYTES}*{self.batch}*{step.values_moved}",
            moved,
        )
        yield line(
            "bytes per step",
            "weight bytes+bytes cached",
            f"{weights}+{moved}",
            self.bytes_per_step,
        )

    def _both_directions(self) -> str:
        twin = count(replace(self.architecture, bidirectional=False))
        rows = [["MACs per step", "two directions / one = ratio"]]
        for one in twin.layers[:2]:
            both = sum(row.counts.macs for row in self.layers if row.layer == one.layer)
            label, why = (
                ("layer 0", "the same layer twice")
                if one.layer == 0
                else ("each layer above", "twice, and each reads both directions: D_x = 2*D_h")
            )
            ratio = f"{both:,} / {one.counts.macs:,} = {both / one.counts.macs:.4g}"
            rows.append([label, f"{ratio}: {why}"])
        return "Beside the same network in one direction\n" + aligned(rows, left=2)


class _Layer(Protocol):
    @property
    def architecture(self) -> Architecture: ...


def count(
    model: str | Architecture | _Layer,
    *,
    steps: int = 1,
    batch: int = 1,
    dtype: str = "float32",
    rate: float | None = None,
    **sizes: Any,
) -> Complexity:
    """Count what a recurrent network costs.

    Parameters
    ----------
    model
        An :class:`~fusedrnn.cells.Architecture`, a layer (anything with an ``architecture``), or
        the name of a cell, whose sizes then follow as keywords.
    steps
        T: steps of a sequence, >= 1.
    batch
        B: sequences side by side, >= 1.
    dtype
        Type of the matrix weights, which only the bytes depend on: "float32", "bfloat16", "int8".
    rate
        Steps per second, for the figures per second.
    **sizes
        With a cell's name, the fields of :class:`~fusedrnn.cells.Architecture`: ``input_size``,
        ``hidden_size``, ``num_layers``, ``bidirectional``, ``proj_size``, ``bias``.

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
    if architecture.num_layers > MOST_LAYERS:
        raise ValueError(
            f"num_layers must be at most {MOST_LAYERS} to be counted, got {architecture.num_layers}"
        )
    if dtype not in WEIGHT_BYTES:
        raise ValueError(f"dtype must be one of {', '.join(WEIGHT_BYTES)}, got {dtype!r}")
    return Complexity(
        architecture=architecture,
        steps=_size("steps", steps, 1),
        batch=_size("batch", batch, 1),
        dtype=dtype,
        rate=_rate(rate),
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


def _elements(architecture: Architecture) -> dict[tuple[int, int], Counter[str]]:
    """Elements of the weights by kind, for each layer and direction."""
    elements: dict[tuple[int, int], Counter[str]] = {}
    for weight in architecture.weights():
        place = elements.setdefault((weight.layer, weight.direction), Counter())
        place[weight.kind] += weight.size
    return elements


def _layers(architecture: Architecture) -> Iterator[LayerCounts]:
    table, units = architecture.table, architecture.hidden_size
    stored = _elements(architecture)
    without = architecture.bias == "none"
    one = stored if without else _elements(replace(architecture, bias="single"))
    two = stored if without else _elements(replace(architecture, bias="double"))
    evaluations = Counter([gate.activation for gate in table.gates])
    evaluations.update(table.activations)
    state = sum(architecture.state_width(state) for state in table.states)
    for (layer, direction), elements in stored.items():
        width = architecture.layer_input(layer)
        yield LayerCounts(
            layer=layer,
            direction=direction,
            D_x=width,
            D_h=architecture.fed_back,
            D_n=units,
            counts=Counts(
                input_weights=elements["input"],
                recurrent_weights=elements["recurrent"],
                projection_weights=elements["projection"],
                biases=one[layer, direction]["bias"],
                biases_stored=elements["bias"],
                biases_two=two[layer, direction]["bias"],
                elementwise_multiplies=units * len(table.products),
                elementwise_adds=units * len(table.sums),
                activations=tuple((name, units * times) for name, times in evaluations.items()),
                state_size=state,
                values_moved=width + architecture.fed_back + 2 * state,
            ),
        )


def _place(row: LayerCounts) -> dict[str, Any]:
    return {
        "layer": row.layer,
        "direction": DIRECTIONS[row.direction],
        "D_x": row.D_x,
        "D_h": row.D_h,
        "D_n": row.D_n,
    }


def _text(figure: float | None) -> str:
    """A figure for people; integers keep every digit."""
    if figure is None:
        return "-"
    return f"{figure:,}" if isinstance(figure, int) else f"{figure:,.6g}"
