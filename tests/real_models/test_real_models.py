"""Models that people trained and published, end to end: against their own framework, or equations written out here.

Nothing of these models is in this repository: ``nox -s real_models`` installs the packages that have them. Elsewhere the
tests skip. The packages are not imported: some of them download at import.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusedrnn as fr
from fusedrnn.demo import held_out_text
from fusedrnn.formats import layouts


def file_of(package: str, name: str) -> Path:
    """A file of an installed package."""
    try:
        found = Path(str(importlib.metadata.distribution(package).locate_file(name)))
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed: nox -s real_models")
    assert found.is_file()
    return found


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


# ---- g2p_en: from letters to sounds, two GRUs ----------------------------------------------------

LETTERS = ["<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
#: The ids of what begins and ends a word's sounds.
BEGIN, END = 2, 3
SOUNDS = [
    "<pad>",
    "<unk>",
    "<s>",
    "</s>",
    "AA0",
    "AA1",
    "AA2",
    "AE0",
    "AE1",
    "AE2",
    "AH0",
    "AH1",
    "AH2",
    "AO0",
    "AO1",
    "AO2",
    "AW0",
    "AW1",
    "AW2",
    "AY0",
    "AY1",
    "AY2",
    "B",
    "CH",
    "D",
    "DH",
    "EH0",
    "EH1",
    "EH2",
    "ER0",
    "ER1",
    "ER2",
    "EY0",
    "EY1",
    "EY2",
    "F",
    "G",
    "HH",
    "IH0",
    "IH1",
    "IH2",
    "IY0",
    "IY1",
    "IY2",
    "JH",
    "K",
    "L",
    "M",
    "N",
    "NG",
    "OW0",
    "OW1",
    "OW2",
    "OY0",
    "OY1",
    "OY2",
    "P",
    "R",
    "S",
    "SH",
    "T",
    "TH",
    "UH0",
    "UH1",
    "UH2",
    "UW",
    "UW0",
    "UW1",
    "UW2",
    "V",
    "W",
    "Y",
    "Z",
    "ZH",
]


@pytest.fixture(scope="module")
def g2p() -> dict[str, np.ndarray]:
    with np.load(file_of("g2p_en", "g2p_en/checkpoint20.npz")) as arrays:
        return {name: arrays[name] for name in arrays.files}


def words(count: int) -> list[str]:
    """Words that no dictionary has."""
    draw = np.random.default_rng(3)
    starts, vowels, ends = (
        ["b", "st", "tr", "ph", "l", "sh", "qu", "k"],
        "aeiou",
        ["n", "ck", "", "rt"],
    )
    return [
        "".join(
            str(draw.choice(starts)) + str(draw.choice(list(vowels))) + str(draw.choice(ends))
            for _ in range(draw.integers(1, 5))
        )
        for _ in range(count)
    ]


def spelled(word: str) -> list[int]:
    return [LETTERS.index(letter) for letter in word] + [LETTERS.index("</s>")]


def by_equations(arrays: dict[str, np.ndarray], word: str) -> list[int]:
    """The ids of a word's sounds, by the equations of a GRU written out."""

    def cell(x: Any, h: Any, of: str) -> Any:
        of_x = arrays[f"{of}_w_ih"] @ x + arrays[f"{of}_b_ih"]
        of_h = arrays[f"{of}_w_hh"] @ h + arrays[f"{of}_b_hh"]
        (xr, xz, xn), (hr, hz, hn) = np.split(of_x, 3), np.split(of_h, 3)
        z = sigmoid(xz + hz)
        return (1 - z) * np.tanh(xn + sigmoid(xr + hr) * hn) + z * h

    h = np.zeros(arrays["enc_w_hh"].shape[1])
    for letter in spelled(word):
        h = cell(arrays["enc_emb"][letter], h, "enc")
    sounds, last = [], BEGIN
    for _ in range(20):
        h = cell(arrays["dec_emb"][last], h, "dec")
        last = int((arrays["fc_w"] @ h + arrays["fc_b"]).argmax())
        if last == END:
            break
        sounds.append(last)
    return sounds


