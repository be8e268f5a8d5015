"""What is counted is what is executed: counts beside an instrumented run of the specification."""

from __future__ import annotations

import csv
import io
import json
import pickle
import re
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import FrozenInstanceError, dataclass, replace
from fractions import Fraction
from math import lcm
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedrnn.architecture import BIASES, Architecture
from fusedrnn.cells import ACTIVATIONS, CELLS, Cell, Equation, Gate, State
from fusedrnn.counting.counts import CONVENTIONS, MAX_RATE, Complexity, count
from fusedrnn.counting.operations import Counts, Operations, Part
from fusedrnn.kernels import reference

# An instrumented run of the specification


class Counted(np.ndarray[Any, np.dtype[Any]]):
    """An array that counts what is made with it, and knows whether its gradient is wanted."""

    made: ClassVar[Counter[str]] = Counter()
    #: Weights have a gradient and so has what is made of them; inputs and first states have none.
    learns: bool = False

    def __array_finalize__(self, source: Any) -> None:
        self.learns = getattr(source, "learns", False)

    def __setitem__(self, place: Any, value: Any) -> None:
        super().__setitem__(place, value)
        self.learns = self.learns or getattr(value, "learns", False)

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, **keywords: Any
    ) -> Counted:
        assert method == "__call__"
        plain = [np.asarray(value) for value in inputs]
        learning = [getattr(value, "learns", False) for value in inputs]
        if ufunc is np.matmul:
            left, right = plain
            terms: np.ndarray[Any, Any] = left[:, :, np.newaxis] * right[np.newaxis]
            Counted.made["multiply-add"] += terms.size
            # The gradient of a factor is a product of this very size.
            Counted.made["backward multiply-add"] += terms.size * sum(learning)
            result: np.ndarray[Any, Any] = terms.sum(axis=1)
        else:
            result = ufunc(*plain, **keywords)
            Counted.made[ufunc.__name__] += result.size
        return as_counted(result, learns=any(learning))


def as_counted(array: np.ndarray[Any, Any], *, learns: bool = False) -> Counted:
    view = array.view(Counted)
    view.learns = learns
    return view


def counted(name: str) -> Callable[..., Any]:
    """An activation of the reference that counts itself, and not what it is made of."""
    function = reference.FUNCTIONS[name]

    def activation(x: Any, *parameters: float) -> Any:
        Counted.made[name] += x.size
        return as_counted(function(np.asarray(x), *parameters), learns=x.learns)

    return activation


@dataclass(frozen=True)
class Run:
    """What a run of the reference did and held."""

    made: Counter[str]
    parameters: int
    state_size: int
    state_counters: int
    bytes_moved: int


def layer_parameters(architecture: Architecture) -> dict[tuple[int, int], reference.Parameters]:
    """What each layer and direction is given, in arrays that count."""
    arrays: dict[tuple[int, int], dict[str, list[Any]]] = {}
    for weight in architecture.weights():
        kinds = ("input", "recurrent", "bias", "projection", "peephole")
        place = arrays.setdefault((weight.layer, weight.direction), {kind: [] for kind in kinds})
        place[weight.kind].append(as_counted(np.full(weight.shape, 0.1), learns=True))
    return {place: reference.parameters(architecture, kinds) for place, kinds in arrays.items()}


def first_state(architecture: Architecture, batch: int) -> tuple[Any, ...]:
    """The state of one layer and direction; a count is a plain array of integers."""
    return tuple(
        np.zeros(batch, np.int64)
        if state.kind == "counter"
        else as_counted(np.zeros(architecture.state_shape(state, batch)[1:]))
        for state in architecture.table.states
    )


def bytes_of(*values: Any) -> int:
    """Bytes of arrays if their floats were float32."""
    return sum(value.size * {"f": 4, "i": 8}[value.dtype.kind] for value in values)


def run(architecture: Architecture, lengths: list[int]) -> Run:
    """Drive the reference over every sequence, layer, direction and step, with counting arrays."""
    step = reference.STEPS[architecture.cell, architecture.table.form]
    every = layer_parameters(architecture)
    ragged = len(set(lengths)) > 1
    moved = 0
    with pytest.MonkeyPatch.context() as patch:
        for name in ACTIVATIONS:
            patch.setitem(reference.FUNCTIONS, name, counted(name))
        Counted.made = Counter()
        # Ragged sequences run one after the other.
        for steps, batch in [(T, 1) for T in lengths] if ragged else [(lengths[0], len(lengths))]:
            x = [as_counted(np.full((batch, architecture.input_size), 0.1)) for _ in range(steps)]
            for layer in range(architecture.num_layers):
                outputs: list[list[Any]] = []
                for direction in range(architecture.directions):
                    state = first_state(architecture, batch)
                    order = slice(None, None, -1 if direction else 1)
                    y = []
                    for x_t in x[order]:
                        new = step(x_t, state, every[layer, direction])
                        moved += bytes_of(x_t, *state, *new, new[0])
                        state = new
                        y.append(state[0])
                    outputs.append(y[order])
                x = [
                    as_counted(np.concatenate(at_one_step, axis=1), learns=True)
                    for at_one_step in zip(*outputs)
                ]
            assert x[0].shape == (batch, architecture.output_size)
    sizes = Counter[str]()
    for value in first_state(architecture, 1):
        sizes[value.dtype.kind] += value.size * len(every)
    return Run(
        made=Counted.made,
        # The array of a Clockwork RNN also has what must be zero; no module ever reads it.
        parameters=sum(weight.elements for weight in architecture.weights()),
        state_size=sizes["f"],
        state_counters=sizes["i"],
        bytes_moved=moved,
    )


