"""Cells of Flax, Equinox and TensorFlow 1 compute here what they compute there."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import Draw
from recorded_cells import NAMES, RECORD, arrays, run

import fusedrnn as fr
from fusedrnn.formats import flax as flax_module
from fusedrnn.formats.layouts import LAYOUTS, to_layout

TOLERANCE = 5e-6
DIFFERENCE = 1e-3
RECORDED = json.loads(RECORD.read_text())

every_cell = pytest.mark.parametrize("name", NAMES)


def taken(name: str, params: Any) -> fr.Layer:
    if name.startswith("equinox"):
        return fr.from_equinox(params, batch_first=True)
    return fr.from_flax(params)


def assert_the_same(name: str, case: dict[str, Any]) -> None:
    y, _ = taken(name, case["params"])(case["x"])
    np.testing.assert_allclose(y, case["y"], rtol=TOLERANCE, atol=TOLERANCE)


@every_cell
def test_recorded_cells(name: str) -> None:
    """What the frameworks computed when the record was made."""
    assert_the_same(name, arrays(RECORDED[name]))


@every_cell
@pytest.mark.parametrize("seed", [100])
def test_cells(name: str, seed: int) -> None:
    """What the frameworks compute now. They are not among the oracles that CI must have: the record stands in for them."""
    pytest.importorskip("equinox" if name.startswith("equinox") else "flax")
    assert_the_same(name, run(name, seed))


@pytest.mark.parametrize(
    "name", [name for name in NAMES if "Simple" not in name and name != "linen.Bidirectional"]
)
def test_a_wrong_gate_order_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where gates are blocks of one array; elsewhere they have names, and the names are exchanged."""
    case = arrays(RECORDED[name])
    frameworks = ("flax", "nnx", "equinox")
    swapped = tuple(
        replace(row, gates=row.gates[1] + row.gates[0] + row.gates[2:])
        if row.framework in frameworks and len(row.gates) > 1
        else row
        for row in LAYOUTS
    )
    params = case["params"]
    if name in ("linen.LSTMCell", "linen.OptimizedLSTMCell", "linen.GRUCell", "nnx.LSTMCell"):
        cell = params.get("params", params)["cell"]
        one, two = ("hr", "hz") if name == "linen.GRUCell" else ("hi", "hf")
        cell[one], cell[two] = cell[two], cell[one]
    else:
        monkeypatch.setattr(flax_module, "LAYOUTS", swapped)
    y, _ = taken(name, params)(case["x"])
    assert np.abs(y - case["y"]).max() > DIFFERENCE


@pytest.mark.parametrize("name", [name for name in NAMES if "Bi" not in name])
def test_arrays_come_back(name: str) -> None:
    case = arrays(RECORDED[name])["params"]
    layer = taken(name, case)
    flat: dict[str, np.ndarray] = {}

    def walk(tree: Any, path: tuple[str, ...]) -> None:
        for key, value in tree.items():
            if isinstance(value, dict):
                walk(value, (*path, key.rstrip("_")))
            else:
                flat["/".join((*path, key))] = value

    walk(case, ())
    flat = {key.removeprefix("params/").removeprefix("cell/"): each for key, each in flat.items()}
    framework = "equinox" if name.startswith("equinox") else "nnx" if "dense" in str(flat) else ""
    (layout,) = (
        each
        for each in LAYOUTS
        if each.framework == (framework or "flax")
        and (each.cell, each.form) == (layer.architecture.cell, layer.architecture.table.form)
    )
    back = to_layout(layout, layer.weights)
    assert set(back) == set(flat)
    for key, array in flat.items():
        np.testing.assert_array_equal(back[key], array)


