"""How a call is divided among threads, what that takes by the model, and what ``threads="auto"`` chooses."""

from __future__ import annotations

import os
from math import ceil
from typing import Any

import numpy as np
import pytest
from conftest import FAMILY, Draw
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fusedrnn as fr
from fusedrnn._native import ffi, lib
from fusedrnn.engines import compiled, threads
from fusedrnn.engines.native import isas
from fusedrnn.engines.threads import choose_threads

ALONE, DIRECTIONS, ROWS, UNITS, LAYERS = (
    lib.FR_ALONE, lib.FR_DIRECTIONS, lib.FR_ROWS, lib.FR_UNITS, lib.FR_LAYERS,
)  # fmt: skip


def bound(layer: fr.Layer, steps: int, batch: int, number: int) -> Any:
    """A call of that shape, bound, without arrays."""
    q = ffi.new("fr_sequence *")
    q.steps, q.batch, q.threads = steps, batch, number
    lib.fr_bind_shape(layer._engine.plan, q)
    return q


# ---- which division a call takes -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hidden", "layers", "bidirectional", "steps", "batch", "asked", "division", "used"),
    [
        (256, 1, False, 100, 1, 1, ALONE, 1),
        (256, 1, False, 100, 1, 4, UNITS, 4),
        (256, 1, False, 100, 16, 4, UNITS, 4),  # large panels: units, though there are rows
        (256, 1, False, 100, 12, 3, ROWS, 3),  # 64 unit blocks are not three equal parts
        (64, 1, False, 1, 16, 4, ROWS, 4),
        (64, 1, False, 1, 15, 4, UNITS, 4),  # less than 4 rows each
        (32, 1, False, 100, 64, 8, ROWS, 8),
        (8, 1, False, 100, 40, 64, ROWS, 10),  # more threads than have work
        (8, 1, False, 100, 1, 64, UNITS, 2),
        (3, 1, False, 100, 1, 4, ALONE, 1),  # one unit block
        (64, 2, False, 48, 1, 2, LAYERS, 2),
        (64, 2, False, 47, 1, 2, UNITS, 2),  # too short for a pipeline
        (64, 3, False, 100, 1, 2, UNITS, 2),  # three layers are not two equal parts
        (64, 2, False, 100, 4, 2, UNITS, 2),  # steps too long for a pipeline
        (256, 2, False, 100, 1, 2, UNITS, 2),
        (64, 1, True, 100, 1, 2, DIRECTIONS, 2),
        (64, 1, True, 100, 1, 3, DIRECTIONS, 2),
        (64, 2, True, 100, 1, 2, DIRECTIONS, 2),
        (64, 1, True, 100, 1, 4, DIRECTIONS | UNITS, 4),
        (64, 1, True, 100, 8, 4, DIRECTIONS | ROWS, 4),
        (64, 1, True, 0, 8, 4, ALONE, 1),
        (64, 1, True, 100, 0, 4, ALONE, 1),
    ],
)
def test_division(
    monkeypatch: pytest.MonkeyPatch,
    hidden: int,
    layers: int,
    bidirectional: bool,
    steps: int,
    batch: int,
    asked: int,
    division: int,
    used: int,
) -> None:
    monkeypatch.setenv("FUSEDRNN_ISA", "baseline")  # 4 units to a block
    layer = fr.LSTM(hidden, hidden, layers, bidirectional=bidirectional, seed=0)
    schedule = bound(layer, steps, batch, asked).schedule
    assert (schedule.division, schedule.threads) == (division, used)
    plan, costs = layer._engine.plan, ffi.new("double[]", asked + 1)
    assert lib.fr_predict(plan, steps, batch, asked, 1e-6, costs).division == division


@pytest.mark.parametrize(
    ("weight_dtype", "division", "chunk"),
    [("float32", UNITS, 250), ("float16", ROWS, 125), ("int8", ROWS, 64)],
)
def test_caches_hold_more_narrow_weights(
    monkeypatch: pytest.MonkeyPatch, weight_dtype: str, division: int, chunk: int
) -> None:
    monkeypatch.setenv("FUSEDRNN_ISA", "baseline")
    layer = fr.LSTM(128, 128, weight_dtype=weight_dtype, seed=0)
    assert bound(layer, 100, 16, 4).schedule.division == division  # 256 KiB and less: rows
    # z of a chunk is a quarter of W's bytes, 4 KiB a step, or 256 KiB where that is more.
    long = fr.LSTM(1000, 256, weight_dtype=weight_dtype, seed=0)
    assert bound(long, 1000, 1, 1).schedule.chunk == chunk
    # What depends on multiply-adds is the same for all.
    stack = fr.LSTM(64, 64, 2, weight_dtype=weight_dtype, seed=0)
    assert bound(stack, 48, 1, 2).schedule.division == LAYERS
    assert bound(stack, 48, 4, 2).schedule.division == UNITS


