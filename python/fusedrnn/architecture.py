"""A stack of recurrent layers: a cell of the table, its sizes, its options, and the weights it has, checked.

This module is plain Python: a program that only counts needs neither NumPy nor the C extension.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from math import inf, prod
from numbers import Real
from typing import Any, Literal

from fusedrnn.cells import CELLS, COMPILED_ACTIVATIONS, Activation, Cell, State
from fusedrnn.errors import ArchitectureError, ArchitectureTypeError, UnsupportedError

__all__ = [
    "BIASES",
    "INTEGERS",
    "NARROW",
    "RESETS",
    "Architecture",
    "Bias",
    "Kind",
    "Weight",
    "checked_bool",
    "checked_size",
    "is_bool",
]

Bias = Literal["none", "single", "double"]
Kind = Literal["input", "recurrent", "bias", "projection", "peephole"]
BIASES: tuple[Bias, ...] = ("none", "single", "double")
RESETS = ("after", "before")
#: The types of weights that are narrower than float32.
NARROW = ("float16", "bfloat16", "int8", "w8a7")

#: Those of int8 with a scale for each row: their products are of integers. With "w8a7", x and h are made integers of 7 bits;
#: with "int8", of 15.
INTEGERS = ("int8", "w8a7")
MAX_LAYERS = 10_000
#: Limits are below the largest float32, above which a limit is none, and not below the smallest that is not flushed to 0.
MAX_CLIP = 3.4028235e38
MIN_CLIP = 2.0**-126


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


def is_bool(value: object) -> bool:
    """Whether a value is True or False, Python's or NumPy's."""
    numpy = sys.modules.get("numpy")  # without it, there are no bools of NumPy's
    return isinstance(value, bool) or (numpy is not None and isinstance(value, numpy.bool_))


def checked_bool(name: str, value: object) -> bool:
    """True or False, or the error that says what is given instead."""
    if not is_bool(value):
        raise ArchitectureTypeError(name, f"must be True or False, not {type(value).__name__}")
    return bool(value)


def checked_size(name: str, value: object, least: int) -> int:
    """An int in range, or the error that says what is wrong with it."""
    if is_bool(value) or not hasattr(value, "__index__"):
        raise ArchitectureTypeError(name, f"must be an int, not {type(value).__name__}")
    number = int(value.__index__())
    if number < least:
        raise ArchitectureError(name, f"must be at least {least}, got {number}")
    if number >= 2**31:
        raise ArchitectureError(name, f"must be below 2**31, got {number}")
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
    reverse
        Run from the last step to the first, in this one direction.
    proj_size
        R: width of the projected h, which is fed back; 0 for none. Must be below ``hidden_size``.
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
        Of the gates; of the candidate (g, n, or the h of an RNN); of c before the output gate.
    clip
        Sums of gates are limited to ±clip before their activation (ONNX's ``clip``); None for no limit.
    cell_clip
        The new c is limited to ±cell_clip; None for no limit.

    Raises
    ------
    ArchitectureError
        For a size that is not an int or is out of range, an unknown cell, or an option that the
        cell does not have. It is a TypeError, too, where a value is of the wrong type.
    """

    cell: str
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    reverse: bool = False
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
            raise ArchitectureError("cell", f"must be one of {', '.join(CELLS)}, got {self.cell!r}")
        for name, least in (
            ("input_size", 1),
            ("hidden_size", 1),
            ("num_layers", 1),
            ("proj_size", 0),
        ):
            self._set(name, checked_size(name, getattr(self, name), least))
        for name in ("bidirectional", "reverse", "coupled"):
            self._set(name, checked_bool(name, getattr(self, name)))
        if self.reverse and self.bidirectional:
            raise ArchitectureError(
                "reverse", "must be False for a bidirectional layer, which has both directions"
            )
        if self.num_layers > MAX_LAYERS:
            raise ArchitectureError(
                "num_layers", f"must be at most {MAX_LAYERS}, got {self.num_layers}"
            )
        if not isinstance(self.bias, str) or self.bias not in BIASES:
            raise ArchitectureError(
                "bias", f"must be one of {', '.join(BIASES)}, got {self.bias!r}"
            )
        self._refuse_options()
        if self.proj_size >= self.hidden_size:
            raise ArchitectureError(
                "proj_size", f"must be below hidden_size ({self.hidden_size}), got {self.proj_size}"
            )
        self._check_form()
        self._check_periods()
        for name in ("gate_activation", "activation", "output_activation"):
            try:
                self._set(name, str(Activation.parse(name, getattr(self, name))))
            except ValueError as error:
                raise ArchitectureError(name, str(error).removeprefix(name).lstrip(": ")) from None
        for name in ("clip", "cell_clip"):
            self._check_limit(name)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """From a pickle or a copy: checked like any other."""
        Architecture.__init__(self, **state)

    def _check_limit(self, name: str) -> None:
        limit = getattr(self, name)
        if limit is None:
            return
        if is_bool(limit) or not isinstance(limit, Real):
            raise ArchitectureTypeError(
                name, f"must be a number or None, not {type(limit).__name__}"
            )
        try:
            value = float(limit)
        except OverflowError:
            value = inf
        if not MIN_CLIP <= value < MAX_CLIP:
            raise ArchitectureError(
                name, f"must be above 0 and finite in float32, as a normal number, got {limit}"
            )
        self._set(name, value)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _refuse_options(self) -> None:
        has = CELLS[self.cell][0].options
        every = frozenset().union(*(form.options for forms in CELLS.values() for form in forms))
        for field in fields(self):
            given = getattr(self, field.name)
            if field.name not in every - has:
                continue
            if is_bool(given) and not given:
                self._set(field.name, field.default)
            elif type(given) is not type(field.default) or given != field.default:
                raise ArchitectureError(
                    field.name,
                    f"is not an option of {CELLS[self.cell][0].name}, got {given!r}; "
                    f"it has {', '.join(sorted(has))}",
                )

    def _check_form(self) -> None:
        if self.cell == "gru":
            self._set("reset", "after" if self.reset is None else self.reset)
            if self.reset not in RESETS:
                raise ArchitectureError("reset", f"must be 'after' or 'before', got {self.reset!r}")
        possible = "".join(gate.name for gate in self.table.gates if gate.peephole)
        given = self.peephole
        if is_bool(given):
            given = possible if given else ""
        if (
            not isinstance(given, str)
            or not set(given) <= set(possible)
            or len(set(given)) < len(given)
        ):
            raise ArchitectureError(
                "peephole",
                f"must be True, False or some of the letters {possible!r}, got {self.peephole!r}",
            )
        self._set("peephole", "".join(letter for letter in possible if letter in given))

    def _check_periods(self) -> None:
        if self.cell != "clockwork":
            return
        if isinstance(self.periods, str) or not hasattr(self.periods, "__iter__"):
            raise ArchitectureTypeError(
                "periods", f"must be a sequence of ints, got {self.periods!r}"
            )
        periods = tuple(checked_size("periods", period, 1) for period in self.periods)
        if not periods:
            raise ArchitectureError("periods", "must name one period per module, got none")
        if list(periods) != sorted(periods):
            raise ArchitectureError(
                "periods", f"must ascend, the fastest module first, got {periods}"
            )
        if self.hidden_size % len(periods):
            raise ArchitectureError(
                "hidden_size",
                f"must be divisible by the {len(periods)} modules, got {self.hidden_size}",
            )
        self._set("periods", periods)

    def chosen(self) -> dict[str, Any]:
        """The options that are not default, by name, in the order of the fields: all but the cell, X and H."""
        default = {"reset": CELLS[self.cell][0].form or None}
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in ("cell", "input_size", "hidden_size")
            and getattr(self, field.name) != default.get(field.name, field.default)
        }

    def untold(self) -> dict[str, Any]:
        """Those of the chosen options that the shapes of the weights do not tell."""
        own = self.untold_names(self.cell)
        return {name: value for name, value in self.chosen().items() if name in own}

    @staticmethod
    def untold_names(cell: str) -> frozenset[str]:
        """The names of the options of a cell that the shapes of its weights do not tell."""
        return (CELLS[cell][0].options | {"reverse"}) - {"proj_size"}

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
        """R (D_h): width of the h that the recurrent product reads: ``proj_size``, or else H."""
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
        """The first unit that a module reads: a module reads itself and all slower modules, to the end."""
        return self.periods.index(self.periods[module]) * self.module_size

    def activation_of(self, role: str) -> Activation:
        """The activation that plays a role: "gate", "state" or "output"."""
        return self._activations[role]

    @cached_property
    def _activations(self) -> dict[str, Activation]:
        names = {"gate": "gate_activation", "state": "activation", "output": "output_activation"}
        return {role: Activation.parse(name, getattr(self, name)) for role, name in names.items()}

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
        """(L * D, B, width), or (L * D, B) for a counter."""
        rows = self.num_layers * self.directions
        widths = {"hidden": (self.fed_back,), "cell": (self.hidden_size,), "counter": ()}
        return (rows, batch, *widths[state.kind])

    def weights(self) -> tuple[Weight, ...]:
        """Every canonical weight array, in PyTorch's order, what PyTorch does not have at the end."""
        return self._weights

    @cached_property
    def _weights(self) -> tuple[Weight, ...]:
        return tuple(
            weight
            for layer in range(self.num_layers)
            for direction in range(self.directions)
            for weight in self._weights_of(layer, direction)
        )

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