def gru(arrays: dict[str, np.ndarray], of: str, order: str = "rzn") -> fr.GRU:
    """A layer from the arrays, whose gate blocks are taken to be in this order."""
    names = {"weight_ih": "w_ih", "weight_hh": "w_hh", "bias_ih": "b_ih", "bias_hh": "b_hh"}
    return fr.GRU.from_weights(
        {
            f"{ours}_l0": layouts.reordered(arrays[f"{of}_{theirs}"], order, "rzn")
            for ours, theirs in names.items()
        }
    )


def by_layers(
    arrays: dict[str, np.ndarray], encoder: fr.GRU, decoder: fr.GRU, word: str
) -> list[int]:
    """The same by a layer for the letters and a stream for the sounds."""
    _, state = encoder(arrays["enc_emb"][spelled(word)][:, None])
    stream = decoder.stream()
    stream.reset(state)
    sounds, last = [], BEGIN
    for _ in range(20):
        y = stream.step(arrays["dec_emb"][last][None])
        last = int((arrays["fc_w"] @ y[0] + arrays["fc_b"]).argmax())
        if last == END:
            break
        sounds.append(last)
    return sounds


def test_g2p_en(g2p: dict[str, np.ndarray]) -> None:
    encoder, decoder = gru(g2p, "enc"), gru(g2p, "dec")
    known = by_layers(g2p, encoder, decoder, "activationist")
    assert " ".join(SOUNDS[each] for each in known) == "AE2 K T IH0 V EY1 SH AH0 N IH0 S T"
    tried = words(500)
    same = sum(by_layers(g2p, encoder, decoder, word) == by_equations(g2p, word) for word in tried)
    assert same == 500
    wrong = gru(g2p, "enc", "zrn"), gru(g2p, "dec", "zrn")
    assert not any(by_layers(g2p, *wrong, word) == by_equations(g2p, word) for word in tried[:100])


def words_of_a_book() -> list[str]:
    """The first 500 different words of Acts."""
    return list(dict.fromkeys(re.findall("[a-z]+", held_out_text().lower())))[:500]


