"""The pictures of these pages: one step of each cell, as SVG files beside this script.

    python docs/cells/pictures.py

Gates, their functions and what they mean come from the cell table, and so does the grid of the Clockwork RNN.
Colours are CSS variables, so that a picture is light or dark as the page around it. Needs matplotlib.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle

from fusedrnn.architecture import Architecture
from fusedrnn.cells import CELLS, Cell

HERE = Path(__file__).parent

#: By name: the colour that matplotlib draws, which is that of the light theme, and the colour of the dark theme.
COLOURS = {
    "paper": ("#fdfdfb", "#16191d"),
    "ink": ("#22262b", "#e4e7ea"),
    "line": ("#6b7480", "#8d97a3"),
    "gate": ("#dbe8f8", "#1f3a5a"),
    "state": ("#dff0df", "#1f4528"),
    "box": ("#ecebe7", "#30353b"),
    "retained": ("#b0432f", "#f0907c"),
    "added": ("#2c7a3f", "#7fcf90"),
    "output": ("#2a5fa8", "#86b4ee"),
}
PAPER, INK, LINE, GATE, STATE, BOX, RETAINED, ADDED, OUTPUT = (
    light for light, _ in COLOURS.values()
)

Point = tuple[float, float]


class Picture:
    """A sheet of width x height units, ten units an inch, and the elements of block diagrams."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width / 10, height / 10), facecolor="none")
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
        self.axes.set_axis_off()
        sheet = FancyBboxPatch(
            (0.6, 0.6), width - 1.2, height - 1.2, "round,pad=0.5", fc=PAPER, ec=PAPER, zorder=-9
        )
        self.axes.add_patch(sheet)

    def text(
        self, at: Point, words: str, colour: str = INK, size: float = 9, ha: str = "center", **more
    ) -> None:
        self.axes.text(
            *at, words, color=colour, fontsize=size, ha=ha, va="center", zorder=5, **more
        )

    def box(
        self, at: Point, words: str, below: str = "", colour: str = BOX, width: float = 10
    ) -> None:
        """A box around a point, with a name and a smaller line below the name."""
        x, y = at
        height = 5.6 if below else 4.2
        patch = FancyBboxPatch(
            (x - width / 2 + 0.6, y - height / 2 + 0.6),
            width - 1.2,
            height - 1.2,
            "round,pad=0.6",
            fc=colour,
            ec=LINE,
            lw=0.9,
            zorder=3,
        )
        self.axes.add_patch(patch)
        self.text((x, y + (1.1 if below else 0)), words, size=10 if below else 8.5)
        if below:
            self.text((x, y - 1.4), below, size=7.5)

    def operator(self, at: Point, sign: str, colour: str) -> None:
        self.axes.add_patch(Circle(at, 1.5, fc=PAPER, ec=colour, lw=1.4, zorder=3))
        self.text(at, sign, colour, 11)

    def line(
        self, *points: Point, colour: str = LINE, dashed: bool = False, tip: bool = True
    ) -> None:
        """A line along points, with a halo where it crosses others, and an arrow at its end."""
        style = {"lw": 1.3, "ls": (0, (3, 2)) if dashed else "-", "zorder": 2}
        xs, ys = zip(*points, strict=True)
        self.axes.plot(xs, ys, color=PAPER, lw=4.5, zorder=1.9, solid_capstyle="butt")
        if not tip:
            self.axes.plot(xs, ys, color=colour, **style)
            return
        self.axes.plot(xs[:-1], ys[:-1], color=colour, **style)
        arrow = FancyArrowPatch(
            points[-2],
            points[-1],
            arrowstyle="-|>,head_length=3,head_width=1.6",
            shrinkA=0,
            shrinkB=0,
            color=colour,
            **style,
        )
        self.axes.add_patch(arrow)

    def dot(self, at: Point) -> None:
        self.axes.add_patch(Circle(at, 0.42, fc=LINE, ec=LINE, zorder=3))

    def meanings(self, row: Cell, at: Point, more: Sequence[str] = ()) -> None:
        """What each gate means, from the table, in two columns."""
        lines = [f"{gate.name}: {gate.meaning}" for gate in row.gates] + list(more)
        for k, line in enumerate(lines):
            self.text((at[0] + k % 2 * 37, at[1] - k // 2 * 2.5), line, LINE, 7.8, "left")

    def svg(self, label: str) -> str:
        """The picture as text: without dates, with the colours as variables."""
        out = io.StringIO()
        style = {"svg.fonttype": "none", "svg.hashsalt": label, "font.family": "sans-serif"}
        with matplotlib.rc_context(style):
            self.figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
        text = out.getvalue()
        text = text[text.index("<svg") :]
        text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px sans-serif", text)
        text = re.sub(r"(\d\.\d\d)\d+", r"\1", text)
        text = text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
        for name, (light, _) in COLOURS.items():
            text = text.replace(light, f"var(--{name}, {light})")
        light, dark = (
            " ".join(f"--{name}: {pair[which]};" for name, pair in COLOURS.items())
            for which in (0, 1)
        )
        rules = f"svg {{ {light} }} @media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}"
        text = text.replace("<defs>", f"<style>{rules}</style>\n <defs>", 1)
        return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def gate_box(picture: Picture, row: Cell, name: str, at: Point) -> None:
    """A gate of the table: its name, and the function that its sum goes through."""
    gate = next(gate for gate in row.gates if gate.name == name)
    function, colour = ("sigmoid", GATE) if gate.role == "gate" else ("tanh", STATE)
    picture.box(at, gate.name, function, colour)


# ---- the cells -----------------------------------------------------------------------------------


def rnn() -> Picture:
    (row,) = CELLS["rnn"]
    p = Picture(76, 24)
    p.text((5, 18), "h")
    p.text((5, 8), "x")
    p.line((7, 18), (13, 18))
    p.line((7, 8), (13, 8))
    p.box((19, 18), "R_h h", width=11)
    p.box((19, 8), "W_h x", width=11)
    p.line((25, 18), (34, 18), (34, 14.6))
    p.line((25, 8), (34, 8), (34, 11.4))
    p.operator((34, 13), "+", ADDED)
    p.text((27, 13), "b_h")
    p.line((29.5, 13), (32.4, 13))
    p.line((35.6, 13), (43, 13))
    gate_box(p, row, "h", (48.2, 13))
    p.line((53.4, 13), (66, 13))
    p.text((69, 13), "h'", OUTPUT)
    p.text((60, 16), "output", OUTPUT, 8.5)
    p.text((60, 10.2), "and fed back", OUTPUT, 8.5)
    p.text((48.2, 18.4), "all of h is computed anew", ADDED, 8.5)
    p.text((4, 3.4), "No gate: nothing of h is retained.", LINE, 7.8, "left")
    return p


def lstm(form: str = "", peephole: bool = False, projection: bool = False) -> Picture:
    row = next(row for row in CELLS["lstm"] if row.form == form)
    p = Picture(88 if projection else 78, 45)
    top, middle, low, bus = 36, 28, 18.5, 11
    f, i, g, o, out = 18, 32, (38 if row.form else 44), 58, 67

    # c: retained and added
    p.text((4, top), "c")
    p.line((6, top), (f - 1.6, top))
    p.operator((f, top), "×", RETAINED)
    p.line((f + 1.6, top), (36.4, top))
    p.operator((38, top), "+", ADDED)
    p.line((39.6, top), (72, top))
    p.text((74.5, top), "c'")
    p.text((f, top + 4), "f * c: retained", RETAINED, 8.5)
    p.text((41.5, top + 4), "+ i * g: added", ADDED, 8.5)
    p.operator((38, middle), "×", ADDED)
    p.line((38, middle + 1.6), (38, top - 1.6))

    # gates
    for name, x in (("f", f), ("i", i), ("g", g), ("o", o)):
        if name in (gate.name for gate in row.gates):
            gate_box(p, row, name, (x, low))
            p.dot((x, bus))
            p.line((x, bus), (x, low - 2.9))
    p.text((4, bus), "x, h")
    p.line((7, bus), (o, bus), tip=False)
    p.text((o + 2, bus), "W x + R h + b of each", LINE, 7.8, "left")
    p.line((f, low + 2.9), (f, top - 1.6))
    if row.form:
        p.dot((f, middle))
        p.line((f, middle), (23.4, middle))
        p.box((28, middle), "i = 1 - f", width=9)
        p.line((32.6, middle), (36.4, middle))
        p.line((g, low + 2.9), (g, middle - 1.6))
    else:
        p.line((i, low + 2.9), (i, middle), (36.4, middle))
        p.line((g, low + 2.9), (g, middle), (39.6, middle))

    # output
    p.dot((out, top))
    p.line((out, top), (out, 33.2))
    p.box((out, 31), "tanh", width=8)
    p.line((out, 28.8), (out, 26.2))
    p.operator((out, 24.6), "×", OUTPUT)
    p.line((o, low + 2.9), (o, 24.6), (out - 1.6, 24.6))
    if projection:
        p.line((out + 1.6, 24.6), (74, 24.6))
        p.text((71.2, 26.4), "m", size=8.5)
        p.box((77, 24.6), "P m", width=6)
        p.line((80, 24.6), (83.4, 24.6))
        p.text((85.2, 24.6), "h'", OUTPUT)
        p.text((76, 19.8), "m = o * tanh(c') is H wide,", OUTPUT, 8)
        p.text((76, 17.6), "the output is R wide", OUTPUT, 8)
    else:
        p.line((out + 1.6, 24.6), (72, 24.6))
        p.text((74.5, 24.6), "h'", OUTPUT)
        p.text((70.4, 21.3), "o * tanh(c'):", OUTPUT, 8)
        p.text((70.4, 19.1), "the output", OUTPUT, 8)

    if peephole:
        p.dot((9, top))
        p.line((9, top), (9, low), (f - 5, low), colour=RETAINED, dashed=True)
        p.dot((9, 24.4))
        p.line((9, 24.4), (25, 24.4), (25, low), (i - 5, low), colour=RETAINED, dashed=True)
        p.dot((51, top))
        p.line((51, top), (51, low), (o - 5, low), colour=OUTPUT, dashed=True)
        p.text((4.6, 22), "p * c", RETAINED, 8)
        p.text((54.6, 29), "p_o * c'", OUTPUT, 8)
    p.meanings(row, (4, 6.4))
    return p


def gru(form: str) -> Picture:
    row = next(row for row in CELLS["gru"] if row.form == form)
    p = Picture(78, 44)
    top, middle, low, bus = 36, 26, 17.5, 9.5
    r, n, z, out = (30 if form == "after" else 18), 43, 56, 67
    p.text((4, top), "h")
    p.line((6, top), (z - 1.6, top))
    p.operator((z, top), "×", RETAINED)
    p.line((z + 1.6, top), (out - 1.6, top))
    p.operator((out, top), "+", ADDED)
    p.line((out + 1.6, top), (73, top))
    p.text((75, top), "h'", OUTPUT)
    p.text((z - 1, top + 4), "z * h: retained", RETAINED, 8.5, "right")
    p.text((75.5, top + 4), "+ (1 - z) * n: added", ADDED, 8.5, "right")

    # the candidate, from left to right
    p.dot((8, top))
    if form == "after":
        p.line((8, top), (8, middle), (11, middle))
        p.box((18, middle), "R_n h + d_n", width=14)
        p.line((25, middle), (r - 1.6, middle))
        p.operator((r, middle), "×", RETAINED)
        p.line((r + 1.6, middle), (n - 5, middle))
        p.text((r, middle + 4), "reset after the product", RETAINED, 8.5)
    else:
        p.line((8, top), (8, middle), (r - 1.6, middle))
        p.operator((r, middle), "×", RETAINED)
        p.line((r + 1.6, middle), (22, middle))
        p.box((28.5, middle), "R_n (r * h)", width=13)
        p.line((35, middle), (n - 5, middle))
        p.text((r, middle + 4), "reset before the product", RETAINED, 8.5)
    gate_box(p, row, "n", (n, middle))
    p.line((n + 5, middle), (out - 1.6, middle))
    p.operator((out, middle), "×", ADDED)
    p.line((out, middle + 1.6), (out, top - 1.6))

    for name, x in (("r", r), ("z", z)):
        gate_box(p, row, name, (x, low))
        p.dot((x, bus))
        p.line((x, bus), (x, low - 2.9))
    p.line((r, low + 2.9), (r, middle - 1.6))
    p.line((z, low + 2.9), (z, top - 1.6))
    p.line((z + 5, low), (out, low), (out, 18.7))
    p.box((out, 20.8), "1 - z", width=8)
    p.line((out, 22.9), (out, middle - 1.6))
    p.text((4, bus), "x, h")
    p.line((7, bus), (z, bus), tip=False)
    p.dot((n, bus))
    p.line((n, bus), (n, middle - 2.9))
    p.text((n + 0.9, 20.6), "W_n x", LINE, 7.8, "left")
    p.text((n + 0.9, 18.2), "+ b_n", LINE, 7.8, "left")
    p.text((z + 2, bus), "W x + R h + b", LINE, 7.8, "left")
    p.meanings(row, (4, 5.4))
    return p


def bidirectional() -> Picture:
    p = Picture(78, 36)
    columns = (16, 32, 48, 64)
    for t, x in enumerate(columns):
        p.text((x, 4), f"x[{t}]")
        p.line((x - 2, 6), (x - 2, 10.6))
        p.line((x + 2, 6), (x + 2, 9), (x + 5.4, 9), (x + 5.4, 18), (x + 3, 18), (x + 3, 19.2))
        p.box((x - 2, 13), "cell", width=7, colour=STATE)
        p.box((x + 2, 21.4), "cell", width=7, colour=GATE)
        p.line((x - 4, 15.2), (x - 4, 27.6))
        p.line((x + 2, 23.6), (x + 2, 27.6))
        p.box((x - 1, 29.8), f"y[{t}]", width=11)
    for left, right in pairwise(columns):
        p.line((left + 1.5, 13), (right - 5.5, 13), colour=ADDED)
        p.line((right - 1.5, 21.4), (left + 5.5, 21.4), colour=OUTPUT)
    p.line((6.5, 13), (10.5, 13), colour=ADDED)
    p.line((75, 21.4), (69.5, 21.4), colour=OUTPUT)
    p.text((5, 13), "h", ADDED)
    p.text((76.2, 21.4), "h", OUTPUT)
    p.text((5.5, 16.6), "forward", ADDED, 8)
    p.text((73.4, 24.6), "reverse", OUTPUT, 8)
    p.text((4, 33.6), "y[t] = forward h, then reverse h: 2 R wide", LINE, 7.8, "left")
    return p


def clockwork() -> Picture:
    periods, steps, side = (1, 2, 4, 8), 17, 3
    a = Architecture("clockwork", 1, len(periods), periods=periods)
    p = Picture(82, 28)
    left, bottom = 17, 8
    for module, period in enumerate(periods):
        y = bottom + (len(periods) - 1 - module) * side
        p.text((3.5, y + side / 2), f"module {module}, period {period}", size=8, ha="left")
        for t in range(steps):
            due = t % period == 0
            cell = Rectangle(
                (left + t * side + 0.2, y + 0.2),
                side - 0.4,
                side - 0.4,
                fc=ADDED if due else BOX,
                ec=LINE,
                lw=0.6,
            )
            p.axes.add_patch(cell)
        reads = ", ".join(str(m) for m in range(a.module_reads(module), len(periods)))
        p.text((left + steps * side + 1.5, y + side / 2), reads, size=8, ha="left")
    p.text((left + steps * side + 1.5, 22), "reads", LINE, 8, "left")
    p.text((3.5, 22), "step t", LINE, 8, "left")
    p.text((3.5, 6), "computed", LINE, 8, "left")
    for t in range(steps):
        x = left + (t + 0.5) * side
        p.text((x, 22), str(t), LINE, 8)
        p.text((x, 6), str(sum(t % period == 0 for period in periods)), LINE, 8)
    p.axes.add_patch(Rectangle((3.5, 2.1), 1.6, 1.6, fc=ADDED, ec=LINE, lw=0.6))
    p.text((6, 2.9), "due: computed", size=8, ha="left")
    p.axes.add_patch(Rectangle((34, 2.1), 1.6, 1.6, fc=BOX, ec=LINE, lw=0.6))
    p.text((36.5, 2.9), "not due: its h is retained", size=8, ha="left")
    p.text(
        (3.5, 25.4), "Module 0 runs at every step, module 3 at every eighth.", size=8.5, ha="left"
    )
    return p


#: By file name: the picture in words, and the function that draws it.
PICTURES: dict[str, tuple[str, Callable[[], Picture]]] = {
    "rnn": ("One step of an RNN", rnn),
    "lstm": ("One step of an LSTM", lstm),
    "peephole-lstm": ("One step of an LSTM with peepholes", lambda: lstm(peephole=True)),
    "coupled-lstm": ("One step of a coupled LSTM", lambda: lstm("coupled")),
    "projected-lstm": ("One step of a projected LSTM", lambda: lstm(projection=True)),
    "gru-after": ("One step of a GRU that resets after the product", lambda: gru("after")),
    "gru-before": ("One step of a GRU that resets before the product", lambda: gru("before")),
    "bidirectional": ("Four steps of a layer in two directions", bidirectional),
    "clockwork": ("Which modules of a Clockwork RNN are computed in which step", clockwork),
}


def main() -> None:
    for name, (label, draw) in PICTURES.items():
        (HERE / f"{name}.svg").write_text(draw().svg(label), encoding="utf-8")


if __name__ == "__main__":
    main()
