"""A day, two and ninety on the page, from a ``history.db`` as a daemon of before would have left it."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from browser_support import Browser, link_of
from daemon_support import Daemon
from history_support import make_history
from programs_support import over_http

DAY_S = 86_400
CHOOSE = """
    // Another span; the seconds that its answer goes over.
    const coming = page.waitForResponse((answer) => answer.url().includes('/gpu-history?'));
    await page.locator('button.chip', { hasText: given.word }).click();
    const { at_s: begins, step_s: step } = await (await coming).json();
    return begins.at(-1) - begins[0] + step;
"""
ANOTHER = """
    // The first row of the table is another one.
    const first = (old) => document.querySelector('figure tbody th')?.innerText !== old;
    await page.waitForFunction(first, given.text);
"""


def test_history_goes_back_a_day_two_and_ninety(browser: Browser, make_daemon: Callable[..., Daemon]) -> None:
    found = over_http(make_daemon, {"gpus": {"use": "simulated:2"}})
    (found.d.spool / "work").mkdir(parents=True)
    make_history(found.d.spool / "work" / "history.db", gpus=2, now_s=time.time())
    found.d.start().ready()
    browser.sign_in(link_of(found.d), "history")
    browser.wait("figure:has-text('Temperature') canvas")
    browser.wait("figure:has-text('Tokens/s') canvas")
    browser.run("await page.locator('button', { hasText: 'Show as table: Temperature' }).click()")
    rows = "figure:has-text('Temperature') tbody tr"
    assert browser.run("return page.locator(given.rows).count()", rows=rows) >= 40
    shown = browser.run("return page.locator('figure:has-text(\"Temperature\") tbody td').allInnerTexts()")
    warm = [float(text) for text in shown if text != "–"]
    assert warm and 30 < min(warm) < 40 and 60 < max(warm) < 90
    events = browser.run("return page.locator('table').last().locator('tbody tr').allInnerTexts()")
    assert [words for words in ("released", "quarantine", "XID 79") if not any(words in row for row in events)] == []
    browser.shoot("history-24h", whole=True)
    assert browser.findings() == []
    for word, span_s in {"1 hour": 3600, "48 hours": 2 * DAY_S, "90 days": 90 * DAY_S}.items():
        first = browser.text("figure:has-text('Temperature') tbody th")
        assert browser.run(CHOOSE, word=word) == pytest.approx(span_s, rel=0.1)
        browser.run(ANOTHER, text=first)
        browser.shoot(f"history-{span_s // 3600}h", whole=True)
    browser.click("button.chip:has-text('24 hours')")
    browser.run("await page.locator('select').selectOption({ label: 'GPU 1' })")
    browser.wait("figure:not(:has(.legend)):has-text('Temperature')")
    assert browser.trouble() == []
