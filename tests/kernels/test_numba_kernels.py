"""The Numba kernels by themselves: vocabulary, activations, memory, tiles, the bits of C, the cache."""

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
from conftest import bits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fusedrnn as fr
from fusedrnn import _native
from fusedrnn._native import ffi, lib
from fusedrnn.cells import CELLS
from fusedrnn.engines.native import isas
from fusedrnn.kernels import activations, compiled, reference
from fusedrnn.narrowing import WEIGHT_DTYPES, Narrow

pytest.importorskip("numba")

import numba
from numba import types

from fusedrnn.engines.base import Call
from fusedrnn.kernels import memory, policy, product, simd, tiles, weights
from fusedrnn.kernels.llvm import operation
from fusedrnn.kernels.memory import floats

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


def test_less_is_zero_where_it_is_not(isa: str, draw: Any) -> None:
    vf = simd.vocabulary(isa)

    def function(a, b, v, y):
        vf.store(y, vf.less(vf.load(a), vf.load(b), vf.load(v)))

    run = compile_c(function, "void (*)(float *, float *, float *, float *)", *[floats] * 4)
    a, b, v, y = (draw(vf.LANES) for _ in range(4))
    a[:3], b[:3] = [np.nan, 1, 2], [1, np.nan, 2]
    v[3] = np.nan
    a[3], b[3] = 1, 2
    run(a, b, v, y)
    np.testing.assert_array_equal(y, np.where(a < b, v, 0))
    assert np.isnan(y[3])
    a[3] = 2
    run(a, b, v, y)
    assert y[3] == 0


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


@pytest.mark.parametrize("weight_dtype", ["float16", "bfloat16"])
def test_every_number_of_16_bits_is_widened_exactly(isa: str, weight_dtype: str) -> None:
    vf, of = simd.vocabulary(isa), weights.WEIGHTS[weight_dtype]

    @operation(vf.vector, of.pointer)
    def load(builder: Any, p: Any) -> Any:
        return of.load(vf.ISA, builder, p)

    def function(numbers, y, n):
        for k in range(0, n, vf.LANES):
            vf.store(y + k, load(numbers + k))

    made = numba.cfunc(types.void(of.pointer, floats, types.int64), **policy.OPTIONS)(function)
    numbers = np.arange(2**16, dtype=np.uint16)
    expected, y = Narrow(weight_dtype, numbers[None]).widened()[0], np.empty(2**16, np.float32)
    run = ffi.cast("void (*)(uint16_t *, float *, int64_t)", made.address)
    run(ffi.from_buffer("uint16_t *", numbers), address(y), len(y))
    # No float16 of a layer is subnormal, Inf or NaN.
    ours = np.isfinite(expected) & (np.abs(expected) >= 2.0**-14) | (numbers % 2**15 == 0)
    if weight_dtype == "bfloat16":
        ours = ~np.isnan(expected)
    np.testing.assert_array_equal(y[ours].view(np.uint32), expected[ours].view(np.uint32))


def test_panels_of_int8_are_as_deep_as_in_c() -> None:
    for depth in [*range(1, 40), *range(1020, 1030), 2047, 2048, 2049, 5000]:
        assert weights.i8_depth(depth) == lib.fr_panel_weights(lib.FR_I8, depth)


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
    edges = np.array([32, 33, 34, 87, 88, 9, 10, 11, 1e30, 3.4e38, 1e-38, 1e-40, 1.4e-45, 0])
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


# ---- memory --------------------------------------------------------------------------------------


def test_every_field_has_the_type_of_c() -> None:
    kinds = {"float": types.float32, "double": types.float64, "int64_t": types.int64}

    def expected(declared: Any) -> types.Type:
        if declared.kind == "pointer":
            return memory.Pointer(expected(declared.item))
        if declared.kind == "struct":
            return memory.struct(declared.cname.removeprefix("struct ")).item
        return types.int64 if declared.kind == "function" else kinds[declared.cname]

    def of_field(declared: Any) -> types.Type:
        found = expected(declared)  # a struct inside a struct is read as a pointer to it
        return memory.Pointer(found) if declared.kind == "struct" else found

    for name in memory.STRUCTS:
        fields = dict(ffi.typeof(name).fields)
        assert {field: of_field(layout.type) for field, layout in fields.items()} == (
            memory.struct(name).item.types
        )


