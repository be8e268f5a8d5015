"""Fixtures shared by the tests: every backend with every instruction set that this machine has."""

from __future__ import annotations

import importlib
import os
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypothesis
import numpy as np
import pytest

import fusedrnn as fr
from fusedrnn.cells import CELLS
from fusedrnn.engines import compiled
from fusedrnn.engines.native import isas

hypothesis.settings.register_profile(
    "default", deadline=None, max_examples=25, derandomize=True, database=None
)
hypothesis.settings.register_profile("long", deadline=None, max_examples=1000, database=None)
# For an emulated CPU, where an example takes a second.
hypothesis.settings.register_profile(
    "short", deadline=None, max_examples=3, derandomize=True, database=None
)
hypothesis.settings.load_profile("default")

# This process may be a worker of pytest-xdist. What tests start is none: pytest-benchmark measures nothing in workers.
os.environ.pop("PYTEST_XDIST_WORKER", None)


@dataclass(frozen=True)
class Target:
    """A backend and an instruction set: what a test runs on."""

    backend: str
    isa: str | None

    def __str__(self) -> str:
        return f"{self.backend}-{self.isa}" if self.isa else self.backend


COMPILED = [Target(backend, isa) for backend in ("c", "numba") for isa in isas()]
ALL = [*COMPILED, Target("numpy", None)]
#: Those whose layers record. Numba's backward kernels take seconds to compile: here one instruction set has them.
RECORDING = [
    *(Target("c", isa) for isa in isas()),
    Target("numba", next(iter(isas()))),
    Target("numpy", None),
]


