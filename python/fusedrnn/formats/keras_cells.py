"""Keras' recurrent layers: what their configuration means, and the layer that their arrays make."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

from fusedrnn.architecture import Architecture
from fusedrnn.errors import ArchitectureError, ModelFormatError
from fusedrnn.formats.contents import FoundLayer, Tensor
from fusedrnn.formats.layouts import LAYOUTS, Layout, from_layout, suffix
from fusedrnn.formats.values import FLOATS, conversions, floats

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["RECURRENT", "Cell", "NotUnderstood", "cell_of", "found", "guessed"]

#: The classes of recurrent layers and of their cells, by which the layouts call them.
RECURRENT = {
    name: (layout.framework, layout.cell)
    for layout in LAYOUTS
    if layout.framework in ("keras", "keras_cudnn")
    for name in (layout.layer_class, layout.step_class)
    if name
}
#: Keras' names of activations that are the same in every version.
ACTIVATIONS = {
    "linear": "identity",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "relu": "relu",
    "softsign": "softsign",
    "softplus": "softplus",
    "elu": "elu",
}
#: What hard_sigmoid means, by the first number of the version: max(0, min(1, alpha x + beta)).
HARD_SIGMOID = {
    1: "hard_sigmoid(0.2, 0.5)",
    2: "hard_sigmoid(0.2, 0.5)",
    3: f"hard_sigmoid({1 / 6!r}, 0.5)",
}


class NotUnderstood(Exception):
    """A recurrent layer that is not one that this package has; the text says why."""


@dataclass(frozen=True)
class Cell:
    """What a configuration says of a cell.

    Attributes
    ----------
    kind, name
        Keras' class, and the cell's name.
    framework, cell
        Of its layout.
    units
        H.
    biased
        Whether it has biases.
    reset
        Of a GRU; None where the configuration does not say.
    options
        Activations, as the architecture calls them.
    undecided
        Those of them that are a hard sigmoid of an unknown version.
    backwards
        Whether it reads sequences from their end.
    split
        Whether gates have arrays of their own, in Keras 1.
    time_major
        Whether sequences are (T, B, ·).
    notes
        What a reader should know.
    """

    kind: str
    name: str
    framework: str
    cell: str
    units: int
    biased: bool
    reset: str | None
    options: tuple[tuple[str, str], ...]
    undecided: tuple[str, ...]
    backwards: bool
    split: bool
    time_major: bool
    notes: tuple[str, ...]

    @property
    def arrays(self) -> int:
        """How many arrays it has."""
        gates = len(self.layout(self.reset or "after").gates) if self.split else 1
        return gates * (3 if self.biased else 2)

    def layout(self, reset: str) -> Layout:
        """How its arrays are laid out."""
        framework = "keras1" if self.split else self.framework
        forms = [
            layout
            for layout in LAYOUTS
            if (layout.framework, layout.cell) == (framework, self.cell)
        ]
        return next((each for each in forms if each.form == reset), forms[0])

    def twin(self, other: Cell) -> bool:
        """Whether the two are directions of one layer."""

        def same(cell: Cell) -> tuple[Any, ...]:
            return cell.framework, cell.cell, cell.units, cell.biased, cell.reset, cell.options

        return same(self) == same(other) and self.backwards != other.backwards


def major(version: str | None) -> int | None:
    """The first number of a version; None for none that is known."""
    match = re.match(r"([123])(\.|$)", version or "")
    return int(match[1]) if match else None


def cell_of(
    kind: str, config: Mapping[str, Any], layer: Mapping[str, Any], version: str | None
) -> Cell:
    """What the configuration of a cell and of its layer say; the two are one for all layers but RNN.

    Raises
    ------
    NotUnderstood
        If this package has no such cell.
    """
    if kind not in RECURRENT:
        raise NotUnderstood(f"the cell {kind} is not known")
    framework, cell = RECURRENT[kind]
    old = "output_dim" in config  # Keras 1
    units = config.get("output_dim" if old else "units")
    if not isinstance(units, int) or isinstance(units, bool) or units < 1:
        raise NotUnderstood(f"units must be a number, got {str(units)[:40]!r}")
    roles = {"activation": "activation"}
    if cell != "rnn":
        roles["inner_activation" if old else "recurrent_activation"] = "gate_activation"
    options, undecided = {}, []
    for key, option in roles.items():
        said = config.get(key)
        if framework == "keras_cudnn":
            said = "sigmoid" if option == "gate_activation" else "tanh"
        activation = _activation(key, said, version)
        options[option] = activation or HARD_SIGMOID[2]
        if activation is None:
            undecided.append(option)
    if cell == "lstm":
        options["output_activation"] = options["activation"]
        undecided += ["output_activation"] * ("activation" in undecided)
    reset = None
    if cell == "gru":
        after = config.get("reset_after")
        if framework == "keras_cudnn":
            after = True
        elif old:
            after = False
        reset = None if after is None else "after" if after is True else "before"
    name = config.get("name")
    return Cell(
        kind=kind,
        name=name if isinstance(name, str) else "",
        framework=framework,
        cell=cell,
        units=units,
        biased=config.get("use_bias", True) is not False,
        reset=reset,
        options=tuple(options.items()),
        undecided=tuple(undecided),
        backwards=layer.get("go_backwards") is True,
        split=old and config.get("consume_less") != "gpu",
        time_major=layer.get("time_major") is True,
        notes=tuple(_notes(config, layer)),
    )


def _activation(key: str, said: object, version: str | None) -> str | None:
    """This package's name of an activation; None for a hard sigmoid of an unknown version."""
    if isinstance(said, str) and said in ACTIVATIONS:
        return ACTIVATIONS[said]
    if said == "hard_sigmoid":
        number = major(version)
        return HARD_SIGMOID[number] if number else None
    if said is None:
        raise NotUnderstood(f"its configuration has no {key}")
    text = said if isinstance(said, str) else "a function of its own"
    raise NotUnderstood(f"{key} {text[:60]!r} is not known")


