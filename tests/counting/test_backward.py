"""What is counted of the backward pass is what its specification executes: counts beside an instrumented run.

Every value knows the products that it is made of. Products that no wanted gradient is made of are not executed: that is
how the gradients of x and of the initial states are left out. The rest of a backward step is counted as it stands, less
what the specification executes only because it has no tape: :func:`rebuilt`.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pytest
from conftest import FAMILY
from hypothesis import given, settings
from hypothesis import strategies as st
from test_counts import ROWS, architectures

from fusedrnn.architecture import Architecture
from fusedrnn.cells import ACTIVATIONS, CELLS, Cell
from fusedrnn.counting.counts import Complexity, count
from fusedrnn.kernels import reference

# An instrumented run of the specification


@dataclass(eq=False)
class Node:
    """A gradient: the multiply-adds that made it, and the gradients that went into them."""

    macs: int = 0
    parents: list[Node] = field(default_factory=list)


def executed(wanted: Iterable[Node]) -> int:
    """The multiply-adds of all that the wanted gradients are made of, each once."""
    found: set[Node] = set()
    waiting = list(wanted)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.parents
    return sum(node.macs for node in found)


class Counted(np.ndarray[Any, np.dtype[Any]]):
    """An array that counts what is made with it; one that is a gradient has a node."""

    made: ClassVar[Counter[str]] = Counter()
    node: Node | None = None

    def __array_finalize__(self, source: Any) -> None:
        self.node = getattr(source, "node", None)

    def __setitem__(self, place: Any, value: Any) -> None:
        super().__setitem__(place, value)
        if (made := getattr(value, "node", None)) is not None and made is not self.node:
            self.node = Node(0, [made] if self.node is None else [self.node, made])

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **keywords: Any
    ) -> Counted:
        plain = [np.asarray(value) for value in inputs]
        nodes = [value.node for value in inputs if getattr(value, "node", None) is not None]
        result = np.asarray(getattr(ufunc, method)(*plain, **keywords))
        node = Node(0, nodes) if nodes else None
        if method == "reduce":  # the gradient of a bias or peephole: a row each is added to it
            Counted.made["bias or peephole"] += plain[0].size
        elif ufunc is np.matmul:
            size = plain[0].size * plain[1].shape[1]
            Counted.made["multiply-add"] += size
            if node:
                node.macs = size
        else:
            Counted.made[ufunc.__name__] += result.size
        return counted(result, node)


def counted(array: Any, node: Node | None = None) -> Counted:
    view: Counted = np.asarray(array).view(Counted)
    view.node = node
    return view


def joined(arrays: list[Any], axis: int) -> Counted:
    """Gradients side by side."""
    nodes = [array.node for array in arrays if getattr(array, "node", None) is not None]
    return counted(
        np.concatenate([*map(np.asarray, arrays)], axis), Node(0, nodes) if nodes else None
    )


def activation(
    name: str, functions: dict[str, Callable[..., Any]], mark: str
) -> Callable[..., Any]:
    """A function of the reference that counts itself, and not what it is made of."""
    function = functions[name]

    def called(x: Any, *parameters: float) -> Any:
        Counted.made[f"{name}{mark}"] += x.size
        return counted(function(np.asarray(x), *parameters))

    return called


@dataclass(frozen=True)
class Run:
    """What a run of the backward pass did: everything, and the products of what was wanted."""

    made: Counter[str]
    macs: dict[tuple[bool, bool], int]


@dataclass(frozen=True)
class Numpy:
    """NumPy for the reference, whose concatenate keeps nodes."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def concatenate(self, arrays: list[Any], axis: int = 0) -> Counted:
        return joined(arrays, axis)


