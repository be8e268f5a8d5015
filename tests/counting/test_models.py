"""What a model costs that somebody has: a file's contents, a PyTorch module, a path."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import pytest
from model_files import H, X, found, oracle, save_onnx, tensor

import fusedrnn as fr
from fusedrnn.architecture import Architecture
from fusedrnn.counting import models
from fusedrnn.formats.contents import Contents, Part

SIZES = {"input_size": 3, "hidden_size": 4}
LSTM = Architecture("lstm", 3, 4, num_layers=2, bidirectional=True, bias="double")


@pytest.fixture(scope="module")
def torch() -> Any:
    """PyTorch: skipped, or, with FUSEDRNN_REQUIRE_ORACLES=1, an error."""
    return oracle("torch")


# Contents of a file


EVERY: list[dict[str, Any]] = [
    {},
    {"bias": "double"},
    {"bias": "none", "bidirectional": True},
    {"num_layers": 3},
]


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        *((cell, options) for cell in ("rnn", "lstm", "gru") for options in EVERY),
        ("lstm", {"proj_size": 2}),
        ("lstm", {"peephole": "fo"}),
        ("lstm", {"coupled": True}),
        ("gru", {"reset": "before"}),
    ],
    ids=str,
)
def test_a_recurrent_layer_costs_what_its_cell_costs(cell: str, options: dict[str, Any]) -> None:
    architecture = Architecture(cell, **SIZES, **options)
    (layer,) = models.network(Contents("m", "test", (found("a", architecture),))).layers
    exact = fr.count(architecture, steps=5, batch=2)
    complexity = fr.count(Contents("m", "test", (found("a", architecture),)), steps=5, batch=2)
    assert complexity.parameters == exact.parameters_stored == complexity.stored
    assert complexity.macs == exact.macs
    assert complexity.macs_per_step == exact.macs_per_step
    assert (layer.input_size, layer.output_size) == (3, architecture.output_size)
    # The control: a layer of one more unit costs something else.
    other = fr.count(Architecture(cell, 3, 5, **options), steps=5, batch=2)
    assert (other.parameters_stored, other.macs) != (complexity.parameters, complexity.macs)


def test_a_clockwork_layer_has_its_average_and_its_peak() -> None:
    architecture = Architecture("clockwork", 3, 4, periods=(1, 2))
    complexity = fr.count(Contents("m", "test", (found("a", architecture),)))
    exact = fr.count(architecture)
    assert complexity.macs_per_step == exact.macs_per_step
    assert complexity.peak_macs_per_step == exact.peak_macs_per_step
    assert complexity.parameters == exact.parameters
    assert complexity.stored == sum(prod(each.shape) for each in architecture.weights())
    assert "elements are stored beside the parameters" in complexity.network.layers[0].note


def parts() -> tuple[Part, ...]:
    weight, bias = tensor("out.weight", 2, 8), tensor("out.bias", 2)
    return (
        Part("embed", "embedding", "Gather", (tensor("embed.weight", 10, 3),)),
        Part("norm", "normalisation", "LayerNormalization", (tensor("norm.weight", 3),)),
        Part("out", "dense", "Gemm", (weight, bias), frozenset({"out.bias"}), 16),
    )


def test_other_parts_are_counted_by_kind() -> None:
    contents = Contents("m", "test", (found("a", LSTM),), parts())
    complexity = fr.count(contents, steps=10)
    rows = {row["layer"]: row for row in complexity.to_dict()["layers"]}
    assert rows["embed"]["macs_per_step"] == rows["norm"]["macs_per_step"] == 0
    assert (rows["out"]["weights"], rows["out"]["biases"]) == (16, 2)
    assert rows["out"]["macs"] == 160
    exact = fr.count(LSTM)
    assert complexity.parameters == exact.parameters_stored + 30 + 3 + 18
    assert complexity.macs_per_step == exact.macs_per_step + 16
    assert complexity.unknown == ()
    assert complexity.to_dict()["total"]["at_least"] is None


@pytest.mark.parametrize("kind", ["?", "cell", "arrays", "convolution", "attention", "dense"])
def test_what_is_not_known_is_never_zero(kind: str) -> None:
    unknown = Part("mystery", kind, "Op", (tensor("mystery.weight", 5, 5),))
    complexity = fr.count(Contents("m", "test", (found("a", LSTM),), (unknown,)), steps=10)
    exact = fr.count(LSTM, steps=10)
    assert complexity.unknown == ("mystery",)
    assert complexity.macs is complexity.macs_per_step is complexity.peak_macs_per_step is None
    assert complexity.known_macs == exact.macs
    assert complexity.parameters == exact.parameters_stored + 25
    document = json.loads(complexity.to_json())
    assert document["layers"][1]["macs_per_step"] is document["layers"][1]["macs"] is None
    assert document["total"]["macs"] is document["total"]["macs_per_step"] is None
    assert document["total"]["at_least"]["macs"] == exact.macs
    table = str(complexity)
    assert f"at least {exact.macs:,}" in table
    assert [line.split()[-1] for line in table.splitlines() if line.startswith("mystery")] == ["?"]
    assert "?" in complexity.explain()
    assert f"at least {exact.macs:,}" in complexity.explain()
    # CSV has nothing there, in the line of the layer and in that of the total.
    header, *lines = (line.split(",") for line in complexity.to_csv().splitlines())
    assert [line[header.index("macs")] for line in lines[1:]] == ["", ""]


def test_constants_are_stored_and_no_parameters() -> None:
    constants = (tensor("shape", 3, dtype="int64"), tensor("zeros", 16))
    plain = fr.count(Contents("m", "test", (found("a", LSTM),)))
    complexity = fr.count(Contents("m", "test", (found("a", LSTM),), constants=constants))
    assert complexity.parameters == plain.parameters
    assert complexity.stored == plain.stored + 19
    assert [each["name"] for each in complexity.to_dict()["constants"]] == ["shape", "zeros"]
    assert "zeros" in str(complexity)
    assert "zeros" in complexity.to_markdown()


def test_a_tensor_of_two_layers_counts_once_and_is_named() -> None:
    embed, out = tensor("embed.weight", 10, 4), tensor("out.bias", 10)
    tied = (
        Part("embed", "embedding", "", (embed,)),
        Part("out", "dense", "", (embed, out), frozenset({"out.bias"}), 40),
    )
    once = fr.count(Contents("m", "test", parts=tied))
    assert once.parameters == once.stored == 50
    assert fr.count(Contents("m", "test", parts=tied), tied="twice").parameters == 90
    assert once.to_dict()["layers"][1]["tied"] == "embed"
    assert "dense, tied to embed" in str(once)
    assert "counted in embed" in once.explain()
    assert once.macs_per_step == 40


def test_a_recurrent_layer_that_runs_twice_is_stored_once() -> None:
    tensors = [tensor(f"rnn.{each.name}", *each.shape) for each in LSTM.weights()]
    twice = (found("first", LSTM, tensors), found("second", LSTM, tensors))
    complexity, exact = fr.count(Contents("m", "test", twice)), fr.count(LSTM)
    assert complexity.parameters == complexity.stored == exact.parameters_stored
    assert complexity.macs_per_step == 2 * exact.macs_per_step
    assert complexity.network.layers[1].tied == "first"
    # Some of its arrays: those count once, and only those.
    own = [tensor(f"own.{each.name}", *each.shape) for each in LSTM.weights()]
    some = (found("first", LSTM, tensors), found("second", LSTM, [tensors[0], *own[1:]]))
    complexity = fr.count(Contents("m", "test", some))
    assert complexity.parameters == 2 * exact.parameters_stored - tensors[0].elements


def test_nothing_recurrent_and_nothing_at_all() -> None:
    assert fr.count(Contents("m", "test", parts=parts())).macs == 16
    empty = fr.count(Contents("m", "test"))
    assert (empty.parameters, empty.stored, empty.macs) == (0, 0, 0)
    assert "total" in str(empty)
    assert empty.explain()
    assert empty.to_csv()


# Paths


def test_a_path_is_a_model_or_a_description(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_onnx(tmp_path / "model.onnx")
    exact = fr.count("lstm", input_size=X, hidden_size=H, steps=7)
    for path in (tmp_path / "model.onnx", str(tmp_path / "model.onnx")):
        complexity = fr.count(path, steps=7)
        assert complexity.macs == exact.macs + 7 * 8
    # By its content, whatever it is called.
    (tmp_path / "network.toml").write_bytes((tmp_path / "model.onnx").read_bytes())
    assert fr.count(tmp_path / "network.toml", steps=7).macs == exact.macs + 7 * 8
    text = '[[layers]]\nkind = "input"\nwidth = 3\n[[layers]]\nkind = "lstm"\nhidden = 4\n'
    (tmp_path / "plain").write_text(text)
    monkeypatch.chdir(tmp_path)
    described = fr.count("plain", steps=7)
    assert (described.macs, described.stored) == (exact.macs, None)


def test_a_cell_stays_a_cell_whatever_files_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lstm").write_text("no network")
    assert fr.count("lstm", **SIZES).parameters == 128


@pytest.mark.parametrize(
    ("model", "options", "error", "text"),
    [
        ("lsmt", SIZES, ValueError, "'lsmt'"),
        ("lsmt", {}, TypeError, "input_size"),
        ("no/such.pt", {}, OSError, "such.pt"),
        (Path("nothing"), {}, OSError, "nothing"),
        (3, {}, TypeError, "int"),
        (Contents("m", "test"), {"rate": 3}, TypeError, "rate"),
        (Contents("m", "test"), SIZES, TypeError, "input_size"),
        (Contents("m", "test"), {"steps": 0}, ValueError, "steps"),
        ("lstm", {**SIZES, "tied": "twice"}, TypeError, "tied"),
    ],
)
def test_a_mistake_is_told(
    model: Any, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        fr.count(model, **options)


def test_a_network_of_text_is_counted_without_numpy(tmp_path: Path) -> None:
    network = Path(__file__).parents[2] / "examples" / "language-model.toml"
    code = (
        "import sys, fusedrnn as fr\n"
        "fr.count(sys.argv[1]); fr.count('lstm', input_size=3, hidden_size=4)\n"
        "assert not {'numpy', 'torch', 'onnx'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(network)], check=True, timeout=60)


def test_no_weight_of_a_file_is_read(tmp_path: Path) -> None:
    contents = Contents("m", "test", (found("a", LSTM),), parts())  # whose arrays refuse
    assert str(fr.count(contents))
    assert contents.to_json()
    assert str(contents)


# PyTorch


def makers(torch: Any) -> dict[str, Callable[[], Any]]:
    nn = torch.nn
    return {
        "LSTM": lambda: nn.LSTM(3, 4, 2, bidirectional=True),
        "LSTM-proj": lambda: nn.LSTM(3, 4, proj_size=2, bias=False),
        "GRU": lambda: nn.GRU(3, 4, 3),
        "RNN": lambda: nn.RNN(3, 4, nonlinearity="relu"),
        "LSTMCell": lambda: nn.LSTMCell(3, 4),
        "GRUCell": lambda: nn.GRUCell(3, 4, bias=False),
        "RNNCell": lambda: nn.RNNCell(3, 4),
    }


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LSTM", {"cell": "lstm", "num_layers": 2, "bidirectional": True}),
        ("LSTM-proj", {"cell": "lstm", "proj_size": 2}),
        ("GRU", {"cell": "gru", "num_layers": 3}),
        ("RNN", {"cell": "rnn"}),
        ("LSTMCell", {"cell": "lstm"}),
        ("GRUCell", {"cell": "gru"}),
        ("RNNCell", {"cell": "rnn"}),
    ],
)
def test_a_recurrent_module(torch: Any, name: str, options: dict[str, Any]) -> None:
    module = makers(torch)[name]()
    complexity = fr.count(module, steps=9, batch=2)
    exact = fr.count(Architecture(**SIZES, **options), steps=9, batch=2)
    assert complexity.macs == exact.macs
    assert complexity.parameters == sum(each.numel() for each in module.parameters())
    assert complexity.network.layers[0].kind == options["cell"]


def model(torch: Any) -> Any:
    """A module of what people build with."""
    nn = torch.nn

    class Model(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(20, 8, padding_idx=0)
            self.conv = nn.Conv1d(8, 6, 3, groups=2)
            self.norm = nn.BatchNorm1d(6)
            self.rnn = nn.LSTM(6, 8, bidirectional=True)
            self.layer_norm = nn.LayerNorm(16)
            self.attention = nn.MultiheadAttention(16, 4)
            self.act = nn.Sequential(nn.PReLU(), nn.ReLU(), nn.Dropout())
            self.out = nn.Linear(16, 8)
            self.words = nn.Linear(8, 20)
            self.words.weight = self.embed.weight

    return Model()


def test_a_module_is_walked(torch: Any) -> None:
    module = model(torch)
    complexity = fr.count(module, steps=10, batch=3)
    rows = {row["layer"]: row for row in complexity.to_dict()["layers"]}
    assert {name: row["macs_per_step"] for name, row in rows.items()} == {
        "embed": 0,
        "conv": 6 * 4 * 3,
        "norm": 0,
        "rnn": 2 * 4 * 8 * (6 + 8),
        "layer_norm": 0,
        "attention": 4 * 16 * 16 + 2 * 10 * 16,
        "act.0": 0,
        "out": 128,
        "words": 160,
    }
    assert {name: row["kind"] for name, row in rows.items()} == {
        "embed": "embedding",
        "conv": "convolution",
        "norm": "normalisation",
        "rnn": "lstm",
        "layer_norm": "normalisation",
        "attention": "attention",
        "act.0": "activation",
        "out": "dense",
        "words": "dense",
    }
    assert rows["words"]["tied"] == "embed"
    assert complexity.parameters == sum(each.numel() for each in module.parameters())
    assert complexity.parameters_tied_twice == complexity.parameters + 160
    assert complexity.macs == 30 * sum(row["macs_per_step"] for row in rows.values())
    assert [each.name for each in complexity.network.constants] == [
        name for name, _ in module.named_buffers()
    ]


def test_macs_of_a_module_are_those_that_pytorch_counts(torch: Any) -> None:
    """The control: PyTorch's own counter on what it counts rightly, matrix products of dense layers and convolutions."""
    counter = import_module("torch.utils.flop_counter").FlopCounterMode(display=False)
    nn = torch.nn
    module = nn.Sequential(nn.Conv1d(8, 6, 3, padding=1, groups=2), nn.Flatten(), nn.Linear(60, 4))
    with counter, torch.no_grad():
        module(torch.zeros(1, 8, 10))
    convolution, dense = (layer.macs_per_step for layer in fr.count(module).network.layers)
    assert counter.get_total_flops() == 2 * (10 * convolution + dense)