def test_structs_and_pointers() -> None:
    def function(w, s):
        m = w.modules + 1
        s.h[0][0] = w.alpha + m.period
        s.h[1][2] = (s.x[1] + s.x_step)[0] if s.x else 0.5
        s.t[0][0] += 2 if s.active else 3
        memory_copy(s.y[0], s.h[1], 3)

    memory_copy = memory.copy
    panels, span = memory.struct("fr_panels"), memory.struct("fr_span")
    made = numba.cfunc(types.void(panels, span), **policy.OPTIONS)(function)
    run = ffi.cast("void (*)(fr_panels *, fr_span *)", made.address)
    modules = ffi.new("fr_module[2]", [{"period": 3}, {"period": 7}])
    w = ffi.new("fr_panels *", {"alpha": 0.25, "modules": modules})
    h, x, y, t = (ffi.new(kind, [1, 2, 3, 4, 5]) for kind in ["float[5]"] * 3 + ["int64_t[5]"])
    h_rows, x_rows, y_rows = (ffi.new("float *[2]", [array, array]) for array in (h, x, y))
    t_rows = ffi.new("int64_t *[1]", [t])
    s = ffi.new("fr_span *", {"h": h_rows, "x": x_rows, "y": y_rows, "t": t_rows, "x_step": 4})
    run(w, s)
    assert list(h) == [7.25, 2, 5, 4, 5]
    assert list(y) == [7.25, 2, 5, 4, 5]
    assert list(t) == [4, 2, 3, 4, 5]
    s.x, s.active = ffi.NULL, t
    run(w, s)
    assert h[2] == 0.5
    assert t[0] == 6


def test_a_struct_inside_a_struct() -> None:
    def function(b):
        g = b.gradients
        g.dR[1] = g.dR_row + b.dz_row + b.s.steps

    made = numba.cfunc(types.void(memory.struct("fr_back_span")), **policy.OPTIONS)(function)
    dR = ffi.new("float[2]")
    s = ffi.new("fr_span *", {"steps": 1000})
    b = ffi.new("fr_back_span *", {"s": s, "dz_row": 200, "gradients": {"dR": dR, "dR_row": 30}})
    ffi.cast("void (*)(fr_back_span *)", made.address)(b)
    assert list(dR) == [0, 1230]


# ---- tiles ---------------------------------------------------------------------------------------


def tiles_of(isa: str, gates: int) -> Any:
    """A C function that writes the tiles of a sweep, one after the other."""
    functions = product.functions(isa, "float32")

    def function(s, count, all_blocks, t, found):
        tiling = functions.tile_rows(count, gates)
        mine = functions.share(s, all_blocks)
        for tile in functions.tiles(tiling, mine, functions.downward(s, t)):
            for k in range(6):
                found[k] = tile[k]
            found += 6

    integers = memory.Pointer(types.int64)
    arguments = memory.struct("fr_span"), types.int64, types.int64, types.int64, integers
    made = numba.cfunc(types.void(*arguments), **policy.OPTIONS)(function)
    run = ffi.cast("void (*)(fr_span *, int64_t, int64_t, int64_t, int64_t *)", made.address)

    def all_tiles(span: Any, count: int, all_blocks: int, t: int = 0) -> list[product.Tile]:
        found = np.zeros((all_blocks * count, 6), np.int64)
        run(span, count, all_blocks, t, ffi.from_buffer("int64_t *", found))
        return [product.Tile(*tile) for tile in found[found[:, 5] > 0].tolist()]

    all_tiles.owner = made
    return all_tiles


