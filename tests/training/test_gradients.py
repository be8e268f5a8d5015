"""Gradients of every cell and option, in C and NumPy: near those of the specification in float64.

Those of Numba have the bits of C: ``test_gradient_bits.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import FAMILY, RECORDING, Maker
from drawn_calls import FORMS, DrawnCall, Member, draw_call, gradients_by_name, near_a_kink
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

#: The relative norm of the difference to float64, of any gradient, up to 4,000 rows.
BOUND = 2e-6

cut = settings(
    max_examples=min(3, settings.default.max_examples),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)
SIZES = {
    "steps": st.integers(1, 25),
    "batch": st.integers(1, 14),
    "inputs": st.integers(1, 20),
    # A multiple of every number of modules, above every projection.
    "hidden": st.integers(2, 14).map(lambda n: 3 * n),
    "seed": st.integers(0, 2**31),
}
#: Options whose derivative has a jump. A sum within rounding of one is on another side in float32.
KINKED = ("clip", "cell_clip", "gate_activation", "activation", "output_activation")


@pytest.fixture(params=[target for target in RECORDING if target.backend != "numba"], ids=str)
def make_recording(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Maker:
    return Maker(request.param, monkeypatch)


def drawn(make_recording: Maker, member: Member, form: dict[str, Any], **sizes: int) -> DrawnCall:
    return draw_call(member, form, **sizes, backend=make_recording.target.backend)


def same_bits(a: np.ndarray, b: np.ndarray) -> None:
    assert np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()


def assert_near(call: DrawnCall, bound: float = BOUND) -> None:
    """That a call records the bits of a plain one, and that its gradients are near those in float64."""
    y, state, tape = call.record()
    y_plain, state_plain = call.run()
    for recorded, plain in zip((y, *state), (y_plain, *state_plain), strict=True):
        same_bits(recorded, plain)
    found = gradients_by_name(tape.backward(call.dy, call.dstate))
    true = gradients_by_name(call.float64().gradients())
    assert found.keys() == true.keys()
    for name, gradient in true.items():
        norm = np.linalg.norm(gradient)
        assert found[name].dtype == np.float32
        assert np.linalg.norm(found[name] - gradient) <= bound * norm, name


@cut
@given(form=FORMS, **SIZES)
def test_against_float64(
    make_recording: Maker, member: Member, form: dict[str, Any], **sizes: int
) -> None:
    if set(member[1]) & set(KINKED):
        sizes |= {"steps": sizes["steps"] % 6, "batch": sizes["batch"] % 4, "hidden": 6}
    call = drawn(make_recording, member, form, **sizes)
    assume(not near_a_kink(call, 2e-6))
    assert_near(call)


@pytest.mark.parametrize(
    ("name", "steps", "batch"),
    [
        *((name, 250, 16) for name, (_, chosen) in FAMILY.items() if not set(chosen) & set(KINKED)),
        *((name, 1000, 2) for name in ("lstm", "gru", "clockwork")),
    ],
)
def test_many_rows_against_float64(
    make_recording: Maker, name: str, steps: int, batch: int
) -> None:
    form = {
        "layers": 1, "direction": "forward", "bias": "double", "layout": "time first", "start": "given",
        "ragged": batch > 2, "resets": batch > 2,
    }  # fmt: skip
    sizes = {"steps": steps, "batch": batch, "inputs": 7, "hidden": 24, "seed": 1}
    assert_near(drawn(make_recording, FAMILY[name], form, **sizes))


def test_negative_control_a_wrong_gradient_is_seen(make_recording: Maker, member: Member) -> None:
    form = {
        "layers": 1, "direction": "forward", "bias": True, "layout": "time first", "start": "zeros",
        "ragged": False, "resets": False,
    }  # fmt: skip
    call = drawn(make_recording, member, form, steps=4, batch=3, inputs=5, hidden=6, seed=3)
    true = call.float64().gradients().weights
    for name, gradient in call.gradients().weights.items():
        turned = np.roll(gradient, 1, axis=0)
        assert np.linalg.norm(turned - true[name]) > 1e-2 * np.linalg.norm(true[name]), name
