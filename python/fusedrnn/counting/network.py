"""Whole small networks as data: read from TOML, checked, and counted layer by layer.

A network is a list of layers, each of which reads earlier ones side by side. Recurrent layers are
those of :mod:`fusedrnn.cells`; around them stand embeddings, dense layers and what else published
networks are made of. Every error names the key: ``layers[2].hiden: unknown key``.

This module is plain Python: counting needs neither NumPy nor the C extension.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from fractions import Fraction
from functools import cached_property
from math import isfinite, prod
from pathlib import Path
from typing import Any, Literal, TypeAlias

from fusedrnn.architecture import Architecture
from fusedrnn.cells import CELLS
from fusedrnn.counting.counts import aligned, count

__all__ = [
    "CONVENTIONS",
    "FIGURES",
    "KINDS",
    "TIED",
    "Array",
    "Layer",
    "Network",
    "NetworkComplexity",
    "Published",
    "load",
    "parse",
]

SCHEMA_VERSION = 1
#: The average of a Clockwork RNN need not be whole: everything else is.
Number: TypeAlias = int | Fraction
Tied = Literal["once", "twice"]
TIED: tuple[Tied, ...] = ("once", "twice")

# A specification is small and may come from anyone: these end a hostile one early.
MOST_BYTES = 256 * 1024
MOST_LAYERS = 10_000
MOST_ENTRIES = 1_000
MOST_CHARACTERS = 1_000
MOST_DOTS = 200
DEEPEST = 4
MOST = 2**31

#: What each figure means, in words.
CONVENTIONS = {
    "weights": "Elements of all arrays but biases; peepholes are among them.",
    "biases": "Elements of bias arrays, as stored: none, one or two vectors per gate block.",
    "parameters": "weights + biases.",
    "macs_per_step": "One multiply-add per weight of a matrix, each layer once per step of one "
    "sequence. A lookup in an embedding is none; a convolution has one per weight and position; "
    "a Clockwork RNN is averaged over its periods.",
    "tied": "A dense layer tied to an embedding uses its weights: parameters count them once "
    "or, as if they were two arrays, twice. MACs are the same.",
    "not_counted": "Elementwise operations, biases and activations are not MACs: fusedrnn count "
    "CELL has them in columns of their own.",
}

FOOTNOTE = (
    "parameters: weights and biases as stored. MACs: one per weight of a matrix; a lookup is none."
)


# ---- what a network is ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Array:
    """One array of parameters.

    Attributes
    ----------
    elements
        How many are parameters: fewer than the shape says where the others must be zero.
    """

    name: str
    shape: tuple[int, ...]
    bias: bool
    elements: int


@dataclass(frozen=True)
class Layer:
    """One layer of a network: what it reads and what it is made of.

    Attributes
    ----------
    reads
        Names of the earlier layers it reads, side by side.
    input_size, output_size
        Width of a row that it reads and that it gives; 0 for one that reads nothing.
    arrays
        Its parameters.
    macs_per_step, peak_macs_per_step
        Multiply-adds of one step of one sequence: on average, and at most.
    tied
        The embedding whose weights it uses, or None.
    note
        What the sizes do not say.
    """

    name: str
    kind: str
    reads: tuple[str, ...]
    input_size: int
    output_size: int
    arrays: tuple[Array, ...]
    macs_per_step: Number
    peak_macs_per_step: int
    tied: str | None = None
    note: str = ""

    @property
    def weights(self) -> int:
        """Elements of all arrays but biases, tied ones among them."""
        return sum(array.elements for array in self.arrays if not array.bias)

    @property
    def biases(self) -> int:
        """Elements of the bias arrays."""
        return sum(array.elements for array in self.arrays if array.bias)

    def own_weights(self, tied: Tied) -> int:
        """The weights, without those of the embedding it is tied to where they count once."""
        return 0 if self.tied and tied == "once" else self.weights


#: What a published figure may be of.
FIGURES = ("parameters", "macs_per_step", "matrix_flops_per_second")


@dataclass(frozen=True)
class Published:
    """A figure that someone published of the network, for ``fusedrnn verify``.

    Attributes
    ----------
    figure
        One of :data:`FIGURES`.
    printed
        As it was printed, "66M"; None where no figure was found.
    provenance
        "read" in a source, or from "memory" and unverified; None where there is no figure.
    source
        Who published it.
    where
        Where it was read.
    convention
        What the figure counts.
    expected
        "match" or "no match".
    reason
        Why no match is expected.
    layers
        Names of the layers that it is of; empty for all.
    tied
        Whether tied weights count "once" or "twice".
    shares
        The figure is that of one of so many equal parts: a mean over data sets.
    rate
        Steps per second.
    """

    figure: str
    printed: str | None
    provenance: str | None
    source: str
    where: str
    convention: str
    expected: str
    reason: str
    layers: tuple[str, ...]
    tied: Tied
    shares: int
    rate: int | None


@dataclass(frozen=True)
class Network:
    """A network as data, checked."""

    name: str
    layers: tuple[Layer, ...]
    published: tuple[Published, ...] = ()

    def count(self, *, steps: int = 1, batch: int = 1, tied: Tied = "once") -> NetworkComplexity:
        """Count what the network costs.

        Parameters
        ----------
        steps
            T: steps of a sequence, >= 1.
        batch
            B: sequences side by side, >= 1.
        tied
            Count tied weights "once" or "twice".

        Raises
        ------
        TypeError, ValueError
            For a size that is not an int or is out of range, or another ``tied``.
        """
        for name, value in (("steps", steps), ("batch", batch)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, not {type(value).__name__}")
            if not 1 <= value < MOST:
                raise ValueError(f"{name} must be at least 1 and below 2**31, got {value}")
        if tied not in TIED:
            raise ValueError(f"tied must be one of {', '.join(TIED)}, got {tied!r}")
        return NetworkComplexity(self, steps, batch, tied)


# ---- what it costs -------------------------------------------------------------------------------


@dataclass(frozen=True)
class NetworkComplexity:
    """The cost of a :class:`Network`; :data:`CONVENTIONS` says what each figure means."""

    network: Network
    steps: int
    batch: int
    tied: Tied

    @property
    def weights(self) -> int:
        """Elements of all arrays but biases, tied ones as ``tied`` says."""
        return sum(layer.own_weights(self.tied) for layer in self.network.layers)

    @property
    def biases(self) -> int:
        """Elements of all bias arrays."""
        return sum(layer.biases for layer in self.network.layers)

    @property
    def parameters(self) -> int:
        """Weights and biases, tied ones as ``tied`` says."""
        return self.weights + self.biases

    @cached_property
    def parameters_tied_once(self) -> int:
        """Parameters with tied weights counted once."""
        return sum(layer.own_weights("once") + layer.biases for layer in self.network.layers)

    @cached_property
    def parameters_tied_twice(self) -> int:
        """Parameters with tied weights counted as if they were two arrays."""
        return sum(layer.weights + layer.biases for layer in self.network.layers)

    @cached_property
    def macs_per_step(self) -> Number:
        """Multiply-adds of one step of one sequence."""
        return sum(layer.macs_per_step for layer in self.network.layers)

    @property
    def peak_macs_per_step(self) -> int:
        """The same in a step in which every module of a Clockwork RNN runs."""
        return sum(layer.peak_macs_per_step for layer in self.network.layers)

    @property
    def macs(self) -> Number:
        """Multiply-adds of all steps and sequences."""
        return self.steps * self.batch * self.macs_per_step

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain, unrounded numbers, with the conventions in words."""
        return {
            "schema_version": SCHEMA_VERSION,
            "conventions": dict(CONVENTIONS),
            "name": self.network.name,
            "steps": self.steps,
            "batch": self.batch,
            "tied": self.tied,
            "layers": [self._row(layer) for layer in self.network.layers],
            "total": {
                "weights": self.weights,
                "biases": self.biases,
                "parameters": self.parameters,
                "parameters_tied_once": self.parameters_tied_once,
                "parameters_tied_twice": self.parameters_tied_twice,
                "macs_per_step": plain(self.macs_per_step),
                "peak_macs_per_step": self.peak_macs_per_step,
                "macs": plain(self.macs),
            },
        }

    def to_json(self) -> str:
        """:meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """One line per layer, then one whose ``layer`` is ``total``; names in ``reads`` are joined by +."""
        rows = [self._row(layer) for layer in self.network.layers]
        for row in rows:
            row["reads"] = "+".join(row["reads"])
        total = self.to_dict()["total"]
        rows.append({"layer": "total"} | {key: total[key] for key in rows[0] if key in total})
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def to_markdown(self) -> str:
        """The tables of ``str()`` in Markdown."""
        parts = [f"## {markdown_text(self._title())}"]
        for caption, header, rows, left in self._tables():
            parts += [
                f"**{caption}**",
                markdown_table(header, rows, numbers=range(left, len(header))),
            ]
        parts.append(FOOTNOTE)
        return "\n\n".join(parts) + "\n"

    def __str__(self) -> str:
        parts = [self._title()]
        for caption, header, rows, left in self._tables():
            parts.append(f"{caption}\n{aligned([header, *rows], left=left)}")
        parts.append(FOOTNOTE)
        return "\n\n".join(parts)

    def explain(self) -> str:
        """Each array with its shape, and what the totals are made of."""
        blocks = [self._title()]
        for layer in self.network.layers:
            lines = [_explained(array) for array in layer.arrays]
            counted = list(layer.arrays)
            if layer.tied and self.tied == "once":
                lines[0][1] += f", counted in {layer.tied}"
                del counted[0]
            terms = "+".join(str(array.elements) for array in counted) or "0"
            parameters = layer.own_weights(self.tied) + layer.biases
            lines.append(["parameters", f"{terms} = {parameters:,}"])
            if layer.note:
                lines.append(["note", layer.note])
            lines.append(["MACs per step", figure_text(layer.macs_per_step)])
            blocks.append(f"{layer.name} ({_kind(layer)})\n{aligned(lines, left=2)}")
        product = f"{self.steps}*{self.batch}*{_operand(self.macs_per_step)}"
        totals = [
            ["parameters", self._sum(lambda layer: layer.own_weights(self.tied) + layer.biases)],
            ["MACs per step", self._sum(lambda layer: layer.macs_per_step)],
            ["MACs", f"steps*batch*MACs per step = {product} = {figure_text(self.macs)}"],
        ]
        blocks.append(f"All layers\n{aligned(totals, left=2)}")
        return "\n\n".join(blocks)

    def _sum(self, figure: Callable[[Layer], Number]) -> str:
        values = [figure(layer) for layer in self.network.layers]
        return f"{'+'.join(map(_operand, values))} = {figure_text(sum(values))}"

    def _title(self) -> str:
        return f"{self.network.name}; steps {self.steps:,}, batch {self.batch:,}"

    def _row(self, layer: Layer) -> dict[str, Any]:
        weights = layer.own_weights(self.tied)
        return {
            "layer": layer.name,
            "kind": layer.kind,
            "reads": list(layer.reads),
            "tied": layer.tied,
            "input_size": layer.input_size,
            "output_size": layer.output_size,
            "weights": weights,
            "biases": layer.biases,
            "parameters": weights + layer.biases,
            "macs_per_step": plain(layer.macs_per_step),
            "peak_macs_per_step": layer.peak_macs_per_step,
            "macs": plain(self.steps * self.batch * layer.macs_per_step),
        }

    def _tables(self) -> Iterator[tuple[str, list[str], list[list[str]], int]]:
        """Caption, header, rows, and how many columns are words, of each table for people."""
        header = ["layer", "kind", "reads", "in", "out"]
        header += ["weights", "biases", "parameters", "MACs per step"]
        rows = [
            [
                layer.name,
                _kind(layer),
                " + ".join(layer.reads) or "-",
                figure_text(layer.input_size),
                figure_text(layer.output_size),
                figure_text(layer.own_weights(self.tied)),
                figure_text(layer.biases),
                figure_text(layer.own_weights(self.tied) + layer.biases),
                figure_text(layer.macs_per_step),
            ]
            for layer in self.network.layers
        ]
        totals = (self.weights, self.biases, self.parameters, self.macs_per_step)
        rows.append(["total", "", "", "", "", *map(figure_text, totals)])
        yield "Layers, in one step of one sequence", header, rows, 3
        all_steps = f"{self.steps:,} step{'s' * (self.steps > 1)}, batch {self.batch:,}"
        figures: list[tuple[str, Number]] = [("parameters", self.parameters)]
        if any(layer.tied for layer in self.network.layers):
            figures = [
                ("parameters, tied weights once", self.parameters_tied_once),
                ("parameters, tied weights twice", self.parameters_tied_twice),
            ]
        figures.append(("MACs per step", self.macs_per_step))
        if self.peak_macs_per_step != self.macs_per_step:
            figures.append(("MACs per step, peak", self.peak_macs_per_step))
        figures.append((f"MACs, {all_steps}", self.macs))
        yield "Totals", ["figure", "value"], [[name, figure_text(x)] for name, x in figures], 1


def figure_text(figure: Number) -> str:
    """A figure for people; integers keep every digit."""
    return f"{figure:,}" if isinstance(figure, int) else f"{float(figure):,.3f}"


def plain(figure: Number) -> int | float:
    """A figure as JSON and CSV have it."""
    return figure if isinstance(figure, int) else float(figure)


def _operand(figure: Number) -> str:
    return str(figure) if isinstance(figure, int) else f"({figure})"


def markdown_text(text: str) -> str:
    """Words that stay one cell of a table."""
    return re.sub(r"([\\|<>`*_\[\]])", r"\\\1", text)


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Collection[int]
) -> str:
    """A table in Markdown, its columns of ``numbers`` to the right."""
    rule = ["--:" if column in numbers else ":--" for column in range(len(header))]
    escaped = [[markdown_text(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *escaped))


def _kind(layer: Layer) -> str:
    return f"{layer.kind}, tied to {layer.tied}" if layer.tied else layer.kind


def _explained(array: Array) -> list[str]:
    shape, full = "*".join(map(str, array.shape)), prod(array.shape)
    if array.elements == full:
        return [array.name, f"{shape} = {full:,}"]
    return [array.name, f"{array.elements:,} of {shape} = {full:,}; the others are zero"]


# ---- reading -------------------------------------------------------------------------------------


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
        name, content = "standard input", sys.stdin.buffer.read(MOST_BYTES + 1)
    else:
        name = str(path)
        with source.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    try:
        if len(content) > MOST_BYTES:
            raise ValueError(f"larger than {MOST_BYTES:,} bytes: not a specification of a network")
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

    # The reader needs time in the square of the parts of a dotted key.
    if any(line.count(".") > MOST_DOTS for line in text.splitlines()):
        raise ValueError("not a network: nested too deeply")
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"not TOML: {error}") from None
    except RecursionError:
        raise ValueError("not a network: nested too deeply") from None
    except ValueError:  # an integer of more digits than Python converts
        raise ValueError("not a network: a number has too many digits") from None
    _refuse_wild("", document, 0)
    root = _Table("", document, ("name", "layers", "published"), "a network")
    layers = _Layers()
    for path, values in root.tables("layers", required=True):
        layers.add(path, values)
    published = tuple(
        _published(_Table(path, values, PUBLISHED_KEYS, "a published figure"), layers)
        for path, values in root.tables("published", required=False)
    )
    return Network(root.text("name", name), tuple(layers.by_name.values()), published)


def _refuse_wild(path: str, value: object, depth: int) -> None:
    """Refuse what no network has, whatever its key: so no later check meets it."""
    if depth > DEEPEST:
        raise ValueError(f"{path}: nested too deeply")
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_wild(_join(path, key), inner, depth + 1)
    elif isinstance(value, list):
        most = MOST_LAYERS if path in ("layers", "published") else MOST_ENTRIES
        if len(value) > most:
            raise ValueError(f"{path}: must have at most {most:,} entries, got {len(value):,}")
        for index, inner in enumerate(value):
            _refuse_wild(f"{path}[{index}]", inner, depth + 1)
    elif isinstance(value, str):
        if len(value) > MOST_CHARACTERS:
            raise ValueError(f"{path}: must have at most {MOST_CHARACTERS:,} characters")
        if not value.isprintable():
            raise ValueError(f"{path}: must be printable text on one line, got {value!a}")
    elif isinstance(value, bool):
        pass
    elif isinstance(value, int) and abs(value) >= MOST:
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
        width = sum(self.by_name[read].output_size for read in reads)
        if width >= MOST:
            raise table.error("reads", f"{width:,} values side by side: must be below 2**31")
        self.stacked += table.size("layers", 1) if table.has("layers") else 1
        if self.stacked > MOST_LAYERS:
            raise ValueError(f"{path}: more than {MOST_LAYERS:,} layers in all")
        if kind not in CELLS and kind not in SOURCES and not reads:
            raise table.error("reads", f"empty: a {kind} layer reads at least one other")
        made = KINDS[kind](table, width, self.by_name)
        if made.output_size >= MOST:
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
            tied=made.tied,
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
    macs: Number = 0
    peak: int | None = None
    tied: str | None = None
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
    arrays = [_weights("weight", units, width)]
    if table.flag("bias", True):
        arrays.append(_bias("bias", units))
    return _Made(units, tuple(arrays), units * width, tied=tied.name if tied else None)


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
    except (TypeError, ValueError) as error:
        raise _retold(table, error) from None
    macs, peak = complexity.macs_per_step, complexity.peak_macs_per_step
    if not width:
        # A layer that reads nothing runs freely: counts are linear in the width, so those of
        # width 0 follow from those of 1 and 2.
        wider = count(replace(architecture, input_size=2))
        macs, peak = 2 * macs - wider.macs_per_step, 2 * peak - wider.peak_macs_per_step
    share = _density(table)
    arrays: list[Array] = []
    for weight in architecture.weights():
        kept = weight.size
        if weight.kind == "recurrent":
            kept = round(share * weight.size)
            macs, peak = macs - weight.size + kept, peak - weight.size + kept
        if width or weight.layer or weight.kind != "input":
            arrays.append(Array(weight.name, weight.shape, weight.kind == "bias", kept))
    note = "" if share == 1 else f"of the recurrent weights a share of {share} is kept"
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


def _retold(table: _Table, error: Exception) -> ValueError:
    """An architecture's own error, in the keys of this table."""
    message = str(error)
    for field, key in SPELLING.items():
        message = re.sub(rf"\b{field}\b", key, message)
    key, _, rest = message.partition(" ")
    if key.rstrip(":") in table.values:
        return table.error(key.rstrip(":"), rest)
    return ValueError(f"{table.path}: {message}")


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
