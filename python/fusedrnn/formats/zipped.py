"""The one way into a zip archive: bounded in memory and time, whatever the archive says of itself.

PyTorch, Keras and NumPy write archives whose members are stored and not compressed, so that an array can be mapped from the
file. Compressed members are read too, up to the size that the reader allows.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from fusedrnn.errors import ModelFormatError

__all__ = ["MAGIC", "Archive", "opened"]

MAX_MEMBERS = 100_000
#: Bytes of the table of members, which zipfile reads at once.
MAX_DIRECTORY = 32 * 2**20
#: How often a member may be larger than what is stored of it: deflate itself reaches 1,032.
MAX_RATIO = 200
#: Bytes of the header in front of a member.
LOCAL_HEADER = 30
#: How such a header begins, and with it an archive.
MAGIC = b"PK\x03\x04"


class _Bounded(io.FileIO):
    """A file of which nobody reads too much at once."""

    def read(self, size: int | None = -1, /) -> Any:
        if size is not None and size > MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"a table of {size:,} bytes")
        return super().read(size)


class Archive:
    """An open archive whose table of members has been checked.

    Attributes
    ----------
    members
        Name and size in bytes of each member.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path = path
        self._archive = archive
        self._infos = {info.filename: info for info in archive.infolist()}
        self.members = {name: info.file_size for name, info in self._infos.items()}
        self._check()

    def fault(self, message: str) -> ModelFormatError:
        """The error of this archive that says so."""
        return ModelFormatError(f"{self._path}: {message}")

    def _check(self) -> None:
        infos = self._archive.infolist()
        size = self._path.stat().st_size
        if len(infos) > MAX_MEMBERS:
            raise self.fault(
                f"an archive of {len(infos):,} members; at most {MAX_MEMBERS:,} are read"
            )
        if len(self._infos) < len(infos):
            names = [info.filename for info in infos]
            twice = next(name for name in names if names.count(name) > 1)
            raise self.fault(f"the archive has {twice!r} twice")
        if sum(info.compress_size for info in infos) > size:
            raise self.fault("members of the archive lie on top of each other")
        for info in infos:
            what, parts = f"member {info.filename!r}", PurePosixPath(info.filename).parts
            if info.filename.startswith("/") or ".." in parts or "\\" in info.filename:
                raise self.fault(f"{what} of the archive has a name that leads out of it")
            if not 0 <= info.header_offset < size:
                raise self.fault(f"{what} of the archive lies outside the file")
            if info.flag_bits & 1:
                raise self.fault(f"{what} of the archive is encrypted")
            if info.file_size > MAX_RATIO * max(info.compress_size, 64):
                raise self.fault(
                    f"{what} of the archive would grow from {info.compress_size:,} to {info.file_size:,} bytes"
                )

    def read(self, name: str, limit: int) -> bytes:
        """A whole member of up to ``limit`` bytes."""
        size = self.members[name]
        if size > limit:
            raise self.fault(f"{name!r} has {size:,} bytes; at most {limit:,} are read")
        try:
            with self._archive.open(name) as member:
                content = member.read(limit + 1)
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            NotImplementedError,
            OSError,
            ValueError,
        ) as error:
            raise self.fault(f"{name!r} is damaged: {error}") from None
        if len(content) != size:
            raise self.fault(f"{name!r} is damaged: {len(content):,} bytes instead of {size:,}")
        return content

    def where(self, name: str) -> int | None:
        """Where the bytes of a member begin in the file; None for a compressed one."""
        info = self._infos[name]
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            return None
        with self._path.open("rb") as file:
            file.seek(info.header_offset)
            header = file.read(LOCAL_HEADER)
        if len(header) < LOCAL_HEADER or not header.startswith(MAGIC):
            raise self.fault(f"{name!r} is damaged: there is no member where it should begin")
        start: int = info.header_offset + LOCAL_HEADER + sum(struct.unpack("<HH", header[26:30]))
        if start + info.file_size > self._path.stat().st_size:
            raise self.fault(f"{name!r} ends behind the end of the file")
        return start


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """An archive, its table of members checked.

    Raises
    ------
    ModelFormatError
        If it is damaged, or would take more memory than it has bytes: members twice, on top of each other, encrypted, or
        far larger than what is stored of them.
    """
    with _Bounded(path, "rb") as file:
        try:
            archive = zipfile.ZipFile(file)
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            struct.error,
            ValueError,
            OSError,
            EOFError,
        ) as error:
            raise ModelFormatError(f"{path}: a damaged zip archive: {error}") from None
        with archive:
            yield Archive(path, archive)
