"""The documentation agrees with the code: links, figures, equations, defaults and pictures."""

from __future__ import annotations

import importlib.util
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import click
import numpy as np
import pytest

import fusedrnn as fr
from fusedrnn import cli
from fusedrnn.architecture import Architecture
from fusedrnn.cells import CELLS, Cell
from fusedrnn.kernels.reference import sigmoid, tanh

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
CELL_PAGES = ROOT / "docs" / "cells"

# Which rows of the table a page has, in the order of its equations.
ROWS = {
    "rnn": [("rnn", "")],
    "lstm": [("lstm", "")],
    "peephole-lstm": [("lstm", "")],
    "coupled-lstm": [("lstm", "coupled")],
    "projected-lstm": [("lstm", "")],
    "gru": [("gru", "after"), ("gru", "before")],
    "clockwork": [("clockwork", "")],
}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def row_of(name: str, form: str) -> Cell:
    return next(row for row in CELLS[name] if row.form == form)


# ---- links ---------------------------------------------------------------------------------------


def without_code(text: str) -> str:
    return re.sub(
        r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    )


def links(page: Path) -> list[str]:
    found: list[str] = re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text()))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path) -> list[str]:
    wrong = []
    for link in links(page):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_negative_control_a_broken_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A page\n[a](#a-page) [b](no.md) [c](page.md#no) `[d](no.md)` [e](https://no)\n"
    )
    assert broken(page) == ["no.md", "page.md#no"]


def test_every_cell_has_its_page_and_every_page_is_linked() -> None:
    assert {row for rows in ROWS.values() for row in rows} == {
        (row.name, row.form) for rows in CELLS.values() for row in rows
    }
    overview = links(CELL_PAGES / "README.md")
    for page in CELL_PAGES.glob("*.md"):
        assert page.name in overview or page.name == "README.md"


# ---- names, commands and code ---------------------------------------------------------------------


#: Folders in which a path of the docs may begin, beside the root and the folder of the page.
BASES = ("", "csrc", "python/fusedrnn", "tests")
SUFFIXES = ["c", "h", "py", "md", "toml", "json", "txt", "svg", "png", "safetensors", "jinja"]

#: Files that are written by a command, or are an example of a name.
NOT_HERE = re.compile(
    r"(?:FLOPs/byte|/dev/.*|.*[*<{].*|(?:old|new|OLD|NEW|results|machine|compared|cost|table|network|net|report)\.\w+"
    r"|(?:report/)?(?:index\.html|report\.md|results\.json)|(?:csrc/\w+/|kernels/|docs/cells/)?(?:mgu(?:_back)?|v2)\.\w+)"
)


