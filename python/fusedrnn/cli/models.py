"""``fusedrnn inspect`` and ``run``: what is in a model file, and its recurrent layers run over rows of numbers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from fusedrnn.cli.options import (
    WHOLE,
    Command,
    ModelFile,
    NetworkFile,
    OneOf,
    OutputFile,
    external_data_option,
    layer_option,
    output_options,
    weight_dtype_option,
)
from fusedrnn.cli.output import Output, progress_bar, say, write

__all__ = ["inspect", "run"]


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


class Threads(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A number of threads, or "auto"."""

    name = "threads"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return value if value == "auto" else WHOLE.convert(value, param, ctx)


@click.command(
    cls=Command,
    examples=[
        "fusedrnn run model.pt input.npy -o output.npy",
        "fusedrnn run model.onnx input.csv --layer encoder -o output.csv",
        "fusedrnn run model.keras sequences.npy -o outputs.npy --threads auto",
        "fusedrnn run model.onnx input.npy -o output.npy --weight-dtype float16",
        "tail -f sensor.csv | fusedrnn run model.safetensors - --stream",
        "fusedrnn run model.pt monday.npy -o monday-y.npy --state-out monday.npz",
        "fusedrnn run model.pt tuesday.npy -o tuesday-y.npy --state-in monday.npz",
    ],
)
@click.argument("file", metavar="FILE", type=ModelFile())
@click.argument("source", metavar="INPUT", type=NetworkFile())
@click.option(
    "-o",
    "--output",
    "path",
    metavar="OUT",
    type=OutputFile(),
    default="-",
    help="write to OUT (.npy or .csv), whole or not at all; - is standard output, as CSV (default: -)",
)
@layer_option
@click.option(
    "--stream", is_flag=True, help="step row by row, as the rows come; says how long steps took"
)
@click.option(
    "--batch-first/--steps-first",
    default=None,
    help="arrays are (batch, steps, X), or (steps, batch, X) (default: as the model has them)",
)
@click.option("--state-in", metavar="FILE", type=ModelFile(), help="begin with this state (.npz)")
@click.option(
    "--state-out", metavar="FILE", type=OutputFile(), help="write the last state to FILE (.npz)"
)
@click.option(
    "--threads",
    metavar="N|auto",
    type=Threads(),
    default=1,
    help="threads that compute side by side; the outputs are the same for any number (default: 1)",
)
@click.option(
    "--backend",
    type=OneOf(["auto", "c", "numba", "numpy"]),
    default="auto",
    help="what computes (default: auto)",
)
@weight_dtype_option("narrow the matrices to this type")
@click.option(
    "--activation",
    metavar="NAME",
    help="of an RNN whose file does not tell it: tanh (default) or relu",
)
@external_data_option
@click.pass_context
def run(
    context: click.Context,
    /,
    *,
    file: str,
    source: str,
    path: Path,
    layer: str | None,
    stream: bool,
    batch_first: bool | None,
    state_in: str | None,
    state_out: Path | None,
    threads: Any,
    backend: str,
    weight_dtype: str | None,
    activation: str | None,
    allow_external_data: bool,
) -> None:
    """Run a recurrent layer of a model file over rows of numbers.

    INPUT is an .npy file, (T, X) or (T, B, X), or CSV, a step a line; - is standard input, of either kind. The first line
    of CSV is a header if no field of it is a number. OUT is shaped as INPUT. Rows are read, run and written in pieces with
    the state carried on, so INPUT may be longer than memory; a bidirectional layer needs all of it.
    """
    from fusedrnn import rows as rows_of
    from fusedrnn import running
    from fusedrnn.files import check_output
    from fusedrnn.formats.files import read
    from fusedrnn.formats.torch_state import TANH_ASSUMED

    _check_suffix(context, path)
    if str(state_out) == "-":
        raise click.UsageError("--state-out: must be a file, as state.npz", context)
    if source != "-" and path.exists() and path.samefile(source):
        raise click.UsageError(f"--output: {str(path)!r} is the input", context)
    for each in (path, state_out):
        if each is not None and str(each) != "-":
            check_output(each)
    found = read(Path(file), external_data=allow_external_data).find(layer)
    if batch_first is None:
        batch_first = found.batch_first
    given = {"activation": activation, "weight_dtype": weight_dtype}
    told = {name: value for name, value in given.items() if value is not None}
    made = found.layer(batch_first=False, threads=threads, backend=backend, **told)
    size = made.architecture
    with rows_of.opened(source, size.input_size, batch_first=batch_first) as rows:
        state = None
        if state_in is not None:
            state = running.load_state(state_in, made, rows.batch or 1)
        with _output(path, size.output_size, rows) as output, progress_bar("running") as progress:
            if stream:
                state, latency = running.stream(made, rows, output, state=state, progress=progress)
            else:
                state = running.run(made, rows, output, state=state, progress=progress)
    if state_out is not None:
        running.save_state(state_out, state)
    for note in found.notes:
        if activation is None or note != TANH_ASSUMED:
            say(note)
    if rows.note:
        say(rows.note)
    if stream:
        say(str(latency))
    elif running.backward(made):
        say("the layer also runs from the last step to the first: all of the input was in memory")


def _check_suffix(context: click.Context, path: Path) -> None:
    if path.suffix.lower() not in (".npy", ".csv", ".txt", ""):
        raise click.UsageError(f"--output: must end in .npy or .csv, got {str(path)!r}", context)


class _Standard:
    """Standard output, as what CSV goes to."""

    def write(self, content: bytes) -> None:
        write(content.decode())
        sys.stdout.flush()  # who waits for the answer to a row has it now


@contextmanager
def _output(path: Path, width: int, rows: Any) -> Iterator[Any]:
    """What takes the outputs: in the format that the name of the file tells."""
    from fusedrnn.files import writing
    from fusedrnn.rows import CsvWriter, NpyWriter

    if str(path) == "-":
        yield CsvWriter(_Standard(), width, rows)
        return
    with writing(path) as writer:
        made = NpyWriter if path.suffix.lower() == ".npy" else CsvWriter
        yield made(writer, width, rows)
