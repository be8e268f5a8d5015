"""How many cores a process may use: its affinity, and the CPU quota of its cgroups."""

from __future__ import annotations

import os
from math import inf
from pathlib import Path

import numpy as np
import pytest
from conftest import Draw

import fusedrnn as fr
from fusedrnn.engines import compiled, threads
from fusedrnn.engines.threads import cpu_quota

V2 = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 24 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
V1_MEMORY = "34 24 0:31 / /sys/fs/cgroup/memory rw shared:10 - cgroup cgroup rw,memory\n"


def system(root: Path, membership: str, mounts: str, **files: str) -> Path:
    """A folder that looks like the root of a system; files by their path under /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(membership)
    (root / "proc/self/mountinfo").write_text(mounts)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("CPU_MAX", "cpu.max")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, inf),
        ({"a__b__CPU_MAX": "max 100000\n"}, inf),
        ({"a__b__CPU_MAX": "150000 100000\n"}, 1.5),
        ({"a__b__CPU_MAX": "max 100000\n", "a__CPU_MAX": "400000 100000\n"}, 4),
        ({"a__b__CPU_MAX": "800000 100000\n", "a__CPU_MAX": "400000 200000\n"}, 2),
        ({"CPU_MAX": "300000 100000\n"}, 3),
        ({"c__CPU_MAX": "100000 100000\n"}, inf),  # of another cgroup
        ({"a__b__CPU_MAX": ""}, inf),
        ({"a__b__CPU_MAX": "100000\n"}, inf),
        ({"a__b__CPU_MAX": "many 100000\n"}, inf),
        ({"a__b__CPU_MAX": "100000 0\n"}, inf),
        ({"a__b__CPU_MAX": "-1 100000\n"}, inf),
        ({"a__b__CPU_MAX": "nan nan\n"}, inf),
        ({"a__b__CPU_MAX": "\udcff\x00 1"}, inf),
    ],
)
def test_quota_of_version_2(tmp_path: Path, files: dict[str, str], quota: float) -> None:
    safe = {name: text.replace("\udcff", "ÿ") for name, text in files.items()}
    assert cpu_quota(system(tmp_path, "0::/a/b\n", V2, **safe)) == quota


@pytest.mark.parametrize(
    ("quota_us", "period_us", "quota"),
    [("250000", "100000", 2.5), ("-1", "100000", inf), ("250000", "", inf), ("", "", inf)],
)
def test_quota_of_version_1(tmp_path: Path, quota_us: str, period_us: str, quota: float) -> None:
    root = system(tmp_path, "5:memory:/m\n4:cpu,cpuacct:/a\n0::/a\n", V1_MEMORY + V1)
    folder = root / "sys/fs/cgroup/cpu,cpuacct/a"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text(f"{quota_us}\n")
    (folder / "cpu.cfs_period_us").write_text(f"{period_us}\n")
    assert cpu_quota(root) == quota


def test_quota_of_a_container_that_is_told_its_place_outside(tmp_path: Path) -> None:
    mounts = V2.replace(" / /sys", " /docker/abc /sys")
    for number, path in enumerate(("/docker/abc", "/docker/abc/inner", "/", "/../other", "/gone")):
        root = system(
            tmp_path / str(number), f"0::{path}\n", mounts, CPU_MAX="200000 100000\n", inner__x=""
        )
        assert cpu_quota(root) == 2


def test_quota_behind_a_path_with_a_space(tmp_path: Path) -> None:
    mounts = V2.replace("/sys/fs/cgroup", "/my\\040groups")
    root = system(tmp_path, "0::/\n", mounts)
    (root / "my groups").mkdir()
    (root / "my groups/cpu.max").write_text("100000 100000")
    assert cpu_quota(root) == 1


@pytest.mark.parametrize("text", ["", "\n\n", "::::", "0", "0::", "1 2 3 - 4", "- - -", "\x00ÿ"])
def test_what_cannot_be_understood_limits_nothing(tmp_path: Path, text: str) -> None:
    assert cpu_quota(system(tmp_path / "a", text, V2)) == inf
    assert cpu_quota(system(tmp_path / "b", "0::/a\n", text)) == inf
    assert cpu_quota(tmp_path / "nothing") == inf


def test_this_machine() -> None:
    assert cpu_quota() > 0
    assert 1 <= threads.usable_cores() <= len(os.sched_getaffinity(0))


def test_cores_are_the_least_of_affinity_and_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = threads.usable_cores.__wrapped__
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8))
    for quota, expected in ((inf, 8), (100.0, 8), (3.9, 3), (1.5, 1), (0.2, 1)):
        monkeypatch.setattr(threads, "cpu_quota", lambda quota=quota: quota)
        assert cores() == expected
    monkeypatch.setattr(threads, "cpu_quota", lambda: inf)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(1000))
    assert cores() == 64
    monkeypatch.delattr(os, "sched_getaffinity")
    for count, expected in ((6, 6), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert cores() == expected


@pytest.mark.parametrize("asked", [2, 64, "auto"])
def test_no_call_uses_more_threads_than_cores(
    monkeypatch: pytest.MonkeyPatch, draw: Draw, asked: int | str
) -> None:
    x = draw(60, 8, 5)
    layer = fr.LSTM(5, 24, 2, threads=asked, seed=0)
    expected = fr.LSTM(5, 24, 2, seed=0)(x)[0]
    for cores in (1, 2, 3):
        monkeypatch.setattr(compiled, "usable_cores", lambda cores=cores: cores)
        monkeypatch.setattr(threads, "usable_cores", lambda cores=cores: cores)
        assert layer._engine.threads(60, 8) <= cores
        assert (
            layer._engine.bound(x, expected.copy(), layer._signature.start_state(8)).q.threads
            <= cores
        )
        np.testing.assert_array_equal(layer(x)[0], expected)
    assert layer.threads == asked, "a layer remembers what it was asked for"
