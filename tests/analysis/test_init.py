"""Initial weights: what each method says, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fusedrnn as fr

#: The gate blocks by name, and which of them retains.
GATES = {
    "lstm": (fr.LSTM, {}, "ifgo", "f"),
    "coupled": (fr.LSTM, {"coupled": True}, "fgo", "f"),
    "projected": (fr.LSTM, {"proj_size": 7}, "ifgo", "f"),
    "gru": (fr.GRU, {}, "rzn", "z"),
    "gru-before": (fr.GRU, {"reset": "before"}, "rzn", "z"),
}
H = 16


@pytest.fixture(params=GATES)
def kind(request: pytest.FixtureRequest) -> tuple[type[fr.Layer], dict[str, Any], str, str]:
    return GATES[request.param]


def blocks(layer: fr.Layer, gates: str, end: str = "_l0") -> dict[str, np.ndarray]:
    """The biases of each gate, added up."""
    total = layer.weights[f"bias_ih{end}"].astype(np.float64)
    if f"bias_hh{end}" in layer.weights:
        total = total + layer.weights[f"bias_hh{end}"]
    return dict(zip(gates, np.split(total, len(gates)), strict=True))


@pytest.mark.parametrize("bias", [True, "double"])
def test_chrono_draws_the_time_constants(kind: Any, bias: Any) -> None:
    cell, chosen, gates, retains = kind
    plain = cell(3, H, 2, seed=3, bidirectional=True, bias=bias, **chosen)
    layer = cell(
        3, H, 2, seed=3, bidirectional=True, bias=bias, init=fr.init.chrono(20, 50), **chosen
    )
    for end in ("_l0", "_l0_reverse", "_l1", "_l1_reverse"):
        found, drawn = blocks(layer, gates, end), blocks(plain, gates, end)
        steps = 1 / (1 - 1 / (1 + np.exp(-found[retains])))
        assert 20 - 1e-3 <= steps.min() < steps.max() <= 50 + 1e-3
        assert len(np.unique(steps)) == H
        changed = {retains}
        if "i" in gates:
            np.testing.assert_allclose(found["i"], -found[retains], rtol=1e-6)
            changed |= {"i"}
        for gate in set(gates) - changed:
            np.testing.assert_array_equal(found[gate], drawn[gate])
    for name, array in plain.weights.items():
        if not name.startswith("bias"):
            np.testing.assert_array_equal(layer.weights[name], array)


def test_chrono_keeps_what_it_says() -> None:
    """With nothing else added, T steps leave 1 / e: what the bias is for, and half of the T leaves more."""
    steps = 200
    layer = fr.LSTM(1, 4, seed=0, init=fr.init.chrono(steps, steps))
    weights = {
        name: array if name.startswith("bias") else np.zeros_like(array)
        for name, array in layer.weights.items()
    }
    layer = layer.with_weights({**weights, "bias_ih_l0": weights["bias_ih_l0"].copy()})
    f = fr.analysis.trace(layer, np.zeros((steps, 1), np.float32))[0]["f"].astype(np.float64)
    np.testing.assert_allclose(f.prod(axis=0), np.exp(-1), rtol=0.01)
    assert (f[: steps // 2].prod(axis=0) > 0.6).all()


def test_the_forget_bias_is_added_up(kind: Any) -> None:
    cell, chosen, gates, retains = kind
    for bias in (True, "double"):
        layer = cell(3, H, bias=bias, init=fr.init.forget_bias(), **chosen)
        np.testing.assert_array_equal(blocks(layer, gates)[retains], np.ones(H))
    assert not (blocks(cell(3, H, **chosen), gates)[retains] == 1).any()


@pytest.mark.parametrize("gain", [1, 0.5])
def test_orthogonal_recurrent_matrices(kind: Any, gain: float) -> None:
    cell, chosen, gates, _ = kind
    layer = cell(3, H, 2, init=fr.init.orthogonal(gain), seed=1, **chosen)
    plain = cell(3, H, 2, seed=1, **chosen)
    for name in ("weight_hh_l0", "weight_hh_l1"):
        for block in np.split(layer.weights[name].astype(np.float64), len(gates)):
            product = block.T @ block
            np.testing.assert_allclose(product, gain**2 * np.eye(len(product)), atol=1e-6)
        for block in np.split(plain.weights[name], len(gates)):  # a negative control
            assert abs(block.T @ block - np.eye(block.shape[1])).max() > 0.1


def test_several_methods_and_a_seed() -> None:
    init = [fr.init.orthogonal(), fr.init.forget_bias(2)]
    one, two, other = (fr.LSTM(3, H, seed=seed, init=init) for seed in (1, 1, 2))
    for name in one.weights:
        np.testing.assert_array_equal(one.weights[name], two.weights[name])
    assert (one.weights["weight_hh_l0"] != other.weights["weight_hh_l0"]).any()
    np.testing.assert_array_equal(one.weights["bias_ih_l0"][H : 2 * H], 2)
    plain = fr.LSTM(3, H, seed=1)
    for name, array in fr.LSTM(3, H, seed=1, init=[]).weights.items():
        np.testing.assert_array_equal(array, plain.weights[name])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fr.RNN(3, 4, init=fr.init.chrono(2, 9)), "retains"),
        (lambda: fr.ClockworkRNN(3, 4, periods=(1, 2), init=fr.init.forget_bias()), "retains"),
        (lambda: fr.ClockworkRNN(3, 4, periods=(1, 2), init=fr.init.orthogonal()), "Clockwork"),
        (lambda: fr.LSTM(3, 4, bias=False, init=fr.init.chrono(2, 9)), "bias is False"),
        (
            lambda: fr.LSTM(3, 4, gate_activation="hard_sigmoid", init=fr.init.chrono(2, 9)),
            "sigmoid",
        ),
    ],
)
def test_what_a_cell_does_not_have(make: Any, message: str) -> None:
    with pytest.raises(fr.UnsupportedError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fr.init.chrono(1, 9), ValueError, "T_min"),
        (lambda: fr.init.chrono(9, 2), ValueError, "T_min"),
        (lambda: fr.init.chrono(2, np.inf), ValueError, "T_max"),
        (lambda: fr.init.chrono("2", 9), TypeError, "T_min"),
        (lambda: fr.init.forget_bias(np.nan), ValueError, "value"),
        (lambda: fr.init.orthogonal(0), ValueError, "gain"),
        (lambda: fr.init.orthogonal(True), TypeError, "gain"),
        (lambda: fr.LSTM(3, 4, init="chrono"), TypeError, "init"),
        (lambda: fr.LSTM(3, 4, init=[None]), TypeError, "init"),
        (lambda: fr.LSTM(3, 4, init=fr.LSTM), TypeError, "init"),
    ],
)
def test_what_is_no_initialiser(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