def layer_parameters(architecture: Architecture) -> dict[tuple[int, int], reference.Parameters]:
    """What each layer and direction is given, in arrays that count."""
    arrays: dict[tuple[int, int], dict[str, list[Any]]] = {}
    for weight in architecture.weights():
        kinds = ("input", "recurrent", "bias", "projection", "peephole")
        place = arrays.setdefault((weight.layer, weight.direction), {kind: [] for kind in kinds})
        place[weight.kind].append(counted(np.full(weight.shape, 0.1)))
    return {place: reference.parameters(architecture, kinds) for place, kinds in arrays.items()}


def first_state(architecture: Architecture, batch: int) -> tuple[Any, ...]:
    return tuple(
        np.zeros(batch, np.int64)
        if state.kind == "counter"
        else counted(np.zeros(architecture.state_shape(state, batch)[1:]))
        for state in architecture.table.states
    )


def weight_nodes(gradients: reference.ParameterGradients) -> list[Node]:
    every = [gradients.dW, gradients.dR, gradients.db, gradients.dP]
    every += [*gradients.dd.values(), *gradients.dp.values()]
    return [array.node for array in every if getattr(array, "node", None) is not None]


def run(architecture: Architecture, lengths: list[int]) -> Run:
    """Drive the reference over every sequence, layer, direction and step, forward and then backward."""
    form = architecture.cell, architecture.table.form
    every = layer_parameters(architecture)
    weights: list[Node] = []
    inputs: list[Node] = []
    states: list[Node] = []
    made = Counter[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "np", Numpy())
        for name in ACTIVATIONS:
            for functions, mark in ((reference.FUNCTIONS, ""), (reference.DERIVATIVES, "'")):
                patch.setitem(functions, name, activation(name, functions, mark))
        for steps, batch in [(T, 1) for T in lengths if T]:
            layers = []  # x, and the states before each step by direction
            x = [counted(np.full((batch, architecture.input_size), 0.1)) for _ in range(steps)]
            for layer in range(architecture.num_layers):
                before: list[list[Any]] = []
                outputs = []
                for direction in range(architecture.directions):
                    order = slice(None, None, -1 if direction else 1)
                    state = first_state(architecture, batch)
                    seen, y = [], []
                    for x_t in x[order]:
                        seen.append(state)
                        state = reference.STEPS[form](x_t, state, every[layer, direction])
                        y.append(state[0])
                    before.append(seen)
                    outputs.append(y[order])
                layers.append((x, before))
                x = [joined(list(at_one_step), 1) for at_one_step in zip(*outputs, strict=True)]
            Counted.made = Counter()
            dy = [counted(np.full(y.shape, 0.1), Node()) for y in x]
            for layer in reversed(range(architecture.num_layers)):
                x, before = layers[layer]
                dx: list[list[Any]] = []
                for direction in range(architecture.directions):
                    order = slice(None, None, -1 if direction else 1)
                    dstate: tuple[Any, ...] = tuple(
                        None if state.dtype.kind == "i" else counted(np.zeros(state.shape), Node())
                        for state in before[direction][0]
                    )
                    found = []
                    here = slice(
                        direction * architecture.fed_back, (direction + 1) * architecture.fed_back
                    )
                    every_step = zip(x[order], before[direction], dy[order], strict=True)
                    for x_t, state, dy_t in reversed([*every_step]):
                        dh = dy_t[:, here] + dstate[0]
                        dx_t, dstate, gradients = reference.BACKWARD_STEPS[form](
                            x_t, state, every[layer, direction], (dh, *dstate[1:])
                        )
                        found.append(dx_t)
                        weights += weight_nodes(gradients)
                    states += [each.node for each in dstate if each is not None and each.node]
                    dx.append(found[::-1][order])
                dy = [  # one sum over the gates of both directions
                    counted(sum(map(np.asarray, each)), Node(0, [one.node for one in each]))
                    for each in zip(*dx, strict=True)
                ]
            inputs += [each.node for each in dy if each.node]
            made += Counted.made
    return Run(
        made,
        {
            (want_x, want_state): executed([*weights, *inputs * want_x, *states * want_state])
            for want_x in (False, True)
            for want_state in (False, True)
        },
    )


