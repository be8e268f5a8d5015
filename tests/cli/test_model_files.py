"""Commands on model files: inspect, run, count, roofline and compare."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import OUT, H, X, oracle, save_onnx
from onnx import helper, numpy_helper

import fusedrnn as fr
from fusedrnn import cli, rows
from fusedrnn.counting.other_tools import TOOLS

STEPS = 50
MACHINE = str(Path(__file__).parents[2] / "docs" / "example-machine.json")
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models, and inputs of them: the current folder."""
    monkeypatch.chdir(tmp_path)
    save_onnx("model.onnx")
    save_onnx("both.onnx", directions=2)
    save_onnx("two.onnx", layers=("encoder", "decoder"))
    save_onnx("unknown.onnx", more=unknown)
    random = np.random.default_rng(1)
    x = random.standard_normal((STEPS, X)).astype(np.float32)
    np.save("x.npy", x)
    np.save("batch.npy", random.standard_normal((STEPS, 3, X)).astype(np.float32))
    save_csv("x.csv", x)
    return tmp_path


def unknown(nodes: list[Any], arrays: list[Any]) -> None:
    """An operator that nobody knows, with a parameter, and a constant that is none."""
    arrays.append(numpy_helper.from_array(np.ones(5, np.float32), "mystery.weight"))
    nodes.append(
        helper.make_node("Mystery", ["z", "mystery.weight"], ["w"], name="mystery", domain="own")
    )


def save_csv(path: str, x: np.ndarray, header: str = "") -> None:
    lines = [",".join(repr(float(value)) for value in row) for row in x]
    Path(path).write_text("\n".join([*([header] if header else []), *lines]) + "\n")


def expected(path: str = "model.onnx", x: str = "x.npy", state: Any = None, **options: Any) -> Any:
    """What Python gives for a whole input."""
    return fr.load(path, **options)(np.load(x), state)


def read_csv(text: str) -> np.ndarray:
    return np.array([line.split(",") for line in text.splitlines()], np.float32)


def run(*words: str) -> None:
    assert cli.main(["run", *words]) == 0


def fails(capsys: Capture, *words: str) -> str:
    """What a command says that fails with one line."""
    status = cli.main(list(words))
    shown = capsys.readouterr()
    assert (status, shown.out) == (2, "")
    assert shown.err.startswith("fusedrnn: error: ")
    assert shown.err.count("\n") == 1
    return shown.err


# inspect


