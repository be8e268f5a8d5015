"""How long the C kernels of this package take for a network, on this machine: processor time, the fastest round."""

from __future__ import annotations

from collections.abc import Callable
from time import thread_time

import numpy as np

from fusedrnn._native import lib
from fusedrnn.counting.counts import Complexity
from fusedrnn.engines.native import active_isa
from fusedrnn.errors import UnsupportedError
from fusedrnn.layers import LAYERS

__all__ = ["kernel_seconds"]

#: Seconds of a round: below, the clock's own step would be seen.
MIN_ROUND = 1e-3


def kernel_seconds(complexity: Complexity, isa: str, seconds: float) -> float:
    """Measure the steps and batch of a count.

    Parameters
    ----------
    complexity
        What is run; with a backward pass, as a layer records and its tape gives gradients.
    isa
        The instruction set that is to be measured.
    seconds
        How long to measure.

    Raises
    ------
    UnsupportedError
        If the kernels use another instruction set, or have no such activation.
    """
    architecture, steps, batch = complexity.architecture, complexity.steps, complexity.batch
    if active_isa() != isa:
        raise UnsupportedError(
            f"the kernels use {active_isa()}, and these are the limits of {isa}; set FUSEDRNN_ISA"
        )
    layer = LAYERS[architecture.cell](
        architecture.input_size,
        architecture.hidden_size,
        backend="c",
        seed=0,
        **architecture.chosen(),
    )
    random = np.random.default_rng(0)
    x = random.standard_normal((steps, batch, architecture.input_size)).astype(np.float32)
    if complexity.backward:
        dy = np.ones((steps, batch, architecture.output_size), np.float32)

        def run(repeats: int) -> None:
            for _ in range(repeats):
                _, _, tape = layer.record(x)
                tape.backward(dy, want_x=complexity.want_x)

        return _fastest(run, seconds)
    # The modules of a Clockwork RNN rest in most steps of a stream: the step that is meant here is that of t = 0.
    if (
        steps == 1
        and not (architecture.bidirectional or architecture.reverse)
        and not architecture.periods
    ):
        stream = layer.stream(batch)
        stream.input[...] = x[0]

        def run(repeats: int) -> None:
            lib.fr_time_steps(stream._handle, repeats)
    else:
        out = np.empty((steps, batch, architecture.output_size), np.float32)

        def run(repeats: int) -> None:
            for _ in range(repeats):
                layer(x, out=out)

    return _fastest(run, seconds)


def _fastest(run: Callable[[int], None], seconds: float) -> float:
    """The least time of one of many repeats, in processor time of this thread."""
    best, repeats, spent = float("inf"), 1, 0.0
    while True:
        start = thread_time()
        run(repeats)
        time = thread_time() - start
        spent += time
        if time < MIN_ROUND and repeats < 2**30:
            repeats *= 2
            continue
        best = min(best, time / repeats)
        if spent >= seconds:
            return best
