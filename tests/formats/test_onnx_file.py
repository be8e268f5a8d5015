"""ONNX files: how they are recognised, what is in them beside recurrent nodes, and those that mean harm."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import oracle

onnx = oracle("onnx")

from onnx import TensorProto, external_data_helper, helper
from onnx_models import Arrays, model_of, recurrent_node

import fusedrnn as fr
from fusedrnn.formats import onnx_file, onnx_write
from fusedrnn.formats.contents import Contents, Part

Node = Any


def node(operator: str, *inputs: str, outputs: tuple[str, ...] = ("Y",), **attributes: Any) -> Node:
    attributes.setdefault("name", operator.lower())
    return helper.make_node(operator, inputs, outputs, **attributes)


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def lstm(inputs: int = 3, units: int = 4) -> Arrays:
    return {
        "W": floats(1, 4 * units, inputs),
        "R": floats(1, 4 * units, units),
        "B": floats(1, 8 * units),
    }


def lstm_model(**fields: Any) -> Any:
    return model_of([recurrent_node("LSTM", hidden_size=4)], lstm(), **fields)


def contents_of(model: Any) -> Contents:
    from fusedrnn.formats.onnx_tensors import Store

    return onnx_file.contents(model, Store())


def parts_of(nodes: list[Node], arrays: Arrays, **fields: Any) -> list[Part]:
    return list(contents_of(model_of(nodes, arrays, **fields)).parts)


# ---- recognised by content -----------------------------------------------------------------------


def test_models_are_recognised(tmp_path: Path) -> None:
    for name, model in (
        ("plain", lstm_model()),
        ("said", lstm_model(producer_name="x" * 5000, doc_string="y" * 9000)),
        ("functions", lstm_model(functions=[helper.make_function("a", "F", [], [], [], [])])),
    ):
        path = tmp_path / name
        onnx.save(model, path)
        assert onnx_file.recognises(path.read_bytes()[:4096], frozenset()), name
        assert fr.inspect(path).format == "ONNX, opset 22"


@pytest.mark.parametrize(
    "head",
    (
        b"",
        b"PK\x03\x04",
        b"\x80\x02}q\x00.",
        b"\x89HDF\r\n\x1a\n",
        b'\x40\x00\x00\x00\x00\x00\x00\x00{"a":{}}',
        b"\x08",
        b"\x08\x00",
        b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x3a\x01x",  # a graph alone
        b"\x08\x0a\x7f",
        b"\x0a\x03abc",  # the first field is no text
        b"ir_version: 8",
        bytes(64),
    ),
)
def test_other_files_are_not(head: bytes) -> None:
    assert not onnx_file.recognises(head, frozenset())


def test_a_cut_file_is_an_error(tmp_path: Path) -> None:
    data = lstm_model().SerializeToString()
    path = tmp_path / "cut.onnx"
    for length in [*range(8, len(data), max(1, len(data) // 40)), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(fr.ModelFormatError, match="cut.onnx"):
            fr.inspect(path)
    path.write_bytes(data)
    assert fr.inspect(path).layers


def test_changed_bytes_are_errors_or_models(tmp_path: Path) -> None:
    data = lstm_model().SerializeToString()
    random = np.random.default_rng(1)
    path = tmp_path / "changed.onnx"
    for _ in range(300):
        changed = bytearray(data)
        for place in random.integers(0, len(data), 3):
            changed[place] = random.integers(256)
        path.write_bytes(changed)
        try:
            fr.load(path)
        except ValueError as error:
            assert "\n" not in str(error)


def test_without_the_package_onnx_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lstm_model()
    onnx.save(model, tmp_path / "m.onnx")
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    monkeypatch.setattr(onnx_write, "find_spec", lambda name: None)
    for use in (
        lambda: fr.inspect(tmp_path / "m.onnx"),
        lambda: fr.from_onnx(model),
        lambda: fr.to_onnx(fr.LSTM(2, 3)),
    ):
        with pytest.raises(fr.MissingExtraError, match=r"fusedrnn\[onnx\]"):
            use()


# ---- what is in a model --------------------------------------------------------------------------


def test_dense_parts_have_a_multiply_add_for_each_weight() -> None:
    gemm, matmul, two = parts_of(
        [
            node("Gemm", "X", "A", "b", outputs=("x",), transB=1),
            node("MatMul", "x", "C", outputs=("y",)),
            node("Add", "c", "y", outputs=("z",)),
            node("MatMul", "z", "z"),
        ],
        {"A": floats(5, 3), "b": floats(5), "C": floats(5, 7), "c": floats(7)},
    )
    assert (gemm.kind, gemm.macs_per_step, gemm.biases) == ("dense", 15, {"b"})
    assert (matmul.kind, matmul.macs_per_step, matmul.biases) == ("dense", 35, {"c"})
    assert [each.name for each in matmul.tensors] == ["C", "c"]
    assert (two.kind, two.macs_per_step, two.tensors) == ("attention", None, ())


def test_convolutions_by_positions() -> None:
    arrays = {"A": floats(6, 3, 5), "a": floats(6), "D": floats(6, 3, 2, 2)}
    one, strided, image = parts_of(
        [
            node("Conv", "X", "A", "a", outputs=("x",), name="one"),
            node("Conv", "X", "A", outputs=("y",), strides=[2], name="strided"),
            node("Conv", "X", "D", name="image"),
        ],
        arrays,
    )
    assert (one.kind, one.macs_per_step, one.biases) == ("convolution", 90, {"a"})
    assert (strided.macs_per_step, *(each.name for each in strided.tensors)) == (None, "A")
    assert "'A' is shared with 'one'" in strided.note
    assert image.macs_per_step is None
    model = model_of([node("Conv", "X", "D", name="image")], arrays)
    shape = model.graph.output[0].type.tensor_type.shape
    for length in (1, 6, 10, 20):
        shape.dim.add().dim_value = length
    (image,) = contents_of(model).parts[:1]
    assert image.macs_per_step == 6 * 3 * 2 * 2 * 10 * 20


def test_embeddings_normalisations_and_attention_by_kind() -> None:
    parts = parts_of(
        [
            node("Gather", "E", "X", outputs=("e",)),
            node("LayerNormalization", "e", "s", "b", outputs=("n",)),
            node("MultiHeadAttention", "n", "n", "n", outputs=("a",), domain="com.microsoft"),
            node("Strange", "a", "s", outputs=("q",), domain="own"),
            node("Einsum", "q", "E", outputs=("r",), equation="ij,jk->ik"),
            node("Mul", "r", "t"),
        ],
        {"E": floats(9, 5), "s": floats(5), "b": floats(5), "t": floats(5)},
    )
    found = [(part.kind, part.origin, part.macs_per_step) for part in parts]
    assert found == [
        ("embedding", "Gather", 0),
        ("normalisation", "LayerNormalization", 0),
        ("attention", "MultiHeadAttention", None),
        ("?", "Strange", None),
        ("?", "Einsum", None),
        ("arrays", "Mul", 0),
    ]
    assert parts[1].biases == {"b"}
    assert "'s' is shared with 'layernormalization'" in parts[3].note


def test_what_a_batch_normalisation_has_seen_is_no_parameter() -> None:
    arrays = {name: floats(5) for name in ("scale", "bias", "mean", "var")}
    found = contents_of(model_of([node("BatchNormalization", "X", *arrays)], arrays))
    assert [each.name for each in found.parts[0].tensors] == ["scale", "bias"]
    assert {each.name for each in found.constants} == {"mean", "var"}


def test_constants_are_not_parameters() -> None:
    found = contents_of(
        model_of(
            [node("Reshape", "X", "shape", outputs=("x",)), node("Mul", "x", "half")],
            {"shape": np.array([0, -1]), "half": np.float32(0.5), "unused": floats(3)},
        )
    )
    assert found.parts == ()
    assert {each.name for each in found.constants} == {"shape", "half", "unused"}


def test_shared_weights_are_counted_once_and_named() -> None:
    nodes = [
        recurrent_node("LSTM", hidden_size=4),
        recurrent_node("LSTM", hidden_size=4, direction="forward"),
    ]
    nodes[1].name = "other"
    nodes[1].output[:] = ["Y2", "Y2_h", "Y2_c"]
    contents = contents_of(model_of(nodes, lstm()))
    one, other = contents.layers
    assert [each.name for each in one.tensors] == ["W", "R", "B"]
    assert other.tensors == one.tensors
    assert "'W' is shared with 'node'" in other.notes
    counted = fr.count(contents)
    assert counted.parameters == one.parameters
    assert counted.macs_per_step == 2 * fr.count(one.architecture).macs_per_step
    assert counted.network.layers[1].tied == "node"


def inner_graph(nodes: list[Node], arrays: Arrays | None = None) -> Any:
    return model_of(nodes, arrays, ()).graph


def test_nodes_in_subgraphs_are_found() -> None:
    one = inner_graph([recurrent_node("LSTM", hidden_size=4)])  # its weights are outside
    other = inner_graph([recurrent_node("LSTM", hidden_size=4)], lstm(3, 4))
    made = model_of(
        [node("If", "X", name="choice", then_branch=one, else_branch=other)], lstm(3, 4)
    )
    layers = contents_of(made).layers
    assert {layer.name for layer in layers} == {"node", "node#2"}
    by_place = {layer.notes[0]: layer for layer in layers}
    for branch, scope in (("then_branch", ""), ("else_branch", "choice.else_branch/")):
        layer = by_place[f"in If 'choice' ({branch})"]
        assert [each.name for each in layer.tensors] == [scope + name for name in "WRB"]
        assert layer.layer().weights["weight_ih_l0"].shape == (16, 3)


def own_function(body: list[Node], attributes: list[str] | None = None) -> Any:
    return helper.make_function(
        "own", "F", ["X", "W", "R", "B"], ["Y"], body, [helper.make_opsetid("", 22)], attributes
    )


def test_nodes_in_functions_are_found() -> None:
    body = recurrent_node("LSTM")
    body.attribute.append(
        onnx.AttributeProto(name="direction", ref_attr_name="way", type=onnx.AttributeProto.STRING)
    )
    call = node("F", "X", "W", "R", "B", domain="own", way="reverse")
    plain = node("F", "X", "W", "R", "B", outputs=("Z",), domain="own", name="plain")
    made = model_of([call, plain], lstm(), functions=[own_function([body], ["way"])])
    found = contents_of(made)
    assert [layer.architecture.reverse for layer in found.layers] == [True, False]
    assert "in function 'F', called by 'f'" in found.layers[0].notes
    assert found.parts == ()


def test_an_overridable_initializer_is_noted() -> None:
    model = lstm_model(inputs=("X", "W"))
    (layer,) = contents_of(model).layers
    assert any("'W'" in note and "replace" in note for note in layer.notes)


def test_from_onnx_takes_paths_and_models(tmp_path: Path) -> None:
    model = lstm_model()
    onnx.save(model, tmp_path / "m.onnx")
    for given in (model, tmp_path / "m.onnx", str(tmp_path / "m.onnx")):
        layer = fr.from_onnx(given, "node", backend="numpy")
        assert (layer.architecture.hidden_size, layer.backend) == (4, "numpy")
    with pytest.raises(TypeError, match="ModelProto, not bytes"):
        fr.from_onnx(b"")
    with pytest.raises(ValueError, match="no recurrent layer 'x'; it has 'node'"):
        fr.from_onnx(model, "x")


# ---- spelled-out cells ---------------------------------------------------------------------------


def lstm_cell_nodes(step: str = "", h: str = "h") -> list[Node]:
    def name(text: str) -> str:
        return text + step

    gates = tuple(map(name, "ifgo"))
    return [
        node("Gemm", "X", "W", "b", outputs=(name("gx"),), transB=1, name=name("gemm_x")),
        node("Gemm", h, "R", outputs=(name("gh"),), transB=1, name=name("gemm_h")),
        node("Add", name("gx"), name("gh"), outputs=(name("sum"),)),
        node("Split", name("sum"), outputs=gates, axis=1, num_outputs=4),
        *(node("Sigmoid", name(gate), outputs=(name(gate + "s"),)) for gate in "ifo"),
        node("Tanh", name("g"), outputs=(name("gs"),)),
        node("Mul", name("is"), name("gs"), outputs=(name("c"),)),
        node("Tanh", name("c"), outputs=(name("ct"),)),
        node("Mul", name("os"), name("ct"), outputs=(name("Y"),)),
    ]


def test_a_spelled_out_lstm_is_said_to_be_one() -> None:
    arrays = {"W": floats(16, 3), "R": floats(16, 4), "b": floats(16)}
    found = contents_of(model_of(lstm_cell_nodes(), arrays, ("X", "h")))
    (cell,) = found.parts
    assert (cell.kind, cell.macs_per_step, cell.biases) == ("cell", 16 * 7, {"b"})
    assert "recurrent cell spelled out" in cell.note
    with pytest.raises(ValueError, match="spelled out"):
        found.find()
    unrolled = lstm_cell_nodes("", "h") + lstm_cell_nodes("1", "Y")
    (cell,) = contents_of(model_of(unrolled, arrays, ("X", "h"), ("Y1",))).parts
    assert (cell.macs_per_step, len(cell.tensors)) == (16 * 7, 3)
    assert "unrolled" in cell.note


def test_a_spelled_out_rnn_is_said_to_be_one() -> None:
    nodes, h = [], "h"
    for step in range(3):
        nodes += [
            node("MatMul", "X", "W", outputs=(f"x{step}",), name=f"x{step}"),
            node("MatMul", h, "R", outputs=(f"r{step}",), name=f"r{step}"),
            node("Add", f"x{step}", f"r{step}", outputs=(f"s{step}",)),
            node("Relu", f"s{step}", outputs=(f"h{step}",)),
        ]
        h = f"h{step}"
    arrays = {"W": floats(3, 4), "R": floats(4, 4)}
    (cell,) = contents_of(model_of(nodes, arrays, ("X", "h"), ("h2",))).parts
    assert (cell.kind, cell.macs_per_step) == ("cell", 28)


def test_negative_control_other_networks_are_no_cells() -> None:
    residual = [
        node("MatMul", "X", "A", outputs=("a",)),
        node("Relu", "a", outputs=("b",)),
        node("MatMul", "b", "B", outputs=("c",)),
        node("MatMul", "X", "C", outputs=("d",)),
        node("Add", "c", "d", outputs=("e",)),
        node("Relu", "e", outputs=("f",)),
        node("MatMul", "f", "D", outputs=("g",)),
        node("Sigmoid", "g"),
    ]
    arrays = {"A": floats(3, 4), "B": floats(4, 4), "C": floats(3, 4), "D": floats(4, 1)}
    kinds = [part.kind for part in contents_of(model_of(residual, arrays)).parts]
    assert kinds == ["dense"] * 4


# ---- external data -------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A model whose tensors are in "weights.bin" beside it."""
    folder = tmp_path / "model"
    folder.mkdir()
    model = lstm_model()
    external_data_helper.convert_model_to_external_data(
        model, location="weights.bin", size_threshold=0
    )
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


