"""What a recurrent network does part by part, and the least time of each part on one core of a machine.

This module is plain Python: with a machine from a file it needs neither NumPy nor the C extension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from fusedrnn.architecture import INTEGERS, Architecture
from fusedrnn.counting.cost import FLOAT_BYTES, WEIGHT_BYTES
from fusedrnn.counting.counts import DIRECTIONS, Complexity
from fusedrnn.counting.operations import LayerCounts, Operations
from fusedrnn.machine.limits import MEMORY, Limits, Machine

__all__ = [
    "BACKWARD_PARTS",
    "Part",
    "Works",
    "backward",
    "forward",
    "holder",
    "nearer",
    "of_layer",
    "step_latency",
]

#: Names of the parts of a training step that come after all forward parts.
BACKWARD_PARTS = ("backward", "weight gradients", "x gradient")


@dataclass(frozen=True)
class Part:
    """Work of one layer and direction that one resource limits.

    Attributes
    ----------
    name
        "input" or "recurrent"; of a training step also one of :data:`BACKWARD_PARTS`.
    layer, direction
        The direction: 0 forward, 1 reverse.
    reads
        How often its weights are read; those of the fastest module, where modules differ.
    weight_bytes
        Of all its weights, once; of their gradients, where it computes these.
    bytes_read
        Of those bytes, in all steps.
    flops
        In all steps of the whole batch.
    held_by
        The nearest level that has room for all its weights.
    intensity, ridge
        FLOPs per byte read; and from how many on the level that holds the weights is no limit, None where computing is
        none.
    times
        Seconds that each resource needs at least: "compute", but not of products of integers; each level; "latency".
    """

    name: str
    layer: int
    direction: int
    reads: int
    weight_bytes: int
    bytes_read: int
    flops: int
    held_by: str
    intensity: float
    ridge: float | None
    times: dict[str, float]

    @property
    def limited_by(self) -> str:
        """The resource that the part waits for: "compute", a level, or "latency"."""
        return max(self.times, key=self.times.__getitem__)

    @property
    def seconds(self) -> float:
        """The least time that the part takes."""
        return self.times[self.limited_by]

    def to_dict(self) -> dict[str, Any]:
        """As plain, unrounded figures."""
        return asdict(self) | {
            "direction": DIRECTIONS[self.direction],
            "limited_by": self.limited_by,
            "seconds": self.seconds,
        }


#: Weights that are read together: how often, and their bytes.
_Reads = tuple[int, int]


def _beyond(reads: Sequence[_Reads], held: int) -> int:
    """Bytes that come from beyond a cache of `held` bytes, at best: it keeps what is read most often."""
    total = 0
    for times, size in sorted(reads, reverse=True):
        nearer = min(size, held)
        held -= nearer
        total += times * (size - nearer)
    return total


def nearer(machine: Machine) -> dict[str, int]:
    """For each level, the bytes that all nearer ones hold together."""
    sums, held = {}, 0
    for level in (*machine.capacity, MEMORY):
        sums[level] = held
        held += machine.capacity.get(level, 0)
    return sums


def holder(machine: Machine, size: int) -> str:
    """The nearest level that has room for so many bytes, together with nearer ones."""
    held = 0
    for level, capacity in machine.capacity.items():
        held += capacity
        if size <= held:
            return level
    return MEMORY


class _Work(NamedTuple):
    """What a part of a layer and direction does.

    Attributes
    ----------
    latency
        Seconds by the latencies of a machine: those of all steps that wait for each other.
    tape
        Bytes of the tape that it reads once.
    fmas
        Whether its products are FMAs: those of integers have another rate, which is not known.
    """

    name: str
    reads: list[_Reads]
    flops: int
    latency: Callable[[Limits], float] | None = None
    tape: int = 0
    fmas: bool = True


Works = Callable[[Complexity, LayerCounts], Iterator[_Work]]


def of_layer(
    works: Sequence[_Work], machine: Machine, isa: str
) -> tuple[list[Part], dict[str, int]]:
    """The parts of some layer, and for each level the bytes from beyond all nearer ones, after each weight was read once."""
    limits, parts = machine.limits[isa], []
    levels = nearer(machine)
    for work in works:
        times = {"compute": work.flops / limits.flops} if work.fmas else {}
        reads = [*work.reads, (1, work.tape)]
        for level, held in levels.items():
            times[level] = _beyond(reads, held) / limits.bandwidth[level]
        if work.latency:
            times["latency"] = work.latency(limits)
        size = sum(size for _, size in work.reads)
        read = sum(often * size for often, size in work.reads)
        held_by = holder(machine, size)
        part = Part(
            name=work.name,
            layer=0,
            direction=0,
            reads=max(often for often, _ in work.reads),
            weight_bytes=size,
            bytes_read=read,
            flops=work.flops,
            held_by=held_by,
            intensity=work.flops / read,
            ridge=limits.flops / limits.bandwidth[held_by] if work.fmas else None,
            times=times,
        )
        parts.append(part)
    again = [[(often - 1, size) for often, size in work.reads] for work in works]
    return parts, {level: sum(_beyond(r, held) for r in again) for level, held in levels.items()}


def _weight_bytes(complexity: Complexity, operations: Operations) -> tuple[int, int]:
    """Of the input part and of the recurrent part: one multiply-add or product per weight."""
    size = WEIGHT_BYTES[complexity.weight_dtype]
    entered = size * operations.input_macs + FLOAT_BYTES * operations.bias_adds
    matrices = operations.recurrent_macs + operations.projection_macs
    return int(entered), int(size * matrices + FLOAT_BYTES * operations.peephole_products)


def forward(complexity: Complexity, row: LayerCounts) -> Iterator[_Work]:
    """The forward parts of a layer and direction."""
    steps, batch = complexity.steps, complexity.batch
    fmas = complexity.weight_dtype not in INTEGERS
    entered: list[_Reads] = []
    carried: list[_Reads] = []
    entered_flops = carried_flops = chain = 0
    for part in row.work.parts:
        runs = -(-steps // part.period)
        chain = max(chain, runs)
        into, around = _weight_bytes(complexity, part.operations)
        entered.append((1, into))
        carried.append((runs, around))
        flops = int(2 * part.operations.input_macs + part.operations.bias_adds)
        entered_flops += batch * runs * flops
        carried_flops += batch * runs * (int(part.operations.flops) - flops)
    yield _Work("input", entered, entered_flops, fmas=fmas)

    def latency(limits: Limits) -> float:
        return chain * step_latency(complexity.architecture, limits)

    yield _Work("recurrent", carried, carried_flops, latency, fmas=fmas)


def backward(complexity: Complexity, row: LayerCounts) -> Iterator[_Work]:
    """The backward parts of a layer and direction."""
    executed, gradient = complexity.executed_by[row.counts], complexity.backward_of(row)
    learnt = int(2 * executed.macs + gradient.bias_adds)
    entered = int(2 * executed.input_macs) * (row.layer > 0 or complexity.want_x)
    runs = [-(-complexity.steps // part.period) for part in row.work.parts]
    sizes = [_weight_bytes(complexity, part.operations) for part in row.work.parts]
    size = complexity.architecture
    products = 2 if size.proj_size or size.table.after_first_product else 1

    def latency(limits: Limits) -> float:
        return (max(runs) - 1) * products * limits.latency["exchange"]

    yield _Work(
        "backward",
        [(often, around) for often, (_, around) in zip(runs, sizes, strict=True)],
        int(gradient.flops) - learnt - entered,
        latency,
        FLOAT_BYTES * complexity.steps * complexity.batch * row.tape_size,
    )
    yield _Work("weight gradients", [(1, sum(map(sum, sizes)))], learnt)
    if entered:
        yield _Work("x gradient", [(1, FLOAT_BYTES * row.counts.input_weights)], entered)


def step_latency(architecture: Architecture, limits: Limits) -> float:
    """Seconds from h to h': the longest chain through the equations of the cell's table.

    Sums and products are left out, but for the one FMA by which h reaches the units.
    """
    table, exchange = architecture.table, limits.latency["exchange"]
    ready: dict[str, float] = {}
    last = 0.0
    for equation in table.equations:
        if not equation.result:  # a line of words
            continue
        last = max((ready[name] for name in equation.operands), default=0.0)
        if (
            equation.result in table.after_first_product
        ):  # a product with what this step has computed: through memory again
            last += exchange
        if equation.role:
            # An activation that is not measured is not waited for.
            last += limits.latency.get(architecture.activation_of(equation.role).name, 0.0)
        ready[equation.result] = last
    return last + exchange * (2 if architecture.proj_size else 1)
