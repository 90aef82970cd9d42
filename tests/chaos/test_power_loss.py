"""What is flushed before what: by the order of system calls, and by starting from copies of interrupted flushes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from daemon_support import BIN, Daemon, json_array_gz, prompts, wait_for

Start = Callable[..., Daemon]
STRACE = shutil.which("strace")
_LINE = re.compile(r"^(\d+) +(?:(\w+)\((.*)|<\.\.\. (\w+) resumed>(.*))$")


class Call(NamedTuple):
    """One system call: ``begin`` and ``end`` are positions in the trace."""

    name: str
    text: str
    begin: int
    end: int


def read_trace(path: Path) -> list[Call]:
    """The calls that succeeded, by their beginning."""
    calls: list[Call] = []
    open_calls: dict[str, tuple[str, str, int]] = {}
    for number, line in enumerate(path.read_text(errors="replace").splitlines()):
        match = _LINE.match(line)
        if not match:
            continue
        process, name, text, resumed, rest = match.groups()
        if name and text.endswith("<unfinished ...>"):
            open_calls[process] = (name, text, number)
            continue
        begin = number
        if resumed:
            name, text, begin = open_calls.pop(process, (resumed, "", number))
            text += rest
        if " = -1 " not in text:
            calls.append(Call(name, text, begin, number))
    return sorted(calls, key=lambda call: call.begin)


class Trace:
    """Answers questions about the order of calls."""

    def __init__(self, calls: list[Call]) -> None:
        self.calls = calls

    def find(self, name: str, *parts: str) -> list[Call]:
        """Calls whose name matches and whose arguments contain every part."""
        return [c for c in self.calls if re.fullmatch(name, c.name) and all(part in c.text for part in parts)]

    def first(self, name: str, *parts: str, after: int = -1) -> Call:
        found = [call for call in self.find(name, *parts) if call.begin > after]
        assert found, f"no {name} of {parts} after line {after}"
        return found[0]

    def flushed(self, path: str, after: int, before: int) -> bool:
        """Whether a file or directory was flushed, by itself or with its file system, between two lines."""
        own = self.find("fsync|fdatasync", f"{path}>")
        return any(after < c.begin and c.end < before for c in [*own, *self.find("syncfs")])


RENAME = "rename|renameat|renameat2"
FLUSH = "fsync|fdatasync"


def traced(d: Daemon, file: Path) -> None:
    """Start the daemon under strace, whose lines are appended to ``file``."""
    calls = "trace=fsync,fdatasync,syncfs,rename,renameat,renameat2,unlink,unlinkat,pwrite64"
    command = [str(STRACE), "-f", "-y", "-A", "-o", file, "-s", "4096", "-e", "signal=none", "-e", calls]
    command += [BIN / "obatchd", "--config", d.config_file, "--spool", d.spool]
    with open(d.log_file, "ab") as log:
        d.process = subprocess.Popen(command, env={**os.environ, "HOME": str(d.root)}, stdout=log, stderr=log)


def end(d: Daemon) -> None:
    """Stop the daemon; strace ends with it."""
    os.kill(wait_for(lambda: d.status()["pid"], 20), signal.SIGTERM)
    assert d.process is not None
    assert d.process.wait(30) == 0


@pytest.mark.skipif(STRACE is None, reason="needs strace")
def test_the_order_of_system_calls(make_daemon: Start) -> None:
    d = make_daemon({"gpus": {"use": "simulated:1"}, "disk": {"keep_done_s": 0}})
    (d.spool / "inbox").mkdir(parents=True)
    d.drop("job.jsonl", [{"id": "q", "prompt": "what is it?"}])
    file = d.root / "trace"
    traced(d, file)
    job = d.done("job.jsonl", 60)
    wait_for(lambda: d.client.get("jobs")["jobs"][0]["state"] == "done", 20, "the index knows it, too")
    end(d)
    traced(d, file)  # the second start releases what the first one finished
    wait_for(lambda: not list((d.spool / "work" / "segments").iterdir()), 60, "the store is released")
    end(d)
    trace = Trace(read_trace(file))
    name = job.id
    claimed = trace.first(RENAME, "inbox/job.jsonl", f"{name}/input")
    noted = trace.first("pwrite64", "state.db-wal>", "job.jsonl")
    intended = trace.first(FLUSH, "state.db-wal>", after=noted.end)
    assert intended.end < claimed.begin, "the intent is durable before the drop is taken"
    accepted = trace.first(FLUSH, "state.db-wal>", after=claimed.end)
    for path in (f"{name}/input", f"{name}", "work/jobs", "/inbox"):
        assert trace.flushed(path, claimed.end, accepted.begin), f"{path} is durable before the job is accepted"

    written = trace.first("pwrite64", ".db-wal>", "digest:")
    committed = trace.first(FLUSH, "segments/", ".db-wal>", after=written.end)
    response = trace.first(RENAME, "/responses>", '"q.json"')
    assert committed.end < response.begin, "the result is durable before anybody sees it"

    summary = trace.first(RENAME, '"summary.json"')
    for path in ("results.jsonl", "responses/q.json", "/responses", f"job.{name}"):
        assert trace.flushed(path, response.end, summary.begin), f"{path} is durable before the job is complete"
    done = trace.first(FLUSH, "state.db-wal>", after=summary.end)
    for path in ("summary.json", f"job.{name}"):
        assert trace.flushed(path, summary.end, done.begin), f"{path} is durable before the index says done"
    for deleted in (trace.first("unlink|unlinkat", "segments/", '.db"'), trace.first("unlink|unlinkat", '"input"')):
        assert done.end < deleted.begin, "nothing is given up before the outbox is durable"


DROPS: dict[str, Any] = {
    "lines.jsonl": prompts(30, "lines"),
    "array.json.gz": json_array_gz(prompts(20, "array")),
    "folder": {f"{n}.json": b'{"prompt": "folder: what is %d?"}' % n for n in range(10)},
}


def another_boot(spool: Path) -> None:
    (spool / "work" / "session").write_text("another boot\n")
    with closing(sqlite3.connect(spool / "work" / "state.db")) as state, state:
        state.execute("INSERT OR REPLACE INTO facts VALUES ('boot_id', 'another boot')")


@pytest.mark.timeout(300)  # it starts a daemon from each of many copies
def test_the_promise_holds_from_every_copy_of_an_interrupted_flush(make_daemon: Start, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    d = make_daemon()
    (d.spool / "inbox").mkdir(parents=True)
    d.drop_all(DROPS)
    program = Path(__file__).with_name("copying_daemon.py")
    command = [sys.executable, program, copies, "--config", d.config_file, "--spool", d.spool]
    with open(d.log_file, "ab") as log:
        d.process = subprocess.Popen(command, env={**os.environ, "HOME": str(d.root)}, stdout=log, stderr=log)
    for name in DROPS:
        d.done(name, 60)
    wait_for(lambda: all(j["state"] == "done" for j in d.client.get("jobs")["jobs"]), 20, "the index knows it, too")
    assert d.stop() == 0
    found = sorted(copies.iterdir())
    assert {path.name.partition("-")[2] for path in found} == {
        "claim-names-kept", "claim-names-lost", "claim-flushed",
        "outbox-data-lost", "outbox-names-lost", "outbox-flushed",
    }  # fmt: skip
    for copy in found:
        another_boot(copy)
        again: Daemon = make_daemon(spool=copy)
        again.start()
        for name, content in DROPS.items():
            job = again.done(name)
            wait_for(lambda path=job.directory / "summary.json": path.stat().st_size, 20, f"{copy.name}: {name}")
            assert job.check()["succeeded"] == {"lines.jsonl": 30, "array.json.gz": 20, "folder": 10}[name], content
        assert len(list(again.outbox.iterdir())) == 3, copy.name
        assert not list(again.inbox.iterdir())
        assert again.stop() == 0
