"""Recurrent layers for CPUs at the speed of the machine, and the exact cost of any recurrent network.

>>> import fusedrnn as fr
>>> fr.count("lstm", input_size=128, hidden_size=256).parameters
394240

Names are imported when they are first used: counting needs neither NumPy nor the C extension.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fusedrnn import analysis as analysis
    from fusedrnn import init as init
    from fusedrnn import onnx as onnx
    from fusedrnn.architecture import Architecture as Architecture
    from fusedrnn.counting.counts import Complexity as Complexity
    from fusedrnn.counting.models import count as count
    from fusedrnn.errors import ArchitectureError as ArchitectureError
    from fusedrnn.errors import MissingExtraError as MissingExtraError
    from fusedrnn.errors import ModelFormatError as ModelFormatError
    from fusedrnn.errors import StreamBusyError as StreamBusyError
    from fusedrnn.errors import UnsupportedError as UnsupportedError
    from fusedrnn.formats.files import inspect as inspect
    from fusedrnn.formats.files import load as load
    from fusedrnn.formats.files import save as save
    from fusedrnn.formats.flax import from_equinox as from_equinox
    from fusedrnn.formats.flax import from_flax as from_flax
    from fusedrnn.formats.flax import from_tf1 as from_tf1
    from fusedrnn.formats.keras_file import from_keras as from_keras
    from fusedrnn.formats.onnx_file import from_onnx as from_onnx
    from fusedrnn.formats.onnx_write import to_onnx as to_onnx
    from fusedrnn.formats.torch_modules import from_torch as from_torch
    from fusedrnn.formats.torch_modules import to_state_dict as to_state_dict
    from fusedrnn.layers import GRU as GRU
    from fusedrnn.layers import LSTM as LSTM
    from fusedrnn.layers import RNN as RNN
    from fusedrnn.layers import ClockworkRNN as ClockworkRNN
    from fusedrnn.layers import ClockworkState as ClockworkState
    from fusedrnn.layers import GRUState as GRUState
    from fusedrnn.layers import Layer as Layer
    from fusedrnn.layers import LSTMState as LSTMState
    from fusedrnn.layers import RNNState as RNNState
    from fusedrnn.machine.info import info as info
    from fusedrnn.machine.limits import Machine as Machine
    from fusedrnn.machine.probe import this_machine as this_machine
    from fusedrnn.machine.roofline import Roofline as Roofline
    from fusedrnn.machine.roofline import roofline as roofline
    from fusedrnn.narrowing import Narrow as Narrow
    from fusedrnn.steps import clockwork_step as clockwork_step
    from fusedrnn.steps import gru_step as gru_step
    from fusedrnn.steps import lstm_step as lstm_step
    from fusedrnn.steps import rnn_step as rnn_step
    from fusedrnn.stream import Stream as Stream
    from fusedrnn.stream import StreamGroup as StreamGroup

_HOME = {
    "Architecture": "architecture",
    "ArchitectureError": "errors",
    "Complexity": "counting.counts",
    "ClockworkRNN": "layers",
    "ClockworkState": "layers",
    "GRU": "layers",
    "GRUState": "layers",
    "LSTM": "layers",
    "LSTMState": "layers",
    "Layer": "layers",
    "Machine": "machine.limits",
    "MissingExtraError": "errors",
    "ModelFormatError": "errors",
    "Narrow": "narrowing",
    "RNN": "layers",
    "RNNState": "layers",
    "Roofline": "machine.roofline",
    "Stream": "stream",
    "StreamBusyError": "errors",
    "StreamGroup": "stream",
    "UnsupportedError": "errors",
    "clockwork_step": "steps",
    "count": "counting.models",
    "from_equinox": "formats.flax",
    "from_flax": "formats.flax",
    "from_keras": "formats.keras_file",
    "from_onnx": "formats.onnx_file",
    "from_tf1": "formats.flax",
    "from_torch": "formats.torch_modules",
    "gru_step": "steps",
    "info": "machine.info",
    "inspect": "formats.files",
    "load": "formats.files",
    "lstm_step": "steps",
    "rnn_step": "steps",
    "roofline": "machine.roofline",
    "save": "formats.files",
    "this_machine": "machine.probe",
    "to_onnx": "formats.onnx_write",
    "to_state_dict": "formats.torch_modules",
}

#: Modules that are reached as attributes of the package, too.
_MODULES = ("analysis", "init", "onnx")

__all__ = ["__version__", *_HOME, *_MODULES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
