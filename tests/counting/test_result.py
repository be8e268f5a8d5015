"""The four formats, written once: every result in each of them, whatever text its names hold."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fusedrnn.counting.counts import count
from fusedrnn.counting.network import Array, Layer, Network, Published
from fusedrnn.counting.network_file import load
from fusedrnn.counting.other_tools import Comparison, Reading, Term
from fusedrnn.counting.published import Check, Verification, verify
from fusedrnn.counting.result import (
    SCHEMA_VERSION,
    Result,
    Table,
    aligned,
    display_width,
    figure_text,
    markdown_text,
    printable,
)
from fusedrnn.machine.limits import load as load_machine
from fusedrnn.machine.roofline import roofline

ROOT = Path(__file__).parents[2]
SIZES: dict[str, Any] = {"input_size": 40, "hidden_size": 64}
STACK: dict[str, Any] = SIZES | {"num_layers": 2, "bidirectional": True, "proj_size": 16}

HOSTILE = st.text(max_size=20) | st.text(
    alphabet="|\\`*_<>[]()~$&#!-\n\r\t\0\x1b ;,\"'=+漢字é\u0301\u202e\ud800", max_size=20
)
EXAMPLES = (
    "a|b",
    "a\\|b",
    "a\\",
    "`x`",
    "_a_",
    "*",
    "a * b",
    "[x](y)",
    "<b>",
    "&lt;",
    "~~a~~",
    "\x1b[31m",
)


def hostile_network(name: str) -> Network:
    layer = Layer(
        name, "dense", (name, name), 3, 2, (Array(name, (2, 3), False, 6),), 6, 6, note=name
    )
    return Network(name, (layer,))


def hostile_check(name: str) -> Check:
    published = Published(
        "parameters", "7", "read", name, name, name, "match", "", (name,), "once", 1, None
    )
    return Check(name, name, published, 6, "no match")


def hostile(name: str) -> dict[str, Result]:
    """The results that have names of others in them: of files, layers, networks, tools and their errors."""
    exact = count("lstm", **SIZES)
    readings = (
        Reading(name, name, "MACs", name, 5, 6, (Term(name, name, name, 1),)),
        Reading(name, "", "MACs", "MACs", 5, problem=name),
    )
    return {
        "network": hostile_network(name).count(),
        "published": Verification((hostile_check(name),)),
        "other tools": Comparison(exact, name.replace("\n", " "), "", readings),
    }


def results() -> dict[str, Result]:
    machine = load_machine(ROOT / "docs" / "example-machine.json")
    clockwork = count("clockwork", **SIZES, periods=(1, 3), steps=5, rate=100.5, backward=True)
    readings = (
        Reading("one", "1.0", "FLOPs", "flops", 10, 12, (Term("it adds", "D_n*T", "2*1", 2),)),
        Reading("two", "", "MACs", "MACs", 5, problem="two is missing"),
    )
    return {
        "counts": count("lstm", **STACK, lengths=[7, 3], rate=100),
        "average counts": clockwork,
        "network": load(ROOT / "examples" / "language-model.toml").count(steps=35),
        "published": verify(),
        "other tools": Comparison(count("lstm", **SIZES), "torch.nn.LSTM(40, 64)", "", readings),
        "roofline": roofline("gru", machine, **SIZES, steps=7, batch=3, rate=100),
    }


RESULTS = results()
EVERY = pytest.mark.parametrize("name", RESULTS)


def markdown_tables(text: str) -> list[list[list[str]]]:
    """The tables of a page as a Markdown parser sees them: rows of the text of each cell."""
    parser = (
        pytest.importorskip("markdown_it")
        .MarkdownIt("commonmark")
        .enable(["table", "strikethrough"])
    )
    tables: list[list[list[str]]] = []
    inside = False
    for token in parser.parse(text):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type in ("th_open", "td_open"):
            inside = True
        elif token.type == "inline" and inside:
            # Any other kind would be a part of the text that became formatting.
            assert {child.type for child in token.children} <= {"text", "text_special"}, (
                token.content
            )
            tables[-1][-1].append("".join(child.content for child in token.children))
            inside = False
    return tables


def words(table: Table) -> list[list[str]]:
    """What a parser should find of a table."""
    return [[printable(cell).strip() for cell in row] for row in (table.header, *table.rows)]


def as_read(value: Any) -> str:
    """A value of JSON as the CSV file has it."""
    if isinstance(value, list):
        value = "+".join(value)
    return "" if value is None else str(value).encode("utf-8", "backslashreplace").decode()


# Every result


@EVERY
def test_json_is_the_document(name: str) -> None:
    result = RESULTS[name]
    document = json.loads(result.to_json())
    assert document == result.to_dict()
    assert next(iter(document)) == "schema_version"
    assert document["schema_version"] == SCHEMA_VERSION
    meaning = document["assumptions" if name == "roofline" else "conventions"]
    assert all(isinstance(text, str) for text in meaning.values())
    assert result.to_json().isascii()


@EVERY
def test_csv_has_as_many_fields_in_every_line(name: str) -> None:
    header, *rows = csv.reader(io.StringIO(RESULTS[name].to_csv()))
    assert len(set(header)) == len(header)
    assert rows
    assert {len(row) for row in rows} == {len(header)}


@EVERY
def test_markdown_has_the_tables_of_the_text(name: str) -> None:
    result = RESULTS[name]
    tables = list(result._tables())
    assert tables
    assert markdown_tables(result.to_markdown()) == [words(table) for table in tables]
    for table in tables:
        assert table.caption in str(result)
        assert {len(row) for row in table.rows} == {len(table.header)}


@EVERY
def test_text_is_printable_lines(name: str) -> None:
    for text in (str(RESULTS[name]), RESULTS[name].to_markdown()):
        assert all(line.isprintable() for line in text.split("\n"))


# Names of any text


@given(HOSTILE)
@example("a\nb|c")
def test_any_name_is_written_in_every_format(name: str) -> None:
    for result in hostile(name).values():
        document = json.loads(result.to_json())
        assert document == result.to_dict()
        for text in (str(result), result.to_markdown(), result.to_csv()):
            text.encode("utf-8")
        for text in (str(result), result.to_markdown()):
            assert all(line.isprintable() for line in text.split("\n"))
        assert markdown_tables(result.to_markdown()) == [words(table) for table in result._tables()]
    (check,) = hostile_records("published", name)
    assert (check["network"], check["file"]) == (as_read(name), as_read(name))
    layer, total = hostile_records("network", name)
    assert layer["layer"] == as_read(name)
    assert total["layer"] == "total"


def hostile_records(result: str, name: str) -> list[dict[str, str]]:
    text = hostile(name)[result].to_csv()
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_a_name_cannot_forge_a_row() -> None:
    forged = "a\n\nFAILED: nothing\nlstm  1  2"
    for result in hostile(forged).values():
        assert "\nFAILED: nothing" not in str(result)
        assert "\nFAILED: nothing" not in result.to_markdown()
    assert printable(forged) in str(hostile_network(forged).count())
    assert printable(forged) in hostile_network(forged).count().explain()


@given(HOSTILE)
def test_markdown_text_is_the_text(name: str) -> None:
    table = f"| a |\n| :-- |\n| {markdown_text(name)} |\n"
    assert markdown_tables(table) == [[["a"], [printable(name).strip()]]]


@pytest.mark.parametrize("name", EXAMPLES)
def test_markdown_text_is_the_text_of_these(name: str) -> None:
    table = f"| a | b |\n| :-- | :-- |\n| {markdown_text(name)} | x |\n"
    assert markdown_tables(table)[0][1] == [printable(name), "x"]


@pytest.mark.parametrize(
    "name", [name for name in EXAMPLES if name not in ("a\\", "*", "a * b", "\x1b[31m")]
)
def test_negative_control_the_parser_finds_formatting(name: str) -> None:
    table = f"| a | b |\n| :-- | :-- |\n| {name} | x |\n"
    with pytest.raises(AssertionError):
        assert markdown_tables(table)[0][1] == [name, "x"]


@pytest.mark.parametrize(
    "text", ["hidden_size 3", "D_x", "f * c + i * g", "Zaremba & Sutskever", "a-b"]
)
def test_what_markdown_leaves_alone_is_not_escaped(text: str) -> None:
    assert markdown_text(text) == text


# The layout of a terminal


@given(st.text(max_size=30))
def test_printable_text_is_one_line_and_tells_characters_apart(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    if text.isprintable():
        assert shown == text
    else:
        assert shown != text


@given(
    st.lists(st.tuples(HOSTILE, HOSTILE, st.integers(0, 10**6).map(str)), min_size=1, max_size=5)
)
def test_columns_end_where_the_widest_cell_ends(rows: Sequence[tuple[str, str, str]]) -> None:
    lines = aligned(rows, numbers=[2]).split("\n")
    assert len(lines) == len(rows)
    # The last column is to the right and never empty: all lines are as wide as one another.
    assert len(set(map(display_width, lines))) == 1
    for line, row in zip(lines, rows, strict=True):
        assert line.startswith(printable(row[0]))
        assert line.endswith(f"  {row[2]}")


def test_aligned_columns() -> None:
    rows = [["name", "n", "why"], ["a", "1,000", "x"]]
    assert aligned(rows, numbers=[1]) == "name      n  why\na     1,000  x"
    assert aligned([["漢字", "1"], ["abc", "22"]], numbers=[1]) == "漢字   1\nabc   22"


@pytest.mark.parametrize(
    ("text", "width"),
    [("", 0), ("abc", 3), ("é", 1), ("e\u0301", 1), ("漢字", 4), ("ｆ", 2), ("한", 2), ("😀", 2)],
)
def test_the_width_of_text(text: str, width: int) -> None:
    assert display_width(text) == width


def test_wide_names_do_not_shift_the_columns_behind_them() -> None:
    network = Network(
        "wide",
        tuple(
            Layer(name, "dense", (), 1, 2, (), 3, 3) for name in ("漢字漢字", "e\u0301", "plain")
        ),
    )
    header, *rows = str(network.count()).split("\n\n")[1].split("\n")[1:]
    column = header.index("kind")
    for row in rows[:-1]:
        assert display_width(row[: row.index("dense")]) == column


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (None, "-"),
        (0, "0"),
        (10**30, f"{10**30:,}"),
        (Fraction(1, 3), "0.333"),
        (1234.5, "1,234.5"),
    ],
)
def test_figures_for_people(figure: Any, text: str) -> None:
    assert figure_text(figure) == text


# What a result gives


class Small(Result):
    def __init__(self, records: Sequence[Mapping[str, Any]]) -> None:
        self.records = records

    def _title(self) -> str:
        return ""

    def _document(self) -> Mapping[str, Any]:
        return {"rows": self.records}

    def _records(self) -> Sequence[Mapping[str, Any]]:
        return self.records

    def _tables(self) -> Sequence[Table]:
        return ()


def test_fractions_names_and_missing_columns() -> None:
    result = Small([{"a": Fraction(1, 2), "b": ("x", "y")}, {"a": None, "c": 1}])
    assert result.to_dict()["rows"] == [{"a": 0.5, "b": ["x", "y"]}, {"a": None, "c": 1}]
    assert result.to_csv() == "a,b,c\n0.5,x+y,\n,,1\n"
    assert (str(result), result.to_markdown()) == ("", "\n")


def test_json_has_no_infinity() -> None:
    with pytest.raises(ValueError, match="JSON"):
        Small([{"a": float("inf")}]).to_json()


def test_only_one_module_writes() -> None:
    """JSON, CSV and Markdown are written in one place: a second writer would have to be kept in step."""
    package = ROOT / "python" / "fusedrnn"
    for path in [*package.glob("counting/*.py"), package / "machine" / "roofline.py"]:
        if path.name != "result.py":
            code = path.read_text(encoding="utf-8")
            assert not re.search(
                r"import (csv|json)\b|SCHEMA_VERSION|def (to_json|to_csv)", code
            ), path


def test_every_unprintable_category_is_escaped() -> None:
    for character in (
        "\x00",
        "\n",
        "\x1b",
        "\x85",
        "\u200e",
        "\u2028",
        "\ud800",
        "\ue000",
        "\U000e0001",
    ):
        assert unicodedata.category(character)[0] in "CZ"
        assert printable(character).isascii()