def test_a_clockwork_layer_divides_each_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDRNN_ISA", "baseline")
    layer = fr.ClockworkRNN(8, 48, periods=(1, 2, 4), seed=0)  # 4 unit blocks in each of 3 modules
    for asked, used in ((2, 2), (4, 4), (12, 4)):
        schedule = bound(layer, 10, 1, asked).schedule
        assert (schedule.division, schedule.threads) == (UNITS, used)


# ---- the workspace is no larger than needed --------------------------------------------------------


def floats(layer: fr.Layer, steps: int, batch: int, number: int) -> int:
    return int(bound(layer, steps, batch, number).layout.size)


def test_threads_that_divide_rows_or_units_need_little_more_than_one() -> None:
    rows, units = fr.LSTM(64, 64, seed=0), fr.LSTM(256, 256, seed=0)
    for steps in (1, 100):
        assert bound(rows, steps, 64, 8).schedule.division == ROWS
        assert floats(rows, steps, 64, 8) < 1.5 * floats(rows, steps, 64, 1)
    assert bound(units, 1000, 1, 8).schedule.division == UNITS
    assert floats(units, 1000, 1, 8) < 1.5 * floats(units, 1000, 1, 1)


def test_the_intermediate_is_as_large_as_it_says() -> None:
    lanes = lib.fr_isa_lanes(next(iter(isas().values())))
    for layer, arrays in ((fr.GRU(8, 40, reset="before"), 2), (fr.LSTM(8, 40, proj_size=7), 1)):
        for number, rows in ((1, 6), (2, 6), (4, 6)):
            q = bound(layer, 3, 6, number)
            size = 16 * ceil(arrays * rows * ceil(40 / lanes) * lanes / 16)
            division = UNITS if number > 1 else ALONE
            assert q.schedule.division == division
            own = q.layout.threads if number > 1 else q.layout.alone
            assert own.scratch_size - own.intermediate == size
    q = bound(fr.GRU(8, 40), 3, 6, 2)
    assert q.layout.threads.scratch_size == q.layout.threads.intermediate


# ---- what a division takes, and the choice ---------------------------------------------------------


def work(layer: fr.Layer) -> list[tuple[float, float]]:
    """Of each layer: multiply-adds of a step and row in the first products, and in the one that waits for them."""
    a, lanes = layer.architecture, lib.fr_isa_lanes(isas()[layer.isa])
    padded = lanes * ceil(a.hidden_size / lanes)
    found = []
    for number in range(a.num_layers):
        inputs = a.input_size if number == 0 else a.output_size
        if a.periods:
            widths = [(inputs + a.hidden_size - a.module_reads(k)) * a.module_size / period
                      for k, period in enumerate(a.periods)]  # fmt: skip
            found.append((sum(widths), 0.0))
            continue
        whole = len(a.table.gates) * padded * (inputs + a.fed_back)
        if a.table.after_first_product:
            waiting = padded * a.hidden_size
            found.append((whole - waiting, waiting))
        elif a.proj_size:
            found.append((whole, lanes * ceil(a.proj_size / lanes) * a.hidden_size))
        else:
            found.append((whole, 0.0))
    return found


