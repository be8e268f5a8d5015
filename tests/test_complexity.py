"""What is counted is what is executed: counts beside an instrumented run of the specification."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedrnn import cells
from fusedrnn.cells import BIASES, CELLS, Architecture, Cell, Gate, State
from fusedrnn.complexity import CONVENTIONS, Complexity, Counts, aligned, count
from fusedrnn.kernels import reference

# An instrumented run of the specification


class Counted(np.ndarray[Any, np.dtype[Any]]):
    """An array that counts the multiplications and additions that are made with it."""

    made: ClassVar[Counter[str]] = Counter()

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, **keywords: Any
    ) -> Counted:
        assert method == "__call__"
        plain = [np.asarray(value) for value in inputs]
        if ufunc is np.matmul:
            left, right = plain
            terms: np.ndarray[Any, Any] = left[:, :, np.newaxis] * right[np.newaxis]
            Counted.made["multiply-add"] += terms.size
            total: np.ndarray[Any, Any] = terms.sum(axis=1)
            return total.view(Counted)
        result: np.ndarray[Any, Any] = ufunc(*plain, **keywords)
        Counted.made[ufunc.__name__] += result.size
        return result.view(Counted)


def counted(name: str) -> Callable[[Any], Any]:
    """An activation of the reference that counts itself, and not what it is made of."""
    function = getattr(reference, name)

    def activation(x: Any) -> Any:
        Counted.made[name] += x.size
        return function(np.asarray(x)).view(Counted)

    return activation


@dataclass(frozen=True)
class Run:
    """What a run of the reference did and held."""

    made: Counter[str]
    parameters: int
    state_size: int
    floats_moved: int


def run(architecture: Architecture, steps: int, batch: int) -> Run:
    """Drive the reference over every layer, direction and step, with counting arrays."""
    arrays = {
        (weight.layer, weight.direction, weight.name.split("_l")[0]): np.ones(weight.shape)
        for weight in architecture.weights()
    }
    step = reference.STEPS[architecture.cell]
    rows, units = len(architecture.table.gates) * architecture.hidden_size, architecture.hidden_size
    state_size = moved = 0
    Counted.made = Counter()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("sigmoid", "tanh"):
            patch.setattr(reference, name, counted(name))
        x = [np.ones((batch, architecture.input_size)).view(Counted) for _ in range(steps)]
        for layer in range(architecture.num_layers):
            outputs: list[list[Any]] = []
            for direction in range(architecture.directions):
                W, R = (arrays[layer, direction, name] for name in ("weight_ih", "weight_hh"))
                b = arrays.get((layer, direction, "bias_ih"), np.zeros(rows))
                state: tuple[Any, ...] = tuple(
                    np.zeros((batch, units)).view(Counted) for _ in architecture.table.states
                )
                state_size += sum(value.size for value in state) // batch
                order = slice(None, None, -1 if direction else 1)
                y = []
                for x_t in x[order]:
                    new = step(x_t, state, W, R, b)
                    moved += x_t.size + new[0].size
                    moved += sum(value.size for value in (*state, *new))
                    state = new
                    y.append(state[0])
                outputs.append(y[order])
            x = [np.concatenate(at_one_step, axis=1).view(Counted) for at_one_step in zip(*outputs)]
    assert x[0].shape == (batch, architecture.output_size)
    return Run(Counted.made, sum(array.size for array in arrays.values()), state_size, moved)


def check(done: Run, complexity: Complexity) -> None:
    """Compare a run with a count, figure by figure."""
    architecture = complexity.architecture
    # W x and R h are one sum in a kernel, two and an addition in the reference.
    gate_blocks = complexity.steps * complexity.batch * architecture.hidden_size
    gate_blocks *= len(complexity.layers) * len(architecture.table.gates)
    joins, biases = gate_blocks, gate_blocks
    assert done.made["multiply-add"] == complexity.macs
    assert done.made["multiply"] == complexity.elementwise_multiplies
    assert done.made["add"] + done.made["subtract"] == complexity.elementwise_adds + joins + biases
    assert {name: done.made[name] for name in complexity.activations} == complexity.activations
    assert done.parameters == complexity.parameters_stored
    assert done.state_size == complexity.state_size
    assert 4 * done.floats_moved == complexity.bytes_cached
    if architecture.bias == "single":
        assert complexity.bias_adds == biases
        assert done.parameters == complexity.parameters


def architectures(**fixed: Any) -> st.SearchStrategy[Architecture]:
    """Small stacks of every cell that the reference has."""
    size = st.integers(1, 6)
    choices: dict[str, st.SearchStrategy[Any]] = {
        "cell": st.sampled_from(sorted(reference.STEPS)),
        "input_size": size,
        "hidden_size": size,
        "num_layers": st.integers(1, 3),
        "bidirectional": st.booleans(),
        "bias": st.sampled_from(BIASES),
    }
    choices |= {name: st.just(value) for name, value in fixed.items()}
    return st.builds(Architecture, **choices)


@settings(deadline=None)
@given(architecture=architectures(), steps=st.integers(1, 4), batch=st.integers(1, 3))
def test_counts_are_what_the_specification_executes(
    architecture: Architecture, steps: int, batch: int
) -> None:
    check(run(architecture, steps, batch), count(architecture, steps=steps, batch=batch))


def lstm_without_output_gate(
    x: Any, state: tuple[Any, ...], W: Any, R: Any, b: Any
) -> tuple[Any, ...]:
    h, c = state
    W_i, W_f, W_g, _ = np.split(W, 4)
    R_i, R_f, R_g, _ = np.split(R, 4)
    b_i, b_f, b_g, _ = np.split(b, 4)
    i = reference.sigmoid(x @ W_i.T + h @ R_i.T + b_i)
    f = reference.sigmoid(x @ W_f.T + h @ R_f.T + b_f)
    g = reference.tanh(x @ W_g.T + h @ R_g.T + b_g)
    c = f * c + i * g
    return reference.tanh(c), c


def test_a_missing_gate_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = Architecture("lstm", 5, 4)
    check(run(architecture, 3, 2), count(architecture, steps=3, batch=2))
    monkeypatch.setitem(reference.STEPS, "lstm", lstm_without_output_gate)
    with pytest.raises(AssertionError):
        check(run(architecture, 3, 2), count(architecture, steps=3, batch=2))


@pytest.mark.parametrize(
    "figure",
    ["input_weights", "recurrent_weights", "projection_weights", "biases", "biases_stored"]
    + ["elementwise_multiplies", "elementwise_adds", "state_size", "values_moved", "activations"],
)
def test_a_count_that_is_off_by_one_is_noticed(figure: str) -> None:
    architecture = Architecture("lstm", 5, 4)
    done, right = run(architecture, 1, 1), count(architecture)
    (row,) = right.layers
    value = getattr(row.counts, figure)
    more: Any = (("sigmoid", 13), *value[1:]) if figure == "activations" else value + 1
    wrong = replace(right, layers=(replace(row, counts=replace(row.counts, **{figure: more})),))
    check(done, right)
    with pytest.raises(AssertionError):
        check(done, wrong)


# Closed forms and published figures


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("projection", [0, 3])
@given(inputs=st.integers(1, 5000), units=st.integers(4, 5000))
def test_closed_forms_of_the_lstm(bias: Any, projection: int, inputs: int, units: int) -> None:
    lstm = count(
        "lstm", input_size=inputs, hidden_size=units, proj_size=projection, bias=bias, dtype="int8"
    )
    fed_back = projection or units
    weights = 4 * units * (inputs + fed_back) + projection * units
    vectors = {"none": 0, "single": 1, "double": 2}[bias]
    one = min(vectors, 1) * 4 * units
    assert lstm.parameters == weights + one
    assert lstm.parameters_stored == weights + vectors * 4 * units
    assert lstm.parameters_two_biases == (weights + 8 * units if vectors else None)
    assert lstm.step.projection_weights == projection * units
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


# Derived from the table


def test_a_new_cell_is_counted_from_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    gates = (Gate("z", "sigmoid", "how much"), Gate("n", "relu", "what"))
    cell = Cell(
        name="made_up",
        title="Made up",
        gates=gates,
        states=(State("h", fed_back=True),),
        products=("z * n",),
        sums=("h + n", "h - n"),
        activations=("exp",),
        equations=(),
        options=frozenset(),
    )
    monkeypatch.setitem(CELLS, "made_up", cell)
    done = count("made_up", input_size=3, hidden_size=5)
    assert done.parameters == 2 * (5 * (5 + 3) + 5)
    assert done.activations == {"sigmoid": 5, "relu": 5, "exp": 5}
    assert (done.elementwise_multiplies, done.elementwise_adds, done.state_size) == (5, 10, 5)
    assert "2*(5*(5+3)+5) = 90" in done.explain()
    with pytest.raises(ValueError, match="Made up has no projection"):
        count("made_up", input_size=3, hidden_size=5, proj_size=2)


@given(architecture=architectures(hidden_size=6, proj_size=2))
def test_every_weight_of_the_architecture_is_counted(architecture: Architecture) -> None:
    done = count(architecture)
    assert done.parameters_stored == sum(weight.size for weight in architecture.weights())
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
        ({"dtype": "float16"}, ValueError, "dtype must be one of float32, bfloat16, int8"),
        ({"rate": 0}, ValueError, "rate must be above 0 and finite, got 0"),
        ({"rate": float("nan")}, ValueError, "rate must be above 0 and finite, got nan"),
        ({"rate": float("inf")}, ValueError, "rate must be above 0 and finite, got inf"),
        ({"rate": "100"}, TypeError, "rate must be a number, not str"),
        ({"rate": True}, TypeError, "rate must be a number, not bool"),
        ({"model": Architecture("lstm", 1, 1, num_layers=20_000)}, ValueError, "num_layers must"),
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


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2), ("int8", 1)])
def test_only_the_matrices_have_a_narrow_type(dtype: str, size: int) -> None:
    wide = count("lstm", input_size=40, hidden_size=64, bias="double")
    done = count("lstm", input_size=40, hidden_size=64, bias="double", dtype=dtype)
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
    ratios = {"intensity", "intensity_cached"}
    assert {name for name, value in read["total"].items() if not isinstance(value, int)} == ratios
    for name in read["layers"][0]:
        if name not in {"layer", "direction", "D_x", "D_h", "D_n"}:
            assert sum(row[name] for row in read["layers"]) == read["total"][name]


def test_figures_per_second_are_null_without_a_rate() -> None:
    total = json.loads(count(replace(STACK, bias="none")).to_json())["total"]
    assert total["macs_per_second"] is None
    assert total["parameters_two_biases"] is None


def test_json_has_no_infinity() -> None:
    with pytest.raises(ValueError, match="JSON"):
        count(STACK, rate=1e308).to_json()


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


def test_markdown_tables_are_regular() -> None:
    text = count(STACK, rate=100.5).to_markdown()
    tables = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    assert len(tables) == 3
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_text_says_what_the_count_is_of() -> None:
    text = str(count(STACK, steps=7, batch=3))
    for words in ("LSTM", "proj_size 16", "2 layers", "two directions", "bias double", "steps 7"):
        assert words in text
    for figure in ("57,344", "59,392", "1,204,224", "16", "D_x", "D_h", "D_n"):
        assert figure in text
    assert text.isascii()
    assert "18,006,000" in str(count("lstm", input_size=1500, hidden_size=1500))


def test_aligned_columns() -> None:
    assert aligned([["name", "n"], ["a", "1,000"]], left=1) == "name      n\na     1,000"


@settings(deadline=None)
@given(architecture=architectures(), proj_size=st.integers(0, 3), batch=st.integers(1, 3))
def test_every_formula_that_is_explained_comes_out(
    architecture: Architecture, proj_size: int, batch: int
) -> None:
    if proj_size < architecture.hidden_size:
        architecture = replace(architecture, proj_size=proj_size)
    text = count(architecture, steps=3, batch=batch, dtype="bfloat16").explain()
    formulas = re.findall(r"(?<![\w^])(\d(?:[\d,+*()^]| / )*) = (\d[\d,.]*)", text)
    assert len(formulas) >= 15
    for formula, shown in formulas:
        exact = eval(formula.replace("^", "**").replace(",", ""))
        value = float(shown.replace(",", ""))
        assert value == (pytest.approx(exact, rel=1e-3) if "/" in formula else exact), formula


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


def test_sums_of_counts_lose_nothing() -> None:
    done = count(STACK)
    for name in Counts.__dataclass_fields__:
        if name != "activations":
            rows = [getattr(row.counts, name) for row in done.layers]
            assert getattr(done.step, name) == sum(rows)
    assert dict(done.step.activations) == {"sigmoid": 4 * 3 * 64, "tanh": 4 * 2 * 64}


def test_the_cells_of_the_table_have_unique_names() -> None:
    assert all(name == cell.name for name, cell in cells.CELLS.items())
