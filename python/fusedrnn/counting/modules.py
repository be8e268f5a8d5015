"""What a PyTorch module costs: its layers, found by walking its modules.

Nothing is run. Parameters are those that the module has; a parameter that several modules share counts once. Multiply-adds
follow from the sizes; where they do not, because they depend on an image's positions or because the class of a module
is not known, they are unknown, and so are the totals.

This module does not import PyTorch: who has a module of its has imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from fusedrnn.architecture import Architecture
from fusedrnn.counting.counts import count
from fusedrnn.counting.network import Array, Layer, Network
from fusedrnn.counting.result import Figure
from fusedrnn.formats.torch_modules import CLASSES, own_architecture
from fusedrnn.formats.torch_quantized import quantized_class

__all__ = ["network_of"]

#: A module or a parameter of PyTorch.
Module = Any

UNSEEN = "What the code of a module computes beside its layers, as a product of two outputs, is not seen."


@dataclass(frozen=True)
class _Cost:
    """What a class of modules says of one of them.

    Attributes
    ----------
    kind
        Of the layer.
    sizes
        Width of a row that it reads and that it gives; None where that is not known.
    macs
        Multiply-adds of a step; None where they are not known.
    peak
        Of the step with most of them; None where that is every one.
    note
        What the sizes do not say.
    """

    kind: str
    sizes: tuple[int | None, int | None] = (None, None)
    macs: Figure | None = 0
    peak: int | None = None
    note: str = ""

    def most(self) -> int | None:
        """Multiply-adds of the step with most of them."""
        if self.peak is not None or self.macs is None:
            return self.peak
        return int(self.macs)


def network_of(model: Module, *, steps: int = 1) -> Network:
    """The layers of a module, in the order in which it has them.

    Parameters
    ----------
    model
        A ``torch.nn.Module``.
    steps
        T: how many steps an attention looks at.

    Raises
    ------
    ValueError
        If a parameter has no shape yet: that of a lazy module that has not run.
    """
    layers: list[Layer] = []
    seen: dict[int, str] = {}
    for name, module, cost in _parts(model, "", steps):
        own = cost is None  # a module of other modules: only what it has of its own
        arrays = tuple(_arrays(name, module, seen, recurse=not own))
        layers.append(
            Layer(
                name=name or type(module).__name__,
                kind="?" if cost is None else cost.kind,
                reads=(),
                input_size=None if cost is None else cost.sizes[0],
                output_size=None if cost is None else cost.sizes[1],
                arrays=arrays,
                macs_per_step=None if cost is None else cost.macs,
                peak_macs_per_step=None if cost is None else cost.most(),
                note=f"{type(module).__name__} is no layer that is known"
                if cost is None
                else cost.note,
                stored=sum(array.elements for array in arrays if not array.shared),
            )
        )
    constants = tuple(
        Array(name, tuple(buffer.shape), False, prod(buffer.shape))
        for name, buffer in model.named_buffers()
    )
    kind = type(model).__name__
    return Network(
        kind, tuple(layers), origin="PyTorch module", constants=constants, notes=(UNSEEN,)
    )


def _parts(module: Module, name: str, steps: int) -> Iterator[tuple[str, Module, _Cost | None]]:
    """Every module that may cost something, and what it costs: None for one that is not known."""
    cost = _cost(module, steps)
    if cost is not None:
        if quantized_class(module) or any(True for _ in module.parameters()):
            yield name, module, cost
        return
    # A module of somebody else's may have weights that are no parameters: quantized ones are packed.
    alone = not module._modules and not type(module).__module__.startswith("torch.nn.modules.")
    if alone or any(True for _ in module.parameters(recurse=False)):
        yield name, module, None
    # named_children has a module once that stands at two places, and runs at both.
    for child_name, child in module._modules.items():
        if child is not None:
            yield from _parts(child, f"{name}.{child_name}" if name else child_name, steps)


def _arrays(name: str, module: Module, seen: dict[int, str], *, recurse: bool) -> Iterator[Array]:
    torch = sys.modules["torch"]
    if quantized_class(module):  # packed arrays are no parameters
        for each in _architecture(module).weights():
            yield Array(each.name, each.shape, each.kind == "bias", each.elements)
    for own, parameter in module.named_parameters(recurse=recurse, remove_duplicate=False):
        if isinstance(parameter, torch.nn.parameter.UninitializedTensorMixin):
            where = f"{name}.{own}".lstrip(".")
            raise ValueError(  # noqa: TRY004  (it is of the right type, and not ready)
                f"{where} has no shape yet: run the lazy module once before it is counted"
            )
        owner = seen.get(id(parameter))
        seen.setdefault(id(parameter), name or type(module).__name__)
        shape = tuple(parameter.shape)
        yield Array(own, shape, "bias" in own.rpartition(".")[2], prod(shape), owner)


# ---- classes -------------------------------------------------------------------------------------


def _cost(module: Module, steps: int) -> _Cost | None:
    """What a module costs; None if its class, or its way to run, is not known."""
    if quantized_class(module):
        return _of_cell(_architecture(module))
    own = own_architecture(module)
    if own is not None:
        runs = type(module).forward.__module__ == "fusedrnn.torch.layers"
        return _of_cell(own) if runs else None
    nn = sys.modules["torch"].nn
    for names, function in _KNOWN:
        for name in names:
            known = getattr(nn, name, None)
            if known is not None and isinstance(module, known):
                # A subclass that runs otherwise may do anything; one that this package converted does the same.
                forward = type(module).forward
                same = forward is known.forward or forward.__module__ == "fusedrnn.torch.converted"
                return function(module, steps) if same else None
    return None


def _recurrent(module: Module, steps: int) -> _Cost:
    return _of_cell(_architecture(module))


def _architecture(module: Module) -> Architecture:
    nn = sys.modules["torch"].nn
    theirs = quantized_class(module) or next(
        name for name in CLASSES if isinstance(module, getattr(nn, name))
    )
    return Architecture(
        CLASSES[theirs],
        module.input_size,
        module.hidden_size,
        getattr(module, "num_layers", 1),
        bidirectional=getattr(module, "bidirectional", False),
        proj_size=getattr(module, "proj_size", 0),
        bias="double" if module.bias else "none",
    )


def _of_cell(architecture: Architecture) -> _Cost:
    sizes = architecture.input_size, architecture.output_size
    cost = count(architecture)
    return _Cost(architecture.cell, sizes, cost.macs_per_step, cost.peak_macs_per_step)


def _dense(module: Module, steps: int) -> _Cost:
    sizes = module.in_features, module.out_features
    return _Cost("dense", sizes, prod(sizes))


def _embedding(module: Module, steps: int) -> _Cost:
    return _Cost("embedding", (1, module.embedding_dim))


def _elementwise(kind: str) -> Callable[[Module, int], _Cost]:
    return lambda module, steps: _Cost(kind)


def _convolution(module: Module, steps: int) -> _Cost:
    sizes = module.in_channels, module.out_channels
    if len(module.kernel_size) > 1:
        return _Cost(
            "convolution", sizes, None, None, "how many positions it has depends on its input"
        )
    macs = prod(sizes) // module.groups * module.kernel_size[0]
    return _Cost("convolution", sizes, macs, None, "one position a step")


def _attention(module: Module, steps: int) -> _Cost:
    width = module.embed_dim
    # Of a step: queries and outputs, keys and values; then scores and their sum, over all steps.
    macs = 2 * width * width + (module.kdim + module.vdim) * width + 2 * steps * width
    note = f"each step looks at {steps:,} steps"
    return _Cost("attention", (width, width), macs, None, note)


#: Names of classes, and what an object of them costs.
_KNOWN: tuple[tuple[tuple[str, ...], Callable[[Module, int], _Cost]], ...] = (
    (tuple(CLASSES), _recurrent),
    (("Linear",), _dense),
    (("Embedding", "EmbeddingBag"), _embedding),
    (
        ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"),
        _convolution,
    ),
    (
        (
            "BatchNorm1d",
            "BatchNorm2d",
            "BatchNorm3d",
            "SyncBatchNorm",
            "InstanceNorm1d",
            "InstanceNorm2d",
            "InstanceNorm3d",
            "LayerNorm",
            "GroupNorm",
            "RMSNorm",
        ),
        _elementwise("normalisation"),
    ),
    (("PReLU",), _elementwise("activation")),
    (("MultiheadAttention",), _attention),
)
