"""The command: what it prints, how it fails, how fast it starts."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from model_files import save_onnx

import fusedrnn
from fusedrnn import cli
from fusedrnn.cells import CELLS
from fusedrnn.counting.counts import count
from fusedrnn.errors import MissingExtraError

COUNT = ["count", "lstm", "--input", "128", "--hidden", "256"]
Capture = pytest.CaptureFixture[str]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "fusedrnn", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a shell line in which ``fusedrnn`` is the command."""
    start = f'fusedrnn() {{ {shlex.quote(sys.executable)} -m fusedrnn "$@"; }}\n'
    return subprocess.run(
        ["bash", "-c", start + line],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | environment,
    )


def is_one_error(text: str) -> bool:
    return text.startswith("fusedrnn: error: ") and text.count("\n") == 1 and text.endswith("\n")


# What it prints


def test_count_prints_the_parameters() -> None:
    done = command("count", "lstm", "--input", "1500", "--hidden", "1500")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "18,006,000" in done.stdout
    assert "18,012,000" in done.stdout


def test_explain_adds_the_formulas(capsys: Capture) -> None:
    assert cli.main([*COUNT, "--explain"]) == 0
    text = capsys.readouterr().out
    assert str(count("lstm", input_size=128, hidden_size=256)) in text
    assert "4*(256*(256+128)+256) = 394,240" in text


def test_every_option_reaches_the_count(capsys: Capture) -> None:
    line = (
        "count lstm --input 40 --hidden 64 --proj 16 --layers 2 --bidirectional --steps 7 "
        "--batch 3 --bias double --weight-dtype int8 --rate 100 --format json"
    )
    assert cli.main(line.split()) == 0
    expected = count(
        "lstm",
        input_size=40,
        hidden_size=64,
        proj_size=16,
        num_layers=2,
        bidirectional=True,
        steps=7,
        batch=3,
        bias="double",
        weight_dtype="int8",
        rate=100,
    )
    assert json.loads(capsys.readouterr().out) == expected.to_dict()


#: Every option that only some cells have: its words, its value, and what must go with it.
CELL_OPTIONS: dict[str, tuple[str, object]] = {
    "proj_size": ("--proj 2", 2),
    "peephole": ("--peephole fo", "fo"),
    "coupled": ("--coupled", True),
    "reset": ("--reset before", "before"),
    "periods": ("--periods 1,2,4,8", (1, 2, 4, 8)),
    "gate_activation": ("--gate-activation hard_sigmoid", "hard_sigmoid"),
    "activation": ("--activation leaky_relu(0.1)", "leaky_relu(0.1)"),
    "output_activation": ("--output-activation relu", "relu"),
    "clip": ("--clip 3", 3),
    "cell_clip": ("--cell-clip 2.5", 2.5),
}


def test_the_options_are_those_of_the_table() -> None:
    assert set(CELL_OPTIONS) == set().union(*(forms[0].options for forms in CELLS.values()))


@pytest.mark.parametrize("cell", CELLS)
def test_every_option_of_a_cell_reaches_the_count(cell: str, capsys: Capture) -> None:
    options = CELLS[cell][0].options
    words = [word for name in sorted(options) for word in CELL_OPTIONS[name][0].split()]
    line = ["count", cell, "--input", "3", "--hidden", "8", "--backward", "--lengths", "7,3,1"]
    assert cli.main([*line, *words, "--format", "json"]) == 0
    keywords: dict[str, Any] = {name: CELL_OPTIONS[name][1] for name in options}
    done = count(cell, input_size=3, hidden_size=8, lengths=[7, 3, 1], backward=True, **keywords)
    assert json.loads(capsys.readouterr().out) == done.to_dict()


