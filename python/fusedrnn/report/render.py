"""A benchmark JSON as a folder: a page, the same in Markdown, plots, and the JSON itself."""

from __future__ import annotations

import json
from typing import Any

from fusedrnn.report import text
from fusedrnn.report.plots import PLOTS, image, inline
from fusedrnn.report.results import BASELINE, GROUPS, LABELS, PLAIN, Results, Row, parse

__all__ = ["COMMAND", "render"]

#: The command that makes such a report.
COMMAND = "fusedrnn bench"


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
    facts = {
        "results": parsed,
        "groups": [group for group in GROUPS if parsed.in_group(group.name)],
        "labels": LABELS,
        "baseline": BASELINE,
        "fused": [engine for engine in parsed.engines if engine != BASELINE],
        "headline": _headline(parsed),
        "machine": _machine(parsed),
        "command": _command(parsed),
        "shortest": _empty_loop(parsed),
        "plots": {name: (inline(name, parsed), about) for name, (_, about) in PLOTS.items()},
    }
    files = {
        f"{name}.{kind}": image(name, parsed, kind) for name in PLOTS for kind in ("png", "svg")
    }
    files["results.json"] = (json.dumps(results, indent=1) + "\n").encode()
    for name in ("report.md", "index.html"):
        files[name] = templates.get_template(f"{name}.jinja").render(facts).encode()
    return files


def _headline(results: Results) -> tuple[Row, str] | None:
    """The row that stands for the others, a step of middle size, and the fastest engine in it."""
    steps = results.in_group("step from Python")
    rows = [row for row in steps if row.baseline and row.network == PLAIN]
    if not rows:
        return None
    row = min(rows, key=lambda row: abs(row.sizes["H"] - 128))
    others = [engine for engine in row.measures if engine != BASELINE]
    if not others:
        return None
    return row, min(others, key=lambda engine: row.measures[engine].median)


def _empty_loop(results: Results) -> float | None:
    """What one turn of the timing loop costs, at best."""
    rows = results.in_group("step from Python")
    return min((each.empty_loop for row in rows for each in row.measures.values()), default=None)


def _command(results: Results) -> str:
    quick = " --quick" if results.quick else ""
    best = results.environment["isas"][0] == results.environment["isa"]
    isa = "" if best else f" --isa {results.environment['isa']}"
    return f"{COMMAND}{quick}{isa} --report report"


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
        "Cores": f"{facts['cores']} available, {facts['threads']} used",
        "Load at the start": f"{facts['load']:.2f}",
        "System": facts["system"],
        "Python": facts["python"],
        "Packages": ", ".join(f"{name} {number}" for name, number in facts["versions"].items()),
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
