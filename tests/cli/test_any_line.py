"""Any command line, with any names in it: no traceback, no signal, one line for an error, and any encoding."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_files import save_onnx

from fusedrnn import cli
from fusedrnn.cells import CELLS
from fusedrnn.cli.options import CELL_OPTIONS
from fusedrnn.cli.output import MAX_MESSAGE

ROOT = Path(__file__).parents[2]
MACHINE = str(ROOT / "docs" / "example-machine.json")
NETWORK = (
    '[[layers]]\nkind = "input"\nwidth = 3\n[[layers]]\nkind = "lstm"\nhidden = 4\nname = "{}"\n'
)


def process(
    *words: str | bytes, folder: Path, stdin: int | None = subprocess.DEVNULL, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "fusedrnn", *words],
        cwd=folder,
        stdin=stdin,
        capture_output=True,
        check=False,
        timeout=60,
        env=os.environ | environment,
    )


def is_one_error(text: str) -> bool:
    return (
        text.startswith("fusedrnn: error: ")
        and text.endswith("\n")
        and not re.search("[\x00-\x1f\x7f-\x9f\u202e]", text[:-1])
        and len(text) < 2 * MAX_MESSAGE
    )


# Any line

#: Values that are right somewhere, and values that are right nowhere.
VALUES = [
    *CELLS, "0", "1", "3", "8", "40", "-1", "1.5", "1e400", "1" + "0" * 400, "9" * 5000, "0x10", "1_0", "\u0663",
    "nan", "inf", "-inf", "1e18", "1e308", "1,2", "1,2,4", "1,", ",", "7,3,1", "10000000000,1", "ifo", "o", "tanh",
    "leaky_relu(0.1)", "leaky_relu(1e999)", "relu", "hard_sigmoid(1,2", "double", "none", "before", "after",
    "float32", "int8", "json", "csv", "markdown", "table", "once", "twice", "net.toml", "broken.toml", "folder",
    "none.toml", "out.json", "out.md", "locked.txt", MACHINE, "-", "--", "", " ", "=", "-=", "\x00", "\x1b[31m", "\n",
    "\udcff", "caf\u00e9", "\u6f22", "x" * 100_000, "all", "thop", "-h", "--help", "--version",
    "model.onnx", "cut.onnx", "x.npy", "x.csv", "s.npz", "y.npy", "y.csv", "encoder", "numpy", "auto",
]  # fmt: skip
OPTIONS = [
    "--input", "--hidden", "--layers", "--steps", "--batch", "--bidirectional", "--bias", "--rate", "--lengths",
    "--weight-dtype", "--backward", "--want-x", "--tied", "--explain", "--format", "--json", "-o", "--output", "--machine",
    "--layer", "--stream", "--batch-first", "--state-in", "--state-out", "--threads", "--backend",
    "--allow-external-data", "--tools", "--spec", "--hiden", *(flag for flag, _, _, _ in CELL_OPTIONS),
]  # fmt: skip

values = st.sampled_from(VALUES) | st.text(max_size=8)
options = st.one_of(
    st.sampled_from(OPTIONS).map(lambda option: [option]),
    st.tuples(st.sampled_from(OPTIONS), values).map(list),
    st.tuples(st.sampled_from(OPTIONS), values).map(lambda pair: ["=".join(pair)]),
    values.map(lambda value: [value]),
)
#: Lines that are almost right come further than arbitrary ones.
likely = st.sampled_from(
    [f"{cell} --input 3 --hidden 8".split() for cell in CELLS]
    + [["net.toml"], ["model.onnx"], ["model.onnx", "x.npy"], ["-"], []]
)
commands = st.sampled_from(
    [
        ["count"],
        ["inspect"],
        ["run"],
        ["run", "model.onnx"],
        ["run", "model.onnx", "x.csv"],
        ["roofline", "--machine", MACHINE],
        ["roofline", "--machine", MACHINE, "model.onnx"],
        ["verify"],
        ["compare", "--tools", "nothing"],
        ["demo", "--characters", "-1"],
        ["bench", "--help"],
        ["info", "--nothing"],
        ["cuont"],
        [],
    ]
)
lines = st.builds(
    lambda command, begin, rest: [*command, *begin, *(word for words in rest for word in words)],
    commands,
    likely,
    st.lists(options, max_size=5),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    here = tmp_path_factory.mktemp("lines")
    (here / "net.toml").write_text(NETWORK.format("name"))
    (here / "broken.toml").write_bytes(b"\xff[")
    (here / "locked.txt").touch()
    (here / "locked.txt").chmod(0o444)
    (here / "folder").mkdir()
    save_onnx(here / "model.onnx")
    (here / "cut.onnx").write_bytes((here / "model.onnx").read_bytes()[:200])
    np.save(here / "x.npy", np.ones((5, 3), np.float32))
    (here / "x.csv").write_text("1,2,3\n4,5,6\n")
    np.savez(here / "s.npz", **dict.fromkeys("hc", np.zeros((1, 1, 4), np.float32)))
    before = Path.cwd()
    os.chdir(here)
    yield here
    os.chdir(before)


def run(words: list[str]) -> tuple[int, str, str]:
    """The exit code and what is written, in this process."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
        status = cli.main(words)
    out.flush()
    return status, out.buffer.getvalue().decode(), err.getvalue()  # type: ignore[attr-defined]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines)
