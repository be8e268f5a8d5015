"""The Numba kernels by themselves: vocabulary, activations, the LSTM as C calls it, and the cache."""

from __future__ import annotations

import math
import mmap
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cffi
import numpy as np
import pytest

import fusedrnn as fr
from fusedrnn import _native
from fusedrnn._native import ffi, lib
from fusedrnn.backends import isas, packed
from fusedrnn.kernels import activations, compiled, reference

pytest.importorskip("numba")

import numba
from numba import types

from fusedrnn.kernels import policy, simd
from fusedrnn.kernels.memory import floats

GATES = 4
ISAS = list(isas())
BINARY = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def address(array: np.ndarray) -> Any:
    return ffi.cast("float *", array.ctypes.data)


def compile_c(function: Callable[..., Any], declaration: str, *arguments: types.Type) -> Any:
    """A function of the vocabulary as a C function, without the cache, which knows only kernels/."""
    made = numba.cfunc(types.void(*arguments), **policy.OPTIONS)(function)
    pointer = ffi.cast(declaration, made.address)

    def call(*values: Any) -> None:
        pointer(*(address(v) if isinstance(v, np.ndarray) else v for v in values))

    call.owner = made
    return call


# ---- the vocabulary ------------------------------------------------------------------------------


def test_lanes_are_those_of_c(isa: str) -> None:
    assert compiled.lanes(isa) == lib.fr_isa_lanes(isas()[isa])
    assert [name for name in simd.INSTRUCTION_SETS if name in isas()] == ISAS


@pytest.mark.parametrize("name", [*BINARY, "minimum", "maximum"])
def test_operations_of_two(isa: str, name: str, draw: Any) -> None:
    vf = simd.vocabulary(isa)
    operation = getattr(vf, name)

    def function(a, b, y):
        vf.store(y, operation(vf.load(a), vf.load(b)))

    run = compile_c(function, "void (*)(float *, float *, float *)", floats, floats, floats)
    a, b, y = draw(vf.LANES), draw(vf.LANES), draw(vf.LANES)
    b[:4] = [np.nan, np.inf, -np.inf, 0]
    run(a, b, y)
    if name in BINARY:
        with np.errstate(divide="ignore"):
            expected = BINARY[name](a, b)
    else:
        smaller = a < b if name == "minimum" else a > b
        expected = np.where(smaller, a, b)
        assert np.isnan(y[0])
    np.testing.assert_array_equal(y, expected)

    # The second argument is the one that is kept: a clamp keeps a NaN, and a NaN limit is no limit.
    if name in ("minimum", "maximum"):
        run(b, a, y)
        assert y[0] == a[0]


def test_fma_rounds_once_where_there_is_fma(isa: str, draw: Any) -> None:
    vf = simd.vocabulary(isa)

    def function(a, b, c, y):
        vf.store(y, vf.fma(vf.load(a), vf.load(b), vf.load(c)))

    run = compile_c(function, "void (*)(float *, float *, float *, float *)", *[floats] * 4)
    a, b, y = draw(vf.LANES), draw(vf.LANES), draw(vf.LANES)
    c = -(a * b)
    exact = a.astype(np.float64) * b + c
    assert np.any(exact != 0)
    run(a, b, c, y)
    np.testing.assert_array_equal(y, exact if vf.ISA.has_fma else np.zeros_like(y))


def test_set1_and_shl23(isa: str) -> None:
    vf = simd.vocabulary(isa)

    def function(y):
        vf.store(y, vf.set1(1 / 3))
        vf.store(y + vf.LANES, vf.shl23(vf.set1(12582912.0 + 127.0 + 5.0)))

    y = np.zeros(2 * vf.LANES, np.float32)
    compile_c(function, "void (*)(float *)", floats)(y)
    np.testing.assert_array_equal(y[: vf.LANES], np.float32(1 / 3))
    np.testing.assert_array_equal(y[vf.LANES :], 2.0**5)


