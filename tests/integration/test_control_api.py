from __future__ import annotations

import asyncio
import contextlib
import errno
import http.client
import json
import os
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from control_support import FakeOperations, serving

from obatchd import errors
from obatchd.client import handover, runtime
from obatchd.client.control import ControlClient
from obatchd.control import auth
from obatchd.control.operations import AnswersAsked, SpanAsked
from obatchd.control.sockets import ControlServer
from obatchd.control.submit import SubmitServer
from obatchd.documents.audit import AuditAsked
from obatchd.documents.programs import HttpDoor
from obatchd.settings.tables.people import AccessSettings

T = TypeVar("T")


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[FakeOperations, Path]]:
    async with serving(tmp_path, frame_timeout_s=5) as both:
        yield both


async def until(look: Callable[[], bool], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not look():
            await asyncio.sleep(0.01)


async def call(function: Callable[..., T], *arguments: Any, **keywords: Any) -> T:
    """The client is synchronous: in a thread, as the server runs in this loop."""
    return await asyncio.wait_for(asyncio.to_thread(function, *arguments, **keywords), 30)


def raw(spool: Path, request: bytes) -> tuple[int, dict[str, Any]]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(runtime.read_record(spool).runtime_dir / runtime.CONTROL_SOCKET))
        connection.sendall(request)
        with http.client.HTTPResponse(connection) as response:
            response.begin()
            return response.status, json.loads(response.read())


async def test_every_route_reaches_the_daemon(served: tuple[FakeOperations, Path]) -> None:
    daemon, spool = served
    client = ControlClient(spool)
    assert (await call(client.get, "ping"))["pid"] == os.getpid()
    assert (await call(client.get, "status"))["state"] == "running"
    assert [one["id"] for one in (await call(client.get, "servers"))["servers"]] == ["gpu0"]
    assert (await call(client.get, "jobs", state="done", limit=5))["jobs"] == []
    assert (await call(client.get, "jobs/2026"))["name"] == "prompts.jsonl"
    for path in ("jobs/2026/cancel", "jobs/2026/retry", "jobs/2026/pause", "jobs/2026/resume", "pause", "resume"):
        await call(client.post, path)
    for action in ("drain", "resume", "restart"):
        await call(client.post, f"servers/gpu0/{action}")
    await call(client.delete, "models/user%2Fmodel:7b")
    assert daemon.calls == [
        ("cancel", "2026"),
        ("retry", "2026"),
        ("pause", "2026"),
        ("resume", "2026"),
        ("pause", None),
        ("resume", None),
        ("drain", "gpu0"),
        ("resume", "gpu0"),
        ("restart", "gpu0"),
        ("rm", "user/model:7b"),
    ]
    assert (await call(client.get, "gpus"))["state"] == "ok"
    for path in ("gpus/2", "gpu-events?gpu=2&limit=7"):
        await call(client.get, path)
    for path in ("quarantine?reason=a%20b", "release", "lend?for_s=60.0", "take-back", "share", "unshare"):
        await call(client.post, f"gpus/2/{path}")
    assert daemon.gpus.calls == [
        ("gpu", "2"), ("events", "2", 7), ("quarantine", "2", "a b"), ("release", "2"), ("lend", "2", 60.0),
        ("take_back", "2"), ("share", "2", True), ("share", "2", False),
    ]  # fmt: skip
    for path in ("gpu-events?limit=x", "gpu-events?limit=0", "jobs?limit=" + "9" * 5000):
        with pytest.raises(errors.ObatchError, match="limit must be"):
            await call(client.get, path)
    await call(lambda: client.post("jobs", "2026", "retry", body={"settings": {"model": "m"}}))
    assert daemon.calls.pop() == ("retry", "2026", {"model": "m"})
    await call(lambda: client.post("jobs", "2026", "retry", body={"only": "truncated"}))
    assert daemon.calls.pop() == ("retry", "2026", "truncated")
    for body in ([], {"settings": []}):
        with pytest.raises(errors.ConfigError, match="the body must be"):
            await call(partial(client.post, "jobs", "2026", "retry", body=body))  # type: ignore[arg-type]
    with pytest.raises(errors.ObatchError, match="for_s must be"):
        await call(client.post, "gpus/2/lend?for_s=soon")
    assert (await call(client.post, "drain"))["state"] == "draining"
    assert (await call(client.post, "undrain"))["state"] == "running"
    assert (await call(client.post, "reload"))["needs_restart"] == ["servers.slots"]
    assert (await call(client.get, "models"))["models"][0]["model"] == "llama3:8b"


