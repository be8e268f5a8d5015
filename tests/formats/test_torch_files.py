"""PyTorch's checkpoints and modules: the same outputs as PyTorch's own, and nothing in a file is ever executed."""

from __future__ import annotations

import io
import itertools
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from conftest import Draw, oracle
from damaged import load_with_flipped_bytes
from drawn_modules import module_of, options_of_modules
from hypothesis import given, settings
from hypothesis import strategies as st

import fusedrnn as fr

torch = oracle("torch")

pytestmark = pytest.mark.filterwarnings(
    "ignore:LSTM with projections",
    "ignore:dropout option adds dropout",
    "ignore:TypedStorage is deprecated",
)

TOLERANCE = 5e-6
EXECUTED = "FUSEDRNN_TEST_EXECUTED"


# ---- what PyTorch writes is read -------------------------------------------------------------------

MODULES = options_of_modules(dtype=st.sampled_from(["float32", "float64", "float16", "bfloat16"]))


def outputs(module: Any, x: np.ndarray) -> list[np.ndarray]:
    """What PyTorch computes, in float32, with the weights as they are in the file."""
    with torch.no_grad():
        y, state = module.float()(torch.from_numpy(x))
    return [each.numpy() for each in (y, *(state if isinstance(state, tuple) else (state,)))]


def check(layer: fr.Layer[Any], module: Any, x: np.ndarray) -> None:
    y, state = layer(x)
    for mine, its in zip((y, *state), outputs(module, x), strict=True):
        np.testing.assert_allclose(mine, its, rtol=TOLERANCE, atol=TOLERANCE)


