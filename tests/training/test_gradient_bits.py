"""Gradients have the same bits whatever computes them: threads, segments, earlier passes, instruction sets with FMA."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import FAMILY, RECORDING, Maker, Target
from drawn_calls import FORMS, DrawnCall, Member, draw_call, gradients_by_name
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fusedrnn as fr
from fusedrnn.engines.native import isas

cut = settings(
    max_examples=min(2, settings.default.max_examples),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SIZES = {
    # More rows than a segment has, and fewer.
    "steps": st.one_of(st.integers(0, 12), st.integers(200, 400)),
    "batch": st.integers(1, 6),
    "inputs": st.integers(1, 20),
    "hidden": st.integers(2, 14).map(lambda n: 3 * n),
    "seed": st.integers(0, 2**31),
}
WITH_FMA = [target for target in RECORDING if target.isa not in (None, "baseline")]


def bits(call: DrawnCall, **chosen: Any) -> dict[str, bytes]:
    y, state, tape = call.record(**chosen)
    gradients = gradients_by_name(tape.backward(call.dy, call.dstate))
    arrays = {"y": y, **{f"after {k}": array for k, array in enumerate(state)}, **gradients}
    return {name: np.ascontiguousarray(array).tobytes() for name, array in arrays.items()}


def with_threads(call: DrawnCall, threads: int) -> DrawnCall:
    layer = call.layer
    saved = layer.__getstate__() | {"threads": threads}
    other = type(layer).__new__(type(layer))
    other.__setstate__(saved)
    return replace(call, layer=other)


@pytest.fixture(params=[target for target in RECORDING if target.isa], ids=str)
def make_compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Maker:
    return Maker(request.param, monkeypatch)


@cut
@given(form=FORMS, threads=st.integers(2, 4), **SIZES)
def test_threads_and_segments(
    make_compiled: Maker, member: Member, form: dict[str, Any], threads: int, **sizes: int
) -> None:
    call = draw_call(member, form, **sizes, backend=make_compiled.target.backend)
    alone = bits(call)
    shared = with_threads(call, threads)
    assert bits(shared) == alone
    assert bits(shared, tape="segments") == alone
    assert bits(call, tape="segments") == alone


def test_a_tape_that_is_kept_says_the_same_again(make_compiled: Maker, member: Member) -> None:
    form = {
        "layers": 2, "direction": "forward", "bias": "double", "layout": "time first", "start": "given",
        "ragged": True, "resets": True,
    }  # fmt: skip
    call = draw_call(member, form, 300, 3, 5, 12, 7, backend=make_compiled.target.backend)
    for mode in ("full", "segments"):
        tape = call.record(tape=mode)[2]
        first = gradients_by_name(tape.backward(call.dy, call.dstate, keep=True))
        call.gradients()  # another recording of that shape has memory of its own
        second = gradients_by_name(tape.backward(call.dy, call.dstate))
        for name, array in first.items():
            np.testing.assert_array_equal(array, second[name])


@pytest.mark.parametrize("other", WITH_FMA[1:], ids=str)
@cut
@given(form=FORMS, **SIZES)
def test_instruction_sets_and_backends_with_fma(
    monkeypatch: pytest.MonkeyPatch,
    other: Target,
    member: Member,
    form: dict[str, Any],
    **sizes: int,
) -> None:
    found = []
    for target in (WITH_FMA[0], other):
        Maker(target, monkeypatch)
        found.append(bits(draw_call(member, form, **sizes, backend=target.backend)))
    assert found[0] == found[1]


def test_negative_control_another_order_of_rows_has_other_bits() -> None:
    """The batch's gradient is no sum of its rows' to the bit, so these tests could fail."""
    layer = fr.LSTM(5, 24, backend="c", seed=1)
    random = np.random.default_rng(2)
    x = random.standard_normal((40, 8, 5)).astype(np.float32)
    dy = random.standard_normal((40, 8, 24)).astype(np.float32)
    forward, turned = (
        layer.record(a)[2].backward(b).weights["weight_hh_l0"]
        for a, b in ((x, dy), (x[:, ::-1], dy[:, ::-1]))
    )
    assert (forward != turned).any()
    np.testing.assert_allclose(forward, turned, rtol=1e-4, atol=1e-5)


def test_c_is_among_the_targets() -> None:
    assert {Target("c", isa) for isa in isas()} <= set(RECORDING)
    assert len(FAMILY) > 6
