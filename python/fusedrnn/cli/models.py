"""``fusedrnn inspect`` and ``run``: what is in a model file, and its recurrent layers run over rows of numbers."""

from __future__ import annotations

import click

from fusedrnn.cli.options import Command, ModelFile, external_data_option, output_options
from fusedrnn.cli.output import Output

__all__ = ["inspect"]


@click.command(
    cls=Command,
    examples=[
        "fusedrnn inspect model.pt",
        "fusedrnn inspect model.onnx --json",
        "fusedrnn inspect model.safetensors -o contents.md",
    ],
)
@click.argument("file", metavar="FILE", type=ModelFile())
@external_data_option
@output_options
def inspect(*, file: str, allow_external_data: bool, output: Output) -> None:
    """Show what a model file holds: recurrent layers, the rest by kind, and what is not understood.

    FILE is a PyTorch checkpoint, safetensors, ONNX, Keras (.keras, .h5) or .npz. No weights are read, and nothing in the
    file is executed.
    """
    from fusedrnn.formats.files import inspect as contents_of

    output.put(contents_of(file, external_data=allow_external_data))
