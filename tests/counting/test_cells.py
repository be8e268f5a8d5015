"""The table of cells: what it says as data agrees with what it says as text."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from fusedrnn.cells import CELLS, Cell, Equation

ROWS = [row for rows in CELLS.values() for row in rows]
EVERY = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.title)


def read(row: Cell) -> tuple[Equation, ...]:
    """The equations of a cell, read from their text."""
    roles = {gate.name: gate.role for gate in row.gates}
    made: list[str] = []
    found = []
    for text in (equation.text for equation in row.equations):
        match = re.fullmatch(r"([\w']+?)(?:_m)? = (.+)", text)
        if match is None:
            found.append(Equation(text))
            continue
        result, expression = match.groups()
        words = re.findall(r"[A-Za-z_]\w*'?", expression)
        operands = tuple(dict.fromkeys(word for word in words if word in made))
        role = ""
        if called := re.search(r"(?:sigmoid|tanh)\((.*)\)", expression):
            role = "output" if called[1] in row.outputs else roles[result.rstrip("'")]
        found.append(Equation(text, result, operands, role))  # type: ignore[arg-type]
        made.append(result)
    return tuple(found)


@EVERY
def test_the_equations_are_what_they_say(row: Cell) -> None:
    assert [(each.result, set(each.operands), each.role) for each in row.equations] == [
        (each.result, set(each.operands), each.role) for each in read(row)
    ]


def test_negative_control_a_missing_operand_is_noticed() -> None:
    (row,) = (row for row in CELLS["gru"] if row.form == "after")
    *others, last = row.equations
    wrong = replace(row, equations=(*others, replace(last, operands=("z",))))
    with pytest.raises(AssertionError):
        test_the_equations_are_what_they_say(wrong)


@EVERY
def test_a_product_that_waits_is_of_something_else_than_h(row: Cell) -> None:
    waits = {
        gate.name for gate in row.gates for each in row.equations if f"R_{gate.name} (" in each.text
    }
    assert waits == set(row.after_first_product)
    for each in row.equations:
        assert each.result not in row.after_first_product or each.operands


@EVERY
def test_every_gate_has_its_equation_and_its_activation(row: Cell) -> None:
    roles = {each.result.rstrip("'"): each.role for each in row.equations if each.result}
    assert {gate.name: roles[gate.name] for gate in row.gates} == {
        gate.name: gate.role for gate in row.gates
    }
    assert sum(each.role == "output" for each in row.equations) == len(row.outputs)


def test_names_and_forms_are_unique() -> None:
    for name, rows in CELLS.items():
        assert {row.name for row in rows} == {name}
        assert len({row.form for row in rows}) == len(rows)
