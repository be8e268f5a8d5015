"""THE TABLE: what each recurrent cell is, as data.

Counting, validation, weight names, the command line and the tests read this table; nothing about a
cell is written down a second time. A cell's arithmetic is in ``fusedrnn.kernels.reference`` (the
specification), in a Numba kernel and in a C body, all in the same names and order as ``equations``.

This module is plain Python: a program that only counts needs neither NumPy nor the C extension.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from math import inf, isfinite, prod
from numbers import Real
from typing import Any, Literal

from fusedrnn.errors import UnsupportedError

__all__ = [
    "ACTIVATIONS",
    "BIASES",
    "CELLS",
    "Activation",
    "Architecture",
    "Cell",
    "Gate",
    "State",
    "Weight",
]

Bias = Literal["none", "single", "double"]
Kind = Literal["input", "recurrent", "bias", "projection", "peephole"]
BIASES: tuple[Bias, ...] = ("none", "single", "double")
RESETS = ("after", "before")
MOST_LAYERS = 10_000
#: The largest float32, above which a limit is none.
MOST_CLIP = 3.4028235e38

# ---- activations ---------------------------------------------------------------------------------

#: Every activation, with the defaults of its parameters: ONNX's list, its names and its meanings.
ACTIVATIONS: dict[str, tuple[float, ...]] = {
    "sigmoid": (),
    "tanh": (),
    "relu": (),
    "identity": (),
    "hard_sigmoid": (0.2, 0.5),  # max(0, min(1, alpha x + beta))
    "affine": (1.0, 0.0),  # alpha x + beta
    "leaky_relu": (0.01,),  # x if x >= 0 else alpha x
    "thresholded_relu": (1.0,),  # x if x > alpha else 0
    "scaled_tanh": (1.0, 1.0),  # alpha tanh(beta x)
    "elu": (1.0,),  # x if x >= 0 else alpha (e^x - 1)
    "softsign": (),  # x / (1 + |x|)
    "softplus": (),  # log(1 + e^x)
}

#: Those that the compiled kernels have, by the role they may play in a cell.
COMPILED_ACTIVATIONS = {
    "gate": ("sigmoid", "hard_sigmoid"),
    "state": ("tanh", "relu", "identity"),
}


@dataclass(frozen=True)
class Activation:
    """An elementwise function and its parameters, as ``"tanh"`` or ``"hard_sigmoid(0.2, 0.5)"``."""

    name: str
    parameters: tuple[float, ...]

    @classmethod
    def parse(cls, argument: str, text: object) -> Activation:
        """Read an activation; ``argument`` is what the message calls it."""
        match = (
            re.fullmatch(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*", text)
            if isinstance(text, str)
            else None
        )
        if match is None or match[1] not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"{argument} must be one of {known}, got {text!r}")
        defaults = ACTIVATIONS[match[1]]
        try:
            given = tuple(float(part) for part in match[2].split(",")) if match[2] else ()
        except ValueError:
            raise ValueError(f"{argument}: the parameters of {text!r} must be numbers") from None
        if len(given) > len(defaults) or not all(isfinite(number) for number in given):
            raise ValueError(
                f"{argument}: {match[1]} takes at most {len(defaults)} finite parameters, got {text!r}"
            )
        return cls(match[1], given + defaults[len(given) :])

    def __str__(self) -> str:
        if self.parameters == ACTIVATIONS[self.name]:
            return self.name
        return f"{self.name}({', '.join(map(repr, self.parameters))})"


# ---- the table -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gate:
    """One gate block: ``H`` rows of the weight matrices, and what its sum goes through.

    Attributes
    ----------
    name
        In the equations.
    role
        Which activation: "gate" (between 0 and 1) or "state" (what may be written).
    meaning
        In words.
    peephole
        The state that its peephole looks at, if it may have one: "c" or, after the update, "c'".
    """

    name: str
    role: Literal["gate", "state"]
    meaning: str
    peephole: str | None = None


@dataclass(frozen=True)
class State:
    """One state: what a layer keeps from one step to the next.

    Attributes
    ----------
    kind
        "fed back" (and shown): R floats a row; "inside": H floats a row; "count": one int64 a row.
    """

    name: str
    kind: Literal["fed back", "inside", "count"]


@dataclass(frozen=True)
class Cell:
    """A recurrence of one time step.

    Attributes
    ----------
    name
        What the cell is called in every interface.
    form
        Which form of it this row is: "" where there is only one.
    gates
        The gate blocks in canonical (PyTorch) order: weight matrices are stacked in this order.
    states
        In the order of the state tuple.
    products
        The elementwise multiplications, one per hidden unit and step each.
    sums
        The elementwise additions and subtractions, one per hidden unit and step each; bias adds and
        those of the matrix products are not among them.
    outputs
        What goes through the output activation: one per hidden unit and step each.
    own_recurrent_bias
        Gates whose recurrent bias cannot be added to the other one.
    waits
        The last gates, if their recurrent product is of something that the other gates make first.
    equations
        In the names that every kernel uses.
    options
        Fields of :class:`Architecture` that this cell has beside its sizes and bias.
    """

    name: str
    title: str
    gates: tuple[Gate, ...]
    states: tuple[State, ...]
    products: tuple[str, ...]
    sums: tuple[str, ...]
    equations: tuple[str, ...]
    options: frozenset[str]
    form: str = ""
    outputs: tuple[str, ...] = ()
    own_recurrent_bias: tuple[str, ...] = ()
    waits: tuple[str, ...] = ()


_H = State("h", "fed back")
_C = State("c", "inside")
_T = State("t", "count")
_INPUT_GATE = Gate("i", "gate", "how much of g is written", peephole="c")
_FORGET_GATE = Gate("f", "gate", "how much of c is kept", peephole="c")
_CANDIDATE = Gate("g", "state", "what is written")
_OUTPUT_GATE = Gate("o", "gate", "how much of the cell is shown", peephole="c'")
_LSTM_OPTIONS = frozenset(
    {
        "proj_size",
        "peephole",
        "coupled",
        "gate_activation",
        "activation",
        "output_activation",
        "clip",
        "cell_clip",
    }
)
_RESET = Gate("r", "gate", "how much of h the candidate sees")
_UPDATE = Gate("z", "gate", "how much of h is kept")
_NEW = Gate("n", "state", "what is written")
_GRU_OPTIONS = frozenset({"reset", "gate_activation", "activation", "clip"})

_ROWS = (
    Cell(
        name="rnn",
        title="RNN",
        gates=(Gate("h", "state", "what is shown and fed back"),),
        states=(_H,),
        products=(),
        sums=(),
        equations=("h' = tanh(W_h x + R_h h + b_h)",),
        options=frozenset({"activation", "clip"}),
    ),
    Cell(
        name="lstm",
        title="LSTM",
        gates=(_INPUT_GATE, _FORGET_GATE, _CANDIDATE, _OUTPUT_GATE),
        states=(_H, _C),
        products=("f * c", "i * g", "o * tanh(c')"),
        sums=("(f * c) + (i * g)",),
        outputs=("c'",),
        equations=(
            "i = sigmoid(W_i x + R_i h + b_i)",
            "f = sigmoid(W_f x + R_f h + b_f)",
            "g = tanh(W_g x + R_g h + b_g)",
            "o = sigmoid(W_o x + R_o h + b_o)",
            "c' = f * c + i * g",
            "h' = o * tanh(c')",
        ),
        options=_LSTM_OPTIONS,
    ),
    Cell(
        name="lstm",
        form="coupled",
        title="coupled LSTM",
        gates=(_FORGET_GATE, _CANDIDATE, _OUTPUT_GATE),
        states=(_H, _C),
        products=("f * c", "i * g", "o * tanh(c')"),
        sums=("1 - f", "(f * c) + (i * g)"),
        outputs=("c'",),
        equations=(
            "f = sigmoid(W_f x + R_f h + b_f)",
            "i = 1 - f",
            "g = tanh(W_g x + R_g h + b_g)",
            "o = sigmoid(W_o x + R_o h + b_o)",
            "c' = f * c + i * g",
            "h' = o * tanh(c')",
        ),
        options=_LSTM_OPTIONS,
    ),
    Cell(
        name="gru",
        form="after",
        title="GRU, reset after",
        gates=(_RESET, _UPDATE, _NEW),
        states=(_H,),
        products=("r * (R_n h + d_n)", "(1 - z) * n", "z * h"),
        sums=("(W_n x + b_n) + r * (R_n h + d_n)", "1 - z", "((1 - z) * n) + (z * h)"),
        own_recurrent_bias=("n",),
        equations=(
            "r = sigmoid(W_r x + R_r h + b_r)",
            "z = sigmoid(W_z x + R_z h + b_z)",
            "n = tanh(W_n x + b_n + r * (R_n h + d_n))",
            "h' = (1 - z) * n + z * h",
        ),
        options=_GRU_OPTIONS,
    ),
    Cell(
        name="gru",
        form="before",
        title="GRU, reset before",
        gates=(_RESET, _UPDATE, _NEW),
        states=(_H,),
        products=("r * h", "(1 - z) * n", "z * h"),
        sums=("1 - z", "((1 - z) * n) + (z * h)"),
        waits=("n",),
        equations=(
            "r = sigmoid(W_r x + R_r h + b_r)",
            "z = sigmoid(W_z x + R_z h + b_z)",
            "n = tanh(W_n x + R_n (r * h) + b_n)",
            "h' = (1 - z) * n + z * h",
        ),
        options=_GRU_OPTIONS,
    ),
    Cell(
        name="clockwork",
        title="Clockwork RNN",
        gates=(Gate("h", "state", "what is shown and fed back"),),
        states=(_H, _T),
        products=(),
        sums=(),
        equations=(
            "module m with period p_m, where t is divisible by p_m:",
            "h'_m = tanh(W_m x + (sum over modules j with p_j >= p_m of R_mj h_j) + b_m)",
            "elsewhere h'_m = h_m",
        ),
        options=frozenset({"periods", "activation", "clip"}),
    ),
)

#: The forms of each cell, by name; the first is the default.
CELLS: dict[str, tuple[Cell, ...]] = {
    name: tuple(row for row in _ROWS if row.name == name)
    for name in dict.fromkeys(row.name for row in _ROWS)
}


# ---- a network of them ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Weight:
    """One canonical weight array: PyTorch's name and shape where it has one, and what it is for.

    Attributes
    ----------
    elements
        How many are really weights: fewer than the shape says where blocks of it must be zero.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    layer: int
    direction: int
    elements: int

    @property
    def size(self) -> int:
        """Number of elements that are weights."""
        return self.elements


