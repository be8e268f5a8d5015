"""Which kernels run on older x86-64 CPUs, which QEMU stands in for: it refuses what the model does not have.

The emulator's arithmetic is exact, so an instruction set has the same bits there as here. Without QEMU the tests are
skipped, or, with FUSEDRNN_REQUIRE_QEMU=1, fail.
"""

from __future__ import annotations

import os
import pickle
import platform
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import FAMILY, Draw

import fusedrnn as fr
from fusedrnn.engines.native import isas

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="models of x86-64, run with this Python"
)

# CPU model of QEMU -> the best instruction set that it has. None of them has AVX-512: QEMU does not.
MODELS = {
    "Nehalem": "baseline",
    "SandyBridge": "baseline",  # AVX, but neither AVX2 nor FMA
    "Haswell": "avx2",
    "EPYC": "avx2",
    # Haswell with a part of x86-64-v3 missing, or not saved by the operating system.
    "Haswell,-fma": "baseline",
    "Haswell,-bmi2": "baseline",
    "Haswell,-movbe": "baseline",
    "Haswell,-xsave": "baseline",
}


def run(model: str, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python code on a CPU model."""
    return subprocess.run(
        [emulator(), "-cpu", model, sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"FUSEDRNN_ISA": ""} | environment,
    )


def emulator() -> str:
    missing = "needs qemu-x86_64 >= 7.2, the first with AVX2 (Debian's package qemu-user)"
    found = shutil.which("qemu-x86_64")
    if found:
        said = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
        version = re.search(r"version (\d+)\.(\d+)", said.stdout)
        if version and tuple(map(int, version.groups())) >= (7, 2):
            return found
    if os.environ.get("FUSEDRNN_REQUIRE_QEMU") == "1":
        pytest.fail(f"FUSEDRNN_REQUIRE_QEMU=1, but this {missing}")
    pytest.skip(missing)


@pytest.mark.parametrize("model", MODELS)
def test_the_best_that_a_model_has_runs_and_has_the_same_bits(
    model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, draw: Draw
) -> None:
    isa = MODELS[model]
    if isa not in isas():
        pytest.skip(f"this CPU has no {isa} to compare with")
    monkeypatch.setenv("FUSEDRNN_ISA", isa)
    layers = {name: cell(5, 18, seed=3, **chosen) for name, (cell, chosen) in FAMILY.items()}
    x = draw(7, 4, 5)
    problem = tmp_path / "problem.pickle"
    problem.write_bytes(pickle.dumps((layers, x)))
    code = (
        "import json, pickle, sys; import numpy as np; from fusedrnn.engines.native import isas\n"
        f"layers, x = pickle.load(open({str(problem)!r}, 'rb'))\n"
        f"np.savez({str(tmp_path / 'outputs.npz')!r}, **{{n: f(x)[0] for n, f in layers.items()}})\n"
        "print(*isas(), *{layer.isa for layer in layers.values()})"
    )
    result = run(model, code)
    assert result.returncode == 0, result.stderr
    there = [name for name in isas() if name != "avx512" and (name != "avx2" or isa == "avx2")]
    assert result.stdout.split() == [*there, isa]
    outputs = np.load(tmp_path / "outputs.npz")
    assert set(outputs) == set(FAMILY)
    for name, layer in layers.items():
        assert outputs[name].tobytes() == layer(x)[0].tobytes(), name


def test_negative_control_the_emulator_refuses_what_the_model_lacks() -> None:
    code = (
        "from fusedrnn._native import ffi, lib\n"
        "(isa,) = [k for k in range(9) if lib.fr_isa_name(k) and ffi.string(lib.fr_isa_name(k)) == b'avx2']\n"
        "assert lib.fr_activation(isa, b'tanh', ffi.new('float[8]'), ffi.new('float[8]'), 8) == 0"
    )
    assert run("Haswell", code).returncode == 0
    assert run("Nehalem", code).returncode == -signal.SIGILL


def test_one_that_the_model_lacks_is_an_error() -> None:
    result = run("Nehalem", "import fusedrnn as fr; fr.LSTM(3, 5)", FUSEDRNN_ISA="avx2")
    assert result.returncode != 0
    assert "FUSEDRNN_ISA must be one of baseline on this machine, got 'avx2'" in result.stderr


def test_numba_compiles_for_the_model(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLVM takes its target from the same CPU. Emulated, it compiles for half a minute."""
    if os.environ.get("FUSEDRNN_REQUIRE_QEMU") != "1":
        pytest.skip("takes half a minute: set FUSEDRNN_REQUIRE_QEMU=1")
    monkeypatch.setenv("FUSEDRNN_ISA", "baseline")
    layer = fr.RNN(5, 18, seed=3, backend="numba")
    expected = layer(np.ones((7, 4, 5), np.float32))[0]
    code = (
        "import numpy as np, fusedrnn as fr\n"
        "layer = fr.RNN(5, 18, seed=3, backend='numba')\n"
        "print(layer.isa, layer(np.ones((7, 4, 5), np.float32))[0].tobytes().hex())"
    )
    result = run("Nehalem", code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["baseline", expected.tobytes().hex()]
