"""SIGKILL at every instant of the protocols: each request ends up in the outbox exactly once."""

from __future__ import annotations

import json
import signal
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from daemon_support import Daemon, Document, json_array_gz, jsonl, prompts, wait_for
from programs_support import CHAT, over_http, questions

from obatchd.errors import DaemonDownError

Make = Callable[..., Daemon]
Drop = tuple[str, Any, list[Document]]
INSTANTS = [
    "unpack.after_write",
    "unpack.after_flush",
    "unpack.after_conclude",
    "claim.after_intents",
    "claim.after_mkdir",
    "claim.after_rename",
    "claim.after_flush",
    "claim.after_accept",
    "commit.before",
    "commit.before:3",
    "commit.after",
    "commit.after:3",
    "publish.after_whole",
    "publish.after_flush",
    "publish.after_summary",
    "publish.after_done",
]


def lines(name: str, count: int) -> Drop:
    asked = prompts(count, name)
    return f"{name}.jsonl", jsonl(asked), asked


def array(name: str, count: int) -> Drop:
    asked = prompts(count, name)
    return f"{name}.json.gz", json_array_gz(asked), asked


def folder(name: str, count: int) -> Drop:
    asked = prompts(count, name)
    return name, {f"{request['id']}.json": json.dumps(request).encode() for request in asked}, asked


def repeated(name: str, count: int) -> Drop:
    """A folder whose prompts are answered three times each."""
    _, files, asked = folder(name, count)
    each = [{**request, "id": f"{request['id']}#{number}"} for request in asked for number in (1, 2, 3)]
    return name, {**files, "job.toml": b"repeat = 3\n"}, each


def archive(name: str, count: int) -> Drop:
    _, files, asked = folder(name, count)
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as zip_:
        for file, content in files.items():
            zip_.writestr(file, content)
    return f"{name}.zip", packed.getvalue(), asked


def single(name: str, _count: int) -> Drop:
    [asked] = prompts(1, name)
    return f"{name}.json", json.dumps(asked, indent=1).encode(), [asked]


def choosing(count: int) -> bytes:
    """A batch file whose lines ask for four answers each."""
    bodies = [{"model": "tiny", "messages": [{"role": "user", "content": f"p{n}"}], "n": 4} for n in range(count)]
    lines = [{"custom_id": f"c{n}", "url": "/v1/chat/completions", "body": body} for n, body in enumerate(bodies)]
    return jsonl(lines)


def check_choices(d: Daemon, count: int) -> None:
    """Every line has its answers, and one result."""
    results = d.done("choices.jsonl").results
    assert [result["custom_id"] for result in results] == [f"c{n}" for n in range(count)]
    assert [len(result["response"]["body"]["choices"]) for result in results] == [4] * count


def check_all(d: Daemon, drops: list[Drop], timeout_s: float = 60, *, others: Sequence[int] = ()) -> None:
    """Every drop is one complete job with one right answer for each request, and nothing else is anywhere.

    ``others`` are the requests of each job that is looked at elsewhere.
    """
    deadline_s = time.monotonic() + timeout_s
    for name, _, asked in drops:
        d.done(name, deadline_s - time.monotonic()).check(asked)
    assert len(list(d.outbox.iterdir())) == len(drops) + len(others)
    assert list(d.inbox.iterdir()) == []
    assert [path for path in (d.spool / "failed").rglob("*") if path.is_file()] == []
    wait_for(lambda: {job["state"] for job in d.client.get("jobs")["jobs"]} == {"done"}, 5, "every job is over")
    assert len(d.client.get("jobs")["jobs"]) == len(drops) + len(others)
    counted = [(sums["requests"], sums["succeeded"]) for sums in d.client.get("usage")["usage"]]
    everything = sum(len(asked) for _, _, asked in drops) + sum(others)
    assert [sum(counts) for counts in zip(*counted, strict=True)] == [everything] * 2


@pytest.mark.parametrize(("instant", "most"), [("publish.after_done", 1), ("notify.after_told", 2)])
def test_killed_before_and_after_a_submitter_is_told(
    make_daemon: Make, tmp_path: Path, instant: str, most: int
) -> None:
    keep = ["sh", "-c", f"cat >> {tmp_path}/told"]
    d = make_daemon({"notifications": {"allow": ["*@example.org"], "mail_command": keep}}).start(instant)
    (tmp_path / "told.jsonl").write_bytes(jsonl(prompts(3, "told")))
    d.client.submit(tmp_path / "told.jsonl", {"notify": ["mail:ann@example.org"]})
    assert d.process is not None
    assert d.process.wait(20) == -signal.SIGKILL
    d.start()
    told = tmp_path / "told"
    wait_for(lambda: told.exists() and len(told.read_text().splitlines()) == most, 20, "the submitter is told")
    wait_for(lambda: len(d.events("notification_told")) == most, 20, "it is told")
    assert json.loads(told.read_text().splitlines()[0])["succeeded"] == 3
    assert d.stop() == 0
    d.start()
    assert d.stop() == 0
    assert len(told.read_text().splitlines()) == most


