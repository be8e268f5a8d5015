"""Published figures as checks: what was printed beside what is counted.

Each file in ``data/published`` is a network (see :mod:`fusedrnn.counting.network`) with the figures that were
published of it, as they were printed. What is counted is never written down: it is computed here.

This module is plain Python, as counting is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Any

from fusedrnn.counting.network import Network, Published
from fusedrnn.counting.network_file import PRINTED, load
from fusedrnn.counting.result import Figure, Result, Table, figure_text, printable

__all__ = ["CONVENTIONS", "Check", "Verification", "check", "verdict", "verify"]

PUBLISHED = Path(__file__).parents[1] / "data" / "published"
UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
ROUNDED, TRUNCATED, NO_MATCH = "rounded match", "truncated match", "no match"

#: What each word means.
CONVENTIONS = {
    "verdict": "The computed figure, rounded (half up) to the digits that were printed, is the "
    "printed one: rounded match. Cut off there: truncated match. Neither: no match.",
    "read": "The figure was read in a source. If one that should match does not, the check fails.",
    "memory": "The figure is from memory: whether it matches is shown, but verifies nothing.",
    "no match": "Nominal sizes, and figures that are known not to be reproduced, with the reason. "
    "If one matches all the same, the check fails: what is known of it is wrong.",
    "computed only": "No published figure was found.",
    "matrix_flops_per_second": "2 * macs_per_step * rate.",
}
#: The groups of the result, in their order, and what they are called.
GROUPS = {
    "read": "Read in a source: these decide the exit code",
    "memory": "From memory: unverified",
    "no match": "Expected: no match",
    "computed only": "Computed only: no published figure was found",
}
FIGURE_NAMES = {
    "parameters": "parameters",
    "macs_per_step": "MACs per step",
    "matrix_flops_per_second": "FLOPs per second",
}


def verdict(printed: str, computed: Figure) -> str:
    """Compare a computed figure with one as it was printed.

    Parameters
    ----------
    printed
        Digits, and k, M, G, B or T: "66M", "0.82B", "150".
    computed
        The exact figure.

    Returns
    -------
    str
        "rounded match", "truncated match" or "no match".

    Examples
    --------
    >>> verdict("66M", 66_022_000), verdict("33M", 33_556_078), verdict("33M", 34_000_000)
    ('rounded match', 'truncated match', 'no match')
    """
    match = re.fullmatch(PRINTED, printed, re.ASCII)
    if match is None:
        raise ValueError(f'printed must be a figure as "66M" or "0.82B", got {printed!r}')
    whole, decimals, unit = match[1], match[2] or "", match[3]
    # Both in units of the last printed digit: exact, where floats would decide ties by chance.
    exact = Fraction(computed) * 10 ** len(decimals) / UNITS[unit]
    digits = int(whole + decimals)
    if floor(exact + Fraction(1, 2)) == digits:
        return ROUNDED
    return TRUNCATED if floor(exact) == digits else NO_MATCH


@dataclass(frozen=True)
class Check:
    """One published figure and what is counted.

    Attributes
    ----------
    file
        The name of the file that has it, without directories.
    network
        The name of the network.
    published
        The figure as it was published.
    computed
        The same figure as it is counted.
    verdict
        How they compare; None where none was published.
    """

    file: str
    network: str
    published: Published
    computed: Figure
    verdict: str | None

    @property
    def group(self) -> str:
        """A key of :data:`GROUPS`."""
        if self.published.provenance is None:
            return "computed only"
        return "no match" if self.published.expected == NO_MATCH else self.published.provenance

    @property
    def failed(self) -> bool:
        """Whether the outcome is another than it should be."""
        if self.group == "read":
            return self.verdict == NO_MATCH
        return self.group == "no match" and self.verdict != NO_MATCH

    @property
    def result(self) -> str:
        """The outcome in a word or two."""
        if self.failed:
            return "FAIL"
        return {"read": "pass", "memory": "unverified", "no match": "as expected"}.get(
            self.group, "-"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as unrounded figures."""
        published = self.published
        return {
            "group": self.group,
            "network": self.network,
            "file": self.file,
            "figure": published.figure,
            "layers": list(published.layers),
            "published": published.printed,
            "computed": self.computed,
            "verdict": self.verdict,
            "result": self.result,
            "provenance": published.provenance,
            "where": published.where or None,
            "source": published.source,
            "convention": published.convention or None,
            "tied": published.tied,
            "reason": published.reason or None,
        }


