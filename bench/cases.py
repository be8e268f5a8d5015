"""THE LIST of shapes: benchmarks, reports, tests and the command line take theirs from here.

This module is plain Python: it needs neither pytest, nor Numba, nor NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = ["CASES", "GROUPS", "Case", "Group", "find", "in_group"]

Group = Literal["step", "sequence", "batch"]

#: The groups, and what is timed in each, for people.
GROUPS: dict[Group, str] = {
    "step": "one time step",
    "sequence": "one sequence, whole",
    "batch": "a batch of sequences, whole",
}


@dataclass(frozen=True)
class Case:
    """One shape to measure: T steps of B sequences, X inputs, H units.

    Attributes
    ----------
    group
        What is timed: one step, one sequence, or a batch of them.
    quick
        Measured by ``fusedrnn bench --quick`` too.
    """

    group: Group
    steps: int
    batch: int
    input: int
    hidden: int
    quick: bool = False
    cell: str = "lstm"

    @property
    def id(self) -> str:
        """The name in results and on the command line of pytest."""
        sizes = f"T{self.steps}-B{self.batch}-X{self.input}-H{self.hidden}"
        return f"{self.cell}-{sizes}"

    @property
    def title(self) -> str:
        """The name in tables."""
        units = (
            f"H=X={self.hidden}"
            if self.input == self.hidden
            else f"H={self.hidden}, X={self.input}"
        )
        times = [] if self.group == "step" else [f"T={self.steps}"]
        rows = [f"B={self.batch}"] if self.group == "batch" else []
        return ", ".join([units, *times, *rows])


def _cases() -> Iterator[Case]:
    for hidden, quick in ((32, True), (64, True), (128, True), (256, True), (512, True)):
        yield Case("step", 1, 1, hidden, hidden, quick)
    yield Case("step", 1, 1, 40, 96)
    yield Case("step", 1, 1, 65, 200, quick=True)

    for hidden, quick in ((32, True), (64, False), (128, True), (256, True), (512, False)):
        yield Case("sequence", 100, 1, hidden, hidden, quick)
    yield Case("sequence", 100, 1, 40, 96)
    yield Case("sequence", 100, 1, 65, 200)

    yield Case("batch", 100, 16, 128, 128, quick=True)
    yield Case("batch", 100, 16, 256, 256)
    yield Case("batch", 25, 64, 512, 512)
    yield Case("batch", 50, 7, 40, 96, quick=True)


CASES: tuple[Case, ...] = tuple(_cases())


def in_group(group: Group) -> tuple[Case, ...]:
    """The cases of one group, in the order of the list."""
    return tuple(case for case in CASES if case.group == group)


def find(id: str) -> Case:
    """The case of that name."""
    return next(case for case in CASES if case.id == id)
