"""Hosts with bad means: a line that is slow, a disk that refuses, a clock that is a day ahead."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster_support import Head, HostProcess
from daemon_support import Document, prompts
from disk_support import STRACE, refusing
from line_support import Line

STEADY: Document = {"service_s": {"kind": "fixed", "value": 0.1}, "load_s": 0.05}
LONG = "".join(random.Random(1).choices("0123456789abcdef", k=200_000))  # one word, of which nothing can be spared
AHEAD = "import time\n_now = time.time\ntime.time = lambda: _now() + 86_400.0\n"


@pytest.fixture
def head(make_head: Callable[..., Head]) -> Head:
    return make_head().start()


def test_a_slow_line_is_waited_for_and_is_no_silence(
    head: Head, make_host: Callable[..., HostProcess], make_line: Callable[[Head], Line]
) -> None:
    line = make_line(head)
    make_host(head, line=line, simulator=STEADY).join().start()
    head.has_ready(2)
    away = len(head.events("host_away"))
    line.bytes_per_s, line.delay_s = 1_000_000.0, 0.1
    asked = [{**request, "prompt": f"{request['prompt']} {LONG}"} for request in prompts(60, "slow")]
    head.drop("slow.jsonl", asked)
    head.done("slow.jsonl", 90).check(asked)
    assert line.carried_bytes > 60 * len(LONG)
    assert len(head.events("host_away")) == away, "signs of life come between the pieces"


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
