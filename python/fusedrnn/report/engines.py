"""THE TABLE of engines: what the benchmark measures, and how tables, plots and pages show it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["BASELINE", "ENGINES", "LIBRARIES", "OURS", "Engine"]


@dataclass(frozen=True)
class Engine:
    """Something that runs a recurrent layer.

    Attributes
    ----------
    name
        The name in results.
    label, short
        The name for people, and the same where there is little room.
    colour, dark
        The colour in plots and on a light page, and that on a dark page.
    marker
        The marker in plots, as arguments of matplotlib.
    line
        The style of its line in plots.
    modules
        The modules of another library that must be installed; none for naive NumPy and this package.
    extra
        The extra of this package that brings these modules.
    """

    name: str
    label: str
    short: str
    colour: str
    dark: str
    marker: dict[str, Any] = field(hash=False)
    line: str = "-"
    modules: tuple[str, ...] = ()
    extra: str = ""


#: In the order of tables and legends: on a small screen the first columns are seen first.
#: Numba's hollow squares are around the dots of C: both are seen where Numba and C are as fast.
ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine(
            *("naive", "naive NumPy", "NumPy", "#9a5b00", "#e0a552"),
            marker={"marker": "D", "markersize": 4},
        ),
        Engine(
            *("c", "fusedrnn C", "C", "#1d5fc4", "#7fb0ff"),
            marker={"marker": "o", "markersize": 4},
        ),
        Engine(
            *("numba", "fusedrnn Numba", "Numba", "#0b7a43", "#5ccb93"),
            marker={"marker": "s", "markersize": 7, "markerfacecolor": "none"},
            line="--",
        ),
        Engine(
            *("torch", "PyTorch", "PyTorch", "#c0305f", "#ff8fb1"),
            marker={"marker": "o", "markersize": 4.5},
            modules=("torch",),
            extra="torch",
        ),
        Engine(
            *("onnxruntime", "ONNX Runtime", "ONNX Runtime", "#6d4bc3", "#b39bff"),
            marker={"marker": "^", "markersize": 5},
            modules=("onnxruntime", "onnx"),
            extra="peers",
        ),
        Engine(
            *("openvino", "OpenVINO", "OpenVINO", "#0f7f8f", "#5cc8d6"),
            marker={"marker": "s", "markersize": 4},
            modules=("openvino",),
            extra="peers",
        ),
    )
}

#: What speed-ups are over.
BASELINE = "naive"
#: The engine of ours that other libraries are compared with.
OURS = "c"
#: Engines that are other people's.
LIBRARIES = tuple(name for name, engine in ENGINES.items() if engine.modules)
