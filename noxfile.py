"""Everything that is run on this project: ``nox -s tests``, ``nox -l`` for the list.

The default sessions are what CI runs, each in a fresh environment; the others take long or need more.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sysconfig
from pathlib import Path

import nox

nox.options.sessions = ["tests", "lint", "types", "sanitize"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False

PROJECT = nox.project.load_toml("pyproject.toml")["project"]
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
#: What shows that the package works at all, in seconds: not the kernels that Numba would have to compile first.
SMOKE = [
    "-k",
    "not numba",
    "tests/layers/test_recorded.py",
    "tests/counting/test_counts.py",
    "tests/cli/test_cli.py",
]


def install(session: nox.Session, extras: str, wheel: str | None = None) -> None:
    """Install the package: this wheel, or the one that the variable names (built once for many sessions), or the sources."""
    wheel = wheel or os.environ.get("FUSEDRNN_WHEEL")
    if wheel:  # pip would keep another wheel of the same version
        session.install("--force-reinstall", "--no-deps", wheel)
    session.install(f"{wheel or '.'}[{extras}]")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests against the installed package, on every interpreter that is here."""
    session.install(".[test]")
    session.run("pytest", *session.posargs)


def runs(python: str) -> bool:
    """Whether this interpreter is here; what pyenv puts on the path may be a command that only fails."""
    command = [f"python{python}", "-c", ""]
    return (
        bool(shutil.which(command[0]))
        and not subprocess.run(command, check=False, capture_output=True).returncode
    )


def others() -> list[str]:
    """The oldest and the newest interpreter that is here, but for the one that runs this: CI has tested with that."""
    found = [python for python in PYTHONS if runs(python)]
    own = ".".join(platform.python_version_tuple()[:2])
    return [python for python in dict.fromkeys((*found[:1], *found[-1:])) if python != own]


@nox.session(python=others() or False)
def smoke(session: nox.Session) -> None:
    """A short set on the oldest and the newest interpreter that is here: import, bits, counts, the command line."""
    if not others():
        session.skip("there is no other interpreter here than the one that runs the whole")
    install(session, "test")
    session.run("pytest", "-q", "-n0", *(session.posargs or SMOKE))