def seconds_by_hand(
    layer: fr.Layer, steps: int, batch: int, number: int, step: float, barrier: list[float]
) -> float:
    """What fr_predict says, from its definition."""
    schedule = bound(layer, steps, batch, number).schedule
    a, lanes = layer.architecture, lib.fr_isa_lanes(isas()[layer.isa])
    if schedule.division == ALONE:
        return steps * step
    layers = work(layer)
    total = sum(map(sum, layers))
    if schedule.division == LAYERS:
        per_thread = a.num_layers // number
        slowest = max(
            sum(map(sum, layers[k : k + per_thread])) for k in range(0, a.num_layers, per_thread)
        )
        chunk = min(12, schedule.chunk_alone)
        filled = chunk * step + (steps - chunk) * step * slowest / total
        return filled + ceil(steps / chunk) * barrier[2]
    count = number // 2 if schedule.division & DIRECTIONS else number
    share, waiting = 1.0, 0.0
    if schedule.division & ROWS:
        count = min(count, batch // 4)
        share = ceil(batch / count) / batch
    elif schedule.division & UNITS:
        blocks = ceil((a.module_size if a.periods else a.hidden_size) / lanes)
        dependent = ceil(a.proj_size / lanes) if a.proj_size else blocks
        count = min(count, blocks)
        share = sum(
            first * ceil(blocks / count) / blocks + second * ceil(dependent / count) / dependent
            for first, second in layers
        )
        share /= total
        waiting += steps * a.num_layers * (2 if layers[0][1] else 1) * barrier[count]
    else:
        count = 1
    if schedule.division & DIRECTIONS:
        share /= 2
        waiting += (a.num_layers - 1) * barrier[2 * count]
    return steps * step * share + waiting


@st.composite
def machines(draw: Any) -> tuple[int, float, list[float]]:
    """Cores, seconds of a step, and seconds of a barrier by number of threads: no less for more."""
    cores = draw(st.integers(1, 64))
    step = 10 ** draw(st.floats(-7, -2))
    costs, number = [0.0, 0.0], 1
    cost = 10 ** draw(st.floats(-8, 0))
    while number < cores:
        larger = min(2 * number, cores)
        costs += [cost] * (larger - number)
        number = larger
        cost *= draw(st.floats(1, 4))
    return cores, step, costs


@st.composite
def layers_of_the_family(draw: Any) -> fr.Layer:
    kind, options = FAMILY[draw(st.sampled_from(sorted(FAMILY)))]
    hidden = 12 * draw(st.integers(1, 8))
    return kind(
        draw(st.integers(1, 90)), hidden, draw(st.sampled_from([1, 1, 2, 3, 4, 6])),
        bidirectional=draw(st.booleans()), seed=0, **options,
    )  # fmt: skip


SIZES = {"steps": st.integers(1, 300), "batch": st.sampled_from([1, 1, 2, 7, 8, 16, 33, 64, 300])}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(layer=layers_of_the_family(), machine=machines(), **SIZES)
def test_the_choice_is_the_best_of_all(layer: fr.Layer, machine, steps: int, batch: int) -> None:
    cores, step, costs = machine
    plan = layer._engine.plan
    probed: list[int] = []

    def barrier(number: int) -> float:
        probed.append(number)
        return costs[number]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "usable_cores", lambda: cores)
        patch.setattr(threads, "barrier_seconds", barrier)
        chosen = choose_threads(plan, steps, batch, step)

    seconds = [
        seconds_by_hand(layer, steps, batch, number, step, costs) for number in range(1, cores + 1)
    ]
    table = ffi.new("double[]", costs)
    for number, expected in enumerate(seconds, start=1):
        predicted = lib.fr_predict(plan, steps, batch, number, step, table)
        assert predicted.seconds == pytest.approx(expected, rel=1e-9)
    handicapped = [seconds[0] / 1.25, *seconds[1:]]
    assert handicapped[chosen - 1] == pytest.approx(min(handicapped), rel=1e-9)
    assert chosen <= cores
    # One barrier after another, and none beyond twice the threads that could pay.
    assert probed == [min(2**k, cores) for k in range(1, len(probed) + 1)]
    if probed:
        free = ffi.new("double[]", [0.0] * (cores + 1))
        for k in range(probed[-1] // 2 + 1):
            free[k] = costs[k]
        for k in range(probed[-1] // 2 + 1, cores + 1):
            free[k] = costs[probed[-1] // 2]
        optimist = lib.fr_choose_threads(plan, steps, batch, cores, step, free)
        if probed[-1] == 2 ** len(probed):
            assert optimist.barrier_threads > probed[-1] // 2


def chosen(
    monkeypatch: pytest.MonkeyPatch, layer: fr.Layer, steps: int, batch: int, barrier: float,
    cores: int = 8, step: float = 10e-6,
) -> tuple[int, list[int]]:  # fmt: skip
    """The choice on a machine whose barriers all take that long, and what was measured for it."""
    probed: list[int] = []
    monkeypatch.setattr(threads, "usable_cores", lambda: cores)
    monkeypatch.setattr(
        threads, "barrier_seconds", lambda number: [barrier, probed.append(number)][0]
    )
    number = choose_threads(layer._engine.plan, steps, batch, step)
    assert number is not None
    return number, probed


def test_rows_wait_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = fr.LSTM(32, 32, seed=0)
    assert chosen(monkeypatch, layer, 100, 64, barrier=1.0) == (8, [])


def test_directions_wait_at_the_end_of_a_layer_only(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (fr.LSTM(64, 64, n, bidirectional=True, seed=0) for n in (1, 2))
    assert chosen(monkeypatch, one, 100, 1, barrier=1.0)[0] == 2, "units would wait in each step"
    assert chosen(monkeypatch, one, 100, 1, barrier=1e-8)[0] == 8
    assert chosen(monkeypatch, two, 100, 1, barrier=1e-5)[0] == 2
    assert chosen(monkeypatch, two, 100, 1, barrier=1.0)[0] == 1
    assert chosen(monkeypatch, two, 1, 1, barrier=1e-5)[0] == 1, "one barrier for a single step"


def test_units_wait_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = fr.LSTM(256, 256, seed=0)
    assert chosen(monkeypatch, layer, 100, 1, barrier=1e-7) == (8, [2, 4, 8])
    assert chosen(monkeypatch, layer, 100, 1, barrier=9e-6) == (1, [2])
    before = fr.GRU(256, 256, reset="before", seed=0)
    assert (
        chosen(monkeypatch, before, 100, 1, barrier=4e-6)[0]
        < (chosen(monkeypatch, fr.GRU(256, 256, seed=0), 100, 1, barrier=4e-6)[0])
    )


def test_layers_wait_every_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = fr.LSTM(32, 32, 4, seed=0)
    assert chosen(monkeypatch, layer, 240, 1, barrier=2e-5) == (4, [2])
    assert chosen(monkeypatch, layer, 40, 1, barrier=2e-5) == (1, [2])


def test_no_work_for_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    lanes = lib.fr_isa_lanes(next(iter(isas().values())))
    assert chosen(monkeypatch, fr.LSTM(8, 2 * lanes, seed=0), 9, 1, barrier=1e-9)[0] == 2
    assert chosen(monkeypatch, fr.LSTM(8, 3, seed=0), 9, 1, barrier=1e-9) == (1, [])


def test_negative_control_a_model_without_barriers_chooses_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = fr.LSTM(256, 256, seed=0)
    assert chosen(monkeypatch, layer, 100, 1, barrier=0.0)[0] == 8
    assert chosen(monkeypatch, layer, 100, 1, barrier=1.0)[0] == 1


# ---- "auto" on this machine ------------------------------------------------------------------------


def test_auto_is_a_number_of_this_machine(make_compiled, draw: Draw) -> None:
    layer = make_compiled(16, 70, threads="auto", seed=0)
    for batch in (1, 3):
        assert 1 <= layer._engine.threads(9, batch) <= threads.usable_cores()
    x = draw(9, 3, 16)
    np.testing.assert_array_equal(layer(x)[0], make_compiled(16, 70, seed=0)(x)[0])


def test_measuring_barriers_leaves_no_thread_behind() -> None:
    def workers() -> int:
        return len(os.listdir("/proc/self/task")) - others

    lib.fr_pool_stop(30.0)
    others = len(os.listdir("/proc/self/task"))
    seconds = ffi.new("double[]", 3)
    assert lib.fr_time_barriers(4, 10, 3, seconds)
    assert all(each > 0 for each in seconds)
    assert workers() == 0
    fr.LSTM(8, 70, threads=3, seed=0)(np.zeros((3, 1, 8), "float32"))
    assert workers() == 2
    assert lib.fr_time_barriers(5, 10, 3, seconds)
    assert workers() == 2, "those that were there before stay"
    lib.fr_pool_stop(30.0)
    assert workers() == 0


def test_auto_asks_again_if_the_pool_was_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 2)
    monkeypatch.setattr(compiled.Compiled, "_step_seconds", lambda engine, batch: 1.0)
    layer = fr.LSTM(8, 256, threads="auto", seed=0)
    monkeypatch.setattr(threads, "barrier_seconds", lambda number: None)
    assert layer._engine.threads(10, 1) == 1
    monkeypatch.setattr(threads, "barrier_seconds", lambda number: 1e-7)
    assert layer._engine.threads(10, 1) == 2


def test_auto_does_not_wake_threads_for_a_short_call(
    monkeypatch: pytest.MonkeyPatch, draw: Draw
) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 2)
    monkeypatch.setattr(threads, "barrier_seconds", lambda number: 1e-7)
    monkeypatch.setattr(compiled.Compiled, "_step_seconds", lambda engine, batch: 10e-6)
    layer = fr.LSTM(8, 256, threads="auto", seed=0)
    state = layer._signature.start_state(1)

    def wakes(steps: int) -> bool:
        q = layer._engine.bound(draw(steps, 1, 8), draw(steps, 1, 256), state).q
        assert q.threads == 2
        return bool(q.wakes)

    assert not wakes(1)
    assert wakes(100)
    asked = fr.LSTM(8, 256, threads=2, seed=0)
    assert asked._engine.bound(draw(1, 1, 8), draw(1, 1, 256), state).q.wakes
