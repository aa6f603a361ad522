"""Draws the pages' pictures from data.json and demo.txt, each as NAME-light.svg and NAME-dark.svg.

Every number in data.json stands beside the file it comes from and the beginning of the line there;
a number that is not in that line ends the script, so a picture cannot differ from its record.

usage: python3 docs/pictures/draw.py        needs nothing but Python 3.9
"""

import json
import math
import re
from html import escape
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SANS = "ui-sans-serif, -apple-system, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
# GitHub's own colours, so that a picture sits in its page.
THEMES = {
    "light": {
        "page": "#ffffff", "panel": "#f6f8fa", "line": "#d1d9e0", "text": "#1f2328",
        "muted": "#59636e", "ours": "#1a7f37", "away": "#cf222e", "blue": "#0969da",
        "orange": "#bc4c00",
    },
    "dark": {
        "page": "#0d1117", "panel": "#161b22", "line": "#3d444d", "text": "#f0f6fc",
        "muted": "#9198a1", "ours": "#3fb950", "away": "#ff7b72", "blue": "#4493f8",
        "orange": "#f0883e",
    },
}


class Picture:
    """A drawing in one theme: a list of SVG elements on a rounded page."""

    def __init__(self, theme, width, height, title):
        self.colours, self.width, self.height = THEMES[theme], width, height
        self.title, self.style, self.parts = title, "", []
        self.box(0.5, 0.5, width - 1, height - 1, fill="page", radius=8)

    def box(self, x, y, width, height, fill="panel", stroke="line", radius=6, thick=1):
        fill, stroke = self.colours[fill], self.colours[stroke]
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius}" '
            f'fill="{fill}" stroke="{stroke}" stroke-width="{thick:g}"/>'
        )

    def text(self, x, y, words, size=13, colour="text", anchor="start", bold=False, mono=False,
             extra="", halo=False):
        if halo:
            extra += f' stroke="{self.colours["page"]}" stroke-width="5" paint-order="stroke"'
        weight = ' font-weight="600"' if bold else ""
        family = f' font-family="{MONO}"' if mono else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{self.colours[colour]}" '
            f'text-anchor="{anchor}"{weight}{family}{extra}>{escape(words, quote=False)}</text>'
        )

    def path(self, points, colour="line", thick=1.5, dash=""):
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        stroke = self.colours[colour]
        self.parts.append(
            f'<path d="{points}" fill="none" stroke="{stroke}" stroke-width="{thick:g}" '
            f'stroke-linecap="round" stroke-linejoin="round"{dashes}/>'
        )

    def dot(self, x, y, colour, radius=5, hollow=False):
        paint = self.colours[colour]
        fill = self.colours["page"] if hollow else paint
        self.parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{fill}" stroke="{paint}" '
            'stroke-width="2"/>'
        )

    def svg(self):
        style = f"<style>{self.style}</style>\n" if self.style else ""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" font-family="{SANS}" role="img">\n'
            f"<title>{escape(self.title)}</title>\n{style}" + "\n".join(self.parts) + "\n</svg>\n"
        )


def numbers(line):
    """All numbers in a line, thousands joined."""
    found = re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", re.sub(r"(?<=\d),(?=\d{3})", "", line))
    return {float(number) for number in found}


def checked(group):
    """The rows of a group, once every number in them was found in the line that it names."""
    lines = (ROOT / group["from"]).read_text(encoding="utf-8").splitlines()
    for row in group["rows"]:
        meant = [line for line in lines if line.startswith(row["line"])]
        assert len(meant) == 1, f'{group["from"]}: {len(meant)} lines begin with {row["line"]!r}'
        for key, value in row.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                where = f'{group["from"]}: {meant[0]!r}'
                assert value in numbers(meant[0]), f"{key} = {value} is not in {where}"
        if "rank" in row:
            assert f'rank {row["rank"]},' in meant[0], f'rank {row["rank"]}: {meant[0]!r}'
    return group["rows"]


