"""What the system says of itself may have any form: nothing fails, and no size is guessed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusedrnn.engines.threads import core_count
from fusedrnn.machine import probe, system
from fusedrnn.machine.info import info
from fusedrnn.machine.limits import Machine, load

EXAMPLE = load(Path(__file__).parents[2] / "docs" / "example-machine.json")
CACHE = "sys/devices/system/cpu/cpu0/cache"
Write = Callable[[str, bytes | str], None]

CPUINFO = """processor\t: 0
cpu family\t: 25
model\t\t: 80
model name\t: A CPU of 1.0 GHz
flags\t\t: fpu avx2 hypervisor

processor\t: 1
model name\t: another
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a file of a system that has no others."""
    monkeypatch.setattr(system, "ROOT", tmp_path)

    def write(path: str, content: bytes | str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def write_cache(write: Write, index: str, kind: str, level: str, size: bytes | str) -> None:
    for name, content in (("type", kind), ("level", level), ("size", size)):
        write(f"{CACHE}/{index}/{name}", content)


def test_a_usual_system(write: Write) -> None:
    write("proc/cpuinfo", CPUINFO)
    write_cache(write, "index0", "Data\n", "1\n", "32K\n")
    write_cache(write, "index1", "Instruction\n", "1\n", "64K\n")
    write_cache(write, "index2", "Unified\n", "2\n", "512K\n")
    write_cache(write, "index3", "Unified\n", "3\n", "16M\n")
    write("proc/meminfo", "MemTotal:  8000 kB\nMemAvailable:  4000 kB\n")
    assert system.cpu_name() == "A CPU of 1.0 GHz"
    assert system.cpu_facts()["model"] == "80"
    assert system.hypervisor() == "yes"
    assert system.cache_sizes() == {"L1": 2**15, "L2": 2**19, "L3": 2**24}
    assert system.free_memory(7) == 4000 * 1024
    write("sys/fs/cgroup/memory.max", "3000\n")
    write("sys/fs/cgroup/memory.current", "1000\n")
    assert system.free_memory(7) == 2000
    write("sys/fs/cgroup/memory.max", "max\n")
    assert system.free_memory(7) == 4000 * 1024
    write("sys/hypervisor/type", "xen\n")
    assert system.hypervisor() == "xen"


def test_a_system_that_says_nothing(write: Write) -> None:
    assert system.cpu_facts() == {}
    assert system.cpu_name() == system.one_line(system.cpu_name())
    assert system.cache_sizes() == {}
    assert system.hypervisor() is None
    assert system.free_memory(7) == 7


@pytest.mark.parametrize(
    "size",
    ["", "K", "32", "32768", "0K", "-1K", "3.5K", "32 K", "32k", "32T", "٣٢K", "9" * 30 + "K", b"\xff\xfeK"]
    + [b"32K\0", "unknown", "0x20K"],
)  # fmt: skip
def test_a_size_of_another_form_is_no_size(size: bytes | str, write: Write) -> None:
    write_cache(write, "index0", "Data", "1", size)
    write_cache(write, "index2", "Unified", "2", "512K")
    assert system.cache_sizes() == {"L2": 2**19}


@pytest.mark.parametrize(
    ("kind", "level"), [("", "1"), ("data", "1"), ("Data", ""), ("Data", "one"), ("Data", "-1")]
)
def test_a_cache_of_another_form_is_no_cache(kind: str, level: str, write: Write) -> None:
    write_cache(write, "index0", kind, level, "32K")
    write(f"{CACHE}/index1/level", "1")  # and no other file
    write(f"{CACHE}/index2", "a file, where a folder is expected")
    assert system.cache_sizes() == {}


ANYTHING = st.binary(max_size=60) | st.sampled_from(
    [b"flags : " + b"\xe9" * 9, b"model name\t: \x1b[31m\xff\nstepping : " + b"1" * 9000, b"\n\n\n"]
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ANYTHING, ANYTHING, ANYTHING, ANYTHING)
def test_anything_at_all(
    write: Write, cpu: bytes, size: bytes, hypervisor: bytes, memory: bytes
) -> None:
    write("proc/cpuinfo", cpu)
    write("sys/hypervisor/type", hypervisor)
    write("proc/meminfo", memory)
    write("sys/fs/cgroup/memory.max", memory)
    write("sys/fs/cgroup/memory.current", size)
    write_cache(write, "index0", "Data", "1", size)
    assert system.free_memory(2**20) >= 0
    assert set(system.cache_sizes()) <= {"L1"}
    identity = probe._identity()
    # A machine of this description can be kept and read again.
    identity["caches"] = EXAMPLE.caches
    machine = Machine.from_dict({**EXAMPLE.to_dict(), **identity, "isas": list(EXAMPLE.isas)})
    assert machine.cpu == identity["cpu"]


def test_the_number_of_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert core_count() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert core_count() == 3
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert core_count() == 1
    assert info()["cores"] == 1


def test_info_of_a_system_that_says_nothing(write: Write) -> None:
    facts = info()
    assert facts["caches"] == {}
    assert "threads" not in facts
