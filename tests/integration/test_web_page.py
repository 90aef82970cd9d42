"""The door for people: the page's files, its sessions, and what a browser hands over, as a browser asks for them."""

from __future__ import annotations

import gzip
import json
import os
import pwd
import re
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_support import Daemon, Document, jsonl, prompts, wait_for
from programs_support import FORM, Answer, Programs, for_all_tests, multipart, over_http

from obatchd.times import epoch_s

Make = Callable[..., Daemon]
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    """A daemon whose jobs and sessions each test makes for itself."""
    with for_all_tests(tmp_path_factory.mktemp("page")) as found:
        yield found


def code_of(found: Programs) -> str:
    made = found.d.control("web", "--print")
    assert made.returncode == 0, made.stderr
    url, _, code = made.stdout.strip().partition("#")
    assert url == f"http://127.0.0.1:{found.port}/" and re.fullmatch("[A-Za-z0-9_-]{43}", code)
    return code


class Tab:
    """A tab of a browser: it keeps its token, and says what browsers say of a page's own calls."""

    def __init__(self, found: Programs) -> None:
        self.found, self.token = found, ""

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        own = {"Sec_Fetch_Site": "same-origin", "Sec_Fetch_Mode": "cors", "Authorization": ""}
        own |= {"Origin": f"http://127.0.0.1:{self.found.port}"} if method != "GET" else {}
        own |= {"Authorization": f"Bearer {self.token}"} if self.token else {}
        answer = self.found.call(method, path, body, **own | headers)
        assert "set-cookie" not in answer.headers and "access-control-allow-origin" not in answer.headers
        return answer

    def open(self) -> Document:
        """Exchange a new code for a token."""
        answer = self.call("POST", "/page/session", {"code": code_of(self.found)})
        assert answer.status == 200 and answer.headers["cache-control"] == "no-store", answer
        self.token = answer.document["token"]
        return answer.document

    def refused(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        answer = self.call(method, path, body, **headers)
        return answer.status, answer.error["code"]


@pytest.fixture
def tab(door: Programs) -> Tab:
    found = Tab(door)
    found.open()
    return found


# Files.


def test_browsers_get_the_page_and_programs_the_word_of_ollama_without_a_key(door: Programs) -> None:
    page = door.call("GET", "/", Authorization="", Accept=BROWSER, Sec_Fetch_Site="none", Sec_Fetch_Mode="navigate")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.body.startswith(b"<!doctype html>")
    assert page.headers["content-security-policy"] == POLICY
    assert (page.headers["x-content-type-options"], page.headers["referrer-policy"]) == ("nosniff", "no-referrer")
    assert page.headers["cache-control"] == "no-cache" and "Accept" in page.headers["vary"]
    for tag in (page.headers["etag"], f'"other", W/{page.headers["etag"]}', "*"):
        same = door.call("GET", "/", Authorization="", Accept=BROWSER, If_None_Match=tag)
        assert (same.status, same.body, same.headers["etag"]) == (304, b"", page.headers["etag"])
    assert door.call("GET", "/", Authorization="", Accept=BROWSER, If_None_Match='"other"').status == 200
    assert door.call("HEAD", "/", Authorization="", Accept=BROWSER).status == 200
    for accept in ("", "*/*", "application/json"):
        said = door.call("GET", "/", Authorization="", Accept=accept)
        assert (said.status, said.body) == (200, b"Ollama is running"), accept
    assert door.call("HEAD", "/", Authorization="").status == 200


def test_its_files_stay_as_they_are_under_their_address(door: Programs) -> None:
    page = door.call("GET", "/", Authorization="", Accept=BROWSER).body.decode()
    named = re.findall(r'(?:src|href)="(/[^"]+)"', page)
    assert len(named) >= 2
    base = named[0].rpartition("/")[0]
    base = base[: len("/page/") + 16]
    for address in (*named, f"{base}/vendor/standalone.module.js", f"{base}/vendor/uPlot.iife.min.js"):
        plain = door.call("GET", address, Authorization="")
        assert (plain.status, plain.headers["x-content-type-options"]) == (200, "nosniff"), address
        assert plain.headers["cache-control"] == "public, max-age=31536000, immutable"
        packed = door.call("GET", address, Authorization="", Accept_Encoding="gzip, deflate, br")
        if packed.headers.get("content-encoding") == "gzip":
            assert gzip.decompress(packed.body) == plain.body and len(packed.body) < len(plain.body)
    assert plain.headers["content-type"] == "text/javascript; charset=utf-8"
    for wrong in (
        f"{base}/nothing.js", f"{base}/index.html", f"{base}/../page/routes.py", f"{base}/%2e%2e/files.py",
        f"{base}/vendor/..%2f..%2ffiles.py", f"{base}//etc/passwd", f"/page/{'0' * 16}/app.js",
    ):  # fmt: skip
        assert door.call("GET", wrong, Authorization="").status in (401, 404), wrong


# Sessions.


def test_a_link_opens_one_session_as_whoever_asked_for_it(door: Programs) -> None:
    code, tab = code_of(door), Tab(door)
    first = tab.call("POST", "/page/session", {"code": code})
    assert first.status == 200
    assert tab.refused("POST", "/page/session", {"code": code}) == (401, "invalid_code")
    tab.token = first.document["token"]
    who = tab.call("GET", "/page/session").document
    assert first.document == {**who, "token": tab.token}
    assert (who["uid"], who["user"], who["administrator"]) == (os.geteuid(), pwd.getpwuid(os.geteuid()).pw_name, True)
    assert 12 * 3600 - 60 < epoch_s(who["expires_at"]) - time.time() <= 12 * 3600
    assert tab.call("DELETE", "/page/session").document == {"schema": 1, "ended": 1}
    assert tab.refused("GET", "/page/session") == (401, "invalid_session")
    for body in (b"no", b"[]", {}, {"code": 7}, {"code": "x", "more": 1}, {"code": "x" * 2000}):
        assert Tab(door).call("POST", "/page/session", body).status in (400, 413), body
    assert Tab(door).refused("POST", "/page/session", {"code": "x"}) == (401, "invalid_code")
    # Keys are for programs, and open no page.
    key = {"Authorization": f"Bearer {door.key}"}
    assert Tab(door).refused("GET", "/page/session", **key) == (403, "no_session")
    assert Tab(door).refused("GET", "/page/session") == (401, "invalid_api_key")


def test_a_session_is_good_for_what_the_page_asks_and_nothing_else(tab: Tab) -> None:
    for path in ("/obatchd/v1/status", "/obatchd/v1/models", "/obatchd/v1/jobs", "/v1/files"):
        assert tab.call("GET", path).status == 200, path
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
    for method, path, body in (
        ("GET", "/v1/models", None), ("GET", "/v1/batches", None), ("POST", "/v1/chat/completions", chat),
        ("GET", "/api/tags", None), ("POST", "/api/chat", chat), ("GET", "/metrics", None),
    ):  # fmt: skip
        answer = tab.call(method, path, body)
        assert (answer.status, b"session of the page" in answer.body) == (403, True), path
    for token in ("obs_", f"{tab.token}x", tab.token[:-1], f"obs_{tab.token}"):
        assert tab.refused("GET", "/obatchd/v1/jobs", Authorization=f"Bearer {token}") == (401, "invalid_session")


def test_sessions_end_by_logout_and_with_the_daemon(make_daemon: Make) -> None:
    found = over_http(make_daemon)
    found.d.start().ready()
    tabs = [Tab(found), Tab(found)]
    for tab in tabs:
        tab.open()
    code = code_of(found)
    assert found.d.control("web", "--logout").stdout == "2 sessions ended.\n"
    for tab in tabs:
        assert tab.refused("GET", "/obatchd/v1/jobs") == (401, "invalid_session")
    assert tabs[0].refused("POST", "/page/session", {"code": code}, Authorization="") == (401, "invalid_code")
    tab, code = Tab(found), code_of(found)
    session = tab.open()
    found.d.kill()
    found.d.start().ready()
    assert tab.refused("GET", "/page/session") == (401, "invalid_session")
    assert tab.refused("POST", "/page/session", {"code": code}, Authorization="") == (401, "invalid_code")
    # The token is written nowhere, and the session is in the audit log.
    everything = b"".join(path.read_bytes() for path in found.d.spool.rglob("*") if path.is_file())
    assert session["token"].encode() not in everything and code.encode() not in everything
    assert session["token"] not in found.d.log() and code not in found.d.log()
    rows = json.loads(found.d.control("audit", "--json", "--kind", "session").stdout)["entries"]
    assert [(row["kind"], row["uid"], row["door"], row["address"]) for row in rows] == [
        ("session_opened", session["uid"], "page", "127.0.0.1")
    ] * 3
    assert rows[-1]["key"] == rows[-1]["target"] and rows[-1]["target"].startswith("web-")


def test_a_logout_ends_what_is_under_way(make_daemon: Make) -> None:
    found = over_http(make_daemon, simulator={"service_s": {"kind": "fixed", "value": 60}})
    found.d.start().ready()
    tab = Tab(found)
    tab.open()
    head = f"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1:{found.port}\r\nAuthorization: Bearer {tab.token}\r\n"
    head += f"Content-Type: {FORM}\r\nContent-Length: 100000\r\n\r\n"
    uploads = found.d.spool / "work" / "uploads"
    with found.connected() as connection:
        connection.sendall(head.encode() + multipart(("file", "a", b"x" * 50_000))[:40_000])
        wait_for(lambda: list(uploads.iterdir()))
        assert found.d.control("web", "--logout").returncode == 0
        assert connection.recv(1000) == b""
    wait_for(lambda: not list(uploads.iterdir()))


def test_other_pages_reach_nothing_with_a_session_or_without(tab: Tab) -> None:
    """A page of another port of this host is another user's, perhaps; one that only links here does no harm."""
    for origin, site in (
        (f"http://127.0.0.1:{tab.found.port + 1}", "same-site"), ("http://127.0.0.1", "same-site"),
        (f"http://localhost:{tab.found.port}", "cross-site"), ("http://evil.example", "cross-site"), ("null", "none"),
    ):  # fmt: skip
        foreign = {"Origin": origin, "Sec_Fetch_Site": site}
        for method, path in (("POST", "/obatchd/v1/jobs"), ("DELETE", "/page/session"), ("POST", "/page/session")):
            assert tab.refused(method, path, {"code": "x"}, **foreign) == (403, "foreign_origin"), (origin, path)
        assert tab.refused("GET", "/obatchd/v1/jobs", **foreign) == (403, "foreign_origin")
        alone = {"Origin": "", "Sec_Fetch_Site": site}
        status = tab.call("POST", "/page/session", {"code": "x"}, **alone).status
        assert status == (401 if site == "none" else 403)
    assert tab.call("GET", "/page/session").status == 200
    assert tab.refused("GET", "/page/session", Host="evil.example") == (421, "wrong_host")
    assert tab.refused("GET", "/", Host="evil.example", Sec_Fetch_Mode="navigate") == (421, "wrong_host")
    linked = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Accept": BROWSER}
    assert tab.call("GET", "/", **linked).status == 200
    assert tab.refused("GET", "/page/session", **linked) == (403, "foreign_origin")
    assert tab.refused("POST", "/", **linked) == (403, "foreign_origin")


def test_wrong_codes_and_old_tokens_are_one_line_in_the_log(make_daemon: Make) -> None:
    found = over_http(make_daemon)
    found.d.start().ready()
    tab = Tab(found)
    for number in range(300):
        assert tab.refused("POST", "/page/session", {"code": f"{number}"}) == (401, "invalid_code")
        assert tab.refused("GET", "/v1/files", Authorization=f"Bearer obs_{number}") == (401, "invalid_session")
    assert len(found.d.events("wrong_sessions")) == 1


# What a browser hands over.


def uploaded(tab: Tab, content: bytes) -> str:
    form = multipart(
        ("purpose", None, b"batch"), ("expires_after[anchor]", None, b"created_at"),
        ("expires_after[seconds]", None, b"3600"), ("file", "drop", content),
    )  # fmt: skip
    answer = tab.call("POST", "/v1/files", form, Content_Type=FORM)
    assert answer.status == 200, answer
    return str(answer.document["id"])


def over(tab: Tab, job: str) -> Document:
    """The job, once it is over."""
    return wait_for(
        lambda: one if (one := tab.call("GET", f"/obatchd/v1/jobs/{job}").document)["state"] == "done" else {}
    )


def test_a_file_becomes_a_job_with_its_settings(tab: Tab) -> None:
    file = uploaded(tab, jsonl(prompts(30, "sampled")))
    body = {"file": file, "name": "my prompts.jsonl", "settings": {"sample": 20, "label": "try"}, "token": "t-1"}
    job = tab.call("POST", "/obatchd/v1/jobs", body).document["job"]
    again = tab.call("POST", "/obatchd/v1/jobs", body).document["job"]
    assert job["job"] == again["job"] and job["name"] == "my prompts.jsonl"
    done = over(tab, job["job"])
    assert done["requests"] == done["succeeded"] == 20
    assert tab.call("GET", "/v1/files?purpose=batch").document["data"] == []


def test_a_folder_becomes_one_job(tab: Tab) -> None:
    parts = {"a.jsonl": prompts(2, "first"), "deep/er/b.jsonl": prompts(3, "second")}
    files = [{"file": uploaded(tab, jsonl(lines)), "name": name} for name, lines in parts.items()]
    body: Document = {"files": files, "name": "a folder", "settings": {}, "token": "t-2"}
    for wrong in ("../a", "/a", "a//b", "", ".", "a\0", "x" * 300, "/".join("d" * 40)):
        changed = {**body, "files": [{**files[0], "name": wrong}]}
        assert tab.refused("POST", "/obatchd/v1/jobs", changed) == (400, "bad_request"), wrong
    assert tab.refused("POST", "/obatchd/v1/jobs", {**body, "files": [files[0]] * 2}) == (400, "bad_request")
    assert tab.refused("POST", "/obatchd/v1/jobs", {**body, "file": files[0]["file"]}) == (400, "bad_request")
    assert tab.refused("POST", "/obatchd/v1/jobs", {**body, "files": []}) == (400, "bad_request")
    lost = {**body, "files": [*files, {"file": "file-none", "name": "c.jsonl"}]}
    assert tab.refused("POST", "/obatchd/v1/jobs", lost) == (409, "no_upload")
    job = tab.call("POST", "/obatchd/v1/jobs", body).document["job"]
    assert tab.call("POST", "/obatchd/v1/jobs", body).document["job"]["job"] == job["job"]
    done = over(tab, job["job"])
    assert (done["name"], done["requests"], done["succeeded"]) == ("a folder", 5, 5)
    assert tab.call("GET", "/v1/files?purpose=batch").document["data"] == []


# obatchctl web.


def test_the_link_is_for_where_the_browser_finds_the_daemon(make_daemon: Make, tmp_path: Path) -> None:
    found = over_http(make_daemon, {"http": {"listen": ""}})
    found.d.start().ready()
    off = found.d.control("web")
    assert off.returncode == 1 and 'listen = "127.0.0.1:8434"' in off.stderr, off.stderr
    assert f"ssh -N -L 8434:{found.socket_path}" in off.stderr and "obatchctl web --port 8434" in off.stderr
    through = found.d.control("web", "--port", "9000")
    assert through.stdout.startswith("http://127.0.0.1:9000/#") and "#" in through.stdout
    told = json.loads(found.d.control("web", "--json", "--port", "9000").stdout)
    assert told["link"] == f"http://127.0.0.1:9000/#{told['code']}" and told["good_for_s"] == 60


def test_the_browser_of_a_desktop_is_opened_without_showing_the_code(
    door: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it is started with can be seen by everybody on this host."""
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/opened\n')
    browser.chmod(0o755)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "XDG_RUNTIME_DIR", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BROWSER", f"{browser} %s")
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.1 1 10.0.0.2 22")
    over_ssh = door.d.control("web")
    assert f"ssh -N -L {door.port}:127.0.0.1:{door.port} " in over_ssh.stderr and not (tmp_path / "opened").exists()
    monkeypatch.delenv("SSH_CONNECTION")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for more in ((), ("--no-open",)):
        assert door.d.control("web", *more).returncode == 0 and not (tmp_path / "opened").exists()
        monkeypatch.setenv("DISPLAY", ":0")
    opened = door.d.control("web")
    code = opened.stdout.strip().partition("#")[2]
    assert opened.stderr.startswith("The page is opened in your browser")
    page = tmp_path / "obatchd-web.html"
    assert (tmp_path / "opened").read_text() == f"file://{page}\n"
    assert stat.S_IMODE(page.stat().st_mode) == 0o600 and page.read_text().count(f"#{code}") == 2
    assert door.d.control("web").returncode == 0 and code not in page.read_text()


def test_a_port_in_use_is_told(make_daemon: Make, door: Programs) -> None:
    found = Programs(make_daemon({"http": {"listen": f"127.0.0.1:{door.port}"}}), door.port)
    found.d.start()
    wait_for(lambda: found.d.events("http_not_listening"))
    assert "is in use by another program" in found.d.control("web").stderr
