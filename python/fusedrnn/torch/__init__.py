"""PyTorch's recurrent modules, run by this package: ``model = fusedrnn.torch.convert(model)``, for inference.

A converted module stays what it was: the same object, parameters, ``state_dict``, hooks and signature, and an instance of
PyTorch's class. Only its ``forward`` is another. That runs the fused kernels where it can, and PyTorch's own ``forward``
where it cannot: when a gradient is asked for, in training with dropout, under autocast, for other types and devices.

Weights are packed at the first call, and again when one has changed: when it is another tensor or elsewhere in memory,
when its version counter moved (optimizers and ``load_state_dict`` move it), or when one of 16 samples of it differs
(``parameter.data.copy_(...)`` moves no counter).

Under ``torch.compile`` and ``torch.export`` a converted module is the operator ``fusedrnn::run``.
"""

from __future__ import annotations

from fusedrnn.errors import MissingExtraError

try:
    import torch  # noqa: F401
except ImportError:
    raise MissingExtraError("torch", "torch", "fusedrnn.torch") from None

import fusedrnn.torch.operators  # noqa: F401  registers them
from fusedrnn.torch.converted import convert, left_alone, revert

__all__ = ["convert", "left_alone", "revert"]
