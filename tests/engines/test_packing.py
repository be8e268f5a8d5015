"""Panels against a packing written as their definition says, element by element."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import Maker
from hypothesis import example, given
from hypothesis import strategies as st

import fusedrnn as fr
from fusedrnn._native import ffi, lib
from fusedrnn.engines.packing import Packing, aligned

Floats = npt.NDArray[np.float32]

lanes_of = st.sampled_from([4, 8, 16])
#: Of both sides of what C packs at once: 4 lanes, 16 columns, 64 floats deep.
sizes = st.integers(1, 40) | st.integers(60, 140)


def drawn(rows: int, columns: int, gap: int) -> Floats:
    """A matrix of numbers that are all different, with a gap between its rows that holds NaN."""
    wide = np.full((rows, columns + gap), np.nan, np.float32)
    wide[:, :columns] = np.arange(1, rows * columns + 1).reshape(rows, columns)
    return wide[:, :columns]


def naive(matrix: Floats, gates: int, lanes: int) -> Floats:
    """Panels [N][K][G][L] of a matrix (G H, K)."""
    units = len(matrix) // gates
    panels = np.zeros((-(-units // lanes), matrix.shape[1], gates, lanes), np.float32)
    for gate in range(gates):
        for unit in range(units):
            panels[unit // lanes, :, gate, unit % lanes] = matrix[gate * units + unit]
    return panels


def packed(matrix: Floats, gates: int, lanes: int) -> Floats:
    """The same panels from C; every float that C does not write is NaN."""
    panels = np.full_like(naive(matrix, gates, lanes), np.nan)
    rows, stride = ffi.cast("float *", matrix.ctypes.data), matrix.strides[0] // 4
    to = ffi.from_buffer("float *", panels)
    lib.fr_pack(rows, stride, len(matrix) // gates, matrix.shape[1], gates, lanes, to)
    return panels


def packed_transposed(matrix: Floats, lanes: int) -> Floats:
    panels = np.full_like(naive(matrix.T, 1, lanes), np.nan)
    rows, stride = ffi.cast("float *", matrix.ctypes.data), matrix.strides[0] // 4
    to = ffi.from_buffer("float *", panels)
    lib.fr_pack_transposed(rows, stride, *matrix.shape, lanes, to)
    return panels


@given(sizes, sizes, st.integers(1, 4), lanes_of, st.integers(0, 5))
@example(64, 128, 4, 8, 0)
@example(1, 1, 1, 16, 0)
@example(17, 67, 3, 16, 1)
def test_panels_are_as_their_definition_says(
    units: int, depth: int, gates: int, lanes: int, gap: int
) -> None:
    matrix = drawn(gates * units, depth, gap)
    np.testing.assert_array_equal(packed(matrix, gates, lanes), naive(matrix, gates, lanes))


@given(sizes, sizes, lanes_of, st.integers(0, 5))
@example(128, 64, 8, 0)
@example(1, 1, 16, 0)
@example(3, 37, 16, 2)
def test_transposed_panels_are_panels_of_the_transpose(
    depth: int, columns: int, lanes: int, gap: int
) -> None:
    matrix = drawn(depth, columns, gap)
    np.testing.assert_array_equal(packed_transposed(matrix, lanes), naive(matrix.T, 1, lanes))


def in_words(panels: np.ndarray) -> np.ndarray:
    """Panels [N][K][G][L] as words [ceil(K / 4)][G][L][4], zeros past K, and the int32 sums of slices behind: [N][bytes]."""
    blocks, depth, gates, lanes = panels.shape
    whole = np.zeros((blocks, depth + -depth % 4, gates, lanes), panels.dtype)
    whole[:, :depth] = panels
    words = whole.reshape(blocks, -1, 4, gates, lanes).transpose(0, 1, 3, 4, 2)
    slices = range(0, depth, lib.FR_I8_SLICE)
    sums = [panels[:, k : k + lib.FR_I8_SLICE].sum(axis=1, dtype=np.int32) for k in slices]
    tail = np.stack(sums, axis=1).view(np.int8)
    return np.concatenate([words.reshape(blocks, -1), tail.reshape(blocks, -1)], axis=1)


@pytest.mark.parametrize(("element", "pack"), [("uint16", lib.fr_pack_16), ("int8", lib.fr_pack_8)])
@given(sizes, sizes, st.integers(1, 4), lanes_of, st.integers(0, 5))
@example(3, 2 * lib.FR_I8_SLICE + 1, 2, 4, 1)
def test_narrow_panels_are_as_their_definition_says(
    element: str, pack: Any, units: int, depth: int, gates: int, lanes: int, gap: int
) -> None:
    random = np.random.default_rng(units * depth)
    wide = random.integers(-127, 128, (gates * units, depth + gap)).astype(element)
    matrix, kind = wide[:, :depth], f"{element}_t *"
    layout = in_words if element == "int8" else np.asarray
    expected = layout(naive(matrix, gates, lanes))
    if element == "int8":
        assert expected.shape[1] == lib.fr_panel_weights(lib.FR_I8, depth) * gates * lanes
    panels = np.full(expected.shape, 99, element)
    rows, to = ffi.cast(kind, matrix.ctypes.data), ffi.from_buffer(kind, panels)
    pack(rows, matrix.strides[0] // matrix.itemsize, units, depth, gates, lanes, to)
    np.testing.assert_array_equal(panels, expected)
    if units > 1:
        assert (panels != layout(naive(matrix[::-1], gates, lanes))).any()


def test_narrow_matrices_of_one_memory_begin_on_cache_lines() -> None:
    struct = ffi.new("fr_panels *")
    packing = Packing(4)
    integers = np.arange(-15, 15, dtype=np.int8).reshape(6, 5)
    parts = np.arange(12, dtype=np.uint16).reshape(4, 3), np.arange(10, dtype=np.uint16)[:, None]
    packing.add(struct, "x_panels", integers, gates=2)
    packing.add(struct, "h_panels", *parts)
    packing.add(struct, "bias", drawn(3, 1, 0)[:, 0])
    memory = packing.packed().view(np.uint8)
    for field, arrays in {
        "x_panels": [in_words(naive(integers, 2, 4))],
        "h_panels": [naive(part, 1, 4) for part in parts],
        "bias": [naive(drawn(3, 1, 0), 1, 4)],
    }.items():
        start = int(ffi.cast("uintptr_t", getattr(struct, field))) - memory.ctypes.data
        assert (memory.ctypes.data + start) % 64 == 0
        whole = b"".join(
            array.astype(part).tobytes()
            for array, part in zip(
                arrays, [{"x": "i1", "h": "u2", "b": "f4"}[field[0]]] * 2, strict=False
            )
        )
        assert memory[start : start + len(whole)].tobytes() == whole


def test_another_order_is_noticed() -> None:
    matrix = drawn(2 * 12, 10, 0)
    swapped = np.concatenate([matrix[12:], matrix[:12]])
    assert (packed(matrix, 2, 8) != naive(swapped, 2, 8)).any()
    assert (packed(matrix, 2, 8) != naive(matrix[::-1], 2, 8)).any()
    assert (packed_transposed(matrix, 8) != naive(matrix[:, ::-1].T, 1, 8)).any()


def test_panels_of_one_memory_begin_on_cache_lines() -> None:
    struct = ffi.new("fr_panels *")
    packing = Packing(4)
    matrix, vector = drawn(6, 5, 1), drawn(3, 1, 0)[:, 0]
    parts = drawn(4, 3, 0), drawn(5, 2, 0)
    packing.add(struct, "x_panels", matrix, gates=2)
    packing.add(struct, "bias", vector)
    packing.add(struct, "h_panels", *parts)
    packing.add_transposed(struct, "dependent_panels", matrix)
    memory = packing.packed()
    expected = {
        "x_panels": [naive(matrix, 2, 4)],
        "bias": [naive(vector[:, None], 1, 4)],
        "h_panels": [naive(part, 1, 4) for part in parts],
        "dependent_panels": [naive(matrix.T, 1, 4)],
    }
    first = memory.ctypes.data
    for field, arrays in expected.items():
        start = int(ffi.cast("uintptr_t", getattr(struct, field)))
        assert start % 64 == 0
        assert first <= start
        whole = np.concatenate([array.ravel() for array in arrays])
        at = (start - first) // 4
        np.testing.assert_array_equal(memory[at : at + whole.size], whole)


@given(st.integers(1, 100))
def test_aligned_begins_on_a_cache_line(floats: int) -> None:
    array = aligned((floats,))
    assert array.shape == (floats,)
    assert array.ctypes.data % 64 == 0


CELLS: dict[str, tuple[type[fr.Layer[Any]], dict[str, Any]]] = {
    "lstm": (fr.LSTM, {"num_layers": 2, "bidirectional": True}),
    "projection": (fr.LSTM, {"proj_size": 5, "peephole": "io"}),
    "gru_after": (fr.GRU, {}),
    "gru_before": (fr.GRU, {"reset": "before"}),
    "clockwork": (fr.ClockworkRNN, {"periods": (1, 2, 2), "num_layers": 2}),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_layer_with_other_weights_is_as_one_built_from_them(make: Maker, name: str) -> None:
    cell, options = CELLS[name]
    first = make(7, 9, cell=cell, seed=1, **options)
    second = make(7, 9, cell=cell, seed=2, **options)
    x = np.random.default_rng(3).standard_normal((6, 2, 7)).astype(np.float32)
    of_first, of_second = first(x)[0], second(x)[0]
    assert (of_first != of_second).any()
    for _ in range(3):  # the third call is one whose arrays C checks itself
        np.testing.assert_array_equal(first(x)[0], of_first)
    given_weights = {name: array.copy() for name, array in second.weights.items()}
    other = first.with_weights(given_weights)
    for array in given_weights.values():
        array[...] = 0
    for _ in range(3):
        np.testing.assert_array_equal(other(x)[0], of_second)
        np.testing.assert_array_equal(first(x)[0], of_first)
    del first
    np.testing.assert_array_equal(other(x)[0], of_second)


@pytest.mark.parametrize("name", CELLS)
def test_gradients_of_a_layer_with_other_weights_are_its_own(name: str) -> None:
    cell, options = CELLS[name]
    options = {**options, "backend": "c"}
    first, second = (cell(7, 9, seed=seed, **options) for seed in (1, 2))
    x = np.random.default_rng(3).standard_normal((6, 2, 7)).astype(np.float32)
    dy = np.ones_like(first(x)[0])
    of_first, of_second = (layer.record(x)[2].backward(dy) for layer in (first, second))
    tapes = [layer.record(x)[2] for layer in (first, first.with_weights(second.weights))]
    del first  # a tape may outlive its layer
    gc.collect()
    for tape, expected in zip(tapes, (of_first, of_second), strict=True):
        gradients = tape.backward(dy)
        np.testing.assert_array_equal(gradients.x, expected.x)
        for key, gradient in expected.weights.items():
            np.testing.assert_array_equal(gradients.weights[key], gradient)
    assert (of_first.x != of_second.x).any()


def test_weights_cannot_be_made_writable(make: Maker) -> None:
    layer = make(3, 4)
    for each in (layer, layer.with_weights(layer.weights)):
        for array in each.weights.values():
            while array is not None:
                if isinstance(array, np.ndarray):
                    assert not array.flags.writeable
                    with pytest.raises(ValueError):
                        array.setflags(write=True)
                array = getattr(array, "base", None)
