"""How files are written: whole, by any number of writers, and special ones as a shell would."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fusedrnn.files import check_output, write_file, writing

ROOT = os.geteuid() == 0
AS_ROOT = pytest.mark.skipif(not ROOT, reason="needs root")


def works(*command: str) -> bool:
    """Whether this system lets us run a command."""
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    start = f'fusedrnn() {{ {shlex.quote(sys.executable)} -m fusedrnn "$@"; }}\n'
    count = "fusedrnn count lstm --input 3 --hidden 4"
    return subprocess.run(
        ["bash", "-c", start + line.replace("COUNT", count)],
        cwd=folder, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def python(code: str, *words: str, folder: Path, before: tuple[str, ...] = ()) -> None:
    """Run code in a process of its own, perhaps under another command."""
    done = subprocess.run(
        [*before, sys.executable, "-c", code, *words],
        cwd=folder, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# Many writers


def is_whole(content: bytes) -> bool:
    """Whether a content is what :data:`WRITER` writes at once."""
    return len(content) == 50_000 and len(set(content)) == 1


#: Writes contents of one letter each, and checks what is there after each.
WRITER = """
import os, sys
from pathlib import Path
from typing import Any
from fusedrnn.files import write_file
path, letter = Path(sys.argv[1]), sys.argv[2].encode()
for _ in range(100):
    write_file(path, 50_000 * letter)
    content = path.read_bytes()
    assert len(content) == 50_000 and len(set(content)) == 1, "torn"
