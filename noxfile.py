"""Everything that is run on this project: ``nox -s tests``, ``nox -l`` for the list.

The default sessions are what CI runs, each in a fresh environment; the others take long or need more.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import nox

nox.options.sessions = ["tests", "lint", "types", "sanitize"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests against the installed package, on every interpreter that is here."""
    session.install(".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def wheel(session: nox.Session) -> None:
    """A wheel built from the sdist, installed alone, passes the tests."""
    session.install("build")
    dist = Path(session.create_tmp()) / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(dist))
    (built,) = dist.glob("*.whl")
    session.install("--force-reinstall", "--no-deps", str(built))
    session.install(f"{built}[test]")
    root = Path(__file__).parent
    with session.chdir(session.create_tmp()):
        session.run("pytest", "-c", f"{root}/pyproject.toml", f"{root}/tests", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """How much of the Python the tests reach."""
    session.install(".[test]")
    session.run("pytest", "--cov=fusedrnn", "--cov-report=term-missing:skip-covered")


@nox.session
def lint(session: nox.Session) -> None:
    """Style and what linters find, in Python and C."""
    session.install(".[lint]")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("codespell")
    sources = [str(path) for path in sorted(Path("csrc").rglob("*.[ch]"))]
    session.run("clang-format", "--dry-run", "-Werror", *sources)
    for source, march in (
        ("csrc/dispatch.c", "x86-64"),
        ("csrc/probe.c", "x86-64"),
        ("csrc/isa/baseline.c", "x86-64"),
        ("csrc/isa/avx2.c", "x86-64-v3"),
        ("csrc/isa/avx512.c", "x86-64-v4"),
    ):
        session.run(
            "clang-tidy", "--quiet", source, "--",
            "--target=x86_64-linux-gnu", f"-march={march}", "-std=gnu11", "-Icsrc", '-DFR_BUILD=""',
        )  # fmt: skip


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strict, on the installed package: an editable one hides kernels/ and bench/."""
    session.install(".[test,lint]")
    with session.chdir(session.create_tmp()):
        session.run("mypy", "--config-file", f"{Path(__file__).parent}/pyproject.toml")


@nox.session
def sanitize(session: nox.Session) -> None:
    """The C backend's tests with the address and undefined-behaviour sanitizers."""
    session.install(
        ".[test]",
        "--no-binary=fusedrnn",
        "-Ccmake.build-type=Debug",
        "-Cinstall.strip=false",
        "-Ccmake.define.CMAKE_C_FLAGS=-O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined",
    )
    libraries = [
        subprocess.run(
            ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    session.run(
        "pytest", "--capture=sys", "-k", "not numba", *(session.posargs or ["tests/test_layers.py", "tests/test_stream.py",
        "tests/test_promises.py", "tests/test_bad_input.py", "tests/test_activations.py", "tests/test_dispatch.py",
        "tests/test_family.py", "tests/test_machine.py"]),
        env={
            "LD_PRELOAD": " ".join(libraries),
            "PYTHONMALLOC": "malloc",
            # CPython keeps objects to the end on purpose; leaks of the extension are not possible: it allocates nothing.
            "ASAN_OPTIONS": "detect_leaks=0",
        },
    )  # fmt: skip


@nox.session
def activations(session: nox.Session) -> None:
    """Every activation on all 2^32 floats, for every backend and instruction set: minutes each."""
    session.install(".[test]")
    session.run("pytest", "tests/test_activations.py", env={"FUSEDRNN_ALL_FLOATS": "1"})


@nox.session
def properties(session: nox.Session) -> None:
    """The properties again with a thousand random examples each."""
    session.install(".[test]")
    session.run("pytest", "--hypothesis-profile=long", "-m", "not slow", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """The whole benchmark with its report in report/."""
    session.install(".[bench]")
    os.makedirs("report", exist_ok=True)
    session.run("fusedrnn", "bench", "--report", "report", *session.posargs)
