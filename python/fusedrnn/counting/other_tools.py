"""What other tools count for the same model, beside the exact count, and why they differ.

Each tool is run on a model of ``torch.nn``. What it should say is then computed from what it is known
to do: the exact count and one term for each thing that it adds, leaves out or takes for another. The
terms are figures, not guesses: they add up to the tool's own, or what is left is called unexplained.

One module, because what a tool is known to do is read beside the way it is run.
Importing this module imports neither PyTorch nor any of the tools.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, fields, replace
from importlib import import_module
from importlib.util import find_spec
from math import prod
from typing import Any

from fusedrnn.architecture import Architecture
from fusedrnn.counting.counts import Complexity, count
from fusedrnn.counting.result import Result, Table
from fusedrnn.formats.layouts import LAYOUTS

__all__ = ["CONVENTIONS", "TOOLS", "Comparison", "Measured", "Reading", "Term", "Tool", "compare"]

#: How many FLOPs a multiply-add is, in each unit.
UNITS = {"MACs": 1, "FLOPs": 2}

#: What each figure means, in words.
CONVENTIONS = {
    "exact": "The matrix products of the forward pass, counted from the sizes: one MAC per matrix "
    "weight, step and sequence, in the tool's unit (two FLOPs per MAC).",
    "reported": "The tool's figure for the whole model, all steps and sequences; null where it has "
    "none. unit: what one of it really is; called: what the tool calls it.",
    "difference": "reported - exact.",
    "ratio": "reported / exact.",
    "terms": "What the tool adds, leaves out or takes for another, computed from the sizes by what "
    "it is known to do.",
    "unexplained": "difference - the sum of the terms: 0 where the terms are the whole explanation.",
    "model": "Each tool counts a new torch.nn module on the CPU, inside a torch.nn.Sequential: some "
    "tools count nothing, or fail, when a recurrent module is itself the whole model.",
}

SYMBOLS = (
    "G: gate blocks. D_n: units. D_h: width of the h that is fed back. L: layers. D: directions.\n"
    "T: steps. B: batch. MACs: the exact count. Differences are in the unit of the tool."
)

# ---- what is known of each tool ------------------------------------------------------------------


@dataclass(frozen=True)
class Term:
    """One reason for a difference.

    Attributes
    ----------
    why
        In words.
    formula, numbers
        A product in the sizes of :data:`SYMBOLS`, and with their numbers.
    value
        In the tool's unit.
    """

    why: str
    formula: str
    numbers: str
    value: int


@dataclass(frozen=True)
class Measured:
    """What a run of a tool gave.

    Attributes
    ----------
    figure
        In the tool's unit.
    without_formula
        Recurrent operations that were executed and that the tool has no formula for.
    package
        The package that the tool came in.
    """

    figure: int
    without_formula: tuple[str, ...] = ()
    package: str = ""


@dataclass(frozen=True)
class Tool:
    """Another tool.

    Attributes
    ----------
    name
        In every interface.
    module
        What is imported.
    packages
        Those that may install it, the usual one first.
    unit, called
        What one of its figure really is, a key of :data:`UNITS`, and what the tool calls it.
    run
        Counts a model and its input.
    explain
        The terms of the difference, those of value 0 included.
    """

    name: str
    module: str
    packages: tuple[str, ...]
    unit: str
    called: str
    run: Callable[[Any, Any], Measured]
    explain: Callable[[Complexity, Measured], Iterator[Term]]


class _NoFigureError(RuntimeError):
    """A tool that says nothing is wrong, and has no figure."""


def _term(exact: Complexity, why: str, formula: str) -> Term:
    """A product in the sizes, as ``-D_n*D_h*T``, with its value."""
    size = exact.architecture
    sizes = {
        "G": len(size.table.gates),
        "D_n": size.hidden_size,
        "D_h": size.fed_back,
        "(D_n-D_h)": size.hidden_size - size.fed_back,
        "L": size.num_layers,
        "(L-1)": size.num_layers - 1,
        "D": size.directions,
        "T": exact.steps,
        "B": exact.batch,
        "MACs": exact.macs,
    }
    sign = "-" if formula.startswith("-") else ""
    words = formula.removeprefix("-").split("*")
    factors = [int(word) if word.isdigit() else sizes[word] for word in words]
    return Term(why, formula, sign + "*".join(map(str, factors)), int(f"{sign}1") * prod(factors))


def _biases(exact: Complexity) -> Iterator[Term]:
    if exact.architecture.bias != "none":
        yield _term(exact, "each element of both bias vectors is a MAC", "2*G*D_n*L*D*T*B")


def _gate_sums(exact: Complexity) -> Iterator[Term]:
    yield _term(exact, "the addition of W x and R h is a MAC", "G*D_n*L*D*T*B")


def _elementwise(exact: Complexity, per_unit: Mapping[str, tuple[int, str]]) -> Iterator[Term]:
    times, what = per_unit[exact.architecture.cell]
    yield _term(exact, f"elementwise operations are MACs: {what}", f"{times}*D_n*L*D*T*B")


def _no_projection(exact: Complexity) -> Iterator[Term]:
    yield _term(exact, "the product of the projection is left out", "-D_n*D_h*L*D*T*B")


#: Elementwise operations per unit and step that thop takes for MACs.
_THOP_ELEMENTWISE = {
    "rnn": (0, "none"),
    "lstm": (4, "f * c + i * g, o * tanh(c')"),
    "gru": (4, "r * (R_n h), (1 - z) * n + z * h"),
}
#: The same of ptflops, whose LSTM has the last product three times.
_PTFLOPS_ELEMENTWISE = {
    "rnn": (0, "none"),
    "lstm": (6, "f * c + i * g, and o * tanh(c') three times"),
    "gru": (4, "r * (R_n h), (1 - z) * n + z * h"),
}


def _explain_torchinfo(exact: Complexity, measured: Measured) -> Iterator[Term]:
    yield from _biases(exact)


def _explain_thop(exact: Complexity, measured: Measured) -> Iterator[Term]:
    yield from _biases(exact)
    yield from _gate_sums(exact)
    yield from _elementwise(exact, _THOP_ELEMENTWISE)
    if exact.architecture.proj_size and measured.package != "ultralytics-thop":
        yield from _no_projection(exact)
        yield _term(exact, "R reads D_n values instead of D_h", "G*D_n*(D_n-D_h)*L*D*T*B")
        yield _term(
            exact,
            "layers above the first read D*D_n values instead of D*D_h",
            "G*D_n*D*(D_n-D_h)*(L-1)*D*T*B",
        )


def _explain_ptflops(exact: Complexity, measured: Measured) -> Iterator[Term]:
    yield from _biases(exact)
    yield from _gate_sums(exact)
    yield from _elementwise(exact, _PTFLOPS_ELEMENTWISE)
    if exact.architecture.proj_size:
        yield from _no_projection(exact)


def _explain_ptflops_aten(exact: Complexity, measured: Measured) -> Iterator[Term]:
    if measured.without_formula:
        yield _nothing(exact, measured, "-MACs")
    else:
        yield from _biases(exact)


def _explain_fvcore(exact: Complexity, measured: Measured) -> Iterator[Term]:
    if measured.without_formula:
        yield _nothing(exact, measured, "-MACs")


def _explain_flop_counter(exact: Complexity, measured: Measured) -> Iterator[Term]:
    if measured.without_formula:
        yield _nothing(exact, measured, "-2*MACs")


def _nothing(exact: Complexity, measured: Measured, formula: str) -> Term:
    names = ", ".join(measured.without_formula)
    return _term(exact, f"no formula for {names}, so its products count 0", formula)


# ---- how each tool is run ------------------------------------------------------------------------


def _run_torchinfo(model: Any, x: Any) -> Measured:
    summary = import_module("torchinfo").summary(model, input_data=x, verbose=0)
    return Measured(int(summary.total_mult_adds))


def _run_thop(model: Any, x: Any) -> Measured:
    macs, _ = import_module("thop").profile(model, inputs=(x,), verbose=False)
    return Measured(int(macs))


def _run_ptflops(model: Any, x: Any) -> Measured:
    return Measured(_ptflops(model, x, "pytorch"))


def _run_ptflops_aten(model: Any, x: Any) -> Measured:
    figure = _ptflops(model, x, "aten")
    known = import_module("ptflops.aten_ops").ATEN_OPS_MAPPING
    return Measured(figure, _recurrent_operations(model, x, known))


def _ptflops(model: Any, x: Any, backend: str) -> int:
    macs, _ = import_module("ptflops").get_model_complexity_info(
        model,
        tuple(x.shape),
        # As a keyword: of a positional input it takes the first size for the batch, and divides.
        input_constructor=lambda _: {"input": x},
        print_per_layer_stat=False,
        as_strings=False,
        backend=backend,
    )
    if macs is None:
        raise _NoFigureError
    return int(macs)


def _run_fvcore(model: Any, x: Any) -> Measured:
    analysis = import_module("fvcore.nn").FlopCountAnalysis(model, x)
    figure = int(analysis.total())
    recurrent = re.compile(r"aten::(lstm|gru|rnn_\w+)")
    return Measured(figure, tuple(filter(recurrent.fullmatch, sorted(analysis.unsupported_ops()))))


def _run_flop_counter(model: Any, x: Any) -> Measured:
    counter = import_module("torch.utils.flop_counter")
    with counter.FlopCounterMode(display=False) as mode:
        model(x)
    figure = int(mode.get_total_flops())
    return Measured(figure, _recurrent_operations(model, x, counter.flop_registry))


def _recurrent_operations(model: Any, x: Any, known: Mapping[Any, Any]) -> tuple[str, ...]:
    """The recurrent operations that PyTorch executes as one, and that a tool has no formula for."""
    found = set()

    def note(_: object, function: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
        operation = function.overloadpacket
        if re.search("rnn|lstm|gru", str(operation)) and operation not in known:
            found.add(str(operation))
        return function(*args, **(kwargs or {}))

    # Not a class statement: its base is only known here.
    base = import_module("torch.utils._python_dispatch").TorchDispatchMode
    with type("Recorder", (base,), {"__torch_dispatch__": note})():
        model(x)
    return tuple(sorted(found))


#: The tools by name, in the order of the table.
TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool(
            "torchinfo",
            "torchinfo",
            ("torchinfo",),
            "MACs",
            "mult-adds",
            _run_torchinfo,
            _explain_torchinfo,
        ),
        # Two packages with one module.
        Tool(
            "thop", "thop", ("thop", "ultralytics-thop"), "MACs", "MACs", _run_thop, _explain_thop
        ),
        Tool("ptflops", "ptflops", ("ptflops",), "MACs", "MACs", _run_ptflops, _explain_ptflops),
        Tool(
            "ptflops-aten",
            "ptflops",
            ("ptflops",),
            "MACs",
            "MACs",
            _run_ptflops_aten,
            _explain_ptflops_aten,
        ),
        Tool("fvcore", "fvcore", ("fvcore",), "MACs", "flops", _run_fvcore, _explain_fvcore),
        Tool(
            "torch.utils.flop_counter",
            "torch",
            ("torch",),
            "FLOPs",
            "flops",
            _run_flop_counter,
            _explain_flop_counter,
        ),
    )
}

# ---- the result ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """What one tool says.

    Attributes
    ----------
    tool
        A key of :data:`TOOLS`.
    version
        The package that it came in, if another than its name, and its version; "" if missing.
    unit, called
        Of the tool.
    exact
        The exact count, in the tool's unit.
    reported
        The tool's figure; None if it is missing or has failed.
    terms
        The reasons for the difference, without those of value 0.
    problem
        In one line, why there is no figure; "" if there is.
    """

    tool: str
    version: str
    unit: str
    called: str
    exact: int
    reported: int | None = None
    terms: tuple[Term, ...] = ()
    problem: str = ""

    @property
    def difference(self) -> int | None:
        """What the tool reports beyond the exact count; None without a figure."""
        return None if self.reported is None else self.reported - self.exact

    @property
    def ratio(self) -> float | None:
        """What the tool reports, by the exact count; None without a figure."""
        return None if self.reported is None else self.reported / self.exact

    @property
    def unexplained(self) -> int | None:
        """What the terms leave of the difference; None without a figure."""
        if self.difference is None:
            return None
        return self.difference - sum(term.value for term in self.terms)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain, unrounded numbers."""
        return {
            "tool": self.tool,
            "version": self.version or None,
            "unit": self.unit,
            "called": self.called,
            "reported": self.reported,
            "exact": self.exact,
            "difference": self.difference,
            "ratio": self.ratio,
            "unexplained": self.unexplained,
            "terms": [asdict(term) for term in self.terms],
            "problem": self.problem or None,
        }


