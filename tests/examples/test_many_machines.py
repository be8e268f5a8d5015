"""The examples for Dask and Ray: the bits of one process, whatever the partition, from weights that a worker packs once."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusedrnn as fr

EXAMPLES = Path(__file__).parents[2] / "examples"
PATHS = [str(EXAMPLES), str(Path(__file__).parent)]
SEQUENCES = 96


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    """What workers import: the examples, and this folder."""
    with pytest.MonkeyPatch.context() as patch:
        for path in PATHS:
            patch.syspath_prepend(path)
        patch.setenv("PYTHONPATH", os.pathsep.join(PATHS))
        yield


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> fr.Layer[Any]:
    """A layer from a file."""
    pytest.importorskip("safetensors")
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    fr.save(fr.LSTM(5, 67, num_layers=2, batch_first=True, seed=1), path)
    return fr.load(path, batch_first=True, backend="c")


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(2).standard_normal((SEQUENCES, 9, 5), dtype=np.float32)


@pytest.fixture(scope="module")
def expected(layer: fr.Layer[Any], x: np.ndarray) -> bytes:
    return np.ascontiguousarray(layer(x)[0][:, -1]).tobytes()


def test_a_pickle_is_about_the_size_of_the_weights(layer: fr.Layer[Any], x: np.ndarray) -> None:
    weights = sum(array.nbytes for array in layer.weights.values())
    layer(x)
    assert weights < len(pickle.dumps(layer)) < weights + 4096


@pytest.fixture(scope="module")
def client(importable: None) -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.mark.parametrize("chunks", [SEQUENCES, 32, (1, 64, 31), 7])
def test_dask_gives_the_same_bits(
    client: Any, layer: fr.Layer[Any], x: np.ndarray, expected: bytes, chunks: Any
) -> None:
    import dask.array as da
    from score_with_dask import scores

    found = scores(da.from_array(x, chunks=(chunks, -1, -1)), layer).compute()
    assert found.tobytes() == expected


def test_negative_control_dask_with_other_weights(
    client: Any, layer: fr.Layer[Any], x: np.ndarray, expected: bytes
) -> None:
    import dask.array as da
    from score_with_dask import scores

    weight = layer.weights["weight_ih_l0"]
    weights = {**layer.weights, "weight_ih_l0": np.nextafter(weight, np.float32(9))}
    other = fr.LSTM.from_weights(weights, batch_first=True)
    found = scores(da.from_array(x, chunks=(32, -1, -1)), other).compute()
    assert found.tobytes() != expected


def test_a_worker_of_dask_packs_the_weights_once(
    client: Any, layer: fr.Layer[Any], x: np.ndarray
) -> None:
    import dask.array as da
    from packings import made
    from score_with_dask import scores

    before = dict(client.run(made).values())
    scores(da.from_array(x, chunks=(4, -1, -1)), layer).compute()
    after = dict(client.run(made).values())
    assert os.getpid() not in after
    packed = [after[process] - before[process] for process in before]
    assert len(packed) == 2 and max(packed) == 1


@pytest.fixture(scope="module")
def ray(importable: None) -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}},
    )
    yield ray
    ray.shutdown()


@pytest.mark.parametrize(("blocks", "batch"), [(1, SEQUENCES), (5, 7)])
def test_ray_gives_the_same_bits_from_weights_packed_once(
    ray: Any,
    monkeypatch: pytest.MonkeyPatch,
    layer: fr.Layer[Any],
    x: np.ndarray,
    expected: bytes,
    blocks: int,
    batch: int,
) -> None:
    import score_with_ray
    from counting_scorer import CountingScorer

    monkeypatch.setattr(score_with_ray, "Scorer", CountingScorer)
    table = score_with_ray.table(x, blocks)
    rows = score_with_ray.scores(table, layer, workers=2, block=batch).take_all()
    rows.sort(key=lambda row: row["id"])
    assert np.stack([row["score"] for row in rows]).tobytes() == expected
    assert {row["packings"] for row in rows} == {1}
    assert os.getpid() not in {row["process"] for row in rows}
