"""Options that several commands share, and the kind of command that all of them are."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from fusedrnn.architecture import BIASES, RESETS
from fusedrnn.cells import CELLS
from fusedrnn.cli.output import FORMATS, SUFFIXES, Output, write
from fusedrnn.counting.cost import WEIGHT_BYTES
from fusedrnn.counting.counts import MAX_RATE

__all__ = [
    "CELL_OPTIONS",
    "EVERYWHERE",
    "NUMBERS",
    "OF_MODEL",
    "ONLY_OF_MODEL",
    "WHOLE",
    "CellOrFile",
    "Command",
    "Group",
    "ModelFile",
    "NetworkFile",
    "Numbers",
    "OneOf",
    "OutputFile",
    "Positive",
    "Whole",
    "cell_network",
    "completion",
    "did_you_mean",
    "external_data_option",
    "json_option",
    "layer_option",
    "model_options",
    "network_options",
    "output_options",
    "refuse_beside_cell",
    "refuse_beside_file",
    "size_options",
    "weight_dtype_option",
]

Function = TypeVar("Function", bound=Callable[..., Any])

#: The largest float32.
MAX_CLIP = 3.4028235e38


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the known one that is most like it, if one is."""
    near = get_close_matches(word[:60], list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


# ---- commands ------------------------------------------------------------------------------------


class _Helpful(click.Command):
    """Its help has examples, and is printed as a result is: a full disk is an error."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **rest: Any) -> None:
        rest.setdefault("context_settings", {"help_option_names": ["-h", "--help"]})
        super().__init__(*args, **rest)
        self.examples = examples

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        option = super().get_help_option(ctx)
        if option is not None:
            option.callback = _show_help
        return option

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def _show_help(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        write(context.get_help() + "\n")
        context.exit()


class Command(_Helpful):
    """A command of ``fusedrnn``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {flag for each in self.params for flag in each.opts}
        for word in args[: args.index("--") if "--" in args else None]:
            # One dash too few: click would read it as short options.
            flag = f"-{word.partition('=')[0]}"
            if len(flag) > 3 and flag[1] == "-" and flag in known:
                raise click.NoSuchOption(flag[1:], possibilities=[flag], ctx=ctx)
        return super().parse_args(ctx, _as_click_reads(args))


class Group(_Helpful, click.Group):
    """A command with commands of its own; an unknown one is answered with the nearest."""

    command_class = Command

    def __init__(self, *args: Any, **rest: Any) -> None:
        # Without a command there is an error of one line, as for any other mistake.
        super().__init__(*args, **{"no_args_is_help": False, **rest})

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of the module, not of the alphabet

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args[0] not in known and not args[0].startswith("-"):
            hint = did_you_mean(args[0], known) or f"; there are {', '.join(known)}"
            raise click.UsageError(f"no such command {args[0]!r}{hint}", ctx)
        return super().resolve_command(ctx, args)


#: The option whose value may be left out, and what it then is.
PEEPHOLE, ALL_GATES = "--peephole", "all"


def _as_click_reads(words: Sequence[str]) -> list[str]:
    """Words of a command line, in a form that click reads as other tools do.

    ``-o=FILE`` is ``-o FILE``. ``--peephole`` may stand alone: click would take any word after it, a cell's name
    too, for its value; here only letters of gates are one.
    """
    read: list[str] = []
    for place, word in enumerate(words):
        if word == "--":
            return [*read, *words[place:]]
        if word.startswith("-o="):
            word = f"--output={word[3:]}"
        elif word == PEEPHOLE:
            following = words[place + 1] if place + 1 < len(words) else ""
            if not re.fullmatch("[ifo]+", following):
                word = f"{PEEPHOLE}={ALL_GATES}"
        read.append(word)
    return read


# ---- types of values -----------------------------------------------------------------------------


class _Type(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A type whose errors name the value and what it should be."""

    def wrong(
        self, expected: str, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        self.fail(f"must be {expected}, got {value!r}", param, ctx)


class Whole(_Type):
    """An integer in decimal digits."""

    name = "integer"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        number = _integer(value)
        if number is None:
            self.wrong("an integer", value, param, ctx)
        return number  # type: ignore[return-value]


class Numbers(_Type):
    """Integers with commas between them."""

    name = "integers"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        numbers = [_integer(part) for part in value.split(",")]
        if None in numbers:
            self.wrong("integers with commas between them", value, param, ctx)
        return tuple(number for number in numbers if number is not None)


def _integer(value: object) -> int | None:
    """What int() takes is wider: 1_000, digits of other scripts, and blanks around them."""
    if isinstance(value, int):
        return value
    return int(str(value)) if re.fullmatch(r"[+-]?[0-9]{1,4000}", str(value)) else None


class Positive(_Type):
    """A number above 0; one without a fraction stays an int and so exact."""

    name = "number"

    def __init__(self, maximum: float = math.inf) -> None:
        self.maximum = maximum

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        if isinstance(value, (int, float)):
            return value
        number: float | None = _integer(value)
        if number is None:
            try:
                number = float(value)
            except ValueError:
                self.wrong("a number", value, param, ctx)
        assert number is not None
        if not 0 < number < math.inf:
            self.wrong("above 0 and finite", value, param, ctx)
        if number > self.maximum:
            self.wrong(f"at most {self.maximum:g}", value, param, ctx)
        return number


class OneOf(click.Choice):  # type: ignore[type-arg,unused-ignore]
    """One of some names; another is answered with the nearest."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if value not in self.choices:
            known = [str(choice) for choice in self.choices]
            self.fail(
                f"{value!r} is not one of {', '.join(known)}{did_you_mean(value, known)}",
                param,
                ctx,
            )
        return value


def completion(text: str, kind: str = "plain") -> Any:
    """What a shell may complete a word to; ``kind`` "file" leaves it to the shell."""
    from click.shell_completion import CompletionItem  # only shells that complete words wait for it

    return CompletionItem(text, type=kind)


class OutputFile(_Type):
    """A file to write. What looks like an option is none: it would be the value of a forgotten one."""

    name = "file"

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        if isinstance(value, Path):
            return value
        if not value or (value.startswith("-") and value != "-"):
            self.wrong("a file, as cost.json or ./-x", value, param, ctx)
        return Path(value)

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[Any]:
        return [completion(incomplete, "file")]


class ModelFile(_Type):
    """A file that is there; a name that is almost one in its folder is answered with that."""

    name = "file"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        if not os.path.lexists(value):
            folder, name = os.path.split(value)
            self.fail(f"{value!r}: no such file{_nearest_file(folder, name)}", param, ctx)
        return str(value)

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[Any]:
        return [completion(incomplete, "file")]


class NetworkFile(ModelFile):
    """A file that describes a network; - is standard input."""

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        if value != "-":
            return super().convert(value, param, ctx)
        if sys.stdin is None:
            self.fail("standard input is closed", param, ctx)
        return str(value)


def _nearest_file(folder: str, name: str) -> str:
    try:
        return did_you_mean(name, os.listdir(folder or "."))
    except OSError:
        return ""


# ---- a network of one cell -----------------------------------------------------------------------

WHOLE, NUMBERS = Whole(), Numbers()

#: Flag, field of an Architecture, settings, and what it is, of every option that only some cells have.
CELL_OPTIONS: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    (
        "--proj",
        "proj_size",
        {"metavar": "P", "type": WHOLE},
        "width of the projected h; 0: no projection",
    ),
    (
        PEEPHOLE,
        "peephole",
        {"metavar": "[GATES]"},
        "gates that look at the cell's state, as ifo; alone: all",
    ),
    ("--coupled", "coupled", {"is_flag": True, "default": None}, "the input gate is 1 - f"),
    (
        "--reset",
        "reset",
        {"type": OneOf(RESETS)},
        f"reset after or before the recurrent product; default: {RESETS[0]}",
    ),
    (
        "--periods",
        "periods",
        {"metavar": "P,P,...", "type": NUMBERS},
        "periods of the modules, ascending",
    ),
    (
        "--gate-activation",
        "gate_activation",
        {"metavar": "NAME"},
        "activation of the gates; default: sigmoid",
    ),
    (
        "--activation",
        "activation",
        {"metavar": "NAME"},
        "activation of the candidate, as tanh or 'leaky_relu(0.1)'; default: tanh",
    ),
    (
        "--output-activation",
        "output_activation",
        {"metavar": "NAME"},
        "activation of the cell's state before the output gate; default: tanh",
    ),
    (
        "--clip",
        "clip",
        {"metavar": "C", "type": Positive(MAX_CLIP)},
        "limit of sums before activations",
    ),
    (
        "--cell-clip",
        "cell_clip",
        {"metavar": "C", "type": Positive(MAX_CLIP)},
        "limit of the cell's state",
    ),
)


def _added(function: Function, options: Sequence[Callable[[Function], Function]]) -> Function:
    for option in reversed(options):
        function = option(function)
    return function


def size_options(function: Function) -> Function:
    """``--steps`` and ``--batch``, which every network has."""
    return _added(
        function,
        [
            click.option(
                "--steps",
                metavar="T",
                type=WHOLE,
                default=1,
                help="steps of a sequence (default: 1)",
            ),
            click.option(
                "--batch",
                metavar="B",
                type=WHOLE,
                default=1,
                help="sequences side by side (default: 1)",
            ),
        ],
    )


def network_options(*, bias: str = "single", rate: bool = True) -> Callable[[Function], Function]:
    """The sizes and options of a network of one cell, for :func:`cell_network`.

    Parameters
    ----------
    bias
        The default of ``--bias``.
    rate
        Whether there is ``--rate``.
    """
    options: list[Callable[..., Any]] = [
        click.option(
            "--input", "input_size", metavar="X", type=WHOLE, help="width of an input row (D_x)"
        ),
        click.option(
            "--hidden", "hidden_size", metavar="H", type=WHOLE, help="number of units (D_n)"
        ),
        click.option(
            "--layers",
            "num_layers",
            metavar="L",
            type=WHOLE,
            default=1,
            help="height of the stack (default: 1)",
        ),
        size_options,
        click.option("--bidirectional", is_flag=True, help="run in both directions"),
        click.option(
            "--bias",
            type=OneOf(BIASES),
            default=bias,
            help=f"bias vectors of a gate block, as stored (default: {bias})",
        ),
    ]
    if rate:
        options.append(
            click.option(
                "--rate",
                metavar="HZ",
                type=Positive(MAX_RATE),
                help="steps per second: adds figures per second",
            )
        )
    for flag, name, settings, text in CELL_OPTIONS:
        cells = ", ".join(cell for cell, forms in CELLS.items() if name in forms[0].options)
        options.append(click.option(flag, name, help=f"{text} ({cells})", **settings))
    return lambda function: _added(function, options)


def cell_network(context: click.Context, cell: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`network_options` has read, as keywords of :func:`~fusedrnn.counting.counts.count`."""
    flags = {"input_size": "--input", "hidden_size": "--hidden"}
    missing = [flag for name, flag in flags.items() if given[name] is None]
    if missing:
        raise click.UsageError(f"missing {' and '.join(missing)}: {cell} needs its sizes", context)
    names = ["input_size", "hidden_size", "num_layers", "bidirectional", "bias", "steps", "batch"]
    network = {"model": cell, **{name: given[name] for name in names}}
    # What is not given is not passed on: a cell refuses what it does not have.
    for name in ("rate", *(name for _, name, _, _ in CELL_OPTIONS)):
        if given.get(name) is not None:
            network[name] = given[name]
    if network.get("peephole") == ALL_GATES:
        network["peephole"] = True
    return network


class CellOrFile(ModelFile):
    """The name of a cell, or a file that is there."""

    name = "network"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        if value in CELLS:
            return str(value)
        if not os.path.lexists(value) and not {".", "/"} & set(value):
            near = did_you_mean(value, [*CELLS, *os.listdir()])
            self.fail(f"{value!r} is no cell ({', '.join(CELLS)}) and no file{near}", param, ctx)
        return super().convert(value, param, ctx)

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[Any]:
        cells = [completion(cell) for cell in CELLS if cell.startswith(incomplete)]
        return [*cells, *super().shell_complete(ctx, param, incomplete)]


#: Parameters of every command: what is counted, and where the result goes.
EVERYWHERE = ("network", "explain", "style", "as_json", "path")
#: Parameters that go only with a model file of which a layer is meant; and all that go with it.
ONLY_OF_MODEL = ("layer", "allow_external_data")
OF_MODEL = frozenset(("steps", "batch", *ONLY_OF_MODEL, *EVERYWHERE))


def _given(context: click.Context) -> dict[str, str]:
    """The parameters on the command line, and what they are called there."""
    return {
        parameter.name or "": max(parameter.opts, key=len)
        for parameter in context.command.params
        if context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    }


def refuse_beside_file(context: click.Context, file: str, allowed: Container[str]) -> None:
    """Refuse what says sizes that a file says."""
    wrong = [flag for name, flag in _given(context).items() if name not in allowed]
    if wrong:
        raise click.UsageError(
            f"{', '.join(wrong)}: not with a file; {file} says its own sizes", context
        )


def refuse_beside_cell(context: click.Context, cell: str, of_file: Container[str]) -> None:
    """Refuse what is said of files."""
    wrong = [flag for name, flag in _given(context).items() if name in of_file]
    if wrong:
        raise click.UsageError(f"{', '.join(wrong)} goes with a file, not with {cell}", context)


def layer_option(function: Function) -> Function:
    """``--layer``, of a command that takes one recurrent layer of a model file."""
    return click.option(
        "--layer", metavar="NAME", help="which recurrent layer; fusedrnn inspect lists them"
    )(function)


def weight_dtype_option(
    text: str, default: str = "that of the file", value: str | None = None
) -> Callable[[Function], Function]:
    """``--weight-dtype``: what it is, its default in words, and the value that the default has."""
    return click.option(
        "--weight-dtype",
        type=OneOf(list(WEIGHT_BYTES)),
        default=value,
        help=f"{text} (default: {default})",
    )


def model_options(function: Function) -> Function:
    """``--layer`` and ``--allow-external-data``, of a command that takes a cell or a model file."""
    return _added(function, [layer_option, external_data_option])


def external_data_option(function: Function) -> Function:
    """``--allow-external-data``, of a command that reads a model file."""
    return click.option(
        "--allow-external-data",
        is_flag=True,
        help="of an ONNX model: weights in other files of its own folder may be read",
    )(function)


# ---- output --------------------------------------------------------------------------------------


def json_option(function: Function) -> Function:
    """``--json``, of a command that prints a table or JSON."""
    return click.option("--json", "as_json", is_flag=True, help="print JSON")(function)


def output_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--format``, ``--json`` and ``--output``; the command gets them as ``output``, an :class:`Output`."""

    @click.option(
        "--format",
        "style",
        type=OneOf(list(FORMATS)),
        help="default: by the suffix of --output (.json, .csv, .md), or else table",
    )
    @click.option("--json", "as_json", is_flag=True, help="the same as --format json")
    @click.option(
        "-o",
        "--output",
        "path",
        metavar="FILE",
        type=OutputFile(),
        help="write to FILE, whole or not at all; - is standard output",
    )
    @wraps(function)
    def with_output(
        *args: Any, style: str | None, as_json: bool, path: Path | None, **rest: Any
    ) -> Any:
        if as_json and style not in (None, "json"):
            raise click.UsageError(
                f"--json is --format json: leave out --format {style}", click.get_current_context()
            )
        if path == Path("-"):
            path = None
        suffix = path.suffix.lower() if path else ""
        chosen = "json" if as_json else style or SUFFIXES.get(suffix, "table")
        if rest.get("explain") and chosen != "table":
            raise click.UsageError(
                f"--explain goes with --format table, not {chosen}", click.get_current_context()
            )
        output = Output(chosen, path)
        output.check()
        return function(*args, output=output, **rest)

    return with_output
