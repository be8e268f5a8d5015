"""Benchmark results as a page, as Markdown and as plots.

Everything here reads the JSON that ``fusedrnn bench`` writes and measures nothing itself.
"""

from fusedrnn.report.compare import Change, compare
from fusedrnn.report.render import render
from fusedrnn.report.results import Measure, Results, Row, load, parse

__all__ = [
    "Change",
    "Measure",
    "Results",
    "Row",
    "compare",
    "load",
    "parse",
    "render",
]