@pytest.mark.parametrize("gates", tiles.GATES)
def test_every_tile_has_a_product(isa: str, gates: int) -> None:
    """A shape without one would be undefined behaviour."""
    all_tiles = tiles_of(isa, gates)
    shapes = tiles.tile_shapes(simd.INSTRUCTION_SETS[isa], gates)
    span = ffi.new("fr_span *", {"shares": 1})
    seen = set()
    for count in range(1, 50):
        for all_blocks in range(1, 20):
            done = np.zeros((all_blocks, count), int)
            for at in all_tiles(span, count, all_blocks):
                seen.add((at.rows, at.blocks, gates))
                done[at.block : at.block + at.blocks, at.row : at.row + at.rows] += 1
            assert np.all(done == 1)
    assert seen == set(shapes)
    assert max(rows * blocks * gates for rows, blocks, gates in shapes) <= tiles.MAX_SUMS
    assert max(rows for rows, _, _ in shapes) <= tiles.MAX_ROWS


@pytest.mark.parametrize(
    ("weight_dtype", "type_"),
    [("float32", lib.FR_F32), ("float16", lib.FR_F16), ("int8", lib.FR_I8)],
)
@pytest.mark.parametrize("gates", tiles.GATES)
def test_rows_are_cut_as_in_c(isa: str, gates: int, weight_dtype: str, type_: int) -> None:
    """The bits do not depend on the tiles, the speed does: no other test would notice a difference."""
    functions = product.functions(isa, weight_dtype)

    def function(count, found):
        tiling = functions.tile_rows(count, gates) if count > 0 else functions.tile_one(gates)
        for k in range(4):
            found[k] = tiling[k]

    integers = memory.Pointer(types.int64)
    made = numba.cfunc(types.void(types.int64, integers), **policy.OPTIONS)(function)
    of_numba = ffi.cast("void (*)(int64_t, int64_t *)", made.address)
    expected, found = ffi.new("int64_t[4]"), ffi.new("int64_t[4]")
    for count in range(200):
        lib.fr_find_tiling(isas()[isa], type_, gates, count, expected)
        of_numba(count, found)
        assert list(found) == list(expected)


@pytest.mark.parametrize("shares", [1, 2, 3, 7])
def test_shares_cover_the_blocks_and_sweeps_alternate(isa: str, shares: int) -> None:
    all_tiles = tiles_of(isa, 1)
    for all_blocks in range(1, 20):
        covered = []
        for share in range(shares):
            span = ffi.new("fr_span *", {"share": share, "shares": shares})
            upward, downward = (all_tiles(span, 1, all_blocks, t) for t in (0, 1))
            first = all_blocks * share // shares
            last = all_blocks * (share + 1) // shares
            assert [at.block for at in upward] == sorted(at.block for at in upward)
            assert [at.block for at in downward] == sorted(at.block for at in downward)[::-1]
            for sweep in (upward, downward):
                assert all(first <= at.next < last for at in sweep)
                swept = {at.block + k for at in sweep for k in range(at.blocks)}
                assert swept == set(range(first, last))
            span.downward = 1
            assert all_tiles(span, 1, all_blocks, 0) == downward
            covered += [at.block + k for at in upward for k in range(at.blocks)]
        assert covered == list(range(all_blocks))


# ---- the cells -----------------------------------------------------------------------------------

LAYERS = {layer.cell: layer for layer in fr.Layer.__subclasses__()}

#: What each option may be drawn from, given H.
OPTIONS: dict[str, Callable[[int], st.SearchStrategy[Any]]] = {
    "proj_size": lambda hidden: st.just(0) | st.integers(0, hidden - 1),
    "peephole": lambda _: st.sampled_from(["", "", "i", "f", "o", "if", "io", "fo", "ifo"]),
    "coupled": lambda _: st.booleans(),
    "reset": lambda _: st.sampled_from(["after", "before"]),
    "gate_activation": lambda _: st.sampled_from(
        ["sigmoid", "sigmoid", "hard_sigmoid", "hard_sigmoid(0.16666667, 0.4)"]
    ),
    "activation": lambda _: st.sampled_from(["tanh", "tanh", "relu", "identity"]),
    "output_activation": lambda _: st.sampled_from(["tanh", "tanh", "relu", "identity"]),
    "clip": lambda _: st.none() | st.floats(0.01, 3),
    "cell_clip": lambda _: st.none() | st.floats(0.01, 3),
    "periods": lambda hidden: st.lists(st.integers(1, 9), min_size=1, max_size=4).map(sorted),
}