@nox.session
def wheel(session: nox.Session) -> None:
    """A wheel built from the sdist, installed alone, passes the tests."""
    session.install("build")
    dist = Path(session.create_tmp()) / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(dist))
    (built,) = dist.glob("*.whl")
    install(session, "test", str(built))
    root = Path(__file__).parent
    with session.chdir(session.create_tmp()):
        session.run("pytest", "-c", f"{root}/pyproject.toml", f"{root}/tests", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """How much of the Python the tests reach."""
    session.install(".[test]")
    session.run("pytest", "--cov=fusedrnn", "--cov-report=term-missing:skip-covered")


@nox.session
@nox.parametrize("reader", ["safetensors", "torch", "npz", "keras", "onnx"])
def fuzz(session: nox.Session, reader: str) -> None:
    """A reader of model files against changed ones, for a minute: ``nox -s fuzz -- SECONDS`` for another time."""
    session.install(".[test]", "atheris>=3")
    session.run("python", "tests/fuzz/fuzz_readers.py", reader, *(session.posargs or ["60"]))


@nox.session
def lint(session: nox.Session) -> None:
    """Style and what linters find, in Python and C."""
    # The tools alone: they read the sources.
    session.install(*PROJECT["optional-dependencies"]["lint"])
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("codespell")
    sources = [str(path) for path in sorted(Path("csrc").rglob("*.[ch]"))]
    session.run("clang-format", "--dry-run", "-Werror", *sources)
    for source, march in (
        ("csrc/dispatch.c", "x86-64"),
        ("csrc/pack.c", "x86-64"),
        ("csrc/schedule.c", "x86-64"),
        ("csrc/workspace.c", "x86-64"),
        ("csrc/run.c", "x86-64"),
        ("csrc/stream.c", "x86-64"),
        ("csrc/thread_pool.c", "x86-64"),
        ("csrc/probe.c", "x86-64"),
        ("csrc/arrays.c", "x86-64"),
        ("csrc/isa/baseline.c", "x86-64"),
        ("csrc/isa/avx2.c", "x86-64-v3"),
        ("csrc/isa/avx512.c", "x86-64-v4"),
    ):
        session.run(
            "clang-tidy", "--quiet", source, "--",
            "--target=x86_64-linux-gnu", f"-march={march}", "-std=gnu11", "-Icsrc", '-DFR_BUILD=""',
            "-isystem", sysconfig.get_path("include"),
        )  # fmt: skip


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strict, on the installed package."""
    install(session, "test,lint")
    with session.chdir(session.create_tmp()):
        session.run("mypy", "--config-file", f"{Path(__file__).parent}/pyproject.toml")


@nox.session
@nox.parametrize("sanitizer", ["address,undefined", "thread"], ids=["memory", "threads"])
def sanitize(session: nox.Session, sanitizer: str) -> None:
    """The C backend's tests under the address and undefined-behaviour sanitizers, and under the thread sanitizer."""
    threads = sanitizer == "thread"
    # What is not run here need not be compiled; and checks are calls, which compile faster.
    cpu = Path("/proc/cpuinfo")
    no_avx512 = cpu.exists() and "avx512f" not in cpu.read_text()
    checks = "" if threads else " --param asan-instrumentation-with-call-threshold=0"
    session.install(
        ".[test]",
        "--no-binary=fusedrnn",
        "-Ccmake.build-type=Debug",
        "-Cinstall.strip=false",
        f"-Ccmake.define.CMAKE_C_FLAGS=-O1 -g1 -fsanitize={sanitizer} -fno-sanitize-recover=all{checks}",
        *(["-Ccmake.define.FR_NO_AVX512=ON"] if no_avx512 else []),
    )
    libraries = [
        subprocess.run(
            ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in (["libtsan.so"] if threads else ["libasan.so", "libubsan.so"])
    ]
    # The NumPy backend runs no C. Under the thread sanitizer a forked child may not start threads, and the long choice of
    # a number of threads has none; under both, memory and address space have other limits.
    left_out = "not numba and not numpy and not no_thread and not memory_is_bounded"
    left_out += " and not fork and not child and not best_of_all" * threads
    # Of backward passes in threads, a member of the family for each body and option that has code of its own.
    members = [
        "rnn]",
        "lstm]",
        "peephole-coupled]",
        "cell-clip]",
        "gru]",
        "gru-before]",
        "clockwork]",
    ]
    left_out += f" and (not gradient_bits or {' or '.join(members)})"
    files = [
        "engines",
        "layers/test_stream.py",
        "layers/test_promises.py",
        "training/test_gradient_bits.py",
    ]
    if not threads:
        files += [
            "layers/test_layers.py",
            "layers/test_bad_input.py",
            "kernels/test_activations.py",
            "kernels/test_dispatch.py",
            "layers/test_family.py",
            "narrow/test_narrow_layers.py",
            "training/test_gradients.py",
        ]
    session.run(
        # The thread sanitizer of gcc 12 does not know the address layout that newer kernels randomise to.
        *(["setarch", "-R"] if threads else []),
        "python", "-m", "pytest", "-n0", "--capture=sys", "-k", left_out,
        *(session.posargs or [f"tests/{name}" for name in files]),
        env={
            "LD_PRELOAD": " ".join(libraries),
            "PYTHONMALLOC": "malloc",
            # CPython keeps objects to the end on purpose; leaks of the extension are not possible: it allocates nothing.
            "ASAN_OPTIONS": "detect_leaks=0",
        },
        external=threads,
    )  # fmt: skip


@nox.session
def distributed(session: nox.Session) -> None:
    """The examples for Dask and Ray: a minute, and 300 MB to install."""
    session.install(".[test,distributed]")
    session.run("pytest", "-n0", *(session.posargs or ["tests/examples"]))


@nox.session
def activations(session: nox.Session) -> None:
    """Every activation on all 2^32 floats, for every backend and instruction set: minutes each."""
    session.install(".[test]")
    session.run("pytest", "tests/kernels/test_activations.py", env={"FUSEDRNN_ALL_FLOATS": "1"})


@nox.session
def inductor(session: nox.Session) -> None:
    """Converted models under torch.compile with Inductor, which needs a C++ compiler: a minute."""
    session.install(".[test,torch]")
    session.run(
        "pytest", "-n0", "tests/torch_modules/test_inductor.py", env={"FUSEDRNN_INDUCTOR": "1"}
    )


@nox.session
def next_numba(session: nox.Session) -> None:
    """The Numba kernels with the newest version of Numba there is, also one that pyproject.toml does not allow yet."""
    session.install(".[test]")
    session.install("--upgrade", "--pre", "numba")
    session.run("python", "-c", "import numba; print('Numba', numba.__version__)")
    session.run(
        "pytest", "tests/kernels", "tests/layers/test_recorded.py", *session.posargs,
        env={"FUSEDRNN_ALL_KERNELS": "1"},
    )  # fmt: skip


@nox.session
def properties(session: nox.Session) -> None:
    """The properties again with a thousand random examples each, and every Numba kernel on every instruction set."""
    session.install(".[test]")
    session.run(
        "pytest", "--hypothesis-profile=long", "-m", "not slow", *session.posargs,
        env={"FUSEDRNN_ALL_KERNELS": "1"},
    )  # fmt: skip


@nox.session
def cross(session: nox.Session) -> None:
    """Older x86-64 CPUs and aarch64, emulated: on Debian, 5 to 15 minutes. After ``--`` what aarch64 is to run instead.

    What runs there are the tests themselves, in an aarch64 Python: Debian's, unpacked into a folder of this session,
    with wheels from PyPI and this package, which Zig's clang cross-compiles.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            session.skip(f"needs {tool}, for Debian's Python for aarch64")
    if not shutil.which("qemu-aarch64"):
        if os.geteuid() != 0:
            session.skip("needs QEMU's emulators of a CPU: Debian's package qemu-user")
        session.run("apt-get", "--quiet=2", "update", external=True)
        session.run("apt-get", "--quiet=2", "--yes", "install", "qemu-user", external=True)
    # Not isolated: pip would fetch the tools for the CPU that the wheel is for.
    tools = nox.project.load_toml("pyproject.toml")["build-system"]["requires"]
    session.install(".[test]", *tools, "cmake", "ninja", "ziglang")
    if platform.machine() == "x86_64" and not session.posargs:
        session.run(
            "pytest", "tests/kernels/test_cpu_models.py", env={"FUSEDRNN_REQUIRE_QEMU": "1"}
        )

    python, version, site = aarch64_python(session)
    folder = Path(session.create_tmp()).resolve()
    dist = folder / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run(
        "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir", str(dist), ".",
        f"-Cbuild-dir={folder / 'build'}",
        "-Ccmake.define.CMAKE_SYSTEM_NAME=Linux",
        "-Ccmake.define.CMAKE_SYSTEM_PROCESSOR=aarch64",
        "-Ccmake.define.CMAKE_C_COMPILER=python-zig;cc;-target;aarch64-linux-gnu.2.28",
        "-Ccmake.define.CMAKE_C_FLAGS=-Werror",
        # CMake asks how to run the interpreter that cffi needs: as it is. The headers are this Python's too, which is
        # right for the stable ABI on any 64-bit Linux.
        "-Ccmake.define.CMAKE_CROSSCOMPILING_EMULATOR=/usr/bin/env",
        env={"_PYTHON_HOST_PLATFORM": "linux-aarch64"},
    )  # fmt: skip
    (wheel,) = dist.glob("*_aarch64.whl")
    tags = ("linux", "manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux2014")
    session.run(
        "pip", "install", "--quiet", "--target", str(site), "--only-binary=:all:",
        *(f"--platform={tag}_aarch64" for tag in tags), f"--python-version={version}",
        f"{wheel}[numba,safetensors]", "pytest", "pytest-xdist", "hypothesis",
    )  # fmt: skip
    # Left out are two tests that take minutes there, the specification, and most of Numba, which compiles slowly.
    session.run(
        str(python), "-m", "pytest", "-n2", "--hypothesis-profile=short",
        *(session.posargs or ["tests/kernels/test_activations.py", "tests/kernels/test_dispatch.py", "tests/layers/test_family.py",
        "tests/layers/test_layers.py", "tests/kernels/test_numba_kernels.py", "tests/layers/test_promises.py", "tests/layers/test_stream.py",
        "-k", ("not memory_is_bounded and not in_two_threads and not numpy and "
        "(not numba or (the_same_bits_as_c and neon))")]),
        external=True,
    )  # fmt: skip


def aarch64_python(session: nox.Session) -> tuple[Path, str, Path]:
    """An aarch64 Python without packages: the command, its version, and the folder for packages."""
    root = Path(session.create_tmp()).resolve() / "aarch64"
    shutil.rmtree(root, ignore_errors=True)
    (root / "usr/lib").mkdir(parents=True)
    # The loader is in one of the two, and looked for in the other.
    (root / "lib").symlink_to("usr/lib")
    # A state of its own: root's rights are not needed, and what is installed here is not touched.
    state = root / "apt"
    for name in ("lists/partial", "archives/partial"):
        (state / name).mkdir(parents=True)
    (state / "status").touch()
    options = [
        "-oAPT::Architecture=arm64", "-oAPT::Architectures::=arm64", f"-oDir::State={state}",
        f"-oDir::State::status={state / 'status'}", f"-oDir::Cache={state}", "-oDebug::NoLocking=1",
    ]  # fmt: skip
    session.run("apt-get", *options, "--quiet=2", "update", external=True)
    session.run(
        "apt-get", *options, "--quiet=2", "--yes", "--no-install-recommends", "--download-only",
        "install", "python3", "libstdc++6", external=True,
    )  # fmt: skip
    for package in (state / "archives").glob("*.deb"):
        session.run("dpkg-deb", "-x", str(package), str(root), external=True, silent=True)
    version = (root / "usr/bin/python3").readlink().name.removeprefix("python")
    # Also what sys.executable is there: tests start it, and the kernel here cannot.
    command = root / "usr/bin/python"
    command.write_text(
        f'#!/bin/sh\nexec qemu-aarch64 -L "{root}" -0 "$0" "{root}/usr/bin/python{version}" "$@"\n'
    )
    command.chmod(0o755)
    return command, version, root / f"usr/local/lib/python{version}/dist-packages"


@nox.session
def real_models(session: nox.Session) -> None:
    """Published models end to end, from the packages that have them: 30 MB from PyPI, nothing of which stays."""
    session.install(".[test]")
    # Their code is not run, and what it needs is not installed.
    session.install("--no-deps", "g2p_en==2.1.0", "pythainlp==5.4.0")
    folder = Path(session.create_tmp()).resolve()
    source = ["--no-deps", "--no-binary=textgenrnn", "--dest", str(folder), "textgenrnn==2.0.0"]
    session.run("pip", "download", "--quiet", *source)
    (archive,) = folder.glob("textgenrnn-*.tar.gz")
    session.run(
        "pytest", "tests/real_models", *session.posargs, env={"FUSEDRNN_TEXTGENRNN": str(archive)}
    )


@nox.session
def frameworks(session: nox.Session) -> None:
    """Cells of Flax and Equinox as they are now; CI has a record of what they compute."""
    session.install(".[test]", "flax", "equinox")
    session.run("pytest", "tests/formats/test_flax.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """The whole benchmark with its report in report/."""
    session.install(".[bench]")
    os.makedirs("report", exist_ok=True)
    session.run("fusedrnn", "bench", "run", "--report", "report", *session.posargs)