def _notes(config: Mapping[str, Any], layer: Mapping[str, Any]) -> Iterable[str]:
    if layer.get("go_backwards") is True:
        yield "go_backwards: Keras gives the output of the last step first, this layer in the order of the steps"
    if layer.get("return_sequences") is False:
        yield "return_sequences=False: Keras gives the output of the last step only"
    if layer.get("stateful") is True:
        yield "stateful: give the state from call to call"
    dropouts = [
        f"{name} {config[key]}"
        for name, key in (
            *(("dropout", "dropout"), ("recurrent dropout", "recurrent_dropout")),
            *(("dropout", "dropout_W"), ("recurrent dropout", "dropout_U")),
        )
        if isinstance(config.get(key), (int, float)) and config[key]
    ]
    if dropouts:
        yield f"{' and '.join(dropouts)}: in training only"
    policy = layer.get("dtype")
    while isinstance(policy, dict):
        policy = policy.get("config", policy.get("name"))
    if isinstance(policy, str) and "16" in policy:
        yield f"Keras computes in {policy[:40]}"


def found(
    path: str,
    name: str,
    origin: str,
    directions: Sequence[tuple[Cell, Sequence[Tensor]]],
    version: str | None,
    notes: Sequence[str] = (),
) -> FoundLayer:
    """The layer that a cell and its arrays make; two cells are two directions.

    Raises
    ------
    ModelFormatError
        If an array is no float or not of the shape that the configuration asks for.
    """
    where = f"{path or 'the model'}: layer {name!r}"
    parts: list[tuple[Layout, dict[str, Tensor], str]] = []
    for number, (cell, tensors) in enumerate(directions):
        layout = cell.layout(_reset(cell, tensors, version))
        arrays = dict(zip(_names(layout, cell), tensors, strict=True))
        _check(where, layout, cell, arrays, len(tensors[0].shape) and tensors[0].shape[0])
        parts.append((layout, arrays, suffix(0, number)))
    cell, tensors = directions[0]
    layout = parts[0][0]
    if len({(part[0].form, *(t.shape for t in part[1].values())) for part in parts}) > 1:
        raise ModelFormatError(f"{where}: its two directions have arrays of different shapes")
    bias = ("single" if layout.biases == "single" else "double") if cell.biased else "none"
    options: dict[str, Any] = dict(cell.options)
    if cell.cell == "gru":
        options["reset"] = layout.form
    try:
        architecture = Architecture(
            cell.cell,
            tensors[0].shape[0],
            cell.units,
            bidirectional=len(directions) == 2,
            reverse=len(directions) == 1 and cell.backwards,
            bias=bias,  # type: ignore[arg-type]
            **options,
        )
    except ArchitectureError as error:
        raise ModelFormatError(f"{where}: {error}") from None
    every = tuple(tensor for _, tensors in directions for tensor in tensors)
    said = [*notes, *(cell.notes)]
    if len(directions) == 2:
        said += [note for note in directions[1][0].notes if note not in said]
        said = [note for note in said if not note.startswith("go_backwards")]
    said += conversions(every)
    if cell.undecided:
        said.append(
            f"hard_sigmoid of an unknown version of Keras: say what {' and '.join(cell.undecided)} is, "
            f"{HARD_SIGMOID[2]!r} in Keras 1 and 2, {HARD_SIGMOID[3]!r} in Keras 3"
        )
    return _Found(
        name=name,
        origin=f"Keras {origin}" if origin != "RNN" else f"Keras RNN({cell.kind})",
        architecture=architecture,
        read=partial(_read, where, parts),
        tensors=every,
        batch_first=not cell.time_major,
        notes=tuple(said),
        where=where,
        undecided=cell.undecided,
    )


