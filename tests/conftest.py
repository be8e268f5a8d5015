"""Fixtures shared by the tests: every backend with every instruction set that this machine has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypothesis
import numpy as np
import pytest

import fusedrnn as fr
from fusedrnn.backends import isas

hypothesis.settings.register_profile(
    "default", deadline=None, max_examples=25, derandomize=True, database=None
)
hypothesis.settings.register_profile("long", deadline=None, max_examples=1000, database=None)
hypothesis.settings.load_profile("default")


@dataclass(frozen=True)
class Target:
    """A backend and an instruction set: what a test runs on."""

    backend: str
    isa: str | None

    def __str__(self) -> str:
        return f"{self.backend}-{self.isa}" if self.isa else self.backend


COMPILED = [Target(backend, isa) for backend in ("c", "numba") for isa in isas()]
ALL = [*COMPILED, Target("numpy", None)]


class Maker:
    """Makes layers for one target."""

    def __init__(self, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
        self.target = target
        if target.isa:
            monkeypatch.setenv("FUSEDRNN_ISA", target.isa)

    def __call__(self, *args: Any, **kwargs: Any) -> fr.LSTM:
        layer = fr.LSTM(*args, backend=self.target.backend, **kwargs)
        assert (layer.backend, layer.isa) == (self.target.backend, self.target.isa)
        return layer

    def from_weights(self, *args: Any, **kwargs: Any) -> fr.LSTM:
        return fr.LSTM.from_weights(*args, backend=self.target.backend, **kwargs)


@pytest.fixture(params=ALL, ids=str)
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Maker:
    return Maker(request.param, monkeypatch)


@pytest.fixture(params=COMPILED, ids=str)
def make_compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Maker:
    return Maker(request.param, monkeypatch)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(20_000)


Draw = Callable[..., np.ndarray]


@pytest.fixture
def draw(random: np.random.Generator) -> Draw:
    """Standard normal float32 arrays: asymmetric, no two alike."""
    return lambda *shape: random.standard_normal(shape).astype(np.float32)


def exact(layer: fr.LSTM) -> fr.LSTM:
    """The same layer in float64: the oracle."""
    weights = {name: array.astype(np.float64) for name, array in layer.weights.items()}
    return fr.LSTM.from_weights(
        weights, backend="numpy", dtype="float64", batch_first=layer.batch_first
    )


def scaled(layer: fr.LSTM, factor: float) -> dict[str, np.ndarray]:
    return {name: array * np.float32(factor) for name, array in layer.weights.items()}
