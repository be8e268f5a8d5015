"""What other tools count: the explanations are figures that add up, with the tools and without."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest

from fusedrnn import cli
from fusedrnn.cells import CELLS
from fusedrnn.counting import other_tools as module
from fusedrnn.counting.counts import Complexity, count
from fusedrnn.counting.other_tools import TOOLS, Comparison, Measured, Reading, Term, Tool, compare
from fusedrnn.formats.layouts import LAYOUTS

DOCS = Path(__file__).parents[2] / "docs" / "compare.md"
SIZES = {"input_size": 40, "hidden_size": 64, "steps": 7, "batch": 3, "bias": "double"}
DEEP = {"num_layers": 2, "bidirectional": True}

#: What the tools reported when they were run, in the order torchinfo, ptflops, ptflops-aten, thop,
#: ultralytics-thop, fvcore, torch.utils.flop_counter.
RUNS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "LSTM": ({"model": "lstm"}, (569_856, 583_296, 0, 580_608, 580_608, 0, 0)),
    "LSTM, 14 steps": (
        {"model": "lstm", "steps": 14},
        (1_139_712, 1_166_592, 0, 1_161_216, 1_161_216, 0, 0),
    ),
    "LSTM, batch 1": (
        {"model": "lstm", "batch": 1},
        (189_952, 194_432, 0, 193_536, 193_536, 0, 0),
    ),
    "LSTM, no bias": (
        {"model": "lstm", "bias": "none"},
        (559_104, 572_544, 0, 569_856, 569_856, 0, 0),
    ),
    "2 x 2 LSTM": (
        {"model": "lstm", **DEEP},
        (3_225_600, 3_279_360, 0, 3_268_608, 3_268_608, 0, 0),
    ),
    "LSTM, projected": (
        {"model": "lstm", "proj_size": 16},
        (333_312, 325_248, 333_312, 580_608, 344_064, 0, 645_120),
    ),
    "2 x 2 LSTM, projected": (
        {"model": "lstm", "proj_size": 16, **DEEP},
        (1_247_232, 1_214_976, 1_247_232, 3_268_608, 1_290_240, 0, 2_408_448),
    ),
    "GRU": ({"model": "gru"}, (427_392, 436_800, 427_392, 436_800, 436_800, 0, 838_656)),
    "2 x 2 GRU": (
        {"model": "gru", **DEEP},
        (2_419_200, 2_456_832, 2_419_200, 2_456_832, 2_456_832, 0, 4_773_888),
    ),
    "RNN": ({"model": "rnn"}, (142_464, 143_808, 142_464, 143_808, 143_808, 0, 279_552)),
    "2 x 2 RNN": (
        {"model": "rnn", **DEEP},
        (806_400, 811_776, 806_400, 811_776, 811_776, 0, 1_591_296),
    ),
}
REPORTED = ("torchinfo", "ptflops", "ptflops-aten", "thop", "ultralytics-thop", "fvcore")
REPORTED += ("torch.utils.flop_counter",)

#: Every option that PyTorch has, and sizes of 1, where PyTorch takes other ways.
MODELS: tuple[dict[str, Any], ...] = (
    *(sizes for sizes, _ in RUNS.values()),
    {"model": "rnn", "activation": "relu"},
    {"model": "lstm", "steps": 1, "batch": 1},
    {"model": "lstm", "proj_size": 1, "num_layers": 3, "bidirectional": True, "batch": 1},
    {"model": "lstm", "proj_size": 16, "bias": "none", "num_layers": 3},
    {"model": "gru", "input_size": 1, "hidden_size": 1, "bias": "none", **DEEP},
    {"model": "rnn", "bias": "none", "steps": 1},
)


def reading(exact: Complexity, tool: Tool, measured: Measured) -> Reading:
    terms = tuple(tool.explain(exact, measured))
    unit = module.UNITS[tool.unit] * exact.macs
    return Reading(tool.name, "1", tool.unit, tool.called, unit, measured.figure, terms)


def value(formula: str) -> int:
    sign = -1 if formula.startswith("-") else 1
    return sign * prod(map(int, formula.removeprefix("-").split("*")))


# The explanations, without any tool


@pytest.mark.parametrize("name", REPORTED)
@pytest.mark.parametrize("run", RUNS)
def test_the_terms_add_up_to_what_was_reported(run: str, name: str) -> None:
    sizes, figures = RUNS[run]
    figure = figures[REPORTED.index(name)]
    exact = count(**(SIZES | sizes))
    tool = TOOLS["thop" if name == "ultralytics-thop" else name]
    hidden = () if figure else ("a fused operation",)
    found = reading(exact, tool, Measured(figure, hidden, name))
    assert found.unexplained == 0, found
    assert found.ratio == figure / found.exact


@pytest.mark.parametrize("name", TOOLS)
def test_a_formula_has_the_value_of_its_term(name: str) -> None:
    exact = count("lstm", **SIZES, **DEEP, proj_size=16)
    for measured in (Measured(0), Measured(0, ("fused",))):
        for term in TOOLS[name].explain(exact, measured):
            assert value(term.numbers) == term.value
            assert term.formula.count("*") == term.numbers.count("*")


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_the_biases_are_those_of_the_count(cell: str) -> None:
    exact = count(cell, **SIZES, **DEEP)
    (biases,) = TOOLS["torchinfo"].explain(exact, Measured(0))
    assert biases.value == exact.total.biases_two * exact.sequence_steps


def test_a_zero_is_explained_only_by_an_operation_that_was_seen() -> None:
    exact = count("lstm", **SIZES)
    for name in ("ptflops-aten", "fvcore", "torch.utils.flop_counter"):
        assert reading(exact, TOOLS[name], Measured(0)).unexplained != 0
        assert reading(exact, TOOLS[name], Measured(0, ("aten::lstm",))).unexplained == 0


# Tools that are not there, fail, or differ: none of it needs PyTorch


def fake(run: Callable[[Any, Any], Measured], **changes: Any) -> Tool:
    def explain(exact: Complexity, measured: Measured) -> Any:
        yield Term("it adds ten", "10", "10", 10)
        yield Term("nothing", "0", "0", 0)

    settings: dict[str, Any] = {
        "name": "fake",
        "module": "json",
        "packages": ("fake",),
        "unit": "MACs",
        "called": "MACs",
        "run": run,
        "explain": explain,
    }
    return Tool(**settings | changes)


@pytest.fixture
def with_tool(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Comparison]:
    """Compare a small LSTM (32 MACs) with a tool that is no tool, and no PyTorch."""

    class NoTorch:
        class no_grad:
            def __enter__(self) -> None: ...
            def __exit__(self, *_: object) -> None: ...

    def run(tool: Tool, **sizes: Any) -> Comparison:
        real_import, real_find = module.import_module, module.find_spec
        monkeypatch.setattr(module, "TOOLS", {tool.name: tool})
        monkeypatch.setattr(module, "_model", lambda exact: (None, None))
        monkeypatch.setattr(
            module,
            "import_module",
            lambda name: NoTorch if name == "torch" else real_import(name),
        )
        monkeypatch.setattr(
            module, "find_spec", lambda name: True if name == "torch" else real_find(name)
        )
        return compare("lstm", **{"input_size": 2, "hidden_size": 2, **sizes})

    return run


def test_what_the_terms_leave_is_unexplained(with_tool: Callable[..., Comparison]) -> None:
    compared = with_tool(fake(lambda model, x: Measured(45)))
    (found,) = compared.readings
    assert (found.exact, found.difference, found.unexplained) == (32, 13, 3)
    assert [term.value for term in found.terms] == [10]
    assert re.search(r"fake +unexplained: 3 +\+3\n", str(compared))
    assert "| fake | unexplained: 3 |  | +3 |" in compared.to_markdown()


def test_flops_are_compared_with_two_per_mac(with_tool: Callable[..., Comparison]) -> None:
    (found,) = with_tool(fake(lambda model, x: Measured(64), unit="FLOPs")).readings
    assert (found.exact, found.ratio) == (64, 1.0)


def test_a_missing_tool_is_named_with_the_command(with_tool: Callable[..., Comparison]) -> None:
    compared = with_tool(fake(lambda model, x: Measured(45), module="no_such_module"))
    (found,) = compared.readings
    hint = "pip install 'fusedrnn[compare]'"
    assert found.problem == f"fake is missing: {hint}"
    assert (found.reported, found.difference, found.ratio, found.unexplained) == (None,) * 4
    assert f"fake is missing: {hint}" in str(compared)
    assert "What they report" not in str(compared)
    assert json.loads(compared.to_json())["tools"][0]["problem"] == found.problem


def test_without_pytorch_every_tool_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    compared = compare("gru", input_size=2, hidden_size=2)
    assert {found.problem for found in compared.readings} == {
        "torch is missing: pip install 'fusedrnn[compare]'"
    }
    assert len(compared.readings) == len(TOOLS)
    assert "Exact: 24 MACs" in str(compared)


def test_a_failure_is_one_line(with_tool: Callable[..., Comparison]) -> None:
    def fail(model: object, x: object) -> Measured:
        raise KeyError("first  line\nsecond line")

    (found,) = with_tool(fake(fail)).readings
    assert found.problem == r"failed: KeyError: 'first line\nsecond line'"

    def fail_on_lines(model: object, x: object) -> Measured:
        raise ValueError("first line\nsecond line")

    (found,) = with_tool(fake(fail_on_lines)).readings
    assert found.problem == "failed: ValueError: first line"


def test_an_error_that_a_tool_only_prints_is_told(with_tool: Callable[..., Comparison]) -> None:
    def swallow(model: object, x: object) -> Measured:
        print("It was not finished because of\n<class 'TypeError'>: no\n")
        raise module._NoFigureError

    (found,) = with_tool(fake(swallow)).readings
    assert found.problem == "failed: <class 'TypeError'>: no"


def test_an_interruption_is_not_a_failure(with_tool: Callable[..., Comparison]) -> None:
    def interrupt(model: object, x: object) -> Measured:
        raise KeyboardInterrupt

    before = sys.stdout, logging.root.manager.disable
    with pytest.raises(KeyboardInterrupt):
        with_tool(fake(interrupt))
    assert (sys.stdout, logging.root.manager.disable) == before


def test_what_a_tool_says_is_kept_from_the_user(
    with_tool: Callable[..., Comparison],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def chatter(model: object, x: object) -> Measured:
        print("out")
        print("err", file=sys.stderr)
        warnings.warn("careful", stacklevel=1)
        logging.getLogger("fake").critical("log")
        return Measured(42)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = with_tool(fake(chatter)).readings
    assert found.unexplained == 0
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert logging.root.manager.disable == logging.NOTSET


def test_two_packages_with_one_module_are_not_told_apart(
    with_tool: Callable[..., Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_installed", lambda tool: {"one": "1", "two": "2"})
    (found,) = with_tool(fake(lambda model, x: Measured(42))).readings
    assert found.problem.startswith("one and two are both installed")


def test_the_other_package_is_named(
    with_tool: Callable[..., Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_installed", lambda tool: {"two": "2"})
    tool = fake(lambda model, x: Measured(42), packages=("one", "two"))
    assert with_tool(tool).readings[0].version == "two 2"


# What PyTorch does not have


@pytest.mark.parametrize(
    ("cell", "options", "why"),
    [
        ("lstm", {"peephole": True}, "torch.nn.LSTM has no peephole='ifo'"),
        ("lstm", {"coupled": True}, "torch.nn.LSTM has no coupled=True"),
        ("lstm", {"cell_clip": 3.0}, "torch.nn.LSTM has no cell_clip=3.0"),
        ("lstm", {"activation": "relu"}, "torch.nn.LSTM has no activation='relu'"),
        ("gru", {"reset": "before"}, "torch.nn.GRU has no reset='before'"),
        ("gru", {"gate_activation": "hard_sigmoid"}, "torch.nn.GRU has no gate_activation="),
        ("rnn", {"activation": "elu"}, "torch.nn.RNN has no activation='elu'"),
        ("rnn", {"clip": 1}, "torch.nn.RNN has no clip=1.0"),
        ("rnn", {"bias": "single"}, "torch.nn.RNN has no bias='single'"),
        ("clockwork", {"periods": (1, 2)}, "PyTorch has no Clockwork RNN"),
    ],
)
def test_what_pytorch_does_not_have_is_only_counted(
    cell: str, options: dict[str, Any], why: str
) -> None:
    compared = compare(cell, input_size=3, hidden_size=4, steps=5, **options)
    assert compared.not_in_torch.startswith(why)
    assert compared.readings == ()
    own = count(cell, input_size=3, hidden_size=4, steps=5, **options)
    assert f"Exact: {own.macs:,} MACs" in str(compared)
    assert "nothing to compare it with" in compared.to_markdown()
    assert json.loads(compared.to_json())["model"] is None
    assert compared.to_csv().count("\n") == 2


def test_only_the_cells_of_pytorch_are_built() -> None:
    known = {layout.cell for layout in LAYOUTS if layout.framework == "torch"}
    assert known == {"rnn", "lstm", "gru"}
    for cell in set(CELLS) - known:
        options = {"periods": (1,)} if cell == "clockwork" else {}
        assert compare(cell, input_size=2, hidden_size=2, **options).readings == ()


# Arguments


@pytest.mark.parametrize(
    ("tools", "error", "message"),
    [
        (["thop", "nothing"], ValueError, "tools must be some of torchinfo, .* got 'nothing'"),
        ([], ValueError, "at least one"),
        ("thop", TypeError, "must be a sequence of names, got 'thop'"),
    ],
)
def test_unknown_tools_are_errors(tools: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        compare("lstm", input_size=2, hidden_size=2, tools=tools)


@pytest.mark.parametrize(
    ("name", "value"),
    [("lengths", [3, 1]), ("weight_dtype", "int8"), ("rate", 100), ("backward", True)],
)
def test_what_is_not_compared_is_an_error(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} is not compared"):
        compare("lstm", input_size=2, hidden_size=2, **{name: value})


def test_importing_it_imports_no_tool() -> None:
    code = (
        "import sys, fusedrnn.counting.other_tools, fusedrnn.cli; "
        "print({'torch', 'thop', 'ptflops', 'fvcore', 'torchinfo', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "set()\n"


def test_the_command_has_the_options_of_count(capsys: pytest.CaptureFixture[str]) -> None:
    line = "compare lstm --input 4 --hidden 6 --proj 2 --layers 2 --bidirectional --peephole f "
    line += "--coupled --steps 3 --batch 2 --format json"
    architecture = {
        "proj_size": 2,
        "num_layers": 2,
        "bidirectional": True,
        "peephole": "f",
        "bias": "double",
    }
    assert cli.main(line.split()) == 0
    result = json.loads(capsys.readouterr().out)
    assert architecture.items() <= result["architecture"].items()
    assert (result["steps"], result["batch"]) == (3, 2)
    own = count("lstm", **architecture, input_size=4, hidden_size=6, coupled=True, steps=3, batch=2)
    assert (result["macs"], result["flops"]) == (own.macs, 2 * own.macs)


def test_the_command_names_an_unknown_tool(capsys: pytest.CaptureFixture[str]) -> None:
    line = "compare lstm --input 4 --hidden 6 --tools thop,other"
    assert cli.main(line.split()) == 2
    assert "got 'other'" in capsys.readouterr().err


# With the tools


@pytest.mark.parametrize("name", TOOLS)
@pytest.mark.parametrize("number", range(len(MODELS)))
def test_every_difference_is_explained(number: int, name: str) -> None:
    pytest.importorskip("torch")
    pytest.importorskip(TOOLS[name].module)
    (found,) = compare(**(SIZES | MODELS[number]), tools=[name]).readings
    assert found.problem == ""
    assert found.version
    assert found.unexplained == 0, found


def test_the_random_numbers_of_the_user_stay_as_they_are() -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_rng_state()
    compare("lstm", **SIZES)
    assert torch.equal(before, torch.get_rng_state())


def test_a_model_that_is_too_large_is_named() -> None:
    pytest.importorskip("torch")
    sizes = {"input_size": 2**30, "hidden_size": 2**30}
    (found,) = compare("lstm", **sizes, tools=["torch.utils.flop_counter"]).readings
    assert found.problem.startswith("failed: RuntimeError: ")
    assert "\n" not in found.problem


def test_every_format_has_every_tool() -> None:
    pytest.importorskip("torch")
    compared = compare("lstm", **SIZES)
    rows = list(csv.DictReader(io.StringIO(compared.to_csv())))
    assert [row["tool"] for row in rows] == ["fusedrnn", *TOOLS]
    assert rows[0]["reported"] == rows[0]["exact"] == "559104"
    result = json.loads(compared.to_json())
    assert [tool["tool"] for tool in result["tools"]] == list(TOOLS)
    assert result["model"] == "torch.nn.LSTM(40, 64)"
    for tool in result["tools"]:
        if tool["reported"] is not None:
            terms = sum(term["value"] for term in tool["terms"])
            assert tool["reported"] == tool["exact"] + terms + tool["unexplained"]
    for name in TOOLS:
        assert f"| {name} |" in compared.to_markdown().replace("\\", "")
        assert f"\n{name} " in str(compared)


# The page


def tables() -> list[list[list[str]]]:
    """The tables of the page, as rows of cells."""
    blocks = re.findall(r"(?:^\|.*\n)+", DOCS.read_text(), re.MULTILINE)
    return [
        [
            [cell.strip().replace("\\", "") for cell in line.split("|")[1:-1]]
            for line in block.splitlines()
            if "--" not in line
        ]
        for block in blocks
    ]


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_the_printed_table_adds_up() -> None:
    report = next(rows for rows in tables() if "reported" in rows[0])
    reasons = next(rows for rows in tables() if "formula" in rows[0])
    assert [row[0] for row in report[1:]] == list(TOOLS)
    for tool, _, _, reported, exact, difference, ratio in report[1:]:
        terms = [row for row in reasons[1:] if row[0] == tool]
        for _, _, formula, term in terms:
            assert value(formula.split(" = ")[1]) == number(term)
        assert sum(number(row[3]) for row in terms) == number(difference)
        assert number(exact) + number(difference) == number(reported)
        assert float(ratio) == round(number(reported) / number(exact), 4)


def test_the_printed_table_is_what_the_command_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in TOOLS:
        pytest.importorskip(TOOLS[name].module)
    page = DOCS.read_text()
    (line,) = re.findall(r"`(fusedrnn compare .*--format markdown)`", page)
    assert cli.main(shlex.split(line)[1:]) == 0
    for part in capsys.readouterr().out.split("\n\n")[2:-1]:
        # Every version of a tool says the same, as far as is known.
        for row in part.splitlines():
            cells = row.split(" | ")
            assert " | ".join([cells[0], *cells[2:]]) in [
                " | ".join([old[0], *old[2:]])
                for old in (other.split(" | ") for other in page.splitlines())
            ]


def test_the_ratios_of_the_page_are_those_of_the_runs() -> None:
    table = next(rows for rows in tables() if rows[0][0] == "tool" and "GRU" in rows[0])
    assert [row[0] for row in table[1:]] == list(REPORTED)
    for row in table[1:]:
        for run, ratio in zip(table[0][1:], row[1:], strict=True):
            sizes, figures = RUNS[run]
            unit = 2 if row[0] == "torch.utils.flop_counter" else 1
            exact = unit * count(**(SIZES | sizes)).macs
            assert ratio == f"{figures[REPORTED.index(row[0])] / exact:.4f}"
