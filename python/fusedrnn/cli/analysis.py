"""``fusedrnn horizon``, ``trace``, ``drift`` and ``narrow``: what a layer does with data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from fusedrnn.cli.options import (
    WHOLE,
    Command,
    ModelFile,
    OutputFile,
    Positive,
    completion,
    external_data_option,
    layer_option,
    output_options,
    weight_dtype_option,
)
from fusedrnn.cli.output import Output, progress_bar, say
from fusedrnn.counting.result import Result, Table

__all__ = ["drift", "horizon", "narrow", "trace"]

#: The name of the model that comes with the package.
DEMO = "demo"
#: The number of characters that the demo model reads where no other number is asked for.
CHARACTERS = 20_000
#: Steps of random numbers that stand for an input.
RANDOM_STEPS = 10_000
#: Steps that tell an error of y.
FEW_STEPS = 2_000


class _Model(ModelFile):
    """A model file that is there, or the model that comes with the package."""

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        return DEMO if value == DEMO else super().convert(value, param, ctx)

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[Any]:
        own = [completion(DEMO)] if DEMO.startswith(incomplete) else []
        return [*own, *super().shell_complete(ctx, param, incomplete)]


def _report_option(function: Any) -> Any:
    return click.option(
        "--report", metavar="DIR", type=OutputFile(), help="write a page with pictures to DIR"
    )(function)


def _input_option(function: Any) -> Any:
    return click.option(
        "--input",
        "source",
        metavar="INPUT",
        type=ModelFile(),
        help="what FILE reads (.npy or CSV); default: normal random numbers",
    )(function)


def _batch_option(function: Any) -> Any:
    return click.option(
        "--batch-first/--steps-first",
        default=None,
        help="an array of three axes is (batch, steps, X), or (steps, batch, X) (default: as the model has them)",
    )(function)


@dataclass(frozen=True)
class _Read:
    """A layer, steps first, and what it reads: x (T, B, X), and the text that x is, if it is one."""

    name: str
    layer: Any
    x: Any
    text: str | None = None


def _demo(text: str | None, steps: int | None, weight_dtype: str | None = None) -> _Read:
    import fusedrnn as fr
    from fusedrnn.demo import held_out_text, load_model

    model = load_model()
    if text is None:
        text = held_out_text()[: CHARACTERS if steps is None else steps]
    if not text:
        raise ValueError("the text must have at least one character")
    layer = fr.LSTM.from_weights(model.weights, weight_dtype=weight_dtype or "float32")
    return _Read(DEMO, layer, model.one_hot(text), text)


def _file(
    file: str,
    source: str,
    layer: str | None,
    external: bool,
    batch_first: bool | None,
    weight_dtype: str | None = None,
) -> _Read:
    import numpy as np

    from fusedrnn import rows as rows_of

    found, made = _layer(file, layer, external, weight_dtype)
    if batch_first is None:
        batch_first = found.batch_first
    with rows_of.opened(source, made.architecture.input_size, batch_first=batch_first) as rows:
        x = np.concatenate(list(rows.pieces(rows.steps or 4096)))
    if rows.note:
        say(rows.note)
    return _Read(Path(file).name, made, x)


def _layer(
    file: str, layer: str | None, external: bool, weight_dtype: str | None = None
) -> tuple[Any, Any]:
    from fusedrnn.formats.files import read

    found = read(Path(file), external_data=external).find(layer)
    for note in found.notes:
        say(note)
    told = {} if weight_dtype is None else {"weight_dtype": weight_dtype}
    return found, found.layer(batch_first=False, **told)


def _read(
    context: click.Context,
    model: str,
    source: str | None,
    layer: str | None,
    external: bool,
    batch_first: bool | None,
    steps: int,
) -> _Read:
    """A model and its input; without one, so many steps: of a book, or of random numbers."""
    if model == DEMO:
        _refuse_beside_demo(context, input=source, layer=layer)
        return _demo(None, steps)
    if source is not None:
        return _file(model, source, layer, external, batch_first)
    made = _layer(model, layer, external)[1]
    return _Read(Path(model).name, made, _random(made, steps))


def _random(layer: Any, steps: int) -> Any:
    import numpy as np

    x = np.random.default_rng(0).standard_normal((steps, 1, layer.architecture.input_size))
    return x.astype(np.float32)


def _refuse_beside_demo(context: click.Context, **given: Any) -> None:
    wrong = [name for name, value in given.items() if value]
    if wrong:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in wrong)
        raise click.UsageError(f"{flags}: not with {DEMO}, which reads text", context)


def _check_report(report: Path | None) -> None:
    """Raise the error that writing would end in: before the work whose report it is."""
    if report is not None:
        from fusedrnn.report.analysis import check

        check(report)


def _write_report(report: Path | None, page: Any) -> None:
    if report is not None:
        from fusedrnn.report.analysis import write_page

        say(f"report: {write_page(report, page)}")


# ---- horizon -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ClosedForm(Result):
    """What a gate that does not change with the data keeps, and the biases that make it so."""

    gates: tuple[tuple[str, float], ...]
    steps: int | None

    def _title(self) -> str:
        return "a gate that does not change with the data"

    def _rows(self) -> list[dict[str, Any]]:
        from fusedrnn.analysis import formulas

        rows = []
        for why, forget in self.gates:
            row: dict[str, Any] = {
                "what": why,
                "forget": forget,
                "bias": formulas.bias_of(forget) if 0 < forget < 1 else None,
                "half_life": formulas.half_life(forget) if forget < 1 else None,
                "time_constant": formulas.time_constant(forget) if forget < 1 else None,
            }
            if self.steps is not None:
                row["steps"] = self.steps
                row["retained"] = formulas.retention(forget, self.steps)
            rows.append(row)
        return rows

    def _document(self) -> dict[str, Any]:
        return {"kind": "closed form", "gates": self._rows()}

    def _records(self) -> list[dict[str, Any]]:
        return self._rows()

    def _tables(self) -> list[Table]:
        from fusedrnn.analysis import formulas

        shown = ["", "gate", "bias", "half-life", "time constant"]
        if self.steps is not None:
            shown.append(f"left after {self.steps:,}")
        lines = []
        for row in self._rows():
            line = [row["what"], f"{row['forget']:.6g}"]
            line.append("-" if row["bias"] is None else f"{row['bias']:.3f}")
            for name in ("half_life", "time_constant"):
                steps = row[name]
                line.append("never" if steps is None else f"{formulas.half_life_text(steps)} steps")
            if "retained" in row:
                line.append(f"{row['retained']:.3g}")
            lines.append(line)
        return [Table("in steps", shown, lines, numbers=range(1, len(shown)))]

    def _notes(self) -> list[str]:
        return [
            "half-life: until half is left, log 0.5 / log gate.",
            "time constant: 1 / (1 - gate), when about 1/e is left.",
            "bias: of a sigmoid gate to which nothing else is added; fr.init.chrono draws such.",
        ]


@click.command(
    cls=Command,
    examples=[
        "fusedrnn horizon --forget 0.99 --steps 500",
        "fusedrnn horizon --memory 500",
        "fusedrnn horizon demo",
        "fusedrnn horizon model.pt --input data.npy",
        "fusedrnn horizon model.pt --input data.npy --weight-dtype int8",
        "fusedrnn horizon model.onnx --input data.npy --layer encoder --report memory",
    ],
)
@click.argument("model", metavar="[FILE|demo]", type=_Model(), required=False)
@click.option("--forget", metavar="F", type=float, help="a gate that is always F, from 0 to 1")
@click.option(
    "--memory", metavar="N", type=Positive(), help="which gate and bias remember for N steps"
)
@click.option(
    "--steps",
    metavar="K",
    type=WHOLE,
    help="with --forget or --memory: what is left after K steps; else only the first K of the input",
)
@click.option(
    "--input", "source", metavar="INPUT", type=ModelFile(), help="what FILE reads (.npy or CSV)"
)
@click.option(
    "--distance",
    metavar="D",
    type=WHOLE,
    default=100,
    help="largest distance of derivatives in steps (default: 100)",
)
@layer_option
@weight_dtype_option("narrow the matrices to this type")
@_batch_option
@external_data_option
@_report_option
@output_options
@click.pass_context
def horizon(
    context: click.Context,
    /,
    *,
    model: str | None,
    forget: float | None,
    memory: float | None,
    steps: int | None,
    source: str | None,
    distance: int,
    layer: str | None,
    weight_dtype: str | None,
    batch_first: bool | None,
    allow_external_data: bool,
    report: Path | None,
    output: Output,
) -> None:
    """Say how long a layer remembers.

    With --forget or --memory: what a constant gate keeps, in closed form. With FILE and INPUT: what its gates keep on that
    data, unit by unit, how far back gradients reach, and which units are saturated. demo is the model that comes with the
    package, reading a book.
    """
    if steps is not None and steps < 1:
        raise click.UsageError("--steps: must be at least 1", context)
    if forget is not None or memory is not None:
        _refuse_beside_formula(context, model, source, layer, weight_dtype, report)
        output.put(_closed_form(context, forget, memory, steps))
        return
    if model is None:
        raise click.UsageError("missing FILE, --forget or --memory", context)
    if distance < 0:
        raise click.UsageError("--distance: must not be negative", context)
    _check_report(report)
    if model == DEMO:
        _refuse_beside_demo(context, input=source, layer=layer)
        read = _demo(None, steps, weight_dtype)
    else:
        if source is None:
            raise click.UsageError("missing --input: what a gate does depends on the data", context)
        read = _file(model, source, layer, allow_external_data, batch_first, weight_dtype)
    from fusedrnn.analysis.horizons import horizon as horizon_of

    with progress_bar("following gradients back") as progress:
        found = horizon_of(read.layer, read.x[:steps], distance=distance, progress=progress)
    output.put(found)
    if report is not None:
        from fusedrnn.report.analysis import horizon_page

        _write_report(report, horizon_page(found, read.name))


def _refuse_beside_formula(context: click.Context, *given: Any) -> None:
    if any(each is not None for each in given):
        raise click.UsageError("--forget and --memory go without FILE and its options", context)


def _closed_form(
    context: click.Context, forget: float | None, memory: float | None, steps: int | None
) -> _ClosedForm:
    from fusedrnn.analysis import formulas

    gates = []
    if forget is not None:
        if not 0 <= forget <= 1:
            raise click.UsageError(f"--forget: must be from 0 to 1, got {forget:g}", context)
        gates.append(("as given", forget))
    if memory is not None:
        if memory <= 1:
            raise click.UsageError("--memory: must be above 1", context)
        gates.append((f"half is left after {memory:g} steps", formulas.forget_for(memory)))
        gates.append((f"time constant of {memory:g} steps (chrono)", 1 - 1 / memory))
    return _ClosedForm(tuple(gates), steps)


# ---- trace ---------------------------------------------------------------------------------------


@click.command(
    cls=Command,
    examples=[
        "fusedrnn trace demo",
        "fusedrnn trace demo 'And Paul said unto them, Go.' --report trace",
        "fusedrnn trace model.pt input.npy --report trace",
        "fusedrnn trace model.pt input.npy --weight-dtype int8",
        "fusedrnn trace model.onnx input.csv --unit 3 --unit 17 --report trace --json",
    ],
)
@click.argument("model", metavar="FILE|demo", type=_Model())
@click.argument("source", metavar="[INPUT|TEXT]", required=False)
@click.option("--steps", metavar="K", type=WHOLE, help="only the first K steps")
@click.option(
    "--unit",
    "units",
    metavar="N",
    type=WHOLE,
    multiple=True,
    help="draw this unit of the last layer; can be given several times",
)
@layer_option
@weight_dtype_option("narrow the matrices to this type")
@_batch_option
@external_data_option
@_report_option
@output_options
@click.pass_context
def trace(
    context: click.Context,
    /,
    *,
    model: str,
    source: str | None,
    steps: int | None,
    units: tuple[int, ...],
    layer: str | None,
    weight_dtype: str | None,
    batch_first: bool | None,
    allow_external_data: bool,
    report: Path | None,
    output: Output,
) -> None:
    """Show every gate and state of a layer over its input.

    INPUT is an .npy file or CSV; demo, the model that comes with the package, reads TEXT instead, or a book. Prints the
    most and the least used units, their half-lives, how often each gate is saturated and, for a text, what units follow in
    it. The page of --report has the gates of some units under the input.
    """
    if steps is not None and steps < 1:
        raise click.UsageError("--steps: must be at least 1", context)
    _check_report(report)
    if model == DEMO:
        _refuse_beside_demo(context, layer=layer)
        read = _demo(source, steps, weight_dtype)
    else:
        if source is None:
            raise click.UsageError("missing INPUT: an .npy file, or CSV", context)
        ModelFile().convert(source, context.command.params[1], context)
        read = _file(model, source, layer, allow_external_data, batch_first, weight_dtype)
    hidden = read.layer.architecture.hidden_size
    for unit in units:
        if not 0 <= unit < hidden:
            raise click.UsageError(f"--unit: must be from 0 to {hidden - 1}, got {unit}", context)
    from fusedrnn.analysis.traces import trace as trace_of

    x = read.x[:steps]
    found = trace_of(read.layer, x)
    text = None if read.text is None else read.text[:steps]
    if text is not None:
        found = found.reading(text)
    output.put(found)
    if report is not None:
        from fusedrnn.report.analysis import trace_page

        _write_report(report, trace_page(found, read.name, x, text, units))


# ---- drift ---------------------------------------------------------------------------------------


@click.command(
    cls=Command,
    examples=[
        "fusedrnn drift demo --weight-dtype int8",
        "fusedrnn drift model.pt --steps 10000",
        "fusedrnn drift model.onnx --input data.npy --weight-dtype float16 --report drift",
    ],
)
@click.argument("model", metavar="FILE|demo", type=_Model())
@_input_option
@click.option(
    "--steps",
    metavar="T",
    type=WHOLE,
    help=f"number of steps; a shorter INPUT is begun again (default: all of INPUT, or {RANDOM_STEPS})",
)
@weight_dtype_option("type to which matrices are rounded", "the type that they have")
@layer_option
@_batch_option
@external_data_option
@_report_option
@output_options
@click.pass_context
def drift(
    context: click.Context,
    /,
    *,
    model: str,
    source: str | None,
    steps: int | None,
    weight_dtype: str | None,
    layer: str | None,
    batch_first: bool | None,
    allow_external_data: bool,
    report: Path | None,
    output: Output,
) -> None:
    """Say how far rounding takes a layer from float64 over time.

    The error of h, c and y against the specification in float64 with the same weights; whether it grows with the number of
    steps; and, for narrow weights, which block of weights causes it, or x and h, where they are made integers.
    """
    if steps is not None and steps < 1:
        raise click.UsageError("--steps: must be at least 1", context)
    _check_report(report)
    read = _read(
        context, model, source, layer, allow_external_data, batch_first, steps or RANDOM_STEPS
    )
    from fusedrnn.analysis.drifts import drift as drift_of

    x = read.x
    if steps is not None and len(x) != steps:
        import numpy as np

        x = x[np.arange(steps) % len(x)]
    with progress_bar("comparing") as progress:
        found = drift_of(read.layer, x, weight_dtype, progress=progress)
    output.put(found)
    if report is not None:
        from fusedrnn.report.analysis import drift_page

        _write_report(report, drift_page(found, read.name))


# ---- narrow --------------------------------------------------------------------------------------


@click.command(
    cls=Command,
    examples=[
        "fusedrnn narrow demo",
        "fusedrnn narrow model.pt --input data.npy",
        "fusedrnn narrow model.onnx --input data.npy --layer encoder --tolerance 0.001 --json",
    ],
)
@click.argument("model", metavar="FILE|demo", type=_Model())
@_input_option
@click.option(
    "--steps", metavar="T", type=WHOLE, help="only the first T steps (default: all, or 2000)"
)
@click.option(
    "--tolerance",
    metavar="E",
    type=Positive(),
    default=0.01,
    help="a type with a larger error, as a part of y, is not recommended (default: 0.01)",
)
@layer_option
@_batch_option
@external_data_option
@output_options
@click.pass_context
def narrow(
    context: click.Context,
    /,
    *,
    model: str,
    source: str | None,
    steps: int | None,
    tolerance: float,
    layer: str | None,
    batch_first: bool | None,
    allow_external_data: bool,
    output: Output,
) -> None:
    """Say what weights of 16 and 8 bits bring a layer, and cost it.

    Bytes, the time of a step, and the error of y against float64 on the data that the layer reads; and which type is
    recommended, and why.
    """
    if steps is not None and steps < 1:
        raise click.UsageError("--steps: must be at least 1", context)
    read = _read(
        context, model, source, layer, allow_external_data, batch_first, steps or FEW_STEPS
    )
    from fusedrnn.analysis.narrowings import narrowings

    with progress_bar("measuring") as progress:
        output.put(narrowings(read.layer, read.x[:steps], tolerance=tolerance, progress=progress))