def test_any_line_ends_well(folder: Path, words: list[str]) -> None:
    for _ in range(4):  # hypothesis spends most of its time elsewhere
        status, out, err = run(words)
        assert status in (0, 1, 2, 3)
        # What was converted, and how long steps took, are said there, too.
        said = [line for line in err.splitlines(True) if not line.startswith("fusedrnn: error: ")]
        assert not said or (words[0] == "run" and status == 0)
        assert (status == 2) == bool(err) or said
        assert not err or said or is_one_error(err)
        assert not err or said or not out
        words = [*words, *words[-1:]]


def test_the_lines_reach_every_end(folder: Path) -> None:
    """A negative control: some of those lines are right, and some are wrong."""
    assert run(["count", "net.toml", "--json"])[0] == 0
    assert run(["roofline", "--machine", MACHINE, "lstm", "--input", "3", "--hidden", "8"])[0] == 0
    assert run(["run", "model.onnx", "x.csv", "-o", "y.csv", "--stream"])[0] == 0
    assert run(["run", "model.onnx", "x.npy", "--state-in", "s.npz"])[0] == 0
    assert run(["inspect", "model.onnx"])[0] == 0
    assert run(["inspect", "cut.onnx"])[0] == 2
    assert run(["count", "broken.toml"])[0] == 2
    assert run(["count", "net.toml", "-o", "locked.txt"])[0] == 2


@pytest.mark.parametrize(
    "words",
    [
        ["count", b"\xff\xfe"],
        ["count", "lstm", "--input", "x" * 100_000, "--hidden", "3"],
        ["count", "lstm", "--input", "3", "--hidden", "3", "--activation", "x" * 100_000],
        ["count", "lstm", "--input", "3", "--hidden", "3", "--" + "x" * 100_000],
        ["x" * 100_000],
        ["count", "x" * 100_000],
        ["count", "a\nb\x1b[31m"],
        ["count", "lstm", "--input", "9" * 5000, "--hidden", "3"],
        ["count", "clockwork", "--input=3", "--hidden=4", "--periods=1,2", "--rate=1e308", "--format=csv"],
        ["roofline", "lstm", "--input", "3", "--hidden", "3", "--rate", "1" + "0" * 400],
        ["verify", "-"],
        ["count", "-"],
        ["count", "/dev/null"],
    ],
    ids=lambda words: " ".join(map(str, words))[:40],
)  # fmt: skip
def test_no_traceback_from_a_process(words: list[str], tmp_path: Path) -> None:
    done = process(*words, folder=tmp_path)
    assert done.returncode == 2
    assert done.stdout == b""
    assert is_one_error(done.stderr.decode())


@pytest.mark.parametrize("command", ["count", "verify"])
def test_a_closed_input_is_one_line(command: str, tmp_path: Path) -> None:
    line = f"{sys.executable} -m fusedrnn {command} - <&-"
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert is_one_error(done.stderr)
    assert "standard input is closed" in done.stderr