async def test_hosts_are_let_in_drained_and_forgotten(served: tuple[FakeOperations, Path]) -> None:
    daemon, spool = served
    client = ControlClient(spool)
    found = await call(client.get, "hosts")
    assert found["hosts"][0]["name"] == "node07" and found["door"]["address"] == "10.0.0.1:7700"
    [examined] = (await call(client.get, "hosts/findings"))["hosts"]
    assert (examined["host"], examined["findings"][0]["level"]) == ("node07", "bad")
    assert (await call(client.post, "hosts/codes"))["link"].startswith("obatch://")
    await call(partial(client.post, "hosts/codes", body={"head": "head:7700"}))
    await call(partial(client.post, "hosts/enrolments", body={"valid_s": 3600.0}))
    for action in ("drain", "resume"):
        await call(client.post, f"hosts/node07/{action}")
    assert (await call(client.delete, "hosts/node07"))["hosts"] == ["node07"]
    await call(client.delete, "hosts/enrolments/enrol-1")
    assert daemon.calls == [
        ("code", ""), ("code", "head:7700"), ("enrol", 3600.0, ""), ("drain_host", "node07"),
        ("resume_host", "node07"), ("forget_host", "node07"), ("revoke", "enrol-1"),
    ]  # fmt: skip
    for body in ({"valid_s": 1.0}, {"valid_s": "long"}, {"other": 1}):
        with pytest.raises(errors.ConfigError):
            await call(partial(client.post, "hosts/enrolments", body=body))


async def test_what_people_look_at_is_asked_with_its_bounds(served: tuple[FakeOperations, Path]) -> None:
    daemon, spool = served
    client = ControlClient(spool)
    assert await call(client.get, "page", jobs=7, owner="mine", fresh=1) == {"schema": 1}
    await call(client.get, "page")
    assert daemon.calls == [("look", 7, True, True), ("look", 100, False, False)]
    daemon.calls.clear()
    [cause] = (await call(client.get, "jobs/2026/failures"))["failures"]
    assert (cause["code"], cause["line"]) == ("timeout", 7)
    [found] = (await call(client.get, "jobs/2026/results"))["results"]
    assert (found["prompt"], found["record"]["response"]) == ("really?", "yes")
    await call(client.get, "jobs/2026/results", after=9, limit=500, outcome="failed", code="timeout", settled=1)
    assert daemon.calls == [
        ("part", "2026", AnswersAsked()), ("part", "2026", AnswersAsked(9, 500, "failed", "timeout", True))
    ]  # fmt: skip
    daemon.calls.clear()
    await call(client.get, "gpu-history", since=100, until=200, points=10, gpu="2")
    await call(client.get, "work-history", since=100, until=200)
    assert daemon.calls == [
        ("gpu history", SpanAsked(100.0, 200.0, 10), "2"), ("work history", SpanAsked(100.0, 200.0, 720))
    ]  # fmt: skip
    daemon.calls.clear()
    began_s = time.time()
    await call(client.get, "gpu-history", span="2d")
    [(_, asked, name)] = daemon.calls
    assert name is None and asked.until_s - asked.since_s == 2 * 86_400 and began_s <= asked.until_s <= time.time()
    wrong = {
        "page": ("owner=all2", "jobs=1001"), "jobs/2026/results": ("after=x", "limit=501", "outcome=good"),
        "gpu-history": ("span=soon", "points=1e9", "since=200&until=100", "span=93d"), "work-history": ("since=x",),
        "burnin/series": ("points=0",),
    }  # fmt: skip
    for path, queries in wrong.items():
        for query in queries:
            with pytest.raises(errors.ConfigError):
                await call(client.get, f"{path}?{query}")
    with pytest.raises(errors.NotFoundError):
        await call(client.get, "burnin/series")


