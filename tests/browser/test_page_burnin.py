"""A burn-in of stand-in GPUs, some of which are bad, as the page shows it while it runs and afterwards."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from browser_support import Browser, link_of
from daemon_support import Daemon, wait_for
from port_support import free_ports

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
import demo_burnin


@pytest.mark.timeout(400)
def test_bad_gpus_are_seen_while_it_runs_and_have_their_verdicts(
    browser: Browser, make_daemon: Callable[..., Daemon]
) -> None:
    port = free_ports(8) + 7
    settings = f'{demo_burnin.PLAN.settings}[http]\nlisten = "127.0.0.1:{port}"\n'
    d = make_daemon(settings, simulator=demo_burnin.SIMULATOR).start()
    wait_for(lambda: [one["state"] for one in d.client.get("servers")["servers"]] == ["ready"] * 6, 60)
    url = next(one["url"] for one in d.client.get("servers")["servers"] if one["id"] == demo_burnin.SLOW_SERVER)
    fault = json.dumps([{"kind": "slow", "factor": demo_burnin.SLOW_FACTOR}]).encode()
    urllib.request.urlopen(urllib.request.Request(f"{url}/simulator/faults", fault), timeout=5).close()
    browser.sign_in(link_of(d), "burnin")
    browser.wait("text=No burn-in ran here yet.")
    assert "obatchctl burnin start" in browser.text("main")
    started = d.control("burnin", "start", "--profile", "quick", "--duration", f"{demo_burnin.DURATION_S}s")
    assert started.returncode == 0, started.stderr
    browser.wait("nav .now", 20)
    browser.wait("text=so far", 60)
    browser.wait("figure .uplot canvas", 60)
    browser.run("await page.waitForTimeout(40000)")
    browser.shoot("burnin-live", whole=True)
    browser.click("button:has-text('Show as table')")
    browser.wait("figure table tbody tr")
    assert browser.findings() == []
    wait_for(lambda: d.client.get("burnin/status")["state"] == "completed", 180)
    browser.wait(".bar:has-text('completed')", 30)
    browser.wait(".state.bad >> nth=5", 30)
    browser.shoot("burnin-over", whole=True)
    verdicts = browser.run("return page.locator('table').first().locator('tbody tr:has(th) .state').allInnerTexts()")
    expected = ["fail" if gpu in demo_burnin.BAD else "pass" for gpu in range(6)]
    assert [word.split()[-1] for word in verdicts] == expected
    browser.wait("table:has-text('Matrix products, memory, links')")
    assert "obatchctl burnin report" in browser.text("main")
    browser.context(colorScheme="dark")
    browser.sign_in(link_of(d), "burnin")
    browser.wait("figure .uplot canvas")
    browser.shoot("burnin-dark", whole=True)
    assert browser.findings() == [] and browser.trouble() == []
    browser.view("history", "figure .uplot canvas")
    browser.wait("td:has-text('XID 95')")
    browser.shoot("history-dark", whole=True)
    assert browser.findings() == [] and browser.trouble() == []