@dataclass(frozen=True)
class Comparison(Result):
    """The exact count and what other tools say, as :func:`compare` returns it.

    Attributes
    ----------
    exact
        The exact count.
    model
        The same model as a call of PyTorch; "" where it has none.
    not_in_torch
        Why PyTorch has no such model; "" where it has.
    readings
        One for each tool; none where PyTorch has no such model.
    """

    exact: Complexity
    model: str
    not_in_torch: str
    readings: tuple[Reading, ...]

    def _document(self) -> Mapping[str, Any]:
        return {
            "conventions": CONVENTIONS,
            "architecture": self.exact.to_dict()["architecture"],
            "steps": self.exact.steps,
            "batch": self.exact.batch,
            "macs": self.exact.macs,
            "flops": 2 * self.exact.macs,
            "model": self.model or None,
            "not_in_torch": self.not_in_torch or None,
            "tools": [reading.to_dict() for reading in self.readings],
        }

    def _records(self) -> list[Mapping[str, Any]]:
        """A line for the exact count, then one for each tool, its terms joined by semicolons."""
        own = Reading("fusedrnn", "", "MACs", "MACs", self.exact.macs, self.exact.macs)
        return [
            reading.to_dict()
            | {"terms": "; ".join(f"{term.value:+d} {term.why}" for term in reading.terms)}
            for reading in (own, *self.readings)
        ]

    def _title(self) -> str:
        return self.exact.title

    def _lead(self) -> Iterator[str]:
        yield self._summary()

    def _summary(self) -> str:
        macs = self.exact.macs
        line = f"Exact: {macs:,} MACs of matrix products = {2 * macs:,} FLOPs."
        if self.not_in_torch:
            return f"{line}\nThere is nothing to compare it with: {self.not_in_torch}."
        return f"{line}\nThe tools count torch.nn.Sequential({self.model})."

    def _tables(self) -> Iterator[Table]:
        """The tables that have rows."""
        read = [reading for reading in self.readings if reading.reported is not None]
        if read:
            header = ["tool", "version", "unit", "reported", "exact", "difference", "ratio"]
            rows = [_cells(reading) for reading in read]
            yield Table("What they report", header, rows, range(3, len(header)))
        reasons = [row for reading in read for row in _reasons(reading)]
        if reasons:
            header = ["tool", "what it does", "formula", "difference"]
            yield Table("Why they differ", header, reasons, [3])
        none = [
            [reading.tool, reading.version or "-", reading.problem]
            for reading in self.readings
            if reading.reported is None
        ]
        if none:
            yield Table("Without a figure", ["tool", "version", "why"], none)

    def _notes(self) -> Iterator[str]:
        if any(reading.terms for reading in self.readings):
            yield SYMBOLS


