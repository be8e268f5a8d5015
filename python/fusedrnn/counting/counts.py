"""What a recurrent network costs: parameters, multiply-adds, FLOPs, bytes, before it is built.

What is counted, and what is not, is in :data:`CONVENTIONS`, which travels with every result. Where the numbers come
from: ``operations`` counts one layer and step, ``cost`` adds them up, ``explain`` shows the formulas; this module
takes the arguments and makes the tables.

This module is plain Python: counting needs neither NumPy nor the C extension.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Protocol

from fusedrnn.architecture import Architecture, checked_size
from fusedrnn.cells import CELLS
from fusedrnn.counting.cost import FLOAT_BYTES, WEIGHT_BYTES, Cost
from fusedrnn.counting.explain import explain
from fusedrnn.counting.operations import LayerCounts, Operations, Work, count_layers
from fusedrnn.counting.result import Result, Table, figure_text

__all__ = ["CONVENTIONS", "DIRECTIONS", "MAX_RATE", "Complexity", "HasArchitecture", "count"]

DIRECTIONS = ("forward", "reverse")
#: Steps per second. Below, no figure per second is beyond a float.
MAX_RATE = 10**18

#: What each figure means, in words.
CONVENTIONS = {
    "sizes": "D_x: width of an input row (input_size). D_n: number of units (hidden_size). "
    "D_h: width of the h that is fed back and output: proj_size, or else D_n.",
    "parameters": "Effective: matrix weights, peepholes and one bias per gate block and unit "
    "(none with bias none); a second bias vector is only ever added to the first. Where it is not, "
    "in the candidate of a GRU that resets after the product, the second one counts too. Elements "
    "of a Clockwork matrix that must be zero are no weights.",
    "parameters_stored": "As the weights are stored, by the bias option: none, the effective ones, "
    "or two bias vectors.",
    "parameters_two_biases": "As PyTorch and cuDNN store them: two bias vectors. null with bias "
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
    "state_size": "Floats carried from one step to the next, per sequence; state_counters: integers.",
    "backward_macs": "Multiply-adds of the matrix products of the backward pass, for all steps "
    "and the whole batch: one for the gradient of the weight and one for that of what it is "
    "multiplied with, per MAC; without want_x and want_state, without those that only the gradients of "
    "the input of layer 0 and of the initial states need. null unless asked.",
    "backward": "Further figures of the backward pass, there if it is asked for. Elementwise: as its equations are "
    "written, in every step; three of each per peephole and unit: the gate's sum, the gradient of the peephole, and that "
    "of c; one multiplication per projected unit, which is computed again; one addition per element of h: dy to what the "
    "step after hands back. Bias adds: one per bias. Activations: each again, from the stored sum of its gate, and its "
    "derivative; clip_derivative says whether a value is within its limit. Where a sum of products begins with a value, "
    "no addition is counted for that.",
    "tape_size": "Floats that a forward pass stores for the backward pass, in one step of one sequence: for each "
    "unit the sums of its gates and c' of an LSTM, R_n h + d_n of a GRU that resets after the product; and h'. Padding to "
    "whole vectors, x, the initial states and the weights are not among them. tape_bytes: those of all steps and sequences.",
    "training_macs": "macs + backward_macs.",
}

FOOTNOTE = (
    "D_x: width of an input row. D_h: width of the h that is fed back. D_n: units.\n"
    "MACs: one per matrix weight. FLOPs: 2 * MACs + bias adds + multiplies + adds.\n"
    "effective: one bias per gate block and unit, and a second only where it is not just added to "
    "the first."
)


@dataclass(frozen=True)
class Complexity(Cost, Result):
    """The cost of an :class:`~fusedrnn.architecture.Architecture`, as :func:`count` returns it.

    Its figures are those of :class:`~fusedrnn.counting.cost.Cost`; :data:`CONVENTIONS` says what each one means.
    """

    def explain(self) -> str:
        """Each formula with its numbers, for people who want to check them by hand."""
        return f"{self.title}\n\n{explain(self)}"

    def _document(self) -> Mapping[str, Any]:
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
            "conventions": CONVENTIONS,
            "architecture": dict(_described(self.architecture)),
            "steps": self.steps,
            "batch": self.batch,
            "lengths": self.lengths,
            "cycle": self.cycle,
            "weight_dtype": self.weight_dtype,
            **({"want_x": self.want_x, "want_state": self.want_state} if self.backward else {}),
            "rate": self.rate,
            "layers": [_row(row) | self.figures(row) for row in self.layers],
            "total": self.figures() | sequences,
        }

    def _records(self) -> list[Mapping[str, Any]]:
        """A line for each layer and direction, then one whose ``layer`` is ``total``."""
        rows: list[Mapping[str, Any]] = [_row(row) | self.figures(row) for row in self.layers]
        return [*rows, {"layer": "total"} | self.figures()]

    @property
    def title(self) -> str:
        """The cell, its sizes and options, and what is run, on one line."""
        size = self.architecture
        options = "".join(
            f", {name} {_option_text(value)}"
            for name, value in size.chosen().items()
            # The others have words of their own here, or are in the title of the cell.
            if name not in {"num_layers", "bidirectional", "reverse", "bias", "coupled", "reset"}
        )
        layers = f"{size.num_layers} layer" + ("s" if size.num_layers > 1 else "")
        directions = "two directions" if size.bidirectional else "one direction"
        directions += " (reverse)" if size.reverse else ""
        return (
            f"{size.table.title}: input_size {size.input_size}, hidden_size {size.hidden_size}"
            f"{options}, {layers}, {directions}, bias {size.bias}; {self._extent()}, "
            f"{self.weight_dtype} weights"
        )

    def _title(self) -> str:
        return self.title

    def _extent(self) -> str:
        """What figures without ``per_step`` are for."""
        if self.lengths is None:
            return f"steps {self.steps:,}, batch {self.batch:,}"
        return f"lengths up to {self.steps:,}, {self.sequence_steps:,} in all, batch {self.batch:,}"

    def _tables(self) -> Iterator[Table]:
        yield self._parameter_table()
        caption = "Operations in one step of one sequence"
        if self.architecture.periods:
            yield self._operation_table(f"{caption}, on average", average=True)
            yield self._operation_table(f"{caption}, at the peak", average=False)
        else:
            yield self._operation_table(caption, average=False)
        if self.backward:
            average = ", on average" * bool(self.architecture.periods)
            yield self._backward_table(f"Backward pass of one step of one sequence{average}")
        yield self._summary()

    def _notes(self) -> Iterator[str]:
        yield FOOTNOTE

    def _names(self) -> Iterator[list[str]]:
        """Layer and direction of each line of a table."""
        for row in self.layers:
            yield [str(row.layer), DIRECTIONS[row.direction]]
        if len(self.layers) > 1:
            yield ["total", ""]

    def _parameter_table(self) -> Table:
        sizes = [
            [figure_text(row.D_x), figure_text(row.D_h), figure_text(row.D_n)]
            for row in self.layers
        ]
        sizes.append(["", "", ""])
        columns = {"input": "input_weights", "recurrent": "recurrent_weights"}
        if self.total.projection_weights:
            columns["projection"] = "projection_weights"
        if self.total.peephole_weights:
            columns["peephole"] = "peephole_weights"
        columns |= {"biases": "biases", "effective": "parameters"}
        every = [*(row.counts for row in self.layers), self.total]
        rows = [
            [*names, *size, *(figure_text(getattr(counts, name)) for name in columns.values())]
            for names, size, counts in zip(self._names(), sizes, every, strict=False)
        ]
        header = ["layer", "direction", "D_x", "D_h", "D_n", *columns]
        return Table("Parameters", header, rows, range(2, len(header)))

    def _operation_table(self, caption: str, *, average: bool) -> Table:
        works: list[Work | Complexity] = [*(row.work for row in self.layers), self]
        every = [work.average if average else work.peak for work in works]
        return self._operations(caption, every)

    def _backward_table(self, caption: str) -> Table:
        every = [self.backward_step(row) for row in self.layers]
        return self._operations(caption, [*every, self.backward_average or every[0]])

    def _operations(self, caption: str, every: list[Operations]) -> Table:
        """A line for each layer and direction, and one for all."""
        functions = [name for name, _ in every[-1].activations]
        header = ["layer", "direction", "MACs", "multiplies", "adds", "bias adds", "FLOPs"]
        header += functions
        rows = [
            [
                *names,
                figure_text(operations.macs),
                figure_text(operations.elementwise_multiplies),
                figure_text(operations.elementwise_adds),
                figure_text(operations.bias_adds),
                figure_text(operations.flops),
                *(figure_text(times) for _, times in operations.activations),
            ]
            for names, operations in zip(self._names(), every, strict=False)
        ]
        return Table(caption, header, rows, range(2, len(header)))

    def _summary(self) -> Table:
        batch = f"batch {self.batch:,}"
        all_steps = f"{self.steps:,} step{'s' * (self.steps > 1)}, {batch}"
        if self.lengths is not None:
            all_steps = f"{self.sequence_steps:,} steps in all, {batch}"
        average = ", average" if self.architecture.periods else ""
        rows = [
            ["parameters, effective", figure_text(self.parameters)],
            [
                f"parameters stored, bias {self.architecture.bias}",
                figure_text(self.parameters_stored),
            ],
            [
                "parameters stored with two biases (PyTorch, cuDNN)",
                figure_text(self.parameters_two_biases),
            ],
            [f"MACs, {all_steps}", figure_text(self.macs)],
            [f"FLOPs, {all_steps}", figure_text(self.flops)],
        ]
        if self.backward_executed is not None and self.training_macs is not None:
            rows += [
                [f"MACs of the backward pass, {all_steps}", figure_text(self.backward_macs)],
                ["FLOPs of the backward pass", figure_text(self.backward_executed.flops)],
                ["MACs, forward and backward", figure_text(self.training_macs)],
                ["FLOPs of those MACs, forward", figure_text(2 * self.macs)],
                ["FLOPs of those MACs, forward and backward", figure_text(2 * self.training_macs)],
            ]
            rows += [
                ["tape bytes per step of one sequence", figure_text(FLOAT_BYTES * self.tape_size)],
                [f"tape bytes, {all_steps}", figure_text(self.tape_bytes)],
            ]
        rows += [
            [f"state bytes, {batch}", figure_text(self.state_bytes)],
            [f"weight bytes, {self.weight_dtype}", figure_text(self.weight_bytes)],
        ]
        if average:
            rows.append(["weight bytes per step, average", figure_text(self.weight_bytes_per_step)])
        rows.append([f"bytes per step{average}", figure_text(self.bytes_per_step)])
        if average:
            rows.append(["bytes per step, peak", figure_text(self.peak_bytes_per_step)])
        rows += [
            ["bytes per step, weights cached", figure_text(self.bytes_per_step_cached)],
            [f"bytes, {all_steps}", figure_text(self.bytes)],
            [f"bytes, {all_steps}, weights cached", figure_text(self.bytes_cached)],
            ["FLOPs per byte", f"{self.intensity:,.3f}"],
            ["FLOPs per byte, weights cached", f"{self.intensity_cached:,.3f}"],
        ]
        if self.rate is not None:
            rows += [
                [
                    f"MACs per second at {figure_text(self.rate)} steps/s{average}",
                    figure_text(self.macs_per_second),
                ],
                [f"bytes per second{average}", figure_text(self.bytes_per_second)],
                ["bytes per second, weights cached", figure_text(self.bytes_per_second_cached)],
            ]
        return Table("Totals", ["figure", "value"], rows, [1])


class HasArchitecture(Protocol):
    """A layer, for what only its sizes matter to."""

    @property
    def architecture(self) -> Architecture: ...


def count(
    model: str | Architecture | HasArchitecture,
    *,
    steps: int = 1,
    batch: int = 1,
    lengths: Iterable[int] | None = None,
    weight_dtype: str | None = None,
    rate: float | None = None,
    backward: bool = False,
    want_x: bool = False,
    want_state: bool = False,
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
        Steps of each sequence, >= 0 and not all 0, where they differ; instead of ``steps`` and ``batch``.
    weight_dtype
        Type of the matrix weights, which only the bytes depend on: "float32", "float16", "bfloat16", "int8",
        "w8a7". None: that of the layer, or float32. The scales of int8, one for each row, are not counted.
    rate
        Steps per second, for the figures per second: above 0, at most :data:`MAX_RATE`.
    backward
        Count the backward pass and its tape too: ``backward_macs``, ``training_macs``, ``backward_executed``,
        ``tape_bytes``.
    want_x, want_state
        Count, in the backward pass, also what only the gradients of the input of layer 0 and of the initial states need.
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
    if weight_dtype is None:
        kept = getattr(model, "weight_dtype", "float32")
        weight_dtype = kept if kept in WEIGHT_BYTES else "float32"
    if not isinstance(weight_dtype, str) or weight_dtype not in WEIGHT_BYTES:
        known = ", ".join(WEIGHT_BYTES)
        raise ValueError(f"weight_dtype must be one of {known}, got {weight_dtype!r}")
    switches = {"backward": backward, "want_x": want_x, "want_state": want_state}
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, not {type(value).__name__}")
        if value and not backward:
            raise ValueError(f"{name} is of the backward pass: it needs backward=True")
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
        weight_dtype=weight_dtype,
        rate=_rate(rate),
        **switches,
        layers=tuple(count_layers(architecture)),
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


def _rate(rate: Any) -> int | float | None:
    if rate is None:
        return None
    if isinstance(rate, bool) or not isinstance(rate, numbers.Real):
        raise TypeError(f"rate must be a number, not {type(rate).__name__}")
    # An int stays one: figures per second are then exact.
    exact = isinstance(rate, numbers.Integral)
    value: Any = rate
    if 0 < value <= MAX_RATE and float(value) > 0:
        return int(value) if exact else float(value)
    raise ValueError(f"rate must be above 0 and at most {MAX_RATE:.0e}, got {_short(rate)}")


def _short(number: object) -> str:
    """A number for a message, whatever its size: Python refuses to write an int of very many digits."""
    try:
        text = str(number)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 40 else f"{text[:40]}..."


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
            yield name, value


def _option_text(value: Any) -> str:
    values = value if isinstance(value, tuple) else (value,)
    return ",".join(f"{one:g}" if isinstance(one, float) else str(one) for one in values)


def _row(row: LayerCounts) -> dict[str, Any]:
    """The columns that say which layer a line is of."""
    return {
        "layer": row.layer,
        "direction": DIRECTIONS[row.direction],
        "D_x": row.D_x,
        "D_h": row.D_h,
        "D_n": row.D_n,
    }
