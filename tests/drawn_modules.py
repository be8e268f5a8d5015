"""Recurrent modules: PyTorch's, drawn at random, and this package's own for each member of the family."""

from __future__ import annotations

from typing import Any

from conftest import FAMILY, oracle
from hypothesis import strategies as st

__all__ = ["module_of", "options_of_modules", "own_module"]


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


def own_module(name: str, input_size: int = 3, **more: Any) -> Any:
    """This package's module of 6 units for a member of the family."""
    from fusedrnn import torch as own

    cell, options = FAMILY[name]
    options = dict(options)
    if cell.cell == "rnn" and "activation" in options:
        options["nonlinearity"] = options.pop("activation")
    return getattr(own, cell.__name__)(input_size, 6, **options, **more)
