"""Files with some bytes changed, which a reader answers with a layer or with an error of one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import fusedrnn as fr

__all__ = ["load_with_flipped_bytes"]


def load_with_flipped_bytes(path: Path, times: int, *, within: int | None = None) -> None:
    """Load a file again and again with one to four other bytes, of the first ``within``."""
    content, random = path.read_bytes(), np.random.default_rng(1)
    for _ in range(times):
        changed = bytearray(content)
        for at in random.integers(0, within or len(content), random.integers(1, 5)):
            changed[at] = random.integers(0, 256)
        path.write_bytes(bytes(changed))
        try:
            fr.load(path)
        except ValueError as error:  # a ModelFormatError is one
            assert "\n" not in str(error)
