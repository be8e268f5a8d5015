"""THE LIST of shapes: benchmarks, reports, tests and the command line take theirs from here.

This module is plain Python: it needs neither pytest, nor Numba, nor NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from random import Random
from typing import Any, Literal, get_args

from fusedrnn.architecture import Architecture

__all__ = [
    "CASES",
    "GROUPS",
    "SINGLE_STEPS",
    "SUMMARY_LIBRARIES",
    "TRAINING",
    "Case",
    "Group",
    "Run",
    "find",
    "in_group",
    "matches",
    "networks",
]

#: What is timed: a step of a stream; a step of a layer, whose state goes in and comes out; a step of several streams at
#: once; one sequence; a batch of sequences; a batch of sequences of unequal lengths. And forward and backward: of
#: sequences; of unequal lengths; of unequal lengths where the loss is one of the outputs alone, not of the last state.
Group = Literal[
    "step",
    "call",
    "streams",
    "sequence",
    "batch",
    "ragged",
    "training",
    "ragged training",
    "outputs training",
]

#: In the order of the list.
GROUPS: tuple[Group, ...] = get_args(Group)

#: Which runs measure a case: `fusedrnn bench run` and its --quick, `fusedrnn bench peers`, its --quick and its --summary,
#: --threads of either, and --long of either; the same with --training.
Run = Literal[
    "quick",
    "default",
    "peers",
    "quick peers",
    "summary",
    "threads",
    "long",
    "training",
    "quick training",
    "training threads",
]

#: Groups that are about one step.
SINGLE_STEPS = ("step", "call", "streams")

#: Groups that are about a forward pass and the gradients.
TRAINING = ("training", "ragged training", "outputs training")

#: Of a cell, as keywords; a tuple, so that a case can be a key.
Options = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Case:
    """One cell in one shape to measure: T steps of B sequences, X inputs, H units.

    Attributes
    ----------
    group
        What is timed.
    runs
        Which runs measure it.
    cell, options
        A cell of the table, and its options.
    lengths
        The lengths of the sequences, where they are not all T steps long.
    """

    group: Group
    steps: int
    batch: int
    input: int
    hidden: int
    runs: frozenset[Run] = frozenset()
    cell: str = "lstm"
    options: Options = ()
    lengths: tuple[int, ...] | None = None

    @cached_property
    def architecture(self) -> Architecture:
        """What is run, checked."""
        return Architecture(self.cell, self.input, self.hidden, **dict(self.options))

    @property
    def macs(self) -> int:
        """About how many multiply-adds one call makes: to say beforehand how long a run takes, not to report."""
        a = self.architecture
        each = len(a.table.gates) * (self.input + a.fed_back) + a.proj_size
        return self.steps * self.batch * a.directions * self.hidden * each

    @property
    def id(self) -> str:
        """The name in results and on the command line of pytest."""
        words = [self.cell, *(_word(name, value) for name, value in self.options)]
        if self.group in TRAINING:
            words += reversed(self.group.split())
        elif self.lengths is not None:
            words.append("ragged")
        elif self.group == "streams":
            words.append("streams")
        elif self.group != "step" and self.steps == 1 == self.batch:  # a call, not a stream's step
            words.append("call")
        sizes = f"T{self.steps}-B{self.batch}-X{self.input}-H{self.hidden}"
        return "-".join([*words, sizes])

    @property
    def network(self) -> str:
        """The name of the cell with its options, in tables."""
        a = self.architecture
        said = a.table.title
        if a.peephole:
            said += " with peepholes"
        if a.proj_size:
            half = 2 * a.proj_size == a.hidden_size
            said += f", projection {'H/2' if half else a.proj_size}"
        if a.periods:
            said += f" {'-'.join(map(str, a.periods))}"
        return f"bidirectional {said}" if a.bidirectional else said

    @property
    def title(self) -> str:
        """The name of the shape, in tables."""
        units = (
            f"H=X={self.hidden}"
            if self.input == self.hidden
            else f"H={self.hidden}, X={self.input}"
        )
        longest = "T≤" if self.lengths else "T="
        times = [] if self.group in SINGLE_STEPS else [f"{longest}{self.steps}"]
        several = ("streams", "batch", "ragged", *TRAINING)
        rows = [f"B={self.batch}"] if self.group in several else []
        return ", ".join([units, *times, *rows])


def _word(name: str, value: Any) -> str:
    """An option in a name: "peephole", "reset-before", "periods-1-2-4-8"."""
    values = value if isinstance(value, tuple) else () if value is True else (value,)
    return "-".join([name, *map(str, values)])


def _unequal(steps: int, batch: int) -> tuple[int, ...]:
    """Lengths, drawn once: the longest is T, as of any batch that was padded, the mean about T/2."""
    random = Random(1)
    lengths = [1 + int(steps * random.random()) for _ in range(batch)]
    lengths[lengths.index(max(lengths))] = steps
    return tuple(lengths)


def _sequences(
    steps: int,
    batch: int,
    input: int,
    hidden: int,
    runs: tuple[Run, ...],
    cell: str = "lstm",
    options: Options = (),
) -> Case:
    """Whole sequences: one, or a batch of them."""
    group: Group = "sequence" if batch == 1 else "batch"
    return Case(group, steps, batch, input, hidden, frozenset(runs), cell, options)


def _step(
    input: int, hidden: int, runs: tuple[Run, ...], cell: str = "lstm", options: Options = ()
) -> Case:
    return Case("step", 1, 1, input, hidden, frozenset(runs), cell, options)


# ---- this library's own comparison with naive NumPy ----------------------------------------------


def _lstm() -> Iterator[Case]:
    """The LSTM, in every size."""
    for hidden in (32, 64, 128, 256, 512):
        yield _step(hidden, hidden, ("quick", "default"))
    yield _step(40, 96, ("default",))
    yield _step(65, 200, ("quick", "default"))

    for hidden, quick in ((32, True), (64, False), (128, True), (256, True), (512, False)):
        yield _sequences(100, 1, hidden, hidden, ("quick", "default") if quick else ("default",))
    yield _sequences(100, 1, 40, 96, ("default",))
    yield _sequences(100, 1, 65, 200, ("default",))

    yield _sequences(50, 16, 128, 128, ("quick", "default"))
    yield _sequences(100, 16, 128, 128, ("quick", "default"))
    yield _sequences(100, 16, 256, 256, ("default",))
    yield _sequences(25, 64, 512, 512, ("default",))
    yield _sequences(50, 7, 40, 96, ("quick", "default"))


def networks(hidden: int) -> Iterator[tuple[str, Options]]:
    """The other cells and options, at that number of units."""
    yield "lstm", (("peephole", True),)
    yield "lstm", (("coupled", True),)
    yield "lstm", (("proj_size", hidden // 2),)
    yield "lstm", (("bidirectional", True),)
    yield "gru", (("reset", "after"),)
    yield "gru", (("reset", "before"),)
    yield "rnn", ()
    yield "clockwork", (("periods", (1, 2, 4, 8)),)


def _family() -> Iterator[Case]:
    """The other cells and options, in the same few sizes."""
    shapes: tuple[tuple[int, int, int, tuple[Run, ...]], ...] = (
        (1, 1, 64, ("quick", "default", "peers")),
        (1, 1, 256, ("quick", "default", "peers")),
        (100, 1, 64, ("default", "peers")),
        (100, 1, 256, ("default", "peers")),
        (50, 16, 128, ("quick", "default", "peers")),
    )
    for steps, batch, hidden, runs in shapes:
        for cell, options in networks(hidden):
            if steps > 1:
                yield _sequences(steps, batch, hidden, hidden, runs, cell, options)
            # A reverse direction begins at the end of a sequence: it has no steps to be fed.
            elif ("bidirectional", True) not in options:
                yield _step(hidden, hidden, runs, cell, options)
    ragged: tuple[tuple[str, Options, tuple[Run, ...]], ...] = (
        ("lstm", (), ("quick", "default", "peers", "quick peers")),
        ("gru", (("reset", "after"),), ("quick", "default", "peers")),
        ("rnn", (), ("peers",)),
        ("lstm", (("proj_size", 64),), ("peers",)),
    )
    lengths = _unequal(100, 16)
    for cell, options, runs in ragged:
        yield Case("ragged", 100, 16, 128, 128, frozenset(runs), cell, options, lengths)


def _calls() -> Iterator[Case]:
    """A step of a layer, beside the stream's in the same sizes; and a step of several streams at once."""
    for hidden in (32, 128, 512):
        yield Case("call", 1, 1, hidden, hidden, _EVERYWHERE)
    yield Case("call", 1, 1, 64, 64, _EVERYWHERE, "gru", (("reset", "after"),))
    for streams in (4, 16):
        yield Case("streams", 1, streams, 128, 128, frozenset({"quick", "default", "peers"}))


