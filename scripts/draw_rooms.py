"""Draws docs/rooms.svg from the table in docs/rooms.md; scripts/generate runs it.

The table says which rooms exist and what each holds; this file says only where each stands in the picture. The street
is a loop: a request goes right on its upper side, an answer comes back on its lower side. A room without a place is an
error.
"""

from __future__ import annotations

import re
import sys
import textwrap
from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TABLE, PICTURE = ROOT / "docs" / "rooms.md", ROOT / "docs" / "rooms.svg"
WIDTH, HEIGHT = 1120, 770
_PIXELS_PER_CHARACTER = 6.3  # of a caption


class Place(NamedTuple):
    """Left, top, width and height in pixels, and the group that gives the colour."""

    x: int
    y: int
    width: int
    height: int
    group: str


PLACES = {
    "cli": Place(20, 46, 165, 74, "desk"),
    "client": Place(205, 46, 165, 74, "desk"),
    "control": Place(390, 46, 165, 74, "desk"),
    "operations": Place(575, 46, 165, 74, "desk"),
    "front": Place(760, 46, 130, 74, "desk"),
    "metrics": Place(830, 178, 270, 50, "desk"),
    "daemon": Place(910, 46, 190, 74, "root"),
    "engine": Place(320, 178, 480, 50, "street"),
    "spool": Place(150, 240, 140, 216, "street"),
    "intake": Place(320, 240, 150, 76, "street"),
    "jobs": Place(500, 240, 140, 76, "street"),
    "dispatch": Place(670, 240, 130, 216, "street"),
    "delivery": Place(320, 390, 320, 66, "street"),
    "live": Place(320, 324, 320, 58, "street"),
    "ollama": Place(830, 240, 120, 216, "street"),
    "servers": Place(980, 512, 120, 96, "cards"),
    "gpus": Place(840, 512, 120, 96, "cards"),
    "gpucare": Place(700, 512, 120, 96, "cards"),
    "simulator": Place(560, 512, 120, 96, "cards"),
    "settings": Place(20, 512, 115, 96, "shared"),
    "prompts": Place(150, 512, 115, 96, "shared"),
    "context": Place(280, 512, 115, 96, "shared"),
    "telling": Place(410, 512, 115, 96, "shared"),
    "burnin.stress": Place(20, 664, 124, 80, "bench"),
    "burnin.run": Place(164, 664, 124, 80, "bench"),
    "burnin.journal": Place(308, 664, 124, 80, "bench"),
    "burnin.verdict": Place(452, 664, 124, 80, "bench"),
    "burnin.report": Place(596, 664, 124, 80, "bench"),
    "results": Place(735, 664, 90, 80, "shared"),
    "backup": Place(835, 664, 80, 80, "shared"),
    "doors": Place(925, 664, 75, 80, "shared"),
    "cluster": Place(1010, 664, 90, 80, "cards"),
}
# What is no room: what users and the machine bring.
THINGS = {
    "inbox": Place(20, 250, 100, 60, "thing"),
    "outbox": Place(20, 393, 100, 60, "thing"),
    "Ollama on a GPU": Place(980, 240, 120, 216, "thing"),
}
# From x, y to x, y: the street, then the ways of commands, of burn-in records and of whoever keeps servers alive.
STREET = (
    (120, 280, 150, 280), (290, 280, 320, 280), (470, 280, 500, 280), (640, 280, 670, 280), (800, 280, 830, 280),
    (950, 280, 980, 280), (980, 423, 950, 423), (830, 423, 800, 423), (670, 423, 640, 423), (320, 423, 290, 423),
    (150, 423, 120, 423),
)  # fmt: skip
WAYS = (
    (185, 83, 205, 83), (370, 83, 390, 83), (555, 83, 575, 83), (657, 120, 657, 178), (1040, 512, 1040, 456),
    (144, 704, 164, 704), (288, 704, 308, 704), (432, 704, 452, 704), (576, 704, 596, 704),
)  # fmt: skip
LABELS = (
    (20, 34, "People and programs ask"),
    (20, 196, "The street: requests right, answers left"),
    (20, 500, "Used all along the street"),
    (560, 500, "Servers and cards"),
    (20, 652, "Burn-in: each a function of the one before"),
    (735, 652, "After the job"),
    (1000, 652, "Other hosts"),
)
_STYLE = """
  .ground { fill: #ffffff; stroke: #d0d7de; }
  text { font-family: -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", Helvetica, Arial, sans-serif; }
  text { fill: #1f2328; }
  .name { font-size: 15px; font-weight: 600; }
  .words { font-size: 11.5px; }
  .label { font-size: 12px; font-style: italic; }
  .room { stroke-width: 1.2; }
  .absent { stroke-dasharray: 5 4; fill-opacity: 0.35; }
  .street { fill: #ddf4ff; stroke: #0969da; }
  .desk { fill: #fbefff; stroke: #8250df; }
  .cards { fill: #dafbe1; stroke: #1a7f37; }
  .bench { fill: #fff8c5; stroke: #9a6700; }
  .shared { fill: #f6f8fa; stroke: #59636e; }
  .root { fill: #ffebe9; stroke: #cf222e; }
  .thing { fill: #ffffff; stroke: #1f2328; stroke-width: 1.6; }
  .way { stroke: #59636e; stroke-width: 1.4; }
  .walk { stroke: #0969da; stroke-width: 3; }
  .tip { fill: #59636e; }
  .walktip { fill: #0969da; }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #0d1117; stroke: #3d444d; }
    text { fill: #f0f6fc; }
    .street { fill: #0c2d6b; stroke: #4493f8; }
    .desk { fill: #3c1e70; stroke: #ab7df8; }
    .cards { fill: #033a16; stroke: #3fb950; }
    .bench { fill: #4b2900; stroke: #d29922; }
    .shared { fill: #212830; stroke: #9198a1; }
    .root { fill: #67060c; stroke: #f85149; }
    .thing { fill: #0d1117; stroke: #f0f6fc; }
    .way { stroke: #9198a1; }
    .walk { stroke: #4493f8; }
    .tip { fill: #9198a1; }
    .walktip { fill: #4493f8; }
  }
"""


