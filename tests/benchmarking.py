"""What several tests of the benchmark need."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np


def arguments(**given: Any) -> argparse.Namespace:
    """What ``fusedrnn bench`` was asked for: nothing but what is given."""
    flags = dict.fromkeys(("quick", "peers", "long", "latency"), False)
    others = ("report", "json", "isa", "compare", "threads", "cases", "steps")
    return argparse.Namespace(**{**flags, **dict.fromkeys(others), **given})


def swapped(weights: Any, blocks: int) -> dict[str, Any]:
    """Weights whose first two gates are exchanged, as another library may order them."""
    first, second, *others = np.split(weights["weight_ih_l0"], blocks)
    return {**weights, "weight_ih_l0": np.concatenate([second, first, *others])}
