"""Recurrent nodes of ONNX: the conformance tests of ONNX itself, and what they do not see, against ONNX Runtime."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from onnx_models import run_node

from fusedrnn.formats.onnx_nodes import find_recurrent, is_recurrent

# ---- ONNX's own tests ----------------------------------------------------------------------------


@cache
def node_tests() -> dict[str, Any]:
    """ONNX's backend tests of recurrent operators, by name."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tests of other operators, which are all made
        cases = load_model_tests(kind="node")
    return {
        case.name: case
        for case in cases
        if case.model is not None
        and any(is_recurrent(node) for node in case.model.graph.node)
        and not any(node.domain for node in case.model.graph.node)
    }


NODE_TESTS = [
    *(
        f"test_{cell}_{name}"
        for cell in ("lstm", "gru", "simple_rnn")
        for name in (
            "defaults",
            "with_initial_bias",
            "batchwise",
            "reverse",
            "bidirectional",
        )
    ),
    "test_lstm_with_peepholes",
    "test_gru_seq_length",
    "test_rnn_seq_length",
]


def test_these_are_all_of_them() -> None:
    assert sorted(NODE_TESTS) == sorted(node_tests())


@pytest.mark.parametrize("name", NODE_TESTS)
def test_node_test(name: str) -> None:
    """The weights, which ONNX's test feeds, are made initializers: a layer must know them."""
    from onnx import ModelProto, numpy_helper

    case = node_tests()[name]
    ((given, expected),) = case.data_sets
    model = ModelProto.FromString(case.model.SerializeToString())
    feeds = dict(zip((each.name for each in model.graph.input), given, strict=True))
    for weight in ("W", "R", "B", "P"):
        if weight in feeds:
            model.graph.initializer.append(numpy_helper.from_array(feeds.pop(weight), weight))
            (place,) = (n for n, each in enumerate(model.graph.input) if each.name == weight)
            del model.graph.input[place]
    layers, parts = find_recurrent(model)
    assert (len(layers), parts) == (1, ())
    got = run_node(layers[0], feeds)
    for value, array in zip(model.graph.output, expected, strict=True):
        np.testing.assert_allclose(got[value.name], array, rtol=1e-3, atol=1e-7)
