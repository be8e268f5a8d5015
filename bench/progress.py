"""How far a measurement is, and how it hears of a Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Progress"]


class Progress:
    """A bar on a terminal; elsewhere a line for each pass. Both say how long it will go on."""

    def __init__(self, console: Console) -> None:
        from rich import progress as rich

        self._console = console
        self._tests = self._done = 0
        # No refreshing in the background: a second thread would take part in the measurement.
        self.bar = rich.Progress(
            rich.TextColumn("measuring"),
            rich.BarColumn(),
            rich.TextColumn("{task.description}"),
            console=console,
            auto_refresh=False,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self.bar.add_task("", total=1.0)
        self._pass = -1
        self._start = monotonic()
        #: Whether a line could not be printed because nobody reads them any more.
        self.reader_gone = False
        #: Whether there was a Ctrl-C.
        self.interrupted = False

    @property
    def complete(self) -> bool:
        """Whether every test has run."""
        return 0 < self._tests == self._done

    def started(self, tests: int, seconds: float) -> None:
        """Called once, with the number of tests and the seconds that they may take."""
        self._tests = tests
        self._start = monotonic()
        self._print(f"{tests} measurements, {_about(seconds)}")

    def finished(self, pass_: int, done: float) -> None:
        """Called after each test, with the part of all of them that is done."""
        self._done += 1
        left = _about((monotonic() - self._start) * (1 / done - 1))
        self.bar.update(self._task, completed=done, description=f"{left} left")
        self.bar.refresh()
        if pass_ != self._pass and not self._console.is_terminal:
            self._pass = pass_
            self._print(f"pass {pass_ + 1}: {self._done - 1} of {self._tests} done, {left} left")
        if self.reader_gone or self.interrupted:
            # What else is raised here is a fault to pytest, with a traceback; this ends it.
            raise KeyboardInterrupt

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Remember a Ctrl-C: LLVM, while Numba compiles, calls back into Python and swallows what is raised there."""

        def remember(number: int, frame: FrameType | None) -> None:
            self.interrupted = True
            signal.default_int_handler(number, frame)

        if threading.current_thread() is not threading.main_thread():  # where no signal arrives
            yield
            return
        before = signal.signal(signal.SIGINT, remember)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _print(self, line: str) -> None:
        try:
            self._console.print(line)
        except BrokenPipeError:
            self.reader_gone = True


def _about(seconds: float) -> str:
    """A time that nobody knows exactly."""
    if seconds < 100:
        return f"about {max(1, round(seconds))} s"
    return f"about {seconds / 60:.0f} min" if seconds < 6000 else f"about {seconds / 3600:.1f} h"
