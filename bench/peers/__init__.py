"""What fusedrnn is measured against, and fusedrnn itself, behind one small interface.

Importing this package needs NumPy only: each library is imported by the function that makes a layer of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from fusedrnn.bench.cases import TRAINING, Case
from fusedrnn.bench.peers.fused import Fused, Trained, gradients_of, layer
from fusedrnn.bench.peers.interface import (
    Array,
    Loss,
    Peer,
    Setup,
    Trainer,
    Weights,
    blas_threads,
)
from fusedrnn.bench.peers.naive import Naive
from fusedrnn.formats.layouts import find
from fusedrnn.report.engines import ENGINES, LIBRARIES

__all__ = [
    "FUSED",
    "LIBRARIES",
    "OWN",
    "TRAINERS",
    "Array",
    "Fused",
    "Loss",
    "Naive",
    "Peer",
    "Setup",
    "Trained",
    "Trainer",
    "Weights",
    "gradients_of",
    "installed",
    "layer",
    "make",
    "missing",
    "offers",
    "one_thread",
    "trainers",
    "variants",
]

#: The engines that are not other people's libraries.
OWN = tuple(name for name in ENGINES if name not in LIBRARIES)

#: Those of fusedrnn: their loop over steps can run without Python.
FUSED = tuple(name for name in OWN if name != Naive.name)

#: Those that give gradients.
TRAINERS = (*OWN, "torch")


def missing(library: str) -> str | None:
    """The module that a library needs and that is not installed; None if all are."""
    modules = ENGINES[library].modules
    return next((module for module in modules if find_spec(module) is None), None)


def installed() -> list[str]:
    """The libraries that can be measured here."""
    return [library for library in LIBRARIES if missing(library) is None]


def offers(engine: str, case: Case) -> bool:
    """Whether an engine has the cell of a case, with its options: one that has not is not asked."""
    if case.group in TRAINING and engine not in TRAINERS:
        return False
    if engine in OWN:
        return True
    return find(_module(engine).FRAMEWORK, case.architecture) is not None


def variants(engine: str, setup: Setup) -> Sequence[Peer]:
    """An engine, once for each way in which it can be called: which is fastest is for the clock to say."""
    if engine in OWN:
        return [make(engine, setup)]
    several: Sequence[Peer] = _module(engine).variants(setup)
    return several


def trainers(engine: str, setup: Setup) -> Sequence[Trainer]:
    """One of :data:`TRAINERS`, once for each way in which it can be called."""
    if engine in OWN:
        return [Trained(setup, engine)]
    several: Sequence[Trainer] = _module(engine).trainers(setup)
    return several


def make(engine: str, setup: Setup) -> Naive | Fused:
    """The peer of that name, one of :data:`OWN`."""
    return Naive(setup) if engine == Naive.name else Fused(setup, engine)


def one_thread() -> AbstractContextManager[Any]:
    """A context in which BLAS uses one thread, as fusedrnn does."""
    return blas_threads(1)


def _module(library: str) -> Any:
    return import_module(f"fusedrnn.bench.peers.{library}")