def test_a_long_value_is_named_by_its_ends(tmp_path: Path) -> None:
    status, _, err = run(["count", "lstm", "--input", "ab" + "x" * 100_000 + "yz", "--hidden", "3"])
    assert status == 2
    assert "--input: must be an integer, got 'abxxx" in err
    assert "xxxyz'" in err


# What was meant


@pytest.mark.parametrize(
    ("line", "near"),
    [
        ("cuont lstm", "count"),
        ("count lstm --hiden 4", "--hidden"),
        ("count lstm --biderectional", "--bidirectional"),
        ("count lstm -input 3", "--input"),
        ("count lstm -hidden=3", "--hidden"),
        ("count lstm --dtype int8", "--weight-dtype"),
        ("count lsmt", "lstm"),
        ("count nat.toml", "net.toml"),
        ("count folder/../nat.toml", "net.toml"),
        ("verify nat.toml", "net.toml"),
        ("roofline grru", "gru"),
        ("inspect modle.onnx", "model.onnx"),
        ("run model.onnx x.cvs", "x.csv"),
        ("run model.onnx x.npy --stat-in s.npz", "--state-in"),
        ("count gru --reset befor", "before"),
        ("count lstm --format jsn", "json"),
    ],
)
def test_a_typo_is_answered_with_what_was_meant(line: str, near: str, folder: Path) -> None:
    status, out, err = run(line.split())
    assert (status, out) == (2, "")
    assert f"did you mean {near}?" in err


def test_nothing_is_meant_by_nonsense(folder: Path) -> None:
    for line in ("qqqqqqqq", "count qqqqqqqq", "count lstm --qqqqqqqq", "count lstm --bias qqqqqq"):
        assert "did you mean" not in run(line.split())[2]


# The gates of a peephole may be left out


@pytest.mark.parametrize(
    ("line", "gates"),
    [
        ("--peephole lstm", "ifo"),
        ("lstm --peephole", "ifo"),
        ("lstm --peephole --json", "ifo"),
        ("--peephole fo lstm", "fo"),
        ("--peephole=fo lstm", "fo"),
        ("lstm --peephole=", ""),
        ("lstm --peephole o", "o"),
        ("--peephole -- lstm", "ifo"),
    ],
)
def test_a_peephole_takes_no_cell_for_its_gates(line: str, gates: str) -> None:
    words = ["count", "--input", "3", "--hidden", "4", *line.split()]
    status, out, err = run([*words[:1], "--json", *words[1:]])
    assert (status, err) == (0, "")
    assert json.loads(out)["architecture"]["peephole"] == gates


# Where it goes


def test_short_forms(folder: Path) -> None:
    count = ["count", "lstm", "--input", "3", "--hidden", "4"]
    _, expected, _ = run([*count, "--format", "json"])
    assert json.loads(expected)
    assert run([*count, "--json"]) == (0, expected, "")
    assert run([*count, "--json", "--format", "json"]) == (0, expected, "")
    assert run([*count, "--json", "-o", "-"]) == (0, expected, "")
    for word in ("-o=short.json", "-oshort.json", "--output=short.json"):
        assert run([*count, word]) == (0, "", "")
        assert Path("short.json").read_text() == expected
        Path("short.json").unlink()
    assert run([*count, "--json", "-o", "table.csv"]) == (0, "", "")
    assert Path("table.csv").read_text() == expected


def test_an_output_that_fails_is_told_before_the_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("it was measured")

    monkeypatch.setattr("fusedrnn.machine.limits.load", never)
    monkeypatch.setattr("fusedrnn.counting.other_tools.compare", never)
    for command in (f"roofline --machine {MACHINE}", "compare"):
        for place in ("folder", "locked.txt", "no/such"):
            status, _, err = run(f"{command} lstm --input 3 --hidden 4 -o {place}".split())
            assert status == 2
            assert f"{place}: " in err


