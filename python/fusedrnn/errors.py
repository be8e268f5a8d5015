"""The errors that are fusedrnn's own; everything else is a plain ValueError or TypeError."""

from __future__ import annotations

__all__ = ["MissingExtraError", "StreamBusyError", "UnsupportedError"]


class UnsupportedError(ValueError):
    """Something that exists, asked of a cell, backend or CPU that does not have it."""


class StreamBusyError(RuntimeError):
    """A stream was used from two threads at once. The second call did nothing."""


class MissingExtraError(ImportError):
    """A package that only some uses need is not installed; the message names the extra."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}: pip install 'fusedrnn[{extra}]'"
        )
        self._arguments = (package, extra, purpose)

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), self._arguments
