"""Rows of numbers in files, read and written a piece at a time, so that a sequence may be longer than memory: .npy and CSV.

What is read comes as float32, (T, B, X) for some of the steps; what is written goes out in the same way. A file's rows are
one sequence (CSV; an array (T, X)), or several side by side (an array (T, B, X), or (B, T, X) if its batch comes first).
"""

from __future__ import annotations

import os
import stat
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fusedrnn.files import Draft, Writer
from fusedrnn.formats.npz_file import MAGIC as NPY
from fusedrnn.formats.npz_file import read_header
from fusedrnn.formats.zipped import MAGIC as ZIP

__all__ = ["CsvWriter", "NpyWriter", "Rows", "opened", "piece_steps"]

Array = npt.NDArray[np.float32]

#: Bytes of inputs and outputs that are in memory at once, about.
PIECE_BYTES = 4 * 2**20
#: The longest line of a CSV file: for each number, and beside the numbers.
NUMBER_BYTES, LINE_BYTES = 64, 2**16
#: From here on a number is infinite in float32.
LIMIT = 2.0**128 - 2.0**103
#: Room for a header of .npy whose number of steps is known last.
NPY_HEADER = 128


def piece_steps(batch: int, width: int) -> int:
    """How many steps of so many sequences, and numbers in a step of one, are a piece."""
    return max(1, PIECE_BYTES // (4 * batch * width))


class Rows(ABC):
    """The rows of an input.

    Attributes
    ----------
    name
        Of the input, for messages.
    steps
        T; None where the end tells.
    batch
        B; None for one sequence without a batch axis.
    batch_first
        Whether the input is (B, T, X).
    note
        What is converted; "".
    """

    name: str
    steps: int | None = None
    batch: int | None = None
    batch_first = False
    note = ""

    @abstractmethod
    def pieces(self, steps: int) -> Iterator[Array]:
        """The rows, at most so many steps at a time: (t, B, X), without gaps."""

    @property
    def share(self) -> float | None:
        """Which part of the input has been read; None where its end is not known."""
        return None


@contextmanager
def opened(source: str, width: int, *, batch_first: bool = False) -> Iterator[Rows]:
    """The rows of a file, or of standard input for ``-``; the format is recognised by its beginning.

    Parameters
    ----------
    source
        A path, or ``-``.
    width
        X: how many numbers a row has.
    batch_first
        Whether an array of three axes is (B, T, X) instead of (T, B, X).

    Raises
    ------
    ValueError
        If it is neither .npy nor CSV, or of another width; the message begins with the name of the input. Of a line that
        is wrong it is raised when the line is read.
    OSError
        If it cannot be read.
    """
    if source == "-":
        if sys.stdin is None:
            raise OSError("standard input is closed")
        yield _rows("standard input", sys.stdin.buffer, width, batch_first)
        return
    with open(source, "rb") as file:
        yield _rows(source, file, width, batch_first)


def _rows(name: str, file: BinaryIO, width: int, batch_first: bool) -> Rows:
    peek = getattr(file, "peek", None)
    # The beginning of what cannot be peeked at, as a stream in memory, is read and put back.
    head = peek(len(NPY)) if peek is not None else file.read(len(NPY))
    if peek is None:
        file.seek(0)
    if head.startswith(NPY[:1]):  # no text begins so, and a pipe may give a byte at first
        return _Npy(name, file, width, batch_first)
    if head.startswith(ZIP):
        raise ValueError(f"{name}: an archive, and not one array: save it with numpy.save as .npy")
    return _Csv(name, file, width)


# ---- .npy ----------------------------------------------------------------------------------------


class _Npy(Rows):
    """An array: mapped if it is in a file; from a pipe its steps come one after the other."""

    def __init__(self, name: str, file: BinaryIO, width: int, batch_first: bool) -> None:
        self.name = name
        try:
            shape, fortran, dtype = read_header(file)
        except ValueError as error:
            raise ValueError(f"{name}: not an array that can be read: {error}") from None
        if dtype.kind not in "fiu":
            raise ValueError(f"{name}: must be an array of numbers, not of {dtype}")
        if not np.can_cast(dtype, np.float32):
            self.note = f"{name}: {dtype} numbers, rounded to float32"
        if len(shape) not in (2, 3) or min(shape) < 0 or shape[-1] != width:
            axes = f"(steps, {width}) or (steps, batch, {width})"
            if batch_first:
                axes = f"(steps, {width}) or (batch, steps, {width})"
            raise ValueError(f"{name}: must have shape {axes}, got {shape}")
        if 0 in shape:
            raise ValueError(f"{name}: empty: its shape is {shape}")
        self._shape, self._dtype, self._order = shape, dtype, "F" if fortran else "C"
        self.batch_first = batch_first and len(shape) == 3
        self.steps = shape[self.batch_first]
        self.batch = shape[1 - self.batch_first] if len(shape) == 3 else None
        self._file, self._read = file, 0
        self._size = prod(shape) * dtype.itemsize

    @property
    def share(self) -> float | None:
        assert self.steps is not None
        return self._read / self.steps

    def pieces(self, steps: int) -> Iterator[Array]:
        assert self.steps is not None
        whole = self._whole()
        for first in range(0, self.steps, steps):
            count = min(steps, self.steps - first)
            if whole is not None:
                piece = whole[first : first + count]
            else:
                one = self._size // self.steps
                piece = self._array(self._taken(count * one, first), (count, *self._shape[1:]))
            yield self._float32(self._batched(piece), first)
            self._read = first + count

    def _whole(self) -> npt.NDArray[Any] | None:
        """The whole array, its steps first; None if its steps are to be read one after the other."""
        try:
            regular = stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)
        except OSError:  # a stream in memory
            regular = False
        array: npt.NDArray[Any]
        if regular:
            begin = self._file.tell()
            there = os.fstat(self._file.fileno()).st_size - begin
            if there < self._size:
                raise ValueError(
                    f"{self.name}: cut off: shape {self._shape} is {self._size:,} bytes, and {there:,} are there"
                )
            array = np.memmap(
                self._file,
                self._dtype,
                "r",
                begin,
                self._shape,
                self._order,  # type: ignore[call-overload]
            )
        elif self.batch_first or self._order == "F":
            array = self._array(self._taken(self._size, 0), self._shape)
        else:
            return None
        return array.swapaxes(0, 1) if self.batch_first else array

    def _taken(self, size: int, step: int) -> bytearray:
        """So many bytes; never more memory than there are, whatever the header says."""
        taken = bytearray()
        while len(taken) < size:
            some = self._file.read(min(PIECE_BYTES, size - len(taken)))
            if not some:
                raise ValueError(
                    f"{self.name}: cut off: it has fewer than {self.steps:,} steps, after step {step:,}"
                )
            taken += some
        return taken

    def _array(self, memory: bytearray, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        order: Any = self._order
        return np.frombuffer(memory, self._dtype).reshape(shape, order=order)

    def _batched(self, piece: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return piece[:, None] if self.batch is None else piece

    def _float32(self, piece: npt.NDArray[Any], first: int) -> Array:
        with np.errstate(over="ignore", under="ignore"):
            array = np.ascontiguousarray(piece, np.float32)
        if piece.dtype.kind != "f" or piece.dtype.itemsize > 4:
            lost = np.isinf(array) & np.isfinite(piece)
            if lost.any():
                step = first + int(np.argwhere(lost)[0][0])
                raise ValueError(
                    f"{self.name}: step {step} has a number outside the range of float32"
                )
        return array


class NpyWriter:
    """Writes an array, shaped as its input: (T, R), (T, B, R) or (B, T, R).

    Parameters
    ----------
    writer
        Where it goes.
    width
        R: how many numbers a row of the output has.
    rows
        The input.
    """

    def __init__(self, writer: Writer, width: int, rows: Rows) -> None:
        if not isinstance(writer, Draft) and (rows.steps is None or rows.batch_first):
            raise ValueError(
                "an .npy that is written to a pipe or device begins with its length, which is not known yet: "
                "write to a file, or as CSV"
            )
        self._writer, self._width, self._rows = writer, width, rows
        self._written = 0
        self._writer.write(self._header(rows.steps or 0))

    def _header(self, steps: int) -> bytes:
        rows, width = self._rows, self._width
        shape: tuple[int, ...] = (steps, width)
        if rows.batch is not None:
            shape = (rows.batch, steps, width) if rows.batch_first else (steps, rows.batch, width)
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
        return NPY + b"\x01\x00v\x00" + f"{text:<{NPY_HEADER - 11}}\n".encode()

    def write(self, y: Array) -> None:
        """Add steps, (t, B, R)."""
        little = y.astype("<f4", copy=False)
        if self._rows.batch_first:
            assert isinstance(self._writer, Draft)
            assert self._rows.steps is not None
            for row in range(little.shape[1]):
                step = row * self._rows.steps + self._written
                self._writer.write_at(
                    NPY_HEADER + 4 * self._width * step,
                    np.ascontiguousarray(little[:, row]).tobytes(),
                )
        else:
            self._writer.write(np.ascontiguousarray(little).tobytes())
        self._written += len(y)

    def finish(self) -> None:
        """Every step is there."""
        if self._rows.steps is None:
            assert isinstance(self._writer, Draft)
            self._writer.write_at(0, self._header(self._written))


# ---- CSV -----------------------------------------------------------------------------------------


class _Csv(Rows):
    """Lines of numbers with commas between them. The first line is a header if no field of it is a number."""

    def __init__(self, name: str, file: BinaryIO, width: int) -> None:
        self.name, self._file, self._width = name, file, width
        self._line, self._begun = 0, False
        self._size: int | None = None
        try:
            about = os.fstat(file.fileno())
            if stat.S_ISREG(about.st_mode):
                self._size = about.st_size
        except OSError:  # a stream in memory
            pass

    @property
    def share(self) -> float | None:
        return self._file.tell() / self._size if self._size else None

    def pieces(self, steps: int) -> Iterator[Array]:
        rows: list[list[float]] = []
        found = False
        for row in self._numbers():
            found = True
            rows.append(row)
            if len(rows) == steps:
                yield np.array(rows, np.float32)[:, None]
                rows = []
        if rows:
            yield np.array(rows, np.float32)[:, None]
        if not found:
            raise ValueError(f"{self.name}: empty: it has no row of numbers")

    def _numbers(self) -> Iterator[list[float]]:
        longest = LINE_BYTES + NUMBER_BYTES * self._width
        while line := self._file.readline(longest):
            self._line += 1
            if len(line) == longest and not line.endswith(b"\n"):
                raise self._error(f"more than {longest:,} characters")
            if self._line == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
            if not line.strip():
                continue
            row = self._parsed(line)
            if row is not None:
                yield row

    def _parsed(self, line: bytes) -> list[float] | None:
        """The numbers of a line; None for a header."""
        fields = line.split(b",")
        row = [_number(field) for field in fields]
        first, self._begun = not self._begun, True
        if first and not any(number is not None for number in row) and line.strip(b", \t\r\n"):
            return None
        wrong = [
            column for column, number in enumerate(row) if number is None or not abs(number) < LIMIT
        ]
        if len(row) != self._width:
            raise self._error(f"must have {self._width} numbers, got {len(row)}")
        if wrong:
            field = fields[wrong[0]].strip().decode("utf-8", "replace")
            given = repr(field[:40]) if field else "nothing"
            raise self._error(
                f"column {wrong[0] + 1} must be a number that is finite in float32, got {given}"
            )
        return [number for number in row if number is not None]

    def _error(self, message: str) -> ValueError:
        return ValueError(f"{self.name}: line {self._line}: {message}")


def _number(field: bytes) -> float | None:
    """The number that a field is, perhaps in quotes; None if it is none. "nan" is one."""
    try:
        number = float(field)
    except ValueError:
        inner = field.strip()
        if len(inner) < 3 or inner[:1] + inner[-1:] != b'""':
            return None
        return _number(inner[1:-1])
    # float also takes 1_000.
    return None if b"_" in field else number


class CsvWriter:
    """Writes lines of numbers, with as many digits as make them the same float32 again.

    Parameters
    ----------
    writer
        Where they go: anything with ``write``.
    width
        R: how many numbers a line has.
    rows
        The input: one sequence.
    """

    def __init__(self, writer: Any, width: int, rows: Rows) -> None:
        if rows.batch not in (None, 1):
            raise ValueError(
                f"{rows.name}: {rows.batch} sequences side by side, and CSV has one: write to an .npy file (-o OUT.npy)"
            )
        self._writer = writer
        self._format = ",".join(["%.9g"] * width) + "\n"

    def write(self, y: Array) -> None:
        """Add steps, (t, 1, R)."""
        lines = [self._format % tuple(row) for row in y[:, 0].tolist()]
        self._writer.write("".join(lines).encode())

    def finish(self) -> None:
        """Every step is there."""
