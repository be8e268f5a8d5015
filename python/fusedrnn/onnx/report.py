"""What of an ONNX model runs where, as a result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusedrnn.counting.result import Result, Table

__all__ = ["HERE", "ORT", "NodeReport", "SessionReport"]

HERE, ORT = "fusedrnn", "onnxruntime"


@dataclass(frozen=True)
class NodeReport:
    """A recurrent node.

    Attributes
    ----------
    name, operator
        As in the model.
    runs_in
        "fusedrnn" or "onnxruntime".
    detail
        The layer that it is here; or why it is left to ONNX Runtime.
    notes
        What was decided on the way.
    """

    name: str
    operator: str
    runs_in: str
    detail: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SessionReport(Result):
    """Which nodes of a model run where.

    Attributes
    ----------
    path
        The model's file; "" for a model in memory.
    recurrent
        Every recurrent node that runs, those in subgraphs too.
    pieces
        How many nodes each piece has that ONNX Runtime runs, in the order in which they run.
    moves
        How many nodes only move numbers, and run in fusedrnn.
    unused
        How many nodes of the main graph nothing needs any more: those that made constants or states of zeros for layers,
        and those that no output needs.
    """

    path: str
    recurrent: tuple[NodeReport, ...]
    pieces: tuple[int, ...]
    moves: int
    unused: int

    def _title(self) -> str:
        here = sum(node.runs_in == HERE for node in self.recurrent)
        of = f"{here} of {len(self.recurrent)}" if self.recurrent else "no"
        return f"{self.path or 'the model'}: {of} recurrent nodes run in {HERE}"

    def _lead(self) -> Iterable[str]:
        nodes, pieces = sum(self.pieces), len(self.pieces)
        yield (
            f"{ORT}: {nodes} nodes in {pieces} piece{'s' * (pieces != 1)}. {HERE}: "
            f"{self.moves} nodes that move numbers. Not needed: {self.unused}."
        )

    def _document(self) -> Mapping[str, Any]:
        return {
            "path": self.path,
            "recurrent": [
                {
                    "name": node.name,
                    "operator": node.operator,
                    "runs_in": node.runs_in,
                    "detail": node.detail,
                    "notes": list(node.notes),
                }
                for node in self.recurrent
            ],
            "onnxruntime_pieces": list(self.pieces),
            "moves": self.moves,
            "unused": self.unused,
        }

    def _records(self) -> Sequence[Mapping[str, Any]]:
        return [
            {
                "name": node.name,
                "operator": node.operator,
                "runs_in": node.runs_in,
                "detail": node.detail,
            }
            for node in self.recurrent
        ]

    def _tables(self) -> Iterable[Table]:
        if self.recurrent:
            yield Table(
                "Recurrent nodes",
                ("node", "operator", "runs in", "layer, or why not"),
                [(node.name, node.operator, node.runs_in, node.detail) for node in self.recurrent],
            )

    def _notes(self) -> Iterable[str]:
        lines = [f"{node.name}: {note}" for node in self.recurrent for note in node.notes]
        if lines:
            yield "\n".join(lines)