def units_computed(complexity: Complexity) -> int:
    """In all steps, sequences, layers and directions."""
    return sum(
        complexity.runs(part.period) * complexity.architecture.hidden_size // len(row.work.parts)
        for row in complexity.layers
        for part in row.work.parts
    )


def rebuilt(complexity: Complexity) -> Counter[str]:
    """What the specification executes and a backward pass with a tape does not, in all steps.

    The products and sums whose results are on the tape, masks of limits as multiplications, biases that may be none, and
    sums of products in several pieces.
    """
    size, units = complexity.architecture, units_computed(complexity)
    gates = len(size.table.gates)
    masks = gates + (size.cell == "lstm")
    peepholes = {"lstm": 3, "lstm_coupled": 2}.get(size.table.kernel, 0) - len(size.peephole_gates)
    # Products for the values on the tape, and sums for them; W x + R h + b of each gate is two.
    products, sums = {
        "rnn": (0, 2),
        "lstm": (2, 8 + 1),  # f c + i g
        "lstm_coupled": (2, 6 + 1),
        "gru_after": (1, 2 + 2 + 3),  # r q
        "gru_before": (0, 6 + 1),  # R_r^T dr + R_z^T dz
        "clockwork": (0, 2),
    }[size.table.kernel]
    # m is needed only for its projection.
    products += size.cell == "lstm" and not size.proj_size
    more = Counter({"multiply": units * (products + masks + peepholes), "add": units * sums})
    value = size.activation_of("output").name
    more[value] += units * len(size.table.outputs)  # written twice
    if size.clip is not None:
        more["clip"] += units * gates * (not {"rnn", "clockwork"} & {size.cell})
    if size.cell_clip is not None:
        more["clip"] += units
    for row in complexity.layers if size.cell == "clockwork" else ():
        module, steps = size.module_size, complexity.runs(1)
        for m, part in enumerate(row.work.parts):
            runs = complexity.runs(part.period)
            reads = size.hidden_size - size.module_reads(m)
            more["add"] += runs * (row.D_x + reads) + (steps - runs) * module
    return more


def check(done: Run, complexity: Complexity) -> None:
    """Compare a run with a count, figure by figure."""
    backward, size = complexity.backward_executed, complexity.architecture
    assert backward is not None
    assert done.macs[complexity.want_x, complexity.want_state] == complexity.backward_macs
    units, extra = units_computed(complexity), rebuilt(complexity)
    assert done.made["multiply"] - extra["multiply"] == backward.elementwise_multiplies
    peepholes = len(size.peephole_gates) * units
    adds = done.made["add"] + done.made["subtract"] + peepholes
    assert adds - extra["add"] == backward.elementwise_adds
    gates, own = len(size.table.gates), len(size.table.own_recurrent_bias)
    every = {"lstm": 3, "lstm_coupled": 2}.get(size.table.kernel, 0)
    assert done.made["bias or peephole"] == (gates + own + every) * units
    assert backward.bias_adds == (gates + own) * units * (size.bias != "none")
    made = Counter({name: done.made[name] for name in ACTIVATIONS})
    made += Counter({f"{name}'": done.made[f"{name}'"] for name in ACTIVATIONS})
    made += Counter({"clip": done.made["clip"], "clip'": done.made["less"]})
    made -= Counter(
        {name: times for name, times in extra.items() if name not in ("multiply", "add")}
    )
    assert made == Counter(dict(backward.activations))


WANTED = {"want_x": st.booleans(), "want_state": st.booleans()}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.title)
@settings(deadline=None)
@given(
    data=st.data(),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    wanted=st.fixed_dictionaries(WANTED),
)
def test_counts_are_what_the_specification_executes(
    row: Cell, data: st.DataObject, lengths: list[int], wanted: dict[str, bool]
) -> None:
    architecture = data.draw(architectures([row]))
    check(run(architecture, lengths), count(architecture, lengths=lengths, backward=True, **wanted))


