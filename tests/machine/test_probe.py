"""The limits of this machine: measured, and kept."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusedrnn import __version__, _native
from fusedrnn._native import ffi, lib
from fusedrnn.engines.native import isas
from fusedrnn.errors import UnsupportedError
from fusedrnn.machine import probe as module
from fusedrnn.machine.limits import MEMORY, Machine, load
from fusedrnn.machine.probe import cache_file, measure, same_machine, this_machine

EXAMPLE = Path(__file__).parents[2] / "docs" / "example-machine.json"
PROBES = ["fma", "read_1", "read_2", "read_4", "exchange", "sigmoid", "tanh"]
#: The best instruction set that this CPU has: the first of the build may be one that it lacks.
BEST = next(iter(isas().values()))


@pytest.fixture(scope="module")
def here() -> Machine:
    return measure()


# The probe


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("probe", PROBES)
def test_every_probe_measures_something(isa: str, probe: str) -> None:
    floats = np.ones(4096, np.float32)
    buffer = ffi.from_buffer("float *", floats)
    rate = lib.fr_probe(isas()[isa], probe.encode(), buffer, len(floats), 0.0)
    assert 0 < rate < float("inf")
    assert (floats == 1).all()


def test_a_probe_that_is_not_there() -> None:
    assert lib.fr_probe(BEST, b"nothing", ffi.NULL, 0, 0.0) == -1


@pytest.mark.parametrize("probe", [probe for probe in PROBES if probe.startswith("read")])
@pytest.mark.parametrize("floats", [0, 1, 11])
def test_a_buffer_too_small_to_read(probe: str, floats: int) -> None:
    buffer = ffi.from_buffer("float *", np.ones(16, np.float32))
    assert lib.fr_probe(BEST, probe.encode(), buffer, floats, 0.0) == 0


def test_other_threads_run_meanwhile() -> None:
    begun = threading.Event()

    def probe() -> None:
        begun.set()
        lib.fr_probe(BEST, b"fma", ffi.NULL, 0, 0.3)

    thread = threading.Thread(target=probe)
    thread.start()
    begun.wait()
    naps = 0
    while thread.is_alive():
        time.sleep(0.001)
        naps += 1
    assert naps > 10


def test_the_limits_of_this_machine_are_plausible(here: Machine) -> None:
    assert list(here.limits) == list(here.isas) == list(isas())
    for limits in here.limits.values():
        nearest, *_, last = limits.bandwidth.values()
        assert list(limits.bandwidth) == [*here.capacity, MEMORY]
        assert nearest > last / 2  # no cache is slower than memory, by far more than noise
        assert limits.flops > 1e8
        assert all(1e-10 < seconds < 1e-3 for seconds in limits.latency.values())
    best, *others = here.limits.values()
    assert all(best.flops > other.flops / 2 for other in others)
    assert same_machine(here)


def test_a_capacity_is_at_most_what_is_reported(here: Machine) -> None:
    for level, held in here.capacity.items():
        assert 0 < held <= here.caches[level]


def test_a_system_that_hides_its_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_identity", lambda: {"caches": {}})
    with pytest.raises(UnsupportedError, match="does not say how large its caches are"):
        measure()


def test_a_little_memory_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.system, "free_memory", lambda otherwise: 0)
    monkeypatch.setattr(module, "PASSES", 1)
    assert measure().buffer <= 2**22


# Keeping


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, here: Machine) -> list[Any]:
    """Stands in for measuring; holds the identities that were measured."""
    calls: list[Any] = []

    def stand_in(identity: dict[str, Any]) -> Machine:
        calls.append(identity)
        return Machine.from_dict({**here.to_dict(), **identity})

    monkeypatch.setattr(module, "_measure", stand_in)
    return calls


def test_a_machine_is_measured_once(
    measured: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = this_machine()
    assert this_machine() == first
    assert len(measured) == 1
    (path,) = (tmp_path / "fusedrnn").iterdir()
    assert load(path) == first
    assert this_machine(again=True) == first
    assert len(measured) == 2
    assert list((tmp_path / "fusedrnn").iterdir()) == [path]


@pytest.mark.parametrize(
    ("key", "value"), [("cpu", "another"), ("probe", "9.9"), ("caches", {"L1": 2**15})]
)
def test_another_machine_or_version_is_measured_anew(
    key: str, value: Any, measured: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = this_machine()
    changed = {**first.identity(), key: value}
    assert cache_file(changed) != cache_file(first.identity())
    monkeypatch.setattr(module, "_identity", lambda: changed)
    monkeypatch.setattr(module, "_measure", lambda identity: measured.append(identity) or first)
    this_machine()
    assert len(measured) == 2
    assert not same_machine(first)


def test_another_build_is_another_probe(
    measured: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Kernels that were edited since, under the same version, do not find the limits of those before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    this_machine()
    edited = tmp_path / "extension.so"
    edited.write_bytes(Path(_native.__file__).read_bytes() + b"x")
    monkeypatch.setattr(_native, "__file__", str(edited))
    this_machine()
    first, second = measured
    assert first["probe"].startswith(f"{__version__} ")
    assert first["probe"] != second["probe"]
    assert {**first, "probe": ""} == {**second, "probe": ""}


@pytest.mark.parametrize("text", ["", "{}", "[1]", "\x00", '{"schema_version": 1}'])
def test_a_damaged_file_is_replaced(
    text: str, measured: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = this_machine()
    (path,) = (tmp_path / "fusedrnn").iterdir()
    path.write_text(text)
    assert this_machine() == first
    assert len(measured) == 2
    assert load(path) == first


def test_limits_of_another_machine_under_this_name_are_not_taken(
    measured: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = this_machine()
    (path,) = (tmp_path / "fusedrnn").iterdir()
    path.write_text(EXAMPLE.read_text())
    assert this_machine() == first
    assert len(measured) == 2


def test_without_a_place_to_keep_it_a_machine_is_measured(
    measured: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    this_machine()
    this_machine()
    assert len(measured) == 2
    assert blocked.read_text() == ""


def test_a_write_that_fails_leaves_nothing(
    measured: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "replace", full)
    this_machine()
    assert list((tmp_path / "fusedrnn").iterdir()) == []


def test_where_it_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative/place"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        found = cache_file({"cpu": "x"})
        assert found is not None
        assert found.parent == tmp_path / ".cache" / "fusedrnn"

    def homeless() -> Path:
        raise RuntimeError

    monkeypatch.setattr(Path, "home", homeless)
    assert cache_file({"cpu": "x"}) is None


def test_a_machine_survives_json(here: Machine, tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_text(here.to_json())
    assert load(path) == here
    assert load(EXAMPLE).to_dict()["isas"] == ["avx2", "baseline"]


def test_a_machine_names_neither_host_nor_user(here: Machine) -> None:
    text = here.to_json()
    assert str(Path.home()) not in text
    assert os.uname().nodename not in text