def code_of(page: Path) -> list[str]:
    """The pieces of code inside the sentences of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`]+)`", text)


def missing_files(page: Path) -> list[str]:
    """Paths in the code of a page that lead nowhere."""
    missing = []
    for word in code_of(page):
        path = re.fullmatch(rf"[\w./-]+\.(?:{'|'.join(SUFFIXES)})|[\w.-]+/[\w./-]*", word)
        if not path or NOT_HERE.fullmatch(word):
            continue
        folders = [page.parent, *(ROOT / base for base in BASES)]
        if any((folder / word).exists() for folder in folders):
            continue
        if "/" in word or not any(ROOT.glob(f"*/**/{word}")):
            missing.append(word)
    return missing


def missing_tests(page: Path, known: set[str]) -> list[str]:
    """Tests that a page names and that do not exist."""
    return [word for word in code_of(page) if word.startswith("test_") and word not in known]


@pytest.fixture(scope="module")
def known_tests() -> set[str]:
    files = list((ROOT / "tests").rglob("*.py"))
    functions = {
        name
        for file in files
        for name in re.findall(r"^\s*def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    return functions | {file.name for file in files}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_files_and_tests_that_are_named_exist(page: Path, known_tests: set[str]) -> None:
    assert missing_files(page) == []
    assert missing_tests(page, known_tests) == []


def test_negative_control_a_missing_file_or_test_is_seen(
    tmp_path: Path, known_tests: set[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`csrc/run.c` `run.c` `csrc/walk.c` `walk.c` `old.json` `test_docs.py` `test_no`\n"
    )
    assert missing_files(page) == ["csrc/walk.c", "walk.c"]
    assert missing_tests(page, known_tests) == ["test_no"]


def commands_of(page: Path) -> list[str]:
    """Commands of fusedrnn, in sentences, tables and blocks of a page."""
    text = page.read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += [line.strip() for line in re.findall(r"(?:^|\n)    (\S.*)", text)]
    lines += code_of(page)
    found = []
    for line in lines:
        command = re.match(
            r"(?:.*&& )?(?:\$ )?(?:\S*/)?fusedrnn ([a-z-].*)", " ".join(line.split())
        )
        if command:
            words = re.split(r"\s#|\s[|>]|`", command[1])[0].strip()
            found.append(words)
    return list(dict.fromkeys(found))


def wrong_words(command: str) -> list[str]:
    """What a command line has that the commands do not: a command, or an option."""
    context = click.Context(cli._fusedrnn)
    known: click.Command = context.command
    wrong = []
    for word in shlex.split(re.sub(r"\[([^\]]*)\]", r"\1", command)):
        if isinstance(known, click.Group) and not word.startswith("-"):
            inner = known.get_command(context, word)
            if inner is None:
                wrong.append(word)
                break
            known = inner
        elif word.startswith("-") and word != "-":
            options = {name for each in known.get_params(context) for name in each.opts}
            if word.partition("=")[0] not in options:
                wrong.append(word)
    return wrong


COMMANDS = [
    (page, command)
    for page in PAGES
    for command in commands_of(page)
    if not re.match(r"COMMAND|mgu|count mgu", command)
]


def test_pages_have_commands() -> None:
    assert {"measuring", "guide", "figures", "spec"} <= {page.stem for page, _ in COMMANDS}


@pytest.mark.parametrize(
    ("page", "command"), COMMANDS, ids=[f"{page.stem}-{command}" for page, command in COMMANDS]
)
def test_commands_and_options_exist(page: Path, command: str) -> None:
    assert wrong_words(command) == []


def test_negative_control_an_unknown_command_or_option_is_seen() -> None:
    assert wrong_words("count lstm --input 3 --hiden 4") == ["--hiden"]
    assert wrong_words("bench walk --quick") == ["walk"]
    assert wrong_words("climb") == ["climb"]


class _Tensor:
    """What PyTorch's state_dict holds, as far as the guide asks of it."""

    def __init__(self, array: np.ndarray) -> None:
        self.numpy = lambda: array


class _Model:
    """A model of PyTorch with an LSTM in it."""

    def state_dict(self) -> dict[str, _Tensor]:
        weights = fr.LSTM(64, 128, bias="double", seed=0).weights
        named = {f"encoder.lstm.{name}": _Tensor(array) for name, array in weights.items()}
        return {**named, "decoder.weight": _Tensor(np.zeros(3, np.float32))}


def test_the_code_of_the_guide_runs() -> None:
    values: dict[str, Any] = {"model": _Model()}
    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / "guide.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert len(blocks) >= 5
    for block in blocks:
        exec(block, values)  # noqa: S102 - our own page
    assert values["y_t"].shape == (1, 128)


def test_the_code_on_training_prints_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "training.md").read_text()
    blocks = re.findall(
        r"^```python\n(.*?)^```\n\nprints\n\n```\n(.*?)^```", page, re.DOTALL | re.MULTILINE
    )
    assert len(blocks) == 2
    values: dict[str, Any] = {}
    for block, printed in blocks:
        exec(block, values)  # noqa: S102 - our own page
        said, expected = capsys.readouterr().out.split(), printed.split()
        # Numbers depend on the instruction set in their last digits.
        for one, other in zip(said, expected, strict=True):
            assert one == other or float(one) == pytest.approx(float(other), abs=2e-4)


