"""Nothing in a pickle is trusted: what loads is checked as if it were made anew."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forged_pickles import Forged

import fusedrnn as fr


def reloaded(layer: fr.Layer, cls: type[Any] | None = None, **fields: Any) -> Any:
    """A layer from its own pickle, in which fields of the architecture have been changed."""
    architecture = Forged(fr.Architecture, (), {**layer.architecture.__getstate__(), **fields})
    state = {**layer.__getstate__(), "architecture": architecture}
    return pickle.loads(pickle.dumps(Forged(cls or type(layer), (), state)))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"periods": (0, 1)}, "periods"),
        ({"periods": (2, 1)}, "periods"),
        ({"cell": "lstm", "periods": ()}, "cell"),
        ({"clip": float("nan")}, "clip"),
        ({"clip": -1.0}, "clip"),
        ({"hidden_size": 7}, "hidden_size"),
        ({"hidden_size": -6}, "hidden_size"),
        ({"activation": "swish"}, "activation"),
    ],
)
def test_an_architecture_checks_itself(fields: dict[str, Any], field: str) -> None:
    layer = fr.ClockworkRNN(3, 6, periods=(1, 2), seed=0)
    assert reloaded(layer).architecture == layer.architecture
    with pytest.raises(fr.ArchitectureError) as caught:
        reloaded(layer, **fields)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"hidden_size": 8}, ValueError, "weight_ih_l0"),
        ({"num_layers": 2}, ValueError, "weight_ih_l1"),
        ({"table": None}, TypeError, "table"),
    ],
)
def test_weights_must_be_those_of_the_architecture(
    fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        reloaded(fr.ClockworkRNN(3, 6, periods=(1, 2), seed=0), **fields)


def test_a_layer_must_be_of_the_cell_of_its_class() -> None:
    with pytest.raises(fr.ArchitectureError, match=r"cell .*lstm.*LSTM.*clockwork"):
        reloaded(fr.ClockworkRNN(3, 6, periods=(1, 2), seed=0), fr.LSTM)
    state = {**fr.LSTM(3, 6).__getstate__(), "architecture": "lstm"}
    with pytest.raises(TypeError, match=r"architecture .*str"):
        pickle.loads(pickle.dumps(Forged(fr.LSTM, (), state)))


def test_an_architecture_has_only_its_fields_in_a_pickle() -> None:
    architecture = fr.Architecture("gru", 3, 5)
    assert architecture.table  # is cached, and not pickled
    for twin in (pickle.loads(pickle.dumps(architecture)), copy.copy(architecture)):
        assert twin == architecture
        assert "table" not in twin.__getstate__()


@pytest.mark.parametrize("seed", range(4))
def test_forged_pickles_end_in_ordinary_errors(seed: int) -> None:
    script = Path(__file__).with_name("forged_pickles.py")
    command = [sys.executable, "-X", "faulthandler", str(script), str(seed), "500"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    loaded, refused = map(int, done.stdout.split())
    assert loaded > 20 and refused > 100, "some are as good as new, and most are not"
