"""The roofline model: against numbers worked out by hand, and what must hold for any network and machine."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fusedrnn as fr
from fusedrnn import cli
from fusedrnn.architecture import Architecture
from fusedrnn.cells import CELLS
from fusedrnn.counting.counts import count
from fusedrnn.machine import parts
from fusedrnn.machine import roofline as module
from fusedrnn.machine.limits import Limits, Machine, load
from fusedrnn.machine.roofline import Roofline, roofline

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE = DOCS / "example-machine.json"
MACHINE = load(EXAMPLE)
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def no_isa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUSEDRNN_ISA", raising=False)


def lstm(X: int, H: int, **options: Any) -> Roofline:
    return roofline("lstm", MACHINE, input_size=X, hidden_size=H, **options)


def floor(architecture: Architecture, steps: int, batch: int, machine: Machine) -> float:
    return roofline(architecture, machine, steps=steps, batch=batch).seconds


def near(value: float) -> Any:
    return pytest.approx(value, rel=1e-12)


# By hand: 100 GFLOP/s; L1 32 KiB at 200 GB/s, L2 1 MiB at 100, L3 16 MiB at 50, DRAM at 10


def test_a_sequence_by_hand() -> None:
    found = lstm(128, 128, steps=100)
    into, around = found.parts
    # 4 * 128 * 128 weights and 512 biases, read once; 2 * 65536 + 512 FLOPs in each step
    assert (into.name, into.weight_bytes, into.reads) == ("input", 264_192, 1)
    assert into.flops == 100 * 131_584
    assert into.times["compute"] == near(131.584e-6)
    assert into.times["L1"] == near(264_192 / 200e9)
    assert into.times["L2"] == near((264_192 - 32_768) / 100e9)
    assert into.times["L3"] == into.times["DRAM"] == 0
    assert "latency" not in into.times
    assert (into.limited_by, into.held_by) == ("compute", "L2")
    assert into.intensity == near(13_158_400 / 264_192)
    assert into.ridge == near(1.0)
    # 4 * 128 * 128 weights, read 100 times; 3 multiplies and an addition for each unit
    assert (around.name, around.weight_bytes, around.reads) == ("recurrent", 262_144, 100)
    assert around.flops == 100 * (2 * 65_536 + 4 * 128)
    assert around.times["L1"] == near(100 * 262_144 / 200e9)
    assert around.times["L2"] == near(100 * (262_144 - 32_768) / 100e9)
    assert around.times["latency"] == near(100 * (5 + 20 + 20) * 1e-9)
    assert (around.limited_by, around.seconds) == ("L2", near(229.376e-6))
    assert around.intensity == near(131_584 / 262_144)
    assert (found.limited_by, found.seconds) == ("L2", near(360.96e-6))
    assert found.seconds_per_step == near(3.6096e-6)


def test_a_step_by_hand() -> None:
    found = lstm(128, 128)
    # The caches may keep 32 KiB of all weights, x and y, but not of each part by itself.
    everything = 264_192 + 262_144 + 4 * (128 + 128)
    assert sum(part.seconds for part in found.parts) == near((526_336 - 2 * 32_768) / 100e9)
    assert found.whole["L2"] == near((everything - 32_768) / 100e9)
    assert (found.limited_by, found.seconds) == ("L2", found.whole["L2"])
    assert found.held_by == "L2"


def test_beyond_the_caches_by_hand() -> None:
    found = lstm(2048, 2048, steps=10)
    around = found.parts[1]
    held = 32_768 + 1_048_576
    assert around.weight_bytes == 67_108_864
    assert around.times["L3"] == near(10 * (67_108_864 - held) / 50e9)
    assert around.times["DRAM"] == near(10 * (67_108_864 - held - 16_777_216) / 10e9)
    assert (around.limited_by, around.held_by) == ("DRAM", "DRAM")


def test_a_batch_is_limited_by_computing() -> None:
    one, many = lstm(128, 128, steps=100), lstm(128, 128, steps=100, batch=32)
    assert many.limited_by == "compute"
    assert many.seconds == near(32 * 2 * 131.584e-6)
    assert many.parts[1].times["L2"] == one.parts[1].times["L2"]


def test_a_small_cell_is_limited_by_latency() -> None:
    found = roofline("rnn", MACHINE, input_size=1, hidden_size=1, steps=1000)
    assert found.limited_by == "latency"
    assert found.parts[1].seconds == near(1000 * 25e-9)


def test_modules_by_hand() -> None:
    found = roofline("clockwork", MACHINE, input_size=4, hidden_size=8, periods=(1, 2), steps=5)
    into, around = found.parts
    # The fast module runs in 5 steps and reads 8 units; the slow one in 3 of them and reads 4.
    assert (into.weight_bytes, into.reads) == (2 * 4 * (16 + 4), 1)
    assert into.flops == 5 * 36 + 3 * 36
    assert (around.weight_bytes, around.reads) == (4 * (32 + 16), 5)
    assert around.bytes_read == 5 * 128 + 3 * 64
    assert around.flops == 2 * (5 * 32 + 3 * 16)
    slow = roofline("clockwork", MACHINE, input_size=4, hidden_size=8, periods=(2, 4), steps=5)
    assert slow.parts[1].times["latency"] == near(3 * 25e-9)


@pytest.mark.parametrize(
    ("held", "beyond"),
    [
        (0, 5 * 128 + 3 * 64),
        (100, 5 * 28 + 3 * 64),
        (128, 3 * 64),
        (150, 3 * 42),
        (192, 0),
        (999, 0),
    ],
)
def test_a_cache_keeps_what_is_read_most(held: int, beyond: int) -> None:
    assert parts._beyond([(3, 64), (5, 128)], held) == beyond


@pytest.mark.parametrize(
    ("cell", "options", "nanoseconds"),
    [
        ("lstm", {}, 5 + 20 + 20),
        ("lstm", {"coupled": True, "peephole": True}, 5 + 20 + 20),
        ("lstm", {"proj_size": 4}, 2 * 5 + 20 + 20),
        ("lstm", {"activation": "relu"}, 5 + 10 + 20),
        ("lstm", {"output_activation": "relu"}, 5 + 20),
        ("lstm", {"output_activation": "sigmoid"}, 5 + 20 + 10),
        ("gru", {}, 5 + 10 + 20),
        ("gru", {"reset": "before"}, 2 * 5 + 10 + 20),
        ("gru", {"gate_activation": "hard_sigmoid"}, 5 + 20),
        ("rnn", {}, 5 + 20),
        ("rnn", {"activation": "relu"}, 5),
        ("clockwork", {"periods": (1, 2)}, 5 + 20),
    ],
)
def test_the_chain_from_h_to_h(cell: str, options: dict[str, Any], nanoseconds: int) -> None:
    architecture = Architecture(cell, 3, 8, **options)
    seconds = parts.step_latency(architecture, MACHINE.limits["avx2"])
    assert seconds == near(nanoseconds * 1e-9)


# For any network and machine

SPEED = st.floats(1e8, 1e13)


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    names = ["L1", "L2", "L3"][: draw(st.integers(1, 3))]
    sizes = sorted(draw(st.lists(st.integers(1, 2**24), min_size=3, max_size=3)))
    capacity = dict(zip(names, sizes, strict=False))
    limits = Limits(
        flops=draw(SPEED),
        bandwidth={level: draw(SPEED) for level in (*capacity, "DRAM")},
        latency={name: draw(st.floats(1e-10, 1e-6)) for name in ("exchange", "sigmoid", "tanh")},
    )
    return replace(
        MACHINE, caches=capacity, capacity=capacity, isas=("avx2",), limits={"avx2": limits}
    )


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    cell = draw(st.sampled_from(sorted(CELLS)))
    options: dict[str, Any] = {}
    if cell == "clockwork":
        options["periods"] = (1, 3, 4)
    if cell == "gru":
        options["reset"] = draw(st.sampled_from(["after", "before"]))
    if cell == "lstm":
        options["coupled"] = draw(st.booleans())
        options["peephole"] = draw(st.booleans())
    return Architecture(
        cell,
        draw(st.integers(1, 300)),
        3 * draw(st.integers(1, 300)),
        num_layers=draw(st.integers(1, 3)),
        bidirectional=draw(st.booleans()),
        **options,
    )


TIMES = st.integers(1, 5)


@given(architectures(), machines(), st.integers(1, 50), st.integers(1, 20), TIMES, st.data())
def test_more_work_is_not_faster(
    architecture: Architecture, machine: Machine, steps: int, batch: int, times: int, data: Any
) -> None:
    least = floor(architecture, steps, batch, machine) * (1 - 1e-9)
    grown = data.draw(st.sampled_from(["input_size", "hidden_size", "num_layers"]))
    larger = replace(architecture, **{grown: times * getattr(architecture, grown)})
    assert floor(larger, steps, batch, machine) >= least
    assert floor(architecture, times * steps, batch, machine) >= least
    assert floor(architecture, steps, times * batch, machine) >= least


@given(architectures(), machines(), st.integers(1, 50), st.integers(1, 20), st.floats(1, 10))
def test_a_better_machine_is_not_slower(
    architecture: Architecture, machine: Machine, steps: int, batch: int, times: float
) -> None:
    limits = machine.limits["avx2"]
    limit = floor(architecture, steps, batch, machine) * (1 + 1e-9)
    better = [replace(limits, flops=times * limits.flops)]
    better += [
        replace(limits, bandwidth={**limits.bandwidth, level: times * speed})
        for level, speed in limits.bandwidth.items()
    ]
    better += [
        replace(limits, latency={**limits.latency, name: seconds / times})
        for name, seconds in limits.latency.items()
    ]
    for each in better:
        faster = replace(machine, limits={"avx2": each})
        assert floor(architecture, steps, batch, faster) <= limit
    larger = {level: int(times * size) for level, size in machine.capacity.items()}
    roomy = replace(machine, caches=larger, capacity=larger)
    assert floor(architecture, steps, batch, roomy) <= limit


@given(architectures(), machines(), st.integers(1, 50), st.integers(1, 20))
def test_the_parts_are_the_whole_work(
    architecture: Architecture, machine: Machine, steps: int, batch: int
) -> None:
    found = roofline(architecture, machine, steps=steps, batch=batch)
    counted = count(architecture, steps=steps, batch=batch)
    assert sum(part.flops for part in found.parts) == counted.flops
    assert sum(part.weight_bytes for part in found.parts) == counted.weight_bytes
    assert found.seconds >= counted.flops / machine.limits["avx2"].flops * (1 - 1e-9)
    assert found.seconds >= max(part.seconds for part in found.parts)
    assert found.limited_by in {"compute", "latency", *machine.limits["avx2"].bandwidth}
    json.loads(found.to_json())


# Of a training step


def test_a_training_step_by_hand() -> None:
    found = lstm(128, 128, steps=100, batch=2, training=True)
    names = ["input", "recurrent", "backward", "weight gradients"]
    assert [part.name for part in found.parts] == names
    _, _, back, weights = found.parts
    assert (back.weight_bytes, back.reads) == (262_144, 100)
    # R^T dz but for the first step; 11 products and 1 sum per unit, and dy.
    assert back.flops == 2 * 99 * 2 * 65_536 + 2 * 100 * (11 + 1 + 1) * 128
    tape = 4 * 100 * 2 * 6 * 128
    assert back.times["compute"] == near(back.flops / 100e9)
    assert back.times["L1"] == near((100 * 262_144 + tape) / 200e9)
    assert back.times["L2"] == near((100 * (262_144 - 32_768) + tape) / 100e9)
    assert back.times["L3"] == near(0.0)
    assert back.times["latency"] == near(99 * 5e-9)
    assert back.limited_by == "compute"
    assert (weights.weight_bytes, weights.reads) == (526_336, 1)
    assert weights.flops == 2 * 100 * (2 * 131_072 + 512)
    assert weights.limited_by == "compute"
    assert found.seconds == near(found.forward_seconds + found.backward_seconds)
    plain = lstm(128, 128, steps=100, batch=2)
    assert found.forward_seconds == plain.seconds
    assert (plain.training, plain.backward_seconds) == (False, 0)
    # One row alone: what R^T takes from its cache, and no more.
    alone = lstm(128, 128, steps=100, training=True).parts[2]
    assert alone.limited_by == "L2"
    assert alone.seconds == near((100 * (262_144 - 32_768) + tape // 2) / 100e9)


def test_a_tape_beyond_all_caches() -> None:
    # 36 bytes of R are read most often; caches hold the rest of their size of the tape's 24 MB, 6 floats a step.
    found = roofline("rnn", MACHINE, input_size=1, hidden_size=3, steps=10**6, training=True)
    back = found.parts[2]
    held = 32_768 + 1_048_576 + 16_777_216 - 4 * 9
    assert back.times["DRAM"] == near((4 * 10**6 * 6 - held) / 10e9)


def test_gradients_of_x() -> None:
    options: dict[str, Any] = {"num_layers": 2, "steps": 7, "batch": 3, "training": True}
    found, wanted = (lstm(40, 64, want_x=want_x, **options) for want_x in (False, True))
    places = [(part.name, part.layer) for part in wanted.parts[4:]]
    every = ("backward", "weight gradients", "x gradient")
    assert places == [(name, layer) for layer in (1, 0) for name in every]
    assert [part.layer for part in found.parts if part.name == "x gradient"] == [1]
    last = wanted.parts[-1]
    assert last.flops == 2 * 7 * 3 * 4 * 64 * 40
    assert wanted.backward_seconds == near(found.backward_seconds + last.seconds)


@pytest.mark.parametrize(
    ("cell", "options", "exchanges"),
    [
        ("lstm", {}, 1),
        ("lstm", {"proj_size": 4}, 2),
        ("gru", {}, 1),
        ("gru", {"reset": "before"}, 2),
        ("clockwork", {"periods": (1, 2)}, 1),
    ],
)
def test_the_chain_from_dh_to_dh(cell: str, options: dict[str, Any], exchanges: int) -> None:
    sizes: dict[str, Any] = {"input_size": 3, "hidden_size": 8, "steps": 5, "training": True}
    (back,) = (p for p in roofline(cell, MACHINE, **sizes, **options).parts if p.name == "backward")
    assert back.times["latency"] == near(4 * exchanges * 5e-9)


def test_modules_that_rest_read_no_weights_backward() -> None:
    sizes: dict[str, Any] = {"input_size": 4, "hidden_size": 8, "steps": 5, "training": True}
    found = roofline("clockwork", MACHINE, periods=(1, 2), **sizes)
    back = next(part for part in found.parts if part.name == "backward")
    assert back.bytes_read == found.parts[1].bytes_read == 5 * 128 + 3 * 64


@given(architectures(), machines(), st.integers(1, 50), st.integers(1, 20), st.booleans())
def test_the_parts_of_a_training_step_are_the_whole_work(
    architecture: Architecture, machine: Machine, steps: int, batch: int, want_x: bool
) -> None:
    sizes: dict[str, Any] = {"steps": steps, "batch": batch}
    found = roofline(architecture, machine, **sizes, training=True, want_x=want_x)
    counted = count(architecture, **sizes, backward=True, want_x=want_x)
    assert counted.backward_executed is not None
    every = counted.flops + counted.backward_executed.flops
    assert sum(part.flops for part in found.parts) == every
    assert all(part.flops >= 0 for part in found.parts)
    plain = roofline(architecture, machine, **sizes)
    assert found.seconds >= plain.seconds * (1 - 1e-9)
    assert found.seconds >= every / machine.limits["avx2"].flops * (1 - 1e-9)
    assert found.parts[: len(plain.parts)] == plain.parts


def test_every_format_has_the_training_step() -> None:
    found = lstm(40, 64, steps=7, batch=3, training=True)
    data = found.to_dict()
    assert (data["training"], data["want_x"]) == (True, False)
    total = data["total"]
    assert total["backward_seconds"] == found.backward_seconds
    assert total["tape_bytes"] == 4 * 7 * 3 * 6 * 64
    assert "backward_seconds" not in lstm(40, 64).to_dict()["total"]
    *rows, total = csv.DictReader(io.StringIO(found.to_csv()))
    assert [row["name"] for row in rows][2:] == ["backward", "weight gradients"]
    assert all(row["limited_by"] for row in rows)
    assert total["seconds"] == str(found.seconds)
    text = str(found)
    for words in ("forward and backward", "weight gradients", "tape bytes", "backward parts"):
        assert words in text
    assert all(len(line) <= 140 for line in text.splitlines())


def test_bad_arguments_of_a_training_step() -> None:
    with pytest.raises(ValueError, match="want_x is of a training step"):
        lstm(3, 4, want_x=True)
    with pytest.raises(TypeError, match="training must be True or False, not int"):
        lstm(3, 4, training=1)


# What it takes, and what it gives


def test_what_is_run_may_be_a_layer() -> None:
    layer = fr.GRU(3, 4, seed=0, backend="numpy")
    assert roofline(layer, MACHINE).parts == roofline(layer.architecture, MACHINE).parts
    assert fr.roofline is roofline


def test_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lstm(3, 4).isa == "avx2"
    assert lstm(3, 4, isa="baseline").isa == "baseline"
    monkeypatch.setenv("FUSEDRNN_ISA", "baseline")
    assert lstm(3, 4).isa == "baseline"
    with pytest.raises(fr.UnsupportedError, match="isa must be one of avx2, baseline"):
        lstm(3, 4, isa="neon")


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="machine must be a Machine or None, not dict"):
        roofline("lstm", {}, input_size=3, hidden_size=4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="steps must be at least 1"):
        lstm(3, 4, steps=0)
    with pytest.raises(TypeError, match="hidden_size is missing"):
        roofline("lstm", MACHINE, input_size=3)
    other: dict[str, Any] = {"lengths": [3, 1], "backward": True}
    for name, value in other.items():
        with pytest.raises(TypeError, match=f"{name} is not in the model"):
            lstm(3, 4, **{name: value})
    for rate in (10**400, 1e308, 0, float("nan")):
        with pytest.raises(ValueError, match="^rate must be"):
            lstm(3, 4, rate=rate)


@pytest.mark.parametrize(("weight_dtype", "size"), [("float16", 2), ("bfloat16", 2), ("int8", 1)])
def test_narrow_weights_are_fewer_bytes(weight_dtype: str, size: int) -> None:
    wide, small = lstm(40, 64, steps=7), lstm(40, 64, steps=7, weight_dtype=weight_dtype)
    for narrow, part, weights, biases in zip(
        small.parts, wide.parts, (40, 64), (1, 0), strict=True
    ):
        assert narrow.weight_bytes == 256 * (size * weights + 4 * biases)
        assert part.weight_bytes == 256 * 4 * (weights + biases)
        assert narrow.flops == part.flops
    layer = fr.LSTM(40, 64, weight_dtype=weight_dtype)
    assert roofline(layer, MACHINE, steps=7, isa="avx2").to_dict() == small.to_dict()
    with pytest.raises(ValueError, match="training is of float32 weights"):
        lstm(40, 64, training=True, weight_dtype=weight_dtype)


@pytest.mark.parametrize("weight_dtype", ["int8", "w8a7"])
def test_products_of_integers_have_no_limit_of_fmas(weight_dtype: str, capsys: Capture) -> None:
    found = lstm(128, 128, steps=100, batch=32, weight_dtype=weight_dtype)
    into, around = found.parts
    assert into.times.keys() == {"L1", "L2", "L3", "DRAM"}
    assert around.times.keys() == into.times.keys() | {"latency"}
    assert into.ridge is None and around.ridge is None
    # 65536 bytes of R in each step, half of which come from L2 at half the speed of L1; 45 ns from h to h'
    assert around.times["L2"] == near(100 * 32_768 / 100e9)
    assert around.times["L1"] == around.seconds == near(32.768e-6)
    assert json.loads(found.to_json())["parts"][0]["ridge"] is None
    assert "seconds_compute" not in found.to_csv()
    assert module.FOOTNOTE_OF_INTEGERS in str(found)
    # The control: with weights that are floats, the same is limited by FMAs.
    wide = lstm(128, 128, steps=100, batch=32, weight_dtype="float16")
    assert wide.limited_by == "compute"
    assert module.FOOTNOTE_OF_INTEGERS not in str(wide)


def test_a_rate_gives_the_real_time_factor() -> None:
    found = lstm(128, 128, steps=100, rate=16_000)
    assert found.real_time_factor == near(16_000 * 3.6096e-6)
    assert "real-time factor at 16,000 Hz" in str(found)
    assert lstm(3, 4).real_time_factor is None


STACK: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "steps": 7, "batch": 3}


def test_formats_agree() -> None:
    found = lstm(40, 64, **STACK)
    data = found.to_dict()
    assert json.loads(found.to_json()) == data
    assert data["assumptions"] == module.ASSUMPTIONS
    assert Machine.from_dict(data["machine"]) == MACHINE
    *rows, total = csv.DictReader(io.StringIO(found.to_csv()))
    assert [row["seconds"] for row in rows] == [str(part["seconds"]) for part in data["parts"]]
    assert [(row["name"], row["layer"], row["direction"]) for row in rows][-1] == (
        "recurrent",
        "1",
        "reverse",
    )
    assert (total["name"], total["seconds"]) == ("total", str(found.seconds))


def test_text_says_what_it_assumes() -> None:
    text = str(lstm(40, 64, **STACK))
    assert text.isascii()
    for words in ("recurrent 1 reverse", "16,777,216 of 33,554,432 bytes", "floor = max(", "L2"):
        assert words in text
    assert all(len(line) <= 120 for line in text.splitlines())


# Measuring


def test_another_machine_cannot_be_measured() -> None:
    with pytest.raises(fr.UnsupportedError, match="only this machine can be measured"):
        lstm(3, 4).measure()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Stands in for this machine."""
    isa = fr.info()["isa"]
    machine = replace(MACHINE, isas=(isa,), limits={isa: MACHINE.limits["avx2"]})
    monkeypatch.setattr("fusedrnn.machine.probe._identity", machine.identity)
    monkeypatch.setattr(module, "this_machine", lambda: machine)
    return machine


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        ("lstm", {}),
        ("lstm", {"peephole": "o", "coupled": True, "bidirectional": True, "num_layers": 2}),
        ("lstm", {"proj_size": 2, "bias": "none"}),
        ("gru", {"reset": "before", "bias": "double"}),
        ("rnn", {"activation": "relu"}),
        ("clockwork", {"periods": (1, 2)}),
    ],
)
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("training", [False, True])
def test_kernels_are_measured(
    cell: str, options: dict[str, Any], training: bool, steps: int, here: Machine
) -> None:
    architecture = Architecture(cell, 3, 4, **options)
    found = roofline(architecture, steps=steps, batch=2, training=training).measure(seconds=0.001)
    assert found.measured is not None
    assert found.measured > 0
    assert found.fraction == found.seconds / found.measured
    assert "fraction of the limit" in str(found)