def relocate(path: Path, location: str, **entries: str) -> None:
    """Let W of the model be somewhere else."""
    model = onnx.load(path, load_external_data=False)
    proto = model.graph.initializer[0]
    said = {"location": location, "offset": "0", "length": "192"} | entries
    del proto.external_data[:]
    for key, value in said.items():
        proto.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


def test_external_data_is_read_when_asked_for(outside: Path) -> None:
    with pytest.raises(fr.ModelFormatError, match="'W' is external data.*external_data=True"):
        fr.inspect(outside)
    layer = fr.load(outside, external_data=True)
    expected = fr.from_onnx(lstm_model())
    for name, array in expected.weights.items():
        np.testing.assert_array_equal(layer.weights[name], array)
    model = onnx.load(outside, load_external_data=False)
    with pytest.raises(fr.ModelFormatError, match="external_data=True and the path"):
        fr.from_onnx(model)


def test_a_length_that_is_not_said_is_that_of_the_tensor(outside: Path) -> None:
    model = onnx.load(outside, load_external_data=False)
    for proto in model.graph.initializer:
        kept = {each.key: each.value for each in proto.external_data if each.key != "length"}
        del proto.external_data[:]
        for key, value in kept.items():
            proto.external_data.add(key=key, value=value)
    outside.write_bytes(model.SerializeToString())
    assert fr.load(outside, external_data=True).architecture.hidden_size == 4


