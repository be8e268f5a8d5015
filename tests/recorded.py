"""What is recorded of every member of the family: digests of its outputs, and its counts.

``python tests/recorded.py`` writes ``recorded.json`` anew; ``test_recorded.py`` compares. A commit that changes a digest
or a count says why.

The inputs are exact multiples of 2**-12, so that they are the same on every machine. The compiled backends have the same
bits on every instruction set with FMA, and bits of their own on the baseline: two digests a member. NumPy's bits depend
on its BLAS: other tests compare that backend with the compiled ones.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from conftest import FAMILY

import fusedrnn as fr

FILE = Path(__file__).with_name("recorded.json")
INPUTS, UNITS, STEPS, BATCH, LAYERS = 11, 24, 13, 7, 2
#: One size past the first level of tiles, blocks and chunks, in one layer.
LARGE = {"inputs": 37, "units": 120, "steps": 70, "batch": 3, "layers": 1}


def drawn(random: np.random.Generator, *shape: int) -> np.ndarray:
    return (random.integers(-(2**13), 2**13, shape) / 2**12).astype(np.float32)


def digest(member: str, backend: str, *, bidirectional: bool) -> str:
    """SHA-256 of all that a member gives for fixed inputs, small and large, padded and ragged, at once and stepped."""
    cell, options = FAMILY[member]
    found = hashlib.sha256()
    small = {
        "inputs": INPUTS,
        "units": UNITS,
        "steps": STEPS,
        "batch": BATCH,
        "layers": LAYERS,
    }
    for size in (small, LARGE):
        random = np.random.default_rng(1)
        steps, batch, inputs = size["steps"], size["batch"], size["inputs"]
        layer = cell(
            inputs,
            size["units"],
            size["layers"],
            bidirectional=bidirectional,
            bias="double",
            seed=3,
            backend=backend,
            **options,
        )
        x = drawn(random, steps, batch, inputs)
        lengths = random.integers(0, steps + 1, batch)
        y, state = layer(x)
        arrays = [y, *state]
        y, after = layer(x, state, lengths)
        arrays += [y, *after]
        if not bidirectional:
            stream = layer.stream(batch)
            arrays += [stream.step(x[0]).copy(), stream.run(x[1:5]), *stream.state]
        for array in arrays:
            found.update(f"{array.shape} {array.dtype.name} ".encode())
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def count(member: str) -> dict[str, Any]:
    """The counts of a member, as JSON."""
    cell, options = FAMILY[member]
    layer = cell(INPUTS, UNITS, LAYERS, bidirectional=True, seed=0, **options)
    counts: dict[str, Any] = json.loads(fr.count(layer, steps=STEPS, batch=BATCH).to_json())
    del counts["conventions"]  # words
    return counts


def main() -> None:
    recorded: dict[str, Any] = {"digests": {}, "counts": {}}
    best = fr.info()["isas"][0]
    for name, isa in (("fma", best), ("baseline", "baseline")):
        os.environ["FUSEDRNN_ISA"] = isa
        recorded["digests"][name] = {
            member: [digest(member, "c", bidirectional=both) for both in (False, True)]
            for member in FAMILY
        }
    recorded["counts"] = {member: count(member) for member in FAMILY}
    FILE.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
