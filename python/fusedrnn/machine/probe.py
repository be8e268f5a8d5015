"""The limits of this machine: measured once, in about two seconds, and kept in the user's cache directory.

Only measuring needs NumPy and the C extension, which are imported when it begins.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fusedrnn import __version__
from fusedrnn.errors import UnsupportedError
from fusedrnn.files import write_file
from fusedrnn.machine import system
from fusedrnn.machine.limits import LATENCIES, MEMORY, Limits, Machine, load

__all__ = ["cache_file", "measure", "same_machine", "this_machine"]

#: Processor seconds for each thing that is measured; the best round counts.
PATIENCE = 0.008
#: How often, one thing after the other: what slows a machine down for a while then hits one of them, and not all.
PASSES = 2
READS = ("read_1", "read_2", "read_4")
#: Memory is read through a buffer of twice the last cache, but within these bytes: making a large one takes longer
#: than reading it.
MIN_BUFFER, MAX_BUFFER = 2**26, 2**28


def this_machine(*, again: bool = False) -> Machine:
    """The limits of this machine: from the user's cache directory, or else measured and kept there.

    Parameters
    ----------
    again
        Measure even if they are known, and replace what is kept.

    Returns
    -------
    Machine

    Raises
    ------
    UnsupportedError
        If the system does not say how large its caches are.

    Notes
    -----
    A cache directory that cannot be read or written costs the two seconds each time, and nothing else.
    """
    identity = _identity()
    path = cache_file(identity)
    if not again and path is not None:
        with suppress(OSError, TypeError, ValueError):
            known = load(path)
            if known.identity() == identity:
                return known
    machine = _measure(identity)
    if path is not None:
        with suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_file(path, machine.to_json().encode())
    return machine


def same_machine(machine: Machine) -> bool:
    """Whether these are the limits of this machine and of this version of the probe."""
    return machine.identity() == _identity()


def measure() -> Machine:
    """Measure this machine, now, in about two seconds of one core; nothing is read or kept."""
    return _measure(_identity())


def cache_file(identity: Mapping[str, Any]) -> Path | None:
    """Where the limits of a machine of this identity are kept; None if there is no home for it."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # The standard for that variable: a path that is not absolute counts as none.
        base = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    except RuntimeError:
        return None
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return base / "fusedrnn" / f"machine-{key}.json"


def _identity() -> dict[str, Any]:
    """What must be the same for limits to be this machine's, as this build measures them."""
    from fusedrnn import _native
    from fusedrnn.engines.native import isas
    from fusedrnn.engines.threads import core_count

    facts = system.cpu_facts()
    numbers = [f"{name} {facts[name]}" for name in _CPU_NUMBERS if name in facts]
    caches = system.cache_sizes()
    # Two builds of one version may compute the activations in other ways.
    digest = hashlib.sha256(Path(_native.__file__).read_bytes()).hexdigest()[:16]
    release = f"{platform.system()} {platform.release()} {platform.machine()}"
    return {
        "cpu": system.one_line(", ".join([system.cpu_name(), *numbers])),
        "system": system.one_line(release),
        "hypervisor": system.hypervisor(),
        "cores": core_count(),
        "caches": {name: caches[name] for name in sorted(caches)},
        "isas": list(isas()),
        "probe": f"{__version__} {digest}",
    }


#: Of /proc/cpuinfo: what tells CPUs apart whose names are the same, as those of virtual machines often are.
_CPU_NUMBERS = (
    "cpu family",
    "model",
    "stepping",
    "CPU implementer",
    "CPU variant",
    "CPU part",
    "CPU revision",
)


def _measure(identity: Mapping[str, Any]) -> Machine:
    from fusedrnn._native import ffi, lib
    from fusedrnn.arrays import FLOAT32
    from fusedrnn.engines.native import isas
    from fusedrnn.engines.packing import aligned

    caches: dict[str, int] = {}
    for level, held in identity["caches"].items():
        # One that is no larger than the one before hides behind it.
        if held > max(caches.values(), default=0):
            caches[level] = held
    if not caches:
        raise UnsupportedError(
            "this system does not say how large its caches are, so that their speed cannot be measured; "
            "give a machine file"
        )
    last = max(caches.values())
    free = system.free_memory(8 * MIN_BUFFER)
    size = min(max(2 * last, MIN_BUFFER), MAX_BUFFER, max(free // 8, 2**22))
    store = aligned((size // FLOAT32.itemsize,))
    store[...] = 1  # an ordinary number, and every page is there
    buffer = ffi.from_buffer("float *", store)

    def best(isa: str, probes: tuple[str, ...], over: int = 0) -> float:
        floats = min(over, size) // FLOAT32.itemsize
        return max(
            float(lib.fr_probe(isas()[isa], probe.encode(), buffer, floats, PATIENCE))
            for probe in probes
        )

    first = next(iter(isas()))
    rates: dict[tuple[str, str], float] = {}
    memory = 0.0  # no instruction set makes it any faster than the best one
    for _ in range(PASSES):
        memory = max(memory, best(first, READS, size))
        for isa in isas():
            found = {name: best(isa, (name,)) for name in ("fma", *LATENCIES)}
            for level in caches:
                found[level] = max(best(isa, READS, over) for over in _sizes(caches, level))
            for name, rate in found.items():
                rates[isa, name] = max(rate, rates.get((isa, name), 0.0))

    held = caches.copy()
    if len(caches) > 1:
        # The last cache may be shared with others, unseen: it ends where reading is nearer to memory's speed.
        (_, before), (name, _) = list(caches.items())[-2:]
        between = math.sqrt(rates[first, name] * memory)
        over = 8 * before
        while over < min(last, size) and best(first, READS, 2 * over) > between:
            over *= 2
        if 2 * over <= size:
            held[name] = min(over, last)
    return Machine(
        **{**identity, "isas": tuple(identity["isas"])},
        capacity=held,
        buffer=size,
        limits={
            isa: Limits(
                flops=rates[isa, "fma"],
                bandwidth={level: rates[isa, level] for level in caches} | {MEMORY: memory},
                latency={name: 1 / rates[isa, name] for name in LATENCIES},
            )
            for isa in isas()
        },
    )


def _sizes(caches: Mapping[str, int], level: str) -> tuple[int, int]:
    """Over how many bytes a cache is read: well within it, and well beyond the one before."""
    names = list(caches)
    here = caches[level]
    before = caches[names[names.index(level) - 1]] if level != names[0] else 0
    if before and here > 16 * before:
        return 4 * before, 8 * before
    return here // 4, here // 2