@pytest.mark.parametrize(
    ("weight_dtype", "least", "least_invented"),
    [("float16", 500, 498), ("bfloat16", 498, 495), ("int8", 496, 475), ("w8a7", 493, 465)],
)
def test_g2p_en_with_narrow_weights(
    g2p: dict[str, np.ndarray],
    weight_dtype: str,
    least: int,
    least_invented: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """How many of 500 words keep all their sounds."""
    encoder, decoder = (gru(g2p, of).narrow(weight_dtype) for of in ("enc", "dec"))
    found, invented = (
        sum(by_layers(g2p, encoder, decoder, word) == by_equations(g2p, word) for word in tried)
        for tried in (words_of_a_book(), words(500))
    )
    with capsys.disabled():
        print(
            f"\ng2p_en, {weight_dtype}: {found} of 500 words of a book have the sounds of float64, and {invented} of 500 "
            "invented ones"
        )
    assert found >= least and invented >= least_invented


def test_g2p_en_is_inspected(g2p: dict[str, np.ndarray]) -> None:
    """The package has names of its own: the arrays are there, and no layer is guessed."""
    contents = fr.inspect(file_of("g2p_en", "g2p_en/checkpoint20.npz"))
    assert contents.layers == ()
    names = {tensor.name for part in contents.parts for tensor in part.tensors}
    assert names == set(g2p)


# ---- thai2rom: Thai words in Latin letters, a bidirectional LSTM, and an LSTM with attention --------


@pytest.fixture(scope="module")
def thai() -> dict[str, Any]:
    folder = file_of("pythainlp", "pythainlp/corpus/thai2rom_loader_onnx.json").parent
    found: dict[str, Any] = json.loads((folder / "thai2rom_loader_onnx.json").read_text())
    listed = (folder / "words_th.txt").read_text(encoding="utf-8").split()
    return found | {
        "encoder": folder / "thai2rom_encoder.onnx",
        "decoder": folder / "thai2rom_decoder.onnx",
        "words": listed[:: len(listed) // 100][:100],
    }


def romanize(thai: dict[str, Any], encoder: Any, decoder: Any, word: str) -> tuple[str, list[Any]]:
    """What pythainlp does with a word, in short: its letters, and the numbers behind each of them."""
    ids = [thai["char_to_ix"].get(letter, thai["char_to_ix"]["<UNK>"]) for letter in word]
    ids.append(thai["char_to_ix"]["<end>"])
    source = np.array([ids], np.int64)
    lengths = np.array([len(ids)], np.int32)
    outputs, hidden, _ = encoder.run(None, {"input_tensor": source, "input_lengths": lengths})
    state = np.concatenate([hidden[0], hidden[1]], axis=1)[None]
    last, letters, seen = thai["target_char_to_ix"]["<start>"], [], []
    for _ in range(30):
        scores, state = decoder.run(
            None,
            {
                "decoder_input": np.array([[last]], np.int32),
                "decoder_hidden_1": state,
                "encoder_outputs": outputs,
                "mask": (source[:, : outputs.shape[1]] != 0).astype(np.float32),
            },
        )[:2]
        seen.append(scores)
        last = int(scores.argmax())
        if last == thai["target_char_to_ix"]["<end>"]:
            break
        letters.append(thai["ix_to_target_char"][str(last)])
    return "".join(letters), seen


def test_thai2rom(thai: dict[str, Any]) -> None:
    """Whole models: what onnxruntime computes, with the recurrent nodes run here."""
    onnxruntime = pytest.importorskip("onnxruntime")
    sessions = pytest.importorskip("fusedrnn.onnx")
    theirs = [onnxruntime.InferenceSession(thai[each]) for each in ("encoder", "decoder")]
    ours = [sessions.session(thai[each]) for each in ("encoder", "decoder")]
    assert [romanize(thai, *ours, word)[0] for word in ("สวัสดี", "แมว")] == ["sawatdi", "maeo"]
    for word in thai["words"]:
        expected, scores = romanize(thai, *theirs, word)
        found, own = romanize(thai, *ours, word)
        assert found == expected
        for one, other in zip(own, scores, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_thai2rom_layers(thai: dict[str, Any], tmp_path: Path) -> None:
    """The encoder's layer alone, over what its model gives it."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    (found,) = fr.inspect(thai["encoder"]).layers
    sizes = found.architecture
    assert (sizes.input_size, sizes.hidden_size, sizes.bidirectional) == (128, 128, True)
    (cell,) = fr.inspect(thai["decoder"]).layers
    assert (cell.architecture.input_size, cell.architecture.hidden_size) == (384, 256)

    model = onnx.load(thai["encoder"])
    (node,) = (each for each in model.graph.node if each.op_type == "LSTM")
    for name in (node.input[0], node.output[0]):
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    ids = np.random.default_rng(0).integers(3, 60, (1, 12))
    feeds = {"input_tensor": ids, "input_lengths": np.array([12], np.int32)}
    x, y = session.run([node.input[0], node.output[0]], feeds)
    options = {"batch_first": False}
    ours, _ = found.layer(**options)(x)
    expected = y.transpose(0, 2, 1, 3).reshape(ours.shape)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
    swapped = {
        name: layouts.reordered(array, "figo", "ifgo")
        for name, array in found.layer().weights.items()
    }
    wrong, _ = fr.LSTM.from_weights(swapped)(x)
    assert np.abs(wrong - expected).max() > 1e-2


# ---- textgenrnn: the next letter, two LSTMs that Keras 2.1.5 wrote as CuDNNLSTM -------------------

SENTENCE = "What is the best way to learn a new language?"


@pytest.fixture(scope="module")
def textgenrnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the package, unpacked from its source archive."""
    archive = os.environ.get("FUSEDRNN_TEXTGENRNN")
    if not archive:
        pytest.skip("textgenrnn's source archive is not here: nox -s real_models")
    folder = tmp_path_factory.mktemp("textgenrnn")
    with tarfile.open(archive) as file:
        for member in file.getmembers():
            name = Path(member.name).name
            if name in ("textgenrnn_weights.hdf5", "textgenrnn_vocab.json"):
                content = file.extractfile(member)
                assert content is not None
                (folder / name).write_bytes(content.read())
    return folder


def plain_lstm(file: Any, name: str, x: np.ndarray) -> np.ndarray:
    """The equations of a CuDNNLSTM from its arrays in the file: each gate's numbers are those of (H, X), row by row."""
    kernel, recurrent, bias = (
        file[f"{name}/{name}/{each}:0"][()].astype(np.float64)
        for each in ("kernel", "recurrent_kernel", "bias")
    )
    W, R = (
        [block.reshape(block.shape[::-1]) for block in np.split(each, 4, axis=1)]
        for each in (kernel, recurrent)
    )
    b = np.split(bias.reshape(2, -1).sum(0), 4)
    h = c = np.zeros(R[0].shape[0])
    ys = []
    for step in x:
        i, f, g, o = (W[gate] @ step + R[gate] @ h + b[gate] for gate in range(4))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        ys.append(h)
    return np.array(ys)


def next_letter(file: Any, layers: list[Any], ids: list[int]) -> np.ndarray:
    """The logarithms of the probabilities of the next letter, textgenrnn's model around two layers."""
    embedded = file["embedding/embedding/embeddings:0"][()][ids]
    rows, x = [embedded], embedded
    for layer in layers:
        x = layer(x)
        rows.append(x)
    joined = np.concatenate(rows, axis=1)
    attention = (joined @ file["attention/attention/attention_W:0"][()])[:, 0]
    share = np.exp(attention - attention.max())
    mean = share @ joined / share.sum()
    scores = mean @ file["output/output/kernel:0"][()] + file["output/output/bias:0"][()]
    scores = scores - scores.max()
    return np.asarray(scores - np.log(np.exp(scores).sum()))


def surprise(file: Any, layers: list[Any], letters: dict[str, int]) -> float:
    """The mean of -log p of a sentence's letters, in nats."""
    total = []
    for end in range(5, len(SENTENCE)):
        ids = [letters[letter] for letter in SENTENCE[:end]][-40:]
        ids = [0] * (40 - len(ids)) + ids
        total.append(-next_letter(file, layers, ids)[letters[SENTENCE[end]]])
    return float(np.mean(total))


def test_textgenrnn(textgenrnn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    h5py = pytest.importorskip("h5py")
    path = textgenrnn / "textgenrnn_weights.hdf5"
    letters = json.loads((textgenrnn / "textgenrnn_vocab.json").read_text())
    found = {layer.name: layer for layer in fr.inspect(path).layers}
    assert list(found) == ["rnn_1", "rnn_2"]
    assert all(layer.origin == "Keras CuDNNLSTM" for layer in found.values())

    def loaded(name: str) -> Any:
        layer = fr.load(path, name, batch_first=False)
        return lambda x: layer(np.asarray(x, np.float32))[0]

    with h5py.File(path) as file:
        ids = [letters[letter] for letter in SENTENCE[:40]]
        own = next_letter(file, [loaded("rnn_1"), loaded("rnn_2")], ids)
        plain = [lambda x, name=name: plain_lstm(file, name, x) for name in found]
        np.testing.assert_allclose(own, next_letter(file, plain, ids), atol=1e-4)
        # It writes English; with any other layout it does not.
        assert surprise(file, [loaded("rnn_1"), loaded("rnn_2")], letters) < 1
        for wrong in ({"gates": "figo"}, {"flat": False}):
            rows = tuple(
                replace(row, **wrong)
                if (row.framework, row.cell) == ("keras_cudnn", "lstm")
                else row
                for row in layouts.LAYOUTS
            )
            monkeypatch.setattr("fusedrnn.formats.keras_cells.LAYOUTS", rows)
            assert surprise(file, [loaded("rnn_1"), loaded("rnn_2")], letters) > 3
