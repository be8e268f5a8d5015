"""``fusedrnn roofline`` and ``info``: what this machine can do, and what is installed on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from fusedrnn.cli.options import (
    Cell,
    Command,
    cell_network,
    json_option,
    network_options,
    output_options,
)
from fusedrnn.cli.output import FAILED, Output, write, write_json
from fusedrnn.counting.counts import count
from fusedrnn.counting.result import aligned

__all__ = ["info", "roofline"]


@click.command(
    cls=Command,
    examples=[
        "fusedrnn roofline lstm --input 128 --hidden 256 --steps 100",
        "fusedrnn roofline gru --input 40 --hidden 64 --layers 2 --rate 16000",
        "fusedrnn roofline lstm --input 128 --hidden 256 --batch 8 --measure",
    ],
)
@click.argument("cell", metavar="NAME", type=Cell())
@network_options()
@click.option(
    "--machine",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="the limits of another machine, as JSON",
)
@click.option("--again", is_flag=True, help="measure the limits of this machine again")
@click.option(
    "--measure",
    is_flag=True,
    help="run this package's kernels too: adds the fraction of the limit that they reach",
)
@output_options
@click.pass_context
def roofline(
    context: click.Context,
    /,
    *,
    cell: str,
    machine: Path | None,
    again: bool,
    measure: bool,
    output: Output,
    **given: Any,
) -> int:
    """Say how fast a network can be on one core, and what limits it.

    The limits of this machine are measured the first time, in about two seconds, and kept in the cache directory.
    FUSEDRNN_ISA names the instruction set.
    """
    from fusedrnn.machine.limits import load
    from fusedrnn.machine.probe import this_machine
    from fusedrnn.machine.roofline import roofline as roofline_of

    if machine and again:
        raise click.UsageError(
            "--again measures this machine, and --machine names another: leave one out", context
        )
    network = cell_network(context, cell, given)
    count(**network)  # a mistake is found before anything is measured
    here = load(machine) if machine else this_machine(again=again)
    bound = roofline_of(machine=here, **network)
    if measure:
        bound = bound.measure()
    output.put(bound)
    return FAILED if bound.failed else 0


@click.command(cls=Command, examples=["fusedrnn info", "fusedrnn info --json"])
@json_option
def info(*, as_json: bool) -> None:
    """Show the version, backends, instruction set and caches in use."""
    import fusedrnn

    facts = fusedrnn.info()
    if as_json:
        write_json(facts)
    else:
        write(aligned(list(_listing(facts))) + "\n")


def _listing(facts: dict[str, Any], indent: str = "") -> Iterator[tuple[str, str]]:
    """Name and value of every fact; those inside another are indented below it."""
    for name, value in facts.items():
        if isinstance(value, dict):
            yield f"{indent}{name}", "" if value else "none"
            yield from _listing(value, indent + "  ")
        elif isinstance(value, (list, tuple)):
            yield f"{indent}{name}", ", ".join(map(str, value)) or "none"
        elif value is None or isinstance(value, bool):
            yield f"{indent}{name}", {None: "none", True: "yes", False: "no"}[value]
        else:
            yield f"{indent}{name}", f"{value:,}" if isinstance(value, int) else str(value)