@given(options=MODULES, seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_checkpoints_and_modules_give_what_pytorch_gives(
    options: dict[str, Any], seed: int
) -> None:
    torch.manual_seed(seed)
    module = module_of(options)
    x = np.random.default_rng(seed).standard_normal((4, 3, options["input_size"])).astype("f4")
    memory = fr.from_torch(module)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        state = OrderedDict(
            (f"module.rnn.{name}", each) for name, each in module.state_dict().items()
        )
        torch.save({"model": state, "epoch": 3, "lr": [0.1, None], "name": "a"}, path)
        activation = (
            {"activation": "relu"} if options["kind"] == "RNN" and options["variant"] else {}
        )
        file = fr.load(path, "model.module.rnn", batch_first=options["batch_first"], **activation)
    assert file.architecture == memory.architecture
    check(memory, module, x)
    check(file, module, x)


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
def test_cells(kind: str, tmp_path: Path, draw: Draw) -> None:
    cell = getattr(torch.nn, kind)(5, 6)
    torch.save(
        {f"cells.0.{name}": each for name, each in cell.state_dict().items()}, tmp_path / "cell.pt"
    )
    x = draw(1, 3, 5)
    with torch.no_grad():
        found = cell(torch.from_numpy(x[0]))
    expected = (found[0] if kind == "LSTMCell" else found).numpy()
    for layer in (fr.load(tmp_path / "cell.pt", "cells.0"), fr.from_torch(cell)):
        np.testing.assert_allclose(layer(x)[0][0], expected, atol=TOLERANCE)
    (layer,) = fr.inspect(tmp_path / "cell.pt").layers
    assert layer.origin == f"PyTorch {kind}"


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_negative_control_another_gate_order_gives_another_output(kind: str, draw: Draw) -> None:
    module = getattr(torch.nn, kind)(5, 6)
    x = draw(4, 3, 5)
    (expected, *_) = outputs(module, x)
    gates = {"LSTM": "ifgo", "GRU": "rzn"}[kind]
    arrays = {name: each.numpy() for name, each in module.state_dict().items()}
    cell = getattr(fr, kind)
    for order in map("".join, itertools.permutations(gates)):
        y, _ = cell.from_weights(arrays, gate_order=order)(x)
        assert (np.abs(y - expected).max() < TOLERANCE) == (order == gates)


def test_strided_and_shared_tensors(tmp_path: Path, draw: Draw) -> None:
    module = torch.nn.RNN(5, 6)
    state = dict(module.state_dict())
    state["weight_ih_l0"] = state["weight_ih_l0"].T.contiguous().T
    both = torch.cat([state["weight_hh_l0"], torch.zeros(6, 6)])
    state["weight_hh_l0"] = both[:6]
    state["bias_hh_l0"] = torch.stack([state["bias_hh_l0"]] * 3)[1]
    torch.save(state, tmp_path / "rnn.pt")
    check(fr.load(tmp_path / "rnn.pt"), module, draw(4, 3, 5))


def test_everything_else_is_told_by_kind(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict(
        {
            "embedding": torch.nn.Embedding(7, 3),
            "conv": torch.nn.Conv1d(3, 4, 5),
            "norm": torch.nn.BatchNorm1d(4),
            "lstm": torch.nn.LSTM(4, 5),
            "attention": torch.nn.MultiheadAttention(4, 2),
            "out": torch.nn.Linear(5, 6),
            "table": torch.nn.Linear(5, 6, bias=False),
        }
    )
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "all.pt"
    )
    contents = fr.inspect(tmp_path / "all.pt")
    assert {part.name.removeprefix("model."): part.kind for part in contents.parts} == {
        "embedding": "embedding",
        "conv": "convolution",
        "norm": "normalisation",
        "attention": "attention",
        "attention.out_proj": "dense",
        "out": "dense",
        "table": "arrays",
    }
    names = {tensor.name for tensor in contents.constants}
    assert "model.norm.running_mean" in names
    assert "optimizer.state.0.exp_avg" in names


def test_a_lost_layer_is_an_error(tmp_path: Path) -> None:
    state = torch.nn.LSTM(3, 4, 2).state_dict()
    del state["weight_hh_l1"]
    torch.save(state, tmp_path / "less.pt")
    with pytest.raises(fr.ModelFormatError, match="missing: weight_hh_l1"):
        fr.load(tmp_path / "less.pt")
    lone = {
        name: each for name, each in torch.nn.LSTM(3, 4, 2).state_dict().items() if "l1" in name
    }
    torch.save(lone, tmp_path / "lone.pt")
    with pytest.raises(fr.ModelFormatError, match="'weight_ih_l0' is missing"):
        fr.load(tmp_path / "lone.pt")


# ---- and back --------------------------------------------------------------------------------------


@given(options=MODULES, seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_a_state_dict_goes_there_and_back_to_the_bit(options: dict[str, Any], seed: int) -> None:
    torch.manual_seed(seed)
    module = module_of(options | {"dtype": "float32"})
    arrays = fr.to_state_dict(fr.from_torch(module), "a.")
    assert [*arrays] == [f"a.{name}" for name in module.state_dict()]
    for name, each in module.state_dict().items():
        assert arrays[f"a.{name}"].tobytes() == each.numpy().tobytes()


def test_one_bias_becomes_two(draw: Draw) -> None:
    layer, module = fr.GRU(5, 6, seed=1), torch.nn.GRU(5, 6)
    module.load_state_dict(
        {name: torch.from_numpy(each) for name, each in fr.to_state_dict(layer).items()}
    )
    check(layer, module, draw(4, 3, 5))


@pytest.mark.parametrize(
    ("layer", "lack"),
    [
        (lambda: fr.LSTM(3, 4, peephole=True), "peephole"),
        (lambda: fr.LSTM(3, 4, coupled=True), "coupled"),
        (lambda: fr.LSTM(3, 4, clip=2), "clip"),
        (lambda: fr.LSTM(3, 4, gate_activation="hard_sigmoid"), "hard_sigmoid"),
        (lambda: fr.GRU(3, 4, reset="before"), "reset before"),
        (lambda: fr.GRU(3, 4, activation="relu"), "relu"),
        (lambda: fr.RNN(3, 4, activation="identity"), "identity"),
        (lambda: fr.RNN(3, 4, reverse=True), "reverse"),
        (lambda: fr.ClockworkRNN(3, 4, periods=(1, 2)), "Clockwork"),
    ],
)
def test_what_pytorch_does_not_have_is_named(layer: Callable[[], fr.Layer[Any]], lack: str) -> None:
    with pytest.raises(fr.UnsupportedError, match=lack):
        fr.to_state_dict(layer())


def test_other_modules_and_gate_orders_are_refused() -> None:
    with pytest.raises(TypeError, match=r"nn\.LSTMCell.*not Linear"):
        fr.from_torch(torch.nn.Linear(3, 4))
    weights = fr.LSTM(3, 4).weights
    for order in ("ifg", "ifgg", "ifgx", 3, ""):
        with pytest.raises(ValueError, match="gate_order must have the letters 'ifgo'"):
            fr.LSTM.from_weights(weights, gate_order=order)  # type: ignore[arg-type]


# ---- what is refused by name -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: torch.save(torch.nn.LSTM(3, 4), path), "a whole module"),
        (lambda path: torch.jit.save(torch.jit.script(torch.nn.Linear(3, 4)), path), "TorchScript"),
        (
            lambda path: torch.save(
                torch.nn.LSTM(3, 4).state_dict(), path, _use_new_zipfile_serialization=False
            ),
            "before PyTorch 1.6",
        ),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "before PyTorch 1.6"),
    ],
    ids=["module", "script", "legacy", "pickle"],
)
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_what_would_have_to_be_executed_is_refused(
    write: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    write(tmp_path / "model.pt")
    with pytest.raises(
        fr.ModelFormatError, match=rf"{message}.*torch\.save\(model\.state_dict\(\), path\)"
    ):
        fr.inspect(tmp_path / "model.pt")


# ---- hostile pickles ---------------------------------------------------------------------------------


def archive(
    path: Path, program: bytes, members: dict[str, bytes] | None = None, **options: Any
) -> Path:
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("m/data.pkl", program)
        for name, content in ({"m/data/0": bytes(64)} if members is None else members).items():
            file.writestr(name, content)
    return path


class Call:
    """Pickles into a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def glob(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def small(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


STORAGE = (
    b"("
    + text("storage")
    + glob("torch", "FloatStorage")
    + text("0")
    + text("cpu")
    + small(16)
    + b"tQ"
)


def tensor(
    offset: int = 0, shape: tuple[int, ...] = (16,), strides: tuple[int, ...] = (1,)
) -> bytes:
    def sizes(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", each) for each in values) + b"t"

    rest = b"\x89" + glob("collections", "OrderedDict") + b")R"
    arguments = b"(" + STORAGE + small(offset) + sizes(shape) + sizes(strides) + rest + b"t"
    return glob("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def dictionary(value: bytes) -> bytes:
    return b"\x80\x02}" + text("a") + value + b"s."


def pickled(value: Any, protocol: int = 2) -> bytes:
    return pickle.dumps(value, protocol)


HARMFUL: dict[str, tuple[bytes, str]] = {
    "os.system": (pickled({"a": Call(os.system, f"touch {EXECUTED}")}), "system"),
    "os.system, protocol 4": (pickled({"a": Call(os.system, "true")}, 4), "system"),
    "eval": (pickled({"a": Call(eval, "1")}), "eval"),
    "getattr": (pickled({"a": Call(getattr, 1, "real")}), "getattr"),
    "partial": (dictionary(glob("functools", "partial")), "functools.partial"),
    "another function of torch": (dictionary(glob("torch", "load")), "torch.load"),
    "INST": (b"\x80\x02(" + b"S'true'\n" + b"ios\nsystem\n.", "STRING"),
    "OBJ": (b"\x80\x02(" + glob("os", "system") + text("true") + b"o.", "OBJ"),
    "NEWOBJ": (dictionary(glob("collections", "OrderedDict") + b")\x81"), "damaged"),
    "EXT": (b"\x80\x02\x82\x01.", "EXT1"),
    "text protocol": (b"(dp0\nS'a'\nI1\ns.", "DICT|PUT|STRING"),
    "BUILD on a function": (
        dictionary(glob("torch._utils", "_rebuild_parameter") + b"}" + text("__call__") + b"Nsb"),
        "damaged",
    ),
    "BUILD with slots on a function": (
        dictionary(
            glob("torch._utils", "_rebuild_parameter") + b"N}" + text("_function") + b"Ns\x86b"
        ),
        "damaged",
    ),
    "BUILD on a tensor": (dictionary(tensor() + b"}" + text("shape") + b"Nsb"), "damaged"),
    "BUILD with slots on a tensor": (
        dictionary(tensor() + b"N}" + text("shape") + b"Ns\x86b"),
        "damaged",
    ),
    "a storage that is called": (dictionary(glob("torch", "FloatStorage") + b")R"), "damaged"),
    "a tensor without arguments": (
        dictionary(glob("torch._utils", "_rebuild_tensor_v2") + b")R"),
        "damaged",
    ),
    "a memo beyond the pickle": (b"\x80\x02Nr" + struct.pack("<I", 2**32 - 1) + b".", "memo"),
    "deep": (b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", "deep|damaged"),
    "no end": (b"\x80\x02}", "damaged"),
    "empty": (b"", "damaged"),
    "a persistent id that is no storage": (dictionary(text("0") + b"Q"), "no storage"),
    "a storage of another class": (
        dictionary(STORAGE.replace(b"FloatStorage", b"load")),
        "torch.load",
    ),
    "a missing storage": (dictionary(tensor().replace(text("0"), text("9"))), "missing"),
    "a storage that leads out": (dictionary(tensor().replace(text("0"), text("../x"))), "missing"),
    "a storage that says more": (dictionary(tensor().replace(small(16), small(17), 1)), "64 bytes"),
    "beyond the storage": (dictionary(tensor(offset=1)), "does not lie"),
    "negative": (dictionary(tensor(shape=(-4,))), "shape"),
    "a negative stride": (dictionary(tensor(offset=15, strides=(-1,))), "strides"),
    "a stride of 0": (dictionary(tensor(shape=(2**40,), strides=(0,))), "does not lie"),
    "an overflow": (dictionary(tensor(shape=(2**62, 2**62), strides=(1, 1))), "does not lie"),
    "as many axes as strides": (dictionary(tensor(shape=(4, 4))), "shape"),
    "many axes": (dictionary(tensor(shape=(1,) * 40, strides=(1,) * 40)), "shape"),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_a_hostile_pickle_is_refused_and_nothing_happens(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program, message = HARMFUL[name]
    path = archive(tmp_path / "hostile.pt", program)
    with pytest.raises(fr.ModelFormatError, match=message) as caught:
        fr.inspect(path)
    assert "\n" not in str(caught.value)
    assert not Path(EXECUTED).exists()


def test_negative_control_these_pickles_are_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(HARMFUL["os.system"][0])
    assert Path(EXECUTED).exists()
    (part,) = fr.inspect(archive(tmp_path / "good.pt", dictionary(tensor()))).parts
    assert part.tensors[0].shape == (16,)
    assert part.tensors[0].read().tobytes() == bytes(64)


def test_lists_that_hold_each_other_do_not_take_forever(tmp_path: Path) -> None:
    program = b"\x80\x02]q\x00"
    for number in range(1, 60):  # each holds the one before twice
        program += (
            b"]"
            + b"h"
            + bytes([number - 1])
            + b"a"
            + b"h"
            + bytes([number - 1])
            + b"aq"
            + bytes([number])
        )
    with pytest.raises(fr.ModelFormatError, match="values"):
        fr.inspect(archive(tmp_path / "lists.pt", program + b"."))
    with pytest.raises(fr.ModelFormatError, match="deep"):
        fr.inspect(archive(tmp_path / "itself.pt", b"\x80\x02]q\x00h\x00a."))


def test_the_archive_is_checked(tmp_path: Path) -> None:
    good = dictionary(tensor())
    deflated = archive(tmp_path / "a.pt", good, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(fr.ModelFormatError, match="compressed"):
        fr.inspect(deflated)
    with pytest.raises(fr.ModelFormatError, match=r"several data\.pkl"):
        fr.inspect(archive(tmp_path / "b.pt", good, {"m/data/0": bytes(64), "n/data.pkl": good}))
    with pytest.raises(fr.ModelFormatError, match="TorchScript"):
        fr.inspect(archive(tmp_path / "c.pt", good, {"m/data/0": bytes(64), "m/code/a.py": b""}))
    with pytest.raises(fr.ModelFormatError, match="byte order"):
        fr.inspect(archive(tmp_path / "d.pt", good, {"m/data/0": bytes(64), "m/byteorder": b"big"}))


def test_memory_is_bounded(tmp_path: Path) -> None:
    """All of these are refused in an address space with little room beyond the package."""
    for number, (program, _) in enumerate(HARMFUL.values()):
        archive(tmp_path / f"{number}.pt", program)
    code = (
        "import pathlib, resource, sys, numpy, fusedrnn as fr\n"
        "from fusedrnn.formats import torch_file\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))\n"
        "for path in pathlib.Path(sys.argv[1]).glob('*.pt'):\n"
        "    try: fr.inspect(path)\n"
        "    except fr.ModelFormatError: continue\n"
        "    sys.exit(f'{path} was read')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def checkpoint() -> bytes:
    torch.manual_seed(1)
    file = io.BytesIO()
    torch.save({"model": torch.nn.GRU(3, 4).state_dict(), "epoch": 1}, file)
    return file.getvalue()


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    content, path = checkpoint(), tmp_path / "cut.pt"
    for length in range(0, len(content), 53):
        path.write_bytes(content[:length])
        with pytest.raises(fr.ModelFormatError):
            fr.load(path)


def test_flipped_bytes_give_an_error_or_a_layer(tmp_path: Path) -> None:
    (tmp_path / "flipped.pt").write_bytes(checkpoint())
    load_with_flipped_bytes(tmp_path / "flipped.pt", 400)
