"""How fast a recurrent network can be on one core of a machine: the roofline of each part, and the floor.

The work comes from :mod:`fusedrnn.counting.counts`, the limits from :mod:`fusedrnn.machine.limits`. Every term errs to the low
side, so that nothing that follows the schedule in :data:`ASSUMPTIONS` can be faster than the floor.

This module is plain Python: with a machine from a file it needs neither NumPy nor the C extension.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from fusedrnn.architecture import INTEGERS
from fusedrnn.counting.cost import FLOAT_BYTES
from fusedrnn.counting.counts import DIRECTIONS, Complexity, count
from fusedrnn.counting.operations import Counts, LayerCounts
from fusedrnn.counting.result import Result, Table, figure_text
from fusedrnn.errors import UnsupportedError
from fusedrnn.machine.limits import Machine
from fusedrnn.machine.parts import (
    BACKWARD_PARTS,
    Part,
    Works,
    backward,
    forward,
    holder,
    nearer,
    of_layer,
    step_latency,
)
from fusedrnn.machine.probe import same_machine, this_machine

__all__ = ["ASSUMPTIONS", "MAX_FRACTION", "Part", "Roofline", "roofline"]

#: A kernel measured to be faster than this share of the limit has shown that the model, or the machine's limits, are
#: wrong: clocks are not steadier than the rest.
MAX_FRACTION = 1.05

#: The formula, and what it takes for granted; it travels with every result.
ASSUMPTIONS = {
    "floor": "max(sum over parts of max(compute, each level, latency), each level of the whole)",
    "parts": "Each layer and direction runs after the one before, on one core: first its input part, W x + b for "
    "all T steps at once, which reads W once; then its recurrent part, R h and the rest of the cell, which reads R "
    "in each of the T steps, for the whole batch. A step alone is T = 1: all weights are read for it.",
    "compute": "FLOPs / the rate of FMAs from registers. FLOPs as fusedrnn count has them: activations are not among "
    "them and cost only latency.",
    "integers": "int8 and w8a7 have no compute limit and no ridge: their products are of integers, not FMAs, at a rate "
    "that is not measured. FLOPs count two for each weight all the same.",
    "level": "bytes that even the best cache cannot have nearer / bandwidth of the level they come from. Of what is "
    "read again and again, the caches up to L2 hold at most L1 + L2 bytes; the rest comes from L3 or beyond.",
    "whole": "When a call begins, caches hold at most their size of its weights, x and y, from the call before.",
    "latency": "T times the chain from h to h': h through memory to all units, and one activation after the other "
    "as the equations demand, each as the kernels compute it. Sums over k count as one FMA.",
    "weights": "unpadded; matrices in weight_dtype, without the scales of int8, all else in float32.",
    "training": "Of a training step, after all forward parts: for each layer and direction, from the last, first its "
    "backward part, which reads R, P and peepholes in each of the T steps, and the tape once; then the gradients of its "
    "weights, and of x where they are wanted, as products over all T * B rows at once, which move the weights' bytes once. "
    "Its latency is T - 1 exchanges, and as many again where a step has a second product: derivatives wait for nothing. "
    "Packing new weights and the optimiser are left out.",
}

FOOTNOTE = (
    "floor = max(sum over parts of max(compute, each level, latency), each level of the whole), one core:\n"
    "input part: W x for all steps at once, W read once; recurrent part: R h, R read every step.\n"
    "compute: FLOPs / FMA rate. Level: bytes that cannot be held nearer / its bandwidth.\n"
    "latency: steps * the chain from h to h', with activations; activations cost nothing else.\n"
    "FLOPs/byte: of weights read. ridge: FMA rate / bandwidth of the level that holds them."
)
FOOTNOTE_OF_INTEGERS = "int8 and w8a7: no compute limit and no ridge. Their products are of integers, not FMAs, at a rate that is not measured."
FOOTNOTE_OF_TRAINING = (
    "backward: R^T dz and the cell, R read every step, the tape once; its latency has no activations.\n"
    "weight and x gradients: products over all steps and sequences. Packing and the optimiser: not in it."
)


@dataclass(frozen=True)
class Roofline(Result):
    """The least time that a network takes on one core of a machine, as :func:`roofline` returns it.

    Attributes
    ----------
    complexity
        What is run: sizes, steps, batch, rate; of a training step, the backward pass too.
    machine, isa
        Where, and with which of its instruction sets.
    parts
        In the order they run.
    whole
        Seconds that each level needs at least for what a call cannot find nearer when it begins.
    measured
        Seconds that the kernels of this package were measured to take; None if they were not.
    """

    complexity: Complexity
    machine: Machine
    isa: str
    parts: tuple[Part, ...]
    whole: dict[str, float]
    measured: float | None = None

    @cached_property
    def _shares(self) -> dict[str, float]:
        """Seconds of the floor by what limits them."""
        shares: dict[str, float] = {}
        for part in self.parts:
            shares[part.limited_by] = shares.get(part.limited_by, 0.0) + part.seconds
        level = max(self.whole, key=self.whole.__getitem__)
        return {level: self.whole[level]} if self.whole[level] > sum(shares.values()) else shares

    @property
    def seconds(self) -> float:
        """The floor: all steps of the whole batch."""
        return sum(self._shares.values())

    @property
    def seconds_per_step(self) -> float:
        """The floor of one step of the whole batch."""
        return self.seconds / self.complexity.steps

    @property
    def training(self) -> bool:
        """Whether this is the floor of a training step: forward and backward."""
        return self.complexity.backward

    @property
    def of_integers(self) -> bool:
        """Whether products are of integers, and so without a compute limit."""
        return self.complexity.weight_dtype in INTEGERS

    @property
    def forward_seconds(self) -> float:
        """The least time of all forward parts."""
        return sum(part.seconds for part in self.parts if part.name not in BACKWARD_PARTS)

    @property
    def backward_seconds(self) -> float:
        """The least time of all backward parts; 0 but for a training step."""
        return sum(part.seconds for part in self.parts if part.name in BACKWARD_PARTS)

    @property
    def limited_by(self) -> str:
        """What most of the floor is spent on: "compute", a level, or "latency"."""
        return max(self._shares, key=self._shares.__getitem__)

    @property
    def real_time_factor(self) -> float | None:
        """Share of the time between steps, at the rate, that the floor takes; None without a rate."""
        rate = self.complexity.rate
        return None if rate is None else self.seconds_per_step * rate

    @property
    def fraction(self) -> float | None:
        """Share of the limit that was reached: floor / measured; None if nothing was measured."""
        return None if self.measured is None else self.seconds / self.measured

    @property
    def failed(self) -> bool:
        """Whether a measurement was faster than the model allows."""
        return self.fraction is not None and self.fraction > MAX_FRACTION

    def measure(self, seconds: float = 0.5) -> Roofline:
        """The same with ``measured``: the fastest round of this package's C kernels, in processor time.

        Parameters
        ----------
        seconds
            How long to measure.

        Raises
        ------
        UnsupportedError
            If the limits are another machine's, or this package cannot run the network.
        """
        from fusedrnn.machine.kernel_time import kernel_seconds

        if not same_machine(self.machine):
            raise UnsupportedError(
                f"only this machine can be measured, and these are the limits of {self.machine.cpu!r} "
                f"with {self.machine.system!r}, fusedrnn {self.machine.probe}"
            )
        return replace(self, measured=kernel_seconds(self.complexity, self.isa, seconds))

    def _document(self) -> Mapping[str, Any]:
        work = self.complexity
        return {
            "assumptions": ASSUMPTIONS,
            "architecture": asdict(work.architecture),
            "steps": work.steps,
            "batch": work.batch,
            "rate": work.rate,
            "training": self.training,
            "want_x": work.want_x,
            "isa": self.isa,
            "machine": self.machine.to_dict(),
            "parts": [part.to_dict() for part in self.parts],
            "whole": self.whole,
            "total": self._total(),
        }

    def _total(self) -> dict[str, Any]:
        work = self.complexity
        training = {
            "backward_flops": work.backward_executed.flops if work.backward_executed else None,
            "tape_bytes": work.tape_bytes,
            "forward_seconds": self.forward_seconds,
            "backward_seconds": self.backward_seconds,
        }
        return {
            "flops_per_step": float(work.flops_per_step),
            "bytes_per_step": float(work.bytes_per_step),
            "weight_bytes": work.weight_bytes,
            "held_by": self.held_by,
            "limited_by": self.limited_by,
            "seconds_per_step": self.seconds_per_step,
            "seconds": self.seconds,
            **(training if self.training else {}),
            "real_time_factor": self.real_time_factor,
            "measured_seconds": self.measured,
            "fraction": self.fraction,
            "model_failed": self.failed,
        }

    @property
    def held_by(self) -> str:
        """The nearest level that has room for all weights of all layers."""
        return holder(self.machine, self.complexity.weight_bytes)

    def _records(self) -> list[Mapping[str, Any]]:
        """A line for each part, then one whose ``name`` is ``total``."""
        rows = []
        for part in self.parts:
            row = part.to_dict()
            times = row.pop("times")
            rows.append(row | {f"seconds_{name}": time for name, time in times.items()})
        flops, read = (sum(getattr(part, name) for part in self.parts) for name in _SUMS)
        total = {name: value for name, value in self._total().items() if name in rows[0]}
        total |= {"name": "total", "flops": flops, "bytes_read": read, "intensity": flops / read}
        return [*rows, total]

    def _title(self) -> str:
        return f"{self.complexity.title}{'; forward and backward' * self.training}"

    def _tables(self) -> Iterator[Table]:
        machine, limits = self.machine, self.machine.limits[self.isa]
        rows = [["FMA rate", "", f"{limits.flops / 1e9:,.1f} GFLOP/s"]]
        for level, speed in limits.bandwidth.items():
            held = machine.capacity.get(level)
            size = f"{held:,} bytes" if held else ""
            if held and held < machine.caches[level]:
                size = f"{held:,} of {machine.caches[level]:,} bytes"
            rows.append([level, size, f"{speed / 1e9:,.1f} GB/s"])
        step = step_latency(self.complexity.architecture, limits)
        rows.append(["step latency", "", f"{step * 1e9:,.1f} ns"])
        caption = f"Limits of one core: {machine.cpu}, {self.isa}"
        yield Table(caption, ["limit", "size", "at most"], rows, [1, 2])
        header = ["part", "weight bytes", "held by", "reads", "FLOPs", "FLOPs/byte", "ridge"]
        header += ["limited by", "floor us"]
        yield Table(
            "Parts", header, [self._row(part) for part in self.parts], range(1, len(header))
        )
        yield Table("Totals", ["figure", "value"], self._summary(), [1])

    def _row(self, part: Part) -> list[str]:
        size = self.complexity.architecture
        layer = f" {part.layer}" if size.num_layers > 1 else ""
        direction = f" {DIRECTIONS[part.direction]}" if size.bidirectional else ""
        return [
            f"{part.name}{layer}{direction}",
            f"{part.weight_bytes:,}",
            part.held_by,
            f"{part.reads:,}",
            f"{part.flops:,}",
            f"{part.intensity:,.2f}",
            "-" if part.ridge is None else f"{part.ridge:,.2f}",
            part.limited_by,
            _microseconds(part.seconds),
        ]

    def _summary(self) -> list[list[str]]:
        work = self.complexity
        rows = [
            ["FLOPs per step of one sequence", figure_text(work.flops_per_step)],
            ["bytes per step, every weight read", figure_text(work.bytes_per_step)],
            ["weight bytes", f"{work.weight_bytes:,}"],
        ]
        if work.backward_executed is not None:
            rows += [
                [
                    "FLOPs of the backward pass, all steps",
                    figure_text(work.backward_executed.flops),
                ],
                ["tape bytes", f"{work.tape_bytes:,}"],
                ["forward parts", f"{_microseconds(self.forward_seconds)} us"],
                ["backward parts", f"{_microseconds(self.backward_seconds)} us"],
            ]
        rows += [
            ["held by", self.held_by],
            ["limited by", self.limited_by],
            ["floor per step", f"{_microseconds(self.seconds_per_step)} us"],
        ]
        if work.steps > 1:
            rows.append([f"floor, {work.steps:,} steps", f"{_microseconds(self.seconds)} us"])
        if work.rate is not None:
            rows.append([f"real-time factor at {work.rate:,} Hz", f"{self.real_time_factor:,.6g}"])
        if self.measured is not None and self.fraction is not None:
            rows.append(["measured", f"{_microseconds(self.measured)} us"])
            rows.append(["fraction of the limit", f"{self.fraction:.1%}"])
        return rows

    def _notes(self) -> Iterator[str]:
        if self.failed:
            yield (
                f"MODEL FAILURE: the kernel is faster than {MAX_FRACTION:.0%} of its limit, so the limit is "
                "wrong.\nThe machine may have been slower when its limits were measured: try --again."
            )
        notes = [FOOTNOTE]
        if self.training:
            notes.append(FOOTNOTE_OF_TRAINING)
        if self.of_integers:
            notes.append(FOOTNOTE_OF_INTEGERS)
        yield "\n".join(notes)


_SUMS = ("flops", "bytes_read")


def roofline(
    model: Any,
    machine: Machine | None = None,
    *,
    steps: int = 1,
    batch: int = 1,
    rate: float | None = None,
    isa: str | None = None,
    training: bool = False,
    want_x: bool = False,
    **sizes: Any,
) -> Roofline:
    """The least time that a recurrent network takes on one core of a machine, and what limits it.

    Parameters
    ----------
    model
        As for :func:`fusedrnn.count`: an architecture, a layer, or the name of a cell, whose sizes then follow.
    machine
        The limits; None for this machine's, which are measured the first time.
    steps, batch
        T steps of B sequences. One step stands for a stream: step after step, all weights read for each.
    rate
        Steps per second, for the real-time factor.
    isa
        An instruction set of the machine; None for the layer's, or else ``FUSEDRNN_ISA``, or else the best one.
    training
        The floor of a training step: the forward pass and the gradients of all weights.
    want_x
        Of a training step: the gradient of the input of layer 0 too.
    **sizes
        With a cell's name, the fields of :class:`~fusedrnn.architecture.Architecture`; and ``weight_dtype``, as in
        :func:`~fusedrnn.count`.

    Returns
    -------
    Roofline

    Raises
    ------
    TypeError, ValueError
        For a model, size or option that is unknown, missing or out of range.

    Examples
    --------
    >>> import fusedrnn as fr
    >>> roofline = fr.roofline("lstm", input_size=128, hidden_size=128, steps=100)   # doctest: +SKIP
    >>> roofline.limited_by, roofline.seconds_per_step                               # doctest: +SKIP
    ('L2', 1.74e-06)
    """
    for name in ("lengths", "backward", "want_state"):
        if name in sizes:
            raise TypeError(
                f"{name} is not in the model: it is of equal lengths, of a training step with training=True"
            )
    for name, value in {"training": training, "want_x": want_x}.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, not {type(value).__name__}")
    if want_x and not training:
        raise ValueError("want_x is of a training step: it needs training=True")
    complexity = count(
        model, steps=steps, batch=batch, rate=rate, backward=training, want_x=want_x, **sizes
    )
    if training and complexity.weight_dtype != "float32":
        raise ValueError(
            f"the roofline of training is of float32 weights, got {complexity.weight_dtype!r}"
        )
    if machine is None:
        machine = this_machine()
    elif not isinstance(machine, Machine):
        raise TypeError(f"machine must be a Machine or None, not {type(machine).__name__}")
    isa = isa or getattr(model, "isa", None) or os.environ.get("FUSEDRNN_ISA") or None
    if isa is None:
        isa = next(iter(machine.limits))
    elif isa not in machine.limits:
        raise UnsupportedError(
            f"isa must be one of {', '.join(machine.limits)} for this machine, got {isa!r}"
        )
    return _model(complexity, machine, isa)


def _model(complexity: Complexity, machine: Machine, isa: str) -> Roofline:
    limits, levels = machine.limits[isa], nearer(machine)
    parts: list[Part] = []
    again = dict.fromkeys(levels, 0)
    passes: list[tuple[Iterable[LayerCounts], Works]] = [(complexity.layers, forward)]
    if complexity.backward:
        passes.append((reversed(complexity.layers), backward))
    for rows, works in passes:
        kinds: dict[tuple[Counts, bool], tuple[list[Part], dict[str, int]]] = {}
        for row in rows:
            kind = row.counts, row.layer == 0
            if kind not in kinds:  # layers with equal counts do the same work
                kinds[kind] = of_layer(list(works(complexity, row)), machine, isa)
            alike, beyond = kinds[kind]
            parts += [replace(part, layer=row.layer, direction=row.direction) for part in alike]
            for level, size in beyond.items():
                again[level] += size
    architecture = complexity.architecture
    # Gradients are as large as what they are of.
    passed = FLOAT_BYTES * complexity.steps * complexity.batch
    weights, ends = complexity.weight_bytes, architecture.input_size + architecture.output_size
    once = weights + passed * ends
    if complexity.backward:
        wanted = ends if complexity.want_x else architecture.output_size
        once += weights + passed * wanted
    whole = {
        level: (max(0, once - held) + again[level]) / limits.bandwidth[level]
        for level, held in levels.items()
    }
    return Roofline(complexity, machine, isa, tuple(parts), whole)


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.4g}" if seconds < 1e-2 else f"{seconds * 1e6:,.0f}"
