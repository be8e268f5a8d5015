"""Recurrent modules of PyTorch, drawn at random: options for hypothesis, and the module that they make."""

from __future__ import annotations

from typing import Any

from conftest import oracle
from hypothesis import strategies as st

__all__ = ["module_of", "options_of_modules"]


def options_of_modules(**more: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Options of ``nn.RNN``, ``nn.LSTM`` and ``nn.GRU``. "variant" is relu of an RNN, and a projection of an LSTM."""
    return st.fixed_dictionaries(
        {
            "kind": st.sampled_from(["RNN", "LSTM", "GRU"]),
            "input_size": st.integers(1, 9),
            "hidden_size": st.integers(2, 17),
            "num_layers": st.integers(1, 3),
            "bias": st.booleans(),
            "batch_first": st.booleans(),
            "bidirectional": st.booleans(),
            "variant": st.booleans(),
            **more,
        }
    )


def module_of(options: dict[str, Any]) -> Any:
    """The module, in eval mode."""
    torch = oracle("torch")
    chosen = dict(options)
    kind, variant = chosen.pop("kind"), chosen.pop("variant")
    if kind == "LSTM" and variant:
        chosen["proj_size"] = chosen["hidden_size"] // 2
    if kind == "RNN" and variant:
        chosen["nonlinearity"] = "relu"
    chosen["dtype"] = getattr(torch, chosen.pop("dtype", "float32"))
    return getattr(torch.nn, kind)(**chosen).eval()