class Maker:
    """Makes layers for one target."""

    def __init__(self, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
        self.target = target
        if target.isa:
            monkeypatch.setenv("FUSEDRNN_ISA", target.isa)

    def __call__(self, *args: Any, cell: type[fr.Layer] = fr.LSTM, **kwargs: Any) -> fr.Layer:
        layer = cell(*args, backend=self.target.backend, **kwargs)
        assert (layer.backend, layer.isa) == (self.target.backend, self.target.isa)
        return layer

    def from_weights(self, *args: Any, cell: type[fr.Layer] = fr.LSTM, **kwargs: Any) -> fr.Layer:
        return cell.from_weights(*args, backend=self.target.backend, **kwargs)


@pytest.fixture(params=ALL, ids=str)
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Maker:
    return Maker(request.param, monkeypatch)


@pytest.fixture(params=COMPILED, ids=str)
def make_compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Maker:
    return Maker(request.param, monkeypatch)


@pytest.fixture(params=RECORDING, ids=str)
def make_recording(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Maker:
    return Maker(request.param, monkeypatch)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(20_000)


Draw = Callable[..., np.ndarray]


@pytest.fixture
def draw(random: np.random.Generator) -> Draw:
    """Standard normal float32 arrays: asymmetric, no two alike."""
    return lambda *shape: random.standard_normal(shape).astype(np.float32)


def assert_allocates_nothing(*steps: Callable[[], object]) -> None:
    """That these calls, made in turn many times, neither keep memory nor need much for a moment."""
    for step in steps:
        step()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(100):
            for step in steps:
                step()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # id(x) makes an int that lives for a moment; no array and no buffer is ever made.
    assert after - before < 200
    assert peak - before < 500


def bits(array: np.ndarray) -> np.ndarray:
    """To be compared as integers; one NaN is as good as another."""
    if array.dtype != np.float32:
        return array
    return np.where(np.isnan(array), np.float32(np.nan), array).view(np.uint32)


def oracle(name: str) -> Any:
    """A module that a test compares with: skipped, or with FUSEDRNN_REQUIRE_ORACLES=1 an error, where it is not installed."""
    if os.environ.get("FUSEDRNN_REQUIRE_ORACLES") != "1":
        return pytest.importorskip(name)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.fail(f"FUSEDRNN_REQUIRE_ORACLES=1, but {name} cannot be imported: {error}")


def options(layer: fr.Layer) -> dict[str, Any]:
    """The options of a layer's cell, as its class takes them."""
    names = CELLS[layer.architecture.cell][0].options - {"proj_size"}
    return {name: getattr(layer.architecture, name) for name in names}


def exact(layer: fr.Layer) -> fr.Layer:
    """The same layer in float64: the oracle."""
    weights = {name: array.astype(np.float64) for name, array in layer.weights.items()}
    return type(layer).from_weights(
        weights,
        backend="numpy",
        dtype="float64",
        batch_first=layer.batch_first,
        **options(layer),
    )


def scaled(layer: fr.LSTM, factor: float) -> dict[str, np.ndarray]:
    return {name: array * np.float32(factor) for name, array in layer.weights.items()}


# Every cell and option: what the family is. Tests of any cell are drawn from this list.
FAMILY: dict[str, tuple[type[fr.Layer], dict[str, Any]]] = {
    "rnn": (fr.RNN, {}),
    "rnn-relu": (fr.RNN, {"activation": "relu"}),
    "rnn-clip": (fr.RNN, {"activation": "identity", "clip": 0.7}),
    "lstm": (fr.LSTM, {}),
    "lstm-peephole": (fr.LSTM, {"peephole": True}),
    "lstm-peephole-i": (fr.LSTM, {"peephole": "i"}),
    "lstm-peephole-f": (fr.LSTM, {"peephole": "f"}),
    "lstm-peephole-o": (fr.LSTM, {"peephole": "o"}),
    "lstm-peephole-fo": (fr.LSTM, {"peephole": "fo"}),
    "lstm-coupled": (fr.LSTM, {"coupled": True}),
    "lstm-coupled-peephole": (fr.LSTM, {"coupled": True, "peephole": True}),
    "lstm-projection": (fr.LSTM, {"proj_size": 2}),
    "lstm-projection-peephole-coupled": (
        fr.LSTM,
        {"proj_size": 3, "peephole": "o", "coupled": True},
    ),
    "lstm-clip": (fr.LSTM, {"clip": 0.6}),
    "lstm-cell-clip": (fr.LSTM, {"cell_clip": 0.2, "peephole": "ifo"}),
    "lstm-hard": (fr.LSTM, {"gate_activation": "hard_sigmoid", "activation": "relu"}),
    "lstm-hard-sixth": (
        fr.LSTM,
        {
            "gate_activation": "hard_sigmoid(0.16666666666666666, 0.5)",
            "output_activation": "identity",
        },
    ),
    "lstm-identity": (fr.LSTM, {"activation": "identity", "output_activation": "relu"}),
    "gru": (fr.GRU, {}),
    "gru-identity": (fr.GRU, {"activation": "identity"}),
    "gru-before": (fr.GRU, {"reset": "before"}),
    "gru-clip": (fr.GRU, {"clip": 0.5, "activation": "relu"}),
    "gru-before-hard": (
        fr.GRU,
        {"reset": "before", "gate_activation": "hard_sigmoid(0.25, 0.4)", "clip": 0.9},
    ),
    "clockwork": (fr.ClockworkRNN, {"periods": (1, 2, 4)}),
    "clockwork-equal": (fr.ClockworkRNN, {"periods": (1, 1, 3), "activation": "relu"}),
    "clockwork-identity": (fr.ClockworkRNN, {"periods": (1, 5, 5), "activation": "identity"}),
    "clockwork-one": (fr.ClockworkRNN, {"periods": (2,), "clip": 0.5}),
}


@pytest.fixture(params=FAMILY)
def member(request: pytest.FixtureRequest) -> tuple[type[fr.Layer], dict[str, Any]]:
    return FAMILY[request.param]


@pytest.fixture(autouse=True)
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are divided as on a large machine: no call uses more threads than there are cores."""
    monkeypatch.setattr(compiled, "usable_cores", lambda: 64)
