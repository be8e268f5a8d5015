"""Narrow weights in Numba: the bits of the C kernels, which are tested against the specification."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from conftest import FAMILY, Draw, bits
from drawn_calls import FORMS, MEMBERS, ROWS, DrawnCall, draw_call, gradients_by_name
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fusedrnn as fr
from fusedrnn.engines.native import isas
from fusedrnn.kernels import compiled
from fusedrnn.narrowing import WEIGHT_DTYPES, Narrow

pytest.importorskip("numba")

BEST, *OTHERS = isas()
NARROW = WEIGHT_DTYPES[1:]
Place = tuple[str, str, str]

#: Kernels take up to ten seconds each to compile; w8a7 has those of int8. Each way of a product and each matrix that is
#: found another way: the dependent one, that of a module.
FEW: list[Place] = [
    ("lstm", BEST, "float16"),
    ("gru_before", BEST, "int8"),
    ("gru_before", BEST, "w8a7"),
    *(("clockwork", isa, weight_dtype) for isa in isas() for weight_dtype in NARROW),
]
EVERYWHERE: list[Place] = [(row, isa, each) for row in ROWS for isa in isas() for each in NARROW]
PLACES = EVERYWHERE if os.environ.get("FUSEDRNN_ALL_KERNELS") == "1" else FEW


SIZES = st.fixed_dictionaries(
    {
        "steps": st.integers(1, 25) | st.sampled_from([1, 60]),  # 60 steps are several chunks
        "batch": st.integers(1, 14),
        "inputs": st.integers(1, 40) | st.just(1030),  # two slices of integers
        "hidden": st.integers(2, 24).map(lambda n: 3 * n) | st.just(129),
        "seed": st.integers(0, 2**31),
    }
)


def on(backend: str, place: Place, name: str, form: dict[str, Any], **sizes: Any) -> DrawnCall:
    _, isa, weight_dtype = place
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSEDRNN_ISA", isa)
        call = draw_call(FAMILY[name], form, **sizes, backend=backend, weight_dtype=weight_dtype)
    assert (call.layer.backend, call.layer.isa) == (backend, isa)
    return call


def everything(call: DrawnCall) -> list[np.ndarray]:
    """What a call gives: y and the state after."""
    y, state = call.run()
    return [bits(array) for array in (y, *state)]


def different(of_c: list[np.ndarray], of_numba: list[np.ndarray]) -> bool:
    return any(not np.array_equal(*pair) for pair in zip(of_c, of_numba, strict=True))


@pytest.mark.parametrize("place", PLACES, ids="-".join)
@given(data=st.data(), form=FORMS, sizes=SIZES, threads=st.integers(1, 3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_same_bits_as_c(
    place: Place, data: Any, form: dict[str, Any], sizes: dict[str, int], threads: int
) -> None:
    name = data.draw(st.sampled_from(MEMBERS[place[0]]))
    of_c, of_numba = (on(b, place, name, form, **sizes, threads=threads) for b in ("c", "numba"))
    bad = data.draw(st.sampled_from([None, None, None, np.nan, np.inf, 1e-35, 1e30]), "in x")
    if bad is not None:
        for call in (of_c, of_numba):
            call.x.flat[sizes["seed"] % call.x.size] = bad
    assert not different(everything(of_c), everything(of_numba))


@pytest.mark.parametrize("place", PLACES, ids="-".join)
def test_streams_have_the_bits_of_c(
    place: Place, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And those of a sequence: a lone step sums over x and h at once."""
    row, isa, weight_dtype = place
    monkeypatch.setenv("FUSEDRNN_ISA", isa)
    for name in MEMBERS[row]:
        cell, chosen = FAMILY[name]
        for hidden, batch in ((12, 1), (39, 7), (129, 1), (66, 17)):
            more = {"weight_dtype": weight_dtype, "seed": 1, **chosen}
            layers = [cell(5, hidden, 2, backend=b, **more) for b in ("c", "numba")]
            x = draw(5, batch, 5)
            y = layers[1](x)[0]
            streams = [layer.stream(batch) for layer in layers]
            for x_t, y_t in zip(x, y, strict=True):
                of_c, of_numba = (bits(np.asarray(stream.step(x_t))) for stream in streams)
                np.testing.assert_array_equal(of_numba, of_c)
                np.testing.assert_array_equal(of_numba, bits(y_t))


FORM = {
    "layers": 1, "direction": "forward", "bias": True, "layout": "time first", "start": "given",
    "ragged": False, "resets": True,
}  # fmt: skip
SIZE = {"steps": 9, "batch": 3, "inputs": 5, "hidden": 21, "seed": 1}


@pytest.mark.parametrize("weight_dtype", NARROW)
def test_negative_control_rows_of_weights_or_scales_one_off_are_seen(weight_dtype: str) -> None:
    place, name = ("clockwork", BEST, weight_dtype), "clockwork"
    of_c, of_numba = (on(backend, place, name, FORM, **SIZE) for backend in ("c", "numba"))
    assert not different(everything(of_c), everything(of_numba))
    layer: Any = of_numba.layer
    kept, engine = dict(layer._weights), layer._engine
    for matrix in ("weight_ih_l0", "weight_hh_l0"):
        values, scales = kept[matrix].values, kept[matrix].scales
        turned = [(np.roll(values, 1, axis=0), scales), (np.roll(values, 1, axis=1), scales)]
        if scales is not None:
            turned.append((values, np.roll(scales, 1)))
        for wrong in turned:
            layer._engine = engine.with_weights({**kept, matrix: Narrow(weight_dtype, *wrong)})
            assert different(everything(of_c), everything(of_numba))


def test_a_narrow_layer_records_with_the_gradients_of_c() -> None:
    """The forward kernel is that of the weights, the backward one that of float32."""
    place: Place = ("clockwork", BEST, "int8")
    found = []
    for backend in ("c", "numba"):
        call = on(backend, place, "clockwork", FORM, **SIZE)
        y, state, tape = call.record()
        gradients = gradients_by_name(tape.backward(call.dy, call.dstate))
        found.append([bits(array) for array in (y, *state, *gradients.values())])
    assert not different(*found)


def test_a_kernel_for_each_type_is_built_when_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled, "_built", {})
    for weight_dtype in ("float16", "int8", "w8a7"):
        fr.ClockworkRNN(3, 4, periods=(1,), backend="numba", weight_dtype=weight_dtype)
    assert list(compiled._built) == [
        ("forward", "clockwork", BEST, "float16"),
        ("forward", "clockwork", BEST, "int8"),
    ]
