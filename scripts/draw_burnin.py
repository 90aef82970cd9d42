"""Takes the picture of a report in docs/burnin.md anew: a day of eight made-up GPUs, three of which are bad.

Needs what ``scripts/test-page`` gets, and Chromium. Usage: ``.venv/bin/python scripts/draw_burnin.py [DIRECTORY]``
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "tests" / "browser"), str(ROOT / "tests" / "unit")]
from browser_support import Browser, why_not  # noqa: E402 - stands beside its tests
from burnin_support import HOUR_S, Card, simulate  # noqa: E402 - the same

from obatchd.burnin.report import report  # noqa: E402
from obatchd.burnin.report.html import render  # noqa: E402
from obatchd.gpus.model import ClockReason  # noqa: E402

HOURS = 24.0
SIZE = {"width": 1140, "height": 1000}
HOT_EVERY_S, HOT_S = 2 * HOUR_S, 0.24 * 2 * HOUR_S


def _is_slowed(passed_s: float) -> bool:
    return passed_s % HOT_EVERY_S < HOT_S


def _hot(passed_s: float, fields: dict[str, Any]) -> None:
    """Slowed down by its heat for a quarter of the time."""
    if _is_slowed(passed_s):
        fields.update(clock_mhz=980, clock_reasons=ClockReason.HW_SLOWDOWN)


def _counted(passed_s: float, counters: dict[str, Any]) -> None:
    whole, rest = divmod(passed_s, HOT_EVERY_S)
    counters["hw_thermal_s"] = whole * HOT_S + min(rest, HOT_S)


def cards() -> list[Card]:
    made = [Card() for _ in range(8)]
    made[3].xids = [(7.5 * HOUR_S, 48, "pid=4242, name=ollama, DBE (double bit error)")]
    made[5] = Card(warmth_c=14.5, reading=_hot, slow=_counted)
    made[6].speed = 0.885
    made[7].hunger = 1.13
    return made


def main() -> int:
    if reason := why_not():
        sys.exit(reason)
    browser = Browser(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs")
    with tempfile.TemporaryDirectory() as directory:
        page = Path(directory) / "report.html"
        page.write_text(render(report.build(simulate(cards(), HOURS))), "utf-8")
        browser.context(colorScheme="light", viewport=SIZE, deviceScaleFactor=1)
        browser.run("await page.goto(given.url)", url=page.as_uri())
        print(browser.shoot("burnin"))
    browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
