"""Types of the C extension for type checkers; its contracts are in csrc/api.h."""

from typing import Any

import cffi

ffi: cffi.FFI
lib: Any
