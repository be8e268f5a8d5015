"""The bits and the counts of every member of the family are those that were recorded (``recorded.py``)."""

from __future__ import annotations

import json

import pytest
from conftest import FAMILY, Maker
from recorded import FILE, count, digest

RECORDED = json.loads(FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("name", FAMILY)
def test_digests(make_compiled: Maker, name: str, bidirectional: bool) -> None:
    isa = "baseline" if make_compiled.target.isa == "baseline" else "fma"
    found = digest(name, make_compiled.target.backend, bidirectional=bidirectional)
    assert found == RECORDED["digests"][isa][name][bidirectional]


@pytest.mark.parametrize("name", FAMILY)
def test_counts(name: str) -> None:
    assert count(name) == RECORDED["counts"][name]


def test_negative_control_members_differ() -> None:
    digests = [digest for both in RECORDED["digests"]["fma"].values() for digest in both]
    assert len(set(digests)) == len(digests)
