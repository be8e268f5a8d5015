"""Keras' layers that are not recurrent, as parts by kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fusedrnn.formats.contents import Part, Tensor

__all__ = ["part_of"]

KINDS = {
    **dict.fromkeys(("Dense", "EinsumDense", "TimeDistributedDense"), "dense"),
    **dict.fromkeys(
        (
            *("Conv1D", "Conv2D", "Conv3D", "Convolution1D", "Convolution2D", "SeparableConv1D"),
            *("SeparableConv2D", "DepthwiseConv1D", "DepthwiseConv2D", "Conv1DTranspose"),
            *("Conv2DTranspose", "Conv3DTranspose"),
        ),
        "convolution",
    ),
    "Embedding": "embedding",
    **dict.fromkeys(
        (
            *("BatchNormalization", "LayerNormalization", "GroupNormalization"),
            *("UnitNormalization", "RMSNormalization", "Normalization"),
        ),
        "normalisation",
    ),
    **dict.fromkeys(
        ("MultiHeadAttention", "GroupedQueryAttention", "GroupQueryAttention"), "attention"
    ),
    **dict.fromkeys(("Attention", "AdditiveAttention"), "attention"),
    **dict.fromkeys(("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"), "cell"),
}


def part_of(kind: str, config: Mapping[str, Any], name: str, tensors: Sequence[Tensor]) -> Part:
    """A layer of a class that is not recurrent.

    Parameters
    ----------
    kind, config
        Its class and configuration.
    name
        In its model.
    tensors
        Its arrays, in Keras' order.
    """
    what = KINDS.get(kind, "?")
    macs, note = _macs(kind, config, tensors)
    biases = set()
    if (
        what in ("dense", "convolution")
        and config.get("use_bias") is not False
        and len(tensors) > 1
    ):
        biases = {tensors[-1].name}
    elif kind in ("MultiHeadAttention", "GroupedQueryAttention", "GroupQueryAttention"):
        biases = {each.name for each in tensors if len(each.shape) < 3}
    return Part(name, what, kind, tuple(tensors), frozenset(biases), macs, note)


def _macs(
    kind: str, config: Mapping[str, Any], tensors: Sequence[Tensor]
) -> tuple[int | None, str]:
    """Multiply-adds of a step, and what is to be said."""
    if kind in ("Dense", "TimeDistributedDense") and tensors:
        return tensors[0].elements, ""
    if KINDS.get(kind) in ("embedding", "normalisation"):
        return 0, ""
    if kind in ("Conv1D", "Convolution1D") and tensors:
        strides = config.get("strides", config.get("subsample_length", 1))
        if strides in (1, [1]) and config.get("groups", 1) == 1:
            return tensors[0].elements, ""
        return None, "a step with a stride or groups"
    if KINDS.get(kind) == "convolution":
        return None, "how many positions there are is not told by the file"
    if KINDS.get(kind) == "attention":
        return None, "how many steps are looked at is not told by the file"
    if KINDS.get(kind) == "cell":
        return None, "a convolutional recurrent layer, which is not read as one"
    return None, ""
