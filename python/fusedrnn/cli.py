"""The command ``fusedrnn``: what the library knows, from a shell.

Starts fast: each subcommand imports what it needs when it runs. Exit codes: 0 done, 2 an error that
one line on standard error explains, 130 interrupted, 141 the reader of a pipe went away.
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
from typing import Any, NoReturn, TypeAlias

from fusedrnn import __version__
from fusedrnn.cells import BIASES, CELLS
from fusedrnn.complexity import WEIGHT_BYTES, Complexity, aligned, count
from fusedrnn.errors import MissingExtraError
from fusedrnn.files import write_file

__all__ = ["guarded", "main"]

ERROR, INTERRUPTED, READER_GONE = 2, 130, 141
#: The format of a count when only the output file's name tells.
SUFFIXES = {".json": "json", ".csv": "csv", ".md": "markdown"}
FORMATS: dict[str, Callable[[Complexity], str]] = {
    "table": lambda complexity: f"{complexity}\n",
    "json": Complexity.to_json,
    "csv": Complexity.to_csv,
    "markdown": Complexity.to_markdown,
}

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
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit:  # argparse has printed the help or the version
        return 0
    status: int = arguments.run(arguments)
    return status


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
        "  fusedrnn info\n"
        "  fusedrnn bench --quick --report report\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fusedrnn {__version__}")
    subcommands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_add_count, _add_info, _add_bench, _add_demo):
        add(subcommands)
    return parser


def _add_count(subcommands: Subcommands) -> None:
    parser = subcommands.add_parser(
        "count",
        help="count parameters, MACs, FLOPs and bytes of a network from its sizes",
        description="Count parameters, MACs, FLOPs, activations and bytes from a network's sizes.",
        epilog="examples:\n"
        "  fusedrnn count lstm --input 128 --hidden 256\n"
        "  fusedrnn count lstm --input 40 --hidden 64 --proj 16 --layers 2 --bidirectional\n"
        "  fusedrnn count lstm --input 40 --hidden 64 --steps 100 --rate 16000 --dtype int8\n"
        "  fusedrnn count lstm --input 128 --hidden 256 --output cost.json\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("cell", choices=CELLS, help=", ".join(CELLS))
    for flag, name, metavar, least, text in (
        ("--input", "input_size", "X", None, "width of an input row (D_x)"),
        ("--hidden", "hidden_size", "H", None, "number of units (D_n)"),
        ("--proj", "proj_size", "P", 0, "width of the projected h (D_h); 0: no projection"),
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
    parser.add_argument(
        "--bias",
        choices=BIASES,
        default="single",
        help="bias vectors of a gate block, as stored (default: single)",
    )
    parser.add_argument(
        "--dtype",
        choices=WEIGHT_BYTES,
        default="float32",
        help="type of the matrix weights (default: float32)",
    )
    parser.add_argument(
        "--rate", metavar="HZ", type=_rate, help="steps per second: adds figures per second"
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="default: by the suffix of --output (.json, .csv, .md), or else table",
    )
    parser.add_argument(
        "--explain", action="store_true", help="add each formula with its numbers to the table"
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="write to FILE; replaces it at once"
    )
    parser.set_defaults(run=_count)


def _count(arguments: argparse.Namespace) -> int:
    output: Path | None = arguments.output
    suffix = output.suffix.lower() if output else ""
    style: str = arguments.format or SUFFIXES.get(suffix, "table")
    if arguments.explain and style != "table":
        raise ValueError(f"--explain goes with --format table, not {style}")
    complexity = count(
        arguments.cell,
        input_size=arguments.input_size,
        hidden_size=arguments.hidden_size,
        num_layers=arguments.num_layers,
        bidirectional=arguments.bidirectional,
        proj_size=arguments.proj_size,
        bias=arguments.bias,
        steps=arguments.steps,
        batch=arguments.batch,
        dtype=arguments.dtype,
        rate=arguments.rate,
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
    if output is None:
        _write(text)
    else:
        write_file(output, text.encode())
    return 0


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


def _add_bench(subcommands: Subcommands) -> None:
    text = "measure the kernels on this machine"
    parser = subcommands.add_parser(
        "bench", help=text, description=f"{text.capitalize()}.", allow_abbrev=False
    )
    parser.add_argument("--quick", action="store_true", help="fewer shapes and rounds")
    parser.add_argument("--report", metavar="DIR", type=Path, help="write a report to DIR")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results to FILE")
    parser.add_argument("--isa", metavar="NAME", help="use this instruction set")
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("OLD.json", "NEW.json"),
        type=Path,
        help="compare two results instead of measuring",
    )
    parser.set_defaults(run=_later("fusedrnn.bench.run"))


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


def _rate(text: str) -> float:
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