def test_inspect_shows_what_is_inside(folder: Path, capsys: Capture) -> None:
    assert cli.main(["inspect", "unknown.onnx"]) == 0
    table = capsys.readouterr().out
    (line,) = (line for line in table.splitlines() if line.startswith("encoder"))
    parameters = 4 * H * (X + H + 2)
    assert line.split() == ["encoder", "ONNX", "LSTM", "node", "lstm", "3", "4", "1", "bias", "double", str(parameters)]  # fmt: skip
    assert "Not understood" in table
    assert re.search(r"^mystery +\? +", table, re.MULTILINE)
    assert re.search(r"^out +dense +MatMul +4x2 +8", table, re.MULTILINE)
    assert cli.main(["inspect", "two.onnx", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [layer["name"] for layer in document["layers"]] == ["encoder", "decoder"]
    assert document["layers"][0]["parameters"] == parameters
    assert {each["name"]: each["shape"] for each in document["layers"][1]["tensors"]} == {
        "decoder.W": [1, 16, 3], "decoder.R": [1, 16, 4], "decoder.B": [1, 32],
    }  # fmt: skip
    assert [part["kind"] for part in document["parts"]] == ["dense"]
    assert cli.main(["inspect", "two.onnx", "-o", "contents.csv"]) == 0
    assert Path("contents.csv").read_text().splitlines()[1].startswith("encoder,lstm,")
    assert cli.main(["inspect", "two.onnx", "--format", "markdown"]) == 0
    assert "| encoder |" in capsys.readouterr().out


def test_inspect_of_a_file_without_recurrent_layers(folder: Path, capsys: Capture) -> None:
    def only_dense(nodes: list[Any], arrays: list[Any]) -> None:
        nodes[0] = helper.make_node("Identity", ["x"], ["encoder.y"])
        del arrays[:3]

    save_onnx("dense.onnx", more=only_dense)
    assert cli.main(["inspect", "dense.onnx"]) == 0
    shown = capsys.readouterr()
    assert "No recurrent layer" in shown.out
    assert "dense" in shown.out
    assert "no recurrent layer" in fails(capsys, "run", "dense.onnx", "x.npy")
    assert "no recurrent layer" in fails(capsys, "roofline", "dense.onnx", "--machine", MACHINE)


@pytest.mark.parametrize("command", ["inspect", "count", "roofline", "compare"])
def test_a_file_that_is_no_model_is_one_line(command: str, folder: Path, capsys: Capture) -> None:
    Path("noise").write_bytes(bytes(range(256)))
    Path("cut.onnx").write_bytes(Path("model.onnx").read_bytes()[:100])
    Path("empty.onnx").touch()
    for name in ("noise", "cut.onnx", "empty.onnx"):
        assert name in fails(capsys, command, name)
    assert "did you mean model.onnx?" in fails(capsys, command, "modle.onnx")
    assert "directory" in fails(capsys, command, str(folder))


# count, roofline, compare


def test_count_of_a_model(folder: Path, capsys: Capture) -> None:
    assert cli.main(["count", "model.onnx", "--steps", "7", "--batch", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    exact = fr.count("lstm", input_size=X, hidden_size=H, bias="double", steps=7, batch=2)
    assert document["total"]["macs"] == exact.macs + 14 * H * OUT
    assert document["total"]["parameters"] == exact.parameters_stored + H * OUT
    assert document["format"].startswith("ONNX")
    assert cli.main(["count", "model.onnx", "--explain", "--tied", "twice"]) == 0
    assert "4*2 = 8" in capsys.readouterr().out


def test_an_incomplete_count_has_an_exit_code_of_its_own(folder: Path, capsys: Capture) -> None:
    for style in ("table", "json", "csv", "markdown"):
        assert cli.main(["count", "unknown.onnx", "--format", style]) == 3
        shown = capsys.readouterr()
        assert shown.err == ""
        assert shown.out
    assert cli.main(["count", "unknown.onnx", "-o", "cost.json"]) == 3
    total = json.loads(Path("cost.json").read_text())["total"]
    assert total["macs"] is None
    assert total["at_least"]["macs"] > 0


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("count model.onnx --hidden 3", "--hidden: not with a file"),
        (
            "count lstm --input 3 --hidden 3 --allow-external-data",
            "--allow-external-data goes with",
        ),
        ("roofline model.onnx --layers 2", "--layers: not with a file"),
        ("roofline lstm --input 3 --hidden 3 --layer encoder", "--layer goes with a file"),
        ("compare model.onnx --bias none", "--bias: not with a file"),
        ("compare two.onnx", "'encoder', 'decoder'"),
        ("compare two.onnx --layer encodr", "'encodr'"),
        ("run two.onnx x.npy", "'encoder', 'decoder'"),
        ("run model.onnx x.npy --backend cc", "did you mean"),
        ("run model.onnx x.npy --weight-dtype int4", "did you mean int8?"),
        ("run model.onnx x.npy --steam", "did you mean --stream?"),
        ("run model.onnx x.npz", "did you mean x.npy?"),
        ("run model.onnx x.npy -o y.json", ".npy or .csv"),
        ("run model.onnx x.npy --threads many", "--threads"),
        ("run model.onnx x.npy -o no/y.npy", "no/y.npy"),
        ("run both.onnx x.npy --stream", "bidirectional"),
        ("run model.onnx", "INPUT"),
        ("run model.onnx x.npy --state-out -", "--state-out: must be a file"),
        ("inspct model.onnx", "did you mean inspect?"),
    ],
)
def test_a_mistake_is_one_line(line: str, text: str, folder: Path, capsys: Capture) -> None:
    assert text in fails(capsys, *line.split())


def test_roofline_of_a_model(folder: Path, capsys: Capture) -> None:
    words = ["--machine", MACHINE, "--steps", "10", "--json"]
    assert cli.main(["roofline", "model.onnx", *words]) == 0
    one = json.loads(capsys.readouterr().out)
    assert cli.main(["roofline", "two.onnx", *words]) == 0
    two = json.loads(capsys.readouterr().out)
    seconds = [layer["total"]["seconds"] for layer in two["layers"].values()]
    assert list(two["layers"]) == ["encoder", "decoder"]
    assert seconds == [one["total"]["seconds"]] * 2
    assert two["total"]["seconds"] == sum(seconds)
    assert cli.main(["roofline", "two.onnx", "--layer", "decoder", *words]) == 0
    assert json.loads(capsys.readouterr().out)["total"] == one["total"]
    for style in ("table", "csv", "markdown"):
        words = ["--machine", MACHINE, "--format", style]
        assert cli.main(["roofline", "two.onnx", *words]) == 0
        assert "total" in capsys.readouterr().out


def test_compare_of_a_model(folder: Path, capsys: Capture) -> None:
    words = ["--steps", "5", "--tools", next(iter(TOOLS)), "--json"]
    assert cli.main(["compare", "model.onnx", *words]) == 0
    document = json.loads(capsys.readouterr().out)
    sizes = ["lstm", "--input", str(X), "--hidden", str(H)]
    assert cli.main(["compare", *sizes, *words]) == 0
    assert document == json.loads(capsys.readouterr().out)
    assert document["model"] == f"torch.nn.LSTM({X}, {H})"


# run: formats


@pytest.mark.parametrize("source", ["x.npy", "x.csv"])
@pytest.mark.parametrize("target", ["y.npy", "y.csv"])
@pytest.mark.parametrize("options", [[], ["--stream"], ["--threads", "auto"]], ids=str)
def test_the_outputs_are_those_of_python(
    source: str, target: str, options: list[str], folder: Path, capsys: Capture
) -> None:
    run("model.onnx", source, "-o", target, *options)
    y = np.load(target) if target == "y.npy" else read_csv(Path(target).read_text())
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, expected()[0])
    # The control: another model gives something else.
    assert not np.array_equal(y, expected("two.onnx", name="decoder")[0])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "w8a7"])
