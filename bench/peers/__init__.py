"""What fusedrnn is measured against, and fusedrnn itself, behind one small interface.

Importing this package needs NumPy only: each library is imported by the function that makes a layer of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from fusedrnn.architecture import Architecture
from fusedrnn.bench.cases import Case
from fusedrnn.bench.peers.fused import Fused, layer
from fusedrnn.bench.peers.interface import Array, Peer, Weights, blas_threads
from fusedrnn.bench.peers.naive import Naive

__all__ = [
    "ENGINES",
    "FUSED",
    "LIBRARIES",
    "Array",
    "Fused",
    "Naive",
    "NaiveLSTM",
    "Peer",
    "Weights",
    "installed",
    "layer",
    "make",
    "missing",
    "offers",
    "one_thread",
    "ways",
]

#: What each engine of the benchmark is, for people. The first is what the others are compared with.
ENGINES = {
    "naive": "NumPy, written the way people write it",
    "numba": "fusedrnn, Numba kernels",
    "c": "fusedrnn, C kernels",
}

#: Those of fusedrnn: their loop over steps can run without Python.
FUSED = ("numba", "c")

#: Other people's libraries: the modules that each needs, and the extra that brings them.
LIBRARIES: dict[str, tuple[tuple[str, ...], str]] = {
    "torch": (("torch",), "torch"),
    "onnxruntime": (("onnxruntime", "onnx"), "peers"),
    "openvino": (("openvino",), "peers"),
}

#: As ``fusedrnn demo`` knows it: without an architecture it is an LSTM.
NaiveLSTM = Naive


def missing(library: str) -> str | None:
    """The module that one of :data:`LIBRARIES` needs and that is not installed; None if all are."""
    modules, _ = LIBRARIES[library]
    return next((module for module in modules if find_spec(module) is None), None)


def installed() -> list[str]:
    """Those of :data:`LIBRARIES` that can be measured here."""
    return [library for library in LIBRARIES if missing(library) is None]


def offers(engine: str, case: Case) -> bool:
    """Whether an engine has the cell of a case, with its options: one that has not is not asked."""
    if engine in ENGINES:
        return True
    offered: bool = _module(engine).offers(case.architecture)
    return offered


def ways(engine: str, case: Case, weights: Weights, threads: int = 1) -> Sequence[Peer]:
    """An engine on a case, once for each way in which it can be called: which is fastest is for the clock to say."""
    if engine in ENGINES:
        return [make(engine, weights, case.batch, case.architecture, case.lengths, threads)]
    several: Sequence[Peer] = _module(engine).ways(case, weights, threads)
    return several


def make(
    engine: str,
    weights: Weights,
    batch_size: int = 1,
    architecture: Architecture | None = None,
    lengths: Sequence[int] | None = None,
    threads: int = 1,
) -> Naive | Fused:
    """The peer of that name, one of :data:`ENGINES`; the rest as in :class:`Naive`."""
    if engine == Naive.name:
        return Naive(weights, batch_size, architecture, lengths, threads)
    return Fused(weights, engine, batch_size, architecture, lengths, threads)


def one_thread() -> AbstractContextManager[Any]:
    """A context in which BLAS uses one thread, as fusedrnn does."""
    return blas_threads(1)


def _module(library: str) -> Any:
    return import_module(f"fusedrnn.bench.peers.{library}")