def test_what_a_module_does_is_not_always_known(torch: Any) -> None:
    nn = torch.nn

    class Scale(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(5))
            self.inner = nn.Linear(5, 5)

    class Odd(nn.Linear):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return super().forward(super().forward(x))

    class Even(nn.Linear):  # type: ignore[misc]
        pass

    class Nothing(nn.Module):  # type: ignore[misc]
        """Has no parameters, and may do anything."""

    for module, unknown, known in (
        (Scale(), ("Scale",), 25),
        (nn.Sequential(Odd(5, 5), Even(5, 5)), ("0",), 25),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(5, 5)), ("0",), 25),
        (nn.Sequential(nn.Bilinear(2, 3, 4), nn.Linear(5, 5)), ("0",), 25),
        (nn.Sequential(Nothing(), nn.ReLU(), nn.Linear(5, 5)), ("0",), 25),
    ):
        complexity = fr.count(module)
        assert complexity.unknown == unknown
        assert complexity.known_macs_per_step == known
        assert complexity.macs is None
        assert complexity.parameters == sum(each.numel() for each in module.parameters())


def test_a_module_that_stands_at_two_places(torch: Any) -> None:
    nn = torch.nn
    cell = nn.LSTM(4, 4)
    complexity = fr.count(nn.Sequential(cell, cell))
    assert complexity.macs_per_step == 2 * fr.count(cell).macs_per_step
    assert complexity.parameters == sum(each.numel() for each in cell.parameters())
    assert complexity.network.layers[1].tied == "0"


