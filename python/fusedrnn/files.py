"""How files are written: all of one, or none of it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["check_output", "write_file"]


def check_output(path: Path) -> None:
    """Raise an OSError if the path could not be written."""
    target = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        if path.is_dir():
            raise IsADirectoryError(21, "Is a directory", str(path))
        return
    if not target.parent.is_dir():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(13, "Permission denied", str(path))


def write_file(path: Path, content: bytes) -> None:
    """Write all of a file or leave it as it was. A pipe or device is written to as it is.

    Parameters
    ----------
    path
        Its folder must exist. A file that is replaced keeps its mode; a link to it stays one.
    content
        Everything that is to be in the file.

    Raises
    ------
    OSError
        With the path as it was given.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    target = Path(os.path.realpath(path))
    draft = target.with_name(f".fusedrnn-{os.getpid()}")
    try:
        with draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            draft.chmod(stat.S_IMODE(target.stat().st_mode))
        os.replace(draft, target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        draft.unlink(missing_ok=True)
