"""How files are written: all of one, or none of it, for any number of writers; special files as a shell would.

And how text is encoded for an output that lacks some of its characters.
"""

from __future__ import annotations

import codecs
import errno
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from tempfile import TemporaryFile
from typing import BinaryIO, TextIO

__all__ = [
    "REPLACING",
    "Draft",
    "Writer",
    "check_output",
    "encoding_errors",
    "write_file",
    "writing",
]

#: Why a folder takes no new file, or lets none be replaced, although the file itself may be written.
NOT_IN_THIS_FOLDER = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV}
#: Bytes that are copied at once.
PIECE = 2**20


def write_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Write all of a file or leave it as it was, as :func:`writing` does.

    Parameters
    ----------
    path
        As there.
    content
        Everything that is to be in the file.

    Raises
    ------
    OSError
        As there.
    """
    with writing(path) as file:
        file.write(content)


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[Writer]:
    """A file to be written piece by piece: all of it, or it stays as it was if an exception, an interrupt too, ends the block.

    The pieces go to a draft beside the file, which then takes its place: any number of threads, processes and
    containers may write one file, and it always is what one of them wrote. Three things are written where they are:
    a pipe or device; what is an open file of this process (``/dev/stdout``, ``/dev/fd/3``, the log that standard
    output goes to), from where it stands; and a file that cannot be replaced, because it is mounted on its own, its
    folder takes no new file, or its owner would change.

    Parameters
    ----------
    path
        Its folder must exist. A file that is replaced keeps its mode and owner; a link to it stays one.

    Yields
    ------
    Writer
        What takes the pieces.

    Raises
    ------
    OSError
        With the path as it was given. A read-only file is refused, also to root.
    """
    with _told_as(path):
        writer = _writer(path)
    try:
        with _told_as(path):
            writer.open()
        yield writer
        with _told_as(path):
            writer.finish()
    finally:
        writer.close()


class Writer:
    """What takes the pieces of a file, and writes them where they are to be."""

    def __init__(self, path: str | os.PathLike[str], descriptor: int, *, own: bool) -> None:
        self._path, self._descriptor, self._own = path, descriptor, own

    def open(self) -> None:
        """Make what is not there yet."""

    def write(self, content: bytes) -> None:
        """Add a piece."""
        with _told_as(self._path):
            _write_on(self._descriptor, content)

    def finish(self) -> None:
        """All pieces are there."""

    def close(self) -> None:
        """Nothing comes any more: what has not taken its place is gone."""
        if self._own:
            os.close(self._descriptor)


class Draft(Writer):
    """What takes the pieces of a file beside another one, whose place it takes when it is finished."""

    def __init__(self, path: str | os.PathLike[str], old: os.stat_result | None) -> None:
        self._path, self._old = path, old
        self._target = os.path.realpath(path)
        self._file: BinaryIO | None = None
        # Known before it is there: an interrupt at any time finds what to remove. Random: process ids are not unique on a
        # shared folder.
        name = f".fusedrnn-{os.urandom(8).hex()}"
        self._draft: str | None = os.path.join(os.path.dirname(self._target), name)

    def open(self) -> None:
        assert self._draft is not None
        # What others may not read should not be readable in the draft, either.
        mode = 0o666 if self._old is None else 0o600
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            self._file = open(os.open(self._draft, flags, mode), "w+b")  # noqa: SIM115  (see close)
        except FileExistsError:
            self._draft = None  # another's
            raise
        except OSError as error:
            self._draft = None
            if self._old is None or error.errno not in NOT_IN_THIS_FOLDER:
                raise
            self._file = TemporaryFile()  # noqa: SIM115

    @property
    def _pieces(self) -> BinaryIO:
        assert self._file is not None
        return self._file

    def write(self, content: bytes) -> None:
        with _told_as(self._path):
            self._pieces.write(content)

    def write_at(self, place: int, content: bytes) -> None:
        """Write somewhere else than behind the last piece."""
        with _told_as(self._path):
            self._pieces.seek(place)
            self._pieces.write(content)
            self._pieces.seek(0, os.SEEK_END)

    def finish(self) -> None:
        self._pieces.flush()
        if self._draft is not None:
            try:
                self._replace(self._draft)
            except OSError as error:
                if self._old is None or error.errno not in NOT_IN_THIS_FOLDER:
                    raise
            else:
                self._draft = None
                return
        _write_in_place(self._target, self._pieces)

    def _replace(self, draft: str) -> None:
        descriptor, old = self._pieces.fileno(), self._old
        if old is not None:
            new = os.fstat(descriptor)
            if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
                os.fchown(descriptor, old.st_uid, old.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
        os.fsync(descriptor)
        os.replace(draft, self._target)

    def close(self) -> None:
        try:
            if self._file is not None:
                with suppress(OSError):  # of a full disk; finish has said so
                    self._file.close()
        finally:
            if self._draft is not None:
                with suppress(OSError):
                    os.unlink(self._draft)


def _writer(path: str | os.PathLike[str]) -> Writer:
    descriptor = _own_descriptor(path)
    if descriptor is not None:
        for stream in (sys.stdout, sys.stderr):  # what was printed before comes before
            if stream is not None and not stream.closed:
                stream.flush()
        return Writer(path, descriptor, own=False)
    old = _writable(path)
    if old is not None and not stat.S_ISREG(old.st_mode):
        return Writer(path, os.open(path, os.O_WRONLY | os.O_CLOEXEC), own=True)
    return Draft(path, old)


def check_output(path: str | os.PathLike[str]) -> None:
    """Find out whether :func:`write_file` could write a file, before the work whose result goes there.

    Nothing is changed. That a disk is full shows only later.

    Raises
    ------
    OSError
        With the path as it was given: the error that writing would raise.
    """
    with _told_as(path):
        own = _own_descriptor(path)
        if own is not None:
            if not _is_for_writing(own):
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        elif _writable(path) is None:
            draft = Draft(path, None)
            try:
                draft.open()
            finally:
                draft.close()


@contextmanager
def _told_as(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def _writable(path: str | os.PathLike[str]) -> os.stat_result | None:
    """What is there; None for nothing; an OSError if it may not be written."""
    if not os.fspath(path):  # realpath would take it for the current folder
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    try:
        old = os.stat(path)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(old.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if (
        not old.st_mode & 0o222
    ):  # root may write what nobody may, and should not without being told to
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    if stat.S_ISREG(old.st_mode):
        os.close(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
    elif not os.access(path, os.W_OK):  # to open a pipe would be to wait for its reader
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return old


def _write_in_place(target: str, content: BinaryIO) -> None:
    """Overwrite a file. The disk is asked for the space first, so that a full one leaves the old content."""
    import fcntl

    size = content.seek(0, os.SEEK_END)
    content.seek(0)
    with open(target, "r+b", buffering=0) as file:
        with suppress(OSError):  # not every file system has locks
            fcntl.flock(file, fcntl.LOCK_EX)
        before = os.fstat(file.fileno()).st_size
        if size > before:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                file.truncate(before)
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise
        while piece := content.read(PIECE):
            _write_on(file.fileno(), piece)
        file.truncate(size)
        os.fsync(file.fileno())


def _write_on(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _own_descriptor(path: str | os.PathLike[str]) -> int | None:
    """The descriptor of this process that a path stands for, by its name or as the file that output goes to."""
    named = _named_descriptor(os.fspath(path))
    if named is not None:
        return named
    for descriptor in (1, 2):
        with suppress(OSError):
            there = os.stat(path)
            same = os.path.samestat(there, os.fstat(descriptor))
            if same and stat.S_ISREG(there.st_mode) and _is_for_writing(descriptor):
                return descriptor
    return None


def _named_descriptor(path: str) -> int | None:
    """N, of /dev/fd/N, /proc/self/fd/N, /dev/stdout, and links to them."""
    own = re.escape(os.path.realpath("/proc/self"))
    for _ in range(40):  # as many links as the system follows
        folder, name = os.path.split(path)
        folder = os.path.realpath(folder or ".")
        if re.fullmatch(rf"(/dev|{own}(/task/\d+)?)/fd", folder):
            return int(name) if re.fullmatch("[0-9]{1,9}", name) else None
        path = os.path.join(folder, name)
        if not os.path.islink(path):
            return None
        path = os.path.join(folder, os.readlink(path))
    return None


def _is_for_writing(descriptor: int) -> bool:
    import fcntl

    return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY


# ---- text ----------------------------------------------------------------------------------------

#: The name of the handler of encoding errors that writes what an encoding lacks in ASCII, as far as that goes.
REPLACING = "fusedrnn.replacing"

_ASCII = str.maketrans(
    {
        "\N{MICRO SIGN}": "u",
        "\N{MULTIPLICATION SIGN}": "x",
        "\N{NO-BREAK SPACE}": " ",
        "\N{EN DASH}": "-",
        "\N{LESS-THAN OR EQUAL TO}": "<=",
    }
)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_ASCII)
    return text.encode("ascii", "replace").decode("ascii"), error.end


codecs.register_error(REPLACING, _in_ascii)


def encoding_errors(stream: TextIO) -> str:
    """How to handle what the encoding of a stream lacks: as PYTHONIOENCODING says, or else so that any text goes."""
    asked = os.environ.get("PYTHONIOENCODING", "").partition(":")[2]
    lossless = stream.errors in (None, "strict", "surrogateescape")
    return REPLACING if lossless and not asked else stream.errors or "strict"
