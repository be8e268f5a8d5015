"""How long a constant forget gate remembers: in closed form. Plain Python.

A gate that stays at f keeps f^k of what it had k steps ago: half of it for log 0.5 / log f steps, and 1 / e of it for
about 1 / (1 - f), its time constant.
"""

from __future__ import annotations

from math import exp, inf, isfinite, log, log1p

__all__ = ["bias_of", "forget_for", "half_life", "half_life_text", "retention", "time_constant"]


def retention(forget: float, steps: float) -> float:
    """What is left of a stored number after some steps: forget ** steps."""
    result: float = forget**steps
    return result


def half_life(forget: float) -> float:
    """The steps after which half is left; inf for a gate that never forgets, 0 for one that forgets at once."""
    if forget >= 1:
        return inf
    return -log(2) / log(forget) if forget > 0 else 0.0


def time_constant(forget: float) -> float:
    """1 / (1 - f): the T of Tallec and Ollivier 2018; 1 / e is left after about as many steps."""
    return inf if forget >= 1 else 1 / (1 - forget)


def forget_for(steps: float) -> float:
    """The gate whose half-life is that many steps."""
    return exp(-log(2) / steps)


def bias_of(forget: float) -> float:
    """The bias of a sigmoid gate that is at that value if nothing else is added: log(f / (1 - f))."""
    return log(forget) - log1p(-forget)


def half_life_text(steps: float | None) -> str:
    """A half-life for people."""
    if steps is None:
        return "-"
    if not isfinite(steps):
        return "beyond"
    return f"{steps:.3g}" if steps < 100 else f"{steps:,.0f}"