@pytest.mark.parametrize("instant", INSTANTS)
def test_killed_at_an_instant_of_a_protocol(make_daemon: Make, instant: str) -> None:
    d = make_daemon(simulator={"service_s": {"kind": "fixed", "value": 0.05}}).start(instant)
    drops = [lines("lines", 40), folder("folder", 5), array("array", 20), single("single", 1), archive("archive", 5)]
    drops.append(repeated("repeated", 4))
    d.drop_all({name: content for name, content, _ in drops} | {"choices.jsonl": choosing(8)})
    assert d.process is not None
    assert d.process.wait(20) == -signal.SIGKILL
    d.start()
    check_choices(d, 8)
    check_all(d, drops, others=[8])
    assert d.stop() == 0
    assert d.servers_alive() == []


PROGRAM_INSTANTS = ["files.after_write", "files.after_write:2", "batches.after_accept", "batches.after_accept:2",
                    "commit.after:2", "publish.after_whole", "publish.after_summary", "publish.after_done"]  # fmt: skip


@pytest.mark.parametrize("instant", PROGRAM_INSTANTS)
def test_a_program_whose_daemon_is_killed_tries_again_and_has_each_answer_once(make_daemon: Make, instant: str) -> None:
    """Two batches by OpenAI's own client, with its own retries, while the daemon dies and comes back."""
    found = over_http(make_daemon, simulator={"service_s": {"kind": "fixed", "value": 0.02}})
    d = found.d.start(instant)
    names = ("one", "two")
    with found.client(max_retries=8) as client, ThreadPoolExecutor(1) as aside:

        def ask() -> list[str]:
            made = []
            for name in names:
                file = client.files.create(file=(f"{name}.jsonl", questions(40, name)), purpose="batch")
                batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
                made.append(batch.id)
            return made

        asked = aside.submit(ask)
        assert d.process is not None
        assert d.process.wait(20) == -signal.SIGKILL
        d.start()
        batches = asked.result(60)
        done = [found.until_over(batch) for batch in batches]
        assert [batch.status for batch in done] == ["completed"] * 2
        assert {batch.id for batch in client.batches.list()} == set(batches) == {batch.id for batch in done}
        for name, batch in zip(names, done, strict=True):
            lines = [json.loads(line) for line in client.files.content(str(batch.output_file_id)).text.splitlines()]
            assert [line["custom_id"] for line in lines] == [f"{name}-{number}" for number in range(40)]
            assert batch.error_file_id is None
        # A file is whole or not there: one may be there twice whose answer was lost.
        files = client.files.list(purpose="batch").data
        assert 2 <= len(files) <= 3
        for file in files:
            content = client.files.content(file.id).read()
            assert content in [questions(40, name) for name in names] and len(content) == file.bytes
    work = d.spool / "work"
    assert list((work / "uploads").iterdir()) == []
    assert {path.name for path in (work / "files").iterdir()} == {file.id for file in files}
    assert {path.name for path in (work / "jobs").iterdir()} == {batch.removeprefix("batch_") for batch in batches}
    assert d.stop() == 0


@pytest.mark.parametrize("moment", ["validating", "in_progress", "cancelling"])
def test_killed_while_a_batch_is_in_some_state(make_daemon: Make, moment: str) -> None:
    found = over_http(make_daemon, simulator={"service_s": {"kind": "fixed", "value": 0.01}})
    d, count = found.d.start().ready(), 5000 if moment == "validating" else 300
    with found.client() as client:
        file = client.files.create(file=("r.jsonl", questions(count)), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h").id
        if moment != "validating":
            wait_for(lambda: d.succeeded() > 20)
        if moment == "cancelling":
            client.batches.cancel(batch)
    d.kill()
    d.start()
    if moment == "validating":
        with found.client() as client:
            client.batches.cancel(batch)
    done = found.until_over(batch, 60)
    assert done.status == ("completed" if moment == "in_progress" else "cancelled") and done.request_counts is not None
    with found.client() as client:
        parts = [client.files.content(file).text if file else "" for file in (done.output_file_id, done.error_file_id)]
    names = [[json.loads(line)["custom_id"] for line in part.splitlines()] for part in parts]
    assert sorted(names[0] + names[1]) == sorted(f"c-{number}" for number in range(count))
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (count, len(names[0]), 0)


def test_a_retry_with_changes_that_is_killed_when_it_is_accepted(make_daemon: Make) -> None:
    faults = [{"kind": "status", "marker": "BAD", "model": "tiny"}]
    d = make_daemon({"dispatch": {"max_attempts": 1, "strikes": 100}}, simulator={"faults": faults})
    d.start("submit.after_accept")
    d.drop("job.jsonl", [*prompts(3), *prompts(2, "BAD")])
    job = d.done("job.jsonl")
    wait_for(lambda: d.client.get("jobs", job.id)["state"] == "done", 5, "the job is over")
    with pytest.raises(DaemonDownError):
        d.client.post("jobs", job.id, "retry", body={"settings": {"model": "large", "options": {"seed": 7}}})
    assert d.process is not None
    assert d.process.wait(20) == -signal.SIGKILL
    d.start()
    again = d.done("job.retry.jsonl")
    assert (again.summary["settings"]["model"], again.summary["settings"]["options"]) == ("large", {"seed": 7})
    assert [result["line"] for result in again.results] == [4, 5]
    assert f"5 requests = 5 answered + 0 failed, 2 of them in {again.id}\n" in d.control("results", job.id).stderr
    assert len(d.client.get("jobs")["jobs"]) == 2
