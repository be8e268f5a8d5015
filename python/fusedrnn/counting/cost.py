"""What a stack of recurrent layers costs in T steps of B sequences: parameters, multiply-adds, FLOPs, bytes.

The figures of one layer and step come from :mod:`fusedrnn.counting.operations`; here they are added up.

This module is plain Python: counting needs neither NumPy nor the C extension.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import cached_property

from fusedrnn.architecture import Architecture
from fusedrnn.counting.operations import (
    Counts,
    LayerCounts,
    Operations,
    sum_operations,
    whole,
)
from fusedrnn.counting.result import Figure

__all__ = ["FLOAT_BYTES", "WEIGHT_BYTES", "Cost"]

FLOAT_BYTES, COUNTER_BYTES = 4, 8
#: Bytes of one matrix weight, by the name of its type.
WEIGHT_BYTES = {"float32": FLOAT_BYTES, "float16": 2, "bfloat16": 2, "int8": 1, "w8a7": 1}


@dataclass(frozen=True)
class Cost:
    """The cost of an :class:`~fusedrnn.architecture.Architecture`, in numbers.

    Figures without ``per_step`` are for all steps of the whole batch. Figures ``per_step`` are averages, which are fractions where a Clockwork RNN
    makes them so; ``peak`` is its busiest step. For every other cell the two are the same.

    Attributes
    ----------
    architecture
        What was counted.
    steps, batch
        T steps of B sequences; of sequences of unequal length, the steps of the longest.
    lengths
        Steps of each sequence, where they were given.
    weight_dtype
        Type of the matrix weights, a key of :data:`WEIGHT_BYTES`.
    rate
        Steps per second, or None.
    backward, want_x, want_state
        Whether the backward pass is counted too, and whether it gives the gradients of the input of layer 0 and
        of the initial states beside those of the weights.
    layers
        One row per layer and direction.
    """

    architecture: Architecture
    steps: int
    batch: int
    lengths: tuple[int, ...] | None
    weight_dtype: str
    rate: int | float | None
    backward: bool
    want_x: bool
    want_state: bool
    layers: tuple[LayerCounts, ...]

    @cached_property
    def total(self) -> Counts:
        """What all layers and directions hold."""
        names = [field.name for field in fields(Counts)]
        return Counts(*(sum(getattr(row.counts, name) for row in self.layers) for name in names))

    @cached_property
    def average(self) -> Operations:
        """One step of one sequence in all layers and directions, on average."""
        return sum_operations((many, row.work.average) for row, many in self._kinds)

    @cached_property
    def peak(self) -> Operations:
        """One step of one sequence in all layers and directions, when nothing rests."""
        return sum_operations((many, row.work.peak) for row, many in self._kinds)

    @cached_property
    def executed(self) -> Operations:
        """All steps of all sequences in all layers and directions."""
        return sum_operations((many, self.executed_by[row.counts]) for row, many in self._kinds)

    @property
    def cycle(self) -> int:
        """Steps after which a Clockwork RNN repeats itself; 1 for every other cell."""
        return math.lcm(*self.architecture.periods)

    @property
    def sequence_steps(self) -> int:
        """Steps of all sequences together: steps * batch, or the sum of the lengths."""
        return self.runs(1)

    @property
    def parameters(self) -> int:
        """Matrix weights, peepholes and effective biases: the headline."""
        return self.total.parameters

    @property
    def parameters_stored(self) -> int:
        """Elements of the weight arrays as they are stored."""
        return self.total.parameters_stored

    @property
    def parameters_two_biases(self) -> int | None:
        """Elements as PyTorch and cuDNN store them; None without biases."""
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
    def backward_executed(self) -> Operations | None:
        """The backward pass of all steps of all sequences in all layers and directions; None unless asked for."""
        if not self.backward:
            return None
        times = Counter(map(_kind, self.layers))
        return sum_operations((many, self._backward_by[kind]) for kind, many in times.items())

    @cached_property
    def backward_average(self) -> Operations | None:
        """The backward pass of one step of one sequence that is not its first, on average; None unless asked for."""
        if not self.backward:
            return None
        return sum_operations((1, self.backward_step(row)) for row in self.layers)

    @property
    def backward_macs(self) -> int | None:
        """Multiply-adds of the backward pass, all steps and sequences; None unless asked for."""
        return None if self.backward_executed is None else int(self.backward_executed.macs)

    @property
    def training_macs(self) -> int | None:
        """Multiply-adds of both passes, all steps and sequences; None unless asked for."""
        return None if self.backward_macs is None else self.macs + self.backward_macs

    @property
    def tape_size(self) -> int:
        """Floats that a forward pass stores for the backward pass, of one step of one sequence."""
        return sum(row.tape_size for row in self.layers)

    @property
    def tape_bytes(self) -> int:
        """Bytes that a forward pass stores for the backward pass, of all steps and sequences."""
        return FLOAT_BYTES * self.sequence_steps * self.tape_size

    @property
    def state_size(self) -> int:
        """Floats carried from one step to the next, per sequence."""
        return self.total.state_size

    @property
    def state_counters(self) -> int:
        """Integers carried from one step to the next, per sequence."""
        return self.total.state_counters

    @property
    def state_bytes(self) -> int:
        """Bytes of the states of the whole batch."""
        return self.batch * _state_bytes(self.total)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the matrices in ``weight_dtype``, of the peepholes and effective biases in float32."""
        return self._weight_bytes(self.total)

    @property
    def weight_bytes_per_step(self) -> Figure:
        """Bytes of the weights that a step reads, on average; at the peak: all of them."""
        return self._read_bytes(self.average)

    @property
    def bytes_per_step(self) -> Figure:
        """Bytes that one step of the whole batch moves, on average, when it reads its weights."""
        return whole(self.weight_bytes_per_step + self.bytes_per_step_cached)

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
        read = sum_operations((many, row.work.executed(self._reads)) for row, many in self._kinds)
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

    def runs(self, period: int) -> int:
        """How often what has this period runs, in all sequences from t = 0."""
        if self.lengths is None:
            return self.batch * self._reads(period)
        return sum(-(-length // period) for length in self.lengths)

    def _reads(self, period: int) -> int:
        """In how many steps of the batch what has this period runs: sequences start together."""
        return -(-self.steps // period)

    @cached_property
    def _kinds(self) -> list[tuple[LayerCounts, int]]:
        """One row of each kind, and how many there are: layers with equal counts cost the same."""
        times = Counter(row.counts for row in self.layers)
        first = {row.counts: row for row in reversed(self.layers)}
        return [(first[counts], many) for counts, many in times.items()]

    @cached_property
    def executed_by(self) -> dict[Counts, Operations]:
        """All steps of all sequences, by the counts of a layer."""
        return {row.counts: row.work.executed(self.runs) for row, _ in self._kinds}

    @cached_property
    def _backward_by(self) -> dict[tuple[Counts, bool], Operations]:
        """The backward pass of a row: all steps and sequences, by its counts and whether it is of layer 0."""
        first = {_kind(row): row for row in reversed(self.layers)}
        return {kind: self._backward(row) for kind, row in first.items()}

    def _backward(self, row: LayerCounts) -> Operations:
        done = self._wanted(row, row.backward.executed(self.runs), self.executed_by[row.counts])
        unwanted = 0 if self.want_state else self.batch * self.products_of_h(row.counts)
        return replace(done, recurrent_macs=done.recurrent_macs - unwanted)

    def backward_of(self, row: LayerCounts) -> Operations:
        """The backward pass of a layer and direction, all steps and sequences."""
        return self._backward_by[_kind(row)]

    def backward_step(self, row: LayerCounts) -> Operations:
        """The backward pass of one step of one sequence that is not its first, on average."""
        return self._wanted(row, row.backward.average, row.work.average)

    def _wanted(self, row: LayerCounts, backward: Operations, forward: Operations) -> Operations:
        """The backward pass without the gradient of x where nobody wants it."""
        if row.layer > 0 or self.want_x:
            return backward
        return replace(backward, input_macs=whole(backward.input_macs - forward.input_macs))

    def products_of_h(self, counts: Counts) -> int:
        """Multiply-adds of one step with h itself: in the first step nothing else needs their gradient.

        A gate block that reads another vector through R needs that vector's gradient in every step.
        """
        table = self.architecture.table
        gates = len(table.gates)
        return counts.recurrent_weights * (gates - len(table.after_first_product)) // gates

    def _weight_bytes(self, counts: Counts) -> int:
        vectors = counts.peephole_weights + counts.biases
        return WEIGHT_BYTES[self.weight_dtype] * counts.matrix_weights + FLOAT_BYTES * vectors

    def _read_bytes(self, operations: Operations) -> Figure:
        """Bytes of the weights that these operations read, each of them once."""
        vectors = operations.peephole_products + operations.bias_adds
        return whole(WEIGHT_BYTES[self.weight_dtype] * operations.macs + FLOAT_BYTES * vectors)

    def _per_second(self, figure: Figure) -> int | float | None:
        if self.rate is None:
            return None
        product = self.rate * figure
        if isinstance(product, Fraction):
            product = whole(product)
        return product if isinstance(product, int) else float(product)

    def figures(self, row: LayerCounts | None = None) -> dict[str, Figure | None]:
        """The figures of a row, or of all rows, by their names."""
        if row is None:
            counts, backward, size = self.total, self.backward_executed, self.tape_size
            average, peak, executed = self.average, self.peak, self.executed
        else:
            counts, backward = row.counts, self.backward_of(row) if self.backward else None
            size = row.tape_size
            average, peak, executed = row.work.average, row.work.peak, self.executed_by[row.counts]
        read, moved = self._read_bytes(average), self.batch * _moved_bytes(counts)
        return {
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
            "backward_macs": None if backward is None else backward.macs,
            "training_macs": None if backward is None else executed.macs + backward.macs,
            **dict(() if backward is None else self._backward_figures(backward, size)),
            "state_size": counts.state_size,
            "state_counters": counts.state_counters,
            "weight_bytes": self._weight_bytes(counts),
            "weight_bytes_per_step": read,
            "bytes_per_step": whole(read + moved),
            "peak_bytes_per_step": self._weight_bytes(counts) + moved,
            "bytes_per_step_cached": moved,
        }

    def _backward_figures(self, backward: Operations, size: int) -> Iterator[tuple[str, Figure]]:
        """The figures that only a count with the backward pass has."""
        for name, figure in _operations(backward):
            yield f"backward_{name}".replace("'", "_derivative"), figure
        yield "tape_size", size
        yield "tape_bytes", FLOAT_BYTES * self.sequence_steps * size


def _kind(row: LayerCounts) -> tuple[Counts, bool]:
    """What the cost of a row's backward pass depends on."""
    return row.counts, row.layer == 0


def _operations(operations: Operations) -> Iterator[tuple[str, Figure]]:
    """The figures of a step that tables and files have, with their names."""
    for name in ("macs", "elementwise_multiplies", "elementwise_adds", "bias_adds"):
        yield name, getattr(operations, name)
    yield from operations.activations
    yield "flops", operations.flops


def _state_bytes(counts: Counts) -> int:
    return FLOAT_BYTES * counts.state_size + COUNTER_BYTES * counts.state_counters


def _moved_bytes(counts: Counts) -> int:
    """What one step of one sequence moves beside the weights."""
    return FLOAT_BYTES * counts.values_moved + 2 * COUNTER_BYTES * counts.state_counters
