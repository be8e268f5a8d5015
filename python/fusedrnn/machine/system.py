"""What the system says about this machine. Files in /proc and /sys may be missing, or hold anything: nothing here fails.

This module is plain Python: with a machine from a file, the roofline needs neither NumPy nor the C extension.
"""

from __future__ import annotations

import platform
import re
from pathlib import Path

__all__ = [
    "cache_sizes",
    "cpu_facts",
    "cpu_name",
    "free_memory",
    "hypervisor",
    "one_line",
]

#: Where /proc and /sys are.
ROOT = Path("/")
#: Of one file: what is read here stands at its beginning.
MAX_BYTES = 2**16
#: Of a text that describes a machine.
MAX_TEXT = 200
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def _read(path: str) -> str:
    """The beginning of a file as text, whatever it holds; "" if it cannot be read."""
    try:
        with (ROOT / path).open("rb") as file:
            return file.read(MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def _number(text: str) -> int | None:
    """A number of bytes or kilobytes; None for anything else, as "max"."""
    return int(text) if re.fullmatch(r"\d{1,18}", text.strip(), re.ASCII) else None


def one_line(text: str) -> str:
    """Text as one short line of printable characters."""
    printable = "".join(one if one.isprintable() else " " for one in text)
    return " ".join(printable.split())[:MAX_TEXT].rstrip()


def cpu_facts() -> dict[str, str]:
    """What /proc/cpuinfo says of the first CPU."""
    facts: dict[str, str] = {}
    for line in _read("proc/cpuinfo").splitlines():
        if not line.strip():
            if facts:
                break
            continue
        name, _, value = line.partition(":")
        facts[name.strip()] = one_line(value)
    return facts


def cpu_name() -> str:
    """The model of the CPU, or else the kind of machine."""
    named = cpu_facts().get("model name")
    return named or one_line(platform.processor()) or one_line(platform.machine())


def cache_sizes() -> dict[str, int]:
    """Bytes of the data and unified caches of CPU 0, by level; a size of another form is left out."""
    sizes: dict[str, int] = {}
    folder = "sys/devices/system/cpu/cpu0/cache"
    try:
        names = sorted(path.name for path in (ROOT / folder).iterdir())
    except OSError:
        return sizes
    for name in names:
        kind, level, size = (
            _read(f"{folder}/{name}/{of}").strip() for of in ("type", "level", "size")
        )
        match = re.fullmatch(r"(\d{1,9})([KMG])", size, re.ASCII)
        known = kind in ("Data", "Unified") and re.fullmatch(r"[1-9]", level, re.ASCII)
        if name.startswith("index") and known and match and int(match[1]):
            sizes[f"L{level}"] = int(match[1]) * UNITS[match[2]]
    return sizes


def hypervisor() -> str | None:
    """What virtualises this machine: "yes" if that is all that is known, or None."""
    if named := one_line(_read("sys/hypervisor/type")):
        return named
    match = re.search(r"^flags\s*:.*\bhypervisor\b", _read("proc/cpuinfo"), re.MULTILINE)
    return "yes" if match else None


def free_memory(otherwise: int) -> int:
    """Bytes that may be used without harm: what the system has free, or a container may still have.

    Parameters
    ----------
    otherwise
        What to answer where the system does not say.
    """
    free = otherwise
    match = re.search(r"^MemAvailable:\s*(\d{1,15}) kB", _read("proc/meminfo"), re.MULTILINE)
    if match:
        free = 1024 * int(match[1])
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        has, uses = (_number(_read(f"sys/fs/cgroup/{name}")) for name in (limit, used))
        if has is not None and uses is not None:
            free = min(free, has - uses)
    return max(free, 0)