def tree(theme, data):
    """The shipped tree from left to right, with the switch from alice to bob drawn into it."""
    nodes = checked(data["nodes"])
    (cost,), (time,) = checked(data["cost"]), checked(data["time"])
    picture = Picture(theme, 880, 300, "A switch from alice to bob in the shipped tree")
    wide, high, gap = 128, 50, 26
    left, middle = 24, 150
    places = {"/": (left, middle)}
    columns = {"fr": 1, "fr/sysadmin": 2, "fr/sysadmin/name-line": 3}
    for name, column in columns.items():
        places[name] = (left + column * (wide + gap), middle)
    leaf = left + 4 * (wide + gap)
    places["fr/sysadmin/name-line/alice"] = (leaf, middle - 72)
    places["fr/sysadmin/name-line/bob"] = (leaf, middle + 72)
    for row in nodes:
        (x0, y0), (x1, y1) = places[row["parent"]], places[row["name"]]
        bend = x0 + wide + gap / 2
        picture.path(f"M{x0 + wide} {y0}H{bend}V{y1}H{x1}", "muted")
    shown = [{"name": "/", "level": "SmolLM2-135M", "rank": None}, *nodes]
    for row in shown:
        x, y = places[row["name"]]
        user = row["name"].rsplit("/", 1)[-1] or "/"
        paint = {"alice": "away", "bob": "ours"}.get(user, "line")
        picture.box(x, y - high / 2, wide, high, stroke=paint, thick=2 if paint != "line" else 1)
        picture.text(x + wide / 2, y - 4, user, 15, anchor="middle", bold=True)
        rank = f' · rank {row["rank"]}' if row["rank"] else ""
        picture.text(x + wide / 2, y + 15, row["level"] + rank, 12, "muted", "middle")
    x = leaf + wide
    picture.path(f"M{x + 6} {middle - 72}C{x + 56} {middle - 60} {x + 56} {middle + 60} "
                 f"{x + 12} {middle + 71}", "blue", 2.5)
    tip = f"M{x + 20} {middle + 62}L{x + 8} {middle + 72}L{x + 23} {middle + 76}"
    picture.path(tip, "blue", 2.5)
    picture.text(leaf + wide / 2, middle - 108, "− alice", 13, "away", "middle", True)
    picture.text(leaf + wide / 2, middle + 118, "+ bob", 13, "ours", "middle", True)
    call = 'switch_to("fr/sysadmin/name-line/bob")'
    picture.text(left, 38, call, 14, "blue", bold=True, mono=True)
    weights = cost["weights"]
    picture.text(left, 62, "Subtract one adapter and add the other, in one pass.", 13, "muted")
    picture.text(left, 232, f"{weights:,} weights", 15, bold=True)
    picture.text(left, 252, "of 2 bytes, each read once and written once", 13, "muted")
    picture.text(left + 318, 232, f"{4 * weights / 1e6:.1f} MB", 15, bold=True)
    picture.text(left + 318, 252, "read and written", 13, "muted")
    picture.text(left + 462, 232, f'{time["ms"]} ms', 15, "blue", bold=True)
    picture.text(left + 462, 252, "on two CPU cores", 13, "muted")
    picture.text(left, 280, "The path above stays as it is; back at / every bit is the base's.", 13,
                 "muted")
    return picture


def switch(theme, data):
    """Switch times beside peers on a log axis, with the speed at the node, since some pay there."""
    rows = sorted(checked(data), key=lambda row: -row["ms"])
    high, top, left, right = 28, 92, 284, 668
    title = "Switch from alice to bob, by system"
    picture = Picture(theme, 880, top + high * len(rows) + 62, title)
    bottom = top + high * len(rows) - 8
    low, span = 0, 3

    def place(ms):
        return left + (math.log10(ms) - low) / span * (right - left)

    picture.text(24, 34, "From user to user: alice → bob", 16, bold=True)
    picture.text(24, 55, "SmolLM2-135M, two CPU threads, one run; a log axis", 13, "muted")
    picture.text(right + 180, 34, "tokens/s", 13, "muted", "end")
    picture.text(right + 180, 52, "at alice", 13, "muted", "end")
    for power in range(low, low + span + 1):
        x = place(10**power)
        picture.path(f"M{x:.1f} {top - 14}V{bottom + 6}", "line", 1)
        picture.text(x, bottom + 24, f"{10**power:,} ms", 12, "muted", "middle")
    for k, row in enumerate(rows):
        y = top + high * k
        ours = row["system"] == "pleach"
        paint = "ours" if ours else "orange" if row["merged"] else "blue"
        picture.text(24, y + 5, row["system"], 13, "ours" if ours else "text", bold=True)
        picture.text(154, y + 5, row["how"], 13, "muted")
        if row["ms"] > 0:
            picture.path(f"M{left} {y}H{place(row['ms']):.1f}", paint, 1, "2 4")
            picture.dot(place(row["ms"]), y, paint)
            picture.text(place(row["ms"]) + 11, y + 5, f"{row['ms']:g} ms", 13, paint, bold=ours,
                         halo=True)
        else:
            picture.text(left + 8, y + 5, "◂ too short to measure", 13, paint, halo=True)
        picture.text(right + 180, y + 5, f"{row['decode']:.1f}", 13, "ours" if ours else "text",
                     "end", ours)
    y = bottom + 48
    picture.dot(30, y - 4, "orange")
    picture.text(42, y, "merged in floats: drifts", 13, "muted")
    picture.dot(222, y - 4, "blue")
    picture.text(234, y, "kept beside the weights: every token pays", 13, "muted")
    picture.dot(540, y - 4, "ours")
    picture.text(552, y, "merged in integers: exact", 13, "muted")
    return picture


