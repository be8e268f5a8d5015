"""A guard against kernels that have become slow: ``python -m fusedrnn.bench.guard RESULTS.json``.

Ratios of one run are compared with recorded ones: naive NumPy's time by a kernel's, row by row, which says the same on a
fast machine and on a slow one. All are shown; only one below half of what was recorded fails, with exit code 1.
``--record`` records those of this run instead, for its instruction set; ``--json`` prints lines as JSON; ``--ratios=FILE``
is another record.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusedrnn.cli import guarded
from fusedrnn.errors import MissingExtraError
from fusedrnn.files import write_file
from fusedrnn.report.engines import BASELINE
from fusedrnn.report.results import Results, load, parse

__all__ = ["ALLOWED", "RECORD", "Line", "compare", "guard", "main", "ratios"]

#: The recorded ratios, by instruction set.
RECORD = Path(__file__).with_name("ratios.toml")

#: The least part of a recorded ratio that does not fail: machines differ, and what breaks a kernel costs more.
ALLOWED = 0.5

#: What is guarded: kernels, not how fast Python calls them.
ENGINES = ("c", "numba")


@dataclass(frozen=True)
class Line:
    """A ratio, and what it was; None where it was not measured, or not recorded."""

    name: str
    now: float | None
    recorded: float | None

    @property
    def verdict(self) -> str:
        """What there is to say about it."""
        if self.now is None:
            return "not measured"
        if self.recorded is None:
            return "new"
        return "FAILED" if self.now < ALLOWED * self.recorded else "as recorded"


def ratios(results: Results) -> dict[str, float]:
    """Naive NumPy's time by each kernel's, pass by pass, by the name of the row."""
    found = {}
    for row in results.rows:
        for engine in ENGINES:
            ratio = row.ratio(BASELINE, engine)
            if ratio is not None:
                found[f"{row.group}: {row.case}: {engine}"] = ratio.median
    return found


def compare(now: Mapping[str, float], recorded: Mapping[str, float]) -> list[Line]:
    """Every ratio of both, in the order of now."""
    return [
        Line(name, now.get(name), recorded.get(name)) for name in dict.fromkeys([*now, *recorded])
    ]


def read(path: Path) -> dict[str, dict[str, float]]:
    """Recorded ratios, by instruction set.

    Raises
    ------
    ValueError
        If the file is not one of them; the message names it.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    for isa, section in content.items():
        if not isinstance(section, dict) or not all(
            isinstance(each, (int, float)) and each > 0 for each in section.values()
        ):
            raise ValueError(f"{path}: [{isa}] must have a number above 0 for each row")
    return content


def written(recorded: Mapping[str, Mapping[str, float]]) -> str:
    """The same as TOML."""
    lines = [
        "# Naive NumPy's time by each kernel's in fusedrnn bench run --quick, by instruction set. Written by",
        "# python -m fusedrnn.bench.guard --record RESULTS.json",
    ]
    for isa in sorted(recorded):
        lines += ["", f"[{isa}]"]
        lines += [f"{json.dumps(name)} = {ratio:.3g}" for name, ratio in recorded[isa].items()]
    return "\n".join(lines) + "\n"


def guard(results: Path, record: bool = False, file: Path = RECORD, as_json: bool = False) -> int:
    """Compare the ratios of a run with recorded ones, or record them.

    Parameters
    ----------
    results
        Of ``fusedrnn bench run --quick``.
    record
        Record them instead.
    file
        The record.
    as_json
        Print lines as JSON.

    Returns
    -------
    int
        1 if a ratio is below half of what was recorded, else 0.
    """
    parsed = parse(load(results))
    isa: str = parsed.environment["isa"]
    now = ratios(parsed)
    if not now:
        raise ValueError(f"{results}: no kernel was measured in it together with naive NumPy")
    recorded = read(file)
    if record:
        write_file(file, written({**recorded, isa: now}).encode())
        print(f"{file}: {len(now)} ratios recorded for {isa}")
        return 0
    lines = compare(now, recorded.get(isa, {}))
    if isa in recorded and not any(line.verdict in ("as recorded", "FAILED") for line in lines):
        raise ValueError(
            f"{results}: none of its rows is recorded for {isa} in {file}; record them with --record"
        )
    if as_json:
        print(json.dumps([_plain(line) for line in lines], indent=1))
    else:
        _show(lines, isa, isa in recorded)
    return 1 if any(line.verdict == "FAILED" for line in lines) else 0


def main(words: Sequence[str]) -> int:
    """The command line."""
    flags = {"--record", "--json"} & set(words)
    files = [word.partition("=")[2] for word in words if word.startswith("--ratios=")]
    results = [word for word in words if not word.startswith("--")]
    if len(results) != 1 or len(flags) + len(files) + 1 != len(words):
        raise ValueError(
            "run this as: python -m fusedrnn.bench.guard RESULTS.json [--record] [--json] [--ratios=FILE]"
        )
    return guard(
        Path(results[0]),
        "--record" in flags,
        Path(files[0]) if files else RECORD,
        "--json" in flags,
    )


def _plain(line: Line) -> dict[str, Any]:
    return {**vars(line), "verdict": line.verdict}


def _show(lines: list[Line], isa: str, known: bool) -> None:
    try:
        from rich.table import Table
    except ImportError as missing:
        raise MissingExtraError("rich", "bench", "this table") from missing

    from fusedrnn.report.console import make_console, show_table
    from fusedrnn.report.text import ratio

    table = Table(box=None)
    table.add_column("row", no_wrap=True)
    for name in ("now", "recorded", "part"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for line in lines:
        part = f"{line.now / line.recorded:.0%}" if line.now and line.recorded else ""
        table.add_row(line.name, ratio(line.now), ratio(line.recorded), part, line.verdict)
    out = make_console()
    show_table(out, table)
    out.print(
        f"naive NumPy's time by the kernel's, {isa}; below {ALLOWED:.0%} of what was recorded it fails."
    )
    if not known:
        out.print(f"Nothing is recorded for {isa}: --record does it.")


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
