"""ONNX models as a whole: ONNX Runtime runs them, cut at their recurrent nodes, which run here.

>>> import fusedrnn as fr
>>> session = fr.onnx.session("model.onnx")  # doctest: +SKIP
>>> y, h = session.run(["y", "h"], {"x": x})  # doctest: +SKIP
>>> print(session.report)  # doctest: +SKIP
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from fusedrnn.errors import MissingExtraError

if TYPE_CHECKING:
    from fusedrnn.engines.threads import Threads
    from fusedrnn.onnx.sessions import Session

__all__ = ["session"]


def session(
    model: str | os.PathLike[str] | Any,
    *,
    external_data: bool = False,
    threads: Threads = 1,
    backend: str = "auto",
    **ort_options: Any,
) -> Session:
    """A session that runs an ONNX model as ``onnxruntime.InferenceSession`` does, but for its recurrent nodes.

    LSTM, GRU and RNN nodes of the main graph, and of functions, run here. What a graph inside an If, Loop or Scan holds,
    what has weights that are known at run time only, and what is no layer of this package, is left to ONNX Runtime:
    ``session.report`` says so.

    Parameters
    ----------
    model
        A path, or an ``onnx.ModelProto``.
    external_data
        Whether weights in other files of the model's own folder may be read.
    threads
        Number of threads that may compute, here and in ONNX Runtime; "auto": each chooses.
    backend
        Of the layers, as in :class:`fusedrnn.LSTM`. "auto" leaves to ONNX Runtime what only "numpy" has.
    **ort_options
        Attributes of ``onnxruntime.SessionOptions``; and ``providers``, a list of names.

    Returns
    -------
    Session
        With ``run(output_names, feeds)``, ``get_inputs()``, ``get_outputs()`` and ``report``.

    Raises
    ------
    ModelFormatError
        If the model is damaged, or ONNX Runtime refuses a part of it.
    MissingExtraError
        If onnx or onnxruntime is not installed.

    Notes
    -----
    Results are those of ONNX Runtime to rounding, with these differences: NaN in the input of a recurrent node comes
    out, where ONNX Runtime has numbers; the state of a sequence of length 0 is its initial state, where ONNX Runtime has
    zeros; layout=1 and batches of 0 run.
    """
    for package in ("onnx", "onnxruntime"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "onnxruntime", "a session")
    from fusedrnn.onnx.sessions import Session

    return Session(
        model,
        external_data=external_data,
        threads=threads,
        backend=backend,
        ort_options=ort_options,
    )
