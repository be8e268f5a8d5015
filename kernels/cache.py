"""Compiled kernels on disk, so that only one process compiles: one that starts beside it waits for it.

Numba's own cache looks at the file of a kernel alone: an edit in a function that the kernel calls
would not be seen, and two instruction sets would share a key. Here the name of a cached file is a
digest of everything its machine code depends on, so a stale one cannot be found.
"""

from __future__ import annotations

import hashlib
import pickle
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba import config
from numba.core.caching import FunctionCache, IndexDataCacheFile, NullCache
from numba.core.registry import cpu_target

from fusedrnn.kernels.memory import layouts

__all__ = ["kernel_cache"]


def digest_sources() -> str:
    """SHA-256 of the sources beside this one, as they are on disk now."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


#: Taken when the sources are imported: what is compiled is what was read then.
SOURCES = digest_sources()

#: What a file that is not whole, or not ours to read, raises.
UNREADABLE = (OSError, EOFError, pickle.UnpicklingError)

#: Seconds after which a process no longer waits for another one, which may be stopped, to compile a kernel.
MAX_WAIT = 300


class KernelCache(FunctionCache):
    """The cache of one kernel for one instruction set on one kind of CPU."""

    def __init__(self, function: Callable[..., Any], isa: str) -> None:
        super().__init__(function)
        versions = platform.python_version(), numba.__version__, llvmlite.__version__
        cpu = cpu_target.target_context.codegen().magic_tuple()
        options = config.OPT, config.DEBUGINFO_DEFAULT, config.LOOP_VECTORIZE, config.SLP_VECTORIZE
        what = function.__module__, function.__name__, isa
        key = repr((SOURCES, layouts(), what, versions, cpu, options))
        self.digest = hashlib.sha256(key.encode()).hexdigest()
        # The file's name, not only a key in an index: processes that run different versions of the
        # sources at the same time would otherwise write each other's files.
        name = f"{function.__name__}-{isa}-{self.digest}"
        self._cache_file = IndexDataCacheFile(self.cache_path, name, self.digest)

    def _index_key(self, _signature: Any, _codegen: Any) -> str:
        return self.digest

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Inside, no other process compiles this kernel: it waits, and finds the kernel then.

        Where files have no locks, each process compiles for itself.
        """
        with ExitStack() as held:
            with suppress(OSError, ImportError):
                from fcntl import LOCK_EX, LOCK_NB, flock

                self._impl.locator.ensure_cache_path()
                lock = Path(self.cache_path, f"{self.digest}.lock")
                file = held.enter_context(lock.open("ab"))
                end = time.monotonic() + MAX_WAIT
                while time.monotonic() < end:
                    with suppress(BlockingIOError):
                        flock(file, LOCK_EX | LOCK_NB)
                        break
                    time.sleep(0.02)
            yield

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """The kernel, or None to have it compiled: also where a full disk has cut a file short."""
        try:
            return super().load_overload(signature, target_context)
        except UNREADABLE:
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Keep the kernel, unless a source was edited since its import or there is no room."""
        with suppress(*UNREADABLE):
            if digest_sources() == SOURCES:
                super().save_overload(signature, compiled)


class NoCache(NullCache):
    """What keeps nothing."""

    def turn(self) -> AbstractContextManager[None]:
        """Each process compiles for itself."""
        return nullcontext()


def kernel_cache(function: Callable[..., Any], isa: str) -> KernelCache | NoCache:
    """The cache of a kernel, or one that keeps nothing where no directory can be written."""
    try:
        return KernelCache(function, isa)
    except (RuntimeError, OSError):  # no place that Numba knows, or no sources to tell apart
        return NoCache()
