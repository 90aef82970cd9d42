"""Pages of several users of one system service: each shows what is theirs, and has no button of administrators."""

from __future__ import annotations

import grp
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser_support import Browser
from daemon_support import Daemon, wait_for
from port_support import free_ports
from test_service_users import as_user, submit

from obatchd.client.control import ControlClient

pytestmark = pytest.mark.root
# Users that every Debian has: two who may submit, and an administrator.
ALICE, BOB, ROSE = ((one.pw_uid, one.pw_gid) for one in map(pwd.getpwnam, ("sync", "nobody", "games")))
SERVICE = {"mode": "service", "submit_group": grp.getgrgid(BOB[1]).gr_name, "admin_group": "games"}


@pytest.fixture
def shared(make_daemon: Any) -> Iterator[Daemon]:
    spool, port = Path(tempfile.mkdtemp(prefix="obatch-users-")), free_ports(8) + 7
    spool.chmod(0o755)
    http = {"listen": f"127.0.0.1:{port}"}
    yield (
        make_daemon({"access": SERVICE, "http": http, "servers": {"base_port": free_ports(2)}}, spool=spool)
        .start()
        .ready()
    )
    shutil.rmtree(spool, ignore_errors=True)


def link_of(d: Daemon, user: tuple[int, int]) -> str:
    made = as_user(user, lambda: ControlClient(d.spool).post("web/codes"))
    return f"{made['url']}#{made['code']}"


def asked(browser: Browser, method: str, path: str) -> int:
    """The status of a call with the token of the page."""
    code = """
        return page.evaluate(async ({ method, path }) => (await fetch(path, { method,
          headers: { Authorization: 'Bearer ' + sessionStorage.getItem('obatchd.token') } })).status, given);
    """
    return int(browser.run(code, method=method, path=f"/obatchd/v1/{path}"))


def test_everybody_sees_their_own_and_administrators_see_all(browser: Browser, shared: Daemon) -> None:
    hers = submit(shared, ALICE, "alices-secret.jsonl")
    wait_for((hers.directory / "summary.json").exists)
    browser.sign_in(link_of(shared, ALICE), "jobs")
    browser.wait("text=alices-secret.jsonl")
    browser.context()
    browser.sign_in(link_of(shared, BOB), "jobs")
    browser.wait("text=No job yet.")
    browser.shoot("bobs-jobs")
    assert "alices" not in browser.text() and "Burn-in" not in browser.text("nav")
    browser.view(f"jobs/{hers.id}", "main .is-bad")
    assert "alices" not in browser.text("main").replace(hers.id, "")
    one = f"jobs/{hers.id}"
    for method, path in [
        ("GET", one),
        ("GET", f"{one}/results"),
        ("GET", f"{one}/failures"),
        ("POST", f"{one}/cancel"),
        ("DELETE", one),
    ]:
        assert asked(browser, method, path) == 404, (method, path)
    assert [asked(browser, "GET", path) for path in ("burnin", "burnin/status", "page?owner=all")] == [403] * 3
    browser.context()
    browser.sign_in(link_of(shared, ROSE), "jobs")
    browser.wait("text=alices-secret.jsonl")
    assert "Burn-in" in browser.text("nav")
    browser.view("fleet")
    assert browser.findings() == [] and browser.trouble() == []
