"""The scores of many sequences, computed with Dask by several processes of one thread each.

    python examples/score_with_dask.py MODEL [--workers 2] [--block 256]

MODEL is any file that fusedrnn.load reads. The layer is loaded once, by this process; every worker gets the layer's
pickle, which holds the weights alone, and packs the weights once.
"""

from __future__ import annotations

import argparse
from typing import Any

import dask
import dask.array as da
import numpy as np
from distributed import Client, LocalCluster

import fusedrnn as fr


def last_outputs(x: np.ndarray, layer: fr.Layer[Any]) -> np.ndarray:
    """The output after the last step: (batch, outputs), of sequences (batch, time, input_size)."""
    return np.ascontiguousarray(layer(x)[0][:, -1])


def scores(x: da.Array, layer: fr.Layer[Any]) -> da.Array:
    """The last outputs of sequences, which are divided along the batch and along nothing else."""
    one = np.zeros((1, 1, layer.architecture.input_size), np.float32)
    outputs = last_outputs(one, layer).shape[1]
    return da.map_blocks(
        last_outputs,
        x,
        # A task of its own, whose result stays in a worker's memory. An array would be an argument of every block.
        layer=dask.delayed(layer),
        dtype=np.float32,
        drop_axis=(1, 2),
        new_axis=1,
        chunks=(x.chunks[0], (outputs,)),
        meta=np.empty((0, 0), np.float32),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--block", type=int, default=256, help="sequences that one task scores")
    parser.add_argument("--sequences", type=int, default=2048)
    options = parser.parse_args()

    layer = fr.load(options.model, batch_first=True)
    random = np.random.default_rng(0)
    x = random.standard_normal(
        (options.sequences, 50, layer.architecture.input_size), dtype=np.float32
    )
    with (
        LocalCluster(
            n_workers=options.workers, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster),
    ):
        found = scores(da.from_array(x, chunks=(options.block, -1, -1)), layer).compute()
    same = found.tobytes() == last_outputs(x, layer).tobytes()
    print(f"{len(found)} sequences; the same bits as from one process: {same}")


if __name__ == "__main__":
    main()