def checked_size(name: str, value: object, least: int) -> int:
    """An int in range, or the error that says what is wrong with it."""
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
    """A stack of recurrent layers: a cell, its sizes and its options, checked.

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
        How many bias vectors a gate block has: "none", "single" (as many as count: one, and a second
        where it cannot be added to the first), or "double" (PyTorch and cuDNN keep two of all).
    peephole
        The gates that look at the cell, of "i", "f" and "o": "ifo", "o", ... True for all, False for none.
    coupled
        i = 1 - f: three gate blocks instead of four.
    reset
        Where a GRU resets: "after" the recurrent product (PyTorch, cuDNN, Keras) or "before" it
        (Cho 2014, ONNX's default). None: "after" for a GRU.
    periods
        Of the modules of a Clockwork RNN, ascending; as many modules of equal size as periods.
    gate_activation, activation, output_activation
        Of the gates; of what is written (g, n, or the h of an RNN); of c before it is shown.
    clip
        Sums of gates are limited to ±clip before their activation (ONNX's ``clip``); None for no limit.
    cell_clip
        The new c is limited to ±cell_clip; None for no limit.

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
    peephole: str | bool = ""
    coupled: bool = False
    reset: str | None = None
    periods: tuple[int, ...] = ()
    gate_activation: str = "sigmoid"
    activation: str = "tanh"
    output_activation: str = "tanh"
    clip: float | None = None
    cell_clip: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.cell, str) or self.cell not in CELLS:
            raise ValueError(f"cell must be one of {', '.join(CELLS)}, got {self.cell!r}")
        for name, least in (
            ("input_size", 1),
            ("hidden_size", 1),
            ("num_layers", 1),
            ("proj_size", 0),
        ):
            self._set(name, checked_size(name, getattr(self, name), least))
        for name in ("bidirectional", "coupled"):
            if not isinstance(getattr(self, name), bool):
                kind = type(getattr(self, name)).__name__
                raise TypeError(f"{name} must be True or False, not {kind}")
        if self.num_layers > MOST_LAYERS:
            raise ValueError(f"num_layers must be at most {MOST_LAYERS}, got {self.num_layers}")
        if not isinstance(self.bias, str) or self.bias not in BIASES:
            raise ValueError(f"bias must be one of {', '.join(BIASES)}, got {self.bias!r}")
        self._refuse_options()
        if self.proj_size >= self.hidden_size:
            raise ValueError(
                f"proj_size must be below hidden_size ({self.hidden_size}), got {self.proj_size}"
            )
        self._check_form()
        self._check_periods()
        for name in ("gate_activation", "activation", "output_activation"):
            self._set(name, str(Activation.parse(name, getattr(self, name))))
        for name in ("clip", "cell_clip"):
            limit = getattr(self, name)
            if limit is None:
                continue
            if isinstance(limit, bool) or not isinstance(limit, Real):
                raise TypeError(f"{name} must be a number or None, not {type(limit).__name__}")
            try:
                value = float(limit)
            except OverflowError:
                value = inf
            if not 0 < value < MOST_CLIP:
                raise ValueError(f"{name} must be above 0 and finite in float32, got {limit}")
            self._set(name, value)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _refuse_options(self) -> None:
        has = CELLS[self.cell][0].options
        every = frozenset().union(*(row.options for row in _ROWS))
        for field in fields(self):
            given = getattr(self, field.name)
            if field.name in every - has and given not in (field.default, False):
                raise ValueError(
                    f"{field.name} is not an option of {CELLS[self.cell][0].name}, got {given!r}; "
                    f"it has {', '.join(sorted(has))}"
                )

    def _check_form(self) -> None:
        if self.cell == "gru":
            self._set("reset", "after" if self.reset is None else self.reset)
            if self.reset not in RESETS:
                raise ValueError(f"reset must be 'after' or 'before', got {self.reset!r}")
        possible = "".join(gate.name for gate in self.table.gates if gate.peephole)
        given = self.peephole
        if isinstance(given, bool):
            given = possible if given else ""
        if (
            not isinstance(given, str)
            or not set(given) <= set(possible)
            or len(set(given)) < len(given)
        ):
            raise ValueError(
                f"peephole must be True, False or some of the letters {possible!r}, "
                f"got {self.peephole!r}"
            )
        self._set("peephole", "".join(letter for letter in possible if letter in given))

    def _check_periods(self) -> None:
        if self.cell != "clockwork":
            return
        if isinstance(self.periods, str) or not hasattr(self.periods, "__iter__"):
            raise TypeError(f"periods must be a sequence of ints, got {self.periods!r}")
        periods = tuple(checked_size("periods", period, 1) for period in self.periods)
        if not periods:
            raise ValueError("periods must name one period per module, got none")
        if list(periods) != sorted(periods):
            raise ValueError(f"periods must ascend, the fastest module first, got {periods}")
        if self.hidden_size % len(periods):
            raise ValueError(
                f"hidden_size must be divisible by the {len(periods)} modules, got {self.hidden_size}"
            )
        self._set("periods", periods)

    @cached_property
    def table(self) -> Cell:
        """The cell's row of the table, in the form that the options ask for."""
        form = "coupled" if self.coupled else self.reset or ""
        return next(row for row in CELLS[self.cell] if row.form == form)

    @property
    def peephole_gates(self) -> str:
        """The gates that have peepholes, in the order i f o."""
        assert isinstance(self.peephole, str)  # from __post_init__ on
        return self.peephole

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

    @property
    def module_size(self) -> int:
        """Units of each module of a Clockwork RNN."""
        return self.hidden_size // len(self.periods)

    def module_reads(self, module: int) -> int:
        """The first unit that a module reads: it reads its own and slower modules, to the end."""
        return self.periods.index(self.periods[module]) * self.module_size

    def activation_of(self, role: str) -> Activation:
        """The activation that plays a role: "gate", "state" or "output"."""
        name = {"gate": "gate_activation", "state": "activation", "output": "output_activation"}[
            role
        ]
        return Activation.parse(name, getattr(self, name))

    def check_compiled(self, backend: str) -> None:
        """Raise :class:`UnsupportedError` for an activation that only the NumPy backend has."""
        for role in ("gate", "state", "output"):
            allowed = COMPILED_ACTIVATIONS["gate" if role == "gate" else "state"]
            activation = self.activation_of(role)
            if activation.name not in allowed:
                raise UnsupportedError(
                    f"backend {backend!r} has {', '.join(allowed)} for the {role} activation, "
                    f"got {activation}; backend='numpy' has them all"
                )

    def layer_input(self, layer: int) -> int:
        """Width of the rows that a layer reads: X for the first, D * R above it."""
        return self.input_size if layer == 0 else self.output_size

    def state_shape(self, state: State, batch: int) -> tuple[int, ...]:
        """(L * D, B, width), or (L * D, B) for a count."""
        rows = self.num_layers * self.directions
        widths = {"fed back": (self.fed_back,), "inside": (self.hidden_size,), "count": ()}
        return (rows, batch, *widths[state.kind])

    def weights(self) -> Iterator[Weight]:
        """Every canonical weight array, in PyTorch's order, what PyTorch does not have at the end."""
        for layer in range(self.num_layers):
            for direction in range(self.directions):
                yield from self._weights_of(layer, direction)

    def _weights_of(self, layer: int, direction: int) -> Iterator[Weight]:
        units = self.hidden_size
        rows = len(self.table.gates) * units
        end = f"_l{layer}" + ("_reverse" if direction else "")

        def weight(name: str, shape: tuple[int, ...], kind: Kind, elements: int = 0) -> Weight:
            return Weight(name + end, shape, kind, layer, direction, elements or prod(shape))

        yield weight("weight_ih", (rows, self.layer_input(layer)), "input")
        yield weight("weight_hh", (rows, self.fed_back), "recurrent", self._recurrent_elements())
        if self.bias != "none":
            yield weight("bias_ih", (rows,), "bias")
        if self.bias == "double":
            yield weight("bias_hh", (rows,), "bias")
        elif self.bias == "single" and self.table.own_recurrent_bias:
            (gate,) = self.table.own_recurrent_bias
            yield weight(f"bias_h{gate}", (units,), "bias")
        if self.proj_size:
            yield weight("weight_hr", (self.proj_size, units), "projection")
        if self.peephole:
            yield weight("weight_peephole", (len(self.peephole_gates) * units,), "peephole")

    def _recurrent_elements(self) -> int:
        """How many elements of a recurrent matrix are weights: not all, where modules do not read all."""
        if not self.periods:
            return len(self.table.gates) * self.hidden_size * self.fed_back
        reads = (self.hidden_size - self.module_reads(m) for m in range(len(self.periods)))
        return self.module_size * sum(reads)
