"""A system service and its users: real uids on one daemon, each seeing only what is theirs."""

from __future__ import annotations

import contextlib
import grp
import os
import pickle
import pwd
import shutil
import socket
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from daemon_support import Daemon, Document, Job, jsonl, prompts, wait_for
from openai import AuthenticationError, RateLimitError
from openai import NotFoundError as NotFound
from port_support import free_ports
from programs_support import CHAT, FORM, Answer, Programs, multipart, over_http, questions

from obatchd.client import Client as PythonClient
from obatchd.client.control import ControlClient
from obatchd.errors import ForbiddenError, NotFoundError, ObatchError

pytestmark = pytest.mark.root
T = TypeVar("T")
SUBMIT, ADMIN, NOBODYS = 100, 60, 65530  # gids of Debian's "users" and "games", and of no group
ALICE, BOB, EVE, ROSE = (30_001, SUBMIT), (30_002, SUBMIT), (30_003, NOBODYS), (30_004, ADMIN)
SERVICE = {"mode": "service", "submit_group": "users", "admin_group": "games"}


def as_user(user: tuple[int, int], work: Callable[[], T]) -> T:
    """What ``work`` returns or raises in a process of another user."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setresgid(user[1], user[1], user[1])
            os.setresuid(user[0], user[0], user[0])
            answer: object = ("value", work())
        except (OSError, ObatchError) as error:
            answer = ("error", error)
        except BaseException:  # noqa: BLE001 - handed to the test with its traceback
            answer = ("error", AssertionError(traceback.format_exc()))
        with contextlib.suppress(BaseException), open(writing, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        kind, result = pickle.load(pipe)
    os.waitpid(child, 0)
    if kind == "error":
        raise result
    value: T = result
    return value


@pytest.fixture
def service(make_daemon: Callable[..., Daemon]) -> Iterator[Daemon]:
    """A daemon in service mode, on a spool that everybody can reach."""
    spool = Path(tempfile.mkdtemp(prefix="obatch-users-"))
    spool.chmod(0o755)
    config = {"access": SERVICE, "limits": {"open_jobs": 3}, "servers": {"base_port": free_ports(2)}}
    yield make_daemon(config, spool=spool).start().ready()
    shutil.rmtree(spool, ignore_errors=True)


def submit(d: Daemon, user: tuple[int, int], name: str) -> Job:
    """A file that only its owner can read, in a directory that only they can enter."""
    home = Path(tempfile.mkdtemp(dir=d.spool, prefix=".home-"))
    path = home / name
    path.write_bytes(jsonl(prompts(3, name)))
    for each in (home, path):
        os.chown(each, *user)
        each.chmod(0o700 if each is home else 0o600)
    document = as_user(user, lambda: ControlClient(d.spool).submit(path, {}))
    return Job(Path(document["outbox"]))


def test_users_of_a_service_are_kept_apart(service: Daemon) -> None:
    d, client = service, ControlClient(service.spool)
    mine, dropped = submit(d, ALICE, "alices-secret.jsonl"), d.drop("bobs.jsonl", prompts(2, "bob"), BOB[0])
    wait_for((mine.directory / "summary.json").exists, 20)
    [bobs] = wait_for(lambda: list((d.outbox / str(BOB[0])).glob("bobs.*/summary.json")))
    assert dropped

    # The owner reads, and sees only what is theirs.
    assert as_user(ALICE, lambda: len(mine.results)) == 3
    assert as_user(BOB, bobs.read_bytes)
    assert [job["name"] for job in as_user(ALICE, lambda: client.get("jobs"))["jobs"]] == ["alices-secret.jsonl"]
    assert as_user(ALICE, lambda: client.get("status"))["servers"]

    # Others do not, by file or socket, even when they know every name.
    for path in (mine.directory, mine.directory / "summary.json", mine.directory.parent, d.spool / "work"):
        with pytest.raises(PermissionError):
            as_user(BOB, lambda path=path: os.listdir(path) if path.suffix != ".json" else path.read_bytes())
    with pytest.raises(PermissionError):
        as_user(BOB, lambda: os.listdir(d.outbox))
    with pytest.raises(PermissionError):
        as_user(ALICE, lambda: (mine.directory / "new").write_text("x"))
    for action in ("", "/cancel", "/retry", "/pause", "/resume"):
        call = client.post if action else client.get
        with pytest.raises(NotFoundError):
            as_user(BOB, lambda call=call, action=action: call(f"jobs/{mine.id}{action}"))
        with pytest.raises(NotFoundError):
            as_user(BOB, lambda call=call, action=action: call(f"jobs/{mine.id[:9]}9{action}"))  # no hour begins so
    assert mine.id not in str(as_user(BOB, lambda: client.get("jobs")))
    for forbidden in ("drain", "pause", "reload", "servers/gpu0/restart"):
        with pytest.raises(ForbiddenError):
            as_user(BOB, lambda forbidden=forbidden: client.post(forbidden))

    # Somebody in neither group is told which, an administrator sees everything.
    with pytest.raises(ForbiddenError, match="group users"):
        as_user(EVE, lambda: client.get("status"))
    assert len(as_user(ROSE, lambda: client.get("jobs"))["jobs"]) == 2
    assert len(as_user(ROSE, lambda: client.get("jobs", owner="mine"))["jobs"]) == 0
    assert as_user(ROSE, lambda: len(mine.results)) == 3
    assert as_user(ROSE, lambda: client.post("pause"))["paused"]

    # Limits hold up one owner and not the other; only the owner hears of what waits.
    d.drop_all({f"alice-{n}.jsonl": prompts(1, f"a{n}") for n in range(5)}, ALICE[0])

    def two_waiting() -> list[Document]:
        blocked: list[Document] = as_user(ALICE, lambda: client.get("status"))["inbox"]["blocked"]
        return blocked if len(blocked) == 2 else []

    waiting = wait_for(two_waiting, what="two drops wait until three jobs are done")
    assert {entry["name"] for entry in waiting} <= {f"alice-{n}.jsonl" for n in range(5)}
    assert "open_jobs" in waiting[0]["reason"]
    d.drop("bob-2.jsonl", prompts(1, "b2"), BOB[0])
    wait_for(lambda: len(as_user(BOB, lambda: client.get("jobs", state="running"))["jobs"]) == 1)
    assert as_user(BOB, lambda: client.get("status"))["inbox"]["blocked"] == []
    as_user(ROSE, lambda: client.post("resume"))
    wait_for(lambda: len(list((d.outbox / str(ALICE[0])).glob("alice-?.*/summary.json"))) == 5, 30)

    # What is refused can be read by its owner alone.
    d.drop("wrong.jsonl", b"\xff\xfe\x00", ALICE[0])
    [why] = wait_for(lambda: list((d.spool / "failed" / str(ALICE[0])).glob("wrong.*/*.error.txt")))
    assert "could not become a job" in as_user(ALICE, why.read_text)
    with pytest.raises(PermissionError):
        as_user(BOB, why.read_text)


def test_the_python_client_shows_each_user_their_own_jobs(service: Daemon) -> None:
    """They read their answers in the outbox themselves; who is somebody else finds neither job nor answer."""
    spool = service.spool

    def ask(word: str) -> tuple[str, list[str | None]]:
        job = PythonClient(spool).submit([f"{word} 1?", f"{word} 2?"], label=word).wait(progress=False)
        return job.id, [answer.prompt for answer in job.results() if answer.ok]

    mine, answered = as_user(ALICE, lambda: ask("alice"))
    assert answered == ["alice 1?", "alice 2?"]
    assert as_user(BOB, lambda: ask("bob"))[1] == ["bob 1?", "bob 2?"]
    assert as_user(ALICE, lambda: [job.label for job in PythonClient(spool).jobs()]) == ["alice"]
    for name in (mine, "alice"):
        with pytest.raises(NotFoundError):
            as_user(BOB, lambda name=name: PythonClient(spool).job(name))
    with pytest.raises(ForbiddenError):
        as_user(BOB, lambda: PythonClient(spool).jobs(everyone=True))
    with pytest.raises(ForbiddenError):
        as_user(EVE, lambda: PythonClient(spool).status())
    assert as_user(ROSE, lambda: {job.label for job in PythonClient(spool).jobs(everyone=True)}) == {"alice", "bob"}


def test_programs_of_two_users_have_nothing_to_do_with_each_other(make_daemon: Callable[..., Daemon]) -> None:
    spool = Path(tempfile.mkdtemp(prefix="obatch-programs-"))
    spool.chmod(0o755)
    # Whoever calls with a key is looked up in the user database: these have accounts on every Debian.
    users = (pwd.getpwnam(name) for name in ("sync", "nobody", "games"))
    first, second, admin = ((user.pw_uid, user.pw_gid) for user in users)
    access = {"mode": "service", "submit_group": grp.getgrgid(second[1]).gr_name, "admin_group": "games"}
    config = {"access": access, "servers": {"base_port": free_ports(2)}, "limits": {"files": 2}}
    found = over_http(make_daemon, config, spool=spool)
    try:
        found.d.start().ready()
        client = ControlClient(spool)
        keys = {user: as_user(user, lambda: client.post("keys", body={}))["key"] for user in (first, second, admin)}
        with pytest.raises(ForbiddenError):
            as_user(EVE, lambda: client.post("keys", body={}))
        with pytest.raises(ForbiddenError, match="administrator"):
            as_user(second, lambda: client.post("keys", body={"administrator": True}))
        over_all = as_user(admin, lambda: client.post("keys", body={"administrator": True}))["key"]
        alice, bob, rose = (found.client(api_key=keys[user]) for user in (first, second, admin))
        file = alice.files.create(file=("alices.jsonl", questions(2)), purpose="batch").id
        batch = alice.batches.create(input_file_id=file, endpoint=CHAT, completion_window="24h").id
        done = wait_for(lambda: b if (b := alice.batches.retrieve(batch)).status == "completed" else None)
        assert done is not None and found.d.client.get("jobs")["jobs"][0]["owner"] == first[0]
        [outbox] = (found.d.outbox / str(first[0])).iterdir()
        assert as_user(first, lambda: (outbox / "results.jsonl").read_bytes())
        for other in (bob, rose):
            for one in (file, str(done.output_file_id)):
                for call in (other.files.retrieve, other.files.content, other.files.delete):
                    with pytest.raises(NotFound):
                        call(one)
            with pytest.raises(NotFound):
                other.batches.create(input_file_id=file, endpoint=CHAT, completion_window="24h")
            for act in (other.batches.retrieve, other.batches.cancel):
                with pytest.raises(NotFound):
                    act(batch)
            assert not list(other.files.list()) and not list(other.batches.list())
        # Nor by the routes of the Python client on another host.
        job = batch.removeprefix("batch_")
        for key, status in ((keys[first], 200), (keys[second], 404), (keys[admin], 404), (over_all, 200)):

            def asked(method: str, path: str, body: Any = None, key: str = key) -> Answer:
                return found.call(method, f"/obatchd/v1/{path}", body, Authorization=f"Bearer {key}")

            parts = ("failures", "results", *(f"files/{name}" for name in ("results.jsonl", "so-far.jsonl")))
            for path in (f"jobs/{job}", *(f"jobs/{job}/{part}" for part in parts)):
                assert asked("GET", path).status == status, path
            assert len(asked("GET", "jobs").document["jobs"]) == (status == 200)
            page = asked("GET", "page?fresh=1")
            assert (job in page.body.decode()) is (status == 200)
            assert len(page.document["jobs"]) == (status == 200)
            assert asked("GET", "burnin/series").status == (404 if key == over_all else 403)
            if status == 404:
                assert asked("DELETE", f"jobs/{job}").status == 404
                assert {asked("POST", f"jobs/{job}/{act}", {}).status for act in ("cancel", "pause", "retry")} == {404}
                sent = asked("POST", "jobs", {"file": file, "name": "hers.jsonl", "settings": {}, "token": "t"})
                assert (sent.status, sent.document["error"]["code"]) == (409, "no_upload")
        assert alice.files.retrieve(file).id == file
        # One user's limit is nobody else's.
        alice.files.create(file=("a", b"1"), purpose="batch")
        with pytest.raises(RateLimitError):
            alice.files.create(file=("b", b"1"), purpose="batch")
        bob.files.create(file=("b", b"1"), purpose="batch")
        with found.client(api_key=over_all) as everybody:
            assert batch in [one.id for one in everybody.batches.list()] and len(list(everybody.files.list())) == 4
        # Keys are their owners', and nobody else's on the socket either.
        [mine] = as_user(first, lambda: client.get("keys"))["keys"]
        with pytest.raises(NotFoundError):
            as_user(second, lambda: client.delete("keys", mine["id"]))
        as_user(first, lambda: client.delete("keys", mine["id"]))
        with pytest.raises(AuthenticationError):
            alice.files.list()
        for each in (alice, bob, rose):
            each.close()
        seen = {user: as_user(user, lambda: over_socket(found, f"/v1/files/{file}")) for user in (first, second, EVE)}
        assert seen == {first: 200, second: 404, EVE: 403}
    finally:
        found.d.clean()
        shutil.rmtree(spool, ignore_errors=True)


def test_what_administrators_do_to_others_is_recorded_and_theirs_alone_to_read(
    make_daemon: Callable[..., Daemon],
) -> None:
    spool = Path(tempfile.mkdtemp(prefix="obatch-audit-"))
    spool.chmod(0o755)
    user, admin = ((one.pw_uid, one.pw_gid) for one in map(pwd.getpwnam, ("nobody", "games")))
    access = {"mode": "service", "submit_group": grp.getgrgid(user[1]).gr_name, "admin_group": "games"}
    config = {"access": access, "servers": {"base_port": free_ports(2)}, "gpus": {"use": "simulated:2"}}
    found = over_http(make_daemon, config, spool=spool)
    try:
        found.d.start().ready()
        client = ControlClient(spool)
        own = as_user(user, lambda: client.post("keys", body={"label": "mine"}))
        over_all = as_user(admin, lambda: client.post("keys", body={"administrator": True, "label": "ops"}))
        as_user(admin, lambda: client.post("pause"))
        found._key = own["key"]  # root makes none
        with found.client(api_key=own["key"]) as alice, found.client(api_key=over_all["key"]) as rose:
            file = alice.files.create(file=("secret-name.jsonl", questions(2)), purpose="batch").id
            batch = alice.batches.create(input_file_id=file, endpoint=CHAT, completion_window="24h").id
            rose.batches.cancel(batch)
            rose.files.delete(file)
        job = batch.removeprefix("batch_")
        as_user(admin, lambda: client.post("resume"))
        wait_for(lambda: found.d.client.get("jobs", job)["state"] == "done")
        as_user(admin, lambda: client.delete("jobs", job))
        as_user(admin, lambda: client.post("gpus", "1", "quarantine", reason="it smells"))
        as_user(admin, lambda: client.delete("keys", own["about"]["id"]))
        found.d.kill()
        found.d.start()
        with pytest.raises(ForbiddenError):
            as_user(user, lambda: client.get("audit"))
        rows = as_user(admin, lambda: client.get("audit"))["entries"]
        seen = [(row["kind"], row["uid"], row["door"], row["target"], row.get("owner")) for row in rows]
        gpu = found.d.client.get("gpus", "1")["uuid"]
        assert seen == [
            ("key_added", user[0], "control", own["about"]["id"], user[0]),
            ("key_added", admin[0], "control", over_all["about"]["id"], admin[0]),
            ("host_paused", admin[0], "control", "", None),
            ("job_cancelled", admin[0], "http", job, user[0]),
            ("file_removed", admin[0], "http", file, user[0]),
            ("host_resumed", admin[0], "control", "", None),
            ("job_removed", admin[0], "control", job, user[0]),
            ("gpu_quarantined", admin[0], "control", gpu, None),
            ("key_removed", admin[0], "control", own["about"]["id"], user[0]),
        ]
        cancelled = rows[3]
        assert (cancelled["address"], cancelled["key"], cancelled["key_label"], cancelled["user"]) == (
            "127.0.0.1", over_all["about"]["id"], "ops", "games",
        )  # fmt: skip
        assert all(row["pid"] for row in rows if row["door"] == "control")
        kept = (spool / "work" / "audit" / "audit.jsonl").read_text()
        assert "secret-name" not in kept and own["key"] not in kept and "what is" not in kept
        shown = found.d.control("audit", "--kind", "job", "--limit", "1").stdout.splitlines()
        assert len(shown) == 2 and job in shown[1] and "games (" in shown[1] and "nobody" in shown[1]
    finally:
        found.d.clean()
        shutil.rmtree(spool, ignore_errors=True)


def test_metrics_are_for_administrators(make_daemon: Callable[..., Daemon]) -> None:
    spool = Path(tempfile.mkdtemp(prefix="obatch-metrics-"))
    spool.chmod(0o755)
    user, admin = ((one.pw_uid, one.pw_gid) for one in map(pwd.getpwnam, ("nobody", "games")))
    access = {"mode": "service", "submit_group": grp.getgrgid(user[1]).gr_name, "admin_group": "games"}
    config = {"access": access, "servers": {"base_port": free_ports(2)}, "gpus": {"use": "simulated:2"}}
    found = over_http(make_daemon, config, spool=spool)
    try:
        found.d.start().ready()
        client = ControlClient(spool)
        for ask in (lambda: client.get("metrics"), lambda: client.post("keys", body={"scopes": ["metrics"]})):
            with pytest.raises(ForbiddenError, match="only"):
                as_user(user, ask)
        assert as_user(admin, lambda: client.get("metrics"))["text"].startswith("# HELP obatch_build_info")
        key = as_user(admin, lambda: client.post("keys", body={"scopes": ["metrics"]}))["key"]
        found._key = key  # root makes none
        assert found.call("GET", "/metrics").status == 200
        assert found.call("GET", "/v1/files").status == 403
        assert as_user(user, lambda: over_socket(found, "/metrics")) == 403
        assert as_user(admin, lambda: over_socket(found, "/metrics")) == 200
    finally:
        found.d.clean()
        shutil.rmtree(spool, ignore_errors=True)


def test_the_page_of_each_user_shows_their_own_and_goes_by_their_groups(make_daemon: Callable[..., Daemon]) -> None:
    spool = Path(tempfile.mkdtemp(prefix="obatch-page-"))
    spool.chmod(0o755)
    first, second, admin = ((one.pw_uid, one.pw_gid) for one in map(pwd.getpwnam, ("sync", "nobody", "games")))
    access = {"mode": "service", "submit_group": grp.getgrgid(second[1]).gr_name, "admin_group": "games"}
    found = over_http(make_daemon, {"access": access, "servers": {"base_port": free_ports(2)}}, spool=spool)
    try:
        found.d.start().ready()
        client, found._key = ControlClient(spool), "none"
        with pytest.raises(ForbiddenError):
            as_user(EVE, lambda: client.post("web/codes"))
        token = {}
        for user, is_administrator in ((first, False), (second, False), (admin, True)):
            code = as_user(user, lambda: client.post("web/codes"))["code"]
            session = found.call("POST", "/page/session", {"code": code}, Authorization="").document
            assert (session["uid"], session["administrator"]) == (user[0], is_administrator)
            assert session["user"] == pwd.getpwuid(user[0]).pw_name
            token[user] = session["token"]

        def asked(user: tuple[int, int], method: str, path: str, body: Any = None, **headers: str) -> Answer:
            return found.call(method, path, body, Authorization=f"Bearer {token[user]}", **headers)

        form = multipart(("purpose", None, b"batch"), ("file", "drop", jsonl(prompts(2, "secret"))))
        file = asked(first, "POST", "/v1/files", form, Content_Type=FORM).document["id"]
        body = {"file": file, "name": "mine.jsonl", "token": "t"}
        assert asked(second, "POST", "/obatchd/v1/jobs", body).status == 409
        assert asked(second, "DELETE", f"/v1/files/{file}").status == 404
        job = asked(first, "POST", "/obatchd/v1/jobs", body).document["job"]["job"]
        assert asked(first, "GET", f"/obatchd/v1/jobs/{job}").document["owner"] == first[0]
        wait_for(lambda: asked(first, "GET", f"/obatchd/v1/jobs/{job}").document["state"] == "done")
        for user, status in ((first, 200), (second, 404), (admin, 200)):
            assert asked(user, "GET", f"/obatchd/v1/jobs/{job}").status == status
            assert asked(user, "GET", f"/obatchd/v1/jobs/{job}/files/results.jsonl").status == status
            assert len(asked(user, "GET", "/obatchd/v1/jobs").document["jobs"]) == (status == 200)
        for act in ("cancel", "pause", "retry"):
            assert asked(second, "POST", f"/obatchd/v1/jobs/{job}/{act}", {}).status == 404
        assert asked(second, "GET", "/obatchd/v1/jobs?owner=all").status == 403
        # On the socket, the token says who it is, and not who carries it there.
        carried = as_user(second, lambda: over_socket(found, f"/obatchd/v1/jobs/{job}", token[admin]))
        assert carried == 200 and as_user(admin, lambda: over_socket(found, f"/obatchd/v1/jobs/{job}")) == 404
        # One user's logout is nobody else's.
        assert as_user(second, lambda: client.delete("web/sessions"))["ended"] == 1
        assert [asked(user, "GET", "/page/session").status for user in (first, second, admin)] == [200, 401, 200]
        rows = as_user(admin, lambda: client.get("audit", kind="session"))["entries"]
        assert [(row["uid"], row["door"], row.get("detail")) for row in rows] == [
            (first[0], "page", None), (second[0], "page", None), (admin[0], "page", "administrator"),
        ]  # fmt: skip
    finally:
        found.d.clean()
        shutil.rmtree(spool, ignore_errors=True)


def over_socket(found: Programs, path: str, token: str = "") -> int:
    """The status of a plain call on the socket."""
    bearer = f"Authorization: Bearer {token}\r\n" if token else ""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(found.socket_path))
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{bearer}Connection: close\r\n\r\n".encode())
        return int(connection.recv(1000).split()[1])