def test_data_in_folders_of_the_models_folder_is_read(outside: Path) -> None:
    inner = outside.parent / "a" / "b"
    inner.mkdir(parents=True)
    (outside.parent / "weights.bin").rename(inner / "w.bin")
    (outside.parent / "weights.bin").write_bytes((inner / "w.bin").read_bytes())
    relocate(outside, "./a/b/w.bin")
    assert fr.load(outside, external_data=True).architecture.hidden_size == 4


def test_data_outside_the_models_folder_is_never_read(outside: Path) -> None:
    folder = outside.parent
    secret = folder.parent / "secret.bin"
    secret.write_bytes((folder / "weights.bin").read_bytes())
    (folder / "link.bin").symlink_to(secret)
    (folder / "inside.bin").symlink_to("weights.bin")
    (folder / "up").symlink_to(folder.parent)
    os.link(secret, folder / "hard.bin")
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    for location, match in (
        ("../secret.bin", "not in the model's folder"),
        ("a/../../secret.bin", "not in the model's folder"),
        (str(secret), "not in the model's folder"),
        ("", "not in the model's folder"),
        (".", "not in the model's folder"),
        ("..\\secret.bin", "not a plain path"),
        ("a\0b", "not a plain path"),
        ("link.bin", "without links"),
        ("inside.bin", "without links"),
        ("up/secret.bin", "without links"),
        ("hard.bin", "hard link"),
        ("pipe", "not a regular file"),
        ("folder", "not a regular file"),
        ("missing.bin", "cannot be opened"),
        ("weights.bin/x", "cannot be opened"),
        ("x" * 5000, "cannot be opened"),
    ):
        relocate(outside, location)
        with pytest.raises(fr.ModelFormatError, match=match):
            fr.inspect(outside, external_data=True)


