"""SIGKILL at every instant of the protocols: each request ends up in the outbox exactly once."""

from __future__ import annotations

import json
import signal
import time
import zipfile
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from daemon_support import Daemon, Document, json_array_gz, jsonl, prompts, wait_for

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
