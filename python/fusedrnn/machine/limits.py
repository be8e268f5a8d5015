"""The limits of a machine, on one core: how fast it computes, reads each memory level, and finishes a step.

Measured once, in about two seconds, and kept in the user's cache directory; or read from a file that another
machine wrote. A file is data: it is checked key by key, and nothing in it is executed. It names neither the host,
nor the user, nor a path.

Only measuring needs NumPy and the C extension.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fusedrnn import __version__
from fusedrnn.errors import UnsupportedError

__all__ = [
    "MEMORY",
    "Limits",
    "Machine",
    "cache_file",
    "load",
    "measure",
    "same_machine",
    "this_machine",
]

SCHEMA_VERSION = 1
#: The level behind all caches.
MEMORY = "DRAM"
#: What a dependent step is made of: h to all units and into a sum, and the activations of a vector.
LATENCIES = ("exchange", "sigmoid", "tanh")

#: Processor seconds for each thing that is measured; it takes its best round.
PATIENCE = 0.008
#: How often, one thing after the other: what slows a machine down for a while then hits one of them, and not all.
PASSES = 2
READS = ("read_1", "read_2", "read_4")
#: Memory is read through a buffer of twice the last cache, but within these bytes: making a large one takes longer
#: than reading it.
LEAST_BUFFER, MOST_BUFFER = 2**26, 2**28
#: A machine file is small and may come from anyone.
MOST_BYTES = 2**16


@dataclass(frozen=True)
class Limits:
    """What one core does at most with one instruction set.

    Attributes
    ----------
    flops
        Float32 operations per second: fused multiply-adds in registers, two each.
    bandwidth
        Bytes per second that are read and summed, by level: those of :attr:`Machine.capacity`, then "DRAM".
    latency
        Seconds: "exchange", in which a stored h is read back by all units and summed; "sigmoid" and "tanh".
    """

    flops: float
    bandwidth: Mapping[str, float]
    latency: Mapping[str, float]


@dataclass(frozen=True)
class Machine:
    """One core of a machine: what it is, and its limits.

    Attributes
    ----------
    cpu, system, hypervisor, cores
        Its model; the system and kernel; what virtualises it, "yes" if that is all that is known, or None;
        how many cores this process may use.
    caches
        Bytes of each data cache of one core, as the system reports them, the smallest first.
    isas
        The instruction sets of this build that it runs, best first.
    probe
        The version of fusedrnn that measured it.
    capacity
        Bytes that each cache was found to hold: less than reported where, as on many virtual machines, others
        share the last one.
    buffer
        Bytes over which the DRAM was read.
    limits
        By instruction set, best first.
    """

    cpu: str
    system: str
    hypervisor: str | None
    cores: int
    caches: Mapping[str, int]
    isas: tuple[str, ...]
    probe: str
    capacity: Mapping[str, int]
    buffer: int
    limits: Mapping[str, Limits]

    def __post_init__(self) -> None:
        # Plain checks, so that no Machine, from a file or made by hand, can be half of one.
        for name in ("cpu", "system", "probe"):
            _text(name, getattr(self, name))
        if self.hypervisor is not None:
            _text("hypervisor", self.hypervisor)
        for name in ("cores", "buffer"):
            _positive(name, getattr(self, name), whole=True)
        for name in ("caches", "capacity"):
            _record(name, getattr(self, name))
            for level, size in getattr(self, name).items():
                _positive(f"{name}.{level}", size, whole=True)
        if not self.capacity:
            raise ValueError("capacity: must hold at least one cache, got none")
        for level in self.capacity:
            if level not in self.caches:
                raise ValueError(
                    f"capacity.{level}: unknown key; there are {', '.join(self.caches)}"
                )
        if MEMORY in self.capacity:
            raise ValueError(f"capacity.{MEMORY}: is not a cache")
        sizes = list(self.capacity.values())
        if sizes != sorted(sizes):
            raise ValueError(f"capacity: caches must grow, got {dict(self.capacity)}")
        if not isinstance(self.isas, tuple) or not all(isinstance(isa, str) for isa in self.isas):
            raise TypeError(f"isas: must be a list of names, got {self.isas!r}")
        if not self.isas or len(set(self.isas)) < len(self.isas):
            raise ValueError(f"isas: must be names, each once, got {list(self.isas)}")
        _record("limits", self.limits)
        _keys("limits", self.limits, self.isas)
        for isa, limits in self.limits.items():
            _positive(f"limits.{isa}.flops", limits.flops)
            for name, wanted in (("bandwidth", (*self.capacity, MEMORY)), ("latency", LATENCIES)):
                values = getattr(limits, name)
                _record(f"limits.{isa}.{name}", values)
                _keys(f"limits.{isa}.{name}", values, wanted)
                for key, value in values.items():
                    _positive(f"limits.{isa}.{name}.{key}", value)

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-able; :meth:`from_dict` takes it back."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "isas": list(self.isas)}

    def to_json(self) -> str:
        """:meth:`to_dict` as JSON text: what ``--machine`` reads."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, data: object) -> Machine:
        """Read what :meth:`to_dict` made.

        Raises
        ------
        TypeError, ValueError
            For a key that is unknown, missing or wrong; the message begins with it.
        """
        data = dict(_record("machine", data))
        version = data.pop("schema_version", None)
        if version != SCHEMA_VERSION or isinstance(version, bool):
            raise ValueError(f"schema_version: must be {SCHEMA_VERSION}, got {version!r}")
        _keys("", data, [field.name for field in fields(cls)])
        limits = {}
        for isa, values in _record("limits", data["limits"]).items():
            _record(f"limits.{isa}", values)
            _keys(f"limits.{isa}", values, [field.name for field in fields(Limits)])
            limits[isa] = Limits(**values)
        if not isinstance(data["isas"], list):
            raise TypeError(f"isas: must be a list of names, got {data['isas']!r}")
        return cls(**{**data, "isas": tuple(data["isas"]), "limits": limits})

    def identity(self) -> dict[str, Any]:
        """What must be the same for the limits to be this machine's."""
        names = ("cpu", "system", "hypervisor", "cores", "caches", "isas", "probe")
        return {name: value for name, value in self.to_dict().items() if name in names}


