"""Whole networks as data: what is counted, and what every wrong file is told."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedrnn import cli
from fusedrnn.architecture import Architecture
from fusedrnn.cells import CELLS
from fusedrnn.counting.counts import count
from fusedrnn.counting.network import CONVENTIONS, Network
from fusedrnn.counting.network_file import (
    KINDS,
    MAX_BYTES,
    PUBLISHED_KEYS,
    keys_of,
    load,
    parse,
)

ROOT = Path(__file__).parents[2]
Capture = pytest.CaptureFixture[str]

LANGUAGE_MODEL = """
name = "language model"

[[layers]]
kind = "embedding"
vocabulary = 10000
width = 1500

[[layers]]
kind = "lstm"
hidden = 1500
layers = 2

[[layers]]
kind = "dense"
name = "softmax"
tied = "embedding"
"""


def toml(**values: Any) -> str:
    """One [[layers]] table."""
    lines = (f"{key} = {json.dumps(value)}" for key, value in values.items())
    return "\n".join(["[[layers]]", *lines, ""])


def layers(*tables: dict[str, Any]) -> Network:
    return parse("\n".join(toml(**table) for table in tables))


def error(text: str) -> str:
    with pytest.raises(ValueError) as caught:
        parse(text)
    return str(caught.value)


INPUT = toml(kind="input", width=3)

# What is counted


def test_tied_weights_count_once_or_twice() -> None:
    network = parse(LANGUAGE_MODEL)
    once, twice = network.count(), network.count(tied="twice")
    assert once.parameters == 51_022_000
    assert twice.parameters == 66_022_000
    for complexity in (once, twice):
        assert complexity.parameters_tied_once == 51_022_000
        assert complexity.parameters_tied_twice == 66_022_000
        assert complexity.macs_per_step == 51_000_000
        assert "51,022,000" in str(complexity)
        assert "66,022,000" in str(complexity)


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "lstm"},
        {"kind": "lstm", "layers": 3, "bidirectional": True, "proj": 5, "bias": "double"},
        {"kind": "lstm", "peephole": True, "coupled": True, "cell_clip": 3.0},
        {"kind": "lstm", "peephole": "o", "bias": "none"},
        {"kind": "gru", "reset": "after"},
        {"kind": "gru", "reset": "before", "bias": "double"},
        {"kind": "rnn", "activation": "relu", "bidirectional": True, "layers": 2},
        {"kind": "clockwork", "periods": [1, 2, 4, 8], "layers": 2},
    ],
)
def test_a_recurrent_layer_is_its_architecture(options: dict[str, Any]) -> None:
    network = layers({"kind": "input", "width": 7}, {"hidden": 8, **options})
    names = {"proj": "proj_size", "layers": "num_layers"}
    fields = {names.get(key, key): value for key, value in options.items() if key != "kind"}
    expected = count(Architecture(options["kind"], input_size=7, hidden_size=8, **fields))
    complexity = network.count()
    assert complexity.parameters == expected.parameters_stored
    assert complexity.macs_per_step == expected.macs_per_step
    assert complexity.peak_macs_per_step == expected.peak_macs_per_step


def test_every_option_of_every_cell_is_a_key() -> None:
    for cell, forms in CELLS.items():
        message = error(INPUT + toml(kind=cell, qqqqq=1))
        assert "layers[1].qqqqq: unknown key" in message
        for option in forms[0].options - {"proj_size"}:
            assert option in message
        assert ("proj" in message) == ("proj_size" in forms[0].options)


def test_a_layer_that_reads_nothing_runs_freely() -> None:
    network = layers({"kind": "lstm", "hidden": 4, "peephole": True, "reads": []})
    complexity = network.count()
    assert complexity.parameters == 4 * (4 * 4 + 4) + 3 * 4
    assert complexity.macs_per_step == 4 * 4 * 4


def test_a_free_clockwork_layer_has_its_average_and_its_peak() -> None:
    network = layers(
        {"kind": "clockwork", "hidden": 27, "periods": [2**n for n in range(9)], "reads": []}
    )
    complexity = network.count(steps=256)
    # 9 modules of 3 units: k^2 (2g - 2 + 2^(1-g)).
    assert complexity.macs_per_step == 9 * (16 + Fraction(1, 256))
    assert complexity.macs == 9 * (16 * 256 + 1)
    assert complexity.peak_macs_per_step == 405
    assert complexity.to_dict()["total"]["macs_per_step"] == 144.03515625
    assert "144.035" in str(complexity)


def test_a_layer_reads_several_side_by_side() -> None:
    network = layers(
        {"kind": "input", "width": 123},
        {"kind": "lstm", "name": "a", "hidden": 10, "bidirectional": True},
        {"kind": "gru", "name": "b", "hidden": 30, "reads": ["input", "a"]},
        {"kind": "dense", "units": 5, "reads": ["a", "b", "b"]},
    )
    assert [layer.input_size for layer in network.layers] == [0, 123, 143, 80]
    assert network.layers[-1].weights == 400


def test_layers_without_a_name_are_called_by_their_kind() -> None:
    network = layers(
        {"kind": "input", "width": 1}, {"kind": "rnn", "hidden": 2}, {"kind": "rnn", "hidden": 3}
    )
    assert [layer.name for layer in network.layers] == ["input", "rnn", "rnn 2"]


def test_dense_convolution_and_highway() -> None:
    network = layers(
        {"kind": "embedding", "vocabulary": 256, "width": 16},
        {"kind": "convolution", "widths": [1, 3], "filters": [32, 64], "positions": 50},
        {"kind": "highway", "layers": 2},
        {"kind": "dense", "units": 10, "bias": False},
    )
    costs = [(each.weights, each.biases, each.macs_per_step) for each in network.layers]
    convolution = 32 * 16 + 64 * 3 * 16
    assert costs == [
        (256 * 16, 0, 0),
        (convolution, 96, 50 * convolution),
        (4 * 96 * 96, 4 * 96, 4 * 96 * 96),
        (960, 0, 960),
    ]


def test_density_keeps_a_share_of_the_recurrent_weights() -> None:
    table = {"kind": "gru", "hidden": 100, "reset": "before"}
    full, sparse = (
        layers({"kind": "input", "width": 7}, {**table, **extra}).count()
        for extra in ({}, {"density": 0.1})
    )
    assert full.parameters - sparse.parameters == 0.9 * 3 * 100 * 100
    assert full.macs_per_step - sparse.macs_per_step == 0.9 * 3 * 100 * 100


@settings(max_examples=50, deadline=None)
@given(x=st.integers(1, 99), h=st.integers(1, 99), n=st.integers(1, 4), steps=st.integers(1, 9))
def test_separate_layers_cost_what_a_stack_does(x: int, h: int, n: int, steps: int) -> None:
    source = {"kind": "input", "width": x}
    stack = layers(source, {"kind": "lstm", "hidden": h, "layers": n}).count(steps=steps, batch=3)
    apart = layers(source, *[{"kind": "lstm", "hidden": h}] * n).count(steps=steps, batch=3)
    assert (stack.parameters, stack.macs) == (apart.parameters, apart.macs)
    assert stack.macs == 3 * steps * stack.macs_per_step


# What is printed


def test_json_has_raw_integers_and_the_conventions() -> None:
    complexity = parse(LANGUAGE_MODEL).count(steps=35, batch=20)
    document = json.loads(complexity.to_json())
    assert document == complexity.to_dict()
    assert document["schema_version"] == 1
    assert document["conventions"] == CONVENTIONS
    assert document["total"]["macs"] == 35 * 20 * 51_000_000
    assert [layer["parameters"] for layer in document["layers"]] == [15_000_000, 36_012_000, 10_000]
    for key in ("weights", "biases", "parameters", "macs_per_step", "macs"):
        assert sum(layer[key] for layer in document["layers"]) == document["total"][key]


def test_csv_has_a_row_per_layer() -> None:
    complexity = parse(LANGUAGE_MODEL.replace('"softmax"', '"soft|max"')).count()
    rows = list(csv.DictReader(io.StringIO(complexity.to_csv())))
    assert [row["layer"] for row in rows] == ["embedding", "lstm", "soft|max", "total"]
    assert rows[-1]["parameters"] == "51022000"


def test_explain_shows_each_array() -> None:
    text = parse(LANGUAGE_MODEL).count().explain()
    assert "6000*1500 = 9,000,000" in text
    assert "10000*1500 = 15,000,000, counted in embedding" in text
    assert "15000000+36012000+10000 = 51,022,000" in text
    assert (
        "15000000+36012000+15010000 = 66,022,000"
        in parse(LANGUAGE_MODEL).count(tied="twice").explain()
    )


def test_sizes_of_a_count_are_checked() -> None:
    network = parse(LANGUAGE_MODEL)
    wrong: Any
    for wrong in (0, 2**31):
        with pytest.raises(ValueError, match="steps must be"):
            network.count(steps=wrong)
    for wrong in (1.0, True, "1"):
        with pytest.raises(TypeError, match="batch must be an int"):
            network.count(batch=wrong)
    wrong = "thrice"
    with pytest.raises(ValueError, match="tied must be one of once, twice, got 'thrice'"):
        network.count(tied=wrong)


# What a wrong file is told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "layers: missing: a network needs it"),
        ("layers = []", "layers: empty: a network has at least one layer"),
        ("layers = 3", "layers: must be an array of tables ([[layers]]), not an integer"),
        ("layers = [3]", "layers[0]: must be a table ([[layers]]), not 3"),
        ("lyers = 3", "lyers: unknown key; did you mean 'layers'?"),
        (
            INPUT + INPUT + toml(kind="lstm", hiden=3),
            "layers[2].hiden: unknown key; did you mean 'hidden'?",
        ),
        (INPUT + toml(kind="lstm", hidden=3, reset="after"), "layers[1].reset: unknown key"),
        (INPUT + toml(kind="lstm"), "layers[1].hidden: missing: an lstm layer needs it"),
        (INPUT + toml(hidden=3), "layers[1].kind: missing: a layer needs it"),
        (INPUT + toml(kind=3), "layers[1].kind: must be text, not an integer"),
        (INPUT + toml(kind="ltsm"), "layers[1].kind: unknown 'ltsm'; did you mean 'lstm'?"),
        (INPUT + toml(kind="qqq"), "layers[1].kind: unknown 'qqq'; one of input, embedding, rnn"),
        (INPUT + toml(kind="lstm", hidden="3"), "layers[1].hidden: must be an int, not str"),
        (INPUT + toml(kind="lstm", hidden=3.0), "layers[1].hidden: must be an int, not float"),
        (INPUT + toml(kind="lstm", hidden=True), "layers[1].hidden: must be an int, not bool"),
        (INPUT + toml(kind="lstm", hidden=0), "layers[1].hidden: must be at least 1, got 0"),
        (INPUT + toml(kind="lstm", hidden=2**31), "layers[1].hidden: must be below 2**31"),
        (INPUT + toml(kind="lstm", hidden=10**100), "layers[1].hidden: must be below 2**31"),
        (INPUT + toml(kind="lstm", hidden=3, layers=0), "layers[1].layers: must be at least 1"),
        (INPUT + toml(kind="lstm", hidden=3, proj=3), "layers[1].proj: must be below hidden (3)"),
        (INPUT + toml(kind="lstm", hidden=3, bias=False), "layers[1].bias: must be one of none"),
        (INPUT + toml(kind="lstm", hidden=3, peephole=1), "layers[1].peephole: must be True"),
        (INPUT + toml(kind="lstm", hidden=3, clip=-1), "layers[1].clip: must be above 0"),
        (INPUT + toml(kind="lstm", hidden=3, activation=[]), "layers[1].activation: must be one"),
        (
            INPUT + toml(kind="clockwork", hidden=3),
            "layers[1].periods: must name one period per module",
        ),
        (INPUT + toml(kind="clockwork", hidden=3, periods=5), "layers[1].periods: must be a seq"),
        (INPUT + toml(kind="clockwork", hidden=4, periods=[4, 1]), "layers[1].periods: must asc"),
        (INPUT + toml(kind="rnn", hidden=3, density=0), "layers[1].density: must be above 0"),
        (INPUT + toml(kind="rnn", hidden=3, density="1"), "layers[1].density: must be a number"),
        (INPUT + "[[layers]]\nkind = 'rnn'\nhidden = 3\nclip = nan", "layers[1].clip: must be a f"),
        (INPUT + toml(kind="dense"), "layers[1].units: missing: a dense layer needs it"),
        (INPUT + toml(kind="dense", units=2.5), "layers[1].units: must be an integer, not a num"),
        (INPUT + toml(kind="dense", units=2, bias="none"), "layers[1].bias: must be true or fal"),
        (INPUT + toml(kind="dense", units=2, tied="input"), "layers[1].tied: no embedding 'input'"),
        (
            LANGUAGE_MODEL.replace("hidden = 1500", "hidden = 1499"),
            "layers[2].tied: 'embedding' is 1500 wide, but this layer reads 1499",
        ),
        (LANGUAGE_MODEL + "units = 9999", "layers[2].units: must be the 10000 rows of 'embedding'"),
        (toml(kind="embedding", vocabulary=5), "layers[0].width: missing: an embedding layer"),
        (toml(kind="input", width=-1), "layers[0].width: must be at least 1, got -1"),
        (toml(kind="input", width=1, reads=[]), "layers[0].reads: unknown key; an input layer has"),
        (toml(kind="lstm", hidden=1), "layers[0].reads: missing: the first layer has none before"),
        (toml(kind="dense", units=1, reads=[]), "layers[0].reads: empty: a dense layer reads"),
        (INPUT + toml(kind="rnn", hidden=1, reads="input"), "layers[1].reads: must be an array"),
        (INPUT + toml(kind="rnn", hidden=1, reads=[1]), "layers[1].reads[0]: must be a name"),
        (
            INPUT + toml(kind="rnn", hidden=1, reads=["inptu"]),
            "layers[1].reads[0]: no layer 'inptu' before this one; did you mean 'input'?",
        ),
        (
            INPUT + toml(kind="rnn", hidden=1, name="a", reads=["input", "a"]),
            "layers[1].reads[1]: 'a' cannot read itself",
        ),
        (
            INPUT
            + toml(kind="rnn", hidden=1, name="a", reads=["b"])
            + toml(kind="rnn", hidden=1, name="b", reads=["a"]),
            "layers[1].reads[0]: no layer 'b' before this one",
        ),
        (INPUT + INPUT + toml(kind="input", width=1, name="input"), "'input' is taken"),
        (toml(kind="input", width=1, name=""), "layers[0].name: must not be empty"),
        (toml(kind="input", width=1, name="a\nb"), "layers[0].name: must be printable text"),
        (toml(kind="input", width=1, name="\x1b[31m"), "layers[0].name: must be printable text"),
        (
            INPUT + toml(kind="convolution", widths=[1, 2], filters=[3], positions=4),
            "layers[1].filters: must be 2 numbers, one per width",
        ),
        (
            INPUT + toml(kind="convolution", widths=[], filters=[], positions=4),
            "layers[1].widths: must have one or more integers",
        ),
        (
            INPUT + toml(kind="convolution", widths=[True], filters=[1], positions=4),
            "layers[1].widths[0]: must be an integer, got True",
        ),
        ("name = 3\n" + INPUT, "name: must be text, not an integer"),
        ("a b", "not TOML: "),
        ("a = 1\na = 2", "not TOML: "),
    ],
)
def test_a_wrong_file_is_told_its_key(text: str, message: str) -> None:
    assert error(text).startswith(message) or message in error(text)


def test_unknownkeys_of_are_errors_in_every_kind_of_layer() -> None:
    for kind in KINDS:
        assert error(toml(kind=kind, qqqqq=1)).startswith("layers[0].qqqqq: unknown key")


def test_an_unprintable_key_is_shown_in_ascii() -> None:
    assert error(INPUT + '"\\u001b[31m" = 1') == (
        "layers[0].'\\x1b[31m': unknown key; an input layer has kind, name, width"
    )


# Hostile files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = " + "[" * 50_000, "not"),
        ("a = " + "{b = " * 50_000, "not"),
        ("a" + ".a" * 50_000 + " = 1", "not"),
        ("[" + "a." * 50_000 + "a]", "not"),
        ("[[layers]]\nkind = [[[[[[[[1]]]]]]]]", "layers[0].kind[0][0]: nested too deeply"),
        (f"a = {'9' * 100_000}", "not a network: a number has too many digits"),
        (INPUT + toml(kind="lstm", hidden=-(2**62)), "layers[1].hidden: must be below 2**31"),
        (INPUT + "\nkine = 0x" + "f" * 100_000, "layers[0].kine: must be below 2**31"),
        (INPUT + toml(name="a" * 10_000), "layers[1].name: must have at most 1,000 characters"),
        (INPUT + toml(kind="rnn", hidden=1, reads=["input"] * 1001), "layers[1].reads: must have"),
        (INPUT + toml(kind="rnn", hidden=1, layers=10_000), "layers[1]: more than 10,000 layers"),
        (INPUT + toml(kind="rnn", hidden=1, layers=9_000) * 2, "layers[2]: more than 10,000"),
        (
            toml(kind="input", width=2**31 - 1)
            + toml(kind="dense", units=2, reads=["input", "input"]),
            "layers[1].reads: 4,294,967,294 values side by side",
        ),
        (
            toml(kind="input", width=1)
            + toml(kind="lstm", hidden=2**31 - 1, bidirectional=True),
            "layers[1]: gives 4,294,967,294 values",
        ),
        ("[[layers]]\nkind = 1979-05-27\n", "layers[0].kind: must be text, not a date"),
    ],
)  # fmt: skip
def test_a_hostile_file_ends_early(text: str, message: str) -> None:
    assert error(text).startswith(message)


def test_the_largest_sizes_are_counted_exactly() -> None:
    most = 2**31 - 1
    network = layers(
        {"kind": "input", "width": most},
        {"kind": "lstm", "hidden": most, "bias": "double"},
        {"kind": "dense", "units": most},
    )
    complexity = network.count(steps=most, batch=most)
    assert complexity.parameters == 8 * most * most + 8 * most + most * most + most
    assert complexity.macs == 9 * most**4
    json.loads(complexity.to_json())


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "network.toml"
    path.write_bytes(b"\xef\xbb\xbf" + LANGUAGE_MODEL.encode())
    assert load(path) == parse(LANGUAGE_MODEL) == parse("\ufeff" + LANGUAGE_MODEL)


def test_a_closed_standard_input_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(OSError, match="standard input is closed"):
        load("-")


@pytest.mark.parametrize("content", [b" " * (MAX_BYTES + 1), b"\xff\xfe", b"a = '\x00'"])
def test_a_file_that_is_no_text_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "network.toml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        load(path)


def test_no_more_of_a_file_is_read_than_a_network_has(tmp_path: Path) -> None:
    path = tmp_path / "network.toml"
    with path.open("wb") as file:
        file.truncate(100 * 2**20)
    with pytest.raises(ValueError, match="larger than 262,144 bytes"):
        load(path)
    with pytest.raises(ValueError, match="larger than 262,144 bytes"):
        load("/dev/zero")  # which has no end


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.one_of(
            st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.sampled_from([*KINDS])
        ),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=5,
    ),
    st.sampled_from([*KINDS]),
    st.sampled_from(["name", "reads", "hidden", "layers", "proj", "bias", "peephole", "periods"]
                    + ["width", "vocabulary", "units", "tied", "widths", "density", "clip"]),
)  # fmt: skip
def test_any_value_is_counted_or_refused_by_its_key(value: Any, kind: str, key: str) -> None:
    text = json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")
    sizes = "" if key == "hidden" or kind not in CELLS else "hidden = 4\n"
    document = f"{INPUT}\n[[layers]]\nkind = '{kind}'\n{sizes}{key} = {text}\n"
    try:
        network = parse(document)
    except ValueError as problem:
        assert re.match(r"layers\[1\]|not TOML|not a network", str(problem))
    else:
        assert json.loads(network.count().to_json())


# The command


def test_the_command_counts_a_file(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "network.toml"
    path.write_text(LANGUAGE_MODEL)
    network = parse(LANGUAGE_MODEL)
    complexity = network.count(steps=35, batch=20, tied="twice")
    line = ["count", str(path), "--steps", "35", "--batch", "20", "--tied", "twice"]
    assert cli.main([*line, "--format", "json"]) == 0
    assert capsys.readouterr().out == complexity.to_json()
    assert cli.main([*line, "--explain"]) == 0
    assert capsys.readouterr().out == f"{complexity}\n\n{complexity.explain()}\n"
    assert cli.main([*line, "-o", str(tmp_path / "cost.json")]) == 0
    assert (tmp_path / "cost.json").read_text() == complexity.to_json()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hidden", "3"], "--hidden: not with a file"),
        (["--rate", "3"], "--rate: not with a file"),
        (["--tied", "thrice"], "--tied: 'thrice'"),
        (["--steps", "0"], "steps must be at least 1"),
        (["--explain", "--format", "csv"], "--explain goes with --format table"),
    ],
)
def test_the_command_ignores_no_option(arguments: list[str], message: str, capsys: Capture) -> None:
    path = ROOT / "examples" / "language-model.toml"
    assert cli.main(["count", str(path), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_command_names_what_is_not_there(capsys: Capture, tmp_path: Path) -> None:
    assert cli.main(["count", str(tmp_path / "none.toml")]) == 2
    assert "none.toml': no such file" in capsys.readouterr().err
    assert cli.main(["count", str(tmp_path)]) == 2
    assert "Is a directory" in capsys.readouterr().err


def test_the_command_reads_standard_input_without_numpy() -> None:
    code = (
        "import sys; from fusedrnn import cli; status = cli.main(['count', '-'])\n"
        "assert 'numpy' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=LANGUAGE_MODEL, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "51,022,000" in done.stdout
    done = subprocess.run(
        [sys.executable, "-m", "fusedrnn", "count", "-"],
        input="layers = []", capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("fusedrnn: error: standard input: layers: empty")


# Documentation and examples


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda p: p.stem)
def test_the_examples_are_networks(path: Path) -> None:
    assert load(path).count().parameters > 0


def test_the_documentation_names_every_kind_and_key() -> None:
    page = (ROOT / "docs" / "spec.md").read_text()
    for kind in KINDS:
        for word in (kind, *keys_of(kind)):
            assert f"`{word}`" in page, word
    for key in PUBLISHED_KEYS:
        assert f"`{key}`" in page, key


def test_the_networks_of_the_documentation_are_networks() -> None:
    page = (ROOT / "docs" / "spec.md").read_text()
    blocks = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert blocks
    for block in blocks:
        parse(block)
