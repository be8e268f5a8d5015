"""``fusedrnn count``, ``compare`` and ``verify``: exact counts, from sizes or a file, against what others say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from fusedrnn.cells import CELLS
from fusedrnn.cli.options import (
    NUMBERS,
    Cell,
    Command,
    NetworkFile,
    OneOf,
    cell_network,
    completion,
    did_you_mean,
    external_data_option,
    network_options,
    output_options,
)
from fusedrnn.cli.output import FAILED, INCOMPLETE, Output
from fusedrnn.counting.cost import WEIGHT_BYTES
from fusedrnn.counting.counts import count as count_cell

__all__ = ["compare", "count", "verify"]


class Network(NetworkFile):
    """A cell's name, or a file that describes a network."""

    name = "network"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        if value in CELLS:
            return str(value)
        if value != "-" and not os.path.lexists(value) and not {".", "/"} & set(value):
            near = did_you_mean(value, [*CELLS, *os.listdir()])
            self.fail(f"{value!r} is no cell ({', '.join(CELLS)}) and no file{near}", param, ctx)
        return super().convert(value, param, ctx)

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[Any]:
        cells = [completion(cell) for cell in CELLS if cell.startswith(incomplete)]
        return [*cells, *super().shell_complete(ctx, param, incomplete)]


#: The parameters of ``count`` that go with a file; the file says the rest.
WITH_FILE = {
    *("network", "steps", "batch", "tied", "allow_external_data"),
    *("explain", "style", "as_json", "path"),
}


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
@click.option(
    "--weight-dtype",
    type=OneOf(list(WEIGHT_BYTES)),
    default="float32",
    help="type of the matrix weights (default: float32)",
)
@click.option("--backward", is_flag=True, help="add the matrix products of the backward pass")
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
    chosen = {
        parameter.name: max(parameter.opts, key=len)
        for parameter in context.command.params
        if context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    }
    if network in CELLS:
        for name in ("tied", "allow_external_data"):
            if name in chosen:
                raise click.UsageError(
                    f"{chosen[name]} goes with a file, not with {network}", context
                )
        complexity: Any = count_cell(
            **cell_network(context, network, given),
            lengths=given["lengths"],
            weight_dtype=given["weight_dtype"],
            backward=given["backward"],
        )
    else:
        wrong = [flag for name, flag in chosen.items() if name not in WITH_FILE]
        if wrong:
            raise click.UsageError(
                f"{', '.join(wrong)}: not with a file; {network} says its own sizes", context
            )
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
    ],
)
@click.argument("cell", metavar="NAME", type=Cell())
@network_options(bias="double", rate=False)
@click.option("--tools", metavar="NAME,...", help="default: all that are known")
@output_options
@click.pass_context
def compare(
    context: click.Context, /, *, cell: str, tools: str | None, output: Output, **given: Any
) -> None:
    """Compare the exact MACs with what other tools count.

    The tools count the same PyTorch model; every difference is explained. Needs PyTorch and the tools:
    pip install 'fusedrnn[compare]'.
    """
    from fusedrnn.counting import other_tools

    network = cell_network(context, cell, given)
    output.put(other_tools.compare(**network, tools=None if tools is None else tools.split(",")))


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
