"""What one layer in one direction holds, and what one step of it executes, from the table of cells.

Every number is derived from a row of the table and from :meth:`fusedrnn.architecture.Architecture.weights`.

This module is plain Python: counting needs neither NumPy nor the C extension.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import cached_property

from fusedrnn.architecture import Architecture
from fusedrnn.counting.result import Figure

__all__ = [
    "Counts",
    "LayerCounts",
    "Operations",
    "Part",
    "Work",
    "count_layers",
    "sum_operations",
    "whole",
]


@dataclass(frozen=True)
class Counts:
    """What a layer holds, in integers that add up.

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
        The same as they are stored, and as two vectors (0 without biases).
    state_size, state_counters
        Floats and integers carried from one step to the next.
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
        """Elements of the weight arrays as they are stored."""
        return self.matrix_weights + self.peephole_weights + self.biases_stored

    @property
    def parameters_two_biases(self) -> int | None:
        """Elements as PyTorch and cuDNN store them; None without biases."""
        two = self.matrix_weights + self.peephole_weights + self.biases_two
        return two if self.biases else None


@dataclass(frozen=True)
class Operations:
    """What a step executes, in figures that add up: ints, or fractions where they are averages.

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
        Pairs of a function's name and how often it is evaluated; ``clip`` is among them, and tanh' is the
        derivative of tanh.
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
        return whole(self.input_macs + self.recurrent_macs + self.projection_macs)

    @property
    def flops(self) -> Figure:
        """Floating-point operations; activations are not among them."""
        elementwise = self.elementwise_multiplies + self.elementwise_adds
        return whole(2 * self.macs + self.bias_adds + elementwise)


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
        return sum_operations((Fraction(1, part.period), part.operations) for part in self.parts)

    @cached_property
    def peak(self) -> Operations:
        """One step of one sequence in which every part runs."""
        return sum_operations((1, part.operations) for part in self.parts)

    def executed(self, runs: Callable[[int], int]) -> Operations:
        """All of many steps, when a part of some period runs so many times."""
        return sum_operations((runs(part.period), part.operations) for part in self.parts)


@dataclass(frozen=True)
class LayerCounts:
    """One layer in one direction: its sizes, what it holds and what it costs.

    Attributes
    ----------
    direction
        0 forward, 1 reverse.
    D_x, D_h, D_n
        Widths of an input row and of the h that is fed back; number of units.
    work, backward
        Operations of the forward pass, and of the backward pass with every gradient that it can give.
    tape_size
        Floats that a forward pass stores for the backward pass, of one step of one sequence.
    """

    layer: int
    direction: int
    D_x: int
    D_h: int
    D_n: int
    counts: Counts
    work: Work
    backward: Work
    tape_size: int


def whole(figure: Figure) -> Figure:
    """A figure, as an int if it is one."""
    return figure.numerator if figure.denominator == 1 else figure


def sum_operations(terms: Iterable[tuple[Figure, Operations]]) -> Operations:
    """The sum of some operations, each of them so many times."""
    names = [field.name for field in fields(Operations) if field.name != "activations"]
    sums: dict[str, Figure] = dict.fromkeys(names, 0)
    evaluations: dict[str, Figure] = {}
    for times, operations in terms:
        for name in names:
            sums[name] += times * getattr(operations, name)
        for function, figure in operations.activations:
            evaluations[function] = evaluations.get(function, 0) + times * figure
    return Operations(
        **{name: whole(figure) for name, figure in sums.items()},
        activations=tuple((name, whole(figure)) for name, figure in evaluations.items()),
    )


def _elements(architecture: Architecture) -> dict[tuple[int, int], Counter[str]]:
    """Elements of the weights by kind, for each layer and direction."""
    elements: dict[tuple[int, int], Counter[str]] = {}
    for weight in architecture.weights():
        kinds = elements.setdefault((weight.layer, weight.direction), Counter())
        kinds[weight.kind] += weight.elements
    return elements


def count_layers(architecture: Architecture) -> Iterator[LayerCounts]:
    """Count each layer in each direction."""
    table, units = architecture.table, architecture.hidden_size
    stored = _elements(architecture)
    without = architecture.bias == "none"
    one = stored if without else _elements(replace(architecture, bias="single"))
    two = stored if without else _elements(replace(architecture, bias="double"))
    widths = {"hidden": architecture.fed_back, "cell": units, "counter": 0}
    state = sum(widths[state.kind] for state in table.states)
    counters = sum(state.kind == "counter" for state in table.states)
    works: dict[Counts, tuple[Work, Work]] = {}
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
            forward = Work(tuple(_parts(architecture, counts)))
            works[counts] = forward, Work(tuple(_backward_parts(architecture, forward)))
        work, backward = works[counts]
        yield LayerCounts(
            layer=layer,
            direction=1 if architecture.reverse else direction,
            D_x=width,
            D_h=architecture.fed_back,
            D_n=units,
            counts=counts,
            work=work,
            backward=backward,
            tape_size=units * len(table.recorded) + architecture.fed_back,
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


def _backward_parts(architecture: Architecture, forward: Work) -> Iterator[Part]:
    """What the backward pass executes for each part of the forward pass, and in every step."""
    active = architecture.hidden_size // len(forward.parts)
    for part in forward.parts:
        yield Part(part.period, _backward_step(architecture, part.operations, active))
    # dh of a step: dy and what the step after hands back, for units at rest too.
    yield Part(1, replace(sum_operations(()), elementwise_adds=architecture.fed_back))


def _backward_step(architecture: Architecture, forward: Operations, active: int) -> Operations:
    """What the backward pass executes for a step of ``active`` units."""
    table = architecture.table
    made = {equation.result for equation in table.equations}
    functions: Counter[str] = Counter()
    for gate in table.gates:
        name = architecture.activation_of(gate.role).name
        if f"{gate.name}'" not in made:  # otherwise h' is its value, which is stored
            functions[name] += 1
        functions[f"{name}'"] += 1
    for _ in table.outputs:
        name = architecture.activation_of("output").name
        functions.update((name, f"{name}'"))
    if architecture.clip is not None:
        functions.update({"clip": len(table.gates), "clip'": len(table.gates)})
    if architecture.cell_clip is not None:
        functions["clip'"] += 1
    # Of the sum, which is recorded without the peephole, and of the gradients of the peephole and of c.
    peepholes = 3 * forward.peephole_products
    # What is projected is computed again, for the gradient of the projection.
    projected = active * len(table.outputs) * (forward.projection_macs > 0)
    return Operations(
        # Likewise: for the gradients of the weight and of what it multiplies.
        input_macs=2 * forward.input_macs,
        recurrent_macs=2 * forward.recurrent_macs,
        projection_macs=2 * forward.projection_macs,
        peephole_products=peepholes,
        elementwise_multiplies=active * len(table.gradient_products) + peepholes + projected,
        elementwise_adds=active * len(table.gradient_sums) + peepholes,
        bias_adds=forward.bias_adds,
        activations=tuple((name, active * times) for name, times in functions.items()),
    )
