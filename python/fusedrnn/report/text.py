"""Figures for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusedrnn.report.results import Ratio

__all__ = ["duration", "error", "quartiles", "ratio", "share", "size", "span"]

_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def _unit(seconds: float) -> tuple[float, str]:
    return next((unit for unit in _SECONDS if seconds >= unit[0]), _SECONDS[-1])


def _three_digits(number: float) -> str:
    """Three significant digits, never an exponent."""
    decimals = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:,.{decimals}f}"


def duration(seconds: float) -> str:
    """A time in the unit that suits it: 1.23 µs."""
    scale, unit = _unit(seconds)
    return f"{_three_digits(seconds / scale)}\N{NO-BREAK SPACE}{unit}"


def span(low: float, high: float, near: float) -> str:
    """Two times in the unit of the one that they stand near: 1.20–1.27 µs."""
    scale, unit = _unit(near)
    return f"{_three_digits(low / scale)}\N{EN DASH}{_three_digits(high / scale)}\N{NO-BREAK SPACE}{unit}"


def ratio(number: float | None) -> str:
    """How many times: 12.3×."""
    return "\N{EN DASH}" if number is None else f"{_three_digits(number)}×"


def quartiles(several: Ratio) -> str:
    """A ratio with its quartiles: 12.3× 11.9–12.8."""
    low, high = _three_digits(several.q1), _three_digits(several.q3)
    return f"{ratio(several.median)} {low}\N{EN DASH}{high}"


def share(number: float | None) -> str:
    """A part of the whole: 45 %."""
    return "\N{EN DASH}" if number is None else f"{number * 100:.0f}\N{NO-BREAK SPACE}%"


def error(number: float) -> str:
    """An error: 1.2e-07."""
    return f"{number:.1e}"


def size(count: int) -> str:
    """Bytes in binary units: 48 KiB."""
    for scale, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= scale:
            return f"{count / scale:g} {unit}"
    return f"{count} B"
