"""Pickles that nobody should trust: ``python forged_pickles.py SEED COUNT`` loads so many, and runs what loads.

Run as a process of its own, because what must not happen is that the process dies. Errors must be ordinary ones.
"""

from __future__ import annotations

import pickle
import random
import resource
import sys
import warnings
from typing import Any

import numpy as np

import fusedrnn as fr

LAYERS = (
    fr.LSTM(3, 6, 2, peephole="o", proj_size=2, seed=0, backend="c"),
    fr.GRU(3, 6, bidirectional=True, seed=0, backend="numpy"),
    fr.ClockworkRNN(3, 6, periods=(1, 2, 4), clip=0.5, seed=0, backend="c"),
    fr.RNN(3, 6, bias="double", batch_first=True, threads=2, seed=0, backend="c"),
)
OBJECTS: tuple[Any, ...] = (
    *LAYERS,
    *(layer.architecture for layer in LAYERS),
    fr.ArchitectureError("clip", "must be above 0"),
    fr.MissingExtraError("numba", "numba", "backend='numba'"),
    fr.StreamBusyError("busy"),
    fr.UnsupportedError("no"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, np.True_, -1, 0, 1, 2, 5, 7, 2**31, 2**63, 2**100, 0.5, -0.0, 1e-50, 1e-310),
    *(
        float("nan"),
        float("inf"),
        1e300,
        "",
        "lstm",
        "gru",
        "clockwork",
        "rnn",
        "c",
        "numpy",
        "numba",
        "auto",
    ),
    *(
        "before",
        "after",
        "double",
        "none",
        "relu",
        "tanh",
        "ifo",
        "float64",
        "float32",
        "\ud800",
        b"",
        (),
        [],
    ),
    *(
        {},
        (0, 1),
        (1, 2),
        (1, 1, 1),
        (2, 4, 2**40),
        (1, 0, -1),
        [1, 2],
        (None,),
        np.zeros(3),
        np.zeros(0, "f4"),
    ),
    *(
        np.ones((24, 3), "f4"),
        np.full((24, 6), np.nan, "f4"),
        np.zeros((18, 6), "f8"),
        np.array(None),
    ),
    *(layer.architecture for layer in LAYERS),
    *(dict(layer.weights) for layer in LAYERS),
)


def bare(cls: type[Any], *arguments: Any) -> Any:
    """An object before its state."""
    return cls.__new__(cls, *arguments)


class Forged:
    """Pickled as an object of a class, with any state."""

    def __init__(self, cls: type[Any], arguments: tuple[Any, ...], state: Any) -> None:
        self.reduced = (bare, (cls, *arguments), state)

    def __reduce__(self) -> Any:
        return self.reduced


def forged(draw: random.Random, thing: Any) -> bytes:
    """A pickle of an object of which something has been replaced or removed, or a byte changed."""
    if draw.random() < 0.4:
        data = bytearray(pickle.dumps(thing, draw.randrange(2, pickle.HIGHEST_PROTOCOL + 1)))
        for _ in range(draw.choice((1, 1, 1, 3))):
            data[draw.randrange(len(data))] = draw.randrange(256)
        return bytes(data)
    if isinstance(thing, Exception):
        arguments = tuple(draw.choice(VALUES) for _ in range(draw.randrange(4)))
        return pickle.dumps(Forged(type(thing), arguments, draw.choice((None, {"args": 3}))))
    state = thing.__getstate__()
    for _ in range(draw.choice((1, 1, 2))):
        change(draw, state)
    cls = draw.choice((fr.LSTM, fr.GRU)) if draw.random() < 0.1 else type(thing)
    return pickle.dumps(Forged(cls, (), draw.choice(VALUES) if draw.random() < 0.02 else state))


def change(draw: random.Random, state: dict[str, Any]) -> None:
    """Replace, remove or add something."""
    if not state:
        return
    name = draw.choice(list(state))
    value = state[name]
    if isinstance(value, fr.Architecture) and draw.random() < 0.8:
        fields = value.__getstate__()
        change(draw, fields)
        state[name] = Forged(fr.Architecture, (), fields)
    elif isinstance(value, dict) and draw.random() < 0.8:
        change(draw, value)
    elif draw.random() < 0.1:
        del state[name]
    else:
        new = "table" if draw.random() < 0.1 else name
        state[new] = draw.choice(VALUES)


def use(thing: Any) -> None:
    """Run a layer that was loaded; say what else it is."""
    repr(thing), str(thing)
    if not isinstance(thing, fr.Layer):
        return
    a = thing.architecture
    for steps in (1, 1, 1, 9):
        x = np.ones(
            (2, steps, a.input_size) if thing.batch_first else (steps, 2, a.input_size), thing.dtype
        )
        thing(x)
    if not a.bidirectional:
        thing.stream(2).step(np.ones((2, a.input_size), thing.dtype))


def main(seed: int, count: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
    warnings.simplefilter("ignore")
    draw = random.Random(seed)
    loaded = refused = 0
    for number in range(count):
        data = forged(draw, draw.choice(OBJECTS))
        print(f"seed {seed}, pickle {number}", file=sys.stderr)
        try:
            use(pickle.loads(data))
            loaded += 1
        except Exception:  # noqa: BLE001
            refused += 1
    print(loaded, refused)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
