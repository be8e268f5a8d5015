"""NumPy archives, and what any zip archive may try."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damaged import load_with_flipped_bytes

import fusedrnn as fr
from fusedrnn.formats.zipped import opened


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def header(text: str, version: int = 1) -> bytes:
    body = text.encode("latin1")
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(body)) + body


def archive(path: Path, members: dict[str, bytes], **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f2", ">f8", "F"])
def test_a_layer_is_read(save: Any, kind: str, tmp_path: Path) -> None:
    layer = fr.LSTM(3, 4, 2, seed=1)
    arrays = {
        f"rnn.{name}": np.asfortranarray(array) if kind == "F" else array.astype(kind)
        for name, array in layer.weights.items()
    }
    save(tmp_path / "model.npz", **arrays)
    again = fr.load(tmp_path / "model.npz", "rnn")
    for name, array in layer.weights.items():
        np.testing.assert_array_equal(again.weights[name], arrays[f"rnn.{name}"].astype("f4"))
        assert array.shape == again.weights[name].shape
    (found,) = fr.inspect(tmp_path / "model.npz").layers
    assert [note.split()[0] for note in found.notes] == {
        "<f2": ["float16"],
        ">f8": ["float64"],
    }.get(kind, [])


GOOD = npy(np.zeros(4, "f4"))
HOSTILE = {
    "objects": (npy(np.array([{}], object)), "Python objects"),
    "objects in fields": (npy(np.zeros(1, [("a", object)])), "Python objects"),
    "texts": (npy(np.array(["a"])), "no array of numbers"),
    "fields": (npy(np.zeros(1, "f4,f4")), "no array of numbers"),
    "complex": (npy(np.zeros(1, "c8")), "no array of numbers"),
    "beyond memory": (
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,)}\n") + bytes(8),
        "needs",
    ),
    "an overflow": (
        header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**62}, {2**62})}}\n"),
        "needs",
    ),
    "negative": (
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (-4,)}\n"),
        "damaged|no array",
    ),
    "a call": (header("__import__('os').system('true')\n"), "damaged"),
    "deep": (header("(" * 5000 + ")" * 5000), "damaged"),
    "another version": (header("{}", version=9), "damaged"),
    "cut": (GOOD[:-1], "needs"),
    "cut in the header": (GOOD[:30], "damaged"),
    "more": (GOOD + b"x", "needs"),
    "empty": (b"", "damaged"),
    "no array": (b"hello", "damaged"),
}


@pytest.mark.filterwarnings("ignore:Reading `.npy`")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_array_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    content, message = HOSTILE[name]
    for number, compression in enumerate((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)):
        path = archive(
            tmp_path / f"{number}.npz", {"weight_ih_l0.npy": content}, compression=compression
        )
        with pytest.raises(fr.ModelFormatError, match=message) as caught:
            fr.inspect(path)
        assert "\n" not in str(caught.value)


# ---- any archive -------------------------------------------------------------------------------------


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    content = header("{'descr': '<f4', 'fortran_order': False, 'shape': (25000000,)}\n") + bytes(
        100_000_000
    )
    path = archive(tmp_path / "bomb.npz", {"a.npy": content}, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 200_000
    with pytest.raises(fr.ModelFormatError, match="would grow"):
        fr.inspect(path)


@pytest.mark.parametrize("name", ["/a.npy", "../a.npy", "x/../../a.npy", "..\\a.npy"])
def test_names_that_lead_out_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(fr.ModelFormatError, match="leads out"):
        fr.inspect(archive(tmp_path / "out.npz", {name: GOOD}))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "twice.npz", "w") as file:
        file.writestr("a.npy", GOOD)
        file.writestr("a.npy", GOOD)
    with pytest.raises(fr.ModelFormatError, match=r"'a\.npy' twice"):
        fr.inspect(tmp_path / "twice.npz")


def test_members_on_top_of_each_other_and_encrypted_ones_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", {"a.npy": GOOD, "b.npy": GOOD})
    content = path.read_bytes()
    at = content.index(b"PK\x01\x02")
    sizes = struct.pack("<II", len(content), len(content))
    path.write_bytes(content[: at + 20] + sizes + content[at + 28 :])
    with pytest.raises(fr.ModelFormatError, match="on top of each other"):
        fr.inspect(path)
    path.write_bytes(content[: at + 8] + b"\x01" + content[at + 9 :])
    with pytest.raises(fr.ModelFormatError, match="encrypted"):
        fr.inspect(path)
    start = content.index(b"PK\x03\x04", 4)  # the second member's own header
    path.write_bytes(content[:start] + b"XXXX" + content[start + 4 :])
    with pytest.raises(fr.ModelFormatError, match="damaged"):
        fr.inspect(path)


def test_a_member_is_read_up_to_a_limit_and_checked(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"a": b"0123456789"}, compression=zipfile.ZIP_DEFLATED)
    with opened(path) as file:
        assert file.read("a", 10) == b"0123456789"
        assert file.where("a") is None
        with pytest.raises(fr.ModelFormatError, match="at most 9"):
            file.read("a", 9)
    path = archive(tmp_path / "b.zip", {"a": b"0123456789"})
    with opened(path) as file:
        start = file.where("a")
        assert start is not None and path.read_bytes()[start : start + 10] == b"0123456789"
    changed = path.read_bytes().replace(b"0123456789", b"0123456780")
    path.write_bytes(changed)
    with opened(path) as file, pytest.raises(fr.ModelFormatError, match="damaged"):
        file.read("a", 10)


def test_other_files_are_no_model(tmp_path: Path) -> None:
    for name, content in {
        "empty": b"",
        "text": b"hello\n",
        "toml": b"[[layers]]\n",
        "half a zip": b"PK\x03\x04" + bytes(100),
        "zip of texts": archive(tmp_path / "texts.zip", {"a.txt": b"a"}).read_bytes(),
        "zeros": bytes(5000),
    }.items():
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(fr.ModelFormatError, match=r"not a model file|damaged zip") as caught:
            fr.inspect(tmp_path / "file")
        assert str(caught.value).startswith(str(tmp_path / "file")), name
    with pytest.raises(OSError, match="nowhere"):
        fr.inspect(tmp_path / "nowhere")
    with pytest.raises(IsADirectoryError):
        fr.inspect(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_flipped_bytes_give_an_error_or_a_layer(tmp_path: Path) -> None:
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "flipped.npz", **fr.RNN(2, 3, seed=1).weights)
        load_with_flipped_bytes(tmp_path / "flipped.npz", 300)
