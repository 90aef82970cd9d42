"""Hosts with bad means: a line that is slow, a disk that refuses, a clock that is a day ahead."""

from __future__ import annotations

import base64
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster_support import Head, HostProcess
from daemon_support import Document, prompts
from disk_support import STRACE, refusing
from line_support import Line

STEADY: Document = {"service_s": {"kind": "fixed", "value": 0.1}, "load_s": 0.05}
IMAGE = base64.b64encode(os.urandom(200_000)).decode()
AHEAD = "import time\n_now = time.time\ntime.time = lambda: _now() + 86_400.0\n"


@pytest.fixture
def head(make_head: Callable[..., Head]) -> Head:
    return make_head().start()


def test_a_slow_line_is_waited_for_and_is_no_silence(
    head: Head, make_host: Callable[..., HostProcess], make_line: Callable[[Head], Line]
) -> None:
    line = make_line(head)
    slow = make_host(head, line=line, simulator=STEADY).join().start()
    near = make_host(head, simulator=STEADY).join().start()
    head.has_ready(4)
    line.bytes_per_s, line.delay_s = 500_000.0, 0.1
    asked = prompts(60, "slow", images=[IMAGE])
    head.drop("slow.jsonl", asked)
    begun_s = time.monotonic()
    answered = _answers_on(head, slow), _answers_on(head, near)
    head.done("slow.jsonl", 90).check(asked)
    assert not head.events("host_away"), "signs of life come between the pieces"
    assert _answers_on(head, near) - answered[1] > _answers_on(head, slow) - answered[0]
    assert time.monotonic() - begun_s < 60


def _answers_on(head: Head, host: HostProcess) -> int:
    return sum(server["requests_done"] for server in head.servers() if server["id"].startswith(f"{host.name}."))


@pytest.mark.skipif(STRACE is None, reason="needs strace")
def test_a_host_whose_disk_refuses_goes_on_and_is_told(head: Head, make_host: Callable[..., HostProcess]) -> None:
    host = make_host(head, simulator=STEADY).join().start()
    head.has_ready(2)
    asked = prompts(100, "disk")
    with refusing(host, "ENOSPC", "fsync,fdatasync,pwrite64,rename,renameat,renameat2"):
        head.drop("disk.jsonl", asked)
        head.done("disk.jsonl", 60).check(asked)
        assert host.state() == "here"
    head.has_ready(2)
    assert host.stop() == 0


def test_a_clock_that_is_a_day_ahead_does_no_harm(
    head: Head, make_host: Callable[..., HostProcess], tmp_path: Path
) -> None:
    host = make_host(head, simulator=STEADY).join()
    ahead = tmp_path / "ahead"
    ahead.mkdir()
    (ahead / "sitecustomize.py").write_text(AHEAD)
    path = os.pathsep.join(filter(None, [str(ahead), os.environ.get("PYTHONPATH", "")]))
    host.launch(PYTHONPATH=path)
    head.has_ready(2)
    asked = prompts(60, "ahead")
    head.drop("ahead.jsonl", asked)
    summary = head.done("ahead.jsonl", 60).check(asked)
    assert summary["wall_s"] < 60
    assert head.events("host_clock")
    shutil.rmtree(ahead)
