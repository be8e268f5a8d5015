"""THE LIST of shapes: benchmarks, reports, tests and the command line take theirs from here.

This module is plain Python: it needs neither pytest, nor Numba, nor NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any, Literal

from fusedrnn.cells import Architecture

__all__ = ["CASES", "GROUPS", "Case", "Group", "find", "in_group", "networks"]

Group = Literal["step", "sequence", "batch", "ragged"]

#: The groups, and what is timed in each, for people.
GROUPS: dict[Group, str] = {
    "step": "one time step",
    "sequence": "one sequence, whole",
    "batch": "a batch of sequences, whole",
    "ragged": "a batch of sequences of unequal lengths, whole",
}

#: Of a cell, as keywords; a tuple, so that a case can be a key.
Options = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Case:
    """One cell in one shape to measure: T steps of B sequences, X inputs, H units.

    Attributes
    ----------
    group
        What is timed: one step, one sequence, or a batch of them.
    quick
        Measured by ``fusedrnn bench --quick`` too.
    cell, options
        What is run: a cell of the table, and its options.
    lengths
        Of the sequences, where they are not all T steps long.
    """

    group: Group
    steps: int
    batch: int
    input: int
    hidden: int
    quick: bool = False
    cell: str = "lstm"
    options: Options = ()
    lengths: tuple[int, ...] | None = None

    @cached_property
    def architecture(self) -> Architecture:
        """What is run, checked."""
        return Architecture(self.cell, self.input, self.hidden, **dict(self.options))

    @property
    def id(self) -> str:
        """The name in results and on the command line of pytest."""
        words = [self.cell, *(_word(name, value) for name, value in self.options)]
        if self.lengths is not None:
            words.append("ragged")
        sizes = f"T{self.steps}-B{self.batch}-X{self.input}-H{self.hidden}"
        return "-".join([*words, sizes])

    @property
    def network(self) -> str:
        """The name of the cell with its options, in tables."""
        a = self.architecture
        said = a.table.title
        if a.peephole:
            said += " with peepholes"
        if a.proj_size:
            half = 2 * a.proj_size == a.hidden_size
            said += f", projection {'H/2' if half else a.proj_size}"
        if a.periods:
            said += f" {'-'.join(map(str, a.periods))}"
        return f"bidirectional {said}" if a.bidirectional else said

    @property
    def title(self) -> str:
        """The name of the shape, in tables."""
        units = (
            f"H=X={self.hidden}"
            if self.input == self.hidden
            else f"H={self.hidden}, X={self.input}"
        )
        longest = "T≤" if self.lengths else "T="
        times = [] if self.group == "step" else [f"{longest}{self.steps}"]
        rows = [f"B={self.batch}"] if self.group in ("batch", "ragged") else []
        return ", ".join([units, *times, *rows])


def _word(name: str, value: Any) -> str:
    """An option in a name: "peephole", "reset-before", "periods-1-2-4-8"."""
    values = value if isinstance(value, tuple) else () if value is True else (value,)
    return "-".join([name, *map(str, values)])


def _unequal(steps: int, batch: int) -> tuple[int, ...]:
    """Lengths, drawn once: the longest is T, as of any batch that was padded, the mean about T/2."""
    random = Random(1)
    lengths = [1 + int(steps * random.random()) for _ in range(batch)]
    lengths[lengths.index(max(lengths))] = steps
    return tuple(lengths)


def _lstm() -> Iterator[Case]:
    """The LSTM, in every size."""
    for hidden, quick in ((32, True), (64, True), (128, True), (256, True), (512, True)):
        yield Case("step", 1, 1, hidden, hidden, quick)
    yield Case("step", 1, 1, 40, 96)
    yield Case("step", 1, 1, 65, 200, quick=True)

    for hidden, quick in ((32, True), (64, False), (128, True), (256, True), (512, False)):
        yield Case("sequence", 100, 1, hidden, hidden, quick)
    yield Case("sequence", 100, 1, 40, 96)
    yield Case("sequence", 100, 1, 65, 200)

    yield Case("batch", 50, 16, 128, 128, quick=True)
    yield Case("batch", 100, 16, 128, 128, quick=True)
    yield Case("batch", 100, 16, 256, 256)
    yield Case("batch", 25, 64, 512, 512)
    yield Case("batch", 50, 7, 40, 96, quick=True)


def networks(hidden: int) -> Iterator[tuple[str, Options]]:
    """The other cells and options, at that number of units."""
    yield "lstm", (("peephole", True),)
    yield "lstm", (("coupled", True),)
    yield "lstm", (("proj_size", hidden // 2),)
    yield "lstm", (("bidirectional", True),)
    yield "gru", (("reset", "after"),)
    yield "gru", (("reset", "before"),)
    yield "rnn", ()
    yield "clockwork", (("periods", (1, 2, 4, 8)),)


def _family() -> Iterator[Case]:
    """The other cells and options, in the same few sizes."""
    shapes: tuple[tuple[Group, int, int, int, bool], ...] = (
        ("step", 1, 1, 64, True),
        ("step", 1, 1, 256, True),
        ("sequence", 100, 1, 64, False),
        ("sequence", 100, 1, 256, False),
        ("batch", 50, 16, 128, True),
    )
    for group, steps, batch, hidden, quick in shapes:
        for cell, options in networks(hidden):
            # A reverse direction begins at the end of a sequence: it has no steps to be fed.
            if group != "step" or ("bidirectional", True) not in options:
                yield Case(group, steps, batch, hidden, hidden, quick, cell, options)
    for cell, options in (("lstm", ()), ("gru", (("reset", "after"),))):
        lengths = _unequal(100, 16)
        yield Case("ragged", 100, 16, 128, 128, True, cell, options, lengths)


CASES: tuple[Case, ...] = (*_lstm(), *_family())


def in_group(group: Group) -> tuple[Case, ...]:
    """The cases of one group, in the order of the list."""
    return tuple(case for case in CASES if case.group == group)


def find(id: str) -> Case:
    """The case of that name."""
    return next(case for case in CASES if case.id == id)
