"""A model trained by several processes at once, each on its part of every batch: torch.distributed, gloo, on one machine.

    python examples/train_data_parallel.py [--ranks 2] [--steps 100]

The model is an ordinary one of PyTorch whose GRU was converted. DistributedDataParallel averages the gradients of all ranks
while the backward pass goes on, so every rank makes the same step: at the end all have the same parameters, bit for bit.
For several machines, start a process on each with torchrun: rank, world size and address are then in the environment.

The task: to say which of 20 symbols came two steps before.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fusedrnn.torch

SYMBOLS, UNITS, LENGTH, BATCH = 20, 32, 30, 32


class Model(nn.Module):
    """Embedding, GRU, head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, UNITS)
        self.gru = nn.GRU(UNITS, UNITS, batch_first=True)
        self.head = nn.Linear(UNITS, SYMBOLS)

    def forward(self, symbols: Tensor) -> Tensor:
        scores: Tensor = self.head(self.gru(self.embedding(symbols))[0])
        return scores


def batches(steps: int, rank: int, ranks: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A rank's part of every batch: the same batches for any number of ranks."""
    random = torch.Generator().manual_seed(1)
    for _ in range(steps):
        symbols = torch.randint(SYMBOLS, (BATCH, LENGTH), generator=random).chunk(ranks)[rank]
        yield symbols, symbols.roll(2, 1)


def train(model: nn.Module, steps: int, rank: int = 0, ranks: int = 1) -> list[float]:
    """An ordinary loop. The losses of this rank's parts; rank 0 shows how far it is."""
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    with click.progressbar(
        batches(steps, rank, ranks),
        length=steps,
        label="training",
        item_show_func=lambda _: f"loss {losses[-1]:.3f}" if losses else "",
        hidden=rank > 0,
    ) as bar:
        for symbols, wanted in bar:
            optimizer.zero_grad()
            scores = model(symbols)[:, 2:]
            loss = nn.functional.cross_entropy(scores.flatten(0, 1), wanted[:, 2:].flatten())
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def fresh() -> nn.Module:
    """The model before training, its GRU converted."""
    torch.manual_seed(0)
    return fusedrnn.torch.convert(Model())


def run_rank(rank: int, ranks: int, meeting: str, steps: int, results: str) -> None:
    """One process: trains, and leaves its losses and parameters in a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=ranks)
    try:
        model = DistributedDataParallel(fresh())
        losses = train(model, steps, rank, ranks)
        torch.save((losses, model.module.state_dict()), Path(results) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def run(ranks: int, steps: int) -> list[tuple[list[float], dict[str, Any]]]:
    """The losses and parameters of every rank."""
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        torch.multiprocessing.spawn(run_rank, (ranks, meeting, steps, folder), ranks)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(ranks)]


def digest(parameters: dict[str, Any]) -> str:
    """A few letters of the bits of all parameters."""
    bits = b"".join(each.numpy().tobytes() for each in parameters.values())
    return hashlib.sha256(bits).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=2, help="number of processes (default: 2)")
    parser.add_argument("--steps", type=int, default=100, help="steps of training (default: 100)")
    options = parser.parse_args()
    for rank, (losses, parameters) in enumerate(run(options.ranks, options.steps)):
        print(
            f"rank {rank}: loss {losses[0]:.3f} to {losses[-1]:.3f}, parameters {digest(parameters)}"
        )


if __name__ == "__main__":
    main()
