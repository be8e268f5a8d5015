"""How fast several recurrent layers of one model can be, one after the other on one core.

This module is plain Python: with a machine from a file it needs neither NumPy nor the C extension.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fusedrnn.counting.result import Result, Table, figure_text
from fusedrnn.machine.roofline import ASSUMPTIONS, FOOTNOTE_OF_INTEGERS, Roofline

__all__ = ["Rooflines"]

FOOTNOTE = (
    "The floor of the layers is the sum of theirs, one after the other on one core. What a model has beside its recurrent\n"
    "layers is not in it: a model cannot be faster. fusedrnn roofline FILE --layer NAME shows what limits each part of one."
)


@dataclass(frozen=True)
class Rooflines(Result):
    """The least time that the recurrent layers of a model take on one core of a machine.

    Attributes
    ----------
    model
        Its name.
    layers
        The roofline of each layer, by its name.
    """

    model: str
    layers: Mapping[str, Roofline]

    @property
    def seconds_per_step(self) -> float:
        """The floor of one step of the whole batch."""
        return sum(bound.seconds_per_step for bound in self.layers.values())

    @property
    def seconds(self) -> float:
        """The floor: all steps of the whole batch."""
        return sum(bound.seconds for bound in self.layers.values())

    @property
    def measured(self) -> float | None:
        """Seconds that the kernels of this package were measured to take; None if they were not."""
        measured = [bound.measured for bound in self.layers.values() if bound.measured is not None]
        return sum(measured) if len(measured) == len(self.layers) else None

    @property
    def failed(self) -> bool:
        """Whether a measurement was faster than the model allows."""
        return any(bound.failed for bound in self.layers.values())

    def _title(self) -> str:
        some = next(iter(self.layers.values()))
        work = some.complexity
        return (
            f"{self.model}: {len(self.layers)} recurrent layers, steps {work.steps:,}, batch {work.batch:,}"
            f"{'; forward and backward' * some.training}; {some.machine.cpu}, {some.isa}"
        )

    def _document(self) -> Mapping[str, Any]:
        documents = {name: bound.to_dict() for name, bound in self.layers.items()}
        for document in documents.values():
            del document["assumptions"], document["schema_version"]
        return {
            "assumptions": ASSUMPTIONS,
            "model": self.model,
            "layers": documents,
            "total": {
                "seconds_per_step": self.seconds_per_step,
                "seconds": self.seconds,
                "measured_seconds": self.measured,
                "model_failed": self.failed,
            },
        }

    def _records(self) -> list[Mapping[str, Any]]:
        """A line for each layer, then one whose ``layer`` is ``total``."""
        rows: list[Mapping[str, Any]] = [
            {
                "layer": name,
                "weight_bytes": bound.complexity.weight_bytes,
                "held_by": bound.held_by,
                "limited_by": bound.limited_by,
                "seconds_per_step": bound.seconds_per_step,
                "seconds": bound.seconds,
                "measured_seconds": bound.measured,
            }
            for name, bound in self.layers.items()
        ]
        total = {
            "layer": "total",
            "seconds_per_step": self.seconds_per_step,
            "seconds": self.seconds,
            "measured_seconds": self.measured,
        }
        return [*rows, total]

    def _tables(self) -> Iterator[Table]:
        header = ["layer", "weight bytes", "held by", "limited by", "floor per step us", "floor us"]
        rows = [
            [
                name,
                figure_text(bound.complexity.weight_bytes),
                bound.held_by,
                bound.limited_by,
                *_microseconds(bound.seconds_per_step, bound.seconds),
            ]
            for name, bound in self.layers.items()
        ]
        rows.append(["total", "", "", "", *_microseconds(self.seconds_per_step, self.seconds)])
        if self.measured is not None:
            header.append("measured us")
            every = [*(bound.measured or 0.0 for bound in self.layers.values()), self.measured]
            rows = [[*row, *_microseconds(time)] for row, time in zip(rows, every, strict=True)]
        yield Table("Recurrent layers", header, rows, [1, *range(4, len(header))])

    def _notes(self) -> Iterator[str]:
        yield FOOTNOTE
        if any(bound.of_integers for bound in self.layers.values()):
            yield FOOTNOTE_OF_INTEGERS


def _microseconds(*seconds: float) -> list[str]:
    return [f"{each * 1e6:,.3f}" for each in seconds]