def test_part_of_a_vector(isa: str, draw: Any) -> None:
    vf = simd.vocabulary(isa)
    lanes = vf.LANES

    def function(x, y, z, n):
        v = vf.load_n(x, n)
        vf.store(z, v)
        vf.store_n(y, v, n)

    declaration = "void (*)(float *, float *, float *, int64_t)"
    run = compile_c(function, declaration, floats, floats, floats, types.int64)
    x = draw(2 * lanes)
    for n in [*range(1, 2 * lanes + 1), 2**40]:
        y, z = np.full(2 * lanes, 7, np.float32), np.empty(lanes, np.float32)
        run(x, y, z, n)
        stored = min(n, lanes)
        np.testing.assert_array_equal(z, np.where(np.arange(lanes) < n, x[:lanes], 0))
        np.testing.assert_array_equal(y[:stored], x[:stored])
        np.testing.assert_array_equal(y[stored:], 7)


def test_part_of_a_vector_at_the_end_of_memory(isa: str) -> None:
    """The page behind may not be touched, not even by a load whose lanes are dropped."""
    system = cffi.FFI()
    system.cdef("int mprotect(void *, size_t, int);")
    libc = system.dlopen(None)
    memory = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    page = np.frombuffer(memory, np.float32)[: mmap.PAGESIZE // 4]
    behind = system.cast("void *", page.ctypes.data + mmap.PAGESIZE)
    assert libc.mprotect(behind, mmap.PAGESIZE, 0) == 0
    run = compiled.activation("tanh", isa)
    function = ffi.cast("void (*)(const float *, float *, int64_t)", run.address)
    for n in range(1, 2 * compiled.lanes(isa)):
        page[-n:] = 1
        function(address(page[-n:]), address(page[-n:]), n)
        np.testing.assert_allclose(page[-n:], np.tanh(1), rtol=1e-6)
    assert libc.mprotect(behind, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE) == 0


# ---- the activations -----------------------------------------------------------------------------


def sampled_floats() -> np.ndarray:
    """Every kind of float: any exponent, densely where the functions bend, and the special ones."""
    any_bits = np.random.default_rng(1).integers(0, 2**32, 2**18, dtype=np.uint32)
    bend = np.linspace(-20, 20, 2**18 + 1)
    edges = np.array([87, 88, 89, 103, 104, 9, 10, 11, 1e30, 3.4e38, 1e-38, 1e-40, 1.4e-45, 0])
    special = [np.inf, -np.inf, np.nan]
    return np.concatenate(
        [any_bits.view(np.float32), *(np.float32(v) for v in (bend, edges, -edges, special))]
    )


def activation_in_c(isa: str, name: str, x: np.ndarray) -> np.ndarray:
    y = np.empty_like(x)
    assert lib.fr_activation(isas()[isa], name.encode(), address(x), address(y), len(x)) == 0
    return y


def activation_in_numba(isa: str, name: str, x: np.ndarray) -> np.ndarray:
    y = np.empty_like(x)
    kernel = compiled.activation(name, isa)
    function = ffi.cast("void (*)(const float *, float *, int64_t)", kernel.address)
    function(address(x), address(y), len(x))
    return y


@pytest.mark.parametrize("made_by", [activation_in_c, activation_in_numba])
@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("sigmoid", activations.SIGMOID_MAX_ABS_ERROR),
        ("tanh", activations.TANH_MAX_ABS_ERROR),
    ],
)
def test_activation_error(
    isa: str, name: str, bound: float, made_by: Callable[..., np.ndarray]
) -> None:
    x = sampled_floats()
    y = made_by(isa, name, x)
    with np.errstate(invalid="ignore"):  # a signalling NaN is among them
        expected = getattr(reference, name)(x.astype(np.float64))
    np.testing.assert_array_equal(np.isnan(y), np.isnan(x))
    number = ~np.isnan(x)
    error = np.abs(y[number] - expected[number])
    assert bound / 2 < error.max() <= bound
    assert np.all(np.abs(y[number]) <= 1)
    if name == "tanh":
        smallest = np.finfo(np.float32).smallest_normal
        ulp = np.spacing(np.maximum(np.abs(expected[number]), smallest).astype(np.float32))
        assert (error / ulp).max() <= activations.TANH_MAX_ULP_ERROR