def check(done: Run, complexity: Complexity) -> None:
    """Compare a run with a count, figure by figure."""
    architecture = complexity.architecture
    table = architecture.table
    # W x and R h are one sum in a kernel, two and an addition in the reference. It adds a bias even
    # where there is none.
    own = len(table.own_recurrent_bias)
    per_unit = len(table.gates) - own + len(table.gates) + own
    active = sum(
        complexity.runs(part.period) * architecture.hidden_size // len(row.work.parts)
        for row in complexity.layers
        for part in row.work.parts
    )
    assert done.made["multiply-add"] == complexity.macs
    assert done.made["multiply"] == complexity.elementwise_multiplies
    adds = done.made["add"] + done.made["subtract"]
    assert adds == complexity.elementwise_adds + per_unit * active
    names = [*ACTIVATIONS, "clip"]
    assert {name: done.made[name] for name in names if done.made[name]} == complexity.activations
    assert done.parameters == complexity.parameters_stored
    assert done.state_size == complexity.state_size
    assert done.state_counters == complexity.state_counters
    assert done.bytes_moved == complexity.bytes_cached
    if complexity.backward:
        assert done.made["backward multiply-add"] == complexity.backward_macs
    if architecture.bias != "none":
        assert complexity.bias_adds == (len(table.gates) + own) * active
    if architecture.bias == "single":
        assert done.parameters == complexity.parameters


ROWS = [row for rows in CELLS.values() for row in rows]


@st.composite
def architectures(draw: st.DrawFn, /, rows: list[Cell] = ROWS, **fixed: Any) -> Architecture:
    """Small stacks of some cells, with any of the options that they have."""
    row = draw(st.sampled_from(rows))
    units = draw(st.integers(1, 6))
    peepholes = st.sets(st.sampled_from([gate.name for gate in row.gates if gate.peephole] or [""]))
    modules = draw(st.sampled_from([count for count in range(1, 7) if units % count == 0]))
    period = st.sampled_from([1, 1, 2, 3, 4, 6])
    activation = st.sampled_from(sorted(ACTIVATIONS))
    limit = st.none() | st.floats(0.1, 10)
    choices: dict[str, st.SearchStrategy[Any]] = {
        "proj_size": st.integers(0, units - 1),
        "peephole": peepholes.map("".join),
        "coupled": st.just(row.form == "coupled"),
        "reset": st.just(row.form),
        "periods": st.lists(period, min_size=modules, max_size=modules).map(sorted),
        "gate_activation": activation,
        "activation": activation,
        "output_activation": activation,
        "clip": limit,
        "cell_clip": limit,
    }
    options: dict[str, Any] = {name: draw(choices[name]) for name in sorted(row.options)}
    options |= {
        "input_size": draw(st.integers(1, 6)),
        "num_layers": draw(st.integers(1, 3)),
        "bidirectional": draw(st.booleans()),
        "bias": draw(st.sampled_from(BIASES)),
    }
    architecture = Architecture(cell=row.name, hidden_size=units, **(options | fixed))
    assert architecture.table is row
    return architecture


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.title)
@settings(deadline=None)
@given(data=st.data(), steps=st.integers(1, 6), batch=st.integers(1, 3))
def test_counts_are_what_the_specification_executes(
    row: Cell, data: st.DataObject, steps: int, batch: int
) -> None:
    architecture = data.draw(architectures([row]))
    done = count(architecture, steps=steps, batch=batch, backward=True)
    check(run(architecture, [steps] * batch), done)


