"""How long Numba takes to compile each kernel of float32 weights, and to read it from its cache: each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

from fusedrnn.cells import CELLS
from fusedrnn.kernels.compiled import Role

__all__ = ["compile_seconds"]

#: Numba itself is imported first: that is not compiling.
_CODE = """
import json, sys, time
import numba
from fusedrnn.engines.native import active_isa
from fusedrnn.kernels.compiled import build
start = time.perf_counter()
kernel = build(sys.argv[1], active_isa(), sys.argv[2])
print(json.dumps([time.perf_counter() - start, kernel.cached]))
"""


def compile_seconds(cell: str, role: Role = "forward") -> dict[str, float]:
    """Of one kernel, with an empty cache ("compile") and with what that left there ("cached").

    The instruction set is that of ``FUSEDRNN_ISA``, or else the best one.

    Raises
    ------
    RuntimeError
        If the kernel could not be compiled, or was in the cache when it should not be, or not when it should.
    """
    if cell not in CELLS:
        raise ValueError(f"cell must be one of {', '.join(CELLS)}, got {cell!r}")
    found = {}
    with tempfile.TemporaryDirectory(prefix="fusedrnn-numba-") as folder:
        for name in ("compile", "cached"):
            done = subprocess.run(
                [sys.executable, "-c", _CODE, CELLS[cell][0].kernel, role],
                env={**os.environ, "NUMBA_CACHE_DIR": folder},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise RuntimeError(f"the {role} Numba kernel of {cell} was not compiled: {reason}")
            seconds, cached = json.loads(done.stdout)
            if cached != (name == "cached"):
                raise RuntimeError(
                    f"the cache of the {role} Numba kernel of {cell} was not as expected"
                )
            found[name] = float(seconds)
    return found
