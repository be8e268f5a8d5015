"""Where the benchmarks print."""

from __future__ import annotations

import codecs
import io
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["console"]

#: What a terminal without Unicode shows for the characters that figures are written with.
_ASCII = str.maketrans(
    {
        "\N{MICRO SIGN}": "u",
        "\N{MULTIPLICATION SIGN}": "x",
        "\N{NO-BREAK SPACE}": " ",
        "\N{EN DASH}": "-",
    }
)


def console(width: int | None = None) -> Console:
    """Rich's console for figures and paths.

    A reader that goes away is a BrokenPipeError, where Rich alone would exit with 1; and what the
    encoding of the output lacks is written in ASCII, where Rich alone would fail.
    """
    from rich.console import Console

    class Ours(Console):
        def on_broken_pipe(self) -> NoReturn:
            raise BrokenPipeError

    if isinstance(sys.stdout, io.TextIOWrapper):
        codecs.register_error("fusedrnn", _in_ascii)
        sys.stdout.reconfigure(errors="fusedrnn")
    return Ours(highlight=False, width=width)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_ASCII)
    return text.encode("ascii", "replace").decode("ascii"), error.end
