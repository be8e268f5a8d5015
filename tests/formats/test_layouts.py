"""Layouts of other frameworks: exact round trips, and that each fact of a layout is needed.

Whether the facts are true is for tests/layers/test_oracles.py to say, which runs the frameworks.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import fusedrnn as fr
from fusedrnn.architecture import Architecture
from fusedrnn.cells import CELLS
from fusedrnn.formats.layouts import (
    FRAMEWORKS,
    LAYOUTS,
    Layout,
    find,
    from_layout,
    reordered,
    suffix,
    to_layout,
)
from fusedrnn.weights import checked, initialise

FLOAT32 = np.dtype(np.float32)
#: What a framework's biases become: as many as it keeps.
CANONICAL_BIAS = {
    "double": "double",
    "joined": "double",
    "rows": "double",
    "single": "single",
    "appended": "single",
    "separate": "single",
}

every_layout = pytest.mark.parametrize(
    "layout",
    LAYOUTS,
    ids=lambda each: "-".join(filter(None, (each.framework, each.cell, each.form))),
)


def architecture(layout: Layout, **options: Any) -> Architecture:
    form: dict[str, Any] = {}
    if layout.cell == "gru":
        form = {"reset": layout.form}
    if layout.form == "coupled":
        form = {"coupled": True}
    given = {"bias": CANONICAL_BIAS[layout.biases], **options}
    return Architecture(layout.cell, 5, 6, **form, **given)


def weights_of(a: Architecture, layout: Layout) -> dict[str, np.ndarray]:
    """Random weights that the layout has a place for, some of them -0: what adds a zero would change these."""
    weights = {name: array.copy() for name, array in initialise(a, 0, FLOAT32).items()}
    for name, array in weights.items():
        array.flat[::7] = -0.0
        if layout.lacks_own_bias and name.startswith("bias_hn"):
            array[:] = 0
        if layout.lacks_own_bias and name.startswith("bias_hh"):
            array[-a.hidden_size :] = 0
    return weights


def assert_same_bits(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert set(one) == set(other)
    for name, array in one.items():
        assert (array.shape, array.dtype) == (other[name].shape, other[name].dtype), name
        assert array.tobytes() == other[name].tobytes(), name


def variants(layout: Layout) -> list[dict[str, Any]]:
    """The options with which a layout is tried."""
    found: list[dict[str, Any]] = [{}, {"bias": "none"}, {"bidirectional": True}]
    if layout.projection:
        found.append({"proj_size": 2})
    if layout.peephole:
        found += [{"peephole": "o"}, {"peephole": True}]
    return found


@every_layout
def test_weights_come_back(layout: Layout) -> None:
    for options in variants(layout):
        a = architecture(layout, **options)
        weights = weights_of(a, layout)
        back: dict[str, np.ndarray] = {}
        for direction in range(a.directions):
            end = suffix(0, direction)
            arrays = to_layout(layout, weights, end, a.peephole_gates)
            back |= from_layout(layout, arrays, end, a.peephole_gates)
        assert_same_bits(back, weights)
        checked(a, back, FLOAT32)


@every_layout
def test_arrays_come_back(layout: Layout) -> None:
    for options in variants(layout):
        a = architecture(layout, **options)
        arrays = to_layout(layout, weights_of(a, layout), peephole=a.peephole_gates)
        again = to_layout(layout, from_layout(layout, arrays))
        if (
            options.get("peephole") == "o"
        ):  # the others' zeros come back with a sign where it is turned
            again[layout.peephole] = again[layout.peephole] + np.float32(0)
            arrays[layout.peephole] = arrays[layout.peephole] + np.float32(0)
        assert_same_bits(again, arrays)


@every_layout
def test_another_gate_order_is_seen(layout: Layout) -> None:
    if "{gate}" in layout.input:
        pytest.skip("its arrays are named after the gates")
    weights = weights_of(architecture(layout), layout)
    arrays = to_layout(layout, weights)
    for order in itertools.permutations(layout.gates):
        wrong = replace(layout, gates="".join(order))
        if wrong == layout:
            continue
        back = from_layout(wrong, arrays)
        assert any(back[name].tobytes() != weights[name].tobytes() for name in weights)


@every_layout
def test_fewer_biases_are_the_sum(layout: Layout) -> None:
    a = architecture(layout, bias="double")
    weights = weights_of(a, layout)
    back = from_layout(layout, to_layout(layout, weights))
    of_input, of_h = weights["bias_ih_l0"], weights["bias_hh_l0"]
    if CANONICAL_BIAS[layout.biases] == "double":
        assert_same_bits(back, weights)
        return
    expected = of_input + of_h
    if a.table.own_recurrent_bias:
        expected[-6:] = of_input[-6:]
        np.testing.assert_array_equal(back["bias_hn_l0"], of_h[-6:])
    np.testing.assert_array_equal(back["bias_ih_l0"], expected)
    assert "bias_hh_l0" not in back


@every_layout
def test_a_second_bias_that_the_weights_lack_is_zero(layout: Layout) -> None:
    a = architecture(layout, bias="single")
    weights = weights_of(a, layout)
    back = from_layout(layout, to_layout(layout, weights))
    np.testing.assert_array_equal(back["bias_ih_l0"], weights["bias_ih_l0"])
    if "bias_hh_l0" in back:
        own = weights.get("bias_hn_l0", np.zeros(0, np.float32))
        np.testing.assert_array_equal(back["bias_hh_l0"][len(back["bias_hh_l0"]) - len(own) :], own)
        assert not back["bias_hh_l0"][: len(back["bias_hh_l0"]) - len(own)].any()


@every_layout
def test_what_a_framework_lacks(layout: Layout) -> None:
    a = architecture(layout)
    assert find(layout.framework, a) is layout
    for name, options in (("projection", {"proj_size": 2}), ("peephole", {"peephole": True})):
        if layout.cell != "lstm" or getattr(layout, name):
            continue
        other = replace(a, **options)
        assert find(layout.framework, other) is None
        with pytest.raises(fr.UnsupportedError, match=FRAMEWORKS[layout.framework]):
            to_layout(layout, weights_of(other, layout))


@pytest.mark.parametrize("bias", ["single", "double"])
def test_a_bias_without_a_place_is_refused(bias: str) -> None:
    a = Architecture("gru", 5, 6, bias=bias)  # type: ignore[arg-type]
    (layout,) = (each for each in LAYOUTS if each.lacks_own_bias)
    weights = weights_of(a, layout)
    to_layout(layout, weights)
    weights["bias_hn_l0" if bias == "single" else "bias_hh_l0"][-1] = 1
    with pytest.raises(fr.UnsupportedError, match="no recurrent bias of n"):
        to_layout(layout, weights)


def test_no_framework_has_a_clockwork_rnn() -> None:
    a = Architecture("clockwork", 3, 4, periods=(1, 2))
    assert [find(framework, a) for framework in FRAMEWORKS] == [None] * len(FRAMEWORKS)


@every_layout
def test_the_table_is_whole(layout: Layout) -> None:
    assert (
        sorted(layout.gates.replace("i", "")) == sorted(layout.canonical_gates)
        or not layout.negates
    )
    assert layout.framework in FRAMEWORKS
    assert layout.row in CELLS[layout.cell]
    assert len(layout.bias) == (2 if layout.biases in ("double", "separate") else 1)
    rows = [
        each
        for each in LAYOUTS
        if (each.framework, each.cell, each.form) == (layout.framework, layout.cell, layout.form)
    ]
    assert rows == [layout]


@every_layout
def test_bad_arrays(layout: Layout) -> None:
    arrays = to_layout(layout, weights_of(architecture(layout), layout))
    name = next(iter(arrays))
    with pytest.raises(ValueError, match="missing"):
        from_layout(layout, {key: array for key, array in arrays.items() if key != name})
    with pytest.raises(ValueError, match="left over: 'nosuch'"):
        from_layout(layout, {**arrays, "nosuch": arrays[name]})
    bias = [key for key in arrays if key not in (layout.input, layout.recurrent)][-1]
    with pytest.raises(ValueError, match=FRAMEWORKS[layout.framework]):
        from_layout(layout, {**arrays, bias: arrays[bias][..., :-1]})


def test_wrong_number_of_peepholes() -> None:
    (onnx,) = (
        each for each in LAYOUTS if (each.framework, each.cell, each.form) == ("onnx", "lstm", "")
    )
    a = architecture(onnx, peephole="o")
    with pytest.raises(ValueError, match="weight_peephole"):
        to_layout(onnx, weights_of(a, onnx))


def test_reordered() -> None:
    array = np.arange(6)
    np.testing.assert_array_equal(reordered(array, "abc", "cab"), [4, 5, 0, 1, 2, 3])
    np.testing.assert_array_equal(reordered(array, "abc", "b"), [2, 3])


def test_class_names_need_neither_numpy_nor_the_extension() -> None:
    code = (
        "import sys\n"
        "from fusedrnn.architecture import Architecture\n"
        "from fusedrnn.formats.layouts import find\n"
        "assert find('torch', Architecture('gru', 3, 4)).layer_class == 'GRU'\n"
        "print([name for name in ('numpy', 'fusedrnn._native') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
