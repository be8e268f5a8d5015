"""The command ``fusedrnn``: what the library knows, from a shell.

Starts fast: each command is imported when it is asked for, and imports what it needs when it runs. Exit codes: 0 done,
1 a figure is not what it should be, 2 an error that one line on standard error explains, 3 a count is not complete, 130
interrupted, 141 the reader of a pipe went away.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from fusedrnn import __version__
from fusedrnn.cli.options import Group
from fusedrnn.cli.output import guarded, write

__all__ = ["guarded", "main"]

#: Every command, and its module in this folder, in which it has the same name.
COMMANDS = {
    "count": "count",
    "compare": "count",
    "verify": "count",
    "inspect": "models",
    "run": "models",
    "roofline": "machine",
    "horizon": "analysis",
    "trace": "analysis",
    "drift": "analysis",
    "narrow": "analysis",
    "info": "machine",
    "bench": "bench",
    "demo": "demo",
}

#: Set by the shell's completion; see the help.
COMPLETE = "_FUSEDRNN_COMPLETE"


class _Fusedrnn(Group):
    """The commands, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(
            import_module(f"{__name__}.{COMMANDS[cmd_name]}"), cmd_name
        )
        return command


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        write(f"fusedrnn {__version__}\n")
        context.exit()


@click.command(
    cls=_Fusedrnn,
    examples=[
        "fusedrnn count lstm --input 128 --hidden 256",
        "fusedrnn count lstm --input 1500 --hidden 1500 --explain",
        "fusedrnn count network.toml",
        "fusedrnn inspect model.onnx",
        "fusedrnn count model.onnx",
        "fusedrnn run model.onnx input.npy -o output.npy",
        "fusedrnn compare lstm --input 128 --hidden 256 --steps 100",
        "fusedrnn verify",
        "fusedrnn roofline lstm --input 128 --hidden 256 --steps 100",
        "fusedrnn horizon --forget 0.99 --steps 500",
        "fusedrnn trace demo --report trace",
        "fusedrnn narrow demo",
        "fusedrnn info",
        "fusedrnn bench run --quick --report report",
    ],
    epilog=f"""\b
Completion in bash, in ~/.bashrc (zsh: zsh_source; fish: fish_source):
  eval "$({COMPLETE}=bash_source fusedrnn)"
""",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="print the version",
)
def _fusedrnn() -> None:
    """Recurrent layers for CPUs at the speed of the machine, and their exact cost."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv
        The arguments after the program's name; None for those of the process.

    Returns
    -------
    int
        The exit code.
    """
    return guarded(lambda: _run(list(sys.argv[1:] if argv is None else argv)))


def _run(words: list[str]) -> int:
    instruction = os.environ.get(COMPLETE)
    if instruction:
        from click.shell_completion import shell_complete

        return shell_complete(_fusedrnn, {}, "fusedrnn", COMPLETE, instruction)
    # Not click's main(): its exit codes for a closed pipe and Ctrl-C are not those of a shell.
    with _fusedrnn.make_context("fusedrnn", words) as context:
        status: Any = _fusedrnn.invoke(context)
    return int(status or 0)


if __name__ == "__main__":
    sys.exit(main())