_EVERYWHERE: frozenset[Run] = frozenset({"quick", "default", "peers", "quick peers"})


# ---- versus other libraries ----------------------------------------------------------------------


#: The libraries in that table: those that most people have.
SUMMARY_LIBRARIES = ("torch", "onnxruntime")


def _summary() -> Iterator[Case]:
    """The few shapes of one small table: a step, a sequence and a batch."""
    for hidden in (32, 128, 512):
        yield _step(hidden, hidden, ("summary",))
        yield _sequences(100, 1, hidden, hidden, ("summary",))
        yield _sequences(100, 32, hidden, hidden, ("summary",))


def _versus_peers() -> Iterator[Case]:
    """The shapes that the figures to reach are about."""
    both: tuple[Run, ...] = ("peers", "quick peers")
    for hidden in (32, 64, 128, 256, 512):
        yield _step(hidden, hidden, both)
        yield _sequences(100, 1, hidden, hidden, both)
    yield _sequences(100, 1, 1024, 1024, ("peers",))
    for hidden, steps in ((64, 100), (128, 100), (256, 100), (512, 50), (1024, 25)):
        yield _sequences(steps, 16, hidden, hidden, both if hidden <= 256 else ("peers",))
        yield _sequences(25, 64, hidden, hidden, both if hidden == 256 else ("peers",))
    for cell, halved in (("gru", False), ("rnn", False), ("lstm", True)):
        for hidden in (32, 64, 128, 256, 512):
            options: Options = (("proj_size", hidden // 2),) if halved else ()
            if cell == "gru":
                options = (("reset", "after"),)
            runs = both if hidden == 128 else ("peers",)
            yield _sequences(100, 1, hidden, hidden, runs, cell, options)
            if hidden >= 128:
                yield _sequences(50, 16, hidden, hidden, runs, cell, options)
    yield _sequences(100, 1, 32, 32, both, "lstm", (("bidirectional", True),))


def _threads() -> Iterator[Case]:
    """What is measured with one thread and with several."""
    for hidden, steps in ((128, 100), (256, 100), (512, 100), (1024, 25)):
        yield _sequences(steps, 1, hidden, hidden, ("threads",))
    for hidden, steps in ((128, 100), (256, 100), (512, 50)):
        yield _sequences(steps, 16, hidden, hidden, ("threads",))
    yield _sequences(25, 64, 512, 512, ("threads",))
    yield _sequences(100, 1, 256, 256, ("threads",), "gru", (("reset", "after"),))
    yield _sequences(100, 1, 256, 256, ("threads",), "lstm", (("bidirectional", True),))


def _audio() -> Iterator[Case]:
    """Single steps of the sizes that sound is processed with: one sample in, or a frame of features."""
    runs: tuple[Run, ...] = ("peers",)
    for cell, options in (("lstm", ()), ("gru", (("reset", "after"),))):
        for hidden in (8, 12, 16, 20, 24, 32, 40):
            yield _step(1, hidden, runs, cell, options)
        for hidden in (96, 128, 384):
            yield _step(hidden, hidden, runs, cell, options)


def _odd() -> Iterator[Case]:
    """Sizes that no vector is as long as."""
    for inputs, hidden in ((40, 96), (65, 200), (80, 320), (257, 650)):
        yield _step(inputs, hidden, ("peers",))
        yield _sequences(100, 1, inputs, hidden, ("peers",))
        yield _sequences(50, 7, inputs, hidden, ("peers",))


def _deepbench() -> Iterator[Case]:
    """DeepBench's lists, forward only, with the activations that are usual: X = H, and W x is timed too."""
    after: Options = (("reset", "after"),)
    # Inference on a server, and on a device.
    for batch in (1, 2, 4):
        for hidden, steps in ((256, 150), (512, 25), (1024, 25), (1536, 50), (2048, 25)):
            runs: tuple[Run, ...] = ("peers",) if hidden <= 1024 else ("long",)
            yield _sequences(steps, batch, hidden, hidden, runs)
        yield _sequences(1, batch, 512, 512, ("peers",), "gru", after)
        yield _sequences(1500, batch, 1024, 1024, ("long",), "gru", after)
        for hidden, steps in ((1536, 375), (2048, 750), (2560, 187), (2816, 1500)):
            yield _sequences(steps, batch, hidden, hidden, ("long",), "gru", after)
    yield _sequences(672, 1, 32, 32, ("peers",), "rnn")
    yield _sequences(96, 1, 64, 64, ("peers",), "rnn")
    # Training: its forward pass.
    for hidden in (1760, 2048, 2560):
        for batch in (16, 32, 64, 128):
            yield _sequences(50, batch, hidden, hidden, ("long",), "rnn")
    for hidden in (512, 1024, 2048, 4096):
        for batch in (16, 32, 64, 128):
            yield _sequences(25, batch, hidden, hidden, ("long",))
    for batch in (8, 16, 32):
        yield _sequences(50, batch, 1536, 1536, ("long",))
    for batch in (16, 32, 64):
        yield _sequences(150, batch, 256, 256, ("long",))
    for hidden, steps in ((1536, 375), (2048, 750), (2560, 187), (2816, 1500)):
        yield _sequences(steps, 32, hidden, hidden, ("long",), "gru", after)
    yield _sequences(1, 32, 512, 512, ("long",), "gru", after)
    for batch in (32, 64):
        yield _sequences(1500, batch, 1024, 1024, ("long",), "gru", after)


# ---- forward and backward ------------------------------------------------------------------------


_AFTER: Options = (("reset", "after"),)

#: What the short runs have of it, and every other run too; and what is trained with several threads.
_SHORT_TRAINING = (
    "lstm-training-T100-B16-X128-H128",
    "gru-reset-after-training-T100-B16-X64-H64",
    "lstm-training-ragged-T100-B16-X64-H64",
    "lstm-training-outputs-T100-B16-X64-H64",
)
_THREADED_TRAINING = (
    "lstm-training-T100-B16-X128-H128",
    "lstm-training-T50-B16-X256-H256",
    "gru-reset-after-training-T100-B16-X128-H128",
)


def _training() -> Iterator[Case]:
    """The shapes that the figures to reach are about, and each cell that PyTorch lacks."""
    equal: tuple[tuple[str, Options, tuple[tuple[int, int, int], ...]], ...] = (
        ("lstm", (), ((100, 1, 32), (100, 1, 64), (100, 1, 128))),
        ("lstm", (), ((100, 16, 32), (100, 16, 64), (100, 16, 128), (250, 16, 128))),
        ("lstm", (), ((50, 16, 256), (25, 16, 512), (50, 64, 128), (25, 64, 256))),
        ("gru", _AFTER, ((100, 1, 32), (100, 16, 64), (100, 16, 128), (50, 16, 256))),
        ("gru", _AFTER, ((50, 64, 128),)),
        ("rnn", (), ((100, 1, 32), (100, 16, 64), (100, 16, 128), (50, 64, 128))),
        *((cell, options, ((100, 16, 64),)) for cell, options in networks(64)),
        ("lstm", (("proj_size", 16),), ((100, 1, 32),)),
        ("lstm", (("proj_size", 64),), ((100, 16, 128), (50, 64, 128))),
    )
    for cell, options, shapes in equal:
        for steps, batch, hidden in shapes:
            yield _trained("training", steps, batch, hidden, cell, options)
    unequal: tuple[tuple[str, Options, int], ...] = (
        *(("lstm", (), 64), ("lstm", (), 128), ("lstm", (("proj_size", 32),), 64)),
        *(("gru", _AFTER, 64), ("rnn", (), 64)),
    )
    for cell, options, hidden in unequal:
        yield _trained("ragged training", 100, 16, hidden, cell, options)
        yield _trained("outputs training", 100, 16, hidden, cell, options)
    # Padded, its reverse direction would begin in the padding.
    yield _trained("ragged training", 100, 16, 64, "lstm", (("bidirectional", True),))


def _trained(
    group: Group, steps: int, batch: int, hidden: int, cell: str, options: Options
) -> Case:
    """A case of forward and backward, in its runs."""
    lengths = None if group == "training" else _unequal(steps, batch)
    case = Case(group, steps, batch, hidden, hidden, frozenset(), cell, options, lengths)
    runs: set[Run] = {"training"}
    if case.id in _SHORT_TRAINING:
        runs |= {"quick training", *_EVERYWHERE}
    if case.id in _THREADED_TRAINING:
        runs.add("training threads")
    return replace(case, runs=frozenset(runs))


def _once() -> Iterator[Case]:
    """Every case once, in all its runs; the smaller shape of a network before the larger."""
    cases: dict[str, Case] = {}
    for several in (
        *(_lstm, _family, _calls, _summary),
        *(_versus_peers, _threads, _audio, _odd, _deepbench, _training),
    ):
        for case in several():
            known = cases.get(case.id, case)
            cases[case.id] = replace(known, runs=known.runs | case.runs)
    names = list(dict.fromkeys(case.network for case in cases.values()))
    yield from sorted(
        cases.values(),
        key=lambda case: (
            GROUPS.index(case.group),
            names.index(case.network),
            case.batch,
            case.hidden,
            case.input,
            case.steps,
        ),
    )


CASES: tuple[Case, ...] = tuple(_once())


def in_group(group: Group) -> tuple[Case, ...]:
    """The cases of one group, in the order of the list."""
    return tuple(case for case in CASES if case.group == group)


def find(id: str) -> Case:
    """The case of that name."""
    return next(case for case in CASES if case.id == id)


def matches(id: str, pattern: str | None) -> bool:
    """Whether a pattern with ``*`` and ``?``, or a part of a name without, is about that case; None is about all."""
    return pattern is None or fnmatchcase(id, f"*{pattern}*")