@pytest.mark.parametrize(
    ("cell", "option"),
    [(c, o) for c, forms in CELLS.items() for o in CELL_OPTIONS if o not in forms[0].options],
)
def test_an_option_that_a_cell_lacks(cell: str, option: str, capsys: Capture) -> None:
    words = CELL_OPTIONS[option][0].split()
    assert cli.main(["count", cell, "--input", "3", "--hidden", "8", *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert is_one_error(shown.err)
    assert f"{option} is not an option of {cell}" in shown.err


def test_all_peepholes_or_some(capsys: Capture) -> None:
    for words, letters in (
        (["--peephole"], "ifo"),
        (["--peephole", "oi"], "io"),
        (["--peephole="], ""),
        (["--peephole", "--coupled"], "fo"),
    ):
        line = ["count", "lstm", "--input", "3", "--hidden", "8", "--format", "json"]
        assert cli.main([*line, *words]) == 0
        read = json.loads(capsys.readouterr().out)
        assert read["architecture"]["peephole"] == letters
        assert read["total"]["peephole_weights"] == 8 * len(letters)


def test_formats(capsys: Capture) -> None:
    complexity = count("lstm", input_size=128, hidden_size=256)
    for name, text in (
        ("json", complexity.to_json()),
        ("csv", complexity.to_csv()),
        ("markdown", complexity.to_markdown()),
        ("table", f"{complexity}\n"),
    ):
        assert cli.main([*COUNT, "--format", name]) == 0
        assert capsys.readouterr().out == text


@pytest.mark.parametrize(("text", "rate"), [("100", 100), ("0.5", 0.5), ("1e3", 1000.0)])
def test_the_rate_is_a_number(text: str, rate: float, capsys: Capture) -> None:
    assert cli.main([*COUNT, "--rate", text, "--format", "json"]) == 0
    read = json.loads(capsys.readouterr().out)["rate"]
    assert (read, type(read)) == (rate, type(rate))


def test_the_cells_are_those_of_the_table(capsys: Capture) -> None:
    for cell, forms in CELLS.items():
        needed = ["--periods", "1,2"] if "periods" in forms[0].options else []
        assert cli.main(["count", cell, "--input", "3", "--hidden", "4", *needed]) == 0
    capsys.readouterr()
    assert cli.main(["count", "lsmt", "--input", "3", "--hidden", "4"]) == 2
    message = capsys.readouterr().err
    assert all(cell in message for cell in CELLS)


def test_version(capsys: Capture) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"fusedrnn {fusedrnn.__version__}\n"


@pytest.mark.parametrize("arguments", [[], *([name] for name in cli.COMMANDS)])
def test_help(arguments: list[str], capsys: Capture) -> None:
    assert cli.main([*arguments, "--help"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(" ".join(["Usage: fusedrnn", *arguments]))
    assert shown.err == ""


@pytest.mark.parametrize("arguments", [[], ["bench"]])
def test_a_missing_command_is_one_short_line(arguments: list[str], capsys: Capture) -> None:
    assert cli.main(arguments) == 2
    command = " ".join(["fusedrnn", *arguments])
    assert capsys.readouterr().err == f"fusedrnn: error: missing command (see {command} --help)\n"


def test_verbs_of_the_benchmark_are_listed_in_order(capsys: Capture) -> None:
    assert cli.main(["bench", "--help"]) == 0
    verbs = re.findall(r"^  ([a-z]+)  +[A-Z]", capsys.readouterr().out, re.MULTILINE)
    assert verbs == ["run", "peers", "latency", "stages", "torch", "onnx", "narrow", "diff"]


def test_the_examples_of_the_help_work(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    network = Path(__file__).parents[2] / "examples" / "language-model.toml"
    Path("network.toml").write_bytes(network.read_bytes())
    save_onnx("model.onnx")
    examples = []
    for arguments in ([], ["count"]):
        cli.main([*arguments, "--help"])
        lines = capsys.readouterr().out.split("Examples:\n")[1].splitlines()
        examples += [line.split()[1:] for line in lines]
    counts = [example for example in examples if example[0] == "count"]
    assert len(counts) >= 9
    assert all(cli.main(example) == 0 for example in counts)


def documented_figures() -> list[tuple[str, str]]:
    page = Path(__file__).parents[2] / "docs" / "counting.md"
    rows = re.findall(r"^\| `fusedrnn (.*?)` \| (.*?) \|", page.read_text(), re.MULTILINE)
    return [(line, figure.replace("\\", "")) for line, figure in rows]


@pytest.mark.parametrize(("line", "figure"), documented_figures())
def test_the_figures_of_the_documentation(line: str, figure: str, capsys: Capture) -> None:
    assert cli.main(line.split()) == 0
    assert re.search(rf"(?<![\d,.]){re.escape(figure)}(?![.,]?\d)", capsys.readouterr().out)


def test_info_lists_and_dumps_the_facts(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {
        "version": "1.0",
        "numba": None,
        "isas": ["avx2", "baseline"],
        "caches": {"L1": 49152, "shared": False},
        "empty": {},
        "none of these": [],
    }
    monkeypatch.setattr(fusedrnn, "info", lambda: facts, raising=False)
    assert cli.main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == facts
    assert cli.main(["info"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "version        1.0",
        "numba          none",
        "isas           avx2, baseline",
        "caches",
        "  L1           49,152",
        "  shared       no",
        "empty          none",
        "none of these  none",
    ]


def test_info_of_this_machine() -> None:
    done = command("info", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["version"] == fusedrnn.__version__


# The subcommands that live elsewhere


def test_arguments_reach_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}
    stand_in = types.ModuleType("fusedrnn.demo")

    def run(**keywords: object) -> int:
        seen.update(keywords)
        return 7

    stand_in.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fusedrnn.demo", stand_in)
    line = "demo --backend numpy --characters 9 --temperature 0.5 --seed 3 --json"
    assert cli.main(line.split()) == 7
    expected = {"backend": "numpy", "characters": 9, "temperature": 0.5, "seed": 3, "as_json": True}
    assert {name: seen[name] for name in expected} == expected


def stand_in_that_raises(error: BaseException) -> types.ModuleType:
    module = types.ModuleType("fusedrnn.demo")

    def run(**keywords: object) -> int:
        raise error

    module.run = run  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ValueError("wrong\n  value"), 2, "wrong value"),
        (TypeError("wrong type"), 2, "wrong type"),
        (FileNotFoundError(2, "No such file or directory", "a.json"), 2, "a.json: No such file"),
        (MissingExtraError("numba", "bench", "bench"), 2, "pip install 'fusedrnn[bench]'"),
        (fusedrnn.UnsupportedError("no such isa"), 2, "no such isa"),
        (MemoryError(), 2, "MemoryError"),
        (MemoryError("Unable to allocate"), 2, "Unable to allocate"),
        (RuntimeError("nothing was measured"), 2, "nothing was measured"),
        (KeyboardInterrupt(), 130, None),
        (BrokenPipeError(), 141, None),
    ],
)
def test_errors_become_one_line_and_an_exit_code(
    error: BaseException,
    status: int,
    text: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.setitem(sys.modules, "fusedrnn.demo", stand_in_that_raises(error))
    assert cli.main(["demo"]) == status
    shown = capsys.readouterr()
    assert shown.out == ""
    if text is None:
        assert shown.err == ""
    else:
        assert is_one_error(shown.err)
        assert text in shown.err


def test_a_fault_of_our_own_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fusedrnn.demo", stand_in_that_raises(KeyError("fault")))
    with pytest.raises(KeyError):
        cli.main(["demo"])


# How it fails


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("", "command"),
        ("nothing", "'nothing'; there are count, compare, verify"),
        ("cuont", "'cuont'; did you mean count?"),
        ("count", "NAME|FILE"),
        ("count lstm", "--input and --hidden"),
        ("count lstm --input 3", "--hidden"),
        ("count lsmt --input 3 --hidden 4", "'lsmt' is no cell (rnn, lstm, gru, clockwork)"),
        ("count lsmt --input 3 --hidden 4", "did you mean lstm?"),
        ("count lstm --in 3 --hidden 3", "--in; did you mean --input?"),
        ("count lstm --input 3 --hiden 4", "--hiden; did you mean --hidden?"),
        ("count lstm --input three --hidden 3", "--input: must be an integer, got 'three'"),
        ("count lstm --input 1_0 --hidden 3", "--input: must be an integer, got '1_0'"),
        ("count lstm --input 0 --hidden 3", "input_size must be at least 1, got 0"),
        ("count lstm --input 3 --hidden -3", "hidden_size must be at least 1, got -3"),
        ("count lstm --input 3 --hidden 3 --proj 3", "proj_size must be below hidden_size"),
        ("count lstm --input 3 --hidden 3 --layers 99999", "num_layers must be at most"),
        ("count lstm --input 3 --hidden 3 --steps 0", "steps must be at least 1"),
        ("count lstm --input 3 --hidden 3 --bias two", "--bias: 'two' is not one of none, single"),
        ("count lstm --input 3 --hidden 3 --bias doubel", "did you mean double?"),
        ("count lstm --input 3 --hidden 3 --weight-dtype int9", "did you mean int8?"),
        ("count lstm --input 3 --hidden 3 --tied once", "--tied goes with a file, not with lstm"),
        ("count lstm --input 3 --hidden 3 --peephole x", "extra argument (x)"),
        ("count lstm --input 3 --hidden 3 --peephole=x", "peephole must be"),
        ("count lstm --input 3 --hidden 3 --peephole=--", "peephole must be"),
        ("count lstm --input 3 --hidden 3 --coupled --peephole i", "some of the letters 'fo'"),
        ("count lstm --input 3 --hidden 3 --activation sin", "activation must be one of sigmoid"),
        ("count lstm --input 3 --hidden 3 --clip much", "--clip: must be a number, got 'much'"),
        ("count lstm --input 3 --hidden 3 --clip -1", "--clip: must be above 0 and finite"),
        ("count lstm --input 3 --hidden 3 --lengths 7,x", "must be integers with commas between"),
        ("count lstm --input 3 --hidden 3 --lengths 0,0", "not all of them 0"),
        ("count lstm --input 3 --hidden 3 --lengths 7,3 --batch 2", "lengths say how many steps"),
        ("count gru --input 3 --hidden 3 --reset never", "--reset: 'never' is not one of"),
        ("count clockwork --input 3 --hidden 4", "periods must name one period per module"),
        ("count clockwork --input 3 --hidden 4 --periods 4,2", "periods must ascend"),
        ("count clockwork --input 3 --hidden 4 --periods 1,2,4", "must be divisible by the 3"),
        ("count clockwork --input 3 --hidden 4 --periods 1,", "must be integers with commas"),
        ("count lstm --input 3 --hidden 3 --rate fast", "--rate: must be a number, got 'fast'"),
        ("count lstm --input 3 --hidden 3 --rate nan", "--rate: must be above 0 and finite"),
        ("count lstm --input 3 --hidden 3 --rate 0", "--rate: must be above 0 and finite"),
        ("count lstm --input 3 --hidden 3 --rate 1e400", "--rate: must be above 0 and finite"),
        ("count lstm --input 3 --hidden 3 --rate 1e308", "--rate: must be at most 1e+18"),
        ("roofline lstm --input 3 --hidden 3 --rate 1e308", "--rate: must be at most 1e+18"),
        ("count lstm --input 3 --hidden 3 --explain --format csv", "--explain goes with"),
        ("count lstm --input 3 --hidden 3 --json --format csv", "--json is --format json"),
        ("count lstm --input 3 --hidden 3 --format=--", "--format: '--' is not one of table"),
        ("count lstm --input 3 --hidden 3 -o=--", "--output: must be a file"),
        ("count lstm --input 3 --hidden 3 --output --json", "--output: must be a file"),
        ("count lstm --input 3 --hidden 3 -o /no/such/place", "/no/such/place: No such file"),
        ("count lstm --input 3 --hidden 3 -o /", "/: Is a directory"),
        ("count lstm --input 3 --hidden 3 extra", "extra argument (extra)"),
        ("count /no/such/net.toml", "'/no/such/net.toml': no such file"),
        ("roofline lstm --input 3 --hidden 3 --machine=--", "--: No such file"),
        ("roofline lsmt --input 3 --hidden 3", "did you mean lstm?"),
    ],
)
def test_a_mistake_is_one_line(line: str, text: str, capsys: Capture) -> None:
    assert cli.main(line.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert is_one_error(shown.err)
    assert text in shown.err


def test_no_traceback_from_a_process() -> None:
    done = command("count", "lstm", "--input", "x", "--hidden", "3")
    assert done.returncode == 2
    assert done.stdout == ""
    assert is_one_error(done.stderr)


BUFFERED = pytest.mark.parametrize("unbuffered", ["", "1"])


@BUFFERED
def test_a_reader_that_goes_away_is_no_error(unbuffered: str) -> None:
    line = "fusedrnn count lstm --input 3 --hidden 3 --layers 9000 | head -n 1; "
    done = shell(line + "echo ${PIPESTATUS[0]}", PYTHONUNBUFFERED=unbuffered)
    assert done.stdout.splitlines()[1] == "141"
    assert done.stderr == ""


@BUFFERED
@pytest.mark.parametrize("arguments", [" ".join(COUNT), "--help", "--version"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(arguments: str, unbuffered: str) -> None:
    done = shell(f"fusedrnn {arguments} > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 2
    assert is_one_error(done.stderr)
    assert "No space left on device" in done.stderr


def test_a_closed_output_is_one_line() -> None:
    done = shell(f"fusedrnn {' '.join(COUNT)} >&-")
    assert done.returncode == 2
    assert is_one_error(done.stderr)


# The output file


@pytest.mark.parametrize(
    ("name", "recognise"),
    [
        ("cost.json", lambda text: json.loads(text)["total"]["parameters"] == 394_240),
        ("cost.csv", lambda text: len(list(csv.DictReader(io.StringIO(text)))) == 2),
        ("cost.md", lambda text: text.startswith("## LSTM")),
        ("cost.txt", lambda text: text.startswith("LSTM: input_size 128")),
    ],
)
def test_the_suffix_chooses_the_format(
    name: str, recognise: Callable[[str], bool], tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / name
    assert cli.main([*COUNT, "--output", str(path)]) == 0
    assert capsys.readouterr().out == ""
    assert recognise(path.read_text())
    assert os.listdir(tmp_path) == [name]


def test_a_format_overrides_the_suffix(tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    assert cli.main([*COUNT, "--output", str(path), "--format", "csv"]) == 0
    assert path.read_text().startswith("layer,direction,")


def test_a_file_is_replaced_whole_and_keeps_its_mode(tmp_path: Path) -> None:
    path, link = tmp_path / "cost.txt", tmp_path / "link.txt"
    path.write_text("old")
    path.chmod(0o640)
    link.symlink_to(path)
    assert cli.main([*COUNT, "-o", str(link)]) == 0
    assert link.is_symlink()
    assert "394,240" in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    path = tmp_path / "cost.txt"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert cli.main([*COUNT, "-o", str(path)]) == 2
    assert f"{path}: No space left on device" in capsys.readouterr().err
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["cost.txt"]


def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    quoted = shlex.quote(str(pipe))
    done = shell(f"cat {quoted} & fusedrnn {' '.join(COUNT)} -o {quoted}; wait")
    assert "394,240" in done.stdout
    assert pipe.is_fifo()


# How it starts


@pytest.mark.parametrize(
    "line",
    [
        " ".join(COUNT),
        f"{' '.join(COUNT)} --json",
        "count examples/language-model.toml --explain",
        "count --help",
        "verify",
        "roofline lstm --input 3 --hidden 4 --machine docs/example-machine.json",
        "--help",
        "--version",
        "cuont",
    ],
)
def test_a_command_imports_nothing_heavy(line: str) -> None:
    heavy = "numpy numba cffi _cffi_backend fusedrnn._native torch matplotlib rich pytest asyncio"
    code = (
        "import sys; from fusedrnn.cli import main; main(sys.argv[1:]); "
        f"print('loaded', *({set(heavy.split())!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *line.split()],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "loaded"


def test_negative_control_info_imports_numpy() -> None:
    code = (
        "import sys; from fusedrnn.cli import main; main(['info']); print('numpy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.endswith("True\n")