def test_run_narrows_the_weights_of_a_file(dtype: str, folder: Path) -> None:
    fr.save(fr.load("model.onnx", weight_dtype="float16"), "narrow.safetensors")
    for stream in ([], ["--stream"]):
        for model in ("model.onnx", "narrow.safetensors"):
            run(model, "x.npy", "-o", "y.npy", "--weight-dtype", dtype, *stream)
            y = expected(model, weight_dtype=dtype)[0]
            np.testing.assert_array_equal(np.load("y.npy"), y)
            # The control: by default weights have the type that they have in the file.
            run(model, "x.npy", "-o", "y.npy", *stream)
            np.testing.assert_array_equal(np.load("y.npy"), expected(model)[0])
            same = dtype == "float32"  # which has all numbers of float16
            assert np.array_equal(np.load("y.npy"), y) == same


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2", "<i4", "u1"])
def test_arrays_of_every_kind(
    dtype: str,
    order: Any,
    small: bool,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    if small:
        monkeypatch.setattr(rows, "PIECE_BYTES", 100)
    x = (np.load("batch.npy") * 3).clip(0).astype(dtype, order=order)
    np.save("given.npy", x)
    np.save("plain.npy", x.astype(np.float32))
    run("model.onnx", "given.npy", "-o", "y.npy")
    y = expected(x="plain.npy")[0]
    np.testing.assert_array_equal(np.load("y.npy"), y)
    assert ("rounded to float32" in capsys.readouterr().err) == (dtype in ("<f8", "<i4"))
    np.save("given.npy", np.asarray(x.swapaxes(0, 1), order=order))
    run("model.onnx", "given.npy", "-o", "y.npy", "--batch-first")
    np.testing.assert_array_equal(np.load("y.npy"), y.swapaxes(0, 1))


@pytest.mark.parametrize("target", ["y.npy", "y.csv"])
@pytest.mark.parametrize("source", ["x.npy", "x.csv", "batch.npy"])
def test_pieces_are_the_whole(
    source: str, target: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(rows, "PIECE_BYTES", 100)
    if source == "batch.npy" and target == "y.csv":
        assert "-o OUT.npy" in fails(capsys, "run", "model.onnx", source, "-o", target)
        assert not Path(target).exists()
        return
    for model in ("model.onnx", "both.onnx"):
        run(model, source, "-o", target)
        y = np.load(target) if target == "y.npy" else read_csv(Path(target).read_text())
        np.testing.assert_array_equal(y, expected(model, source.replace("csv", "npy"))[0])
    assert "last step to the first" in capsys.readouterr().err


def test_states_go_from_call_to_call(folder: Path) -> None:
    x = np.load("x.npy")
    for number, piece in enumerate((x[:20], x[20:21], x[21:])):
        np.save(f"x{number}.npy", piece)
        state = [] if not number else ["--state-in", "state.npz"]
        way = ["--stream"] if number == 1 else []
        words = [f"x{number}.npy", "-o", f"y{number}.npy", *way, *state]
        run("model.onnx", *words, "--state-out", "state.npz")
    y, last = expected()
    pieces = [np.load(f"y{number}.npy") for number in range(3)]
    np.testing.assert_array_equal(np.concatenate(pieces), y)
    with np.load("state.npz") as saved:
        np.testing.assert_array_equal(saved["h"][:, 0], last.h)
        np.testing.assert_array_equal(saved["c"][:, 0], last.c)
    # The control: without the state, the second part is another.
    run("model.onnx", "x2.npy", "-o", "y.npy")
    assert not np.array_equal(np.load("y.npy"), pieces[2])


def test_a_state_of_another_layer_is_refused(folder: Path, capsys: Capture) -> None:
    run("model.onnx", "batch.npy", "-o", "y.npy", "--state-out", "batch.npz")
    np.savez("one.npz", h=np.zeros((1, 1, H), np.float32))
    np.savez("objects.npz", h=np.array([None]), c=np.array([None]))
    np.save("array.npy", np.zeros(3))
    Path("noise.npz").write_bytes(b"PK\x03\x04 and so on")
    for name in ("batch.npz", "one.npz", "objects.npz", "array.npy", "noise.npz"):
        words = ("run", "model.onnx", "x.npy", "-o", "z.npy", "--state-in", name)
        assert name in fails(capsys, *words)
    assert not Path("z.npy").exists()


def test_the_first_line_of_csv_may_be_a_header(folder: Path, capsys: Capture) -> None:
    y = expected()[0]
    plain = Path("x.csv").read_text()
    for text in (
        f"a,b,c\n{plain}",
        f"\ufeffa,b,c\r\n{plain}".replace("\n", "\r\n"),
        f"# speed in m/s\n{plain}\n\n",
        "".join(f'"{line.replace(",", chr(34) + "," + chr(34))}"\n' for line in plain.splitlines()),
        plain.replace(",", " , "),
        plain.rstrip(),
    ):
        Path("x.csv").write_text(text, encoding="utf-8")
        run("model.onnx", "x.csv")
        np.testing.assert_array_equal(read_csv(capsys.readouterr().out), y)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,2,3\n1,2\n", ["line 2", "3 numbers", "2"]),
        ("a,b,c\n1,2,3\n\n1,2,3,4\n", ["line 4", "got 4"]),
        ("1,2,3\n1,,3\n", ["line 2", "column 2", "nothing"]),
        ("1,2,3\n1,x y,3\n", ["line 2", "column 2", "'x y'"]),
        ("1,2,3\n1,2,nan\n", ["line 2", "column 3", "'nan'"]),
        ("nan,nan,nan\n1,2,3\n", ["line 1", "column 1", "'nan'"]),
        (",,\n1,2,3\n", ["line 1", "column 1", "nothing"]),
        ("1,2,3\n1,inf,3\n", ["line 2", "column 2"]),
        ("1,2,3\n1,2,1e39\n", ["line 2", "column 3", "1e39"]),
        ("1,2,3\n1,2,1_000\n", ["line 2", "column 3"]),
        ("a,2,3\n1,2,3\n", ["line 1", "column 1", "'a'"]),
        ("1;2;3\n4;5;6\n7;8;9\n", ["line 2", "3 numbers"]),
        ("", ["empty"]),
        ("a,b,c\n", ["empty"]),
        ("\n\n", ["empty"]),
        ("1,2,3\n" + "9" * 200_000 + "\n", ["line 2", "characters"]),
        ("1,2,3\n\x00\x1b[31m,2,3\n", ["line 2", "column 1"]),
    ],
)
def test_a_wrong_line_is_named(text: str, words: list[str], folder: Path, capsys: Capture) -> None:
    Path("bad.csv").write_text(text)
    error = fails(capsys, "run", "model.onnx", "bad.csv", "-o", "y.csv")
    assert error.startswith("fusedrnn: error: bad.csv: ")
    assert all(word in error for word in words), error
    assert not Path("y.csv").exists()
    assert not [name for name in os.listdir() if name.startswith(".fusedrnn")]


