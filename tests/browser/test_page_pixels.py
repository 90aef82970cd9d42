"""Pictures of a view at one moment are the same, pixel by pixel: with a clock that stands still, nothing else moves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser_support import Browser
from made_up import NOW_S, MadeUp, made_up

CLOCK = "await page.clock.setFixedTime(given.now * 1000)"
STILL = "await page.waitForFunction(() => document.fonts.status === 'loaded' && !document.querySelector('progress'))"
SHAPES = {
    "fleet": "table svg.spark path[d*='L'] >> nth=55", "jobs": "tbody tr >> nth=99", "submit": ".zone",
    "history": "figure .uplot canvas >> nth=8", "burnin": "text=No burn-in ran here yet.",
}  # fmt: skip
SIZES = {"wide": {"width": 1600, "height": 1000}, "360": {"width": 360, "height": 740}}


@pytest.fixture
def still() -> Iterator[MadeUp]:
    with made_up() as found:
        found.still, found.now_s = True, NOW_S
        yield found


def pictures(browser: Browser, found: MadeUp, scheme: str, size: str, name: str) -> dict[str, Path]:
    browser.context(colorScheme=scheme, viewport=SIZES[size])
    browser.run(CLOCK, now=NOW_S)
    browser.sign_in(found.link)
    shots = {}
    for view, shape in SHAPES.items():
        browser.view(view, shape if size == "wide" or view != "fleet" else "tbody tr >> nth=27")
        browser.run(STILL)
        shots[view] = browser.shoot(f"{view}-{size}-{scheme}{name}", whole=view == "history")
    assert browser.trouble() == []
    return shots


@pytest.mark.parametrize(("scheme", "size"), [("light", "wide"), ("dark", "wide"), ("dark", "360")])
def test_every_view_has_the_same_pixels_at_the_same_moment(
    browser: Browser, still: MadeUp, scheme: str, size: str
) -> None:
    first = pictures(browser, still, scheme, size, "")
    again = pictures(browser, still, scheme, size, "-again")
    assert {view: count for view in first if (count := browser.differ(first[view], again[view]))} == {}
    assert "12:00:00" in browser.text("header")
    still.still = False
    browser.view("fleet")
    browser.wait("dd:has-text('411,99')")
    assert browser.differ(browser.shoot("changed"), first["fleet"]) > 100
