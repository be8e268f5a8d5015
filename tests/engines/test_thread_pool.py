"""The thread pool: the same results whoever computes, and no surprise for the process that it lives in."""

from __future__ import annotations

import copy
import ctypes
import multiprocessing
import os
import pickle
import platform
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from typing import Any

import numpy as np
import pytest
from conftest import Draw, Maker, assert_allocates_nothing

import fusedrnn as fr
from fusedrnn._native import lib


def threads_of_this_process() -> int:
    return len(os.listdir("/proc/self/task"))


def python(code: str, **options) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that must end by itself."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


def call_often(layer: fr.Layer, x: np.ndarray) -> tuple[threading.Thread, threading.Event]:
    """A thread that computes all the time, until the event is set."""
    end = threading.Event()

    def work() -> None:
        while not end.is_set():
            layer(x)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, end


# ---- it computes -----------------------------------------------------------------------------------


def test_the_pool_is_as_large_as_asked_for_and_ends_when_told(
    make_compiled: Maker, draw: Draw
) -> None:
    make_compiled(8, 70, seed=0)  # what a backend imports may start a thread of its own
    lib.fr_pool_stop(30.0)
    before = threads_of_this_process()
    layer = make_compiled(8, 70, threads=3, seed=0)
    assert threads_of_this_process() == before, "no thread before one is needed"
    layer(draw(3, 1, 8))
    assert threads_of_this_process() == before + 2
    make_compiled(8, 70, threads=2, seed=0)(draw(3, 1, 8))
    assert threads_of_this_process() == before + 2, "one pool for all layers"
    assert lib.fr_pool_stop(30.0)
    assert threads_of_this_process() == before
    layer(draw(3, 1, 8))
    assert threads_of_this_process() == before + 2
    lib.fr_pool_stop(30.0)


def test_one_thread_unless_more_are_asked_for(make_compiled: Maker, draw: Draw) -> None:
    make_compiled(8, 70, seed=0)  # what a backend imports may start a thread of its own
    lib.fr_pool_stop(30.0)
    before = threads_of_this_process()
    make_compiled(8, 70, seed=0)(draw(3, 9, 8))
    assert threads_of_this_process() == before


def test_sleeping_threads_are_woken(make_compiled: Maker, draw: Draw) -> None:
    x = draw(5, 1, 8)
    expected, _ = make_compiled(8, 70, seed=0)(x)
    layer = make_compiled(8, 70, threads=3, seed=0)
    for pause in (0.0, 0.0, 0.01, 0.0, 0.003, 0.0001, 0.0002):
        time.sleep(pause)
        np.testing.assert_array_equal(layer(x)[0], expected)


def test_denormals_are_flushed_by_every_thread(make_compiled: Maker) -> None:
    layer = make_compiled(5, 70, bias=False, threads=3, seed=0)
    tiny = np.full((4, 1, 5), 1e-40, np.float32)
    y, state = layer(tiny, (np.full((1, 1, 70), 1e-40, np.float32),) * 2)
    assert not y.any() and not state.c.any()
    assert np.float32(1e-40) * np.float32(0.5) != 0


