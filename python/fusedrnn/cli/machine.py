"""``fusedrnn roofline`` and ``info``: what this machine can do, and what is installed on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from fusedrnn.cells import CELLS
from fusedrnn.cli.options import (
    OF_MODEL,
    ONLY_OF_MODEL,
    CellOrFile,
    Command,
    cell_network,
    json_option,
    model_options,
    network_options,
    output_options,
    refuse_beside_cell,
    refuse_beside_file,
    weight_dtype_option,
)
from fusedrnn.cli.output import FAILED, Output, write, write_json
from fusedrnn.counting.counts import count
from fusedrnn.counting.result import aligned

__all__ = ["info", "roofline"]

#: Options that go with a file, too.
OF_ROOFLINE = ("machine", "again", "measure", "training", "want_x", "rate", "weight_dtype")


@click.command(
    cls=Command,
    examples=[
        "fusedrnn roofline lstm --input 128 --hidden 256 --steps 100",
        "fusedrnn roofline gru --input 40 --hidden 64 --layers 2 --rate 16000",
        "fusedrnn roofline lstm --input 128 --hidden 256 --batch 8 --measure",
        "fusedrnn roofline lstm --input 128 --hidden 256 --steps 100 --batch 16 --training",
        "fusedrnn roofline lstm --input 256 --hidden 256 --weight-dtype float16",
        "fusedrnn roofline model.onnx --steps 100",
    ],
)
@click.argument("network", metavar="NAME|FILE", type=CellOrFile())
@network_options()
@model_options
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
@weight_dtype_option("type of the matrix weights", "float32, or that of a narrow layer's file")
@click.option("--training", is_flag=True, help="of a training step: forward and backward")
@click.option(
    "--want-x", is_flag=True, help="with --training: the gradient of the first layer's input too"
)
@output_options
@click.pass_context
def roofline(
    context: click.Context,
    /,
    *,
    network: str,
    layer: str | None,
    allow_external_data: bool,
    machine: Path | None,
    again: bool,
    measure: bool,
    training: bool,
    want_x: bool,
    output: Output,
    **given: Any,
) -> int:
    """Say how fast a network can be on one core, and what limits it.

    NAME is a cell, and options give its sizes; or FILE is a model file, of which all recurrent layers are meant, or that of
    --layer. The limits of this machine are measured the first time, in about two seconds, and kept in the cache directory.
    FUSEDRNN_ISA names the instruction set.
    """
    from fusedrnn.machine.limits import load
    from fusedrnn.machine.probe import this_machine
    from fusedrnn.machine.roofline import roofline as roofline_of
    from fusedrnn.machine.rooflines import Rooflines

    if machine and again:
        raise click.UsageError(
            "--again measures this machine, and --machine names another: leave one out", context
        )
    if want_x and not training:
        raise click.UsageError("--want-x goes with --training", context)
    models = _models(context, network, layer, allow_external_data, given)
    for model in models.values():
        count(**model)  # a mistake is found before anything is measured
    here = load(machine) if machine else this_machine(again=again)
    bounds = {
        name: roofline_of(machine=here, training=training, want_x=want_x, **model)
        for name, model in models.items()
    }
    if measure:
        bounds = {name: bound.measure() for name, bound in bounds.items()}
    bound = next(iter(bounds.values())) if len(bounds) == 1 else Rooflines(network, bounds)
    output.put(bound)
    return FAILED if bound.failed else 0


def _models(
    context: click.Context,
    network: str,
    layer: str | None,
    allow_external_data: bool,
    given: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """The arguments of each layer that is meant, by its name."""
    asked = given["weight_dtype"]
    if network in CELLS:
        refuse_beside_cell(context, network, ONLY_OF_MODEL)
        return {network: cell_network(context, network, given) | {"weight_dtype": asked}}
    refuse_beside_file(context, network, {*OF_MODEL, *OF_ROOFLINE})
    from fusedrnn.formats.files import read

    contents = read(Path(network), external_data=allow_external_data)
    some = contents.layers if layer is None and contents.layers else (contents.find(layer),)
    sizes = {name: given[name] for name in ("steps", "batch", "rate")}
    return {
        found.name: {
            "model": found.architecture,
            "weight_dtype": asked or found.weight_dtype,
            **sizes,
        }
        for found in some
    }


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