async def test_a_page_that_has_not_changed_is_not_sent_again(served: tuple[FakeOperations, Path]) -> None:
    daemon, spool = served

    def asked(tag: str) -> tuple[int, str | None, bytes]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(runtime.read_record(spool).runtime_dir / runtime.CONTROL_SOCKET))
            connection.sendall(b"GET /v1/page HTTP/1.1\r\nHost: x\r\nIf-None-Match: " + tag.encode() + b"\r\n\r\n")
            with http.client.HTTPResponse(connection) as response:
                response.begin()
                return response.status, response.getheader("ETag"), response.read()

    status, tag, body = await call(asked, '"another"')
    assert (status, tag, body) == (200, '"revision1"', b'{"schema":1}')
    for sent in ('"revision1"', 'W/"revision1"', '"another", "revision1"', "*"):
        assert await call(asked, sent) == (304, '"revision1"', b""), sent
    daemon.known.clear()
    assert (await call(asked, '"revision1"'))[:2] == (200, '"revision0"')


async def test_the_audit_log_is_asked_by_number_time_and_kind(served: tuple[FakeOperations, Path]) -> None:
    daemon, spool = served
    client = ControlClient(spool)
    document = await call(client.get, "audit", limit=5, since=12.5, kind="gpu,key_added")
    assert (document["entries"], document["unreadable"], document["problem"]) == ([], 1, "the disk is full\x1b[31m")
    await call(client.get, "audit")
    asked = [AuditAsked(5, 12.5, None, ("gpu", "key_added")), AuditAsked(100)]
    assert daemon.calls == [("audit", each) for each in asked]
    for query in ("limit=0", "limit=100001", "since=soon"):
        with pytest.raises(errors.ConfigError):
            await call(client.get, f"audit?{query}")


async def test_a_link_to_the_page_says_where_it_leads_or_why_nowhere(served: tuple[FakeOperations, Path]) -> None:
    daemon, spool = served
    client = ControlClient(spool)
    nowhere = await call(client.post, "web/codes")
    assert (nowhere["code"], nowhere["url"], nowhere["problem"]) == ("secret", None, "it listens nowhere")
    daemon.door = HttpDoor("127.0.0.1:8434", False, "")
    link = await call(client.post, "web/codes")
    assert link == {
        "schema": 1, "code": "secret", "good_for_s": 60.0, "url": "http://127.0.0.1:8434/", "problem": "",
    }  # fmt: skip
    assert await call(client.delete, "web/sessions") == {"schema": 1, "ended": 2}
    uid = os.geteuid()
    assert daemon.calls == [("code", uid), ("code", uid), ("logout", uid)]


async def test_jobs_are_chosen_and_erased_together(served: tuple[FakeOperations, Path]) -> None:
    daemon, spool = served
    client = ControlClient(spool)
    await call(client.get, "jobs", label="a b", since=12.5, ended_before=99, after="20261122-101112-abcd")
    assert daemon.filters == [("a b", 12.5, 99.0, "20261122-101112-abcd")]
    for query in ("since=soon", "ended_before=nan", "since=inf"):
        with pytest.raises(errors.ConfigError, match="must be seconds since 1970"):
            await call(client.get, f"jobs?{query}")
    assert (await call(client.remove, ["x", "y"]))["removed"] == ["x", "y"]
    assert daemon.calls == [("remove", "x,y")]
    for body in ({"jobs": "x"}, {}, {"jobs": ["\ud800"]}):
        with pytest.raises(errors.ConfigError, match="the body must be"):
            await call(client.post, "jobs/remove", body=body)


