"""The backward steps of the specification: against central differences, PyTorch's autograd, and themselves."""

from __future__ import annotations

import inspect
import textwrap
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from conftest import FAMILY, oracle
from drawn_calls import FORMS, DrawnCall, Member, draw_call, gradients_by_name, near_a_kink
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import fusedrnn as fr
from fusedrnn.cells import ACTIVATIONS
from fusedrnn.kernels import reference

#: The step of central differences, and what their error may be of the product of both norms.
STEP, BOUND = 1e-6, 1e-7
#: The rounding of float64, over a few hundred sums.
ROUNDING = 1e-12

FORM = {
    "layers": 1, "direction": "forward", "bias": True, "layout": "time first", "start": "given",
    "ragged": False, "resets": False,
}  # fmt: skip
cut = settings(
    max_examples=min(3, settings.default.max_examples),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
#: With the activations that only NumPy has.
WIDE_FAMILY: dict[str, Member] = FAMILY | {
    f"lstm-{name}": (fr.LSTM, {"gate_activation": name, "activation": name, "clip": 1.5})
    for name in set(ACTIVATIONS) - {"sigmoid", "tanh", "relu", "identity", "hard_sigmoid"}
}


@pytest.fixture(params=sorted(WIDE_FAMILY))
def wide_member(request: pytest.FixtureRequest) -> Member:
    return WIDE_FAMILY[request.param]


def drawn(member: Member, form: dict[str, Any] = FORM, *sizes: int, seed: int = 0) -> DrawnCall:
    steps, batch, inputs, hidden = sizes or (4, 3, 2, 6)
    return draw_call(
        member, form, steps, batch, inputs, hidden, seed, backend="numpy", dtype="float64"
    )


def pairing(a: list[Any], b: list[Any]) -> float:
    """The sum of the products of all elements."""
    return sum(float(np.sum(x * y)) for x, y in zip(a, b, strict=True) if y is not None)


def difference(call: DrawnCall, direction: dict[str, np.ndarray], step: float) -> float:
    """The derivative in a direction of what dy and dstate are the gradients of, by central differences."""
    here = call.differentiated()
    there = [
        call.at({name: here[name] + sign * step * direction.get(name, 0) for name in here}).run()
        for sign in (1, -1)
    ]
    (y, state), (y_back, state_back) = there
    moved = [(a - b) / (2 * step) for a, b in zip((y, *state), (y_back, *state_back), strict=True)]
    return pairing(moved, [call.dy, *call.dstate])


def drawn_direction(call: DrawnCall, names: list[str], seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    here = call.differentiated()
    direction = {name: random.standard_normal(here[name].shape) for name in names}
    for name, array in direction.items():
        array[here[name] == 0] = 0  # what a Clockwork RNN never reads must stay zero
    return direction


def assert_by_differences(
    call: DrawnCall,
    directions: list[dict[str, np.ndarray]],
    step: float = STEP,
    bound: float = BOUND,
) -> None:
    gradients = gradients_by_name(call.gradients())
    for direction in directions:
        exact = sum(float(np.sum(gradients[name] * u)) for name, u in direction.items())
        norm = np.sqrt(sum(np.sum(gradients[n] ** 2) * np.sum(u**2) for n, u in direction.items()))
        found = difference(call, direction, step)
        assert abs(found - exact) <= bound * max(norm, 0.1), list(direction)


# ---- central differences -------------------------------------------------------------------------


@cut
@given(form=FORMS, seed=st.integers(0, 2**31))
def test_central_differences(wide_member: Member, form: dict[str, Any], seed: int) -> None:
    call = drawn(wide_member, form, seed=seed)
    assume(not near_a_kink(call, 100 * STEP))
    names = list(call.differentiated())
    assert_by_differences(call, [drawn_direction(call, [name], seed) for name in names])


@pytest.mark.parametrize(
    "name", ["lstm-cell-clip", "lstm-projection", "gru", "gru-before", "clockwork"]
)
def test_every_element_by_central_differences(name: str) -> None:
    call = drawn(FAMILY[name], FORM, 3, 2, 2, 3)
    assert not near_a_kink(call, 100 * STEP)
    units = []
    for which, array in call.differentiated().items():
        for place in np.argwhere(array != 0):
            unit = np.zeros(array.shape)
            unit[tuple(place)] = 1
            units.append({which: unit})
    assert_by_differences(call, units)


#: A member of the family, and what is changed in its backward step.
WRONG = {
    "swapped gates": ("lstm", "[di, df, dg, do]", "[df, di, dg, do]"),
    "swapped gates of a GRU": ("gru", "[dr, dz, dn]", "[dz, dr, dn]"),
    "R_n's bias dropped": ("gru", "q = h @ R_n.T + w.d", "q = h @ R_n.T + 0 * w.d"),
    "the gradient of R_n's bias": ("gru", "dq.sum(0)", "dn.sum(0)"),
    "c' for c in the peephole of i": ("lstm-peephole-i", "(di * c)", "(di * c_new)"),
    "c' for c in the peephole of f": ("lstm-peephole-f", "(df * c)", "(df * c_new)"),
    "c for c' in the peephole of o": ("lstm-peephole-o", "(do * c_new)", "(do * c)"),
    "no gradient of c through o": ("lstm-peephole-o", 'w.p.get("o"), do)', "None, do)"),
    "no gradient of c through i": ("lstm-peephole-i", 'w.p.get("i"), di)', "None, di)"),
    "gradients of clipped cells": ("lstm-cell-clip", "cell_clip.derivative(raw)", "cell_clip(1)"),
    "c' for c in f": ("lstm", "df = dc * c *", "df = dc * c_new *"),
    "uncoupled gates": ("lstm-coupled", "(c - g)", "c"),
    "the projection of h": ("lstm-projection", "dh.T @ m", "dh.T @ (o * c_new)"),
    "the other reset": ("gru-before", "dn.T @ q", "dn.T @ h"),
    "r's share of h": ("gru-before", "dh * z + dq * r", "dh * z"),
    "idle units": ("clockwork", "dh[idle, units] +=", "dh[idle, units] -="),
    "due units that pass h on": ("clockwork", "dh[idle, units] += dnew[idle, units]", "dh[:, units] += dnew[:, units]"),
}  # fmt: skip


def replaced(member: str, old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> DrawnCall:
    """A call of a member of the family whose backward step has one expression changed."""
    call = drawn(FAMILY[member], FORM, 4, 3, 2, 6)
    table = call.layer.architecture.table
    key = (table.name, table.form)
    right = reference.BACKWARD_STEPS[key]
    source = textwrap.dedent(inspect.getsource(right))
    assert old in source
    names = dict(vars(reference))
    exec(source.replace(old, new), names)  # noqa: S102
    monkeypatch.setitem(reference.BACKWARD_STEPS, key, names[right.__name__])
    return call


@pytest.mark.parametrize("what", WRONG)
def test_negative_control_a_wrong_backward_step_fails(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    member, old, new = WRONG[what]
    call = replaced(member, old, new, monkeypatch)
    directions = [drawn_direction(call, [name], 1) for name in call.differentiated()]
    with pytest.raises(AssertionError):
        assert_by_differences(call, directions)
    monkeypatch.undo()
    assert_by_differences(call, directions)


def test_blocks_that_no_module_reads_have_no_gradient() -> None:
    weights = drawn(FAMILY["clockwork"]).gradients().weights
    assert not weights["weight_hh_l0"][2:, :2].any()
    assert not weights["weight_hh_l0"][4:, :4].any()
    assert weights["weight_hh_l0"][:2].all()


def test_adjoint_of_large_layers(wide_member: Member) -> None:
    """<J u, v> = <u, J^T v>, for u in all arrays at once."""
    call = drawn(wide_member, FORM | {"layers": 2, "ragged": True}, 12, 8, 20, 48, seed=5)
    direction = drawn_direction(call, list(call.differentiated()), 6)
    if near_a_kink(call, 100 * STEP):  # as one of so many sums is, where there are kinks
        assert_by_differences(call, [direction], STEP / 100, 10 * BOUND)
    else:
        assert_by_differences(call, [direction])


# ---- activations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivatives_of_activations(name: str) -> None:
    parameters = [number + 0.3 for number in ACTIVATIONS[name]]
    value, derivative = reference.FUNCTIONS[name], reference.DERIVATIVES[name]
    x = np.linspace(-6, 6, 1000)  # no kink is within a step of these
    found = (value(x + STEP, *parameters) - value(x - STEP, *parameters)) / (2 * STEP)
    np.testing.assert_allclose(derivative(x, *parameters), found, rtol=1e-8, atol=1e-8)
    with np.errstate(all="raise", under="ignore"):
        ends = derivative(np.array([-800, 800], np.float32), *parameters)
    assert ends.dtype == np.float32
    assert np.isfinite(ends).all()


def test_kinks_are_as_in_pytorch() -> None:
    torch = oracle("torch")
    functions = {
        "relu": torch.relu,
        "leaky_relu": lambda x: torch.nn.functional.leaky_relu(x, 0.01),
        "thresholded_relu": lambda x: torch.nn.functional.threshold(x - 1, 0, 0),
        "elu": torch.nn.functional.elu,
        "softsign": torch.nn.functional.softsign,
    }
    for name, function in functions.items():
        x = torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
        function(x).sum().backward()
        ours = reference.DERIVATIVES[name](x.detach().numpy(), *ACTIVATIONS[name])
        np.testing.assert_allclose(ours, x.grad.numpy(), rtol=ROUNDING, err_msg=name)
    edges = np.array([-2.5, 2.5])  # inside [0, 1], strictly
    np.testing.assert_array_equal(reference.DERIVATIVES["hard_sigmoid"](edges, 0.2, 0.5), [0, 0])


def test_derivatives_keep_their_digits_far_out() -> None:
    x = np.array([30.0, -30.0])
    np.testing.assert_allclose(reference.DERIVATIVES["sigmoid"](x), np.exp(-30), rtol=1e-12)
    np.testing.assert_allclose(reference.DERIVATIVES["tanh"](x), 4 * np.exp(-60), rtol=1e-12)


# ---- PyTorch -------------------------------------------------------------------------------------

TORCH: dict[str, tuple[str, Member, dict[str, Any]]] = {
    "LSTM": ("LSTM", (fr.LSTM, {}), {}),
    "LSTM, projected": ("LSTM", (fr.LSTM, {"proj_size": 2}), {"proj_size": 2}),
    "GRU": ("GRU", (fr.GRU, {}), {}),
    "RNN": ("RNN", (fr.RNN, {}), {}),
    "RNN, relu": ("RNN", (fr.RNN, {"activation": "relu"}), {"nonlinearity": "relu"}),
}


@pytest.mark.parametrize("ragged", [False, True], ids=["equal", "ragged"])
@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("name", TORCH)
def test_against_autograd(name: str, direction: str, ragged: bool) -> None:
    torch = oracle("torch")
    module_name, member, chosen = TORCH[name]
    form = FORM | {
        "layers": 2, "direction": direction, "bias": "double", "layout": "batch first", "ragged": ragged,
    }  # fmt: skip
    call = drawn(member, form, 7, 5, 3, 6)
    if ragged:  # PyTorch has no sequences of length 0
        call.lengths[:] = np.maximum(call.lengths, 1)
        call.lengths[0] = 7
    layer = call.layer
    module = getattr(torch.nn, module_name)(
        3, 6, 2, bidirectional=direction == "both", batch_first=True, dtype=torch.float64, **chosen
    )
    module.load_state_dict({n: torch.from_numpy(a.copy()) for n, a in layer.weights.items()})
    x = torch.from_numpy(call.x).requires_grad_()
    state = [torch.from_numpy(array).requires_grad_() for array in call.state]
    given = tuple(state) if len(state) > 1 else state[0]
    if ragged:
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            x, torch.from_numpy(call.lengths), batch_first=True, enforce_sorted=False
        )
        y, after = module(packed, given)
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True)
    else:
        y, after = module(x, given)
    after = after if isinstance(after, tuple) else (after,)
    torch.autograd.backward([y, *after], [torch.from_numpy(a) for a in (call.dy, *call.dstate)])

    ours = gradients_by_name(call.gradients())
    theirs = {"x": x.grad, **{f"state {k}": each.grad for k, each in enumerate(state)}}
    theirs |= {n: parameter.grad for n, parameter in module.named_parameters()}
    assert ours.keys() == theirs.keys()
    for n, gradient in ours.items():
        np.testing.assert_allclose(
            gradient, theirs[n].numpy(), rtol=ROUNDING, atol=ROUNDING, err_msg=n
        )


# ---- resets, lengths -----------------------------------------------------------------------------


def added(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: sum(part[name] for part in parts) for name in parts[0]}


def assert_close(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name, array in a.items():
        np.testing.assert_allclose(array, b[name], rtol=ROUNDING, atol=ROUNDING, err_msg=name)


def test_a_reset_is_where_a_sequence_is_cut(member: Member) -> None:
    call = drawn(member, FORM | {"layers": 2}, 9, 1, 3, 6)
    layer, cuts = call.layer, (0, 4, 5, 9)
    resets = np.zeros((9, 1), bool)
    resets[[4, 5]] = True
    y, state, tape = layer.record(call.x, call.state, resets=resets)
    y_plain, state_plain = layer(call.x, call.state, resets=resets)
    np.testing.assert_array_equal(y, y_plain)
    gradients = tape.backward(call.dy, call.dstate)

    ys, dxs, weights = [], [], []
    for start, end in pairwise(cuts):
        before = call.state if start == 0 else None
        y_part, after, part_tape = layer.record(call.x[start:end], before)
        part = part_tape.backward(call.dy[start:end], call.dstate if end == 9 else None)
        ys.append(y_part)
        dxs.append(part.x)
        weights.append(part.weights)
        if start == 0:
            for mine, whole in zip(part.state, gradients.state, strict=True):
                assert mine is whole is None or np.array_equal(mine, whole)
    np.testing.assert_array_equal(np.concatenate(ys), y)
    np.testing.assert_array_equal(np.concatenate(dxs), gradients.x)
    for mine, plain, whole in zip(after, state_plain, state, strict=True):
        np.testing.assert_array_equal(mine, whole)
        np.testing.assert_array_equal(plain, whole)
    assert_close(added(weights), gradients.weights)
    # Negative control: without resets, the numbers are others.
    assert not np.array_equal(layer(call.x, call.state)[0], y)


def test_a_reset_at_the_first_step_cuts_the_state_off(member: Member) -> None:
    call = drawn(member)
    resets = np.zeros((4, 3), bool)
    resets[0, 1] = True
    gradients = call.layer.record(call.x, call.state, resets=resets)[2].backward(call.dy)
    for array in gradients.state:
        assert array is None or (not array[:, 1].any() and array[:, [0, 2]].any())


@pytest.mark.parametrize("direction", ["forward", "reverse", "both"])
def test_ragged_rows_are_rows_alone(member: Member, direction: str) -> None:
    form = FORM | {"layers": 2, "direction": direction}
    call = drawn(member, form, 6, 4, 3, 6)
    lengths = [6, 0, 3, 1]
    x, dy = call.x.copy(), call.dy.copy()
    for row, length in enumerate(lengths):  # neither is read past the end
        x[length:, row] = dy[length:, row] = np.nan
    gradients = call.layer.record(x, call.state, lengths)[2].backward(dy, call.dstate)

    weights = []
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        state = [array[:, one] for array in call.state]
        dstate = [None if array is None else array[:, one] for array in call.dstate]
        alone = call.layer.record(x[:length, one], state)[2].backward(dy[:length, one], dstate)
        np.testing.assert_allclose(gradients.x[:length, one], alone.x, rtol=0, atol=ROUNDING)
        assert not gradients.x[length:, row].any()
        for whole, mine in zip(gradients.state, alone.state, strict=True):
            assert whole is mine is None or np.allclose(whole[:, one], mine, rtol=0, atol=ROUNDING)
        weights.append(alone.weights)
    assert_close(added(weights), gradients.weights)
