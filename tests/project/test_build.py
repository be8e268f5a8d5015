"""What CMake does besides compiling: it refuses old compilers and notes the commit."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fusedrnn as fr

SOURCE = Path(__file__).parents[2]

for _program in ("cmake", "make", "git", "gcc"):
    if not shutil.which(_program):
        pytest.skip(f"needs {_program}", allow_module_level=True)


def cmake_is_too_old() -> bool:
    """Whether the build would fetch another one than that on the path."""
    wanted = re.search(r"VERSION ([\d.]+?)\.\.\.", (SOURCE / "CMakeLists.txt").read_text())
    said = subprocess.run(["cmake", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"[\d.]+", said)
    assert wanted and found
    return [int(n) for n in found[0].split(".")] < [int(n) for n in wanted[1].split(".")]


pytestmark = pytest.mark.skipif(cmake_is_too_old(), reason="needs a newer cmake")


def configure(source: Path, build: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        "cmake",
        "-GUnix Makefiles",
        "-S",
        str(source),
        "-B",
        str(build),
        "-DSKBUILD_PROJECT_NAME=fusedrnn",
    ]
    command += ["-DSKBUILD_PROJECT_VERSION=0", f"-DPython_EXECUTABLE={sys.executable}", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    done = subprocess.run(
        ["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def with_baseline_alone(folder: Path) -> None:
    """One instruction set is built, for time."""
    for file, others in (
        ("csrc/kernel_table.h", r'DO\((avx512|avx2|neon), "[^"]*"\)'),
        ("CMakeLists.txt", r"add_isa\((avx512|avx2|neon)[^)]*\)"),
    ):
        path = folder / file
        path.write_text(re.sub(others, "", path.read_text()))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sources that CMake reads, outside git."""
    folder = tmp_path / "outer" / "source"
    shutil.copytree(SOURCE / "csrc", folder / "csrc")
    shutil.copy(SOURCE / "CMakeLists.txt", folder)
    return folder


def test_an_old_compiler_is_refused(copy: Path, tmp_path: Path) -> None:
    old = tmp_path / "gcc"
    old.write_text('#!/bin/sh\nexec gcc -U__GNUC__ -D__GNUC__=11 "$@"\n')
    old.chmod(0o755)
    done = configure(copy, tmp_path / "build", f"-DCMAKE_C_COMPILER={old}")
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    assert re.search(r"gcc >= 12 or clang >= 18 \(found GNU 11\.[\d.]*\)", said), done.stderr


# What a module built from a copy of the sources says of itself: importers of an editable install would find another one.
_SCRIPT = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if isinstance(finder, type)]
sys.path.insert(0, {root!r})
import fusedrnn as fr, numpy as np
from fusedrnn import _native
assert _native.__file__.startswith({root!r})
assert "{flag}" in fr.info()["build"]
tiny = np.float32(1e-40) * np.float32(0.5)
x = np.random.default_rng(1).standard_normal((9, 3, 5)).astype(np.float32)
x[0, 1, 0] = np.nan
outputs = [cell(5, 18, seed=3)(x)[0].tobytes().hex() for cell in (fr.LSTM, fr.GRU, fr.RNN)]
print(tiny != 0, *outputs)
"""


@pytest.mark.parametrize("flag", ["-ffast-math", "-Ofast"])
def test_fast_math_among_cflags_reaches_neither_code_nor_link(
    copy: Path, tmp_path: Path, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSEDRNN_ISA", "baseline")
    with_baseline_alone(copy)
    build = tmp_path / "build"
    done = configure(copy, build, f"-DCMAKE_C_FLAGS={flag}")
    assert done.returncode == 0, done.stderr
    subprocess.run(["cmake", "--build", str(build)], check=True, capture_output=True, timeout=600)
    root = tmp_path / "site" / "fusedrnn"
    without = shutil.ignore_patterns("__pycache__", "*.so", "kernels", "bench", "data")
    shutil.copytree(SOURCE / "python" / "fusedrnn", root, ignore=without)
    shutil.copytree(SOURCE / "kernels", root / "kernels", ignore=without)
    (module,) = build.glob("_native*.so")
    shutil.copy(module, root)

    script = _SCRIPT.format(root=str(root.parent), flag=flag)
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    x = np.random.default_rng(1).standard_normal((9, 3, 5)).astype(np.float32)
    x[0, 1, 0] = np.nan
    outputs = [cell(5, 18, seed=3)(x)[0].tobytes().hex() for cell in (fr.LSTM, fr.GRU, fr.RNN)]
    assert said == ["True", *outputs]


def test_a_wheel_needs_no_place_among_the_sources(tmp_path: Path) -> None:
    """They may be read-only: nothing is written there. (Root, who runs tests in containers, may write anywhere.)"""
    pytest.importorskip("scikit_build_core")
    source = tmp_path / "source"
    without = shutil.ignore_patterns(
        "__pycache__", "*.so", ".git", "build", "tests", "docs", "*env*", ".nox", ".hypothesis"
    )
    shutil.copytree(SOURCE, source, ignore=without, symlinks=True)
    with_baseline_alone(source)
    before = sorted(source.rglob("*"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(tmp_path), str(source)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("fusedrnn-*.whl"))
    assert sorted(source.rglob("*")) == before


def test_the_commit_is_noted(copy: Path, tmp_path: Path) -> None:
    def noted() -> list[str]:
        done = configure(copy, tmp_path / "build")
        assert done.returncode == 0, done.stderr
        return (tmp_path / "build" / "_commit.txt").read_text().split()

    assert noted() == []
    # Unpacked somewhere in a repository of somebody else's.
    git(copy.parent, "init", "--quiet")
    git(copy.parent, "commit", "--quiet", "--allow-empty", "-mx")
    assert noted() == []
    git(copy, "init", "--quiet")
    assert noted() == []
    git(copy, "add", ".")
    git(copy, "commit", "--quiet", "-mx")
    commit = git(copy, "show", "-s", "--format=%H %cI").split()
    assert noted() == commit
    (copy / "csrc" / "api.h").write_text("changed")
    assert noted() == [*commit, "dirty"]