def _cells(reading: Reading) -> list[str]:
    other_name = reading.called != reading.unit
    return [
        reading.tool,
        reading.version,
        f'{reading.unit} ("{reading.called}")' if other_name else reading.unit,
        f"{reading.reported:,}",
        f"{reading.exact:,}",
        _signed(reading.difference or 0),
        f"{reading.ratio:.4f}",
    ]


def _reasons(reading: Reading) -> Iterator[list[str]]:
    for term in reading.terms:
        formula = f"{term.formula} = {term.numbers}"
        yield [reading.tool, term.why, formula, _signed(term.value)]
    if reading.unexplained:
        yield [
            reading.tool,
            f"unexplained: {reading.unexplained:,}",
            "",
            _signed(reading.unexplained),
        ]


def _signed(figure: int) -> str:
    return f"{figure:+,}" if figure else "0"


# ---- comparing -----------------------------------------------------------------------------------


def compare(
    model: Any,
    *,
    steps: int = 1,
    batch: int = 1,
    tools: Sequence[str] | None = None,
    **sizes: Any,
) -> Comparison:
    """Compare the exact count with what other tools say.

    Parameters
    ----------
    model
        As :func:`fusedrnn.counting.counts.count` takes it.
    steps
        T: steps of a sequence, >= 1.
    batch
        B: sequences side by side, >= 1.
    tools
        Keys of :data:`TOOLS`, in the order that is wanted; None for all.
    **sizes
        With a cell's name, the fields of :class:`~fusedrnn.architecture.Architecture`; ``bias`` is "double"
        unless given, as PyTorch keeps it.

    Returns
    -------
    Comparison
        Tools that are not installed, and those that fail, are in it with the reason.

    Raises
    ------
    TypeError, ValueError
        For a tool, model, size or option that is unknown, missing or out of range.

    Notes
    -----
    The tools run a model of this size, on the CPU and in float32: they take its memory and its time.
    While they do, ``sys.stdout``, ``sys.stderr``, warnings and logging are silent in every thread.
    """
    if isinstance(tools, str):
        raise TypeError(f"tools must be a sequence of names, got {tools!r}")
    chosen = tuple(TOOLS if tools is None else dict.fromkeys(tools))
    for name in chosen:
        if name not in TOOLS:
            raise ValueError(f"tools must be some of {', '.join(TOOLS)}, got {name!r}")
    if not chosen:
        raise ValueError("tools must name at least one tool, got none")
    for name in ("lengths", "weight_dtype", "rate", "backward"):
        if name in sizes:
            raise TypeError(f"{name} is not compared: tools count a forward pass of equal lengths")
    if isinstance(model, str):
        sizes.setdefault("bias", "double")
    exact = count(model, steps=steps, batch=batch, **sizes)
    reason = _not_in_torch(exact.architecture)
    if reason:
        return Comparison(exact, "", reason, ())
    readings = tuple(_reading(TOOLS[name], exact) for name in chosen)
    return Comparison(exact, _module_call(exact.architecture), "", readings)