# ---- checks --------------------------------------------------------------------------------------


def _text(key: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{key}: must be a string, got {value!r}")
    if not value.isprintable() or len(value) > 200:
        raise ValueError(f"{key}: must be one line of at most 200 characters, got {value[:200]!r}")


def _positive(key: str, value: object, *, whole: bool = False) -> None:
    kind = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise TypeError(f"{key}: must be {kind}, got {value!r}")
    if not 0 < value < 2**63 or (whole is False and not 1e-12 <= value <= 1e18):
        raise ValueError(f"{key}: must be {kind} in range and above 0, got {value!r}")


def _record(key: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"{key}: must be an object with keys, got {type(value).__name__}")
    return value


def _keys(key: str, value: Mapping[str, Any], wanted: Any) -> None:
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in wanted:
            raise ValueError(f"{prefix}{name}: unknown key; there are {', '.join(wanted)}")
    for name in wanted:
        if name not in value:
            raise ValueError(f"{prefix}{name}: missing")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, in which no key stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)}: stands twice")
    return found


def load(path: str | os.PathLike[str]) -> Machine:
    """Read a machine from a file that :meth:`Machine.to_json` wrote.

    Raises
    ------
    OSError
        If it cannot be read.
    TypeError, ValueError
        If it is not such a file; the message names the file and the key.
    """
    with Path(path).open("rb") as file:
        raw = file.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        raise ValueError(f"{path}: a machine file has at most {MOST_BYTES:,} bytes")
    try:
        return Machine.from_dict(json.loads(raw, object_pairs_hook=_once))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not JSON: not UTF-8") from None
    except RecursionError:
        raise ValueError(f"{path}: not a machine: nested too deeply") from None
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from None


# ---- this machine --------------------------------------------------------------------------------


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
    machine = _measured(identity)
    if path is not None:
        with suppress(OSError):
            _keep(path, machine.to_json())
    return machine


def same_machine(machine: Machine) -> bool:
    """Whether these are the limits of this machine and of this version of the probe."""
    return machine.identity() == _identity()


def measure() -> Machine:
    """Measure this machine, now, in about two seconds of one core; nothing is read or kept."""
    return _measured(_identity())


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


def _keep(path: Path, text: str) -> None:
    """Write all of a file or nothing: another process may read it meanwhile."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(prefix=".machine-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(draft, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(draft)
        raise


def _identity() -> dict[str, Any]:
    from fusedrnn.engines.native import isas
    from fusedrnn.machine.info import info

    facts = info()
    described = dict(_cpuinfo())
    numbers = [f"{name} {described[name]}" for name in _CPU_NUMBERS if name in described]
    caches = {name: facts["caches"][name] for name in sorted(facts["caches"])}
    return {
        "cpu": ", ".join([facts["cpu"], *numbers]),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "hypervisor": _hypervisor(described),
        "cores": facts["cores"],
        "caches": caches,
        "isas": list(isas()),
        "probe": __version__,
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


def _cpuinfo() -> Iterator[tuple[str, str]]:
    """The lines on the first CPU."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if not line.strip():
                return
            name, _, value = line.partition(":")
            yield name.strip(), value.strip()


def _hypervisor(described: Mapping[str, str]) -> str | None:
    with suppress(OSError):
        return Path("/sys/hypervisor/type").read_text(encoding="ascii").strip()
    return "yes" if "hypervisor" in described.get("flags", "").split() else None


def _measured(identity: Mapping[str, Any]) -> Machine:
    from fusedrnn._native import ffi, lib
    from fusedrnn.arrays import FLOAT32
    from fusedrnn.engines.native import isas
    from fusedrnn.engines.packing import aligned

    caches: dict[str, int] = {}
    for level, held in identity["caches"].items():
        if held > max(
            caches.values(), default=0
        ):  # one that is no larger than the one before hides behind it
            caches[level] = held
    if not caches:
        raise UnsupportedError(
            "this system does not say how large its caches are, so that their speed cannot be measured; "
            "give a machine file"
        )
    last = max(caches.values())
    size = min(max(2 * last, LEAST_BUFFER), MOST_BUFFER, max(_free_memory() // 8, 2**22))
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


def _free_memory() -> int:
    """Bytes that may be used without harm: what the system has free, or a container may still have."""
    free = [LEAST_BUFFER * 8]
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = [1024 * int(line.split()[1])]
    for most, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):
            group = Path("/sys/fs/cgroup")
            free.append(int((group / most).read_text()) - int((group / used).read_text()))
    return max(min(free), 0)
