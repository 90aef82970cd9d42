"""The verdict over a storm over several hosts: it sees what it is there for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cluster_plan import Drop, Plan
from cluster_verdict import CONTROL, Struck, judge
from daemon_support import Document, digest

ASKED = [{"id": f"d00000-{number}", "prompt": f"what is {number}?"} for number in range(3)]
PLAN = Plan(7, [], [Drop("d00000", ASKED)])
START = 'level=WARN msg="simulated Ollama: no model runs here, the answers are made up"\n'
BEGUN = 'level=INFO msg="starting runner" cmd="simulated runner --model sha256-1"\n'
GONE = '[GIN] 2026/11/30 - 11:21:55 | 499 |   78.269662ms |       127.0.0.1 | POST     "/api/generate"\n'
LOAD = BEGUN + 'level=INFO msg="loaded runners" count=1\n'


class Left:
    """What a storm with one host of one GPU left."""

    def __init__(self, root: Path) -> None:
        self.job = root / "outbox" / "d00000.20260101-000000-aaaa"
        self.log = root / "host" / "logs" / "gpu0.log"
        for directory in (self.job, root / "inbox", self.log.parent):
            directory.mkdir(parents=True)
        self.log.write_text(START + LOAD)
        self.answered([_record(line, request) for line, request in enumerate(ASKED, 1)])
        head = SimpleNamespace(outbox=root / "outbox", inbox=root / "inbox", spool=root)
        self.ended: list[str] = []  # what the host logged of its server
        events = {"server_state": self.ended}
        host = SimpleNamespace(name="node01", gpus=1, directory=root / "host", left=list, events=events.__getitem__)
        self.fleet: Any = SimpleNamespace(head=head, hosts=[host])
        self.struck = Struck()

    def answered(self, records: list[Document]) -> None:
        count = len(records)
        summary = {
            "requests": count, "succeeded": count, "failed": 0, "cancelled": 0, "expired": 0, "failures": {},
            "serial_s": float(count), "wall_s": 1.0, "speedup": float(count),
        }  # fmt: skip
        (self.job / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        (self.job / "errors.jsonl").write_text("")
        (self.job / "summary.json").write_text(json.dumps(summary))

    def judged(self) -> list[str]:
        return list(judge(self.fleet, PLAN, self.struck))


@pytest.fixture
def left(tmp_path: Path) -> Left:
    return Left(tmp_path)


def _record(line: int, request: Document) -> Document:
    return {**request, "line": line, "response": digest(request["prompt"]), "duration_s": 1.0}


def test_what_is_as_it_was_promised_is_counted(left: Left) -> None:
    assert left.judged() == []
    assert left.struck.answered == len(ASKED)


def test_a_request_without_an_answer_with_two_or_with_anothers_is_told(left: Left) -> None:
    first, second, third = (_record(line, request) for line, request in enumerate(ASKED, 1))
    for records in (
        [first, second],
        [first, second, second, third],
        [first, second, {**third, "response": digest("something else")}],
    ):
        left.answered(records)
        assert [words.partition(":")[0] for words in left.judged()] == ["d00000"]
    assert left.struck.answered == 0


def test_a_second_job_none_and_somebody_elses_are_told(left: Left) -> None:
    second = left.job.with_name("d00000.20260101-000000-bbbb")
    shutil.copytree(left.job, second)
    assert left.judged() == ["d00000 has 2 jobs in the outbox"]
    shutil.rmtree(left.job)
    second.rename(second.with_name("other.20260101-000000-bbbb"))
    assert [words.rpartition(" ")[0] for words in left.judged()] == [
        "d00000 has 0 jobs in the",
        f"{second.with_name('other.20260101-000000-bbbb')} is",
    ]


def test_a_start_or_a_load_without_a_reason_is_told(left: Left) -> None:
    left.log.write_text(START + LOAD + LOAD)
    assert left.judged() == ["node01.gpu0 loaded a model 2 times, with 1 reasons"]
    left.struck.reloads["node01.gpu0"] += 1
    assert left.judged() == []
    left.log.write_text(2 * (START + LOAD))
    assert left.judged() == ["node01.gpu0 was started 2 times, with 1 reasons"]
    left.struck.restarts["node01.gpu0"] += 1
    assert left.judged() == []


def test_a_load_that_was_given_up_has_another_head_or_a_cut_as_its_reason(left: Left) -> None:
    left.log.write_text(START + BEGUN + GONE + LOAD)
    assert left.judged() == ["node01.gpu0 loaded a model 2 times, with 1 reasons"]  # nothing was struck
    left.struck.hit("head")
    assert left.judged() == []
    left.log.write_text(START + BEGUN + LOAD)  # its runner died, and nobody killed it
    assert left.judged() == ["node01.gpu0 loaded a model 2 times, with 1 reasons"]
    left.log.write_text(START + LOAD + GONE + LOAD)  # it had been loaded: another head is no reason
    assert left.judged() == ["node01.gpu0 loaded a model 2 times, with 1 reasons"]


def test_a_server_that_was_ended_because_its_runner_was_killed_again_has_a_reason(left: Left) -> None:
    left.log.write_text(2 * (START + LOAD))
    left.ended.append(f"event=server_state server=gpu0 gpu=GPU-1 {CONTROL}: unexpected EOF")
    assert left.judged() == ["node01.gpu0 was started 2 times, with 1 reasons"]  # no runner was killed
    left.struck.reloads["node01.gpu0"] += 1
    assert left.judged() == []
