"""Which kernels run: instruction sets, ``FUSEDRNN_ISA``, and what ``fr.info()`` says."""

from __future__ import annotations

import json
import pickle
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Draw

import fusedrnn as fr
from fusedrnn import layers, steps
from fusedrnn._native import ffi, lib
from fusedrnn.cells import CELLS
from fusedrnn.engines.native import arrays, isas, reads_array, reads_arrays


def test_the_best_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUSEDRNN_ISA", raising=False)
    lanes = [lib.fr_isa_lanes(index) for index in isas().values()]
    assert lanes == sorted(lanes, reverse=True)
    assert fr.LSTM(3, 5).isa == next(iter(isas()))
    assert list(isas())[-1] == "baseline"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of /proc/cpuinfo on x86-64")
def test_the_cpu_is_read_rightly() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].split())
    assert ("avx2" in isas()) == {"avx2", "fma", "bmi2", "f16c", "movbe"}.issubset(flags)
    needed = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
    assert ("avx512" in isas()) == needed.issubset(flags)


@pytest.mark.parametrize("backend", ("c", "numba"))
def test_an_unknown_isa_is_an_error(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setenv("FUSEDRNN_ISA", "avx1024")
    with pytest.raises(
        fr.UnsupportedError, match="FUSEDRNN_ISA must be one of .*baseline.*'avx1024'"
    ):
        fr.LSTM(3, 5, backend=backend)
    fr.LSTM(3, 5, backend="numpy")


def test_unknown_names_in_c() -> None:
    assert lib.fr_find_kernel(0, b"nothing") == ffi.NULL
    assert lib.fr_find_kernel(0, b"gru") == ffi.NULL, "a name of a cell that has several forms"
    assert lib.fr_isa_name(99) == ffi.NULL
    assert lib.fr_isa_name(-1) == ffi.NULL
    buffer = ffi.new("float[1]")
    assert lib.fr_activation(0, b"nothing", buffer, buffer, 1) == -1


def test_every_row_of_the_table_has_a_kernel_of_its_own() -> None:
    names = [row.kernel for rows in CELLS.values() for row in rows]
    for isa in isas().values():
        assert ffi.NULL not in (found := {lib.fr_find_kernel(isa, name.encode()) for name in names})
        assert len(found) == len(names) == len(set(names))


def test_the_fast_check_reads_arrays_here(draw: Draw) -> None:
    assert reads_arrays(), "or every step goes through the slow gate"
    x = draw(2, 3)
    assert reads_array(x)
    assert reads_array(pickle.loads(pickle.dumps(x)))
    assert not arrays.reads(x, x.ctypes.data, (3, 2))
    assert not arrays.reads(x, x.ctypes.data + 4, (2, 3))
    assert not arrays.reads("x", x.ctypes.data, (2, 3))
    for other in (
        x[:, ::2],
        x.T,
        x[0],
        x[:1],
        x[None],
        np.ma.array(x),
        x.astype(">f4"),
        x.astype("f8"),
        x.astype("i4"),
        misaligned(x),
    ):
        assert not reads_array(other)


def test_another_interpreter_or_numpy_is_checked_in_python(
    monkeypatch: pytest.MonkeyPatch, draw: Draw
) -> None:
    layer, x = fr.LSTM(3, 5, seed=0), draw(4, 2, 3)
    y = [layer(x)[0] for _ in range(3)][-1]
    for where, name, value in ((np, "__version__", "3.0.0"), (sys.implementation, "name", "pypy")):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, value)
            reads_arrays.cache_clear()
            assert not reads_arrays()
            twin = fr.LSTM(3, 5, seed=0)
            stream = twin.stream(2)
            for _ in range(3):
                np.testing.assert_array_equal(twin(x)[0], y)
            for x_t, y_t in zip(x, y, strict=True):
                np.testing.assert_array_equal(stream.step(x_t), y_t)
            np.testing.assert_array_equal(stream.run(x[:0]), y[:0])
        reads_arrays.cache_clear()
    assert reads_arrays()


def misaligned(x: np.ndarray) -> np.ndarray:
    moved = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    moved[...] = x
    return moved


def test_info_is_json_and_true(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDRNN_ISA", "baseline")
    info = json.loads(json.dumps(fr.info()))
    assert info["version"] == fr.__version__
    assert info["isa"] == "baseline"
    assert info["isas"] == list(isas())
    assert {"c", "numpy"} <= set(info["backends"])
    assert "-ffp-contract=off" in info["build"]
    assert "-fno-fast-math" in info["build"]


def test_importing_compiles_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, fusedrnn as fr; fr.LSTM(3, 5);"
        "print([m for m in ('numba', 'llvmlite', 'torch', 'matplotlib', 'onnxruntime') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    assert result.stdout.strip() == "[]"


def test_public_names() -> None:
    assert set(layers.__all__) | set(steps.__all__) <= set(fr.__all__)
    for name in fr.__all__:
        assert getattr(fr, name) is not None
    assert set(fr.__all__) <= set(dir(fr))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fr.nothing  # noqa: B018
