"""The formulas of a cost with their numbers, for people who want to check them by hand.

This module is plain Python: counting needs neither NumPy nor the C extension.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from operator import attrgetter

from fusedrnn.counting.cost import COUNTER_BYTES, FLOAT_BYTES, WEIGHT_BYTES, Cost
from fusedrnn.counting.operations import Counts, LayerCounts, Operations, count_layers
from fusedrnn.counting.result import Figure, aligned, figure_text

__all__ = ["explain"]

#: A sum of more lengths than this is explained by its value alone.
MAX_TERMS = 16


def explain(cost: Cost) -> str:
    """Each formula with its numbers: of each kind of layer, then of all layers."""
    blocks = []
    formulas = _clockwork_formulas if cost.architecture.periods else _formulas
    for label, rows in _alike(cost):
        blocks.append(f"{label}\n{aligned(list(formulas(cost, rows[0])))}")
    blocks.append(f"All layers\n{aligned(list(_sums(cost)))}")
    if cost.architecture.bidirectional:
        blocks.append(_both_directions(cost))
    return "\n\n".join(blocks)


def _alike(cost: Cost) -> Iterator[tuple[str, list[LayerCounts]]]:
    """The rows, put together where all their figures are the same."""
    groups: dict[Counts, list[LayerCounts]] = {}
    for row in cost.layers:
        groups.setdefault(row.counts, []).append(row)
    for rows in groups.values():
        first, last = rows[0].layer, rows[-1].layer
        label = f"Layer {first}" if first == last else f"Each of layers {first} to {last}"
        yield label + (", each direction" if cost.architecture.bidirectional else ""), rows


def _formulas(cost: Cost, row: LayerCounts) -> Iterator[list[str]]:
    table, counts, work = cost.architecture.table, row.counts, row.work.peak
    letters = cost.architecture.peephole_gates
    gates, own, looks = len(table.gates), len(table.own_recurrent_bias), len(letters)
    projection = "+D_h*D_n" if counts.projection_weights else ""
    peepholes = f"+{looks}*D_n" if looks else ""

    def parameters(biases: int) -> str:
        bias = ("", "+D_n", "+2*D_n")[biases]
        second = "+D_n" * own if biases == 1 else ""
        return f"{gates}*(D_n*(D_h+D_x){bias}){second}{projection}{peepholes}"

    yield _line(row, "parameters", parameters(bool(counts.biases)), counts.parameters)
    if counts.parameters_two_biases is not None:
        yield _line(row, "with two biases", parameters(2), counts.parameters_two_biases)
    yield _line(row, "MACs per step", f"{gates}*D_n*(D_h+D_x){projection}", work.macs)
    if row.D_x == row.D_h == row.D_n:
        matrices = counts.matrix_weights // row.D_n**2
        vectors = [
            f"{figure // row.D_n}*D = {figure:,} {name}"
            for name, figure in (
                ("biases", counts.biases),
                ("peephole weights", counts.peephole_weights),
            )
            if figure
        ]
        without = f", without the {' and the '.join(vectors)}" if vectors else ""
        formula = f"{matrices}*D^2 = {matrices}*{row.D_n}^2"
        yield ["", f"{formula} = {counts.matrix_weights:,}{without}"]
    seen = [f"peephole of {gate}" for gate in letters]
    for label, formulas, value in (
        ("multiplies", table.products, work.elementwise_multiplies),
        ("adds", table.sums, work.elementwise_adds),
    ):
        every = [*formulas, *seen]
        note = f": {', '.join(every)}" if every else ""
        yield _line(row, label, f"{len(every)}*D_n", value, note)
    if counts.biases:
        yield _line(row, "bias adds", f"{gates + own}*D_n", work.bias_adds)
    for name, times in work.activations:
        yield _line(row, name, f"{times // row.D_n}*D_n", times)
    yield _flops("FLOPs per step", work)
    if cost.backward:
        yield from _backward_formulas(cost, row)
    states = {"hidden": "D_h", "cell": "D_n"}
    state = "+".join(states[state.kind] for state in table.states)
    yield _line(row, "state", state, counts.state_size)
    yield _line(row, "values moved", f"D_x+D_h+2*({state})", counts.values_moved)


def _backward_formulas(cost: Cost, row: LayerCounts) -> Iterator[list[str]]:
    table, work = cost.architecture.table, row.backward.peak
    seen = [f"3 for the peephole of {gate}" for gate in cost.architecture.peephole_gates]
    projected = ["what is projected"] * len(table.outputs) * (row.counts.projection_weights > 0)
    terms = len(table.gradient_products) + 3 * len(seen) + len(projected)
    every = "; ".join([*table.gradient_products, *seen, *projected])
    yield _line(
        row, "backward multiplies", f"{terms}*D_n", work.elementwise_multiplies, f": {every}"
    )
    terms = len(table.gradient_sums) + 3 * len(seen)
    every = "; ".join([*table.gradient_sums, *seen, "dy"])
    yield _line(row, "backward adds", f"{terms}*D_n+D_h", work.elementwise_adds, f": {every}")
    for name, times in work.activations:
        yield _line(row, f"backward {name}", f"{times // row.D_n}*D_n", times)
    yield _tape(cost, row)


def _tape(cost: Cost, row: LayerCounts) -> list[str]:
    recorded = cost.architecture.table.recorded
    gates = {gate.name for gate in cost.architecture.table.gates}
    every = [f"sum of {name}" if name in gates else name for name in recorded]
    note = f": {', '.join(every)}, h'"
    return _line(row, "tape", f"{len(recorded)}*D_n+D_h", row.tape_size, note)


def _clockwork_formulas(cost: Cost, row: LayerCounts) -> Iterator[list[str]]:
    size, counts, work = cost.architecture, row.counts, row.work
    periods, units = size.periods, size.module_size
    modules = [(period, row.D_n - size.module_reads(m)) for m, period in enumerate(periods)]
    read = "+".join(str(width) for _, width in modules)
    shares = "+".join(f"1/{period}" for period in periods)
    terms = "+".join(f"({row.D_x}+{width})/{period}" for period, width in modules)

    def line(label: str, words: str, numbers: str, value: Figure) -> list[str]:
        exact = f" = {value}" if isinstance(value, Fraction) else ""
        return [label, f"{words} = {numbers} = {figure_text(value)}{exact}"]

    yield line("k", "units of a module", f"{row.D_n}/{len(periods)}", units)
    for label, biases, parameters in (
        ("parameters", int(counts.biases > 0), counts.parameters),
        ("with two biases", 2, counts.parameters_two_biases),
    ):
        if parameters is not None:
            yield line(
                label,
                "D_n*D_x+k*(units that each module reads)" + ("", "+D_n", "+2*D_n")[biases],
                f"{row.D_n}*{row.D_x}+{units}*({read})"
                + ("", f"+{row.D_n}", f"+2*{row.D_n}")[biases],
                parameters,
            )
    yield line(
        "average MACs",
        "k*(sum of (D_x+units read)/period)",
        f"{units}*({terms})",
        work.average.macs,
    )
    yield line(
        "peak MACs",
        "D_n*D_x+k*(units that each module reads)",
        f"{row.D_n}*{row.D_x}+{units}*({read})",
        work.peak.macs,
    )
    vectors = [("bias adds", work.average.bias_adds, work.peak.bias_adds)]
    vectors += [
        (name, average, peak)
        for (name, average), (_, peak) in zip(
            work.average.activations, work.peak.activations, strict=True
        )
    ]
    for name, average, peak in vectors:
        if peak:
            yield line(f"average {name}", "k*(sum of 1/period)", f"{units}*({shares})", average)
            yield _line(row, f"peak {name}", f"{peak // row.D_n}*D_n", peak)
    yield _flops("average FLOPs", work.average)
    yield _flops("peak FLOPs", work.peak)
    if cost.backward:
        value = row.backward.average.elementwise_multiplies
        note = ", ".join(cost.architecture.table.gradient_products)
        label, text = line(
            "backward multiplies", "k*(sum of 1/period)", f"{units}*({shares})", value
        )
        yield [label, f"{text}: {note}"]
        adds = row.backward.peak.elementwise_adds
        yield _line(row, "backward adds", "D_n", adds, ": dy")
        yield _tape(cost, row)
    yield _line(row, "state", "D_n", counts.state_size, " and the step counter t")
    yield _line(row, "values moved", "D_x+D_h+2*(D_n)", counts.values_moved)


def _sums(cost: Cost) -> Iterator[list[str]]:
    groups = [(len(rows), rows[0]) for _, rows in _alike(cost)]
    size, clockwork = WEIGHT_BYTES[cost.weight_dtype], bool(cost.architecture.periods)
    weights, moved = cost.weight_bytes, cost.bytes_per_step_cached
    which, many = "steps*batch", f"{cost.steps}*{cost.batch}"
    if cost.lengths is not None:
        few = len(cost.lengths) <= MAX_TERMS
        which = "(sum of lengths)"
        many = f"({'+'.join(map(str, cost.lengths if few else [cost.sequence_steps]))})"

    def total(label: str, figures: Iterable[Figure], value: Figure) -> list[str]:
        terms = zip((times for times, _ in groups), map(_exact, figures), strict=True)
        return [label, f"{'+'.join(f'{n}*{figure}' for n, figure in terms)} = {figure_text(value)}"]

    def line(label: str, formula: str, numbers: str, value: float) -> list[str]:
        return [label, f"{formula} = {numbers} = {figure_text(value)}"]

    parameters = (row.counts.parameters for _, row in groups)
    yield total("parameters, effective", parameters, cost.parameters)
    for label, of in (
        ("MACs", attrgetter("macs")),
        ("FLOPs", attrgetter("flops")),
    ):
        peaks = [of(row.work.peak) for _, row in groups]
        if clockwork:
            averages = [of(row.work.average) for _, row in groups]
            yield total(f"average {label}", averages, of(cost.average))
            yield total(f"peak {label}", peaks, of(cost.peak))
            formula = f"layers*(active steps of a module)*(its {label})"
            numbers = "+".join(
                f"{times}*{cost.runs(part.period)}*{of(part.operations)}"
                for times, row in groups
                for part in row.work.parts
            )
        else:
            yield total(f"{label} per step", peaks, of(cost.peak))
            formula = f"{which}*{label} per step"
            numbers = f"{many}*{of(cost.peak)}"
        yield line(label, formula, numbers, of(cost.executed))
    if cost.backward_macs is not None:
        formula, numbers = "2*MACs", f"2*{cost.macs}"
        if not cost.want_x:
            first = [row for row in cost.layers if row.layer == 0]
            inputs = sum(int(cost.executed_by[row.counts].input_macs) for row in first)
            formula, numbers = f"{formula}-those of x in layer 0", f"{numbers}-{inputs}"
        if not cost.want_state:
            of_h = sum(cost.products_of_h(row.counts) for row in cost.layers)
            formula += "-batch*those of h in a first step"
            numbers += f"-{cost.batch}*{of_h}"
        yield line("backward MACs", formula, numbers, cost.backward_macs)
        yield line(
            "tape bytes",
            f"float32*{which}*floats of the tape",
            f"{FLOAT_BYTES}*{many}*{cost.tape_size}",
            cost.tape_bytes,
        )
    yield line(
        "weight bytes",
        f"{cost.weight_dtype}*matrices+float32*(biases+peepholes)",
        f"{size}*{cost.total.matrix_weights}"
        f"+{FLOAT_BYTES}*({cost.total.biases}+{cost.total.peephole_weights})",
        weights,
    )
    counters = cost.total.state_counters
    yield line(
        "bytes per step, weights cached",
        "batch*(float32*values moved" + ("+2*int64*counters)" if counters else ")"),
        f"{cost.batch}*({FLOAT_BYTES}*{cost.total.values_moved}"
        + (f"+2*{COUNTER_BYTES}*{counters})" if counters else ")"),
        moved,
    )
    yield line(
        "peak bytes per step" if clockwork else "bytes per step",
        "weight bytes+bytes cached",
        f"{weights}+{moved}",
        cost.peak_bytes_per_step,
    )


def _both_directions(cost: Cost) -> str:
    twin = [*count_layers(replace(cost.architecture, bidirectional=False))]
    rows = [["matrix weights", "two directions / one = ratio"]]
    for one in twin[:2]:
        alone = one.counts.matrix_weights
        both = sum(row.counts.matrix_weights for row in cost.layers if row.layer == one.layer)
        label, why = (
            ("layer 0", "the same layer twice")
            if one.layer == 0
            else ("each layer above", "twice, and each reads both directions: D_x = 2*D_h")
        )
        rows.append([label, f"{both:,} / {alone:,} = {both / alone:.4g}: {why}"])
    return "Beside the same network in one direction\n" + aligned(rows)


def _line(row: LayerCounts, label: str, formula: str, value: Figure, note: str = "") -> list[str]:
    """A formula in the sizes of a row, with their numbers, and its value."""
    numbers = re.sub("D_[xhn]", lambda match: str(getattr(row, match.group())), formula)
    return [label, f"{formula} = {numbers} = {figure_text(value)}{note}"]


def _flops(label: str, operations: Operations) -> list[str]:
    figures = [operations.bias_adds, operations.elementwise_multiplies, operations.elementwise_adds]
    numbers = "+".join(map(_exact, [operations.macs, *figures]))
    formula = "2*MACs+bias adds+multiplies+adds"
    return [label, f"{formula} = 2*{numbers} = {figure_text(operations.flops)}"]


def _exact(figure: Figure) -> str:
    """A figure as a term of a formula."""
    return f"({figure})" if isinstance(figure, Fraction) else str(figure)
