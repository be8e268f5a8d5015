"""The errors that are fusedrnn's own; everything else is a plain ValueError or TypeError."""

from __future__ import annotations

__all__ = [
    "ArchitectureError",
    "ArchitectureTypeError",
    "MissingExtraError",
    "ModelFormatError",
    "StreamBusyError",
    "UnsupportedError",
]


class UnsupportedError(ValueError):
    """Something that exists, asked of a cell, backend or CPU that does not have it."""


class ArchitectureError(ValueError):
    """A size or option of a layer that cannot be.

    Attributes
    ----------
    field
        The size or option: ``"hidden_size"``, ``"peephole"``, ...
    reason
        What is wrong with it: a sentence whose subject is the field, as in "must be at least 1, got 0".
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.field} {self.reason}"


class ArchitectureTypeError(ArchitectureError, TypeError):
    """An :class:`ArchitectureError` whose value is not even of the right type."""


class ModelFormatError(ValueError):
    """A model file that cannot be read: damaged, of an unknown kind, or one that would have to be executed."""


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
