"""Where a benchmark writes its results: checked before anything is measured, and never lost after."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusedrnn.files import check_output, write_file

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["NOWHERE", "Outputs"]


@dataclass(frozen=True)
class Outputs:
    """Where results are written.

    Attributes
    ----------
    report
        A folder; None for no report.
    json
        A file; None for none.
    """

    report: Path | None = None
    json: Path | None = None

    @property
    def json_is_stdout(self) -> bool:
        """Whether the JSON goes where tables are printed otherwise."""
        if self.json is None:
            return False
        try:
            return os.path.samestat(self.json.stat(), os.fstat(sys.stdout.fileno()))
        except (OSError, ValueError):  # no such file yet, or no file behind standard output
            return False

    def console(self) -> Console:
        """Where tables and progress are printed: not into the JSON."""
        from fusedrnn.report.console import make_console

        return make_console(sys.stderr if self.json_is_stdout else None)

    def check(self) -> None:
        """Find out whether everything can be written, while nothing has been measured yet.

        Raises
        ------
        ValueError
            If something cannot be written; the message names the option.
        """
        if self.report:
            with _named("--report", self.report):
                self.report.mkdir(parents=True, exist_ok=True)
                for name in ("report.md", "index.html", "results.json"):
                    check_output(self.report / name)
        if self.json:
            if self.json.is_dir():
                raise ValueError(f"--json: {self.json} is a folder")
            with _named("--json", self.json):
                check_output(self.json)

    def write(self, console: Console, results: dict[str, Any]) -> None:
        """Write everything; what cannot be written is kept in a temporary file, and the error says where.

        Raises
        ------
        ValueError
            If something could not be written.
        """
        from fusedrnn.report import render

        content = (json.dumps(results, indent=1) + "\n").encode()
        try:
            if self.json:
                with _named("--json", self.json):
                    write_file(self.json, content)
                console.print(f"results: {self.json}", soft_wrap=True)
            if self.report:
                with _named("--report", self.report):
                    for name, page in render(results).items():
                        write_file(self.report / name, page)
                console.print(f"report: {self.report / 'index.html'}", soft_wrap=True)
        except BrokenPipeError:
            raise
        except Exception as error:
            raise type(error)(f"{error}; the results are in {_kept(content)}") from error


#: Results are shown, and written nowhere.
NOWHERE = Outputs()


@contextmanager
def _named(option: str, path: Path) -> Iterator[None]:
    """What the system says about a path becomes an error that names the option."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"{option}: cannot write to {path}: {reason}") from error


def _kept(content: bytes) -> str:
    """The name of a temporary file with that content."""
    number, name = tempfile.mkstemp(prefix="fusedrnn-results-", suffix=".json")
    with os.fdopen(number, "wb") as file:
        file.write(content)
    return name