#: Fields of an architecture that a module takes as they are.
_SIZES = ("input_size", "hidden_size", "num_layers", "bidirectional", "proj_size")


def _torch_class(architecture: Architecture) -> str:
    """What PyTorch calls the cell, in whatever form; "" if PyTorch has no such cell."""
    layouts = (each for each in LAYOUTS if each.framework == "torch")
    return next((each.layer_class for each in layouts if each.cell == architecture.cell), "")


def _not_in_torch(architecture: Architecture) -> str:
    """Why PyTorch has no such model; "" if it has one."""
    module = _torch_class(architecture)
    if not module:
        return f"PyTorch has no {architecture.table.title}"
    allowed: dict[str, tuple[Any, ...]] = {
        "bias": ("none", "double"),
        "reset": (None, "after"),
        "activation": ("tanh", "relu") if architecture.cell == "rnn" else ("tanh",),
    }
    for field in fields(architecture):
        value = getattr(architecture, field.name)
        # What is not known here may stand at its default only.
        if field.name not in {"cell", *_SIZES} and value not in allowed.get(
            field.name, (field.default,)
        ):
            return f"torch.nn.{module} has no {field.name}={value!r}"
    return ""


def _arguments(architecture: Architecture) -> dict[str, Any]:
    """The arguments of the module, without those at PyTorch's defaults."""
    given = {name: getattr(architecture, name) for name in _SIZES}
    given["bias"] = architecture.bias != "none"
    if architecture.cell == "rnn":
        given["nonlinearity"] = architecture.activation
    defaults = {
        "num_layers": 1,
        "bidirectional": False,
        "proj_size": 0,
        "bias": True,
        "nonlinearity": "tanh",
    }
    return {name: value for name, value in given.items() if value != defaults.get(name)}


