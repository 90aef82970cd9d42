"""SIGKILL at every instant of the protocols: each request ends up in the outbox exactly once."""

from __future__ import annotations

import json
import signal
import time
import zipfile
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from daemon_support import Daemon, Document, json_array_gz, jsonl, prompts, wait_for

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


def check_all(d: Daemon, drops: list[Drop], timeout_s: float = 60) -> None:
    """Every drop is one complete job with one right answer for each request, and nothing else is anywhere."""
    deadline_s = time.monotonic() + timeout_s
    for name, _, asked in drops:
        d.done(name, deadline_s - time.monotonic()).check(asked)
    assert len(list(d.outbox.iterdir())) == len(drops)
    assert list(d.inbox.iterdir()) == []
    assert [path for path in (d.spool / "failed").rglob("*") if path.is_file()] == []
    wait_for(lambda: {job["state"] for job in d.client.get("jobs")["jobs"]} == {"done"}, 5, "every job is over")
    assert len(d.client.get("jobs")["jobs"]) == len(drops)
    counted = [(sums["requests"], sums["succeeded"]) for sums in d.client.get("usage")["usage"]]
    assert [sum(counts) for counts in zip(*counted, strict=True)] == [sum(len(asked) for _, _, asked in drops)] * 2


@pytest.mark.parametrize("instant", INSTANTS)
def test_killed_at_an_instant_of_a_protocol(make_daemon: Make, instant: str) -> None:
    d = make_daemon(simulator={"service_s": {"kind": "fixed", "value": 0.05}}).start(instant)
    drops = [lines("lines", 40), folder("folder", 5), array("array", 20), single("single", 1), archive("archive", 5)]
    d.drop_all({name: content for name, content, _ in drops})
    assert d.process is not None
    assert d.process.wait(20) == -signal.SIGKILL
    d.start()
    check_all(d, drops)
    assert d.stop() == 0
    assert d.servers_alive() == []