@dataclass(frozen=True)
class _Found(FoundLayer):
    """A layer of which an activation may be unknown: no layer is made until somebody says what it is."""

    where: str = ""
    undecided: tuple[str, ...] = ()

    def layer(self, **options: Any) -> Any:
        if not set(self.undecided) <= set(options):
            raise ModelFormatError(f"{self.where}: {self.notes[-1]}")
        return super().layer(**options)


def _reset(cell: Cell, tensors: Sequence[Tensor], version: str | None) -> str:
    """Where a GRU resets: as its configuration says, or its bias, or else the version."""
    if cell.reset is not None or cell.cell != "gru":
        return cell.reset or "after"
    if cell.biased and not cell.split:
        return "after" if len(tensors[-1].shape) == 2 else "before"
    return "after" if major(version) == 3 else "before"


def _names(layout: Layout, cell: Cell) -> list[str]:
    """The names in the layout of a cell's arrays, in Keras' order."""
    names = [layout.input, layout.recurrent, *(layout.bias if cell.biased else ())]
    if "{gate}" not in layout.input:
        return names
    return [name.format(gate=gate) for gate in layout.gates for name in names]


def _check(
    where: str, layout: Layout, cell: Cell, arrays: Mapping[str, Tensor], inputs: int
) -> None:
    """That arrays are floats and of the shapes that a configuration asks for."""
    rows = cell.units * (1 if "{gate}" in layout.input else len(layout.gates))
    bias = {"rows": (2, rows), "joined": (2 * rows,)}.get(layout.biases, (rows,))
    for key, tensor in arrays.items():
        begin = key[:1].lower()
        wanted = {"k": (inputs, rows), "w": (inputs, rows), "b": bias}.get(
            begin, (cell.units, rows)
        )
        if tensor.shape != wanted or not prod(wanted):
            raise ModelFormatError(
                f"{where}: array {tensor.name!r} must be {wanted} for {cell.units} units of a "
                f"{cell.kind}, got {tensor.shape}"
            )
        if tensor.dtype not in FLOATS:
            raise ModelFormatError(
                f"{where}: array {tensor.name!r} must be of floats, got {tensor.dtype}"
            )


def _read(
    where: str, parts: Sequence[tuple[Layout, Mapping[str, Tensor], str]]
) -> dict[str, npt.NDArray[Any]]:
    weights: dict[str, npt.NDArray[Any]] = {}
    for layout, arrays, end in parts:
        numbers = {name: floats(tensor, where) for name, tensor in arrays.items()}
        weights |= from_layout(layout, numbers, end)
    return weights


def guessed(arrays: Mapping[str, Tensor], version: str | None, backwards: bool) -> Cell:
    """The cell whose arrays these are, by their shapes alone, with Keras' default activations.

    Raises
    ------
    NotUnderstood
        If they are those of no cell.
    """
    recurrent = arrays["recurrent_kernel"].shape
    units = recurrent[0] if len(recurrent) == 2 else 0
    if not units or recurrent[1] % units:
        raise NotUnderstood(f"a recurrent_kernel of shape {recurrent}")
    bias = arrays["bias"].shape if "bias" in arrays else None
    for layout in LAYOUTS:
        rows = len(layout.gates) * units
        wanted = {"rows": (2, rows), "joined": (2 * rows,)}.get(layout.biases, (rows,))
        if (
            layout.framework in ("keras", "keras_cudnn")
            and rows == recurrent[1]
            and bias in (None, wanted)
        ):
            break
    else:
        raise NotUnderstood(f"a recurrent_kernel of shape {recurrent} with a bias of shape {bias}")
    config = {
        "units": units,
        "use_bias": bias is not None,
        "activation": "tanh",
        "recurrent_activation": "sigmoid" if _sigmoid_is_default(version) else "hard_sigmoid",
        "go_backwards": backwards,
    }
    return cell_of(layout.layer_class, config, config, version)


def _sigmoid_is_default(version: str | None) -> bool:
    """Whether gates have a sigmoid by default: from Keras 2.3 on, and in TensorFlow's from 2.0 on ("2.2.4-tf")."""
    numbers = [int(each) for each in re.findall(r"\d+", version or "")[:2]]
    return not numbers or numbers >= [2, 3] or "-tf" in (version or "")
