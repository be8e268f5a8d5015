"""THE TABLE: what each recurrent cell is, as data.

Counting, validation, weight names, the command line and the tests read this table; nothing about a
cell is written down a second time. A cell's arithmetic is in ``fusedrnn.kernels.reference`` (the
specification), in a Numba kernel and in a C body, all in the same names and order as ``equations``.

This module is plain Python: a program that only counts needs neither NumPy nor the C extension.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import isfinite
from typing import Literal

__all__ = [
    "ACTIVATIONS",
    "CELLS",
    "Activation",
    "Cell",
    "Equation",
    "Gate",
    "State",
]

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
        Which activation: "gate" (between 0 and 1) or "state" (a candidate for the new state).
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
        "hidden": R floats a row, also the output; "cell": H floats a row; "counter": one int64 a row.
    """

    name: str
    kind: Literal["hidden", "cell", "counter"]


@dataclass(frozen=True)
class Equation:
    """One line of a cell: for people, and as data.

    Attributes
    ----------
    text
        The line, in the names that every kernel uses.
    result
        Name of the value that the line computes; "" for a line of words.
    operands
        Names of those values of the same step that the line reads. x and the old states are always there.
    role
        Role of the activation that the line ends with: that of a gate, or "output"; "" for none.
    """

    text: str
    result: str = ""
    operands: tuple[str, ...] = ()
    role: Literal["gate", "state", "output", ""] = ""


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
    gradient_products, gradient_sums
        The same of the backward pass, where dv is the gradient of v and tanh' the derivative of tanh;
        peepholes are not among them.
    outputs
        What goes through the output activation: one per hidden unit and step each.
    own_recurrent_bias
        Gates whose recurrent bias cannot be added to the other one.
    after_first_product
        The last gates, if their recurrent product is of something that the other gates make first.
    recorded
        What a tape keeps of each unit and step for the backward pass, beside the layer's outputs: sums of gates, by
        their names, and other values.
    equations
        Line by line, in the order of computation.
    options
        Fields of :class:`Architecture` that this cell has beside its sizes and bias.
    """

    name: str
    title: str
    gates: tuple[Gate, ...]
    states: tuple[State, ...]
    products: tuple[str, ...]
    sums: tuple[str, ...]
    recorded: tuple[str, ...]
    gradient_products: tuple[str, ...]
    gradient_sums: tuple[str, ...]
    equations: tuple[Equation, ...]
    options: frozenset[str]
    form: str = ""
    outputs: tuple[str, ...] = ()
    own_recurrent_bias: tuple[str, ...] = ()
    after_first_product: tuple[str, ...] = ()

    @property
    def kernel(self) -> str:
        """The name of its kernel in C and in Numba: one for each row of the table."""
        return f"{self.name}_{self.form}" if self.form else self.name

    @property
    def retaining_gate(self) -> str | None:
        """The gate that says how much of the old state is retained: f or z; None if the cell has none."""
        return next((gate.name for gate in self.gates if gate.name in ("f", "z")), None)


_H = State("h", "hidden")
_C = State("c", "cell")
_T = State("t", "counter")
_INPUT_GATE = Gate("i", "gate", "how much of the candidate g enters c", peephole="c")
_FORGET_GATE = Gate("f", "gate", "how much of c is retained", peephole="c")
_CANDIDATE = Gate("g", "state", "candidate for c")
_OUTPUT_GATE = Gate("o", "gate", "how much of the cell is output", peephole="c'")
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
_RESET = Gate("r", "gate", "how much of h the candidate reads")
_UPDATE = Gate("z", "gate", "how much of h is retained")
_NEW = Gate("n", "state", "candidate for h")
_GRU_OPTIONS = frozenset({"reset", "gate_activation", "activation", "clip"})

_ROWS = (
    Cell(
        name="rnn",
        title="RNN",
        gates=(Gate("h", "state", "new h, output and fed back"),),
        states=(_H,),
        products=(),
        sums=(),
        recorded=("h",),
        gradient_products=("dh * tanh'(h)",),
        gradient_sums=(),
        equations=(Equation("h' = tanh(W_h x + R_h h + b_h)", "h'", role="state"),),
        options=frozenset({"activation", "clip"}),
    ),
    Cell(
        name="lstm",
        title="LSTM",
        gates=(_INPUT_GATE, _FORGET_GATE, _CANDIDATE, _OUTPUT_GATE),
        states=(_H, _C),
        products=("f * c", "i * g", "o * tanh(c')"),
        sums=("(f * c) + (i * g)",),
        gradient_products=(
            "dm * tanh(c')",
            "(dm * tanh(c')) * sigmoid'(o)",
            "dm * o",
            "(dm * o) * tanh'(c')",
            "dc * c",
            "(dc * c) * sigmoid'(f)",
            "dc * g",
            "(dc * g) * sigmoid'(i)",
            "dc * i",
            "(dc * i) * tanh'(g)",
            "dc * f",
        ),
        gradient_sums=("dc + ((dm * o) * tanh'(c'))",),
        outputs=("c'",),
        recorded=("i", "f", "g", "o", "c'"),
        equations=(
            Equation("i = sigmoid(W_i x + R_i h + b_i)", "i", role="gate"),
            Equation("f = sigmoid(W_f x + R_f h + b_f)", "f", role="gate"),
            Equation("g = tanh(W_g x + R_g h + b_g)", "g", role="state"),
            Equation("o = sigmoid(W_o x + R_o h + b_o)", "o", role="gate"),
            Equation("c' = f * c + i * g", "c'", ("f", "i", "g")),
            Equation("h' = o * tanh(c')", "h'", ("o", "c'"), role="output"),
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
        gradient_products=(
            "dm * tanh(c')",
            "(dm * tanh(c')) * sigmoid'(o)",
            "dm * o",
            "(dm * o) * tanh'(c')",
            "dc * (c - g)",
            "(dc * (c - g)) * sigmoid'(f)",
            "dc * i",
            "(dc * i) * tanh'(g)",
            "dc * f",
        ),
        gradient_sums=("dc + ((dm * o) * tanh'(c'))", "1 - f", "c - g"),
        outputs=("c'",),
        recorded=("f", "g", "o", "c'"),
        equations=(
            Equation("f = sigmoid(W_f x + R_f h + b_f)", "f", role="gate"),
            Equation("i = 1 - f", "i", ("f",)),
            Equation("g = tanh(W_g x + R_g h + b_g)", "g", role="state"),
            Equation("o = sigmoid(W_o x + R_o h + b_o)", "o", role="gate"),
            Equation("c' = f * c + i * g", "c'", ("f", "i", "g")),
            Equation("h' = o * tanh(c')", "h'", ("o", "c'"), role="output"),
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
        gradient_products=(
            "dh * (h - n)",
            "(dh * (h - n)) * sigmoid'(z)",
            "dh * (1 - z)",
            "(dh * (1 - z)) * tanh'(n)",
            "dn * (R_n h + d_n)",
            "(dn * (R_n h + d_n)) * sigmoid'(r)",
            "r * dn",
            "dh * z",
        ),
        gradient_sums=("h - n", "1 - z", "(dh * z) + R^T (dr, dz, r * dn)"),
        own_recurrent_bias=("n",),
        recorded=("r", "z", "n", "R_n h + d_n"),
        equations=(
            Equation("r = sigmoid(W_r x + R_r h + b_r)", "r", role="gate"),
            Equation("z = sigmoid(W_z x + R_z h + b_z)", "z", role="gate"),
            Equation("n = tanh(W_n x + b_n + r * (R_n h + d_n))", "n", ("r",), role="state"),
            Equation("h' = (1 - z) * n + z * h", "h'", ("z", "n")),
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
        gradient_products=(
            "dh * (h - n)",
            "(dh * (h - n)) * sigmoid'(z)",
            "dh * (1 - z)",
            "(dh * (1 - z)) * tanh'(n)",
            "(R_n^T dn) * h",
            "((R_n^T dn) * h) * sigmoid'(r)",
            "r * h",
            "dh * z",
            "r * (R_n^T dn)",
        ),
        gradient_sums=(
            "h - n",
            "1 - z",
            "(dh * z) + (r * (R_n^T dn))",
            "((dh * z) + (r * (R_n^T dn))) + R_rz^T (dr, dz)",
        ),
        after_first_product=("n",),
        recorded=("r", "z", "n"),
        equations=(
            Equation("r = sigmoid(W_r x + R_r h + b_r)", "r", role="gate"),
            Equation("z = sigmoid(W_z x + R_z h + b_z)", "z", role="gate"),
            Equation("n = tanh(W_n x + R_n (r * h) + b_n)", "n", ("r",), role="state"),
            Equation("h' = (1 - z) * n + z * h", "h'", ("z", "n")),
        ),
        options=_GRU_OPTIONS,
    ),
    Cell(
        name="clockwork",
        title="Clockwork RNN",
        gates=(Gate("h", "state", "new h, output and fed back"),),
        states=(_H, _T),
        products=(),
        sums=(),
        recorded=("tanh'", "idle"),
        gradient_products=("dh * tanh'(h)",),
        gradient_sums=(),
        equations=(
            Equation("module m with period p_m, where t is divisible by p_m:"),
            Equation(
                "h'_m = tanh(W_m x + (sum over modules j with p_j >= p_m of R_mj h_j) + b_m)",
                "h'",
                role="state",
            ),
            Equation("elsewhere h'_m = h_m"),
        ),
        options=frozenset({"periods", "activation", "clip"}),
    ),
)

#: The forms of each cell, by name; the first is the default.
CELLS: dict[str, tuple[Cell, ...]] = {
    name: tuple(row for row in _ROWS if row.name == name)
    for name in dict.fromkeys(row.name for row in _ROWS)
}
