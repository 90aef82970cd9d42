"""Effects of settings that each job keeps from its acceptance on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from daemon_support import Document, Job, prompts, wait_for
from reload_stage import Scene, Stage


@dataclass
class NextJob:
    """A setting, changed while a job waits: that job is done with the old one, and one accepted later with the new.

    Args:
        look: what is seen of a job, and of all that the server was asked since both were accepted.
        seen: what that is, of the first job and of the second.
        beside: other settings that it takes to see it.
        waits_s: how long both jobs wait.
    """

    old: Any
    new: Any
    look: Callable[[Job, list[Document]], Any]
    seen: tuple[Any, Any]
    beside: Document = field(default_factory=dict)
    waits_s: float = 0.0


def see_next_job(stage: Stage, key: str, setting: NextJob) -> None:
    d = stage.d
    names = [stage.name(), stage.name()]
    usual = stage.settings
    stage.reload({key: setting.old} | setting.beside)
    d.client.post("pause")
    d.drop(names[0], prompts(2, names[0]))
    wait_for(lambda: len(d.status()["jobs"]) == 1, what="the first is a job")
    answer = stage.reload({key: setting.new})
    assert (answer["changed"], answer["next_job"], answer["needs_restart"]) == ([key], [key], [])
    d.drop(names[1], prompts(2, names[1]))
    wait_for(lambda: len(d.status()["jobs"]) == 2, what="the second is a job")
    time.sleep(setting.waits_s)
    asked_before = len(d.received())
    d.client.post("resume")
    jobs = [d.done(name) for name in names]
    asked = d.received()[asked_before:]
    seen = tuple(setting.look(job, asked) for job in jobs)
    assert seen == setting.seen, f"{key} from {setting.old} to {setting.new}: {seen}"
    wait_for(lambda: not d.status()["jobs"], what="both are over")
    stage.put(usual)


def asked_of(job: Job, asked: list[Document]) -> list[Document]:
    name = job.directory.name.partition(".")[0]
    return [request for request in asked if request["prompt"].startswith(f"{name}.jsonl")]


def in_requests(look: Callable[[Document], Any]) -> Callable[[Job, list[Document]], Any]:
    """What is the same in both requests of a job."""

    def of_job(job: Job, asked: list[Document]) -> Any:
        first, second = [look(request) for request in asked_of(job, asked)]
        assert first == second
        return first

    return of_job


def is_first(job: Job, asked: list[Document]) -> bool:
    return asked[0] in asked_of(job, asked)


def expires(job: Job, asked: list[Document]) -> int:
    expired: int = job.summary["expired"]
    return expired


def ungrounded(job: Job, asked: list[Document]) -> bool:
    return all(record.get("ungrounded") for record in job.results)


def files(job: Job, asked: list[Document]) -> set[str]:
    directory = job.directory / "responses"
    return {path.suffix for path in directory.iterdir()} if directory.exists() else set()


NEXT_JOB = {
    "model": NextJob(
        "tiny", "simulated", in_requests(lambda request: request["model"]), ("tiny:latest", "simulated:latest")
    ),
    "system_message": NextJob("old", "new", in_requests(lambda request: request["system"]), ("old", "new")),
    "context_length": NextJob(4096, 16384, in_requests(lambda request: request["num_ctx"]), (4096, 16384)),
    "max_response_tokens": NextJob(7, 9, in_requests(lambda request: request["options"]["num_predict"]), (7, 9)),
    "options": NextJob({"top_k": 1}, {"top_k": 2}, in_requests(lambda request: request["options"]["top_k"]), (1, 2)),
    "format": NextJob("", "json", in_requests(lambda request: request["format"]), (None, "json")),
    "in_source": NextJob([], ["answer"], ungrounded, (False, True), {"format": "json"}),
    "think": NextJob(False, True, in_requests(lambda request: request["think"]), (False, True)),
    "priority": NextJob("low", "high", is_first, (False, True)),
    "deadline": NextJob(0, 0.1, expires, (0, 2), waits_s=1.3),
    "outbox.response_files": NextJob("always", "never", files, ({".json", ".txt"}, set())),
    "outbox.response_text": NextJob("txt", "md", files, ({".json", ".txt"}, {".json", ".md"})),
    "outbox.response_files_limit": NextJob(100, 1, files, ({".json", ".txt"}, set())),
}
JOBS = Scene({}, simulator={"models": [
    {"name": "tiny", "capabilities": ["completion", "thinking"]}, {"name": "simulated"},
]})  # fmt: skip
