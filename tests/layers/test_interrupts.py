"""An interrupt (Ctrl-C) may come anywhere: no stream stays busy, and no state is half of one and half of another."""

from __future__ import annotations

import signal
import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest
from conftest import Draw, Maker

import fusedrnn as fr
from fusedrnn import layer as layer_module
from fusedrnn import signature, stream
from fusedrnn._native import lib
from fusedrnn.engines import compiled
from fusedrnn.engines import numpy as numpy_engine

FILES = {module.__file__ for module in (stream, signature, compiled, numpy_engine)}


def interrupted_at(opcode: int, function: Callable[[], object]) -> bool:
    """Whether the package has so many opcodes to execute in a function: KeyboardInterrupt comes before that one."""
    left = opcode

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in FILES:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        function()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def states(streams: list[fr.Stream]) -> list[bytes]:
    return [array.tobytes() for each in streams for array in each.state]


CALLS = {
    "run": lambda one, _: one.run(np.ones((3, 2, 3), "f4")),
    "reset": lambda one, _: one.reset((np.ones((2, 2, 5), "f4"), np.ones((2, 2, 5), "f4"))),
    "state": lambda one, _: one.state,
    "step": lambda one, _: one.step(np.ones((2, 3), "f4")),
    "copied step": lambda one, _: one.step(np.ones((2, 3), "f4").view(Other)),
    "group": lambda _, group: group.step(np.ones((3, 3), "f4")),
}


class Other(np.ndarray):
    """An array that C does not take."""


@pytest.mark.parametrize("name", CALLS)
def test_an_interrupt_anywhere(make: Maker, draw: Draw, name: str) -> None:
    layer = make(3, 5, 2, seed=0)
    streams = [layer.stream(2), layer.stream()]
    group = fr.StreamGroup(streams)
    start = (draw(2, 2, 5), draw(2, 2, 5))

    def call() -> None:
        CALLS[name](streams[0], group)

    streams[0].reset(start)
    call()
    streams[0].reset(start)
    streams[1].reset()
    before = states(streams)
    call()
    after = states(streams)
    # Where NumPy is the kernel, a step has a thousand opcodes.
    stride = 1 if make.target.backend != "numpy" else 7
    for opcode in range(0, 100_000, stride):
        streams[0].reset(start)
        streams[1].reset()
        interrupted = interrupted_at(opcode, call)
        for each in (*streams, group):
            assert lib.fr_stream_take(each._handle) == lib.FR_OK, f"busy after opcode {opcode}"
            lib.fr_stream_release(each._handle)
        assert states(streams) in (before, after)
        if not interrupted:
            assert opcode > 0
            return


def test_an_interrupt_during_a_long_run_leaves_the_state(make_compiled: Maker, draw: Draw) -> None:
    one = make_compiled(4, 32, seed=0).stream()
    one.step(draw(1, 4))
    before = states([one])

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    steps = 2**17  # far longer than the timer
    try:
        while True:
            x = np.zeros((steps, 1, 4), np.float32)
            signal.setitimer(signal.ITIMER_REAL, 1e-3)
            try:
                one.run(x)
            except KeyboardInterrupt:
                break
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            one.reset()
            one.step(draw(1, 4))
            before = states([one])
            steps *= 2
    finally:
        signal.signal(signal.SIGALRM, old)
    assert states([one]) == before


def test_a_prepared_call_stays_after_an_exception(make_compiled: Maker, monkeypatch: Any) -> None:
    """What prepares calls by their shape gets a call back that an interrupt, or a lack of memory, has ended."""
    layer = make_compiled(3, 5, seed=0)
    x = np.ones((2, 1, 3), np.float32)
    y, state = layer(x)
    layer(x)
    assert layer._plain[x.shape]

    def no_memory(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(layer_module, "empty", no_memory)
        with pytest.raises(MemoryError):
            layer(x, state)
    assert layer._plain[x.shape]
    np.testing.assert_array_equal(layer(x)[0], y)


def test_preparing_a_call_takes_no_memory_of_its_size(make_compiled: Maker) -> None:
    """Whatever memory a call has taken is enough for it, also the second time, when its shape is prepared."""
    layer = make_compiled(512, 4, seed=0)
    x = np.broadcast_to(np.float32(1), (64, 512, 512))  # 64 MiB, of which there are 4 bytes
    tracemalloc.start()
    try:
        peaks = []
        for _ in range(3):
            tracemalloc.reset_peak()
            layer(x)
            peaks.append(tracemalloc.get_traced_memory()[1])
            assert len(peaks) == 1 or peaks[-1] < 1.5 * peaks[0] + 2**20
    finally:
        tracemalloc.stop()
