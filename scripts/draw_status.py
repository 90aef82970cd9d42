"""Draws docs/status.svg: ``obatchctl status`` of a daemon with five stand-in GPUs, four of which work and one is bad.

.venv/bin/python scripts/draw_status.py          half a minute; nothing is made up but GPUs and answers
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from demo import Demo, Plan
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from obatchd.cli.views.status import render

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "status.svg"
REQUESTS, BAD = 1500, "2"
COLUMNS = 126
WORK_S = 90.0  # at most
SIMULATOR = {
    "load_s": 1.0,
    "tokens_per_s": 120.0,
    "answer": {"kind": "lognormal", "mean": 220},
    "models": [{"name": "llama3.2", "parameter_size": "3.2B", "quantization": "Q4_K_M"}],
    "gpus": {
        BAD: [
            {"kind": "set", "at_s": 6, "values": {"ecc_uncorrected": 2, "ecc_uncorrected_aggregate": 2}},
            {"kind": "xid", "at_s": 6, "xid": 95, "line": "pid=4242, name=runner, Uncontained: LTC TAG"},
        ]
    },
}
PLAN = Plan(
    'model = "llama3.2"\ngpus = {use = "simulated:5", poll_s = 0.5, slow_poll_s = 1}\n[servers]\nslots = 8\n'
    "stagger_s = 0\n",
    {"OBATCHD_SIMULATOR": json.dumps(SIMULATOR)},
    "",
)
# As a terminal's: background, text, the eight colours.
THEME = TerminalTheme(
    (24, 26, 31), (220, 223, 228),
    [(24, 26, 31), (240, 113, 120), (152, 195, 121), (229, 192, 123), (97, 175, 239), (198, 120, 221), (86, 182, 194),
     (220, 223, 228)],
)  # fmt: skip
# rich's own form without its font from the web, and without the buttons of a window.
FORM = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>{lines}</defs>
<rect fill="#181a1f" width="{width}" height="{height}" rx="8"/>
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g></svg>
"""


def photographed() -> dict[str, Any]:
    """The status once every healthy server is busy and the bad GPU is in quarantine."""
    directory = Path(tempfile.mkdtemp(prefix="obatchd-picture-"))
    demo = Demo(directory, PLAN)
    try:
        demo.wait_until_ready(every=True)
        prompts = directory / "abstracts.jsonl"
        lines = (json.dumps({"prompt": f"Summarise abstract {number}."}) for number in range(REQUESTS))
        prompts.write_text("".join(f"{line}\n" for line in lines), "utf-8")
        demo.client.submit(prompts, {})
        deadline_s = time.monotonic() + WORK_S
        while time.monotonic() < deadline_s:
            status = demo.client.get("status")
            healthy = [server for server in status["servers"] if server["state"] == "ready"]
            busy = [server for server in healthy if server["in_flight"] == server["slots"]]
            quiet = [server for server in status["servers"] if (server["tokens_per_s"] or 0) < 1]
            if len(busy) == len(healthy) == 4 and len(quiet) == 1 and status["jobs"][0]["succeeded"] > REQUESTS / 4:
                return status
            time.sleep(0.2)
        sys.exit(f"it did not come so far; the log is {demo.log}")
    finally:
        demo.stop()
        shutil.rmtree(directory, ignore_errors=True)


def draw(status: dict[str, Any]) -> str:
    """The picture of a status document, as SVG."""
    lines = ["$ obatchctl status", *render(status)]
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in lines:
        console.print(Text.from_ansi(line))
    return console.export_svg(title="", theme=THEME, code_format=FORM, unique_id="status")


if __name__ == "__main__":
    PICTURE.write_text(draw(photographed() | {"spool": "/srv/batch"}), "utf-8")