async def test_errors_have_code_message_and_status(served: tuple[FakeOperations, Path]) -> None:
    daemon, spool = served
    client = ControlClient(spool)
    with pytest.raises(errors.NotFoundError, match="no job zzz"):
        await call(client.get, "jobs/zzz")
    with pytest.raises(errors.ControlError) as caught:
        await call(client.get, "nothing")
    assert caught.value.code == "http"
    daemon.state = "degraded"
    with pytest.raises(errors.ConfigError, match="modle"):
        await call(client.post, "reload")
    status, document = await call(raw, spool, b"GET /v1/jobs?limit=x HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (status, document["error"]["code"]) == (400, "bad_request")
    status, document = await call(raw, spool, b"PUT /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (status, document["error"]["code"]) == (405, "http")


async def test_a_fault_in_the_daemon_is_one_answer(
    served: tuple[FakeOperations, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon, spool = served

    def fail() -> dict[str, Any]:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(daemon.operations.host, "status", fail)
    status, document = await call(raw, spool, b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (status, document["error"]["code"]) == (500, "internal")
    assert "secret" not in document["error"]["message"]
    assert await call(ControlClient(spool).get, "ping")


async def test_health_and_readiness(served: tuple[FakeOperations, Path]) -> None:
    daemon, spool = served
    assert (await call(raw, spool, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 200
    assert (await call(raw, spool, b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 200
    daemon.servers.clear()
    assert (await call(raw, spool, b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 503


async def test_pull_streams_progress_and_ends_with_its_error(served: tuple[FakeOperations, Path]) -> None:
    _, spool = served
    client = ControlClient(spool)
    progress = await call(lambda: list(client.pull("m")))
    assert [one["completed_bytes"] for one in progress] == [1, 2]
    with pytest.raises(errors.ControlError, match="no model missing"):
        await call(lambda: list(client.pull("missing")))


async def test_only_the_owner_and_root(served: tuple[FakeOperations, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _, spool = served
    somebody = auth.Peer(1, os.geteuid() + 4321, 1)
    monkeypatch.setattr(auth, "peer_of", lambda descriptor: somebody)
    with pytest.raises(errors.ForbiddenError):
        await call(ControlClient(spool).get, "status")
    with pytest.raises(errors.ControlError, match="may not use this daemon"):
        await call(ControlClient(spool).submit, Path(__file__), {})
    assert (await auth.Access(AccessSettings()).caller(auth.Peer(1, 0, 0))).is_administrator


async def test_a_service_answers_members_and_tells_others_what_to_do(
    served: tuple[FakeOperations, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, spool = served
    service = AccessSettings(mode="service", submit_group="submitters", admin_group="admins")
    asked_in: set[int] = set()

    def group_id(name: str) -> int | None:  # of a directory service that may be slow
        asked_in.add(threading.get_ident())
        return {"submitters": 77001, "admins": 77002}.get(name)

    monkeypatch.setattr(auth, "group_id", group_id)
    access, uid = auth.Access(service), os.geteuid() + 4321
    assert await access.caller(auth.Peer(1, uid, 77001)) == auth.Caller(uid, is_administrator=False)
    assert await access.caller(auth.Peer(1, uid, 77002)) == auth.Caller(uid, is_administrator=True)
    with pytest.raises(errors.ForbiddenError, match=r"usermod -aG submitters .*log out and in again"):
        await access.caller(auth.Peer(1, uid, 77003))
    assert asked_in and threading.get_ident() not in asked_in
    nobodys = auth.Access(AccessSettings(mode="service", submit_group="nobodys", admin_group="admins"))
    with pytest.raises(errors.ForbiddenError, match="there is no group nobodys on this host"):
        await nobodys.caller(auth.Peer(1, uid, 77003))

    async def member(self: auth.Access, peer: auth.Peer) -> auth.Caller:
        return auth.Caller(uid, is_administrator=False)

    monkeypatch.setattr(auth.Access, "caller", member)
    client = ControlClient(spool)
    assert await call(client.get, "jobs/2026")
    assert (await call(client.get, "usage", month="2026-11", owner="mine"))["usage"][0]["name"] == "ada"
    for query in ({"month": "2026-13"}, {"owner": "all"}):
        with pytest.raises(errors.ConfigError, match="must be"):
            await call(client.get, "usage", **query)
    for path in ("gpus", "gpus/0", "gpu-events"):
        assert await call(client.get, path)
    assert await call(client.post, "web/codes") and await call(client.delete, "web/sessions")
    for method, path in (
        (client.post, "drain"), (client.post, "pause"), (client.post, "reload"), (client.post, "servers/gpu0/restart"),
        (client.post, "alarms/test"),
        (client.delete, "models/m"), (client.get, "burnin/status"), (client.post, "burnin"), (client.get, "unknown"),
        (client.post, "gpus/0/release"), (client.post, "gpus/0/quarantine"), (client.post, "gpus/0/lend?for_s=1"),
        (client.post, "gpus/0/share"), (client.get, "hosts"), (client.get, "hosts/findings"),
        (client.post, "hosts/codes"),
        (client.post, "hosts/enrolments"), (client.post, "hosts/node07/drain"), (client.delete, "hosts/node07"),
    ):  # fmt: skip
        with pytest.raises(errors.ForbiddenError, match="and the members of the group obatch-admin"):
            await call(method, path)
    with pytest.raises(errors.ForbiddenError, match="--mine"):
        await call(client.get, "jobs", owner="all")


@pytest.mark.parametrize("body", [{"model": "\udcff"}, {"gpus": ["0", "\ud800"]}, {"\udfff": 1}])
async def test_a_text_with_half_a_character_is_refused_and_no_defect(
    served: tuple[FakeOperations, Path], body: dict[str, Any]
) -> None:
    """As an argument that is not UTF-8 comes from a terminal: no journal could hold it."""
    with pytest.raises(errors.ConfigError, match="whole characters") as refused:
        await call(ControlClient(served[1]).post, "burnin", body=body)
    assert refused.value.code == "bad_request"


async def test_the_sockets_are_private(served: tuple[FakeOperations, Path]) -> None:
    _, spool = served
    directory = runtime.read_record(spool).runtime_dir
    for name in (runtime.CONTROL_SOCKET, runtime.SUBMIT_SOCKET):
        assert (directory / name).stat().st_mode & 0o777 == 0o600


async def test_the_peer_is_known_by_the_kernels_word() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert auth.peer_of(one.fileno()) == (os.getpid(), os.geteuid(), os.getegid())


async def test_a_stale_socket_of_a_killed_daemon(tmp_path: Path) -> None:
    directory = runtime.create(tmp_path, f"stale-{tmp_path.name}")
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(directory / runtime.CONTROL_SOCKET))
    with pytest.raises(errors.DaemonDownError, match="is not running") as caught:
        await call(ControlClient(tmp_path).get, "status")
    assert caught.value.code == "daemon_down"
    runtime.remove(tmp_path, directory)


async def test_a_file_is_submitted_with_its_content_and_settings(
    served: tuple[FakeOperations, Path], tmp_path: Path
) -> None:
    daemon, spool = served
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b"x" * 3_000_000)
    file.chmod(0o600)
    answer = await call(ControlClient(spool).submit, file, {"model": "m", "options": {"seed": 1}})
    assert answer["job"] == "job1"
    submission, content = daemon.submitted[0]
    assert (submission.name, submission.kind, submission.owner) == ("prompts.jsonl", "file", os.geteuid())
    assert submission.settings == {"model": "m", "options": {"seed": 1}}
    assert content == {"prompts.jsonl": b"x" * 3_000_000}


async def test_a_folder_of_more_files_than_one_batch(served: tuple[FakeOperations, Path], tmp_path: Path) -> None:
    daemon, spool = served
    folder = tmp_path / "folder"
    folder.mkdir()
    names = [f"{number:04d}.json" for number in range(300)]
    for name in names:
        (folder / name).write_text(name)
    (folder / os.fsdecode(b"caf\xe9.json")).write_text("odd")
    (folder / ".hidden").write_text("left out")
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "sub" / "deep" / "a.json").write_text("in a folder of it")
    (folder / ".git").mkdir()
    (folder / ".git" / "a.json").write_text("left out")
    open_before = len(os.listdir("/proc/self/fd"))
    await call(ControlClient(spool).submit, folder, {})
    _, content = daemon.submitted[0]
    assert list(content)[:300] == names
    assert content[os.fsdecode(b"caf\xe9.json")] == b"odd"
    assert content["sub/deep/a.json"] == b"in a folder of it"
    assert len(content) == 302
    # The server is in this process too and closes its end a little later than the client.
    await until(lambda: len(os.listdir("/proc/self/fd")) <= open_before)


async def test_refusals_reach_the_submitter(served: tuple[FakeOperations, Path], tmp_path: Path) -> None:
    daemon, spool = served
    client = ControlClient(spool)
    for name, settings, expected in (
        ("refuse.json", {}, "not one of our formats"),
        ("good.json", {"modle": "m"}, "did you mean model"),
        ("crash.json", {}, "internal error"),
    ):
        (tmp_path / name).write_text("{}")
        with pytest.raises(errors.ControlError, match=expected):
            await call(client.submit, tmp_path / name, settings)
    assert not daemon.submitted
    assert (await call(client.submit, tmp_path / "good.json", {}))["job"] == "job1"


async def test_only_regular_readable_files_are_sent(served: tuple[FakeOperations, Path], tmp_path: Path) -> None:
    daemon, spool = served
    folder = tmp_path / "pipes"
    folder.mkdir()
    os.mkfifo(folder / "pipe.json")
    with pytest.raises(errors.ControlError, match="not a regular file"):
        await call(ControlClient(spool).submit, folder, {})
    (tmp_path / "nested").mkdir()
    (tmp_path / "nested" / "inner").symlink_to(folder)
    with pytest.raises(errors.ControlError, match="link to a folder"):
        await call(ControlClient(spool).submit, tmp_path / "nested", {})
    with pytest.raises(errors.ControlError, match="cannot be read"):
        await call(ControlClient(spool).submit, tmp_path / "nowhere.json", {})
    assert not daemon.submitted


def broken_clients(tmp_path: Path) -> dict[str, Callable[[socket.socket], None]]:
    """Ways to break the protocol."""
    header = {"submit": {"name": "a.json", "kind": "file", "settings": {}}}
    with open(tmp_path / "a.json", "w") as file:
        file.write("{}")

    def with_header(then: Callable[[socket.socket], None], **changes: Any) -> Callable[[socket.socket], None]:
        def talk(connection: socket.socket) -> None:
            handover.send_frame(connection, {"submit": {**header["submit"], **changes}})
            then(connection)

        return talk

    def files(*names: str, path: Path = tmp_path / "a.json", count: int = 1) -> Callable[[socket.socket], None]:
        def send(connection: socket.socket) -> None:
            descriptors = [os.open(path, os.O_RDONLY) for _ in range(count)]
            try:
                handover.send_frame(connection, {"files": list(names)}, descriptors)
            finally:
                handover.close_all(descriptors)

        return send

    def nothing(connection: socket.socket) -> None:
        pass

    return {
        "silence": nothing,
        "rubbish": lambda connection: connection.sendall(b"GET / HTTP/1.1\r\n\r\n"),
        "not JSON": lambda connection: connection.sendall(struct.pack("!I", 3) + b"{{{"),
        "deep JSON": lambda connection: connection.sendall(struct.pack("!I", 100_000) + b"[" * 100_000),
        "a list": lambda connection: connection.sendall(struct.pack("!I", 2) + b"[]"),
        "too long": lambda connection: connection.sendall(struct.pack("!I", 2**31) + b"x"),
        "half a frame": lambda connection: connection.sendall(struct.pack("!I", 100) + b"{"),
        "another request": lambda connection: handover.send_frame(connection, {"cancel": 1}),
        "bad kind": with_header(nothing, kind="device"),
        "bad name": with_header(nothing, name="../a"),
        "surrogate name": with_header(nothing, name="\ud800"),
        "bad settings": with_header(nothing, settings=[1]),
        "a token that is no text": with_header(nothing, token=7),
        "a token that is too long": with_header(nothing, token="t" * 65),
        "again as a word": with_header(nothing, token="t", again="yes"),
        "gone after the header": with_header(nothing),
        "no descriptor": with_header(lambda connection: handover.send_frame(connection, {"files": ["a"]})),
        "too many descriptors": with_header(files("a", count=2)),
        "out of the folder": with_header(files("a/../../b"), kind="folder"),
        "from the root": with_header(files("/a"), kind="folder"),
        "deep": with_header(files("a/" * 40 + "b"), kind="folder"),
        "a directory": with_header(files("a", path=tmp_path)),
        "a device": with_header(files("a", path=Path("/dev/zero"))),
        "an absolute name": with_header(files("/etc/passwd"), kind="folder"),
        "a name outside": with_header(files("a/../../b"), kind="folder"),
        "the same name twice": with_header(files("a", "a", count=2), kind="folder"),
        "a file in a folder": with_header(files("a/b"), kind="folder"),
        "gone after the first file": with_header(files("a"), kind="folder"),
    }


def misbehave(spool: Path, talk: Callable[[socket.socket], None]) -> dict[str, Any]:
    """Break the protocol, say no more, and return the daemon's last frame."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(runtime.read_record(spool).runtime_dir / runtime.SUBMIT_SOCKET))
        talk(connection)
        connection.shutdown(socket.SHUT_WR)
        while True:
            document, _ = handover.receive_frame(connection, 10)
            if "next" not in document:
                return document


async def test_a_broken_client_harms_nobody(served: tuple[FakeOperations, Path], tmp_path: Path) -> None:
    daemon, spool = served
    open_before = len(os.listdir("/proc/self/fd"))
    for name, talk in broken_clients(tmp_path).items():
        answer = await call(misbehave, spool, talk)
        assert answer["error"]["code"] != "internal", name
    assert not daemon.submitted
    assert (await call(ControlClient(spool).submit, tmp_path / "a.json", {}))["job"] == "job1"
    await until(lambda: len(os.listdir("/proc/self/fd")) <= open_before + 1)


async def test_a_silent_client_is_given_up(tmp_path: Path) -> None:
    async with serving(tmp_path, frame_timeout_s=0.1) as (_, spool):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(runtime.read_record(spool).runtime_dir / runtime.SUBMIT_SOCKET))
            answer, _ = await call(handover.receive_frame, connection, 10)
    assert answer["error"]["code"] == "handover_broken"


async def test_a_spool_with_a_long_path(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 150)
    deep.mkdir()
    async with serving(deep) as (_, spool):
        assert (await call(ControlClient(spool).get, "status"))["state"] == "running"


async def test_clients_of_one_user_hold_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text("{}")
    peer_of, silent = auth.peer_of, [socket.socket(socket.AF_UNIX) for _ in range(70)]
    uids = iter([4321] * len(silent))

    async def member(self: auth.Access, peer: auth.Peer) -> auth.Caller:
        return auth.Caller(peer.uid, is_administrator=False)

    monkeypatch.setattr(auth, "peer_of", lambda descriptor: peer_of(descriptor)._replace(uid=next(uids, 1)))
    monkeypatch.setattr(auth.Access, "caller", member)
    async with serving(tmp_path, frame_timeout_s=60) as (_, spool):
        with contextlib.ExitStack() as stack:
            for connection in silent:
                stack.enter_context(connection)
                connection.connect(str(runtime.read_record(spool).runtime_dir / runtime.SUBMIT_SOCKET))
            refused, _ = await call(handover.receive_frame, silent[-1], 10)
            assert refused["error"]["code"] == "busy"
            assert (await call(ControlClient(spool).submit, tmp_path / "a.json", {}))["job"] == "job1"


async def test_one_user_cannot_take_every_connection(served: tuple[FakeOperations, Path]) -> None:
    _, spool = served
    path = str(runtime.read_record(spool).runtime_dir / runtime.CONTROL_SOCKET)
    silent = []
    for _ in range(64):
        reader, writer = await asyncio.open_unix_connection(path)
        silent.append(writer)
    reader, writer = await asyncio.open_unix_connection(path)
    status, _, body = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n")
    writer.close()
    assert status == b"HTTP/1.1 503 Service Unavailable"
    assert b"64 connections open" in body
    silent.pop().close()

    async def answered() -> bool:
        try:
            return bool((await call(ControlClient(spool).get, "ping"))["pid"])
        except errors.ObatchError:
            return False

    async with asyncio.timeout(10):
        while not await answered():
            await asyncio.sleep(0.01)
    for writer in silent:
        writer.close()


async def test_no_file_left_for_a_moment_does_not_end_the_api(
    served: tuple[FakeOperations, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, spool = served
    real, refused = auth.peer_of, []

    def peer_of(descriptor: int) -> auth.Peer:
        if not refused:
            refused.append(descriptor)
            raise OSError(errno.EMFILE, "Too many open files")
        return real(descriptor)

    monkeypatch.setattr(auth, "peer_of", peer_of)
    with pytest.raises(errors.ObatchError):
        await call(ControlClient(spool).get, "ping")
    assert refused
    assert (await call(ControlClient(spool).get, "ping"))["pid"] == os.getpid()


@pytest.mark.parametrize("name", [runtime.CONTROL_SOCKET, runtime.SUBMIT_SOCKET])
async def test_a_socket_that_admits_nobody_any_more_is_told(
    served: tuple[FakeOperations, Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The daemon would go on, and nobody could ask it anything."""
    operations, spool = served

    async def admit(server: ControlServer, connection: socket.socket, *rest: object) -> None:
        connection.close()
        raise RuntimeError("a defect")

    def serve(server: SubmitServer, connection: socket.socket) -> None:
        connection.close()
        raise RuntimeError("a defect")

    monkeypatch.setattr(ControlServer, "_admit", admit)
    monkeypatch.setattr(SubmitServer, "_serve", serve)
    _, writer = await asyncio.open_unix_connection(runtime.read_record(spool).runtime_dir / name)
    await until(lambda: bool(operations.failures))
    writer.close()
    assert operations.failures == [f"{name.removesuffix('.sock')}-accept: RuntimeError: a defect"]