def test_a_tree_of_several_layers() -> None:
    gru = arrays(RECORDED["linen.GRUCell"])["params"]["params"]
    lstm = arrays(RECORDED["linen.LSTMCell"])["params"]["params"]
    both = arrays(RECORDED["linen.Bidirectional"])["params"]["params"]
    dense = {"kernel": np.ones((3, 3), np.float32)}
    tree = {"params": {"encoder": gru, "decoder": {"rnn": lstm}, "two": both, "head": dense}}
    with pytest.raises(ValueError, match=r"'encoder', 'decoder/rnn', 'two'.*give the name"):
        fr.from_flax(tree)
    with pytest.raises(ValueError, match="none called 'nosuch'"):
        fr.from_flax(tree, "nosuch")
    assert isinstance(fr.from_flax(tree, "decoder/rnn"), fr.LSTM)
    assert fr.from_flax(tree, "two").architecture.bidirectional
    assert fr.from_flax(tree, "encoder", backend="numpy", batch_first=False).backend == "numpy"


def test_bad_parameters() -> None:
    tree = arrays(RECORDED["linen.LSTMCell"])["params"]
    cell = tree["params"]["cell"]
    with pytest.raises(ValueError, match="0 recurrent layers, none"):
        fr.from_flax({"params": {"dense": {"kernel": np.ones((3, 3), np.float32)}}})
    cell["norm"] = {"scale": np.ones(3, np.float32)}
    with pytest.raises(ValueError, match="left over: 'norm/scale'"):
        fr.from_flax(tree)
    del cell["norm"], cell["hi"]["bias"]
    with pytest.raises(ValueError, match="bias.*some are missing"):
        fr.from_flax(tree)
    del cell["if"]
    with pytest.raises(ValueError, match="no cell that is known"):
        fr.from_flax(tree)
    minimal = {f"{a}{g}": {"kernel": np.ones((3, 3), np.float32)} for a in "ih" for g in "fn"}
    with pytest.raises(ValueError, match="no cell that is known"):
        fr.from_flax({"cell": minimal})
    with pytest.raises(ValueError, match="weight_hh"):
        fr.from_equinox({"weight_ih": np.ones((3, 3), np.float32)})
    with pytest.raises(ValueError, match="4 or 3 blocks"):
        fr.from_equinox(dict.fromkeys(("weight_ih", "weight_hh"), np.ones((5, 5), np.float32)))
    with pytest.raises(ValueError, match="floats"):
        fr.from_equinox(dict.fromkeys(("weight_ih", "weight_hh"), np.ones((12, 3), np.int32)))


def test_equinox_without_biases(draw: Draw) -> None:
    layer = fr.from_equinox({"weight_ih": draw(12, 3), "weight_hh": draw(12, 4)})
    assert layer.architecture.bias == "none"


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("forget_bias", [1.0, 0.0, 2.5])
def test_the_forget_bias_of_tensorflow_1(draw: Draw, forget_bias: float) -> None:
    """Against BasicLSTMCell's lines: i, j, f, o = split(concat([x, h]) @ kernel + bias); f + forget_bias."""
    X, H, T, B = 3, 4, 6, 2
    kernel, bias, x = draw(X + H, 4 * H), draw(4 * H), draw(T, B, X)
    h = c = np.zeros((B, H))
    expected = []
    for step in x:
        i, j, f, o = np.split(np.concatenate([step, h], 1) @ kernel + bias, 4, axis=1)
        c = c * sigmoid(f + forget_bias) + sigmoid(i) * np.tanh(j)
        h = np.tanh(c) * sigmoid(o)
        expected.append(h)
    y, _ = fr.from_tf1(kernel, bias, forget_bias=forget_bias)(x)
    np.testing.assert_allclose(y, np.array(expected), rtol=TOLERANCE, atol=TOLERANCE)
    other, _ = fr.from_tf1(kernel, bias, forget_bias=forget_bias + 1)(x)
    assert np.abs(other - expected).max() > DIFFERENCE


def test_bad_arrays_of_tensorflow_1(draw: Draw) -> None:
    with pytest.raises(ValueError, match=r"kernel.*\(4, 16\)"):
        fr.from_tf1(draw(4, 16))
    with pytest.raises(ValueError, match="bias"):
        fr.from_tf1(draw(7, 16), draw(12))
    y, _ = fr.from_tf1(draw(7, 16))(draw(2, 1, 3))
    assert y.shape == (2, 1, 4)