# ---- figures -------------------------------------------------------------------------------------


def figures() -> list[tuple[str, str, str]]:
    return [
        (page.stem, command, figure.replace("\\", ""))
        for page in sorted(CELL_PAGES.glob("*.md"))
        for command, figure in re.findall(
            r"^\| `fusedrnn (count [^`]*)` \| (.*?) \|", page.read_text(), re.MULTILINE
        )
    ]


def test_every_page_has_figures() -> None:
    assert {page for page, _, _ in figures()} == {*ROWS, "bidirectional"}


@pytest.mark.parametrize(("page", "command", "figure"), figures())
def test_the_command_prints_the_figure_beside_it(
    page: str, command: str, figure: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command.split()) == 0
    assert re.search(rf"(?<![\d,.]){re.escape(figure)}(?![.,]?\d)", capsys.readouterr().out)


# ---- equations -----------------------------------------------------------------------------------


def equations(page: str) -> list[tuple[str, ...]]:
    """The blocks of code of a page that are equations."""
    text = (CELL_PAGES / f"{page}.md").read_text()
    blocks = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [tuple(block.splitlines()) for block in blocks]


@pytest.mark.parametrize("page", ROWS)
def test_the_equations_are_those_of_the_table(page: str) -> None:
    rows = [row_of(*row) for row in ROWS[page]]
    assert equations(page)[: len(rows)] == [
        tuple(equation.text for equation in row.equations) for row in rows
    ]


@pytest.mark.parametrize("kind", ("RNN", "LSTM", "GRU"))
def test_the_equations_of_the_classes_are_those_of_the_table(kind: str) -> None:
    layer = getattr(fr, kind)
    said = [" ".join(line.split()) for line in layer.__doc__.splitlines()]
    for row in CELLS[layer.cell]:
        if row.form == "coupled":
            continue  # in words there
        for equation in row.equations:
            assert any(line.startswith(equation.text) for line in said), equation


def as_python(equation: str) -> str:
    """``h' = tanh(W_h x + ...)`` as a statement: a matrix before a vector or a sum is a product."""
    product = re.sub(r"\b([WRP](?:_\w)?) (\w'?|\([^()]*\))", r"(\1 @ \2)", equation)
    return product.replace("c'", "c_").replace("h'", "h_")


def values_of(layer: fr.Layer[Any], h: np.ndarray, x: np.ndarray) -> dict[str, Any]:
    """The letters of the equations, from the weights of one layer."""
    a, w = layer.architecture, layer.weights
    values: dict[str, Any] = {"sigmoid": sigmoid, "tanh": tanh, "x": x, "h": h}
    names = [gate.name for gate in a.table.gates]
    for letter, weight in (("W", "weight_ih_l0"), ("R", "weight_hh_l0"), ("b", "bias_ih_l0")):
        for name, block in zip(names, np.split(w[weight], len(names)), strict=True):
            values[f"{letter}_{name}"] = block
    if "bias_hn_l0" in w:
        values["d_n"] = w["bias_hn_l0"]
    if a.proj_size:
        values["P"] = w["weight_hr_l0"]
    if a.peephole:
        parts = np.split(w["weight_peephole_l0"], len(a.peephole))
        values |= {f"p_{gate}": part for gate, part in zip(a.peephole, parts, strict=True)}
    return values


EXECUTED = {
    "rnn": (0, fr.RNN, {}),
    "lstm": (0, fr.LSTM, {}),
    "peephole-lstm": (1, fr.LSTM, {"peephole": True}),
    "coupled-lstm": (0, fr.LSTM, {"coupled": True}),
    "projected-lstm": (1, fr.LSTM, {"proj_size": 3}),
    "gru": (0, fr.GRU, {"reset": "after"}),
    "gru, before": (1, fr.GRU, {"reset": "before"}),
}