@settings(deadline=None)
@given(architecture=architectures(), batch=st.integers(1, 3), steps=st.integers(1, 4))
def test_batches_cost_as_many_sequences(architecture: Architecture, batch: int, steps: int) -> None:
    done, one = (count(architecture, steps=steps, batch=n, backward=True) for n in (batch, 1))
    assert done.backward_executed is not None and one.backward_executed is not None
    assert done.backward_executed.macs == batch * one.backward_executed.macs
    assert done.backward_executed.flops == batch * one.backward_executed.flops
    assert done.tape_bytes == batch * one.tape_bytes == 4 * steps * batch * done.tape_size


# Negative controls

LSTM = Architecture("lstm", 5, 4, proj_size=3, peephole="io", clip=3, num_layers=2)


def without(*names: str) -> Callable[..., Any]:
    """A backward step that leaves out the products for some gradients, which are then zeros."""

    def step(x: Any, state: Any, w: Any, dstate: Any) -> Any:
        dx, before, gradients = reference.lstm_backward(x, state, w, dstate)
        if "dx" in names:
            dx = counted(np.zeros(dx.shape))
        if "dh" in names:
            before = (counted(np.zeros(before[0].shape), Node()), *before[1:])
        zeros = {
            name: counted(np.zeros(getattr(gradients, name).shape))
            for name in names
            if name[1] in "WRP"
        }
        return dx, before, replace(gradients, **zeros)

    return step


@pytest.mark.parametrize("product", ["dW", "dR", "dP", "dh"])
def test_a_dropped_product_is_noticed(product: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done = count(LSTM, steps=3, backward=True)
    monkeypatch.setitem(reference.BACKWARD_STEPS, ("lstm", ""), without())
    check(run(LSTM, [3]), done)
    monkeypatch.setitem(reference.BACKWARD_STEPS, ("lstm", ""), without(product))
    with pytest.raises(AssertionError):
        check(run(LSTM, [3]), done)


def test_another_cell_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    gru = Architecture("gru", 5, 4)
    monkeypatch.setitem(reference.BACKWARD_STEPS, ("gru", "after"), reference.gru_before_backward)
    with pytest.raises(AssertionError):
        check(run(gru, [3]), count(gru, steps=3, backward=True))


@pytest.mark.parametrize("figure", ["gradient_products", "gradient_sums"])
@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.gradient_sums], ids=lambda row: row.title
)
def test_an_operation_missing_from_the_table_is_noticed(
    row: Cell, figure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"coupled": True} if row.form == "coupled" else {}
    options |= {"reset": row.form} if row.name == "gru" else {}
    less = replace(row, **{figure: getattr(row, figure)[1:]})
    rows = tuple(less if each is row else each for each in CELLS[row.name])
    check(
        run(done := Architecture(row.name, 5, 4, **options), [3]),
        count(done, steps=3, backward=True),
    )
    monkeypatch.setitem(CELLS, row.name, rows)
    architecture = Architecture(row.name, 5, 4, **options)
    with pytest.raises(AssertionError):
        check(run(architecture, [3]), count(architecture, steps=3, backward=True))


# Figures


def test_what_a_wanted_gradient_adds() -> None:
    size: dict[str, Any] = {"input_size": 40, "hidden_size": 64, "steps": 7, "batch": 3}
    plain, x, state = (
        count("lstm", **size, backward=True, **wanted).backward_macs or 0
        for wanted in ({}, {"want_x": True}, {"want_state": True})
    )
    assert x - plain == 7 * 3 * 4 * 64 * 40
    assert state - plain == 3 * 4 * 64 * 64
    assert count("lstm", **size, backward=True, want_x=True, want_state=True).training_macs == (
        3 * 7 * 3 * 4 * 64 * (40 + 64)
    )


