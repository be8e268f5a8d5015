"""A benchmark JSON as a folder: a page, the same in Markdown, plots, and the JSON itself."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any

from fusedrnn.report import text
from fusedrnn.report.engines import BASELINE, ENGINES, LIBRARIES, OURS
from fusedrnn.report.groups import GROUPS, TRAINING
from fusedrnn.report.plots import PLOTS, available_plots, image, inline
from fusedrnn.report.results import NOT_SLOWER, Results, Row, parse
from fusedrnn.report.targets import TARGETS, outcomes
from fusedrnn.report.training import columns, lines

__all__ = ["COMMAND", "render"]

#: The command that makes such a report.
COMMAND = "fusedrnn bench"

#: How many times as long as C Numba's kernels are meant to take at most.
MAX_NUMBA_RATIO = 1.3


def render(results: dict[str, Any]) -> dict[str, bytes]:
    """Every file of the report, by name; the page is last and needs none of the others."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    parsed = parse(results)
    templates = Environment(
        loader=PackageLoader("fusedrnn.report", "."),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update({name: getattr(text, name) for name in text.__all__})
    templates.globals["span"] = text.span
    labels = {name: engine.label for name, engine in ENGINES.items()}
    templates.filters["name_of"] = labels.__getitem__
    libraries = [name for name in LIBRARIES if name in parsed.engines]
    reached = outcomes(parsed) if libraries else []
    names = available_plots(parsed)
    facts = {
        "results": parsed,
        "groups": [
            group for group in GROUPS if parsed.in_group(group.name) and group.name not in TRAINING
        ],
        "training": [
            (group, lines(parsed, group.name))
            for group in GROUPS
            if parsed.in_group(group.name) and group.name in TRAINING
        ],
        "columns": columns(parsed),
        "labels": labels,
        "engines": ENGINES,
        "titles": {group.name: group.title for group in GROUPS},
        "scaled": partial(_scaled, parsed),
        "within": parsed.within,
        "baseline": BASELINE,
        "ours": OURS,
        "libraries": libraries,
        "not_slower": NOT_SLOWER,
        "verdicts": _verdicts(parsed.versus),
        "trained_verdicts": _verdicts(
            [row for row in parsed.rows if row.trained and row.threads is None]
        ),
        # Those of training, and the others.
        "targets": {
            trained: [
                (target, found)
                for target in TARGETS
                if (target.group in TRAINING) == trained
                and (found := [each for each in reached if each.target is target])
            ]
            for trained in (True, False)
        },
        "max_numba_ratio": MAX_NUMBA_RATIO,
        "fused": [engine for engine in parsed.own if engine != BASELINE],
        "headline": _headline(parsed),
        "machine": _machine(parsed),
        "command": _command(parsed),
        "shortest": _empty_loop(parsed),
        "plots": {name: (inline(name, parsed), PLOTS[name][1]) for name in names},
    }
    files = {
        f"{name}.{kind}": image(name, parsed, kind) for name in names for kind in ("png", "svg")
    }
    files["results.json"] = (json.dumps(results, indent=1) + "\n").encode()
    for name in ("report.md", "index.html"):
        files[name] = templates.get_template(f"{name}.jinja").render(facts).encode()
    return files


def _verdicts(rows: Iterable[Row]) -> Counter[str]:
    """In how many rows C is faster than the fastest library, even, and slower."""
    return Counter(row.against_fastest.verdict for row in rows if row.against_fastest)


def _headline(results: Results) -> tuple[Row, str] | None:
    """The row that stands for the others, a step of middle size, and the fastest engine in it."""
    steps = results.in_group("step from Python")
    rows = [row for row in steps if row.baseline and row.plain]
    if not rows:
        return None
    row = min(rows, key=lambda row: abs(row.sizes["H"] - 128))
    others = [engine for engine in row.measures if engine in results.own and engine != BASELINE]
    if not others:
        return None
    return row, min(others, key=lambda engine: row.measures[engine].median)


def _scaled(results: Results, row: Row, engine: str) -> str | None:
    """How an engine fares with the threads of a row against one; None where that is not the question."""
    found = results.scaling(row, engine) if row.threads not in (None, 1) else None
    return f"{text.ratio(found.median)} one thread" if found else None


def _empty_loop(results: Results) -> float | None:
    """What one repeat of the timing loop costs, at best."""
    rows = results.in_group("step from Python")
    return min((each.empty_loop for row in rows for each in row.measures.values()), default=None)


def _command(results: Results) -> str:
    verb = "peers" if results.libraries else "run"
    if not results.rows:
        verb = "latency" if results.latencies else "stages"
    quick = " --quick" if results.quick else ""
    kind = " --summary" * results.summary + " --training" * results.training
    best = results.environment["isas"][0] == results.environment["isa"]
    isa = "" if best else f" --isa {results.environment['isa']}"
    return f"{COMMAND} {verb}{quick}{kind}{isa} --report report"


def _machine(results: Results) -> dict[str, str]:
    """What the page says about the machine, line by line."""
    facts = results.environment
    caches = ", ".join(f"{name} {text.size(count)}" for name, count in facts["caches"].items())
    blas = "; ".join(
        " ".join(
            str(library[key])
            for key in ("internal_api", "version", "architecture")
            if key in library
        )
        for library in facts["blas"]
    )
    commit = facts["commit"]
    lines = {
        "Processor": facts["cpu"],
        "Instruction set": f"{facts['isa']} (available: {', '.join(facts['isas'])})",
        "Caches of a core": caches or "unknown",
        "Limits of a core": _limits(results),
        "Cores": f"{facts['cores']} available, 1 used"
        + (f", {results.threads} in some rows" if results.threads else ""),
        "Load at the start": f"{facts['load']:.2f}",
        "System": facts["system"],
        "Python": facts["python"],
        "Packages": ", ".join(f"{name} {number}" for name, number in facts["versions"].items()),
        "Other libraries": ", ".join(
            f"{ENGINES[name].label} {number}" for name, number in results.libraries.items()
        )
        or "none",
        "NumPy's BLAS": f"{blas or 'unknown'}, limited to 1 thread",
        "Compiler of the C kernels": facts["build"],
        "Date": facts["date"],
    }
    if commit:
        changed = ", with uncommitted changes" if commit["dirty"] else ""
        lines["Commit"] = f"{commit['id'][:12]} of {commit['time']}{changed}"
    return lines


def _limits(results: Results) -> str:
    """What one core does at most, as it was measured."""
    if results.limits is None:
        return "unknown"
    levels = results.limits["bandwidth"].items()
    speeds = ", ".join(f"{level} {speed / 1e9:.3g}" for level, speed in levels)
    return f"{results.limits['flops'] / 1e9:.3g} GFLOP/s; GB/s: {speeds}"
