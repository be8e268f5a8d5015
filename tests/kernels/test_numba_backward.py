"""The Numba kernels where calls are recorded: records and gradients have the bits of the C kernels."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from conftest import FAMILY, bits
from drawn_calls import FORMS, MEMBERS, ROWS, DrawnCall, draw_call, gradients_by_name
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fusedrnn as fr
from fusedrnn.engines.native import isas
from fusedrnn.kernels import compiled

pytest.importorskip("numba")

BEST, *OTHERS = isas()
#: Kernels take ten seconds each to compile. Beside the best instruction set: the smallest, with what all cells share.
EVERYWHERE = ROWS if os.environ.get("FUSEDRNN_ALL_KERNELS") == "1" else ["rnn"]
PLACES = [(row, BEST) for row in ROWS] + [(row, isa) for row in EVERYWHERE for isa in OTHERS]


SIZES = st.fixed_dictionaries(
    {
        "steps": st.integers(1, 25) | st.sampled_from([1, 60]),  # 60 steps are several chunks
        "batch": st.integers(1, 14),
        "inputs": st.integers(1, 40),
        # A multiple of every number of modules, above every projection.
        "hidden": st.integers(2, 24).map(lambda n: 3 * n) | st.just(129),
        "seed": st.integers(0, 2**31),
    }
)


def everything(call: DrawnCall, tape: str) -> dict[str, np.ndarray]:
    """What a recorded call gives: its results, what it remembers, and all gradients."""
    first = call.record(tape=tape)[2]
    engine: Any = call.layer._engine
    first.backward(None)
    if (
        engine._recorder._idle
    ):  # that memory is taken again: no other bytes are where nothing is written
        engine._recorder._idle[-1].tape.fill(7)
    y, state, again = call.record(tape=tape)
    found = {"y": y, **{f"after {k}": array for k, array in enumerate(state)}}
    if y.size:
        found["tape"] = again._recording._memory.tape.copy()
    return found | gradients_by_name(again.backward(call.dy, call.dstate))


def on(backend: str, isa: str, name: str, form: dict[str, Any], **sizes: Any) -> DrawnCall:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSEDRNN_ISA", isa)
        call = draw_call(FAMILY[name], form, **sizes, backend=backend)
    assert (call.layer.backend, call.layer.isa) == (backend, isa)
    return call


def different(of_c: dict[str, np.ndarray], of_numba: dict[str, np.ndarray]) -> list[str]:
    """The names of those arrays whose bits are not the same."""
    assert of_c.keys() == of_numba.keys()
    return [name for name in of_c if not np.array_equal(bits(of_c[name]), bits(of_numba[name]))]


@pytest.mark.parametrize(("row", "isa"), PLACES)
@given(data=st.data(), form=FORMS, sizes=SIZES, threads=st.integers(1, 3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_same_bits_as_c(
    row: str, isa: str, data: Any, form: dict[str, Any], sizes: dict[str, int], threads: int
) -> None:
    name = data.draw(st.sampled_from(MEMBERS[row]))
    tape = data.draw(st.sampled_from(["full", "segments"]))
    calls = [on(b, isa, name, form, **sizes, threads=threads) for b in ("c", "numba")]
    if data.draw(st.integers(0, 4), "NaN") == 0:
        for call in calls:
            call.dy.flat[sizes["seed"] % call.dy.size] = np.nan
    assert different(*(everything(call, tape) for call in calls)) == []


def test_negative_control_other_roundings_are_seen() -> None:
    form = {
        "layers": 1, "direction": "forward", "bias": True, "layout": "time first", "start": "given",
        "ragged": False, "resets": True,
    }  # fmt: skip
    sizes = {"steps": 9, "batch": 3, "inputs": 5, "hidden": 21, "seed": 1}
    of_numba = everything(on("numba", BEST, "lstm", form, **sizes), "segments")
    assert different(everything(on("c", BEST, "lstm", form, **sizes), "segments"), of_numba) == []
    if BEST != "baseline":  # which has no FMA
        of_baseline = everything(on("c", "baseline", "lstm", form, **sizes), "segments")
        assert set(different(of_baseline, of_numba)) >= {"y", "x", "weight_ih_l0", "weight_hh_l0"}


def test_a_backward_kernel_is_built_when_a_call_is_recorded(
    draw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "_built", {})
    layer, x = fr.RNN(3, 5, backend="numba"), draw(4, 2, 3)
    layer(x)
    assert list(compiled._built) == [("forward", "rnn", BEST, "float32")]
    layer.record(x)
    assert list(compiled._built) == [
        ("forward", "rnn", BEST, "float32"),
        ("backward", "rnn", BEST, "float32"),
    ]
    monkeypatch.setattr(compiled, "_built", {})
    assert compiled.build("rnn", BEST, "backward").cached