"""


def test_threads_write_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def writer(letter: bytes) -> None:
        for _ in range(75):
            write_file(path, 50_000 * letter)
            assert is_whole(path.read_bytes())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(writer, (b"a", b"b", b"c", b"d")))
    assert names(tmp_path) == ["file"]


def test_threads_find_what_they_wrote(tmp_path: Path) -> None:
    def writer(name: str) -> None:
        for turn in range(75):
            write_file(tmp_path / name, f"{name} {turn}".encode())
            assert (tmp_path / name).read_text() == f"{name} {turn}"

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(writer, "abcd"))
    assert names(tmp_path) == list("abcd")


def test_processes_of_the_same_number_write_whole_files(tmp_path: Path) -> None:
    """As in two containers that share a folder, where each is process 1."""
    apart = ("unshare", "-Urpf")
    if not works(*apart, "true"):
        pytest.skip("needs namespaces")
    processes = [
        subprocess.Popen(
            [*apart, sys.executable, "-c", WRITER, "file", letter],
            cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        )
        for letter in "abc"
    ]  # fmt: skip
    for process in processes:
        _, problem = process.communicate(timeout=60)
        assert process.returncode == 0, problem
    assert is_whole((tmp_path / "file").read_bytes())
    assert names(tmp_path) == ["file"]


def test_a_stale_draft_stands_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f".fusedrnn-{os.getpid()}").write_bytes(b"of another")
    write_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert (tmp_path / f".fusedrnn-{os.getpid()}").read_bytes() == b"of another"
    # Even one of the same name: this write fails, and the other's draft stays.
    monkeypatch.setattr(os, "urandom", bytes)
    draft = tmp_path / f".fusedrnn-{bytes(8).hex()}"
    draft.write_bytes(b"of another")
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "file", b"newer")
    assert draft.read_bytes() == b"of another"


# What goes wrong leaves the old file


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space"), KeyboardInterrupt()])
@pytest.mark.parametrize("old", [b"old", None])
def test_a_failed_write_leaves_the_old_file(
    function: str,
    error: BaseException,
    old: bytes | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "file"
    if old:
        path.write_bytes(old)

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, function, fails)
    with pytest.raises(type(error)) as raised:
        write_file(path, b"new")
    if isinstance(raised.value, OSError):
        assert raised.value.filename == str(path)
    assert names(tmp_path) == (["file"] if old else [])
    assert not old or path.read_bytes() == old


@pytest.mark.parametrize("function", [check_output, lambda path: write_file(path, b"new")])
def test_an_interrupt_while_a_draft_is_made_leaves_none(
    function: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = os.open

    def interrupted(*arguments: Any) -> int:
        os.close(make(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        function(tmp_path / "file")
    assert names(tmp_path) == []


def test_pieces_are_a_file_when_all_are_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with writing(path) as file:
        for piece in (b"one ", b"two ", b"three"):
            file.write(piece)
            assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"one two three"
    with pytest.raises(ValueError, match="of the caller"), writing(path) as file:
        file.write(b"half")
        raise ValueError("of the caller")
    assert path.read_bytes() == b"one two three"
    # An error of the caller's own is not said to be one of this file.
    with pytest.raises(OSError, match="input") as raised, writing(path) as file:
        raise FileNotFoundError(errno.ENOENT, "no such", "input")
    assert raised.value.filename == "input"
    assert names(tmp_path) == ["file"]


@AS_ROOT
@pytest.mark.parametrize("mounted", [False, True])
def test_a_full_disk_leaves_the_old_file(mounted: bool, tmp_path: Path) -> None:
    if not works("unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)):
        pytest.skip("needs to mount")
    outside = tmp_path.with_name("outside")
    outside.touch()
    bind = f"mount --bind file {shlex.quote(str(outside))};" if mounted else ""
    place = str(outside) if mounted else "file"
    code = (
        "import errno, os, sys; from fusedrnn.files import write_file\n"
        "try: write_file(sys.argv[1], bytes(100_000))\n"
        "except OSError as error: assert error.errno == errno.ENOSPC, error\n"
        "else: raise AssertionError('it fits')\n"
        "assert open(sys.argv[1], 'rb').read() == b'old'\n"
        "assert os.listdir() == ['file'], os.listdir()\n"
        "write_file(sys.argv[1], bytes(20_000)); assert os.path.getsize(sys.argv[1]) == 20_000"
    )
    line = f"mount -t tmpfs -o size=64k none . && cd $PWD && printf old > file; {bind}"
    python(
        code, place, folder=tmp_path,
        before=("unshare", "-m", "bash", "-c", line + 'exec "$@"', "bash"),
    )  # fmt: skip


# Where a file cannot be replaced


def test_a_mounted_file_is_written_in_place(tmp_path: Path) -> None:
    apart = ("unshare", "-Urm", "bash", "-c", 'mount --bind real file && exec "$@"', "bash")
    (tmp_path / "real").write_bytes(b"old and longer")
    (tmp_path / "file").touch()
    if not works(
        "unshare", "-Urm", "mount", "--bind", *(str(tmp_path / n) for n in ("real", "file"))
    ):
        pytest.skip("needs to mount")
    code = "import sys; from fusedrnn import files; files.check_output('file'); files.write_file('file', b'new')"
    python(code, folder=tmp_path, before=apart)
    assert (tmp_path / "real").read_bytes() == b"new"
    assert (tmp_path / "file").read_bytes() == b""
    assert names(tmp_path) == ["file", "real"]
    processes = [
        subprocess.Popen([*apart, sys.executable, "-c", WRITER.replace("assert", "0 and"), "file", letter], cwd=tmp_path)
        for letter in "ab"
    ]  # fmt: skip
    assert [process.wait(60) for process in processes] == [0, 0]
    assert is_whole((tmp_path / "real").read_bytes())


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV, errno.EPERM])
def test_what_cannot_be_replaced_is_written_in_place(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old and longer")
    inode = path.stat().st_ino

    def fails(*_: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(os, "replace", fails)
    for content in (b"new", b"new and much longer than before"):
        write_file(path, content)
        assert path.read_bytes() == content
    assert path.stat().st_ino == inode
    assert names(tmp_path) == ["file"]
    with pytest.raises(OSError, match="other"):  # what is not there is not made in place
        write_file(tmp_path / "other", b"new")
    assert names(tmp_path) == ["file"]


def unprivileged(folder: Path, code: str) -> None:
    """Run code as a user who owns nothing."""
    if ROOT:
        before: tuple[str, ...] = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        if not works(*before, sys.executable, "-c", "import fusedrnn.files"):
            pytest.skip("needs setpriv, and the package readable to all")
        if not works(*before, "ls", str(folder)):
            for each in (folder, *list(folder.parents)[:3]):
                each.chmod(each.stat().st_mode | 0o055)
    else:
        before = ()
    python("from fusedrnn.files import *\n" + code, folder=folder, before=before)


def test_a_folder_that_takes_no_file(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "file").write_bytes(b"old")
    (inner / "file").chmod(0o666)
    inner.chmod(0o555)
    try:
        unprivileged(
            tmp_path,
            "check_output('inner/file'); write_file('inner/file', b'new')\n"
            "for function in (check_output, lambda path: write_file(path, b'')):\n"
            "    try: function('inner/other')\n"
            "    except PermissionError as error: assert error.filename == 'inner/other'\n"
            "    else: raise AssertionError",
        )
    finally:
        inner.chmod(0o755)
    assert (inner / "file").read_bytes() == b"new"
    assert names(inner) == ["file"]


@pytest.mark.parametrize("function", [check_output, lambda path: write_file(path, b"new")])
def test_a_read_only_file_is_refused(function: Callable[[Path], None], tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(b"old")
    path.chmod(0o444)
    link.symlink_to(path)
    for each in (path, link):
        with pytest.raises(PermissionError) as raised:
            function(each)
        assert raised.value.filename == str(each)
    assert path.read_bytes() == b"old"


@AS_ROOT
def test_the_owner_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o640)
    os.chown(path, 1234, 2345)
    write_file(path, b"new")
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 2345, 0o640)
    # Who may not give a file away writes in place.
    path.chmod(0o666)
    tmp_path.chmod(0o777)
    unprivileged(tmp_path, "write_file('file', b'newer')")
    assert path.read_bytes() == b"newer"
    assert path.stat().st_uid == 1234


def test_modes_and_links_stay(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to("file")
    umask = os.umask(0o027)
    try:
        write_file(link, b"new")
    finally:
        os.umask(umask)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o604)
    write_file(link, b"newer")
    assert link.is_symlink()
    assert path.read_bytes() == b"newer"
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


# Open files of the process


@pytest.mark.parametrize("place", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link", "log"])
@pytest.mark.parametrize("way", [">>", ">"])
def test_output_to_a_log_is_added_to_it(place: str, way: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/stdout")
    done = shell(f"(echo first; COUNT --json -o {place}; echo last) {way} log", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = (tmp_path / "log").read_text().splitlines()
    assert (lines[0], lines[-1]) == ("first", "last")
    assert json.loads("".join(lines[1:-1]))["schema_version"]
    assert names(tmp_path) == ["link", "log"]


def test_an_open_descriptor_is_written_to(tmp_path: Path) -> None:
    done = shell("exec 5>> log; echo first >&5; COUNT -o /dev/fd/5; echo last >&5", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = (tmp_path / "log").read_text().splitlines()
    assert (lines[0], lines[-1]) == ("first", "last")
    for place in ("/dev/fd/9", "/proc/self/fd/9", "/dev/stdout >&-", "/dev/fd/5 5< log"):
        done = shell(f"COUNT -o {place}", tmp_path)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1


def test_output_to_a_pipe_and_a_device(tmp_path: Path) -> None:
    for line in ("COUNT --json -o /dev/stdout | cat", "mkfifo p; cat p & COUNT --json -o p; wait"):
        done = shell(line, tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)
    assert (tmp_path / "p").is_fifo()
    done = shell("COUNT -o /dev/null", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = shell("COUNT -o /dev/full", tmp_path)
    assert done.returncode == 2
    assert "/dev/full: No space left on device" in done.stderr
    done = shell("COUNT -o /dev/stdout | true; exit ${PIPESTATUS[0]}", tmp_path)
    assert done.returncode in (0, 128 + signal.SIGPIPE)
    assert done.stderr == ""


def test_the_input_may_be_the_output(tmp_path: Path) -> None:
    network = '[[layers]]\nkind = "input"\nwidth = 3\n[[layers]]\nkind = "lstm"\nhidden = 4\n'
    (tmp_path / "net.toml").write_text(network)
    done = shell("fusedrnn count - --json -o net.toml < net.toml", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "net.toml").read_text())


# Before long work


def test_a_check_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    check_output(path)
    assert names(tmp_path) == []
    path.write_bytes(b"old")
    before = path.stat()
    check_output(path)
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.read_bytes() == b"old"
    os.mkfifo(tmp_path / "pipe")
    check_output(tmp_path / "pipe")  # and does not wait for a reader
    check_output("/dev/null")
    check_output("/dev/stdout")


@pytest.mark.parametrize(
    "place",
    ["", "no/file", "file/below", "loop", "x" * 300, "folder", "folder/", "away", "/dev/fd/99"],
)
def test_what_cannot_be_written_is_told_before(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder").mkdir()
    Path("loop").symlink_to("loop")
    Path("away").symlink_to("no/file")
    before = names(tmp_path)
    for function in (check_output, lambda path: write_file(path, b"new")):
        with pytest.raises(OSError) as raised:
            function(place)
        assert raised.value.filename == place
        assert raised.value.errno
    assert names(tmp_path) == before