def rooms(table: str) -> dict[str, str]:
    """Every room of the table, with what it holds in a few words: the text before its first module."""
    found = re.findall(r"^\| `([\w.]+)` \| ([^|]+) \|", table, re.MULTILINE)
    return {room: re.split(r"[:;`(]", holds.replace("`obatchd` and `obatchctl`", "the commands"))[0].strip()
            for room, holds in found}  # fmt: skip


def draw(table: str) -> str:
    """The picture as SVG.

    Raises:
        SystemExit: a room of the table has no place here, a place has no room, or words do not fit their place.
    """
    words = rooms(table)
    if odd := sorted(words.keys() ^ PLACES.keys()):
        raise SystemExit(f"give a place in scripts/draw_rooms.py to, or take it from: {', '.join(odd)}")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>The rooms of obatchd: the street from the inbox to the outbox, and the rooms around it</title>",
        "<!-- Made by scripts/draw_rooms.py from docs/rooms.md. -->",
        f"<style>{_STYLE}</style>",
        "<defs>",
        *(
            f'<marker id="{tip}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="{size}" markerHeight="{size}" '
            f'orient="auto" markerUnits="userSpaceOnUse"><path class="{tip}" d="M0 0 L10 5 L0 10 z"/></marker>'
            for tip, size in (("tip", 9), ("walktip", 13))
        ),
        "</defs>",
        f'<rect class="ground" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="10"/>',
        *(f'<text class="label" x="{x}" y="{y}">{escape(text)}</text>' for x, y, text in LABELS),
        *(_line("walk", "walktip", *ends) for ends in STREET),
        *(_line("way", "tip", *ends) for ends in WAYS),
    ]
    absent = set(re.findall(r"^\| `([\w.]+)` \| [^|]*not built yet", table, re.MULTILINE))
    for name, place in PLACES.items():
        parts += _box(name, place, words[name], absent=name in absent)
    for name, place in THINGS.items():
        parts += _box(name, place, "")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _line(kind: str, tip: str, x1: int, y1: int, x2: int, y2: int) -> str:
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" marker-end="url(#{tip})"/>'


def _box(name: str, place: Place, words: str, *, absent: bool = False) -> list[str]:
    x, y, width, height, group = place
    middle = x + width / 2
    names = textwrap.wrap(name, width // 9)
    lines = textwrap.wrap(words, int((width - 12) / _PIXELS_PER_CHARACTER))
    top = y + (height - 18 * len(names) - 14 * len(lines)) / 2
    if top < y:
        raise SystemExit(f"shorten the first words of {name} in docs/rooms.md, or enlarge its place: {words}")
    kind = f"room {group} absent" if absent else f"room {group}"
    parts = [f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="7"/>']
    for number, text in enumerate(names):
        parts.append(_text("name", middle, top + 14 + 18 * number, text))
    for number, text in enumerate(lines):
        parts.append(_text("words", middle, top + 18 * len(names) + 11 + 14 * number, text))
    return parts


def _text(kind: str, x: float, y: float, text: str) -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="middle">{escape(text)}</text>'


if __name__ == "__main__":
    PICTURE.write_text(draw(TABLE.read_text("utf-8")), "utf-8")
    print(f"wrote {PICTURE.relative_to(Path.cwd())}", file=sys.stderr)