def test_an_instruction_set_that_is_not_active(here: Machine) -> None:
    both = {**here.limits, "other": MACHINE.limits["avx2"]}
    machine = replace(here, isas=(*here.isas, "other"), limits=both)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fusedrnn.machine.probe._identity", machine.identity)
        with pytest.raises(fr.UnsupportedError, match="set FUSEDRNN_ISA"):
            lstm_here = roofline("lstm", machine, input_size=3, hidden_size=4, isa="other")
            lstm_here.measure()


@pytest.mark.parametrize(
    ("share", "failed"), [(0.5, False), (1.0, False), (1.04, False), (1.06, True)]
)
def test_a_kernel_faster_than_its_limit_is_a_failure_of_the_model(
    share: float, failed: bool
) -> None:
    found = lstm(3, 4)
    found = replace(found, measured=found.seconds / share)
    assert found.failed is failed
    assert ("MODEL FAILURE" in str(found)) is failed
    assert ("MODEL FAILURE" in found.to_markdown()) is failed
    assert found.to_dict()["total"]["model_failed"] is failed


# The command

SIZES = "--input 40 --hidden 64"


def command(line: str) -> list[str]:
    return ["roofline", *line.split(), "--machine", str(EXAMPLE)]


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_of_the_table(cell: str, capsys: Capture) -> None:
    periods = "--periods 1,2" if cell == "clockwork" else ""
    assert cli.main(command(f"{cell} {SIZES} {periods} --format json")) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["architecture"]["cell"] == cell
    assert data["total"]["seconds"] > 0


