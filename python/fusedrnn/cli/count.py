"""``fusedrnn count``, ``compare`` and ``verify``: exact counts, from sizes or a file, against what others say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from fusedrnn.cells import CELLS
from fusedrnn.cli.options import (
    EVERYWHERE,
    NUMBERS,
    OF_MODEL,
    ONLY_OF_MODEL,
    CellOrFile,
    Command,
    NetworkFile,
    OneOf,
    cell_network,
    external_data_option,
    model_options,
    network_options,
    output_options,
    refuse_beside_cell,
    refuse_beside_file,
    weight_dtype_option,
)
from fusedrnn.cli.output import FAILED, INCOMPLETE, Output
from fusedrnn.counting.counts import count as count_cell

__all__ = ["compare", "count", "verify"]


class Network(CellOrFile):
    """A cell's name, or a file; - is standard input."""

    name = "network"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        if value == "-":
            return NetworkFile().convert(value, param, ctx)
        return super().convert(value, param, ctx)


#: The parameters of ``count`` that go with a file, which says the rest; and those that go with nothing else.
WITH_FILE = frozenset(("steps", "batch", "tied", "allow_external_data", *EVERYWHERE))
ONLY_WITH_FILE = ("tied", "allow_external_data")


@click.command(
    cls=Command,
    examples=[
        "fusedrnn count lstm --input 128 --hidden 256",
        "fusedrnn count lstm --input 40 --hidden 64 --proj 16 --layers 2 --bidirectional",
        "fusedrnn count lstm --input 40 --hidden 64 --steps 100 --rate 16000 --weight-dtype int8",
        "fusedrnn count lstm --input 40 --hidden 64 --peephole --coupled --lengths 7,3,1",
        "fusedrnn count gru --input 40 --hidden 64 --reset before --backward",
        "fusedrnn count clockwork --input 40 --hidden 64 --periods 1,2,4,8 --explain",
        "fusedrnn count lstm --input 128 --hidden 256 --output cost.json",
        "fusedrnn count network.toml --steps 35 --batch 20 --tied twice",
        "fusedrnn count model.onnx --steps 100 --json",
    ],
)
@click.argument("network", metavar="NAME|FILE", type=Network())
@network_options()
@click.option(
    "--lengths",
    metavar="T,T,...",
    type=NUMBERS,
    help="steps of each sequence, instead of --steps and --batch",
)
@weight_dtype_option("type of the matrix weights", "float32", "float32")
@click.option("--backward", is_flag=True, help="add the backward pass and the bytes of its tape")
@click.option(
    "--want-x", is_flag=True, help="with --backward: the gradient of the first layer's input too"
)
@click.option(
    "--want-state", is_flag=True, help="with --backward: the gradient of the initial states too"
)
@click.option(
    "--tied",
    type=OneOf(["once", "twice"]),
    default="once",
    help="count weights that two layers share once or twice (default: once; only with a FILE)",
)
@external_data_option
@click.option("--explain", is_flag=True, help="add each formula with its numbers to the table")
@output_options
@click.pass_context
def count(
    context: click.Context,
    /,
    *,
    network: str,
    explain: bool,
    output: Output,
    tied: Any,
    allow_external_data: bool,
    **given: Any,
) -> int:
    """Count the parameters, MACs, FLOPs and bytes of a network.

    NAME is a cell, and options give its sizes. FILE is a model (PyTorch checkpoint, safetensors, ONNX, Keras, .npz), or
    a whole network as TOML (docs/spec.md), which - reads from standard input. The exit code is 3 if the MACs of
    a part of the model are not known: they are shown as ?, and the totals say "at least".
    """
    if network in CELLS:
        refuse_beside_cell(context, network, ONLY_WITH_FILE)
        complexity: Any = count_cell(
            **cell_network(context, network, given),
            lengths=given["lengths"],
            weight_dtype=given["weight_dtype"],
            **{name: given[name] for name in ("backward", "want_x", "want_state")},
        )
    else:
        refuse_beside_file(context, network, WITH_FILE)
        from fusedrnn.counting.models import read

        complexity = read(network, external_data=allow_external_data).count(
            steps=given["steps"], batch=given["batch"], tied=tied
        )
    output.put(complexity, complexity.explain if explain else None)
    return INCOMPLETE if network not in CELLS and complexity.unknown else 0


@click.command(
    cls=Command,
    examples=[
        "fusedrnn compare lstm --input 40 --hidden 64 --steps 7 --batch 3",
        "fusedrnn compare lstm --input 40 --hidden 64 --proj 16 --tools thop,ptflops",
        "fusedrnn compare gru --input 40 --hidden 64 --format markdown",
        "fusedrnn compare model.safetensors --layer encoder --steps 100",
    ],
)
@click.argument("network", metavar="NAME|FILE", type=CellOrFile())
@network_options(bias="double", rate=False)
@model_options
@click.option("--tools", metavar="NAME,...", help="default: all that are known")
@output_options
@click.pass_context
def compare(
    context: click.Context,
    /,
    *,
    network: str,
    layer: str | None,
    allow_external_data: bool,
    tools: str | None,
    output: Output,
    **given: Any,
) -> None:
    """Compare the exact MACs with what other tools count.

    NAME is a cell, and options give its sizes; or FILE is a model file with a recurrent layer, and --layer says which, if
    it has several. The tools count the same PyTorch model; every difference is explained. Needs PyTorch and the tools:
    pip install 'fusedrnn[compare]'.
    """
    from fusedrnn.counting import other_tools

    if network in CELLS:
        refuse_beside_cell(context, network, ONLY_OF_MODEL)
        model = cell_network(context, network, given)
    else:
        refuse_beside_file(context, network, {*OF_MODEL, "tools"})
        from fusedrnn.formats.files import read

        found = read(Path(network), external_data=allow_external_data).find(layer)
        architecture = found.architecture
        if architecture.bias == "single":  # PyTorch has two or none; neither is a MAC
            architecture = replace(architecture, bias="double")
        model = {"model": architecture, "steps": given["steps"], "batch": given["batch"]}
    output.put(other_tools.compare(**model, tools=None if tools is None else tools.split(",")))


@click.command(
    cls=Command,
    examples=[
        "fusedrnn verify",
        "fusedrnn verify network.toml --format markdown",
    ],
)
@click.argument("files", metavar="[FILE]...", nargs=-1, type=NetworkFile())
@output_options
def verify(*, files: tuple[str, ...], output: Output) -> int:
    """Check published figures against what is counted.

    FILE is a network with [[published]] figures (docs/spec.md); without one, those that come with fusedrnn are
    checked. The exit code is 1 if a figure is wrong.
    """
    from fusedrnn.counting import published

    paths: list[str | Path] = list(files)
    verification = published.verify(paths or None)
    output.put(verification)
    return FAILED if verification.failed else 0
