"""Networks as data: read from TOML and checked. Every error names the key: ``layers[2].hiden: unknown key``.

What a network is, and what it costs, is in :mod:`fusedrnn.counting.network`.

This module is plain Python: counting needs neither NumPy nor the C extension.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from math import isfinite, prod
from pathlib import Path
from typing import Any

from fusedrnn.architecture import Architecture
from fusedrnn.cells import CELLS
from fusedrnn.counting.counts import count
from fusedrnn.counting.network import FIGURES, TIED, Array, Layer, Network, Published, Tied
from fusedrnn.counting.result import Figure
from fusedrnn.errors import ArchitectureError

__all__ = ["KINDS", "PRINTED", "PUBLISHED_KEYS", "keys_of", "load", "parse"]

# A specification is small and may come from anyone: these end a hostile one early.
MAX_BYTES = 256 * 1024
MAX_LAYERS = 10_000
MAX_ENTRIES = 1_000
MAX_CHARACTERS = 1_000
MAX_DOTS = 200
MAX_DEPTH = 4
MAX_SIZE = 2**31


def load(path: str | Path) -> Network:
    """Read a network from a TOML file; the path ``-`` is standard input.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is not TOML, or not a network: the message names the file and the key.
    """
    source = Path(path)
    if str(path) == "-":
        if sys.stdin is None:
            raise OSError("standard input is closed")
        name, content = "standard input", sys.stdin.buffer.read(MAX_BYTES + 1)
    else:
        name = str(path)
        with source.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    try:
        if len(content) > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES:,} bytes: not a specification of a network")
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 text (byte {error.start})") from None
        return parse(text, name=source.stem if str(path) != "-" else "network")
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def parse(text: str, *, name: str = "network") -> Network:
    """Read a network from TOML text.

    Parameters
    ----------
    text
        See ``docs/spec.md``.
    name
        What the network is called if the text does not say.

    Raises
    ------
    ValueError
        It is not TOML, or not a network: the message names the key.

    Examples
    --------
    >>> network = parse('''
    ... [[layers]]
    ... kind = "embedding"
    ... vocabulary = 10000
    ... width = 1500
    ...
    ... [[layers]]
    ... kind = "lstm"
    ... hidden = 1500
    ... layers = 2
    ...
    ... [[layers]]
    ... kind = "dense"
    ... units = 10000
    ... ''')
    >>> network.count().parameters
    66022000
    """
    # Read only here: a command that reads no specification starts without it.
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    text = text.removeprefix("\ufeff")  # a byte order mark
    # The reader needs time in the square of the parts of a dotted key.
    if any(line.count(".") > MAX_DOTS for line in text.splitlines()):
        raise ValueError("not a network: nested too deeply")
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"not TOML: {error}") from None
    except RecursionError:
        raise ValueError("not a network: nested too deeply") from None
    except ValueError:  # an integer of more digits than Python converts
        raise ValueError("not a network: a number has too many digits") from None
    _check_limits("", document, 0)
    root = _Table("", document, ("name", "layers", "published"), "a network")
    layers = _Layers()
    for path, values in root.tables("layers", required=True):
        layers.add(path, values)
    published = tuple(
        _published(_Table(path, values, PUBLISHED_KEYS, "a published figure"), layers)
        for path, values in root.tables("published", required=False)
    )
    return Network(root.text("name", name), tuple(layers.by_name.values()), published)


def _check_limits(path: str, value: object, depth: int) -> None:
    """Raise for a value that no network has, whatever its key, so that no later check meets it."""
    if depth > MAX_DEPTH:
        raise ValueError(f"{path}: nested too deeply")
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_limits(_join(path, key), inner, depth + 1)
    elif isinstance(value, list):
        limit = MAX_LAYERS if path in ("layers", "published") else MAX_ENTRIES
        if len(value) > limit:
            raise ValueError(f"{path}: must have at most {limit:,} entries, got {len(value):,}")
        for index, inner in enumerate(value):
            _check_limits(f"{path}[{index}]", inner, depth + 1)
    elif isinstance(value, str):
        if len(value) > MAX_CHARACTERS:
            raise ValueError(f"{path}: must have at most {MAX_CHARACTERS:,} characters")
        if not value.isprintable():
            raise ValueError(f"{path}: must be printable text on one line, got {value!a}")
    elif isinstance(value, bool):
        pass
    elif isinstance(value, int) and abs(value) >= MAX_SIZE:
        raise ValueError(f"{path}: must be below 2**31")
    elif isinstance(value, float) and not isfinite(value):
        raise ValueError(f"{path}: must be a finite number, got {value}")


def _join(path: str, key: str) -> str:
    bare = re.fullmatch(r"[A-Za-z0-9_-]{1,60}", key)
    word = key if bare else ascii(key if len(key) <= 60 else key[:60] + "...")
    return f"{path}.{word}" if path else word


def _guess(word: str, known: Sequence[str]) -> str:
    near = get_close_matches(word[:60], known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


_REQUIRED = object()


class _Table:
    """One table of the document: every key that it has is known, and what is taken is checked."""

    def __init__(self, path: str, values: dict[str, Any], keys: Sequence[str], what: str) -> None:
        self.path, self.values, self.what = path, values, what
        for key in values:
            if key not in keys:
                hint = _guess(key, keys) or f"; {what} has {', '.join(keys)}"
                raise ValueError(f"{_join(path, key)}: unknown key{hint}")

    def error(self, key: str, message: str) -> ValueError:
        """The error of a key that is known, or of an entry of it."""
        return ValueError(f"{self.path}{'.' if self.path else ''}{key}: {message}")

    def wrong(self, key: str, expected: str) -> ValueError:
        value = self.values[key]
        names = {bool: "a boolean", int: "an integer", float: "a number with a fraction"}
        names |= {str: "text", list: "an array", dict: "a table"}
        got = names.get(type(value), f"a {type(value).__name__}")
        return self.error(key, f"must be {expected}, not {got}")

    def has(self, key: str) -> bool:
        return key in self.values

    def _take(self, key: str, default: Any) -> Any:
        if key in self.values:
            return self.values[key]
        if default is _REQUIRED:
            raise self.error(key, f"missing: {self.what} needs it")
        return default

    def size(self, key: str, default: Any = _REQUIRED) -> int:
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(key, "an integer")
        if value < 1:
            raise self.error(key, f"must be at least 1, got {value}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._take(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        value = self._take(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "text")
        if not value and key in self.values:
            raise self.error(key, "must not be empty")
        return value

    def choice(self, key: str, choices: Sequence[str], default: Any = _REQUIRED) -> str:
        value = self.text(key, default)
        if value not in choices:
            hint = _guess(value, choices) or f"; one of {', '.join(choices)}"
            raise self.error(key, f"unknown {value!r}{hint}")
        return value

    def entries(self, key: str, kind: type, expected: str) -> list[Any]:
        values = self._take(key, _REQUIRED)
        if not isinstance(values, list):
            raise self.wrong(key, f"an array, each entry {expected}")
        for index, value in enumerate(values):
            if type(value) is not kind:
                raise self.error(f"{key}[{index}]", f"must be {expected}, got {value!r}")
        return values

    def sizes(self, key: str) -> list[int]:
        values = self.entries(key, int, "an integer")
        if not values or min(values) < 1:
            raise self.error(key, "must have one or more integers, each at least 1")
        return values

    def tables(self, key: str, *, required: bool) -> Iterator[tuple[str, dict[str, Any]]]:
        """Path and content of each table of an array of tables."""
        values = self._take(key, _REQUIRED if required else [])
        if not isinstance(values, list):
            raise self.wrong(key, f"an array of tables ([[{key}]])")
        if not values and required:
            raise self.error(key, "empty: a network has at least one layer")
        for index, value in enumerate(values):
            place = f"{key}[{index}]"
            if not isinstance(value, dict):
                raise self.error(place, f"must be a table ([[{key}]]), not {value!r}")
            yield f"{self.path}.{place}" if self.path else place, value


class _Layers:
    """The layers read so far: what a next one may read."""

    def __init__(self) -> None:
        self.by_name: dict[str, Layer] = {}
        self.kinds: dict[str, int] = {}
        self.stacked = 0

    def add(self, path: str, values: dict[str, Any]) -> None:
        """Read one more layer."""
        # Its kind decides which keys are known: all others can only be checked after it.
        probe = _Table(path, values, tuple(values), "a layer")
        kind = probe.choice("kind", tuple(KINDS))
        keys = ("kind", "name", *(() if kind in SOURCES else ("reads",)), *keys_of(kind))
        table = _Table(path, values, keys, f"{'an' if kind[0] in 'aeilr' else 'a'} {kind} layer")
        name = table.text("name", self._default_name(kind))
        if name in self.by_name:
            raise table.error("name", f"{name!r} is taken: each layer has a name of its own")
        reads = () if kind in SOURCES else self._reads(table, name)
        width = sum(self.by_name[read].output_size or 0 for read in reads)
        if width >= MAX_SIZE:
            raise table.error("reads", f"{width:,} values side by side: must be below 2**31")
        self.stacked += table.size("layers", 1) if table.has("layers") else 1
        if self.stacked > MAX_LAYERS:
            raise ValueError(f"{path}: more than {MAX_LAYERS:,} layers in all")
        if kind not in CELLS and kind not in SOURCES and not reads:
            raise table.error("reads", f"empty: a {kind} layer reads at least one other")
        made = KINDS[kind](table, width, self.by_name)
        if made.output_size >= MAX_SIZE:
            raise ValueError(f"{path}: gives {made.output_size:,} values: must be below 2**31")
        self.by_name[name] = Layer(
            name=name,
            kind=kind,
            reads=reads,
            input_size=width,
            output_size=made.output_size,
            arrays=made.arrays,
            macs_per_step=made.macs,
            peak_macs_per_step=int(made.macs if made.peak is None else made.peak),
            note=made.note,
        )

    def _default_name(self, kind: str) -> str:
        number = self.kinds[kind] = self.kinds.get(kind, 0) + 1
        return kind if number == 1 else f"{kind} {number}"

    def _reads(self, table: _Table, name: str) -> tuple[str, ...]:
        if not table.has("reads"):
            if not self.by_name:
                raise table.error(
                    "reads", "missing: the first layer has none before it; begin with an input"
                )
            return (next(reversed(self.by_name)),)
        return self.known(table, "reads", own=name)

    def known(self, table: _Table, key: str, own: str = "") -> tuple[str, ...]:
        """The names of layers that are already there."""
        names = table.entries(key, str, "a name of a layer")
        for index, name in enumerate(names):
            if name in self.by_name:
                continue
            message = f"{name!r} cannot read itself"
            if name != own:
                hint = _guess(name, tuple(self.by_name))
                message = f"no layer {name!r} before this one{hint}"
            raise table.error(f"{key}[{index}]", message)
        return tuple(names)


# ---- kinds of layers -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Made:
    output_size: int
    arrays: tuple[Array, ...] = ()
    macs: Figure = 0
    peak: int | None = None
    note: str = ""


def _weights(name: str, *shape: int, elements: int | None = None) -> Array:
    return Array(name, shape, False, prod(shape) if elements is None else elements)


def _bias(name: str, size: int) -> Array:
    return Array(name, (size,), True, size)


def _input(table: _Table, _width: int, _before: dict[str, Layer]) -> _Made:
    return _Made(table.size("width"))


def _embedding(table: _Table, _width: int, _before: dict[str, Layer]) -> _Made:
    vocabulary, width = table.size("vocabulary"), table.size("width")
    return _Made(width, (_weights("weight", vocabulary, width),))


def _dense(table: _Table, width: int, before: dict[str, Layer]) -> _Made:
    tied = _embedding_of(table, width, before) if table.has("tied") else None
    units = table.size("units", tied.arrays[0].shape[0] if tied else _REQUIRED)
    if tied and units != tied.arrays[0].shape[0]:
        rows = tied.arrays[0].shape[0]
        raise table.error("units", f"must be the {rows} rows of {tied.name!r}, got {units}")
    shared = tied.name if tied else None
    arrays = [Array("weight", (units, width), False, units * width, shared)]
    if table.flag("bias", True):
        arrays.append(_bias("bias", units))
    return _Made(units, tuple(arrays), units * width)


def _embedding_of(table: _Table, width: int, before: dict[str, Layer]) -> Layer:
    """The embedding that a dense layer is tied to: as wide as what the layer reads."""
    name = table.text("tied")
    embeddings = tuple(layer.name for layer in before.values() if layer.kind == "embedding")
    if name not in embeddings:
        raise table.error(
            "tied", f"no embedding {name!r} before this layer{_guess(name, embeddings)}"
        )
    if before[name].output_size != width:
        raise table.error(
            "tied",
            f"{name!r} is {before[name].output_size} wide, but this layer reads {width}: "
            "they cannot be one matrix",
        )
    return before[name]


def _convolution(table: _Table, width: int, _before: dict[str, Layer]) -> _Made:
    widths, filters = table.sizes("widths"), table.sizes("filters")
    if len(widths) != len(filters):
        raise table.error("filters", f"must be {len(widths)} numbers, one per width")
    positions = table.size("positions")
    weights = [
        _weights(f"weight of width {wide}", number, wide, width)
        for wide, number in zip(widths, filters, strict=True)
    ]
    arrays = tuple(weights)
    if table.flag("bias", True):
        arrays += (_bias("bias", sum(filters)),)
    macs = positions * sum(array.elements for array in weights)
    return _Made(sum(filters), arrays, macs, note=f"MACs of {positions:,} positions")


def _highway(table: _Table, width: int, _before: dict[str, Layer]) -> _Made:
    arrays: list[Array] = []
    with_bias = table.flag("bias", True)
    for layer in range(table.size("layers", 1)):
        for part in ("transform", "gate"):
            arrays.append(_weights(f"{part}_l{layer}", width, width))
            if with_bias:
                arrays.append(_bias(f"{part}_bias_l{layer}", width))
    macs = sum(array.elements for array in arrays if not array.bias)
    return _Made(width, tuple(arrays), macs)


def _recurrent(table: _Table, width: int, _before: dict[str, Layer]) -> _Made:
    options = {
        field: table.values[key]
        for key, field in _options(table.values["kind"]).items()
        if key in table.values
    }
    if "hidden" not in table.values:
        raise table.error("hidden", f"missing: {table.what} needs it")
    try:
        architecture = Architecture(table.values["kind"], input_size=width or 1, **options)
        complexity = count(architecture)
    except ArchitectureError as error:
        raise _with_toml_key(table, error) from None
    macs, peak = complexity.macs_per_step, complexity.peak_macs_per_step
    if not width:
        # A layer that reads nothing runs freely: counts are linear in the width, so those of
        # width 0 follow from those of 1 and 2.
        wider = count(replace(architecture, input_size=2))
        macs, peak = 2 * macs - wider.macs_per_step, 2 * peak - wider.peak_macs_per_step
    share = _density(table)
    arrays: list[Array] = []
    for weight in architecture.weights():
        stored = weight.elements
        if weight.kind == "recurrent":
            stored = round(share * weight.elements)
            zeros = weight.elements - stored
            macs, peak = macs - zeros, peak - zeros
        if width or weight.layer or weight.kind != "input":
            arrays.append(Array(weight.name, weight.shape, weight.kind == "bias", stored))
    note = (
        ""
        if share == 1
        else f"a share of {share} of the recurrent weights is stored; the others are zero"
    )
    return _Made(architecture.output_size, tuple(arrays), macs, peak, note=note)


def _density(table: _Table) -> float:
    if not table.has("density"):
        return 1
    share = table.values["density"]
    if isinstance(share, bool) or not isinstance(share, (int, float)):
        raise table.wrong("density", "a number")
    if not 0 < share <= 1:
        raise table.error("density", f"must be above 0 and at most 1, got {share}")
    if table.values["kind"] == "clockwork":
        raise table.error("density", "not counted for a clockwork layer")
    return float(share)


#: Fields of an architecture that have a shorter name on the command line, and so here.
SPELLING = {"hidden_size": "hidden", "num_layers": "layers", "proj_size": "proj"}


def _options(cell: str) -> dict[str, str]:
    """The keys of a recurrent layer, and which field of its architecture each one is."""
    some = frozenset().union(*(row.options for rows in CELLS.values() for row in rows))
    names = (field.name for field in fields(Architecture))
    return {
        SPELLING.get(name, name): name
        for name in names
        if name not in ("cell", "input_size")
        and (name not in some or name in CELLS[cell][0].options)
    }


def _with_toml_key(table: _Table, error: ArchitectureError) -> ValueError:
    """The error of an architecture, with the keys of this table instead of the names of its fields."""
    reason = error.reason
    for field, key in SPELLING.items():
        reason = re.sub(rf"\b{field}\b", key, reason)
    return table.error(SPELLING.get(error.field, error.field), reason)


#: Every kind of layer, and what reads it.
KINDS: dict[str, Callable[[_Table, int, dict[str, Layer]], _Made]] = {
    "input": _input,
    "embedding": _embedding,
    **dict.fromkeys(CELLS, _recurrent),
    "dense": _dense,
    "convolution": _convolution,
    "highway": _highway,
}
#: Those that read no other layer.
SOURCES = ("input", "embedding")


def keys_of(kind: str) -> tuple[str, ...]:
    """The keys that a kind of layer has beside its name and what it reads."""
    if kind in CELLS:
        return (*_options(kind), "density")
    return {
        "input": ("width",),
        "embedding": ("vocabulary", "width"),
        "dense": ("units", "bias", "tied"),
        "convolution": ("widths", "filters", "positions", "bias"),
        "highway": ("layers", "bias"),
    }[kind]


# ---- published figures ---------------------------------------------------------------------------

PUBLISHED_KEYS = (
    "figure",
    "printed",
    "provenance",
    "source",
    "where",
    "convention",
    "expected",
    "reason",
    "layers",
    "tied",
    "shares",
    "rate",
)
#: A figure as it is printed: digits, and a letter for thousands, millions, billions.
PRINTED = r"(\d{1,15})(?:\.(\d{1,9}))?([kMGBT]?)"


def _published(table: _Table, layers: _Layers) -> Published:
    figure = table.choice("figure", FIGURES)
    printed = table.text("printed") if table.has("printed") else None
    if printed and not re.fullmatch(PRINTED, printed, re.ASCII):
        raise table.error("printed", f'must be a figure as "66M" or "0.82B", got {printed!r}')
    for key in ("provenance", "where", "expected", "reason"):
        if not printed and table.has(key):
            raise table.error(key, "is of a printed figure, and there is none")
    expected = table.choice("expected", ("match", "no match"), "match")
    if table.has("reason") != (expected == "no match"):
        raise table.error("reason", 'goes with expected = "no match", and that with a reason')
    if table.has("rate") != (figure == "matrix_flops_per_second"):
        raise table.error("rate", 'goes with figure = "matrix_flops_per_second", and that with it')
    tied: Tied = "twice" if table.choice("tied", TIED, "once") == "twice" else "once"
    return Published(
        figure=figure,
        printed=printed,
        provenance=table.choice("provenance", ("read", "memory")) if printed else None,
        source=table.text("source"),
        where=table.text("where", ""),
        convention=table.text("convention", ""),
        expected=expected,
        reason=table.text("reason", ""),
        layers=layers.known(table, "layers") if table.has("layers") else (),
        tied=tied,
        shares=table.size("shares", 1),
        rate=table.size("rate") if table.has("rate") else None,
    )