# Names may be any text


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"PYTHONIOENCODING": "utf-8"}, "caf\u00e9 \u6f22"),
        ({"PYTHONIOENCODING": "latin-1"}, "caf\u00e9 ?"),
        ({"PYTHONIOENCODING": "ascii"}, "caf? ?"),
        ({"PYTHONIOENCODING": "ascii:backslashreplace"}, r"caf\xe9 \u6f22"),
        ({"PYTHONIOENCODING": "ascii:xmlcharrefreplace"}, "caf&#233; &#28450;"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "caf?"),
    ],
)
def test_a_name_that_the_output_cannot_encode(
    environment: dict[str, str], shown: str, tmp_path: Path
) -> None:
    (tmp_path / "net.toml").write_text(NETWORK.format("caf\u00e9 \u6f22"), encoding="utf-8")
    encoding = environment.get("PYTHONIOENCODING", "ascii").partition(":")[0]
    environment = {"PYTHONIOENCODING": "", **environment}
    for style in ("table", "csv", "markdown"):
        done = process("count", "net.toml", "--format", style, folder=tmp_path, **environment)
        assert (done.returncode, done.stderr) == (0, b"")
        assert shown in done.stdout.decode(encoding).replace("\\\\", "\\").replace("\\&", "&")
    done = process("count", "net.toml", "--json", folder=tmp_path, **environment)
    assert json.loads(done.stdout)["layers"][1]["layer"] == "caf\u00e9 \u6f22"
    done = process("count", "net.toml", "-o", "out.csv", folder=tmp_path, **environment)
    assert done.returncode == 0
    assert "caf\u00e9 \u6f22" in (tmp_path / "out.csv").read_text(encoding="utf-8")


def test_who_asks_for_strict_encoding_gets_it(tmp_path: Path) -> None:
    (tmp_path / "net.toml").write_text(NETWORK.format("caf\u00e9"), encoding="utf-8")
    done = process("count", "net.toml", folder=tmp_path, PYTHONIOENCODING="ascii:strict")
    assert done.returncode == 2
    assert done.stdout == b""
    assert is_one_error(done.stderr.decode())


@pytest.mark.parametrize(
    "name", [b"\xff.toml", b"a\x1b[31mb.toml", b"a\nb.toml", "\u202eevil.toml".encode()]
)
def test_a_file_of_any_name(name: bytes, tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), name)
    Path(os.fsdecode(path)).write_text(NETWORK.format("name"))
    for style in ("table", "json", "csv", "markdown"):
        done = process("count", name, "--format", style, folder=tmp_path)
        assert (done.returncode, done.stderr) == (0, b"")
        done.stdout.decode()
    table = process("count", name, folder=tmp_path).stdout.decode()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", table)
    for style in ("json", "md", "csv", "txt"):
        output = name + b"." + style.encode()
        done = process("count", name, "-o", output, folder=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), output))).read_text(encoding="utf-8")


# Signals


def test_ctrl_c_is_an_exit_code(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "net.toml")
    # A shell starts its background jobs deaf to Ctrl-C, and this suite may be one.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from fusedrnn.cli import main; sys.exit(main())"
    child = subprocess.Popen(
        [sys.executable, "-c", code, "count", "net.toml"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with open(tmp_path / "net.toml", "wb"):  # it has come to reading
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    assert (child.returncode, out, err) == (130, b"", b"")


# Completion


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("fusedrnn co", {"count", "compare"}),
        ("fusedrnn count l", {"lstm"}),
        ("fusedrnn count lstm --bi", {"--bias", "--bidirectional"}),
        ("fusedrnn count lstm --bias do", {"double"}),
    ],
)
def test_completion(line: str, completed: set[str], tmp_path: Path) -> None:
    words = line.split()
    done = process(
        folder=tmp_path,
        _FUSEDRNN_COMPLETE="bash_complete",
        COMP_WORDS=line,
        COMP_CWORD=str(len(words) - 1),
    )
    assert done.returncode == 0
    found = {each.partition(",")[2] for each in done.stdout.decode().split()}
    assert completed <= found
    assert "" not in found - {words[-1]}


def test_the_help_says_how_to_complete(tmp_path: Path) -> None:
    _, out, _ = run(["--help"])
    (line,) = re.findall(r"eval .*", out)
    assert "_FUSEDRNN_COMPLETE=bash_source fusedrnn" in line
    done = process(folder=tmp_path, _FUSEDRNN_COMPLETE="bash_source")
    assert done.returncode == 0
    assert b"complete -o" in done.stdout
