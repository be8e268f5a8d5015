"""The command ``fusedrnn``: what the library knows, from a shell.

Starts fast: each subcommand imports what it needs when it runs. Exit codes: 0 done, 1 a figure is
not what it should be (verify), 2 an error that one line on standard error explains, 130 interrupted,
141 the reader of a pipe went away.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeAlias

from fusedrnn import __version__
from fusedrnn.architecture import BIASES, RESETS
from fusedrnn.cells import CELLS
from fusedrnn.counting.counts import WEIGHT_BYTES, aligned, count
from fusedrnn.errors import MissingExtraError
from fusedrnn.files import write_file

__all__ = ["guarded", "main"]

FAILED, ERROR, INTERRUPTED, READER_GONE = 1, 2, 130, 141
#: The format of a result when only the output file's name tells.
SUFFIXES = {".json": "json", ".csv": "csv", ".md": "markdown"}


class Result(Protocol):
    """What a command prints: a table for people as ``str()``, and three other formats."""

    def to_json(self) -> str: ...
    def to_csv(self) -> str: ...
    def to_markdown(self) -> str: ...


FORMATS: dict[str, Callable[[Result], str]] = {
    "table": lambda result: f"{result}\n",
    "json": lambda result: result.to_json(),
    "csv": lambda result: result.to_csv(),
    "markdown": lambda result: result.to_markdown(),
}

#: The command that ``count ... --spec`` is.
COUNT_SPEC = "count --spec"
Subcommands: TypeAlias = "argparse._SubParsersAction[_Parser]"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv
        The arguments after the program's name; None for those of the process.

    Returns
    -------
    int
        The exit code.
    """
    return guarded(lambda: _run(argv))


def guarded(run: Callable[[], int]) -> int:
    """Run what a command does; what goes wrong becomes one line and an exit code.

    Parameters
    ----------
    run
        Returns the exit code if nothing goes wrong.
    """
    try:
        status = run()
        _flush()
    except BrokenPipeError:
        status = READER_GONE
    except KeyboardInterrupt:
        status = INTERRUPTED
    except (ValueError, TypeError, OSError, MemoryError, RuntimeError, MissingExtraError) as error:
        print(f"fusedrnn: error: {_one_line(error)}", file=sys.stderr)
        status = ERROR
    _settle_output()
    return status