def drift(theme, data):
    """The largest change that is left in a weight, over the number of switches; both axes log."""
    rows, ours = checked(data["peers"]), checked(data["ours"])
    picture = Picture(theme, 880, 420, "Drift over the number of switches")
    left, right, top, bottom, zero = 84, 590, 88, 318, 352
    first, last = rows[0]["switches"], max(row["switches"] for row in rows)
    changes = [row["largest"] for row in rows]
    low, high = math.floor(math.log10(min(changes))), math.ceil(math.log10(max(changes)))

    def across(switches):
        return left + math.log(switches / first) / math.log(last / first) * (right - left)

    def up(change):
        return bottom - (math.log10(change) - low) / (high - low) * (bottom - top)

    title = "What is left in the weights when the last node is taken off"
    picture.text(24, 34, title, 16, bold=True)
    scope = "largest change ÷ mean |w|; SmolLM2-135M; PEFT alice ↔ bob, pleach over all nodes"
    picture.text(24, 55, scope, 13, "muted")
    for power in range(low, high + 1):
        picture.path(f"M{left} {up(10.0**power):.1f}H{right}", "line", 1)
        words = f"{10**power:g}" if power > -4 else f"1e{power}"
        picture.text(left - 10, up(10.0**power) + 4, words, 12, "muted", "end")
    picture.path(f"M{left} {zero}H{right}", "line", 1)
    picture.text(left - 10, zero + 4, "0", 12, "muted", "end")
    for switches in sorted({row["switches"] for row in rows}):
        picture.text(across(switches), zero + 24, str(switches), 12, "muted", "middle")
    picture.text((left + right) / 2, zero + 46, "switches", 12, "muted", "middle")
    curves = {}
    for row in rows:
        curves.setdefault((row["system"], row["way"]), []).append(row)
    for (system, way), curve in curves.items():
        paint, dash = "away" if "bf16" in system else "orange", "5 4" if way == "leaf only" else ""
        points = [(across(row["switches"]), up(row["largest"])) for row in curve]
        label = f"{system}, {way}"
        note = f'{curve[-1]["share"]:.1f} % of weights differ'
        trace(picture, points, paint, dash, label, note, 16 if dash else -12)
    points = [(across(row["switches"]), zero) for row in ours]
    trace(picture, points, "ours", "", "pleach", "0 bits differ, at any node", 0)
    return picture


def trace(picture, points, paint, dash, label, note, lower):
    """One curve with its dots, and its name at its end, `lower` by so much."""
    picture.path("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points), paint, 2, dash)
    for x, y in points:
        picture.dot(x, y, paint, 3.5, hollow=bool(dash))
    x, y = points[-1][0], points[-1][1] + lower
    picture.text(x + 16, y - 1, label, 13, paint, bold=True)
    picture.text(x + 16, y + 15, note, 12, "muted")


def demo(theme, output):
    """A terminal with the demo's own output; where styles move, lines light up one by one."""
    lines = output.rstrip("\n").split("\n")
    size, high, top, left = 13, 18, 58, 20
    width = 2 * left + math.ceil(0.603 * size * max(map(len, lines)))
    height = top + high * (len(lines) + 1) + 2
    picture = Picture(theme, width, height, "The output of ./scripts/demo")
    for k, paint in enumerate(("away", "orange", "ours")):
        picture.dot(24 + 18 * k, 20, paint, 4)
    picture.path(f"M0.5 36H{width - 0.5}", "line", 1)
    # Paler only until its turn: where nothing moves, and in a still, all can be read.
    picture.style = (
        "@keyframes come{from{opacity:.45}to{opacity:.45}}text{white-space:pre}"
        "@media(prefers-reduced-motion:no-preference){.a{animation:come steps(1) backwards}}"
    )
    picture.text(left, top, "$ ./scripts/demo", size, "muted", mono=True)
    arrivals, walking = 0, False
    for k, line in enumerate(lines):
        said = line.startswith('  "')
        place = walking and re.match(r"/$|\w", line) is not None
        walking = walking or line.startswith("what the model there writes")
        arrivals += place
        paint = "blue" if place else "text" if said else "muted"
        if line.startswith("  fingerprint"):
            paint = "ours"
        delay = 0.6 + 0.7 * arrivals + (0.35 if said else 0)
        extra = f' class="a" style="animation-duration:{delay:.2f}s" xml:space="preserve"'
        y = top + high * (k + 1)
        picture.text(left, y, line, size, paint, bold=place, mono=True, extra=extra)
    return picture


def main():
    data = json.loads((HERE / "data.json").read_text(encoding="utf-8"))
    output = (HERE / "demo.txt").read_text(encoding="utf-8")
    for theme in THEMES:
        drawn = {
            "tree": tree(theme, data["tree"]),
            "switch": switch(theme, data["switch"]),
            "drift": drift(theme, data["drift"]),
            "demo": demo(theme, output),
        }
        for name, picture in drawn.items():
            (HERE / f"{name}-{theme}.svg").write_text(picture.svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
