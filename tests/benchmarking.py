"""What several tests of the benchmark need."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusedrnn.cli import main


def bench(*words: object) -> int:
    """The exit status of ``fusedrnn bench`` with these words."""
    return main(["bench", *map(str, words)])


def swapped(weights: Any, blocks: int) -> dict[str, Any]:
    """Weights whose first two gates are exchanged, as another library may order them."""
    first, second, *others = np.split(weights["weight_ih_l0"], blocks)
    return {**weights, "weight_ih_l0": np.concatenate([second, first, *others])}
