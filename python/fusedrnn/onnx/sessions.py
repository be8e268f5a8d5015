"""A session: an ONNX model opened, cut and run."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, helper

from fusedrnn.engines.threads import Threads, checked_threads
from fusedrnn.errors import ModelFormatError
from fusedrnn.formats.onnx_file import parsed
from fusedrnn.formats.onnx_nodes import node_name
from fusedrnn.formats.onnx_tensors import Store
from fusedrnn.onnx.cut import RUN_TIME, Cut, opened
from fusedrnn.onnx.cut import Step as Planned
from fusedrnn.onnx.moves import VIEWS
from fusedrnn.onnx.pieces import extracted, inferred_types, type_of, type_text
from fusedrnn.onnx.report import HERE, ORT, NodeReport, SessionReport
from fusedrnn.onnx.steps import LayerStep, MoveStep, PieceStep, Step, Values

__all__ = ["Session", "Value"]

Array = npt.NDArray[Any]
#: A message of ONNX's protobuf.
Proto = Any

PROVIDERS = ("CPUExecutionProvider",)
#: Names of types for which NumPy's dtypes have others.
DTYPES = {"float": "float32", "double": "float64"}


@dataclass(frozen=True)
class Value:
    """An input or output of a model, as ONNX Runtime's sessions describe it.

    Attributes
    ----------
    name
        In the model.
    type
        "tensor(float)", "tensor(int64)", ...; "" where the model does not say.
    shape
        Lengths of the axes: ints, names, or None for one that the model says nothing of; None for an unknown number.
    """

    name: str
    type: str
    shape: tuple[int | str | None, ...] | None

    @classmethod
    def of(cls, proto: Proto) -> Value:
        """That of a ValueInfoProto."""
        shape = None
        if proto.type.HasField("tensor_type") and proto.type.tensor_type.HasField("shape"):
            shape = tuple(
                dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
                for dim in proto.type.tensor_type.shape.dim
            )
        return cls(proto.name, type_text(proto.type), shape)


class _Input:
    """An input of a session, and the check of what is given for it."""

    def __init__(self, value: Value) -> None:
        self.name, self.value = value.name, value
        self._kind = value.type.removeprefix("tensor(").removesuffix(")")
        self._is_tensor = value.type.startswith("tensor(")
        self._dtype: np.dtype[Any] | None = None
        if self._is_tensor:
            try:
                self._dtype = np.dtype(DTYPES.get(self._kind, self._kind))
            except TypeError:
                pass
        if self._dtype is not None and self._dtype.kind not in "fiubc":
            self._dtype = None
        shape = value.shape
        self._axes = None if shape is None else len(shape)
        self._fixed = [
            (axis, length) for axis, length in enumerate(shape or ()) if isinstance(length, int)
        ]

    def check(self, given: Any) -> Any:
        """The value as steps take it."""
        if type(given) is not np.ndarray:
            if not self._is_tensor:
                return given
            if hasattr(given, "numpy"):  # an OrtValue
                given = given.numpy()
            given = np.asarray(given, None if hasattr(given, "dtype") else self._dtype)
        if self._dtype is None:
            return given
        if given.dtype != self._dtype:
            raise TypeError(f"input {self.name!r} must be {self._dtype}, got {given.dtype}")
        if self._axes is not None:
            if given.ndim != self._axes:
                self._refuse(given)
            shape = given.shape
            for axis, length in self._fixed:
                if shape[axis] != length:
                    self._refuse(given)
        return given

    def _refuse(self, given: Array) -> NoReturn:
        axes = ", ".join(str(length or "?") for length in self.value.shape or ())
        raise ValueError(f"input {self.name!r} must have shape ({axes}), got {given.shape}")


class Session:
    """An ONNX model that ONNX Runtime runs, but for its recurrent nodes, which run here. From :func:`session`.

    One session may be used from several threads at once. It cannot be pickled: make it anew from its model.
    """

    def __init__(
        self,
        model: Any,
        *,
        external_data: bool,
        threads: Threads,
        backend: str,
        ort_options: Mapping[str, Any],
    ) -> None:
        threads = checked_threads(threads)
        self._open = _opener(threads, ort_options)
        proto, store = _parsed(model, external_data)
        proto, view = opened(proto, store)
        cut = Cut(proto, view, backend)
        graph = view.graph
        optional = set(view.initializers) & view.inputs
        self._inputs = [_Input(Value.of(each)) for each in graph.input if each.name not in optional]
        self._optional = (
            {each.name: _Input(Value.of(each)) for each in graph.input if each.name in optional}
            if view.overridable
            else {}
        )
        self._input_values = [each.value for each in self._inputs]
        self._fixed = _fixed(cut)
        self._path = store.path
        self._build(cut, threads, backend)

    # ---- making it -------------------------------------------------------------------------------

    def _build(self, cut: Cut, threads: Threads, backend: str) -> None:
        graph = cut.view.graph
        types = inferred_types(cut.model)
        wanted = set(cut.outputs)
        last_use = {
            name: number
            for number, step in enumerate(cut.steps)
            for place in step.nodes
            for name in cut.reads[place]
            if name not in wanted and cut.maker.get(name) not in step.nodes
        }
        done: list[list[str]] = [[] for _ in cut.steps]
        for name, number in last_use.items():
            done[number].append(name)
        self._steps: list[tuple[Step, list[str]]] = []
        reports: dict[int, NodeReport] = {}
        for number, step in enumerate(cut.steps):
            made: Step
            if step.kind == "piece":
                made = self._piece(cut, step, types)
            elif step.kind == "move":
                made = _move(cut, step.nodes[0])
            else:
                made, reports[step.nodes[0]] = _layer(cut, step.nodes[0], threads, backend)
            if step.kind != "piece":
                _add_types(cut, step, types)
            self._steps.append((made, done[number]))
        stored = [each.name for each in graph.output if cut.constant(each.name)]
        self._stored = {name: np.array(cut.view.constant(name)) for name in stored}
        self._copied = _shared(cut)
        self._output_values = [
            Value.of(each if type_text(each.type) else _typed(each.name, types))
            for each in graph.output
        ]
        self._output_names = list(cut.outputs)
        left = [NodeReport(each.name, each.operator, ORT, each.reason) for each in cut.left]
        planned = {place for step in cut.steps for place in step.nodes}
        self._report = SessionReport(
            self._path,
            (*(reports[place] for place in sorted(reports)), *left),
            tuple(len(step.nodes) for step in cut.steps if step.kind == "piece"),
            len(cut.moves),
            len(cut.nodes) - len(planned),
        )

    def _piece(self, cut: Cut, step: Planned, types: dict[str, Proto]) -> PieceStep:
        made = [name for place in step.nodes for name in cut.nodes[place].output if name]
        inside = set(step.nodes)
        outputs = [
            name
            for name in made
            if name in cut.outputs or not inside.issuperset(cut.readers.get(name, ()))
        ]
        piece, inputs, defaults = extracted(cut, step.nodes, outputs, types)
        try:
            session = self._open(piece.SerializeToString())
        except Exception as error:  # ONNX Runtime's own classes have no common one
            what = cut.view.store.path or "the model"
            raise ModelFormatError(f"{what}: ONNX Runtime refuses it: {error}") from error
        for each in session.get_outputs():
            if each.name not in types:
                types[each.name] = type_of(each.type, each.shape)
        return PieceStep(session, inputs, defaults, outputs)

    # ---- what it is ------------------------------------------------------------------------------

    @property
    def report(self) -> SessionReport:
        """Which nodes run where, and why."""
        return self._report

    def get_inputs(self) -> list[Value]:
        """The inputs that a call must give."""
        return list(self._input_values)

    def get_outputs(self) -> list[Value]:
        """The outputs."""
        return list(self._output_values)

    def __repr__(self) -> str:
        recurrent, pieces = self._report.recurrent, len(self._report.pieces)
        here = sum(node.runs_in == HERE for node in recurrent)
        return (
            f"<fusedrnn.onnx.Session of {self._path or 'a model in memory'}: {here} of {len(recurrent)} recurrent "
            f"nodes here, {pieces} piece{'s' * (pieces != 1)} in onnxruntime>"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Session cannot be pickled: make it anew from its model")

    # ---- running it ------------------------------------------------------------------------------

    def run(self, output_names: Sequence[str] | None, feeds: Mapping[str, Any]) -> list[Any]:
        """Run the model once.

        Parameters
        ----------
        output_names
            Which outputs are wanted; None or empty for all.
        feeds
            The inputs by name: arrays. They are not written to.

        Returns
        -------
        list
            The outputs: new arrays.

        Raises
        ------
        TypeError, ValueError
            If an input is missing, unknown, or of another type or shape than the model says; the message names it.
        """
        values = self._checked(feeds)
        names = self._output_names
        if output_names:
            for name in output_names:
                if name not in names:
                    listed = ", ".join(map(repr, names))
                    raise ValueError(f"there is no output {name!r}; the outputs are {listed}")
            names = list(output_names)
        for step, done in self._steps:
            step(values)
            for name in done:
                del values[name]
        values |= self._stored
        return [self._given_out(name, values[name]) for name in names]

    def _given_out(self, name: str, value: Any) -> Any:
        """An output in C's order, as ONNX Runtime gives it, whose memory is the caller's alone."""
        if type(value) is not np.ndarray:
            return value
        return (np.array if name in self._copied else np.asarray)(value, order="C")

    def _checked(self, feeds: Mapping[str, Any]) -> Values:
        values: Values = {}
        for each in self._inputs:
            name = each.name
            if name not in feeds:
                listed = ", ".join(repr(one.name) for one in self._inputs)
                raise ValueError(f"input {name!r} is missing; the inputs are {listed}")
            values[name] = each.check(feeds[name])
        if len(values) < len(feeds):
            for name in feeds:
                if name in values:
                    continue
                if name in self._fixed:
                    raise ValueError(
                        f"input {name!r} is a constant of {self._fixed[name]}, which was made when the model was "
                        "opened: it cannot be replaced"
                    )
                if name not in self._optional:
                    close = difflib.get_close_matches(name, values, 1)
                    hint = f"; did you mean {close[0]!r}?" if close else ""
                    raise ValueError(f"there is no input {name!r}{hint}")
                values[name] = self._optional[name].check(feeds[name])
        return values


# ---- parts ---------------------------------------------------------------------------------------


def _parsed(model: Any, external_data: bool) -> tuple[Proto, Store]:
    if isinstance(model, (str, os.PathLike)):
        return parsed(Path(model), external_data=external_data)
    if not isinstance(model, ModelProto):
        raise TypeError(f"model must be a path or an onnx.ModelProto, not {type(model).__name__}")
    return model, Store()


def _opener(threads: Threads, given: Mapping[str, Any]) -> Callable[[bytes], Any]:
    """What makes an InferenceSession of bytes."""
    import onnxruntime

    said = dict(given)
    providers = list(said.pop("providers", PROVIDERS))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 0 if threads == "auto" else threads
    options.inter_op_num_threads = 1
    known = [
        name for name in dir(type(options)) if isinstance(getattr(type(options), name), property)
    ]
    for name, value in said.items():
        if name not in known:
            raise TypeError(
                f"onnxruntime.SessionOptions has no {name!r}; it has {', '.join(known)}; and there is 'providers'"
            )
        setattr(options, name, value)
    return lambda data: onnxruntime.InferenceSession(data, options, providers=providers)


def _layer(cut: Cut, place: int, threads: Threads, backend: str) -> tuple[LayerStep, NodeReport]:
    node, found = cut.nodes[place], cut.layers[place]
    layer = found.layer(backend=backend, threads=threads)
    inputs = cut.run_time_inputs(place)
    used = [name if name in cut.readers or name in cut.outputs else "" for name in node.output]
    step = LayerStep(
        f"node {node_name(node)!r} ({node.op_type})",
        layer,
        batch_first=found.batch_first,
        inputs=inputs,
        constants={n: cut.view.constant(n) for n in inputs.values() if cut.constant(n)},
        outputs=[*used, "", "", ""][:3],
    )
    # What is said of these is for who calls the layer alone.
    notes = tuple(note for note in found.notes if not note.startswith(RUN_TIME))
    return step, NodeReport(node_name(node), node.op_type, HERE, repr(layer), notes)


def _move(cut: Cut, place: int) -> MoveStep:
    node = cut.nodes[place]
    function, data = cut.move_of(place)
    constants = {name: cut.view.constant(name) for name in data if cut.constant(name)}
    output = next(filter(None, node.output))
    what = f"node {node_name(node)!r} ({node.op_type})"
    return MoveStep(what, function, data, constants, output)


def _fixed(cut: Cut) -> dict[str, str]:
    """Inputs whose defaults went into a layer or a move, and which."""
    found = {}
    for place in {*cut.layers, *cut.moves} & set(cut.reads):
        for name in filter(None, cut.nodes[place].input):
            if cut.constant(name):
                for each in cut.view.replaceable(name):
                    found[each] = f"node {node_name(cut.nodes[place])!r}"
    return found


def _shared(cut: Cut) -> frozenset[str]:
    """The outputs whose memory is that of an input, of a constant, or of another output: what is given out is a copy."""
    roots: dict[str, list[str]] = {}
    for name in cut.outputs:
        root = name
        while (place := cut.maker.get(root)) in cut.moves:
            node = cut.nodes[place]
            if node.op_type not in VIEWS:
                break
            root = node.input[0]
        roots.setdefault(root, []).append(name)
    ends = set(cut.view.inputs) | set(cut.view.initializers)
    return frozenset(
        name
        for root, names in roots.items()
        if root in ends or cut.constant(root) or len(names) > 1
        for name in names
    )


def _add_types(cut: Cut, step: Planned, types: dict[str, Proto]) -> None:
    """The types of what a step gives that runs here, where they could not be inferred."""
    (place,) = step.nodes
    node = cut.nodes[place]
    if step.kind == "move":
        data = node.input if node.op_type == "Concat" else node.input[:1]
        made = next(types[name] for name in (*node.output, *data) if name in types)
        if made.HasField("tensor_type"):
            made = helper.make_tensor_type_proto(made.tensor_type.elem_type, None)
        shapes = {node.output[0]: made}
    else:
        found = cut.layers[place]
        lengths: list[int | None] = [found.architecture.directions, found.architecture.hidden_size]
        y, state = [None, lengths[0], None, lengths[1]], [lengths[0], None, lengths[1]]
        if found.batch_first:
            y, state = [None, None, *lengths], [None, *lengths]
        shapes = {
            name: helper.make_tensor_type_proto(TensorProto.FLOAT, shape)
            for name, shape in zip(node.output, (y, state, state), strict=False)
        }
    for name, each in shapes.items():
        types.setdefault(name, each)


def _typed(name: str, types: Mapping[str, Proto]) -> Proto:
    return helper.make_value_info(name, types.get(name) or helper.make_tensor_type_proto(0, None))
