"""What a command prints: its format, where it goes, and how every error becomes one line and an exit code."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import click

from fusedrnn.errors import MissingExtraError
from fusedrnn.files import REPLACING, check_output, encoding_errors, write_file

__all__ = [
    "ERROR",
    "FAILED",
    "FORMATS",
    "INCOMPLETE",
    "INTERRUPTED",
    "READER_GONE",
    "SUFFIXES",
    "Output",
    "Result",
    "guarded",
    "progress_bar",
    "say",
    "write",
    "write_json",
]

FAILED, ERROR, INCOMPLETE, INTERRUPTED, READER_GONE = 1, 2, 3, 130, 141
#: The format of a result when only the output file's name tells.
SUFFIXES = {".json": "json", ".csv": "csv", ".md": "markdown"}
#: Seconds of work from which on there is a progress bar.
LONG = 1.0
#: An error message has at most so many characters: a bad value may have any number.
MAX_MESSAGE = 600
#: Characters that steer a terminal instead of being shown: controls, and those that turn the direction of text.
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


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


@dataclass(frozen=True)
class Output:
    """Where a result goes, and in which format.

    Attributes
    ----------
    style
        A key of :data:`FORMATS`.
    path
        The file to write; None for standard output.
    """

    style: str
    path: Path | None

    def check(self) -> None:
        """Raise the OSError that writing would end in: before the work whose result it is."""
        if self.path is not None:
            check_output(self.path)

    def put(self, result: Result, explanation: Callable[[], str] | None = None) -> None:
        """Write a result; under a table also its explanation."""
        text = FORMATS[self.style](result)
        if explanation is not None:
            text += f"\n{explanation()}\n"
        if self.style == "table":
            text = visible(text)
        if self.path is None:
            write(text)
        else:
            write_file(self.path, text.encode("utf-8", REPLACING))


def write(text: str) -> None:
    """Write all of a text to standard output, or raise an OSError."""
    if sys.stdout is None:
        raise OSError("standard output is closed")
    # With PYTHONUNBUFFERED a stream drops, in silence, what one system call does not take.
    stream = getattr(sys.stdout, "buffer", None)
    if stream is None:
        sys.stdout.write(text)
        return
    sys.stdout.flush()
    rest = memoryview(text.encode(sys.stdout.encoding, encoding_errors(sys.stdout)))
    while rest:
        rest = rest[stream.write(rest) :]


def say(line: str) -> None:
    """A line for people, on standard error."""
    if sys.stderr is not None:
        print(f"fusedrnn: {one_line(line)}", file=sys.stderr)


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[float | None], None]]:
    """What is told how far the work is, from 0 to 1: a bar, if it is long, its end is known, and a terminal shows it."""
    start, bar = monotonic(), None
    quiet = sys.stderr is None or not sys.stderr.isatty()

    def tell(share: float | None) -> None:
        nonlocal bar
        if quiet or share is None or monotonic() - start < LONG:
            return
        if bar is None:
            bar = click.progressbar(length=1000, label=label, file=sys.stderr)
            bar.__enter__()
        bar.update(int(share * 1000) - bar.pos)

    try:
        yield tell
    finally:
        if bar is not None:
            bar.__exit__(None, None, None)


def write_json(facts: Any) -> None:
    """Write something JSON-able to standard output."""
    write(json.dumps(facts, indent=2) + "\n")


def guarded(run: Callable[[], int]) -> int:
    """Run what a command does; what goes wrong becomes one line on standard error and an exit code.

    Parameters
    ----------
    run
        Returns the exit code if nothing goes wrong.

    Returns
    -------
    int
        The exit code: that of ``run``; 2 after an error, 130 after Ctrl-C, 141 if the reader of a pipe
        went away.
    """
    try:
        try:
            status = run()
        except click.exceptions.Exit as end:  # the help or the version was written
            status = end.exit_code
        _flush()
    except BrokenPipeError:
        status = READER_GONE
    except KeyboardInterrupt:
        status = INTERRUPTED
    except click.ClickException as error:
        status = _failed(_usage(error))
    except (ValueError, TypeError, OSError, MemoryError, RuntimeError, MissingExtraError) as error:
        status = _failed(_reason(error))
    _settle()
    return status


def _failed(message: str) -> int:
    if sys.stderr is not None:
        with suppress(OSError):  # nobody is left to tell
            print(f"fusedrnn: error: {one_line(message)}", file=sys.stderr)
    return ERROR


def _usage(error: click.ClickException) -> str:
    """What is wrong with the arguments, and which help says more."""
    if isinstance(error, click.NoSuchOption):
        near = error.possibilities
        message = f"no such option {error.option_name}"
        message += f"; did you mean {near[0]}?" if near else ""
    elif isinstance(error, click.BadParameter) and error.param is not None and error.message:
        message = f"{_flag(error.param)}: {error.message}"
    else:
        message = error.format_message().rstrip(".")
        message = message[:1].lower() + message[1:]
    context = getattr(error, "ctx", None)
    return f"{message} (see {context.command_path} --help)" if context else message


def _flag(parameter: click.Parameter) -> str:
    """What a parameter is called on the command line."""
    if isinstance(parameter, click.Option):
        return max(parameter.opts, key=len)
    return parameter.human_readable_name.strip("[].")


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__  # a MemoryError often says nothing


def one_line(message: str) -> str:
    """A message without line breaks and control characters; the middle of a very long one is left out."""
    line = visible(" ".join(message.split()))
    if len(line) > MAX_MESSAGE:
        line = f"{line[: MAX_MESSAGE * 2 // 3]} ... {line[-MAX_MESSAGE // 4 :]}"
    return line


def visible(text: str) -> str:
    """Text with its control characters as escapes, but for line breaks: names may be any text."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _settle() -> None:
    """Write what is left; where that fails, keep the interpreter from trying again and saying so."""
    try:
        _flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
