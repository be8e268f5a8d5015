"""Narrow layers in files and pickles: the same bits come back, in as few bytes."""

from __future__ import annotations

import copy
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from conftest import FAMILY, Draw
from damaged import load_with_flipped_bytes

import fusedrnn as fr
from fusedrnn import cli
from fusedrnn.formats import safetensors_file
from fusedrnn.narrowing import WEIGHT_DTYPES, Narrow

NARROW = WEIGHT_DTYPES[1:]


def same(one: fr.Layer[Any], other: fr.Layer[Any]) -> bool:
    """Whether two layers store the same bytes."""

    def content(layer: fr.Layer[Any]) -> list[object]:
        return [
            (name, each.values.tobytes(), None if each.scales is None else each.scales.tobytes())
            if isinstance(each, Narrow)
            else (name, each.tobytes())
            for name, each in layer._weights.items()
        ]

    return (
        type(one) is type(other)
        and one.architecture == other.architecture
        and one.weight_dtype == other.weight_dtype
        and content(one) == content(other)
    )


@pytest.mark.parametrize("weight_dtype", NARROW)
@pytest.mark.parametrize("name", FAMILY)
def test_a_narrow_layer_comes_back_to_the_bit(
    name: str, weight_dtype: str, tmp_path: Path, draw: Draw
) -> None:
    cell, options = FAMILY[name]
    layer = cell(5, 18, 2, seed=1, bidirectional=True, weight_dtype=weight_dtype, **options)
    fr.save(layer, tmp_path / "layer")
    again = fr.load(tmp_path / "layer")
    unpickled = pickle.loads(pickle.dumps(layer))
    x = draw(7, 2, 5)
    for other in (again, unpickled, copy.copy(layer), copy.deepcopy(layer)):
        assert same(other, layer)
        assert other(x)[0].tobytes() == layer(x)[0].tobytes()
    assert not same(again, cell(5, 18, 2, seed=1, bidirectional=True, **options))
    wide = fr.load(tmp_path / "layer", weight_dtype="float32")
    assert wide.weight_dtype == "float32"
    for key, array in layer.weights.items():
        np.testing.assert_array_equal(wide.weights[key], array)


@pytest.mark.parametrize(
    ("weight_dtype", "factor"), list(zip(NARROW, (0.52, 0.52, 0.28, 0.28), strict=True))
)
def test_files_and_pickles_are_as_small_as_their_weights(
    weight_dtype: str, factor: float, tmp_path: Path
) -> None:
    wide = fr.LSTM(64, 128, seed=0)
    small = wide.narrow(weight_dtype)
    sizes = []
    for layer in (wide, small):
        fr.save(layer, tmp_path / "layer")
        sizes.append(((tmp_path / "layer").stat().st_size, len(pickle.dumps(layer))))
    for before, after in zip(*sizes, strict=True):
        assert after < factor * before


def test_the_library_reads_float16_and_int8(tmp_path: Path) -> None:
    layer = fr.GRU(3, 4, seed=1)
    for weight_dtype in ("float16", "int8"):
        small = layer.narrow(weight_dtype)
        fr.save(small, tmp_path / "layer")
        arrays = safetensors.numpy.load_file(tmp_path / "layer")
        matrix = arrays["weight_hh_l0"]
        assert str(matrix.dtype) == weight_dtype
        scales = arrays["weight_hh_l0_scale"][:, None] if weight_dtype == "int8" else 1
        found = matrix.astype(np.float32) * scales
        np.testing.assert_array_equal(found, small.weights["weight_hh_l0"])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_files_give_float32_unless_another_type_is_asked_for(
    dtype: str, tmp_path: Path
) -> None:
    layer = fr.LSTM(3, 4, seed=1)
    arrays = {name: array.astype(dtype) for name, array in layer.weights.items()}
    safetensors.numpy.save_file(arrays, tmp_path / "model")
    assert fr.load(tmp_path / "model").weight_dtype == "float32"
    narrow = fr.load(tmp_path / "model", weight_dtype="float16")
    assert narrow.weight_dtype == "float16"
    for name, array in layer.weights.items():
        if "bias" not in name:
            np.testing.assert_array_equal(narrow.weights[name], array.astype("f2").astype("f4"))


