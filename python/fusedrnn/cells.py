"""THE TABLE: what each recurrent cell is, as data.

Counting, validation, weight names, the command line and the tests read this table; nothing about a
cell is written down a second time. A cell's arithmetic is in ``fusedrnn.kernels.reference`` (the
specification), in a Numba kernel and in a C body, all in the same names and order as ``equations``.

This module is plain Python: a program that only counts needs neither NumPy nor the C extension.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

__all__ = ["CELLS", "Architecture", "Cell", "Gate", "State", "Weight"]

Bias = Literal["none", "single", "double"]
BIASES: tuple[Bias, ...] = ("none", "single", "double")


@dataclass(frozen=True)
class Gate:
    """One gate block: ``H`` rows of the weight matrices, and what its sum goes through."""

    name: str
    activation: str
    meaning: str


@dataclass(frozen=True)
class State:
    """One state: ``h`` is fed back and shown, R wide; others are kept inside, H wide."""

    name: str
    fed_back: bool


@dataclass(frozen=True)
class Cell:
    """A recurrence of one time step.

    Attributes
    ----------
    name
        What the cell is called in every interface.
    gates
        The gate blocks in canonical (PyTorch) order: weight matrices are stacked in this order.
    states
        In the order of the state tuple.
    products
        The elementwise multiplications, one per hidden unit and step each.
    sums
        The elementwise additions and subtractions beside those of the matrix products and biases,
        one per hidden unit and step each.
    activations
        Activations of a unit and step beside those of the gates.
    equations
        In the names that every kernel uses.
    options
        What the cell may have beside its sizes.
    """

    name: str
    title: str
    gates: tuple[Gate, ...]
    states: tuple[State, ...]
    products: tuple[str, ...]
    sums: tuple[str, ...]
    activations: tuple[str, ...]
    equations: tuple[str, ...]
    options: frozenset[str]


CELLS: dict[str, Cell] = {
    cell.name: cell
    for cell in (
        Cell(
            name="lstm",
            title="LSTM",
            gates=(
                Gate("i", "sigmoid", "how much of g is written"),
                Gate("f", "sigmoid", "how much of c is kept"),
                Gate("g", "tanh", "what is written"),
                Gate("o", "sigmoid", "how much of the cell is shown"),
            ),
            states=(State("h", fed_back=True), State("c", fed_back=False)),
            products=("f * c", "i * g", "o * tanh(c')"),
            sums=("(f * c) + (i * g)",),
            activations=("tanh",),
            equations=(
                "i = sigmoid(W_i x + R_i h + b_i)",
                "f = sigmoid(W_f x + R_f h + b_f)",
                "g = tanh(W_g x + R_g h + b_g)",
                "o = sigmoid(W_o x + R_o h + b_o)",
                "c' = f * c + i * g",
                "h' = o * tanh(c')",
            ),
            options=frozenset({"projection"}),
        ),
    )
}


@dataclass(frozen=True)
class Weight:
    """One canonical weight array: PyTorch's name and shape, and what it is for."""

    name: str
    shape: tuple[int, ...]
    kind: Literal["input", "recurrent", "bias", "projection"]
    layer: int
    direction: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)


def _size(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    number = int(value.__index__())
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    if number >= 2**31:
        raise ValueError(f"{name} must be below 2**31, got {number}")
    return number


@dataclass(frozen=True)
class Architecture:
    """A stack of recurrent layers: a cell and its sizes, checked.

    Parameters
    ----------
    cell
        A key of :data:`CELLS`.
    input_size
        X (D_x): width of an input row, >= 1.
    hidden_size
        H (D_n): number of units, >= 1.
    num_layers
        Height of the stack, >= 1.
    bidirectional
        Run each layer in both directions; outputs are joined.
    proj_size
        Width of the projected, fed-back h; 0 for none. Must be below ``hidden_size``.
    bias
        How many bias vectors a gate block has: "none", "single", or "double" (PyTorch and cuDNN
        keep two, one of them redundant).

    Raises
    ------
    TypeError, ValueError
        For a size that is not an int or is out of range, an unknown cell, or an option that the
        cell does not have.
    """

    cell: str
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    proj_size: int = 0
    bias: Bias = "single"

    def __post_init__(self) -> None:
        if not isinstance(self.cell, str) or self.cell not in CELLS:
            raise ValueError(f"cell must be one of {', '.join(CELLS)}, got {self.cell!r}")
        for name, least in (
            ("input_size", 1),
            ("hidden_size", 1),
            ("num_layers", 1),
            ("proj_size", 0),
        ):
            object.__setattr__(self, name, _size(name, getattr(self, name), least))
        if not isinstance(self.bidirectional, bool):
            kind = type(self.bidirectional).__name__
            raise TypeError(f"bidirectional must be True or False, not {kind}")
        if not isinstance(self.bias, str) or self.bias not in BIASES:
            raise ValueError(f"bias must be one of {', '.join(BIASES)}, got {self.bias!r}")
        if self.proj_size and "projection" not in self.table.options:
            raise ValueError(
                f"a {self.table.title} has no projection, got proj_size {self.proj_size}"
            )
        if self.proj_size >= self.hidden_size:
            raise ValueError(
                f"proj_size must be below hidden_size ({self.hidden_size}), got {self.proj_size}"
            )

    @property
    def table(self) -> Cell:
        """The cell's row of the table."""
        return CELLS[self.cell]

    @property
    def directions(self) -> int:
        """D: 1 or 2."""
        return 2 if self.bidirectional else 1

    @property
    def fed_back(self) -> int:
        """R (D_h): width of the h that is fed back: ``proj_size``, or else H."""
        return self.proj_size or self.hidden_size

    @property
    def output_size(self) -> int:
        """D * R: width of an output row."""
        return self.directions * self.fed_back

    def layer_input(self, layer: int) -> int:
        """Width of the rows that a layer reads: X for the first, D * R above it."""
        return self.input_size if layer == 0 else self.output_size

    def state_width(self, state: State) -> int:
        """Floats of one state for one row, layer and direction."""
        return self.fed_back if state.fed_back else self.hidden_size

    def weights(self) -> Iterator[Weight]:
        """Every canonical weight array, in PyTorch's order."""
        rows = len(self.table.gates) * self.hidden_size
        for layer in range(self.num_layers):
            for direction in range(self.directions):
                end = f"_l{layer}" + ("_reverse" if direction else "")
                at = (layer, direction)
                yield Weight("weight_ih" + end, (rows, self.layer_input(layer)), "input", *at)
                yield Weight("weight_hh" + end, (rows, self.fed_back), "recurrent", *at)
                if self.bias != "none":
                    yield Weight("bias_ih" + end, (rows,), "bias", *at)
                if self.bias == "double":
                    yield Weight("bias_hh" + end, (rows,), "bias", *at)
                if self.proj_size:
                    shape = (self.proj_size, self.hidden_size)
                    yield Weight("weight_hr" + end, shape, "projection", *at)
