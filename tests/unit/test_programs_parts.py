"""Parts of the door for programs by themselves: settings, keys, places for connections, refusals, terms of a batch."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from settings_support import in_force
from work_support import make_work

from obatchd.control.auth import Caller
from obatchd.control.operations import NewKeyAsked
from obatchd.control.programs import BatchAsked
from obatchd.doors import connections
from obatchd.doors.connections import Crowd
from obatchd.errors import ApiError, ConfigError, ControlError, ForbiddenError, NotFoundError
from obatchd.front.answers import refusal
from obatchd.front.tls import Certificate
from obatchd.jobs.formats.lines import BatchIndexer
from obatchd.jobs.model import Outcome
from obatchd.jobs.store import BatchRow, FileRow
from obatchd.live.work import Work
from obatchd.operations.batches.terms import deadline_s, terms_of
from obatchd.operations.files import Files
from obatchd.operations.keys import Keys
from obatchd.operations.outputs import JobFiles
from obatchd.settings import reading
from obatchd.spool.layout import FreeSpace
from obatchd.spool.uploads import UploadDirectories

ME, OTHER, ADMIN = Caller(7, False), Caller(8, False), Caller(9, True)


# Settings.


@pytest.mark.parametrize(
    ("table", "wrong"),
    [
        ({"listen": "0.0.0.0:8434"}, "there is no TLS"),
        ({"listen": "[::]:8434"}, "there is no TLS"),
        ({"listen": "192.168.1.1:8434", "insecure": True, "keyless_owner": "me"}, "keyless_owner would let every host"),
        ({"tls_key": "/key"}, "go together"),
        ({"tls_key": "key", "tls_certificate": "/c"}, "must be a path"),
        ({"listen": "localhost"}, "address with a port"),
        ({"listen": "gpu:8434"}, "address with a port"),
        ({"listen": "1.2.3:99"}, "no IP address"),
        ({"listen": "127.0.0.1:70000"}, "address with a port"),
        ({"names": ["https://gpu"]}, "no name of a host"),
    ],
)
def test_settings_that_would_let_others_in_are_refused_in_words(table: dict[str, Any], wrong: str) -> None:
    _, problems = reading.validate({"http": table}, {}, "file", reading.Settings)
    assert [problem for problem in problems if wrong in problem and problem.startswith("file: http")], problems


def test_a_service_has_keys_for_everybody() -> None:
    data = {"access": {"mode": "service"}, "http": {"keyless_owner": "me"}}
    _, problems = reading.validate(data, {}, "file", reading.Settings)
    assert problems == [
        "file: http: keyless_owner is for the daemon of one user; in a system service everybody has a key"
    ]


@pytest.mark.parametrize(
    ("listen", "own", "service"),
    [("auto", "127.0.0.1:8434", "None"), ("", "None", "None"), ("[::1]:1", "[::1]:1", "[::1]:1"),
     ("localhost:5", "127.0.0.1:5", "127.0.0.1:5")],
)  # fmt: skip
def test_where_it_listens(listen: str, own: str, service: str) -> None:
    http = in_force(http={"listen": listen}).value.http
    assert (str(http.address(service=False)), str(http.address(service=True))) == (own, service)


# Keys.


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Work]:
    work = make_work(tmp_path)
    yield work
    work.store.close()


async def test_a_key_is_known_by_its_hash_and_its_owner_alone_sees_it(work: Work) -> None:
    keys, told = Keys(work), list[str]()
    made = await keys.add(ME, NewKeyAsked(label="note", days=1))
    keys.listen(type("Listener", (), {"revoked": staticmethod(told.append)})())
    holder = keys.holder(made.key)
    assert holder is not None and (holder.owner, holder.administrator) == (7, False)
    assert holder.scopes == {"batches", "inference"}
    assert [keys.holder(wrong) for wrong in ("", made.key[:-1], made.key + "x", "\udc80")] == [None] * 4
    assert [len(keys.all(caller)) for caller in (ME, OTHER, ADMIN)] == [1, 0, 1]
    again = Keys(work)  # after a restart
    assert again.holder(made.key) == holder and made.key not in repr(again.all(ADMIN))
    for caller, key in ((OTHER, made.about.id), (ME, "key-nothing"), (ME, "")):
        with pytest.raises(NotFoundError):
            await keys.remove(caller, key)
    assert (await keys.remove(ME, made.about.id[:8])).removed == made.about.id and told == [made.about.id]
    assert keys.holder(made.key) is None and Keys(work).holder(made.key) is None


async def test_a_key_ends_at_its_time_and_its_last_use_is_kept(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys(work)
    made = await keys.add(ME, NewKeyAsked(days=1))
    assert keys.holder(made.key) is not None
    await keys.stop()
    assert Keys(work).all(ME)[0].last_used_at is not None
    now_s = time.time()
    monkeypatch.setattr(time, "time", lambda: now_s + 86401)
    assert keys.holder(made.key) is None


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (NewKeyAsked(scopes=["all"]), ConfigError),
        (NewKeyAsked(scopes=[]), ConfigError),
        (NewKeyAsked(days=0), ConfigError),
        (NewKeyAsked(label="a\nb"), ConfigError),
        (NewKeyAsked(administrator=True), ForbiddenError),
        (NewKeyAsked(scopes=["batches", "metrics"]), ForbiddenError),
    ],
)
async def test_a_key_that_cannot_be_is_refused(work: Work, asked: NewKeyAsked, error: type[Exception]) -> None:
    with pytest.raises(error):
        await Keys(work).add(ME, asked)
    assert work.store.state.programs.all_keys() == []


async def test_nobody_has_keys_without_end(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("obatchd.operations.keys._KEYS_OF_ONE_OWNER", 2)
    keys = Keys(work)
    for _ in range(2):
        await keys.add(ME, NewKeyAsked())
    with pytest.raises(ControlError, match="key rm"):
        await keys.add(ME, NewKeyAsked())
    await keys.add(OTHER, NewKeyAsked())


# Connections.


def test_a_crowd_makes_room_for_those_who_say_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_IN_ALL", 4)
    monkeypatch.setattr(connections, "_OF_ONE", 2)
    names = iter(["10.0.0.1", "10.0.0.1", "10.0.0.1", "127.0.0.1", "127.0.0.1", "127.0.0.1"])
    crowd = Crowd(lambda _: next(names))
    with ExitStack() as open_ones:
        (first, _), (second, second_far), *rest = [pair(open_ones) for _ in range(6)]
        assert [crowd.enter(one) for one in (first, second, rest[0][0])] == ["10.0.0.1", "10.0.0.1", None]
        crowd.spoke(first)
        assert crowd.enter(rest[1][0]) == "127.0.0.1" and not is_over(second_far)
        assert crowd.enter(rest[2][0]) == "127.0.0.1" and is_over(second_far)  # the oldest that had said nothing
        assert crowd.enter(rest[3][0]) is None
        crowd.close_if_silent(first)
        assert not is_over(rest[1][1])


def pair(open_ones: ExitStack) -> tuple[socket.socket, socket.socket]:
    near, far = socket.socketpair()
    far.setblocking(False)
    return open_ones.enter_context(near), open_ones.enter_context(far)


def is_over(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False


def test_a_certificate_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    certificate = Certificate(str(tmp_path / "c.pem"), str(tmp_path / "k.pem"))
    assert certificate.context() is None and "No such file" in certificate.problem
    for name in ("c.pem", "k.pem"):
        (tmp_path / name).write_text("no certificate")
    assert certificate.context() is None and "cannot be used" in certificate.problem


# Refusals.


@pytest.mark.parametrize(
    ("status", "final", "headers"),
    [(409, True, {"x-should-retry": "false"}), (507, True, {"x-should-retry": "false"}), (404, True, {}),
     (429, False, {"Retry-After": "5"}), (503, False, {"Retry-After": "5"}), (500, False, {})],
)  # fmt: skip
async def test_a_client_is_told_whether_another_try_is_of_use(
    status: int, final: bool, headers: dict[str, str]
) -> None:
    response = refusal(ApiError("no", status=status, final=final))
    told = {name: response.headers[name] for name in ("x-should-retry", "Retry-After") if name in response.headers}
    assert (response.status, told) == (status, headers)


# Batches.


def test_the_terms_of_a_batch() -> None:
    fields = {"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "48h"}
    terms = terms_of(7, BatchAsked(fields | {"metadata": None, "unknown": 1}, "key", again=False))
    assert (terms.owner, terms.metadata, terms.keep_output_s, terms.idempotency_key) == (7, None, None, "key")
    assert terms.asks_as(terms_of(7, BatchAsked(fields, None, again=True)))
    for other in (fields | {"metadata": {"a": "b"}}, fields | {"completion_window": "24h"}):
        assert not terms.asks_as(terms_of(7, BatchAsked(other, None, again=True)))
    assert not terms.asks_as(terms_of(8, BatchAsked(fields, None, again=True)))
    assert [deadline_s("24h", enforced=enforced) for enforced in (False, True)] == [None, 86400.0]
    assert [deadline_s(window, enforced=False) for window in ("1h", "7d")] == [3600.0, 604800.0]
    for key in ("", "k" * 256):
        with pytest.raises(ApiError):
            terms_of(7, BatchAsked(fields, key, again=False))


def test_the_endpoint_of_a_batch_goes_before_other_faults_of_a_line() -> None:
    index = BatchIndexer(None, "/v1/chat/completions")
    lines = {
        b'{"custom_id": "a", "url": "/v1/embeddings", "body": {"model": "m", "input": "x"}}': "url_mismatch",
        b'{"custom_id": "a", "url": "/v1/embeddings", "body": {"model": "m"}}': "url_mismatch",
        b'{"custom_id": "a", "url": "/v1/chat/completions", "body": {"model": "m"}}': "missing_required_parameter",
        b'{"custom_id": "a", "body": {"model": "m", "messages": [{"role": "user", "content": "x"}]}}': None,
    }
    found = {raw: entry.refusal and entry.refusal.code for raw in lines if (entry := index(1, 0, raw))}
    assert found == lines


# The store.


def test_rows_of_batches_go_with_their_jobs(work: Work) -> None:
    programs = work.store.state.programs
    programs.add_batches(
        [BatchRow("20260101-000000-0000", 7, "file-1", "/v1/chat/completions", "24h", None, None, 1.0)]
    )
    assert programs.batch("20260101-000000-0000") is not None
    work.store.state.erase([])
    assert programs.batch("20260101-000000-0000") is None


async def test_an_upload_that_fills_the_disk_ends_in_the_middle_and_leaves_nothing(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files(work)
    await files.start()
    upload = await files.begin(ME, "a.jsonl")
    await upload.write(b"x" * 1000)
    least = work.settings.value.disk.min_free_bytes
    with monkeypatch.context() as full:
        full.setattr(work.layout, "free", lambda: FreeSpace(2 * least + 999, -1))
        with pytest.raises(ApiError, match="no room for files") as caught:
            await upload.write(b"y" * 1000)
        await upload.abandon()
        full.setattr(work.layout, "free", lambda: FreeSpace(2 * least - 1, -1))
        with pytest.raises(ApiError):
            await files.begin(OTHER, "b.jsonl")
    assert (caught.value.status, caught.value.code, caught.value.final) == (507, "insufficient_storage", True)
    assert refusal(caught.value).headers["x-should-retry"] == "false"
    assert list((work.layout.work / "uploads").iterdir()) == []
    await (await files.begin(OTHER, "b.jsonl")).abandon()
    await files.stop()


def test_a_file_is_its_directory(work: Work) -> None:
    directories = UploadDirectories(work.layout)
    directories.prepare()
    row = FileRow("file-20260101-000000-0001", 7, "a.jsonl", 3, 1.0, None)
    content = directories.begin(row.id)
    content.write(b"abc")
    assert directories.there() == set()
    directories.finish(row, content)
    cut = directories.begin("file-20260101-000000-0002")
    cut.close()
    (directories.files / "file-20260101-000000-0003").mkdir()
    directories.prepare()
    assert list(directories.rows(directories.there())) == [row]
    assert list((work.layout.work / "uploads").iterdir()) == [] and directories.content(row.id).read_bytes() == b"abc"
    assert directories.content(row.id).stat().st_mode & 0o077 == 0
    directories.remove(row.id)
    directories.remove(row.id)
    assert list(directories.rows([row.id])) == []


async def test_whoever_goes_while_results_are_read_lets_the_reading_come_to_its_end() -> None:
    reading, goes_on, ended = threading.Event(), threading.Event(), list[str]()

    def results(row: Any) -> Iterator[tuple[int, Outcome, bytes]]:
        try:
            reading.set()
            goes_on.wait(10)
            yield 1, Outcome.SUCCEEDED, b"{}"
        finally:
            ended.append("closed")

    row = SimpleNamespace(job="j", owner=7)
    store = SimpleNamespace(results=results, state=SimpleNamespace(find=lambda jobs: [row]))
    files: Any = JobFiles(SimpleNamespace(store=store))  # type: ignore[arg-type]

    async def read() -> None:
        async for _ in files.so_far(Caller(7, is_administrator=False), "j"):
            pass

    task = asyncio.create_task(read())
    assert await asyncio.to_thread(reading.wait, 10)
    task.cancel()
    asyncio.get_running_loop().call_later(0.05, goes_on.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["closed"]
    with pytest.raises(NotFoundError):
        files.so_far(Caller(8, is_administrator=False), "j")
