"""The files of the page as they are packed, and its codes and sessions as time goes by."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from settings_support import in_force

from obatchd.control.auth import Access, Caller, Origin, Peer
from obatchd.control.programs import Programs
from obatchd.errors import ApiError, ControlError, ForbiddenError
from obatchd.front.listener import Listener
from obatchd.front.page.files import DIRECTORY, PageFiles
from obatchd.front.page.sessions import WebSessions

VENDOR = DIRECTORY / "vendor"
IMPORTED = re.compile(r"""(?:\bfrom|\bimport\b\s*\(?)\s*["'](\.[^"']+)["']""")
ME = Caller(os.geteuid(), True)
PAGE = Origin("page", "127.0.0.1")


# Files.


def test_files_of_others_are_as_npm_has_them_each_with_its_licence() -> None:
    manifest = json.loads((VENDOR / "manifest.json").read_text("utf-8"))
    for one in manifest:
        assert hashlib.sha256((VENDOR / one["file"]).read_bytes()).hexdigest() == one["sha256"], one["file"]
        assert one["package"] and re.fullmatch(r"[0-9.]+", one["version"]) and one["integrity"].startswith("sha512-")
        for text in one["texts"]:
            assert re.search("Permission is hereby granted|Apache License", (VENDOR / text).read_text("utf-8")), text
    named = {one["file"] for one in manifest} | {text for one in manifest for text in one["texts"]}
    assert named | {"manifest.json"} == {path.name for path in VENDOR.iterdir()}


def test_the_page_and_its_modules_name_files_that_are_there() -> None:
    files = PageFiles()
    page = files.index.body.decode()
    named = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert named and all(name.startswith(f"/page/{files.hash}/") for name in named)
    todo, seen = {name.removeprefix(f"/page/{files.hash}/") for name in named}, set[str]()
    while todo:
        seen.add(name := todo.pop())
        file = files.one(files.hash, name)
        assert file is not None, name
        if file.kind == "text/javascript":
            beside = {os.path.normpath(Path(name).parent / other) for other in IMPORTED.findall(file.body.decode())}
            todo |= beside - seen
    assert "app.js" in seen and "vendor/standalone.module.js" in seen


def test_nothing_in_the_page_needs_what_its_policy_forbids() -> None:
    page = (DIRECTORY / "index.html").read_text("utf-8")
    assert not re.search(r"<style|style=|\son\w+=|javascript:|https?://", page)
    assert all("src=" in script for script in re.findall("<script[^>]*>", page))


def test_any_change_of_any_file_is_another_address(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text('<script src="a.js"></script><p title="b.js"></p>')
    (tmp_path / "a.js").write_text('import "./deep/c.js"')
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "c.js").write_text("x" * 5000)
    (tmp_path / ".swp").write_text("of an editor")
    first, again = PageFiles(tmp_path), PageFiles(tmp_path)
    assert first.hash == again.hash
    assert first.index.body.decode() == f'<script src="/page/{first.hash}/a.js"></script><p title="b.js"></p>'
    assert (found := first.one(first.hash, "deep/c.js")) is not None and found.packed is not None
    assert gzip.decompress(found.packed) == found.body == b"x" * 5000
    (tmp_path / "deep" / "c.js").write_text("y" * 5000)
    second = PageFiles(tmp_path)
    assert second.hash != first.hash and second.one(first.hash, "a.js") is None
    assert first.one(first.hash, "deep/c.js") == found  # what an upgrade brings is not mixed with what runs
    for name in ("index.html", ".swp", "../index.html", "deep", "deep/../a.js", "", "/etc/passwd"):
        assert second.one(second.hash, name) is None


# Sessions.


class Clock:
    """Seconds that a test sets."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Records:
    """Remembers what is written down, and which sessions are cut off."""

    def __init__(self) -> None:
        self.told: list[tuple[Caller, str]] = []
        self.cut_off: list[str] = []

    async def opened(self, caller: Caller, session: str) -> None:
        self.told.append((caller, session))

    def revoked(self, key: str) -> None:
        self.cut_off.append(key)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def records() -> Records:
    return Records()


@pytest.fixture
def sessions(clock: Clock, records: Records) -> WebSessions:
    found = WebSessions(Access(in_force().value.access), records, clock)
    found.listen(records)
    return found


async def opened(sessions: WebSessions, caller: Caller = ME) -> tuple[str, str]:
    """The token and id of a new session."""
    found = await sessions.open(sessions.code(caller)[0], PAGE)
    return found.token, found.session.id


async def refused(sessions: WebSessions, code: str) -> str:
    with pytest.raises(ApiError) as caught:
        await sessions.open(code, PAGE)
    return caught.value.code or ""


async def test_a_code_is_good_once_and_for_a_minute(sessions: WebSessions, clock: Clock, records: Records) -> None:
    code, good_for_s = sessions.code(ME)
    assert good_for_s == 60 and len(code) >= 43
    clock.now_s += 59.9
    found = await sessions.open(code, PAGE)
    assert found.administrator and found.token.startswith("obs_") and len(found.token) >= 47
    assert await refused(sessions, code) == "invalid_code"
    late, _ = sessions.code(ME)
    clock.now_s += 60
    assert await refused(sessions, late) == "invalid_code"
    for wrong in ("", "x", code[:-1], "\udc80", found.token):
        assert await refused(sessions, wrong) == "invalid_code"
    [(caller, session)] = records.told
    assert (caller.uid, caller.origin.door, caller.origin.key) == (ME.uid, "page", session)
    assert session == found.session.id


async def test_a_session_is_over_after_twelve_hours(sessions: WebSessions, clock: Clock) -> None:
    token, session = await opened(sessions)
    clock.now_s += 12 * 3600 - 0.1
    assert (found := sessions.holder(token)) is not None and (found.id, found.uid) == (session, ME.uid)
    clock.now_s += 0.1
    assert sessions.holder(token) is None
    assert sessions.end_all(ME).ended == 0


async def test_all_sessions_of_one_user_end_and_those_of_others_go_on(sessions: WebSessions, records: Records) -> None:
    tokens = [await opened(sessions) for _ in range(3)]
    unused, _ = sessions.code(ME)
    sessions.end(tokens[0][1])  # at its own wish: nothing is cut off
    assert records.cut_off == [] and sessions.holder(tokens[0][0]) is None
    stranger = Caller(ME.uid + 12345, False)
    assert sessions.end_all(stranger).ended == 0 and sessions.holder(tokens[1][0]) is not None
    assert sessions.end_all(ME).ended == 2
    assert [sessions.holder(token) for token, _ in tokens] == [None] * 3
    assert records.cut_off == [session for _, session in tokens[1:]]
    assert await refused(sessions, unused) == "invalid_code"


async def test_who_is_no_user_any_more_opens_nothing(sessions: WebSessions, records: Records) -> None:
    code, _ = sessions.code(Caller(ME.uid + 12345, True))
    with pytest.raises(ForbiddenError):
        await sessions.open(code, PAGE)
    assert await refused(sessions, code) == "invalid_code" and records.told == []


async def test_codes_and_sessions_of_one_user_are_bounded(
    sessions: WebSessions, clock: Clock, records: Records
) -> None:
    for _ in range(16):
        sessions.code(ME)
    with pytest.raises(ControlError, match="wait for a minute"):
        sessions.code(ME)
    sessions.code(Caller(ME.uid + 1, False))  # somebody else's number is their own
    clock.now_s += 60
    tokens = [await opened(sessions) for _ in range(65)]
    assert records.cut_off == [tokens[0][1]] and sessions.holder(tokens[0][0]) is None
    assert all(sessions.holder(token) for token, _ in tokens[1:])


async def test_wrong_codes_and_tokens_are_one_line_in_the_log(
    sessions: WebSessions, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(500):
        assert sessions.holder(f"obs_{number}") is None
        assert await refused(sessions, f"{number}") == "invalid_code"
    told = [record for record in caplog.records if "wrong_sessions" in record.getMessage()]
    assert len(told) == 1


async def test_rights_are_looked_up_at_each_call(
    sessions: WebSessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody may leave a group while their session goes on."""
    unused: Any = SimpleNamespace(listen=lambda listener: None)
    settings = in_force(http={"listen": ""})
    now: list[Caller] = [ME]

    async def caller(self: Access, peer: Peer) -> Caller:
        if not now:
            raise ForbiddenError("not in the group any more")
        assert peer.uid == ME.uid and peer.gid == -1  # by the user database alone
        return now[0]

    monkeypatch.setattr(Access, "caller", caller)
    programs = Programs(*[unused] * 6, sessions=sessions)
    listener = Listener(programs, settings, tmp_path / "s", Access(settings.value.access))
    await listener.start()
    connector = aiohttp.UnixConnector(str(tmp_path / "s"))
    token, _ = await opened(sessions)
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession("http://localhost", connector=connector, headers=headers) as tab:

        async def seen() -> object:
            async with tab.get("/page/session") as answer:
                return (await answer.json()).get("administrator") if answer.status == 200 else answer.status

        assert await seen() is True
        now[0] = Caller(ME.uid, False)
        assert await seen() is False
        now.clear()
        assert await seen() == 403
        now.append(ME)
        assert await seen() is True
    await listener.stop()


@pytest.mark.parametrize(
    ("http", "url"),
    [
        ({"listen": "127.0.0.1:8434"}, "http://127.0.0.1:8434/"),
        ({"listen": "[::1]:1"}, "http://[::1]:1/"),
        ({"listen": "0.0.0.0:1", "insecure": True}, "http://127.0.0.1:1/"),
        ({"listen": "[::]:1", "insecure": True}, "http://[::1]:1/"),
        ({"listen": "10.1.2.3:1", "insecure": True, "names": ["gpu"]}, "http://10.1.2.3:1/"),
        ({"listen": "0.0.0.0:1", "names": ["gpu.example.org"], "tls": True}, "https://gpu.example.org:1/"),
        ({"listen": "10.1.2.3:1", "tls": True}, "https://10.1.2.3:1/"),
        ({"listen": ""}, None),
    ],
)
async def test_the_link_leads_to_where_the_daemon_listens(
    sessions: WebSessions, tmp_path: Path, http: dict[str, Any], url: str | None
) -> None:
    if http.pop("tls", False):
        http |= {"tls_certificate": str(tmp_path / "a.pem"), "tls_key": str(tmp_path / "a.key")}
    unused: Any = SimpleNamespace(listen=lambda listener: None)
    settings = in_force(http=http)
    listener = Listener(
        Programs(*[unused] * 6, sessions=sessions), settings, tmp_path / "s", Access(settings.value.access)
    )
    if url is not None:
        assert listener.page_url() == url
        return
    with pytest.raises(ControlError, match=r"listens nowhere .* \[http\]"):
        listener.page_url()
