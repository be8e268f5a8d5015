"""The backward pass of the Clockwork RNN: as in C, beside that of the RNN, in ``rnn_back.py``."""

from __future__ import annotations

from fusedrnn.kernels import rnn_back
from fusedrnn.kernels.policy import BackKernel

__all__ = ["kernel"]


def kernel(isa: str, _form: str) -> BackKernel:
    """The backward kernel for one instruction set; there is one form."""
    return rnn_back.kernels(isa)["clockwork"]
