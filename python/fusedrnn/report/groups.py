"""The groups of rows of a benchmark: what is timed in the same way, and how a report calls it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GROUPS", "TRAINING", "Group"]


@dataclass(frozen=True)
class Group:
    """Rows that are timed in the same way.

    Attributes
    ----------
    name
        In the JSON.
    meaning
        What one time in this group is, for people.
    baseline
        The group whose naive row the speed-up is against.
    """

    name: str
    title: str
    meaning: str
    baseline: str


#: In the order of the report.
GROUPS = (
    Group(
        "step from Python",
        "One step, called from Python",
        "One call of step(x): what a program pays that feeds a network one input at a time.",
        "step from Python",
    ),
    Group(
        "step, kernel alone",
        "One step, the kernel alone",
        "The same steps in a loop in C, without a call from Python between them; each is finished "
        "before the next begins, as a caller has it. Naive NumPy has no such loop: the speed-up is "
        "over its step from Python.",
        "step from Python",
    ),
    Group(
        "call",
        "One step, the layer called",
        "One call of layer(x, state) for a single step: the state comes from the caller and goes back to it. Other "
        "libraries are called in the same way.",
        "call",
    ),
    Group(
        "streams",
        "One step of several streams",
        "One call of a group of B streams, each with a state of its own; for naive NumPy and other libraries a batch of B.",
        "streams",
    ),
    Group("sequence", "One sequence", "One call for all T steps of a single sequence.", "sequence"),
    Group("batch", "A batch of sequences", "One call for all T steps of B sequences.", "batch"),
    Group(
        "ragged",
        "A batch of unequal lengths",
        "One call for B sequences, the longest of T steps and the mean about half of that. fusedrnn is told the "
        "lengths; naive NumPy computes all T steps of all sequences and masks them. Operations are counted for "
        "the steps that there are.",
        "ragged",
    ),
    Group(
        "threads",
        "Several threads",
        "One call for all T steps, by one thread and by several, all timed by the clock on the wall. Every library "
        "is told how many threads it has.",
        "threads",
    ),
    Group(
        "training",
        "Training, equal lengths",
        "Forward and backward: the gradients of x, of the state before and of every weight, for gradients of y and of the last "
        "state.",
        "training",
    ),
    Group(
        "ragged training",
        "Training, unequal lengths",
        "The same for B sequences, the longest of T steps and the mean about half of that. PyTorch is given a packed sequence.",
        "ragged training",
    ),
    Group(
        "outputs training",
        "Training, unequal lengths, a loss of the outputs alone",
        "The same without a gradient of the last state: PyTorch may then pad the sequences, and what is faster counts.",
        "outputs training",
    ),
    Group(
        "training threads",
        "Training, several threads",
        "By one thread and by several, all timed by the clock on the wall.",
        "training threads",
    ),
    Group(
        "char LSTM on Acts",
        "Real data: a character model reads the Acts of the Apostles",
        "One call for all T characters, one-hot, batch 1. Bits per character say how well the model "
        "guesses the next one: the same for every engine, or one of them is wrong.",
        "char LSTM on Acts",
    ),
)


#: The groups of forward and backward passes.
TRAINING = tuple(group.name for group in GROUPS if "training" in group.name)