@settings(deadline=None)
@given(architecture=architectures(), lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_ragged_batches_cost_the_sum_of_their_lengths(
    architecture: Architecture, lengths: list[int]
) -> None:
    done = count(architecture, lengths=lengths, backward=True)
    check(run(architecture, lengths), done)
    assert (done.steps, done.batch) == (max(lengths), len(lengths))
    assert done.sequence_steps == sum(lengths)
    each = [count(architecture, steps=length, backward=True) for length in lengths]
    for figure in ("macs", "flops", "bias_adds", "backward_macs", "bytes_cached"):
        assert getattr(done, figure) == sum(getattr(one, figure) for one in each)
    # Weights are read as often as by the longest sequence.
    longest = count(architecture, steps=max(lengths))
    assert done.bytes - done.bytes_cached == longest.bytes - longest.bytes_cached


@settings(deadline=None)
@given(architecture=architectures(list(CELLS["clockwork"])))
def test_a_cycle_of_a_clockwork_rnn_is_its_average(architecture: Architecture) -> None:
    cycle = lcm(*architecture.periods)
    whole = count(architecture, steps=cycle)
    assert whole.cycle == cycle
    assert run(architecture, [cycle]).made["multiply-add"] == cycle * whole.macs_per_step
    for figure in ("macs", "flops", "bias_adds"):
        assert getattr(whole, figure) == cycle * getattr(whole.average, figure)
    assert whole.bytes == cycle * whole.bytes_per_step
    # The busiest step is the first: there, everything is active.
    first = run(architecture, [1])
    assert first.made["multiply-add"] == whole.peak_macs_per_step == whole.total.matrix_weights
    assert count(architecture).flops == whole.peak_flops_per_step
    assert count(architecture).bytes == whole.peak_bytes_per_step


def lstm_without_output_gate(
    x: Any, state: tuple[Any, ...], w: reference.Parameters
) -> tuple[Any, ...]:
    h, c = state
    W_i, W_f, W_g, _ = np.split(w.W, 4)
    R_i, R_f, R_g, _ = np.split(w.R, 4)
    b_i, b_f, b_g, _ = np.split(w.b, 4)
    i = w.gate(x @ W_i.T + h @ R_i.T + b_i)
    f = w.gate(x @ W_f.T + h @ R_f.T + b_f)
    g = w.state(x @ W_g.T + h @ R_g.T + b_g)
    c = f * c + i * g
    return w.output(c), c


def clockwork_that_masks(
    x: Any, state: tuple[Any, ...], w: reference.Parameters
) -> tuple[Any, ...]:
    """Computes modules that rest too, and throws them away: the same h, but not the same cost."""
    h, t = state
    (new,) = reference.rnn(x, (h,), w)
    resting = np.zeros(new.shape, bool)
    for m, period in enumerate(w.architecture.periods):
        size = w.architecture.module_size
        resting[:, m * size : (m + 1) * size] = (t % period != 0)[:, np.newaxis]
    new[resting] = h[resting]
    return new, t + 1


@pytest.mark.parametrize(
    ("architecture", "wrong"),
    [
        (Architecture("lstm", 5, 4), lstm_without_output_gate),
        (Architecture("clockwork", 5, 4, periods=(1, 2)), clockwork_that_masks),
        (Architecture("gru", 5, 4), reference.gru_before),
    ],
)
def test_a_step_that_does_something_else_is_noticed(
    architecture: Architecture, wrong: reference.Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = count(architecture, steps=3, batch=2)
    check(run(architecture, [3, 3]), done)
    monkeypatch.setitem(reference.STEPS, (architecture.cell, architecture.table.form), wrong)
    with pytest.raises(AssertionError):
        check(run(architecture, [3, 3]), done)


EVERYTHING = Architecture("lstm", 5, 4, proj_size=3, peephole="io", clip=3, activation="relu")


@pytest.mark.parametrize(
    "figure",
    [name for name in Counts.__dataclass_fields__ if name not in {"biases_two"}]
    + [name for name in Operations.__dataclass_fields__ if name != "peephole_products"],
)
def test_a_count_that_is_off_by_one_is_noticed(figure: str) -> None:
    done, right = run(EVERYTHING, [1]), count(EVERYTHING)
    (row,) = right.layers
    (part,) = row.work.parts
    if figure in Counts.__dataclass_fields__:
        more: Any = getattr(row.counts, figure) + 1
        off = replace(row, counts=replace(row.counts, **{figure: more}))
    else:
        value = getattr(part.operations, figure)
        more = (("sigmoid", 13), *value[1:]) if figure == "activations" else value + 1
        operations = replace(part.operations, **{figure: more})
        off = replace(row, work=replace(row.work, parts=(Part(1, operations),)))
    check(done, right)
    with pytest.raises(AssertionError):
        check(done, replace(right, layers=(off,)))


@given(architecture=architectures())
def test_every_weight_costs_what_it_holds(architecture: Architecture) -> None:
    """At the peak there is one MAC per matrix weight, one product per peephole, one add per bias."""
    for row in count(architecture).layers:
        counts, peak = row.counts, row.work.peak
        assert peak.input_macs == counts.input_weights
        assert peak.recurrent_macs == counts.recurrent_weights
        assert peak.projection_macs == counts.projection_weights
        assert peak.peephole_products == counts.peephole_weights
        assert peak.bias_adds == counts.biases


# Closed forms and published figures


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("projection", [0, 3])
@given(inputs=st.integers(1, 5000), units=st.integers(4, 5000))
def test_closed_forms_of_the_lstm(bias: Any, projection: int, inputs: int, units: int) -> None:
    lstm = count(
        "lstm",
        input_size=inputs,
        hidden_size=units,
        proj_size=projection,
        bias=bias,
        weight_dtype="int8",
    )
    fed_back = projection or units
    weights = 4 * units * (inputs + fed_back) + projection * units
    vectors = {"none": 0, "single": 1, "double": 2}[bias]
    one = min(vectors, 1) * 4 * units
    assert lstm.parameters == weights + one
    assert lstm.parameters_stored == weights + vectors * 4 * units
    assert lstm.parameters_two_biases == (weights + 8 * units if vectors else None)
    assert lstm.total.projection_weights == projection * units
    assert lstm.macs_per_step == weights
    assert lstm.elementwise_multiplies == 3 * units
    assert lstm.elementwise_adds == units
    assert lstm.activations == {"sigmoid": 3 * units, "tanh": 2 * units}
    assert lstm.flops == 2 * weights + one + 4 * units
    assert lstm.state_size == units + fed_back
    assert lstm.weight_bytes == weights + 4 * one
    assert lstm.bytes_cached == 4 * (inputs + fed_back + 2 * (units + fed_back))
    assert lstm.bytes == lstm.weight_bytes + lstm.bytes_cached
    assert lstm.intensity == lstm.flops / lstm.bytes


def test_the_formula_of_the_headline() -> None:
    lstm = count("lstm", input_size=1500, hidden_size=1500)
    assert lstm.parameters == 4 * (1500 * (1500 + 1500) + 1500) == 18_006_000
    assert lstm.macs_per_step == 8 * 1500**2


@pytest.mark.parametrize(
    ("options", "parameters", "macs", "multiplies"),
    [
        ({}, 27_136, 559_104, 4_032),
        ({"steps": 14}, 27_136, 1_118_208, 8_064),
        ({"batch": 1}, 27_136, 186_368, 1_344),
        ({"bias": "none"}, 26_624, 559_104, 4_032),
        ({"num_layers": 2, "bidirectional": True}, 153_600, 3_182_592, 16_128),
        ({"proj_size": 16}, 15_872, 322_560, 4_032),
        ({"num_layers": 2, "bidirectional": True, "proj_size": 16}, 59_392, 1_204_224, 16_128),
    ],
)
def test_the_modules_of_pytorch(
    options: dict[str, Any], parameters: int, macs: int, multiplies: int
) -> None:
    """Parameters of torch.nn.LSTM(40, 64) and exact GEMM MACs at T = 7, B = 3, or as given."""
    arguments: dict[str, Any] = {
        "input_size": 40,
        "hidden_size": 64,
        "steps": 7,
        "batch": 3,
        "bias": "double",
    }
    lstm = count("lstm", **(arguments | options))
    assert lstm.parameters_stored == parameters
    assert lstm.macs == macs
    assert lstm.elementwise_multiplies == multiplies


def test_keras_keeps_one_bias() -> None:
    assert count("lstm", input_size=40, hidden_size=64).parameters_stored == 26_880


@pytest.mark.parametrize(
    ("layers", "units", "projection", "published"),
    [
        (1, 1024, 512, 4_718_592),
        (1, 2048, 512, 9_437_184),
        (4, 512, 0, 8_388_608),
        (2, 8192, 1024, 150_994_944),
    ],
)
def test_the_models_of_shazeer_2017(
    layers: int, units: int, projection: int, published: int
) -> None:
    """Table 7 of arXiv:1701.06538 counts operations per step and parameters alike, no biases."""
    lstm = count(
        "lstm",
        input_size=projection or units,
        hidden_size=units,
        num_layers=layers,
        proj_size=projection,
        bias="none",
    )
    assert lstm.macs_per_step == lstm.parameters == published


def test_the_recurrent_part_of_sutskever_2014() -> None:
    """arXiv:1409.3215: 64M parameters in the recurrent connections of encoder and decoder."""
    size: dict[str, Any] = {
        "input_size": 1000,
        "hidden_size": 1000,
        "num_layers": 4,
        "bias": "none",
    }
    assert 2 * count("lstm", **size).parameters == 64_000_000


@given(
    units=st.integers(1, 500), inputs=st.integers(1, 500), layers=st.integers(1, 4), data=st.data()
)
def test_both_directions_cost_twice_only_in_the_first_layer(
    units: int, inputs: int, layers: int, data: st.DataObject
) -> None:
    projection = data.draw(st.integers(0, units - 1))
    size = Architecture("lstm", inputs, units, num_layers=layers, proj_size=projection)
    one, two = count(size), count(replace(size, bidirectional=True))

    def matrices(complexity: Complexity, layer: int) -> int:
        rows = [row.counts for row in complexity.layers if row.layer == layer]
        return sum(row.input_weights + row.recurrent_weights for row in rows)

    assert matrices(two, 0) == 2 * matrices(one, 0)
    for layer in range(1, layers):
        assert matrices(two, layer) == 3 * matrices(one, layer)


SIZES = {"inputs": st.integers(1, 5000), "units": st.integers(1, 5000)}


@pytest.mark.parametrize("bias", BIASES)
@given(**SIZES)
def test_closed_forms_of_the_rnn(bias: Any, inputs: int, units: int) -> None:
    rnn = count("rnn", input_size=inputs, hidden_size=units, bias=bias)
    weights, vectors = units * (inputs + units), {"none": 0, "single": 1, "double": 2}[bias]
    assert rnn.parameters == weights + min(vectors, 1) * units
    assert rnn.parameters_stored == weights + vectors * units
    assert rnn.macs_per_step == weights
    assert (rnn.elementwise_multiplies, rnn.elementwise_adds) == (0, 0)
    assert rnn.activations == {"tanh": units}
    assert rnn.state_size == units


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize(("reset", "sums"), [("after", 3), ("before", 2)])
@given(**SIZES)
def test_closed_forms_of_the_gru(bias: Any, reset: str, sums: int, inputs: int, units: int) -> None:
    gru = count("gru", input_size=inputs, hidden_size=units, bias=bias, reset=reset)
    weights = 3 * units * (inputs + units)
    effective = 0 if bias == "none" else {"after": 4, "before": 3}[reset] * units
    assert gru.parameters == weights + effective
    assert gru.parameters_stored == weights + (6 * units if bias == "double" else effective)
    assert gru.parameters_two_biases == (None if bias == "none" else weights + 6 * units)
    assert gru.macs_per_step == weights
    assert gru.bias_adds == effective
    assert (gru.elementwise_multiplies, gru.elementwise_adds) == (3 * units, sums * units)
    assert gru.activations == {"sigmoid": 2 * units, "tanh": units}
    assert gru.state_size == units


@pytest.mark.parametrize("projection", [0, 3])
@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("peephole", ["", "o", True])
@given(inputs=st.integers(1, 5000), units=st.integers(4, 5000))
def test_closed_forms_of_the_options_of_the_lstm(
    projection: int, coupled: bool, peephole: str | bool, inputs: int, units: int
) -> None:
    lstm = count(
        "lstm",
        input_size=inputs,
        hidden_size=units,
        proj_size=projection,
        coupled=coupled,
        peephole=peephole,
    )
    gates, fed_back = 4 - coupled, projection or units
    looks = (3 - coupled if peephole is True else len(str(peephole))) * units
    weights = gates * units * (inputs + fed_back) + projection * units
    assert lstm.macs_per_step == weights
    assert lstm.parameters == weights + gates * units + looks
    assert lstm.parameters_two_biases == weights + 2 * gates * units + looks
    assert lstm.elementwise_multiplies == 3 * units + looks
    assert lstm.elementwise_adds == (1 + coupled) * units + looks
    assert lstm.activations == {"sigmoid": (3 - coupled) * units, "tanh": 2 * units}
    assert lstm.state_size == fed_back + units


@given(modules=st.integers(1, 12), size=st.integers(1, 60), inputs=st.integers(1, 500))
def test_closed_forms_of_the_clockwork_rnn(modules: int, size: int, inputs: int) -> None:
    """With periods 1, 2, 4, ...: Koutnik et al. 2014."""
    units, periods = modules * size, tuple(2**m for m in range(modules))
    rnn = count("clockwork", input_size=inputs, hidden_size=units, periods=periods)
    assert rnn.total.recurrent_weights == Fraction(units**2 * (modules + 1), 2 * modules)
    assert rnn.parameters == rnn.total.recurrent_weights + units * inputs + units
    assert rnn.peak_macs_per_step == rnn.parameters - units
    rest = Fraction(2, 2**modules)
    average = size**2 * (2 * modules - 2 + rest) + size * inputs * (2 - rest)
    assert rnn.macs_per_step == average
    assert dict(rnn.average.activations) == {"tanh": size * (2 - rest)}
    assert (rnn.state_size, rnn.state_counters, rnn.state_bytes) == (units, 1, 4 * units + 8)


@pytest.mark.parametrize(
    ("units", "modules", "inputs", "parameters", "average", "full", "peak"),
    [
        (64, 8, 40, 4_928, 1_534, 6_656, 4_864),
        (256, 8, 64, 53_504, 18_424, 81_920, 53_248),
        (512, 4, 128, 229_888, 131_072, 327_680, 229_376),
    ],
)
def test_figures_of_clockwork_rnns(
    units: int, modules: int, inputs: int, parameters: int, average: int, full: int, peak: int
) -> None:
    periods = tuple(2**m for m in range(modules))
    rnn = count("clockwork", input_size=inputs, hidden_size=units, periods=periods)
    assert rnn.parameters == parameters
    assert rnn.macs_per_step == average
    assert rnn.peak_macs_per_step == peak
    assert rnn.cycle == periods[-1]
    assert count("rnn", input_size=inputs, hidden_size=units).macs_per_step == full


def test_the_clockwork_rnn_without_inputs() -> None:
    """27 units in 9 modules, as its recurrent part alone: 144.035 MACs per step on average."""
    periods = tuple(2**m for m in range(9))
    rnn = count("clockwork", input_size=1, hidden_size=27, periods=periods)
    assert rnn.parameters - rnn.total.input_weights == 432
    assert rnn.peak.recurrent_macs == 405
    assert f"{float(rnn.average.recurrent_macs):.3f}" == "144.035"
    assert count("rnn", input_size=1, hidden_size=27).peak.recurrent_macs == 729


def test_modules_of_equal_period_read_each_other() -> None:
    one = count("clockwork", input_size=3, hidden_size=6, periods=(1, 1))
    rnn = count("rnn", input_size=3, hidden_size=6)
    assert (one.macs_per_step, one.parameters) == (rnn.macs_per_step, rnn.parameters)


def test_gates_are_quarters_of_an_lstm() -> None:
    size: dict[str, Any] = {"input_size": 40, "hidden_size": 64}
    lstm = count("lstm", **size).macs
    assert 4 * count("rnn", **size).macs == lstm
    for cell, options in (("gru", {}), ("gru", {"reset": "before"}), ("lstm", {"coupled": True})):
        assert 4 * count(cell, **size, **options).macs == 3 * lstm


def test_a_packed_batch_is_not_padded() -> None:
    lstm = count("lstm", input_size=40, hidden_size=64, lengths=[7, 3, 1])
    assert lstm.macs == 292_864
    assert lstm.bytes == 7 * lstm.weight_bytes + lstm.bytes_cached


def test_the_backward_pass_of_a_stack() -> None:
    """A 2-layer bidirectional LSTM: without the gradients of its input and of its first states."""
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "steps": 7, "batch": 3}
    lstm = count("lstm", input_size=40, hidden_size=64, backward=True, **options)
    assert lstm.backward_macs is not None
    assert lstm.training_macs is not None
    assert 2 * lstm.macs == 6_365_184
    assert 3 * 2 * lstm.macs - 860_160 - 393_216 == 17_842_176 == 2 * lstm.training_macs
    assert lstm.backward_macs == lstm.training_macs - lstm.macs
    assert count("lstm", input_size=40, hidden_size=64, **options).training_macs is None


# Beside PyTorch

MODULES = pytest.mark.parametrize(
    ("cell", "module", "options"),
    [
        ("rnn", "RNN", {}),
        ("lstm", "LSTM", {}),
        ("lstm", "LSTM", {"proj_size": 16}),
        ("gru", "GRU", {}),
        ("rnn", "RNN", {"num_layers": 2, "bidirectional": True}),
        ("lstm", "LSTM", {"num_layers": 2, "bidirectional": True}),
        ("lstm", "LSTM", {"num_layers": 2, "bidirectional": True, "proj_size": 16}),
        ("gru", "GRU", {"num_layers": 2, "bidirectional": True}),
    ],
)


@MODULES
@pytest.mark.parametrize("bias", [False, True])
def test_pytorch_holds_as_many_parameters(
    cell: str, module: str, options: dict[str, Any], bias: bool
) -> None:
    torch = pytest.importorskip("torch")
    held = sum(
        array.numel()
        for array in getattr(torch.nn, module)(40, 64, bias=bias, **options).parameters()
    )
    done = count(cell, input_size=40, hidden_size=64, bias="double" if bias else "none", **options)
    assert done.parameters_stored == held
    assert done.parameters_two_biases == (held if bias else None)


@MODULES
@pytest.mark.filterwarnings("ignore:TF32")
def test_pytorch_executes_as_many_matrix_products(
    cell: str, module: str, options: dict[str, Any]
) -> None:
    torch = pytest.importorskip("torch")
    counter = pytest.importorskip("torch.utils.flop_counter")
    model = getattr(torch.nn, module)(40, 64, **options)
    # What oneDNN runs is hidden from PyTorch's counter.
    with (
        torch.backends.mkldnn.flags(enabled=False),
        counter.FlopCounterMode(display=False) as flops,
    ):
        y, _ = model(torch.ones(7, 3, 40))
        forward = flops.get_total_flops()
        y.sum().backward()
    done = count(cell, input_size=40, hidden_size=64, steps=7, batch=3, backward=True, **options)
    assert done.training_macs is not None
    assert forward == 2 * done.macs
    assert flops.get_total_flops() == 2 * done.training_macs


# Derived from the table


def test_a_new_cell_is_counted_from_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    gates = (Gate("z", "gate", "how much"), Gate("n", "state", "what", peephole="h"))
    cell = Cell(
        name="made_up",
        title="Made up",
        gates=gates,
        states=(State("h", "hidden"),),
        products=("z * n",),
        sums=("h + n", "h - n"),
        recorded=("z", "n", "h + n"),
        gradient_products=("dh * z", "dh * n", "dn * h"),
        gradient_sums=("dh + dn",),
        outputs=("h",),
        equations=(Equation("n = tanh(W_n x + R_n (z * h))", "n", ("z",), "state"),),
        after_first_product=("n",),
        options=frozenset({"peephole"}),
        own_recurrent_bias=("n",),
    )
    monkeypatch.setitem(CELLS, "made_up", (cell,))
    done = count("made_up", input_size=3, hidden_size=5, peephole=True, backward=True)
    assert done.parameters == 2 * (5 * (5 + 3) + 5) + 5 + 5
    assert done.activations == {"sigmoid": 5, "tanh": 10}
    assert (done.elementwise_multiplies, done.elementwise_adds, done.state_size) == (10, 15, 5)
    assert done.backward_macs == 2 * 80 - 2 * 15 - 25
    assert done.backward_executed is not None
    assert done.backward_executed.elementwise_multiplies == 5 * 3 + 3 * 5
    assert done.backward_executed.elementwise_adds == 5 * 1 + 3 * 5 + 5
    assert done.tape_size == 3 * 5 + 5
    assert "2*(5*(5+3)+5)+5+1*5 = 100" in done.explain()
    with pytest.raises(ValueError, match="proj_size is not an option of made_up"):
        count("made_up", input_size=3, hidden_size=5, proj_size=2)


@given(architecture=architectures())
def test_every_weight_of_the_architecture_is_counted(architecture: Architecture) -> None:
    done = count(architecture)
    assert done.parameters_stored == sum(weight.elements for weight in architecture.weights())
    places = [(row.layer, row.direction) for row in done.layers]
    assert places == sorted({(weight.layer, weight.direction) for weight in architecture.weights()})


# Arguments


def test_a_layer_and_an_architecture_and_a_name_count_alike() -> None:
    size = Architecture("lstm", 4, 5, num_layers=2)
    layer = SimpleNamespace(architecture=size)
    by_name = count("lstm", input_size=4, hidden_size=5, num_layers=2, steps=3)
    assert count(size, steps=3) == count(layer, steps=3) == by_name


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "lsmt", "input_size": 1, "hidden_size": 1}, ValueError, "cell must be one of"),
        ({"model": "lstm", "input_size": 1}, TypeError, "hidden_size is missing"),
        ({"model": "lstm", "size": 1}, TypeError, "unknown keyword 'size'; a cell has input_size"),
        ({"model": 3}, TypeError, "model must be .* not int"),
        ({"model": None}, TypeError, "model must be .* not NoneType"),
        ({"hidden_size": 3}, TypeError, "hidden_size: .* brings its own sizes"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"steps": 1.5}, TypeError, "steps must be an int, not float"),
        ({"batch": True}, TypeError, "batch must be an int, not bool"),
        ({"batch": -1}, ValueError, "batch must be at least 1, got -1"),
        (
            {"weight_dtype": "float16"},
            ValueError,
            "weight_dtype must be one of float32, bfloat16, int8",
        ),
        ({"lengths": 3}, TypeError, "lengths must be a sequence of ints, not int"),
        ({"lengths": "731"}, TypeError, "lengths must be a sequence of ints, not str"),
        ({"lengths": []}, ValueError, "lengths must name a length per sequence"),
        ({"lengths": [0, 0]}, ValueError, "not all of them 0"),
        ({"lengths": [7, 1.5]}, TypeError, "lengths must be an int, not float"),
        ({"lengths": [7, 3], "steps": 7}, ValueError, "lengths say how many steps"),
        ({"lengths": [7, 3], "batch": 2}, ValueError, "lengths say how many steps"),
        ({"backward": 1}, TypeError, "backward must be True or False, not int"),
        ({"rate": 0}, ValueError, "rate must be above 0 .*, got 0"),
        ({"rate": float("nan")}, ValueError, "rate must be above 0 .*, got nan"),
        ({"rate": float("inf")}, ValueError, "rate must be above 0 .*, got inf"),
        ({"rate": "100"}, TypeError, "rate must be a number, not str"),
        ({"rate": True}, TypeError, "rate must be a number, not bool"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        count(**({"model": Architecture("lstm", 4, 5)} | arguments))


def test_numpy_integers_are_sizes_and_never_overflow() -> None:
    sizes: dict[str, Any] = {"input_size": np.int64(2**30), "hidden_size": np.int32(2**30)}
    done = count("lstm", **sizes, steps=2, rate=float(np.float32(3)))
    assert done.parameters == 4 * (2**30 * 2**31 + 2**30)
    assert done.macs_per_second == 3 * done.macs_per_step


def test_the_rate_gives_figures_per_second() -> None:
    size = Architecture("lstm", 40, 64)
    assert count(size).macs_per_second is None
    assert count(size).bytes_per_second is None
    fast = count(size, batch=2, steps=9, rate=100)
    assert fast.macs_per_second == 100 * 2 * fast.macs_per_step
    assert fast.bytes_per_second == 100 * fast.bytes_per_step
    assert fast.bytes_per_second_cached == 100 * fast.bytes_per_step_cached
    half: Any = Fraction(1, 2)
    assert count(size, rate=half).macs_per_second == fast.macs_per_step / 2
    three: Any = np.int64(3)
    assert type(count(size, rate=three).macs_per_second) is int


@pytest.mark.parametrize(("weight_dtype", "size"), [("float32", 4), ("bfloat16", 2), ("int8", 1)])
def test_only_the_matrices_have_a_narrow_type(weight_dtype: str, size: int) -> None:
    wide = count("lstm", input_size=40, hidden_size=64, bias="double")
    done = count("lstm", input_size=40, hidden_size=64, bias="double", weight_dtype=weight_dtype)
    assert done.weight_bytes == size * 26_624 + 4 * 256
    assert done.bytes_cached == wide.bytes_cached
    assert done.flops == wide.flops


def test_weights_are_read_once_for_the_whole_batch() -> None:
    one, many = (count("lstm", input_size=40, hidden_size=64, batch=batch) for batch in (1, 8))
    assert many.bytes_per_step - one.bytes_per_step == 7 * one.bytes_per_step_cached
    assert many.intensity_cached == one.intensity_cached
    assert many.intensity > 7 * one.intensity


def test_a_complexity_is_a_value() -> None:
    done = count("lstm", input_size=4, hidden_size=5)
    with pytest.raises(FrozenInstanceError):
        done.steps = 2  # type: ignore[misc]
    assert len({done, count("lstm", input_size=4, hidden_size=5)}) == 1
    clockwork = count("clockwork", input_size=4, hidden_size=6, periods=(1, 2), backward=True)
    figures = clockwork.to_dict()
    for copy in (deepcopy(clockwork), pickle.loads(pickle.dumps(clockwork))):
        assert copy == clockwork
        assert copy.to_dict() == figures


# Formats

STACK = Architecture("lstm", 40, 64, num_layers=2, bidirectional=True, proj_size=16, bias="double")


def test_json_holds_raw_integers() -> None:
    done = count(STACK, steps=7, batch=3, rate=100)
    read = json.loads(done.to_json())
    assert read == done.to_dict()
    assert read["schema_version"] == 1
    assert read["conventions"] == CONVENTIONS
    assert all(isinstance(text, str) for text in read["conventions"].values())
    assert Architecture(**read["architecture"]) == STACK
    assert count(Architecture(**read["architecture"]), steps=7, batch=3, rate=100) == done
    assert read["total"]["parameters"] == done.parameters
    assert read["total"]["parameters_stored"] == 59_392
    assert read["total"]["macs"] == 1_204_224
    others = {"intensity", "intensity_cached", "backward_macs", "training_macs"}
    assert {name for name, value in read["total"].items() if not isinstance(value, int)} == others
    for name in read["layers"][0]:
        if name not in others | {"layer", "direction", "D_x", "D_h", "D_n"}:
            assert sum(row[name] for row in read["layers"]) == read["total"][name]


@settings(deadline=None)
@given(architecture=architectures())
def test_json_brings_back_what_was_counted(architecture: Architecture) -> None:
    done = count(architecture, lengths=[3, 1], backward=True)
    read = json.loads(done.to_json())
    again = count(Architecture(**read["architecture"]), lengths=read["lengths"], backward=True)
    assert again == done
    assert read["total"]["backward_macs"] == sum(row["backward_macs"] for row in read["layers"])
    training = [row["training_macs"] for row in [*read["layers"], read["total"]]]
    assert training == [
        row["macs"] + row["backward_macs"] for row in [*read["layers"], read["total"]]
    ]


def test_figures_per_second_are_null_without_a_rate() -> None:
    total = json.loads(count(replace(STACK, bias="none")).to_json())["total"]
    assert total["macs_per_second"] is None
    assert total["parameters_two_biases"] is None


@pytest.mark.parametrize("cell", ["lstm", "clockwork"])
@pytest.mark.parametrize("dtype", [int, float])
def test_every_figure_per_second_is_finite(cell: str, dtype: type) -> None:
    options = {"periods": (1, 3)} if cell == "clockwork" else {}
    most = count(
        cell, input_size=2**30, hidden_size=2**30, batch=2**30, rate=dtype(MAX_RATE), **options
    )
    assert json.loads(most.to_json())["total"]["macs_per_second"] > 1e45
    assert str(most)


HUGE = 10**5000
OUT_OF_RANGE = [1e19, 1e308, 10**400, HUGE, -HUGE, Fraction(HUGE, 3), Fraction(1, HUGE)]


@pytest.mark.parametrize("rate", OUT_OF_RANGE, ids=map(str, range(len(OUT_OF_RANGE))))
def test_a_rate_out_of_range_is_named(rate: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^rate must be above 0 and at most 1e\+18, got "
    ) as caught:
        count(STACK, rate=rate)
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize("bias", BIASES)
def test_csv_has_the_rows_of_json(bias: Any) -> None:
    done = count(replace(STACK, bias=bias), steps=7, batch=3)
    *rows, total = csv.DictReader(io.StringIO(done.to_csv()))
    read = done.to_dict()
    as_text = [{k: "" if v is None else str(v) for k, v in row.items()} for row in read["layers"]]
    assert rows == as_text
    assert total["layer"] == "total"
    assert all(total[name] == "" for name in ("direction", "D_x", "D_h", "D_n"))
    for name in rows[0].keys() - {"layer", "direction", "D_x", "D_h", "D_n"}:
        value = read["total"][name]
        assert total[name] == ("" if value is None else str(value))


def test_text_says_what_the_count_is_of() -> None:
    text = str(count(STACK, steps=7, batch=3))
    for words in ("LSTM", "proj_size 16", "2 layers", "two directions", "bias double", "steps 7"):
        assert words in text
    for figure in ("57,344", "59,392", "1,204,224", "16", "D_x", "D_h", "D_n"):
        assert figure in text
    assert text.isascii()
    assert "18,006,000" in str(count("lstm", input_size=1500, hidden_size=1500))


def value_of(formula: str) -> Fraction:
    exact = re.sub(r"\d+", r"Fraction(\g<0>)", formula.replace("^", "**").replace(",", ""))
    value: Fraction = eval(exact, {"Fraction": Fraction})
    return value


@settings(deadline=None)
@given(
    architecture=architectures(),
    extent=st.fixed_dictionaries({"steps": st.just(3), "batch": st.integers(1, 3)})
    | st.fixed_dictionaries({"lengths": st.lists(st.integers(1, 9), min_size=1, max_size=20)}),
)
def test_every_formula_that_is_explained_comes_out(
    architecture: Architecture, extent: dict[str, Any]
) -> None:
    text = count(architecture, weight_dtype="bfloat16", backward=True, **extent).explain()
    formulas = re.findall(r"(?<![\w^])(\(?\d(?:[\d,+*()^/-]| / )*) = (\d[\d,.]*)", text)
    assert len(formulas) >= 15
    for formula, shown in formulas:
        exact, value = value_of(formula), Fraction(shown.replace(",", ""))
        places = len(shown.partition(".")[2])
        assert value == (pytest.approx(exact, rel=1e-3) if places else exact), formula
    # Every line that says "=" has been read.
    lines = {line for line in text.splitlines() if re.search(r" = [\d,.]+", line)}
    assert len(formulas) >= len(lines)


def test_formulas_are_shown_with_their_numbers() -> None:
    text = count("lstm", input_size=128, hidden_size=256).explain()
    assert "4*(D_n*(D_h+D_x)+D_n) = 4*(256*(256+128)+256) = 394,240" in text
    assert "D^2" not in text
    square = count("lstm", input_size=1500, hidden_size=1500).explain()
    assert "8*D^2 = 8*1500^2 = 18,000,000, without the 4*D = 6,000 biases" in square
    projected = count("lstm", input_size=40, hidden_size=64, proj_size=16, bias="none").explain()
    assert "4*(D_n*(D_h+D_x))+D_h*D_n = 4*(64*(16+40))+16*64 = 15,360" in projected


def test_the_two_directions_are_explained() -> None:
    stack = Architecture("lstm", 40, 64, num_layers=3, bidirectional=True)
    lines = count(stack).explain().splitlines()
    assert any(re.match(r"layer 0 .* = 2: the same layer twice", line) for line in lines)
    assert any(re.match(r"each layer above .* = 3: twice, and each reads", line) for line in lines)


def test_the_formulas_of_every_cell() -> None:
    size: dict[str, Any] = {"input_size": 40, "hidden_size": 64}
    gru = count("gru", **size).explain()
    assert "3*(D_n*(D_h+D_x)+D_n)+D_n = 3*(64*(64+40)+64)+64 = 20,224" in gru
    assert "3*(D_n*(D_h+D_x)+2*D_n) = 3*(64*(64+40)+2*64) = 20,352" in gru
    before = count("gru", **size, reset="before").explain()
    assert "3*(D_n*(D_h+D_x)+D_n) = 3*(64*(64+40)+64) = 20,160" in before
    peephole = count("lstm", **size, peephole=True, coupled=True, clip=3).explain()
    assert "3*(64*(64+40)+64)+2*64 = 20,288" in peephole
    assert "5*64 = 320: f * c, i * g, o * tanh(c'), peephole of f, peephole of o" in peephole
    assert re.search(r"^clip +3\*D_n = 3\*64 = 192$", peephole, re.MULTILINE)
    square = count("lstm", input_size=64, hidden_size=64, peephole="o").explain()
    assert "without the 4*D = 256 biases and the 1*D = 64 peephole weights" in square
    clockwork = count("clockwork", **size, periods=(1, 2, 4, 8)).explain()
    assert "64*40+16*(64+48+32+16)+64 = 5,184" in clockwork
    assert "16*((40+64)/1+(40+48)/2+(40+32)/4+(40+16)/8) = 2,768" in clockwork
    assert "16*(1/1+1/2+1/4+1/8) = 30" in clockwork
    assert "8*104*16" not in clockwork
    long = count("clockwork", **size, periods=(1, 2), steps=5, batch=2).explain()
    assert "1*10*3328+1*6*2304 = 47,104" in long
    ragged = count("lstm", **size, lengths=[7, 3, 1], backward=True).explain()
    assert "(7+3+1)*26624 = 292,864" in ragged
    assert "2*292864-112640-3*16384 = 423,936" in ragged
    assert "(20)*26624" in count("lstm", **size, lengths=[1] * 20).explain()


def test_fractions_are_shown_and_said_to_be_averages() -> None:
    rnn = count("clockwork", input_size=3, hidden_size=3, periods=(1, 3, 9), rate=100)
    assert rnn.macs_per_step == Fraction(6, 1) + Fraction(5, 3) + Fraction(4, 9)
    text = str(rnn)
    for words in ("periods 1,3,9", "on average", "at the peak", "8.111", "15"):
        assert words in text
    assert rnn.macs_per_second == float(100 * rnn.macs_per_step)
    assert "= 8.111 = 73/9" in rnn.explain()
    read = json.loads(rnn.to_json())
    assert read["cycle"] == 9
    assert round(read["cycle"] * read["total"]["macs_per_step"]) == 73
    assert read["total"]["peak_macs_per_step"] == 15
    assert read["total"]["macs"] == 15


def test_the_title_names_the_options_that_were_chosen() -> None:
    lstm = count(
        "lstm", input_size=3, hidden_size=4, peephole="of", coupled=True, activation="relu"
    )
    title = str(lstm).splitlines()[0]
    assert title.startswith(
        "coupled LSTM: input_size 3, hidden_size 4, peephole fo, activation relu"
    )
    title = str(count("gru", input_size=3, hidden_size=4, lengths=[7, 3, 1])).splitlines()[0]
    assert title.startswith("GRU, reset after: input_size 3, hidden_size 4, 1 layer")
    assert "lengths up to 7, 11 in all, batch 3" in title


def test_totals_name_what_is_effective_and_what_is_stored() -> None:
    text = str(count("gru", input_size=40, hidden_size=64, backward=True))
    for line in (
        r"parameters, effective +20,224",
        r"parameters stored, bias single +20,224",
        r"parameters stored with two biases \(PyTorch, cuDNN\) +20,352",
        r"FLOPs of those MACs, forward and backward +79,872",
    ):
        assert re.search(f"^{line}$", text, re.MULTILINE), line


def test_sums_of_counts_lose_nothing() -> None:
    done = count(STACK)
    for name in Counts.__dataclass_fields__:
        assert getattr(done.total, name) == sum(getattr(row.counts, name) for row in done.layers)
    assert dict(done.average.activations) == {"sigmoid": 4 * 3 * 64, "tanh": 4 * 2 * 64}


@settings(deadline=None)
@given(architecture=architectures(), steps=st.integers(1, 9), batch=st.integers(1, 4))
def test_a_whole_figure_is_an_int(architecture: Architecture, steps: int, batch: int) -> None:
    done = count(architecture, steps=steps, batch=batch, backward=True)
    for name in ("macs", "flops", "bytes", "peak_macs_per_step", "backward_macs"):
        assert type(getattr(done, name)) is int
    for figure in vars(done.average).values():
        assert isinstance(figure, tuple) or type(figure) is int or figure.denominator > 1
    if not architecture.periods:
        assert done.average == done.peak
