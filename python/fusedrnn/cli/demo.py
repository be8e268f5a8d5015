"""``fusedrnn demo``: a trained model reads a real book, and writes."""

from __future__ import annotations

import click

from fusedrnn.cli.options import WHOLE, Command, OneOf, json_option

__all__ = ["demo"]


@click.command(
    cls=Command,
    examples=[
        "fusedrnn demo",
        "fusedrnn demo --backend c --characters 1000 --temperature 0.5 --seed 3",
    ],
)
@click.option(
    "--backend",
    type=OneOf(["auto", "c", "numba", "numpy"]),
    default="auto",
    help="what writes (default: auto)",
)
@click.option(
    "--characters",
    metavar="N",
    type=WHOLE,
    default=400,
    help="how many to write, at most a million (default: 400)",
)
@click.option(
    "--temperature",
    metavar="T",
    type=float,
    default=0.7,
    help="0 always takes the likeliest character (default: 0.7)",
)
@click.option("--seed", metavar="S", type=WHOLE, help="for the same text each time")
@json_option
def demo(
    *, backend: str, characters: int, temperature: float, seed: int | None, as_json: bool
) -> int:
    """Let a small character LSTM read a book, and write.

    Every backend, and naive NumPy, reads the same text; then one of them writes.
    """
    from fusedrnn.demo import run

    return run(
        backend=backend,
        characters=characters,
        temperature=temperature,
        seed=seed,
        as_json=as_json,
    )