def one_step(page: str) -> tuple[fr.Layer[Any], dict[str, Any], tuple[np.ndarray, ...]]:
    """A layer, the letters after the page's equations were executed, and what the layer makes of it."""
    block, kind, options = EXECUTED[page]
    layer = kind(4, 6, seed=1, dtype="float64", **options)
    random = np.random.default_rng(2)
    x = random.standard_normal((1, 1, 4))
    state = [random.standard_normal(array.shape) for array in layer._signature.start_state(1)]
    values = values_of(layer, state[0].ravel(), x.ravel())
    if len(state) > 1:
        values["c"] = state[1].ravel()
    for equation in equations(page.partition(",")[0])[block]:
        exec(as_python(equation), values)  # noqa: S102 - our own page
    return layer, values, layer(x, state)[1]


@pytest.mark.parametrize("page", EXECUTED)
def test_the_equations_compute_what_the_layer_does(page: str) -> None:
    _, values, after = one_step(page)
    np.testing.assert_allclose(values["h_"], after[0].ravel(), rtol=0, atol=1e-14)
    if len(after) > 1:
        np.testing.assert_allclose(values["c_"], after[1].ravel(), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("page", "other"), (("lstm", "peephole-lstm"), ("gru", "gru, before")))
def test_negative_control_the_equations_of_another_cell_differ(page: str, other: str) -> None:
    _, values, _ = one_step(page)
    _, _, after = one_step(other)
    assert np.abs(values["h_"] - after[0].ravel()).max() > 1e-3


# ---- options -------------------------------------------------------------------------------------


def option_rows(page: str) -> Iterator[tuple[str, str]]:
    """Name and default of each row of the page's table of options."""
    text = (CELL_PAGES / f"{page}.md").read_text()
    for table in re.findall(r"^\| option \| default \|.*?\n\n", text, re.DOTALL | re.MULTILINE):
        yield from re.findall(r"^\| `(\w+)` \| (?:`([^`]*)`|required) \|", table, re.MULTILINE)


def test_the_options_of_all_cells_are_those_of_layers() -> None:
    parameters = inspect.signature(fr.Layer.__init__).parameters.values()
    defaults = {p.name: repr(p.default) for p in parameters if p.default is not p.empty}
    assert dict(option_rows("README")) == defaults


@pytest.mark.parametrize("page", ROWS)
def test_the_options_of_a_cell_are_those_of_the_table(page: str) -> None:
    name, _ = ROWS[page][0]
    options = CELLS[name][0].options
    said = dict(option_rows(page))
    assert set(said) <= options
    if page in CELLS:
        assert set(said) == options
    periods = {"periods": (1,)} if name == "clockwork" else {}
    known = Architecture(name, 1, 1, **periods)
    for option, default in said.items():
        assert default == ("" if option == "periods" else repr(getattr(known, option))), option


# ---- pictures ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("pictures", CELL_PAGES / "pictures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words(svg: str) -> list[str]:
    return re.findall(r">([^<]+)</text>", svg)


def test_the_pictures_are_those_that_the_script_draws(pictures: ModuleType) -> None:
    drawn = {f"{name}.svg" for name in pictures.PICTURES}
    assert drawn == {path.name for path in CELL_PAGES.glob("*.svg")}
    shown = {link for page in CELL_PAGES.glob("*.md") for link in links(page)}
    assert drawn <= shown
    for name, (label, draw) in pictures.PICTURES.items():
        assert words((CELL_PAGES / f"{name}.svg").read_text()) == words(draw().svg(label)), (
            f"{name}.svg is not what it would be now: run python docs/cells/pictures.py"
        )


@pytest.mark.parametrize("path", sorted(CELL_PAGES.glob("*.svg")), ids=lambda path: path.stem)
def test_a_picture_is_small_light_and_dark(path: Path) -> None:
    text = path.read_text()
    assert len(text.encode()) < 40_000
    assert "prefers-color-scheme: dark" in text
    root = ElementTree.fromstring(text)
    assert root.get("role") == "img" and root.get("aria-label")
