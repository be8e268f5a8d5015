"""Arrows between the modules of the package point one way, and counting needs nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "python" / "fusedrnn"
#: No module is longer, unless its first lines say why.
MAX_LINES, REASON = 600, "One module, because"

Graph = dict[str, set[str]]


def module_name(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(package: Path) -> list[Path]:
    """Every module, also those behind the links to kernels/ and bench/, which a search does not follow."""
    folders = (package, *(link for link in package.iterdir() if link.is_symlink()))
    return [path for folder in folders for path in folder.rglob("*.py")]


def import_graph(package: Path = PACKAGE) -> Graph:
    """What each module imports of the package: at its top, in its functions, and for its types only."""
    files = {module_name(path, package): path for path in sources(package)}
    root = package.name
    # The front of the package names everything, and imports it when it is asked for.
    return {
        name: set() if name == root else imports(path, files) - {root, name}
        for name, path in files.items()
    }


def imports(path: Path, files: dict[str, Path]) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # What is imported of a package may be a module in it.
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & files.keys()) or {node.module}
    return found & files.keys()


def circles(graph: Graph) -> set[frozenset[str]]:
    """The sets of modules that import each other, however far around."""
    reached = {name: reachable(graph, name) for name in graph}
    return {
        frozenset({name} | {other for other in beyond if name in reached[other]})
        for name, beyond in reached.items()
        if name in beyond
    }


def reachable(graph: Graph, start: str) -> set[str]:
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += graph[name]
    return found


def test_no_module_imports_itself_around_a_corner() -> None:
    assert circles(import_graph()) == set()


def test_negative_control_a_circle_is_found(tmp_path: Path) -> None:
    package = tmp_path / "house"
    (package / "room").mkdir(parents=True)
    for name, text in (
        ("__init__", "from house.a import x"),
        ("a", "import house.room.b"),
        ("room/__init__", ""),
        ("room/b", "def f():\n    from house.room import c"),
        (
            "room/c",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.a import x",
        ),
        ("d", "from house import a"),
    ):
        (package / f"{name}.py").write_text(text, encoding="utf-8")
    graph = import_graph(package)
    assert graph["house.d"] == {"house.a"}
    assert circles(graph) == {frozenset({"house.a", "house.room.b", "house.room.c"})}


def test_counting_stands_below_all_that_computes() -> None:
    allowed = ("counting", "formats", "architecture", "cells", "errors", "files")
    for name, used in import_graph().items():
        if name.startswith("fusedrnn.counting"):
            assert all(other.split(".")[1] in allowed for other in used), (name, used)


HEAVY = [
    "numpy",
    "numba",
    "cffi",
    "_cffi_backend",
    "fusedrnn._native",
    "torch",
    "matplotlib",
    "rich",
]
PLAIN = [
    *sorted(name for name in import_graph() if name.startswith("fusedrnn.counting")),
    *(f"fusedrnn.machine.{name}" for name in ("limits", "probe", "roofline", "system")),
    "fusedrnn.cells",
    "fusedrnn.architecture",
]


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_module_imports_nothing_heavy(name: str) -> None:
    code = f"import sys, {name}; print(*[each for each in {HEAVY!r} if each in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == ""


def test_negative_control_an_engine_is_heavy() -> None:
    code = (
        f"import sys, fusedrnn.engines; print(*[each for each in {HEAVY!r} if each in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "numpy" in done.stdout


def test_a_long_module_says_why() -> None:
    texts = {
        module_name(path, PACKAGE): path.read_text(encoding="utf-8") for path in sources(PACKAGE)
    }
    long = {name for name, text in texts.items() if text.count("\n") > MAX_LINES}
    assert {name for name in long if REASON not in texts[name][:1500]} == set()


def test_no_folder_of_tests_is_called_like_a_package() -> None:
    """pytest puts tests/ on the path: without PyTorch, a folder tests/torch would be imported in its place."""
    folders = {path.name for path in Path(__file__).parents[1].iterdir() if path.is_dir()}
    assert not folders & {
        "torch",
        "onnx",
        "onnxruntime",
        "keras",
        "jax",
        "flax",
        "dask",
        "ray",
        "numba",
        "openvino",
    }
