"""Cells of Flax and Equinox with random weights, and what they compute: ``python tests/formats/recorded_cells.py`` records them.

The record, recorded_cells.json, proves the layouts where these frameworks are not installed; where they are, the tests run
them anew with other numbers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

RECORD = Path(__file__).with_suffix(".json")
INPUTS, UNITS, STEPS, BATCH = 3, 4, 5, 2

LINEN = ("SimpleCell", "LSTMCell", "OptimizedLSTMCell", "GRUCell")
NNX = ("SimpleCell", "LSTMCell", "OptimizedLSTMCell", "GRUCell")
EQUINOX = ("LSTMCell", "GRUCell")
NAMES = (
    *(f"linen.{name}" for name in LINEN),
    "linen.Bidirectional",
    *(f"nnx.{name}" for name in NNX),
    "nnx.Bidirectional",
    *(f"equinox.{name}" for name in EQUINOX),
)


def random_like(tree: Any, draw: np.random.Generator) -> Any:
    """The same tree of random numbers, biases too."""
    if hasattr(tree, "items"):
        return {str(key): random_like(value, draw) for key, value in sorted(tree.items())}
    return 0.6 * draw.standard_normal(np.shape(tree)).astype(np.float32)


def run(name: str, seed: int) -> dict[str, Any]:
    """A cell with random weights over random sequences: its parameters, x (B, T, X) and y (B, T, H)."""
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((BATCH, STEPS, INPUTS)).astype(np.float32)
    framework, _, kind = name.partition(".")
    params, y = {"linen": linen, "nnx": nnx, "equinox": equinox}[framework](kind, x, draw)
    return {"params": params, "x": x, "y": np.asarray(y)}


def linen(kind: str, x: np.ndarray, draw: np.random.Generator) -> tuple[Any, Any]:
    import flax.linen as nn
    import jax

    if kind == "Bidirectional":
        layer: Any = nn.Bidirectional(nn.RNN(nn.GRUCell(UNITS)), nn.RNN(nn.GRUCell(UNITS)))
    else:
        layer = nn.RNN(getattr(nn, kind)(UNITS))
    params = random_like(layer.init(jax.random.PRNGKey(0), x), draw)
    return params, layer.apply(params, x)


def nnx(kind: str, x: np.ndarray, draw: np.random.Generator) -> tuple[Any, Any]:
    import jax
    from flax import nnx as nn

    rngs = nn.Rngs(0)
    if kind == "Bidirectional":
        layer: Any = nn.Bidirectional(
            nn.RNN(nn.OptimizedLSTMCell(INPUTS, UNITS, rngs=rngs)),
            nn.RNN(nn.OptimizedLSTMCell(INPUTS, UNITS, rngs=rngs)),
        )
    else:
        layer = nn.RNN(getattr(nn, kind)(INPUTS, UNITS, rngs=rngs))
    state = nn.state(layer, nn.Param)
    params = random_like(nn.to_pure_dict(state), draw)
    nn.replace_by_pure_dict(state, jax.tree_util.tree_map(jax.numpy.asarray, params))
    nn.update(layer, state)
    return params, layer(x)


def equinox(kind: str, x: np.ndarray, draw: np.random.Generator) -> tuple[Any, Any]:
    import equinox as eqx
    import jax

    names = ("weight_ih", "weight_hh", "bias", "bias_n")[: 4 if kind == "GRUCell" else 3]
    cell = getattr(eqx.nn, kind)(INPUTS, UNITS, key=jax.random.PRNGKey(0))
    params = random_like({name: getattr(cell, name) for name in names}, draw)
    for name in names:
        cell = eqx.tree_at(lambda c, n=name: getattr(c, n), cell, jax.numpy.asarray(params[name]))
    rows = []
    for row in x:
        zero = jax.numpy.zeros(UNITS)
        state: Any = (zero, zero) if kind == "LSTMCell" else zero
        outputs = []
        for step in row:
            state = cell(jax.numpy.asarray(step), state)
            outputs.append(state[0] if kind == "LSTMCell" else state)
        rows.append(outputs)
    return params, np.asarray(rows)


def numbers(tree: Any) -> Any:
    """Arrays as lists: nine digits are a float32, exactly."""
    if isinstance(tree, dict):
        return {key: numbers(value) for key, value in tree.items()}
    if isinstance(tree, np.ndarray):
        return [numbers(each) for each in tree]
    return float(f"{tree:.9g}")


def arrays(tree: Any) -> Any:
    """Lists as arrays again."""
    if isinstance(tree, dict):
        return {key: arrays(value) for key, value in tree.items()}
    return np.array(tree, np.float32)


def main() -> None:
    record = {name: numbers(run(name, seed)) for seed, name in enumerate(NAMES)}
    lines = (f"{json.dumps(name)}: {json.dumps(each)}" for name, each in record.items())
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
