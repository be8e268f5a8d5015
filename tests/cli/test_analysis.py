"""``fusedrnn horizon``, ``trace`` and ``drift``."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fusedrnn as fr
from fusedrnn import cli

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with models and inputs, in which commands run."""
    monkeypatch.chdir(tmp_path)
    fr.save(fr.LSTM(3, 6, 2, seed=0), "lstm.safetensors")
    fr.save(fr.RNN(3, 6, seed=0), "rnn.safetensors")
    random = np.random.default_rng(0)
    np.save("x.npy", random.standard_normal((150, 3)).astype(np.float32))
    np.save("two.npy", random.standard_normal((150, 2, 3)).astype(np.float32))
    x = np.load("x.npy")
    x[7, 1] = np.nan
    np.save("nan.npy", x)
    np.savetxt("x.csv", np.load("x.npy"), delimiter=",", fmt="%.9g")
    return tmp_path


def run(line: str, capsys: Capture, status: int = 0) -> str:
    assert cli.main(line.split()) == status
    shown = capsys.readouterr()
    return shown.out if status == 0 else shown.err


def test_a_constant_gate(capsys: Capture) -> None:
    out = run("horizon --forget 0.99 --steps 500", capsys)
    assert "0.00657" in out and "69 steps" in out
    (gate,) = json.loads(run("horizon --forget 0.99 --steps 500 --json", capsys))["gates"]
    assert gate["retained"] == pytest.approx(0.99**500)
    assert gate["half_life"] == pytest.approx(68.97, abs=0.01)


def test_the_bias_for_a_memory(capsys: Capture) -> None:
    half, chrono = json.loads(run("horizon --memory 500 --json", capsys))["gates"]
    assert half["half_life"] == pytest.approx(500)
    assert chrono["bias"] == pytest.approx(np.log(499))
    layer = fr.LSTM(3, 4, init=fr.init.chrono(500, 500))
    assert layer.weights["bias_ih_l0"][4] == pytest.approx(chrono["bias"], rel=1e-6)


def test_gates_that_never_or_always_forget(capsys: Capture) -> None:
    assert "never" in run("horizon --forget 1", capsys)
    assert json.loads(run("horizon --forget 0 --json", capsys))["gates"][0]["half_life"] == 0


@pytest.mark.parametrize("source", ["x.npy", "x.csv"])
def test_the_horizon_of_a_file(source: str, folder: Path, capsys: Capture) -> None:
    found = json.loads(run(f"horizon lstm.safetensors --input {source} --json", capsys))
    want = fr.analysis.horizon(fr.load("lstm.safetensors"), np.load("x.npy")[:, None])
    assert found == json.loads(want.to_json())
    few = run(f"horizon lstm.safetensors --input {source} --steps 20 --json", capsys)
    assert json.loads(few)["steps"] == 20
    assert "no gate that retains" in run(f"horizon rnn.safetensors --input {source}", capsys)


def test_the_trace_of_a_file(folder: Path, capsys: Capture) -> None:
    found = json.loads(run("trace lstm.safetensors two.npy --json", capsys))
    want = fr.analysis.trace(fr.load("lstm.safetensors"), np.load("two.npy"))
    assert found == json.loads(want.to_json())
    assert "most used units" in run("trace lstm.safetensors x.npy --steps 10", capsys)


def test_what_narrow_weights_do(folder: Path, capsys: Capture) -> None:
    layer, x = fr.load("lstm.safetensors", weight_dtype="int8"), np.load("x.npy")[:, None]
    traced = run("trace lstm.safetensors x.npy --weight-dtype int8 --json", capsys)
    assert json.loads(traced) == json.loads(fr.analysis.trace(layer, x).to_json())
    line = "horizon lstm.safetensors --input x.npy --json"
    found = json.loads(run(f"{line} --weight-dtype int8", capsys))
    assert found == json.loads(fr.analysis.horizon(layer, x).to_json())
    # The control: as they are in the file, they do something else.
    assert found != json.loads(run(line, capsys))
    assert "over 3 steps" in run("trace demo Go. --weight-dtype int8", capsys)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_the_drift_of_a_file(dtype: str, folder: Path, capsys: Capture) -> None:
    line = f"drift lstm.safetensors --input x.npy --weight-dtype {dtype} --json"
    found = json.loads(run(line, capsys))
    want = fr.analysis.drift(fr.load("lstm.safetensors"), np.load("x.npy")[:, None], dtype)
    assert found == json.loads(want.to_json())
    longer = json.loads(run(f"{line} --steps 400", capsys))
    assert longer["steps"] == 400  # a shorter input is begun again
    out = run("drift lstm.safetensors --steps 1300", capsys)
    assert "bounded" in out and "over 1,300 steps" in out


def test_the_model_that_comes_with_the_package(folder: Path, capsys: Capture) -> None:
    out = run("trace demo --steps 3000", capsys)
    assert re.search(r"punctuation mark +[a-z] +6 ", out)
    assert "long memories" in run("horizon demo --steps 2000 --distance 5", capsys)
    assert "bounded" in run("drift demo --steps 1200", capsys)
    assert cli.main(["trace", "demo", "And he said, Go."]) == 0
    assert "over 16 steps" in capsys.readouterr().out