def _run(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["bench"]:
        return _bench(words[1:])
    try:
        arguments = _parser().parse_args(_words(sys.argv[1:] if argv is None else argv))
    except SystemExit:  # argparse has printed the help or the version
        return 0
    status: int = arguments.run(arguments)
    return status


def _words(argv: Sequence[str]) -> list[str]:
    """The arguments, with ``count ... --spec`` as a command of its own: it has other options."""
    words = list(argv)
    if words[:1] == ["count"] and any(word.split("=")[0] == "--spec" for word in words):
        words[0] = COUNT_SPEC
    return words


class _Parser(argparse.ArgumentParser):
    """Reports a wrong argument like every other error: on one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")

    def _print_message(self, message: str, file: object = None) -> None:
        # argparse's own passes over a full disk in silence.
        _write(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fusedrnn",
        description="Recurrent layers for CPUs at the speed of the machine, and their exact cost.",
        epilog="examples:\n"
        "  fusedrnn count lstm --input 128 --hidden 256\n"
        "  fusedrnn count lstm --input 1500 --hidden 1500 --explain\n"
        "  fusedrnn compare lstm --input 128 --hidden 256 --steps 100\n"
        "  fusedrnn verify\n"
        "  fusedrnn roofline lstm --input 128 --hidden 256 --steps 100\n"
        "  fusedrnn info\n"
        "  fusedrnn bench run --quick --report report\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fusedrnn {__version__}")
    subcommands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (
        _add_count,
        _add_count_spec,
        _add_compare,
        _add_verify,
        _add_roofline,
        _add_info,
        _add_demo,
    ):
        add(subcommands)
    return parser


def _add_count(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser(
        "count",
        help="count parameters, MACs, FLOPs and bytes of a network from its sizes",
        description="Count parameters, MACs, FLOPs, activations and bytes from a network's sizes. "
        "A whole network that a file describes: fusedrnn count --spec FILE (count --spec --help).",
        epilog="examples:\n"
        "  fusedrnn count lstm --input 128 --hidden 256\n"
        "  fusedrnn count lstm --input 40 --hidden 64 --proj 16 --layers 2 --bidirectional\n"
        "  fusedrnn count lstm --input 40 --hidden 64 --steps 100 --rate 16000 --dtype int8\n"
        "  fusedrnn count lstm --input 40 --hidden 64 --peephole --coupled --lengths 7,3,1\n"
        "  fusedrnn count gru --input 40 --hidden 64 --reset before --backward\n"
        "  fusedrnn count clockwork --input 40 --hidden 64 --periods 1,2,4,8 --explain\n"
        "  fusedrnn count lstm --input 128 --hidden 256 --output cost.json\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_network(parser)
    parser.add_argument(
        "--lengths",
        metavar="T,T,...",
        type=_integers,
        help="steps of each sequence, instead of --steps and --batch",
    )
    parser.add_argument(
        "--dtype",
        choices=WEIGHT_BYTES,
        default="float32",
        help="type of the matrix weights (default: float32)",
    )
    parser.add_argument(
        "--backward", action="store_true", help="add the matrix products of the backward pass"
    )
    parser.add_argument(
        "--explain", action="store_true", help="add each formula with its numbers to the table"
    )
    _add_output(parser)
    parser.set_defaults(run=_count)


def _add_network(parser: _Parser, *, bias: str = "single", rate: bool = True) -> None:
    """A cell with its sizes and options, and what is run: for :func:`_network`."""
    parser.add_argument("cell", choices=CELLS, help=", ".join(CELLS))
    for flag, name, metavar, least, text in (
        ("--input", "input_size", "X", None, "width of an input row (D_x)"),
        ("--hidden", "hidden_size", "H", None, "number of units (D_n)"),
        ("--layers", "num_layers", "L", 1, "height of the stack"),
        ("--steps", "steps", "T", 1, "steps of a sequence"),
        ("--batch", "batch", "B", 1, "sequences side by side"),
    ):
        parser.add_argument(
            flag,
            dest=name,
            metavar=metavar,
            type=int,
            required=least is None,
            default=least,
            help=text if least is None else f"{text} (default: {least})",
        )
    parser.add_argument("--bidirectional", action="store_true", help="run in both directions")
    options = parser.add_argument_group("options of some cells")
    for flag, name, settings, text in _CELL_OPTIONS:
        cells = ", ".join(cell for cell, forms in CELLS.items() if name in forms[0].options)
        # What is not given is not passed on: a cell refuses what it does not have.
        options.add_argument(
            flag, dest=name, default=argparse.SUPPRESS, help=f"{text} ({cells})", **settings
        )
    parser.add_argument(
        "--bias",
        choices=BIASES,
        default=bias,
        help=f"bias vectors of a gate block, as stored (default: {bias})",
    )
    if rate:
        parser.add_argument(
            "--rate", metavar="HZ", type=_positive, help="steps per second: adds figures per second"
        )


def _add_output(parser: _Parser) -> None:
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="default: by the suffix of --output (.json, .csv, .md), or else table",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="write to FILE; replaces it at once"
    )


def _count(arguments: argparse.Namespace) -> int:
    style = _style(arguments)
    complexity = count(
        **_network(arguments),
        lengths=arguments.lengths,
        dtype=arguments.dtype,
        backward=arguments.backward,
    )
    figures = (
        complexity.macs_per_second,
        complexity.bytes_per_second,
        complexity.bytes_per_second_cached,
    )
    if math.inf in figures:
        raise ValueError(f"argument --rate: too high for figures per second, got {arguments.rate}")
    text = FORMATS[style](complexity)
    if arguments.explain:
        text += f"\n{complexity.explain()}\n"
    _put(arguments.output, text)
    return 0


def _network(arguments: argparse.Namespace) -> dict[str, Any]:
    """What :func:`_add_network` has read, as keywords of :func:`~fusedrnn.counting.counts.count`."""
    options = ["rate", *(name for _, name, _, _ in _CELL_OPTIONS)]
    return {
        "model": arguments.cell,
        "input_size": arguments.input_size,
        "hidden_size": arguments.hidden_size,
        "num_layers": arguments.num_layers,
        "bidirectional": arguments.bidirectional,
        "bias": arguments.bias,
        "steps": arguments.steps,
        "batch": arguments.batch,
        **{name: getattr(arguments, name) for name in options if hasattr(arguments, name)},
    }


def _style(arguments: argparse.Namespace) -> str:
    """The format of the output; an error if it goes with no explanation and one is asked for."""
    output: Path | None = arguments.output
    suffix = output.suffix.lower() if output else ""
    style: str = arguments.format or SUFFIXES.get(suffix, "table")
    if getattr(arguments, "explain", False) and style != "table":
        raise ValueError(f"--explain goes with --format table, not {style}")
    return style


def _put(output: Path | None, text: str) -> None:
    if output is None:
        _write(text)
    else:
        write_file(output, text.encode())


def _add_count_spec(subcommands: Subcommands) -> None:
    text = "count parameters and MACs of a whole network that a TOML file describes"
    parser = subcommands.add_parser(
        COUNT_SPEC,
        prog="fusedrnn count",
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--spec", metavar="FILE", nargs="?", help="the network (docs/spec.md); - reads it in"
    )
    parser.add_argument("--steps", metavar="T", type=int, default=1, help="steps (default: 1)")
    parser.add_argument(
        "--batch", metavar="B", type=int, default=1, help="sequences side by side (default: 1)"
    )
    parser.add_argument(
        "--tied",
        choices=("once", "twice"),
        default="once",
        help="count weights that two layers share once or twice (default: once)",
    )
    parser.add_argument(
        "--explain", action="store_true", help="add each array with its shape to the table"
    )
    _add_output(parser)
    parser.set_defaults(run=_count_spec)


def _count_spec(arguments: argparse.Namespace) -> int:
    from fusedrnn.counting.network import load

    style = _style(arguments)
    if arguments.spec is None:
        raise ValueError("--spec needs a FILE, or - for standard input")
    complexity = load(arguments.spec).count(
        steps=arguments.steps, batch=arguments.batch, tied=arguments.tied
    )
    text = FORMATS[style](complexity)
    if arguments.explain:
        text += f"\n{complexity.explain()}\n"
    _put(arguments.output, text)
    return 0


def _add_compare(subcommands: Subcommands) -> None:
    text = "compare the exact MACs with what other tools count"
    parser = subcommands.add_parser(
        "compare",
        help=text,
        description="Compare the exact MACs with what other tools count for the same PyTorch model, "
        "and say why they differ. Needs PyTorch and the tools: pip install 'fusedrnn[compare]'.",
        epilog="examples:\n"
        "  fusedrnn compare lstm --input 40 --hidden 64 --steps 7 --batch 3\n"
        "  fusedrnn compare lstm --input 40 --hidden 64 --proj 16 --tools thop,ptflops\n"
        "  fusedrnn compare gru --input 40 --hidden 64 --format markdown\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_network(parser, bias="double", rate=False)
    parser.add_argument(
        "--tools",
        metavar="NAME,...",
        type=lambda names: names.split(","),
        help="default: all that are known",
    )
    _add_output(parser)
    parser.set_defaults(run=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    from fusedrnn.counting.other_tools import compare

    style = _style(arguments)
    comparison = compare(**_network(arguments), tools=arguments.tools)
    _put(arguments.output, FORMATS[style](comparison))
    return 0


def _add_verify(subcommands: Subcommands) -> None:
    text = "check published figures against what is counted"
    parser = subcommands.add_parser(
        "verify",
        help=text,
        description=f"{text.capitalize()}; exit code 1 if one is wrong.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="*",
        help="a network with [[published]] figures (docs/spec.md); default: those that come with it",
    )
    _add_output(parser)
    parser.set_defaults(run=_verify)


def _verify(arguments: argparse.Namespace) -> int:
    from fusedrnn.counting.published import verify

    verification = verify(arguments.files or None)
    _put(arguments.output, FORMATS[_style(arguments)](verification))
    return FAILED if verification.failed else 0


def _add_roofline(subcommands: Subcommands) -> None:
    text = "say how fast a network can be on one core of this machine, and what bounds it"
    parser = subcommands.add_parser(
        "roofline",
        help=text,
        description=f"{text.capitalize()}. The limits of the machine are measured the first time, in "
        "about two seconds, and kept in the cache directory. FUSEDRNN_ISA names the instruction set.",
        epilog="examples:\n"
        "  fusedrnn roofline lstm --input 128 --hidden 256 --steps 100\n"
        "  fusedrnn roofline gru --input 40 --hidden 64 --layers 2 --rate 16000\n"
        "  fusedrnn roofline lstm --input 128 --hidden 256 --batch 8 --measure\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_network(parser)
    parser.add_argument(
        "--machine", metavar="FILE", type=Path, help="the limits of another machine, as JSON"
    )
    parser.add_argument(
        "--again", action="store_true", help="measure the limits of this machine again"
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="run this package's kernels too: adds the fraction of the limit that they reach",
    )
    _add_output(parser)
    parser.set_defaults(run=_roofline)


def _roofline(arguments: argparse.Namespace) -> int:
    from fusedrnn.machine.limits import load, this_machine
    from fusedrnn.machine.roofline import roofline

    style = _style(arguments)
    if arguments.machine and arguments.again:
        raise ValueError(
            "--again measures this machine, and --machine names another: leave one out"
        )
    network = _network(arguments)
    count(**network)  # a mistake is found before anything is measured
    machine = load(arguments.machine) if arguments.machine else this_machine(again=arguments.again)
    bound = roofline(machine=machine, **network)
    if arguments.measure:
        bound = bound.measure()
    _put(arguments.output, FORMATS[style](bound))
    return FAILED if bound.failed else 0


def _add_info(subcommands: Subcommands) -> None:
    text = "show the version, backends, instruction set and caches in use"
    parser = subcommands.add_parser("info", help=text, description=f"{text.capitalize()}.")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=_info)


def _info(arguments: argparse.Namespace) -> int:
    from fusedrnn import info

    facts = info()
    if arguments.json:
        _write(json.dumps(facts, indent=2) + "\n")
    else:
        _write(aligned(list(_listing(facts)), left=2) + "\n")
    return 0


def _listing(facts: dict[str, Any], indent: str = "") -> Iterator[tuple[str, str]]:
    """Name and value of every fact; those inside another are indented below it."""
    for name, value in facts.items():
        if isinstance(value, dict):
            yield f"{indent}{name}", "" if value else "none"
            yield from _listing(value, indent + "  ")
        elif isinstance(value, (list, tuple)):
            yield f"{indent}{name}", ", ".join(map(str, value)) or "none"
        elif value is None or isinstance(value, bool):
            yield f"{indent}{name}", {None: "none", True: "yes", False: "no"}[value]
        else:
            yield f"{indent}{name}", f"{value:,}" if isinstance(value, int) else str(value)


def _bench(words: list[str]) -> int:
    import click

    from fusedrnn.cli.bench import bench

    try:
        with bench.make_context("fusedrnn bench", words) as context:
            return int(bench.invoke(context) or 0)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        raise ValueError(error.format_message()) from error


def _add_demo(subcommands: Subcommands) -> None:
    text = "let a small character LSTM write text"
    parser = subcommands.add_parser(
        "demo", help=text, description=f"{text.capitalize()}.", allow_abbrev=False
    )
    parser.add_argument("--backend", metavar="NAME", default="auto", help="default: auto")
    parser.add_argument(
        "--characters", metavar="N", type=int, default=400, help="how many (default: 400)"
    )
    parser.add_argument(
        "--temperature",
        metavar="T",
        type=float,
        default=0.7,
        help="0 always takes the likeliest character (default: 0.7)",
    )
    parser.add_argument("--seed", metavar="S", type=int, help="for the same text each time")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=_later("fusedrnn.demo"))


def _later(module: str) -> Callable[[argparse.Namespace], int]:
    """The function ``run`` of a module that is imported when it is called."""

    def run(arguments: argparse.Namespace) -> int:
        status: int = import_module(module).run(arguments)
        return status

    return run


def _positive(text: str) -> float:
    """A positive number; one without a fraction stays an int and so exact."""
    for kind in (int, float):
        with suppress(ValueError):
            number = kind(text)
            break
    else:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}")
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0 and finite, got {text!r}")
    return number


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be integers with commas between them, got {text!r}"
        ) from None


#: Flag, field of an Architecture, settings of the argument, and what it is, of every option that
#: only some cells have.
_CELL_OPTIONS: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    (
        "--proj",
        "proj_size",
        {"metavar": "P", "type": int},
        "width of the projected h (D_h); 0: no projection",
    ),
    (
        "--peephole",
        "peephole",
        {"metavar": "GATES", "nargs": "?", "const": True},
        "gates that look at the cell's state, as ifo; alone: all of them",
    ),
    ("--coupled", "coupled", {"action": "store_true"}, "the input gate is 1 - f"),
    (
        "--reset",
        "reset",
        {"choices": RESETS},
        f"reset after or before the recurrent product; default: {RESETS[0]}",
    ),
    (
        "--periods",
        "periods",
        {"metavar": "P,P,...", "type": _integers},
        "of the modules, ascending",
    ),
    (
        "--gate-activation",
        "gate_activation",
        {"metavar": "NAME"},
        "of the gates; default: sigmoid",
    ),
    (
        "--activation",
        "activation",
        {"metavar": "NAME"},
        "of what is written, as tanh or 'leaky_relu(0.1)'; default: tanh",
    ),
    (
        "--output-activation",
        "output_activation",
        {"metavar": "NAME"},
        "of the cell's state before it is shown; default: tanh",
    ),
    ("--clip", "clip", {"metavar": "C", "type": _positive}, "limit of sums before activations"),
    ("--cell-clip", "cell_clip", {"metavar": "C", "type": _positive}, "limit of the cell's state"),
)


def _write(text: str) -> None:
    if sys.stdout is None:
        raise OSError("standard output is closed")
    # With PYTHONUNBUFFERED a stream drops, in silence, what one system call does not take.
    stream = getattr(sys.stdout, "buffer", None)
    if stream is None:
        sys.stdout.write(text)
        return
    sys.stdout.flush()
    rest = memoryview(text.encode(sys.stdout.encoding))
    while rest:
        rest = rest[stream.write(rest) :]


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _settle_output() -> None:
    """Write what is left; where that fails, keep the interpreter from trying again and saying so."""
    try:
        _flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        message = str(error) or type(error).__name__  # a MemoryError often says nothing
    return " ".join(message.split())


if __name__ == "__main__":
    sys.exit(main())
