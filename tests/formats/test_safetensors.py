"""safetensors: what save writes, load reads, to the bit; what others write is read; and what is damaged is refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from conftest import FAMILY, Draw
from damaged import load_with_flipped_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

import fusedrnn as fr
from fusedrnn.formats import safetensors_file


def file_of(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, fr.LSTM]:
    layer = fr.LSTM(3, 4, seed=1)
    fr.save(layer, tmp_path / "lstm.safetensors")
    return tmp_path / "lstm.safetensors", layer


def same(one: fr.Layer[Any], other: fr.Layer[Any]) -> bool:
    return (
        type(one) is type(other)
        and one.architecture == other.architecture
        and one.batch_first == other.batch_first
        and all(
            one.weights[name].tobytes() == other.weights[name].tobytes() for name in one.weights
        )
    )


# ---- what is written is read -----------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize(
    "more", [{}, {"bidirectional": True}, {"reverse": True, "batch_first": True}]
)
def test_a_layer_comes_back_to_the_bit(name: str, more: dict[str, bool], tmp_path: Path) -> None:
    cell, options = FAMILY[name]
    layer = cell(5, 18, 2, seed=1, **(options | more))
    fr.save(layer, tmp_path / "layer")
    again = fr.load(tmp_path / "layer")
    assert same(again, layer)
    assert not same(again, cell(5, 18, 2, seed=2, **(options | more)))


def test_the_initial_state_comes_back(tmp_path: Path, draw: Draw) -> None:
    layer = fr.ClockworkRNN(5, 6, periods=(1, 3), initial_state=(draw(1, 6), np.array([7])))
    fr.save(layer, tmp_path / "layer")
    again = fr.load(tmp_path / "layer").initial_state
    assert again is not None and layer.initial_state is not None
    np.testing.assert_array_equal(again.h, layer.initial_state.h)
    assert again.t.tolist() == [7]


def test_the_library_reads_what_save_writes(saved: tuple[Path, fr.LSTM]) -> None:
    path, layer = saved
    for name, array in safetensors.numpy.load_file(path).items():
        np.testing.assert_array_equal(array, layer.weights[name])


def test_save_refuses_what_is_no_layer_and_leaves_the_file(saved: tuple[Path, fr.LSTM]) -> None:
    path, layer = saved
    with pytest.raises(TypeError, match="layer must be"):
        fr.save(dict(layer.weights), path)  # type: ignore[arg-type]
    assert same(fr.load(path), layer)
    with pytest.raises(OSError, match="nowhere"):
        fr.save(layer, path.parent / "nowhere" / "file")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_layers_among_other_arrays(dtype: str, tmp_path: Path, draw: Draw) -> None:
    gru, lstm = fr.GRU(3, 4, 2, bias="double", seed=1), fr.LSTM(3, 4, bidirectional=True, seed=2)
    arrays = {f"encoder.gru.{name}": array for name, array in gru.weights.items()}
    arrays |= {f"head.lstm.{name}": array for name, array in lstm.weights.items()}
    arrays |= {
        "head.out.weight": draw(7, 8),
        "head.out.bias": draw(7),
        "table.embedding.weight": draw(9, 3),
    }
    arrays = {name: array.astype(dtype) for name, array in arrays.items()}
    arrays["steps"] = np.arange(3)
    safetensors.numpy.save_file(arrays, tmp_path / "model")
    contents = fr.inspect(tmp_path / "model")
    assert sorted(layer.name for layer in contents.layers) == ["encoder.gru", "head.lstm"]
    kinds = {part.name: (part.kind, part.macs_per_step) for part in contents.parts}
    assert kinds["head.out"] == ("dense", 56)
    assert kinds["table.embedding"] == ("embedding", 0)
    assert kinds[""] == ("?", None)
    with pytest.raises(ValueError, match=r"2 recurrent layers.*'encoder.gru'.*'head.lstm'"):
        fr.load(tmp_path / "model")
    with pytest.raises(ValueError, match="no recurrent layer 'gru'"):
        fr.load(tmp_path / "model", "gru")
    for name, layer in (("encoder.gru", gru), ("head.lstm", lstm)):
        again = fr.load(tmp_path / "model", name)
        expected = {key: array.astype(dtype).astype("f4") for key, array in layer.weights.items()}
        for key, array in expected.items():
            np.testing.assert_array_equal(again.weights[key], array)
        (found,) = [each for each in contents.layers if each.name == name]
        assert ([] if dtype == "float32" else [dtype]) == [note.split()[0] for note in found.notes]


def test_bfloat16_is_widened(tmp_path: Path) -> None:
    layer = fr.RNN(3, 4, seed=1)
    header: dict[str, Any] = {}
    data = b""
    for name, array in layer.weights.items():
        piece = (array.view(np.uint32) >> 16).astype("<u2").tobytes()
        header[name] = {
            "dtype": "BF16",
            "shape": array.shape,
            "data_offsets": [len(data), len(data) + len(piece)],
        }
        data += piece
    (tmp_path / "model").write_bytes(file_of(header, data))
    again = fr.load(tmp_path / "model", activation="relu")
    assert again.architecture.activation == "relu"
    for name, array in layer.weights.items():
        np.testing.assert_array_equal(
            again.weights[name], (array.view(np.uint32) & 0xFFFF0000).view("f4")
        )


def test_a_float64_weight_beyond_float32_is_refused(tmp_path: Path) -> None:
    arrays = {name: array.astype("f8") for name, array in fr.RNN(3, 4).weights.items()}
    arrays["weight_hh_l0"][1, 2] = 1e300
    safetensors.numpy.save_file(arrays, tmp_path / "model")
    with pytest.raises(
        fr.ModelFormatError, match="'weight_hh_l0' has numbers that float32 cannot hold"
    ):
        fr.load(tmp_path / "model")


def test_ten_gigabytes_are_inspected_by_their_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 2_500_000
    entry = {"dtype": "F32", "shape": [rows, 1000], "data_offsets": [0, rows * 4000]}
    head = file_of({"embedding.weight": entry})
    with (tmp_path / "large").open("wb") as file:
        file.write(head)
        file.truncate(len(head) + rows * 4000)  # a hole: nothing is on the disk
    monkeypatch.setattr(np, "memmap", lambda *_: pytest.fail("an array was read"))
    (part,) = fr.inspect(tmp_path / "large").parts
    assert part.tensors[0].elements == rows * 1000


# ---- missing, left over ------------------------------------------------------------------------------


@given(layers=st.integers(1, 3), bidirectional=st.booleans(), number=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_a_missing_or_an_additional_array_is_named(
    layers: int, bidirectional: bool, number: int
) -> None:
    from tempfile import TemporaryDirectory

    weights = dict(fr.GRU(3, 4, layers, bidirectional=bidirectional, bias="double").weights)
    name = [*weights][number % len(weights)]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        less = {f"a.{key}": array for key, array in weights.items() if key != name}
        safetensors.numpy.save_file(less, path)
        with pytest.raises(fr.ModelFormatError, match="layer 'a'.*missing"):
            fr.inspect(path)
        more = {f"a.{key}": array for key, array in weights.items()}
        more[f"a.weight_hr_l{layers - 1}"] = np.zeros((2, 4), "f4")
        safetensors.numpy.save_file(more, path)
        with pytest.raises(fr.ModelFormatError, match="layer 'a'"):
            fr.inspect(path)
        wrong = {f"a.{key}": array for key, array in weights.items()}
        wrong[f"a.{name}"] = np.zeros((len(weights[name]) + 1, *weights[name].shape[1:]), "f4")
        safetensors.numpy.save_file(wrong, path)
        with pytest.raises(fr.ModelFormatError, match="layer 'a'"):
            fr.inspect(path)


# ---- hostile -----------------------------------------------------------------------------------------

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}

HOSTILE: dict[str, tuple[bytes, str]] = {
    "a header longer than the file": (struct.pack("<Q", 2**39) + b"{}", "a header of"),
    "no object": (file_of(b'{"a": 1'), "not JSON"),
    "twice": (
        file_of(b'{"a":%s,"a":%s}' % ((json.dumps(ENTRY).encode(),) * 2), bytes(8)),
        "'a' twice",
    ),
    "twice within": (
        file_of(b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
        "twice",
    ),
    "overlap": (file_of({"a": ENTRY, "b": ENTRY}, bytes(8)), "overlaps"),
    "gap": (file_of({"a": ENTRY | {"data_offsets": [4, 12]}}, bytes(12)), "gap"),
    "behind": (file_of({"a": ENTRY}, bytes(12)), "belong to none"),
    "beyond": (file_of({"a": ENTRY}, bytes(4)), "must lie in"),
    "backwards": (file_of({"a": ENTRY | {"data_offsets": [8, 0]}}, bytes(8)), "must lie in"),
    "too small": (file_of({"a": ENTRY | {"shape": [3]}}, bytes(8)), "needs 12 bytes"),
    "overflow": (file_of({"a": ENTRY | {"shape": [2**62, 2**62]}}, bytes(8)), "needs"),
    "negative": (file_of({"a": ENTRY | {"shape": [-2]}}, bytes(8)), "shape"),
    "no int": (file_of({"a": ENTRY | {"shape": [2.0]}}, bytes(8)), "shape"),
    "a bool": (file_of({"a": ENTRY | {"shape": [True, 2]}}, bytes(8)), "shape"),
    "many axes": (file_of({"a": ENTRY | {"shape": [1] * 100 + [2]}}, bytes(8)), "shape"),
    "dtype": (file_of({"a": ENTRY | {"dtype": "F31"}}, bytes(8)), "dtype"),
    "dtype of a list": (file_of({"a": ENTRY | {"dtype": ["F32"]}}, bytes(8)), "dtype"),
    "more keys": (file_of({"a": ENTRY | {"other": 1}}, bytes(8)), "and nothing else"),
    "a list": (file_of({"a": [1, 2]}, bytes(8)), "must have dtype"),
    "metadata": (file_of({"__metadata__": {"a": 1}, "b": ENTRY}, bytes(8)), "__metadata__"),
    "metadata of a list": (file_of({"__metadata__": [], "b": ENTRY}, bytes(8)), "__metadata__"),
    "deep": (file_of(b'{"a":' * 100_000), "not JSON"),
    "NaN": (file_of(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', bytes(8)), "NaN"),
    "no UTF-8": (file_of(b'{"\xff":1}'), "not JSON"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    content, message = HOSTILE[name]
    path = tmp_path / "hostile"
    path.write_bytes(content)
    with pytest.raises(fr.ModelFormatError, match=message) as caught:
        fr.inspect(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


OWN: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no cell": (lambda said: said.pop("cell"), "must have cell"),
    "an unknown cell": (lambda said: said.update(cell="mgu"), "cell must be one of"),
    "another cell": (lambda said: said.update(cell="gru"), "weight_ih_l0"),
    "an unknown option": (lambda said: said["options"].update(backend="c"), "'backend'"),
    "an option that cannot be": (lambda said: said["options"].update(clip=-1), "clip"),
    "an option of another type": (
        lambda said: said["options"].update(activation=[1]),
        "activation",
    ),
    "options of a list": (lambda said: said.update(options=[]), "must have cell, options"),
    "batch_first": (lambda said: said.update(batch_first="yes"), "batch_first"),
    "more": (lambda said: said.update(code="import os"), "must have cell"),
}


@pytest.mark.parametrize("name", OWN)
def test_metadata_of_a_stranger_is_checked(name: str, saved: tuple[Path, fr.LSTM]) -> None:
    path, _ = saved
    change, message = OWN[name]
    header, data = parts(path.read_bytes())
    said = json.loads(header["__metadata__"][safetensors_file.KEY])
    change(said)
    header["__metadata__"][safetensors_file.KEY] = json.dumps(said)
    path.write_bytes(file_of(header, data))
    with pytest.raises(fr.ModelFormatError, match=message):
        fr.inspect(path)


def test_an_array_too_many_in_a_file_of_ours_is_refused(saved: tuple[Path, fr.LSTM]) -> None:
    path, _ = saved
    header, data = parts(path.read_bytes())
    header["other"] = {"dtype": "F32", "shape": [2], "data_offsets": [len(data), len(data) + 8]}
    path.write_bytes(file_of(header, data + bytes(8)))
    with pytest.raises(fr.ModelFormatError, match="left over: 'other'"):
        fr.inspect(path)


def test_a_file_cut_anywhere_is_refused(saved: tuple[Path, fr.LSTM]) -> None:
    path, _ = saved
    content = path.read_bytes()
    for length in (*range(0, 400, 7), *range(400, len(content), 97), len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(fr.ModelFormatError):
            fr.load(path)


def test_a_file_cut_after_it_was_inspected_is_refused(saved: tuple[Path, fr.LSTM]) -> None:
    path, _ = saved
    contents = fr.inspect(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(fr.ModelFormatError, match="ends behind the end"):
        contents.find().layer()


@pytest.mark.filterwarnings("ignore")
def test_flipped_bytes_give_an_error_or_a_layer(saved: tuple[Path, fr.LSTM]) -> None:
    path, _ = saved
    load_with_flipped_bytes(path, 300, within=420)  # the header
