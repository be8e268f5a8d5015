"""``fusedrnn bench``: its verbs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from fusedrnn.cli.options import WHOLE, Command, Group, OutputFile, output_options
from fusedrnn.cli.output import Output

__all__ = ["bench"]

Function = TypeVar("Function", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)


def _options(*names: str) -> Callable[[Function], Function]:
    """The options of these names, which several verbs have."""
    every = {
        "quick": click.option("--quick", is_flag=True, help="fewer shapes and passes"),
        "long": click.option("--long", is_flag=True, help="also shapes that take minutes each"),
        "cases": click.option(
            "--cases",
            metavar="PATTERN",
            help="only shapes whose names have this, with * and ?",
        ),
        "training": click.option(
            "--training",
            is_flag=True,
            help="forward and backward with all gradients, and nothing else",
        ),
        "markdown": click.option(
            "--markdown",
            is_flag=True,
            help="with --training: print the table in Markdown",
        ),
        "isa": click.option("--isa", metavar="NAME", help="use this instruction set"),
        "report": click.option(
            "--report", metavar="DIR", type=OutputFile(), help="write a report to DIR"
        ),
        "json": click.option(
            "--json", metavar="FILE", type=OutputFile(), help="write the results to FILE"
        ),
    }

    def decorated(function: Function) -> Function:
        for name in reversed(names):
            function = every[name](function)
        return function

    return decorated


@click.group(
    cls=Group,
    examples=[
        "fusedrnn bench run --quick --report report",
        "fusedrnn bench peers --summary > table.md",
        "fusedrnn bench torch",
        "fusedrnn bench diff old.json new.json",
    ],
)
def bench() -> None:
    """Measure the kernels on this machine.

    How, and why so: docs/measuring.md.
    """


@bench.command(
    cls=Command,
    examples=[
        "fusedrnn bench run --quick --report report",
        "fusedrnn bench run --cases 'gru-*-B1-*' --json new.json",
        "fusedrnn bench run --training --isa baseline",
    ],
)
@_options("quick", "long", "cases")
@click.option("--threads", metavar="N", type=WHOLE, help="also measure some shapes with N threads")
@_options("training", "markdown", "isa", "report", "json")
def run(report: Path | None, json: Path | None, **given: Any) -> int:
    """What fusing brings: the kernels against naive NumPy."""
    from fusedrnn.bench import run as verbs
    from fusedrnn.bench.outputs import Outputs

    return verbs.run(outputs=Outputs(report, json), **given)


@bench.command(
    cls=Command,
    examples=[
        "fusedrnn bench peers --report report",
        "fusedrnn bench peers --quick --cases 'lstm-*-B16-*' --threads 1",
        "fusedrnn bench peers --training --markdown > training.md",
        "fusedrnn bench peers --summary > table.md",
    ],
)
@_options("quick", "long", "cases")
@click.option(
    "--threads",
    metavar="N",
    type=WHOLE,
    help="also measure some shapes with N threads (default: 2, if there are 2 cores)",
)
@click.option(
    "--steps",
    metavar="N",
    type=WHOLE,
    help="number of single steps to time (default: 1000000; 100000 with --quick)",
)
@click.option(
    "--summary",
    is_flag=True,
    help="only a step, a sequence and a batch in three sizes: one table, in Markdown",
)
@_options("training", "markdown", "isa", "report", "json")
def peers(report: Path | None, json: Path | None, **given: Any) -> int:
    """Against PyTorch, ONNX Runtime and OpenVINO.

    What is not installed is left out.
    """
    from fusedrnn.bench import run as verbs
    from fusedrnn.bench.outputs import Outputs

    return verbs.peers(outputs=Outputs(report, json), **given)


@bench.command(
    cls=Command,
    examples=[
        "fusedrnn bench latency --quick",
        "fusedrnn bench latency --peers --report report",
    ],
)
@click.option("--peers", "versus", is_flag=True, help="also the other libraries, where installed")
@click.option("--quick", is_flag=True, help="fewer steps and rounds")
@click.option(
    "--steps",
    metavar="N",
    type=WHOLE,
    help="number of steps to time (default: 1000000; 100000 with --quick)",
)
@_options("isa", "report", "json")
def latency(report: Path | None, json: Path | None, **given: Any) -> int:
    """What one call costs, and many single steps.

    What a call from Python costs above its kernel, and how long each of a million single steps takes.
    """
    from fusedrnn.bench import run as verbs
    from fusedrnn.bench.outputs import Outputs

    return verbs.latency(outputs=Outputs(report, json), **given)


@bench.command(
    cls=Command,
    examples=[
        "fusedrnn bench stages",
        "fusedrnn bench stages --hidden 64 --hidden 256 --rounds 50",
    ],
)
@click.option(
    "--hidden",
    metavar="H",
    type=WHOLE,
    multiple=True,
    help="a size, with as many inputs; can be given several times (default: 32, 128 and 512)",
)
@click.option("--rounds", metavar="N", type=WHOLE, help="rounds of each stage (default: 25)")
@_options("report", "json")
def stages(report: Path | None, json: Path | None, **given: Any) -> int:
    """What each idea brings, from naive to fast."""
    from fusedrnn.bench import run as verbs
    from fusedrnn.bench.outputs import Outputs

    return verbs.stages(outputs=Outputs(report, json), **given)


@bench.command(
    "torch",
    cls=Command,
    examples=["fusedrnn bench torch", "fusedrnn bench torch --training --rounds 101 -o steps.md"],
)
@click.option("--rounds", metavar="N", type=WHOLE, default=41, help="rounds of each (default: 41)")
@click.option("--training", is_flag=True, help="whole steps of a training loop")
@output_options
def torch_modules(*, rounds: int, training: bool, output: Output) -> None:
    """Your PyTorch model: modules as PyTorch runs them, and converted ones."""
    from fusedrnn.bench import torch_modules, torch_training

    output.put(_measured(torch_training if training else torch_modules, rounds))


@bench.command(
    "onnx",
    cls=Command,
    examples=["fusedrnn bench onnx", "fusedrnn bench onnx --rounds 101 --json"],
)
@click.option("--rounds", metavar="N", type=WHOLE, default=41, help="rounds of each (default: 41)")
@output_options
def onnx_models(*, rounds: int, output: Output) -> None:
    """Whole ONNX models: in ONNX Runtime, and in a session that runs their recurrent nodes here."""
    from fusedrnn.bench import onnx_session

    output.put(_measured(onnx_session, rounds))


@bench.command(
    cls=Command,
    examples=["fusedrnn bench narrow", "fusedrnn bench narrow --rounds 15 -o narrow.md"],
)
@click.option("--rounds", metavar="N", type=WHOLE, default=21, help="rounds of each (default: 21)")
@output_options
def narrow(*, rounds: int, output: Output) -> None:
    """Weights of 16 and 8 bits: beside float32, and other libraries' int8 and bfloat16.

    What is not installed is left out.
    """
    from fusedrnn.bench import narrow_weights

    output.put(_measured(narrow_weights, rounds))


def _measured(models: Any, rounds: int) -> Any:
    """All cases of a module of pairs, as one result."""
    from fusedrnn.bench.pairs import each

    if rounds < 1:
        raise click.UsageError("--rounds: must be at least 1")
    return models.measured(models.measure(case, rounds) for case in each(models.CASES))


@bench.command(cls=Command, examples=["fusedrnn bench diff old.json new.json"])
@click.argument("old", metavar="OLD.json", type=FILE)
@click.argument("new", metavar="NEW.json", type=FILE)
def diff(old: Path, new: Path) -> int:
    """What changed from one result to another.

    Only what changed by more than the noise is called faster or slower.
    """
    from fusedrnn.bench import run as verbs

    return verbs.diff(old, new)
