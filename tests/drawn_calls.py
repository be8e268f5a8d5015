"""Calls of layers to be recorded, drawn at random: every argument, and the gradients of every result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from conftest import FAMILY, options
from hypothesis import strategies as st

import fusedrnn as fr
from fusedrnn.cells import CELLS
from fusedrnn.kernels.reference import Function
from fusedrnn.training.tape import Gradients

Member = tuple[type[fr.Layer], dict[str, Any]]

#: The kernels: one for each row of the cell table.
ROWS = [row.kernel for rows in CELLS.values() for row in rows]


def row_of(name: str) -> str:
    """The kernel of a member of the family."""
    cell, chosen = FAMILY[name]
    return cell(3, 12, backend="numpy", **chosen).architecture.table.kernel


#: The members of the family that each kernel computes.
MEMBERS = {row: [name for name in FAMILY if row_of(name) == row] for row in ROWS}

#: What a call may have beside its sizes. Resets need layers whose every direction runs forward.
FORMS = st.fixed_dictionaries(
    {
        "layers": st.integers(1, 2),
        "direction": st.sampled_from(["forward", "forward", "reverse", "both"]),
        "bias": st.sampled_from([True, "double", False]),
        "layout": st.sampled_from(["time first", "batch first", "unbatched"]),
        "start": st.sampled_from(["zeros", "initial state", "given"]),
        "ragged": st.booleans(),
        "resets": st.booleans(),
    }
)


@dataclass(frozen=True)
class DrawnCall:
    """A layer, the arguments of one call of it, and the gradients of its results."""

    layer: fr.Layer
    x: np.ndarray
    state: list[np.ndarray] | None
    lengths: np.ndarray | None
    resets: np.ndarray | None
    dy: np.ndarray
    dstate: list[np.ndarray | None]

    def run(self) -> tuple[np.ndarray, Any]:
        return self.layer(self.x, self.state, self.lengths, resets=self.resets)

    def record(self, **chosen: Any) -> tuple[np.ndarray, Any, Any]:
        return self.layer.record(self.x, self.state, self.lengths, resets=self.resets, **chosen)

    def gradients(self, **chosen: Any) -> Gradients:
        return self.record(**chosen)[2].backward(self.dy, self.dstate)

    def differentiated(self) -> dict[str, np.ndarray]:
        """The arrays that have gradients: x, the given state, and the weights."""
        given = {} if self.state is None else dict(enumerate(self.state))
        states = {f"state {k}": array for k, array in given.items() if array.dtype.kind == "f"}
        return {"x": self.x, **states, **self.layer.weights}

    def at(self, arrays: dict[str, np.ndarray]) -> DrawnCall:
        """The same call elsewhere: with these arrays instead of :meth:`differentiated`."""
        state = self.state and [arrays.get(f"state {k}", a) for k, a in enumerate(self.state)]
        weights = {name: arrays[name] for name in self.layer.weights}
        return replace(self, layer=self.layer.with_weights(weights), x=arrays["x"], state=state)

    def float64(self) -> DrawnCall:
        """The same call in float64, by the specification."""
        layer, wide = self.layer, lambda a: a.astype(np.float64) if a.dtype.kind == "f" else a
        initial = layer.initial_state and [wide(array) for array in layer.initial_state]
        twin = type(layer).from_weights(
            {name: wide(array) for name, array in layer.weights.items()},
            backend="numpy",
            dtype="float64",
            batch_first=layer.batch_first,
            reverse=layer.architecture.reverse,
            initial_state=initial,
            **options(layer),
        )
        return replace(
            self,
            layer=twin,
            x=wide(self.x),
            state=self.state and [wide(array) for array in self.state],
            dy=wide(self.dy),
            dstate=[None if array is None else wide(array) for array in self.dstate],
        )


def draw_call(
    member: Member, form: dict[str, Any], steps: int, batch: int, inputs: int, hidden: int, seed: int, **chosen: Any
) -> DrawnCall:  # fmt: skip
    """A call of a layer of a family's member; ``chosen`` goes to the layer."""
    cell, cell_options = member
    random = np.random.default_rng(seed)
    dtype = np.dtype(chosen.get("dtype", "float32"))

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(dtype)

    def states(rows: tuple[int, ...]) -> list[np.ndarray]:
        like = cell(
            inputs, hidden, form["layers"], backend="numpy", bidirectional=both, **cell_options
        )
        shapes = [(each.shape[0], *rows, *each.shape[2:]) for each in like._signature.states]
        return [
            normal(*shape) / 2 if each.dtype.kind == "f" else random.integers(0, 9, shape)
            for shape, each in zip(shapes, like._signature.states, strict=True)
        ]  # fmt: skip

    both, unbatched = form["direction"] == "both", form["layout"] == "unbatched"
    layer = cell(
        inputs, hidden, form["layers"], bidirectional=both, reverse=form["direction"] == "reverse",
        bias=form["bias"], batch_first=form["layout"] == "batch first", seed=seed,
        initial_state=states(()) if form["start"] == "initial state" else None,
        **cell_options, **chosen,
    )  # fmt: skip
    axes = {"time first": (steps, batch), "batch first": (batch, steps), "unbatched": (steps,)}[
        form["layout"]
    ]
    rows = () if unbatched else (batch,)
    dstate = [array if array.dtype.kind == "f" else None for array in states(rows)]
    return DrawnCall(
        layer,
        normal(*axes, inputs),
        states(rows) if form["start"] == "given" else None,
        random.integers(0, steps + 1, batch) if form["ragged"] and not unbatched else None,
        random.random(axes) < 0.3 if form["resets"] and form["direction"] == "forward" else None,
        normal(*axes, layer.architecture.output_size),
        dstate,
    )


def gradients_by_name(gradients: Gradients) -> dict[str, np.ndarray]:
    """All gradients, by the names of :meth:`DrawnCall.differentiated`."""
    states = {f"state {k}": a for k, a in enumerate(gradients.state) if a is not None}
    return {"x": gradients.x, **states, **gradients.weights}


def near_a_kink(call: DrawnCall, distance: float) -> bool:
    """Whether a sum or a cell of a call in float64 is so near to where a derivative jumps."""
    jumps: list[bool] = []

    def watched(function: Function) -> Function:
        def value(x: np.ndarray) -> np.ndarray:
            far = distance * np.maximum(1, np.abs(x))
            jump = function.derivative(x + far) - function.derivative(x - far)
            jumps.append(bool((np.abs(jump) > 100 * distance * (1 + x * x)).any()))
            return function(x)

        return Function(value, function.derivative)

    twin = call.float64()
    engine: Any = twin.layer._engine
    names = ("gate", "state", "output", "clip", "cell_clip")
    engine._parameters = [
        replace(w, **{name: watched(getattr(w, name)) for name in names})
        for w in engine._parameters
    ]
    twin.run()
    return any(jumps)