def test_a_call_that_finds_the_pool_at_work_computes_alone(
    make_compiled: Maker, draw: Draw
) -> None:
    layers = [make_compiled(16, 48, 2, threads=n, bidirectional=True, seed=0) for n in (1, 2, 3, 4)]
    inputs = [draw(30, 2, 16) for _ in layers]
    expected = [layers[0](x)[0] for x in inputs]
    wrong = []

    def work(layer: fr.Layer, x: np.ndarray, y: np.ndarray) -> None:
        for _ in range(20):
            if not np.array_equal(layer(x)[0], y):
                wrong.append(layer.threads)

    threads = [
        threading.Thread(target=work, args=arguments)
        for arguments in zip(layers, inputs, expected, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_one_layer_with_several_threads_in_many_threads(make_compiled: Maker, draw: Draw) -> None:
    layer = make_compiled(16, 48, threads=2, seed=0)
    x = draw(50, 2, 16)
    expected = make_compiled(16, 48, seed=0)(x)[0]
    others = [call_often(layer, x) for _ in range(3)]
    try:
        for _ in range(30):
            np.testing.assert_array_equal(layer(x)[0], expected)
    finally:
        for thread, end in others:
            end.set()
            thread.join()


def test_the_pool_can_be_stopped_while_others_compute(make_compiled: Maker, draw: Draw) -> None:
    layer = make_compiled(16, 48, threads=2, seed=0)
    x = draw(200, 1, 16)
    expected = layer(x)[0]
    others = [call_often(layer, x) for _ in range(2)]
    try:
        for _ in range(5):
            assert lib.fr_pool_stop(30.0)
            np.testing.assert_array_equal(layer(x)[0], expected)
    finally:
        for thread, end in others:
            end.set()
            thread.join()


def test_a_step_of_several_threads_allocates_nothing(make_compiled: Maker, draw: Draw) -> None:
    stream = make_compiled(5, 40, 3, threads=2, seed=0).stream(2)
    x = draw(2, 5)
    assert_allocates_nothing(lambda: stream.step(x))


# ---- fork, exit, signals, limits -------------------------------------------------------------------


def forked(work) -> int:
    """The exit code of a child that returns what `work` does; one that hangs is killed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        code = 99
        try:
            code = int(work())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("pause", [0.0, 0.01], ids=["spinning", "asleep"])
def test_a_child_has_a_pool_of_its_own(make_compiled: Maker, draw: Draw, pause: float) -> None:
    layer = make_compiled(8, 70, threads=3, seed=0)
    x = draw(20, 2, 8)
    y, _ = layer(x)
    time.sleep(pause)

    def child() -> bool:
        alone = threads_of_this_process()
        same = all(np.array_equal(layer(x)[0], y) for _ in range(3))
        used = threads_of_this_process() == alone + 2
        lib.fr_pool_stop(30.0)
        return same and used and threads_of_this_process() == alone

    assert forked(child) == 1
    np.testing.assert_array_equal(layer(x)[0], y)


def test_a_fork_while_another_thread_has_the_pool(make_compiled: Maker, draw: Draw) -> None:
    layer = make_compiled(16, 70, threads=2, seed=0)
    x = draw(300, 2, 16)
    y, _ = layer(x)
    thread, end = call_often(layer, x)
    try:
        for _ in range(5):
            assert forked(lambda: np.array_equal(layer(x)[0], y)) == 1
    finally:
        end.set()
        thread.join()


def _compute(layer: fr.Layer, x: np.ndarray) -> np.ndarray:
    return layer(x)[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_multiprocessing_forks(draw: Draw) -> None:
    layer = fr.LSTM(8, 70, threads=2, seed=0)
    x = draw(20, 2, 8)
    y, _ = layer(x)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for other in pool.starmap_async(_compute, [(layer, x)] * 4).get(timeout=60):
            np.testing.assert_array_equal(other, y)


@pytest.mark.parametrize("daemons", [0, 3])
def test_a_process_ends_with_its_pool(daemons: int) -> None:
    done = python(
        f"""
        import threading, time, numpy as np, fusedrnn as fr
        layer = fr.LSTM(16, 64, threads=2)
        x = np.zeros((100, 1, 16), "float32")
        def work():
            while True:
                layer(x)
        for _ in range({daemons}):
            threading.Thread(target=work, daemon=True).start()
        layer(x)
        time.sleep(0.1)
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_process_ends_before_a_call_of_its_daemon_does() -> None:
    """The call would take longer than a child of these tests may live: with lengths it is one call into C."""
    done = python(
        """
        import threading, time, numpy as np, fusedrnn as fr
        layer = fr.LSTM(1, 1024, threads=2, seed=0)
        x = np.zeros((400_000, 1, 1), "float32")
        threading.Thread(target=lambda: layer(x, lengths=[len(x)]), daemon=True).start()
        time.sleep(0.3)
        print("ends")
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ends\n", "")


def test_stopping_the_pool_waits_no_longer_than_told(draw: Draw) -> None:
    layer = fr.LSTM(16, 256, threads=2, seed=0)
    thread, end = call_often(layer, draw(2000, 1, 16))
    try:
        for _ in range(5000):
            time.sleep(0.001)
            if not lib.fr_pool_stop(0.0):
                break
        else:
            pytest.fail("never was a call in the pool")
    finally:
        end.set()
        thread.join()
    assert lib.fr_pool_stop(0.0)


@pytest.mark.parametrize("call", ["while True: layer(x[:100])", "layer(x)"])
def test_interrupts_reach_python(call: str) -> None:
    # A background job inherits that SIGINT is ignored.
    code = f"""
        import signal, numpy as np, fusedrnn as fr
        signal.signal(signal.SIGINT, signal.default_int_handler)
        layer = fr.LSTM(1, 512, threads=2)
        x = np.zeros((1_000_000, 1, 1), "float32")  # minutes
        print("ready", flush=True)
        try:
            {call}
        except KeyboardInterrupt:
            print("interrupted")
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "interrupted\n")


def test_where_no_thread_can_be_had_one_computes() -> None:
    done = python(
        """
        import os, resource, numpy as np, fusedrnn as fr
        x = np.ones((9, 2, 8), "float32")
        expected, _ = fr.LSTM(8, 70, seed=0)(x)
        layer = fr.LSTM(8, 70, threads=4, seed=0)
        pages = int(open("/proc/self/statm").read().split()[0])
        before = len(os.listdir("/proc/self/task"))
        # Less than the stack of a thread.
        most = pages * resource.getpagesize() + 2**21
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        y, _ = layer(x)
        assert (y == expected).all()
        assert len(os.listdir("/proc/self/task")) == before
        """
    )
    assert (done.returncode, done.stderr) == (0, "")


# ---- a layer pipeline ------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [2, 4, 6])
def test_a_layer_pipeline_has_the_same_bits(
    member: tuple[type[fr.Layer], dict[str, Any]], layers: int, draw: Draw
) -> None:
    kind, options = member
    steps, batch = 60, 2  # long enough for a pipeline, small enough to be one
    one = kind(3, 12, layers, seed=1, **options)
    x, lengths = draw(steps, batch, 3), [steps, 17]
    for threads in (2, layers):
        several = kind(3, 12, layers, seed=1, threads=threads, **options)
        for each in (None, lengths):
            expected, state = one(x, lengths=each)
            y, after = several(x, lengths=each)
            np.testing.assert_array_equal(y, expected)
            for array, wanted in zip(after, state, strict=True):
                np.testing.assert_array_equal(array, wanted)


# ---- the floating-point mode of the caller ---------------------------------------------------------

FE_UPWARD = {"x86_64": 0x800, "aarch64": 0x400000}.get(platform.machine())


@pytest.mark.skipif(FE_UPWARD is None, reason="no number for FE_UPWARD of this CPU")
@pytest.mark.parametrize(
    ("batch", "layers", "bidirectional"),
    [(1, 1, False), (16, 1, False), (1, 2, False), (2, 2, True)],
    ids=["units", "rows", "layers", "directions"],
)
def test_threads_round_as_the_caller_does(
    make_compiled: Maker, draw: Draw, batch: int, layers: int, bidirectional: bool
) -> None:
    hidden = 24 if layers > 1 else 70
    one, several = (
        make_compiled(8, hidden, layers, bidirectional=bidirectional, threads=threads, seed=0)
        for threads in (1, 2)
    )
    x = draw(60, batch, 8)
    nearest = one(x)[0]
    np.testing.assert_array_equal(several(x)[0], nearest)
    libm = ctypes.CDLL(None)
    assert libm.fesetround(FE_UPWARD) == 0
    try:
        results = one(x)[0], several(x)[0]
    finally:
        libm.fesetround(0)
    np.testing.assert_array_equal(*results)
    assert not np.array_equal(results[0], nearest), "negative control: the mode changes the bits"
    np.testing.assert_array_equal(several(x)[0], nearest, "and the pool does not keep it")


# ---- a stream that is timed ------------------------------------------------------------------------


def test_a_stream_that_is_timed_is_taken(make_compiled: Maker) -> None:
    stream = make_compiled(3, 5, seed=0).stream()
    handle = stream._handle
    assert lib.fr_time_steps(handle, 1) >= 0
    assert lib.fr_stream_take(handle) == lib.FR_OK, "and it is released"
    before = stream._state[0].copy()
    assert lib.fr_time_steps(handle, 1) < 0
    np.testing.assert_array_equal(stream._state[0], before)
    lib.fr_stream_release(handle)


# ---- what a layer says of it -----------------------------------------------------------------------


@pytest.mark.parametrize("threads", [3, "auto"])
def test_copies_keep_the_number_of_threads(threads: int | str) -> None:
    layer = fr.GRU(3, 5, threads=threads, seed=0)
    assert layer.threads == threads
    for twin in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert twin.threads == threads
        assert repr(twin) == repr(layer)
    assert f"threads={threads!r}" in repr(layer)
    assert "threads" not in repr(fr.GRU(3, 5))
    weights = fr.GRU.from_weights(layer.weights, threads=np.int64(3))
    assert weights.threads == 3 and type(weights.threads) is int


@pytest.mark.parametrize(
    ("threads", "error", "message"),
    [
        (0, ValueError, "threads must be from 1 to 64, got 0"),
        (-1, ValueError, "threads must be from 1 to 64, got -1"),
        (65, ValueError, "threads must be from 1 to 64, got 65"),
        (10**30, ValueError, "threads must be from 1 to 64"),
        (1.5, TypeError, "threads must be an int or 'auto', not float"),
        (1.0, TypeError, "threads must be an int or 'auto', not float"),
        (True, TypeError, "threads must be an int or 'auto', not bool"),
        (None, TypeError, "threads must be an int or 'auto', not NoneType"),
        (np.ones(2), TypeError, "threads must be an int or 'auto', not ndarray"),
        ("many", ValueError, "threads must be a number or 'auto', got 'many'"),
    ],
)
@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_bad_numbers_of_threads(threads, error, message, backend: str) -> None:
    with pytest.raises(error, match=message):
        fr.LSTM(3, 5, threads=threads, backend=backend)


def test_the_specification_has_one_thread() -> None:
    with pytest.raises(
        fr.UnsupportedError, match="threads must be 1 or 'auto' for backend 'numpy'"
    ):
        fr.LSTM(3, 5, threads=2, backend="numpy")
    assert fr.LSTM(3, 5, threads="auto", backend="numpy").threads == "auto"