def test_every_option_is_drawn() -> None:
    assert set(LAYERS) == set(CELLS)
    assert set(OPTIONS) == {option for rows in CELLS.values() for option in rows[0].options}


@st.composite
def networks(draw: Any, cell: str) -> dict[str, Any]:
    """The arguments of a layer: any that the cell may have."""
    hidden = draw(st.integers(1, 70) | st.sampled_from([128, 129, 200]))
    options = {name: draw(OPTIONS[name](hidden)) for name in sorted(CELLS[cell][0].options)}
    periods = len(options.get("periods", "1"))
    if not draw(st.integers(0, 3)):  # the usual cell is compiled apart
        options = {k: v for k, v in options.items() if k in ("periods", "reset", "coupled")}
    if options.get("coupled"):
        options["peephole"] = options.get("peephole", "").replace("i", "")
    return options | {
        "input_size": draw(st.integers(1, 40)),
        "hidden_size": -(-hidden // periods) * periods,
        "num_layers": draw(st.integers(1, 3)),
        "bidirectional": draw(st.booleans()),
        "bias": draw(st.sampled_from([True, False, "double"])),
        "seed": draw(st.integers(0, 2**20)),
    }


@pytest.mark.parametrize("cell", CELLS)
@given(data=st.data())
@settings(
    max_examples=max(60, settings.default.max_examples),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_the_same_bits_as_c(cell: str, isa: str, data: Any) -> None:
    """For any network, sizes, lengths and state; and nothing is written beside y."""
    arguments = data.draw(networks(cell))
    steps, batch = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 20))
    lengths = data.draw(
        st.none() | st.lists(st.integers(0, steps), min_size=batch, max_size=batch), "lengths"
    )
    random = np.random.default_rng(arguments["seed"])
    x = random.standard_normal((steps, batch, arguments["input_size"])).astype(np.float32)
    x *= data.draw(st.sampled_from([1, 1, 100]), "scale")
    if data.draw(st.integers(0, 4), "NaN") == 0:
        x.flat[random.integers(x.size)] = data.draw(st.sampled_from([np.nan, np.inf]))

    outputs = []
    for backend in ("c", "numba"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FUSEDRNN_ISA", isa)
            layer = LAYERS[cell](**arguments, backend=backend)
        random = np.random.default_rng(arguments["seed"])
        state = [
            random.integers(0, 1000, array.shape)
            if array.dtype == np.int64
            else random.standard_normal(array.shape).astype(np.float32)
            for array in layer._signature.start_state(batch)
        ]
        width = layer.architecture.output_size
        room = np.full((steps, batch, width + 3), 7, np.float32)
        given_lengths = None if lengths is None else np.array(lengths)
        layer._engine.run(Call(x, room[..., :width], state, given_lengths))
        assert np.all(room[..., width:] == 7)
        outputs.append([room, *state])
    assert layer.isa == isa
    for of_c, of_numba in zip(*outputs, strict=True):
        np.testing.assert_array_equal(bits(of_numba), bits(of_c), strict=True)


@pytest.mark.parametrize("cell", CELLS)
def test_streams_have_the_bits_of_c(
    cell: str, isa: str, draw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that is alone may take its sums another way than a chunk of steps."""
    monkeypatch.setenv("FUSEDRNN_ISA", isa)
    options = {"periods": (1, 2)} if cell == "clockwork" else {}
    for hidden, batch in ((2, 1), (38, 7), (130, 1), (66, 17)):
        streams = [
            LAYERS[cell](5, hidden, 2, seed=1, backend=backend, **options).stream(batch)
            for backend in ("c", "numba")
        ]
        for x in draw(5, batch, 5):
            of_c, of_numba = (stream.step(x) for stream in streams)
            np.testing.assert_array_equal(bits(of_numba), bits(of_c))


def test_negative_control_other_weights_give_other_bits(isa: str, draw: Any) -> None:
    x = draw(3, 2, 5)
    outputs = [fr.LSTM(5, 7, seed=seed, backend="numba")(x)[0] for seed in (1, 2)]
    assert np.any(bits(outputs[0]) != bits(outputs[1]))


# ---- building ------------------------------------------------------------------------------------


def test_one_kernel_for_everyone(isa: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        kernels = list(pool.map(lambda _: compiled.build("lstm", isa), range(32)))
    assert {id(kernel) for kernel in kernels} == {id(compiled.build("lstm", isa))}
    assert isa in repr(kernels[0])


def test_every_type_of_weights_has_kernels() -> None:
    assert tuple(compiled.WEIGHTS) == WEIGHT_DTYPES
    assert set(compiled.WEIGHTS.values()) == set(weights.WEIGHTS)


def test_unknown_names() -> None:
    with pytest.raises(
        ValueError, match="kernel must be one of rnn, lstm, lstm_coupled.*'nothing'"
    ):
        compiled.build("nothing", "baseline")
    with pytest.raises(
        ValueError, match="isa must be one of avx512, avx2, neon, baseline.*'nothing'"
    ):
        compiled.build("lstm", "nothing")
    with pytest.raises(ValueError, match="role must be one of forward, backward.*'sideways'"):
        compiled.build("lstm", "baseline", "sideways")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weight_dtype of a forward kernel .*float16.*'int4'"):
        compiled.build("lstm", "baseline", weight_dtype="int4")
    with pytest.raises(ValueError, match="weight_dtype of a backward kernel .*float32.*'int8'"):
        compiled.build("lstm", "baseline", "backward", "int8")
    with pytest.raises(ValueError, match="activation must be one of sigmoid, .*tanh.*'nothing'"):
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


FORK = """
    import os, signal, sys, threading, time
    from fusedrnn.kernels import compiled
    built = compiled.activation("tanh", "baseline")
    thread = threading.Thread(target=compiled.build, args=("rnn", "baseline"))
    thread.start()
    time.sleep({delay})
    assert thread.is_alive(), "it is compiling"
    pid = os.fork()
    if pid == 0:
        signal.alarm(300)
        assert compiled.activation("tanh", "baseline") is built
        os._exit(0 if compiled.activation("sigmoid", "baseline").address else 1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    thread.join()
    sys.exit(code)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("delay", [0.05, 0.3])
def test_a_child_forked_while_a_thread_compiles(tmp_path: Path, delay: float) -> None:
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(FORK).format(delay=delay)],
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
        check=True,
    )


def test_numba_is_asked_for_debug_information(tmp_path: Path) -> None:
    """Of a whole cell: one activation alone compiles with it, too."""
    code = "import fusedrnn as fr; print(fr.RNN(3, 5, backend='numba').backend)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NUMBA_DEBUGINFO": "1", "NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "numba", done.stderr[-2000:]


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
    """tanh(x) becomes (e - 1) / (e + 2), in a file that the compiled function only calls into."""
    source = package / "kernels" / "activations.py"
    text = source.read_text()
    of_tanh = "Quotient(power_plus(e, -1.0), power_plus(e, 1.0))"
    assert text.count(of_tanh) == 1
    source.write_text(text.replace(of_tanh, "Quotient(power_plus(e, -1.0), power_plus(e, 2.0))"))


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


def test_processes_that_start_together_compile_once(tmp_path: Path) -> None:
    code = """
        import sys
        from fusedrnn.kernels import cache, compiled, policy
        print("ready", flush=True)
        sys.stdin.read()
        print(compiled.activation("tanh", "baseline").cached)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    together = [subprocess.Popen(command, env=environment, **pipes) for _ in range(3)]
    assert [each.stdout.readline() for each in together] == ["ready\n"] * 3
    for each in together:
        each.stdin.close()
    assert sorted(each.stdout.read() for each in together) == ["False\n", "True\n", "True\n"]
    assert [each.wait() for each in together] == [0, 0, 0]


@pytest.mark.parametrize("held", [True, False])
def test_a_kernel_is_compiled_where_its_turn_does_not_come(
    held: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process may be stopped; or files may have no locks."""
    from fusedrnn.kernels import activations, cache

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cache, "MAX_WAIT", 0.1)
    if not held:
        monkeypatch.setitem(sys.modules, "fcntl", None)
    kernel = cache.kernel_cache(activations.over_array("tanh", "baseline"), "baseline")
    with kernel.turn(), kernel.turn():
        pass
