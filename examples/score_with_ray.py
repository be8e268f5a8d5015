"""The scores of many sequences, computed with Ray Data by several processes of one thread each.

    python examples/score_with_ray.py MODEL [--workers 2] [--block 256]

MODEL is any file that fusedrnn.load reads. The layer is loaded once, by this process; every actor gets the layer's
pickle, which holds the weights alone, and packs the weights once.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import ray

import fusedrnn as fr


class Scorer:
    """An actor: holds the layer, and scores one batch after another."""

    def __init__(self, layer: fr.Layer[Any]) -> None:
        self.layer = layer

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """``batch["x"]`` is (batch, time, input_size), ``"score"`` then (batch, outputs): the last outputs."""
        return {"id": batch["id"], "score": last_outputs(batch["x"], self.layer)}


def last_outputs(x: np.ndarray, layer: fr.Layer[Any]) -> np.ndarray:
    """The output after the last step: (batch, outputs), of sequences (batch, time, input_size)."""
    return np.ascontiguousarray(layer(np.ascontiguousarray(x))[0][:, -1])


def scores(
    rows: ray.data.Dataset, layer: fr.Layer[Any], *, workers: int, block: int
) -> ray.data.Dataset:
    """Rows ``id, score`` of rows ``id, x``, in no order that may be relied on."""
    return rows.map_batches(
        Scorer,
        fn_constructor_args=(layer,),
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
        batch_size=block,
        batch_format="numpy",
    )


def table(x: np.ndarray, blocks: int) -> ray.data.Dataset:
    """Rows ``id, x``: the sequences of an array (batch, time, input_size), in so many blocks."""
    rows = [{"id": number, "x": sequence} for number, sequence in enumerate(x)]
    return ray.data.from_items(rows, override_num_blocks=blocks)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--block", type=int, default=256, help="sequences that one call scores")
    parser.add_argument("--sequences", type=int, default=2048)
    options = parser.parse_args()

    layer = fr.load(options.model, batch_first=True)
    random = np.random.default_rng(0)
    x = random.standard_normal(
        (options.sequences, 50, layer.architecture.input_size), dtype=np.float32
    )
    ray.init(num_cpus=options.workers, include_dashboard=False)
    rows = table(x, blocks=2 * options.workers)
    found = scores(rows, layer, workers=options.workers, block=options.block).take_all()
    ray.shutdown()
    ordered = np.stack([row["score"] for row in sorted(found, key=lambda row: row["id"])])
    same = ordered.tobytes() == last_outputs(x, layer).tobytes()
    print(f"{len(ordered)} sequences; the same bits as from one process: {same}")


if __name__ == "__main__":
    main()
