"""The limits of a machine, on one core: how fast it computes, reads each memory level, and finishes a step.

They are measured by :mod:`fusedrnn.machine.probe`, or read from a file that another machine wrote. A file is data: it is
checked key by key, and nothing in it is executed. It names neither the host, nor the user, nor a path.

This module is plain Python: it needs neither NumPy nor the C extension.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fusedrnn.machine.system import MAX_TEXT

__all__ = ["LATENCIES", "MEMORY", "Limits", "Machine", "load"]

#: Of a machine file.
SCHEMA_VERSION = 1
#: The level behind all caches.
MEMORY = "DRAM"
#: What a dependent step is made of: h to all units and into a sum, and the activations of a vector.
LATENCIES = ("exchange", "sigmoid", "tanh")
#: A machine file is small and may come from anyone.
MAX_BYTES = 2**16


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
        What measured it: the version of fusedrnn and, as in what this version writes, a digest of its extension.
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
                _positive(f"{name}.{_key(level)}", size, whole=True)
        if not self.capacity:
            raise ValueError("capacity: must hold at least one cache, got none")
        for level in self.capacity:
            if level not in self.caches:
                known = ", ".join(map(_key, self.caches))
                raise ValueError(f"capacity.{_key(level)}: unknown key; there are {known}")
        if MEMORY in self.capacity:
            raise ValueError(f"capacity.{MEMORY}: is not a cache")
        sizes = list(self.capacity.values())
        if sizes != sorted(sizes):
            raise ValueError(f"capacity: caches must grow, got {_shown(dict(self.capacity))}")
        if not isinstance(self.isas, tuple) or not all(isinstance(isa, str) for isa in self.isas):
            raise TypeError(f"isas: must be a list of names, got {_shown(self.isas)}")
        if not self.isas or len(set(self.isas)) < len(self.isas):
            raise ValueError(f"isas: must be names, each once, got {_shown(list(self.isas))}")
        _record("limits", self.limits)
        _keys("limits", self.limits, self.isas)
        for isa, limits in self.limits.items():
            _positive(f"limits.{_key(isa)}.flops", limits.flops)
            for name, wanted in (("bandwidth", (*self.capacity, MEMORY)), ("latency", LATENCIES)):
                values = getattr(limits, name)
                _record(f"limits.{_key(isa)}.{name}", values)
                _keys(f"limits.{_key(isa)}.{name}", values, wanted)
                for key, value in values.items():
                    _positive(f"limits.{_key(isa)}.{name}.{_key(key)}", value)

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
            raise ValueError(f"schema_version: must be {SCHEMA_VERSION}, got {_shown(version)}")
        _keys("", data, [field.name for field in fields(cls)])
        limits = {}
        for isa, values in _record("limits", data["limits"]).items():
            _record(f"limits.{_key(isa)}", values)
            _keys(f"limits.{_key(isa)}", values, [field.name for field in fields(Limits)])
            limits[isa] = Limits(**values)
        if not isinstance(data["isas"], list):
            raise TypeError(f"isas: must be a list of names, got {_shown(data['isas'])}")
        return cls(**{**data, "isas": tuple(data["isas"]), "limits": limits})

    def identity(self) -> dict[str, Any]:
        """What must be the same for the limits to be this machine's."""
        names = ("cpu", "system", "hypervisor", "cores", "caches", "isas", "probe")
        return {name: value for name, value in self.to_dict().items() if name in names}


# ---- checks --------------------------------------------------------------------------------------


def _shown(value: object) -> str:
    """A wrong value for a message: of a long one, the beginning."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write an int of very many digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:60]}..."


def _key(name: str) -> str:
    """A key of a file for a message, whatever text it is."""
    return name if re.fullmatch(r"[\w ./-]{1,60}", name, re.ASCII) else ascii(name[:60])


def _text(key: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{key}: must be a string, got {_shown(value)}")
    if not value.isprintable() or len(value) > MAX_TEXT:
        raise ValueError(
            f"{key}: must be one line of at most {MAX_TEXT} characters, got {_shown(value)}"
        )


def _positive(key: str, value: object, *, whole: bool = False) -> None:
    kind = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise TypeError(f"{key}: must be {kind}, got {_shown(value)}")
    if not 0 < value < 2**63 or (whole is False and not 1e-12 <= value <= 1e18):
        raise ValueError(f"{key}: must be {kind} in range and above 0, got {_shown(value)}")


def _record(key: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"{key}: must be an object with keys, got {type(value).__name__}")
    return value


def _keys(key: str, value: Mapping[str, Any], wanted: Any) -> None:
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in wanted:
            known = ", ".join(map(_key, wanted))
            raise ValueError(f"{prefix}{_key(name)}: unknown key; there are {known}")
    for name in wanted:
        if name not in value:
            raise ValueError(f"{prefix}{_key(name)}: missing")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, in which no key stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{_key(twice)}: stands twice")
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
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise ValueError(f"{path}: a machine file has at most {MAX_BYTES:,} bytes")
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