@pytest.mark.parametrize("name", compiled.ACTIVATIONS)
def test_activation_has_the_bits_of_c(isa: str, name: str) -> None:
    x = sampled_floats()
    np.testing.assert_array_equal(
        activation_in_numba(isa, name, x), activation_in_c(isa, name, x), strict=True
    )


# ---- the LSTM ------------------------------------------------------------------------------------


class Layer:
    """One LSTM direction, and calls of a kernel on it as ``fr_run`` makes them."""

    def __init__(
        self, kernel: Any, isa: str, X: int, H: int, order: tuple[int, ...] = (0, 1, 2, 3)
    ) -> None:
        random = np.random.default_rng(X * 1000 + H)
        self.W, self.R, self.b = (
            random.uniform(-1, 1, shape).astype(np.float32) / np.float32(np.sqrt(H))
            for shape in ((GATES * H, X), (GATES * H, H), (GATES * H, 1))
        )
        lanes = compiled.lanes(isa)
        self.arrays = [
            packed(np.concatenate([np.split(matrix, GATES)[gate] for gate in order]), GATES, lanes)
            for matrix in (self.W, self.R, self.b)
        ]
        self.kernel = kernel
        self.panels = ffi.new("fr_panels *")
        self.panels.inputs, self.panels.hidden = X, H
        self.panels.blocks, self.panels.block_floats = -(-H // lanes), GATES * lanes
        self.panels.x_panels, self.panels.h_panels, self.panels.bias = map(address, self.arrays)

    def run(
        self, x: np.ndarray, h: np.ndarray, c: np.ndarray, chunk: int, backwards: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """y, h and c after the steps of x; what lies between the rows of y must stay as it is."""
        T, B, X = x.shape
        H = self.panels.hidden
        room = np.full((T, B, H + 5), 7, np.float32)
        h, c = h.copy(), c.copy()
        sign, last = (-1, T - 1) if backwards else (1, 0)
        scratch = np.empty(chunk * B * self.panels.blocks * self.panels.block_floats, np.float32)
        span = ffi.new("fr_span *")
        span.steps, span.batch, span.chunk = T, B, chunk
        span.x, span.x_step, span.x_row = address(x) + last * B * X, sign * B * X, X
        span.y = address(room) + last * B * (H + 5)
        span.y_step, span.y_row = sign * B * (H + 5), H + 5
        span.h, span.c, span.scratch = address(h), address(c), address(scratch)
        self.kernel(self.panels, span)
        assert np.all(room[..., H:] == 7)
        return room[..., :H], h, c

    def exactly(self, x: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, ...]:
        weights = [array.astype(np.float64) for array in (self.W, self.R, self.b[:, 0])]
        state = h.astype(np.float64), c.astype(np.float64)
        y = []
        for now in x.astype(np.float64):
            state = reference.lstm(now, state, *weights)
            y.append(state[0])
        return np.array(y), *state


def numba_kernel(isa: str) -> Any:
    return ffi.cast("fr_kernel", compiled.build("lstm", isa).address)


def c_kernel(isa: str) -> Any:
    return lib.fr_find_kernel(isas()[isa], b"lstm")


SIZES = [(1, 1, 1, 1), (3, 1, 2, 3), (7, 3, 17, 3), (5, 6, 5, 33), (4, 7, 40, 64), (2, 13, 31, 17)]


@pytest.mark.parametrize(("T", "B", "X", "H"), SIZES)
def test_lstm(isa: str, T: int, B: int, X: int, H: int, draw: Any) -> None:
    layer = Layer(numba_kernel(isa), isa, X, H)
    x, h, c = draw(T, B, X), draw(B, H), draw(B, H)
    in_c = Layer(c_kernel(isa), isa, X, H)
    for chunk in (1, 2, 3, T + 1):
        for backwards in (False, True):
            outputs = layer.run(x, h, c, chunk, backwards)
            expected = layer.exactly(x[::-1] if backwards else x, h, c)
            if backwards:
                expected = expected[0][::-1], *expected[1:]
            for output, exact in zip(outputs, expected, strict=True):
                np.testing.assert_allclose(output, exact, rtol=0, atol=2e-6)
            for output, same in zip(outputs, in_c.run(x, h, c, chunk, backwards), strict=True):
                np.testing.assert_array_equal(output, same)


def test_a_wrong_gate_order_is_seen(isa: str, draw: Any) -> None:
    x, h, c = draw(7, 3, 17), draw(3, 9), draw(3, 9)
    layer = Layer(numba_kernel(isa), isa, 17, 9, order=(0, 2, 1, 3))
    assert np.abs(layer.run(x, h, c, 1)[0] - layer.exactly(x, h, c)[0]).max() > 1e-2


@pytest.mark.parametrize("H", (3, 33))
def test_the_same_bits_however_it_is_run(isa: str, H: int, draw: Any) -> None:
    T, B, X = 6, 17, 11
    layer = Layer(numba_kernel(isa), isa, X, H)
    x, h, c = draw(T, B, X), draw(B, H), draw(B, H)
    y, last_h, last_c = layer.run(x, h, c, T)
    for chunk in range(1, T):
        np.testing.assert_array_equal(layer.run(x, h, c, chunk)[0], y)
    for rows in (1, 2, 3, 4, 5, 6, 7, 16):
        for first in {0, B - rows}:
            part = slice(first, first + rows)
            inside = np.ascontiguousarray(x[:, part])
            np.testing.assert_array_equal(layer.run(inside, h[part], c[part], 2)[0], y[:, part])
    for t in range(T):
        output, h, c = layer.run(x[t : t + 1], h, c, 1)
        np.testing.assert_array_equal(output[0], y[t])
    np.testing.assert_array_equal(h, last_h)
    np.testing.assert_array_equal(c, last_c)


def test_nan_stays_in_its_row(isa: str, draw: Any) -> None:
    layer = Layer(numba_kernel(isa), isa, 5, 7)
    x, h, c = draw(4, 3, 5), draw(3, 7), draw(3, 7)
    x[1, 1, 2] = np.nan
    y = layer.run(x, h, c, 2)[0]
    assert np.all(np.isnan(y[1:, 1]))
    assert np.all(np.isfinite(y[:, [0, 2]])) and np.all(np.isfinite(y[0]))


# ---- building ------------------------------------------------------------------------------------


def test_one_kernel_for_everyone(isa: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        kernels = list(pool.map(lambda _: compiled.build("lstm", isa), range(32)))
    assert {id(kernel) for kernel in kernels} == {id(compiled.build("lstm", isa))}
    assert isa in repr(kernels[0])


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="cell must be one of lstm.*'nothing'"):
        compiled.build("nothing", "baseline")
    with pytest.raises(ValueError, match="isa must be one of avx512, avx2, baseline.*'nothing'"):
        compiled.build("lstm", "nothing")
    with pytest.raises(ValueError, match="activation must be one of sigmoid, tanh.*'nothing'"):
        compiled.activation("nothing", "baseline")


def test_told_not_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "DISABLE_JIT", True)
    monkeypatch.setattr(compiled, "_built", {})
    with pytest.raises(fr.UnsupportedError, match="NUMBA_DISABLE_JIT"):
        compiled.build("lstm", "baseline")


def test_numba_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.setattr(compiled, "_built", {})
    with pytest.raises(fr.MissingExtraError, match=r"fusedrnn\[numba\]"):
        compiled.build("lstm", "baseline")


# ---- the cache -----------------------------------------------------------------------------------

# Only importers that look into sys.path: those of an editable install know where fusedrnn is.
SCRIPT = """
    import sys
    sys.meta_path[:] = [finder for finder in sys.meta_path if isinstance(finder, type)]
    sys.path.insert(0, {root!r})
    from fusedrnn.kernels import compiled
    assert compiled.__file__.startswith({root!r})
    assert "numba" not in sys.modules
    {before}
    kernel = compiled.activation("tanh", "baseline")
    from fusedrnn._native import ffi
    x, y = ffi.new("float[1]", [0.5]), ffi.new("float[1]")
    ffi.cast("void (*)(const float *, float *, int64_t)", kernel.address)(x, y, 1)
    print(kernel.cached, "%.6f" % y[0])
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the installed package, to be edited."""
    root = tmp_path / "fusedrnn"
    without = shutil.ignore_patterns("__pycache__", "*.so", "kernels", "bench", "data")
    shutil.copytree(Path(fr.__file__).parent, root, ignore=without)
    shutil.copytree(Path(compiled.__file__).parent, root / "kernels", ignore=without)
    shutil.copy(_native.__file__, root)
    return root


def tanh_of_a_half(package: Path, before: str = "", **environment: str) -> str:
    script = textwrap.dedent(SCRIPT).format(root=str(package.parent), before=before)
    inherited = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    process = subprocess.run(
        [sys.executable, "-c", script],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def edit(package: Path) -> None:
    """tanh(x) becomes m / (m + 3), in a file that the compiled function only calls into."""
    source = package / "kernels" / "activations.py"
    text = source.read_text()
    assert text.count("vf.add(m, vf.set1(2.0))") == 1
    source.write_text(text.replace("vf.add(m, vf.set1(2.0))", "vf.add(m, vf.set1(3.0))"))


RIGHT = f"{math.tanh(0.5):.6f}"
EDITED = f"{(math.e - 1) / (math.e + 2):.6f}"


def test_cached_but_never_stale(package: Path) -> None:
    assert tanh_of_a_half(package) == f"False {RIGHT}"
    assert tanh_of_a_half(package) == f"True {RIGHT}"
    original = (package / "kernels" / "activations.py").read_text()
    edit(package)
    assert tanh_of_a_half(package) == f"False {EDITED}"
    assert tanh_of_a_half(package) == f"True {EDITED}"
    (package / "kernels" / "activations.py").write_text(original)
    assert tanh_of_a_half(package) == f"True {RIGHT}"


def test_an_edit_after_the_import_is_not_cached(package: Path) -> None:
    """What runs is what was imported; kept under the name of what is on disk it would be stale."""
    source = package / "kernels" / "activations.py"
    before = (
        "from fusedrnn.kernels import lstm; import pathlib; "
        f"pathlib.Path({str(source)!r}).open('a').write('# edited')"
    )
    assert tanh_of_a_half(package, before) == f"False {RIGHT}"
    assert tanh_of_a_half(package) == f"False {RIGHT}"


def test_a_broken_cache_file_is_compiled_again(package: Path) -> None:
    assert tanh_of_a_half(package) == f"False {RIGHT}"
    for broken in ("*.nbi", "*.nbc"):
        (file,) = (package / "kernels" / "__pycache__").glob(broken)
        file.write_bytes(b"")
        assert tanh_of_a_half(package) == f"False {RIGHT}"
        assert tanh_of_a_half(package) == f"True {RIGHT}"


def test_no_place_for_a_cache(package: Path) -> None:
    (package / "kernels" / "__pycache__").write_text("in the way of a directory")
    nowhere = {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null"}
    for _ in range(2):
        assert tanh_of_a_half(package, **nowhere) == f"False {RIGHT}"


def test_nothing_is_compiled_at_import() -> None:
    script = (
        "import sys, fusedrnn.kernels, fusedrnn.kernels.compiled, fusedrnn.kernels.activations; "
        "assert not {'numba', 'llvmlite'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