def _module_call(architecture: Architecture) -> str:
    arguments = ", ".join(
        repr(value) if name in {"input_size", "hidden_size"} else f"{name}={value!r}"
        for name, value in _arguments(architecture).items()
    )
    return f"torch.nn.{_torch_class(architecture)}({arguments})"


def _model(exact: Complexity) -> tuple[Any, Any]:
    """A new model and its input: tools leave things behind in those that they have counted."""
    torch, size = import_module("torch"), exact.architecture
    place = {"device": "cpu", "dtype": torch.float32}
    with torch.random.fork_rng(devices=[]):
        module = getattr(torch.nn, _torch_class(size))(**_arguments(size), **place)
    x = torch.zeros(exact.steps, exact.batch, size.input_size, **place)
    return torch.nn.Sequential(module).eval(), x


def _reading(tool: Tool, exact: Complexity) -> Reading:
    facts = (tool.unit, tool.called, UNITS[tool.unit] * exact.macs)
    for module, package in (("torch", "torch"), (tool.module, tool.packages[0])):
        if find_spec(module) is None:
            problem = f"{package} is missing: pip install 'fusedrnn[compare]'"
            return Reading(tool.name, "", *facts, problem=problem)
    installed = _installed(tool)
    if len(installed) > 1:
        names = " and ".join(installed)
        problem = f"{names} are both installed, with one module {tool.module}: uninstall both, install one"
        return Reading(tool.name, "", *facts, problem=problem)
    package, version = next(iter(installed.items()), (tool.packages[0], "unknown"))
    label = version if package == tool.packages[0] else f"{package} {version}"
    measured, problem = _measure(tool, exact)
    if measured is None:
        return Reading(tool.name, label, *facts, problem=problem)
    explained = tool.explain(exact, replace(measured, package=package))
    terms = tuple(term for term in explained if term.value)
    return Reading(tool.name, label, *facts, reported=measured.figure, terms=terms)