def header(**changes: Any) -> bytes:
    """The beginning of an .npy file."""
    memory = io.BytesIO()
    about = {"descr": "<f4", "fortran_order": False, "shape": (10, X)} | changes
    np.lib.format.write_array_header_1_0(memory, about)
    return memory.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        header(),
        header() + bytes(4 * X * 10 - 1),
        header(shape=(10, X + 1)) + bytes(1000),
        header(shape=(X,)) + bytes(1000),
        header(shape=(0, X)),
        header(shape=(10, 0, X)),
        header(shape=(10**12, X)) + bytes(1000),
        header(shape=(10, 10**15, X)) + bytes(1000),
        header(shape=(-1, X)) + bytes(1000),
        header(descr="|O") + bytes(1000),
        header(descr="<c8") + bytes(1000),
        header(descr="<U4") + bytes(1000),
        header(descr=[("a", "<f4")]) + bytes(1000),
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\xff\xff{'descr'",
        b"\x93NUMPY\x03\x00\x10\x00\x00\x00" + b" " * 16,
        b"\x93NUMPY\x01\x00\x10\x00(((((((((((((((\n",
        b"PK\x03\x04" + bytes(50),
    ],
    ids=lambda content: repr(content[:80]),
)
@pytest.mark.parametrize("piped", [False, True])
def test_a_damaged_array_is_one_line(
    content: bytes, piped: bool, folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("bad.npy").write_bytes(content)
    if piped:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    error = fails(capsys, "run", "model.onnx", "-" if piped else "bad.npy", "-o", "y.npy")
    assert ("standard input: " if piped else "bad.npy: ") in error
    assert not Path("y.npy").exists()


def test_numbers_that_float32_does_not_have(folder: Path, capsys: Capture) -> None:
    x = np.zeros((10, X))
    x[7, 1] = 1e39
    np.save("large.npy", x)
    words = ("run", "model.onnx", "large.npy", "-o", "y.npy")
    assert "large.npy: step 7" in fails(capsys, *words)
    # What is no number in an array goes through, as everywhere.
    x[7, 1] = np.nan
    np.save("large.npy", x.astype(np.float32))
    run("model.onnx", "large.npy", "-o", "y.npy")
    y = np.load("y.npy")
    assert np.isfinite(y[:7]).all()
    assert np.isnan(y[7:]).all()


@given(
    st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=300).map(lambda rest: b"\x93NUMPY" + rest),
        st.binary(max_size=300).map(lambda rest: header() + rest),
        st.text('0123456789.,-+eEnaif"\n\r_ ', max_size=100).map(str.encode),
    )
)
@settings(max_examples=200)
def test_any_input_is_rows_or_an_error_that_names_it(content: bytes) -> None:
    class Stream:
        buffer = io.BytesIO(content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", Stream)
        try:
            with rows.opened("-", X) as given_rows:
                pieces = list(given_rows.pieces(7))
        except ValueError as error:
            assert str(error).startswith("standard input: ")
            assert "\n" not in str(error)
            return
    assert pieces
    for piece in pieces:
        assert piece.dtype == np.float32
        assert (piece.shape[0] <= 7, piece.shape[2]) == (True, X)


# run: pipes, memory, interrupts


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    start = f'fusedrnn() {{ {shlex.quote(sys.executable)} -m fusedrnn "$@"; }}\n'
    return subprocess.run(
        ["bash", "-c", start + line], cwd=folder, capture_output=True, check=False, timeout=60
    )


@pytest.mark.parametrize(
    "line",
    [
        "cat x.npy | fusedrnn run model.onnx -",
        "cat x.csv | fusedrnn run model.onnx - | cat",
        "fusedrnn run model.onnx - < x.npy",
        "fusedrnn run model.onnx - < x.csv > y; cat y",
        "cat x.npy | fusedrnn run model.onnx - --stream -o /dev/stdout | cat",
        "mkfifo p; cat p & fusedrnn run model.onnx x.csv -o p; wait",
    ],
)
def test_pipes(line: str, folder: Path) -> None:
    done = shell(line, folder)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(read_csv(done.stdout.decode()), expected()[0])


@pytest.mark.parametrize(
    "line",
    [
        "cat batch.npy | fusedrnn run model.onnx - -o y.npy",
        "cat batch-first.npy | fusedrnn run model.onnx - -o y.npy --batch-first; cp y.npy z.npy",
        "cat fortran.npy | fusedrnn run model.onnx - -o y.npy",
        "mkfifo p.npy; cat p.npy > y.npy & fusedrnn run model.onnx batch.npy -o p.npy; wait",
    ],
)
def test_arrays_through_pipes(line: str, folder: Path) -> None:
    x = np.load("batch.npy")
    np.save("batch-first.npy", np.ascontiguousarray(x.swapaxes(0, 1)))
    np.save("fortran.npy", np.asfortranarray(x))
    done = shell(line, folder)
    assert done.returncode == 0, done.stderr
    y = np.load("y.npy")
    y = y.swapaxes(0, 1) if "first" in line else y
    np.testing.assert_array_equal(y, expected(x="batch.npy")[0])


def test_what_cannot_go_through_a_pipe_is_said(folder: Path) -> None:
    done = shell(
        "mkfifo p.npy; cat p.npy > y.npy & fusedrnn run model.onnx x.csv -o p.npy; echo $?", folder
    )
    assert done.stdout == b"2\n"
    assert done.stderr.count(b"\n") == 1
    assert b"as CSV" in done.stderr


def test_a_stream_answers_row_by_row(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fusedrnn", "run", "model.onnx", "-", "--stream"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    found = []
    for line in Path("x.csv").read_bytes().splitlines():
        process.stdin.write(line + b"\n")
        process.stdin.flush()
        found.append(process.stdout.readline().decode())  # before the next row is there
    process.stdin.close()
    np.testing.assert_array_equal(read_csv("".join(found)), expected()[0])
    assert process.stderr is not None
    said = process.stderr.read().decode()
    assert process.wait(60) == 0
    assert re.fullmatch(rf"fusedrnn: {STEPS} steps: p50 [\d.,]+ us, p99 [\d.,]+ us a step\n", said)


def interrupted(folder: Path) -> Any:
    """A run that is ended by Ctrl-C while it waits for the rest of its input."""
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from fusedrnn.cli import main; sys.exit(main())"
    words = ["run", "model.onnx", "-", "-o", "y.csv", "--state-out", "s.npz", "--stream"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(Path("x.csv").read_bytes())
    process.stdin.flush()
    while not any(name.startswith(".fusedrnn") for name in os.listdir(folder)):
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


@pytest.mark.parametrize("old", [b"old", None])
def test_ctrl_c_leaves_no_output(old: bytes | None, folder: Path) -> None:
    if old:
        Path("y.csv").write_bytes(old)
    before = sorted(os.listdir())
    assert interrupted(folder) == (130, b"")
    assert sorted(os.listdir()) == before
    assert not old or Path("y.csv").read_bytes() == old


def test_memory_does_not_grow_with_the_input(folder: Path) -> None:
    """96 MiB in, 128 MiB out, in a process that grows by less than 64 MiB."""
    steps = 2**23
    Path("long.npy").write_bytes(header(shape=(steps, X)))
    with open("long.npy", "r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) + 4 * X * steps)
    code = (
        "import sys, resource; import numpy; from fusedrnn import cli, layers, formats\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "status = cli.main(sys.argv[1:])\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(status, (after - before) // 1024)"
    )
    Path("y.npy").symlink_to("/dev/null")
    # From a pipe: pages of a mapped file are counted, too, though they are given back when they are wanted.
    line = f"cat long.npy | {shlex.quote(sys.executable)} -c {shlex.quote(code)} run model.onnx - -o y.npy"
    done = shell(line, folder)
    assert done.stderr == b""
    status, grown = map(int, done.stdout.split())
    assert status == 0
    assert grown < 64


def test_a_bar_is_only_for_terminals(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.output, "LONG", 0.0)
    monkeypatch.setattr(rows, "PIECE_BYTES", 100)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        with contextlib.redirect_stderr(stream):
            run("model.onnx", "x.csv", "-o", "y.npy")
        assert ("running" in stream.getvalue()) == shown
        np.testing.assert_array_equal(np.load("y.npy"), expected()[0])


# Formats


def save_pt(path: str) -> None:
    torch = oracle("torch")
    layer = fr.load("model.onnx")
    state = {f"encoder.{name}": torch.tensor(array) for name, array in layer.weights.items()}
    torch.save(state, path)


FORMATS: dict[str, Callable[[str], object]] = {
    "a.safetensors": lambda path: fr.save(fr.load("model.onnx"), path),
    "a.npz": lambda path: np.savez(path, **fr.load("model.onnx").weights),
    "a.pt": save_pt,
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_runs_and_counts_alike(name: str, folder: Path, capsys: Capture) -> None:
    FORMATS[name](name)
    run(name, "x.npy", "-o", "y.npy")
    np.testing.assert_array_equal(np.load("y.npy"), expected()[0])
    Path(name).rename("without-suffix")
    assert cli.main(["count", "without-suffix", "--steps", "7", "--json"]) == 0
    total = json.loads(capsys.readouterr().out)["total"]
    exact = fr.count("lstm", input_size=X, hidden_size=H, bias="double", steps=7)
    assert (total["macs"], total["parameters"]) == (exact.macs, exact.parameters_stored)
    assert cli.main(["inspect", "without-suffix", "--json"]) == 0
    (layer,) = json.loads(capsys.readouterr().out)["layers"]
    assert (layer["cell"], layer["input_size"], layer["hidden_size"]) == ("lstm", X, H)


def test_ten_gigabytes_are_counted_at_once(folder: Path, capsys: Capture) -> None:
    """A file whose numbers are a hole: who reads them has no memory for them, here."""
    rows, columns = 50_000, 50_000
    about = {
        "out.weight": {"dtype": "F32", "shape": [rows, columns], "data_offsets": [0, 4 * rows * columns]},
        "out.bias": {"dtype": "F32", "shape": [rows], "data_offsets": [4 * rows * columns, 4 * rows * (columns + 1)]},
    }  # fmt: skip
    text = json.dumps(about).encode()
    with open("large.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + 4 * rows * (columns + 1))
    assert cli.main(["count", "large.safetensors", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["total"]["parameters"] == rows * (columns + 1)


def test_external_data_only_where_it_is_allowed(folder: Path, capsys: Capture) -> None:
    model = onnx.load("model.onnx")
    onnx.save(
        model, "outside.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    run("outside.onnx", "x.npy", "-o", "y.npy", "--allow-external-data")
    np.testing.assert_array_equal(np.load("y.npy"), expected()[0])
    assert "external" in fails(capsys, "run", "outside.onnx", "x.npy", "-o", "y.npy")


def test_the_page_shows_what_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    prepare, use = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(prepare, names)  # noqa: S102  (the page is ours)
    blocks = re.findall(r"^```\n(\$ .*?)^```", page, re.DOTALL | re.MULTILINE)
    commands = [
        (line, shown)
        for block in blocks
        for line, shown in re.findall(r"^\$ fusedrnn (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
    ]
    assert [line.split()[0] for line, _ in commands] == ["inspect", "count", *["run"] * 4]
    for line, shown in commands:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert cli.main(line.split()) == 0
        assert out.getvalue() == shown
    exec(use, names)  # noqa: S102
    np.testing.assert_array_equal(names["y"], np.load("y.npy"))
    np.testing.assert_array_equal(np.load("monday.npy"), names["y"])
    assert not np.array_equal(np.load("tuesday.npy"), names["y"])


def test_run_says_what_the_file_does_not_tell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = fr.RNN(5, 6, activation="relu", bias="double", seed=1)
    np.savez(tmp_path / "rnn.npz", **layer.weights)
    x = np.random.default_rng(1).standard_normal((4, 5)).astype("f4")
    np.save(tmp_path / "x.npy", x)
    words = [
        "run",
        str(tmp_path / "rnn.npz"),
        str(tmp_path / "x.npy"),
        "-o",
        str(tmp_path / "y.npy"),
    ]
    assert cli.main(words) == 0
    assert "tanh is assumed" in capsys.readouterr().err
    assert not np.allclose(np.load(tmp_path / "y.npy"), layer(x)[0])
    assert cli.main([*words, "--activation", "relu"]) == 0
    assert "tanh" not in capsys.readouterr().err
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), layer(x)[0], atol=1e-6)
    words[-1] = words[2]
    assert cli.main(words) == 2
    assert "is the input" in capsys.readouterr().err
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), x)


def test_a_pipe_is_no_model_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "model.pt")
    assert cli.main(["inspect", str(tmp_path / "model.pt")]) == 2
    assert "not a regular file" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["pt", "onnx", "keras", "h5", "npz"])
def test_save_refuses_the_suffix_of_another_format(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"safetensors, which .{suffix} is not"):
        fr.save(fr.RNN(2, 3), tmp_path / f"layer.{suffix}")
    assert not list(tmp_path.iterdir())