def test_every_option_reaches_the_model(capsys: Capture) -> None:
    line = f"lstm {SIZES} --proj 16 --layers 2 --bidirectional --peephole o --coupled --bias none"
    assert cli.main(command(f"{line} --steps 7 --batch 3 --rate 100 --format json")) == 0
    architecture = Architecture(
        "lstm",
        40,
        64,
        num_layers=2,
        bidirectional=True,
        proj_size=16,
        bias="none",
        peephole="o",
        coupled=True,
    )
    expected = roofline(architecture, MACHINE, steps=7, batch=3, rate=100)
    assert json.loads(capsys.readouterr().out) == expected.to_dict()
    assert cli.main(command(f"gru {SIZES} --steps 7 --training --want-x --json")) == 0
    sizes = {"input_size": 40, "hidden_size": 64, "steps": 7}
    trained = roofline("gru", MACHINE, **sizes, training=True, want_x=True)
    assert json.loads(capsys.readouterr().out) == trained.to_dict()


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("lstm", "missing --input and --hidden"),
        ("lsmt --input 3 --hidden 4", "'lsmt' is no cell"),
        ("gru --input 3 --hidden 4 --proj 2", "proj_size is not an option of gru"),
        ("lstm --input 3 --hidden 0", "hidden_size must be at least 1"),
        ("lstm --input 3 --hidden 4 --rate 0", "--rate: must be above 0"),
        ("lstm --input 3 --hidden 4 --machine /no/such/file", "/no/such/file: No such file"),
        ("lstm --input 3 --hidden 4 --machine /dev/null", "/dev/null: not JSON"),
        (f"lstm --input 3 --hidden 4 --machine {EXAMPLE} --again", "leave one out"),
        (f"lstm --input 3 --hidden 4 --machine {EXAMPLE} --measure", "only this machine"),
        ("lstm --input 3 --hidden 4 --want-x", "--want-x goes with --training"),
    ],
)
def test_a_mistake_is_one_line(line: str, text: str, capsys: Capture) -> None:
    assert cli.main(["roofline", *line.split()]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("fusedrnn: error: ")
    assert shown.err.count("\n") == 1
    assert text in shown.err


@pytest.mark.parametrize(("faster", "status"), [(1, 0), (1000, 1)])
def test_a_failure_of_the_model_is_an_exit_code(
    faster: int, status: int, here: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    asked = []
    monkeypatch.setattr(
        "fusedrnn.machine.kernel_time.kernel_seconds",
        lambda work, isa, seconds: floor(work.architecture, 1, 1, here) / faster,
    )
    monkeypatch.setattr(
        "fusedrnn.machine.probe.this_machine", lambda *, again: asked.append(again) or here
    )
    assert cli.main(f"roofline lstm {SIZES} --measure --again".split()) == status
    assert ("MODEL FAILURE" in capsys.readouterr().out) is bool(status)
    assert asked == [True]


def test_another_machine_needs_nothing_heavy() -> None:
    heavy = ["numpy", "numba", "cffi", "_cffi_backend", "fusedrnn._native"]
    code = (
        "import sys; from fusedrnn.cli import main; "
        f"status = main({command(f'lstm {SIZES}')!r}); "
        f"loaded = [name for name in {heavy!r} if name in sys.modules]; "
        "sys.exit(status or ' '.join(loaded) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


# The documentation


def documented() -> list[tuple[str, str]]:
    text = (DOCS / "roofline.md").read_text()
    rows = re.findall(r"^\| `fusedrnn (.*?)` \| (.*?) \|", text, re.MULTILINE)
    assert len(rows) >= 4
    return rows


@pytest.mark.parametrize(("line", "figure"), documented())
def test_the_figures_of_the_documentation(
    line: str, figure: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(DOCS.parent)
    assert cli.main(line.split()) == 0
    assert figure in re.sub(" +", " ", capsys.readouterr().out)