def test_parametrized_and_lazy_modules(torch: Any) -> None:
    nn = torch.nn
    module = nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))
    complexity = fr.count(module)
    assert complexity.macs == 15
    assert complexity.parameters == sum(each.numel() for each in module.parameters())
    with pytest.raises(ValueError, match=r"1\.weight has no shape"):
        fr.count(nn.Sequential(nn.ReLU(), nn.LazyLinear(3)))


def test_a_converted_module_costs_the_same(torch: Any) -> None:
    convert = import_module("fusedrnn.torch").convert
    nn = torch.nn
    module = nn.Sequential(nn.GRU(3, 4, 2), nn.Linear(4, 2))
    before = fr.count(module, steps=3).to_dict()
    assert fr.count(convert(module), steps=3).to_dict() == before


def test_a_checkpoint_counts_as_its_module(torch: Any, tmp_path: Path) -> None:
    """Also where a parameter has two names: in the file it is stored once."""
    nn = torch.nn
    module = nn.Module()
    module.embed, module.rnn = nn.Embedding(20, 8), nn.LSTM(8, 8, 2)
    module.out, module.again = nn.Linear(8, 20), module.rnn
    module.out.weight = module.embed.weight
    torch.save(module.state_dict(), tmp_path / "model.pt")
    ours, file = fr.count(module), fr.count(tmp_path / "model.pt")
    assert file.parameters == ours.parameters == sum(each.numel() for each in module.parameters())
    assert file.parameters_tied_twice == ours.parameters_tied_twice > ours.parameters
    assert file.stored == file.parameters
    assert file.macs == ours.macs
    tied = {layer.name: layer.tied for layer in file.network.layers}
    assert tied == {"rnn": None, "again": "rnn", "embed": None, "out": "embed"}


def test_nothing_of_a_module_is_run(torch: Any) -> None:
    module = torch.nn.LSTM(3, 4, device="meta")  # whose numbers do not exist
    assert fr.count(module, steps=10**6).macs == 10**6 * 4 * 4 * 7
