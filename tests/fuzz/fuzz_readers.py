"""Fuzz one reader of model files for a while: ``python tests/fuzz/fuzz_readers.py FORMAT SECONDS``; ``nox -s fuzz`` runs all.

Atheris changes small valid files, guided by the branches that the reader takes. The first byte of an input says what the
rest is: a whole file, or the part of a file that a reader parses by itself (a header, a pickle, an array), in a file that is
otherwise valid. Whatever the input is, the reader answers with a layer or with a ValueError of one line (as
``ModelFormatError`` is) or an OSError; anything else ends the run, and the input is kept beside the working directory.
"""

from __future__ import annotations

import io
import pickle
import resource
import struct
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import FunctionType

import atheris
import numpy as np

import fusedrnn as fr
import fusedrnn.formats.keras_file
import fusedrnn.formats.npz_file
import fusedrnn.formats.onnx_file
import fusedrnn.formats.safetensors_file
import fusedrnn.formats.torch_file

#: Beyond what the process has when the fuzzing begins.
MAX_MEMORY = 2**31


def instrument() -> None:
    """Let Atheris see the branches of the readers. Functions, not imports: an editable install has an importer of its own."""
    for name, module in [*sys.modules.items()]:
        if not name.startswith(("fusedrnn.formats", "fusedrnn.shapes", "fusedrnn.architecture")):
            continue
        for value in [*vars(module).values()]:
            members = [*vars(value).values()] if isinstance(value, type) else [value]
            for each in members:
                if isinstance(each, FunctionType) and each.__module__ == name:
                    atheris.instrument_func(each)


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def in_header(part: bytes) -> bytes:
    return struct.pack("<Q", len(part)) + part + bytes(64)


def in_checkpoint(part: bytes) -> bytes:
    return zipped({"m/data.pkl": part, "m/data/0": bytes(256), "m/data/1": bytes(256)})


def in_npz(part: bytes) -> bytes:
    return zipped({"weight_ih_l0.npy": part})


def in_keras(part: bytes) -> bytes:
    return zipped(
        {
            "config.json": part,
            "metadata.json": b'{"keras_version": "3.15.1"}',
            "model.weights.h5": hdf5(),
        }
    )


def hdf5() -> bytes:
    import h5py

    file = io.BytesIO()
    with h5py.File(file, "w") as h5:
        group = h5.create_group("layers/lstm/cell/vars")
        for number, shape in enumerate([(2, 12), (3, 12), (12,)]):
            group[str(number)] = np.zeros(shape, "f4")
    return file.getvalue()


def saved(write: Callable[[Path], object]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        write(path)
        return path.read_bytes()


LAYER = fr.GRU(2, 3, seed=1)
STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK@tQ"
CONFIG = (
    b'{"class_name": "Sequential", "config": {"name": "s", "layers": [{"class_name": "LSTM", "config": {"name": "lstm", '
    b'"units": 3, "batch_input_shape": [null, null, 2]}}]}}'
)


def onnx_seed() -> bytes:
    content: bytes = fr.to_onnx(LAYER).SerializeToString()
    return content


def npz_seed() -> bytes:
    file = io.BytesIO()
    np.savez(file, **LAYER.weights)
    return file.getvalue()


def array_seed() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(4, "f4"))
    return file.getvalue()


#: For each format: valid files, the part that is parsed by itself, and the file around it.
FORMATS: dict[str, tuple[Callable[[], bytes], Callable[[], bytes], Callable[[bytes], bytes]]] = {
    "safetensors": (
        lambda: saved(lambda path: fr.save(LAYER, path)),
        lambda: b'{"a":{"dtype":"F32","shape":[4,4],"data_offsets":[0,64]}}',
        in_header,
    ),
    "torch": (
        lambda: in_checkpoint(pickle.dumps({"a": 1}, 2)),
        lambda: (
            b"\x80\x02}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n("
            + STORAGE
            + b"K\0K@\x85K\x01\x85\x89}tRs."
        ),
        in_checkpoint,
    ),
    "npz": (npz_seed, array_seed, in_npz),
    "keras": (hdf5, lambda: CONFIG, in_keras),
    "onnx": (onnx_seed, onnx_seed, lambda part: part),
}


def main() -> None:
    """Fuzz the reader that the command line names."""
    name, seconds = sys.argv[1], int(sys.argv[2])
    whole, part, around = FORMATS[name]
    warnings.simplefilter("ignore")
    instrument()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MAX_MEMORY,) * 2)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    corpus, path = folder / "corpus", folder / "file"
    corpus.mkdir()
    (corpus / "whole").write_bytes(b"\0" + whole())
    (corpus / "part").write_bytes(b"\1" + part())

    def one(data: bytes) -> None:
        path.write_bytes(data[1:] if data[:1] == b"\0" else around(data[1:]))
        try:
            for layer in fr.inspect(path).layers:
                layer.layer(backend="numpy")
        except (ValueError, OSError) as error:
            if "\n" in str(error):
                raise AssertionError("a message of several lines") from error

    atheris.Setup(
        [sys.argv[0], str(corpus), f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=0"],
        one,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