@pytest.mark.parametrize(
    ("cell", "options", "floats"),
    [
        ("rnn", {}, 64 + 64),
        ("lstm", {}, 5 * 64 + 64),
        ("lstm", {"proj_size": 16}, 5 * 64 + 16),
        ("lstm", {"coupled": True, "peephole": True}, 4 * 64 + 64),
        ("gru", {}, 4 * 64 + 64),
        ("gru", {"reset": "before"}, 3 * 64 + 64),
        ("clockwork", {"periods": (1, 2)}, 2 * 64 + 64),
        ("lstm", {"num_layers": 2, "bidirectional": True}, 4 * (5 * 64 + 64)),
    ],
)
def test_the_floats_of_a_tape(cell: str, options: dict[str, Any], floats: int) -> None:
    done = count(cell, input_size=40, hidden_size=64, lengths=[7, 3, 1], backward=True, **options)
    assert done.tape_size == floats
    assert done.tape_bytes == 4 * 11 * floats


@pytest.mark.parametrize("member", FAMILY)
def test_the_kernels_tape_is_as_large(member: str) -> None:
    """Of whole vectors; h' is in the layers' outputs."""
    cell, options = FAMILY[member]
    layer = cell(5, 96, 2, bidirectional=True, backend="c", seed=0, **options)
    done = count(layer, lengths=[4, 4, 2], backward=True)
    _, _, tape = layer.record(np.ones((4, 3, 5), np.float32), lengths=[4, 4, 2])
    tape_floats = tape._recording._memory.tape.size
    assert 4 * (tape_floats + 4 * 10 * layer.architecture.fed_back) == done.tape_bytes


def test_operations_by_hand() -> None:
    done = count("gru", input_size=40, hidden_size=64, backward=True, steps=2).backward_executed
    assert done is not None
    assert done.elementwise_multiplies == 2 * 8 * 64
    assert done.elementwise_adds == 2 * (3 * 64 + 64)
    assert done.bias_adds == 2 * 4 * 64
    assert dict(done.activations) == {
        "sigmoid": 2 * 128,
        "sigmoid'": 2 * 128,
        "tanh": 2 * 64,
        "tanh'": 2 * 64,
    }


def test_a_clockwork_rnn_on_average() -> None:
    done = count("clockwork", input_size=40, hidden_size=64, periods=(1, 2), backward=True)
    assert done.backward_average is not None
    assert done.backward_average.macs == 2 * done.macs_per_step - 40 * 48
    assert done.backward_average.elementwise_multiplies == 48


# Formats


def test_every_format_has_the_figures() -> None:
    options: dict[str, Any] = {"num_layers": 2, "steps": 100}
    plain = count("lstm", input_size=40, hidden_size=64, **options)
    done = count("lstm", input_size=40, hidden_size=64, backward=True, want_x=True, **options)
    read = json.loads(done.to_json())
    more = read["total"].keys() - json.loads(plain.to_json())["total"].keys()
    assert {"backward_flops", "backward_elementwise_multiplies", "tape_size", "tape_bytes"} <= more
    assert (read["want_x"], read["want_state"]) == (True, False)
    assert read["total"]["tape_bytes"] == done.tape_bytes == 100 * 4 * 2 * 6 * 64
    for name in more:
        assert read["total"][name] == sum(row[name] for row in read["layers"])
    *rows, total = csv.DictReader(io.StringIO(done.to_csv()))
    assert int(total["backward_tanh_derivative"]) == 100 * 2 * 2 * 64
    assert [row["tape_size"] for row in rows] == ["384", "384"]
    assert total["tape_bytes"] == str(done.tape_bytes)
    text = str(done)
    assert f"{done.tape_bytes:,}" in text
    assert "sigmoid'" in text
    assert "tape" not in str(plain)


@pytest.mark.parametrize("name", ["want_x", "want_state"])
def test_wanted_gradients_are_of_a_backward_pass(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is of the backward pass: it needs backward=True"):
        count(LSTM, **{name: True})
    with pytest.raises(TypeError, match=f"{name} must be True or False, not int"):
        count(LSTM, backward=True, **{name: 1})
