"""The reader of Keras models."""

from __future__ import annotations

from pathlib import Path

from fusedrnn.formats.contents import Contents

__all__ = ["read", "recognises"]


def recognises(head: bytes, members: frozenset[str]) -> bool:
    """Whether a file that begins like this, or an archive of these members, is one."""
    return False


def read(path: Path, *, external_data: bool = False) -> Contents:
    """What the file holds."""
    raise NotImplementedError
