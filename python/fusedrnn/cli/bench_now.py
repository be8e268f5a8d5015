"""``fusedrnn bench`` as it is, until its verbs are here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from fusedrnn.cli.options import WHOLE, Command, OutputFile

__all__ = ["bench"]


@click.command(
    cls=Command,
    examples=[
        "fusedrnn bench --quick --report report",
        "fusedrnn bench --peers --report report",
        "fusedrnn bench --peers --cases 'gru-*-B1-*' --threads 1",
        "fusedrnn bench --compare old.json new.json",
    ],
)
@click.option("--quick", is_flag=True, help="fewer shapes and rounds")
@click.option("--peers", is_flag=True, help="beside other libraries, as far as they are installed")
@click.option("--long", is_flag=True, help="also shapes that take minutes each")
@click.option("--cases", metavar="PATTERN", help="only shapes whose names have this, with * and ?")
@click.option("--threads", metavar="N", type=WHOLE, help="also measure some shapes with N threads")
@click.option("--latency", is_flag=True, help="only how long single steps take, all of them")
@click.option("--steps", metavar="N", type=WHOLE, help="so many of them")
@click.option("--report", metavar="DIR", type=OutputFile(), help="write a report to DIR")
@click.option("--json", metavar="FILE", type=OutputFile(), help="write the results to FILE")
@click.option("--isa", metavar="NAME", help="use this instruction set")
@click.option(
    "--compare",
    nargs=2,
    metavar="OLD.json NEW.json",
    type=click.Path(path_type=Path),
    help="compare two results instead of measuring",
)
def bench(**given: Any) -> int:
    """Measure the kernels on this machine. How: docs/measuring.md."""
    from fusedrnn.bench.run import run  # type: ignore[import-untyped,unused-ignore]

    status: int = run(SimpleNamespace(**given))
    return status