def _installed(tool: Tool) -> dict[str, str]:
    """The packages of a tool that are installed, and their versions."""
    metadata = import_module("importlib.metadata")
    found = {}
    for package in tool.packages:
        try:
            found[package] = str(metadata.version(package))
        except metadata.PackageNotFoundError:
            continue
    return found


def _measure(tool: Tool, exact: Complexity) -> tuple[Measured | None, str]:
    """What a tool gives, or None and why, in one line."""
    with _quiet() as printed:
        try:
            model, x = _model(exact)
            with import_module("torch").no_grad():
                return tool.run(model, x), ""
        except _NoFigureError:
            # It has caught its error itself, and printed it.
            lines = [line for line in printed.getvalue().splitlines() if line.strip()]
            problem = f"failed: {lines[-1]}" if lines else "failed: it gives no figure"
        except Exception as error:  # noqa: BLE001  (whatever a tool fails with is its result)
            text = next(iter(str(error).strip().splitlines()), "")
            problem = f"failed: {type(error).__name__}: {text}"
    return None, " ".join(problem.split())


@contextmanager
def _quiet() -> Iterator[io.StringIO]:
    """Keep what a tool prints, and pass over what it warns of and logs."""
    printed, level = io.StringIO(), logging.root.manager.disable
    try:
        logging.disable(logging.CRITICAL)
        with redirect_stdout(printed), redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield printed
    finally:
        logging.disable(level)