@pytest.mark.parametrize(("weight_dtype", "size"), [("float16", 2), ("int8", 1)])
def test_commands_know_the_type_of_a_file_s_weights(
    weight_dtype: str, size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "layer"
    fr.save(fr.LSTM(40, 64, weight_dtype=weight_dtype), path)
    assert f"{weight_dtype} weights" in str(fr.inspect(path))
    machine = ["--machine", "docs/example-machine.json", "--json"]
    for arguments, expected in (
        ([str(path)], size),
        ([str(path), "--weight-dtype", "float32"], 4),
        (["lstm", "--input", "40", "--hidden", "64", "--weight-dtype", weight_dtype], size),
        (["lstm", "--input", "40", "--hidden", "64"], 4),
    ):
        assert cli.main(["roofline", *machine, *arguments]) == 0
        said = json.loads(capsys.readouterr().out)
        found = sum(part["weight_bytes"] for part in said["parts"])
        assert found == expected * 256 * (40 + 64) + 4 * 256


# ---- files and pickles of strangers ----------------------------------------------------------------


def changed(path: Path, change: Any) -> None:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    said = json.loads(header["__metadata__"][safetensors_file.KEY])
    change(header, said)
    header["__metadata__"][safetensors_file.KEY] = json.dumps(said)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _, said: said.update(weight_dtype="int4"), "weight_dtype 'int4' is unknown"),
        (lambda _, said: said.update(weight_dtype=[]), "weight_dtype .* is unknown"),
        (lambda header, _: header["weight_hh_l0"].update(dtype="U8"), "a float32 for each row"),
        (
            lambda header, _: header["weight_hh_l0_scale"].update(shape=[2, 6]),
            "a float32 for each row",
        ),
        (
            lambda header, _: header.update({"other": header.pop("weight_hh_l0_scale")}),
            "weight_hh_l0|'other'",
        ),
    ],
)
def test_a_file_that_says_something_else_is_refused(
    change: Any, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "layer"
    fr.save(fr.RNN(3, 12, weight_dtype="int8"), path)
    changed(path, change)
    with pytest.raises(fr.ModelFormatError, match=message):
        fr.inspect(path)


@pytest.mark.parametrize("weight_dtype", NARROW)
def test_flipped_bytes_give_an_error_or_a_layer(weight_dtype: str, tmp_path: Path) -> None:
    fr.save(fr.LSTM(2, 3, weight_dtype=weight_dtype, seed=1), tmp_path / "layer")
    load_with_flipped_bytes(tmp_path / "layer", 150)


def reloaded(layer: fr.Layer[Any], **fields: Any) -> Any:
    again = type(layer).__new__(type(layer))
    again.__setstate__({**layer.__getstate__(), **fields})
    return again


def test_a_forged_pickle_is_refused() -> None:
    layer = fr.RNN(3, 4, weight_dtype="int8", seed=1)
    weights = layer.__getstate__()["weights"]
    values, scales = weights["weight_hh_l0"]
    assert same(reloaded(layer), layer)

    def with_matrix(matrix: Any) -> dict[str, Any]:
        return {**weights, "weight_hh_l0": matrix}

    for bad, error in (
        ((values, None), TypeError),
        ((values, scales[:2]), ValueError),
        ((values, scales * np.float32(np.inf)), ValueError),
        ((values.astype("i4"), scales), TypeError),
        ((values[0], scales), ValueError),
        (values, TypeError),
        ((values, scales, scales), TypeError),
    ):
        with pytest.raises(error, match="weight_hh_l0"):
            reloaded(layer, weights=with_matrix(bad))
    with pytest.raises(ValueError, match="weight_dtype must be one of"):
        reloaded(layer, weight_dtype="int4")
    with pytest.raises(TypeError, match="weight_ih_l0"):
        reloaded(layer, weight_dtype="float32")
    half = fr.RNN(3, 4, weight_dtype="float16", seed=1)
    infinite = {**half.__getstate__()["weights"]}
    infinite["weight_hh_l0"] = (np.full((4, 4), 0x7C00, np.uint16), None)
    with pytest.raises(ValueError, match=r"weight_hh_l0\[0, 0\] = inf"):
        reloaded(half, weights=infinite)