def test_data_beyond_the_file_is_an_error(outside: Path) -> None:
    for entries, match in (
        ({"offset": "1000000"}, "bytes, and 1000000"),
        ({"offset": "-4"}, "offset '-4'"),
        ({"offset": "x"}, "offset 'x'"),
        ({"offset": "9" * 40}, "offset"),
        ({"length": "4"}, "must have 192 bytes, got 4"),
        ({"length": ""}, "length ''"),
    ):
        relocate(outside, "weights.bin", **entries)
        with pytest.raises(fr.ModelFormatError, match=match):
            fr.inspect(outside, external_data=True)


def test_a_file_cut_short_after_it_was_looked_at_is_an_error(outside: Path) -> None:
    (layer,) = fr.inspect(outside, external_data=True).layers
    with (outside.parent / "weights.bin").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(fr.ModelFormatError, match="bytes"):
        layer.layer()


def test_weights_stay_outside_until_they_are_read(outside: Path) -> None:
    """A gigabyte that is declared, and there as a hole in the file, is not read."""
    data = outside.parent / "weights.bin"
    with data.open("r+b") as file:
        file.truncate(2**32)
    model = onnx.load(outside, load_external_data=False)
    model.graph.node.append(node("MatMul", "X", "big", outputs=("Z",)))
    big = TensorProto(name="big", data_type=TensorProto.FLOAT, dims=[2**14, 2**14])
    big.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", "4096"), ("length", str(2**30))):
        big.external_data.add(key=key, value=value)
    model.graph.initializer.append(big)
    outside.write_bytes(model.SerializeToString())
    tracemalloc.start()
    try:
        found = fr.inspect(outside, external_data=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.parts[0].macs_per_step == 2**28
    assert peak < 2**25


# ---- models that mean harm -----------------------------------------------------------------------


def field(number: int, data: bytes) -> bytes:
    """A field of bytes, as protobuf has it."""
    length, size = len(data), bytearray()
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([number << 3 | 2, *size, length]) + data


def nested(depth: int) -> bytes:
    """A model whose LSTM is in so many branches, one in the other."""
    graph = lstm_model().graph.SerializeToString()
    for _ in range(depth):
        attribute = (
            field(1, b"then_branch") + field(6, graph) + bytes([20 << 3 & 0x7F | 0x80, 1, 5])
        )
        graph = field(1, field(2, b"y") + field(4, b"If") + field(5, attribute))
    opset = field(8, bytes([2 << 3, 22]))
    return bytes([8, 10]) + field(7, graph) + opset


def test_deep_nesting_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "deep.onnx"
    path.write_bytes(nested(20))
    assert len(fr.inspect(path).layers) == 1
    for depth in (32, 100, 5000):
        path.write_bytes(nested(depth))
        with pytest.raises(fr.ModelFormatError, match="deep.onnx"):
            fr.inspect(path)


def test_functions_that_call_themselves_are_errors() -> None:
    call = node("F", "X", "W", "R", "B", domain="own")
    again = model_of([call], lstm(), functions=[own_function([call])])
    with pytest.raises(fr.ModelFormatError, match="without end"):
        contents_of(again)
    twice = own_function([call, node("F", "X", "W", "R", "B", outputs=("Z",), domain="own")])
    with pytest.raises(fr.ModelFormatError, match="without end"):
        contents_of(model_of([call], lstm(), functions=[twice]))


def test_functions_that_call_many_are_errors() -> None:
    functions = []
    for level in range(25):
        calls = [
            node(f"F{level + 1}", "X", outputs=(f"v{place}",), domain="own") for place in range(4)
        ]
        functions.append(helper.make_function("own", f"F{level}", ["X"], ["v0"], calls, []))
    made = model_of([node("F0", "X", domain="own")], functions=functions)
    with pytest.raises(fr.ModelFormatError, match="more than"):
        contents_of(made)


def test_declared_sizes_cost_nothing(tmp_path: Path) -> None:
    model = lstm_model()
    model.graph.initializer[0].dims[:] = [1, 2**40, 3]
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(fr.ModelFormatError, match="m.onnx: tensor 'W'.*bytes"):
        fr.inspect(tmp_path / "m.onnx")


def test_wrong_types_of_weights_are_errors() -> None:
    for dtype, error in ((np.int32, "floats"), (np.bool_, "floats")):
        arrays = {name: array.astype(dtype) for name, array in lstm().items()}
        with pytest.raises(fr.ModelFormatError, match=error):
            fr.from_onnx(model_of([recurrent_node("LSTM", hidden_size=4)], arrays))
    arrays = {name: array.astype(np.float64) * 1e300 for name, array in lstm().items()}
    with pytest.raises(fr.ModelFormatError, match="float32 cannot hold"):
        fr.from_onnx(model_of([recurrent_node("LSTM", hidden_size=4)], arrays))


def test_names_that_are_no_text_are_errors() -> None:
    data = lstm_model().SerializeToString()
    for name in (b"node", b"graph", b"Y_h", b"LSTM", b"hidden_size"):
        changed = data.replace(name, b"\xff" * len(name))
        model = onnx.ModelProto.FromString(changed)
        if name == b"graph":  # nobody needs it
            assert contents_of(model).layers
        else:
            with pytest.raises(fr.ModelFormatError, match="not UTF-8"):
                contents_of(model)


def test_attributes_of_another_type_are_errors() -> None:
    turned = node("Transpose", "A", outputs=("W",), perm=2)
    arrays = lstm()
    arrays["A"] = arrays.pop("W")
    with pytest.raises(fr.ModelFormatError, match="attribute 'perm' must be of type 7"):
        contents_of(model_of([turned, recurrent_node("LSTM")], arrays))
    made = node("Constant", outputs=("W",), value=2)
    with pytest.raises(fr.ModelFormatError, match="attribute 'value' must be of type 4"):
        contents_of(model_of([made, recurrent_node("LSTM")], arrays))


def test_many_nodes_of_one_name() -> None:
    nodes = [node("Gemm", "X", "A", outputs=(f"y{place}",), name="same") for place in range(3000)]
    names = [part.name for part in parts_of(nodes, {"A": floats(3, 4)}, outputs=())]
    assert len(set(names)) == 3000
    assert names[:3] == ["same", "same#2", "same#3"]


def test_a_model_without_a_graph_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x08\x0a")
    with pytest.raises(fr.ModelFormatError, match="no graph"):
        fr.inspect(tmp_path / "m.onnx")