PAGE = Path(__file__).parents[2] / "docs" / "memory.md"


def test_what_the_page_on_memory_prints(capsys: Capture) -> None:
    page = [line.strip() for line in PAGE.read_text().splitlines()]
    for line in run("horizon --forget 0.99 --steps 500", capsys).splitlines()[:5]:
        assert line.strip() in page
    out = run("horizon --memory 500", capsys)
    assert all(figure in out for figure in ("0.998615", "6.580", "0.998 ", "6.213"))


def test_the_features_of_the_page_on_memory(capsys: Capture) -> None:
    found = {
        (each["feature"], each["value"], str(each["unit"])): each
        for each in json.loads(run("trace demo --json", capsys))["tracked"]
    }
    rows = re.findall(
        r"^\| ([a-z, ]+) \| ([a-z]) \| (\d+) \| (\S+) \| (\S+) \| (\S+) \|$",
        PAGE.read_text(),
        re.MULTILINE,
    )
    assert len(rows) == 6
    for *key, correlation, there, elsewhere in rows:
        each = found[tuple(key)]
        for text, name in (
            (correlation, "correlation"), (there, "mean_where"), (elsewhere, "mean_elsewhere"),
        ):  # fmt: skip
            assert (each[name] is None) == (text == "-")
            # Another machine's rounding may change the last digit.
            assert text == "-" or float(text) == pytest.approx(each[name], abs=0.011)


def test_reports_are_one_page_each(folder: Path, capsys: Capture) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    for line in (
        "trace demo --steps 1200",
        "trace lstm.safetensors x.npy --unit 3",
        "horizon lstm.safetensors --input x.npy --distance 5",
        "drift rnn.safetensors --input x.npy --weight-dtype float16",
    ):
        command = line.split()[0]
        assert cli.main([*line.split(), "--report", command]) == 0
        shown = capsys.readouterr()
        assert f"report: {command}/index.html" in shown.err
        page = (folder / command / "index.html").read_text()
        document = json.loads((folder / command / "results.json").read_text())
        assert document["kind"] == command
        # Nothing is fetched from anywhere.
        assert not re.search(r"<(script|link|iframe)|src=|url\((?!#)", page)
        links = re.findall(r'href="([^"]*)"', page)
        assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
        assert 'name="viewport"' in page
    traced = (folder / "trace" / "index.html").read_text()
    assert "Unit 3 of layer 1" in traced and "data:image/png;base64," in traced


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("horizon", "missing FILE, --forget or --memory"),
        ("horizon lstm.safetensors", "missing --input"),
        ("horizon lstm.safetensors --forget 0.9", "go without FILE"),
        ("horizon --forget 0.9 --weight-dtype int8", "go without FILE"),
        ("horizon --forget 1.5", "--forget: must be from 0 to 1"),
        ("horizon --forget nan", "--forget: must be from 0 to 1"),
        ("horizon --memory 1", "--memory: must be above 1"),
        ("horizon --forget 0.9 --steps 0", "--steps: must be at least 1"),
        ("horizon lstm.safetensors --input x.npy --distance -1", "--distance"),
        ("horizon lstm.safetensors --input nan.npy", "x[7, 0, 1] is nan"),
        ("horizon demo --input x.npy", "--input: not with demo"),
        ("trace lstm.safetensors", "missing INPUT"),
        ("trace lstm.safetensors y.npy", "'y.npy': no such file; did you mean x.npy?"),
        ("trace lstm.safetensors x.npy --unit 6", "--unit: must be from 0 to 5"),
        ("trace lstm.safetensors nan.npy", "x[7, 0, 1] is nan"),
        ("trace demo caf\u00e9", "'\u00e9' is not one of the 63 characters"),
        ("drift lstm.safetensors --weight-dtype int4", "did you mean int8?"),
        ("drift nowhere.pt", "no such file"),
        ("drift lstm.safetensors --steps 0", "--steps: must be at least 1"),
        ("drift lstm.safetensors --report lstm.safetensors", "lstm.safetensors"),
    ],
)
def test_a_mistake_is_one_line(line: str, message: str, folder: Path, capsys: Capture) -> None:
    shown = run(line, capsys, status=2)
    assert shown.startswith("fusedrnn: error: ") and shown.count("\n") == 1
    assert message in shown


@pytest.mark.parametrize("command", ["horizon", "trace", "drift"])
def test_the_examples_of_the_help_are_lines_of_the_command(
    command: str, folder: Path, capsys: Capture
) -> None:
    out = run(f"{command} --help", capsys)
    lines = out.split("Examples:\n")[1].splitlines()
    assert len(lines) >= 3
    assert all(line.strip().startswith(f"fusedrnn {command} ") for line in lines)


@pytest.mark.parametrize(
    "line", ["horizon demo --steps 40000", "drift demo --steps 100000", "trace demo --report page"]
)
def test_ctrl_c_is_an_exit_code(line: str, folder: Path) -> None:
    """Interrupted in the midst of the work: no traceback, and no page that is only half there."""
    code = (
        "import os, signal, sys, threading; from fusedrnn.cli import main; import fusedrnn.demo; "
        "threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start(); sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *line.split()],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert not (folder / "page" / "index.html").exists()