@dataclass(frozen=True)
class Verification(Result):
    """The outcome of all checks."""

    checks: tuple[Check, ...]

    @property
    def failed(self) -> bool:
        """Whether any check failed."""
        return any(check.failed for check in self.checks)

    def _title(self) -> str:
        return ""

    def _document(self) -> Mapping[str, Any]:
        return {
            "conventions": CONVENTIONS,
            "failed": self.failed,
            "checks": self._records(),
        }

    def _records(self) -> list[Mapping[str, Any]]:
        """A line for each check."""
        return [check.to_dict() for check in self.checks]

    def _tables(self) -> Iterator[Table]:
        """A table for each group that has any checks."""
        for group, caption in GROUPS.items():
            header = ["network", "figure", "published", "computed"]
            header += ["verdict", "result", "provenance", "source"]
            header.append("reason" if group == "no match" else "convention")
            rows = [_cells(check) for check in self.checks if check.group == group]
            if rows:
                yield Table(caption, header, rows, [2, 3])

    def _notes(self) -> Iterator[str]:
        yield self._summary()

    def _summary(self) -> str:
        found = Counter((check.group, check.verdict) for check in self.checks)
        total = Counter(check.group for check in self.checks)
        read = total["read"] - found["read", NO_MATCH]
        memory = total["memory"] - found["memory", NO_MATCH]
        return (
            f"{read} of {total['read']} figures read in a source match; "
            f"{memory} of {total['memory']} from memory (unverified); "
            f"{found['no match', NO_MATCH]} of {total['no match']} do not match, as expected; "
            f"{total['computed only']} computed only.\n"
            + ("FAILED: " + ", ".join(_names(self.checks)) if self.failed else "Verified.")
        )


def verify(paths: Sequence[str | Path] | None = None) -> Verification:
    """Check the published figures of networks.

    Parameters
    ----------
    paths
        TOML files of networks with published figures; None for those that come with the library.

    Raises
    ------
    OSError, ValueError
        A file that cannot be read, is not a network, or has no published figure.
    """
    if paths is None:
        paths = sorted(PUBLISHED.glob("*.toml"))
        if not paths:
            raise ValueError(f"{PUBLISHED}: no published figures: the installation is incomplete")
    checks = []
    for path in paths:
        network = load(path)
        if not network.published:
            raise ValueError(f"{path}: no [[published]] figure to check")
        checks += [check(network, published, Path(path).name) for published in network.published]
    return Verification(tuple(checks))


def check(network: Network, published: Published, file: str = "") -> Check:
    """Check one published figure of a network."""
    computed = _computed(network, published)
    outcome = verdict(published.printed, computed) if published.printed else None
    return Check(file, network.name, published, computed, outcome)


def _computed(network: Network, published: Published) -> Figure:
    if published.layers:
        chosen = tuple(layer for layer in network.layers if layer.name in published.layers)
        network = replace(network, layers=chosen)
    complexity = network.count(tied=published.tied)
    figure: Figure
    if published.figure == "parameters":
        figure = complexity.parameters
    else:
        figure = complexity.known_macs_per_step  # a description knows all of them
    if published.rate is not None:
        figure = 2 * figure * published.rate
    share = Fraction(figure) / published.shares
    return share.numerator if share.denominator == 1 else share


def _cells(check: Check) -> list[str]:
    published = check.published
    figure = FIGURE_NAMES[published.figure]
    if published.layers:
        figure += f" of {' and '.join(published.layers)}"
    provenance = published.provenance or "-"
    if published.where:
        provenance += f" in {published.where}"
    return [
        check.network,
        figure,
        published.printed or "-",
        figure_text(check.computed),
        check.verdict or "-",
        check.result,
        provenance,
        published.source,
        (published.reason if check.group == "no match" else published.convention) or "-",
    ]


def _names(checks: Sequence[Check]) -> list[str]:
    return [
        f"{printable(check.network)} ({check.published.printed})"
        for check in checks
        if check.failed
    ]
