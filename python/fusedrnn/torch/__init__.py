"""Recurrent layers for PyTorch, run and trained by this package.

``model = fusedrnn.torch.convert(model)`` lets the recurrent modules of a model run here. A converted module stays what it
was: the same object, parameters, ``state_dict``, hooks and signature, and an instance of PyTorch's class. Only its
``forward`` is another. That runs the fused kernels, forward and backward, where it can, and PyTorch's own ``forward`` where
it cannot: for other types and devices, under ``torch.func``, for gradients in forward mode.

``fusedrnn.torch.LSTM``, ``GRU``, ``RNN`` and ``ClockworkRNN`` are modules with PyTorch's constructors, parameter names and
``state_dict``, and with this package's options.

Weights are packed at the first call, and again when one has changed: when it is another tensor or elsewhere in memory,
when its version counter moved (optimizers and ``load_state_dict`` move it), or when one of 16 samples of it differs
(``parameter.data.copy_(...)`` moves no counter).

Under ``torch.compile`` and ``torch.export`` a call is the operator ``fusedrnn::run``, or ``fusedrnn::record`` with gradients.
"""

from __future__ import annotations

from fusedrnn.errors import MissingExtraError

try:
    import torch  # noqa: F401
except ImportError:
    raise MissingExtraError("torch", "torch", "fusedrnn.torch") from None

from fusedrnn.torch.converted import convert, left_alone, revert
from fusedrnn.torch.layers import GRU, LSTM, RNN, ClockworkRNN

__all__ = ["GRU", "LSTM", "RNN", "ClockworkRNN", "convert", "left_alone", "revert"]
